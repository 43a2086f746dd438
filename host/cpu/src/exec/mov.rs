//! Data movement: MOV, MOVZX, MOVSX, LEA, PUSH, POP, XCHG, SETcc, CMOVcc, sign extensions of RAX.

use super::alu::{Form, store_reg};
use super::{by_cc, by_size, check, fast, get};
use crate::op::{Handler, Op, Ret, next};
use crate::state::{Cpu, RAX, RDX, RSP, mask, sign_extend};

extern "C" fn mov_rr<const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
    c.set::<SZ>(o.a, c.get::<SZ>(o.b));
    next(c, o)
}

extern "C" fn mov_ri<const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
    c.set::<SZ>(o.a, o.imm);
    next(c, o)
}

extern "C" fn mov_rm<const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
    let v = fast!(c.load_fast::<SZ>(c.ea(o)), mov_rm_slowly::<SZ>(c, o));
    c.set::<SZ>(o.a, v);
    next(c, o)
}

/// The same where the TLB does not have the page.
#[cold]
#[inline(never)]
extern "C" fn mov_rm_slowly<const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
    let v = get!(c.load::<SZ>(o, c.ea(o)));
    c.set::<SZ>(o.a, v);
    next(c, o)
}

extern "C" fn mov_mi<const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
    if !c.store_fast::<SZ>(c.ea(o), o.imm) {
        return mov_mi_slowly::<SZ>(c, o);
    }
    next(c, o)
}

/// The same where the TLB does not have the page.
#[cold]
#[inline(never)]
extern "C" fn mov_mi_slowly<const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
    check!(c.store::<SZ>(o, c.ea(o), o.imm));
    next(c, o)
}

/// A load with a base register only: the commonest shape.
extern "C" fn mov_rm_base<const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
    let v = fast!(c.load_fast::<SZ>(c.reg(o.base).wrapping_add(o.disp as i64 as u64)), mov_rm_base_slowly::<SZ>(c, o));
    c.set::<SZ>(o.a, v);
    next(c, o)
}

/// The same where the TLB does not have the page.
#[cold]
#[inline(never)]
extern "C" fn mov_rm_base_slowly<const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
    let v = get!(c.load::<SZ>(o, c.reg(o.base).wrapping_add(o.disp as i64 as u64)));
    c.set::<SZ>(o.a, v);
    next(c, o)
}

extern "C" fn mov_mr_base<const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
    if !c.store_fast::<SZ>(c.reg(o.base).wrapping_add(o.disp as i64 as u64), c.get::<SZ>(o.a)) {
        return mov_mr_base_slowly::<SZ>(c, o);
    }
    next(c, o)
}

/// The same where the TLB does not have the page.
#[cold]
#[inline(never)]
extern "C" fn mov_mr_base_slowly<const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
    check!(c.store::<SZ>(o, c.reg(o.base).wrapping_add(o.disp as i64 as u64), c.get::<SZ>(o.a)));
    next(c, o)
}

/// The handler of MOV between general registers, memory and immediates. `simple`: no index register.
pub(crate) fn pick_mov(size: usize, form: Form, simple: bool) -> Handler {
    match form {
        Form::RegReg => by_size!(size, mov_rr[;]),
        Form::RegImm => by_size!(size, mov_ri[;]),
        Form::RegMem if simple => by_size!(size, mov_rm_base[;]),
        Form::RegMem => by_size!(size, mov_rm[;]),
        Form::MemReg if simple => by_size!(size, mov_mr_base[;]),
        Form::MemReg => by_size!(size, store_reg[;]),
        Form::MemImm => by_size!(size, mov_mi[;]),
    }
}

/// MOVZX, MOVSX, MOVSXD: `S` bytes to `D` bytes.
extern "C" fn extend<const S: usize, const SIGNED: bool, const MEM: bool, const D: usize>(c: &mut Cpu, o: &Op) -> Ret {
    let v = if MEM {
        fast!(c.load_fast::<S>(c.ea(o)), extend_slowly::<S, SIGNED, MEM, D>(c, o))
    } else {
        c.get::<S>(o.b) & mask(S)
    };
    c.set::<D>(o.a, if SIGNED { sign_extend(v, S) } else { v });
    next(c, o)
}

/// The same where the TLB does not have the page.
#[cold]
#[inline(never)]
extern "C" fn extend_slowly<const S: usize, const SIGNED: bool, const MEM: bool, const D: usize>(
    c: &mut Cpu,
    o: &Op,
) -> Ret {
    let v = if MEM { get!(c.load::<S>(o, c.ea(o))) } else { c.get::<S>(o.b) & mask(S) };
    c.set::<D>(o.a, if SIGNED { sign_extend(v, S) } else { v });
    next(c, o)
}

/// The handler of a widening move.
pub(crate) fn pick_extend(from: usize, signed: bool, memory: bool, to: usize) -> Handler {
    macro_rules! to {
        ($s:expr, $g:expr, $m:expr) => {
            match to {
                2 => extend::<$s, $g, $m, 2> as Handler,
                4 => extend::<$s, $g, $m, 4>,
                _ => extend::<$s, $g, $m, 8>,
            }
        };
    }
    match (from, signed, memory) {
        (1, false, false) => to!(1, false, false),
        (1, false, true) => to!(1, false, true),
        (1, true, false) => to!(1, true, false),
        (1, true, true) => to!(1, true, true),
        (2, false, false) => to!(2, false, false),
        (2, false, true) => to!(2, false, true),
        (2, true, false) => to!(2, true, false),
        (2, true, true) => to!(2, true, true),
        (_, _, false) => to!(4, true, false),
        (_, _, true) => to!(4, true, true),
    }
}

extern "C" fn lea<const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
    let v = c.ea(o);
    c.set::<SZ>(o.a, v);
    next(c, o)
}

pub(crate) fn pick_lea(size: usize) -> Handler {
    match size {
        2 => lea::<2>,
        4 => lea::<4>,
        _ => lea::<8>,
    }
}

/// PUSH of a register in 64-bit mode.
pub(crate) extern "C" fn push_r(c: &mut Cpu, o: &Op) -> Ret {
    let sp = c.regs[RSP].wrapping_sub(8);
    if !c.store_fast::<8>(sp, c.reg(o.a)) {
        return push_r_slowly(c, o);
    }
    c.regs[RSP] = sp;
    next(c, o)
}

/// The same where the TLB does not have the page.
#[cold]
#[inline(never)]
extern "C" fn push_r_slowly(c: &mut Cpu, o: &Op) -> Ret {
    let sp = c.regs[RSP].wrapping_sub(8);
    check!(c.store::<8>(o, sp, c.reg(o.a)));
    c.regs[RSP] = sp;
    next(c, o)
}

pub(crate) extern "C" fn push_i(c: &mut Cpu, o: &Op) -> Ret {
    let sp = c.regs[RSP].wrapping_sub(8);
    check!(c.store::<8>(o, sp, o.imm));
    c.regs[RSP] = sp;
    next(c, o)
}

pub(crate) extern "C" fn pop_r(c: &mut Cpu, o: &Op) -> Ret {
    let sp = c.regs[RSP];
    let v = fast!(c.load_fast::<8>(sp), pop_r_slowly(c, o));
    c.regs[RSP] = sp.wrapping_add(8);
    *c.reg_mut(o.a) = v;
    next(c, o)
}

/// The same where the TLB does not have the page.
#[cold]
#[inline(never)]
extern "C" fn pop_r_slowly(c: &mut Cpu, o: &Op) -> Ret {
    let sp = c.regs[RSP];
    let v = get!(c.load::<8>(o, sp));
    c.regs[RSP] = sp.wrapping_add(8);
    *c.reg_mut(o.a) = v;
    next(c, o)
}

/// LEAVE in 64-bit mode.
pub(crate) extern "C" fn leave(c: &mut Cpu, o: &Op) -> Ret {
    let bp = c.regs[crate::state::RBP];
    let v = get!(c.load::<8>(o, bp));
    c.regs[RSP] = bp.wrapping_add(8);
    c.regs[crate::state::RBP] = v;
    next(c, o)
}

extern "C" fn set_r<const CC: u8>(c: &mut Cpu, o: &Op) -> Ret {
    let v = u64::from(c.cond::<CC>());
    c.set::<1>(o.a, v);
    next(c, o)
}

extern "C" fn set_m<const CC: u8>(c: &mut Cpu, o: &Op) -> Ret {
    let v = u64::from(c.cond::<CC>());
    check!(c.store::<1>(o, c.ea(o), v));
    next(c, o)
}

/// The handler of SETcc.
pub(crate) fn pick_set(cc: u8, memory: bool) -> Handler {
    macro_rules! reg {
        ($cc:expr) => {
            set_r::<$cc> as Handler
        };
    }
    macro_rules! mem {
        ($cc:expr) => {
            set_m::<$cc> as Handler
        };
    }
    if memory { by_cc!(cc, mem!()) } else { by_cc!(cc, reg!()) }
}

extern "C" fn cmov_r<const CC: u8, const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
    let v = if c.cond::<CC>() { c.reg(o.b) } else { c.reg(o.a) };
    c.set::<SZ>(o.a, v);
    next(c, o)
}

extern "C" fn cmov_m<const CC: u8, const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
    let v = get!(c.load::<SZ>(o, c.ea(o)));
    let v = if c.cond::<CC>() { v } else { c.reg(o.a) };
    c.set::<SZ>(o.a, v);
    next(c, o)
}

/// The handler of CMOVcc for 32 and 64 bits.
pub(crate) fn pick_cmov(cc: u8, size: usize, memory: bool) -> Handler {
    macro_rules! one {
        ($f:ident, $sz:expr, $cc:expr) => {
            $f::<$cc, $sz> as Handler
        };
    }
    match (size, memory) {
        (8, false) => by_cc!(cc, one!(cmov_r, 8,)),
        (8, true) => by_cc!(cc, one!(cmov_m, 8,)),
        (_, false) => by_cc!(cc, one!(cmov_r, 4,)),
        (_, true) => by_cc!(cc, one!(cmov_m, 4,)),
    }
}

extern "C" fn xchg<const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
    let (x, y) = (c.get::<SZ>(o.a), c.get::<SZ>(o.b));
    c.set::<SZ>(o.a, y);
    c.set::<SZ>(o.b, x);
    next(c, o)
}

/// The handler of XCHG between registers.
pub(crate) fn pick_xchg(size: usize) -> Handler {
    by_size!(size, xchg[;])
}

pub(crate) extern "C" fn cdqe(c: &mut Cpu, o: &Op) -> Ret {
    c.regs[RAX] = c.regs[RAX] as i32 as u64;
    next(c, o)
}
pub(crate) extern "C" fn cwde(c: &mut Cpu, o: &Op) -> Ret {
    c.regs[RAX] = u64::from(c.regs[RAX] as i16 as u32);
    next(c, o)
}
pub(crate) extern "C" fn cqo(c: &mut Cpu, o: &Op) -> Ret {
    c.regs[RDX] = ((c.regs[RAX] as i64) >> 63) as u64;
    next(c, o)
}
pub(crate) extern "C" fn cdq(c: &mut Cpu, o: &Op) -> Ret {
    c.regs[RDX] = u64::from(((c.regs[RAX] as i32) >> 31) as u32);
    next(c, o)
}

/// BSWAP of 4 or 8 bytes.
extern "C" fn bswap<const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
    let v = c.reg(o.a);
    *c.reg_mut(o.a) = if SZ == 8 { v.swap_bytes() } else { u64::from((v as u32).swap_bytes()) };
    next(c, o)
}

pub(crate) fn pick_bswap(size: usize) -> Handler {
    if size == 8 { bswap::<8> } else { bswap::<4> }
}
