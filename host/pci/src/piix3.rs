//! The ISA bridge, 8086:7000 (Intel 82371SB): PIRQ routing and the reset control register.
//!
//! The edge/level registers at 0x4d0 belong to the interrupt controllers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::registers::{self as reg, Command, Status};
use crate::{Identity, InterruptRouter, PciFunction, PciHook};

/// PIRQ route control A; B, C and D follow (section 2.2.11).
const PIRQ_ROUTE: u16 = Piix3::PIRQ_ROUTE as u16;

/// Reset control bit 1: a hard reset rather than a soft one. Stored only.
const SYSTEM_RESET: u8 = 1 << 1;
/// Reset control bit 2: setting it resets.
const RESET_CPU: u8 = 1 << 2;

/// The reset control register, port 0xcf9 (section 2.5.7).
pub struct ResetControl {
    value: AtomicU8,
    reset: Box<dyn Fn() + Send + Sync>,
}

impl ResetControl {
    /// Its port.
    pub const PORT: u16 = 0xcf9;
    /// Writing this resets the machine.
    pub const RESET: u8 = SYSTEM_RESET | RESET_CPU;

    /// `reset` is called on the vCPU's thread when the guest asks for a reset of the machine.
    pub fn new(reset: Box<dyn Fn() + Send + Sync>) -> Arc<Self> {
        Arc::new(Self { value: AtomicU8::new(0), reset })
    }

    /// The guest reads the port.
    pub fn read(&self) -> u8 {
        self.value.load(Ordering::SeqCst)
    }

    /// The guest writes the port.
    pub fn write(&self, value: u8) {
        self.set(value);
        if value & RESET_CPU != 0 {
            (self.reset)();
        }
    }

    /// Sets the value: 0 on reset, or what was saved.
    pub fn set(&self, value: u8) {
        self.value.store(value & SYSTEM_RESET, Ordering::SeqCst);
    }
}

/// The ISA bridge.
pub struct Piix3 {
    router: Arc<InterruptRouter>,
}

impl Piix3 {
    /// Offset of the four PIRQ routing registers.
    pub const PIRQ_ROUTE: u8 = 0x60;

    /// Builds the function for slot 1, function 0. `routes` are the PIRQ routing registers after reset: 0x80 on
    /// hardware; a board that boots without firmware gives the routes that firmware would program.
    pub fn function(router: Arc<InterruptRouter>, routes: [u8; 4]) -> Arc<PciFunction> {
        let identity = Identity {
            vendor: 0x8086,
            device: 0x7000,
            class: 0x06_01_00,
            revision: 0,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        };
        let mut function = PciFunction::builder("PIIX3", identity);
        let command = (Command::IO | Command::MEMORY | Command::BUS_MASTER).bits().to_le_bytes();
        let status = Status::FAST_BACK | Status::DEVSEL_MEDIUM;
        function.register(reg::COMMAND, &command, &Command::SERR.bits().to_le_bytes());
        function.register(reg::STATUS, &status.bits().to_le_bytes(), &[0, 0]);
        // I/O recovery, XBUS chip selects, MB DMA, APIC base and friends: storage with the data sheet's defaults.
        function.register(0x4c, &[0x4d, 0x00, 0x03, 0x00], &[0xff; 4]);
        function.register(PIRQ_ROUTE, &routes, &[0x8f; 4]);
        function.register(0x69, &[0x02, 0x00], &[0xff; 2]);
        function.register(0x70, &[0x80], &[0xff]);
        function.register(0x76, &[0x0c, 0x0c], &[0xff; 2]);
        function.register(0x80, &[0], &[0xff]);
        function.register(0x82, &[0x00], &[0xff]);
        function.register(0xa0, &[0x08], &[0xff]);
        function.register(0xa2, &[0; 4], &[0xff; 4]);
        function.register(0xa8, &[0x0f], &[0xff]);
        function.multifunction();
        for (pirq, route) in routes.into_iter().enumerate() {
            router.set_route(pirq, route);
        }
        function.hook(Arc::new(Self { router }));
        function.build()
    }

    fn route(&self, function: &PciFunction) {
        let config = function.config();
        for pirq in 0..4 {
            self.router.set_route(usize::from(pirq), config.read(PIRQ_ROUTE + pirq, 1) as u8);
        }
    }
}

impl PciHook for Piix3 {
    fn config_written(&self, function: &PciFunction, offset: u16, size: u8) {
        if offset < PIRQ_ROUTE + 4 && PIRQ_ROUTE < offset.saturating_add(u16::from(size)) {
            self.route(function);
        }
    }

    fn reset(&self, function: &PciFunction) {
        self.route(function);
    }

    fn restored(&self, function: &PciFunction) {
        self.route(function);
    }
}
