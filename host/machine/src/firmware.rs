//! What firmware does on a real board, for kernels that are booted without one: memory map, ACPI tables, PCI addresses
//! and interrupt lines. Then the kernel itself.

use std::collections::HashMap;

use cardcage_accel::VcpuState;
use cardcage_acpi::{AcpiBus, AcpiConfig, AcpiDevice as Node, PciInterrupts, PciRoot, PowerManagement, Resource};
use cardcage_boot::BootOptions;
use cardcage_pci::{BarKind, InterruptRouter, PciBus, Piix3, Piix4Pm, ResetControl, Space};
use tracing::{info, warn};

use crate::accelerator::Accelerator;
use crate::board::{Board, BoardError, PIIX3, PIRQ_ROUTES, PM_BASE};
use crate::config::MachineConfig;
use crate::device::AcpiDevice;
use crate::layout;

/// Where the tables go: in the BIOS area, where guests look for them.
const TABLES: u64 = 0xe_0000;
/// End of the BIOS area.
const TABLES_END: u64 = 0x10_0000;
/// Ports for I/O BARs.
const IO_START: u64 = 0xc000;
const IO_END: u64 = 0x1_0000;

/// Prepares the board and loads the kernel; the state that the first vCPU starts with. None without a kernel: tests
/// bring their own firmware, and a machine that only answers questions needs nothing to start.
pub(crate) fn boot(board: &Board, config: &MachineConfig) -> Result<Option<VcpuState>, BoardError> {
    let Some(kernel) = config.kernel.as_deref().filter(|_| config.accelerator != Accelerator::Qtest) else {
        return Ok(None);
    };
    let ram = &board.services.ram;
    let tables = cardcage_acpi::build(&acpi(board, config), TABLES).map_err(|e| BoardError::Wiring(e.to_string()))?;
    if tables.range().end > TABLES_END {
        return Err(BoardError::Wiring(format!(
            "ACPI tables of {} bytes do not fit into the BIOS area",
            tables.bytes.len()
        )));
    }
    ram.write(tables.address, &tables.bytes).map_err(|e| BoardError::Wiring(e.to_string()))?;
    assign_addresses(&board.devices.pci, config.ram_size);
    let options = BootOptions { rsdp: Some(tables.rsdp()), acpi: vec![tables.range()], ..BootOptions::default() };
    let booted = cardcage_boot::load(kernel, config.initrd.as_deref(), &config.cmdline, ram, &options)?;
    info!("kernel: {}", booted.summary);
    Ok(Some(booted.state))
}

fn acpi(board: &Board, config: &MachineConfig) -> AcpiConfig {
    let high = layout::pci_window_64(config.ram_size);
    AcpiConfig {
        cpus: (0..config.cpus).collect(),
        lapic: 0xfee0_0000,
        ioapic: (0, cardcage_irqchip::IOAPIC_ADDRESS as u32),
        pm: PowerManagement {
            base: PM_BASE,
            gpe0: Piix4Pm::GPE0.0,
            gpe0_len: Piix4Pm::GPE0.1,
            sci: InterruptRouter::SCI as u8,
            command_port: Piix4Pm::COMMAND_PORT,
            enable: Piix4Pm::ACPI_ENABLE,
            disable: Piix4Pm::ACPI_DISABLE,
            s5: Piix4Pm::SLEEP_TYPE_S5,
            reset: (ResetControl::PORT, ResetControl::RESET),
        },
        pci: Some(PciRoot {
            low: layout::pci_window_start(config.ram_size)..layout::PCI_WINDOW_END,
            high: Some(high.0..high.0 + high.1),
            interrupts: PciInterrupts {
                bridge: (PIIX3.slot(), PIIX3.function()),
                register: Piix3::PIRQ_ROUTE,
                choices: vec![5, 10, 11],
            },
        }),
        vga: false,
        devices: nodes(board.devices.acpi()),
    }
}

/// Devices with names of four characters: the middle of the hardware ID and a number for each of its devices.
fn nodes(devices: Vec<AcpiDevice>) -> Vec<Node> {
    let mut count: HashMap<String, u32> = HashMap::new();
    let mut all = Vec::new();
    for (i, d) in devices.into_iter().enumerate() {
        let of_this = count.entry(d.hid.clone()).or_default();
        let uid = *of_this;
        *of_this += 1;
        let bus = if d.memory.is_empty() { AcpiBus::Isa } else { AcpiBus::System };
        let ports = d.ports.iter().map(|&(start, len)| Resource::Ports { start, len });
        let memory = d.memory.iter().map(|&(start, len)| Resource::Memory { start, len });
        let irqs = d.irqs.iter().map(|&gsi| match u8::try_from(gsi) {
            Ok(irq) if irq < 16 => Resource::IsaIrq(irq),
            _ => Resource::Interrupt { gsi, edge: false, active_low: false },
        });
        let resources = ports.chain(memory).chain(irqs).collect();
        all.push(Node { uid: Some(uid), resources, ..Node::new(&format!("D{:03X}", i & 0xfff), &d.hid, bus) });
    }
    all
}

/// Gives each BAR an address and each function its interrupt line, and switches decoding on.
fn assign_addresses(pci: &PciBus, ram_size: u64) {
    let mut io = Window { next: IO_START, end: IO_END };
    let mut memory = Window { next: layout::pci_window_start(ram_size), end: layout::PCI_WINDOW_END };
    for (at, function) in pci.functions() {
        let config = function.config();
        let mut command = 0;
        for index in 0..6 {
            let Some(bar) = config.bar(index) else { continue };
            let (window, enable) = match bar.kind.space() {
                Space::Io => (&mut io, 1),
                Space::Memory => (&mut memory, 2),
            };
            let Some(address) = window.take(bar.size) else {
                warn!("{}: no room for BAR {index} of {:#x} bytes; the guest may find some", function.name(), bar.size);
                continue;
            };
            let register = 0x10 + 4 * index as u16;
            pci.config_write(at, register, 4, address as u32);
            if matches!(bar.kind, BarKind::Memory64 { .. }) {
                pci.config_write(at, register + 4, 4, (address >> 32) as u32);
            }
            command |= enable;
        }
        if command != 0 {
            pci.config_write(at, 4, 2, command);
        }
        if let Some(pin) = function.pin() {
            let line = PIRQ_ROUTES.get(pin.pirq(at)).copied().unwrap_or(0);
            pci.config_write(at, 0x3c, 1, line.into());
        }
    }
}

/// Addresses that are free.
struct Window {
    next: u64,
    end: u64,
}

impl Window {
    fn take(&mut self, size: u64) -> Option<u64> {
        let start = self.next.checked_next_multiple_of(size.max(1))?;
        let end = start.checked_add(size).filter(|&end| end <= self.end)?;
        self.next = end;
        Some(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_aligned_to_their_size_and_stay_in_the_window() {
        let mut w = Window { next: 0x1001, end: 0x4000 };
        assert_eq!(w.take(0x1000), Some(0x2000));
        assert_eq!(w.take(0x10), Some(0x3000));
        assert_eq!(w.take(0x1000), None);
        assert_eq!(w.take(0x10), Some(0x3010));
    }
}
