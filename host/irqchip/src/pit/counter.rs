//! One counter of the 8254: what it counts, shows and outputs at a given time. Times are ticks of its input clock.

use serde::{Deserialize, Serialize};

/// What a counter is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Phase {
    /// Waits for a count, or in modes 1 and 5 for a trigger.
    #[default]
    Waiting,
    /// Counts since this tick.
    Counting {
        /// Tick at which the count was loaded.
        start: u64,
    },
    /// Held by its gate.
    Held {
        /// Ticks that it has counted.
        elapsed: u64,
    },
}

/// Which bytes of the count a port access moves (bits 4 and 5 of the control word).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Access {
    /// Low byte only.
    Low,
    /// High byte only.
    High,
    /// Low byte, then high byte.
    #[default]
    Both,
}

/// Saved state of one counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CounterState {
    /// Mode 0 to 5.
    pub mode: u8,
    /// Counts in decimal.
    pub bcd: bool,
    /// Bytes that an access moves.
    pub access: Access,
    /// A count was written since the control word.
    pub has_count: bool,
    /// The count last written, 1 to 65536.
    pub reload: u32,
    /// The count that is counted down from; differs from `reload` until the next cycle or trigger.
    pub count: u32,
    /// When `reload` becomes `count`, in modes 2 and 3.
    pub reload_at: Option<u64>,
    /// What it is doing.
    pub phase: Phase,
    /// The gate input.
    pub gate: bool,
    /// Low byte of a count whose high byte is to come.
    pub written_low: Option<u8>,
    /// The high byte is read next.
    pub read_high: bool,
    /// A count that was latched.
    pub latched: Option<u16>,
    /// A status that was latched.
    pub latched_status: Option<u8>,
    /// The status' "null count" flag: a control word or count was written but not loaded.
    pub null_count: bool,
}

impl CounterState {
    /// As after power-on, in mode 0 without a count.
    pub(super) fn power_on(gate: bool) -> Self {
        Self { reload: 0x10000, count: 0x10000, gate, null_count: true, ..Self::default() }
    }

    /// Makes loaded state safe to compute with.
    pub(super) fn sanitize(&mut self) {
        self.mode = normal_mode(self.mode);
        self.reload = self.reload.clamp(1, 0x10000);
        self.count = self.count.clamp(1, 0x10000);
    }

    fn is_periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    fn is_triggered(&self) -> bool {
        matches!(self.mode, 1 | 5)
    }

    /// The cycle's length. A count of 1 is not allowed in modes 2 and 3; it counts as 2.
    fn cycle(&self) -> u64 {
        u64::from(if self.is_periodic() { self.count.max(2) } else { self.count })
    }

    /// Brings the counter to `now`: a new count is loaded at the end of a cycle.
    pub(super) fn advance(&mut self, now: u64) {
        if let Some(at) = self.reload_at.filter(|&at| at <= now) {
            self.count = self.reload;
            self.reload_at = None;
            self.null_count = false;
            self.phase = Phase::Counting { start: at };
        }
    }

    /// Ticks counted, if it counts.
    fn elapsed(&self, now: u64) -> Option<u64> {
        match self.phase {
            Phase::Waiting => None,
            Phase::Counting { start } => Some(now.saturating_sub(start)),
            Phase::Held { elapsed } => Some(elapsed),
        }
    }

    /// The OUT pin.
    pub(super) fn output(&self, now: u64) -> bool {
        let Some(elapsed) = self.elapsed(now) else { return self.mode != 0 };
        let cycle = self.cycle();
        match self.mode {
            0 | 1 => elapsed >= cycle,
            2 => !self.gate || elapsed % cycle != cycle - 1,
            3 => !self.gate || elapsed % cycle < cycle.div_ceil(2),
            _ => elapsed != cycle,
        }
    }

    /// The counting element as it would be read now.
    pub(super) fn value(&self, now: u64) -> u16 {
        let elapsed = self.elapsed(now).unwrap_or(0);
        let cycle = self.cycle();
        let modulus = if self.bcd { 10_000 } else { 0x10000 };
        let count = match self.mode {
            2 => cycle - elapsed % cycle,
            3 => {
                let half = cycle.div_ceil(2);
                let at = elapsed % cycle;
                let within = if at < half { at } else { at - half };
                (cycle & !1).saturating_sub(2 * within)
            }
            _ => (cycle % modulus + modulus - elapsed % modulus) % modulus,
        } % modulus;
        if self.bcd { to_bcd(count as u16) } else { count as u16 }
    }

    /// The tick after `now` at which OUT next changes, or in mode 2 rises.
    pub(super) fn next_change(&self, now: u64) -> Option<u64> {
        let Phase::Counting { start } = self.phase else { return None };
        let elapsed = now.saturating_sub(start);
        let cycle = self.cycle();
        let at = match self.mode {
            0 | 1 => cycle,
            2 => (elapsed / cycle + 1) * cycle,
            3 => {
                let begin = elapsed / cycle * cycle;
                begin + if elapsed % cycle < cycle.div_ceil(2) { cycle.div_ceil(2) } else { cycle }
            }
            _ if elapsed < cycle => cycle,
            _ => cycle + 1,
        };
        let next = start.saturating_add(at);
        (next > now).then_some(next)
    }

    pub(super) fn write_control(&mut self, value: u8) {
        let access = match value >> 4 & 3 {
            1 => Access::Low,
            2 => Access::High,
            _ => Access::Both,
        };
        let mode = normal_mode(value >> 1 & 7);
        *self = Self { mode, bcd: value & 1 != 0, access, ..Self::power_on(self.gate) };
    }

    /// A byte of the count.
    pub(super) fn write(&mut self, value: u8, now: u64) {
        let value = u16::from(value);
        match (self.access, self.written_low.take()) {
            (Access::Low, _) => self.set_count(value, now),
            (Access::High, _) => self.set_count(value << 8, now),
            (Access::Both, Some(low)) => self.set_count(value << 8 | u16::from(low), now),
            (Access::Both, None) => {
                self.written_low = Some(value as u8);
                if self.mode == 0 {
                    self.phase = Phase::Waiting;
                }
            }
        }
    }

    fn set_count(&mut self, written: u16, now: u64) {
        let count = if self.bcd { from_bcd(written) } else { u32::from(written) };
        self.reload = match count {
            0 if self.bcd => 10_000,
            0 => 0x10000,
            count => count,
        };
        (self.has_count, self.null_count) = (true, true);
        match self.phase {
            Phase::Counting { start } if self.is_periodic() => {
                let cycles = now.saturating_sub(start) / self.cycle() + 1;
                self.reload_at = Some(start.saturating_add(cycles.saturating_mul(self.cycle())));
            }
            _ if self.is_triggered() => {}
            _ => self.load(now),
        }
    }

    /// Loads the count at the next tick, if the gate lets it count.
    fn load(&mut self, now: u64) {
        self.count = self.reload;
        self.null_count = false;
        self.reload_at = None;
        let counts = self.gate || self.is_triggered();
        self.phase = if counts { Phase::Counting { start: now.saturating_add(1) } } else { Phase::Held { elapsed: 0 } };
    }

    pub(super) fn set_gate(&mut self, gate: bool, now: u64) {
        let (rises, falls) = (gate && !self.gate, !gate && self.gate);
        self.gate = gate;
        match (self.mode, self.phase) {
            (1 | 5, _) if rises && self.has_count => self.load(now),
            (2 | 3, Phase::Held { .. }) if rises => self.load(now),
            (2 | 3, Phase::Counting { .. }) if falls => {
                self.reload_at = None;
                self.phase = Phase::Held { elapsed: 0 };
            }
            (0 | 4, Phase::Held { elapsed }) if rises => {
                self.phase = Phase::Counting { start: now.saturating_sub(elapsed) };
            }
            (0 | 4, Phase::Counting { start }) if falls => {
                self.phase = Phase::Held { elapsed: now.saturating_sub(start) };
            }
            _ => {}
        }
    }

    /// Latches the count, unless one is latched that was not read.
    pub(super) fn latch(&mut self, now: u64) {
        if self.latched.is_none() {
            self.latched = Some(self.value(now));
        }
    }

    /// Latches the status byte, unless one is latched that was not read.
    pub(super) fn latch_status(&mut self, now: u64) {
        let access = match self.access {
            Access::Low => 1,
            Access::High => 2,
            Access::Both => 3,
        };
        let flags = u8::from(self.output(now)) << 7 | u8::from(self.null_count) << 6;
        let status = flags | access << 4 | self.mode << 1 | u8::from(self.bcd);
        self.latched_status.get_or_insert(status);
    }

    /// Reads the port: a latched status, a latched count, or the count as it is.
    pub(super) fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self.latched.unwrap_or_else(|| self.value(now)).to_le_bytes();
        match self.access {
            Access::Low => {
                self.latched = None;
                low
            }
            Access::High => {
                self.latched = None;
                high
            }
            Access::Both if self.read_high => {
                self.read_high = false;
                self.latched = None;
                high
            }
            Access::Both => {
                self.read_high = true;
                low
            }
        }
    }
}

/// Modes 6 and 7 are 2 and 3.
fn normal_mode(mode: u8) -> u8 {
    let mode = mode & 7;
    if mode > 5 { mode & 3 } else { mode }
}

fn to_bcd(value: u16) -> u16 {
    [1000, 100, 10, 1].iter().fold(0, |bcd, place| bcd << 4 | (value / place % 10))
}

/// Digits above 9 count as what they are worth.
fn from_bcd(value: u16) -> u32 {
    let digit = |shift: u32| u32::from(value >> shift & 0xf);
    digit(12) * 1000 + digit(8) * 100 + digit(4) * 10 + digit(0)
}
