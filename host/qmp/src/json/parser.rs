//! Tokens to values, one message at a time.
//!
//! A message ends with the token that closes its last bracket, or with its only token. Grammar is looked at when the
//! message is complete, so one wrong message gives one error. Brackets are only counted, not matched, until then.

use serde_json::{Map, Number, Value};

use super::lexer::{Lexeme, Lexer, TokenKind};
use super::string;

/// How much of a stray token an error text shows.
const SHOWN_BYTES: usize = 256;

/// Input that is no JSON. The texts are those that QMP clients know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Bytes that are no token.
    #[error("JSON parse error, stray '{0}'")]
    Stray(String),
    /// A word other than `true`, `false` and `null`.
    #[error("JSON parse error, invalid keyword '{0}'")]
    Keyword(String),
    /// A token that ends or separates where a value should begin.
    #[error("JSON parse error, expecting value")]
    ExpectedValue,
    /// Two members without a comma.
    #[error("JSON parse error, expected separator in dict")]
    ObjectSeparator,
    /// Two elements without a comma.
    #[error("JSON parse error, expected separator in list")]
    ArraySeparator,
    /// A key without a colon.
    #[error("JSON parse error, missing : in object pair")]
    Colon,
    /// A key of another type.
    #[error("JSON parse error, key is not a string in object")]
    Key,
    /// Two members of one name.
    #[error("JSON parse error, duplicate key")]
    DuplicateKey,
    /// A backslash before a character that it cannot escape.
    #[error("JSON parse error, invalid escape sequence in string")]
    Escape,
    /// A lone surrogate, a noncharacter, or something other than four hexadecimal digits after `\u`.
    #[error("JSON parse error, {0} is not a valid Unicode character")]
    NotUnicode(String),
    /// Bytes of a string that are no UTF-8.
    #[error("JSON parse error, invalid UTF-8 sequence in string")]
    Utf8,
    /// A number beyond what a double can hold.
    #[error("JSON parse error, number out of range '{0}'")]
    Range(String),
    /// The input ended inside a value.
    #[error("JSON parse error, premature EOI")]
    PrematureEnd,
    /// More bytes than [`Limits::bytes`].
    #[error("JSON token size limit exceeded")]
    Size,
    /// More tokens than [`Limits::tokens`].
    #[error("JSON token count limit exceeded")]
    Count,
    /// More open brackets than [`Limits::nesting`].
    #[error("JSON nesting depth limit exceeded")]
    Nesting,
}

/// How large one message may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all tokens together.
    pub bytes: usize,
    /// Number of tokens.
    pub tokens: usize,
    /// Open brackets and braces.
    pub nesting: u32,
}

impl Default for Limits {
    /// 64 MiB, 2 Mi tokens, 1024 levels.
    fn default() -> Self {
        Self { bytes: 64 << 20, tokens: 2 << 20, nesting: 1024 }
    }
}

#[derive(Debug, Clone, Copy)]
struct Token {
    kind: TokenKind,
    start: usize,
    end: usize,
}

/// Cuts a stream of bytes into JSON values.
///
/// ```
/// use cardcage_qmp::json::Parser;
/// let mut parser = Parser::default();
/// let input = b"{'a': 1}[2";
/// let (used, value) = parser.feed(input);
/// assert_eq!(value.unwrap().unwrap(), serde_json::json!({"a": 1}));
/// assert_eq!(parser.feed(&input[used..]), (2, None));
/// ```
#[derive(Debug, Default)]
pub struct Parser {
    limits: Limits,
    lexer: Lexer,
    /// The bytes of all tokens of the message in work, one after another.
    text: Vec<u8>,
    tokens: Vec<Token>,
    curly: i64,
    square: i64,
}

impl Parser {
    /// A parser with limits of its own.
    pub fn with_limits(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Eats input up to the end of the next message. Returns how many bytes were eaten, and the value or what was wrong
    /// with it. Without a message everything was eaten and more input is needed.
    pub fn feed(&mut self, input: &[u8]) -> (usize, Option<Result<Value, JsonError>>) {
        let mut at = 0;
        loop {
            let rest = input.get(at..).unwrap_or_default();
            let (used, lexeme) = self.lexer.feed(rest, &mut self.text, self.limits.bytes);
            at += used;
            let Some(lexeme) = lexeme else { return (at, None) };
            if let Some(message) = self.take(lexeme) {
                return (at, Some(message));
            }
        }
    }

    /// Ends the input: gives a last message if there is an unfinished one.
    pub fn finish(&mut self) -> Option<Result<Value, JsonError>> {
        if let Some(message) = self.lexer.finish().and_then(|lexeme| self.take(lexeme)) {
            return Some(message);
        }
        (!self.tokens.is_empty()).then(|| self.end(Ok(())))
    }

    /// Whether no message is in work.
    pub fn is_between_messages(&self) -> bool {
        self.tokens.is_empty() && self.lexer.is_between_tokens()
    }

    fn take(&mut self, lexeme: Lexeme) -> Option<Result<Value, JsonError>> {
        let start = self.tokens.last().map_or(0, |t| t.end);
        let kind = match lexeme {
            Lexeme::Token(kind) => kind,
            Lexeme::TooLong => return Some(self.end(Err(JsonError::Size))),
            Lexeme::Stray => {
                let stray = shown(self.text.get(start..).unwrap_or_default());
                return Some(self.end(Err(JsonError::Stray(stray))));
            }
        };
        match kind {
            TokenKind::LeftCurly => self.curly += 1,
            TokenKind::RightCurly => self.curly -= 1,
            TokenKind::LeftSquare => self.square += 1,
            TokenKind::RightSquare => self.square -= 1,
            _ => {}
        }
        if self.text.len() >= self.limits.bytes {
            return Some(self.end(Err(JsonError::Size)));
        }
        if self.tokens.len() >= self.limits.tokens {
            return Some(self.end(Err(JsonError::Count)));
        }
        if self.curly + self.square > i64::from(self.limits.nesting) {
            return Some(self.end(Err(JsonError::Nesting)));
        }
        self.tokens.push(Token { kind, start, end: self.text.len() });
        let open = self.curly >= 0 && self.square >= 0 && (self.curly > 0 || self.square > 0);
        (!open).then(|| self.end(Ok(())))
    }

    /// Ends the message in work and makes its value, unless it has failed already.
    fn end(&mut self, outcome: Result<(), JsonError>) -> Result<Value, JsonError> {
        let text = std::mem::take(&mut self.text);
        let tokens = std::mem::take(&mut self.tokens);
        (self.curly, self.square) = (0, 0);
        outcome?;
        Grammar { text: &text, tokens: tokens.iter() }.value()
    }
}

/// Parses all of `input` as one value, for JSON that stands somewhere else than on a QMP connection.
pub fn parse(input: &[u8]) -> Result<Value, JsonError> {
    let mut parser = Parser::default();
    let (used, message) = parser.feed(input);
    let value = message.or_else(|| parser.finish()).unwrap_or(Err(JsonError::PrematureEnd))?;
    let mut rest = input.get(used..).unwrap_or_default().iter();
    match rest.find(|b| !matches!(b, b' ' | b'\t' | b'\r' | b'\n')) {
        None => Ok(value),
        Some(byte) => Err(JsonError::Stray(shown(&[*byte]))),
    }
}

fn shown(bytes: &[u8]) -> String {
    match bytes.get(..SHOWN_BYTES) {
        Some(head) if bytes.len() > SHOWN_BYTES => format!("{}...", string::shown(head)),
        _ => string::shown(bytes),
    }
}

/// Recursive descent over the tokens of one message. As deep as the nesting limit at most: brackets that match are
/// never deeper than brackets that are counted.
struct Grammar<'a> {
    text: &'a [u8],
    tokens: std::slice::Iter<'a, Token>,
}

impl<'a> Grammar<'a> {
    fn next(&mut self) -> Result<Token, JsonError> {
        self.tokens.next().copied().ok_or(JsonError::PrematureEnd)
    }

    fn text(&self, token: Token) -> &'a [u8] {
        self.text.get(token.start..token.end).unwrap_or_default()
    }

    fn value(&mut self) -> Result<Value, JsonError> {
        let token = self.next()?;
        self.value_from(token)
    }

    fn value_from(&mut self, token: Token) -> Result<Value, JsonError> {
        match token.kind {
            TokenKind::LeftCurly => self.object(),
            TokenKind::LeftSquare => self.array(),
            TokenKind::String => {
                let quoted = self.text(token);
                string::decode(quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default()).map(Value::String)
            }
            TokenKind::Integer | TokenKind::Float => number(&String::from_utf8_lossy(self.text(token))),
            TokenKind::Keyword => match self.text(token) {
                b"true" => Ok(Value::Bool(true)),
                b"false" => Ok(Value::Bool(false)),
                b"null" => Ok(Value::Null),
                other => Err(JsonError::Keyword(shown(other))),
            },
            _ => Err(JsonError::ExpectedValue),
        }
    }

    fn object(&mut self) -> Result<Value, JsonError> {
        let mut members = Map::new();
        let mut token = self.next()?;
        if token.kind == TokenKind::RightCurly {
            return Ok(Value::Object(members));
        }
        loop {
            let Value::String(key) = self.value_from(token)? else { return Err(JsonError::Key) };
            if self.next()?.kind != TokenKind::Colon {
                return Err(JsonError::Colon);
            }
            let value = self.value()?;
            if members.contains_key(&key) {
                return Err(JsonError::DuplicateKey);
            }
            members.insert(key, value);
            match self.next()?.kind {
                TokenKind::RightCurly => return Ok(Value::Object(members)),
                TokenKind::Comma => token = self.next()?,
                _ => return Err(JsonError::ObjectSeparator),
            }
        }
    }

    fn array(&mut self) -> Result<Value, JsonError> {
        let mut elements = Vec::new();
        let mut token = self.next()?;
        if token.kind == TokenKind::RightSquare {
            return Ok(Value::Array(elements));
        }
        loop {
            elements.push(self.value_from(token)?);
            match self.next()?.kind {
                TokenKind::RightSquare => return Ok(Value::Array(elements)),
                TokenKind::Comma => token = self.next()?,
                _ => return Err(JsonError::ArraySeparator),
            }
        }
    }
}

fn number(text: &str) -> Result<Value, JsonError> {
    if let Ok(value) = text.parse::<i64>() {
        return Ok(value.into());
    }
    if let Ok(value) = text.parse::<u64>() {
        return Ok(value.into());
    }
    let value = text.parse::<f64>().ok().and_then(Number::from_f64);
    value.map(Value::Number).ok_or_else(|| JsonError::Range(shown(text.as_bytes())))
}
