//! The configuration space of one function: bytes, and which bits of them the guest may change (PCI 3.0, chapter 6).
//!
//! Knows nothing of buses or interrupts; whoever writes looks afterwards at what has become of the registers.

use crate::registers::{self as reg, Command, Status};
use crate::{Bar, PciError, Space};

/// How large a configuration space is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ConfigSize {
    /// 256 bytes: conventional PCI.
    #[default]
    Conventional,
    /// 4096 bytes: PCI Express.
    Express,
}

/// The numbers by which drivers know a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Base class, subclass and programming interface: `0xBBSSPP`.
    pub class: u32,
    /// Revision ID.
    pub revision: u8,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// Configuration space with header type 0.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    bytes: Box<[u8]>,
    /// Bits that a write changes.
    writable: Box<[u8]>,
    /// Bits that writing a one clears.
    clear_on_one: Box<[u8]>,
    bars: [Option<Bar>; 6],
    next_capability: usize,
}

impl ConfigSpace {
    /// A header with `identity`, no BARs and no capabilities.
    pub fn new(size: ConfigSize, identity: Identity) -> Self {
        let len = if size == ConfigSize::Express { 4096 } else { 256 };
        let zeroes = || vec![0; len].into_boxed_slice();
        let mut config = Self {
            bytes: zeroes(),
            writable: zeroes(),
            clear_on_one: zeroes(),
            bars: [None; 6],
            next_capability: usize::from(reg::HEADER_END),
        };
        config.set_u16(reg::VENDOR_ID, identity.vendor);
        config.set_u16(reg::DEVICE_ID, identity.device);
        config.set_u32(reg::REVISION_ID, identity.class << 8 | u32::from(identity.revision));
        config.set_u16(reg::SUBSYSTEM_VENDOR_ID, identity.subsystem_vendor);
        config.set_u16(reg::SUBSYSTEM_ID, identity.subsystem);
        let command = Command::all().bits().to_le_bytes();
        config.set_writable(reg::COMMAND, &command);
        config.set_writable(reg::INTERRUPT_LINE, &[0xff]);
        put(&mut config.clear_on_one, reg::STATUS, &Status::ERRORS.bits().to_le_bytes());
        config
    }

    /// Its size in bytes, 256 or 4096.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Reads 1, 2 or 4 bytes as the guest does; bytes beyond the end are all ones.
    pub fn read(&self, offset: u16, size: u8) -> u32 {
        (0..usize::from(size.min(4))).fold(0, |value, i| {
            let byte = self.bytes.get(usize::from(offset) + i).copied().unwrap_or(0xff);
            value | u32::from(byte) << (8 * i)
        })
    }

    /// Writes 1, 2 or 4 bytes as the guest does: masks apply; bytes beyond the end are ignored.
    pub fn write(&mut self, offset: u16, size: u8, value: u32) {
        for i in 0..usize::from(size.min(4)) {
            let at = usize::from(offset) + i;
            let new = (value >> (8 * i)) as u8;
            let (Some(byte), Some(writable), Some(clear)) =
                (self.bytes.get_mut(at), self.writable.get(at), self.clear_on_one.get(at))
            else {
                return;
            };
            *byte = (*byte & !writable | new & writable) & !(new & clear);
        }
    }

    /// Sets bytes as the device does, past all masks. Bytes beyond the end are ignored.
    pub fn set(&mut self, offset: u16, bytes: &[u8]) {
        put(&mut self.bytes, offset, bytes);
    }

    /// Sets 16 bits as the device does.
    pub fn set_u16(&mut self, offset: u16, value: u16) {
        self.set(offset, &value.to_le_bytes());
    }

    /// Sets 32 bits as the device does.
    pub fn set_u32(&mut self, offset: u16, value: u32) {
        self.set(offset, &value.to_le_bytes());
    }

    /// Says which bits the guest may change, from `offset` on.
    pub fn set_writable(&mut self, offset: u16, mask: &[u8]) {
        put(&mut self.writable, offset, mask);
    }

    /// Appends a capability: ID and link are added before `body`. `writable` tells which bits of `body` the guest may
    /// change; where it is shorter, the rest is read-only. Gives the offset of the capability's first byte.
    pub fn add_capability(&mut self, owner: &str, id: u8, body: &[u8], writable: &[u8]) -> Result<u8, PciError> {
        let (at, size) = (self.next_capability, body.len() + 2);
        let end = at + size;
        let error = || PciError::Capability { name: owner.into(), id, size, at };
        let offset = u8::try_from(at).map_err(|_| error())?;
        if end > 256 {
            return Err(error());
        }
        // Linked at the end, so that drivers meet capabilities in the order in which they were added.
        self.set(self.last_link(), &[offset]);
        let first = u16::from(offset);
        self.set(first, &[id, 0]);
        self.set(first + 2, body);
        self.set_writable(first + 2, writable.get(..body.len()).unwrap_or(writable));
        self.set_u16(reg::STATUS, self.read(reg::STATUS, 2) as u16 | Status::CAPABILITIES.bits());
        self.next_capability = end.next_multiple_of(4);
        Ok(offset)
    }

    /// Offset of the link that ends the capability list.
    fn last_link(&self) -> u16 {
        let mut link = reg::CAPABILITIES_POINTER;
        // The list is ours and has no cycle; the bound makes that plain.
        for _ in 0..64 {
            match self.read(link, 1) as u16 {
                0 => break,
                next => link = next + 1,
            }
        }
        link
    }

    /// Adds base address register `index`.
    pub fn add_bar(&mut self, owner: &str, index: usize, bar: Bar) -> Result<(), PciError> {
        let error = |reason| PciError::Bar { name: owner.into(), index, size: bar.size, kind: bar.kind, reason };
        if let Some(reason) = bar.kind.refuse(bar.size) {
            return Err(error(reason));
        }
        let wide = bar.kind.registers() == 2;
        if index + bar.kind.registers() > 6 {
            return Err(error("has no register: there are six, and a 64-bit BAR takes two"));
        }
        let after_wide = index > 0 && self.bars[index - 1].is_some_and(|b| b.kind.registers() == 2);
        if self.bars[index].is_some() || after_wide || wide && self.bars[index + 1].is_some() {
            return Err(error("uses a register that another BAR has"));
        }
        self.bars[index] = Some(bar);
        let offset = reg::BAR0 + 4 * index as u16;
        let low_bits: u32 = if bar.kind.space() == Space::Io { 3 } else { 0xf };
        let mask = !(bar.size - 1);
        self.set_u32(offset, bar.kind.flags());
        self.set_writable(offset, &(mask as u32 & !low_bits).to_le_bytes());
        if wide {
            self.set_writable(offset + 4, &((mask >> 32) as u32).to_le_bytes());
        }
        Ok(())
    }

    /// Base address register `index`, if the function has it.
    pub fn bar(&self, index: usize) -> Option<Bar> {
        self.bars.get(index).copied().flatten()
    }

    /// Where base address register `index` answers now: `None` if it is not there, its space is switched off in the
    /// command register, or it holds an address where it cannot be.
    pub fn bar_address(&self, index: usize) -> Option<u64> {
        let bar = self.bar(index)?;
        let needed = if bar.kind.space() == Space::Io { Command::IO } else { Command::MEMORY };
        if !self.command().contains(needed) {
            return None;
        }
        let offset = reg::BAR0 + 4 * index as u16;
        let high = if bar.kind.registers() == 2 { self.read(offset + 4, 4) } else { 0 };
        bar.address(u64::from(high) << 32 | u64::from(self.read(offset, 4)))
    }

    /// The command register.
    pub fn command(&self) -> Command {
        Command::from_bits_truncate(self.read(reg::COMMAND, 2) as u16)
    }

    /// Compares bytes of a saved space with this one, where the guest cannot have changed them.
    pub(crate) fn check_saved(&self, owner: &str, saved: &[u8]) -> Result<(), PciError> {
        let (found, expected) = (saved.len(), self.len());
        if found != expected {
            return Err(PciError::Length { name: owner.into(), what: "configuration space", found, expected });
        }
        for (offset, &saved) in saved.iter().enumerate() {
            let fixed = !(self.writable[offset] | self.clear_on_one[offset]);
            let here = self.bytes[offset];
            if (saved ^ here) & fixed != 0 {
                return Err(PciError::Differs { name: owner.into(), offset, saved, here });
            }
        }
        Ok(())
    }
}

fn put(to: &mut [u8], offset: u16, from: &[u8]) {
    for (to, from) in to.iter_mut().skip(usize::from(offset)).zip(from) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BarKind;
    use proptest::prelude::*;

    fn space() -> ConfigSpace {
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1041,
            class: 0x02_00_00,
            revision: 1,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        };
        ConfigSpace::new(ConfigSize::Conventional, identity)
    }

    #[test]
    fn the_header_says_who_it_is_and_cannot_be_changed() {
        let mut config = space();
        for offset in [0, 8, 0x2c] {
            config.write(offset, 4, 0xffff_ffff);
        }
        assert_eq!(config.read(0, 4), 0x1041_1af4);
        assert_eq!(config.read(8, 4), 0x0200_0001);
        assert_eq!(config.read(0x2c, 4), 0x1100_1af4);
        config.write(4, 2, 0xffff);
        assert_eq!(config.read(4, 2), u32::from(Command::all().bits()));
    }

    #[test]
    fn a_bar_tells_its_size_when_all_ones_are_written() {
        let mut config = space();
        config.add_bar("x", 0, Bar { kind: BarKind::Io, size: 0x20 }).unwrap();
        config.add_bar("x", 1, Bar { kind: BarKind::Memory32 { prefetchable: false }, size: 0x1000 }).unwrap();
        config.add_bar("x", 4, Bar { kind: BarKind::Memory64 { prefetchable: true }, size: 1 << 33 }).unwrap();
        for offset in (0x10..0x28).step_by(4) {
            config.write(offset, 4, u32::MAX);
        }
        let raw: Vec<u32> = (0x10..0x28).step_by(4).map(|o| config.read(o, 4)).collect();
        assert_eq!(raw, [0xffff_ffe1, 0xffff_f000, 0, 0, 0xc, 0xffff_fffe]);
    }

    #[test]
    fn bytes_of_a_bar_can_be_written_one_by_one() {
        let mut config = space();
        config.add_bar("x", 0, Bar { kind: BarKind::Memory32 { prefetchable: false }, size: 0x1000 }).unwrap();
        for (i, byte) in [0xff, 0x10, 0xbf, 0xfe].into_iter().enumerate() {
            config.write(0x10 + i as u16, 1, byte);
        }
        config.write(4, 2, 2);
        assert_eq!(config.bar_address(0), Some(0xfebf_1000));
        config.write(4, 2, 1);
        assert_eq!(config.bar_address(0), None);
    }

    #[test]
    fn bars_that_collide_or_do_not_fit_are_refused() {
        let mut config = space();
        let wide = Bar { kind: BarKind::Memory64 { prefetchable: false }, size: 0x1000 };
        config.add_bar("x", 2, wide).unwrap();
        for index in [1, 2, 3, 5, 6] {
            assert!(matches!(config.add_bar("x", index, wide), Err(PciError::Bar { .. })), "{index}");
        }
        let err = config.add_bar("e1000", 0, Bar { kind: BarKind::Io, size: 3 }).unwrap_err();
        assert_eq!(err.to_string(), "PCI: e1000: BAR 0 of 0x3 bytes (I/O) must have a size that is a power of two");
    }

    #[test]
    fn capabilities_are_linked_in_the_order_they_were_added() {
        let mut config = space();
        assert_eq!(config.read(reg::STATUS, 2) & 0x10, 0);
        let first = config.add_capability("x", 9, &[16, 1, 2, 3, 4], &[0, 0, 0xff]).unwrap();
        let second = config.add_capability("x", 0x11, &[0; 10], &[]).unwrap();
        assert_eq!((first, second), (0x40, 0x48));
        assert_eq!(config.read(0x34, 1), 0x40);
        assert_eq!(config.read(0x40, 4), 0x0110_4809);
        assert_eq!(config.read(0x48, 2), 0x11);
        assert_eq!(config.read(reg::STATUS, 2) & 0x10, 0x10);
        config.write(0x40, 4, u32::MAX);
        config.write(0x44, 4, u32::MAX);
        assert_eq!((config.read(0x40, 4), config.read(0x44, 4)), (0x0110_4809, 0x0004_03ff));
    }

    #[test]
    fn a_full_capability_list_is_an_error() {
        let mut config = space();
        config.add_capability("x", 9, &[0; 180], &[]).unwrap();
        let err = config.add_capability("x", 9, &[0; 180], &[]).unwrap_err();
        assert!(err.to_string().contains("capability 0x09 of 182 bytes does not fit"), "{err}");
    }

    #[test]
    fn errors_in_the_status_register_are_cleared_by_ones() {
        let mut config = space();
        config.set_u16(reg::STATUS, 0xf900);
        config.write(reg::STATUS, 2, 0x8100);
        assert_eq!(config.read(reg::STATUS, 2), 0x7800);
    }

    proptest! {
        #[test]
        fn any_access_is_survived_and_fixed_bits_stay(accesses: Vec<(u16, u8, u32)>) {
            let mut config = space();
            config.add_bar("x", 0, Bar { kind: BarKind::Memory64 { prefetchable: true }, size: 0x4000 }).unwrap();
            let before = config.clone();
            for (offset, size, value) in accesses {
                config.write(offset % 0x120, size, value);
                config.read(offset, size);
            }
            prop_assert!(before.check_saved("x", config.bytes()).is_ok());
        }
    }
}
