//! The host bridge, 8086:1237 (Intel 82441FX, section 3.2).
//!
//! PAM and SMRAM registers keep what firmware writes, and whoever owns the memory map can hear of it. The DRAM
//! registers are storage.

use std::sync::Arc;

use crate::registers::{self as reg, Command, Status};
use crate::{Identity, PciFunction, PciHook};

/// Programmable attribute map, seven registers.
const PAM: u16 = 0x59;
/// System management RAM control.
const SMRAM: u16 = 0x72;
/// SMRAM after reset: compatible space at 0xa0000 (C_BASE_SEG).
const SMRAM_AT_RESET: u8 = 0x02;

/// Hears of the seven PAM registers and SMRAM.
pub type MapChanged = Box<dyn Fn([u8; 7], u8) + Send + Sync>;

/// The host bridge.
pub struct I440fx {
    changed: MapChanged,
}

impl I440fx {
    /// Builds the function for slot 0. `changed` is called with the PAM registers and SMRAM when the guest or a reset
    /// may have changed them.
    pub fn function(changed: MapChanged) -> Arc<PciFunction> {
        let identity = Identity {
            vendor: 0x8086,
            device: 0x1237,
            class: 0x06_00_00,
            revision: 2,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        };
        let mut function = PciFunction::builder("i440FX", identity);
        let status = Status::FAST_BACK | Status::DEVSEL_MEDIUM;
        // The bridge itself always decodes and masters: only SERR# can be switched.
        let command = (Command::MEMORY | Command::BUS_MASTER).bits().to_le_bytes();
        function.register(reg::COMMAND, &command, &Command::SERR.bits().to_le_bytes());
        function.register(reg::STATUS, &status.bits().to_le_bytes(), &[0, 0]);
        function.register(0x50, &[0; 4], &[0xff; 4]);
        // DRAM control and timing, fixed DRAM hole, row boundaries and types: storage for firmware.
        function.register(0x57, &[0x01, 0x00], &[0xff, 0xff]);
        function.register(PAM, &[0; 7], &[0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33]);
        function.register(0x60, &[0x01; 8], &[0xff; 8]);
        function.register(0x68, &[0], &[0xff]);
        function.register(SMRAM, &[SMRAM_AT_RESET], &[0x78]);
        function.hook(Arc::new(Self { changed }));
        function.build()
    }

    fn tell(&self, function: &PciFunction) {
        let config = function.config();
        let mut pam = [0; 7];
        for (register, offset) in pam.iter_mut().zip(PAM..) {
            *register = config.read(offset, 1) as u8;
        }
        (self.changed)(pam, config.read(SMRAM, 1) as u8);
    }
}

impl PciHook for I440fx {
    fn config_written(&self, function: &PciFunction, offset: u16, size: u8) {
        let end = offset.saturating_add(u16::from(size));
        let touches = |start: u16, len: u16| offset < start + len && start < end;
        if touches(PAM, 7) || touches(SMRAM, 1) {
            self.tell(function);
        }
    }

    fn reset(&self, function: &PciFunction) {
        self.tell(function);
    }

    fn restored(&self, function: &PciFunction) {
        self.tell(function);
    }
}
