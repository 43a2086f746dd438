//! Breakpoints and single steps (SDM volume 3, chapter 17).
//!
//! While any breakpoint is enabled, code is executed one instruction at a time and pages with data breakpoints stay out
//! of the TLB, so that nothing costs anything while none is.

use crate::fault::{Fault, Res};
use crate::state::{CS, Cpu, cr4, rflags};

/// DR6 bits.
pub(crate) const DR6_BD: u64 = 1 << 13;
pub(crate) const DR6_BS: u64 = 1 << 14;
/// DR6 bits that always read as one.
pub(crate) const DR6_FIXED: u64 = 0xffff_0ff0;
/// DR7 bit: accesses to debug registers are #DB.
pub(crate) const DR7_GD: u64 = 1 << 13;
/// DR7 bit that always reads as one.
pub(crate) const DR7_FIXED: u64 = 0x400;

/// What a breakpoint waits for: the R/W field of DR7.
const EXECUTE: u64 = 0;
const WRITE: u64 = 1;
const IO: u64 = 2;
const READ_WRITE: u64 = 3;

impl Cpu {
    /// Whether DR7 enables any breakpoint.
    pub(crate) fn breakpoints_enabled(&self) -> bool {
        self.dr[5] & 0xff != 0
    }

    /// Number, kind, first address and length of the enabled breakpoints.
    fn enabled(&self) -> impl Iterator<Item = (usize, u64, u64, u64)> + '_ {
        let dr7 = self.dr[5];
        (0..4).filter(move |n| dr7 >> (2 * n) & 3 != 0).map(move |n| {
            let field = dr7 >> (16 + 4 * n);
            let len = [1, 2, 8, 4][(field >> 2 & 3) as usize];
            (n, field & 3, self.dr[n] & !(len - 1), len)
        })
    }

    /// Whether the page of `a` must stay out of the TLB.
    pub(crate) fn has_data_breakpoint(&self, a: u64) -> bool {
        self.breakpoints_enabled()
            && self.enabled().any(|(_, kind, at, _)| (kind == WRITE || kind == READ_WRITE) && (at ^ a) & !0xfff == 0)
    }

    /// Notes the data breakpoints that an access meets.
    pub(crate) fn check_data_breakpoints(&mut self, a: u64, size: usize, write: bool) {
        if !self.breakpoints_enabled() {
            return;
        }
        let mut met = 0;
        for (n, kind, at, len) in self.enabled() {
            let watches = kind == READ_WRITE || (kind == WRITE && write);
            if watches && a < at.saturating_add(len) && at < a.saturating_add(size as u64) {
                met |= 1 << n;
            }
        }
        self.breakpoints |= met;
    }

    /// Notes the I/O breakpoints that an access meets.
    pub(crate) fn check_io_breakpoints(&mut self, port: u16, size: usize) {
        if !self.breakpoints_enabled() || self.cr4 & cr4::DE == 0 {
            return;
        }
        let a = u64::from(port);
        let mut met = 0;
        for (n, kind, at, len) in self.enabled() {
            if kind == IO && a < at.saturating_add(len) && at < a + size as u64 {
                met |= 1 << n;
            }
        }
        self.breakpoints |= met;
    }

    /// The instruction breakpoints at the next instruction.
    pub(crate) fn code_breakpoints(&self) -> u64 {
        if !self.breakpoints_enabled() || self.rflags & rflags::RF != 0 {
            return 0;
        }
        let a = if self.is_long() { self.rip } else { self.segs[CS].base.wrapping_add(self.rip) & 0xffff_ffff };
        self.enabled().filter(|&(_, kind, at, _)| kind == EXECUTE && at == a).fold(0, |met, (n, ..)| met | 1 << n)
    }

    /// A debug register, by its number in MOV DR.
    pub(crate) fn read_dr(&mut self, n: usize) -> Res<u64> {
        let n = self.check_dr(n)?;
        Ok(self.dr[n])
    }

    pub(crate) fn write_dr(&mut self, n: usize, v: u64) -> Res {
        let n = self.check_dr(n)?;
        if n >= 4 && v >> 32 != 0 {
            return Err(Fault::GP);
        }
        self.dr[n] = match n {
            4 => v & 0xe00f | DR6_FIXED,
            5 => v & 0xffff_2bff | DR7_FIXED,
            _ => v,
        };
        // Pages with data breakpoints must leave the TLB.
        self.tlb.flush_all();
        self.look_up_soon();
        Ok(())
    }

    /// Index in `dr`; #UD and #DB as DR4, DR5 and DR7.GD demand.
    fn check_dr(&mut self, n: usize) -> Res<usize> {
        if self.cpl != 0 {
            return Err(Fault::GP);
        }
        if matches!(n, 4 | 5) && self.cr4 & cr4::DE != 0 || n > 7 {
            return Err(Fault::UD);
        }
        if self.dr[5] & DR7_GD != 0 {
            self.dr[4] |= DR6_BD;
            self.dr[5] &= !DR7_GD;
            return Err(Fault::Plain(crate::fault::vector::DB));
        }
        Ok(match n {
            0..=3 => n,
            4 | 6 => 4,
            _ => 5,
        })
    }
}
