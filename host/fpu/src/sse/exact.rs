//! Floating-point instructions under the guest's MXCSR: each function is one block of assembly that switches MXCSR,
//! runs one instruction and switches back. See [`Env`].
#![expect(unsafe_code, reason = "single instructions as assembly, with MXCSR switched around them")]

use std::arch::asm;

use crate::fast::{Xmm, for_each_float, load, load_source, store};
use crate::mxcsr::Env;

/// The block: saves the host's MXCSR, loads the guest's, runs `$insn`, stores the guest's, loads the host's.
macro_rules! switched {
    ($env:ident, [$($insn:expr),+], $($operands:tt)*) => {
        asm!("stmxcsr [{env} + 4]", "ldmxcsr [{env}]", $($insn),+, "stmxcsr [{env}]", "ldmxcsr [{env} + 4]",
            $($operands)*, env = in(reg) std::ptr::from_mut($env))
    };
}

macro_rules! exact_float {
    ($($width:tt: $($name:ident)*;)*) => { $($(
        pub(super) fn $name(env: &mut Env, destination: &mut Xmm, source: &Xmm) {
            let mut value = load(destination);
            // SAFETY: reads and writes `env` and registers; MXCSR is the host's again afterwards.
            unsafe {
                switched!(env, [concat!(stringify!($name), " {d}, {s}")], d = inout(xmm_reg) value,
                    s = in(xmm_reg) load_source!($width, source));
            }
            store(destination, value);
        }
    )*)* };
}
for_each_float!(exact_float);

macro_rules! exact_more {
    ($($name:ident)*) => { $(
        pub(super) fn $name(env: &mut Env, destination: &mut Xmm, source: &Xmm) {
            let mut value = load(destination);
            // SAFETY: as above. `find` offers these only where the host has SSE4.2.
            unsafe {
                switched!(env, [concat!(stringify!($name), " {d}, {s}")], d = inout(xmm_reg) value,
                    s = in(xmm_reg) load(source));
            }
            store(destination, value);
        }
    )* };
}
exact_more! { addsubps addsubpd haddps haddpd hsubps hsubpd }

macro_rules! exact_with_immediate {
    ($($name:ident: $($imm:literal)*;)*) => { $(
        pub(super) fn $name(env: &mut Env, destination: &mut Xmm, source: &Xmm, immediate: u8) {
            let mut value = load(destination);
            let source = load(source);
            // SAFETY: as above; one arm per value of the immediate that makes a difference.
            unsafe {
                match immediate & (const { [$($imm),*].len() as u8 } - 1) {
                    $($imm => switched!(env, [concat!(stringify!($name), " {d}, {s}, ", $imm)],
                        d = inout(xmm_reg) value, s = in(xmm_reg) source),)*
                    _ => {}
                }
            }
            store(destination, value);
        }
    )* };
}
exact_with_immediate! {
    cmpps: 0 1 2 3 4 5 6 7;
    cmppd: 0 1 2 3 4 5 6 7;
    cmpss: 0 1 2 3 4 5 6 7;
    cmpsd: 0 1 2 3 4 5 6 7;
    roundps: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15;
    roundpd: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15;
    roundss: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15;
    roundsd: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15;
}

macro_rules! exact_ordered {
    ($($name:ident)*) => { $(
        /// The destination becomes ZF, PF and CF as in RFLAGS.
        pub(super) fn $name(env: &mut Env, destination: &mut Xmm, source: &Xmm) {
            let flags: u64;
            // SAFETY: as above; the pushed word is popped again.
            unsafe {
                switched!(env, [concat!(stringify!($name), " {d}, {s}"), "pushfq", "pop {f}"],
                    d = in(xmm_reg) load(destination), s = in(xmm_reg) load(source), f = out(reg) flags);
            }
            *destination = [flags & 0x45, 0];
        }
    )* };
}
exact_ordered! { comiss ucomiss comisd ucomisd }

macro_rules! exact_to_integer {
    ($($name:ident $insn:literal $modifier:literal;)*) => { $(
        pub(super) fn $name(env: &mut Env, destination: &mut Xmm, source: &Xmm) {
            let value: u64;
            // SAFETY: as above.
            unsafe {
                switched!(env, [concat!($insn, " {d", $modifier, "}, {s}")], d = out(reg) value,
                    s = in(xmm_reg) load(source));
            }
            *destination = [value, 0];
        }
    )* };
}
exact_to_integer! {
    cvtsd2si_32 "cvtsd2si" ":e"; cvtsd2si_64 "cvtsd2si" ":r";
    cvttsd2si_32 "cvttsd2si" ":e"; cvttsd2si_64 "cvttsd2si" ":r";
    cvtss2si_32 "cvtss2si" ":e"; cvtss2si_64 "cvtss2si" ":r";
    cvttss2si_32 "cvttss2si" ":e"; cvttss2si_64 "cvttss2si" ":r";
}

macro_rules! exact_from_integer {
    ($($name:ident $insn:literal $modifier:literal;)*) => { $(
        pub(super) fn $name(env: &mut Env, destination: &mut Xmm, source: &Xmm) {
            let mut value = load(destination);
            // SAFETY: as above.
            unsafe {
                switched!(env, [concat!($insn, " {d}, {s", $modifier, "}")], d = inout(xmm_reg) value,
                    s = in(reg) source[0]);
            }
            store(destination, value);
        }
    )* };
}
exact_from_integer! {
    cvtsi2sd_32 "cvtsi2sd" ":e"; cvtsi2sd_64 "cvtsi2sd" ":r";
    cvtsi2ss_32 "cvtsi2ss" ":e"; cvtsi2ss_64 "cvtsi2ss" ":r";
}

/// CVTPI2PS: the high half stays.
pub(super) fn cvtpi2ps(env: &mut Env, destination: &mut Xmm, source: &Xmm) {
    let mut value = *destination;
    cvtdq2ps(env, &mut value, &[source[0], 0]);
    destination[0] = value[0];
}

/// CVTPI2PD: always exact.
pub(super) fn cvtpi2pd(env: &mut Env, destination: &mut Xmm, source: &Xmm) {
    cvtdq2pd(env, destination, source);
}

/// CVTPS2PI and CVTTPS2PI: of two elements; the others are made harmless.
pub(super) fn cvtps2pi(env: &mut Env, destination: &mut Xmm, source: &Xmm) {
    cvtps2dq(env, destination, &[source[0], 0]);
}

/// As [`cvtps2pi`].
pub(super) fn cvttps2pi(env: &mut Env, destination: &mut Xmm, source: &Xmm) {
    cvttps2dq(env, destination, &[source[0], 0]);
}
