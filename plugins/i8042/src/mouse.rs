//! A PS/2 mouse with a wheel and five buttons: commands, modes and packets (IBM PS/2 Hardware Interface Technical
//! Reference, "Mouse"; for the wheel, Microsoft's IntelliMouse).

use std::collections::VecDeque;

use bitflags::bitflags;

/// Bytes of movement that wait at most. Movement is not lost when they are full: it adds up.
const DEPTH: usize = 16;
const ANSWERS: usize = 8;

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const SELF_TEST_PASSED: u8 = 0xaa;
/// Status byte: remote mode, data reporting on, scaling 2:1.
const STATUS_REMOTE: u8 = 0x40;
const STATUS_REPORTING: u8 = 0x20;
const STATUS_SCALED: u8 = 0x10;
/// Largest movement in one packet.
const STEP: i32 = 127;
/// Movement that adds up at most.
const FAR: i32 = 1 << 20;

bitflags! {
    /// Buttons, with the bits of a packet's first byte; the last two stand in the fourth byte.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Buttons: u8 {
        /// Left.
        const LEFT = 1;
        /// Right.
        const RIGHT = 2;
        /// Middle.
        const MIDDLE = 4;
        /// Fourth.
        const SIDE = 8;
        /// Fifth.
        const EXTRA = 16;
    }
}

/// Which packets the mouse sends: what it answers when it is asked for its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Model {
    /// Three bytes.
    Standard = 0,
    /// With a wheel: four bytes.
    Wheel = 3,
    /// With a wheel and five buttons.
    FiveButtons = 4,
}

/// State of the mouse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mouse {
    pub(crate) answers: VecDeque<u8>,
    pub(crate) movement: VecDeque<u8>,
    pub(crate) command: Option<u8>,
    pub(crate) last: u8,
    pub(crate) model: Model,
    /// The last three sample rates: a knock that changes the model.
    pub(crate) rates: [u8; 3],
    pub(crate) resolution: u8,
    pub(crate) scaled: bool,
    pub(crate) remote: bool,
    pub(crate) wrap: bool,
    pub(crate) reporting: bool,
    pub(crate) buttons: Buttons,
    /// Buttons as they were last reported.
    pub(crate) reported: Buttons,
    /// Movement that was not reported yet: to the right, up, and of the wheel towards the user.
    pub(crate) dx: i32,
    pub(crate) dy: i32,
    pub(crate) dz: i32,
}

impl Default for Mouse {
    fn default() -> Self {
        Self {
            answers: VecDeque::new(),
            movement: VecDeque::new(),
            command: None,
            last: 0,
            model: Model::Standard,
            rates: [0, 0, 100],
            resolution: 2,
            scaled: false,
            remote: false,
            wrap: false,
            reporting: false,
            buttons: Buttons::empty(),
            reported: Buttons::empty(),
            dx: 0,
            dy: 0,
            dz: 0,
        }
    }
}

impl Mouse {
    /// Takes the next byte for the controller.
    pub fn pop(&mut self) -> Option<u8> {
        let byte = self.answers.pop_front().or_else(|| self.movement.pop_front())?;
        self.last = byte;
        // Room for movement that has added up.
        self.report();
        Some(byte)
    }
    /// Whether a byte waits.
    pub fn has_data(&self) -> bool {
        !(self.answers.is_empty() && self.movement.is_empty())
    }

    fn answer(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if self.answers.len() >= ANSWERS {
                self.answers.pop_front();
            }
            self.answers.push_back(byte);
        }
    }

    fn set_defaults(&mut self) {
        let Self { buttons, last, answers, .. } = std::mem::take(self);
        *self = Self { buttons, reported: buttons, last, answers, ..Self::default() };
    }

    /// The controller sends a byte.
    pub fn write(&mut self, value: u8) {
        if self.wrap && !matches!(value, 0xec | 0xff) {
            return self.answer(&[value]);
        }
        match self.command.take() {
            Some(command) => self.parameter(command, value),
            None => self.command(value),
        }
    }

    fn parameter(&mut self, command: u8, value: u8) {
        if command == 0xe8 {
            self.resolution = value & 3;
        } else {
            self.rates = [self.rates[1], self.rates[2], value];
            match self.rates {
                [200, 100, 80] => self.model = Model::Wheel,
                [200, 200, 80] => self.model = Model::FiveButtons,
                _ => {}
            }
        }
        self.answer(&[ACK]);
    }

    fn command(&mut self, value: u8) {
        match value {
            0xe8 | 0xf3 => self.command = Some(value),
            0xe6 => self.scaled = false,
            0xe7 => self.scaled = true,
            0xe9 => {
                let flag = |on: bool, bit: u8| if on { bit } else { 0 };
                // Left in bit 2, middle in bit 1, right in bit 0: unlike in a packet.
                let buttons = flag(self.buttons.contains(Buttons::LEFT), 4)
                    | flag(self.buttons.contains(Buttons::MIDDLE), 2)
                    | flag(self.buttons.contains(Buttons::RIGHT), 1);
                let modes = flag(self.remote, STATUS_REMOTE)
                    | flag(self.reporting, STATUS_REPORTING)
                    | flag(self.scaled, STATUS_SCALED);
                return self.answer(&[ACK, modes | buttons, self.resolution, self.rates[2]]);
            }
            0xea => self.remote = false,
            0xeb => {
                let packet = self.packet();
                self.answer(&[ACK]);
                return self.answer(&packet);
            }
            0xec => self.wrap = false,
            0xee => self.wrap = true,
            0xf0 => self.remote = true,
            0xf2 => return self.answer(&[ACK, self.model as u8]),
            0xf4 => {
                self.reporting = true;
                self.movement.clear();
            }
            0xf5 => {
                self.reporting = false;
                self.movement.clear();
            }
            0xf6 => {
                let model = self.model;
                self.set_defaults();
                self.model = model;
            }
            0xfe => return self.answer(&[self.last]),
            0xff => {
                self.set_defaults();
                self.answers.clear();
                return self.answer(&[ACK, SELF_TEST_PASSED, Model::Standard as u8]);
            }
            _ => return self.answer(&[RESEND]),
        }
        self.answer(&[ACK]);
    }

    /// The mouse has moved, in counts: to the right, up, and the wheel towards the user; and these buttons are down.
    /// This is the input side: whoever has a user attached calls it.
    pub fn moved(&mut self, dx: i32, dy: i32, dz: i32, buttons: Buttons) {
        self.dx = self.dx.saturating_add(dx).clamp(-FAR, FAR);
        self.dy = self.dy.saturating_add(dy).clamp(-FAR, FAR);
        self.dz = self.dz.saturating_add(dz).clamp(-FAR, FAR);
        self.buttons = buttons;
        self.report();
    }

    fn has_news(&self) -> bool {
        (self.dx, self.dy, self.dz) != (0, 0, 0) || self.buttons != self.reported
    }

    /// In stream mode, sends packets as long as there is news and room.
    fn report(&mut self) {
        while self.reporting && !self.remote && self.has_news() && self.movement.len() + 4 <= DEPTH {
            let packet = self.packet();
            self.movement.extend(packet);
        }
    }

    fn packet(&mut self) -> Vec<u8> {
        let (dx, dy) = (take_step(&mut self.dx, STEP), take_step(&mut self.dy, STEP));
        self.reported = self.buttons;
        let sign = |n: i32, bit: u8| if n < 0 { bit } else { 0 };
        let first = 0x08 | (self.buttons.bits() & 7) | sign(dx, 0x10) | sign(dy, 0x20);
        let mut packet = vec![first, dx as u8, dy as u8];
        match self.model {
            Model::Standard => self.dz = 0,
            Model::Wheel => packet.push(take_step(&mut self.dz, STEP) as u8),
            Model::FiveButtons => {
                let wheel = take_step(&mut self.dz, 7) as u8 & 0x0f;
                packet.push(wheel | (self.buttons.bits() & 0x18) << 1);
            }
        }
        packet
    }
}

/// Takes at most `limit` of a movement, in either direction.
fn take_step(rest: &mut i32, limit: i32) -> i32 {
    let step = (*rest).clamp(-limit, limit);
    *rest -= step;
    step
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(mouse: &mut Mouse) -> Vec<u8> {
        std::iter::from_fn(|| mouse.pop()).collect()
    }
    fn write(mouse: &mut Mouse, bytes: &[u8]) -> Vec<u8> {
        bytes.iter().for_each(|&b| mouse.write(b));
        answers(mouse)
    }

    #[test]
    fn a_reset_identifies_a_standard_mouse() {
        let mut m = Mouse::default();
        assert_eq!(write(&mut m, &[0xff]), [0xfa, 0xaa, 0x00]);
        assert_eq!(write(&mut m, &[0xf2]), [0xfa, 0x00]);
    }

    #[test]
    fn the_right_knocks_show_the_wheel_and_more_buttons() {
        let mut m = Mouse::default();
        write(&mut m, &[0xf3, 200, 0xf3, 100, 0xf3, 80]);
        assert_eq!(write(&mut m, &[0xf2]), [0xfa, 3]);
        write(&mut m, &[0xf3, 200, 0xf3, 200, 0xf3, 80]);
        assert_eq!(write(&mut m, &[0xf2]), [0xfa, 4]);
        assert_eq!(write(&mut m, &[0xff, 0xf2]), [0xfa, 0xaa, 0x00, 0xfa, 0x00]);
    }

    #[test]
    fn the_status_tells_modes_resolution_and_rate() {
        let mut m = Mouse::default();
        write(&mut m, &[0xe8, 3, 0xf3, 60, 0xe7, 0xf4]);
        m.moved(0, 0, 0, Buttons::LEFT);
        answers(&mut m);
        assert_eq!(write(&mut m, &[0xe9]), [0xfa, 0x34, 3, 60]);
    }

    #[test]
    fn movement_is_sent_only_while_it_is_wanted() {
        let mut m = Mouse::default();
        m.moved(5, -3, 0, Buttons::empty());
        assert!(!m.has_data());
        assert_eq!(write(&mut m, &[0xeb]), [0xfa, 0x28, 5, 0xfd]);
        write(&mut m, &[0xf4]);
        m.moved(1, 1, 1, Buttons::RIGHT);
        assert_eq!(answers(&mut m), [0x0a, 1, 1]);
        write(&mut m, &[0xf5]);
        m.moved(1, 1, 1, Buttons::empty());
        assert_eq!(answers(&mut m), []);
    }

    #[test]
    fn movement_that_does_not_fit_adds_up_and_follows() {
        let mut m = Mouse::default();
        write(&mut m, &[0xf4]);
        m.moved(1000, 0, 0, Buttons::empty());
        assert!(m.movement.len() <= DEPTH);
        let sent = answers(&mut m);
        assert_eq!(sent.chunks(3).map(|p| i32::from(p[1] as i8)).sum::<i32>(), 1000);
    }

    #[test]
    fn a_five_button_mouse_packs_wheel_and_buttons_into_the_fourth_byte() {
        let mut m = Mouse::default();
        write(&mut m, &[0xf3, 200, 0xf3, 200, 0xf3, 80, 0xf4]);
        m.moved(0, 0, -2, Buttons::SIDE);
        assert_eq!(answers(&mut m), [0x08, 0, 0, 0x1e]);
    }

    #[test]
    fn in_wrap_mode_everything_but_the_way_out_comes_back() {
        let mut m = Mouse::default();
        assert_eq!(write(&mut m, &[0xee, 0xf2, 0x55, 0xec, 0xf2]), [0xfa, 0xf2, 0x55, 0xfa, 0xfa, 0x00]);
    }
}
