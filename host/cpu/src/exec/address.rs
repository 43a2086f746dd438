//! Effective addresses: the sum that operations make themselves, and what comes before them where that is not enough.

use crate::op::{Op, Ret, next, stop};
use crate::state::{Cpu, TMP};

impl Cpu {
    /// Base plus scaled index plus displacement.
    #[inline(always)]
    pub(crate) fn ea(&self, op: &Op) -> u64 {
        self.reg(op.base).wrapping_add(self.reg(op.idx) << (op.scale & 3)).wrapping_add(op.disp as i64 as u64)
    }
}

/// `TMP` = a constant.
pub(crate) extern "C" fn constant(c: &mut Cpu, op: &Op) -> Ret {
    *c.reg_mut(TMP) = op.imm;
    next(c, op)
}

/// `TMP` = the effective address; a segment base is added by the operation that follows.
pub(crate) extern "C" fn sum(c: &mut Cpu, op: &Op) -> Ret {
    *c.reg_mut(TMP) = c.ea(op);
    next(c, op)
}

/// `TMP` = the effective address, cut to 32 bits (64-bit code with an address-size prefix).
pub(crate) extern "C" fn sum32(c: &mut Cpu, op: &Op) -> Ret {
    *c.reg_mut(TMP) = c.ea(op) & 0xffff_ffff;
    next(c, op)
}

/// What [`legacy`] finds in `aux`.
pub(crate) fn legacy_form(seg: usize, size: usize, write: bool, narrow: bool) -> u16 {
    (seg as u16 & 7) | (size as u16 & 0x3ff) << 3 | u16::from(write) << 14 | u16::from(narrow) << 15
}

/// `TMP` = the linear address of an operand outside 64-bit mode, after all checks of the segment.
pub(crate) extern "C" fn legacy(c: &mut Cpu, op: &Op) -> Ret {
    if legacy_address(c, op) { next(c, op) } else { stop() }
}

#[inline(never)]
fn legacy_address(c: &mut Cpu, op: &Op) -> bool {
    let cut = if op.aux & 0x8000 != 0 { 0xffff } else { 0xffff_ffff };
    let offset = c.ea(op) & cut;
    let seg = usize::from(op.aux & 7).min(5);
    match c.linear(seg, offset, usize::from(op.aux >> 3 & 0x3ff), op.aux & 0x4000 != 0) {
        Ok(a) => {
            *c.reg_mut(TMP) = a;
            true
        }
        Err(fault) => {
            c.note_fault(op, fault);
            false
        }
    }
}
