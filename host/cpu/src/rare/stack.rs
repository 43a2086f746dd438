//! The stack in all widths: PUSH, POP, PUSHA, POPA, PUSHF, POPF, ENTER, LEAVE.

use iced_x86::{Instruction, Mnemonic as M, OpKind};

use super::operands::{self, read, set};
use crate::fault::Res;
use crate::state::{Cpu, RBP, RSP, SS, mask, rflags};

impl Cpu {
    /// Sets the part of RSP that the stack's width covers.
    pub(crate) fn set_sp(&mut self, v: u64) {
        let size = self.stack_size();
        operands::set_number(self, RSP, size, v);
    }

    /// Reads the stack `delta` bytes above the top.
    pub(crate) fn peek_stack(&mut self, delta: u64, size: usize) -> Res<u64> {
        let at = self.regs[RSP].wrapping_add(delta) & mask(self.stack_size());
        let a = self.linear(SS, at, size, false)?;
        self.read_linear(a, size)
    }

    /// Writes the stack `delta` bytes below the top, without moving it.
    pub(super) fn poke_stack(&mut self, delta: u64, size: usize, v: u64) -> Res {
        let at = self.regs[RSP].wrapping_sub(delta) & mask(self.stack_size());
        let a = self.linear(SS, at, size, true)?;
        self.write_linear(a, size, v)
    }

    pub(crate) fn push(&mut self, size: usize, v: u64) -> Res {
        self.poke_stack(size as u64, size, v)?;
        self.move_sp((size as u64).wrapping_neg());
        Ok(())
    }

    pub(crate) fn move_sp(&mut self, delta: u64) {
        let v = self.regs[RSP].wrapping_add(delta);
        self.set_sp(v);
    }
}

/// Bytes that a push or pop moves.
pub(super) fn width(i: &Instruction) -> usize {
    (i.stack_pointer_increment().unsigned_abs() as usize).clamp(2, 8)
}

/// `None` if the instruction is not one of these.
pub(super) fn execute(c: &mut Cpu, i: &Instruction) -> Option<Res> {
    Some(match i.mnemonic() {
        M::Push => push(c, i),
        M::Pop => pop(c, i),
        M::Pusha | M::Pushad => push_all(c, if i.mnemonic() == M::Pusha { 2 } else { 4 }),
        M::Popa | M::Popad => pop_all(c, if i.mnemonic() == M::Popa { 2 } else { 4 }),
        M::Pushf => push_flags(c, 2),
        M::Pushfd => push_flags(c, 4),
        M::Pushfq => push_flags(c, 8),
        M::Popf => pop_flags(c, 2),
        M::Popfd => pop_flags(c, 4),
        M::Popfq => pop_flags(c, 8),
        M::Enter => enter(c, i),
        M::Leave => leave(c, i),
        _ => return None,
    })
}

fn push(c: &mut Cpu, i: &Instruction) -> Res {
    let size = width(i);
    let v = read(c, i, 0)?;
    c.push(size, v)
}

fn pop(c: &mut Cpu, i: &Instruction) -> Res {
    let size = width(i);
    let v = c.peek_stack(0, size)?;
    if i.op0_kind() == OpKind::Register && i.op0_register().is_segment_register() {
        let seg = crate::segment::index_of(i.op0_register());
        let old = c.stack_size();
        c.load_segment(seg, v as u16)?;
        // The pop counts by the stack that the selector was read from.
        let sp = c.regs[RSP].wrapping_add(size as u64);
        operands::set_number(c, RSP, old, sp);
        if seg == SS {
            c.begin_shadow(true);
        }
        return Ok(());
    }
    let old = c.regs[RSP];
    c.move_sp(size as u64);
    if i.op0_kind() == OpKind::Register {
        set(c, i.op0_register(), v);
        return Ok(());
    }
    // An address that uses RSP uses its value after the pop.
    let done = operands::address(c, i, size, true).and_then(|a| c.write_linear(a, size, v));
    if done.is_err() {
        c.regs[RSP] = old;
    }
    done
}

fn push_all(c: &mut Cpu, size: usize) -> Res {
    let step = size as u64;
    // All eight words are checked before one is written.
    for (n, &r) in [0usize, 1, 2, 3, 4, 5, 6, 7].iter().enumerate().rev() {
        let v = c.regs[r];
        c.poke_stack(step * (n as u64 + 1), size, v)?;
    }
    c.move_sp((8 * step).wrapping_neg());
    Ok(())
}

fn pop_all(c: &mut Cpu, size: usize) -> Res {
    let step = size as u64;
    let mut values = [0; 8];
    for (n, v) in values.iter_mut().enumerate() {
        *v = c.peek_stack(step * n as u64, size)?;
    }
    for (n, &v) in values.iter().enumerate() {
        let r = 7 - n;
        if r != RSP {
            operands::set_number(c, r, size, v);
        }
    }
    c.move_sp(8 * step);
    Ok(())
}

fn push_flags(c: &mut Cpu, size: usize) -> Res {
    let f = c.rflags_value() & !(rflags::RF | rflags::VM);
    c.push(size, f)
}

fn pop_flags(c: &mut Cpu, size: usize) -> Res {
    let v = c.peek_stack(0, size)?;
    c.move_sp(size as u64);
    let mut may = rflags::ARITH | rflags::TF | rflags::DF | rflags::NT | rflags::AC | rflags::ID;
    if c.cpl == 0 || !c.protected() {
        may |= rflags::IOPL;
    }
    if c.cpl <= c.iopl() || !c.protected() {
        may |= rflags::IF;
    }
    c.change_flags(v, may & mask(size) | if size > 2 { rflags::RF } else { 0 }, rflags::RF);
    Ok(())
}

impl Cpu {
    /// Takes the flags of `may` from `v`, clearing those of `clear`.
    pub(crate) fn change_flags(&mut self, v: u64, may: u64, clear: u64) {
        let old = self.rflags_value();
        let new = (old & !may | v & may) & !clear;
        self.set_rflags(new);
        if new & rflags::IF != 0 && old & rflags::IF == 0 && (self.attention || self.signal.is_raised()) {
            self.look_up_soon();
        }
        if new & rflags::TF != 0 {
            self.look_up_soon();
        }
    }

    /// The next instruction is not to be interrupted. After a load of SS, debug traps wait, too.
    pub(crate) fn begin_shadow(&mut self, of_stack: bool) {
        self.shadow = true;
        self.shadow_of_stack = of_stack;
        self.look_up_soon();
    }
}

fn enter(c: &mut Cpu, i: &Instruction) -> Res {
    let size = match i.code() {
        iced_x86::Code::Enterw_imm16_imm8 => 2,
        iced_x86::Code::Enterd_imm16_imm8 => 4,
        _ => 8,
    };
    let step = size as u64;
    let frame = i.immediate(0) & 0xffff;
    let level = i.immediate8_2nd() & 31;
    let bp = c.regs[RBP];
    let old = c.regs[RSP];
    c.push(size, bp)?;
    let top = c.regs[RSP];
    let rest = (|| {
        if level > 0 {
            for n in 1..level {
                let at = bp.wrapping_sub(u64::from(n) * step) & mask(c.stack_size());
                let a = c.linear(SS, at, size, false)?;
                let v = c.read_linear(a, size)?;
                c.push(size, v)?;
            }
            c.push(size, top)?;
        }
        // The page that the new stack pointer is on must be writable.
        let at = c.regs[RSP].wrapping_sub(frame) & mask(c.stack_size());
        let a = c.linear(SS, at, 1, true)?;
        c.probe_write(a, 1)
    })();
    if let Err(fault) = rest {
        c.regs[RSP] = old;
        return Err(fault);
    }
    operands::set_number(c, RBP, size, top);
    c.move_sp(frame.wrapping_neg());
    Ok(())
}

fn leave(c: &mut Cpu, i: &Instruction) -> Res {
    let size = match i.code() {
        iced_x86::Code::Leavew => 2,
        iced_x86::Code::Leaved => 4,
        _ => 8,
    };
    let at = c.regs[RBP] & mask(c.stack_size());
    let a = c.linear(SS, at, size, false)?;
    let v = c.read_linear(a, size)?;
    c.set_sp(at.wrapping_add(size as u64));
    operands::set_number(c, RBP, size, v);
    Ok(())
}
