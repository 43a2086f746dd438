//! Base address registers: kinds, sizes, and what address they hold (PCI 3.0, section 6.2.5).

use std::fmt;

/// The two address spaces of the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// Memory.
    Memory,
    /// Ports.
    Io,
}

/// What a base address register decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// Ports.
    Io,
    /// Memory below 4 GiB.
    Memory32 {
        /// Reads have no side effects and writes may be merged.
        prefetchable: bool,
    },
    /// Memory anywhere. Takes the next register too, for the high half of the address.
    Memory64 {
        /// Reads have no side effects and writes may be merged.
        prefetchable: bool,
    },
}

impl BarKind {
    /// The address space it is in.
    pub fn space(self) -> Space {
        if self == Self::Io { Space::Io } else { Space::Memory }
    }

    /// How many registers it takes.
    pub fn registers(self) -> usize {
        if matches!(self, Self::Memory64 { .. }) { 2 } else { 1 }
    }

    /// The low bits that say what it is.
    pub(crate) fn flags(self) -> u32 {
        match self {
            Self::Io => 1,
            Self::Memory32 { prefetchable } => u32::from(prefetchable) << 3,
            Self::Memory64 { prefetchable } => 4 | u32::from(prefetchable) << 3,
        }
    }

    /// What is wrong with a BAR of this kind and size.
    pub(crate) fn refuse(self, size: u64) -> Option<&'static str> {
        let (min, max) = match self {
            Self::Io => (4, 1 << 16),
            Self::Memory32 { .. } => (16, 1 << 31),
            Self::Memory64 { .. } => (16, 1 << 46),
        };
        if !size.is_power_of_two() {
            Some("must have a size that is a power of two")
        } else if size < min {
            Some("is too small: an I/O BAR has at least 4 bytes, a memory BAR 16")
        } else if size > max {
            Some("is too big: an I/O BAR has at most 64 KiB, a 32-bit one 2 GiB, a 64-bit one 64 TiB")
        } else {
            None
        }
    }
}

impl fmt::Display for BarKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Io => "I/O",
            Self::Memory32 { prefetchable: false } => "32-bit memory",
            Self::Memory32 { prefetchable: true } => "32-bit prefetchable memory",
            Self::Memory64 { prefetchable: false } => "64-bit memory",
            Self::Memory64 { prefetchable: true } => "64-bit prefetchable memory",
        })
    }
}

/// One base address register that a function implements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    /// What it decodes.
    pub kind: BarKind,
    /// How many bytes, a power of two.
    pub size: u64,
}

impl Bar {
    /// Where the range is when the registers hold `raw`, `None` where no range can be.
    ///
    /// As in QEMU a range at address 0, one that wraps, a 32-bit one that ends with the last byte below 4 GiB (system
    /// software leaves it there while it measures the size) and ports above 0xffff are ignored.
    pub(crate) fn address(self, raw: u64) -> Option<u64> {
        let start = raw & !(self.size - 1);
        let last = start.checked_add(self.size - 1)?;
        let end = match self.kind {
            BarKind::Io => 0x1_0000,
            BarKind::Memory32 { .. } => u64::from(u32::MAX),
            BarKind::Memory64 { .. } => u64::MAX,
        };
        (start != 0 && last < end).then_some(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_places_are_ignored() {
        let io = Bar { kind: BarKind::Io, size: 0x20 };
        assert_eq!(io.address(0xc001), Some(0xc000));
        assert_eq!(io.address(0xffe1), Some(0xffe0));
        assert_eq!([io.address(1), io.address(0x1_0001), io.address(0xffff_ffe1)], [None; 3]);
        let low = Bar { kind: BarKind::Memory32 { prefetchable: false }, size: 0x1000 };
        assert_eq!(low.address(0xfebf_1000), Some(0xfebf_1000));
        assert_eq!([low.address(0), low.address(0xffff_f000)], [None; 2]);
        let high = Bar { kind: BarKind::Memory64 { prefetchable: true }, size: 0x4000 };
        assert_eq!(high.address(0x80_0000_000c), Some(0x80_0000_0000));
        assert_eq!(high.address(0xffff_ffff_ffff_c00c), None);
    }

    #[test]
    fn sizes_are_checked() {
        assert!(BarKind::Io.refuse(2).is_some() && BarKind::Io.refuse(4).is_none());
        assert!(BarKind::Memory32 { prefetchable: false }.refuse(0x30).unwrap().contains("power of two"));
        assert!(BarKind::Memory32 { prefetchable: false }.refuse(1 << 32).is_some());
        assert!(BarKind::Memory64 { prefetchable: false }.refuse(1 << 32).is_none());
    }
}
