//! The machine as a test sees it over the qtest protocol.

use std::path::PathBuf;
use std::sync::Arc;

use cardcage_accel::Bus;
use cardcage_clock::VirtualClock;
use cardcage_irqchip::Irqchip;
use cardcage_memory::GuestRam;
use cardcage_qtest::{IrqLines, Qtest, QtestAddress, QtestTarget};

use crate::board::{Board, Spaces};

/// Where the test is.
#[derive(Debug, Clone)]
pub struct QtestOptions {
    /// `unix:PATH`, as `-qtest` takes it.
    pub device: String,
    /// File for a log of requests and replies.
    pub log: Option<PathBuf>,
}

impl QtestOptions {
    pub(crate) fn start(&self, board: &Board) -> Result<Qtest, String> {
        let address: QtestAddress = self.device.parse().map_err(|e: cardcage_qtest::AddressError| e.to_string())?;
        let target = Target {
            spaces: board.spaces.clone(),
            ram: board.services.ram.clone(),
            clock: board.services.clock.clone(),
            irqchip: board.irqchip.clone(),
        };
        Qtest::start(&address, self.log.as_deref(), target).map_err(|e| e.to_string())
    }
}

struct Target {
    spaces: Arc<Spaces>,
    ram: Arc<GuestRam>,
    clock: VirtualClock,
    irqchip: Option<Arc<Irqchip>>,
}

impl Target {
    /// Calls `io` for each piece that a bus would transfer at once, unless the piece is RAM.
    fn split(&self, addr: u64, len: usize, mut piece: impl FnMut(&Self, u64, std::ops::Range<usize>)) {
        let mut at = 0;
        while at < len {
            let here = addr.wrapping_add(at as u64);
            let left = len - at;
            let size = [8, 4, 2, 1].into_iter().find(|&n| n <= left && here.is_multiple_of(n as u64)).unwrap_or(1);
            piece(self, here, at..at + size);
            at += size;
        }
    }
}

impl QtestTarget for Target {
    fn port_in(&mut self, port: u16, size: u8) -> u32 {
        self.spaces.port_read(port, size)
    }

    fn port_out(&mut self, port: u16, size: u8, value: u32) {
        self.spaces.port_write(port, size, value);
    }

    fn read_memory(&mut self, addr: u64, data: &mut [u8]) {
        if self.ram.read(addr, data).is_ok() {
            return;
        }
        // One access of exactly the size that was asked for, also where it is not aligned.
        if let len @ (1 | 2 | 4 | 8) = data.len() {
            data.copy_from_slice(&self.spaces.memory_read(addr, len as u8).to_le_bytes()[..len]);
            return;
        }
        self.split(addr, data.len(), |me, here, range| {
            let len = range.len();
            let Some(part) = data.get_mut(range) else { return };
            if me.ram.read(here, part).is_err() {
                part.copy_from_slice(&me.spaces.memory_read(here, len as u8).to_le_bytes()[..len]);
            }
        });
    }

    fn write_memory(&mut self, addr: u64, data: &[u8]) {
        let value = |part: &[u8]| {
            let mut bytes = [0; 8];
            bytes[..part.len()].copy_from_slice(part);
            u64::from_le_bytes(bytes)
        };
        if self.ram.write(addr, data).is_ok() {
            return;
        }
        if let 1 | 2 | 4 | 8 = data.len() {
            self.spaces.memory_write(addr, data.len() as u8, value(data));
            return;
        }
        self.split(addr, data.len(), |me, here, range| {
            let Some(part) = data.get(range) else { return };
            if me.ram.write(here, part).is_err() {
                me.spaces.memory_write(here, part.len() as u8, value(part));
            }
        });
    }

    fn clock(&mut self) -> u64 {
        self.clock.now()
    }

    fn clock_step(&mut self, ns: u64) -> Result<u64, String> {
        self.clock.step(ns).map_err(|e| e.to_string())
    }

    fn clock_step_to_next(&mut self) -> Result<Option<u64>, String> {
        if self.clock.next_deadline().is_none() {
            return Ok(None);
        }
        self.clock.step_to_next().map(Some).map_err(|e| e.to_string())
    }

    fn clock_set(&mut self, ns: u64) -> Result<u64, String> {
        let now = self.clock.now();
        let ahead =
            ns.checked_sub(now).ok_or_else(|| format!("the clock is at {now} ns and cannot go back to {ns}"))?;
        self.clock_step(ahead)
    }

    fn irq_intercept_in(&mut self, path: &str, lines: IrqLines) -> Result<(), String> {
        let irqchip = self.irqchip.as_ref().filter(|_| path == "ioapic" || path.ends_with("/ioapic"));
        let irqchip =
            irqchip.ok_or_else(|| format!("there is no device '{path}' with inputs to intercept: use ioapic"))?;
        if irqchip.observe_inputs(move |pin, level| lines.set(pin, level)) {
            Ok(())
        } else {
            Err("IRQ intercept already enabled".into())
        }
    }

    fn irq_intercept_out(&mut self, path: &str, _name: Option<&str>, _lines: IrqLines) -> Result<(), String> {
        Err(format!("outputs of '{path}' cannot be intercepted: only the inputs of ioapic can"))
    }

    fn set_irq_in(&mut self, path: &str, _name: Option<&str>, _number: u32, _level: i32) -> Result<(), String> {
        Err(format!("inputs of '{path}' cannot be set"))
    }
}
