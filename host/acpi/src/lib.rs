//! ACPI tables of the `pc` machine: RSDP, XSDT, FACS, FADT, MADT and a DSDT that is made for the devices there are.
//!
//! Follows the ACPI specification 6.5. Nothing here knows a device model: the caller passes what the machine consists of
//! ([`AcpiConfig`]), and each device that a guest cannot find by itself as an [`AcpiDevice`]. Left out: HPET and MCFG
//! (the machine has neither), sleep states other than S5, hotplug.

mod aml;
mod device;
mod dsdt;
mod error;
mod fixed;

use std::ops::Range;

use acpi_tables::Aml;

pub use device::{AcpiBus, AcpiDevice, Resource};
pub use error::AcpiError;

/// OEM ID in every table.
const OEM_ID: [u8; 6] = *b"CRDCGE";
/// OEM table ID in every table.
const OEM_TABLE_ID: [u8; 8] = *b"CARDCAGE";
const OEM_REVISION: u32 = 1;

/// Where the registers of power management are, as the board wires them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PowerManagement {
    /// First port of the PM1a event block; control is 4 and the timer 8 ports behind it.
    pub base: u16,
    /// First port of the GPE0 block.
    pub gpe0: u16,
    /// Ports of the GPE0 block: half status, half enable.
    pub gpe0_len: u8,
    /// GSI of the system control interrupt; level-triggered, active high.
    pub sci: u8,
    /// Port that takes the two commands.
    pub command_port: u16,
    /// Command that switches to ACPI mode.
    pub enable: u8,
    /// Command that switches back.
    pub disable: u8,
    /// SLP_TYP of S5.
    pub s5: u8,
    /// Port and value that reset the machine.
    pub reset: (u16, u8),
}

/// How PCI interrupt pins reach interrupt controllers: four links, routed by one configuration byte each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciInterrupts {
    /// Slot and function of the bridge that holds the routing registers.
    pub bridge: (u8, u8),
    /// Offset of the first of the four routing registers in its configuration space. Bit 7 switches a link off, the low
    /// bits are the GSI.
    pub register: u8,
    /// GSIs that a link can be routed to; level-triggered, active high.
    pub choices: Vec<u8>,
}

/// The host bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciRoot {
    /// Memory below 4 GiB that BARs can be placed in.
    pub low: Range<u64>,
    /// Memory above 4 GiB that BARs can be placed in, if any.
    pub high: Option<Range<u64>>,
    /// Interrupt routing.
    pub interrupts: PciInterrupts,
}

/// What the tables tell of.
#[derive(Debug, Clone)]
pub struct AcpiConfig {
    /// APIC ID of each processor, the boot processor first.
    pub cpus: Vec<u32>,
    /// Guest-physical address of the local APICs.
    pub lapic: u32,
    /// ID and guest-physical address of the I/O APIC; it has GSIs 0 to 23.
    pub ioapic: (u8, u32),
    /// Power management, if the machine has any.
    pub pm: PowerManagement,
    /// The host bridge, if the machine has one.
    pub pci: Option<PciRoot>,
    /// Whether a VGA adapter is there.
    pub vga: bool,
    /// Devices that cannot be discovered.
    pub devices: Vec<AcpiDevice>,
}

/// Finished tables, in one piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcpiTables {
    /// Guest-physical address of the first byte, which is also that of the RSDP.
    pub address: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Each table: signature, guest-physical address, length.
    pub tables: Vec<([u8; 4], u64, u32)>,
}

impl AcpiTables {
    /// Guest-physical address of the root pointer.
    pub fn rsdp(&self) -> u64 {
        self.address
    }

    /// Guest-physical addresses that the tables take, to whole pages.
    pub fn range(&self) -> Range<u64> {
        self.address & !0xfff..(self.address + self.bytes.len() as u64).next_multiple_of(0x1000)
    }

    /// One table by its signature.
    pub fn table(&self, signature: &[u8; 4]) -> Option<&[u8]> {
        let (_, address, len) = self.tables.iter().find(|table| table.0 == *signature)?;
        let start = (address - self.address) as usize;
        self.bytes.get(start..start + *len as usize)
    }

    /// Appends a table at a multiple of `alignment`, and gives its address.
    fn push(&mut self, alignment: u64, table: &[u8]) -> u64 {
        let address = (self.address + self.bytes.len() as u64).next_multiple_of(alignment);
        self.bytes.resize((address - self.address) as usize, 0);
        self.bytes.extend_from_slice(table);
        let signature = table.first_chunk::<4>().copied().unwrap_or_default();
        self.tables.push((signature, address, table.len() as u32));
        address
    }
}

/// Makes the tables to be put at `address`: a multiple of 64 below 4 GiB, in RAM that the memory map does not call
/// usable. Between 0xe0000 and 0xfffff a guest without other help finds them by itself.
pub fn build(config: &AcpiConfig, address: u64) -> Result<AcpiTables, AcpiError> {
    if !address.is_multiple_of(64) || address >= 0xff00_0000 {
        return Err(AcpiError::Address { address });
    }
    error::check(config)?;
    let rsdp_len = acpi_tables::rsdp::Rsdp::len();
    let mut tables = AcpiTables { address, bytes: vec![0; rsdp_len], tables: Vec::new() };
    let facs = tables.push(64, &bytes_of(&acpi_tables::facs::FACS::new()));
    let dsdt = tables.push(16, &dsdt::dsdt(config)?);
    let fadt = tables.push(16, &bytes_of(&fixed::fadt(config, facs as u32, dsdt as u32)));
    let madt = tables.push(16, &fixed::madt(config));
    let mut xsdt = acpi_tables::xsdt::XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = tables.push(16, &bytes_of(&xsdt));
    let rsdp = bytes_of(&acpi_tables::rsdp::Rsdp::new(OEM_ID, xsdt));
    tables.bytes[..rsdp_len].copy_from_slice(&rsdp);
    Ok(tables)
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests;
