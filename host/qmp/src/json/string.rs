//! String tokens to text: escapes, surrogate pairs, modified UTF-8.

use super::parser::JsonError;

/// Decodes the bytes between the quotes of a string token.
pub(super) fn decode(inner: &[u8]) -> Result<String, JsonError> {
    let mut out = String::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(&byte) = rest.first() {
        let (c, used) = match byte {
            b'\\' => escape(rest)?,
            0..0x80 => (char::from(byte), 1),
            _ => utf8(rest).ok_or(JsonError::Utf8)?,
        };
        out.push(c);
        rest = rest.get(used..).unwrap_or_default();
    }
    Ok(out)
}

fn escape(rest: &[u8]) -> Result<(char, usize), JsonError> {
    let c = match rest.get(1) {
        Some(c @ (b'"' | b'\'' | b'\\' | b'/')) => char::from(*c),
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'n') => '\n',
        Some(b'r') => '\r',
        Some(b't') => '\t',
        Some(b'u') => return unicode_escape(rest),
        _ => return Err(JsonError::Escape),
    };
    Ok((c, 2))
}

fn unicode_escape(rest: &[u8]) -> Result<(char, usize), JsonError> {
    let lead = hex4(rest.get(2..6));
    let trail = match (lead, rest.get(6..8)) {
        (Some(0xd800..=0xdbff), Some(b"\\u")) => hex4(rest.get(8..12)).filter(|t| (0xdc00..=0xdfff).contains(t)),
        _ => None,
    };
    let (code, used) = match (lead, trail) {
        (Some(lead), Some(trail)) => (Some(0x10000 + ((lead - 0xd800) << 10) + (trail - 0xdc00)), 12),
        _ => (lead, 6),
    };
    match code.and_then(char::from_u32).filter(|c| !is_noncharacter(*c)) {
        Some(c) => Ok((c, used)),
        None => Err(JsonError::NotUnicode(shown(rest.get(..used).unwrap_or(rest)))),
    }
}

fn hex4(digits: Option<&[u8]>) -> Option<u32> {
    digits?.iter().try_fold(0, |value, d| Some(value << 4 | char::from(*d).to_digit(16)?))
}

/// The character at the start of `rest`, which is not ASCII, and its length.
fn utf8(rest: &[u8]) -> Option<(char, usize)> {
    let len = match rest.first()? {
        0xc0 if rest.get(1) == Some(&0x80) => return Some(('\0', 2)),
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => return None,
    };
    let c = std::str::from_utf8(rest.get(..len)?).ok()?.chars().next()?;
    (!is_noncharacter(c)).then_some((c, len))
}

/// Any bytes as text to show: what is not valid becomes U+FFFD, one for each sequence that was begun.
pub(super) fn shown(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(&byte) = rest.first() {
        let (c, used) = match byte {
            0..0x80 => (char::from(byte), 1),
            _ => utf8(rest).unwrap_or_else(|| (char::REPLACEMENT_CHARACTER, broken_sequence(rest))),
        };
        out.push(c);
        rest = rest.get(used..).unwrap_or_default();
    }
    out
}

/// The length of a sequence that is not valid: its first byte and as many continuations as that announces.
fn broken_sequence(rest: &[u8]) -> usize {
    let announced = rest.first().map_or(0, |byte| byte.leading_ones() as usize).saturating_sub(1);
    let continuations = rest.iter().skip(1).take(announced).take_while(|byte| **byte & 0xc0 == 0x80);
    1 + continuations.count()
}

/// Code points that Unicode promises never to assign.
fn is_noncharacter(c: char) -> bool {
    let code = u32::from(c);
    (0xfdd0..=0xfdef).contains(&code) || code & 0xfffe == 0xfffe
}
