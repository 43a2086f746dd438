//! `i8042`: the keyboard controller of a PC, with a PS/2 keyboard and a PS/2 mouse.
//!
//! [`controller`] is the 8042, [`keyboard`] and [`mouse`] are plugged into it, [`translation`] turns scan codes of set 2
//! into those of set 1. This file connects them to ports 0x60 and 0x64 and two interrupts. Left out: address line 20 is
//! kept and has no effect (it always passes); the keyboard lock; controller RAM beyond the command byte. Nobody types
//! yet: [`keyboard::Keyboard::key`] and [`mouse::Mouse::moved`] are where input will come in.

pub mod controller;
pub mod keyboard;
pub mod mouse;
mod saved;
pub mod translation;

use cardcage_plugin_api::state::{StateReader, StateWriter};
use cardcage_plugin_api::*;
use controller::{Controller, Effect};

const DATA_PORT: u16 = 0x60;
const COMMAND_PORT: u16 = 0x64;

/// What users can set.
#[derive(DeviceProperties)]
struct Config {
    /// Interrupt of the keyboard
    #[prop(default = 1, range = 0..=15)]
    kbd_irq: u8,
    /// Interrupt of the mouse
    #[prop(default = 12, range = 0..=15)]
    mouse_irq: u8,
}

struct I8042 {
    config: Config,
    controller: Controller,
    wires: Option<Wires>,
}

struct Wires {
    data: Region,
    keyboard: Irq,
    mouse: Irq,
    /// Levels that the lines have.
    levels: (bool, bool),
}

impl Wires {
    fn drive(&mut self, levels: (bool, bool)) {
        if levels.0 != self.levels.0 {
            self.keyboard.set(levels.0);
        }
        if levels.1 != self.levels.1 {
            self.mouse.set(levels.1);
        }
        self.levels = levels;
    }
}

impl I8042 {
    fn update_wires(&mut self) {
        if let Some(wires) = &mut self.wires {
            wires.drive(self.controller.interrupts());
        }
    }
    fn is_data(&self, region: Region) -> bool {
        self.wires.as_ref().is_some_and(|w| w.data == region)
    }
    fn read_data(&mut self) -> u8 {
        let data = self.controller.read_data();
        // The next byte, which may be there already, needs an edge of its own.
        if let Some(wires) = &mut self.wires {
            wires.drive((false, false));
        }
        data
    }
}

impl Device for I8042 {
    const INFO: DeviceInfo =
        DeviceInfo::new("i8042", BusKind::Isa, Category::Input, "Keyboard controller with PS/2 keyboard and mouse")
            .migratable(1);
    type Config = Config;

    fn new(config: Config, _: &Context) -> Result<Self> {
        Ok(Self { config, controller: Controller::default(), wires: None })
    }

    fn realize(&mut self, bus: &mut Bus, _: &Context) -> Result<()> {
        let data = bus.pio(DATA_PORT, 1)?;
        bus.pio(COMMAND_PORT, 1)?;
        let keyboard = bus.isa_irq(self.config.kbd_irq)?;
        bus.acpi("PNP0303")?;
        let mouse = bus.isa_irq(self.config.mouse_irq)?;
        bus.acpi("PNP0F13")?;
        self.wires = Some(Wires { data, keyboard, mouse, levels: (false, false) });
        Ok(())
    }

    fn reset(&mut self, _: ResetKind, _: &Context) {
        self.controller = Controller::default();
        self.update_wires();
    }

    fn read(&mut self, region: Region, offset: u64, size: u8, _: &Context) -> u64 {
        let data = self.is_data(region);
        let value = bytewise::read(offset, size, |at| match (at, data) {
            (0, true) => self.read_data(),
            (0, false) => self.controller.status().bits(),
            _ => 0xff,
        });
        self.update_wires();
        value
    }

    fn write(&mut self, region: Region, offset: u64, _size: u8, value: u64, ctx: &Context) {
        if offset != 0 {
            return;
        }
        let effect = match self.is_data(region) {
            true => self.controller.write_data(value as u8),
            false => self.controller.write_command(value as u8),
        };
        if effect == Effect::Reset {
            ctx.request(Request::Reset);
        }
        self.update_wires();
    }

    fn save(&mut self, state: &mut StateWriter) -> Result<()> {
        saved::write(&self.controller, state);
        Ok(())
    }
    fn load(&mut self, state: &StateReader, _: &Context) -> Result<()> {
        self.controller = saved::read(state)?;
        self.update_wires();
        Ok(())
    }

    fn inspect(&self) -> json::Object {
        let c = &self.controller;
        json::Object::new()
            .field("status", c.status().bits())
            .field("command-byte", c.mode.bits())
            .field("a20", c.port.contains(controller::OutputPort::A20))
            .field("keyboard-scan-code-set", c.keyboard.set)
            .field("keyboard-leds", c.keyboard.leds)
            .field("mouse-id", c.mouse.model as u8)
            .field("mouse-reporting", c.mouse.reporting)
    }
}

plugin! { devices: [I8042] }

#[cfg(test)]
mod tests;
