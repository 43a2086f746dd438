//! x87 instructions and FXSAVE, by way of `cardcage_fpu`.

use cardcage_fpu::x87::{self, Effect, EnvironmentLayout, OPERAND_MAX, Operand, Site};
use cardcage_fpu::{FxsaveLayout, HostFlags};
use iced_x86::{Code, Instruction, Mnemonic as M, OpCodeTableKind, OpKind};

use super::operands;
use crate::fault::{Fault, Res, vector};
use crate::state::{CS, Cpu, RAX, cr0, rflags};

impl From<cardcage_fpu::Fault> for Fault {
    fn from(fault: cardcage_fpu::Fault) -> Fault {
        match fault {
            cardcage_fpu::Fault::MathFault => Fault::Plain(vector::MF),
            cardcage_fpu::Fault::SimdException => Fault::Plain(vector::XM),
            cardcage_fpu::Fault::GeneralProtection => Fault::GP,
            cardcage_fpu::Fault::InvalidOpcode => Fault::UD,
        }
    }
}

/// `None` if the instruction is not one of these.
pub(super) fn execute(c: &mut Cpu, i: &Instruction) -> Option<Res> {
    Some(match i.mnemonic() {
        M::Wait => wait(c),
        M::Fxsave | M::Fxsave64 => fxsave(c, i),
        M::Fxrstor | M::Fxrstor64 => fxrstor(c, i),
        _ => {
            let info = i.op_code();
            let code = info.op_code();
            let first = if info.op_code_len() == 2 { code >> 8 } else { code };
            if info.table() != OpCodeTableKind::Normal || !(0xd8..=0xdf).contains(&first) {
                return None;
            }
            let first = first as u8;
            if info.op_code_len() == 2 {
                register(c, i, first, code as u8)
            } else {
                memory(c, i, first, (info.group_index().max(0) as u8) << 3)
            }
        }
    })
}

fn wait(c: &mut Cpu) -> Res {
    if c.cr0 & (cr0::MP | cr0::TS) == cr0::MP | cr0::TS {
        return Err(Fault::NM);
    }
    Ok(x87::wait(&c.fpu)?)
}

/// #MF is only raised as such with CR0.NE; the external way of old is not built.
fn register(c: &mut Cpu, i: &Instruction, first: u8, second: u8) -> Res {
    c.check_x87()?;
    // Encodings with a register: the table has that of ST(0).
    let st = (0..i.op_count())
        .filter(|&n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_st())
        .map(|n| i.op_register(n).number() as u8)
        .max()
        .unwrap_or(0);
    let second = if second & 7 == 0 { second | st & 7 } else { second };
    let mut flags = c.rflags_value();
    let effect = x87::execute_register(&mut c.fpu, first, second, site(c.rip, i, 0), &mut flags)?;
    if flags != c.rflags_value() {
        c.set_arith_flags(flags & rflags::ARITH);
    }
    if let Effect::Ax(v) = effect {
        c.regs[RAX] = c.regs[RAX] & !0xffff | u64::from(v);
    }
    Ok(())
}

fn site(_next: u64, i: &Instruction, operand: u64) -> Site {
    Site { instruction: i.ip(), operand }
}

fn layout(c: &Cpu, i: &Instruction) -> EnvironmentLayout {
    let narrow = matches!(
        i.code(),
        Code::Fldenv_m14byte
            | Code::Fnstenv_m14byte
            | Code::Fstenv_m14byte
            | Code::Frstor_m94byte
            | Code::Fnsave_m94byte
            | Code::Fsave_m94byte
    );
    match (c.protected(), narrow) {
        (true, false) => EnvironmentLayout::Protected32,
        (true, true) => EnvironmentLayout::Protected16,
        (false, false) => EnvironmentLayout::Real32,
        (false, true) => EnvironmentLayout::Real16,
    }
}

fn memory(c: &mut Cpu, i: &Instruction, first: u8, second: u8) -> Res {
    c.check_x87()?;
    let layout = layout(c, i);
    let operand = x87::operand(first, second, layout)?;
    x87::check(&c.fpu, first, second)?;
    let effective = operands::offset(c, i);
    let mut buffer = [0; OPERAND_MAX];
    match operand {
        Operand::Load(len) => {
            let a = operands::address(c, i, len, false)?;
            c.read_bytes(a, &mut buffer[..len])?;
            x87::execute_memory(&mut c.fpu, first, second, layout, site(c.rip, i, effective), &mut buffer)?;
            note_opcode(c, i, first, second)?;
        }
        Operand::Store(len) => {
            // An unmasked exception can suppress the store, and with it the store's faults.
            let a = operands::address(c, i, len, true);
            let before = c.fpu.clone();
            let effect =
                x87::execute_memory(&mut c.fpu, first, second, layout, site(c.rip, i, effective), &mut buffer)?;
            if let Effect::Store(len @ 1..) = effect
                && let Err(fault) =
                    a.and_then(|a| c.probe_write(a, len).and_then(|()| c.write_bytes(a, &buffer[..len])))
            {
                c.fpu = before;
                return Err(fault);
            }
            note_opcode(c, i, first, second)?;
        }
    }
    Ok(())
}

/// After an unmasked exception, FOP has the ModR/M byte as it stands in the code, which the decoded form has not.
fn note_opcode(c: &mut Cpu, i: &Instruction, first: u8, second: u8) -> Res {
    let control = matches!((first, second >> 3), (0xd9, 4..=7) | (0xdd, 4 | 6 | 7));
    if c.fpu.math_fault_pending() && !control {
        let mut code = [0; 15];
        let len = i.len().min(code.len());
        let at = c.segs[CS].base.wrapping_add(i.ip());
        c.read_bytes(at, &mut code[..len])?;
        // No prefix has the value of an x87 opcode.
        let modrm = code.iter().skip_while(|&&byte| byte != first).nth(1);
        c.fpu.set_last_opcode(first, modrm.copied().unwrap_or(0));
    }
    Ok(())
}

fn fxsave_address(c: &mut Cpu, i: &Instruction, write: bool) -> Res<u64> {
    if c.cr0 & (cr0::EM | cr0::TS) != 0 {
        return Err(Fault::NM);
    }
    // Unlike SSE instructions, these check the address before its alignment.
    let a = operands::address(c, i, 512, write)?;
    if a & 15 != 0 { Err(Fault::GP) } else { Ok(a) }
}

fn fxsave_form(c: &Cpu, i: &Instruction) -> (FxsaveLayout, usize) {
    let wide = matches!(i.mnemonic(), M::Fxsave64 | M::Fxrstor64);
    let layout = if wide { FxsaveLayout::Wide } else { FxsaveLayout::Narrow };
    (layout, if c.is_long() { 16 } else { cardcage_fpu::XMM_COUNT_LEGACY })
}

fn fxsave(c: &mut Cpu, i: &Instruction) -> Res {
    let a = fxsave_address(c, i, true)?;
    c.probe_write(a, 512)?;
    HostFlags::collect(&mut c.fpu);
    let (layout, registers) = fxsave_form(c, i);
    let mut image = [0; 512];
    let len = c.fpu.fxsave(&mut image, layout, registers);
    c.write_bytes(a, &image[..len])
}

fn fxrstor(c: &mut Cpu, i: &Instruction) -> Res {
    let a = fxsave_address(c, i, false)?;
    let (layout, registers) = fxsave_form(c, i);
    let mut image = [0; 512];
    c.read_bytes(a, &mut image)?;
    // Not cleared: after #GP, the flags are still the guest's.
    HostFlags::collect(&mut c.fpu);
    c.fpu.fxrstor(&image, layout, registers)?;
    c.update_mode();
    Ok(())
}
