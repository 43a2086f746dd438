//! What a machine cannot be described as.

use std::collections::HashSet;

use crate::{AcpiConfig, AcpiDevice};

/// Why tables cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AcpiError {
    /// Tables cannot be there.
    #[error("ACPI tables cannot be at {address:#x}: the address must be a multiple of 64 below 0xff000000")]
    Address {
        /// The address.
        address: u64,
    },
    /// A device name that AML does not know.
    #[error("ACPI device name '{name}' is not 4 characters of A-Z, 0-9 and _ that begin with a letter or _")]
    Name {
        /// The name.
        name: String,
    },
    /// Two devices of one name.
    #[error("two ACPI devices are named '{name}'; names must differ")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// A hardware ID that is none.
    #[error("ACPI device '{name}': '{id}' is no hardware ID such as PNP0501 or QEMU0001")]
    HardwareId {
        /// The device.
        name: String,
        /// The ID.
        id: String,
    },
    /// A resource that cannot be.
    #[error("ACPI device '{name}': {what}")]
    Resource {
        /// The device.
        name: String,
        /// What cannot be.
        what: String,
    },
    /// A window that cannot be.
    #[error("PCI memory window {start:#x}..{end:#x} is empty or not on the right side of 4 GiB")]
    Window {
        /// First address.
        start: u64,
        /// End.
        end: u64,
    },
    /// A machine without processors.
    #[error("ACPI tables need at least one processor")]
    NoProcessor,
}

/// Checks what the encoders take for granted.
pub(crate) fn check(config: &AcpiConfig) -> Result<(), AcpiError> {
    if config.cpus.is_empty() {
        return Err(AcpiError::NoProcessor);
    }
    if let Some(pci) = &config.pci {
        let window = |w: &std::ops::Range<u64>, ok: bool| match w.start < w.end && ok {
            true => Ok(()),
            false => Err(AcpiError::Window { start: w.start, end: w.end }),
        };
        window(&pci.low, pci.low.end <= 1 << 32)?;
        if let Some(high) = &pci.high {
            window(high, high.start >= 1 << 32)?;
        }
    }
    let mut names = HashSet::new();
    for device in &config.devices {
        check_device(device)?;
        if !names.insert((device.bus, &device.name)) {
            return Err(AcpiError::Duplicate { name: device.name.clone() });
        }
    }
    Ok(())
}

fn check_device(device: &AcpiDevice) -> Result<(), AcpiError> {
    let name = device.name.as_str();
    let first = |c: u8| c.is_ascii_uppercase() || c == b'_';
    let is_name = name.len() == 4
        && name.bytes().next().is_some_and(first)
        && name.bytes().all(|c| first(c) || c.is_ascii_digit());
    if !is_name {
        return Err(AcpiError::Name { name: name.into() });
    }
    for id in std::iter::once(&device.hid).chain(&device.cid) {
        if !(7..=8).contains(&id.len()) || !id.bytes().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit()) {
            return Err(AcpiError::HardwareId { name: name.into(), id: id.clone() });
        }
    }
    for resource in &device.resources {
        resource.check().map_err(|what| AcpiError::Resource { name: name.into(), what })?;
    }
    Ok(())
}
