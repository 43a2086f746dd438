//! A small generator of random numbers whose whole state is the seed, and random values that are likely to matter.

/// SplitMix64.
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Below `limit`, which is not zero.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }

    pub(crate) fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// An integer that is often at an edge.
    pub(crate) fn integer(&mut self) -> u64 {
        const EDGES: [u64; 16] = [
            0,
            1,
            2,
            0x7f,
            0x80,
            0xff,
            0x7fff,
            0x8000,
            0xffff,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            0x7fff_ffff_ffff_ffff,
            0x8000_0000_0000_0000,
            u64::MAX,
            0xffff_ffff_8000_0000,
        ];
        match self.below(8) {
            0 | 1 => self.pick(&EDGES),
            2 => self.below(64),
            3 => self.next() >> self.below(64),
            4 => (self.below(64) as i64).wrapping_neg() as u64,
            _ => self.next(),
        }
    }

    pub(crate) fn single(&mut self) -> u32 {
        const EDGES: [u32; 14] = [
            0,
            0x8000_0000,
            0x3f80_0000,
            0xbf80_0000,
            0x7f80_0000,
            0xff80_0000,
            0x7fc0_0000,
            0x7f80_0001,
            0xff80_1234,
            1,
            0x7f_ffff,
            0x80_0000,
            0x7f7f_ffff,
            0x4f00_0000,
        ];
        match self.below(4) {
            0 => self.pick(&EDGES),
            1 => self.next() as u32,
            // Near one, so that sums and products stay in range.
            2 => (0x7c + self.below(6) as u32) << 23 | (self.next() as u32 & 0x807f_ffff),
            _ => (self.next() as u32 & 0xffff_0000) & 0x9fff_ffff | 0x2000_0000,
        }
    }

    pub(crate) fn double(&mut self) -> u64 {
        const EDGES: [u64; 14] = [
            0,
            1 << 63,
            0x3ff0 << 48,
            0xbff0 << 48,
            0x7ff0 << 48,
            0xfff0 << 48,
            0x7ff8 << 48,
            (0x7ff0 << 48) + 1,
            (0xfff0 << 48) + 77,
            1,
            (1 << 52) - 1,
            1 << 52,
            (0x7ff0 << 48) - 1,
            0x43e0 << 48,
        ];
        match self.below(4) {
            0 => self.pick(&EDGES),
            1 => self.next(),
            2 => (0x3fc + self.below(6)) << 52 | (self.next() & 0x800f_ffff_ffff_ffff),
            _ => (0x380 + self.below(0x100)) << 52 | (self.next() & 0x800f_ff00_0000_0000),
        }
    }

    /// Eight bytes of any kind.
    pub(crate) fn quad(&mut self) -> u64 {
        match self.below(3) {
            0 => self.integer(),
            1 => self.double(),
            _ => u64::from(self.single()) | u64::from(self.single()) << 32,
        }
    }

    /// An 80-bit float: significand, then sign and exponent.
    pub(crate) fn extended(&mut self) -> (u64, u16) {
        let sign = (self.next() as u16) & 0x8000;
        match self.below(8) {
            0 => (0, sign),
            1 => (1 << 63, sign | 0x7fff),
            2 => (self.next(), sign | 0x7fff),
            3 => (self.next(), self.next() as u16),
            4 => (self.next() >> 1 >> self.below(63), sign),
            5 => (self.next() << self.below(63) | 1 << 63, sign | (0x3fff + self.below(70) as u16)),
            _ => (self.next() | 1 << 63, sign | (0x3ff0 + self.below(32) as u16)),
        }
    }
}
