//! A PS/2 keyboard: commands, scan code sets 1 to 3, and a queue of bytes to the controller (IBM PS/2 Hardware Interface
//! Technical Reference, "Keyboards").
//!
//! The keyboard speaks set 2 unless told otherwise; the controller translates that to set 1.

use std::collections::VecDeque;

/// Bytes of keystrokes that wait at most; further ones are lost, and the queue ends with an overrun byte.
const DEPTH: usize = 16;
/// Answers that wait at most, beyond keystrokes.
const ANSWERS: usize = 8;

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const SELF_TEST_PASSED: u8 = 0xaa;
const ECHO: u8 = 0xee;
/// Identifies a keyboard with 101 or more keys.
const ID: [u8; 2] = [0xab, 0x83];
/// Too many keys at once: sets 2 and 3, and set 1.
const OVERRUN: u8 = 0x00;
const OVERRUN_SET_1: u8 = 0xff;

/// What a key is, by its code in set 2 and, for keys that have one, the prefix 0xe0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Make code in set 2.
    pub code: u8,
    /// Whether 0xe0 precedes it.
    pub extended: bool,
}

/// State of the keyboard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keyboard {
    pub(crate) answers: VecDeque<u8>,
    pub(crate) keys: VecDeque<u8>,
    /// Command whose parameter is awaited.
    pub(crate) command: Option<u8>,
    /// Last byte that was sent, for a resend.
    pub(crate) last: u8,
    pub(crate) set: u8,
    pub(crate) scanning: bool,
    /// Scroll lock, num lock and caps lock in the low bits.
    pub(crate) leds: u8,
    pub(crate) typematic: u8,
}

impl Default for Keyboard {
    fn default() -> Self {
        Self {
            answers: VecDeque::new(),
            keys: VecDeque::new(),
            command: None,
            last: 0,
            set: 2,
            scanning: true,
            leds: 0,
            // 10.9 characters a second, after half a second.
            typematic: 0x2b,
        }
    }
}

impl Keyboard {
    /// Takes the next byte for the controller.
    pub fn pop(&mut self) -> Option<u8> {
        let byte = self.answers.pop_front().or_else(|| self.keys.pop_front())?;
        self.last = byte;
        Some(byte)
    }
    /// Whether a byte waits.
    pub fn has_data(&self) -> bool {
        !(self.answers.is_empty() && self.keys.is_empty())
    }

    fn answer(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            // A guest that asks on and on without reading loses the oldest answers.
            if self.answers.len() >= ANSWERS {
                self.answers.pop_front();
            }
            self.answers.push_back(byte);
        }
    }

    fn set_defaults(&mut self) {
        let fresh = Self::default();
        (self.set, self.typematic) = (fresh.set, fresh.typematic);
        self.keys.clear();
    }

    /// The controller sends a byte.
    pub fn write(&mut self, value: u8) {
        match self.command.take() {
            // Commands have the high bit set: one of them instead of a parameter ends the wait.
            Some(command) if value < 0x80 => self.parameter(command, value),
            _ => self.command(value),
        }
    }

    fn parameter(&mut self, command: u8, value: u8) {
        match command {
            0xed => self.leds = value & 7,
            0xf3 => self.typematic = value & 0x7f,
            0xf0 => match value {
                0 => {
                    self.answer(&[ACK, self.set]);
                    return;
                }
                1..=3 => {
                    self.set = value;
                    self.keys.clear();
                }
                _ => return self.answer(&[RESEND]),
            },
            // 0xfb to 0xfd name keys whose break or repeat is to be off, until a command comes. All keys keep theirs.
            _ => self.command = Some(command),
        }
        self.answer(&[ACK]);
    }

    fn command(&mut self, value: u8) {
        match value {
            0xed | 0xf0 | 0xf3 | 0xfb..=0xfd => {
                self.command = Some(value);
                self.answer(&[ACK]);
            }
            0xee => self.answer(&[ECHO]),
            0xf2 => self.answer(&[ACK, ID[0], ID[1]]),
            0xf4 => {
                self.keys.clear();
                self.scanning = true;
                self.answer(&[ACK]);
            }
            0xf5 => {
                self.set_defaults();
                self.scanning = false;
                self.answer(&[ACK]);
            }
            0xf6 => {
                self.set_defaults();
                self.scanning = true;
                self.answer(&[ACK]);
            }
            // Key types of set 3 for all keys at once: accepted, all keys keep theirs.
            0xf7..=0xfa => self.answer(&[ACK]),
            0xfe => self.answer(&[self.last]),
            0xff => {
                *self = Self::default();
                self.answer(&[ACK, SELF_TEST_PASSED]);
            }
            _ => self.answer(&[RESEND]),
        }
    }

    /// A key goes down or up. This is the input side: whoever has a user attached calls it.
    pub fn key(&mut self, key: Key, down: bool) {
        if !self.scanning {
            return;
        }
        let mut bytes = Vec::with_capacity(3);
        match self.set {
            1 => {
                let code = crate::translation::to_set_1(key.code);
                bytes.extend(key.extended.then_some(0xe0));
                bytes.push(if down { code } else { code | 0x80 });
            }
            2 => {
                bytes.extend(key.extended.then_some(0xe0));
                bytes.extend((!down).then_some(0xf0));
                bytes.push(key.code);
            }
            // Set 3 has no prefixes. Its codes are those of set 2 for the main block; others are not offered.
            _ => {
                bytes.extend((!down).then_some(0xf0));
                bytes.push(key.code);
            }
        }
        if self.keys.len() + bytes.len() < DEPTH {
            self.keys.extend(bytes);
        } else if self.keys.len() < DEPTH {
            self.keys.resize(DEPTH, if self.set == 1 { OVERRUN_SET_1 } else { OVERRUN });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(keyboard: &mut Keyboard) -> Vec<u8> {
        std::iter::from_fn(|| keyboard.pop()).collect()
    }

    #[test]
    fn a_reset_is_acknowledged_and_passes_its_self_test() {
        let mut k = Keyboard::default();
        k.write(0xff);
        assert_eq!(answers(&mut k), [0xfa, 0xaa]);
    }

    #[test]
    fn the_scan_code_set_can_be_changed_and_asked_for() {
        let mut k = Keyboard::default();
        [0xf0, 0x00, 0xf0, 0x01, 0xf0, 0x00, 0xf0, 0x04].into_iter().for_each(|b| k.write(b));
        assert_eq!(answers(&mut k).len(), 8, "the oldest answers are lost");
        [0xf0, 0x00].into_iter().for_each(|b| k.write(b));
        assert_eq!(answers(&mut k), [0xfa, 0xfa, 0x01]);
    }

    #[test]
    fn leds_and_typematic_rate_take_a_parameter() {
        let mut k = Keyboard::default();
        [0xed, 0x07, 0xf3, 0x20].into_iter().for_each(|b| k.write(b));
        assert_eq!((answers(&mut k), k.leds, k.typematic), (vec![0xfa; 4], 7, 0x20));
        // A command in place of the parameter is obeyed.
        [0xed, 0xf2].into_iter().for_each(|b| k.write(b));
        assert_eq!((answers(&mut k), k.leds), (vec![0xfa, 0xfa, 0xab, 0x83], 7));
    }

    #[test]
    fn echo_resend_and_unknown_commands_are_answered() {
        let mut k = Keyboard::default();
        k.write(0xee);
        assert_eq!(answers(&mut k), [0xee]);
        k.write(0xfe);
        assert_eq!(answers(&mut k), [0xee]);
        k.write(0x12);
        assert_eq!(answers(&mut k), [0xfe]);
    }

    #[test]
    fn keys_send_make_and_break_codes_of_the_set() {
        let (a, up) = (Key { code: 0x1c, extended: false }, Key { code: 0x75, extended: true });
        for (set, expected) in
            [(1, vec![0x1e, 0x9e, 0xe0, 0x48, 0xe0, 0xc8]), (2, vec![0x1c, 0xf0, 0x1c, 0xe0, 0x75, 0xe0, 0xf0, 0x75])]
        {
            let mut k = Keyboard { set, ..Keyboard::default() };
            [(a, true), (a, false), (up, true), (up, false)].into_iter().for_each(|(key, down)| k.key(key, down));
            assert_eq!(answers(&mut k), expected);
        }
    }

    #[test]
    fn too_many_keystrokes_end_in_an_overrun_and_a_disabled_keyboard_sends_none() {
        let key = Key { code: 0x1c, extended: false };
        let mut k = Keyboard::default();
        for _ in 0..40 {
            k.key(key, true);
        }
        let sent = answers(&mut k);
        assert_eq!((sent.len(), sent[14], sent[15]), (16, 0x1c, 0x00));
        k.write(0xf5);
        k.key(key, true);
        assert_eq!(answers(&mut k), [0xfa]);
    }
}
