//! The table of devices: making them, plugging them in, and taking them out again.

use std::sync::{Arc, PoisonError};

use cardcage_memory::{AddressSpace, MapError};
use cardcage_pci::{Devfn, PciBus, PciError, PciFunction, PciHook, Pin};
use cardcage_plugin_abi as abi;
use cardcage_plugin_abi::abi_stable::std_types::*;
use cardcage_registry::{Bus, Kind, Properties, PropertyError, PropertyValue, Registry};
use cardcage_virtio::{Core, mmio, pci as virtio_pci};
use serde_json::{Value, json};

use super::host::DeviceHost;
use super::plan::{AcpiDevice, Plan, Planner, Range};
use super::virtio::Adapter;
use super::{RegionHandler, Slot};
use crate::layout;
use crate::lines::Lines;
use crate::services::Services;

/// What the user wants.
#[derive(Debug, Clone, Default)]
pub struct DeviceOptions {
    /// Name or alias of the kind.
    pub driver: String,
    /// Id, unique among the devices.
    pub id: Option<String>,
    /// The bus to plug it into.
    pub bus: Option<String>,
    /// Properties in the order in which they were given.
    pub properties: Vec<(String, PropertyValue)>,
}

/// Why a device cannot be had. The texts are QEMU's where it has one.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No such kind.
    #[error("'{driver}' is not a valid device model name")]
    UnknownKind {
        /// The name that was given.
        driver: String,
        /// The nearest name that exists.
        nearest: Option<String>,
    },
    /// The id is taken.
    #[error("Duplicate device ID '{0}'")]
    DuplicateId(String),
    /// No such bus.
    #[error("Bus '{0}' not found")]
    NoBus(String),
    /// The bus is of another type.
    #[error("'{driver}' can't go on a {bus} bus")]
    WrongBus {
        /// The kind.
        driver: String,
        /// Type of the bus.
        bus: &'static str,
    },
    /// A property is wrong.
    #[error(transparent)]
    Property(#[from] PropertyError),
    /// The plugin refuses.
    #[error("{driver}: {reason}")]
    Refused {
        /// The kind.
        driver: String,
        /// What it says.
        reason: String,
    },
    /// A range is taken.
    #[error("{driver}: {source}")]
    Map {
        /// The kind.
        driver: String,
        /// Which, and by whom.
        source: MapError,
    },
    /// It does not fit on the PCI bus.
    #[error("{0}")]
    Pci(#[from] PciError),
}

impl DeviceError {
    /// What would be right, as a clause to append.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownKind { nearest, .. } => nearest.as_ref().map(|n| format!("did you mean '{n}'?")),
            Self::Property(e) => e.hint(),
            Self::DuplicateId(_) => Some("each device has an id of its own".into()),
            Self::NoBus(_) => Some("the buses are pci.0, isa.0 and main-system-bus".into()),
            _ => None,
        }
    }

    /// Whether the user asks for what cannot be, whatever the machine is.
    pub fn is_usage(&self) -> bool {
        !matches!(self, Self::Refused { .. } | Self::Map { .. } | Self::Pci(_))
    }

    /// Whether the text says which device is meant.
    pub fn names_device(&self) -> bool {
        !matches!(self, Self::DuplicateId(_) | Self::NoBus(_))
    }
}

/// Where a device is.
enum Place {
    Fixed(Plan),
    Pci { at: Devfn },
    VirtioMmio { index: u32 },
}

struct Entry {
    slot: Arc<Slot>,
    user_id: Option<String>,
    place: Place,
    virtio: Option<Arc<Core>>,
}

/// All devices of a machine, and the buses that they are on.
pub(crate) struct DeviceTable {
    pub(crate) services: Arc<Services>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) lines: Arc<Lines>,
    pub(crate) pci: Arc<PciBus>,
    pub(crate) ports: Arc<AddressSpace>,
    pub(crate) memory: Arc<AddressSpace>,
    devices: Vec<Entry>,
    made: u32,
}

impl DeviceTable {
    pub(crate) fn new(
        services: Arc<Services>,
        registry: Arc<Registry>,
        lines: Arc<Lines>,
        pci: Arc<PciBus>,
        [ports, memory]: [Arc<AddressSpace>; 2],
    ) -> Self {
        Self { services, registry, lines, pci, ports, memory, devices: Vec::new(), made: 0 }
    }

    /// Makes a device and plugs it in. On an error nothing is left of it.
    pub(crate) fn add(&mut self, options: &DeviceOptions) -> Result<(), DeviceError> {
        let registry = self.registry.clone();
        let Some(kind) = registry.kind(&options.driver) else {
            let nearest = registry.nearest_kind(&options.driver).map(str::to_string);
            return Err(DeviceError::UnknownKind { driver: options.driver.clone(), nearest });
        };
        check_bus(kind, options.bus.as_deref())?;
        let given = options.properties.iter().map(|(n, v)| (n.as_str(), v.clone()));
        let properties = kind.check(given)?;
        if let Some(id) = options.id.as_ref().filter(|id| self.devices.iter().any(|d| d.user_id.as_ref() == Some(*id)))
        {
            return Err(DeviceError::DuplicateId(id.clone()));
        }
        self.made += 1;
        let name = options.id.clone().unwrap_or_else(|| format!("{}[{}]", kind.name(), self.made));
        let slot = Arc::new(Slot::new(&name, kind.name()));
        let result = self.make(kind, &slot, options.id.as_deref(), &properties);
        match result {
            Ok((place, virtio)) => {
                slot.call(|d| d.reset(abi::RESET_COLD));
                self.devices.push(Entry { slot, user_id: options.id.clone(), place, virtio });
                Ok(())
            }
            Err(e) => {
                slot.close();
                Err(e)
            }
        }
    }

    fn make(
        &self,
        kind: &Kind,
        slot: &Arc<Slot>,
        id: Option<&str>,
        properties: &Properties,
    ) -> Result<(Place, Option<Arc<Core>>), DeviceError> {
        let refused = |reason: RString| DeviceError::Refused { driver: kind.name().into(), reason: reason.into() };
        let given =
            properties.device.iter().map(|(n, v)| abi::Prop { name: n.as_str().into(), value: v.as_str().into() });
        let host = DeviceHost::object(&self.services, slot);
        let object = (kind.class().create())(host, given.collect()).into_result().map_err(|e| refused(e.message))?;
        let (bus, plan) = Planner::start(kind.bus(), kind.name(), &self.lines, [&self.ports, &self.memory]);
        slot.fill(object);
        let realized = slot.call(|d| d.realize(bus)).unwrap_or(ROk(()));
        realized.into_result().map_err(|e| refused(e.message))?;
        let plan = std::mem::take(&mut *plan.lock().unwrap_or_else(PoisonError::into_inner));
        let plugged = match (kind.bus(), kind.virtio_device_id()) {
            (Bus::Pci, Some(device_id)) => self.plug_virtio_pci(kind, device_id, slot, id, properties),
            (Bus::VirtioMmio, Some(device_id)) => self.plug_virtio_mmio(kind, device_id, slot),
            (Bus::Pci, None) => self.plug_pci(kind, slot, id, properties, plan).map(|place| (place, None)),
            _ => self.plug_fixed(kind, slot, plan).map(|place| (place, None)),
        };
        if plugged.is_err() {
            slot.call(|d| d.unrealize());
        }
        plugged
    }

    fn plug_fixed(&self, kind: &Kind, slot: &Arc<Slot>, plan: Plan) -> Result<Place, DeviceError> {
        let mut mapped: Vec<(&AddressSpace, u64)> = Vec::new();
        let ports = plan.ports.iter().map(|r| (&*self.ports, r));
        for (space, Range { region, start, len }) in ports.chain(plan.memory.iter().map(|r| (&*self.memory, r))) {
            let handler = Arc::new(RegionHandler { slot: slot.clone(), region: *region });
            if let Err(source) = space.map(*start, *len, slot.id(), handler) {
                for (space, start) in mapped {
                    space.unmap(start);
                }
                return Err(DeviceError::Map { driver: kind.name().into(), source });
            }
            mapped.push((space, *start));
        }
        Ok(Place::Fixed(plan))
    }

    fn plug_pci(
        &self,
        kind: &Kind,
        slot: &Arc<Slot>,
        id: Option<&str>,
        properties: &Properties,
        plan: Plan,
    ) -> Result<Place, DeviceError> {
        let identity = plan.identity.ok_or_else(|| DeviceError::Refused {
            driver: kind.name().into(),
            reason: "the plugin gave the function no identity".into(),
        })?;
        let mut function = PciFunction::builder(kind.name(), identity);
        function.id(id);
        if multifunction(properties) {
            function.multifunction();
        }
        for bar in &plan.bars {
            let handler = Arc::new(RegionHandler { slot: slot.clone(), region: bar.region });
            function.bar(bar.index, bar.kind, bar.len, handler)?;
        }
        if let Some(msix) = plan.msix {
            function.msix(msix)?;
        }
        if let Some(line) = plan.intx {
            function.intx(Pin::A, line);
        }
        function.hook(Arc::new(Hook(slot.clone())));
        let at = self.pci.add(address(kind, properties)?, function.build())?;
        Ok(Place::Pci { at })
    }

    fn plug_virtio_pci(
        &self,
        kind: &Kind,
        device_id: u32,
        slot: &Arc<Slot>,
        id: Option<&str>,
        properties: &Properties,
    ) -> Result<(Place, Option<Arc<Core>>), DeviceError> {
        let vectors = properties.host_value("vectors").and_then(|v| v.parse().ok());
        let options = virtio_pci::Options {
            name: kind.name().into(),
            id: id.map(str::to_string),
            device_id,
            class: virtio_pci::class_of_category(&kind.description().category),
            legacy: properties.host_value("disable-legacy") != Some("on"),
            modern: properties.host_value("disable-modern") != Some("on"),
            vectors,
            multifunction: multifunction(properties),
        };
        let device = Adapter::new(slot.clone(), self.services.event_loop.clone());
        let (function, core) = virtio_pci::function(&options, device)?;
        let at = self.pci.add(address(kind, properties)?, function)?;
        Ok((Place::Pci { at }, Some(core)))
    }

    fn plug_virtio_mmio(
        &self,
        kind: &Kind,
        device_id: u32,
        slot: &Arc<Slot>,
    ) -> Result<(Place, Option<Arc<Core>>), DeviceError> {
        let taken =
            |n: &u32| !self.devices.iter().any(|d| matches!(d.place, Place::VirtioMmio { index } if index == *n));
        let index = (0..layout::VIRTIO_MMIO_SLOTS).find(taken).ok_or_else(|| DeviceError::Refused {
            driver: kind.name().into(),
            reason: format!("all {} virtio-mmio slots are in use", layout::VIRTIO_MMIO_SLOTS),
        })?;
        let (start, gsi) = layout::virtio_mmio_slot(index);
        let line = self.lines.line(gsi);
        let device = Adapter::new(slot.clone(), self.services.event_loop.clone());
        let set_line = Box::new(move |level| line.set(level));
        let (registers, core) = mmio::registers(kind.name(), device_id, device, set_line);
        let mapped = self.memory.map(start, mmio::LEN, slot.id(), registers);
        mapped.map_err(|source| DeviceError::Map { driver: kind.name().into(), source })?;
        Ok((Place::VirtioMmio { index }, Some(core)))
    }

    /// Resets all devices.
    pub(crate) fn reset(&self) {
        for device in &self.devices {
            if let Some(core) = &device.virtio {
                core.reset();
            }
            device.slot.call(|d| d.reset(abi::RESET_WARM));
        }
    }

    /// Tells all devices that the machine runs or has stopped.
    pub(crate) fn run_state(&self, running: bool) {
        for device in &self.devices {
            device.slot.call(|d| d.run_state(running));
        }
    }

    /// Takes all devices out, in the reverse order.
    pub(crate) fn remove_all(&mut self) {
        while let Some(device) = self.devices.pop() {
            if let Place::Pci { at } = device.place {
                self.pci.remove(at);
            }
            if let Some(core) = &device.virtio {
                core.reset();
            }
            device.slot.call(|d| d.unrealize());
            device.slot.close();
        }
    }

    /// What the ACPI namespace is to name.
    pub(crate) fn acpi(&self) -> Vec<AcpiDevice> {
        self.devices.iter().flat_map(|d| acpi_of(&d.place)).collect()
    }

    /// All devices with their kind and state, for listings.
    pub(crate) fn list(&self) -> Vec<Value> {
        self.devices.iter().map(describe).collect()
    }
}

fn describe(d: &Entry) -> Value {
    let inspect = d.slot.call(|o| o.inspect()).and_then(|text| serde_json::from_str::<Value>(&text).ok());
    let mut o = json!({"id": d.slot.id(), "driver": d.slot.kind(), "state": inspect.unwrap_or_else(|| json!({}))});
    if let Some(why) = d.slot.broken() {
        o["broken"] = why.into();
    }
    if let Place::Pci { at } = d.place {
        o["addr"] = format!("{:02x}.{:x}", at.slot(), at.function()).into();
    }
    o
}

fn acpi_of(place: &Place) -> Vec<AcpiDevice> {
    match place {
        Place::Fixed(plan) => plan.acpi.clone(),
        Place::VirtioMmio { index } => {
            let (start, gsi) = layout::virtio_mmio_slot(*index);
            let memory = vec![(start, mmio::LEN)];
            vec![AcpiDevice { hid: "LNRO0005".into(), ports: Vec::new(), memory, irqs: vec![gsi] }]
        }
        Place::Pci { .. } => Vec::new(),
    }
}

fn check_bus(kind: &Kind, bus: Option<&str>) -> Result<(), DeviceError> {
    let (name, of) = match bus {
        None => return Ok(()),
        Some("pci.0") => ("PCI", Bus::Pci),
        Some("isa.0") => ("ISA", Bus::Isa),
        Some("main-system-bus") => ("System", Bus::System),
        Some(other) => return Err(DeviceError::NoBus(other.into())),
    };
    if kind.bus() == of { Ok(()) } else { Err(DeviceError::WrongBus { driver: kind.name().into(), bus: name }) }
}

fn multifunction(properties: &Properties) -> bool {
    properties.host_value("multifunction") == Some("on")
}

fn address(kind: &Kind, properties: &Properties) -> Result<Option<Devfn>, DeviceError> {
    let Some(text) = properties.host_value("addr") else { return Ok(None) };
    virtio_pci::parse_addr(text).map(Some).ok_or_else(|| {
        DeviceError::Property(PropertyError::Value {
            kind: kind.name().into(),
            name: "addr".into(),
            value: text.into(),
            allowed: "SLOT or SLOT.FUNCTION in hexadecimal, such as 06.0".into(),
        })
    })
}

/// Passes what happens in configuration space on to the device.
struct Hook(Arc<Slot>);

impl PciHook for Hook {
    fn config_written(&self, function: &PciFunction, offset: u16, size: u8) {
        let value = function.config().read(offset, size);
        self.0.call(|d| d.config_written(offset, size, value));
    }
}
