//! From linear to guest-physical addresses (SDM volume 3, chapter 4).
#![expect(unsafe_code, reason = "page-table entries are read and updated in guest RAM, atomically")]

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::cpuid::PHYSICAL_BITS;
use crate::fault::{Fault, Res};
use crate::state::{Cpu, cr0, cr4, efer};

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 0x20;
const D: u64 = 0x40;
const PS: u64 = 0x80;
const GLOBAL: u64 = 0x100;
const NX: u64 = 1 << 63;
const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// Physical address bits that do not exist.
const RESERVED: u64 = 0x000f_ffff_ffff_f000 & !((1 << PHYSICAL_BITS) - 1);

/// What an access wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    Fetch,
}

/// Where a linear address leads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mapping {
    pub(crate) phys: u64,
    pub(crate) global: bool,
    /// A store of the same class would need nothing more.
    pub(crate) writable: bool,
    /// Log2 of the size of the page.
    pub(crate) shift: u32,
}

struct Walk {
    lin: u64,
    access: Access,
    user: bool,
}

impl Cpu {
    /// Translates `lin` for an access of the given class; sets accessed and dirty bits. The fault is #PF.
    pub(crate) fn translate(&mut self, lin: u64, access: Access, user: bool) -> Res<Mapping> {
        if self.cr0 & cr0::PG == 0 {
            return Ok(Mapping { phys: lin & 0xffff_ffff, global: false, writable: true, shift: 12 });
        }
        let walk = Walk { lin, access, user };
        let result = if self.cr4 & cr4::PAE == 0 {
            self.walk_32(&walk)
        } else if self.lma() {
            self.walk_levels(&walk, self.cr3 & FRAME, 4)
        } else {
            let entry = self.pdpte[(lin >> 30) as usize & 3];
            if entry & P == 0 { Err(0) } else { self.walk_levels(&walk, entry & FRAME, 2) }
        };
        match result {
            Ok(mapping) => {
                if mapping.shift > 12 {
                    self.code_tlb.note_large(lin, mapping.shift);
                }
                Ok(mapping)
            }
            Err(cause) => Err(self.page_fault(&walk, cause)),
        }
    }

    fn page_fault(&mut self, walk: &Walk, cause: u32) -> Fault {
        self.fault_address = walk.lin;
        let mut code = cause;
        if walk.access == Access::Write {
            code |= 2;
        }
        if walk.user {
            code |= 4;
        }
        if walk.access == Access::Fetch && self.efer & efer::NXE != 0 && self.cr4 & cr4::PAE != 0 {
            code |= 0x10;
        }
        Fault::Page(code)
    }

    /// PAE and 4-level tables, from `level` (1 is the page table) down. Errors are the P and RSVD bits of the code.
    fn walk_levels(&mut self, walk: &Walk, root: u64, level: u32) -> Result<Mapping, u32> {
        let nxe = self.efer & efer::NXE != 0;
        let long = self.lma();
        let mut table = root;
        let mut level = level;
        let (mut may_write, mut may_user, mut no_execute) = (true, true, false);
        loop {
            let index = (walk.lin >> (12 + 9 * (level - 1))) & 511;
            let at = table + index * 8;
            let mut entry = self.read_entry(at);
            if entry & P == 0 {
                return Err(0);
            }
            let large = entry & PS != 0 && (level == 2 || level == 3);
            let mut reserved = RESERVED;
            if !nxe {
                reserved |= NX;
            }
            if !long {
                reserved |= 0x7ff0_0000_0000_0000;
            }
            if level == 4 {
                reserved |= PS;
            }
            if large {
                reserved |= (1 << (12 + 9 * (level - 1))) - 0x2000;
            }
            if entry & reserved != 0 {
                return Err(9);
            }
            may_write &= entry & W != 0;
            may_user &= entry & U != 0;
            no_execute |= entry & NX != 0;
            if !large && level > 1 {
                if entry & A == 0 {
                    self.mark_entry(at, entry, A);
                }
                table = entry & FRAME;
                level -= 1;
                continue;
            }
            let writable = self.check(walk, may_write, may_user, no_execute)?;
            let want = if walk.access == Access::Write { A | D } else { A };
            if entry & want != want {
                entry = self.mark_entry(at, entry, want);
            }
            let offset = walk.lin & ((1 << (12 + 9 * (level - 1))) - 1);
            let frame = entry & FRAME & !((1 << (12 + 9 * (level - 1))) - 1);
            return Ok(Mapping {
                phys: frame | offset,
                global: entry & GLOBAL != 0 && self.cr4 & cr4::PGE != 0,
                writable: writable && entry & D != 0,
                shift: 12 + 9 * (level - 1),
            });
        }
    }

    /// Two-level tables of 32-bit entries.
    fn walk_32(&mut self, walk: &Walk) -> Result<Mapping, u32> {
        let at = (self.cr3 & 0xffff_f000) + ((walk.lin >> 22) & 1023) * 4;
        let pde = u64::from(self.read_entry_32(at));
        if pde & P == 0 {
            return Err(0);
        }
        let (mut may_write, mut may_user) = (pde & W != 0, pde & U != 0);
        let large = pde & PS != 0 && self.cr4 & cr4::PSE != 0;
        let (at, entry) = if large {
            // PSE-36: bits 13 to 20 are bits 32 to 39 of the address.
            if pde & 0x20_0000 != 0 {
                return Err(9);
            }
            (at, pde)
        } else {
            if pde & A == 0 {
                self.mark_entry_32(at, pde as u32, A as u32);
            }
            let at = (pde & 0xffff_f000) + ((walk.lin >> 12) & 1023) * 4;
            let pte = u64::from(self.read_entry_32(at));
            if pte & P == 0 {
                return Err(0);
            }
            may_write &= pte & W != 0;
            may_user &= pte & U != 0;
            (at, pte)
        };
        let writable = self.check(walk, may_write, may_user, false)?;
        let want = if walk.access == Access::Write { A | D } else { A };
        let mut marked = entry;
        if entry & want != want {
            self.mark_entry_32(at, entry as u32, want as u32);
            marked |= want;
        }
        let phys = if large {
            (entry & 0xffc0_0000) | ((entry >> 13) & 0xff) << 32 | (walk.lin & 0x3f_ffff)
        } else {
            (entry & 0xffff_f000) | (walk.lin & 0xfff)
        };
        Ok(Mapping {
            phys,
            global: entry & GLOBAL != 0 && self.cr4 & cr4::PGE != 0,
            writable: writable && marked & D != 0,
            shift: if large { 22 } else { 12 },
        })
    }

    /// Whether the rights suffice; if so, whether a store of the same class would pass too.
    fn check(&self, walk: &Walk, may_write: bool, may_user: bool, no_execute: bool) -> Result<bool, u32> {
        let writable = may_write || (!walk.user && self.cr0 & cr0::WP == 0);
        let denied = (walk.user && !may_user)
            || (walk.access == Access::Write && !writable)
            || (walk.access == Access::Fetch && no_execute);
        if denied { Err(1) } else { Ok(writable) }
    }

    fn entry_host<T>(&self, at: u64) -> Option<*mut T> {
        self.ram.host_address(at, size_of::<T>() as u64).map(|p| p.cast())
    }

    fn read_entry(&self, at: u64) -> u64 {
        match self.entry_host::<u64>(at) {
            // SAFETY: eight mapped bytes, aligned because tables and indices are.
            Some(p) => unsafe { AtomicU64::from_ptr(p) }.load(Ordering::Relaxed),
            None => self.bus.memory_read(at, 8),
        }
    }

    fn read_entry_32(&self, at: u64) -> u32 {
        match self.entry_host::<u32>(at) {
            // SAFETY: four mapped bytes, aligned because tables and indices are.
            Some(p) => unsafe { AtomicU32::from_ptr(p) }.load(Ordering::Relaxed),
            None => self.bus.memory_read(at, 4) as u32,
        }
    }

    /// Sets bits of an entry in RAM; returns the entry with them.
    fn mark_entry(&mut self, at: u64, entry: u64, bits: u64) -> u64 {
        if let Some(p) = self.entry_host::<u64>(at) {
            // SAFETY: as in `read_entry`.
            unsafe { AtomicU64::from_ptr(p) }.fetch_or(bits, Ordering::SeqCst);
            self.note_store(at, 8);
        }
        entry | bits
    }

    fn mark_entry_32(&mut self, at: u64, _entry: u32, bits: u32) {
        if let Some(p) = self.entry_host::<u32>(at) {
            // SAFETY: as in `read_entry_32`.
            unsafe { AtomicU32::from_ptr(p) }.fetch_or(bits, Ordering::SeqCst);
            self.note_store(at, 4);
        }
    }

    /// Loads the four PDPTEs of PAE paging. #GP if one has reserved bits.
    pub(crate) fn load_pdptes(&mut self, cr3: u64) -> Res {
        let mut entries = [0; 4];
        for (i, entry) in entries.iter_mut().enumerate() {
            *entry = self.read_entry((cr3 & 0xffff_ffe0) + 8 * i as u64);
            if *entry & P != 0 && *entry & (0xfff0_0000_0000_01e6 | RESERVED) != 0 {
                return Err(Fault::GP);
            }
        }
        self.pdpte = entries;
        Ok(())
    }
}
