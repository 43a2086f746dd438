//! Runs one x87 instruction on the host's FPU with the guest's state.
#![expect(unsafe_code, reason = "loads and stores the host's FPU state and jumps into a table of instructions")]

use std::arch::{asm, naked_asm};

use super::OPERAND_MAX;
use crate::FpuState;

/// CF, PF, AF, ZF, SF and OF.
const STATUS_FLAGS: u64 = 0x8d5;
/// Bit 1 of RFLAGS and IF, which user code sees as one.
const FIXED_FLAGS: u64 = 0x202;
/// Bytes per stub.
const STUB_LEN: usize = 4;

/// 512 stubs: the instruction with opcode 0xd8 + n / 64 and ModR/M byte 0xc0 + n % 64, then RET and one byte of
/// padding. Undefined ones are in the table but never called.
#[unsafe(naked)]
extern "C" fn register_stubs() {
    naked_asm!(
        "cardcage_x87_register_n = 0",
        ".rept 512",
        ".byte 0xd8 + (cardcage_x87_register_n >> 6), 0xc0 + (cardcage_x87_register_n & 63), 0xc3, 0x90",
        "cardcage_x87_register_n = cardcage_x87_register_n + 1",
        ".endr",
    )
}

/// 64 stubs: the instruction with opcode 0xd8 + n / 8 on memory at RDI, with n % 8 in the reg field.
#[unsafe(naked)]
extern "C" fn memory_stubs() {
    naked_asm!(
        "cardcage_x87_memory_n = 0",
        ".rept 64",
        ".byte 0xd8 + (cardcage_x87_memory_n >> 3), 0x07 + ((cardcage_x87_memory_n & 7) << 3), 0xc3, 0x90",
        "cardcage_x87_memory_n = cardcage_x87_memory_n + 1",
        ".endr",
    )
}

/// Runs a register form that [`super::kind`] calls `Compute`; no exception may be pending.
pub(super) fn run_register(state: &mut FpuState, opcode: u8, modrm: u8, rflags: &mut u64) {
    let index = usize::from(opcode & 7) << 6 | usize::from(modrm & 63);
    let stub = (register_stubs as *const u8).wrapping_add(index * STUB_LEN);
    let mut flags = *rflags & STATUS_FLAGS | FIXED_FLAGS;
    // SAFETY: the stub is one register-only x87 instruction and RET; the index is below 512.
    unsafe { run(stub, state, std::ptr::null_mut(), &mut flags) };
    *rflags = *rflags & !STATUS_FLAGS | flags & STATUS_FLAGS;
}

/// Runs a memory form that [`super::kind`] calls `Compute`; no exception may be pending.
pub(super) fn run_memory(state: &mut FpuState, opcode: u8, modrm: u8, buffer: &mut [u8; OPERAND_MAX]) {
    let index = usize::from(opcode & 7) << 3 | usize::from(modrm >> 3 & 7);
    let stub = (memory_stubs as *const u8).wrapping_add(index * STUB_LEN);
    // SAFETY: the stub is one x87 instruction on at most 10 bytes at RDI, which the buffer has, and RET; the index is
    // below 64.
    unsafe { run(stub, state, buffer.as_mut_ptr(), &mut FIXED_FLAGS.clone()) };
}

/// Loads `state` and `flags`, calls `stub` with RDI = `operand`, stores both, and gives the host its own state again.
///
/// # Safety
/// `stub` must be code that changes nothing but the FPU, the status flags and the operand, and returns.
unsafe fn run(stub: *const u8, state: &mut FpuState, operand: *mut u8, flags: &mut u64) {
    // MXCSR, then the x87 control word.
    let mut host = [0u32; 2];
    // SAFETY: the image is 512 bytes, 16-byte aligned, with no reserved bit of MXCSR set. No exception is pending in it,
    // and none that the stub raises is delivered, because FXSAVE64, FNINIT and FLDCW after FNINIT do not wait for one.
    // MXCSR and the x87 state are put back as the ABI wants them: empty stack and the control word as before. All XMM
    // registers are declared as clobbered.
    unsafe {
        asm!(
            "stmxcsr [{host}]",
            "fnstcw [{host} + 4]",
            "fxrstor64 [{state}]",
            "push rsi",
            "popfq",
            "call {stub}",
            "pushfq",
            "pop rsi",
            "fxsave64 [{state}]",
            "fninit",
            "fldcw [{host} + 4]",
            "ldmxcsr [{host}]",
            host = in(reg) host.as_mut_ptr(),
            state = in(reg) state.as_mut_ptr(),
            stub = in(reg) stub,
            inout("rsi") *flags,
            in("rdi") operand,
            clobber_abi("C"),
        );
    }
    // Processors differ in which bits of MXCSR they announce.
    state.reset_mxcsr_mask();
}
