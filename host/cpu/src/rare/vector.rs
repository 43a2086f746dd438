//! MMX and SSE instructions, by way of `cardcage_fpu::sse`.

use cardcage_fpu::HostFlags;
use cardcage_fpu::sse::{self, Encoding, Map, Prefix, byte_mask};
use iced_x86::{Instruction, MandatoryPrefix, Mnemonic as M, OpCodeTableKind, OpKind, Register};

use super::operands::{self, get, set};
use crate::fault::{Fault, Res};
use crate::state::{Cpu, DS, RDI, cr0, cr4, mask, rflags};

/// `None` if the instruction is not one of these.
pub(super) fn execute(c: &mut Cpu, i: &Instruction) -> Option<Res> {
    Some(match i.mnemonic() {
        M::Ldmxcsr => ldmxcsr(c, i),
        M::Stmxcsr => stmxcsr(c, i),
        M::Emms => check_mmx(c).and_then(|()| Ok(c.fpu.emms()?)),
        M::Maskmovdqu | M::Maskmovq => masked_move(c, i),
        _ => return plain(c, i),
    })
}

/// #UD and #NM of SSE instructions.
pub(super) fn check_sse(c: &Cpu) -> Res {
    if c.cr0 & cr0::EM != 0 || c.cr4 & cr4::OSFXSR == 0 {
        Err(Fault::UD)
    } else if c.cr0 & cr0::TS != 0 {
        Err(Fault::NM)
    } else {
        Ok(())
    }
}

fn check_mmx(c: &Cpu) -> Res {
    if c.cr0 & cr0::EM != 0 {
        Err(Fault::UD)
    } else if c.cr0 & cr0::TS != 0 {
        Err(Fault::NM)
    } else {
        Ok(())
    }
}

/// How `cardcage_fpu` knows the instruction.
fn encoding(i: &Instruction) -> Option<Encoding> {
    let info = i.op_code();
    let map = match info.table() {
        OpCodeTableKind::T0F => Map::M0F,
        OpCodeTableKind::T0F38 => Map::M0F38,
        OpCodeTableKind::T0F3A => Map::M0F3A,
        _ => return None,
    };
    let prefix = match info.mandatory_prefix() {
        MandatoryPrefix::P66 => Prefix::P66,
        MandatoryPrefix::PF3 => Prefix::F3,
        MandatoryPrefix::PF2 => Prefix::F2,
        _ => Prefix::None,
    };
    Some(Encoding {
        map,
        prefix,
        opcode: info.op_code() as u8,
        reg: info.group_index().max(0) as u8,
        // `w` of iced tells of VEX encodings only.
        wide: info.operand_size() == 64,
        memory: (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory),
    })
}

/// Operand `n` as 16 bytes; memory operands have `len` bytes.
fn operand(c: &mut Cpu, i: &Instruction, n: u32, alignment: u64) -> Res<[u64; 2]> {
    match i.op_kind(n) {
        OpKind::Register => {
            let r = i.op_register(n);
            Ok(if r.is_xmm() {
                c.fpu.xmm[r.number() & 15]
            } else if r.is_mm() {
                [c.fpu.mm(r.number()), 0]
            } else {
                [get(c, r), 0]
            })
        }
        OpKind::Memory => {
            let len = i.memory_size().size();
            let a = operands::aligned_address(c, i, len, alignment, false)?;
            match len {
                16 => c.read_linear16(a),
                _ => Ok([c.read_linear(a, len.min(8))?, 0]),
            }
        }
        _ => Ok([i.immediate(n), 0]),
    }
}

fn plain(c: &mut Cpu, i: &Instruction) -> Option<Res> {
    let found = sse::find(encoding(i)?)?;
    Some(run(c, i, found))
}

fn run(c: &mut Cpu, i: &Instruction, found: &sse::Instruction) -> Res {
    let any_xmm = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_xmm());
    if found.is_mmx() && !any_xmm {
        check_mmx(c)?;
    } else {
        check_sse(c)?;
    }
    if found.is_mmx() && c.fpu.math_fault_pending() {
        return Err(Fault::Plain(crate::fault::vector::MF));
    }
    let alignment = found.alignment().max(1);
    let count = i.op_count();
    let last_is_immediate = count > 1 && matches!(i.op_kind(count - 1), OpKind::Immediate8);
    let immediate = if last_is_immediate { i.immediate(count - 1) as u8 } else { 0 };
    let to_memory = i.op0_kind() == OpKind::Memory;
    // A store does not read what it overwrites.
    let mut destination = if to_memory { [0; 2] } else { operand(c, i, 0, alignment)? };
    let source = if count >= 2 && !(last_is_immediate && count == 2) { operand(c, i, 1, alignment)? } else { [0; 2] };
    if to_memory {
        let len = i.memory_size().size();
        let a = operands::aligned_address(c, i, len, alignment, true)?;
        c.probe_write(a, len)?;
        execute_one(c, found, &mut destination, &source, immediate)?;
        return match len {
            16 => c.write_linear16(a, destination),
            _ => c.write_linear(a, len.min(8), destination[0]),
        };
    }
    execute_one(c, found, &mut destination, &source, immediate)?;
    let r = i.op0_register();
    if compares(i.mnemonic()) {
        c.set_arith_flags(destination[0] & rflags::ARITH);
    } else if r.is_xmm() {
        c.fpu.xmm[r.number() & 15] = destination;
    } else if r.is_mm() {
        c.fpu.set_mm(r.number(), destination[0]);
    } else {
        set(c, r, destination[0] & mask(r.size()));
    }
    Ok(())
}

/// Instructions whose result is flags.
fn compares(m: M) -> bool {
    matches!(m, M::Comiss | M::Comisd | M::Ucomiss | M::Ucomisd | M::Ptest)
}

fn execute_one(
    c: &mut Cpu,
    found: &sse::Instruction,
    destination: &mut [u64; 2],
    source: &[u64; 2],
    immediate: u8,
) -> Res {
    found.execute(&mut c.fpu, destination, source, immediate).map_err(|fault| {
        // Without CR4.OSXMMEXCPT, a SIMD exception is an invalid opcode.
        if fault == cardcage_fpu::Fault::SimdException && c.cr4 & cr4::OSXMMEXCPT == 0 {
            Fault::UD
        } else {
            fault.into()
        }
    })
}

fn ldmxcsr(c: &mut Cpu, i: &Instruction) -> Res {
    check_sse(c)?;
    let a = operands::address(c, i, 4, false)?;
    let v = c.read_linear(a, 4)? as u32;
    // Not cleared: after #GP, the flags are still the guest's.
    HostFlags::collect(&mut c.fpu);
    c.fpu.set_mxcsr(v)?;
    c.update_mode();
    Ok(())
}

fn stmxcsr(c: &mut Cpu, i: &Instruction) -> Res {
    check_sse(c)?;
    HostFlags::collect(&mut c.fpu);
    let v = u64::from(c.fpu.mxcsr());
    let a = operands::address(c, i, 4, true)?;
    c.write_linear(a, 4, v)
}

/// MASKMOVDQU and MASKMOVQ.
fn masked_move(c: &mut Cpu, i: &Instruction) -> Res {
    let wide = i.mnemonic() == M::Maskmovdqu;
    if wide {
        check_sse(c)?;
    } else {
        check_mmx(c)?;
        c.fpu.enter_mmx()?;
    }
    let value = operand(c, i, 1, 1)?;
    let selected = byte_mask(&operand(c, i, 2, 1)?);
    let width = if c.is_long() { 8 } else { 4 };
    let base = c.regs[RDI] & mask(if i.op0_kind() == OpKind::MemorySegDI { 2 } else { width });
    let seg = match i.segment_prefix() {
        Register::None => DS,
        r => crate::segment::index_of(r),
    };
    let len = if wide { 16 } else { 8 };
    for n in 0..len {
        if selected >> n & 1 != 0 {
            let a = c.linear(seg, base.wrapping_add(n), 1, true)?;
            c.probe_write(a, 1)?;
        }
    }
    for n in 0..len {
        if selected >> n & 1 != 0 {
            let a = c.linear(seg, base.wrapping_add(n), 1, true)?;
            let byte = value[(n / 8) as usize] >> (8 * (n % 8)) & 0xff;
            c.write_linear(a, 1, byte)?;
        }
    }
    Ok(())
}
