//! String instructions, with and without REP, and port I/O (SDM volume 2).
//!
//! REP forms work page by page where they can: MOVS and STOS copy and fill host memory directly while both operands
//! stay on pages that the TLB has. Registers are exact after every element or page, so a fault in the middle leaves
//! the instruction resumable. A REP that takes long is cut short after a number of elements and begun anew, so
//! interrupts are not kept waiting.
#![expect(unsafe_code, reason = "bulk copies between host addresses of guest RAM")]

use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};

use super::operands::{get, set_number};
use crate::exec::alu::CMP;
use crate::fault::{Fault, Res};
use crate::state::{Cpu, DS, ES, RAX, RCX, RDI, RDX, RSI, mask, rflags};

/// Elements that a REP instruction may do before the run loop looks up.
const BURST: u64 = 1 << 16;

struct Rep {
    size: usize,
    /// Width of the address registers.
    width: usize,
    segment: usize,
    rep: bool,
    back: bool,
}

impl Rep {
    fn new(c: &Cpu, i: &Instruction, size: usize) -> Rep {
        let kinds = [i.op0_kind(), i.op1_kind()];
        let width = if kinds.iter().any(|k| matches!(k, OpKind::MemorySegSI | OpKind::MemoryESDI)) {
            2
        } else if kinds.iter().any(|k| matches!(k, OpKind::MemorySegESI | OpKind::MemoryESEDI)) {
            4
        } else {
            8
        };
        let segment = match i.segment_prefix() {
            Register::None => DS,
            r => crate::segment::index_of(r),
        };
        Rep { size, width, segment, rep: i.has_rep_prefix() || i.has_repne_prefix(), back: c.rflags & rflags::DF != 0 }
    }

    /// Elements until the run loop looks up: one, if it has to look after each.
    fn burst(&self, c: &Cpu, most: u64) -> u64 {
        if c.mode & crate::state::mode::STEP != 0 { 1 } else { most }
    }

    fn count(&self, c: &Cpu) -> u64 {
        if self.rep { c.regs[RCX] & mask(self.width) } else { 1 }
    }

    fn source(&self, c: &mut Cpu) -> Res<u64> {
        let at = c.regs[RSI] & mask(self.width);
        c.linear(self.segment, at, self.size, false)
    }

    fn destination(&self, c: &mut Cpu, write: bool) -> Res<u64> {
        let at = c.regs[RDI] & mask(self.width);
        c.linear(ES, at, self.size, write)
    }

    fn step(&self, c: &mut Cpu, register: usize, elements: u64) {
        let d = elements.wrapping_mul(self.size as u64);
        let v = if self.back { c.regs[register].wrapping_sub(d) } else { c.regs[register].wrapping_add(d) };
        set_number(c, register, self.width, v);
    }

    fn done(&self, c: &mut Cpu, elements: u64) {
        if self.rep {
            let v = c.regs[RCX].wrapping_sub(elements);
            set_number(c, RCX, self.width, v);
        }
    }

    /// Elements from linear address `a` to the end of its page, and whether offsets stay within their width.
    fn run(&self, offset: u64, a: u64) -> u64 {
        if self.back {
            return 0;
        }
        let room = (0x1000 - (a & 0xfff)) / self.size as u64;
        let until_wrap = mask(self.width).wrapping_sub(offset & mask(self.width)) / self.size as u64;
        room.min(until_wrap)
    }
}

/// `None` if the instruction is not one of these.
pub(super) fn execute(c: &mut Cpu, i: &Instruction) -> Option<Res> {
    Some(match i.mnemonic() {
        M::Movsb => movs(c, i, 1),
        M::Movsw => movs(c, i, 2),
        M::Movsd if is_string(i) => movs(c, i, 4),
        M::Movsq => movs(c, i, 8),
        M::Stosb => stos(c, i, 1),
        M::Stosw => stos(c, i, 2),
        M::Stosd => stos(c, i, 4),
        M::Stosq => stos(c, i, 8),
        M::Lodsb => lods(c, i, 1),
        M::Lodsw => lods(c, i, 2),
        M::Lodsd => lods(c, i, 4),
        M::Lodsq => lods(c, i, 8),
        M::Scasb => compare(c, i, 1, true),
        M::Scasw => compare(c, i, 2, true),
        M::Scasd => compare(c, i, 4, true),
        M::Scasq => compare(c, i, 8, true),
        M::Cmpsb => compare(c, i, 1, false),
        M::Cmpsw => compare(c, i, 2, false),
        M::Cmpsd if is_string(i) => compare(c, i, 4, false),
        M::Cmpsq => compare(c, i, 8, false),
        M::Insb => ins(c, i, 1),
        M::Insw => ins(c, i, 2),
        M::Insd => ins(c, i, 4),
        M::Outsb => outs(c, i, 1),
        M::Outsw => outs(c, i, 2),
        M::Outsd => outs(c, i, 4),
        M::In => input(c, i),
        M::Out => output(c, i),
        _ => return None,
    })
}

/// MOVSD and CMPSD are names of SSE2 instructions, too.
fn is_string(i: &Instruction) -> bool {
    matches!(
        i.op0_kind(),
        OpKind::MemoryESDI
            | OpKind::MemoryESEDI
            | OpKind::MemoryESRDI
            | OpKind::MemorySegSI
            | OpKind::MemorySegESI
            | OpKind::MemorySegRSI
    )
}

/// The instruction is not done: it is begun anew after the run loop has looked up.
fn again(c: &mut Cpu, i: &Instruction) -> Res {
    c.rip = i.ip();
    Err(Fault::Restart)
}

fn movs(c: &mut Cpu, i: &Instruction, size: usize) -> Res {
    let r = Rep::new(c, i, size);
    let mut burst = r.burst(c, BURST);
    loop {
        let left = r.count(c);
        if left == 0 {
            return Ok(());
        }
        if burst == 0 {
            return again(c, i);
        }
        let from = r.source(c)?;
        // The load comes first: its fault counts where both operands have one.
        let to = r.destination(c, true).or_else(|fault| c.read_linear(from, size).and(Err(fault)))?;
        let n = left.min(burst).min(r.run(c.regs[RSI], from)).min(r.run(c.regs[RDI], to));
        let mut moved = 1;
        if n > 1 && copy(c, from, to, n as usize, size) {
            moved = n;
        } else {
            let v = c.read_linear(from, size)?;
            c.write_linear(to, size, v)?;
        }
        r.step(c, RSI, moved);
        r.step(c, RDI, moved);
        r.done(c, moved);
        if !r.rep {
            return Ok(());
        }
        burst -= moved;
    }
}

/// Copies elements within pages that the TLB has. False if it has not.
fn copy(c: &mut Cpu, from: u64, to: u64, count: usize, size: usize) -> bool {
    let (Some(source), Some(destination)) = (c.tlb.span(from, false), c.tlb.span(to, true)) else { return false };
    let bytes = count * size;
    let distance = (destination as usize).wrapping_sub(source as usize);
    // SAFETY: the caller stays on the page of each address, and the TLB has validated both pages. A copy onto the
    // source's own tail repeats a pattern and is done element by element.
    unsafe {
        if distance != 0 && distance < bytes {
            for n in 0..count {
                std::ptr::copy(source.add(n * size), destination.add(n * size), size);
            }
        } else {
            std::ptr::copy(source, destination, bytes);
        }
    }
    true
}

fn stos(c: &mut Cpu, i: &Instruction, size: usize) -> Res {
    let r = Rep::new(c, i, size);
    let v = c.regs[RAX];
    let mut burst = r.burst(c, BURST);
    loop {
        let left = r.count(c);
        if left == 0 {
            return Ok(());
        }
        if burst == 0 {
            return again(c, i);
        }
        let to = r.destination(c, true)?;
        let n = left.min(burst).min(r.run(c.regs[RDI], to));
        let mut moved = 1;
        if n > 1 && fill(c, to, n, size, v) {
            moved = n;
        } else {
            c.write_linear(to, size, v)?;
        }
        r.step(c, RDI, moved);
        r.done(c, moved);
        if !r.rep {
            return Ok(());
        }
        burst -= moved;
    }
}

/// Fills within a page that the TLB has. False if it has not.
fn fill(c: &mut Cpu, to: u64, n: u64, size: usize, v: u64) -> bool {
    let Some(p) = c.tlb.span(to, true) else { return false };
    let byte = v as u8;
    let uniform = (0..size).all(|k| (v >> (8 * k)) as u8 == byte);
    // SAFETY: the caller stays on the page, which the TLB has validated.
    unsafe {
        if uniform {
            std::ptr::write_bytes(p, byte, n as usize * size);
        } else {
            for k in 0..n as usize {
                let p = p.add(k * size);
                match size {
                    2 => p.cast::<u16>().write_unaligned(v as u16),
                    4 => p.cast::<u32>().write_unaligned(v as u32),
                    _ => p.cast::<u64>().write_unaligned(v),
                }
            }
        }
    }
    true
}

fn lods(c: &mut Cpu, i: &Instruction, size: usize) -> Res {
    let r = Rep::new(c, i, size);
    let mut burst = r.burst(c, BURST);
    loop {
        if r.count(c) == 0 {
            return Ok(());
        }
        if burst == 0 {
            return again(c, i);
        }
        let from = r.source(c)?;
        let v = c.read_linear(from, size)?;
        set_number(c, RAX, size, v);
        r.step(c, RSI, 1);
        r.done(c, 1);
        if !r.rep {
            return Ok(());
        }
        burst -= 1;
    }
}

/// SCAS and CMPS.
fn compare(c: &mut Cpu, i: &Instruction, size: usize, scan: bool) -> Res {
    let r = Rep::new(c, i, size);
    let until_equal = i.has_repne_prefix();
    let mut burst = r.burst(c, BURST);
    loop {
        if r.count(c) == 0 {
            return Ok(());
        }
        if burst == 0 {
            return again(c, i);
        }
        let x = if scan {
            c.regs[RAX] & mask(size)
        } else {
            let from = r.source(c)?;
            c.read_linear(from, size)?
        };
        let to = r.destination(c, false)?;
        let y = c.read_linear(to, size)?;
        super::integer::arithmetic(c, CMP, size, x, y);
        if !scan {
            r.step(c, RSI, 1);
        }
        r.step(c, RDI, 1);
        r.done(c, 1);
        if !r.rep || (x == y) == until_equal {
            return Ok(());
        }
        burst -= 1;
    }
}

impl Cpu {
    /// Whether the present privilege may use `size` ports from `port` (SDM volume 1, section 19.5).
    pub(super) fn check_io(&mut self, port: u16, size: usize) -> Res {
        if !self.protected() || self.cpl <= self.iopl() {
            return Ok(());
        }
        // Bits 8 to 11 say that this is a 32- or 64-bit TSS.
        if self.tr.attributes & 0x9 != 0x9 || self.tr.limit < 103 {
            return Err(Fault::GP);
        }
        let map = self.read_system(self.tr.base.wrapping_add(102), 2)?;
        let at = map + u64::from(port >> 3);
        if at + 1 > u64::from(self.tr.limit) {
            return Err(Fault::GP);
        }
        let bits = self.read_system(self.tr.base.wrapping_add(at), 2)? >> (port & 7);
        if bits & ((1 << size) - 1) != 0 { Err(Fault::GP) } else { Ok(()) }
    }

    pub(super) fn port_in(&mut self, port: u16, size: usize) -> u64 {
        self.leave_for_host();
        let v = u64::from(self.bus.port_read(port, size as u8)) & mask(size);
        self.back_from_host();
        self.check_io_breakpoints(port, size);
        v
    }

    pub(super) fn port_out(&mut self, port: u16, size: usize, v: u64) {
        self.leave_for_host();
        self.bus.port_write(port, size as u8, (v & mask(size)) as u32);
        self.back_from_host();
        self.check_io_breakpoints(port, size);
    }
}

fn ins(c: &mut Cpu, i: &Instruction, size: usize) -> Res {
    let r = Rep::new(c, i, size);
    let port = c.regs[RDX] as u16;
    c.check_io(port, size)?;
    let mut burst = r.burst(c, BURST / 16);
    loop {
        if r.count(c) == 0 {
            return Ok(());
        }
        if burst == 0 {
            return again(c, i);
        }
        let to = r.destination(c, true)?;
        c.probe_write(to, size)?;
        let v = c.port_in(port, size);
        c.write_linear(to, size, v)?;
        r.step(c, RDI, 1);
        r.done(c, 1);
        if !r.rep {
            return Ok(());
        }
        burst -= 1;
    }
}

fn outs(c: &mut Cpu, i: &Instruction, size: usize) -> Res {
    let r = Rep::new(c, i, size);
    let port = c.regs[RDX] as u16;
    c.check_io(port, size)?;
    let mut burst = r.burst(c, BURST / 16);
    loop {
        if r.count(c) == 0 {
            return Ok(());
        }
        if burst == 0 {
            return again(c, i);
        }
        let from = r.source(c)?;
        let v = c.read_linear(from, size)?;
        c.port_out(port, size, v);
        r.step(c, RSI, 1);
        r.done(c, 1);
        if !r.rep {
            return Ok(());
        }
        burst -= 1;
    }
}

fn port_of(c: &Cpu, i: &Instruction, n: u32) -> u16 {
    if i.op_kind(n) == OpKind::Register { c.regs[RDX] as u16 } else { (i.immediate(n) & 0xff) as u16 }
}

fn input(c: &mut Cpu, i: &Instruction) -> Res {
    let size = i.op0_register().size();
    let port = port_of(c, i, 1);
    c.check_io(port, size)?;
    c.check_device_writes();
    let v = c.port_in(port, size);
    set_number(c, RAX, size, v);
    Ok(())
}

fn output(c: &mut Cpu, i: &Instruction) -> Res {
    let size = i.op1_register().size();
    let port = port_of(c, i, 0);
    c.check_io(port, size)?;
    let v = get(c, i.op1_register());
    c.port_out(port, size, v);
    c.check_device_writes();
    Ok(())
}
