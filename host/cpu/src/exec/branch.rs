//! Near jumps, calls and returns in 64-bit mode; direct jumps in all modes.

use super::{by_cc, check, fast, get};
use crate::fault::Fault;
use crate::memory::is_canonical;
use crate::op::{Handler, Op, Ret, follow, jump, next};
use crate::state::{Cpu, RSP};

/// Whether the target of an indirect branch is canonical; notes #GP at the branch if not.
#[inline(always)]
fn check_target(c: &mut Cpu, o: &Op, target: u64) -> bool {
    if !is_canonical(target) {
        c.note_fault(o, Fault::GP);
        return false;
    }
    true
}

/// Pushes the return address of a call and leaves RSP as it is; notes #SS even where the operand's segment is another.
#[inline(always)]
fn push_return(c: &mut Cpu, o: &Op, sp: u64) -> bool {
    let done = c.store::<8>(o, sp, o.imm);
    if !done && c.fault == Some(Fault::GP) {
        c.fault = Some(Fault::SS);
    }
    done
}

/// JMP to a known target.
pub(crate) extern "C" fn jmp(c: &mut Cpu, o: &Op) -> Ret {
    follow(c, o, 0)
}

/// The end of a block that no branch ends.
pub(crate) extern "C" fn fall(c: &mut Cpu, o: &Op) -> Ret {
    follow(c, o, 0)
}

extern "C" fn jcc<const CC: u8>(c: &mut Cpu, o: &Op) -> Ret {
    if c.cond::<CC>() { follow(c, o, 1) } else { follow(c, o, 0) }
}

/// The handler of Jcc; links: fall-through, then target.
pub(crate) fn pick_jcc(cc: u8) -> Handler {
    macro_rules! one {
        ($cc:expr) => {
            jcc::<$cc> as Handler
        };
    }
    by_cc!(cc, one!())
}

/// CALL to a known target; `imm` is the return address.
pub(crate) extern "C" fn call(c: &mut Cpu, o: &Op) -> Ret {
    let sp = c.regs[RSP].wrapping_sub(8);
    if !c.store_fast::<8>(sp, o.imm) {
        return call_slowly(c, o);
    }
    c.regs[RSP] = sp;
    follow(c, o, 0)
}

/// The same where the TLB does not have the page.
#[cold]
#[inline(never)]
extern "C" fn call_slowly(c: &mut Cpu, o: &Op) -> Ret {
    let sp = c.regs[RSP].wrapping_sub(8);
    check!(c.store::<8>(o, sp, o.imm));
    c.regs[RSP] = sp;
    follow(c, o, 0)
}

/// CALL through a register.
pub(crate) extern "C" fn call_r(c: &mut Cpu, o: &Op) -> Ret {
    let target = c.reg(o.a);
    let sp = c.regs[RSP].wrapping_sub(8);
    check!(push_return(c, o, sp));
    check!(check_target(c, o, target));
    c.regs[RSP] = sp;
    jump(c, target, o.n)
}

/// CALL through memory.
pub(crate) extern "C" fn call_m(c: &mut Cpu, o: &Op) -> Ret {
    let target = get!(c.load::<8>(o, c.ea(o)));
    let sp = c.regs[RSP].wrapping_sub(8);
    check!(push_return(c, o, sp));
    check!(check_target(c, o, target));
    c.regs[RSP] = sp;
    jump(c, target, o.n)
}

/// JMP through a register.
pub(crate) extern "C" fn jmp_r(c: &mut Cpu, o: &Op) -> Ret {
    let target = c.reg(o.a);
    check!(check_target(c, o, target));
    jump(c, target, o.n)
}

/// JMP through memory.
pub(crate) extern "C" fn jmp_m(c: &mut Cpu, o: &Op) -> Ret {
    let target = get!(c.load::<8>(o, c.ea(o)));
    check!(check_target(c, o, target));
    jump(c, target, o.n)
}

/// RET; `imm` is what is dropped from the stack beyond the return address.
pub(crate) extern "C" fn ret(c: &mut Cpu, o: &Op) -> Ret {
    let sp = c.regs[RSP];
    let target = fast!(c.load_fast::<8>(sp), ret_slowly(c, o));
    if !is_canonical(target) {
        return ret_slowly(c, o);
    }
    c.regs[RSP] = sp.wrapping_add(8).wrapping_add(o.imm);
    jump(c, target, o.n)
}

/// The same where the TLB does not have the page.
#[cold]
#[inline(never)]
extern "C" fn ret_slowly(c: &mut Cpu, o: &Op) -> Ret {
    let sp = c.regs[RSP];
    let target = get!(c.load::<8>(o, sp));
    check!(check_target(c, o, target));
    c.regs[RSP] = sp.wrapping_add(8).wrapping_add(o.imm);
    jump(c, target, o.n)
}

/// Goes on where `Cpu::rip` says, which the operation before has set; `imm` is its address if control does not move.
pub(crate) extern "C" fn go(c: &mut Cpu, o: &Op) -> Ret {
    let rip = c.rip;
    if c.look_up {
        c.budget = c.budget.wrapping_sub(i64::from(o.n));
        return crate::op::stop();
    }
    jump(c, rip, o.n)
}

/// NOP and everything that this processor treats as one.
pub(crate) extern "C" fn nop(c: &mut Cpu, o: &Op) -> Ret {
    next(c, o)
}
