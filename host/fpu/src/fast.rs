//! SSE and SSE2 instructions one by one, to be inlined.
//!
//! Each function takes the destination's old value and the source, and leaves the destination's new value, all of
//! XMM width; what an instruction does not change is carried over. Scalar functions read only the low bytes of the
//! source.
//!
//! Floating-point functions run in the host's own floating-point environment. That is exact while
//! [`FpuState::mxcsr_is_default`](crate::FpuState::mxcsr_is_default) holds, but for the exception flags, which gather
//! in the host's MXCSR: see [`HostFlags`](crate::HostFlags). Otherwise use [`sse::execute`](crate::sse::execute).
#![expect(unsafe_code, reason = "single instructions as assembly, so that the compiler cannot alter NaNs and flags")]

use std::arch::asm;
use std::arch::x86_64::{__m128i, _mm_loadl_epi64, _mm_loadu_si32, _mm_loadu_si128, _mm_storeu_si128};

/// An XMM register: low quadword, high quadword.
pub type Xmm = [u64; 2];

#[inline(always)]
pub(crate) fn load(value: &Xmm) -> __m128i {
    // SAFETY: an unaligned load of the 16 bytes that the reference covers.
    unsafe { _mm_loadu_si128(std::ptr::from_ref(value).cast()) }
}

#[inline(always)]
pub(crate) fn store(to: &mut Xmm, value: __m128i) {
    // SAFETY: an unaligned store to the 16 bytes that the reference covers.
    unsafe { _mm_storeu_si128(std::ptr::from_mut(to).cast(), value) }
}

/// Calls `$then!` with every floating-point instruction that takes (destination, source) and depends on MXCSR, as
/// `name "template"`, grouped by how many bytes of the source count.
macro_rules! for_each_float {
    ($then:ident) => {
        $then! {
            16: addps subps mulps divps minps maxps sqrtps addpd subpd mulpd divpd minpd maxpd sqrtpd
                cvtdq2ps cvtps2dq cvttps2dq cvtpd2ps cvtpd2dq cvttpd2dq;
            8: addsd subsd mulsd divsd minsd maxsd sqrtsd cvtsd2ss cvtps2pd cvtdq2pd;
            4: addss subss mulss divss minss maxss sqrtss cvtss2sd;
        }
    };
}
pub(crate) use for_each_float;

/// The low 16, 8 or 4 bytes of an [`Xmm`] in a register. Narrow loads avoid a failed store forwarding where the caller
/// has just written a narrow operand.
macro_rules! load_source {
    (16, $source:expr) => {
        $crate::fast::load($source)
    };
    (8, $source:expr) => {
        $crate::fast::load_low::<8>($source)
    };
    (4, $source:expr) => {
        $crate::fast::load_low::<4>($source)
    };
}
pub(crate) use load_source;

#[inline(always)]
pub(crate) fn load_low<const BYTES: usize>(value: &Xmm) -> __m128i {
    let from = std::ptr::from_ref(value);
    // SAFETY: unaligned loads of 4 or 8 of the 16 bytes that the reference covers.
    unsafe { if BYTES == 4 { _mm_loadu_si32(from.cast()) } else { _mm_loadl_epi64(from.cast()) } }
}

macro_rules! fast_float {
    ($($width:tt: $($name:ident)*;)*) => { $($(
        #[doc = concat!("`", stringify!($name), "` in the host's floating-point environment.")]
        #[inline(always)]
        pub fn $name(destination: &mut Xmm, source: &Xmm) {
            let mut value = load(destination);
            // SAFETY: one instruction on registers; it changes only flags of MXCSR, which the block does not promise to keep.
            unsafe {
                asm!(concat!(stringify!($name), " {0}, {1}"), inout(xmm_reg) value,
                    in(xmm_reg) load_source!($width, source), options(nomem, nostack));
            }
            store(destination, value);
        }
    )*)* };
}
for_each_float!(fast_float);

macro_rules! fast_compare {
    ($($name:ident $width:tt;)*) => { $(
        #[doc = concat!("`", stringify!($name), "` with predicate `P` (0 to 7) in the host's floating-point environment.")]
        #[inline(always)]
        pub fn $name<const P: i32>(destination: &mut Xmm, source: &Xmm) {
            let mut value = load(destination);
            // SAFETY: one instruction on registers; it changes only flags of MXCSR, which the block does not promise to keep.
            unsafe {
                asm!(concat!(stringify!($name), " {0}, {1}, {2}"), inout(xmm_reg) value,
                    in(xmm_reg) load_source!($width, source), const P & 7, options(nomem, nostack));
            }
            store(destination, value);
        }
    )* };
}
fast_compare! { cmpps 16; cmppd 16; cmpsd 8; cmpss 4; }

macro_rules! fast_ordered {
    ($($name:ident $width:tt;)*) => { $(
        #[doc = concat!("`", stringify!($name), "` in the host's floating-point environment: ZF, PF and CF as in RFLAGS; OF, SF and AF become zero.")]
        #[inline(always)]
        pub fn $name(destination: &Xmm, source: &Xmm) -> u64 {
            let flags: u64;
            // SAFETY: compares two registers and stores flags; the pushed word is popped again.
            unsafe {
                asm!(concat!(stringify!($name), " {1}, {2}"), "pushfq", "pop {0}", out(reg) flags,
                    in(xmm_reg) load_source!($width, destination), in(xmm_reg) load_source!($width, source));
            }
            flags & 0x45
        }
    )* };
}
fast_ordered! { comisd 8; ucomisd 8; comiss 4; ucomiss 4; }

macro_rules! fast_to_integer {
    ($($name:ident $insn:literal $width:tt $int:ident $modifier:tt;)*) => { $(
        #[doc = concat!("`", $insn, "` to a general register of `", stringify!($int), "` in the host's floating-point environment.")]
        #[inline(always)]
        pub fn $name(source: &Xmm) -> $int {
            let value: $int;
            // SAFETY: one instruction on registers; it changes only flags of MXCSR, which the block does not promise to keep.
            unsafe {
                asm!(concat!($insn, " {0", $modifier, "}, {1}"), out(reg) value,
                    in(xmm_reg) load_source!($width, source), options(nomem, nostack));
            }
            value
        }
    )* };
}
fast_to_integer! {
    cvtsd2si_32 "cvtsd2si" 8 u32 ":e"; cvtsd2si_64 "cvtsd2si" 8 u64 ":r";
    cvttsd2si_32 "cvttsd2si" 8 u32 ":e"; cvttsd2si_64 "cvttsd2si" 8 u64 ":r";
    cvtss2si_32 "cvtss2si" 4 u32 ":e"; cvtss2si_64 "cvtss2si" 4 u64 ":r";
    cvttss2si_32 "cvttss2si" 4 u32 ":e"; cvttss2si_64 "cvttss2si" 4 u64 ":r";
}

macro_rules! fast_from_integer {
    ($($name:ident $insn:literal $int:ident $modifier:tt;)*) => { $(
        #[doc = concat!("`", $insn, "` from a general register of `", stringify!($int), "` in the host's floating-point environment.")]
        #[inline(always)]
        pub fn $name(destination: &mut Xmm, source: $int) {
            let mut value = load(destination);
            // SAFETY: one instruction on registers; it changes only flags of MXCSR, which the block does not promise to keep.
            unsafe {
                asm!(concat!($insn, " {0}, {1", $modifier, "}"), inout(xmm_reg) value, in(reg) source,
                    options(nomem, nostack));
            }
            store(destination, value);
        }
    )* };
}
fast_from_integer! {
    cvtsi2sd_32 "cvtsi2sd" u32 ":e"; cvtsi2sd_64 "cvtsi2sd" u64 ":r";
    cvtsi2ss_32 "cvtsi2ss" u32 ":e"; cvtsi2ss_64 "cvtsi2ss" u64 ":r";
}

/// Calls `$then!` with every instruction of SSE and SSE2 on whole XMM registers that does not depend on MXCSR.
macro_rules! for_each_packed {
    ($then:ident) => {
        $then! {
            punpcklbw punpcklwd punpckldq punpcklqdq punpckhbw punpckhwd punpckhdq punpckhqdq
            packsswb packssdw packuswb
            pcmpgtb pcmpgtw pcmpgtd pcmpeqb pcmpeqw pcmpeqd
            psrlw psrld psrlq psraw psrad psllw pslld psllq
            paddb paddw paddd paddq psubb psubw psubd psubq
            paddsb paddsw paddusb paddusw psubsb psubsw psubusb psubusw
            pmullw pmulhw pmulhuw pmuludq pmaddwd psadbw pavgb pavgw pminub pmaxub pminsw pmaxsw
            pand pandn por pxor andps andnps orps xorps andpd andnpd orpd xorpd
            unpcklps unpckhps unpcklpd unpckhpd rcpps rsqrtps rcpss rsqrtss
        }
    };
}

macro_rules! fast_packed {
    ($($name:ident)*) => { $(
        #[doc = concat!("`", stringify!($name), "`.")]
        #[inline(always)]
        pub fn $name(destination: &mut Xmm, source: &Xmm) {
            let mut value = load(destination);
            // SAFETY: one instruction on registers that changes no flags.
            unsafe {
                asm!(concat!(stringify!($name), " {0}, {1}"), inout(xmm_reg) value, in(xmm_reg) load(source),
                    options(pure, nomem, nostack, preserves_flags));
            }
            store(destination, value);
        }
    )* };
}
for_each_packed!(fast_packed);

macro_rules! fast_mask {
    ($($name:ident)*) => { $(
        #[doc = concat!("`", stringify!($name), "`: the sign bits of the elements.")]
        #[inline(always)]
        pub fn $name(source: &Xmm) -> u64 {
            let value: u64;
            // SAFETY: one instruction on registers that changes no flags.
            unsafe {
                asm!(concat!(stringify!($name), " {0:e}, {1}"), out(reg) value, in(xmm_reg) load(source),
                    options(pure, nomem, nostack, preserves_flags));
            }
            value
        }
    )* };
}
fast_mask! { pmovmskb movmskps movmskpd }

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{FpuState, HostFlags, sse};

    fn quad() -> impl Strategy<Value = u64> {
        prop_oneof![
            any::<u64>(),
            any::<f64>().prop_map(f64::to_bits),
            any::<[f32; 2]>().prop_map(|[a, b]| u64::from(a.to_bits()) | u64::from(b.to_bits()) << 32),
            prop::sample::select(vec![
                0,
                1,
                1 << 63,
                0x7ff0 << 48,
                0x7ff8 << 48,
                (0x7ff0 << 48) + 9,
                0x7f80_0001_ffc0_0000
            ]),
        ]
    }

    /// What the table's instruction makes of the operands, with the flags that it raises.
    fn expected(name: &str, destination: &Xmm, source: &Xmm, immediate: u8) -> (Xmm, u32) {
        let (mut state, mut value) = (FpuState::new(), *destination);
        sse::named(name).unwrap().execute(&mut state, &mut value, source, immediate).unwrap();
        (value, state.mxcsr())
    }

    /// What `run` leaves behind, with the flags that it leaves in the host's MXCSR.
    fn actual(destination: &Xmm, run: impl FnOnce(&mut Xmm)) -> (Xmm, u32) {
        let (mut state, mut value) = (FpuState::new(), *destination);
        HostFlags::clear();
        run(&mut value);
        HostFlags::collect(&mut state);
        (value, state.mxcsr())
    }

    macro_rules! check_floats {
        ($($width:tt: $($name:ident)*;)*) => {
            fn check_floats(d: &Xmm, s: &Xmm) -> Result<(), TestCaseError> {
                $($(prop_assert_eq!(actual(d, |d| $name(d, s)), expected(stringify!($name), d, s, 0), "{}", stringify!($name));)*)*
                Ok(())
            }
        };
    }
    for_each_float!(check_floats);

    macro_rules! check_packed {
        ($($name:ident)*) => {
            fn check_packed(d: &Xmm, s: &Xmm) -> Result<(), TestCaseError> {
                $(prop_assert_eq!(actual(d, |d| $name(d, s)), expected(stringify!($name), d, s, 0), "{}", stringify!($name));)*
                Ok(())
            }
        };
    }
    for_each_packed!(check_packed);

    proptest! {
        #[test]
        fn fast_functions_agree_with_the_table(a in quad(), b in quad(), c in quad(), d in quad()) {
            let (destination, source) = ([a, b], [c, d]);
            check_floats(&destination, &source)?;
            check_packed(&destination, &source)?;
        }

        #[test]
        fn fast_comparisons_and_conversions_agree_with_the_table(a in quad(), b in quad(), c in quad(), d in quad()) {
            let (d, s) = ([a, b], [c, d]);
            macro_rules! check {
                ($name:literal, $immediate:literal, $run:expr) => {
                    prop_assert_eq!(actual(&d, $run), expected($name, &d, &s, $immediate), $name);
                };
            }
            check!("cmpps", 1, |d| cmpps::<1>(d, &s));
            check!("cmppd", 5, |d| cmppd::<5>(d, &s));
            check!("cmpss", 2, |d| cmpss::<2>(d, &s));
            check!("cmpsd", 6, |d| cmpsd::<6>(d, &s));
            check!("comisd", 0, |d| *d = [comisd(d, &s), 0]);
            check!("ucomisd", 0, |d| *d = [ucomisd(d, &s), 0]);
            check!("comiss", 0, |d| *d = [comiss(d, &s), 0]);
            check!("ucomiss", 0, |d| *d = [ucomiss(d, &s), 0]);
            check!("cvtsd2si", 0, |d| *d = [cvtsd2si_32(&s).into(), 0]);
            check!("cvttsd2si", 0, |d| *d = [cvttsd2si_32(&s).into(), 0]);
            check!("cvtss2si", 0, |d| *d = [cvtss2si_32(&s).into(), 0]);
            check!("cvttss2si", 0, |d| *d = [cvttss2si_32(&s).into(), 0]);
            check!("cvtsi2sd", 0, |d| cvtsi2sd_32(d, s[0] as u32));
            check!("cvtsi2ss", 0, |d| cvtsi2ss_32(d, s[0] as u32));
        }
    }

    #[test]
    fn wide_conversions_use_all_64_bits() {
        let source = [1e15f64.to_bits(), 0];
        assert_eq!((cvtsd2si_64(&source), cvttsd2si_64(&source)), (1_000_000_000_000_000, 1_000_000_000_000_000));
        let mut value = [0, 7];
        cvtsi2sd_64(&mut value, 1 << 40);
        assert_eq!(value, [((1u64 << 40) as f64).to_bits(), 7]);
        let single = [f32::to_bits(1e12).into(), 0];
        assert_eq!((cvtss2si_64(&single), cvttss2si_64(&single)), (1e12f32 as u64, 1e12f32 as u64));
        cvtsi2ss_64(&mut value, 1 << 40);
        assert_eq!(value[0] & 0xffff_ffff, f32::to_bits((1u64 << 40) as f32).into());
    }

    #[test]
    fn masks_gather_sign_bits() {
        let value = [0x8000_0000_7fff_ffff, 0xff00_0000_0000_0080];
        assert_eq!((pmovmskb(&value), movmskps(&value), movmskpd(&value)), (0x8187, 0b1010, 0b11));
    }
}
