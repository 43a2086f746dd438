//! Two instructions as one operation: CMP, TEST or an operation on a register with the conditional jump that follows; a
//! copy of a register with an operation on the copy.
//!
//! Where the first of the two can be at fault, it is a comparison, which has changed nothing by then.

use super::alu::{ADD, AND, DEC, INC, OR, SUB, XOR, alu};
use super::shift::{ROL, ROR, SAR, SHL, SHR, shift};
use super::{by_cc, by_size, fast, get};
use crate::flags::{compare, logical};
use crate::op::{Handler, Op, Ret, follow, next};
use crate::state::Cpu;

#[inline(always)]
fn branch<const CC: u8, const TEST: bool, const SZ: usize>(c: &mut Cpu, o: &Op, x: u64, y: u64) -> Ret {
    let taken = if TEST {
        let r = x & y;
        c.flags_logic::<SZ>(r);
        logical::<CC, SZ>(r)
    } else {
        c.flags_sub::<SZ>(x, y, x.wrapping_sub(y));
        compare::<CC, SZ>(x, y)
    };
    if taken { follow(c, o, 1) } else { follow(c, o, 0) }
}

extern "C" fn rr<const CC: u8, const TEST: bool, const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
    let (x, y) = (c.get::<SZ>(o.a), c.get::<SZ>(o.b));
    branch::<CC, TEST, SZ>(c, o, x, y)
}

extern "C" fn ri<const CC: u8, const TEST: bool, const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
    let x = c.get::<SZ>(o.a);
    branch::<CC, TEST, SZ>(c, o, x, o.imm)
}

extern "C" fn mi<const CC: u8, const TEST: bool, const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
    let x = fast!(c.load_fast::<SZ>(c.ea(o)), mi_slowly::<CC, TEST, SZ>(c, o));
    branch::<CC, TEST, SZ>(c, o, x, o.imm)
}

/// The same where the TLB does not have the page.
#[cold]
#[inline(never)]
extern "C" fn mi_slowly<const CC: u8, const TEST: bool, const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
    let x = get!(c.load::<SZ>(o, c.ea(o)));
    branch::<CC, TEST, SZ>(c, o, x, o.imm)
}

extern "C" fn rm<const CC: u8, const TEST: bool, const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
    let y = fast!(c.load_fast::<SZ>(c.ea(o)), rm_slowly::<CC, TEST, SZ>(c, o));
    let x = c.get::<SZ>(o.a);
    branch::<CC, TEST, SZ>(c, o, x, y)
}

/// The same where the TLB does not have the page.
#[cold]
#[inline(never)]
extern "C" fn rm_slowly<const CC: u8, const TEST: bool, const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
    let y = get!(c.load::<SZ>(o, c.ea(o)));
    let x = c.get::<SZ>(o.a);
    branch::<CC, TEST, SZ>(c, o, x, y)
}

extern "C" fn mr<const CC: u8, const TEST: bool, const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
    let x = fast!(c.load_fast::<SZ>(c.ea(o)), mr_slowly::<CC, TEST, SZ>(c, o));
    let y = c.get::<SZ>(o.a);
    branch::<CC, TEST, SZ>(c, o, x, y)
}

/// The same where the TLB does not have the page.
#[cold]
#[inline(never)]
extern "C" fn mr_slowly<const CC: u8, const TEST: bool, const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
    let x = get!(c.load::<SZ>(o, c.ea(o)));
    let y = c.get::<SZ>(o.a);
    branch::<CC, TEST, SZ>(c, o, x, y)
}

/// The handler of a comparison with its jump; links: fall-through, then target.
pub(crate) fn pick(test: bool, cc: u8, size: usize, form: super::alu::Form) -> Handler {
    use super::alu::Form;
    macro_rules! sizes {
        ($f:ident, $t:expr, $cc:expr) => {
            by_size!(size, $f[$cc, $t ;])
        };
    }
    match (form, test) {
        (Form::RegReg, false) => by_cc!(cc, sizes!(rr, false,)),
        (Form::RegReg, true) => by_cc!(cc, sizes!(rr, true,)),
        (Form::RegImm, false) => by_cc!(cc, sizes!(ri, false,)),
        (Form::RegImm, true) => by_cc!(cc, sizes!(ri, true,)),
        (Form::MemImm, false) => by_cc!(cc, sizes!(mi, false,)),
        (Form::MemImm, true) => by_cc!(cc, sizes!(mi, true,)),
        (Form::RegMem, false) => by_cc!(cc, sizes!(rm, false,)),
        (Form::MemReg, false) => by_cc!(cc, sizes!(mr, false,)),
        (_, true) => by_cc!(cc, sizes!(mr, true,)),
    }
}

/// An operation on a register, and a jump by the flags it sets.
extern "C" fn update<const CC: u8, const K: u8, const IMM: bool, const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
    let y = if IMM { o.imm } else { c.get::<SZ>(o.b) };
    let v = alu::<K, SZ, true>(c, c.get::<SZ>(o.a), y);
    c.set::<SZ>(o.a, v);
    if c.cond::<CC>() { follow(c, o, 1) } else { follow(c, o, 0) }
}

/// The handler of an operation on a register with its jump, if there is one; links: fall-through, then target.
pub(crate) fn pick_update(kind: u8, cc: u8, size: usize, immediate: bool) -> Option<Handler> {
    macro_rules! one {
        ($k:expr, $imm:expr, $sz:expr, $cc:expr) => {
            update::<$cc, $k, $imm, $sz> as Handler
        };
    }
    macro_rules! kind {
        ($k:expr) => {
            match (size, immediate) {
                (8, true) => by_cc!(cc, one!($k, true, 8,)),
                (8, false) => by_cc!(cc, one!($k, false, 8,)),
                (_, true) => by_cc!(cc, one!($k, true, 4,)),
                (_, false) => by_cc!(cc, one!($k, false, 4,)),
            }
        };
    }
    if size < 4 {
        return None;
    }
    Some(match kind {
        ADD => kind!(ADD),
        OR => kind!(OR),
        AND => kind!(AND),
        SUB => kind!(SUB),
        INC => kind!(INC),
        DEC => kind!(DEC),
        _ => return None,
    })
}

/// `a` = `b` with `imm` or the register in `base`.
extern "C" fn three<const K: u8, const IMM: bool, const SZ: usize, const FL: bool>(c: &mut Cpu, o: &Op) -> Ret {
    let y = if IMM { o.imm } else { c.reg(o.base) };
    let v = alu::<K, SZ, FL>(c, c.reg(o.b), y);
    c.set::<SZ>(o.a, v);
    next(c, o)
}

/// `a` = `b` shifted by `imm`.
extern "C" fn three_shift<const K: u8, const SZ: usize, const FL: bool>(c: &mut Cpu, o: &Op) -> Ret {
    let v = shift::<K, SZ, FL>(c, c.reg(o.b), o.imm as u32 & 63);
    c.set::<SZ>(o.a, v);
    next(c, o)
}

/// The handler of a copy with an operation on the copy, if there is one, for 4 and 8 bytes.
pub(crate) fn pick_three(kind: u8, size: usize, flags: bool, immediate: bool) -> Option<Handler> {
    macro_rules! kind {
        ($k:expr) => {
            match (immediate, size, flags) {
                (true, 8, true) => three::<$k, true, 8, true> as Handler,
                (true, 8, false) => three::<$k, true, 8, false>,
                (true, _, true) => three::<$k, true, 4, true>,
                (true, _, false) => three::<$k, true, 4, false>,
                (false, 8, true) => three::<$k, false, 8, true>,
                (false, 8, false) => three::<$k, false, 8, false>,
                (false, _, true) => three::<$k, false, 4, true>,
                (false, _, false) => three::<$k, false, 4, false>,
            }
        };
    }
    Some(match kind {
        ADD => kind!(ADD),
        OR => kind!(OR),
        AND => kind!(AND),
        SUB => kind!(SUB),
        XOR => kind!(XOR),
        _ => return None,
    })
}

/// The same for a shift by an immediate.
pub(crate) fn pick_three_shift(kind: Option<u8>, size: usize, flags: bool) -> Option<Handler> {
    macro_rules! kind {
        ($k:expr) => {
            match (size, flags) {
                (8, true) => three_shift::<$k, 8, true> as Handler,
                (8, false) => three_shift::<$k, 8, false>,
                (_, true) => three_shift::<$k, 4, true>,
                (_, false) => three_shift::<$k, 4, false>,
            }
        };
    }
    Some(match kind? {
        SHL => kind!(SHL),
        SHR => kind!(SHR),
        SAR => kind!(SAR),
        ROL => kind!(ROL),
        ROR => kind!(ROR),
        _ => return None,
    })
}
