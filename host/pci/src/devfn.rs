//! Where a function sits on its bus.

use std::fmt;

/// Slot and function number on a bus: `slot << 3 | function`. Prints as `04.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Devfn(u8);

impl Devfn {
    /// Slots of a bus.
    pub const SLOTS: u8 = 32;
    /// Functions of a slot.
    pub const FUNCTIONS: u8 = 8;

    /// `None` if the slot is above 31 or the function above 7.
    pub const fn new(slot: u8, function: u8) -> Option<Self> {
        if slot < Self::SLOTS && function < Self::FUNCTIONS { Some(Self(slot << 3 | function)) } else { None }
    }

    /// From the combined number, as bits 8 to 15 of a configuration address hold it.
    pub const fn from_byte(byte: u8) -> Self {
        Self(byte)
    }

    /// The combined number.
    pub const fn byte(self) -> u8 {
        self.0
    }

    /// Slot, 0 to 31.
    pub const fn slot(self) -> u8 {
        self.0 >> 3
    }

    /// Function, 0 to 7.
    pub const fn function(self) -> u8 {
        self.0 & 7
    }
}

impl fmt::Display for Devfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}.{:x}", self.slot(), self.function())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_and_function_come_back() {
        let at = Devfn::new(31, 7).unwrap();
        assert_eq!((at.slot(), at.function(), at.byte()), (31, 7, 0xff));
        assert_eq!(Devfn::new(4, 1).unwrap().to_string(), "04.1");
        assert_eq!((Devfn::new(32, 0), Devfn::new(0, 8)), (None, None));
    }
}
