//! Segment registers and descriptors (SDM volume 3, chapters 3 and 5).

use cardcage_accel::Segment;
use iced_x86::Register;

use crate::fault::{Fault, Res};
use crate::state::{CS, Cpu, DS, ES, FS, GS, SEG_BASE, SS, attr};

/// Index of a segment register.
pub(crate) fn index_of(r: Register) -> usize {
    match r {
        Register::ES => ES,
        Register::CS => CS,
        Register::SS => SS,
        Register::FS => FS,
        Register::GS => GS,
        _ => DS,
    }
}

/// A descriptor as it stands in a table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Raw {
    pub(crate) low: u64,
    /// Base bits 32 to 63 of a system descriptor in long mode.
    pub(crate) high: u64,
}

impl Raw {
    pub(crate) fn attributes(self) -> u32 {
        ((self.low >> 40) as u32) & 0xf0ff
    }
    pub(crate) fn dpl(self) -> u8 {
        ((self.low >> 45) & 3) as u8
    }
    pub(crate) fn present(self) -> bool {
        self.low >> 47 & 1 != 0
    }
    /// Type bits of a system descriptor.
    pub(crate) fn kind(self) -> u8 {
        ((self.low >> 40) & 15) as u8
    }
    pub(crate) fn is_segment(self) -> bool {
        self.attributes() & attr::S != 0
    }
    pub(crate) fn is_code(self) -> bool {
        self.is_segment() && self.attributes() & attr::CODE != 0
    }
    pub(crate) fn conforming(self) -> bool {
        self.attributes() & attr::EC != 0
    }
    pub(crate) fn base(self) -> u64 {
        (self.low >> 16 & 0xff_ffff) | (self.low >> 32 & 0xff00_0000) | self.high << 32
    }
    pub(crate) fn limit(self) -> u32 {
        let raw = (self.low & 0xffff) as u32 | (self.low >> 32 & 0xf_0000) as u32;
        if self.attributes() & attr::G != 0 { raw << 12 | 0xfff } else { raw }
    }
    /// The hidden part that goes with `selector`.
    pub(crate) fn segment(self, selector: u16) -> Segment {
        Segment { selector, base: self.base(), limit: self.limit(), attributes: self.attributes() }
    }
    /// Target offset of a call, interrupt or trap gate.
    pub(crate) fn gate_offset(self, wide: bool) -> u64 {
        let low = (self.low & 0xffff) | (self.low >> 32 & 0xffff_0000);
        if wide { low | self.high << 32 } else { low }
    }
    pub(crate) fn gate_selector(self) -> u16 {
        (self.low >> 16) as u16
    }
}

impl Cpu {
    /// Linear address of the descriptor that `selector` names; `None` if it is beyond the table.
    fn descriptor_address(&self, selector: u16, len: u64) -> Option<u64> {
        let (base, limit) = if selector & 4 == 0 {
            (self.gdtr.base, u64::from(self.gdtr.limit))
        } else if self.ldtr.attributes & (attr::P | attr::UNUSABLE) == attr::P {
            (self.ldtr.base, u64::from(self.ldtr.limit))
        } else {
            return None;
        };
        let offset = u64::from(selector & 0xfff8);
        (offset + len - 1 <= limit).then(|| base.wrapping_add(offset))
    }

    /// Reads the descriptor of `selector`; beyond the table, the fault is `fault(selector)`.
    pub(crate) fn descriptor(&mut self, selector: u16, fault: fn(u16) -> Fault) -> Res<Raw> {
        let at = self.descriptor_address(selector, 8).ok_or(fault(selector))?;
        Ok(Raw { low: self.read_system(at, 8)?, high: 0 })
    }

    /// Reads a system descriptor, 16 bytes in long mode.
    pub(crate) fn system_descriptor(&mut self, selector: u16, fault: fn(u16) -> Fault) -> Res<Raw> {
        let len = if self.lma() { 16 } else { 8 };
        let at = self.descriptor_address(selector, len).ok_or(fault(selector))?;
        let low = self.read_system(at, 8)?;
        let high = if len == 16 { self.read_system(at.wrapping_add(8), 8)? } else { 0 };
        Ok(Raw { low, high })
    }

    /// Sets bits of the type field of a descriptor in its table.
    pub(crate) fn mark_descriptor(&mut self, selector: u16, low: u64, bits: u64) -> Res {
        if low >> 40 & bits == bits {
            return Ok(());
        }
        let Some(at) = self.descriptor_address(selector, 8) else { return Ok(()) };
        let byte = (low >> 40 & 0xff) | bits;
        self.write_system(at.wrapping_add(5), 1, byte)
    }

    /// Loads ES, SS, DS, FS or GS with all checks.
    pub(crate) fn load_segment(&mut self, seg: usize, selector: u16) -> Res {
        if !self.protected() {
            let old = self.segs[seg];
            let attributes = if old.attributes & attr::P == 0 { 0x93 } else { old.attributes };
            self.set_segment(seg, Segment { selector, base: u64::from(selector) << 4, limit: old.limit, attributes });
            return Ok(());
        }
        let rpl = (selector & 3) as u8;
        if selector & 0xfffc == 0 {
            if seg == SS && !(self.is_long() && self.cpl != 3 && rpl == self.cpl) {
                return Err(Fault::GP);
            }
            self.load_null(seg, selector);
            return Ok(());
        }
        let d = self.descriptor(selector, Fault::gp)?;
        let t = d.attributes();
        if seg == SS {
            let writable = t & (attr::S | attr::CODE | attr::RW) == attr::S | attr::RW;
            if rpl != self.cpl || !writable || d.dpl() != self.cpl {
                return Err(Fault::gp(selector));
            }
            if !d.present() {
                return Err(Fault::ss(selector));
            }
        } else {
            let readable = t & attr::S != 0 && (t & attr::CODE == 0 || t & attr::RW != 0);
            let conforming = t & (attr::CODE | attr::EC) == attr::CODE | attr::EC;
            if !readable || (!conforming && (rpl > d.dpl() || self.cpl > d.dpl())) {
                return Err(Fault::gp(selector));
            }
            if !d.present() {
                return Err(Fault::np(selector));
            }
        }
        self.mark_descriptor(selector, d.low, 1)?;
        let mut segment = d.segment(selector);
        segment.attributes |= attr::ACCESSED;
        self.set_segment(seg, segment);
        Ok(())
    }

    /// Puts a null selector into a data segment register. As on AMD processors, base and limit stay in 64-bit mode.
    pub(crate) fn load_null(&mut self, seg: usize, selector: u16) {
        let old = self.segs[seg];
        let segment = if seg == SS {
            // SS keeps its privilege as an attribute even when null.
            Segment {
                selector,
                base: 0,
                limit: 0xffff_ffff,
                attributes: attr::UNUSABLE | attr::DB | u32::from(self.cpl) << 5,
            }
        } else {
            Segment { selector, base: 0, limit: 0, attributes: attr::UNUSABLE | old.attributes & attr::DB }
        };
        self.set_segment(seg, segment);
    }

    /// After a return to an outer level: data segments of higher privilege are taken away.
    pub(crate) fn drop_inner_segments(&mut self) {
        for seg in [ES, DS, FS, GS] {
            let t = self.segs[seg].attributes;
            let conforming = t & (attr::CODE | attr::EC) == attr::CODE | attr::EC;
            let dpl = (t >> 5 & 3) as u8;
            if t & attr::UNUSABLE == 0 && !conforming && dpl < self.cpl {
                self.load_null(seg, 0);
            }
        }
    }

    /// Sets the base of FS or GS without touching the rest.
    pub(crate) fn set_base(&mut self, seg: usize, base: u64) {
        self.segs[seg].base = base;
        self.regs[usize::from(SEG_BASE) + seg] = base;
    }

    /// Sets CS and CPL together.
    pub(crate) fn set_code(&mut self, segment: Segment, cpl: u8) {
        self.cpl = cpl & 3;
        self.set_segment(CS, segment);
    }

    /// Loads LDTR.
    pub(crate) fn load_ldtr(&mut self, selector: u16) -> Res {
        if selector & 0xfffc == 0 {
            self.ldtr = Segment { selector, base: 0, limit: 0, attributes: attr::UNUSABLE };
            return Ok(());
        }
        if selector & 4 != 0 {
            return Err(Fault::gp(selector));
        }
        let d = self.system_descriptor(selector, Fault::gp)?;
        if d.is_segment() || d.kind() != 2 {
            return Err(Fault::gp(selector));
        }
        if !d.present() {
            return Err(Fault::np(selector));
        }
        self.ldtr = d.segment(selector);
        Ok(())
    }

    /// Loads TR, and marks the TSS busy.
    pub(crate) fn load_tr(&mut self, selector: u16) -> Res {
        if selector & 0xfffc == 0 {
            return Err(Fault::GP);
        }
        if selector & 4 != 0 {
            return Err(Fault::gp(selector));
        }
        let d = self.system_descriptor(selector, Fault::gp)?;
        let available = d.kind() == 9 || (d.kind() == 1 && !self.lma());
        if d.is_segment() || !available {
            return Err(Fault::gp(selector));
        }
        if !d.present() {
            return Err(Fault::np(selector));
        }
        self.mark_descriptor(selector, d.low, 2)?;
        let mut segment = d.segment(selector);
        segment.attributes |= 2;
        self.tr = segment;
        Ok(())
    }
}
