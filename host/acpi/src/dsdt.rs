//! The DSDT: processors, PCI root with its windows and links, devices, S5.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, Device, Else, Field, FieldAccessType, FieldEntry, FieldLockRule,
    FieldUpdateRule, IO, If, Method, Name, OpRegion, OpRegionSpace, Or, Package, Path, ResourceTemplate, Return, Scope,
    Store, ZERO,
};
use acpi_tables::sdt::Sdt;

use crate::aml::{DWordField, LinkInterrupts, Raw};
use crate::device::{id, name};
use crate::{AcpiBus, AcpiConfig, AcpiError, OEM_ID, OEM_REVISION, OEM_TABLE_ID, PciRoot, bytes_of};

/// The links, by pin; the last is the one of the SCI.
const LINKS: [&str; 4] = ["LNKA", "LNKB", "LNKC", "LNKD"];
const SCI_LINK: &str = "LNKS";
/// Routing register bit: the link is off.
const LINK_OFF: u8 = 0x80;
/// Offset of the interrupt number in the resource template of a link.
const LINK_NUMBER: u8 = 5;
/// _STA of a link: present and functioning, and enabled or not.
const LINK_ENABLED: u8 = 0x0b;
const LINK_DISABLED: u8 = 0x09;

pub(crate) fn dsdt(config: &AcpiConfig) -> Result<Vec<u8>, AcpiError> {
    let mut system: Vec<u8> = Vec::new();
    for uid in (0u32..).take(config.cpus.len()) {
        system.extend(processor(uid));
    }
    let isa: Vec<u8> = devices(config, AcpiBus::Isa);
    if let Some(pci) = &config.pci {
        system.extend(pci_root(config, pci, isa));
        system.extend(links(config, pci));
    } else {
        system.extend(isa);
    }
    system.extend(devices(config, AcpiBus::System));
    let mut aml = bytes_of(&Scope::new("\\_SB_".into(), vec![&Raw(system)]));
    let s5 = config.pm.s5;
    aml.extend(bytes_of(&Name::new("\\_S5_".into(), &Package::new(vec![&s5, &s5, &ZERO, &ZERO]))));
    // Revision 2: integers of 64 bits.
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&aml);
    Ok(table.as_slice().to_vec())
}

fn devices(config: &AcpiConfig, bus: AcpiBus) -> Vec<u8> {
    config.devices.iter().filter(|device| device.bus == bus).flat_map(|device| bytes_of(device)).collect()
}

/// A processor device, with the UID that the MADT has. Names count in hexadecimal: C000, C001, …
fn processor(uid: u32) -> Vec<u8> {
    let hid = name("_HID", &"ACPI0007");
    let unique = name("_UID", &uid);
    bytes_of(&Device::new(Path::new(&format!("C{:03X}", uid & 0xfff)), vec![&hid, &unique]))
}

fn pci_root(config: &AcpiConfig, pci: &PciRoot, isa: Vec<u8>) -> Vec<u8> {
    let hid = name("_HID", &*id("PNP0A03"));
    let bus = name("_BBN", &ZERO);
    let unique = name("_UID", &ZERO);
    let resources = name("_CRS", &Raw(windows(pci)));
    let routing = name("_PRT", &Raw(routing_table(config, pci)));
    let (slot, function) = pci.interrupts.bridge;
    let bridge_address = name("_ADR", &(u32::from(slot) << 16 | u32::from(function)));
    let region = OpRegion::new("PIRQ".into(), OpRegionSpace::PCIConfig, &pci.interrupts.register, &4u8);
    let registers = Field::new(
        "PIRQ".into(),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::Preserve,
        (b'0'..b'4').map(|digit| FieldEntry::Named([b'P', b'R', b'Q', digit], 8)).collect(),
    );
    let isa = Raw(isa);
    let bridge = Device::new("ISA_".into(), vec![&bridge_address, &region, &registers, &isa]);
    bytes_of(&Device::new("PCI0".into(), vec![&hid, &bus, &unique, &resources, &routing, &bridge]))
}

/// Buses, ports and memory that the root passes on.
fn windows(pci: &PciRoot) -> Vec<u8> {
    let memory =
        |start: u32, last| AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, start, last, None);
    let buses = AddressSpace::new_bus_number(0u16, 0xff);
    let config_ports = IO::new(0xcf8, 0xcf8, 1, 8);
    let ports_below = AddressSpace::new_io(0u16, 0xcf7, None);
    let ports_above = AddressSpace::new_io(0xd00u16, 0xffff, None);
    let vga = memory(0xa_0000, 0xb_ffff);
    let low = memory(pci.low.start as u32, (pci.low.end - 1) as u32);
    let high = pci.high.as_ref().map(|high| {
        AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, high.start, high.end - 1, None)
    });
    let mut list: Vec<&dyn Aml> = vec![&buses, &config_ports, &ports_below, &ports_above, &vga, &low];
    if let Some(high) = &high {
        list.push(high);
    }
    bytes_of(&ResourceTemplate::new(list))
}

/// Which link each pin of each slot is wired to: `(slot - 1 + pin) mod 4`. The bridge's own INTA is the SCI.
fn routing_table(config: &AcpiConfig, pci: &PciRoot) -> Vec<u8> {
    let mut entries: Vec<Vec<u8>> = Vec::new();
    for slot in 0..32u32 {
        for pin in 0..4u8 {
            let is_sci = slot == u32::from(pci.interrupts.bridge.0) && pin == 0 && config.pm.sci != 0;
            let link = if is_sci { SCI_LINK } else { LINKS[(slot as usize + 3 + usize::from(pin)) % 4] };
            let link = path(&format!("\\_SB_.{link}"));
            entries.push(bytes_of(&Package::new(vec![&(slot << 16 | 0xffff), &pin, &link, &ZERO])));
        }
    }
    let entries: Vec<Raw> = entries.into_iter().map(Raw).collect();
    // 128 elements: an ordinary package.
    bytes_of(&Package::new(entries.iter().map(|entry| entry as &dyn Aml).collect()))
}

fn links(config: &AcpiConfig, pci: &PciRoot) -> Vec<u8> {
    let choices: Vec<u32> = pci.interrupts.choices.iter().map(|&gsi| gsi.into()).collect();
    let mut aml = Vec::new();
    for (number, link) in LINKS.into_iter().enumerate() {
        aml.extend(routed_link(link, number, &choices));
    }
    aml.extend(fixed_link(SCI_LINK, LINKS.len(), config.pm.sci.into()));
    aml
}

/// A link that a routing register switches.
fn routed_link(link: &str, number: usize, choices: &[u32]) -> Vec<u8> {
    let register = path(&format!("\\_SB_.PCI0.ISA_.PRQ{number}"));
    let hid = name("_HID", &*id("PNP0C0F"));
    let unique = name("_UID", &number);
    let template = |gsis: &[u32]| Raw(bytes_of(&ResourceTemplate::new(vec![&LinkInterrupts(gsis.to_vec())])));
    let possible = name("_PRS", &template(choices));

    let off = And::new(&ZERO, &register, &LINK_OFF);
    let disabled = Return::new(&LINK_DISABLED);
    let enabled = Return::new(&LINK_ENABLED);
    let if_off = If::new(&off, vec![&disabled]);
    let status = Method::new("_STA".into(), 0, false, vec![&if_off, &enabled]);

    let switch_off = Or::new(&register, &register, &LINK_OFF);
    let disable = Method::new("_DIS".into(), 0, false, vec![&switch_off]);

    let (buffer, value) = (path("PRR0"), path("PRRI"));
    let current = name("PRR0", &template(&[0]));
    let field = DWordField { source: &buffer, offset: LINK_NUMBER, name: &value };
    let nothing = Store::new(&value, &ZERO);
    let routed = Store::new(&value, &register);
    let if_nothing = If::new(&off, vec![&nothing]);
    let otherwise = Else::new(vec![&routed]);
    let answer = Return::new(&buffer);
    let get = Method::new("_CRS".into(), 0, true, vec![&field, &if_nothing, &otherwise, &answer]);

    let wanted = DWordField { source: &Arg(0), offset: LINK_NUMBER, name: &value };
    let route = Store::new(&register, &value);
    let set = Method::new("_SRS".into(), 1, true, vec![&wanted, &route]);

    bytes_of(&Device::new(link.into(), vec![&hid, &unique, &possible, &current, &status, &disable, &get, &set]))
}

/// A link that is wired to one interrupt.
fn fixed_link(link: &str, number: usize, gsi: u32) -> Vec<u8> {
    let hid = name("_HID", &*id("PNP0C0F"));
    let unique = name("_UID", &number);
    let interrupt = LinkInterrupts(vec![gsi]);
    let possible = name("_PRS", &ResourceTemplate::new(vec![&interrupt]));
    let current = name("_CRS", &ResourceTemplate::new(vec![&interrupt]));
    let status = name("_STA", &LINK_ENABLED);
    let disable = Method::new("_DIS".into(), 0, false, vec![]);
    let set = Method::new("_SRS".into(), 1, false, vec![]);
    bytes_of(&Device::new(link.into(), vec![&hid, &unique, &possible, &status, &disable, &current, &set]))
}

/// A name that is used as a value.
fn path(name: &str) -> Path {
    Path::new(name)
}
