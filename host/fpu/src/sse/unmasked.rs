//! Flags of overflow and underflow while these are unmasked (SDM volume 1, sections 4.9.1.4 to 4.9.1.6 and 11.5.3).
//!
//! Masked, an overflow is always inexact and an underflow is raised for inexact results only. Unmasked, underflow is
//! raised for every tiny result, and PE says whether the result *with an unbounded exponent* was rounded. The x87 FPU
//! tells: with its precision control at 24 or 53 bits it rounds like SSE, but with a wider exponent.
#![expect(unsafe_code, reason = "runs one operation on the host's x87 FPU")]

use std::arch::asm;

use super::Float;
use crate::FpuState;
use crate::fast::Xmm;
use crate::mxcsr::{BEFORE, DENORMALS_ARE_ZERO, Env, OVERFLOW, PRECISION, ROUNDING_SHIFT, UNDERFLOW, unmasked};

/// What an instruction computes, element by element.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Operation {
    Add,
    Subtract,
    Multiply,
    Divide,
    /// Source, a double, to single precision.
    Narrow,
    /// Several operations with roundings between them.
    Composite,
}

/// Elements of a floating-point result that can overflow or underflow.
#[derive(Debug, Clone, Copy)]
pub(super) enum Elements {
    None,
    Singles(usize, Operation),
    Doubles(usize, Operation),
}

impl Elements {
    /// The flags that the instruction raises under the guest's masks, given those that it `raised` with all masked.
    pub(super) fn flags(self, state: &FpuState, raised: u32, run: Float, operands: [&Xmm; 2], result: &Xmm) -> u32 {
        let unmasked = unmasked(state.mxcsr());
        let (count, operation, single) = match self {
            Self::None => return raised,
            Self::Singles(count, operation) => (count, operation, true),
            Self::Doubles(count, operation) => (count, operation, false),
        };
        let tiny = |value: &Xmm, i| is_subnormal(element(value, i, single), single);
        let relevant = raised & unmasked & (OVERFLOW | UNDERFLOW) != 0
            || unmasked & UNDERFLOW != 0 && (0..count).any(|i| tiny(result, i));
        if !relevant || raised & unmasked & BEFORE != 0 {
            return raised;
        }
        if operation == Operation::Composite {
            return raised | unmasked & if (0..count).any(|i| tiny(result, i)) { UNDERFLOW } else { 0 };
        }
        let mut flags = 0;
        for i in 0..count {
            let narrow_source = operation == Operation::Narrow;
            let a = element(operands[0], i, single);
            let b = element(operands[1], i, single && !narrow_source);
            let mut env = Env::of(state);
            let mut value = splat(a, single);
            run(&mut env, &mut value, &splat(b, single && !narrow_source));
            let mut raised = env.raised();
            if tiny(&value, 0) {
                raised |= UNDERFLOW & unmasked;
            }
            if raised & unmasked & (OVERFLOW | UNDERFLOW) != 0 {
                let inexact = is_inexact(state.mxcsr(), operation, a, b, single);
                raised = raised & !PRECISION | if inexact { PRECISION } else { 0 };
            }
            flags |= raised;
        }
        flags
    }
}

fn element(value: &Xmm, i: usize, single: bool) -> u64 {
    if single { value[i / 2] >> (32 * (i % 2)) & 0xffff_ffff } else { value[i] }
}

fn splat(element: u64, single: bool) -> Xmm {
    if single { [element | element << 32; 2] } else { [element; 2] }
}

fn is_subnormal(element: u64, single: bool) -> bool {
    let (magnitude, fraction) = if single { (element & 0x7fff_ffff, 23) } else { (element & (u64::MAX >> 1), 52) };
    magnitude != 0 && magnitude < 1 << fraction
}

/// Whether the operation rounds although the exponent is unbounded.
fn is_inexact(mxcsr: u32, operation: Operation, a: u64, b: u64, single: bool) -> bool {
    const ALL_MASKED: u16 = 0x7f;
    const DOUBLE_PRECISION: u16 = 0x200;
    const X87_PRECISION: u16 = 0x20;
    let rounding = (mxcsr >> ROUNDING_SHIFT & 3) as u16;
    let control = ALL_MASKED | if single { 0 } else { DOUBLE_PRECISION } | rounding << 10;
    let flush = |element: u64, single| {
        let zero = mxcsr & DENORMALS_ARE_ZERO != 0 && is_subnormal(element, single);
        if zero { 0 } else { element }
    };
    let wide = |element: u64, single| {
        let element = flush(element, single);
        if single { f64::from(f32::from_bits(element as u32)).to_bits() } else { element }
    };
    let (a, b) = match operation {
        Operation::Narrow => (1f64.to_bits(), wide(b, false)),
        _ => (wide(a, single), wide(b, single)),
    };
    let operands = [a, b];
    let status: u16;
    macro_rules! x87 {
        ($insn:literal) => {
            // SAFETY: loads two doubles, runs one operation on an FPU that the ABI leaves empty, and leaves it as after
            // FNINIT, with the control word as before.
            unsafe {
                asm!("sub rsp, 8", "fnstcw [rsp]", "fldcw [{control}]", "fnclex", "fld qword ptr [{operands}]",
                    "fld qword ptr [{operands} + 8]", $insn, "fnstsw ax", "fninit", "fldcw [rsp]", "add rsp, 8",
                    control = in(reg) &raw const control, operands = in(reg) operands.as_ptr(), out("ax") status,
                    out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _, out("st(4)") _, out("st(5)") _,
                    out("st(6)") _, out("st(7)") _)
            }
        };
    }
    match operation {
        Operation::Add => x87!("faddp st(1), st"),
        Operation::Subtract => x87!("fsubp st(1), st"),
        Operation::Multiply | Operation::Narrow => x87!("fmulp st(1), st"),
        Operation::Divide => x87!("fdivp st(1), st"),
        Operation::Composite => return false,
    }
    status & X87_PRECISION != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactness_is_that_of_an_unbounded_exponent() {
        let (max, min) = (f64::MAX.to_bits(), f64::MIN_POSITIVE.to_bits());
        let exact = |operation, a: u64, b: u64| !is_inexact(crate::MXCSR_DEFAULT, operation, a, b, false);
        assert!(exact(Operation::Add, max, max));
        assert!(exact(Operation::Multiply, max, 4f64.to_bits()));
        assert!(!exact(Operation::Multiply, max, max));
        assert!(exact(Operation::Subtract, max, (-f64::MAX).to_bits()));
        assert!(exact(Operation::Divide, min, 1024f64.to_bits()));
        assert!(!exact(Operation::Divide, min, 3f64.to_bits()));
        assert!(is_inexact(crate::MXCSR_DEFAULT, Operation::Narrow, 0, 1.000_000_000_1f64.to_bits(), true));
    }
}
