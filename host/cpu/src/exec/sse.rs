//! SSE and SSE2 in threaded form.
//!
//! Chosen only where SSE instructions do not fault. Those that depend on MXCSR are chosen only while it is in its
//! default state; that is part of a block's mode, and a change of it ends the block.

use cardcage_fpu::fast;
use iced_x86::Mnemonic as M;

use super::{by_cc, check, get};
use crate::fault::Fault;
use crate::op::{Handler, Op, Ret, next, stop};
use crate::state::{Cpu, rflags};

type Xmm = [u64; 2];

impl Cpu {
    #[inline(always)]
    fn xmm(&self, i: u8) -> Xmm {
        self.fpu.xmm[usize::from(i & 15)]
    }
    #[inline(always)]
    fn xmm_mut(&mut self, i: u8) -> &mut Xmm {
        &mut self.fpu.xmm[usize::from(i & 15)]
    }

    /// Loads 16 bytes that must be aligned.
    #[inline(always)]
    fn load_aligned(&mut self, op: &Op, a: u64) -> Option<Xmm> {
        if a & 15 != 0 {
            self.note_fault(op, Fault::GP);
            return None;
        }
        self.load16(op, a)
    }

    /// The memory operand of `SIZE` bytes, zero-extended.
    #[inline(always)]
    fn vector_source<const SIZE: usize>(&mut self, op: &Op) -> Option<Xmm> {
        let a = self.ea(op);
        match SIZE {
            16 => self.load_aligned(op, a),
            8 => self.load::<8>(op, a).map(|v| [v, 0]),
            _ => self.load::<4>(op, a).map(|v| [v, 0]),
        }
    }
}

/// Handlers, for a register and for memory, of instructions `destination = f(destination, source)`.
macro_rules! binary {
    ($pick:ident: $($size:literal { $($mnemonic:ident $name:ident,)* })*) => {
        $($(mod $name {
            use super::*;
            pub(super) extern "C" fn reg(c: &mut Cpu, o: &Op) -> Ret {
                let source = c.xmm(o.b);
                fast::$name(c.xmm_mut(o.a), &source);
                next(c, o)
            }
            pub(super) extern "C" fn mem(c: &mut Cpu, o: &Op) -> Ret {
                let source = get!(c.vector_source::<$size>(o));
                fast::$name(c.xmm_mut(o.a), &source);
                next(c, o)
            }
        })*)*
        /// The handler, and the size of its memory operand.
        pub(crate) fn $pick(m: M, memory: bool) -> Option<(Handler, usize)> {
            Some(match m {
                $($(M::$mnemonic => (if memory { $name::mem as Handler } else { $name::reg }, $size),)*)*
                _ => return None,
            })
        }
    };
}

binary! { pick_float:
    16 {
        Addps addps, Subps subps, Mulps mulps, Divps divps, Minps minps, Maxps maxps, Sqrtps sqrtps,
        Addpd addpd, Subpd subpd, Mulpd mulpd, Divpd divpd, Minpd minpd, Maxpd maxpd, Sqrtpd sqrtpd,
        Cvtdq2ps cvtdq2ps, Cvtps2dq cvtps2dq, Cvttps2dq cvttps2dq, Cvtpd2ps cvtpd2ps, Cvtpd2dq cvtpd2dq,
        Cvttpd2dq cvttpd2dq,
    }
    8 {
        Addsd addsd, Subsd subsd, Mulsd mulsd, Divsd divsd, Minsd minsd, Maxsd maxsd, Sqrtsd sqrtsd,
        Cvtsd2ss cvtsd2ss, Cvtps2pd cvtps2pd, Cvtdq2pd cvtdq2pd,
    }
    4 {
        Addss addss, Subss subss, Mulss mulss, Divss divss, Minss minss, Maxss maxss, Sqrtss sqrtss,
        Cvtss2sd cvtss2sd,
    }
}

binary! { pick_packed:
    16 {
        Punpcklbw punpcklbw, Punpcklwd punpcklwd, Punpckldq punpckldq, Punpcklqdq punpcklqdq,
        Punpckhbw punpckhbw, Punpckhwd punpckhwd, Punpckhdq punpckhdq, Punpckhqdq punpckhqdq,
        Packsswb packsswb, Packssdw packssdw, Packuswb packuswb, Pcmpgtb pcmpgtb, Pcmpgtw pcmpgtw,
        Pcmpgtd pcmpgtd, Pcmpeqb pcmpeqb, Pcmpeqw pcmpeqw, Pcmpeqd pcmpeqd, Psrlw psrlw, Psrld psrld,
        Psrlq psrlq, Psraw psraw, Psrad psrad, Psllw psllw, Pslld pslld, Psllq psllq, Paddb paddb, Paddw paddw,
        Paddd paddd, Paddq paddq, Psubb psubb, Psubw psubw, Psubd psubd, Psubq psubq, Paddsb paddsb,
        Paddsw paddsw, Paddusb paddusb, Paddusw paddusw, Psubsb psubsb, Psubsw psubsw, Psubusb psubusb,
        Psubusw psubusw, Pmullw pmullw, Pmulhw pmulhw, Pmulhuw pmulhuw, Pmuludq pmuludq, Pmaddwd pmaddwd,
        Psadbw psadbw, Pavgb pavgb, Pavgw pavgw, Pminub pminub, Pmaxub pmaxub, Pminsw pminsw, Pmaxsw pmaxsw,
        Pand pand, Pandn pandn, Por por, Pxor pxor, Andps andps, Andnps andnps, Orps orps, Xorps xorps,
        Andpd andpd, Andnpd andnpd, Orpd orpd, Xorpd xorpd, Unpcklps unpcklps, Unpckhps unpckhps,
        Unpcklpd unpcklpd, Unpckhpd unpckhpd, Rcpps rcpps, Rsqrtps rsqrtps,
    }
    4 {
        Rcpss rcpss, Rsqrtss rsqrtss,
    }
}

/// Packed shifts by an immediate.
macro_rules! shifts {
    ($($mnemonic:ident $name:ident,)*) => {
        /// The handler of a shift by an immediate.
        pub(crate) fn pick_shift(m: M) -> Option<Handler> {
            Some(match m {
                $(M::$mnemonic => {
                    extern "C" fn shift(c: &mut Cpu, o: &Op) -> Ret {
                        fast::$name(c.xmm_mut(o.a), &[o.imm, 0]);
                        next(c, o)
                    }
                    shift as Handler
                })*
                _ => return None,
            })
        }
    };
}
shifts! { Psrlw psrlw, Psrld psrld, Psrlq psrlq, Psraw psraw, Psrad psrad, Psllw psllw, Pslld pslld, Psllq psllq, }

/// PSLLDQ and PSRLDQ.
extern "C" fn shift_bytes<const LEFT: bool>(c: &mut Cpu, o: &Op) -> Ret {
    let [low, high] = c.xmm(o.a);
    let v = u128::from(high) << 64 | u128::from(low);
    let n = 8 * o.imm as u32;
    let v = if n > 127 {
        0
    } else if LEFT {
        v << n
    } else {
        v >> n
    };
    *c.xmm_mut(o.a) = [v as u64, (v >> 64) as u64];
    next(c, o)
}

pub(crate) fn pick_shift_bytes(left: bool) -> Handler {
    if left { shift_bytes::<true> } else { shift_bytes::<false> }
}

#[inline(always)]
fn dword(v: Xmm, i: u64) -> u64 {
    (if i & 2 != 0 { v[1] } else { v[0] }) >> (32 * (i & 1)) & 0xffff_ffff
}

#[inline(always)]
fn words(v: u64, order: u64) -> u64 {
    (0..4).fold(0, |all, i| all | (v >> (16 * (order >> (2 * i) & 3)) & 0xffff) << (16 * i))
}

pub(crate) const PSHUFD: u8 = 0;
pub(crate) const PSHUFLW: u8 = 1;
pub(crate) const PSHUFHW: u8 = 2;
pub(crate) const SHUFPS: u8 = 3;
pub(crate) const SHUFPD: u8 = 4;

extern "C" fn shuffle<const K: u8, const MEM: bool>(c: &mut Cpu, o: &Op) -> Ret {
    let s = if MEM { get!(c.vector_source::<16>(o)) } else { c.xmm(o.b) };
    let d = c.xmm(o.a);
    let n = o.imm;
    *c.xmm_mut(o.a) = match K {
        PSHUFD => [dword(s, n) | dword(s, n >> 2) << 32, dword(s, n >> 4) | dword(s, n >> 6) << 32],
        PSHUFLW => [words(s[0], n), s[1]],
        PSHUFHW => [s[0], words(s[1], n)],
        SHUFPS => [dword(d, n) | dword(d, n >> 2) << 32, dword(s, n >> 4) | dword(s, n >> 6) << 32],
        _ => [if n & 1 != 0 { d[1] } else { d[0] }, if n & 2 != 0 { s[1] } else { s[0] }],
    };
    next(c, o)
}

/// The handler of a shuffle by an immediate.
pub(crate) fn pick_shuffle(kind: u8, memory: bool) -> Handler {
    match (kind, memory) {
        (PSHUFD, false) => shuffle::<PSHUFD, false>,
        (PSHUFD, true) => shuffle::<PSHUFD, true>,
        (PSHUFLW, false) => shuffle::<PSHUFLW, false>,
        (PSHUFLW, true) => shuffle::<PSHUFLW, true>,
        (PSHUFHW, false) => shuffle::<PSHUFHW, false>,
        (PSHUFHW, true) => shuffle::<PSHUFHW, true>,
        (SHUFPS, false) => shuffle::<SHUFPS, false>,
        (SHUFPS, true) => shuffle::<SHUFPS, true>,
        (_, false) => shuffle::<SHUFPD, false>,
        (_, true) => shuffle::<SHUFPD, true>,
    }
}

/// What a move does; `a` is the XMM register, `b` the other register.
pub(crate) mod moves {
    use super::*;

    pub(crate) extern "C" fn reg(c: &mut Cpu, o: &Op) -> Ret {
        *c.xmm_mut(o.a) = c.xmm(o.b);
        next(c, o)
    }
    pub(crate) extern "C" fn load_aligned(c: &mut Cpu, o: &Op) -> Ret {
        let a = c.ea(o);
        *c.xmm_mut(o.a) = get!(c.load_aligned(o, a));
        next(c, o)
    }
    pub(crate) extern "C" fn load(c: &mut Cpu, o: &Op) -> Ret {
        let a = c.ea(o);
        *c.xmm_mut(o.a) = get!(c.load16(o, a));
        next(c, o)
    }
    pub(crate) extern "C" fn store_aligned(c: &mut Cpu, o: &Op) -> Ret {
        let a = c.ea(o);
        if a & 15 != 0 {
            c.note_fault(o, Fault::GP);
            return stop();
        }
        check!(c.store16(o, a, c.xmm(o.a)));
        next(c, o)
    }
    pub(crate) extern "C" fn store(c: &mut Cpu, o: &Op) -> Ret {
        let a = c.ea(o);
        check!(c.store16(o, a, c.xmm(o.a)));
        next(c, o)
    }
    /// MOVSS, MOVSD, MOVD and MOVQ from memory: the rest becomes zero.
    pub(crate) extern "C" fn load_low<const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
        let v = get!(c.load::<SZ>(o, c.ea(o)));
        *c.xmm_mut(o.a) = [v, 0];
        next(c, o)
    }
    pub(crate) extern "C" fn store_low<const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
        check!(c.store::<SZ>(o, c.ea(o), c.xmm(o.a)[0]));
        next(c, o)
    }
    /// MOVLPS and MOVLPD from memory.
    pub(crate) extern "C" fn insert_low(c: &mut Cpu, o: &Op) -> Ret {
        let v = get!(c.load::<8>(o, c.ea(o)));
        c.xmm_mut(o.a)[0] = v;
        next(c, o)
    }
    /// MOVHPS and MOVHPD from memory.
    pub(crate) extern "C" fn insert_high(c: &mut Cpu, o: &Op) -> Ret {
        let v = get!(c.load::<8>(o, c.ea(o)));
        c.xmm_mut(o.a)[1] = v;
        next(c, o)
    }
    pub(crate) extern "C" fn store_high(c: &mut Cpu, o: &Op) -> Ret {
        check!(c.store::<8>(o, c.ea(o), c.xmm(o.a)[1]));
        next(c, o)
    }
    /// MOVSS between registers.
    pub(crate) extern "C" fn single(c: &mut Cpu, o: &Op) -> Ret {
        let s = c.xmm(o.b)[0];
        let d = &mut c.xmm_mut(o.a)[0];
        *d = *d & !0xffff_ffff | s & 0xffff_ffff;
        next(c, o)
    }
    /// MOVSD between registers.
    pub(crate) extern "C" fn double(c: &mut Cpu, o: &Op) -> Ret {
        c.xmm_mut(o.a)[0] = c.xmm(o.b)[0];
        next(c, o)
    }
    /// MOVQ between registers.
    pub(crate) extern "C" fn low_zeroed(c: &mut Cpu, o: &Op) -> Ret {
        *c.xmm_mut(o.a) = [c.xmm(o.b)[0], 0];
        next(c, o)
    }
    pub(crate) extern "C" fn high_to_low(c: &mut Cpu, o: &Op) -> Ret {
        c.xmm_mut(o.a)[0] = c.xmm(o.b)[1];
        next(c, o)
    }
    pub(crate) extern "C" fn low_to_high(c: &mut Cpu, o: &Op) -> Ret {
        c.xmm_mut(o.a)[1] = c.xmm(o.b)[0];
        next(c, o)
    }
    /// MOVD and MOVQ from a general register.
    pub(crate) extern "C" fn from_general<const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
        *c.xmm_mut(o.a) = [c.reg(o.b) & crate::state::mask(SZ), 0];
        next(c, o)
    }
    /// MOVD and MOVQ to a general register.
    pub(crate) extern "C" fn to_general<const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
        *c.reg_mut(o.b) = c.xmm(o.a)[0] & crate::state::mask(SZ);
        next(c, o)
    }
}

/// Sign masks: `a` is the general register, `b` the XMM register.
macro_rules! masks {
    ($($mnemonic:ident $name:ident,)*) => {
        /// The handler of a move of sign bits to a general register.
        pub(crate) fn pick_mask(m: M) -> Option<Handler> {
            Some(match m {
                $(M::$mnemonic => {
                    extern "C" fn mask(c: &mut Cpu, o: &Op) -> Ret {
                        let s = c.xmm(o.b);
                        *c.reg_mut(o.a) = fast::$name(&s);
                        next(c, o)
                    }
                    mask as Handler
                })*
                _ => return None,
            })
        }
    };
}
masks! { Pmovmskb pmovmskb, Movmskps movmskps, Movmskpd movmskpd, }

/// Comparisons that set RFLAGS.
macro_rules! ordered {
    ($($mnemonic:ident $name:ident $size:literal,)*) => {
        /// The handler, and the size of its memory operand.
        pub(crate) fn pick_ordered(m: M, memory: bool) -> Option<(Handler, usize)> {
            Some(match m {
                $(M::$mnemonic => {
                    extern "C" fn compare<const MEM: bool>(c: &mut Cpu, o: &Op) -> Ret {
                        let s = if MEM { get!(c.vector_source::<$size>(o)) } else { c.xmm(o.b) };
                        let flags = fast::$name(&c.xmm(o.a), &s);
                        c.set_arith_flags(flags & rflags::ARITH);
                        next(c, o)
                    }
                    (if memory { compare::<true> as Handler } else { compare::<false> }, $size)
                })*
                _ => return None,
            })
        }
    };
}
ordered! { Comisd comisd 8, Ucomisd ucomisd 8, Comiss comiss 4, Ucomiss ucomiss 4, }

/// Conversions to a general register.
macro_rules! to_integer {
    ($($mnemonic:ident $narrow:ident $wide:ident $size:literal,)*) => {
        /// The handler, and the size of its memory operand.
        pub(crate) fn pick_to_integer(m: M, memory: bool, wide: bool) -> Option<(Handler, usize)> {
            Some(match m {
                $(M::$mnemonic => {
                    extern "C" fn convert<const MEM: bool, const WIDE: bool>(c: &mut Cpu, o: &Op) -> Ret {
                        let s = if MEM { get!(c.vector_source::<$size>(o)) } else { c.xmm(o.b) };
                        *c.reg_mut(o.a) = if WIDE { fast::$wide(&s) } else { u64::from(fast::$narrow(&s)) };
                        next(c, o)
                    }
                    let f: Handler = match (memory, wide) {
                        (false, false) => convert::<false, false>,
                        (false, true) => convert::<false, true>,
                        (true, false) => convert::<true, false>,
                        (true, true) => convert::<true, true>,
                    };
                    (f, $size)
                })*
                _ => return None,
            })
        }
    };
}
to_integer! {
    Cvtsd2si cvtsd2si_32 cvtsd2si_64 8, Cvttsd2si cvttsd2si_32 cvttsd2si_64 8,
    Cvtss2si cvtss2si_32 cvtss2si_64 4, Cvttss2si cvttss2si_32 cvttss2si_64 4,
}

extern "C" fn from_integer<const DOUBLE: bool, const MEM: bool, const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
    let v = if MEM { get!(c.load::<SZ>(o, c.ea(o))) } else { c.reg(o.b) };
    let d = c.xmm_mut(o.a);
    match (DOUBLE, SZ) {
        (true, 8) => fast::cvtsi2sd_64(d, v),
        (true, _) => fast::cvtsi2sd_32(d, v as u32),
        (false, 8) => fast::cvtsi2ss_64(d, v),
        (false, _) => fast::cvtsi2ss_32(d, v as u32),
    }
    next(c, o)
}

/// The handler of CVTSI2SD and CVTSI2SS.
pub(crate) fn pick_from_integer(double: bool, memory: bool, size: usize) -> Handler {
    match (double, memory, size) {
        (true, false, 8) => from_integer::<true, false, 8>,
        (true, true, 8) => from_integer::<true, true, 8>,
        (true, false, _) => from_integer::<true, false, 4>,
        (true, true, _) => from_integer::<true, true, 4>,
        (false, false, 8) => from_integer::<false, false, 8>,
        (false, true, 8) => from_integer::<false, true, 8>,
        (false, false, _) => from_integer::<false, false, 4>,
        (false, true, _) => from_integer::<false, true, 4>,
    }
}

/// CMPPS and its kin with a predicate.
macro_rules! compares {
    ($($mnemonic:ident $name:ident $size:literal,)*) => {
        /// The handler, and the size of its memory operand.
        pub(crate) fn pick_compare(m: M, memory: bool, predicate: u8) -> Option<(Handler, usize)> {
            Some(match m {
                $(M::$mnemonic => {
                    extern "C" fn compare<const MEM: bool, const P: i32>(c: &mut Cpu, o: &Op) -> Ret {
                        let s = if MEM { get!(c.vector_source::<$size>(o)) } else { c.xmm(o.b) };
                        fast::$name::<P>(c.xmm_mut(o.a), &s);
                        next(c, o)
                    }
                    macro_rules! one {
                        ($mem:expr, $p:expr) => { compare::<$mem, { $p & 7 }> as Handler };
                    }
                    let f = if memory { by_cc!(predicate & 7, one!(true,)) } else { by_cc!(predicate & 7, one!(false,)) };
                    (f, $size)
                })*
                _ => return None,
            })
        }
    };
}
compares! { Cmpps cmpps 16, Cmppd cmppd 16, Cmpsd cmpsd 8, Cmpss cmpss 4, }
