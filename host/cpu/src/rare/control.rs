//! Control transfers: near ones in the widths that threaded handlers do not have, far ones, software interrupts,
//! IRET, SYSCALL, SYSRET, SYSENTER, SYSEXIT (SDM volume 3, chapters 5 and 6; APM volume 2, section 6.1).

use cardcage_accel::Segment;
use iced_x86::{Code, FlowControl, Instruction, Mnemonic as M, OpKind};

use super::operands::{self, read};
use super::stack::width;
use crate::fault::{Fault, Res, vector};
use crate::interrupt::Cause;
use crate::memory::is_canonical;
use crate::segment::Raw;
use crate::state::{CS, Cpu, RCX, RDX, RSP, SS, attr, cr0, efer, mask, rflags};

const R11: usize = 11;

/// `None` if the instruction is not one of these.
pub(super) fn execute(c: &mut Cpu, i: &Instruction) -> Option<Res> {
    Some(match i.mnemonic() {
        M::Jmp if i.is_jmp_far() || i.is_jmp_far_indirect() => far_pointer(c, i).and_then(|(s, o)| far_jump(c, s, o)),
        M::Call if i.is_call_far() || i.is_call_far_indirect() => {
            far_pointer(c, i).and_then(|(s, o)| far_call(c, i, s, o))
        }
        M::Jmp => near_target(c, i).and_then(|t| jump(c, t)),
        M::Call => near_target(c, i).and_then(|t| call(c, i, t)),
        M::Ret => ret(c, i),
        M::Retf => far_return(c, i),
        M::Loop | M::Loope | M::Loopne => loop_(c, i),
        M::Jcxz | M::Jecxz | M::Jrcxz => {
            let size = match i.mnemonic() {
                M::Jcxz => 2,
                M::Jecxz => 4,
                _ => 8,
            };
            branch_if(c, i, c.regs[RCX] & mask(size) == 0)
        }
        M::Int => c.software_interrupt(i.immediate8(), Cause::Software),
        M::Int3 => c.software_interrupt(vector::BP, Cause::SoftwareException),
        M::Int1 => {
            c.dr[4] &= !0xf;
            c.software_interrupt(vector::DB, Cause::PrivilegedSoftware)
        }
        M::Into => {
            if c.of() {
                c.software_interrupt(vector::OF, Cause::SoftwareException)
            } else {
                Ok(())
            }
        }
        M::Iret => c.interrupt_return(2),
        M::Iretd => c.interrupt_return(4),
        M::Iretq => c.interrupt_return(8),
        M::Syscall => syscall(c),
        M::Sysret | M::Sysretq => sysret(c, i.code() == Code::Sysretq),
        M::Sysenter => sysenter(c),
        M::Sysexit | M::Sysexitq => sysexit(c, i.code() == Code::Sysexitq),
        M::Ud0 | M::Ud1 | M::Ud2 => Err(Fault::UD),
        _ if i.flow_control() == FlowControl::ConditionalBranch && i.is_jcc_short_or_near() => {
            let taken = c.condition(crate::lower::condition_number(i));
            branch_if(c, i, taken)
        }
        _ => return None,
    })
}

/// Goes to `target` in the present code segment.
fn jump(c: &mut Cpu, target: u64) -> Res {
    c.check_target(target)?;
    c.rip = target;
    Ok(())
}

impl Cpu {
    /// Whether `target` can be an instruction pointer in the present code segment.
    pub(crate) fn check_target(&self, target: u64) -> Res {
        let good = if self.is_long() { is_canonical(target) } else { target <= u64::from(self.segs[CS].limit) };
        if good { Ok(()) } else { Err(Fault::GP) }
    }
}

fn branch_if(c: &mut Cpu, i: &Instruction, taken: bool) -> Res {
    if taken { jump(c, i.near_branch_target()) } else { Ok(()) }
}

fn loop_(c: &mut Cpu, i: &Instruction) -> Res {
    let size = match i.code() {
        Code::Loop_rel8_16_CX
        | Code::Loop_rel8_32_CX
        | Code::Loope_rel8_16_CX
        | Code::Loope_rel8_32_CX
        | Code::Loopne_rel8_16_CX
        | Code::Loopne_rel8_32_CX => 2,
        Code::Loop_rel8_16_ECX
        | Code::Loop_rel8_32_ECX
        | Code::Loop_rel8_64_ECX
        | Code::Loope_rel8_16_ECX
        | Code::Loope_rel8_32_ECX
        | Code::Loope_rel8_64_ECX
        | Code::Loopne_rel8_16_ECX
        | Code::Loopne_rel8_32_ECX
        | Code::Loopne_rel8_64_ECX => 4,
        _ => 8,
    };
    let left = c.regs[RCX].wrapping_sub(1) & mask(size);
    let taken = left != 0
        && match i.mnemonic() {
            M::Loope => c.zf(),
            M::Loopne => !c.zf(),
            _ => true,
        };
    if taken {
        c.check_target(i.near_branch_target())?;
    }
    operands::set_number(c, RCX, size, left);
    branch_if(c, i, taken)
}

fn near_target(c: &mut Cpu, i: &Instruction) -> Res<u64> {
    match i.op0_kind() {
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => Ok(i.near_branch_target()),
        _ => read(c, i, 0),
    }
}

fn call(c: &mut Cpu, i: &Instruction, target: u64) -> Res {
    c.check_target(target)?;
    let next = c.rip;
    c.push(width(i), next)?;
    c.rip = target;
    Ok(())
}

fn ret(c: &mut Cpu, i: &Instruction) -> Res {
    let size = match i.code() {
        Code::Retnw | Code::Retnw_imm16 => 2,
        Code::Retnd | Code::Retnd_imm16 => 4,
        _ => 8,
    };
    let drop = if i.op_count() == 1 { i.immediate(0) & 0xffff } else { 0 };
    let target = c.peek_stack(0, size)?;
    jump(c, target)?;
    c.move_sp(size as u64 + drop);
    Ok(())
}

/// Selector and offset of a far branch.
fn far_pointer(c: &mut Cpu, i: &Instruction) -> Res<(u16, u64)> {
    match i.op0_kind() {
        OpKind::FarBranch16 => Ok((i.far_branch_selector(), u64::from(i.far_branch16()))),
        OpKind::FarBranch32 => Ok((i.far_branch_selector(), u64::from(i.far_branch32()))),
        _ => {
            let size = far_size(i);
            let a = operands::address(c, i, size + 2, false)?;
            let offset = c.read_linear(a, size)?;
            let selector = c.read_linear(c.wrap(a.wrapping_add(size as u64)), 2)?;
            Ok((selector as u16, offset))
        }
    }
}

fn far_size(i: &Instruction) -> usize {
    match i.op0_kind() {
        OpKind::FarBranch16 => 2,
        OpKind::FarBranch32 => 4,
        _ => (i.memory_size().size().saturating_sub(2)).clamp(2, 8),
    }
}

/// The hidden part of CS in real mode.
fn real_code(c: &Cpu, selector: u16) -> Segment {
    Segment { selector, base: u64::from(selector) << 4, ..c.segs[CS] }
}

/// Checks a code segment for a jump or call that stays at the present privilege.
fn direct_code(c: &Cpu, selector: u16, d: Raw) -> Res<Segment> {
    let rpl = (selector & 3) as u8;
    let fits = if d.conforming() { d.dpl() <= c.cpl } else { rpl <= c.cpl && d.dpl() == c.cpl };
    let both = attr::L | attr::DB;
    if !d.is_code() || !fits || (c.lma() && d.attributes() & both == both) {
        return Err(Fault::gp(selector));
    }
    if !d.present() {
        return Err(Fault::np(selector));
    }
    let mut segment = d.segment(selector & !3 | u16::from(c.cpl));
    segment.attributes |= attr::ACCESSED;
    Ok(segment)
}

/// Checks that `offset` lies in `segment`.
fn inside(c: &Cpu, segment: &Segment, offset: u64) -> Res {
    let good = if c.lma() && segment.attributes & attr::L != 0 {
        is_canonical(offset)
    } else {
        offset <= u64::from(segment.limit)
    };
    if good { Ok(()) } else { Err(Fault::GP) }
}

fn far_jump(c: &mut Cpu, selector: u16, offset: u64) -> Res {
    if !c.protected() {
        if offset > u64::from(c.segs[CS].limit) {
            return Err(Fault::GP);
        }
        let segment = real_code(c, selector);
        c.set_segment(CS, segment);
        c.rip = offset;
        return Ok(());
    }
    if selector & 0xfffc == 0 {
        return Err(Fault::GP);
    }
    let d = c.descriptor(selector, Fault::gp)?;
    if d.is_segment() {
        let segment = direct_code(c, selector, d)?;
        inside(c, &segment, offset)?;
        c.mark_descriptor(selector, d.low, 1)?;
        c.set_segment(CS, segment);
        c.rip = offset;
        return Ok(());
    }
    let gate = call_gate(c, selector)?;
    let target = gate.gate_selector();
    if target & 0xfffc == 0 {
        return Err(Fault::GP);
    }
    let d = c.descriptor(target, Fault::gp)?;
    let segment = direct_code(c, target & !3, d)?;
    let offset = gate_target(c, gate);
    inside(c, &segment, offset)?;
    c.mark_descriptor(target, d.low, 1)?;
    c.set_segment(CS, segment);
    c.rip = offset;
    Ok(())
}

/// Offset that a call gate leads to.
fn gate_target(c: &Cpu, gate: Raw) -> u64 {
    if c.lma() {
        gate.gate_offset(true)
    } else if gate.kind() == 12 {
        gate.gate_offset(false)
    } else {
        gate.low & 0xffff
    }
}

/// Reads and checks a call gate. Task gates and TSSes are not carried out.
fn call_gate(c: &mut Cpu, selector: u16) -> Res<Raw> {
    let gate = c.system_descriptor(selector, Fault::gp)?;
    let known = gate.kind() == 12 || (gate.kind() == 4 && !c.lma());
    if !known {
        if !c.lma() && matches!(gate.kind(), 1 | 5 | 9) {
            return Err(c.give_up("a hardware task switch"));
        }
        return Err(Fault::gp(selector));
    }
    if gate.dpl() < c.cpl || gate.dpl() < (selector & 3) as u8 {
        return Err(Fault::gp(selector));
    }
    if !gate.present() {
        return Err(Fault::np(selector));
    }
    Ok(gate)
}

fn far_call(c: &mut Cpu, i: &Instruction, selector: u16, offset: u64) -> Res {
    let size = far_size(i);
    let next = c.rip;
    let old = u64::from(c.segs[CS].selector);
    if !c.protected() {
        if offset > u64::from(c.segs[CS].limit) {
            return Err(Fault::GP);
        }
        push_two(c, size, old, next)?;
        let segment = real_code(c, selector);
        c.set_segment(CS, segment);
        c.rip = offset;
        return Ok(());
    }
    if selector & 0xfffc == 0 {
        return Err(Fault::GP);
    }
    let d = c.descriptor(selector, Fault::gp)?;
    if d.is_segment() {
        let segment = direct_code(c, selector, d)?;
        inside(c, &segment, offset)?;
        push_two(c, size, old, next)?;
        c.mark_descriptor(selector, d.low, 1)?;
        c.set_segment(CS, segment);
        c.rip = offset;
        return Ok(());
    }
    let gate = call_gate(c, selector)?;
    through_gate(c, gate, old, next)
}

/// A call through a gate, to the same or an inner level.
fn through_gate(c: &mut Cpu, gate: Raw, old: u64, next: u64) -> Res {
    let target = gate.gate_selector();
    if target & 0xfffc == 0 {
        return Err(Fault::GP);
    }
    let d = c.descriptor(target, Fault::gp)?;
    let wrong_width = c.lma() && d.attributes() & (attr::L | attr::DB) != attr::L;
    if !d.is_code() || d.dpl() > c.cpl || wrong_width {
        return Err(Fault::gp(target));
    }
    if !d.present() {
        return Err(Fault::np(target));
    }
    let offset = gate_target(c, gate);
    let size = if c.lma() {
        8
    } else if gate.kind() == 12 {
        4
    } else {
        2
    };
    let level = if d.conforming() { c.cpl } else { d.dpl() };
    let mut segment = d.segment(target & !3 | u16::from(level));
    segment.attributes |= attr::ACCESSED;
    inside(c, &segment, offset)?;
    if level == c.cpl {
        push_two(c, size, old, next)?;
    } else {
        let parameters = if c.lma() { 0 } else { (gate.low >> 32 & 31) as usize };
        let mut values = [0; 31];
        for (n, v) in values.iter_mut().take(parameters).enumerate() {
            *v = c.peek_stack((n * size) as u64, size)?;
        }
        let stack = c.inner_stack(level)?;
        let (old_ss, old_sp) = (u64::from(c.segs[SS].selector), c.regs[RSP]);
        let mut writer = c.stack_writer(&stack);
        writer.push(c, size, old_ss)?;
        writer.push(c, size, old_sp)?;
        for v in values.iter().take(parameters).rev() {
            writer.push(c, size, *v)?;
        }
        writer.push(c, size, old)?;
        writer.push(c, size, next)?;
        let sp = writer.sp();
        c.cpl = level;
        c.set_segment(SS, stack.segment);
        c.set_sp(sp);
    }
    c.mark_descriptor(target, d.low, 1)?;
    c.set_code(segment, level);
    c.rip = offset;
    Ok(())
}

/// Pushes CS and the return address, both or none.
fn push_two(c: &mut Cpu, size: usize, cs: u64, rip: u64) -> Res {
    c.poke_stack(size as u64, size, cs)?;
    c.poke_stack(2 * size as u64, size, rip)?;
    c.move_sp((2 * size as u64).wrapping_neg());
    Ok(())
}

fn far_return(c: &mut Cpu, i: &Instruction) -> Res {
    let size = match i.code() {
        Code::Retfw | Code::Retfw_imm16 => 2,
        Code::Retfd | Code::Retfd_imm16 => 4,
        _ => 8,
    };
    let step = size as u64;
    let drop = if i.op_count() == 1 { i.immediate(0) & 0xffff } else { 0 };
    let rip = c.peek_stack(0, size)?;
    let selector = c.peek_stack(step, size)? as u16;
    if !c.protected() {
        if rip > u64::from(c.segs[CS].limit) {
            return Err(Fault::GP);
        }
        let segment = real_code(c, selector);
        c.set_segment(CS, segment);
        c.move_sp(2 * step + drop);
        c.rip = rip;
        return Ok(());
    }
    let segment = c.return_code(selector)?;
    inside(c, &segment, rip)?;
    let level = (selector & 3) as u8;
    if level == c.cpl {
        c.set_segment(CS, segment);
        c.move_sp(2 * step + drop);
        c.rip = rip;
        return Ok(());
    }
    let sp = c.peek_stack(2 * step + drop, size)?;
    let ss = c.peek_stack(3 * step + drop, size)? as u16;
    let stack = c.return_stack(ss, level, segment.attributes & attr::L != 0 && c.lma())?;
    c.set_code(segment, level);
    c.put_return_stack(stack, ss);
    c.set_sp(sp.wrapping_add(drop));
    c.drop_inner_segments();
    c.rip = rip;
    Ok(())
}

/// A flat segment as SYSCALL and its kin load it.
fn flat(selector: u16, attributes: u32) -> Segment {
    Segment { selector, base: 0, limit: 0xffff_ffff, attributes }
}

const CODE64: u32 = attr::G | attr::L | attr::P | attr::S | 0xb;
const CODE32: u32 = attr::G | attr::DB | attr::P | attr::S | 0xb;
const DATA: u32 = attr::G | attr::DB | attr::P | attr::S | 0x3;

fn syscall(c: &mut Cpu) -> Res {
    let tf = c.rflags & rflags::TF != 0;
    if c.efer & efer::SCE == 0 || !c.protected() {
        return Err(Fault::UD);
    }
    let selector = (c.msrs.star >> 32) as u16 & 0xfffc;
    let next = c.rip;
    let flags = c.rflags_value();
    if c.lma() {
        let target = if c.is_long() { c.msrs.lstar } else { c.msrs.cstar };
        c.regs[RCX] = next;
        c.regs[R11] = flags & !rflags::RF;
        let kept = flags & !c.msrs.sfmask & !rflags::RF;
        c.set_rflags(kept);
        c.set_code(flat(selector, CODE64), 0);
        c.set_segment(SS, flat(selector.wrapping_add(8), DATA));
        c.rip = target;
    } else {
        c.regs[RCX] = next & 0xffff_ffff;
        c.set_rflags(flags & !(rflags::VM | rflags::IF | rflags::RF));
        c.set_code(flat(selector, CODE32), 0);
        c.set_segment(SS, flat(selector.wrapping_add(8), DATA));
        c.rip = c.msrs.star & 0xffff_ffff;
    }
    c.entered = tf && c.rflags & rflags::TF == 0;
    Ok(())
}

fn sysret(c: &mut Cpu, wide: bool) -> Res {
    if c.efer & efer::SCE == 0 || !c.protected() {
        return Err(Fault::UD);
    }
    if c.cpl != 0 {
        return Err(Fault::GP);
    }
    let base = (c.msrs.star >> 48) as u16;
    let target = if wide { c.regs[RCX] } else { c.regs[RCX] & 0xffff_ffff };
    if wide && !is_canonical(target) {
        return Err(Fault::GP);
    }
    let old = c.rflags_value();
    let was_long = c.lma();
    let code = if wide { flat(base.wrapping_add(16) | 3, CODE64 | 0x60) } else { flat(base | 3, CODE32 | 0x60) };
    let flags = if was_long { c.regs[R11] & 0x3c_7fd7 | rflags::FIXED } else { old | rflags::IF };
    c.set_code(code, 3);
    c.set_segment(SS, flat(base.wrapping_add(8) | 3, DATA | 0x60));
    let may = rflags::ALL;
    c.change_flags(flags & !(rflags::RF | rflags::VM), may, 0);
    c.rip = target;
    c.check_device_writes();
    Ok(())
}

fn sysenter(c: &mut Cpu) -> Res {
    // AMD processors have SYSENTER in legacy mode only.
    if !c.protected() || c.msrs.sysenter_cs & 0xfffc == 0 {
        return Err(Fault::GP);
    }
    if c.lma() {
        return Err(Fault::UD);
    }
    let selector = c.msrs.sysenter_cs as u16 & 0xfffc;
    let flags = c.rflags_value() & !(rflags::VM | rflags::IF | rflags::RF);
    c.set_rflags(flags);
    c.set_code(flat(selector, CODE32), 0);
    c.set_segment(SS, flat(selector.wrapping_add(8), DATA));
    c.regs[RSP] = c.msrs.sysenter_esp & 0xffff_ffff;
    c.rip = c.msrs.sysenter_eip & 0xffff_ffff;
    Ok(())
}

fn sysexit(c: &mut Cpu, _wide: bool) -> Res {
    if c.lma() {
        return Err(Fault::UD);
    }
    if !c.protected() || c.msrs.sysenter_cs & 0xfffc == 0 || c.cpl != 0 {
        return Err(Fault::GP);
    }
    let selector = c.msrs.sysenter_cs as u16 & 0xfffc;
    let (sp, ip) = (c.regs[RCX] & 0xffff_ffff, c.regs[RDX] & 0xffff_ffff);
    c.set_code(flat(selector.wrapping_add(16) | 3, CODE32 | 0x60), 3);
    c.set_segment(SS, flat(selector.wrapping_add(24) | 3, DATA | 0x60));
    c.regs[RSP] = sp;
    c.rip = ip;
    Ok(())
}

impl Cpu {
    /// Reports something that this processor does not carry out.
    #[cold]
    pub(crate) fn give_up(&mut self, what: &str) -> Fault {
        self.trouble = what.to_string();
        Fault::Trouble
    }

    /// Whether x87 and MMX instructions raise #NM or #UD now.
    pub(super) fn check_x87(&self) -> Res {
        if self.cr0 & (cr0::EM | cr0::TS) != 0 { Err(Fault::NM) } else { Ok(()) }
    }
}
