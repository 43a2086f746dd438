//! CMP and TEST together with the conditional jump that follows: one operation instead of two.

use super::{by_cc, by_size, fast, get};
use crate::flags::{compare, logical};
use crate::op::{Handler, Op, Ret, follow};
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
