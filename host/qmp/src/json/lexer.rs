//! Bytes to tokens: RFC 8259 plus single-quoted strings, with the recovery rules that QMP clients rely on.
//!
//! The lexer is fed input in pieces of any size. After a lexical error it drops input up to a structural character, an
//! ASCII control character other than TAB, or one of the bytes 0xFE and 0xFF, none of which can stand inside a string:
//! a client that sends one of those gets the lexer back into a known state.

/// What a complete token is. Its bytes are in the text that the lexer appended to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenKind {
    LeftCurly,
    RightCurly,
    LeftSquare,
    RightSquare,
    Colon,
    Comma,
    Integer,
    Float,
    Keyword,
    String,
}

/// What [`Lexer::feed`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lexeme {
    /// A complete token: the bytes appended to the text since the last lexeme.
    Token(TokenKind),
    /// Bytes that begin no token, or a token broken off by a byte that cannot continue it (that byte included).
    Stray,
    /// The token in work has outgrown the room that the caller gave.
    TooLong,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Start,
    Recovery,
    Text(u8),
    Escape(u8),
    Sign,
    Zero,
    Digits,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
    Keyword,
}

/// What one byte does to the state.
enum Step {
    /// The byte belongs to the token in work.
    Take(State),
    /// The byte belongs to no token.
    Drop,
    /// The byte ends the token in work and belongs to it.
    End(TokenKind),
    /// The token ended before this byte, which is looked at again.
    EndBefore(TokenKind),
    /// Recovery is over; the byte is looked at again.
    Resume,
    /// The byte fits nothing.
    Stray,
}

/// The lexer's state between two pieces of input.
#[derive(Debug, Default)]
pub(super) struct Lexer {
    state: State,
}

impl Lexer {
    /// Whether no token is in work (input that is being dropped counts as none).
    pub(super) fn is_between_tokens(&self) -> bool {
        matches!(self.state, State::Start | State::Recovery)
    }

    /// Eats input up to the end of the next lexeme, appending the token's bytes to `text`, which may grow to `limit`.
    /// Returns how many bytes were eaten. Without a lexeme all of them were.
    pub(super) fn feed(&mut self, input: &[u8], text: &mut Vec<u8>, limit: usize) -> (usize, Option<Lexeme>) {
        let mut at = 0;
        while let Some(&byte) = input.get(at) {
            if text.len() >= limit && !self.is_between_tokens() {
                self.state = State::Recovery;
                return (at, Some(Lexeme::TooLong));
            }
            if let State::Text(quote) = self.state {
                let run = plain_run(input.get(at..).unwrap_or_default(), quote).min(limit - text.len());
                if run > 0 {
                    text.extend_from_slice(input.get(at..at + run).unwrap_or_default());
                    at += run;
                    continue;
                }
            }
            let (eaten, lexeme) = self.step(byte, text);
            at += usize::from(eaten);
            if lexeme.is_some() {
                return (at, lexeme);
            }
        }
        (at, None)
    }

    /// Ends the input: completes a number or keyword, and gives up a string that was not closed.
    pub(super) fn finish(&mut self) -> Option<Lexeme> {
        match std::mem::take(&mut self.state) {
            State::Start | State::Recovery => None,
            State::Zero | State::Digits => Some(Lexeme::Token(TokenKind::Integer)),
            State::Fraction | State::ExponentDigits => Some(Lexeme::Token(TokenKind::Float)),
            State::Keyword => Some(Lexeme::Token(TokenKind::Keyword)),
            _ => Some(Lexeme::Stray),
        }
    }

    fn step(&mut self, byte: u8, text: &mut Vec<u8>) -> (bool, Option<Lexeme>) {
        match next(self.state, byte) {
            Step::Take(state) => {
                text.push(byte);
                self.state = state;
                (true, None)
            }
            Step::Drop => (true, None),
            Step::End(kind) => {
                text.push(byte);
                self.state = State::Start;
                (true, Some(Lexeme::Token(kind)))
            }
            Step::EndBefore(kind) => {
                self.state = State::Start;
                (false, Some(Lexeme::Token(kind)))
            }
            Step::Resume => {
                self.state = State::Start;
                (false, None)
            }
            Step::Stray => {
                text.push(byte);
                self.state = State::Recovery;
                (true, Some(Lexeme::Stray))
            }
        }
    }
}

/// How many bytes at the start of `input` are inside a string for certain.
fn plain_run(input: &[u8], quote: u8) -> usize {
    let inside = |b: &u8| matches!(b, 0x20..=0xfd) && *b != quote && *b != b'\\';
    input.iter().position(|b| !inside(b)).unwrap_or(input.len())
}

fn next(state: State, byte: u8) -> Step {
    use Step::{EndBefore, Stray, Take};
    match (state, byte) {
        (State::Start, _) => start(byte),
        (State::Recovery, b'\t') => Step::Drop,
        (State::Recovery, 0x00..=0x1f | 0xfe | 0xff | b'[' | b']' | b'{' | b'}' | b':' | b',') => Step::Resume,
        (State::Recovery, _) => Step::Drop,
        (State::Text(quote), b) if b == quote => Step::End(TokenKind::String),
        (State::Text(quote), b'\\') => Take(State::Escape(quote)),
        (State::Text(quote) | State::Escape(quote), 0x20..=0xfd) => Take(State::Text(quote)),
        (State::Sign, b'0') => Take(State::Zero),
        (State::Sign, b'1'..=b'9') => Take(State::Digits),
        (State::Zero, b'0'..=b'9') => Stray,
        (State::Digits, b'0'..=b'9') => Take(State::Digits),
        (State::Zero | State::Digits, b'.') => Take(State::Point),
        (State::Zero | State::Digits | State::Fraction, b'e' | b'E') => Take(State::Exponent),
        (State::Zero | State::Digits, _) => EndBefore(TokenKind::Integer),
        (State::Point | State::Fraction, b'0'..=b'9') => Take(State::Fraction),
        (State::Exponent, b'+' | b'-') => Take(State::ExponentSign),
        (State::Exponent | State::ExponentSign | State::ExponentDigits, b'0'..=b'9') => Take(State::ExponentDigits),
        (State::Fraction | State::ExponentDigits, _) => EndBefore(TokenKind::Float),
        (State::Keyword, b'a'..=b'z') => Take(State::Keyword),
        (State::Keyword, _) => EndBefore(TokenKind::Keyword),
        (State::Text(_) | State::Escape(_) | State::Sign | State::Point | State::Exponent | State::ExponentSign, _) => {
            Stray
        }
    }
}

fn start(byte: u8) -> Step {
    match byte {
        b' ' | b'\t' | b'\r' | b'\n' => Step::Drop,
        b'{' => Step::End(TokenKind::LeftCurly),
        b'}' => Step::End(TokenKind::RightCurly),
        b'[' => Step::End(TokenKind::LeftSquare),
        b']' => Step::End(TokenKind::RightSquare),
        b':' => Step::End(TokenKind::Colon),
        b',' => Step::End(TokenKind::Comma),
        b'"' | b'\'' => Step::Take(State::Text(byte)),
        b'-' => Step::Take(State::Sign),
        b'0' => Step::Take(State::Zero),
        b'1'..=b'9' => Step::Take(State::Digits),
        b'a'..=b'z' => Step::Take(State::Keyword),
        _ => Step::Stray,
    }
}
