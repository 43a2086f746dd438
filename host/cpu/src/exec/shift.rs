//! Shifts and rotations.

use super::{by_size, get};
use crate::op::{Handler, Op, Ret, next};
use crate::state::{Cpu, RCX, mask, sign_extend};

pub(crate) const SHL: u8 = 0;
pub(crate) const SHR: u8 = 1;
pub(crate) const SAR: u8 = 2;
pub(crate) const ROL: u8 = 3;
pub(crate) const ROR: u8 = 4;
pub(crate) const RCL: u8 = 5;
pub(crate) const RCR: u8 = 6;

/// The count that a shift of `SZ` bytes uses.
#[inline(always)]
pub(crate) const fn count_of(size: usize, count: u64) -> u32 {
    (count & if size == 8 { 63 } else { 31 }) as u32
}

/// Shifts `x` by `n`, which is already masked. Flags stay if `n` is zero.
#[inline(always)]
pub(crate) fn shift<const K: u8, const SZ: usize, const FL: bool>(c: &mut Cpu, x: u64, n: u32) -> u64 {
    let bits = 8 * SZ as u32;
    let top = 1u64 << (bits - 1);
    let xm = x & mask(SZ);
    match K {
        SHL => {
            let r = (xm << n) & mask(SZ);
            if FL && n != 0 {
                let cf = n <= bits && (xm << (n - 1)) & top != 0;
                c.flags_co::<SZ>(r, cf, cf != (r & top != 0));
            }
            r
        }
        SHR => {
            let r = xm >> n;
            if FL && n != 0 {
                c.flags_co::<SZ>(r, (xm >> (n - 1)) & 1 != 0, n == 1 && xm & top != 0);
            }
            r
        }
        SAR => {
            let sx = sign_extend(x, SZ) as i64;
            let r = (sx >> n) as u64;
            if FL && n != 0 {
                c.flags_co::<SZ>(r, (sx >> (n - 1)) & 1 != 0, false);
            }
            r
        }
        ROL => {
            let k = n % bits;
            let r = if k == 0 { xm } else { (xm << k | xm >> (bits - k)) & mask(SZ) };
            if FL && n != 0 {
                let cf = r & 1 != 0;
                c.set_co(cf, cf != (r & top != 0));
            }
            r
        }
        ROR => {
            let k = n % bits;
            let r = if k == 0 { xm } else { (xm >> k | xm << (bits - k)) & mask(SZ) };
            if FL && n != 0 {
                let cf = r & top != 0;
                c.set_co(cf, cf != (r & (top >> 1) != 0));
            }
            r
        }
        _ => {
            // RCL and RCR rotate through CF: SZ * 8 + 1 bits.
            let k = n % (bits + 1);
            let mut r = xm;
            let mut cf = c.cf();
            for _ in 0..k {
                if K == RCL {
                    let out = r & top != 0;
                    r = (r << 1 | u64::from(cf)) & mask(SZ);
                    cf = out;
                } else {
                    let out = r & 1 != 0;
                    r = r >> 1 | if cf { top } else { 0 };
                    cf = out;
                }
            }
            if FL && k != 0 {
                let of = if K == RCL { cf != (r & top != 0) } else { (r & top != 0) != (r & (top >> 1) != 0) };
                c.set_co(cf, of);
            }
            r
        }
    }
}

extern "C" fn ri<const K: u8, const SZ: usize, const FL: bool>(c: &mut Cpu, o: &Op) -> Ret {
    let v = shift::<K, SZ, FL>(c, c.get::<SZ>(o.a), o.imm as u32 & 63);
    c.set::<SZ>(o.a, v);
    next(c, o)
}

extern "C" fn rc<const K: u8, const SZ: usize, const FL: bool>(c: &mut Cpu, o: &Op) -> Ret {
    let n = count_of(SZ, c.regs[RCX]);
    let v = shift::<K, SZ, FL>(c, c.get::<SZ>(o.a), n);
    c.set::<SZ>(o.a, v);
    next(c, o)
}

extern "C" fn mi<const K: u8, const SZ: usize, const FL: bool>(c: &mut Cpu, o: &Op) -> Ret {
    let a = c.ea(o);
    let (x, place) = get!(c.load_for_store::<SZ>(o, a));
    let v = shift::<K, SZ, FL>(c, x, o.imm as u32 & 63);
    c.store_back::<SZ>(o, a, place, v);
    next(c, o)
}

extern "C" fn mc<const K: u8, const SZ: usize, const FL: bool>(c: &mut Cpu, o: &Op) -> Ret {
    let a = c.ea(o);
    let n = count_of(SZ, c.regs[RCX]);
    let (x, place) = get!(c.load_for_store::<SZ>(o, a));
    let v = shift::<K, SZ, FL>(c, x, n);
    c.store_back::<SZ>(o, a, place, v);
    next(c, o)
}

/// The handler of a shift; `by_cl` takes the count from CL instead of the immediate.
pub(crate) fn pick(kind: u8, size: usize, flags: bool, memory: bool, by_cl: bool) -> Handler {
    macro_rules! kind {
        ($k:expr) => {
            match (memory, by_cl, flags) {
                (false, false, true) => by_size!(size, ri[$k; true]),
                (false, false, false) => by_size!(size, ri[$k; false]),
                (false, true, true) => by_size!(size, rc[$k; true]),
                (false, true, false) => by_size!(size, rc[$k; false]),
                (true, false, _) => by_size!(size, mi[$k; true]),
                (true, true, _) => by_size!(size, mc[$k; true]),
            }
        };
    }
    match kind {
        SHL => kind!(SHL),
        SHR => kind!(SHR),
        SAR => kind!(SAR),
        ROL => kind!(ROL),
        ROR => kind!(ROR),
        RCL => kind!(RCL),
        _ => kind!(RCR),
    }
}

/// SHLD and SHRD with `n` masked: the result, with flags set. Counts above the width are left to `n % bits`.
#[inline(always)]
pub(crate) fn double<const LEFT: bool, const SZ: usize>(c: &mut Cpu, x: u64, y: u64, n: u32) -> u64 {
    let bits = 8 * SZ as u32;
    let (x, y) = (x & mask(SZ), y & mask(SZ));
    if n == 0 {
        return x;
    }
    let top = 1u64 << (bits - 1);
    if SZ == 2 && n > 16 {
        // Undefined on paper; processors shift the pattern dest:src:dest.
        let wide = x << 32 | y << 16 | x;
        let (r, cf) = if LEFT {
            ((wide << n >> 32) & 0xffff, (wide >> (48 - n)) & 1 != 0)
        } else {
            ((wide >> n) & 0xffff, (wide >> (n - 1)) & 1 != 0)
        };
        c.flags_co::<SZ>(r, cf, (r ^ x) & top != 0);
        return r;
    }
    let (r, cf) = if LEFT {
        let spill = if n == bits { y } else { y >> (bits - n) };
        (((if n == 64 { 0 } else { x << n }) | spill) & mask(SZ), (x >> (bits - n)) & 1 != 0)
    } else {
        let spill = if n == bits { y } else { y << (bits - n) };
        (((if n == 64 { 0 } else { x >> n }) | spill) & mask(SZ), (x >> (n - 1)) & 1 != 0)
    };
    c.flags_co::<SZ>(r, cf, (r ^ x) & top != 0);
    r
}

extern "C" fn double_r<const LEFT: bool, const CL: bool, const SZ: usize>(c: &mut Cpu, o: &Op) -> Ret {
    let n = count_of(SZ, if CL { c.regs[RCX] } else { o.imm });
    let v = double::<LEFT, SZ>(c, c.reg(o.a), c.reg(o.b), n);
    c.set::<SZ>(o.a, v);
    next(c, o)
}

/// The handler of SHLD and SHRD on registers of 32 and 64 bits.
pub(crate) fn pick_double(left: bool, by_cl: bool, size: usize) -> Handler {
    match (left, by_cl, size) {
        (true, false, 8) => double_r::<true, false, 8>,
        (true, true, 8) => double_r::<true, true, 8>,
        (false, false, 8) => double_r::<false, false, 8>,
        (false, true, 8) => double_r::<false, true, 8>,
        (true, false, _) => double_r::<true, false, 4>,
        (true, true, _) => double_r::<true, true, 4>,
        (false, false, _) => double_r::<false, false, 4>,
        (false, true, _) => double_r::<false, true, 4>,
    }
}
