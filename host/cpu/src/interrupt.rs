//! Delivery of exceptions and interrupts, and the return from them (SDM volume 3, chapter 6).

use cardcage_accel::Segment;

use crate::fault::{Fault, Res, vector};
use crate::memory::is_canonical;
use crate::segment::Raw;
use crate::state::{CS, Cpu, RSP, SS, attr, rflags};

/// What an event comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Found by the processor.
    Exception,
    /// From the local APIC, or NMI.
    External,
    /// INT n.
    Software,
    /// INT3 and INTO.
    SoftwareException,
    /// INT1.
    PrivilegedSoftware,
}

/// A stack that an event or call switches to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewStack {
    pub(crate) segment: Segment,
    pub(crate) sp: u64,
    pub(crate) level: u8,
}

/// Pushes to a stack that is not yet the present one, with the privilege of its level.
pub(crate) struct StackWriter {
    base: u64,
    sp: u64,
    mask: u64,
    flat: bool,
    user: bool,
    limit: u32,
    attributes: u32,
}

impl StackWriter {
    pub(crate) fn push(&mut self, c: &mut Cpu, size: usize, v: u64) -> Res {
        let sp = self.sp.wrapping_sub(size as u64) & self.mask;
        let a = if self.flat {
            if !is_canonical(sp) || !is_canonical(sp.wrapping_add(size as u64 - 1)) {
                return Err(Fault::SS);
            }
            sp
        } else {
            let last = sp.wrapping_add(size as u64 - 1);
            let limit = u64::from(self.limit);
            let down = c.protected() && self.attributes & (attr::CODE | attr::EC) == attr::EC;
            let inside = if down { sp > limit && last <= self.mask } else { last <= limit };
            if !inside {
                return Err(Fault::SS);
            }
            self.base.wrapping_add(sp) & 0xffff_ffff
        };
        c.write_as(a, size, v, self.user)?;
        self.sp = sp;
        Ok(())
    }

    pub(crate) fn sp(&self) -> u64 {
        self.sp
    }
}

impl Cpu {
    /// A writer for `stack`.
    pub(crate) fn stack_writer(&self, stack: &NewStack) -> StackWriter {
        let t = stack.segment.attributes;
        let flat = self.lma();
        StackWriter {
            base: stack.segment.base,
            sp: stack.sp,
            mask: if flat {
                u64::MAX
            } else if t & attr::DB != 0 {
                0xffff_ffff
            } else {
                0xffff
            },
            flat,
            user: stack.level == 3,
            limit: stack.segment.limit,
            attributes: t,
        }
    }

    /// INT n, INT3, INT1 and INTO: `rip` is already at the next instruction.
    pub(crate) fn software_interrupt(&mut self, vector: u8, cause: Cause) -> Res {
        self.enter_gate(vector, None, cause)?;
        Ok(())
    }

    /// Delivers an event; a fault on the way becomes a double fault, and one more shuts the processor down.
    pub(crate) fn deliver(&mut self, vector: u8, error: Option<u32>, cause: Cause) -> Res {
        let (mut vector, mut error, mut cause) = (vector, error, cause);
        self.halted = false;
        loop {
            match self.enter_gate(vector, error, cause) {
                Ok(()) => return Ok(()),
                Err(Fault::Trouble) => return Err(Fault::Trouble),
                Err(Fault::Restart) => return Ok(()),
                Err(fault) => {
                    let (second, second_error) = fault.parts();
                    if vector == vector::DF && cause == Cause::Exception {
                        self.shut_down = true;
                        return Ok(());
                    }
                    let double = cause == Cause::Exception
                        && ((is_contributory(vector) && is_contributory(second))
                            || (vector == vector::PF && (second == vector::PF || is_contributory(second))));
                    if second == vector::PF {
                        self.cr2 = self.fault_address;
                    }
                    // The EXT bit: the first event did not come from an instruction's own doing.
                    let external = cause == Cause::External || cause == Cause::Exception;
                    if double {
                        (vector, error) = (vector::DF, Some(0));
                    } else {
                        vector = second;
                        error = second_error.map(|e| if external && second != vector::PF { e | 1 } else { e });
                    }
                    cause = Cause::Exception;
                }
            }
        }
    }

    /// One attempt at delivery. On a fault, nothing but memory below the new stack pointer has changed.
    fn enter_gate(&mut self, vector: u8, error: Option<u32>, cause: Cause) -> Res {
        if !self.protected() {
            return self.enter_real(vector);
        }
        if self.rflags & rflags::VM != 0 {
            return Err(self.give_up("an interrupt in virtual-8086 mode"));
        }
        let software = matches!(cause, Cause::Software | Cause::SoftwareException);
        let long = self.lma();
        let len = if long { 16 } else { 8 };
        let offset = u64::from(vector) * len;
        let code = u32::from(vector) << 3 | 2;
        let gp = Fault::Code(vector::GP, code);
        if offset + len - 1 > u64::from(self.idtr.limit) {
            return Err(gp);
        }
        let at = self.idtr.base.wrapping_add(offset);
        let low = self.read_system(at, 8)?;
        let high = if long { self.read_system(at.wrapping_add(8), 8)? } else { 0 };
        let gate = Raw { low, high };
        let kind = gate.kind();
        let known = matches!(kind, 14 | 15) || (!long && matches!(kind, 5..=7));
        if gate.is_segment() || !known {
            return Err(gp);
        }
        if software && gate.dpl() < self.cpl {
            return Err(gp);
        }
        if !gate.present() {
            return Err(Fault::Code(vector::NP, code));
        }
        if kind == 5 {
            return Err(self.give_up("a task gate in the interrupt descriptor table"));
        }
        let selector = gate.gate_selector();
        if selector & 0xfffc == 0 {
            return Err(Fault::GP);
        }
        let d = self.descriptor(selector, Fault::gp)?;
        let wrong_width = long && d.attributes() & (attr::L | attr::DB) != attr::L;
        if !d.is_code() || d.dpl() > self.cpl || wrong_width {
            return Err(Fault::gp(selector));
        }
        if !d.present() {
            return Err(Fault::np(selector));
        }
        let level = if d.conforming() { self.cpl } else { d.dpl() };
        let size = match (long, kind) {
            (true, _) => 8,
            (false, 14 | 15) => 4,
            _ => 2,
        };
        let stack = self.event_stack(gate, level)?;
        let target = match size {
            8 => gate.gate_offset(true),
            4 => gate.gate_offset(false),
            _ => gate.low & 0xffff,
        };
        let mut segment = d.segment(selector & !3 | u16::from(level));
        segment.attributes |= attr::ACCESSED;
        let inside = if long { is_canonical(target) } else { target <= u64::from(segment.limit) };
        if !inside {
            return Err(Fault::GP);
        }
        let mut flags = self.rflags_value();
        // Faults push RF so that the instruction's breakpoint does not strike twice; traps and interrupts push it as
        // it is, which is clear after an instruction has been completed.
        if cause == Cause::Exception && !matches!(vector, vector::DB | vector::BP | vector::OF) {
            flags |= rflags::RF;
        }
        let switched = stack.is_some();
        let place = stack.unwrap_or(NewStack { segment: self.segs[SS], sp: self.regs[RSP], level });
        let mut w = self.stack_writer(&place);
        if long {
            w.sp &= !15;
        }
        if long || switched && level != self.cpl {
            w.push(self, size, u64::from(self.segs[SS].selector))?;
            w.push(self, size, self.regs[RSP])?;
        }
        w.push(self, size, flags)?;
        w.push(self, size, u64::from(self.segs[CS].selector))?;
        w.push(self, size, self.rip)?;
        if let Some(e) = error {
            w.push(self, size, u64::from(e))?;
        }
        self.mark_descriptor(selector, d.low, 1)?;
        let sp = w.sp();
        let changes_level = level != self.cpl;
        self.set_code(segment, level);
        if changes_level {
            self.set_segment(SS, place.segment);
        }
        if long {
            self.regs[RSP] = sp;
        } else {
            self.set_sp(sp);
        }
        self.rip = target;
        let mut cleared = rflags::TF | rflags::NT | rflags::VM | rflags::RF;
        if kind & 1 == 0 {
            cleared |= rflags::IF;
        }
        self.rflags &= !cleared;
        self.shadow = false;
        self.entered = true;
        self.check_device_writes();
        Ok(())
    }

    /// The stack for an event that enters `level`; `None` if the present one stays.
    fn event_stack(&mut self, gate: Raw, level: u8) -> Res<Option<NewStack>> {
        if self.lma() {
            let ist = (gate.low >> 32 & 7) as u8;
            if ist == 0 {
                return if level == self.cpl { Ok(None) } else { self.inner_stack(level).map(Some) };
            }
            let sp = self.tss_word(28 + 8 * u64::from(ist), 8)?;
            let segment = if level == self.cpl { self.segs[SS] } else { null_stack(level) };
            return Ok(Some(NewStack { segment, sp, level }));
        }
        if level == self.cpl { Ok(None) } else { self.inner_stack(level).map(Some) }
    }

    /// Reads from the task state segment.
    fn tss_word(&mut self, offset: u64, size: usize) -> Res<u64> {
        if offset + size as u64 - 1 > u64::from(self.tr.limit) {
            return Err(Fault::ts(self.tr.selector));
        }
        self.read_system(self.tr.base.wrapping_add(offset), size)
    }

    /// The stack that the task state segment names for an inner `level`.
    pub(crate) fn inner_stack(&mut self, level: u8) -> Res<NewStack> {
        let n = u64::from(level & 3);
        if self.lma() {
            let sp = self.tss_word(4 + 8 * n, 8)?;
            if !is_canonical(sp) {
                return Err(Fault::SS);
            }
            return Ok(NewStack { segment: null_stack(level), sp, level });
        }
        let (sp, ss) = if self.tr.attributes & 8 != 0 {
            (self.tss_word(4 + 8 * n, 4)?, self.tss_word(8 + 8 * n, 2)? as u16)
        } else {
            (self.tss_word(2 + 4 * n, 2)?, self.tss_word(4 + 4 * n, 2)? as u16)
        };
        if ss & 0xfffc == 0 {
            return Err(Fault::ts(ss));
        }
        let d = self.descriptor(ss, Fault::ts)?;
        let writable = d.attributes() & (attr::S | attr::CODE | attr::RW) == attr::S | attr::RW;
        if (ss & 3) as u8 != level || d.dpl() != level || !writable {
            return Err(Fault::ts(ss));
        }
        if !d.present() {
            return Err(Fault::ss(ss));
        }
        self.mark_descriptor(ss, d.low, 1)?;
        let mut segment = d.segment(ss);
        segment.attributes |= attr::ACCESSED;
        Ok(NewStack { segment, sp, level })
    }

    /// Real mode: through the vector table.
    fn enter_real(&mut self, vector: u8) -> Res {
        let at = u64::from(vector) * 4;
        if at + 3 > u64::from(self.idtr.limit) {
            return Err(Fault::GP);
        }
        let pointer = self.read_system(self.idtr.base.wrapping_add(at), 4)?;
        let flags = self.rflags_value();
        let (cs, ip) = (u64::from(self.segs[CS].selector), self.rip);
        self.push(2, flags)?;
        self.push(2, cs)?;
        self.push(2, ip)?;
        let selector = (pointer >> 16) as u16;
        let segment = Segment { selector, base: u64::from(selector) << 4, ..self.segs[CS] };
        self.set_segment(CS, segment);
        self.rip = pointer & 0xffff;
        self.rflags &= !(rflags::IF | rflags::TF | rflags::AC | rflags::RF);
        self.shadow = false;
        self.entered = true;
        Ok(())
    }

    /// Checks the code segment that a return goes to.
    pub(crate) fn return_code(&mut self, selector: u16) -> Res<Segment> {
        if selector & 0xfffc == 0 {
            return Err(Fault::GP);
        }
        let level = (selector & 3) as u8;
        let d = self.descriptor(selector, Fault::gp)?;
        let fits = if d.conforming() { d.dpl() <= level } else { d.dpl() == level };
        let both = attr::L | attr::DB;
        if !d.is_code() || level < self.cpl || !fits || (self.lma() && d.attributes() & both == both) {
            return Err(Fault::gp(selector));
        }
        if !d.present() {
            return Err(Fault::np(selector));
        }
        self.mark_descriptor(selector, d.low, 1)?;
        let mut segment = d.segment(selector);
        segment.attributes |= attr::ACCESSED;
        Ok(segment)
    }

    /// Checks the stack segment that a return goes to; `None` is a null selector, allowed for 64-bit code of levels
    /// 0 to 2.
    pub(crate) fn return_stack(&mut self, selector: u16, level: u8, to_long: bool) -> Res<Option<Segment>> {
        if selector & 0xfffc == 0 {
            let allowed = to_long && level != 3 && (selector & 3) as u8 == level;
            return if allowed { Ok(None) } else { Err(Fault::GP) };
        }
        let d = self.descriptor(selector, Fault::gp)?;
        let writable = d.attributes() & (attr::S | attr::CODE | attr::RW) == attr::S | attr::RW;
        if (selector & 3) as u8 != level || d.dpl() != level || !writable {
            return Err(Fault::gp(selector));
        }
        if !d.present() {
            return Err(Fault::ss(selector));
        }
        self.mark_descriptor(selector, d.low, 1)?;
        let mut segment = d.segment(selector);
        segment.attributes |= attr::ACCESSED;
        Ok(Some(segment))
    }

    /// Puts what `return_stack` has found into SS.
    pub(crate) fn put_return_stack(&mut self, stack: Option<Segment>, selector: u16) {
        match stack {
            Some(segment) => self.set_segment(SS, segment),
            None => self.load_null(SS, selector),
        }
    }

    /// IRET of 2, 4 or 8 bytes.
    pub(crate) fn interrupt_return(&mut self, size: usize) -> Res {
        let step = size as u64;
        let rip = self.peek_stack(0, size)?;
        let selector = self.peek_stack(step, size)? as u16;
        let flags = self.peek_stack(2 * step, size)?;
        let arithmetic = rflags::ARITH | rflags::TF | rflags::DF | rflags::NT;
        let wide = if size > 2 { rflags::RF | rflags::AC | rflags::ID } else { 0 };
        if !self.protected() {
            let segment = Segment { selector, base: u64::from(selector) << 4, ..self.segs[CS] };
            if rip > u64::from(segment.limit) {
                return Err(Fault::GP);
            }
            self.set_segment(CS, segment);
            self.move_sp(3 * step);
            self.rip = rip;
            self.nmi_blocked = false;
            self.change_flags(flags, arithmetic | wide | rflags::IF | rflags::IOPL, 0);
            return Ok(());
        }
        if self.rflags & rflags::NT != 0 {
            return Err(if self.lma() { Fault::GP } else { self.give_up("a return from a nested task") });
        }
        if !self.lma() && flags & rflags::VM != 0 && size == 4 && self.cpl == 0 {
            return Err(self.give_up("a return to virtual-8086 mode"));
        }
        let segment = self.return_code(selector)?;
        let level = (selector & 3) as u8;
        let to_long = self.lma() && segment.attributes & attr::L != 0;
        let inside = if to_long { is_canonical(rip) } else { rip <= u64::from(segment.limit) };
        if !inside {
            return Err(Fault::GP);
        }
        let mut may = arithmetic | wide;
        if self.cpl == 0 {
            may |= rflags::IOPL;
            if size > 2 {
                may |= rflags::VIF | rflags::VIP;
            }
        }
        if self.cpl <= self.iopl() {
            may |= rflags::IF;
        }
        let was_long = self.is_long();
        if level != self.cpl || was_long {
            let sp = self.peek_stack(3 * step, size)?;
            let ss = self.peek_stack(4 * step, size)? as u16;
            let stack = self.return_stack(ss, level, to_long)?;
            let outer = level != self.cpl;
            self.set_code(segment, level);
            self.put_return_stack(stack, ss);
            if to_long {
                self.regs[RSP] = if size == 8 { sp } else { sp & crate::state::mask(size) };
            } else {
                self.set_sp(sp);
            }
            if outer {
                self.drop_inner_segments();
            }
        } else {
            self.set_code(segment, level);
            self.move_sp(3 * step);
        }
        self.rip = rip;
        self.nmi_blocked = false;
        self.change_flags(flags, may, 0);
        self.check_device_writes();
        Ok(())
    }
}

/// The stack segment that a change of level in long mode leaves: null, with the new level.
fn null_stack(level: u8) -> Segment {
    Segment {
        selector: u16::from(level),
        base: 0,
        limit: 0xffff_ffff,
        attributes: attr::UNUSABLE | attr::DB | u32::from(level) << 5,
    }
}

/// The exceptions that make a double fault out of two (SDM volume 3, table 6-5).
fn is_contributory(v: u8) -> bool {
    matches!(v, vector::DE | vector::TS | vector::NP | vector::SS | vector::GP)
}
