//! x87 instructions (SDM volume 1, chapter 8; volume 2 for each of them).
//!
//! [`execute_register`] and [`execute_memory`] take the two bytes that select an x87 instruction: the opcode, 0xd8 to
//! 0xdf, and the ModR/M byte. Control and environment instructions work on the image; all others run on the host's FPU.
//! FWAIT (0x9b) is [`wait`].
//!
//! # Order of events for an interpreter
//! 1. [`operand`] says which bytes of memory the instruction reads or writes, or that it is undefined.
//! 2. [`check`] raises a pending #MF, before memory is touched.
//! 3. Read the operand, execute, write what [`Effect::Store`] says. Where the write can fault, execute on a clone of the
//!    state and keep the clone after the write.

mod environment;
mod native;

pub use environment::{EnvironmentLayout, OPERAND_MAX};

use crate::{Fault, FpuState};

/// Where an instruction stands, for the last-instruction pointers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Site {
    /// Address of its first byte (prefixes count): RIP, or the linear address in real mode.
    pub instruction: u64,
    /// Effective address of its memory operand, if it has one; the linear address in real mode.
    pub operand: u64,
}

/// What is left to do for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// FNSTSW AX: this is the new AX.
    Ax(u16),
    /// The first so many bytes of the operand buffer go to memory. Zero if an unmasked exception suppressed the store.
    Store(usize),
}

/// The memory operand of an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operand {
    /// So many bytes are read.
    Load(usize),
    /// So many bytes are written.
    Store(usize),
}

/// How an instruction relates to pending exceptions and last-instruction pointers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Runs on the host's FPU; waits; is noted in FIP.
    Compute,
    /// Works on the image; waits.
    Control,
    /// Works on the image; does not wait.
    ControlNoWait,
    /// No such instruction.
    Undefined,
}

/// The memory operand that an instruction with a ModR/M byte below 0xc0 accesses; #UD if there is none such.
pub fn operand(opcode: u8, modrm: u8, layout: EnvironmentLayout) -> Result<Operand, Fault> {
    use Operand::{Load, Store};
    Ok(match (opcode, modrm >> 3 & 7) {
        (0xd8 | 0xda, _) | (0xd9 | 0xdb, 0) => Load(4),
        (0xdc, _) | (0xdd, 0) | (0xdf, 5) => Load(8),
        (0xde, _) | (0xdf, 0) | (0xd9, 5) => Load(2),
        (0xdb, 5) | (0xdf, 4) => Load(10),
        (0xd9, 2 | 3) | (0xdb, 1..=3) => Store(4),
        (0xdd, 1..=3) | (0xdf, 7) => Store(8),
        (0xdf, 1..=3) | (0xd9 | 0xdd, 7) => Store(2),
        (0xdb, 7) | (0xdf, 6) => Store(10),
        (0xd9, 4) => Load(layout.environment_len()),
        (0xd9, 6) => Store(layout.environment_len()),
        (0xdd, 4) => Load(layout.state_len()),
        (0xdd, 6) => Store(layout.state_len()),
        _ => return Err(Fault::InvalidOpcode),
    })
}

/// FWAIT: #MF if an unmasked exception is pending.
pub fn wait(state: &FpuState) -> Result<(), Fault> {
    if state.math_fault_pending() { Err(Fault::MathFault) } else { Ok(()) }
}

/// Whether the instruction is undefined (#UD) or has to wait for a pending exception (#MF).
pub fn check(state: &FpuState, opcode: u8, modrm: u8) -> Result<(), Fault> {
    match kind(opcode, modrm) {
        Kind::Undefined => Err(Fault::InvalidOpcode),
        Kind::ControlNoWait => Ok(()),
        Kind::Compute | Kind::Control => wait(state),
    }
}

/// An instruction without memory operand: `modrm` is at least 0xc0. FCOMI and FCMOV use the status flags in `rflags`.
pub fn execute_register(
    state: &mut FpuState,
    opcode: u8,
    modrm: u8,
    site: Site,
    rflags: &mut u64,
) -> Result<Effect, Fault> {
    if modrm < 0xc0 {
        return Err(Fault::InvalidOpcode);
    }
    check(state, opcode, modrm)?;
    match (opcode, modrm) {
        (0xdb, 0xe2) => state.clear_exceptions(),
        (0xdb, 0xe3) => state.initialize(),
        (0xdf, 0xe0) => return Ok(Effect::Ax(state.status)),
        // The 8087's FENI and FDISI and the 80287's FSETPM do nothing.
        (0xdb, 0xe0 | 0xe1 | 0xe4) => {}
        _ => compute(state, opcode, modrm, site, |state| native::run_register(state, opcode, modrm, rflags)),
    }
    Ok(Effect::None)
}

/// An instruction with a memory operand, which is in the first bytes of `buffer` or comes to stand there.
pub fn execute_memory(
    state: &mut FpuState,
    opcode: u8,
    modrm: u8,
    layout: EnvironmentLayout,
    site: Site,
    buffer: &mut [u8; OPERAND_MAX],
) -> Result<Effect, Fault> {
    if modrm >= 0xc0 {
        return Err(Fault::InvalidOpcode);
    }
    let access = operand(opcode, modrm, layout)?;
    check(state, opcode, modrm)?;
    match (opcode, modrm >> 3 & 7) {
        (0xd9, 4) => state.load_environment(layout, buffer),
        (0xd9, 5) => state.set_control(u16::from_le_bytes([buffer[0], buffer[1]])),
        (0xd9, 6) => state.store_environment(layout, buffer),
        (0xd9, 7) => buffer[..2].copy_from_slice(&state.control.to_le_bytes()),
        (0xdd, 4) => state.load_all(layout, buffer),
        (0xdd, 6) => state.store_all(layout, buffer),
        (0xdd, 7) => buffer[..2].copy_from_slice(&state.status.to_le_bytes()),
        _ => compute(state, opcode, modrm, site, |state| native::run_memory(state, opcode, modrm, buffer)),
    }
    match access {
        Operand::Load(_) => Ok(Effect::None),
        Operand::Store(_) if kind(opcode, modrm) == Kind::Compute && store_is_suppressed(state) => Ok(Effect::Store(0)),
        Operand::Store(len) => Ok(Effect::Store(len)),
    }
}

/// Runs an instruction on the host and sets the last-instruction pointers as the processor model does.
fn compute(state: &mut FpuState, opcode: u8, modrm: u8, site: Site, run: impl FnOnce(&mut FpuState)) {
    let (last_opcode, last_data) = (state.opcode, state.data_pointer);
    run(state);
    state.update_summary();
    state.instruction_pointer = site.instruction;
    state.opcode = last_opcode;
    state.data_pointer = last_data;
    if state.math_fault_pending() {
        state.set_last_opcode(opcode, modrm);
        if modrm < 0xc0 {
            state.data_pointer = site.operand;
        }
    }
}

/// Unmasked invalid-operation, overflow and underflow leave memory as it was; unmasked precision does not.
fn store_is_suppressed(state: &FpuState) -> bool {
    const SUPPRESSING: u16 = 0x01 | 0x08 | 0x10;
    state.status & !state.control & SUPPRESSING != 0
}

fn kind(opcode: u8, modrm: u8) -> Kind {
    if modrm < 0xc0 {
        return match (opcode, modrm >> 3 & 7) {
            (0xd9, 6 | 7) | (0xdd, 6 | 7) => Kind::ControlNoWait,
            (0xd9, 4 | 5) | (0xdd, 4) => Kind::Control,
            (0xd9, 1) | (0xdb, 4 | 6) | (0xdd, 5) | (0..=0xd7, _) | (0xe0..=0xff, _) => Kind::Undefined,
            _ => Kind::Compute,
        };
    }
    match (opcode, modrm) {
        (0xdb, 0xe0..=0xe4) | (0xdf, 0xe0) => Kind::ControlNoWait,
        (0xd9, 0xd1..=0xd7 | 0xe2 | 0xe3 | 0xe6 | 0xe7 | 0xef)
        | (0xda, 0xe0..=0xe8 | 0xea..)
        | (0xdb, 0xe5..=0xe7 | 0xf8..)
        | (0xdd, 0xf0..)
        | (0xde, 0xd8 | 0xda..=0xdf)
        | (0xdf, 0xe1..=0xe7 | 0xf8..)
        | (0..=0xd7 | 0xe0.., _) => Kind::Undefined,
        _ => Kind::Compute,
    }
}
