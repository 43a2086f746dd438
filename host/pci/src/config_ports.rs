//! Configuration mechanism #1: an address at port 0xcf8, data at 0xcfc (PCI 3.0, section 3.2.2.3.2; 82441FX, 3.1).
//!
//! The address register answers double words only; the i440FX passes narrower accesses on to the bus, where the PIIX3
//! owns the byte at 0xcf9.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use cardcage_memory::{AddressSpace, IoHandler, MapError};

use crate::bus::ones;
use crate::{Devfn, PciBus, ResetControl};

/// First port.
pub const CONFIG_PORTS: u64 = 0xcf8;
/// Offset of the data register.
const DATA: u64 = 4;
/// Offset of the reset control register.
const RESET_CONTROL: u64 = 1;
/// Address register bit: data accesses become configuration accesses.
const ENABLE: u32 = 1 << 31;
/// Bits of the address register that can be written: enable, bus, devfn, register.
const WRITABLE: u32 = 0x80ff_fffc;

/// Ports 0xcf8 to 0xcff.
pub struct ConfigPorts {
    bus: Arc<PciBus>,
    reset: Arc<ResetControl>,
    address: AtomicU32,
}

impl ConfigPorts {
    /// The ports of `bus`; `reset` is the byte at 0xcf9.
    pub fn new(bus: Arc<PciBus>, reset: Arc<ResetControl>) -> Arc<Self> {
        Arc::new(Self { bus, reset, address: AtomicU32::new(0) })
    }

    /// Puts the ports where they belong.
    pub fn map(self: &Arc<Self>, ports: &AddressSpace) -> Result<(), MapError> {
        ports.map(CONFIG_PORTS, 8, "PCI configuration ports", self.clone())
    }

    /// RST#: both registers to zero.
    pub fn reset(&self) {
        self.set_address(0);
        self.reset.set(0);
    }

    /// The address register, to be saved.
    pub fn address(&self) -> u32 {
        self.address.load(Ordering::SeqCst)
    }

    /// Sets the address register: 0 on reset, or what was saved.
    pub fn set_address(&self, address: u32) {
        self.address.store(address & WRITABLE, Ordering::SeqCst);
    }

    /// Function, register and size that a data access means: `None` if it is no configuration access of bus 0. What
    /// reaches beyond the data register is cut off.
    fn target(&self, offset: u64, size: u8) -> Option<(Devfn, u16, u8)> {
        let address = self.address();
        let lane = offset.checked_sub(DATA).filter(|&lane| lane < 4)? as u8;
        if address & ENABLE == 0 || address & 0x00ff_0000 != 0 {
            return None;
        }
        let register = (address & 0xfc) as u16 + u16::from(lane);
        Some((Devfn::from_byte((address >> 8) as u8), register, size.min(4 - lane)))
    }
}

impl IoHandler for ConfigPorts {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let all = u64::from(ones(size));
        match (offset, size) {
            (0, 4) => u64::from(self.address()),
            (RESET_CONTROL, 1) => u64::from(self.reset.read()),
            _ => match self.target(offset, size) {
                Some((at, register, len)) => {
                    let value = u64::from(self.bus.config_read(at, register, len));
                    value | all & !u64::from(ones(len))
                }
                None => all,
            },
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        match (offset, size) {
            (0, 4) => self.set_address(value as u32),
            (RESET_CONTROL, 1) => self.reset.write(value as u8),
            _ => {
                if let Some((at, register, len)) = self.target(offset, size) {
                    self.bus.config_write(at, register, len, value as u32 & ones(len));
                }
            }
        }
    }
}
