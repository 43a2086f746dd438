//! MXCSR: who sees which flags when (SDM volume 1, sections 10.2.3 and 11.5).
#![expect(unsafe_code, reason = "reads and writes the host's MXCSR")]

use std::arch::asm;

use crate::{Fault, FpuState};

/// MXCSR after reset: all exceptions masked, no flags, rounding to nearest.
pub const MXCSR_DEFAULT: u32 = 0x1f80;
/// Bits of MXCSR that exist (MXCSR_MASK of the FXSAVE image).
pub const MXCSR_MASK: u32 = 0xffff;

pub(crate) const FLAGS: u32 = 0x3f;
pub(crate) const INVALID: u32 = 1 << 0;
pub(crate) const DENORMAL: u32 = 1 << 1;
pub(crate) const DIVIDE_BY_ZERO: u32 = 1 << 2;
pub(crate) const OVERFLOW: u32 = 1 << 3;
pub(crate) const UNDERFLOW: u32 = 1 << 4;
pub(crate) const PRECISION: u32 = 1 << 5;
pub(crate) const MASK_SHIFT: u32 = 7;
pub(crate) const MASKS: u32 = FLAGS << MASK_SHIFT;
pub(crate) const DENORMALS_ARE_ZERO: u32 = 1 << 6;
pub(crate) const ROUNDING_SHIFT: u32 = 13;
pub(crate) const FLUSH_TO_ZERO: u32 = 1 << 15;
/// Exceptions that are found before the operation is carried out.
pub(crate) const BEFORE: u32 = INVALID | DENORMAL | DIVIDE_BY_ZERO;

/// Guest and host value of MXCSR for one block of assembly: it saves the host's, loads the guest's, runs one
/// instruction, saves the guest's, and loads the host's again.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Env {
    pub(crate) guest: u32,
    pub(crate) host: u32,
}

impl Env {
    /// The guest's rounding mode, DAZ and FTZ, with all exceptions masked and no flags.
    pub(crate) fn of(state: &FpuState) -> Self {
        let mut guest = state.mxcsr & !FLAGS | MASKS;
        if state.mxcsr & UNDERFLOW << MASK_SHIFT == 0 {
            // Flush-to-zero is ignored while underflow is unmasked.
            guest &= !FLUSH_TO_ZERO;
        }
        Self { guest, host: MXCSR_DEFAULT }
    }

    /// The flags that the instruction raised.
    pub(crate) fn raised(&self) -> u32 {
        self.guest & FLAGS
    }
}

/// The exceptions that are unmasked, as flags.
pub(crate) fn unmasked(mxcsr: u32) -> u32 {
    !(mxcsr >> MASK_SHIFT) & FLAGS
}

/// Adds the flags of an instruction to the guest's MXCSR; a fault if one is unmasked.
pub(crate) fn settle(state: &mut FpuState, raised: u32) -> Result<(), Fault> {
    let unmasked = unmasked(state.mxcsr);
    // After an unmasked exception that comes before the operation, nothing is known of the result.
    let raised = if raised & unmasked & BEFORE != 0 { raised & BEFORE } else { raised };
    state.mxcsr |= raised;
    if raised & unmasked != 0 { Err(Fault::SimdException) } else { Ok(()) }
}

/// The exception flags that [`crate::fast`] functions leave in the host's MXCSR.
///
/// A vCPU thread calls [`HostFlags::clear`] before it runs guest code and [`HostFlags::collect`] before anything reads
/// or replaces the guest's MXCSR, and after it: floating-point code of the host's own leaves flags there, too.
#[derive(Debug, Clone, Copy)]
pub struct HostFlags;

impl HostFlags {
    /// Forgets flags that the host's own code has left.
    #[inline]
    pub fn clear() {
        Self::take();
    }

    /// Moves the flags of fast functions into the guest's MXCSR.
    #[inline]
    pub fn collect(state: &mut FpuState) {
        state.mxcsr |= Self::take();
    }

    #[inline]
    fn take() -> u32 {
        let mut value = 0u32;
        // SAFETY: writes the four bytes of `value`.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut value, options(nostack, preserves_flags)) };
        if value & FLAGS != 0 {
            let cleared = value & !FLAGS;
            // SAFETY: only flags change, and Rust code does not depend on them.
            unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const cleared, options(nostack, readonly)) };
        }
        value & FLAGS
    }
}
