//! Arithmetic and logic in their five operand forms.

use super::{by_size, check, fast, get};
use crate::op::{Handler, Op, Ret, next};
use crate::state::{Cpu, mask};
use crate::tlb::{peek, poke};

pub(crate) const ADD: u8 = 0;
pub(crate) const OR: u8 = 1;
pub(crate) const ADC: u8 = 2;
pub(crate) const SBB: u8 = 3;
pub(crate) const AND: u8 = 4;
pub(crate) const SUB: u8 = 5;
pub(crate) const XOR: u8 = 6;
pub(crate) const CMP: u8 = 7;
pub(crate) const TEST: u8 = 8;
pub(crate) const INC: u8 = 9;
pub(crate) const DEC: u8 = 10;
pub(crate) const NEG: u8 = 11;
pub(crate) const NOT: u8 = 12;

/// Carries out operation `K`; sets flags if `FL`.
#[inline(always)]
pub(crate) fn alu<const K: u8, const SZ: usize, const FL: bool>(c: &mut Cpu, x: u64, y: u64) -> u64 {
    match K {
        ADD => {
            let r = x.wrapping_add(y);
            if FL {
                c.flags_add::<SZ>(x, y, r);
            }
            r
        }
        ADC => {
            let r = x.wrapping_add(y).wrapping_add(u64::from(c.cf()));
            if FL {
                c.flags_add::<SZ>(x, y, r);
            }
            r
        }
        SUB | CMP => {
            let r = x.wrapping_sub(y);
            if FL {
                c.flags_sub::<SZ>(x, y, r);
            }
            r
        }
        SBB => {
            let r = x.wrapping_sub(y).wrapping_sub(u64::from(c.cf()));
            if FL {
                c.flags_sub::<SZ>(x, y, r);
            }
            r
        }
        AND | TEST | OR | XOR => {
            let r = match K {
                OR => x | y,
                XOR => x ^ y,
                _ => x & y,
            };
            if FL {
                c.flags_logic::<SZ>(r);
            }
            r
        }
        INC => {
            let r = x.wrapping_add(1);
            if FL {
                let cf = c.cf();
                c.flags_add::<SZ>(x, 1, r);
                c.set_cf(cf);
            }
            r
        }
        DEC => {
            let r = x.wrapping_sub(1);
            if FL {
                let cf = c.cf();
                c.flags_sub::<SZ>(x, 1, r);
                c.set_cf(cf);
            }
            r
        }
        NEG => {
            let r = 0u64.wrapping_sub(x);
            if FL {
                c.flags_sub::<SZ>(0, x & mask(SZ), r);
            }
            r
        }
        _ => !x,
    }
}

/// Whether the operation only sets flags.
const fn compares(k: u8) -> bool {
    k == CMP || k == TEST
}

extern "C" fn rr<const K: u8, const SZ: usize, const FL: bool>(c: &mut Cpu, o: &Op) -> Ret {
    let v = alu::<K, SZ, FL>(c, c.get::<SZ>(o.a), c.get::<SZ>(o.b));
    if !compares(K) {
        c.set::<SZ>(o.a, v);
    }
    next(c, o)
}

extern "C" fn ri<const K: u8, const SZ: usize, const FL: bool>(c: &mut Cpu, o: &Op) -> Ret {
    let v = alu::<K, SZ, FL>(c, c.get::<SZ>(o.a), o.imm);
    if !compares(K) {
        c.set::<SZ>(o.a, v);
    }
    next(c, o)
}

extern "C" fn rm<const K: u8, const SZ: usize, const FL: bool>(c: &mut Cpu, o: &Op) -> Ret {
    let y = fast!(c.load_fast::<SZ>(c.ea(o)), rm_slowly::<K, SZ, FL>(c, o));
    let v = alu::<K, SZ, FL>(c, c.get::<SZ>(o.a), y);
    if !compares(K) {
        c.set::<SZ>(o.a, v);
    }
    next(c, o)
}

/// The same where the TLB does not have the page.
#[cold]
#[inline(never)]
extern "C" fn rm_slowly<const K: u8, const SZ: usize, const FL: bool>(c: &mut Cpu, o: &Op) -> Ret {
    let y = get!(c.load::<SZ>(o, c.ea(o)));
    let v = alu::<K, SZ, FL>(c, c.get::<SZ>(o.a), y);
    if !compares(K) {
        c.set::<SZ>(o.a, v);
    }
    next(c, o)
}

extern "C" fn mr<const K: u8, const SZ: usize, const FL: bool>(c: &mut Cpu, o: &Op) -> Ret {
    let a = c.ea(o);
    if compares(K) {
        let x = fast!(c.load_fast::<SZ>(a), mr_slowly::<K, SZ, FL>(c, o));
        alu::<K, SZ, FL>(c, x, c.get::<SZ>(o.a));
    } else {
        let p = fast!(c.place_fast::<SZ>(a), mr_slowly::<K, SZ, FL>(c, o));
        let v = alu::<K, SZ, FL>(c, peek::<SZ>(p), c.get::<SZ>(o.a));
        poke::<SZ>(p, v);
    }
    next(c, o)
}

/// The same where the TLB does not have the page.
#[cold]
#[inline(never)]
extern "C" fn mr_slowly<const K: u8, const SZ: usize, const FL: bool>(c: &mut Cpu, o: &Op) -> Ret {
    let a = c.ea(o);
    if compares(K) {
        let x = get!(c.load::<SZ>(o, a));
        alu::<K, SZ, FL>(c, x, c.get::<SZ>(o.a));
    } else {
        let (x, place) = get!(c.load_for_store::<SZ>(o, a));
        let v = alu::<K, SZ, FL>(c, x, c.get::<SZ>(o.a));
        c.store_back::<SZ>(o, a, place, v);
    }
    next(c, o)
}

extern "C" fn mi<const K: u8, const SZ: usize, const FL: bool>(c: &mut Cpu, o: &Op) -> Ret {
    let a = c.ea(o);
    if compares(K) {
        let x = fast!(c.load_fast::<SZ>(a), mi_slowly::<K, SZ, FL>(c, o));
        alu::<K, SZ, FL>(c, x, o.imm);
    } else {
        let p = fast!(c.place_fast::<SZ>(a), mi_slowly::<K, SZ, FL>(c, o));
        let v = alu::<K, SZ, FL>(c, peek::<SZ>(p), o.imm);
        poke::<SZ>(p, v);
    }
    next(c, o)
}

/// The same where the TLB does not have the page.
#[cold]
#[inline(never)]
extern "C" fn mi_slowly<const K: u8, const SZ: usize, const FL: bool>(c: &mut Cpu, o: &Op) -> Ret {
    let a = c.ea(o);
    if compares(K) {
        let x = get!(c.load::<SZ>(o, a));
        alu::<K, SZ, FL>(c, x, o.imm);
    } else {
        let (x, place) = get!(c.load_for_store::<SZ>(o, a));
        let v = alu::<K, SZ, FL>(c, x, o.imm);
        c.store_back::<SZ>(o, a, place, v);
    }
    next(c, o)
}

extern "C" fn r<const K: u8, const SZ: usize, const FL: bool>(c: &mut Cpu, o: &Op) -> Ret {
    let v = alu::<K, SZ, FL>(c, c.get::<SZ>(o.a), 0);
    c.set::<SZ>(o.a, v);
    next(c, o)
}

extern "C" fn m<const K: u8, const SZ: usize, const FL: bool>(c: &mut Cpu, o: &Op) -> Ret {
    let p = fast!(c.place_fast::<SZ>(c.ea(o)), m_slowly::<K, SZ, FL>(c, o));
    let v = alu::<K, SZ, FL>(c, peek::<SZ>(p), 0);
    poke::<SZ>(p, v);
    next(c, o)
}

/// The same where the TLB does not have the page.
#[cold]
#[inline(never)]
extern "C" fn m_slowly<const K: u8, const SZ: usize, const FL: bool>(c: &mut Cpu, o: &Op) -> Ret {
    let a = c.ea(o);
    let (x, place) = get!(c.load_for_store::<SZ>(o, a));
    let v = alu::<K, SZ, FL>(c, x, 0);
    c.store_back::<SZ>(o, a, place, v);
    next(c, o)
}

/// Zeroes a register (`xor r, r`), flags included.
pub(crate) extern "C" fn zero(c: &mut Cpu, o: &Op) -> Ret {
    *c.reg_mut(o.a) = 0;
    c.flags_logic::<8>(0);
    next(c, o)
}

/// Where the operands of a two-operand operation are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    RegReg,
    RegImm,
    RegMem,
    MemReg,
    MemImm,
}

macro_rules! pick_form {
    ($k:expr, $size:expr, $flags:expr, $form:expr) => {
        match ($form, $flags) {
            (Form::RegReg, true) => by_size!($size, rr[$k; true]),
            (Form::RegReg, false) => by_size!($size, rr[$k; false]),
            (Form::RegImm, true) => by_size!($size, ri[$k; true]),
            (Form::RegImm, false) => by_size!($size, ri[$k; false]),
            (Form::RegMem, true) => by_size!($size, rm[$k; true]),
            (Form::RegMem, false) => by_size!($size, rm[$k; false]),
            (Form::MemReg, true) => by_size!($size, mr[$k; true]),
            (Form::MemReg, false) => by_size!($size, mr[$k; false]),
            (Form::MemImm, true) => by_size!($size, mi[$k; true]),
            (Form::MemImm, false) => by_size!($size, mi[$k; false]),
        }
    };
}

/// The handler of a two-operand operation.
pub(crate) fn pick(kind: u8, size: usize, flags: bool, form: Form) -> Handler {
    match kind {
        ADD => pick_form!(ADD, size, flags, form),
        OR => pick_form!(OR, size, flags, form),
        ADC => pick_form!(ADC, size, flags, form),
        SBB => pick_form!(SBB, size, flags, form),
        AND => pick_form!(AND, size, flags, form),
        SUB => pick_form!(SUB, size, flags, form),
        XOR => pick_form!(XOR, size, flags, form),
        CMP => pick_form!(CMP, size, true, form),
        _ => pick_form!(TEST, size, true, form),
    }
}

/// The handler of a one-operand operation.
pub(crate) fn pick_unary(kind: u8, size: usize, flags: bool, memory: bool) -> Handler {
    macro_rules! unary {
        ($k:expr) => {
            match (memory, flags) {
                (false, true) => by_size!(size, r[$k; true]),
                (false, false) => by_size!(size, r[$k; false]),
                (true, true) => by_size!(size, m[$k; true]),
                (true, false) => by_size!(size, m[$k; false]),
            }
        };
    }
    match kind {
        INC => unary!(INC),
        DEC => unary!(DEC),
        NEG => unary!(NEG),
        _ => unary!(NOT),
    }
}

/// IMUL with two or three operands: `b` or memory, times `a` or `imm`, into `a`.
extern "C" fn imul<const FORM: u8, const SZ: usize, const FL: bool>(c: &mut Cpu, o: &Op) -> Ret {
    let y = if FORM & 1 != 0 { get!(c.load::<SZ>(o, c.ea(o))) } else { c.reg(o.b) };
    let x = if FORM & 2 != 0 { o.imm } else { c.reg(o.a) };
    let v = if FL { imul_flags::<SZ>(c, x, y) } else { x.wrapping_mul(y) };
    c.set::<SZ>(o.a, v);
    next(c, o)
}

#[inline(always)]
pub(crate) fn imul_flags<const SZ: usize>(c: &mut Cpu, x: u64, y: u64) -> u64 {
    if SZ == 8 {
        let (r, over) = (x as i64).overflowing_mul(y as i64);
        c.flags_co::<SZ>(r as u64, over, over);
        r as u64
    } else {
        let sx = crate::state::sign_extend(x, SZ) as i64;
        let sy = crate::state::sign_extend(y, SZ) as i64;
        let r = sx.wrapping_mul(sy);
        let over = crate::state::sign_extend(r as u64, SZ) as i64 != r;
        c.flags_co::<SZ>(r as u64, over, over);
        r as u64
    }
}

/// The handler of IMUL with a destination register; `immediate` replaces the destination as a factor.
pub(crate) fn pick_imul(size: usize, memory: bool, immediate: bool, flags: bool) -> Handler {
    macro_rules! form {
        ($form:expr) => {
            match (size, flags) {
                (8, true) => imul::<$form, 8, true> as Handler,
                (8, false) => imul::<$form, 8, false>,
                (4, true) => imul::<$form, 4, true>,
                (4, false) => imul::<$form, 4, false>,
                (_, true) => imul::<$form, 2, true>,
                (_, false) => imul::<$form, 2, false>,
            }
        };
    }
    match (memory, immediate) {
        (false, false) => form!(0),
        (true, false) => form!(1),
        (false, true) => form!(2),
        (true, true) => form!(3),
    }
}

/// MUL and IMUL into RDX:RAX, 32 and 64 bits.
extern "C" fn mul<const SIGNED: bool, const MEM: bool, const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
    let y = if MEM { get!(c.load::<SZ>(o, c.ea(o))) } else { c.reg(o.a) };
    let x = c.reg(0);
    if SZ == 8 {
        let wide =
            if SIGNED { (i128::from(x as i64) * i128::from(y as i64)) as u128 } else { u128::from(x) * u128::from(y) };
        let (low, high) = (wide as u64, (wide >> 64) as u64);
        let over = if SIGNED { high != ((low as i64) >> 63) as u64 } else { high != 0 };
        c.flags_co::<8>(low, over, over);
        c.regs[0] = low;
        c.regs[2] = high;
    } else {
        let wide = if SIGNED {
            i64::from(x as i32).wrapping_mul(i64::from(y as i32)) as u64
        } else {
            u64::from(x as u32).wrapping_mul(u64::from(y as u32))
        };
        let over = if SIGNED { wide as i32 as i64 as u64 != wide } else { wide >> 32 != 0 };
        c.flags_co::<4>(wide, over, over);
        c.regs[0] = wide & 0xffff_ffff;
        c.regs[2] = wide >> 32;
    }
    next(c, o)
}

/// The handler of MUL and one-operand IMUL for 32 and 64 bits.
pub(crate) fn pick_mul(size: usize, memory: bool, signed: bool) -> Handler {
    match (size, memory, signed) {
        (8, false, false) => mul::<false, false, 8>,
        (8, true, false) => mul::<false, true, 8>,
        (8, false, true) => mul::<true, false, 8>,
        (8, true, true) => mul::<true, true, 8>,
        (_, false, false) => mul::<false, false, 4>,
        (_, true, false) => mul::<false, true, 4>,
        (_, false, true) => mul::<true, false, 4>,
        (_, true, true) => mul::<true, true, 4>,
    }
}

/// Stores a register or an immediate: MOV to memory.
pub(crate) extern "C" fn store_reg<const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
    if !c.store_fast::<SZ>(c.ea(o), c.get::<SZ>(o.a)) {
        return store_reg_slowly::<SZ>(c, o);
    }
    next(c, o)
}

/// The same where the TLB does not have the page.
#[cold]
#[inline(never)]
extern "C" fn store_reg_slowly<const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
    check!(c.store::<SZ>(o, c.ea(o), c.get::<SZ>(o.a)));
    next(c, o)
}
