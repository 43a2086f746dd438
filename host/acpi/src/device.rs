//! Devices that a guest cannot discover, as whoever plugs them in describes them.

use acpi_tables::aml::{self, AddressSpace, AddressSpaceCacheable, EISAName, IO, Interrupt, Memory32Fixed};
use acpi_tables::{Aml, AmlSink};

use crate::aml::{Irq, Raw};

/// Where a device is in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AcpiBus {
    /// Behind the ISA bridge.
    Isa,
    /// Directly in the system.
    System,
}

/// Something that a device uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resource {
    /// Ports.
    Ports {
        /// First port.
        start: u16,
        /// How many.
        len: u16,
    },
    /// An ISA interrupt: edge-triggered, active high.
    IsaIrq(u8),
    /// A global system interrupt.
    Interrupt {
        /// Its number.
        gsi: u32,
        /// Edge-triggered rather than level-triggered.
        edge: bool,
        /// Active low rather than high.
        active_low: bool,
    },
    /// Memory.
    Memory {
        /// First guest-physical address.
        start: u64,
        /// Length in bytes.
        len: u64,
    },
}

impl Resource {
    pub(crate) fn check(&self) -> Result<(), String> {
        match *self {
            Self::Ports { start, len } if len == 0 || u32::from(start) + u32::from(len) > 0x1_0000 => {
                Err(format!("ports {start:#x} + {len:#x} are none or end above 0xffff"))
            }
            Self::IsaIrq(irq) if irq > 15 => Err(format!("ISA interrupt {irq} does not exist, 0 to 15 do")),
            Self::Memory { start, len } if len == 0 || start.checked_add(len - 1).is_none() => {
                Err(format!("memory {start:#x} + {len:#x} is empty or wraps around"))
            }
            _ => Ok(()),
        }
    }
}

impl Aml for Resource {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        match *self {
            Self::Ports { start, len } => match u8::try_from(len) {
                Ok(len) => IO::new(start, start, 1, len).to_aml_bytes(sink),
                Err(_) => AddressSpace::new_io(start, start + (len - 1), None).to_aml_bytes(sink),
            },
            Self::IsaIrq(irq) => Irq(irq).to_aml_bytes(sink),
            Self::Interrupt { gsi, edge, active_low } => {
                Interrupt::new(true, edge, active_low, false, gsi).to_aml_bytes(sink);
            }
            Self::Memory { start, len } => match (u32::try_from(start), u32::try_from(len)) {
                (Ok(start), Ok(len)) if start.checked_add(len - 1).is_some() => {
                    Memory32Fixed::new(true, start, len).to_aml_bytes(sink);
                }
                _ => {
                    AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, start, start + (len - 1), None)
                        .to_aml_bytes(sink)
                }
            },
        }
    }
}

/// One device.
///
/// ```
/// use cardcage_acpi::{AcpiBus, AcpiDevice, Resource};
/// let com1 = AcpiDevice {
///     uid: Some(1),
///     resources: vec![Resource::Ports { start: 0x3f8, len: 8 }, Resource::IsaIrq(4)],
///     ..AcpiDevice::new("COM1", "PNP0501", AcpiBus::Isa)
/// };
/// assert_eq!(com1.hid, "PNP0501");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcpiDevice {
    /// Name in the namespace: four characters.
    pub name: String,
    /// Hardware ID, such as `PNP0501`.
    pub hid: String,
    /// Compatible ID.
    pub cid: Option<String>,
    /// Unique ID among devices of one hardware ID.
    pub uid: Option<u32>,
    /// Where it is.
    pub bus: AcpiBus,
    /// What it uses.
    pub resources: Vec<Resource>,
    /// More AML for the device's scope, already encoded; not checked.
    pub aml: Vec<u8>,
}

impl AcpiDevice {
    /// A device without resources.
    pub fn new(name: &str, hid: &str, bus: AcpiBus) -> Self {
        Self { name: name.into(), hid: hid.into(), cid: None, uid: None, bus, resources: Vec::new(), aml: Vec::new() }
    }
}

impl Aml for AcpiDevice {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let mut inner: Vec<Box<dyn Aml>> = vec![Box::new(name("_HID", &*id(&self.hid)))];
        if let Some(cid) = &self.cid {
            inner.push(Box::new(name("_CID", &*id(cid))));
        }
        if let Some(uid) = &self.uid {
            inner.push(Box::new(name("_UID", uid)));
        }
        // Present, enabled, shown, functioning.
        inner.push(Box::new(name("_STA", &0xfu8)));
        let resources: Vec<&dyn Aml> = self.resources.iter().map(|resource| resource as &dyn Aml).collect();
        inner.push(Box::new(name("_CRS", &aml::ResourceTemplate::new(resources))));
        inner.push(Box::new(Raw(self.aml.clone())));
        let inner = inner.iter().map(|object| &**object).collect();
        aml::Device::new(self.name.as_str().into(), inner).to_aml_bytes(sink);
    }
}

/// A hardware ID: packed where it has the form of an EISA ID, else a string.
pub(crate) fn id(id: &str) -> Box<dyn Aml> {
    let (vendor, product) = id.split_at(id.len().min(3));
    let packed = id.len() == 7
        && vendor.bytes().all(|c| c.is_ascii_uppercase())
        && product.bytes().all(|c| c.is_ascii_digit() || (b'A'..=b'F').contains(&c));
    if packed { Box::new(EISAName::new(id)) } else { Box::new(String::from(id)) }
}

pub(crate) fn name(path: &str, value: &dyn Aml) -> aml::Name {
    aml::Name::new(path.into(), value)
}
