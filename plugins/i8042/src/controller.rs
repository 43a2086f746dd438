//! The 8042 itself: one output buffer for two devices, commands, and an output port (IBM PC/AT Technical Reference,
//! "Keyboard Controller"; for the second device, IBM PS/2 Hardware Interface Technical Reference).

use bitflags::bitflags;

use crate::keyboard::Keyboard;
use crate::mouse::Mouse;
use crate::translation::Translator;

bitflags! {
    /// Status register, port 0x64.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Status: u8 {
        /// A byte waits at port 0x60.
        const OUTPUT_FULL = 1 << 0;
        /// The controller is busy with what was written. Never.
        const INPUT_FULL = 1 << 1;
        /// The self test was passed.
        const SYSTEM = 1 << 2;
        /// The last write was a command.
        const COMMAND = 1 << 3;
        /// The keyboard lock is open.
        const UNLOCKED = 1 << 4;
        /// The byte that waits comes from the mouse.
        const FROM_MOUSE = 1 << 5;
    }

    /// Command byte.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Mode: u8 {
        /// Interrupt when the keyboard has sent a byte.
        const KEYBOARD_INTERRUPT = 1 << 0;
        /// Interrupt when the mouse has sent a byte.
        const MOUSE_INTERRUPT = 1 << 1;
        /// Shown in the status register.
        const SYSTEM = 1 << 2;
        /// The keyboard is silent.
        const NO_KEYBOARD = 1 << 4;
        /// The mouse is silent.
        const NO_MOUSE = 1 << 5;
        /// Scan codes become those of set 1.
        const TRANSLATE = 1 << 6;
        const _ = !0;
    }

    /// Output port.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct OutputPort: u8 {
        /// Low: the processor is held in reset.
        const NO_RESET = 1 << 0;
        /// Address line 20 passes.
        const A20 = 1 << 1;
        /// The keyboard's interrupt.
        const KEYBOARD_INTERRUPT = 1 << 4;
        /// The mouse's interrupt.
        const MOUSE_INTERRUPT = 1 << 5;
        const _ = !0;
    }
}

/// What a write asks of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Reset the machine.
    Reset,
}

/// Who has put a byte into the output buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The keyboard, or the controller itself.
    Keyboard,
    /// The mouse.
    Mouse,
}

/// State of the controller and of what is plugged into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controller {
    pub(crate) mode: Mode,
    pub(crate) self_tested: bool,
    pub(crate) last_was_command: bool,
    /// Command whose parameter is awaited.
    pub(crate) command: Option<u8>,
    pub(crate) port: OutputPort,
    /// Who filled the output buffer, while it is full.
    pub(crate) full: Option<Source>,
    /// The byte in the output buffer, or the last that was there.
    pub(crate) data: u8,
    /// The controller's own answer, while the buffer is still full of something else.
    pub(crate) answer: Option<(u8, Source)>,
    pub(crate) translator: Translator,
    /// The keyboard.
    pub keyboard: Keyboard,
    /// The mouse.
    pub mouse: Mouse,
}

impl Default for Controller {
    fn default() -> Self {
        Self {
            mode: Mode::KEYBOARD_INTERRUPT | Mode::MOUSE_INTERRUPT,
            self_tested: false,
            last_was_command: true,
            command: None,
            port: OutputPort::from_bits_retain(0xcf),
            full: None,
            data: 0,
            answer: None,
            translator: Translator::default(),
            keyboard: Keyboard::default(),
            mouse: Mouse::default(),
        }
    }
}

impl Controller {
    /// The status register.
    pub fn status(&self) -> Status {
        let mut status = Status::UNLOCKED;
        status.set(Status::OUTPUT_FULL, self.full.is_some());
        status.set(Status::FROM_MOUSE, self.full == Some(Source::Mouse));
        status.set(Status::SYSTEM, self.self_tested || self.mode.contains(Mode::SYSTEM));
        status.set(Status::COMMAND, self.last_was_command);
        status
    }

    /// Levels of the keyboard's and of the mouse's interrupt.
    pub fn interrupts(&self) -> (bool, bool) {
        let keyboard = self.full == Some(Source::Keyboard) && self.mode.contains(Mode::KEYBOARD_INTERRUPT);
        let mouse = self.full == Some(Source::Mouse) && self.mode.contains(Mode::MOUSE_INTERRUPT);
        (keyboard, mouse)
    }

    /// The guest reads port 0x60.
    pub fn read_data(&mut self) -> u8 {
        let data = self.data;
        self.full = None;
        self.refill();
        data
    }

    /// Fills the output buffer, if it is empty and somebody has a byte for it. To be called after input.
    pub fn refill(&mut self) {
        if self.full.is_some() {
            return;
        }
        if let Some((data, source)) = self.answer.take() {
            (self.data, self.full) = (data, Some(source));
            return;
        }
        if !self.mode.contains(Mode::NO_KEYBOARD) {
            while let Some(byte) = self.keyboard.pop() {
                let translates = self.mode.contains(Mode::TRANSLATE);
                let byte = if translates { self.translator.translate(byte) } else { Some(byte) };
                if let Some(byte) = byte {
                    (self.data, self.full) = (byte, Some(Source::Keyboard));
                    return;
                }
            }
        }
        if !self.mode.contains(Mode::NO_MOUSE)
            && let Some(byte) = self.mouse.pop()
        {
            (self.data, self.full) = (byte, Some(Source::Mouse));
        }
    }

    /// The guest writes port 0x60.
    pub fn write_data(&mut self, value: u8) -> Effect {
        self.last_was_command = false;
        let mut effect = Effect::None;
        match self.command.take() {
            Some(0x60) => self.mode = Mode::from_bits_retain(value),
            Some(0xd1) => {
                self.port = OutputPort::from_bits_retain(value);
                if !self.port.contains(OutputPort::NO_RESET) {
                    effect = Effect::Reset;
                }
            }
            Some(0xd2) => self.answer = Some((value, Source::Keyboard)),
            Some(0xd3) => self.answer = Some((value, Source::Mouse)),
            Some(0xd4) => {
                self.mouse.write(value);
                self.mode -= Mode::NO_MOUSE;
            }
            _ => {
                self.keyboard.write(value);
                self.mode -= Mode::NO_KEYBOARD;
            }
        }
        self.refill();
        effect
    }

    /// The guest writes port 0x64.
    pub fn write_command(&mut self, value: u8) -> Effect {
        self.last_was_command = true;
        self.command = None;
        let mut effect = Effect::None;
        match value {
            0x20 => self.answer_with(self.mode.bits()),
            0x60 | 0xd1..=0xd4 => self.command = Some(value),
            0xa7 => self.mode |= Mode::NO_MOUSE,
            0xa8 => self.mode -= Mode::NO_MOUSE,
            // Interface tests: the lines are fine.
            0xa9 | 0xab => self.answer_with(0x00),
            0xaa => {
                self.self_tested = true;
                self.answer_with(0x55);
            }
            0xad => self.mode |= Mode::NO_KEYBOARD,
            0xae => self.mode -= Mode::NO_KEYBOARD,
            // Input port: the lock is open.
            0xc0 => self.answer_with(0x80),
            0xd0 => self.answer_with(self.output_port().bits()),
            0xdd => self.port -= OutputPort::A20,
            0xdf => self.port |= OutputPort::A20,
            // Pulses the low lines of the output port whose bits are 0; the first of them is reset.
            0xf0..=0xff if value & 1 == 0 => effect = Effect::Reset,
            _ => {}
        }
        self.refill();
        effect
    }

    fn answer_with(&mut self, value: u8) {
        self.answer = Some((value, Source::Keyboard));
    }

    fn output_port(&self) -> OutputPort {
        let (keyboard, mouse) = self.interrupts();
        let mut port = self.port;
        port.set(OutputPort::KEYBOARD_INTERRUPT, keyboard);
        port.set(OutputPort::MOUSE_INTERRUPT, mouse);
        port
    }
}
