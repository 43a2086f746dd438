//! x87, MMX and SSE instructions as operations on an FXSAVE image.
//!
//! An interpreter decodes an instruction, checks CR0 and CR4, reads its memory operand and calls this crate; it gets
//! back the new value of the destination, or a [`Fault`] with nothing changed but status flags. The state between two
//! instructions is one [`FpuState`]: the 512 bytes that FXSAVE64 stores (SDM volume 1, section 10.5.1).
//!
//! # How results get exact
//! Every instruction whose result depends on rounding, NaN rules or internal precision is carried out by the same
//! instruction of the host, so this crate exists on x86-64 only.
//! * [`x87`]: the host's FPU is loaded with the guest's image, the instruction runs from a table of stubs, and the
//!   image is stored again. Unmasked x87 exceptions need no emulation: the host FPU records them and would only raise
//!   them at the *next* instruction, which is not the guest's.
//! * [`sse`]: one block of assembly loads the guest's rounding mode, runs the instruction with all exceptions masked and
//!   collects the flags. What an unmasked exception changes is worked out from the flags afterwards.
//! * [`fast`]: the same instructions without the switch of MXCSR, for interpreters that inline them while the guest's
//!   MXCSR is in its default state.
//!
//! # The model of processor
//! Data pointer and opcode of x87 are updated only when an unmasked exception occurs, and FCS and FDS read as zero:
//! CPUID.(7,0):EBX bits 6 and 13 should be announced as set. MXCSR_MASK is 0xffff.
//!
//! # Left to the caller
//! #UD and #NM from CR0 and CR4, CPUID feature checks, alignment checks of memory operands, and all memory accesses.

#[cfg(not(target_arch = "x86_64"))]
compile_error!("cardcage-fpu carries out x87 and SSE instructions with the host's own; it exists on x86-64 hosts only");

pub mod fast;
mod mxcsr;
pub mod sse;
mod state;
pub mod x87;

pub use mxcsr::{HostFlags, MXCSR_DEFAULT, MXCSR_MASK};
pub use state::{FpuState, FxsaveLayout, XMM_COUNT_LEGACY};

/// Why an instruction did not complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// #MF, vector 16: an unmasked x87 exception of an earlier instruction is pending.
    #[error("x87 floating-point error (#MF)")]
    MathFault,
    /// #XM, vector 19: an unmasked SIMD floating-point exception. MXCSR has its flags; the destination is unchanged.
    #[error("SIMD floating-point exception (#XM)")]
    SimdException,
    /// #GP(0): a reserved bit of MXCSR would have been set.
    #[error("a reserved bit of MXCSR is set (#GP)")]
    GeneralProtection,
    /// #UD: no such instruction.
    #[error("undefined x87 opcode (#UD)")]
    InvalidOpcode,
}
