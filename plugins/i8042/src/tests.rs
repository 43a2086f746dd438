//! The controller as drivers see it.

use super::*;
use crate::keyboard::Key;
use crate::mouse::Buttons;
use cardcage_plugin_api::testing::*;
use proptest::prelude::*;

fn device() -> (TestHost, TestDevice) {
    let host = TestHost::new();
    let device = TestDevice::new::<I8042>(&host, &[]).unwrap();
    (host, device)
}
/// All bytes that wait, as a driver would poll for them; those of the mouse with bit 8.
fn drain(device: &TestDevice) -> Vec<u16> {
    let next = || match device.inb(0x64) & 0x21 {
        0x01 => Some(u16::from(device.inb(0x60))),
        0x21 => Some(u16::from(device.inb(0x60)) | 0x100),
        _ => None,
    };
    std::iter::from_fn(next).collect()
}
fn ask_controller(device: &mut TestDevice, command: u8) -> Vec<u16> {
    device.outb(0x64, command);
    drain(device)
}
fn tell_mouse(device: &mut TestDevice, byte: u8) -> Vec<u16> {
    device.outb(0x64, 0xd4);
    device.outb(0x60, byte);
    drain(device)
}

#[test]
fn the_self_test_and_interface_tests_pass() {
    let (_, mut device) = device();
    assert_eq!(device.inb(0x64), 0x18);
    assert_eq!(ask_controller(&mut device, 0xaa), [0x55]);
    assert_eq!(device.inb(0x64), 0x1c);
    assert_eq!(ask_controller(&mut device, 0xa9), [0x00]);
    assert_eq!(ask_controller(&mut device, 0xab), [0x00]);
}

#[test]
fn the_command_byte_is_written_and_read_back() {
    let (_, mut device) = device();
    assert_eq!(ask_controller(&mut device, 0x20), [0x03]);
    device.outb(0x64, 0x60);
    device.outb(0x60, 0x47);
    assert_eq!(ask_controller(&mut device, 0x20), [0x47]);
    for (command, mode) in [(0xa7, 0x67), (0xad, 0x77), (0xa8, 0x57), (0xae, 0x47)] {
        device.outb(0x64, command);
        assert_eq!(ask_controller(&mut device, 0x20), [mode]);
    }
}

#[test]
fn a_keyboard_reset_interrupts_once_for_each_byte() {
    let (host, mut device) = device();
    device.outb(0x60, 0xff);
    assert!(host.irq(1));
    assert_eq!((device.inb(0x60), host.irq(1), host.irq_edges(1)), (0xfa, true, 2));
    assert_eq!((device.inb(0x60), host.irq(1), host.irq_edges(1)), (0xaa, false, 2));
    assert_eq!(host.irq_edges(12), 0);
}

#[test]
fn without_its_interrupt_enabled_the_keyboard_can_be_polled() {
    let (host, mut device) = device();
    device.outb(0x64, 0x60);
    device.outb(0x60, 0x00);
    device.outb(0x60, 0xf2);
    assert_eq!(drain(&device), [0xfa, 0xab, 0x83]);
    assert_eq!(host.irq_edges(1), 0);
    // An empty buffer gives its last byte again.
    assert_eq!(device.inb(0x60), 0x83);
}

#[test]
fn answers_are_translated_with_everything_else() {
    let (_, mut device) = device();
    device.outb(0x64, 0x60);
    device.outb(0x60, 0x40);
    device.outb(0x60, 0xf2);
    assert_eq!(drain(&device), [0xfa, 0xab, 0x41]);
    device.outb(0x60, 0xf0);
    device.outb(0x60, 0x00);
    assert_eq!(drain(&device), [0xfa, 0xfa, 0x41]);
}

#[test]
fn a_disabled_keyboard_waits_and_a_byte_for_it_enables_it() {
    let (_, mut device) = device();
    device.outb(0x60, 0xee);
    device.outb(0x60, 0xee);
    device.outb(0x64, 0xad);
    assert_eq!(drain(&device), [0xee]);
    device.outb(0x60, 0xee);
    assert_eq!(drain(&device), [0xee, 0xee]);
}

#[test]
fn the_mouse_answers_beside_the_keyboard_and_on_its_own_interrupt() {
    let (host, mut device) = device();
    assert_eq!(tell_mouse(&mut device, 0xff), [0x1fa, 0x1aa, 0x100]);
    assert_eq!((host.irq_edges(1), host.irq_edges(12)), (0, 3));
    for rate in [200, 100, 80] {
        assert_eq!(tell_mouse(&mut device, 0xf3), [0x1fa]);
        assert_eq!(tell_mouse(&mut device, rate), [0x1fa]);
    }
    assert_eq!(tell_mouse(&mut device, 0xf2), [0x1fa, 0x103]);
}

#[test]
fn bytes_can_be_put_into_the_buffer_as_if_a_device_had_sent_them() {
    let (_, mut device) = device();
    for (command, expected) in [(0xd2, 0x5a), (0xd3, 0x15a)] {
        device.outb(0x64, command);
        device.outb(0x60, 0x5a);
        assert_eq!(drain(&device), [expected]);
    }
}

#[test]
fn every_way_to_pulse_the_reset_line_resets_the_machine() {
    let (host, mut device) = device();
    device.outb(0x64, 0xfe);
    device.outb(0x64, 0xf0);
    device.outb(0x64, 0xd1);
    device.outb(0x60, 0x02);
    assert_eq!(host.take_requests(), [Request::Reset; 3]);
    device.outb(0x64, 0xff);
    device.outb(0x64, 0xd1);
    device.outb(0x60, 0xdf);
    assert_eq!(host.take_requests(), []);
}

#[test]
fn the_output_port_keeps_the_a20_gate() {
    let (_, mut device) = device();
    assert_eq!(ask_controller(&mut device, 0xd0), [0xcf]);
    device.outb(0x64, 0xdd);
    assert_eq!(ask_controller(&mut device, 0xd0), [0xcd]);
    device.outb(0x64, 0xdf);
    assert_eq!(ask_controller(&mut device, 0xd0), [0xcf]);
    assert_eq!(ask_controller(&mut device, 0xc0), [0x80]);
}

#[test]
fn keystrokes_and_movement_reach_the_guest_through_the_one_buffer() {
    let mut c = Controller::default();
    c.write_command(0x60);
    c.write_data(0x43);
    c.write_command(0xd4);
    c.write_data(0xf4);
    assert_eq!(c.read_data(), 0xfa);
    c.keyboard.key(Key { code: 0x1c, extended: false }, true);
    c.mouse.moved(1, 2, 0, Buttons::empty());
    c.keyboard.key(Key { code: 0x1c, extended: false }, false);
    c.refill();
    let mut seen = Vec::new();
    while c.status().contains(controller::Status::OUTPUT_FULL) {
        let mouse = c.status().contains(controller::Status::FROM_MOUSE);
        seen.push((mouse, c.read_data()));
    }
    assert_eq!(seen, [(false, 0x1e), (false, 0x9e), (true, 0x08), (true, 1), (true, 2)]);
}

#[test]
fn a_reset_forgets_everything() {
    let (host, mut device) = device();
    device.outb(0x60, 0xff);
    device.outb(0x64, 0xa7);
    device.reset(ResetKind::Warm);
    assert_eq!((device.inb(0x64), host.irq(1)), (0x18, false));
    assert_eq!(ask_controller(&mut device, 0x20), [0x03]);
}

#[test]
fn half_read_answers_move_with_the_device() {
    let (_, mut device) = device();
    device.outb(0x60, 0xf2);
    device.outb(0x64, 0xd4);
    device.outb(0x60, 0xff);
    assert_eq!(device.inb(0x60), 0xfa);
    let next = device.migrate().unwrap();
    assert!(next.host().irq(1));
    assert_eq!(drain(&next), [0xab, 0x83, 0x1fa, 0x1aa, 0x100]);
}

#[test]
fn firmware_finds_keyboard_and_mouse_in_acpi() {
    let (host, _device) = device();
    assert_eq!(host.acpi(), [r#"{"hid":"PNP0303"}"#, r#"{"hid":"PNP0F13"}"#]);
}

#[test]
fn it_conforms() {
    conformance::check::<I8042>(TestHost::new, &[]);
}

proptest! {
    #[test]
    fn whatever_is_written_and_typed_the_buffer_can_be_emptied(
        steps in prop::collection::vec((0u8..6, any::<u8>()), 0..200)
    ) {
        let mut c = Controller::default();
        for (act, byte) in steps {
            match act {
                0 => drop(c.write_data(byte)),
                1 => drop(c.write_command(byte)),
                2 => drop(c.read_data()),
                3 => c.keyboard.key(Key { code: byte, extended: byte & 1 != 0 }, byte & 2 != 0),
                4 => c.mouse.moved(i32::from(byte), -i32::from(byte), 1, Buttons::from_bits_truncate(byte)),
                _ => c.refill(),
            }
            let (keyboard, mouse) = c.interrupts();
            prop_assert!(!(keyboard && mouse));
        }
        // The mouse may have saved up a long way to report.
        for _ in 0..200_000 {
            if !c.status().contains(controller::Status::OUTPUT_FULL) {
                break;
            }
            c.read_data();
        }
        prop_assert!(!c.status().contains(controller::Status::OUTPUT_FULL));
    }
}
