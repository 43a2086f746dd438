//! The I/O APIC: 82093AA, 24 pins (Intel 82093AA datasheet, order number 290566).
//!
//! Pin polarity is a matter between board and chip: pins here carry "asserted", so the polarity bits are only kept.

use std::sync::{Arc, Mutex, MutexGuard};

use cardcage_memory::IoHandler;
use serde::{Deserialize, Serialize};

use crate::message::{ApicBus, DeliveryMode, Destination, Message};

/// Number of interrupt input pins.
pub const PINS: u32 = 24;
const PIN_COUNT: usize = PINS as usize;

/// 24 redirection table entries, version 1.1.
const VERSION: u32 = 0x0017_0011;
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const ID: u8 = 0;
const VERSION_REGISTER: u8 = 1;
const ARBITRATION: u8 = 2;
const TABLE: u8 = 0x10;

const LOGICAL: u64 = 1 << 11;
const DELIVERY_STATUS: u64 = 1 << 12;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// Bits of an entry that software may write: vector to destination mode, polarity, trigger, mask, destination and the
/// seven bits by which hypervisors extend it.
const WRITABLE: u64 = 0xfffe_0000_0001_afff & !DELIVERY_STATUS;

/// Saved state of the I/O APIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApicState {
    /// Version of this layout: 1.
    pub version: u32,
    /// The id register, bits 24 to 27.
    pub id: u32,
    /// The register select.
    pub select: u8,
    /// Levels of the pins, one bit each.
    pub pins: u32,
    /// Redirection table with delivery status and remote IRR.
    pub table: [u64; PIN_COUNT],
}

impl Default for IoApicState {
    /// After power-on.
    fn default() -> Self {
        Self { version: 1, id: 0, select: 0, pins: 0, table: [MASKED; PIN_COUNT] }
    }
}

/// The I/O APIC. Answers at 16 bytes or more of its page as an [`IoHandler`].
pub struct IoApic {
    state: Mutex<IoApicState>,
    bus: Arc<ApicBus>,
}

impl IoApic {
    pub(crate) fn new(bus: &Arc<ApicBus>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), bus: bus.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, IoApicState> {
        self.state.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// Sets the level of a pin. Pins beyond the last are ignored.
    pub fn set_pin(&self, pin: u32, level: bool) {
        if pin >= PINS {
            return;
        }
        let mut state = self.lock();
        let rises = level && state.pins >> pin & 1 == 0;
        state.pins = state.pins & !(1 << pin) | u32::from(level) << pin;
        let message = state.table.get_mut(pin as usize).and_then(|entry| match *entry & LEVEL {
            0 if rises => fire(entry),
            0 => None,
            _ if level => fire(entry),
            _ => None,
        });
        self.send(state, message);
    }

    /// A local APIC has ended a level-triggered interrupt.
    pub(crate) fn end_of_interrupt(&self, vector: u8) {
        for pin in 0..PIN_COUNT {
            let mut state = self.lock();
            let asserted = state.pins >> pin & 1 != 0;
            let message = state.table.get_mut(pin).and_then(|entry| {
                if *entry & (LEVEL | REMOTE_IRR) != LEVEL | REMOTE_IRR || *entry as u8 != vector {
                    return None;
                }
                *entry &= !REMOTE_IRR;
                if asserted { fire(entry) } else { None }
            });
            self.send(state, message);
        }
    }

    /// Sends without holding the lock: the way leads through local APICs.
    fn send(&self, state: MutexGuard<'_, IoApicState>, message: Option<Message>) {
        drop(state);
        if let Some(message) = message {
            self.bus.deliver(&message);
        }
    }

    fn read_register(&self) -> u32 {
        let state = self.lock();
        match state.select {
            ID | ARBITRATION => state.id,
            VERSION_REGISTER => VERSION,
            select => {
                let index = select.wrapping_sub(TABLE);
                let entry = state.table.get(usize::from(index / 2)).copied().unwrap_or(0);
                (entry >> (32 * u32::from(index & 1))) as u32
            }
        }
    }

    fn write_register(&self, value: u32) {
        let mut state = self.lock();
        let index = state.select.wrapping_sub(TABLE);
        if state.select == ID {
            state.id = value & 0x0f00_0000;
            return;
        }
        let asserted = state.pins >> ((index / 2) & 31) & 1 != 0;
        let Some(entry) = state.table.get_mut(usize::from(index / 2)) else { return };
        let shift = 32 * u32::from(index & 1);
        let mask = WRITABLE & 0xffff_ffff << shift;
        *entry = *entry & !mask | u64::from(value) << shift & mask;
        let message = if *entry & LEVEL == 0 {
            // Kernels end a stuck level interrupt by switching the pin to edge and back.
            *entry &= !REMOTE_IRR;
            None
        } else if asserted {
            fire(entry)
        } else {
            None
        };
        self.send(state, message);
    }

    /// The state for a snapshot.
    pub fn save(&self) -> IoApicState {
        self.lock().clone()
    }

    /// Takes over saved state; sends nothing. Bits that software cannot set otherwise are dropped.
    pub fn restore(&self, saved: &IoApicState) {
        let table = saved.table.map(|entry| entry & (WRITABLE | REMOTE_IRR));
        let pins = saved.pins & ((1 << PINS) - 1);
        *self.lock() = IoApicState { table, pins, id: saved.id & 0x0f00_0000, ..saved.clone() };
    }

    /// The state after power-on, but for the levels of the pins, which are their drivers'.
    pub fn reset(&self) {
        let mut state = self.lock();
        *state = IoApicState { pins: state.pins, ..IoApicState::default() };
    }
}

/// The message of an entry whose pin asks for an interrupt, unless it is masked or waits for the end of the last one.
fn fire(entry: &mut u64) -> Option<Message> {
    let level_triggered = *entry & LEVEL != 0;
    if *entry & MASKED != 0 || (level_triggered && *entry & REMOTE_IRR != 0) {
        return None;
    }
    let mode = DeliveryMode::from_register(*entry as u32);
    // Only these are ended by an EOI with their vector.
    if level_triggered && matches!(mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority) {
        *entry |= REMOTE_IRR;
    }
    let destination = Destination::narrow((*entry >> 56) as u8, (*entry >> 49) as u8 & 0x7f, *entry & LOGICAL != 0);
    Some(Message { destination, mode, vector: *entry as u8, level_triggered })
}

impl IoHandler for IoApic {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let value = match offset {
            SELECT => self.lock().select.into(),
            WINDOW => self.read_register(),
            _ => 0,
        };
        u64::from(value) & u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8)))
    }

    fn write(&self, offset: u64, _size: u8, value: u64) {
        match offset {
            SELECT => self.lock().select = value as u8,
            WINDOW => self.write_register(value as u32),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
