//! The port as a driver and a user at the other end see it.

use super::*;
use cardcage_plugin_api::testing::*;
use proptest::prelude::*;

const COM1: u16 = 0x3f8;
/// One character of 10 bits at 9600 baud, the divisor after reset, with five data bits (as LCR is 0): 7 bits.
const CHARACTER_NS: u64 = 7 * 1_000_000_000 * 12 / 115_200;

fn host() -> TestHost {
    TestHost::new().with_chardev("tty")
}
fn port(host: &TestHost) -> TestDevice {
    TestDevice::new::<Serial>(host, &[("index", "0"), ("chardev", "tty")]).unwrap()
}

#[test]
fn bytes_written_reach_the_backend_at_once() {
    let host = host();
    let mut port = port(&host);
    for byte in b"Linux" {
        assert_eq!(port.inb(COM1 + 5), 0x60);
        port.outb(COM1, *byte);
    }
    assert_eq!(host.take_output("tty"), b"Linux");
    assert_eq!(port.stats(), r#"{"sent-bytes":5,"received-bytes":0}"#);
}

#[test]
fn a_backend_that_is_full_keeps_the_transmitter_busy_until_it_takes_bytes_again() {
    let host = host();
    let mut port = port(&host);
    port.outb(COM1 + 1, 0x02);
    port.inb(COM1 + 2);
    host.set_output_room("tty", Some(0));

    // The first byte moves on to the shift register: the holding register is free, the transmitter is not.
    port.outb(COM1, b'a');
    assert_eq!(port.inb(COM1 + 5), 0x20);
    port.inb(COM1 + 2);
    port.outb(COM1, b'b');
    assert_eq!(port.inb(COM1 + 5), 0x00);
    assert!(!host.irq(4));

    host.set_output_room("tty", None);
    port.run();
    assert_eq!(host.take_output("tty"), b"ab");
    assert_eq!(port.inb(COM1 + 5), 0x60);
    assert_eq!((host.irq(4), port.inb(COM1 + 2)), (true, 0x02));
    assert!(!host.irq(4));
}

#[test]
fn the_empty_transmitter_interrupts_when_it_is_enabled_and_after_each_byte() {
    let host = host();
    let mut port = port(&host);
    port.outb(COM1 + 1, 0x02);
    assert_eq!((host.irq(4), port.inb(COM1 + 2)), (true, 0x02));
    assert_eq!((host.irq(4), port.inb(COM1 + 2)), (false, 0x01));
    port.outb(COM1, b'x');
    assert_eq!((host.irq(4), port.inb(COM1 + 2), host.irq(4)), (true, 0x02, false));
}

#[test]
fn without_fifos_one_byte_of_input_waits_at_a_time() {
    let host = host();
    let mut port = port(&host);
    port.outb(COM1 + 1, 0x01);
    port.type_in("tty", b"hi");
    assert_eq!((host.irq(4), port.inb(COM1 + 2), host.waiting_input("tty")), (true, 0x04, 1));
    assert_eq!(port.inb(COM1 + 5), 0x61);
    assert_eq!(port.inb(COM1), b'h');
    assert!(!host.irq(4));
    port.run();
    assert_eq!((port.inb(COM1), port.inb(COM1 + 5)), (b'i', 0x60));
    // An empty receiver gives its last byte again.
    assert_eq!(port.inb(COM1), b'i');
}

#[test]
fn the_fifo_interrupts_at_its_trigger_level() {
    let host = host();
    let mut port = port(&host);
    port.outb(COM1 + 2, 0x81);
    port.outb(COM1 + 1, 0x01);
    port.type_in("tty", b"1234567");
    assert_eq!((host.irq(4), port.inb(COM1 + 2)), (false, 0xc1));
    port.type_in("tty", b"8");
    assert_eq!((host.irq(4), port.inb(COM1 + 2)), (true, 0xc4));
    for byte in b"12345678" {
        assert_eq!(port.inb(COM1), *byte);
    }
    assert!(!host.irq(4));
}

#[test]
fn input_below_the_trigger_level_interrupts_after_four_characters() {
    let host = host();
    let mut port = port(&host);
    port.outb(COM1 + 2, 0xc1);
    port.outb(COM1 + 1, 0x01);
    port.type_in("tty", b"ab");
    assert_eq!(host.next_deadline(), Some(4 * CHARACTER_NS));
    port.advance(4 * CHARACTER_NS - 1);
    assert!(!host.irq(4));
    port.advance(1);
    assert_eq!((host.irq(4), port.inb(COM1 + 2)), (true, 0xcc));
    // Reading a byte ends it, and starts the time anew for the next one.
    assert_eq!((port.inb(COM1), host.irq(4)), (b'a', false));
    port.advance(4 * CHARACTER_NS);
    assert_eq!((host.irq(4), port.inb(COM1), host.irq(4)), (true, b'b', false));
    assert_eq!(host.next_deadline(), None);
}

#[test]
fn a_full_fifo_holds_input_back_instead_of_losing_it() {
    let host = host();
    let mut port = port(&host);
    port.outb(COM1 + 2, 0xc1);
    port.type_in("tty", b"0123456789abcdefghij");
    assert_eq!(host.waiting_input("tty"), 4);
    let mut seen = Vec::new();
    while port.inb(COM1 + 5) & 1 != 0 {
        seen.push(port.inb(COM1));
        port.run();
    }
    assert_eq!(seen, b"0123456789abcdefghij");
}

#[test]
fn a_break_is_a_zero_byte_with_the_break_bit_and_has_the_highest_priority() {
    let host = host();
    let mut port = port(&host);
    port.outb(COM1 + 1, 0x07);
    port.char_event("tty", CharEvent::Break);
    assert_eq!(port.inb(COM1 + 2), 0x06);
    assert_eq!(port.inb(COM1 + 5), 0x71);
    assert_eq!(port.inb(COM1 + 2), 0x04);
    assert_eq!((port.inb(COM1), port.inb(COM1 + 2)), (0, 0x02));
    assert!(!host.irq(4));
}

#[test]
fn a_second_break_overruns_a_receiver_that_nobody_reads() {
    let host = host();
    let mut port = port(&host);
    port.char_event("tty", CharEvent::Break);
    port.char_event("tty", CharEvent::Break);
    assert_eq!(port.inb(COM1 + 5), 0x73);
    assert_eq!(port.inb(COM1 + 5), 0x61);
}

#[test]
fn the_guest_can_send_a_break() {
    let host = host();
    let mut port = port(&host);
    port.outb(COM1 + 3, 0x43);
    assert!(host.break_is_on("tty"));
    port.outb(COM1 + 3, 0x03);
    assert!(!host.break_is_on("tty"));
}

#[test]
fn the_divisor_hides_behind_dlab() {
    let host = host();
    let mut port = port(&host);
    port.outb(COM1 + 3, 0x83);
    port.outw(COM1, 0x0180);
    assert_eq!(port.inw(COM1), 0x0180);
    port.outb(COM1 + 3, 0x03);
    assert_eq!((port.inb(COM1 + 1), host.take_output("tty")), (0, vec![]));
}

#[test]
fn in_loopback_the_transmitter_feeds_the_receiver_and_outputs_become_inputs() {
    let host = host();
    let mut port = port(&host);
    port.inb(COM1 + 6);
    // The test by which Linux recognises a UART: OUT2 and RTS come back as DCD and CTS.
    port.outb(COM1 + 4, 0x1a);
    assert_eq!(port.inb(COM1 + 6) & 0xf0, 0x90);
    port.outb(COM1, b'z');
    port.type_in("tty", b"later");
    assert_eq!((port.inb(COM1), port.inb(COM1 + 5) & 1), (b'z', 0));
    assert_eq!(host.take_output("tty"), b"");
    // Input from outside waits until the loop is open again.
    port.outb(COM1 + 4, 0x00);
    port.run();
    assert_eq!(port.inb(COM1), b'l');
}

#[test]
fn changed_modem_lines_are_reported_once() {
    let host = host();
    let mut port = port(&host);
    port.outb(COM1 + 1, 0x08);
    port.outb(COM1 + 4, 0x14);
    assert!(host.irq(4));
    // All of CTS, DSR and DCD fell; RI rose, which is no event.
    assert_eq!(port.inb(COM1 + 6), 0x4b);
    assert!(!host.irq(4));
    port.outb(COM1 + 4, 0x10);
    assert_eq!((port.inb(COM1 + 6), port.inb(COM1 + 6)), (0x04, 0x00));
}

#[test]
fn switching_the_fifos_empties_them() {
    let host = host();
    let mut port = port(&host);
    port.outb(COM1 + 2, 0x01);
    port.type_in("tty", b"a");
    port.outb(COM1 + 2, 0x00);
    assert_eq!((port.inb(COM1 + 5) & 1, port.inb(COM1 + 2)), (0, 0x01));
    assert_eq!(host.next_deadline(), None);
}

#[test]
fn ports_and_interrupts_follow_the_index_unless_they_are_given() {
    for (index, first, irq) in [("0", 0x3f8, 4), ("1", 0x2f8, 3), ("2", 0x3e8, 4), ("3", 0x2e8, 3)] {
        let host = host();
        let mut port = TestDevice::new::<Serial>(&host, &[("index", index)]).unwrap();
        assert_eq!(host.ports(), [(first, 8)]);
        port.outb(first as u16 + 1, 0x02);
        assert!(host.irq(irq));
    }
    let host = host();
    let given = [("index", "1"), ("iobase", "0x3220"), ("irq", "10")];
    let mut port = TestDevice::new::<Serial>(&host, &given).unwrap();
    port.outb(0x3221, 0x02);
    assert!(host.irq(10));
}

#[test]
fn without_an_index_the_first_free_port_is_taken() {
    let host = host();
    let _com1 = TestDevice::new::<Serial>(&host, &[]).unwrap();
    let _com2 = TestDevice::new::<Serial>(&host, &[]).unwrap();
    assert_eq!(host.ports(), [(0x3f8, 8), (0x2f8, 8)]);
}

#[test]
fn an_index_beyond_three_is_refused() {
    let refused = TestDevice::new::<Serial>(&host(), &[("index", "4")]).err().unwrap();
    assert_eq!(refused.to_string(), "property 'index' is 4, allowed is 0..=3");
}

#[test]
fn a_port_without_a_backend_swallows_bytes() {
    let host = TestHost::new();
    let mut port = TestDevice::new::<Serial>(&host, &[]).unwrap();
    port.outb(COM1, b'x');
    assert_eq!(port.inb(COM1 + 5), 0x60);
}

#[test]
fn a_port_moves_with_bytes_in_both_directions() {
    let host = host();
    let mut port = port(&host);
    port.outb(COM1 + 2, 0xc1);
    port.outb(COM1 + 1, 0x01);
    port.outb(COM1 + 7, 0x5a);
    port.type_in("tty", b"in");
    host.set_output_room("tty", Some(0));
    b"out".iter().for_each(|&b| port.outb(COM1, b));

    let mut next = port.migrate().unwrap();
    assert_eq!(next.host().take_output("tty"), b"out");
    assert_eq!(next.inb(COM1 + 7), 0x5a);
    next.advance(4 * CHARACTER_NS);
    assert!(next.host().irq(4));
    assert_eq!((next.inb(COM1), next.inb(COM1)), (b'i', b'n'));
}

#[test]
fn firmware_finds_it_in_acpi() {
    let host = host();
    let _port = port(&host);
    assert_eq!(host.acpi(), [r#"{"hid":"PNP0501"}"#]);
}

#[test]
fn it_conforms() {
    conformance::check::<Serial>(host, &[("chardev", "tty")]);
}

/// A line that takes bytes as told.
#[derive(Default)]
struct Wire {
    open: bool,
    sent: Vec<u8>,
}
impl Line for Wire {
    fn transmit(&mut self, byte: u8) -> bool {
        if self.open {
            self.sent.push(byte);
        }
        self.open
    }
    fn set_break(&mut self, _: bool) {}
    fn now(&self) -> u64 {
        0
    }
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_breaks_the_invariants(
        steps in prop::collection::vec((0u64..8, any::<u8>(), any::<bool>(), any::<bool>()), 0..300)
    ) {
        let (mut uart, mut wire) = (Uart::new(115_200), Wire::default());
        for (offset, value, write, open) in steps {
            wire.open = open;
            if write {
                uart.write(offset, value, &mut wire);
            } else {
                uart.read(offset, &mut wire);
            }
            let room = uart.room();
            if value & 1 != 0 && room > 0 {
                uart.receive(&[value][..1], &mut wire);
            }
            prop_assert!(uart.received.len() <= uart::FIFO && uart.sending.len() <= uart::FIFO);
            prop_assert_eq!(uart.lsr.contains(uart::LineStatus::DATA_READY), !uart.received.is_empty());
            prop_assert_eq!(uart.lsr.contains(uart::LineStatus::THR_EMPTY), uart.sending.is_empty());
        }
    }

    #[test]
    fn bytes_sent_through_a_polite_driver_arrive_in_order(
        bytes in prop::collection::vec(any::<u8>(), 0..64), fifos in any::<bool>(), blocked in any::<u64>()
    ) {
        let (mut uart, mut wire) = (Uart::new(115_200), Wire::default());
        uart.write(2, u8::from(fifos), &mut wire);
        for (i, &byte) in bytes.iter().enumerate() {
            wire.open = blocked >> i & 1 == 0;
            if uart.read(5, &mut wire) & 0x20 == 0 {
                wire.open = true;
                uart.transmit(&mut wire);
            }
            uart.write(0, byte, &mut wire);
        }
        wire.open = true;
        uart.transmit(&mut wire);
        prop_assert_eq!(wire.sent, bytes);
    }
}
