//! The multiplexer's escape character, and what may follow it.

/// Ctrl-A.
const ESCAPE: u8 = 1;

/// What Ctrl-A h prints.
pub(crate) const HELP: &str = "\r\n\
    C-a h    this help\r\n\
    C-a c    go on to the next of console and monitors\r\n\
    C-a x    quit\r\n\
    C-a b    send a break\r\n\
    C-a C-a  send C-a\r\n";

/// Reads input for escapes.
#[derive(Debug, Default)]
pub(crate) struct Escapes {
    pending: bool,
}

/// What a byte of input means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    /// It is for the frontend in focus.
    Send(u8),
    /// The next frontend gets the focus.
    Next,
    /// The program ends.
    Quit,
    /// Help is printed.
    Help,
    /// The frontend in focus gets a break.
    Break,
    /// It starts an escape, or ends one that does not exist.
    Nothing,
}

impl Escapes {
    pub(crate) fn key(&mut self, byte: u8) -> Key {
        if !std::mem::take(&mut self.pending) {
            self.pending = byte == ESCAPE;
            return if self.pending { Key::Nothing } else { Key::Send(byte) };
        }
        match byte {
            ESCAPE => Key::Send(ESCAPE),
            b'c' => Key::Next,
            b'x' => Key::Quit,
            b'h' | b'?' => Key::Help,
            b'b' => Key::Break,
            _ => Key::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_read_also_when_they_come_one_byte_at_a_time() {
        let mut escapes = Escapes::default();
        let keys: Vec<_> = b"a\x01\x01\x01cb\x01zx".iter().map(|&b| escapes.key(b)).collect();
        use Key::*;
        assert_eq!(keys, [Send(b'a'), Nothing, Send(1), Nothing, Next, Send(b'b'), Nothing, Nothing, Send(b'x')]);
    }
}
