//! The slow path of memory accesses: page walks, accesses across pages, memory-mapped I/O, pages that hold code.

use crate::fault::{Fault, Res};
use crate::op::{Op, flag};
use crate::paging::{Access, Mapping};
use crate::state::{Cpu, SS, attr, mask};
use crate::tlb;

/// Whether bits 47 to 63 are equal.
#[inline]
pub(crate) fn is_canonical(a: u64) -> bool {
    ((a as i64) << 16 >> 16) as u64 == a
}

/// Reads up to 8 bytes of RAM.
#[inline]
fn peek_any(p: *const u8, size: usize) -> u64 {
    match size {
        1 => tlb::peek::<1>(p),
        2 => tlb::peek::<2>(p),
        4 => tlb::peek::<4>(p),
        8 => tlb::peek::<8>(p),
        _ => (0..size).fold(0, |v, i| v | tlb::peek::<1>(p.wrapping_add(i)) << (8 * (i & 7))),
    }
}

/// Writes up to 8 bytes of RAM.
#[inline]
fn poke_any(p: *mut u8, size: usize, v: u64) {
    match size {
        1 => tlb::poke::<1>(p, v),
        2 => tlb::poke::<2>(p, v),
        4 => tlb::poke::<4>(p, v),
        8 => tlb::poke::<8>(p, v),
        _ => (0..size).for_each(|i| tlb::poke::<1>(p.wrapping_add(i), v >> (8 * (i & 7)))),
    }
}

impl Cpu {
    pub(crate) fn is_user(&self) -> bool {
        self.cpl == 3
    }

    /// Notes a fault of `op` for the run loop.
    #[cold]
    pub(crate) fn note_fault(&mut self, op: &Op, fault: Fault) {
        self.fault = Some(fault);
        self.fault_op = op;
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn load_slowly(&mut self, op: &Op, a: u64, size: usize) -> Option<u64> {
        let result = self.check_linear(a, size, op.flags & flag::STACK != 0).and_then(|()| self.read_linear(a, size));
        result.map_err(|fault| self.note_fault(op, fault)).ok()
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn store_slowly(&mut self, op: &Op, a: u64, size: usize, v: u64) -> bool {
        let result =
            self.check_linear(a, size, op.flags & flag::STACK != 0).and_then(|()| self.write_linear(a, size, v));
        result.map_err(|fault| self.note_fault(op, fault)).is_ok()
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn load_for_store_slowly(&mut self, op: &Op, a: u64, size: usize) -> Option<u64> {
        let result = self.check_linear(a, size, op.flags & flag::STACK != 0).and_then(|()| {
            self.probe_write(a, size)?;
            self.read_linear(a, size)
        });
        result.map_err(|fault| self.note_fault(op, fault)).ok()
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn load16_slowly(&mut self, op: &Op, a: u64) -> Option<[u64; 2]> {
        let result = self.check_linear(a, 16, op.flags & flag::STACK != 0).and_then(|()| self.read_linear16(a));
        result.map_err(|fault| self.note_fault(op, fault)).ok()
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn store16_slowly(&mut self, op: &Op, a: u64, v: [u64; 2]) -> bool {
        let result = self.check_linear(a, 16, op.flags & flag::STACK != 0).and_then(|()| self.write_linear16(a, v));
        result.map_err(|fault| self.note_fault(op, fault)).is_ok()
    }

    /// In 64-bit mode, all bytes must be canonical.
    pub(crate) fn check_linear(&self, a: u64, size: usize, stack: bool) -> Res {
        if self.is_long() && !(is_canonical(a) && is_canonical(a.wrapping_add(size as u64 - 1))) {
            return Err(if stack { Fault::SS } else { Fault::GP });
        }
        Ok(())
    }

    /// Linear addresses outside 64-bit mode have 32 bits.
    #[inline]
    pub(crate) fn wrap(&self, a: u64) -> u64 {
        if self.is_long() { a } else { a & 0xffff_ffff }
    }

    /// The linear address of `size` bytes at `offset` in a segment, after the segment's own checks.
    pub(crate) fn linear(&self, seg: usize, offset: u64, size: usize, write: bool) -> Res<u64> {
        let s = &self.segs[seg];
        let fault = if seg == SS { Fault::SS } else { Fault::GP };
        if self.is_long() {
            let a = if seg >= crate::state::FS { offset.wrapping_add(s.base) } else { offset };
            self.check_linear(a, size, seg == SS)?;
            return Ok(a);
        }
        if self.protected() {
            let t = s.attributes;
            let unreadable = t & attr::CODE != 0 && t & attr::RW == 0 && !write;
            let unwritable = write && (t & attr::CODE != 0 || t & attr::RW == 0);
            if t & attr::UNUSABLE != 0 || t & attr::P == 0 || unreadable || unwritable {
                return Err(fault);
            }
        }
        let last = offset.wrapping_add(size as u64 - 1);
        let limit = u64::from(s.limit);
        let inside = if s.attributes & (attr::CODE | attr::EC) == attr::EC && self.protected() {
            let top = if s.attributes & attr::DB != 0 { 0xffff_ffff } else { 0xffff };
            offset > limit && last <= top && last >= offset
        } else {
            last <= limit && last >= offset
        };
        if inside { Ok(s.base.wrapping_add(offset) & 0xffff_ffff) } else { Err(fault) }
    }

    /// Reads up to 8 bytes at a linear address with the present privilege.
    pub(crate) fn read_linear(&mut self, a: u64, size: usize) -> Res<u64> {
        self.read_as(a, size, self.is_user())
    }

    /// Reads with supervisor privilege, as for descriptor tables.
    pub(crate) fn read_system(&mut self, a: u64, size: usize) -> Res<u64> {
        self.read_as(self.wrap_system(a), size, false)
    }

    /// Writes with supervisor privilege.
    pub(crate) fn write_system(&mut self, a: u64, size: usize, v: u64) -> Res {
        self.write_as(self.wrap_system(a), size, v, false)
    }

    fn wrap_system(&self, a: u64) -> u64 {
        if self.lma() { a } else { a & 0xffff_ffff }
    }

    pub(crate) fn read_as(&mut self, a: u64, size: usize, user: bool) -> Res<u64> {
        if let Some(p) = self.tlb.place(user, a, size, false) {
            return Ok(peek_any(p, size));
        }
        let first = (0x1000 - (a & 0xfff)) as usize;
        if first >= size {
            let m = self.map(a, Access::Read, user)?;
            self.check_data_breakpoints(a, size, false);
            return Ok(self.read_phys(m.phys, size));
        }
        let next = self.wrap(a.wrapping_add(first as u64));
        let low = self.map(a, Access::Read, user)?;
        let high = self.map(next, Access::Read, user)?;
        self.check_data_breakpoints(a, size, false);
        let mut v = 0;
        for i in 0..size {
            let phys = if i < first { low.phys + i as u64 } else { high.phys + (i - first) as u64 };
            v |= self.read_phys(phys, 1) << (8 * i);
        }
        Ok(v)
    }

    /// Writes up to 8 bytes at a linear address with the present privilege: all or nothing.
    pub(crate) fn write_linear(&mut self, a: u64, size: usize, v: u64) -> Res {
        self.write_as(a, size, v, self.is_user())
    }

    pub(crate) fn write_as(&mut self, a: u64, size: usize, v: u64, user: bool) -> Res {
        if let Some(p) = self.tlb.place(user, a, size, true) {
            poke_any(p, size, v);
            return Ok(());
        }
        let first = (0x1000 - (a & 0xfff)) as usize;
        if first >= size {
            let m = self.map(a, Access::Write, user)?;
            self.check_data_breakpoints(a, size, true);
            self.write_phys(m.phys, size, v);
            return Ok(());
        }
        let next = self.wrap(a.wrapping_add(first as u64));
        let low = self.map(a, Access::Write, user)?;
        let high = self.map(next, Access::Write, user)?;
        self.check_data_breakpoints(a, size, true);
        for i in 0..size {
            let phys = if i < first { low.phys + i as u64 } else { high.phys + (i - first) as u64 };
            self.write_phys(phys, 1, v >> (8 * i));
        }
        Ok(())
    }

    /// Checks that `size` bytes can be written, without writing them.
    pub(crate) fn probe_write(&mut self, a: u64, size: usize) -> Res {
        let user = self.is_user();
        if self.tlb.place(user, a, size, true).is_some() {
            return Ok(());
        }
        self.map(a, Access::Write, user)?;
        let last = self.wrap(a.wrapping_add(size as u64 - 1));
        if (a ^ last) & !0xfff != 0 {
            self.map(last & !0xfff, Access::Write, user)?;
        }
        Ok(())
    }

    /// Checks that `size` bytes can be read, without reading them.
    pub(crate) fn probe_read(&mut self, a: u64, size: usize) -> Res {
        let user = self.is_user();
        if self.tlb.place(user, a, size, false).is_some() {
            return Ok(());
        }
        self.map(a, Access::Read, user)?;
        let last = self.wrap(a.wrapping_add(size as u64 - 1));
        if (a ^ last) & !0xfff != 0 {
            self.map(last & !0xfff, Access::Read, user)?;
        }
        Ok(())
    }

    pub(crate) fn read_linear16(&mut self, a: u64) -> Res<[u64; 2]> {
        self.probe_read(a, 16)?;
        Ok([self.read_linear(a, 8)?, self.read_linear(self.wrap(a.wrapping_add(8)), 8)?])
    }

    pub(crate) fn write_linear16(&mut self, a: u64, v: [u64; 2]) -> Res {
        self.probe_write(a, 16)?;
        self.write_linear(a, 8, v[0])?;
        self.write_linear(self.wrap(a.wrapping_add(8)), 8, v[1])
    }

    /// Reads any number of bytes: nothing is read if a page is missing.
    pub(crate) fn read_bytes(&mut self, a: u64, buf: &mut [u8]) -> Res {
        if let Some(last) = buf.len().checked_sub(1) {
            self.check_linear(a, buf.len(), false)?;
            self.probe_read(a, last + 1)?;
        }
        for (i, byte) in buf.iter_mut().enumerate() {
            *byte = self.read_linear(self.wrap(a.wrapping_add(i as u64)), 1)? as u8;
        }
        Ok(())
    }

    /// Writes up to a page of bytes: all or nothing.
    pub(crate) fn write_bytes(&mut self, a: u64, buf: &[u8]) -> Res {
        if let Some(last) = buf.len().checked_sub(1) {
            self.check_linear(a, buf.len(), false)?;
            self.probe_write(a, last + 1)?;
        }
        for (i, byte) in buf.iter().enumerate() {
            self.write_linear(self.wrap(a.wrapping_add(i as u64)), 1, u64::from(*byte))?;
        }
        Ok(())
    }

    /// Translates, and takes the page into the TLB if it is RAM.
    fn map(&mut self, a: u64, access: Access, user: bool) -> Res<Mapping> {
        let m = self.translate(a, access, user)?;
        let page = m.phys & !0xfff;
        if let Some(host) = self.ram.host_address(page, 0x1000)
            && !self.apic_page(page)
        {
            let plain = !self.has_data_breakpoint(a);
            let writable = m.writable && plain && !self.ram.is_watched(page);
            self.tlb.fill(user, a, host as u64, writable, plain, m.global);
        }
        Ok(m)
    }

    fn apic_page(&self, page: u64) -> bool {
        // Bit 11 enables, bit 10 means x2APIC mode, which has no page.
        let base = self.apic_base;
        base & 0xc00 == 0x800 && base & 0x000f_ffff_ffff_f000 == page
    }

    /// Reads from RAM, the local APIC or the bus. All bytes are on one page.
    pub(crate) fn read_phys(&mut self, phys: u64, size: usize) -> u64 {
        if self.apic_page(phys & !0xfff) {
            let v = u64::from(self.apic.mmio_read((phys & 0xffc) as u32));
            return (v >> (8 * (phys & 3))) & mask(size);
        }
        match self.ram.host_address(phys, size as u64) {
            Some(p) => peek_any(p, size),
            None => self.read_bus(phys, size),
        }
    }

    fn read_bus(&mut self, phys: u64, size: usize) -> u64 {
        self.leave_for_host();
        let v = match size {
            1 | 2 | 4 | 8 => self.bus.memory_read(phys, size as u8),
            _ => (0..size).fold(0, |v, i| v | (self.bus.memory_read(phys + i as u64, 1) & 0xff) << (8 * (i & 7))),
        };
        self.back_from_host();
        v & mask(size)
    }

    /// Writes to RAM, the local APIC or the bus. All bytes are on one page.
    pub(crate) fn write_phys(&mut self, phys: u64, size: usize, v: u64) {
        if self.apic_page(phys & !0xfff) {
            self.apic.mmio_write((phys & 0xffc) as u32, v as u32);
            self.attention = true;
            self.look_up_soon();
            return;
        }
        match self.ram.host_address(phys, size as u64) {
            Some(p) => {
                poke_any(p, size, v);
                self.note_store(phys, size as u64);
            }
            None => {
                self.leave_for_host();
                match size {
                    1 | 2 | 4 | 8 => self.bus.memory_write(phys, size as u8, v & mask(size)),
                    _ => (0..size).for_each(|i| self.bus.memory_write(phys + i as u64, 1, (v >> (8 * (i & 7))) & 0xff)),
                }
                self.back_from_host();
            }
        }
    }

    /// Makes the run loop look at pending events after the present block.
    pub(crate) fn look_up_soon(&mut self) {
        self.look_up = true;
        if self.budget > 0 {
            // What is taken from the budget here was not executed.
            self.instructions = self.instructions.wrapping_sub(self.budget as u64);
            self.budget = 0;
        }
    }
}
