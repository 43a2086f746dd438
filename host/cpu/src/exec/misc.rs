//! Bits, divisions, and the bridge to [`crate::rare`].

use super::{check, get};
use crate::fault::Fault;
use crate::op::{Handler, Op, Ret, next, stop};
use crate::rare;
use crate::state::{Cpu, RAX, RDX};

/// An instruction that has no handler in threaded form; `imm` is the address of its decoded form.
pub(crate) extern "C" fn rare(c: &mut Cpu, o: &Op) -> Ret {
    check!(carry_out(c, o));
    next(c, o)
}

#[inline(never)]
fn carry_out(c: &mut Cpu, o: &Op) -> bool {
    let instruction = o.instruction();
    c.rip = instruction.next_ip();
    match rare::execute(c, instruction) {
        Ok(()) => true,
        Err(fault) => {
            c.fault = Some(fault);
            c.fault_op = std::ptr::null();
            c.rip = instruction.ip();
            false
        }
    }
}

/// The instruction after STI begins: what follows it may be interrupted again.
pub(crate) extern "C" fn unshadow(c: &mut Cpu, o: &Op) -> Ret {
    c.shadow = false;
    next(c, o)
}

/// An undefined opcode.
pub(crate) extern "C" fn undefined(c: &mut Cpu, o: &Op) -> Ret {
    c.note_fault(o, Fault::UD);
    stop()
}

/// BT, BTS, BTR, BTC on a register, with the bit number in `b` or `imm`.
extern "C" fn bit<const K: u8, const IMM: bool, const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
    let n = if IMM { o.imm } else { c.reg(o.b) } & (8 * SZ as u64 - 1);
    let x = c.reg(o.a);
    let bit = 1u64 << n;
    c.set_cf(x & bit != 0);
    match K {
        0 => {}
        1 => c.set::<SZ>(o.a, x | bit),
        2 => c.set::<SZ>(o.a, x & !bit),
        _ => c.set::<SZ>(o.a, x ^ bit),
    }
    next(c, o)
}

/// The handler of a bit instruction on a register of 32 or 64 bits. `kind`: BT, BTS, BTR, BTC.
pub(crate) fn pick_bit(kind: u8, immediate: bool, size: usize) -> Handler {
    macro_rules! kind {
        ($k:expr) => {
            match (immediate, size) {
                (true, 8) => bit::<$k, true, 8> as Handler,
                (true, _) => bit::<$k, true, 4>,
                (false, 8) => bit::<$k, false, 8>,
                (false, _) => bit::<$k, false, 4>,
            }
        };
    }
    match kind {
        0 => kind!(0),
        1 => kind!(1),
        2 => kind!(2),
        _ => kind!(3),
    }
}

/// BSF and BSR: the destination stays as it is if the source is zero.
extern "C" fn scan<const REVERSE: bool, const MEM: bool, const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
    let y = if MEM { get!(c.load::<SZ>(o, c.ea(o))) } else { c.reg(o.b) } & crate::state::mask(SZ);
    let n = if REVERSE { 63u32.wrapping_sub(y.leading_zeros()) } else { y.trailing_zeros() };
    c.flags_logic::<8>(y);
    if y != 0 {
        c.set::<SZ>(o.a, u64::from(n));
    }
    next(c, o)
}

pub(crate) fn pick_scan(reverse: bool, memory: bool, size: usize) -> Handler {
    match (reverse, memory, size) {
        (false, false, 8) => scan::<false, false, 8>,
        (false, true, 8) => scan::<false, true, 8>,
        (true, false, 8) => scan::<true, false, 8>,
        (true, true, 8) => scan::<true, true, 8>,
        (false, false, _) => scan::<false, false, 4>,
        (false, true, _) => scan::<false, true, 4>,
        (true, false, _) => scan::<true, false, 4>,
        (true, true, _) => scan::<true, true, 4>,
    }
}

/// DIV and IDIV of RDX:RAX, 32 and 64 bits.
extern "C" fn div<const SIGNED: bool, const MEM: bool, const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
    let y = if MEM { get!(c.load::<SZ>(o, c.ea(o))) } else { c.reg(o.a) };
    let (low, high) = (c.regs[RAX], c.regs[RDX]);
    match divide::<SIGNED, SZ>(low, high, y) {
        Some((quotient, remainder)) => {
            c.regs[RAX] = quotient;
            c.regs[RDX] = remainder;
            next(c, o)
        }
        None => {
            c.note_fault(o, Fault::DE);
            stop()
        }
    }
}

/// Quotient and remainder, or `None` for #DE.
#[inline(always)]
pub(crate) fn divide<const SIGNED: bool, const SZ: usize>(low: u64, high: u64, y: u64) -> Option<(u64, u64)> {
    if SZ == 8 {
        if SIGNED {
            let x = (u128::from(high) << 64 | u128::from(low)) as i128;
            let y = i128::from(y as i64);
            let q = x.checked_div(y)?;
            let q64 = i64::try_from(q).ok()?;
            Some((q64 as u64, x.wrapping_rem(y) as u64))
        } else if high == 0 {
            Some((low.checked_div(y)?, low.checked_rem(y)?))
        } else if high >= y {
            None
        } else {
            let x = u128::from(high) << 64 | u128::from(low);
            Some(((x / u128::from(y)) as u64, (x % u128::from(y)) as u64))
        }
    } else {
        let x = (high & 0xffff_ffff) << 32 | (low & 0xffff_ffff);
        if SIGNED {
            let (x, y) = (x as i64, i64::from(y as i32));
            let q = i32::try_from(x.checked_div(y)?).ok()?;
            Some((u64::from(q as u32), u64::from(x.wrapping_rem(y) as u32)))
        } else {
            let y = y & 0xffff_ffff;
            let q = u32::try_from(x.checked_div(y)?).ok()?;
            Some((u64::from(q), x % y))
        }
    }
}

pub(crate) fn pick_div(signed: bool, memory: bool, size: usize) -> Handler {
    match (signed, memory, size) {
        (false, false, 8) => div::<false, false, 8>,
        (false, true, 8) => div::<false, true, 8>,
        (true, false, 8) => div::<true, false, 8>,
        (true, true, 8) => div::<true, true, 8>,
        (false, false, _) => div::<false, false, 4>,
        (false, true, _) => div::<false, true, 4>,
        (true, false, _) => div::<true, false, 4>,
        (true, true, _) => div::<true, true, 4>,
    }
}
