//! What a device asks for while it is realized. Nothing of it is visible to the guest before all of it is known to fit.

use std::sync::{Arc, Mutex, PoisonError};

use cardcage_memory::AddressSpace;
use cardcage_pci::{BarKind, Identity, Intx, Msix, MsixLayout};
use cardcage_plugin_abi as abi;
use cardcage_plugin_abi::abi_stable::{sabi_trait::TD_Opaque, std_types::*};
use cardcage_registry::Bus;

use crate::lines::{Line, Lines};

/// A fixed range of ports or addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) region: u32,
    pub(crate) start: u64,
    pub(crate) len: u64,
}

/// A base address register.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BarPlan {
    pub(crate) region: u32,
    pub(crate) index: usize,
    pub(crate) len: u64,
    pub(crate) kind: BarKind,
}

/// Everything that one device asked for.
#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) ports: Vec<Range>,
    pub(crate) memory: Vec<Range>,
    irqs: Vec<u8>,
    pub(crate) identity: Option<Identity>,
    pub(crate) bars: Vec<BarPlan>,
    pub(crate) intx: Option<Arc<Intx>>,
    pub(crate) msix: Option<Arc<Msix>>,
    pub(crate) acpi: Vec<AcpiDevice>,
    regions: u32,
    /// How many ports, addresses and interrupts belong to ACPI nodes already.
    told: [usize; 3],
}

impl Plan {
    /// Makes an ACPI node of everything that was registered since the last one.
    fn add_node(&mut self, hid: String) {
        let [ports, memory, irqs] = self.told;
        self.told = [self.ports.len(), self.memory.len(), self.irqs.len()];
        self.acpi.push(AcpiDevice {
            hid,
            ports: self.ports.iter().skip(ports).map(|r| (r.start as u16, r.len as u16)).collect(),
            memory: self.memory.iter().skip(memory).map(|r| (r.start, r.len)).collect(),
            irqs: self.irqs.iter().skip(irqs).map(|&n| u32::from(n)).collect(),
        });
    }
}

/// A node for the ACPI namespace: what a device said, and the resources that it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AcpiDevice {
    pub(crate) hid: String,
    pub(crate) ports: Vec<(u16, u16)>,
    pub(crate) memory: Vec<(u64, u64)>,
    pub(crate) irqs: Vec<u32>,
}

/// The bus as the device sees it.
pub(crate) struct Planner {
    bus: Bus,
    kind: String,
    lines: Arc<Lines>,
    ports: Arc<AddressSpace>,
    memory: Arc<AddressSpace>,
    plan: Arc<Mutex<Plan>>,
}

fn refuse<T>(text: String) -> abi::AbiResult<T> {
    RErr(abi::AbiError { code: abi::ERROR_GENERIC, message: text.into() })
}

impl Planner {
    /// The object to hand to the device, and where its wishes are collected.
    pub(crate) fn start(
        bus: Bus,
        kind: &str,
        lines: &Arc<Lines>,
        [ports, memory]: [&Arc<AddressSpace>; 2],
    ) -> (abi::BusObj, Arc<Mutex<Plan>>) {
        let plan = Arc::<Mutex<Plan>>::default();
        let (lines, ports, memory) = (lines.clone(), ports.clone(), memory.clone());
        let planner = Self { bus, kind: kind.into(), lines, ports, memory, plan: plan.clone() };
        (abi::BusAbi_TO::from_value(planner, TD_Opaque), plan)
    }

    /// Adds something that only devices on `bus` can have; gives the new region's number.
    fn add(
        &self,
        bus: Bus,
        what: &str,
        change: impl FnOnce(&mut Plan, u32) -> Result<(), String>,
    ) -> abi::AbiResult<u32> {
        if self.bus != bus {
            return refuse(format!("a device on the {} bus has no {what}", self.bus.name()));
        }
        let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        let region = plan.regions;
        if let Err(e) = change(&mut plan, region) {
            return refuse(e);
        }
        plan.regions += 1;
        ROk(region)
    }
}

impl abi::BusAbi for Planner {
    fn mmio(&mut self, start: u64, len: u64) -> abi::AbiResult<u32> {
        let free = self.memory.check(start, len);
        self.add(Bus::System, "fixed addresses", |plan, region| {
            free.map_err(|e| e.to_string())?;
            plan.memory.push(Range { region, start, len });
            Ok(())
        })
    }

    fn pio(&mut self, port: u16, len: u16) -> abi::AbiResult<u32> {
        let free = self.ports.check(port.into(), len.into());
        self.add(Bus::Isa, "fixed ports", |plan, region| {
            free.map_err(|e| e.to_string())?;
            if u32::from(port) + u32::from(len) > 0x1_0000 {
                return Err(format!("ports {port:#x} + {len} go beyond 0xffff"));
            }
            plan.ports.push(Range { region, start: port.into(), len: len.into() });
            Ok(())
        })
    }

    fn pci(&mut self, id: abi::PciId) -> abi::AbiResult<()> {
        let identity = Identity {
            vendor: id.vendor,
            device: id.device,
            class: id.class & 0xff_ffff,
            revision: id.revision,
            subsystem_vendor: id.subsystem_vendor,
            subsystem: id.subsystem,
        };
        self.add(Bus::Pci, "PCI identity", |plan, _| {
            plan.identity = Some(identity);
            Ok(())
        })
        .map(|_| ())
    }

    fn bar(&mut self, index: u32, len: u64, flags: u32) -> abi::AbiResult<u32> {
        let prefetchable = flags & abi::BAR_PREFETCH != 0;
        let kind = match (flags & abi::BAR_IO != 0, flags & abi::BAR_64 != 0) {
            (true, _) => BarKind::Io,
            (_, true) => BarKind::Memory64 { prefetchable },
            _ => BarKind::Memory32 { prefetchable },
        };
        self.add(Bus::Pci, "BARs", |plan, region| {
            plan.bars.push(BarPlan { region, index: index as usize, len, kind });
            Ok(())
        })
    }

    fn irq(&mut self, line: u32) -> abi::AbiResult<abi::IrqObj> {
        match self.bus {
            Bus::Pci => {
                let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
                let intx = plan.intx.get_or_insert_with(Intx::new).clone();
                ROk(abi::IrqAbi_TO::from_ptr(RArc::new(PciLine(intx)), TD_Opaque))
            }
            Bus::Isa | Bus::System if line < 16 && line != 2 => {
                let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
                plan.irqs.push(line as u8);
                ROk(abi::IrqAbi_TO::from_ptr(RArc::new(IsaLine(self.lines.line(line))), TD_Opaque))
            }
            Bus::Isa | Bus::System => refuse(format!("there is no interrupt {line}: use 0, 1 or 3 to 15")),
            Bus::VirtioMmio => refuse("a virtio device interrupts through its transport".into()),
        }
    }

    fn msix(&mut self, vectors: u16, bar: u32) -> abi::AbiResult<abi::MsixObj> {
        let made = u8::try_from(bar)
            .map_err(|_| format!("there is no BAR {bar}"))
            .and_then(|bar| Msix::new(&self.kind, MsixLayout::exclusive(vectors, bar).0).map_err(|e| e.to_string()));
        let msix = match made {
            Ok(msix) => msix,
            Err(e) => return refuse(e),
        };
        let shared = msix.clone();
        self.add(Bus::Pci, "MSI-X", |plan, _| {
            plan.msix = Some(shared);
            Ok(())
        })
        .map(|_| abi::MsixAbi_TO::from_ptr(RArc::new(Vectors(msix)), TD_Opaque))
    }

    fn acpi(&mut self, json: RStr<'_>) -> abi::AbiResult<()> {
        let attributes: serde_json::Value = match serde_json::from_str(&json) {
            Ok(value) => value,
            Err(e) => return refuse(format!("the ACPI attributes are not understood: {e}")),
        };
        let Some(hid) = attributes.get("hid").and_then(|v| v.as_str()) else {
            return refuse("the ACPI attributes have no hardware ID 'hid'".into());
        };
        self.plan.lock().unwrap_or_else(PoisonError::into_inner).add_node(hid.into());
        ROk(())
    }
}

struct IsaLine(Line);
impl abi::IrqAbi for IsaLine {
    fn set_level(&self, high: bool) {
        self.0.set(high);
    }
    fn pulse(&self) {
        self.0.set(true);
        self.0.set(false);
    }
}

struct PciLine(Arc<Intx>);
impl abi::IrqAbi for PciLine {
    fn set_level(&self, high: bool) {
        self.0.set_level(high);
    }
    fn pulse(&self) {
        self.0.set_level(true);
        self.0.set_level(false);
    }
}

struct Vectors(Arc<Msix>);
impl abi::MsixAbi for Vectors {
    fn notify(&self, vector: u16) -> bool {
        self.0.fire(vector)
    }
    fn is_enabled(&self) -> bool {
        self.0.is_enabled()
    }
}
