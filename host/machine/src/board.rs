//! The `pc` board: i440FX and PIIX, interrupt controllers, and the buses that plugins are plugged into.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use cardcage_accel::{Bus, Vcpu, VcpuError, VcpuState};
use cardcage_clock::{UtcClock, VirtualClock, host_utc_ns};
use cardcage_eventloop::EventLoop;
use cardcage_irqchip::Irqchip;
use cardcage_memory::{AddressSpace, GuestRam, MapError, RamError};
use cardcage_pci::{
    ConfigPorts, Devfn, I440fx, InterruptRouter, PciBus, PciError, Piix3, Piix4Pm, PmOptions, PowerSink, ResetControl,
};
use serde_json::Value;

use crate::accelerator::Accelerator;
use crate::config::MachineConfig;
use crate::control::{Cause, Control, Request};
use crate::device::{DeviceError, DeviceOptions, DeviceTable};
use crate::kvm::KernelChips;
use crate::layout;
use crate::lines::Lines;
use crate::processors;
use crate::services::Services;

/// Why a machine cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BoardError {
    /// No memory.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// No threads.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// The event loop cannot be started.
    #[error("cannot start the event loop: {0}")]
    EventLoop(std::io::Error),
    /// A vCPU cannot be made or started.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// The accelerator refuses.
    #[error("{0}")]
    Accelerator(String),
    /// The CPU model is wrong.
    #[error("{0}")]
    Cpu(String),
    /// The kernel cannot be loaded.
    #[error(transparent)]
    Boot(#[from] cardcage_boot::BootError),
    /// Neither kernel nor firmware.
    #[error("there is nothing to start: give a kernel with -kernel FILE")]
    NothingToBoot,
    /// A device cannot be had.
    #[error("{source}")]
    Device {
        /// Which.
        driver: String,
        /// Why.
        source: DeviceError,
    },
    /// The board's own functions do not fit: a slip in this program.
    #[error("the board cannot be wired: {0}")]
    Wiring(String),
}

impl From<PciError> for BoardError {
    fn from(e: PciError) -> Self {
        Self::Wiring(e.to_string())
    }
}
impl From<MapError> for BoardError {
    fn from(e: MapError) -> Self {
        Self::Wiring(e.to_string())
    }
}

/// PIRQs to ISA interrupts as firmware would route them, for kernels that are booted without one.
pub(crate) const PIRQ_ROUTES: [u8; 4] = [10, 10, 11, 11];
/// Where firmware would put the power management registers.
pub(crate) const PM_BASE: u16 = 0x600;
/// Where the south bridge sits: function 0 is the ISA bridge, 3 power management.
pub(crate) const PIIX3: Devfn = Devfn::from_byte(1 << 3);

/// All of a machine but its vCPUs.
pub(crate) struct Board {
    pub(crate) services: Arc<Services>,
    pub(crate) devices: DeviceTable,
    pub(crate) irqchip: Option<Arc<Irqchip>>,
    kernel: Option<KernelChips>,
    pub(crate) spaces: Arc<Spaces>,
    event_loop: EventLoop,
    config_ports: Arc<ConfigPorts>,
    pm: Arc<Piix4Pm>,
    paused: bool,
}

/// The machine as vCPUs and tests see it.
pub(crate) struct Spaces {
    pub(crate) ports: Arc<AddressSpace>,
    pub(crate) memory: Arc<AddressSpace>,
}

impl Bus for Spaces {
    #[inline]
    fn port_read(&self, port: u16, size: u8) -> u32 {
        self.ports.read(port.into(), size) as u32
    }
    #[inline]
    fn port_write(&self, port: u16, size: u8, value: u32) {
        self.ports.write(port.into(), size, value.into());
    }
    #[inline]
    fn memory_read(&self, addr: u64, size: u8) -> u64 {
        self.memory.read(addr, size)
    }
    #[inline]
    fn memory_write(&self, addr: u64, size: u8, value: u64) {
        self.memory.write(addr, size, value);
    }
}

impl Board {
    /// Builds the board with its vCPUs, and plugs in all devices.
    pub(crate) fn build(config: &MachineConfig, control: &Control) -> Result<(Self, Vec<Box<dyn Vcpu>>), BoardError> {
        let ram = Arc::new(GuestRam::new(&layout::ram(config.ram_size))?);
        // Plugins hold addresses of guest RAM that no reference count covers: it stays until the program ends.
        std::mem::forget(ram.clone());
        let clock =
            if config.accelerator == Accelerator::Qtest { VirtualClock::manual() } else { VirtualClock::host() };
        clock.stop();
        let event_loop = EventLoop::new("devices", Some(&clock)).map_err(BoardError::EventLoop)?;
        let spaces = Arc::new(Spaces { ports: Arc::default(), memory: Arc::default() });
        let made = processors::make(config, &ram, &clock, &spaces)?;
        let lines = Lines::new(made.controller, ram.clone());
        let services = Arc::new(Services {
            rtc: rtc(config, &clock),
            clock: clock.clone(),
            event_loop: event_loop.handle(),
            blocks: config.blocks.clone(),
            chardevs: config.chardevs.clone(),
            cpus: config.cpus,
            control: control.clone(),
            events: config.events.clone(),
            running: AtomicBool::new(false),
            inputs: Mutex::default(),
            ram,
        });
        let Pci { bus, config_ports, pm } = wire_pci(&services, &lines, &spaces)?;
        let both = [spaces.ports.clone(), spaces.memory.clone()];
        let devices = DeviceTable::new(services.clone(), config.registry.clone(), lines, bus, both);
        let (irqchip, kernel) = (made.irqchip, made.kernel);
        let mut board = Self { services, devices, irqchip, kernel, spaces, event_loop, config_ports, pm, paused: true };
        for options in &config.devices {
            board.add_device(options)?;
        }
        board.event_loop.pause();
        Ok((board, made.vcpus))
    }

    fn add_device(&mut self, options: &DeviceOptions) -> Result<(), BoardError> {
        let driver = options.driver.clone();
        self.devices.add(options).map_err(|source| BoardError::Device { driver, source })
    }

    pub(crate) fn emit(&self, name: &str, data: Option<Value>) {
        self.services.emit(name, data);
    }

    /// Loads the kernel; the state that the first vCPU starts with. None where there is no vCPU.
    pub(crate) fn boot(&self, config: &MachineConfig) -> Result<Option<VcpuState>, BoardError> {
        crate::firmware::boot(self, config)
    }

    pub(crate) fn reset(&self) {
        self.devices.pci.reset();
        self.config_ports.reset();
        if let Some(irqchip) = &self.irqchip {
            irqchip.reset();
        }
        if let Some(kernel) = &self.kernel {
            kernel.reset();
        }
        self.devices.reset();
    }

    /// Time and devices go on. Nothing if they do already.
    pub(crate) fn resume(&mut self) {
        if !std::mem::take(&mut self.paused) {
            return;
        }
        self.devices.run_state(true);
        if let Some(kernel) = &self.kernel {
            kernel.resume(&self.services.clock);
        }
        self.services.clock.resume();
        self.event_loop.resume();
        self.services.set_running(true);
    }

    /// Time stands still and no device works when this returns. vCPUs have stopped before. Nothing if that is so
    /// already.
    pub(crate) fn pause(&mut self) {
        if std::mem::replace(&mut self.paused, true) {
            return;
        }
        self.services.set_running(false);
        self.services.clock.stop();
        if let Some(kernel) = &self.kernel {
            kernel.pause();
        }
        self.services.blocks.drain_all();
        self.event_loop.pause();
        self.devices.run_state(false);
    }

    pub(crate) fn power_button(&self) {
        self.pm.press_power_button();
    }

    /// Takes the devices out. The guest is paused. Character devices stay: monitors on them have more to say.
    pub(crate) fn tear_down(&mut self) {
        self.devices.remove_all();
    }
}

/// What the guest's real-time clock shows: the host's time; under test the virtual clock decides.
fn rtc(config: &MachineConfig, clock: &VirtualClock) -> UtcClock {
    match config.accelerator {
        Accelerator::Qtest => UtcClock::following(clock, host_utc_ns()),
        _ => UtcClock::following_host(host_utc_ns()),
    }
}

/// The PCI side of the board.
struct Pci {
    bus: Arc<PciBus>,
    config_ports: Arc<ConfigPorts>,
    pm: Arc<Piix4Pm>,
}

fn wire_pci(services: &Arc<Services>, lines: &Arc<Lines>, spaces: &Spaces) -> Result<Pci, BoardError> {
    let router = InterruptRouter::new(lines.clone());
    let pci = PciBus::new(spaces.memory.clone(), spaces.ports.clone(), router.clone(), lines.clone());
    let control = services.control.clone();
    let reset = ResetControl::new(Box::new(move || control.send(Request::Reset(Cause::GuestReset))));
    let config_ports = ConfigPorts::new(pci.clone(), reset);
    config_ports.map(&spaces.ports)?;
    let power = Power::new(services);
    let (pm, pm_function) = Piix4Pm::new(PmOptions { base: Some(PM_BASE) }, router.clone(), power.clone());
    power.connect(&pm);
    // Shadow RAM is plain RAM here: PAM registers keep what they are given.
    pci.add(Devfn::new(0, 0), I440fx::function(Box::new(|_, _| {})))?;
    pci.add(Some(PIIX3), Piix3::function(router, PIRQ_ROUTES))?;
    pci.add(Devfn::new(1, 3), pm_function)?;
    Ok(Pci { bus: pci, config_ports, pm })
}

/// What power management needs of the machine.
struct Power {
    clock: VirtualClock,
    control: Control,
    timer: cardcage_clock::Timer,
    pm: Arc<OnceLock<Weak<Piix4Pm>>>,
    asleep: Mutex<bool>,
}

impl Power {
    fn new(services: &Services) -> Arc<Self> {
        let pm = Arc::new(OnceLock::<Weak<Piix4Pm>>::new());
        let target = pm.clone();
        let timer = services.clock.timer(move || {
            if let Some(pm) = target.get().and_then(Weak::upgrade) {
                pm.timer_expired();
            }
        });
        let (clock, control) = (services.clock.clone(), services.control.clone());
        Arc::new(Self { clock, control, timer, pm, asleep: Mutex::new(false) })
    }

    fn connect(&self, pm: &Arc<Piix4Pm>) {
        let _ = self.pm.set(Arc::downgrade(pm));
    }
}

impl PowerSink for Power {
    fn now_ns(&self) -> u64 {
        self.clock.now()
    }
    fn set_timer(&self, deadline_ns: Option<u64>) {
        match deadline_ns {
            Some(ns) => self.timer.arm(ns),
            None => self.timer.cancel(),
        }
    }
    fn power_off(&self) {
        self.control.send(Request::Shutdown(Cause::GuestShutdown));
    }
    /// S3 is not in the tables that the guest gets; one that asks all the same stays awake.
    fn suspend(&self) {
        *self.asleep.lock().unwrap_or_else(PoisonError::into_inner) = true;
        tracing::warn!("the guest asks for S3, which this machine does not offer; it stays awake");
    }
    fn wake(&self) {
        *self.asleep.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }
}
