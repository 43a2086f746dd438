//! The 16550A itself, without a host: registers, FIFOs, interrupts (National Semiconductor PC16550D data sheet,
//! section 8; the tables' numbers are given where they matter).
//!
//! The transmitter takes no time: a byte goes out at once, unless the [`Line`] refuses it. Then it stays in the shift
//! register, those behind it in the FIFO, and the guest sees a busy transmitter until the line takes bytes again.

use std::collections::VecDeque;

use bitflags::bitflags;

/// Depth of both FIFOs.
pub const FIFO: usize = 16;
/// Data (DLAB 0) or divisor low byte (DLAB 1).
const DATA: u64 = 0;
/// Interrupt enable (DLAB 0) or divisor high byte (DLAB 1).
const IER: u64 = 1;
/// Interrupt identification when read, FIFO control when written.
const IIR_FCR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const MSR: u64 = 6;
const SCR: u64 = 7;

/// IIR: nothing pending. The other codes are in the order of their priority (table IV).
const IIR_NONE: u8 = 0x01;
const IIR_LINE_STATUS: u8 = 0x06;
const IIR_DATA: u8 = 0x04;
const IIR_TIMEOUT: u8 = 0x0c;
const IIR_THR_EMPTY: u8 = 0x02;
const IIR_MODEM_STATUS: u8 = 0x00;
/// IIR: both FIFOs are on.
const IIR_FIFOS: u8 = 0xc0;

/// Divisor after reset: 9600 baud.
const DIVISOR: u16 = 12;

bitflags! {
    /// Interrupt enable register.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct InterruptEnable: u8 {
        /// Received data and time-out.
        const DATA = 1 << 0;
        /// Transmitter holding register empty.
        const THR_EMPTY = 1 << 1;
        /// Receiver line status.
        const LINE_STATUS = 1 << 2;
        /// Modem status.
        const MODEM_STATUS = 1 << 3;
    }

    /// FIFO control register, as far as it keeps what is written.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct FifoControl: u8 {
        /// FIFOs are on.
        const ENABLE = 1 << 0;
        /// Empty the receiver FIFO (clears itself).
        const CLEAR_RECEIVER = 1 << 1;
        /// Empty the transmitter FIFO (clears itself).
        const CLEAR_TRANSMITTER = 1 << 2;
        /// DMA mode.
        const DMA = 1 << 3;
        /// Trigger level, low bit.
        const TRIGGER_LOW = 1 << 6;
        /// Trigger level, high bit.
        const TRIGGER_HIGH = 1 << 7;
    }

    /// Line control register.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct LineControl: u8 {
        /// Data bits beyond five.
        const WORD_LENGTH = 3;
        /// Two stop bits.
        const STOP_BITS = 1 << 2;
        /// A parity bit.
        const PARITY = 1 << 3;
        /// Even parity.
        const EVEN = 1 << 4;
        /// Stick parity.
        const STICK = 1 << 5;
        /// Break condition.
        const BREAK = 1 << 6;
        /// Divisor latch access.
        const DLAB = 1 << 7;
    }

    /// Modem control register.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct ModemControl: u8 {
        /// Data terminal ready.
        const DTR = 1 << 0;
        /// Request to send.
        const RTS = 1 << 1;
        /// Output 1.
        const OUT1 = 1 << 2;
        /// Output 2: on a PC, the gate of the interrupt line; not modelled, as in QEMU.
        const OUT2 = 1 << 3;
        /// The transmitter feeds the receiver.
        const LOOP = 1 << 4;
    }

    /// Line status register.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct LineStatus: u8 {
        /// Data ready.
        const DATA_READY = 1 << 0;
        /// Overrun.
        const OVERRUN = 1 << 1;
        /// Parity error. Never on a line without noise.
        const PARITY = 1 << 2;
        /// Framing error. Never on a line without noise.
        const FRAMING = 1 << 3;
        /// Break received.
        const BREAK = 1 << 4;
        /// Transmitter holding register or FIFO empty.
        const THR_EMPTY = 1 << 5;
        /// Transmitter wholly empty.
        const TRANSMITTER_EMPTY = 1 << 6;
    }

    /// Modem status register.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct ModemStatus: u8 {
        /// CTS has changed.
        const DELTA_CTS = 1 << 0;
        /// DSR has changed.
        const DELTA_DSR = 1 << 1;
        /// RI has gone low.
        const TRAILING_RI = 1 << 2;
        /// DCD has changed.
        const DELTA_DCD = 1 << 3;
        /// Clear to send.
        const CTS = 1 << 4;
        /// Data set ready.
        const DSR = 1 << 5;
        /// Ring.
        const RI = 1 << 6;
        /// Carrier.
        const DCD = 1 << 7;
    }
}

impl LineStatus {
    /// What the line status interrupt reports.
    const ERRORS: Self = Self::OVERRUN.union(Self::PARITY).union(Self::FRAMING).union(Self::BREAK);
}
impl ModemStatus {
    const DELTAS: Self = Self::DELTA_CTS.union(Self::DELTA_DSR).union(Self::TRAILING_RI).union(Self::DELTA_DCD);
    /// The other end is there and ready: backends have no modem lines of their own.
    const CONNECTED: Self = Self::CTS.union(Self::DSR).union(Self::DCD);
}

/// The far side of the serial line.
pub trait Line {
    /// Takes a byte, or refuses it for now.
    fn transmit(&mut self, byte: u8) -> bool;
    /// A break condition begins or ends.
    fn set_break(&mut self, on: bool);
    /// Virtual time in nanoseconds.
    fn now(&self) -> u64;
}

/// State of the chip. What the line and the interrupt controller must know is asked for after each access:
/// [`interrupt`](Self::interrupt), [`deadline`](Self::deadline).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uart {
    pub(crate) baud_base: u32,
    pub(crate) divisor: u16,
    pub(crate) ier: InterruptEnable,
    pub(crate) fcr: FifoControl,
    pub(crate) lcr: LineControl,
    pub(crate) mcr: ModemControl,
    pub(crate) lsr: LineStatus,
    pub(crate) msr: ModemStatus,
    pub(crate) scr: u8,
    /// Received bytes; without FIFOs at most one.
    pub(crate) received: VecDeque<u8>,
    /// Last byte that was read, which an empty receiver gives again.
    pub(crate) receiver_buffer: u8,
    /// Bytes that wait behind the shift register; without FIFOs at most one.
    pub(crate) sending: VecDeque<u8>,
    /// The byte that the line has refused so far.
    pub(crate) shift: Option<u8>,
    /// The THR-empty interrupt was not acknowledged yet.
    pub(crate) thr_pending: bool,
    /// Nobody has read the FIFO for four characters.
    pub(crate) timed_out: bool,
    /// When that will be the case, in virtual nanoseconds.
    pub(crate) timeout_at: Option<u64>,
}

impl Uart {
    /// A chip after power on, with a clock for `baud_base` baud at divisor 1.
    pub fn new(baud_base: u32) -> Self {
        Self {
            baud_base,
            divisor: DIVISOR,
            ier: InterruptEnable::empty(),
            fcr: FifoControl::empty(),
            lcr: LineControl::empty(),
            mcr: ModemControl::OUT2,
            lsr: LineStatus::THR_EMPTY | LineStatus::TRANSMITTER_EMPTY,
            msr: ModemStatus::CONNECTED,
            scr: 0,
            received: VecDeque::with_capacity(FIFO),
            receiver_buffer: 0,
            sending: VecDeque::with_capacity(FIFO),
            shift: None,
            thr_pending: false,
            timed_out: false,
            timeout_at: None,
        }
    }

    /// Level of the interrupt output.
    pub fn interrupt(&self) -> bool {
        self.cause() != IIR_NONE
    }
    /// When [`expire`](Self::expire) wants to be called.
    pub fn deadline(&self) -> Option<u64> {
        self.timeout_at
    }

    fn fifos(&self) -> bool {
        self.fcr.contains(FifoControl::ENABLE)
    }
    fn looped(&self) -> bool {
        self.mcr.contains(ModemControl::LOOP)
    }

    /// Received bytes at which the data interrupt comes (table II).
    fn trigger(&self) -> usize {
        match (self.fifos(), self.fcr.bits() >> 6) {
            (false, _) | (_, 0) => 1,
            (_, 1) => 4,
            (_, 2) => 8,
            _ => 14,
        }
    }

    /// The pending interrupt of the highest priority (table IV).
    fn cause(&self) -> u8 {
        if self.ier.contains(InterruptEnable::LINE_STATUS) && self.lsr.intersects(LineStatus::ERRORS) {
            IIR_LINE_STATUS
        } else if self.ier.contains(InterruptEnable::DATA) && self.timed_out {
            IIR_TIMEOUT
        } else if self.ier.contains(InterruptEnable::DATA) && self.received.len() >= self.trigger() {
            IIR_DATA
        } else if self.ier.contains(InterruptEnable::THR_EMPTY) && self.thr_pending {
            IIR_THR_EMPTY
        } else if self.ier.contains(InterruptEnable::MODEM_STATUS) && self.msr.intersects(ModemStatus::DELTAS) {
            IIR_MODEM_STATUS
        } else {
            IIR_NONE
        }
    }

    /// The guest reads a register.
    pub fn read(&mut self, offset: u64, line: &mut impl Line) -> u8 {
        match offset {
            LSR => self.read_line_status(),
            DATA if self.lcr.contains(LineControl::DLAB) => self.divisor as u8,
            DATA => self.read_data(line),
            IER if self.lcr.contains(LineControl::DLAB) => (self.divisor >> 8) as u8,
            IER => self.ier.bits(),
            IIR_FCR => self.read_cause(),
            LCR => self.lcr.bits(),
            MCR => self.mcr.bits(),
            MSR => self.read_modem_status(),
            SCR => self.scr,
            _ => 0xff,
        }
    }

    fn read_line_status(&mut self) -> u8 {
        let value = self.lsr;
        self.lsr -= LineStatus::ERRORS;
        value.bits()
    }

    fn read_data(&mut self, line: &mut impl Line) -> u8 {
        if let Some(byte) = self.received.pop_front() {
            self.receiver_buffer = byte;
        }
        self.timed_out = false;
        self.timeout_at = None;
        if self.received.is_empty() {
            self.lsr -= LineStatus::DATA_READY;
        } else {
            self.restart_timeout(line.now());
        }
        self.receiver_buffer
    }

    fn read_cause(&mut self) -> u8 {
        let cause = self.cause();
        if cause == IIR_THR_EMPTY {
            self.thr_pending = false;
        }
        cause | if self.fifos() { IIR_FIFOS } else { 0 }
    }

    fn read_modem_status(&mut self) -> u8 {
        let value = self.msr;
        self.msr -= ModemStatus::DELTAS;
        value.bits()
    }

    /// The guest writes a register.
    pub fn write(&mut self, offset: u64, value: u8, line: &mut impl Line) {
        match offset {
            DATA if self.lcr.contains(LineControl::DLAB) => self.divisor = self.divisor & 0xff00 | u16::from(value),
            DATA => self.write_data(value, line),
            IER if self.lcr.contains(LineControl::DLAB) => {
                self.divisor = self.divisor & 0x00ff | u16::from(value) << 8;
            }
            IER => self.write_enables(InterruptEnable::from_bits_truncate(value)),
            IIR_FCR => self.write_fifo_control(FifoControl::from_bits_truncate(value)),
            LCR => self.write_line_control(LineControl::from_bits_retain(value), line),
            MCR => self.write_modem_control(ModemControl::from_bits_truncate(value)),
            SCR => self.scr = value,
            // LSR and MSR are for factory tests only.
            _ => {}
        }
    }

    fn write_data(&mut self, byte: u8, line: &mut impl Line) {
        // A guest that writes into a full transmitter loses what it wrote before last.
        let depth = if self.fifos() { FIFO } else { 1 };
        if self.sending.len() >= depth {
            self.sending.pop_back();
        }
        self.sending.push_back(byte);
        self.thr_pending = false;
        self.lsr -= LineStatus::THR_EMPTY | LineStatus::TRANSMITTER_EMPTY;
        self.transmit(line);
    }

    /// Sends what the line takes. To be called again when a line that had refused a byte takes some.
    pub fn transmit(&mut self, line: &mut impl Line) {
        while let Some(byte) = self.shift.take().or_else(|| self.sending.pop_front()) {
            if self.looped() {
                self.put(byte, line.now());
            } else if !line.transmit(byte) {
                self.shift = Some(byte);
                break;
            }
        }
        if self.sending.is_empty() && !self.lsr.contains(LineStatus::THR_EMPTY) {
            self.lsr |= LineStatus::THR_EMPTY;
            self.thr_pending = true;
        }
        self.lsr.set(LineStatus::TRANSMITTER_EMPTY, self.sending.is_empty() && self.shift.is_none());
    }

    fn write_enables(&mut self, enables: InterruptEnable) {
        // Switching the THR-empty interrupt on makes it come at once, as drivers that start to send expect.
        let now_on = enables.difference(self.ier).contains(InterruptEnable::THR_EMPTY);
        if now_on && self.lsr.contains(LineStatus::THR_EMPTY) {
            self.thr_pending = true;
        }
        self.ier = enables;
    }

    fn write_fifo_control(&mut self, mut value: FifoControl) {
        // Both FIFOs are emptied when they are switched on or off. The other bits count only while they are on.
        if (value ^ self.fcr).contains(FifoControl::ENABLE) {
            value |= FifoControl::CLEAR_RECEIVER | FifoControl::CLEAR_TRANSMITTER;
        }
        if value.contains(FifoControl::CLEAR_RECEIVER) {
            self.received.clear();
            self.timed_out = false;
            self.timeout_at = None;
            self.lsr -= LineStatus::DATA_READY | LineStatus::BREAK;
        }
        if value.contains(FifoControl::CLEAR_TRANSMITTER) {
            self.sending.clear();
            if !self.lsr.contains(LineStatus::THR_EMPTY) {
                self.lsr |= LineStatus::THR_EMPTY;
                self.thr_pending = true;
            }
            self.lsr.set(LineStatus::TRANSMITTER_EMPTY, self.shift.is_none());
        }
        let kept = value - (FifoControl::CLEAR_RECEIVER | FifoControl::CLEAR_TRANSMITTER);
        self.fcr = if kept.contains(FifoControl::ENABLE) { kept } else { FifoControl::empty() };
    }

    fn write_line_control(&mut self, value: LineControl, line: &mut impl Line) {
        let changed = value ^ self.lcr;
        self.lcr = value;
        if changed.contains(LineControl::BREAK) {
            line.set_break(value.contains(LineControl::BREAK));
        }
    }

    /// In loopback, the four outputs are the four modem inputs (section 8.6).
    fn write_modem_control(&mut self, value: ModemControl) {
        self.mcr = value;
        let mut lines = ModemStatus::CONNECTED;
        if self.looped() {
            lines = ModemStatus::empty();
            lines.set(ModemStatus::CTS, value.contains(ModemControl::RTS));
            lines.set(ModemStatus::DSR, value.contains(ModemControl::DTR));
            lines.set(ModemStatus::RI, value.contains(ModemControl::OUT1));
            lines.set(ModemStatus::DCD, value.contains(ModemControl::OUT2));
        }
        let changed = self.msr ^ lines;
        let mut deltas = self.msr & ModemStatus::DELTAS;
        deltas
            .set(ModemStatus::DELTA_CTS, deltas.contains(ModemStatus::DELTA_CTS) || changed.contains(ModemStatus::CTS));
        deltas
            .set(ModemStatus::DELTA_DSR, deltas.contains(ModemStatus::DELTA_DSR) || changed.contains(ModemStatus::DSR));
        deltas
            .set(ModemStatus::DELTA_DCD, deltas.contains(ModemStatus::DELTA_DCD) || changed.contains(ModemStatus::DCD));
        if changed.contains(ModemStatus::RI) && !lines.contains(ModemStatus::RI) {
            deltas |= ModemStatus::TRAILING_RI;
        }
        self.msr = lines | deltas;
    }

    /// How many bytes of input fit. Up to the trigger level at once, then one by one, so that a guest that is slow
    /// fills the FIFO only slowly. A loop is closed to input.
    pub fn room(&self) -> usize {
        match (self.looped(), self.fifos()) {
            (true, _) => 0,
            (_, false) => usize::from(self.received.is_empty()),
            _ if self.received.len() < self.trigger() => self.trigger() - self.received.len(),
            _ => usize::from(self.received.len() < FIFO),
        }
    }

    /// Bytes arrive.
    pub fn receive(&mut self, bytes: &[u8], line: &mut impl Line) {
        for &byte in bytes {
            self.put(byte, line.now());
        }
    }

    /// A break arrives: a zero byte with the break bit.
    pub fn receive_break(&mut self, line: &mut impl Line) {
        self.put(0, line.now());
        self.lsr |= LineStatus::BREAK;
    }

    fn put(&mut self, byte: u8, now: u64) {
        let depth = if self.fifos() { FIFO } else { 1 };
        if self.received.len() >= depth {
            // Without FIFOs the new byte replaces the old one; with them it is lost (section 8.5).
            self.lsr |= LineStatus::OVERRUN;
            if !self.fifos() {
                self.received.clear();
                self.received.push_back(byte);
            }
        } else {
            self.received.push_back(byte);
        }
        self.lsr |= LineStatus::DATA_READY;
        self.timed_out = false;
        self.restart_timeout(now);
    }

    /// The time-out interrupt comes four characters after the last byte came or went (section 8.8.1).
    fn restart_timeout(&mut self, now: u64) {
        self.timeout_at = self.fifos().then(|| now.saturating_add(4 * self.character_ns()));
    }

    /// Time of one character on the line.
    fn character_ns(&self) -> u64 {
        let data = 5 + u64::from((self.lcr & LineControl::WORD_LENGTH).bits());
        let parity = u64::from(self.lcr.contains(LineControl::PARITY));
        let stop = 1 + u64::from(self.lcr.contains(LineControl::STOP_BITS));
        // A divisor of 0 counts as 65536: the counter wraps.
        let divisor = if self.divisor == 0 { 65536 } else { u64::from(self.divisor) };
        (1 + data + parity + stop) * divisor * 1_000_000_000 / u64::from(self.baud_base.max(1))
    }

    /// The [deadline](Self::deadline) has come.
    pub fn expire(&mut self, now: u64) {
        if self.timeout_at.is_some_and(|at| at <= now) {
            self.timeout_at = None;
            self.timed_out = !self.received.is_empty();
        }
    }
}
