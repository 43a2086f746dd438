//! The pair of 8259A interrupt controllers of a PC (Intel 8259A datasheet, order number 231468), with the edge/level
//! control registers of EISA and PIIX at 0x4d0 and 0x4d1.
//!
//! As in other machines, the request of an edge-triggered input stays latched when the input falls before it is
//! acknowledged. Left out: buffered mode and MCS-80/85 vectors, which a PC cannot use.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use cardcage_memory::IoHandler;
use serde::{Deserialize, Serialize};

use crate::message::ApicBus;

/// The master's input that the slave is at.
const CASCADE: u8 = 2;
/// Inputs whose trigger can be chosen: not timer, keyboard, cascade, RTC and coprocessor.
const ELCR_MASK: [u8; 2] = [0xf8, 0xde];

const ICW1: u8 = 0x10;
const ICW1_NEEDS_ICW4: u8 = 0x01;
const ICW1_SINGLE: u8 = 0x02;
const ICW1_LEVEL: u8 = 0x08;
const ICW4_AUTO_EOI: u8 = 0x02;
const ICW4_FULLY_NESTED: u8 = 0x10;
const OCW3: u8 = 0x08;

/// Which initialisation command word comes next at port 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Expect {
    /// None: it is the mask register.
    #[default]
    Mask,
    /// The vector base.
    Icw2,
    /// The cascade.
    Icw3,
    /// The mode.
    Icw4,
}

/// Saved state of one chip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PicChipState {
    /// Levels of the inputs.
    pub lines: u8,
    /// Requests latched by rising edges.
    pub latched: u8,
    /// In-service register.
    pub isr: u8,
    /// Mask register.
    pub imr: u8,
    /// Vector of input 0.
    pub base: u8,
    /// ICW1 as written.
    pub icw1: u8,
    /// ICW4 as written, or 0.
    pub icw4: u8,
    /// Next word at port 1.
    pub expect: Expect,
    /// The input of lowest priority, the one before that of highest.
    pub lowest: u8,
    /// Rotate when an interrupt ends by itself.
    pub rotate_on_auto_eoi: bool,
    /// Special mask mode.
    pub special_mask: bool,
    /// Port 0 reads ISR instead of IRR.
    pub read_isr: bool,
    /// The next read is a poll.
    pub poll: bool,
    /// Edge/level control register.
    pub elcr: u8,
}

impl PicChipState {
    /// Inputs that are level triggered.
    fn level_mask(&self) -> u8 {
        if self.icw1 & ICW1_LEVEL != 0 { 0xff } else { self.elcr }
    }

    /// Interrupt request register.
    fn irr(&self) -> u8 {
        let level = self.level_mask();
        self.latched & !level | self.lines & level
    }

    fn set_line(&mut self, line: u8, level: bool) {
        let bit = 1 << line;
        if level {
            self.latched |= bit & !self.lines;
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
    }

    /// The slave's output at the master: a request as long as it is there.
    fn set_cascade(&mut self, level: bool) {
        let bit = 1 << CASCADE;
        (self.lines, self.latched) =
            if level { (self.lines | bit, self.latched | bit) } else { (self.lines & !bit, self.latched & !bit) };
    }

    /// The most urgent of `inputs`, as distance from the input of highest priority.
    fn most_urgent(&self, inputs: u8) -> Option<u8> {
        let rotated = inputs.rotate_right(u32::from(self.lowest & 7) + 1);
        (rotated != 0).then(|| rotated.trailing_zeros() as u8)
    }

    fn input_at(&self, distance: u8) -> u8 {
        (self.lowest + 1 + distance) & 7
    }

    /// The input to serve next: unmasked, and more urgent than all in service.
    fn request(&self, master: bool) -> Option<u8> {
        let asked = self.most_urgent(self.irr() & !self.imr)?;
        let mut in_service = self.isr;
        if self.special_mask {
            in_service &= !self.imr;
        }
        if master && self.icw4 & ICW4_FULLY_NESTED != 0 {
            in_service &= !(1 << CASCADE);
        }
        let blocked = self.most_urgent(in_service).is_some_and(|serving| serving <= asked);
        (!blocked).then(|| self.input_at(asked))
    }

    /// The acknowledge cycle for `input`.
    fn acknowledge(&mut self, input: u8) {
        let bit = 1 << input;
        self.latched &= !bit;
        if self.icw4 & ICW4_AUTO_EOI == 0 {
            self.isr |= bit;
        } else if self.rotate_on_auto_eoi {
            self.lowest = input;
        }
    }

    fn vector(&self, input: u8) -> u8 {
        self.base & 0xf8 | input
    }

    fn write_command(&mut self, value: u8) {
        if value & ICW1 != 0 {
            // An input must rise again to ask after this.
            *self = Self {
                lines: self.lines,
                base: self.base,
                elcr: self.elcr,
                icw1: value,
                expect: Expect::Icw2,
                lowest: 7,
                ..Self::default()
            };
        } else if value & OCW3 != 0 {
            self.poll = value & 4 != 0;
            if value & 2 != 0 {
                self.read_isr = value & 1 != 0;
            }
            if value & 0x40 != 0 {
                self.special_mask = value & 0x20 != 0;
            }
        } else {
            self.write_ocw2(value);
        }
    }

    /// End of interrupt and rotation: R, SL and EOI in bits 7, 6 and 5.
    fn write_ocw2(&mut self, value: u8) {
        let input = value & 7;
        match value >> 5 {
            0b000 => self.rotate_on_auto_eoi = false,
            0b100 => self.rotate_on_auto_eoi = true,
            0b001 | 0b101 => {
                let hidden = if self.special_mask { self.imr } else { 0 };
                if let Some(distance) = self.most_urgent(self.isr & !hidden) {
                    let ended = self.input_at(distance);
                    self.isr &= !(1 << ended);
                    if value & 0x80 != 0 {
                        self.lowest = ended;
                    }
                }
            }
            0b011 => self.isr &= !(1 << input),
            0b111 => {
                self.isr &= !(1 << input);
                self.lowest = input;
            }
            0b110 => self.lowest = input,
            _ => {}
        }
    }

    fn write_data(&mut self, value: u8) {
        let after_icw3 = if self.icw1 & ICW1_NEEDS_ICW4 != 0 { Expect::Icw4 } else { Expect::Mask };
        match self.expect {
            Expect::Mask => self.imr = value,
            Expect::Icw2 => {
                self.base = value & 0xf8;
                self.expect = if self.icw1 & ICW1_SINGLE != 0 { after_icw3 } else { Expect::Icw3 };
            }
            Expect::Icw3 => self.expect = after_icw3,
            Expect::Icw4 => {
                self.icw4 = value;
                self.expect = Expect::Mask;
            }
        }
    }

    /// A read of either port; a poll acknowledges.
    fn read(&mut self, data: bool, master: bool) -> u8 {
        if std::mem::take(&mut self.poll) {
            return self.request(master).map_or(0, |input| {
                self.acknowledge(input);
                0x80 | input
            });
        }
        match (data, self.read_isr) {
            (true, _) => self.imr,
            (false, true) => self.isr,
            (false, false) => self.irr(),
        }
    }
}

/// Saved state of the pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PicState {
    /// Version of this layout: 1.
    pub version: u32,
    /// Master and slave.
    pub chips: [PicChipState; 2],
}

impl Default for PicState {
    /// After power-on. The base differs from the real chip's, which is undefined, so that an interrupt before
    /// initialisation is not taken for an exception.
    fn default() -> Self {
        let chip = |base| PicChipState { base, imr: 0xff, lowest: 7, ..PicChipState::default() };
        Self { version: 1, chips: [chip(0x08), chip(0x70)] }
    }
}

/// The pair of 8259A.
pub struct PicPair {
    state: Mutex<PicState>,
    output: AtomicBool,
    bus: Arc<ApicBus>,
}

impl PicPair {
    pub(crate) fn new(bus: &Arc<ApicBus>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), output: AtomicBool::new(false), bus: bus.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, PicState> {
        self.state.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// Sets the level of ISA interrupt 0 to 15. 2 is the cascade and has no input; others are ignored.
    pub fn set_irq(&self, irq: u32, level: bool) {
        let (chip, line) = ((irq >> 3) as usize, (irq & 7) as u8);
        if irq == u32::from(CASCADE) {
            return;
        }
        let mut state = self.lock();
        if let Some(chip) = state.chips.get_mut(chip) {
            chip.set_line(line, level);
            self.update(state);
        }
    }

    /// Whether the INTR output is asserted.
    pub fn output(&self) -> bool {
        self.output.load(Ordering::SeqCst)
    }

    /// The interrupt-acknowledge cycle: gives the vector of the most urgent request, of input 7 if there is none.
    pub fn acknowledge(&self) -> u8 {
        let mut state = self.lock();
        let [master, slave] = &mut state.chips;
        let vector = match master.request(true) {
            None => master.vector(7),
            Some(CASCADE) => {
                master.acknowledge(CASCADE);
                let input = slave.request(false);
                if let Some(input) = input {
                    slave.acknowledge(input);
                }
                slave.vector(input.unwrap_or(7))
            }
            Some(input) => {
                master.acknowledge(input);
                master.vector(input)
            }
        };
        self.update(state);
        vector
    }

    /// Carries changes through the cascade to the output. Tells of them without the lock.
    fn update(&self, mut state: MutexGuard<'_, PicState>) {
        let [master, slave] = &mut state.chips;
        master.set_cascade(slave.request(false).is_some());
        let level = master.request(true).is_some();
        let changed = self.output.swap(level, Ordering::SeqCst) != level;
        drop(state);
        if changed {
            self.bus.pic_output_changed(level);
        }
    }

    fn with_chip<T>(&self, which: usize, access: impl FnOnce(&mut PicChipState) -> T) -> Option<T> {
        let mut state = self.lock();
        let result = state.chips.get_mut(which).map(access);
        self.update(state);
        result
    }

    /// The state for a snapshot.
    pub fn save(&self) -> PicState {
        self.lock().clone()
    }

    /// Takes over saved state.
    pub fn restore(&self, saved: &PicState) {
        let mut state = self.lock();
        *state = saved.clone();
        for (chip, mask) in state.chips.iter_mut().zip(ELCR_MASK) {
            chip.lowest &= 7;
            chip.elcr &= mask;
        }
        self.update(state);
    }

    /// The state after power-on, but for the levels of the inputs, which are their drivers'.
    pub fn reset(&self) {
        let mut state = self.lock();
        let lines = state.chips.map(|chip| chip.lines);
        *state = PicState::default();
        for (chip, lines) in state.chips.iter_mut().zip(lines) {
            chip.lines = lines;
        }
        self.update(state);
    }
}

/// The ports of the pair, as [`IoHandler`]s of two ports each. Wider accesses are split into bytes.
pub(crate) enum PicPorts {
    /// 0x20 (chip 0) or 0xa0 (chip 1).
    Chip(Arc<PicPair>, usize),
    /// 0x4d0.
    Elcr(Arc<PicPair>),
}

impl PicPorts {
    fn read_byte(&self, offset: u64) -> u8 {
        let value = match (self, offset) {
            (Self::Chip(pic, which), 0 | 1) => pic.with_chip(*which, |chip| chip.read(offset == 1, *which == 0)),
            (Self::Elcr(pic), 0 | 1) => pic.with_chip(offset as usize, |chip| chip.elcr),
            _ => None,
        };
        value.unwrap_or(0xff)
    }

    fn write_byte(&self, offset: u64, value: u8) {
        match (self, offset) {
            (Self::Chip(pic, which), 0) => pic.with_chip(*which, |chip| chip.write_command(value)),
            (Self::Chip(pic, which), 1) => pic.with_chip(*which, |chip| chip.write_data(value)),
            (Self::Elcr(pic), 0 | 1) => {
                let mask = ELCR_MASK[offset as usize & 1];
                pic.with_chip(offset as usize, |chip| chip.elcr = value & mask)
            }
            _ => None,
        };
    }
}

impl IoHandler for PicPorts {
    fn read(&self, offset: u64, size: u8) -> u64 {
        (0..u64::from(size.min(8))).fold(0, |value, i| value | u64::from(self.read_byte(offset + i)) << (8 * i))
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        for i in 0..u64::from(size.min(8)) {
            self.write_byte(offset + i, (value >> (8 * i)) as u8);
        }
    }
}

#[cfg(test)]
mod tests;
