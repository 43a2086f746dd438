//! The 8254 interval timer of a PC (Intel 8254 datasheet, order number 231164) and its part of port 0x61.
//!
//! Counters 0 and 1 have their gates tied high; counter 0's output is ISA interrupt 0. Counter 2's gate is bit 0 of
//! port 0x61, its output bit 5. Bit 4 is the memory refresh toggle. There is no loudspeaker: bit 1 only holds what is
//! written.
//!
//! Two liberties: a count that is written while counting in mode 3 is loaded at the end of the cycle, not of the half
//! cycle; and the one-tick pulse of mode 2 is given to the interrupt line at the tick where it rises.

mod counter;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use cardcage_clock::{Timer, VirtualClock};
use cardcage_memory::IoHandler;
use serde::{Deserialize, Serialize};

pub use counter::{Access, CounterState, Phase};

/// Frequency of the input clock, in Hz.
pub const FREQUENCY: u64 = 1_193_182;
const NS_PER_SECOND: u128 = 1_000_000_000;
/// The shortest distance between two changes of the interrupt line: a bound on what a guest can make the host do.
const MIN_CHANGE_NS: u64 = 20_000;
/// Half a period of the refresh toggle.
const REFRESH_NS: u64 = 15_085;

/// Saved state of the timer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitState {
    /// Version of this layout: 1.
    pub version: u32,
    /// The counters.
    pub counters: [CounterState; 3],
    /// Bit 1 of port 0x61.
    pub speaker: bool,
}

impl Default for PitState {
    /// After power-on. Counter 1 runs as firmware leaves it, for memory refresh.
    fn default() -> Self {
        let counters = [true, true, false].map(CounterState::power_on);
        Self { version: 1, counters, speaker: false }
    }
}

struct Live {
    state: PitState,
    /// The tick at which the timer is to run.
    due: Option<u64>,
}

/// The interval timer.
pub struct Pit {
    clock: VirtualClock,
    live: Mutex<Live>,
    timer: OnceLock<Timer>,
    /// Drives ISA interrupt 0. Called under the timer's lock, so that levels come in order.
    irq: Box<dyn Fn(bool) + Send + Sync>,
}

fn tick_at(ns: u64) -> u64 {
    (u128::from(ns) * u128::from(FREQUENCY) / NS_PER_SECOND) as u64
}

/// When the clock will have reached `tick`.
fn time_of(tick: u64) -> u64 {
    u64::try_from((u128::from(tick) * NS_PER_SECOND).div_ceil(u128::from(FREQUENCY))).unwrap_or(u64::MAX)
}

impl Pit {
    pub(crate) fn new(clock: &VirtualClock, irq: impl Fn(bool) + Send + Sync + 'static) -> Arc<Self> {
        let pit = Arc::new(Self {
            clock: clock.clone(),
            live: Mutex::new(Live { state: PitState::default(), due: None }),
            timer: OnceLock::new(),
            irq: Box::new(irq),
        });
        let weak = Arc::downgrade(&pit);
        let timer = clock.timer(move || {
            if let Some(pit) = weak.upgrade() {
                pit.tick();
            }
        });
        let _ = pit.timer.set(timer);
        pit
    }

    /// The state with its counters brought to the present, and the present in ticks.
    fn lock(&self) -> (MutexGuard<'_, Live>, u64) {
        let mut live = self.live.lock().unwrap_or_else(|p| p.into_inner());
        let now = tick_at(self.clock.now());
        live.state.counters.iter_mut().for_each(|counter| counter.advance(now));
        (live, now)
    }

    /// The timer ran: counter 0's output changes. Where the output is low for one tick only, that tick can be over
    /// when this runs; the edge must still be there.
    fn tick(&self) {
        let (mut live, now) = self.lock();
        if live.due.take_if(|due| *due <= now).is_some() && matches!(live.state.counters[0].mode, 2 | 4 | 5) {
            (self.irq)(false);
        }
        self.drive(&mut live, now);
    }

    /// Sets the interrupt line to counter 0's output, and arms the timer for its next change.
    fn drive(&self, live: &mut Live, now: u64) {
        let counter = &live.state.counters[0];
        (self.irq)(counter.output(now));
        let Some(timer) = self.timer.get() else { return };
        live.due = counter.next_change(now);
        let Some(tick) = live.due else { return timer.cancel() };
        // Only what repeats is bounded; a single event is never late.
        let bounded = matches!(counter.mode, 2 | 3) && u64::from(counter.count) < tick_at(2 * MIN_CHANGE_NS);
        let soonest = if bounded { self.clock.now().saturating_add(MIN_CHANGE_NS) } else { 0 };
        timer.arm(time_of(tick).max(soonest));
    }

    fn write_control(&self, value: u8) {
        let (mut live, now) = self.lock();
        if value >> 6 == 3 {
            // Read-back: bits 5 and 4 low latch count and status of the counters in bits 1 to 3.
            for (i, counter) in live.state.counters.iter_mut().enumerate() {
                if value >> (i + 1) & 1 == 0 {
                    continue;
                }
                if value & 0x20 == 0 {
                    counter.latch(now);
                }
                if value & 0x10 == 0 {
                    counter.latch_status(now);
                }
            }
            return;
        }
        let Some(counter) = live.state.counters.get_mut(usize::from(value >> 6)) else { return };
        if value & 0x30 == 0 {
            counter.latch(now);
        } else {
            counter.write_control(value);
            if value >> 6 == 0 {
                self.drive(&mut live, now);
            }
        }
    }

    fn write_counter(&self, index: usize, value: u8) {
        let (mut live, now) = self.lock();
        if let Some(counter) = live.state.counters.get_mut(index) {
            counter.write(value, now);
            if index == 0 {
                self.drive(&mut live, now);
            }
        }
    }

    fn read_counter(&self, index: usize) -> u8 {
        let (mut live, now) = self.lock();
        live.state.counters.get_mut(index).map_or(0xff, |counter| counter.read(now))
    }

    fn read_port61(&self) -> u8 {
        let (live, now) = self.lock();
        let counter = &live.state.counters[2];
        let refresh = (self.clock.now() / REFRESH_NS) & 1 != 0;
        let bits = [counter.gate, live.state.speaker, false, false, refresh, counter.output(now)];
        bits.iter().enumerate().map(|(i, &bit)| u8::from(bit) << i).sum()
    }

    fn write_port61(&self, value: u8) {
        let (mut live, now) = self.lock();
        live.state.speaker = value & 2 != 0;
        live.state.counters[2].set_gate(value & 1 != 0, now);
    }

    /// The state for a snapshot.
    pub fn save(&self) -> PitState {
        self.lock().0.state.clone()
    }

    /// Takes over saved state. The virtual clock must stand where it stood when that was saved.
    pub fn restore(&self, saved: &PitState) {
        let (mut live, now) = self.lock();
        live.state = saved.clone();
        for counter in &mut live.state.counters {
            counter.sanitize();
            counter.advance(now);
        }
        self.drive(&mut live, now);
    }

    /// The state after power-on.
    pub fn reset(&self) {
        let (mut live, now) = self.lock();
        live.state = PitState::default();
        self.drive(&mut live, now);
    }
}

/// The timer's ports, as [`IoHandler`]s. Wider accesses are split into bytes.
pub(crate) enum PitPorts {
    /// 0x40 to 0x43.
    Counters(Arc<Pit>),
    /// 0x61.
    Control(Arc<Pit>),
}

impl IoHandler for PitPorts {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let byte = |offset: u64| match (self, offset) {
            (Self::Counters(pit), 0..=2) => pit.read_counter(offset as usize),
            (Self::Control(pit), 0) => pit.read_port61(),
            _ => 0xff,
        };
        (0..u64::from(size.min(8))).fold(0, |value, i| value | u64::from(byte(offset + i)) << (8 * i))
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        for i in 0..u64::from(size.min(8)) {
            let byte = (value >> (8 * i)) as u8;
            match (self, offset + i) {
                (Self::Counters(pit), at @ 0..=2) => pit.write_counter(at as usize, byte),
                (Self::Counters(pit), 3) => pit.write_control(byte),
                (Self::Control(pit), 0) => pit.write_port61(byte),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
