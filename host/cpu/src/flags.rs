//! Arithmetic flags, kept as the last result and a word of carries.
//!
//! `fl_res` is the result, sign-extended to 64 bits: ZF, SF and PF follow from it. `fl_aux` holds the carry out of the
//! operation in bit 63 (CF), the carry into its top bit in bit 62 (OF is their difference), the carry out of bit 3 in
//! bit 3 (AF), and, for flags that were set by value, corrections: a byte to be mixed into the low byte of the result
//! for PF in bits 8 to 15, and one for SF in bit 16.

use crate::state::{Cpu, mask, rflags, sign_extend};

/// The bits of `fl_aux` that arithmetic sets.
const CARRIES: u64 = 3 << 62 | 8;

/// Brings a vector of carries out of each bit into the form of `fl_aux`.
#[inline(always)]
fn aux_of<const SZ: usize>(carries: u64) -> u64 {
    if SZ == 8 { carries & CARRIES } else { (carries << (64 - 8 * SZ)) & (3 << 62) | (carries & 8) }
}

impl Cpu {
    /// Flags of `x + y (+ carry) = r`.
    #[inline(always)]
    pub(crate) fn flags_add<const SZ: usize>(&mut self, x: u64, y: u64, r: u64) {
        self.fl_res = sign_extend(r, SZ);
        self.fl_aux = aux_of::<SZ>((x & y) | ((x | y) & !r));
    }

    /// Flags of `x - y (- borrow) = r`.
    #[inline(always)]
    pub(crate) fn flags_sub<const SZ: usize>(&mut self, x: u64, y: u64, r: u64) {
        self.fl_res = sign_extend(r, SZ);
        self.fl_aux = aux_of::<SZ>((!x & y) | ((!x | y) & r));
    }

    /// Flags of a logical operation.
    #[inline(always)]
    pub(crate) fn flags_logic<const SZ: usize>(&mut self, r: u64) {
        self.fl_res = sign_extend(r, SZ);
        self.fl_aux = 0;
    }

    /// Flags with CF and OF given by value.
    #[inline(always)]
    pub(crate) fn flags_co<const SZ: usize>(&mut self, r: u64, cf: bool, of: bool) {
        self.fl_res = sign_extend(r, SZ);
        self.fl_aux = u64::from(cf) << 63 | u64::from(cf ^ of) << 62;
    }

    #[inline(always)]
    pub(crate) fn cf(&self) -> bool {
        (self.fl_aux as i64) < 0
    }
    #[inline(always)]
    pub(crate) fn of(&self) -> bool {
        ((self.fl_aux ^ (self.fl_aux << 1)) as i64) < 0
    }
    #[inline(always)]
    pub(crate) fn zf(&self) -> bool {
        self.fl_res == 0
    }
    #[inline(always)]
    pub(crate) fn sf(&self) -> bool {
        ((self.fl_res ^ (self.fl_aux << 47)) as i64) < 0
    }
    #[inline(always)]
    pub(crate) fn pf(&self) -> bool {
        ((self.fl_res ^ (self.fl_aux >> 8)) as u8).count_ones() & 1 == 0
    }
    #[inline(always)]
    pub(crate) fn af(&self) -> bool {
        self.fl_aux & 8 != 0
    }

    /// Sets CF and leaves the others.
    #[inline(always)]
    pub(crate) fn set_cf(&mut self, cf: bool) {
        // OF is bit 63 xor bit 62: flipping CF flips both.
        let flip = u64::from(cf != self.cf());
        self.fl_aux ^= flip << 63 | flip << 62;
    }

    /// Sets CF and OF and leaves the others.
    #[inline(always)]
    pub(crate) fn set_co(&mut self, cf: bool, of: bool) {
        self.fl_aux = self.fl_aux & !(3 << 62) | u64::from(cf) << 63 | u64::from(cf ^ of) << 62;
    }

    /// The six arithmetic flags in their RFLAGS positions.
    pub(crate) fn arith_flags(&self) -> u64 {
        let mut f = 0;
        for (on, bit) in [
            (self.cf(), rflags::CF),
            (self.pf(), rflags::PF),
            (self.af(), rflags::AF),
            (self.zf(), rflags::ZF),
            (self.sf(), rflags::SF),
            (self.of(), rflags::OF),
        ] {
            if on {
                f |= bit;
            }
        }
        f
    }

    /// Sets the six arithmetic flags from their RFLAGS positions.
    pub(crate) fn set_arith_flags(&mut self, f: u64) {
        let on = |bit| f & bit != 0;
        let res: u64 = if on(rflags::ZF) { 0 } else { 1 << 8 };
        let sf = u64::from(on(rflags::SF));
        // The low byte of `res` is zero, so parity is even unless corrected.
        let pf = u64::from(!on(rflags::PF));
        let (cf, of) = (on(rflags::CF), on(rflags::OF));
        self.fl_res = res;
        self.fl_aux =
            u64::from(cf) << 63 | u64::from(cf ^ of) << 62 | sf << 16 | pf << 8 | if on(rflags::AF) { 8 } else { 0 };
    }

    /// All of RFLAGS.
    pub(crate) fn rflags_value(&self) -> u64 {
        self.rflags & !rflags::ARITH | self.arith_flags() | rflags::FIXED
    }

    /// Sets all of RFLAGS that exist, without any check.
    pub(crate) fn set_rflags(&mut self, value: u64) {
        self.rflags = value & rflags::ALL & !rflags::ARITH;
        self.set_arith_flags(value);
    }

    /// Whether condition `CC`, numbered as in the encoding of Jcc, holds.
    #[inline(always)]
    pub(crate) fn cond<const CC: u8>(&self) -> bool {
        let t = match CC >> 1 {
            0 => self.of(),
            1 => self.cf(),
            2 => self.zf(),
            3 => self.cf() || self.zf(),
            4 => self.sf(),
            5 => self.pf(),
            6 => self.sf() != self.of(),
            _ => self.zf() || self.sf() != self.of(),
        };
        t ^ (CC & 1 == 1)
    }

    /// The same with the condition as a value.
    pub(crate) fn condition(&self, cc: u8) -> bool {
        let t = match (cc >> 1) & 7 {
            0 => self.of(),
            1 => self.cf(),
            2 => self.zf(),
            3 => self.cf() || self.zf(),
            4 => self.sf(),
            5 => self.pf(),
            6 => self.sf() != self.of(),
            _ => self.zf() || self.sf() != self.of(),
        };
        t ^ (cc & 1 == 1)
    }
}

/// Whether condition `CC` holds after comparing `x` with `y`.
#[inline(always)]
pub(crate) fn compare<const CC: u8, const SZ: usize>(x: u64, y: u64) -> bool {
    let (xu, yu) = (x & mask(SZ), y & mask(SZ));
    let (xs, ys) = (sign_extend(x, SZ) as i64, sign_extend(y, SZ) as i64);
    let r = sign_extend(x.wrapping_sub(y), SZ) as i64;
    let t = match CC >> 1 {
        0 => (xs < ys) != (r < 0),
        1 => xu < yu,
        2 => xu == yu,
        3 => xu <= yu,
        4 => r < 0,
        5 => (r as u8).count_ones() & 1 == 0,
        6 => xs < ys,
        _ => xs <= ys,
    };
    t ^ (CC & 1 == 1)
}

/// Whether condition `CC` holds after a logical operation with result `r`.
#[inline(always)]
pub(crate) fn logical<const CC: u8, const SZ: usize>(r: u64) -> bool {
    let r = sign_extend(r, SZ) as i64;
    let t = match CC >> 1 {
        0 | 1 => false,
        2 | 3 => r == 0,
        4 | 6 => r < 0,
        5 => (r as u8).count_ones() & 1 == 0,
        _ => r <= 0,
    };
    t ^ (CC & 1 == 1)
}
