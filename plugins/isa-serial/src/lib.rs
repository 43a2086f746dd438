//! `isa-serial`: a serial port of a PC, with a 16550A UART.
//!
//! The chip is in [`uart`]; this file connects it to ports, an interrupt, a character backend and a timer. Names,
//! properties and defaults are QEMU's. Left out: waking the machine from sleep, modem lines of real serial ports
//! (the other end is always ready), DMA modes.

mod saved;
pub mod uart;

use cardcage_plugin_api::properties::ChardevRef;
use cardcage_plugin_api::state::{StateReader, StateWriter};
use cardcage_plugin_api::*;
use uart::{Line, Uart};

/// First ports and interrupts of the four serial ports that PCs have.
const STANDARD: [(u16, u8); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];
const PORTS: u16 = 8;

/// What users can set.
#[derive(DeviceProperties)]
struct Config {
    /// Which of the standard ports: 0 for COM1; by default the first that is free
    #[prop(range = 0..=3)]
    index: Option<u32>,
    /// First port, if not that of the index
    iobase: Option<u16>,
    /// Interrupt, if not that of the index
    #[prop(range = 0..=15)]
    irq: Option<u8>,
    /// Character backend at the other end of the line
    chardev: Option<ChardevRef>,
    /// Baud rate at divisor 1
    #[prop(default = 115200, range = 1..=0xffff_ffff, unit = "baud")]
    baudbase: u32,
}

struct Serial {
    config: Config,
    uart: Uart,
    backend: Backend,
    wires: Option<Wires>,
    received: u64,
}

/// What the port is connected to.
struct Wires {
    irq: Irq,
    timer: Timer,
    /// Last level of the interrupt line, to drive it only when it changes.
    high: bool,
    /// Last deadline that the timer was given.
    deadline: Option<u64>,
}

/// The character backend, and what went to it.
#[derive(Default)]
struct Backend {
    chardev: Option<Chardev>,
    sent: u64,
}

/// The chip's line during one call. The clock is read only if the chip asks for it: most accesses do not.
struct HostLine<'a> {
    backend: &'a mut Backend,
    ctx: &'a Context,
}

impl Line for HostLine<'_> {
    fn transmit(&mut self, byte: u8) -> bool {
        // With nobody at the other end, bytes go out into the air.
        let taken = self.backend.chardev.as_ref().is_none_or(|c| c.write(&[byte]) == 1);
        self.backend.sent = self.backend.sent.saturating_add(u64::from(taken));
        taken
    }
    fn set_break(&mut self, on: bool) {
        if let Some(chardev) = &self.backend.chardev {
            chardev.set_break(on);
        }
    }
    fn now(&self) -> u64 {
        self.ctx.now(Clock::Virtual)
    }
}

impl Serial {
    /// Runs `f` on the chip and passes on what it did to its pins.
    #[inline]
    fn with_uart<R>(&mut self, ctx: &Context, f: impl FnOnce(&mut Uart, &mut HostLine<'_>) -> R) -> R {
        let result = f(&mut self.uart, &mut HostLine { backend: &mut self.backend, ctx });
        self.update_wires();
        result
    }

    #[inline]
    fn update_wires(&mut self) {
        let Some(wires) = &mut self.wires else { return };
        let high = self.uart.interrupt();
        if high != wires.high {
            wires.high = high;
            wires.irq.set(high);
        }
        let deadline = self.uart.deadline();
        if deadline != wires.deadline {
            wires.deadline = deadline;
            match deadline {
                Some(at) => wires.timer.arm(at),
                None => wires.timer.cancel(),
            }
        }
    }

    /// Lets the backend go on if the chip has room again.
    fn offer_room(&mut self) {
        if let Some(chardev) = self.backend.chardev.as_ref().filter(|_| self.uart.room() > 0) {
            chardev.resume_input();
        }
    }

    /// Takes the ports of the index, or of the first standard port that nobody else has.
    fn take_ports(&self, bus: &mut Bus) -> Result<u8> {
        let index = self.config.index.map(|i| i as usize);
        let candidates = match index {
            Some(i) => STANDARD.get(i..=i).unwrap_or_default(),
            None => &STANDARD,
        };
        let mut refused = None;
        for &(port, irq) in candidates {
            let port = self.config.iobase.unwrap_or(port);
            match bus.pio(port, PORTS) {
                Ok(_) => return Ok(self.config.irq.unwrap_or(irq)),
                Err(e) => refused = Some(e),
            }
            if self.config.iobase.is_some() {
                break;
            }
        }
        Err(refused.unwrap_or_else(|| Error::new("there is no such serial port; allowed are 0 to 3")))
    }
}

/// Whether reading this register can make room for input.
fn frees_room(offset: u64) -> bool {
    offset == 0
}

impl Device for Serial {
    const INFO: DeviceInfo =
        DeviceInfo::new("isa-serial", BusKind::Isa, Category::Input, "Serial port with a 16550A UART").migratable(1);
    type Config = Config;

    fn new(config: Config, _: &Context) -> Result<Self> {
        let uart = Uart::new(config.baudbase);
        Ok(Self { config, uart, backend: Backend::default(), wires: None, received: 0 })
    }

    fn realize(&mut self, bus: &mut Bus, ctx: &Context) -> Result<()> {
        let irq = self.take_ports(bus)?;
        let irq = bus.isa_irq(irq)?;
        bus.acpi("PNP0501")?;
        if let Some(chardev) = &self.config.chardev {
            self.backend.chardev = Some(ctx.chardev(chardev, 0)?);
        }
        self.wires = Some(Wires { irq, timer: ctx.timer(0), high: false, deadline: None });
        Ok(())
    }

    fn reset(&mut self, _: ResetKind, ctx: &Context) {
        let base = self.config.baudbase;
        self.with_uart(ctx, |uart, line| {
            if uart.lcr.contains(uart::LineControl::BREAK) {
                line.set_break(false);
            }
            *uart = Uart::new(base);
        });
        self.offer_room();
    }

    fn read(&mut self, _: Region, offset: u64, size: u8, ctx: &Context) -> u64 {
        let value = self.with_uart(ctx, |uart, line| bytewise::read(offset, size, |at| uart.read(at, line)));
        if frees_room(offset) {
            self.offer_room();
        }
        value
    }

    fn write(&mut self, _: Region, offset: u64, size: u8, value: u64, ctx: &Context) {
        let room = self.uart.room();
        self.with_uart(ctx, |uart, line| bytewise::write(offset, size, value, |at, byte| uart.write(at, byte, line)));
        // FIFO and modem control may have made room.
        if self.uart.room() > room {
            self.offer_room();
        }
    }

    fn timer(&mut self, _: u64, ctx: &Context) {
        if let Some(wires) = &mut self.wires {
            wires.deadline = None;
        }
        self.with_uart(ctx, |uart, line| uart.expire(line.now()));
    }

    fn char_room(&mut self, _: u64) -> usize {
        self.uart.room()
    }
    fn char_receive(&mut self, _: u64, data: &[u8], ctx: &Context) {
        self.received = self.received.saturating_add(data.len() as u64);
        self.with_uart(ctx, |uart, line| uart.receive(data, line));
    }
    fn char_writable(&mut self, _: u64, ctx: &Context) {
        self.with_uart(ctx, |uart, line| uart.transmit(line));
    }
    fn char_event(&mut self, _: u64, event: CharEvent, ctx: &Context) {
        if event == CharEvent::Break {
            self.with_uart(ctx, |uart, line| uart.receive_break(line));
        }
    }

    fn run_state(&mut self, running: bool, ctx: &Context) {
        // A byte that came with a saved state has not been offered to this backend yet.
        if running && self.uart.shift.is_some() {
            self.with_uart(ctx, |uart, line| uart.transmit(line));
        }
    }

    fn save(&mut self, state: &mut StateWriter) -> Result<()> {
        state.section("uart", saved::VERSION, |s| saved::write(&self.uart, s));
        Ok(())
    }
    fn load(&mut self, state: &StateReader, ctx: &Context) -> Result<()> {
        let uart = saved::read(state.section("uart", saved::VERSION)?, self.config.baudbase)?;
        self.with_uart(ctx, |current, line| {
            *current = uart;
            line.set_break(current.lcr.contains(uart::LineControl::BREAK));
        });
        Ok(())
    }

    fn inspect(&self) -> json::Object {
        let u = &self.uart;
        json::Object::new()
            .field("divisor", u.divisor)
            .field("line-control", u.lcr.bits())
            .field("modem-control", u.mcr.bits())
            .field("line-status", u.lsr.bits())
            .field("interrupt-enable", u.ier.bits())
            .field("fifo-control", u.fcr.bits())
            .field("received-waiting", u.received.len())
            .field("sending-waiting", u.sending.len() + usize::from(u.shift.is_some()))
            .field("interrupt", u.interrupt())
    }
    fn stats(&self) -> json::Object {
        json::Object::new().field("sent-bytes", self.backend.sent).field("received-bytes", self.received)
    }
}

plugin! { devices: [Serial] }

#[cfg(test)]
mod tests;
