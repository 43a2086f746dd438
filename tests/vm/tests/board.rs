//! What every `pc` has on its board, through qtest: timers, interrupt controllers, PCI, power management.

use cardcage_qtest_driver::{Machine, Pci};
use cardcage_tests::program;
use serde_json::json;

/// PIT input clock.
const PIT_HZ: u64 = 1_193_182;
/// ACPI PM timer.
const PM_HZ: u64 = 3_579_545;
const SECOND: u64 = 1_000_000_000;

fn start(args: &[&str]) -> Option<Machine> {
    let program = program()?;
    Some(Machine::start(program, ["-machine", "pc", "-nodefaults"].iter().chain(args).copied()))
}

/// Base of the power management registers, which the test places as firmware would.
fn power_management(machine: &Machine) -> u16 {
    let pci = Pci::new(machine);
    let function = pci.find(0x8086, 0x7113).expect("the power management function of the PIIX4");
    function.config_write32(0x40, 0x601);
    function.config_write8(0x80, 1);
    u16::try_from(function.config_read32(0x40) & 0xffc0).unwrap()
}

#[test]
fn the_interval_timer_interrupts_at_its_rate() {
    let Some(machine) = start(&[]) else { return };
    machine.irq_intercept_in("ioapic");
    // Channel 0, both bytes, mode 2, 1000 ticks.
    machine.outb(0x43, 0x34);
    machine.outb(0x40, (1000 & 0xff) as u8);
    machine.outb(0x40, (1000 >> 8) as u8);
    machine.take_irq_changes();
    machine.clock_step(10_500 * SECOND / PIT_HZ);
    let changes = machine.take_irq_changes();
    let raised = changes.iter().filter(|(line, level)| matches!(line, 0 | 2) && *level).count();
    assert_eq!(raised, 10, "{changes:?}");
    // The counter counts down.
    machine.outb(0x43, 0x00);
    let count = u16::from_le_bytes([machine.inb(0x40), machine.inb(0x40)]);
    assert!((490..=510).contains(&count), "{count}");
    assert!(machine.clock_step_to_next() > 0);
}

#[test]
fn the_speaker_channel_is_gated_by_port_61() {
    let Some(machine) = start(&[]) else { return };
    machine.outb(0x61, 0);
    machine.outb(0x43, 0xb0);
    machine.outb(0x42, 100);
    machine.outb(0x42, 0);
    machine.outb(0x61, 1);
    assert_eq!(machine.inb(0x61) & 0x20, 0, "mode 0 starts low");
    machine.clock_step(200 * SECOND / PIT_HZ);
    assert_eq!(machine.inb(0x61) & 0x20, 0x20, "and ends high");
}

#[test]
fn the_interrupt_controllers_have_their_registers() {
    let Some(machine) = start(&[]) else { return };
    for (command, data, vector) in [(0x20, 0x21, 8), (0xa0, 0xa1, 0x70)] {
        // ICW1 to ICW4, then a mask.
        machine.outb(command, 0x11);
        machine.outb(data, vector);
        machine.outb(data, if command == 0x20 { 4 } else { 2 });
        machine.outb(data, 1);
        machine.outb(data, 0xa5);
        assert_eq!(machine.inb(data), 0xa5);
        machine.outb(command, 0x0b);
        assert_eq!(machine.inb(command), 0, "nothing is in service");
    }
    // IOAPIC: index and window.
    let read = |register: u32| {
        machine.writel(0xfec0_0000, register);
        machine.readl(0xfec0_0010)
    };
    assert_eq!(read(1) >> 16 & 0xff, 23, "24 pins");
    machine.writel(0xfec0_0000, 0x10 + 2 * 4);
    machine.writel(0xfec0_0010, 0x1_0031);
    assert_eq!(read(0x10 + 2 * 4) & 0x1_00ff, 0x1_0031);
}

#[test]
fn a_pit_interrupt_is_pending_in_the_first_controller() {
    let Some(machine) = start(&[]) else { return };
    machine.outb(0x20, 0x11);
    machine.outb(0x21, 8);
    machine.outb(0x21, 4);
    machine.outb(0x21, 1);
    machine.outb(0x21, 0xff);
    machine.outb(0x43, 0x30);
    machine.outb(0x40, 100);
    machine.outb(0x40, 0);
    machine.clock_step(200 * SECOND / PIT_HZ);
    machine.outb(0x20, 0x0a);
    assert_eq!(machine.inb(0x20) & 1, 1, "the request register shows it");
}

#[test]
fn the_power_management_timer_runs_at_its_rate() {
    let Some(machine) = start(&[]) else { return };
    let base = power_management(&machine);
    let before = machine.inl(base + 8);
    machine.clock_step(SECOND);
    let after = machine.inl(base + 8);
    let ticks = after.wrapping_sub(before) & 0xff_ffff;
    assert!(u64::from(ticks).abs_diff(PM_HZ) <= 1, "{ticks} ticks in a second");
    machine.qmp(json!({"execute": "stop"}));
    let stopped = machine.inl(base + 8);
    assert_eq!(machine.inl(base + 8), stopped);
}

#[test]
fn the_power_button_raises_the_system_control_interrupt() {
    let Some(machine) = start(&[]) else { return };
    machine.irq_intercept_in("ioapic");
    let base = power_management(&machine);
    // SCI_EN comes by the command port, PWRBTN_EN by the guest.
    machine.outb(0xb2, 0xf1);
    assert_eq!(machine.inw(base + 4) & 1, 1, "ACPI mode is on");
    machine.outw(base + 2, 1 << 8);
    assert!(!machine.irq_level(9));
    machine.qmp(json!({"execute": "system_powerdown"}));
    assert_eq!(machine.wait_event("POWERDOWN")["event"], "POWERDOWN");
    assert_eq!(machine.inw(base) & 1 << 8, 1 << 8, "PWRBTN_STS");
    assert!(machine.irq_level(9));
    machine.outw(base, 1 << 8);
    assert_eq!(machine.inw(base) & 1 << 8, 0);
    assert!(!machine.irq_level(9));
}

#[test]
fn soft_off_ends_the_machine() {
    let Some(machine) = start(&[]) else { return };
    let base = power_management(&machine);
    // SLP_EN with the sleep type of S5, which QEMU's PIIX4 has as 0.
    machine.outw(base + 4, 1 << 13);
    let event = machine.wait_event("SHUTDOWN");
    assert_eq!(event["data"], json!({"guest": true, "reason": "guest-shutdown"}));
    assert!(machine.wait_exit().success());
}

#[test]
fn the_reset_control_register_resets() {
    let Some(machine) = start(&[]) else { return };
    let pci = Pci::new(&machine);
    let bridge = pci.find(0x8086, 0x7000).expect("the ISA bridge");
    bridge.config_write8(0x60, 0x0b);
    assert_eq!(bridge.config_read8(0x60), 0x0b);
    machine.outb(0xcf9, 0x02);
    machine.outb(0xcf9, 0x06);
    let event = machine.wait_event("RESET");
    assert_eq!(event["data"], json!({"guest": true, "reason": "guest-reset"}));
    assert_ne!(bridge.config_read8(0x60), 0x0b, "the routing is as after power on");
    assert_eq!(machine.qmp(json!({"execute": "query-status"}))["running"], true);
}

#[test]
fn the_bridges_are_where_old_guests_look_for_them() {
    let Some(machine) = start(&["-device", "virtio-rng-pci,addr=5"]) else { return };
    let pci = Pci::new(&machine);
    let found: Vec<_> = pci.scan().iter().map(|d| (d.slot(), d.vendor(), d.device_id())).collect();
    for bridge in [((0, 0), 0x8086, 0x1237), ((1, 0), 0x8086, 0x7000), ((1, 3), 0x8086, 0x7113)] {
        assert!(found.contains(&bridge), "{bridge:x?} is not in {found:x?}");
    }
    assert!(found.iter().any(|(slot, vendor, _)| *slot == (5, 0) && *vendor == 0x1af4), "{found:x?}");
    let nobody = pci.device(9, 0);
    assert_eq!((nobody.vendor(), nobody.config_read32(0)), (0xffff, 0xffff_ffff));
}

#[test]
fn what_nobody_answers_reads_as_ones_and_takes_writes() {
    let Some(machine) = start(&[]) else { return };
    assert_eq!((machine.inb(0x2f9), machine.inw(0x2f8), machine.inl(0x1f00)), (0xff, 0xffff, 0xffff_ffff));
    machine.outb(0x2f9, 1);
    machine.outl(0xfffc, 1);
    machine.writeq(0xe000_0000, 1);
    machine.readq(0xe000_0000);
    machine.readq(0xffff_ffff_ffff_fff8);
    // RAM holds what it is given, up to its very end.
    let end = (128 << 20) - 8;
    machine.writeq(end, 0x0123_4567_89ab_cdef);
    assert_eq!(machine.readq(end), 0x0123_4567_89ab_cdef);
    machine.write(end, &[0x55; 64]);
    assert_eq!(machine.read(end, 8), [0x55; 8]);
}
