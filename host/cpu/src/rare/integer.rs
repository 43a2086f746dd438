//! Integer instructions that are rare, or locked, or of 8 and 16 bits, or not in 64-bit mode.

use iced_x86::{Instruction, Mnemonic as M, OpKind};

use super::operands::{self, get, read, set, set_number, signed, size, update, update_at, write};
use crate::exec::alu::{self, alu, imul_flags};
use crate::exec::misc::divide;
use crate::exec::shift;
use crate::fault::{Fault, Res, vector};
use crate::lower::condition_number;
use crate::state::{Cpu, RAX, RBX, RCX, RDX, mask, rflags, sign_extend};

/// One arithmetic operation with its flags, by values of kind and size.
pub(super) fn arithmetic(c: &mut Cpu, kind: u8, size: usize, x: u64, y: u64) -> u64 {
    macro_rules! sizes {
        ($k:expr) => {
            match size {
                1 => alu::<{ $k }, 1, true>(c, x, y),
                2 => alu::<{ $k }, 2, true>(c, x, y),
                4 => alu::<{ $k }, 4, true>(c, x, y),
                _ => alu::<{ $k }, 8, true>(c, x, y),
            }
        };
    }
    match kind {
        alu::ADD => sizes!(alu::ADD),
        alu::OR => sizes!(alu::OR),
        alu::ADC => sizes!(alu::ADC),
        alu::SBB => sizes!(alu::SBB),
        alu::AND => sizes!(alu::AND),
        alu::SUB => sizes!(alu::SUB),
        alu::XOR => sizes!(alu::XOR),
        alu::CMP => sizes!(alu::CMP),
        alu::TEST => sizes!(alu::TEST),
        alu::INC => sizes!(alu::INC),
        alu::DEC => sizes!(alu::DEC),
        alu::NEG => sizes!(alu::NEG),
        _ => !x,
    }
}

/// `None` if the instruction is not one of these.
pub(super) fn execute(c: &mut Cpu, i: &Instruction) -> Option<Res> {
    let lock = i.has_lock_prefix();
    Some(match i.mnemonic() {
        M::Add => two(c, i, alu::ADD, lock),
        M::Or => two(c, i, alu::OR, lock),
        M::Adc => two(c, i, alu::ADC, lock),
        M::Sbb => two(c, i, alu::SBB, lock),
        M::And => two(c, i, alu::AND, lock),
        M::Sub => two(c, i, alu::SUB, lock),
        M::Xor => two(c, i, alu::XOR, lock),
        M::Cmp => compare(c, i, alu::CMP),
        M::Test => compare(c, i, alu::TEST),
        M::Inc => one(c, i, alu::INC, lock),
        M::Dec => one(c, i, alu::DEC, lock),
        M::Neg => one(c, i, alu::NEG, lock),
        M::Not => one(c, i, alu::NOT, lock),
        M::Mul => multiply(c, i, false),
        M::Imul => imul(c, i),
        M::Div => quotient(c, i, false),
        M::Idiv => quotient(c, i, true),
        M::Shld => double_shift(c, i, true),
        M::Shrd => double_shift(c, i, false),
        M::Bt => bit(c, i, 0),
        M::Bts => bit(c, i, 1),
        M::Btr => bit(c, i, 2),
        M::Btc => bit(c, i, 3),
        M::Bsf => scan(c, i, false),
        M::Bsr => scan(c, i, true),
        M::Popcnt => popcnt(c, i),
        M::Xchg => exchange(c, i),
        M::Xadd => xadd(c, i),
        M::Cmpxchg => cmpxchg(c, i),
        M::Cmpxchg8b => cmpxchg8b(c, i),
        M::Cmpxchg16b => cmpxchg16b(c, i),
        M::Bswap => {
            // Of 16-bit registers: undefined; processors clear them.
            let r = i.op0_register();
            let v = get(c, r);
            let v = match r.size() {
                8 => v.swap_bytes(),
                4 => u64::from((v as u32).swap_bytes()),
                _ => 0,
            };
            set(c, r, v);
            Ok(())
        }
        M::Movzx => read(c, i, 1).map(|v| set(c, i.op0_register(), v)),
        M::Movsx | M::Movsxd => read(c, i, 1).map(|v| {
            let v = sign_extend(v, size(i, 1));
            set(c, i.op0_register(), v);
        }),
        M::Movnti => read(c, i, 1).and_then(|v| write(c, i, 0, v)),
        M::Lea => {
            let v = operands::offset(c, i);
            set(c, i.op0_register(), v);
            Ok(())
        }
        M::Cbw => {
            let v = c.regs[RAX] as i8 as u64;
            set_number(c, RAX, 2, v);
            Ok(())
        }
        M::Cwd => {
            let v = ((c.regs[RAX] as i16) >> 15) as u64;
            set_number(c, RDX, 2, v);
            Ok(())
        }
        M::Lahf => {
            let f = (c.arith_flags() & 0xd5) | rflags::FIXED;
            c.regs[RAX] = c.regs[RAX] & !0xff00 | f << 8;
            Ok(())
        }
        M::Sahf => {
            let keep = c.arith_flags() & rflags::OF;
            let f = (c.regs[RAX] >> 8) & 0xd5 | keep;
            c.set_arith_flags(f);
            Ok(())
        }
        M::Clc => {
            c.set_cf(false);
            Ok(())
        }
        M::Stc => {
            c.set_cf(true);
            Ok(())
        }
        M::Cmc => {
            let cf = c.cf();
            c.set_cf(!cf);
            Ok(())
        }
        M::Cld => {
            c.rflags &= !rflags::DF;
            Ok(())
        }
        M::Std => {
            c.rflags |= rflags::DF;
            Ok(())
        }
        M::Salc => {
            let v = if c.cf() { 0xff } else { 0 };
            set_number(c, RAX, 1, v);
            Ok(())
        }
        M::Xlatb => xlat(c, i),
        M::Aaa | M::Aas | M::Aad | M::Aam | M::Daa | M::Das => decimal(c, i),
        M::Bound => bound(c, i),
        M::Arpl => arpl(c, i),
        m if crate::lower::is_cmov(m) => read(c, i, 1).map(|v| {
            let r = i.op0_register();
            let v = if c.condition(condition_number(i)) { v } else { get(c, r) };
            set(c, r, v);
        }),
        _ => return None,
    })
}

fn two(c: &mut Cpu, i: &Instruction, kind: u8, lock: bool) -> Res {
    let size = size(i, 0);
    let y = read(c, i, 1)?;
    let (res, aux) = (c.fl_res, c.fl_aux);
    let done = update(c, i, lock, |c, x| {
        // The flags that ADC and SBB read are those of before, however often this is tried.
        (c.fl_res, c.fl_aux) = (res, aux);
        Ok(arithmetic(c, kind, size, x, y))
    });
    if done.is_err() {
        (c.fl_res, c.fl_aux) = (res, aux);
    }
    done.map(drop)
}

fn one(c: &mut Cpu, i: &Instruction, kind: u8, lock: bool) -> Res {
    let size = size(i, 0);
    let (res, aux) = (c.fl_res, c.fl_aux);
    let done = update(c, i, lock, |c, x| {
        (c.fl_res, c.fl_aux) = (res, aux);
        Ok(arithmetic(c, kind, size, x, 0))
    });
    if done.is_err() {
        (c.fl_res, c.fl_aux) = (res, aux);
    }
    done.map(drop)
}

fn compare(c: &mut Cpu, i: &Instruction, kind: u8) -> Res {
    let x = read(c, i, 0)?;
    let y = read(c, i, 1)?;
    arithmetic(c, kind, size(i, 0), x, y);
    Ok(())
}

fn multiply(c: &mut Cpu, i: &Instruction, is_signed: bool) -> Res {
    let size = size(i, 0);
    let y = read(c, i, 0)?;
    let x = c.regs[RAX] & mask(size);
    let bits = 8 * size as u32;
    let (low, high) = if is_signed {
        let p = i128::from(signed(x, size)) * i128::from(signed(y, size));
        (p as u64 & mask(size), (p >> bits) as u64 & mask(size))
    } else {
        let p = u128::from(x) * u128::from(y);
        (p as u64 & mask(size), (p >> bits) as u64 & mask(size))
    };
    let over = if is_signed {
        let fill = if low >> (bits - 1) & 1 != 0 { mask(size) } else { 0 };
        high != fill
    } else {
        high != 0
    };
    if size == 1 {
        set_number(c, RAX, 2, high << 8 | low);
    } else {
        set_number(c, RAX, size, low);
        set_number(c, RDX, size, high);
    }
    match size {
        1 => c.flags_co::<1>(low, over, over),
        2 => c.flags_co::<2>(low, over, over),
        4 => c.flags_co::<4>(low, over, over),
        _ => c.flags_co::<8>(low, over, over),
    }
    Ok(())
}

fn imul(c: &mut Cpu, i: &Instruction) -> Res {
    if i.op_count() == 1 {
        return multiply(c, i, true);
    }
    let y = read(c, i, 1)?;
    let x = if i.op_count() == 3 { i.immediate(2) } else { get(c, i.op0_register()) };
    let v = match size(i, 0) {
        2 => imul_flags::<2>(c, x, y),
        4 => imul_flags::<4>(c, x, y),
        _ => imul_flags::<8>(c, x, y),
    };
    set(c, i.op0_register(), v);
    Ok(())
}

fn quotient(c: &mut Cpu, i: &Instruction, is_signed: bool) -> Res {
    let size = size(i, 0);
    let y = read(c, i, 0)?;
    if size >= 4 {
        let (low, high) = (c.regs[RAX], c.regs[RDX]);
        let result = match (is_signed, size) {
            (false, 4) => divide::<false, 4>(low, high, y),
            (true, 4) => divide::<true, 4>(low, high, y),
            (false, _) => divide::<false, 8>(low, high, y),
            (true, _) => divide::<true, 8>(low, high, y),
        };
        let (q, r) = result.ok_or(Fault::DE)?;
        set_number(c, RAX, size, q);
        set_number(c, RDX, size, r);
        return Ok(());
    }
    let bits = 8 * size as u32;
    let x = if size == 1 { c.regs[RAX] & 0xffff } else { (c.regs[RDX] & 0xffff) << 16 | c.regs[RAX] & 0xffff };
    let (q, r) = if is_signed {
        let (x, y) = (signed(x, 2 * size), signed(y, size));
        let q = x.checked_div(y).ok_or(Fault::DE)?;
        if q != signed(q as u64, size) {
            return Err(Fault::DE);
        }
        (q as u64, x.wrapping_rem(y) as u64)
    } else {
        let q = x.checked_div(y).ok_or(Fault::DE)?;
        if q >> bits != 0 {
            return Err(Fault::DE);
        }
        (q, x % y)
    };
    if size == 1 {
        set_number(c, RAX, 2, (r & 0xff) << 8 | q & 0xff);
    } else {
        set_number(c, RAX, 2, q);
        set_number(c, RDX, 2, r);
    }
    Ok(())
}

fn double_shift(c: &mut Cpu, i: &Instruction, left: bool) -> Res {
    let size = size(i, 0);
    let y = read(c, i, 1)?;
    let n = shift::count_of(size, read(c, i, 2)?);
    update(c, i, false, |c, x| {
        Ok(match (left, size) {
            (true, 2) => shift::double::<true, 2>(c, x, y, n),
            (true, 4) => shift::double::<true, 4>(c, x, y, n),
            (true, _) => shift::double::<true, 8>(c, x, y, n),
            (false, 2) => shift::double::<false, 2>(c, x, y, n),
            (false, 4) => shift::double::<false, 4>(c, x, y, n),
            (false, _) => shift::double::<false, 8>(c, x, y, n),
        })
    })
    .map(drop)
}

/// BT and its kin. With a bit number in a register, memory is addressed beyond the operand.
fn bit(c: &mut Cpu, i: &Instruction, kind: u8) -> Res {
    let size = size(i, 0);
    let bits = 8 * size as u64;
    let n = read(c, i, 1)?;
    let change = |x: u64, bit: u64| match kind {
        1 => x | bit,
        2 => x & !bit,
        3 => x ^ bit,
        _ => x,
    };
    let bit = 1u64 << (n & (bits - 1));
    if i.op0_kind() != OpKind::Memory {
        let r = i.op0_register();
        let x = get(c, r);
        c.set_cf(x & bit != 0);
        if kind != 0 {
            set(c, r, change(x, bit));
        }
        return Ok(());
    }
    let delta = if i.op1_kind() == OpKind::Register {
        ((signed(n, size) >> bits.trailing_zeros()) as u64).wrapping_mul(size as u64)
    } else {
        0
    };
    let a = operands::address_at(c, i, delta, size, kind != 0)?;
    let x = if kind == 0 {
        c.read_linear(a, size)?
    } else {
        update_at(c, a, size, i.has_lock_prefix(), &mut |_, x| Ok(change(x, bit)))?
    };
    c.set_cf(x & bit != 0);
    Ok(())
}

fn scan(c: &mut Cpu, i: &Instruction, reverse: bool) -> Res {
    let y = read(c, i, 1)?;
    c.flags_logic::<8>(y);
    if y != 0 {
        let n = if reverse { 63 - y.leading_zeros() } else { y.trailing_zeros() };
        set(c, i.op0_register(), u64::from(n));
    }
    Ok(())
}

fn popcnt(c: &mut Cpu, i: &Instruction) -> Res {
    let y = read(c, i, 1)?;
    set(c, i.op0_register(), u64::from(y.count_ones()));
    c.set_arith_flags(if y == 0 { rflags::ZF } else { 0 });
    Ok(())
}

fn exchange(c: &mut Cpu, i: &Instruction) -> Res {
    // XCHG with memory is locked with or without the prefix; either operand may be the memory.
    let y = get(c, i.op1_register());
    let x = update(c, i, true, |_, _| Ok(y))?;
    set(c, i.op1_register(), x);
    Ok(())
}

fn xadd(c: &mut Cpu, i: &Instruction) -> Res {
    let size = size(i, 0);
    let y = get(c, i.op1_register());
    if i.op0_kind() == OpKind::Register {
        let x = get(c, i.op0_register());
        let sum = arithmetic(c, alu::ADD, size, x, y);
        set(c, i.op1_register(), x);
        set(c, i.op0_register(), sum);
        return Ok(());
    }
    let x = update(c, i, i.has_lock_prefix(), |_, x| Ok(x.wrapping_add(y)))?;
    arithmetic(c, alu::ADD, size, x, y);
    set(c, i.op1_register(), x);
    Ok(())
}

fn cmpxchg(c: &mut Cpu, i: &Instruction) -> Res {
    let size = size(i, 0);
    let new = get(c, i.op1_register());
    let expected = c.regs[RAX] & mask(size);
    if i.op0_kind() == OpKind::Register {
        let r = i.op0_register();
        let x = get(c, r);
        arithmetic(c, alu::CMP, size, expected, x);
        if x == expected {
            set(c, r, new);
        } else {
            set_number(c, RAX, size, x);
        }
        return Ok(());
    }
    // As on hardware, memory is written in any case: with its own value if the comparison fails.
    let x = update(c, i, i.has_lock_prefix(), |_, x| Ok(if x == expected { new } else { x }))?;
    arithmetic(c, alu::CMP, size, expected, x);
    if x != expected {
        set_number(c, RAX, size, x);
    }
    Ok(())
}

fn set_zf(c: &mut Cpu, zf: bool) {
    let f = c.arith_flags() & !rflags::ZF | if zf { rflags::ZF } else { 0 };
    c.set_arith_flags(f);
}

fn cmpxchg8b(c: &mut Cpu, i: &Instruction) -> Res {
    let expected = (c.regs[RDX] & 0xffff_ffff) << 32 | c.regs[RAX] & 0xffff_ffff;
    let new = (c.regs[RCX] & 0xffff_ffff) << 32 | c.regs[RBX] & 0xffff_ffff;
    let a = operands::address(c, i, 8, true)?;
    let x = update_at(c, a, 8, i.has_lock_prefix(), &mut |_, x| Ok(if x == expected { new } else { x }))?;
    set_zf(c, x == expected);
    if x != expected {
        c.regs[RAX] = x & 0xffff_ffff;
        c.regs[RDX] = x >> 32;
    }
    Ok(())
}

fn cmpxchg16b(c: &mut Cpu, i: &Instruction) -> Res {
    let a = operands::aligned_address(c, i, 16, 16, true)?;
    let expected = [c.regs[RAX], c.regs[RDX]];
    let new = [c.regs[RBX], c.regs[RCX]];
    c.probe_write(a, 16)?;
    let (done, x) = match c.tlb.span(a, true) {
        Some(p) => operands::compare_exchange16(p, expected, new),
        None => {
            let x = c.read_linear16(a)?;
            c.write_linear16(a, if x == expected { new } else { x })?;
            (x == expected, x)
        }
    };
    set_zf(c, done);
    if !done {
        c.regs[RAX] = x[0];
        c.regs[RDX] = x[1];
    }
    Ok(())
}

fn xlat(c: &mut Cpu, i: &Instruction) -> Res {
    let size = i.memory_base().size();
    let at = c.regs[RBX].wrapping_add(c.regs[RAX] & 0xff) & mask(size);
    let a = c.linear(crate::segment::index_of(i.memory_segment()), at, 1, false)?;
    let v = c.read_linear(a, 1)?;
    set_number(c, RAX, 1, v);
    Ok(())
}

/// Decimal adjustments, which 64-bit mode does not have (SDM volume 2).
fn decimal(c: &mut Cpu, i: &Instruction) -> Res {
    let al = c.regs[RAX] & 0xff;
    let ah = (c.regs[RAX] >> 8) & 0xff;
    let (af, cf) = (c.af(), c.cf());
    match i.mnemonic() {
        M::Aaa | M::Aas => {
            let adjust = al & 15 > 9 || af;
            let ax = c.regs[RAX] & 0xffff;
            let v = match (adjust, i.mnemonic() == M::Aaa) {
                (false, _) => ax & 0xff0f,
                (true, true) => ax.wrapping_add(0x106) & 0xff0f,
                (true, false) => ax.wrapping_sub(0x106) & 0xff0f,
            };
            set_number(c, RAX, 2, v);
            c.flags_logic::<1>(v & 0xff);
            let f = c.arith_flags() & !(rflags::AF | rflags::CF);
            c.set_arith_flags(f | if adjust { rflags::AF | rflags::CF } else { 0 });
        }
        M::Aad => {
            let v = al.wrapping_add(ah.wrapping_mul(i.immediate(0) & 0xff)) & 0xff;
            set_number(c, RAX, 2, v);
            c.flags_logic::<1>(v);
        }
        M::Aam => {
            let by = i.immediate(0) & 0xff;
            let q = al.checked_div(by).ok_or(Fault::DE)?;
            let r = al % by;
            set_number(c, RAX, 2, q << 8 | r);
            c.flags_logic::<1>(r);
        }
        m => {
            let low = al & 15 > 9 || af;
            let high = al > 0x99 || cf;
            let mut v = al;
            let mut carry = cf;
            if low {
                carry |= if m == M::Daa { al > 0xf9 } else { al < 6 };
                v = if m == M::Daa { v.wrapping_add(6) } else { v.wrapping_sub(6) };
            }
            if high {
                v = if m == M::Daa { v.wrapping_add(0x60) } else { v.wrapping_sub(0x60) };
            }
            carry = if m == M::Daa { high } else { high || (low && carry) };
            set_number(c, RAX, 1, v & 0xff);
            c.flags_logic::<1>(v & 0xff);
            let f = c.arith_flags();
            c.set_arith_flags(f | if low { rflags::AF } else { 0 } | if carry { rflags::CF } else { 0 });
        }
    }
    Ok(())
}

fn bound(c: &mut Cpu, i: &Instruction) -> Res {
    let size = size(i, 0);
    let a = operands::address(c, i, 2 * size, false)?;
    let low = c.read_linear(a, size)?;
    let high = c.read_linear(c.wrap(a.wrapping_add(size as u64)), size)?;
    let x = signed(get(c, i.op0_register()), size);
    if x < signed(low, size) || x > signed(high, size) {
        return Err(Fault::Plain(vector::BR));
    }
    Ok(())
}

fn arpl(c: &mut Cpu, i: &Instruction) -> Res {
    if !c.protected() {
        return Err(Fault::UD);
    }
    let y = read(c, i, 1)? & 3;
    let x = read(c, i, 0)?;
    let low = x & 3 < y;
    if low {
        write(c, i, 0, x & !3 | y)?;
    }
    set_zf(c, low);
    Ok(())
}
