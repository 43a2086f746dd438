//! The power management function, 8086:7113 (Intel 82371AB, chapter 7): ACPI registers, power button, sleep, SCI.
//!
//! The GPE0 block sits at 0xafe0 as in QEMU, where its tables and its guests expect it. SMBus and SMM are left out.

use std::sync::{Arc, Mutex};

use cardcage_memory::IoHandler;

use crate::pm_registers::{self, Pm1, PmRegisters, PmState, Sleep};
use crate::registers::{self as reg, Status};
use crate::{Identity, InterruptRouter, PciError, PciFunction, PciHook, Space, Window, lock};

/// Power management base address, bit 0 reads as one.
const PMBASE: u16 = 0x40;
/// Power management miscellaneous; bit 0 switches the block at PMBASE on.
const PMREGMISC: u16 = 0x80;
/// Bytes of the block at PMBASE.
const PM_LEN: u64 = 64;
/// Offset of the PM timer in it; reads from there on have no side effects.
const PM_TIMER: u64 = 8;
/// Bytes of the APM control and status ports.
const APM_LEN: u64 = 2;

/// Window numbers of the function.
const PM_WINDOW: u8 = 0;
const GPE_WINDOW: u8 = 1;
const APM_WINDOW: u8 = 2;

/// What power management needs of the machine.
pub trait PowerSink: Send + Sync {
    /// The virtual clock.
    fn now_ns(&self) -> u64;
    /// Call [`Piix4Pm::timer_expired`] at this time of the virtual clock, and forget an earlier request; `None` for
    /// never. Called with a lock held: must not call back before it returns.
    fn set_timer(&self, deadline_ns: Option<u64>);
    /// The guest has switched the machine off (S5). Called on the vCPU's thread.
    fn power_off(&self);
    /// The guest sleeps (S3) until [`PowerSink::wake`]. Called on the vCPU's thread.
    fn suspend(&self);
    /// Something wakes the sleeping guest: reset the processor and let it run.
    fn wake(&self);
}

/// How the board wires the function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PmOptions {
    /// Where the block at PMBASE is after reset, a multiple of 64: for a board that boots without firmware. `None`
    /// leaves it off until firmware programs it.
    pub base: Option<u16>,
}

struct Inner {
    registers: PmRegisters,
    timer: Option<u64>,
}

/// Power management of the machine.
pub struct Piix4Pm {
    inner: Mutex<Inner>,
    router: Arc<InterruptRouter>,
    power: Arc<dyn PowerSink>,
}

impl Piix4Pm {
    /// First port of the GPE0 block, and how many: half status, half enable.
    pub const GPE0: (u16, u8) = (0xafe0, 4);
    /// Port that takes [`Piix4Pm::ACPI_ENABLE`] and [`Piix4Pm::ACPI_DISABLE`].
    pub const COMMAND_PORT: u16 = 0xb2;
    /// Switches ACPI mode on.
    pub const ACPI_ENABLE: u8 = pm_registers::ACPI_ENABLE;
    /// Switches ACPI mode off.
    pub const ACPI_DISABLE: u8 = pm_registers::ACPI_DISABLE;
    /// SLP_TYP that switches the power off.
    pub const SLEEP_TYPE_S5: u8 = 0;

    /// Builds the registers, and the function for slot 1, function 3.
    pub fn new(
        options: PmOptions,
        router: Arc<InterruptRouter>,
        power: Arc<dyn PowerSink>,
    ) -> (Arc<Self>, Arc<PciFunction>) {
        let inner = Mutex::new(Inner { registers: PmRegisters::new(), timer: None });
        let pm = Arc::new(Self { inner, router, power });
        let function = build(options, &pm);
        (pm, function)
    }

    /// The user presses the power button. Wakes a guest that sleeps; a guest that has not asked for the event does not
    /// see it.
    pub fn press_power_button(&self) {
        self.wake_or(Pm1::POWER_BUTTON, |registers| {
            let enabled = Pm1::from_bits_retain(registers.0.pm1_enable) & Pm1::POWER_BUTTON;
            registers.0.pm1_status |= enabled.bits();
        });
    }

    /// Wakes a guest that sleeps; else does nothing.
    pub fn wake(&self) {
        self.wake_or(Pm1::POWER_BUTTON, |_| {});
    }

    /// Sets bit `gpe` (0 to 15) of the GPE0 status register.
    pub fn raise_gpe(&self, gpe: u8) {
        self.change(|registers, _| registers.0.gpe_status |= 1u16.checked_shl(gpe.into()).unwrap_or(0));
    }

    /// The deadline given to [`PowerSink::set_timer`] has come.
    pub fn timer_expired(&self) {
        let mut inner = lock(&self.inner);
        inner.timer = None;
        self.follow(&mut inner);
    }

    /// Whether the guest sleeps in S3.
    pub fn is_suspended(&self) -> bool {
        lock(&self.inner).registers.0.suspended
    }

    /// The registers, to be saved.
    pub fn save(&self) -> PmState {
        lock(&self.inner).registers.0.clone()
    }

    /// Takes over saved registers; refuses those of a newer program. The virtual clock must be restored before.
    pub fn restore(&self, state: &PmState) -> Result<(), PciError> {
        let (found, supported) = (state.version, PmState::VERSION);
        if found == 0 || found > supported {
            return Err(PciError::Version { name: "PIIX4_PM".into(), what: "power management", found, supported });
        }
        let mut inner = lock(&self.inner);
        *inner = Inner { registers: PmRegisters(state.clone()), timer: None };
        // Whatever was asked for before belongs to another time.
        self.power.set_timer(None);
        self.follow(&mut inner);
        Ok(())
    }

    fn wake_or(&self, reason: Pm1, awake: impl FnOnce(&mut PmRegisters)) {
        let woken = self.change(|registers, _| {
            let asleep = std::mem::take(&mut registers.0.suspended);
            if asleep {
                registers.0.pm1_status |= (Pm1::WAKE | reason).bits();
            } else {
                awake(registers);
            }
            asleep
        });
        if woken {
            self.power.wake();
        }
    }

    /// Changes registers and lets the SCI and the timer follow.
    fn change<R>(&self, f: impl FnOnce(&mut PmRegisters, u64) -> R) -> R {
        let mut inner = lock(&self.inner);
        let result = f(&mut inner.registers, self.power.now_ns());
        self.follow(&mut inner);
        result
    }

    fn follow(&self, inner: &mut Inner) {
        let now = self.power.now_ns();
        self.router.set_sci(inner.registers.sci(now));
        let deadline = inner.registers.deadline(now);
        if deadline != inner.timer {
            inner.timer = deadline;
            self.power.set_timer(deadline);
        }
    }

    fn write_pm(&self, offset: u64, size: u8, value: u64) {
        let sleep = self.change(|registers, now| {
            let sleep = registers.write(offset, size, value, now);
            registers.0.suspended |= sleep == Some(Sleep::Suspend);
            sleep
        });
        match sleep {
            Some(Sleep::PowerOff) => self.power.power_off(),
            Some(Sleep::Suspend) => self.power.suspend(),
            None => {}
        }
    }
}

fn build(options: PmOptions, pm: &Arc<Piix4Pm>) -> Arc<PciFunction> {
    let identity = Identity {
        vendor: 0x8086,
        device: 0x7113,
        class: 0x06_80_00,
        revision: 3,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
    };
    let mut function = PciFunction::builder("PIIX4_PM", identity);
    let status = Status::FAST_BACK | Status::DEVSEL_MEDIUM;
    function.register(reg::STATUS, &status.bits().to_le_bytes(), &[0, 0]);
    // The SCI is wired to IRQ 9, but the register says INTA#.
    function.register(reg::INTERRUPT_PIN, &[1], &[0]);
    let base = u32::from(options.base.unwrap_or(0) & 0xffc0) | 1;
    function.register(PMBASE, &base.to_le_bytes(), &[0xc0, 0xff]);
    function.register(PMREGMISC, &[u8::from(options.base.is_some())], &[0x01]);
    // Device activity and resource registers, SMBus base and configuration: storage.
    function.register(0x44, &[0; 0x3c], &[0xff; 0x3c]);
    function.register(0x90, &[1, 0, 0, 0], &[0xf0, 0xff]);
    function.register(0xd2, &[0; 5], &[0xff; 5]);
    let (gpe0, gpe0_len) = Piix4Pm::GPE0;
    let io = |start: u16, len, handler| Window { space: Space::Io, start: start.into(), len, handler };
    function.window(GPE_WINDOW, io(gpe0, gpe0_len.into(), Arc::new(GpeBlock(pm.clone()))));
    function.window(APM_WINDOW, io(Piix4Pm::COMMAND_PORT, APM_LEN, Arc::new(ApmPorts(pm.clone()))));
    function.hook(Arc::new(PmHook(pm.clone())));
    let function = function.build();
    PmHook(pm.clone()).place(&function);
    function
}

struct PmHook(Arc<Piix4Pm>);

impl PmHook {
    /// Puts the block to where PMBASE says.
    fn place(&self, function: &PciFunction) {
        let config = function.config();
        let start = u64::from(config.read(PMBASE, 2) & 0xffc0);
        let on = config.read(PMREGMISC, 1) & 1 != 0 && start != 0;
        let handler = Arc::new(PmBlock(self.0.clone()));
        function.set_window(PM_WINDOW, on.then(|| Window { space: Space::Io, start, len: PM_LEN, handler }));
    }
}

impl PciHook for PmHook {
    fn config_written(&self, function: &PciFunction, _offset: u16, _size: u8) {
        self.place(function);
    }

    fn reset(&self, function: &PciFunction) {
        self.0.change(|registers, now| registers.reset(now));
        self.place(function);
    }

    fn restored(&self, function: &PciFunction) {
        self.place(function);
    }
}

struct PmBlock(Arc<Piix4Pm>);

impl IoHandler for PmBlock {
    fn read(&self, offset: u64, size: u8) -> u64 {
        if offset >= PM_TIMER {
            return lock(&self.0.inner).registers.read(offset, size, self.0.power.now_ns());
        }
        self.0.change(|registers, now| registers.read(offset, size, now))
    }
    fn write(&self, offset: u64, size: u8, value: u64) {
        self.0.write_pm(offset, size, value);
    }
}

struct GpeBlock(Arc<Piix4Pm>);

impl IoHandler for GpeBlock {
    fn read(&self, offset: u64, size: u8) -> u64 {
        lock(&self.0.inner).registers.read_gpe(offset, size)
    }
    fn write(&self, offset: u64, size: u8, value: u64) {
        self.0.change(|registers, _| registers.write_gpe(offset, size, value));
    }
}

struct ApmPorts(Arc<Piix4Pm>);

impl IoHandler for ApmPorts {
    fn read(&self, offset: u64, size: u8) -> u64 {
        lock(&self.0.inner).registers.read_apm(offset, size)
    }
    fn write(&self, offset: u64, size: u8, value: u64) {
        self.0.change(|registers, _| registers.write_apm(offset, size, value));
    }
}

#[cfg(test)]
#[path = "board_tests.rs"]
mod tests;
