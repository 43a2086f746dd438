//! The device: what an author implements.

use cardcage_plugin_abi as abi;
pub use cardcage_plugin_abi::PciId;

use crate::context::{Context, Interest, Irq, Msix};
use crate::json::{Array, Object};
use crate::properties::Properties;
use crate::state::{StateReader, StateWriter};
use crate::{Error, Result, from_abi};

/// What a kind of device is: the part of its description that is not properties.
///
/// ```
/// use cardcage_plugin_api::{BusKind, Category, DeviceInfo};
/// const INFO: DeviceInfo = DeviceInfo::new("isa-parity", BusKind::Isa, Category::Misc, "Parity port")
///     .migratable(1);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct DeviceInfo {
    name: &'static str,
    bus: BusKind,
    category: Category,
    summary: &'static str,
    aliases: &'static [&'static str],
    hotpluggable: bool,
    state_version: Option<u32>,
}

impl DeviceInfo {
    /// A kind that cannot be hotplugged or migrated. `name` is what users write after `-device`.
    pub const fn new(name: &'static str, bus: BusKind, category: Category, summary: &'static str) -> Self {
        Self { name, bus, category, summary, aliases: &[], hotpluggable: false, state_version: None }
    }
    /// Devices of this kind may come and go while the guest runs.
    #[must_use]
    pub const fn hotpluggable(mut self) -> Self {
        self.hotpluggable = true;
        self
    }
    /// The device implements [`Device::save`] and [`Device::load`]; `state_version` is the newest that it writes.
    #[must_use]
    pub const fn migratable(mut self, state_version: u32) -> Self {
        self.state_version = Some(state_version);
        self
    }
    /// Other names for the same kind.
    #[must_use]
    pub const fn aliases(mut self, aliases: &'static [&'static str]) -> Self {
        self.aliases = aliases;
        self
    }

    pub(crate) fn describe<P: Properties>(&self, extra: impl FnOnce(Object) -> Object) -> String {
        let mut o = Object::new().field("name", self.name).field("summary", self.summary);
        o = o.field("bus", self.bus.name()).field("category", self.category.name());
        if !self.aliases.is_empty() {
            o = o.field("aliases", self.aliases.iter().fold(Array::new(), |a, n| a.item(*n)));
        }
        o = o.field("hotpluggable", self.hotpluggable).field("migratable", self.state_version.is_some());
        if let Some(version) = self.state_version {
            o = o.field("state-version", version);
        }
        let properties = P::specs().iter().fold(Array::new(), |a, s| a.item(s.to_json()));
        extra(o).field("properties", properties).to_string()
    }
}

/// Where a device is plugged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum BusKind {
    /// A PCI function: BARs, a pin, MSI-X.
    Pci,
    /// Fixed ports and ISA interrupts.
    Isa,
    /// Fixed guest-physical addresses.
    System,
    /// A virtio device; the host supplies its transports. Only with [`VirtioDevice`](crate::VirtioDevice).
    Virtio,
}

impl BusKind {
    fn name(self) -> &'static str {
        match self {
            Self::Pci => "PCI",
            Self::Isa => "ISA",
            Self::System => "System",
            Self::Virtio => "virtio-bus",
        }
    }
}

/// Heading under which a kind is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Category {
    /// Controllers, bridges, hubs.
    Bridge,
    /// USB devices and controllers.
    Usb,
    /// Disks and their controllers.
    Storage,
    /// Network cards.
    Network,
    /// Serial ports, keyboards, mice.
    Input,
    /// Graphics.
    Display,
    /// Audio.
    Sound,
    /// Everything else.
    Misc,
    /// Watchdogs.
    Watchdog,
}

impl Category {
    fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Usb => "usb",
            Self::Storage => "storage",
            Self::Network => "network",
            Self::Input => "input",
            Self::Display => "display",
            Self::Sound => "sound",
            Self::Misc => "misc",
            Self::Watchdog => "watchdog",
        }
    }
}

/// A range of ports or addresses that a device answers: what [`Bus`] gave when it was registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Region(pub(crate) u32);

/// Why a device is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResetKind {
    /// Power on.
    Cold,
    /// The machine is reset while it has power.
    Warm,
    /// This function alone is reset.
    Function,
}

/// Answer to a wish to remove the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unplug {
    /// It can go now.
    Now,
    /// The guest was asked.
    Asked,
}

/// What happened to a character backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CharEvent {
    /// Somebody is at the other end.
    Opened,
    /// Nobody is there any more.
    Closed,
    /// A break condition on the line.
    Break,
}

/// A device model.
///
/// # Lifecycle
/// 1. [`new`](Self::new) checks the configuration. The guest sees nothing of it.
/// 2. [`realize`](Self::realize) attaches backends and registers ports, BARs and interrupts. If it fails, all of that
///    is undone by the host.
/// 3. [`reset`](Self::reset) with [`ResetKind::Cold`] precedes the first register access.
/// 4. Register accesses, events and input arrive, one at a time: the host never calls a device twice at once.
/// 5. [`unrealize`](Self::unrealize) and drop.
///
/// A panic in any method breaks this device only: from then on reads give all ones, writes are ignored, and saving
/// fails. The VM goes on and tells so.
///
/// Calls come from vCPU threads (registers) and from event-loop threads (everything else): do not block in them.
#[expect(unused_variables, reason = "default methods ignore their arguments")]
pub trait Device: Sized + Send + 'static {
    /// What this kind is.
    const INFO: DeviceInfo;
    /// Its properties: a struct that derives [`DeviceProperties`](crate::DeviceProperties), or `()`.
    type Config: Properties;

    /// Makes a device. Check what can be checked; touch nothing outside.
    fn new(config: Self::Config, ctx: &Context) -> Result<Self>;

    /// Becomes part of the machine.
    fn realize(&mut self, bus: &mut Bus, ctx: &Context) -> Result<()>;

    /// Leaves the machine: give back what `realize` took beyond the bus. No register access follows.
    fn unrealize(&mut self, ctx: &Context) {}

    /// Back to the state after power on. Backends keep their connections.
    fn reset(&mut self, kind: ResetKind, ctx: &Context) {}

    /// The guest reads `size` bytes (1, 2, 4 or 8) at `offset` in a region. Bits beyond `size` are ignored.
    fn read(&mut self, region: Region, offset: u64, size: u8, ctx: &Context) -> u64 {
        u64::MAX
    }

    /// The guest writes the low `size` bytes (1, 2, 4 or 8) of `value` at `offset` in a region.
    fn write(&mut self, region: Region, offset: u64, size: u8, value: u64, ctx: &Context) {}

    /// The guest has written to the PCI configuration space, which the host keeps.
    fn config_written(&mut self, offset: u16, size: u8, value: u32, ctx: &Context) {}

    /// A watched fd is ready.
    fn fd_ready(&mut self, token: u64, ready: Interest, ctx: &Context) {}

    /// A timer expired.
    fn timer(&mut self, token: u64, ctx: &Context) {}

    /// A deferred call is due.
    fn deferred(&mut self, token: u64, ctx: &Context) {}

    /// A block request ended. An error is a host errno such as `ENOSPC` (28).
    fn block_done(&mut self, token: u64, result: std::result::Result<(), i32>, ctx: &Context) {}

    /// The size or another property of a block backend changed.
    fn block_changed(&mut self, ctx: &Context) {}

    /// How many bytes of input fit now. Say so again with [`Chardev::resume_input`](crate::Chardev::resume_input)
    /// after a 0.
    fn char_room(&mut self, token: u64) -> usize {
        0
    }

    /// Input, at most what [`char_room`](Self::char_room) said.
    fn char_receive(&mut self, token: u64, data: &[u8], ctx: &Context) {}

    /// A backend that took fewer bytes than it was given takes some again.
    fn char_writable(&mut self, token: u64, ctx: &Context) {}

    /// Something happened to a character backend.
    fn char_event(&mut self, token: u64, event: CharEvent, ctx: &Context) {}

    /// The map of guest memory changed.
    fn memory_changed(&mut self, ctx: &Context) {}

    /// The machine runs (true) or has stopped. Once stopped, touch guest memory no more until it runs again.
    fn run_state(&mut self, running: bool, ctx: &Context) {}

    /// Writes the state. The machine is stopped.
    fn save(&mut self, state: &mut StateWriter) -> Result<()> {
        Err(Error::new("this kind of device cannot be saved"))
    }

    /// Takes a saved state. The device is fresh and realized. On an error the device is thrown away.
    fn load(&mut self, state: &StateReader, ctx: &Context) -> Result<()> {
        Err(Error::new("this kind of device cannot be restored"))
    }

    /// Somebody wants the device removed. An error says why it cannot be.
    fn unplug_request(&mut self, ctx: &Context) -> Result<Unplug> {
        Ok(Unplug::Now)
    }

    /// Live state for people.
    fn inspect(&self) -> Object {
        Object::new()
    }

    /// Counters for programs: names end in their unit, such as `read-bytes`.
    fn stats(&self) -> Object {
        Object::new()
    }
}

/// Where a device plugs itself in, during [`Device::realize`].
pub struct Bus(pub(crate) abi::BusObj);

impl Bus {
    /// Answers `len` bytes of guest-physical addresses from `addr` on. For system devices.
    pub fn mmio(&mut self, addr: u64, len: u64) -> Result<Region> {
        from_abi(self.0.mmio(addr, len)).map(Region)
    }
    /// Answers `len` I/O ports from `port` on. For ISA devices. Fails if another device has one of them.
    pub fn pio(&mut self, port: u16, len: u16) -> Result<Region> {
        from_abi(self.0.pio(port, len)).map(Region)
    }
    /// Says what the PCI function is. Before anything else of a PCI device.
    pub fn pci(&mut self, id: PciId) -> Result<()> {
        from_abi(self.0.pci(id))
    }
    /// A base address register. `len` is a power of two, at least 4 for I/O and 16 for memory; a 64-bit BAR uses the
    /// next index too. The host follows the guest's programming.
    pub fn bar(&mut self, index: u32, len: u64, kind: BarKind) -> Result<Region> {
        let flags = match kind {
            BarKind::Io => abi::BAR_IO,
            BarKind::Memory32 => 0,
            BarKind::Memory64 => abi::BAR_64,
            BarKind::Memory64Prefetchable => abi::BAR_64 | abi::BAR_PREFETCH,
        };
        from_abi(self.0.bar(index, len, flags)).map(Region)
    }
    /// The ISA interrupt with this number.
    pub fn isa_irq(&mut self, irq: u8) -> Result<Irq> {
        from_abi(self.0.irq(u32::from(irq))).map(Irq)
    }
    /// The PCI function's interrupt pin.
    pub fn pci_irq(&mut self) -> Result<Irq> {
        from_abi(self.0.irq(0)).map(Irq)
    }
    /// MSI-X vectors with their tables in a BAR of their own.
    pub fn msix(&mut self, vectors: u16, bar: u32) -> Result<Msix> {
        from_abi(self.0.msix(vectors, bar)).map(Msix)
    }
    /// Gives the device a node in the ACPI namespace with hardware ID `hid` (such as `PNP0501`) and, as its resources, the
    /// ports, addresses and interrupts that were registered since the node before. So one device can have several nodes.
    pub fn acpi(&mut self, hid: &str) -> Result<()> {
        from_abi(self.0.acpi(Object::new().field("hid", hid).to_string().as_str().into()))
    }
}

/// What a BAR decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum BarKind {
    /// Ports.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere.
    Memory64,
    /// Memory anywhere, reads without side effects.
    Memory64Prefetchable,
}
