//! FADT (ACPI 6.5, section 5.2.9) and MADT (section 5.2.12).

use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::sdt::Sdt;

use crate::{AcpiConfig, OEM_ID, OEM_REVISION, OEM_TABLE_ID};

/// IAPC_BOOT_ARCH bits (table 5.11).
const LEGACY_DEVICES: u16 = 1 << 0;
const KEYBOARD_CONTROLLER: u16 = 1 << 1;
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_RTC: u16 = 1 << 5;
/// CMOS register of the century.
const CENTURY: u8 = 0x32;
/// C2 and C3 latencies that say that there are none.
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;

pub(crate) fn fadt(config: &AcpiConfig, facs: u32, dsdt: u32) -> FADT {
    let pm = &config.pm;
    let has = |hids: &[&str]| config.devices.iter().any(|device| hids.contains(&device.hid.as_str()));
    let has_rtc = has(&["PNP0B00", "PNP0B01", "PNP0B02"]);
    let mut boot_arch = LEGACY_DEVICES;
    boot_arch |= if has(&["PNP0303", "PNP0F13"]) { KEYBOARD_CONTROLLER } else { 0 };
    boot_arch |= if config.vga { 0 } else { NO_VGA };
    boot_arch |= if has_rtc { 0 } else { NO_CMOS_RTC };

    let io = |bits, access, port: u16| GAS::new(AddressSpace::SystemIo, bits, 0, access, port.into());
    let (event, control, timer) = (pm.base, pm.base.wrapping_add(4), pm.base.wrapping_add(8));
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .firmware_ctrl_32(facs)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // The power button is a fixed feature, the sleep button and the RTC's wake-up are not.
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup)
        .preferred_pm_profile(PmProfile::Desktop)
        .gpe_info(pm.gpe0.into(), 0, pm.gpe0_len, 0, 0);
    fadt.dsdt = dsdt.into();
    fadt.x_dsdt = u64::from(dsdt).into();
    fadt.sci_int = u16::from(pm.sci).into();
    fadt.smi_cmd = u32::from(pm.command_port).into();
    fadt.acpi_enable = pm.enable;
    fadt.acpi_disable = pm.disable;
    fadt.pm1a_evt_blk = u32::from(event).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1a_cnt_blk = u32::from(control).into();
    fadt.pm1_cnt_len = 2;
    fadt.pm_tmr_blk = u32::from(timer).into();
    fadt.pm_tmr_len = 4;
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = if has_rtc { CENTURY } else { 0 };
    fadt.iapc_boot_arch = boot_arch.into();
    fadt.reset_reg = io(8, AccessSize::ByteAccess, pm.reset.0);
    fadt.reset_value = pm.reset.1;
    fadt.x_pm1a_evt_blk = io(32, AccessSize::WordAccess, event);
    fadt.x_pm1a_cnt_blk = io(16, AccessSize::WordAccess, control);
    fadt.x_pm_tmr_blk = io(32, AccessSize::DwordAccess, timer);
    fadt.x_gpe0_blk = io(pm.gpe0_len.saturating_mul(8), AccessSize::ByteAccess, pm.gpe0);
    fadt.finalize()
}

pub(crate) fn madt(config: &AcpiConfig) -> Vec<u8> {
    const PC_AT_COMPATIBLE: u32 = 1;
    let mut body = Vec::new();
    body.extend(config.lapic.to_le_bytes());
    body.extend(PC_AT_COMPATIBLE.to_le_bytes());
    for (uid, &apic) in (0u32..).zip(&config.cpus) {
        body.extend(processor(uid, apic));
    }
    let (id, address) = config.ioapic;
    body.extend([1, 12, id, 0]);
    body.extend(address.to_le_bytes());
    body.extend(0u32.to_le_bytes());
    // The PIT's interrupt arrives at input 2, as on every PC.
    body.extend(interrupt_override(0, 2, 0));
    for gsi in level_triggered(config) {
        const ACTIVE_HIGH_LEVEL: u16 = 0x0d;
        body.extend(interrupt_override(gsi, gsi.into(), ACTIVE_HIGH_LEVEL));
    }
    // NMI at LINT1 of every local APIC.
    body.extend([4, 6, 0xff, 0, 0, 1]);
    let mut table = Sdt::new(*b"APIC", 36, 5, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&body);
    table.as_slice().to_vec()
}

/// A local APIC, or a local x2APIC if its ID does not fit.
fn processor(uid: u32, apic: u32) -> Vec<u8> {
    const ENABLED: u32 = 1;
    match (u8::try_from(uid), u8::try_from(apic)) {
        (Ok(uid), Ok(apic)) if apic < 255 => {
            let mut entry = vec![0, 8, uid, apic];
            entry.extend(ENABLED.to_le_bytes());
            entry
        }
        _ => {
            let mut entry = vec![9, 16, 0, 0];
            for field in [apic, ENABLED, uid] {
                entry.extend(field.to_le_bytes());
            }
            entry
        }
    }
}

fn interrupt_override(irq: u8, gsi: u32, flags: u16) -> Vec<u8> {
    let mut entry = vec![2, 10, 0, irq];
    entry.extend(gsi.to_le_bytes());
    entry.extend(flags.to_le_bytes());
    entry
}

/// ISA interrupts that are level-triggered: the SCI, and what PCI links are routed to.
fn level_triggered(config: &AcpiConfig) -> Vec<u8> {
    let links = config.pci.iter().flat_map(|pci| &pci.interrupts.choices).copied();
    let mut gsis: Vec<u8> = links.chain([config.pm.sci]).filter(|&gsi| gsi < 16).collect();
    gsis.sort_unstable();
    gsis.dedup();
    gsis
}
