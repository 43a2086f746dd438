//! Sizes: parsed from `4096`, `512M`, `1.5G`, `0x1000`; printed as `4 KiB`.

use std::fmt;
use std::str::FromStr;

/// Suffixes, by the power of two they stand for, the greatest first.
const UNITS: [(char, u32); 6] = [('E', 60), ('P', 50), ('T', 40), ('G', 30), ('M', 20), ('K', 10)];

/// Why a text is no size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// No digits, a sign, or letters that are no unit.
    #[error("it is a number and one of B, K, M, G, T, P, E")]
    Syntax,
    /// Part of a byte.
    #[error("a fraction needs a unit of K or more")]
    PartOfAByte,
    /// More than 2^64 - 1 bytes.
    #[error("it is at most 16 EiB - 1")]
    TooLarge,
}

/// A number of bytes that prints for humans: two decimals at most, in the largest unit that leaves a whole part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((unit, shift)) = UNITS.into_iter().find(|&(_, shift)| self.0 >> shift != 0) else {
            return write!(f, "{} B", self.0);
        };
        let hundredths = (u128::from(self.0) * 100) >> shift;
        let (whole, rest) = (hundredths / 100, hundredths % 100);
        match (rest, rest % 10) {
            (0, _) => write!(f, "{whole} {unit}iB"),
            (_, 0) => write!(f, "{whole}.{} {unit}iB", rest / 10),
            _ => write!(f, "{whole}.{rest:02} {unit}iB"),
        }
    }
}

impl FromStr for Size {
    type Err = SizeError;
    fn from_str(text: &str) -> Result<Self, SizeError> {
        parse_size(text, 1).map(Size)
    }
}

/// Bytes of a size. A number without a unit counts in `default_unit` bytes (1, or 1 MiB for `-m`).
///
/// Units are B, K, M, G, T, P, E in either case, powers of 1024, also written `KiB`; fractions are cut to whole bytes.
pub fn parse_size(text: &str, default_unit: u64) -> Result<u64, SizeError> {
    let text = text.trim();
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return parse_hex(hex)?.checked_mul(default_unit).ok_or(SizeError::TooLarge);
    }
    let number_len = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(number_len);
    let unit = parse_unit(suffix.trim_start(), default_unit)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') || number.ends_with('.') {
        return Err(SizeError::Syntax);
    }
    // All characters are digits: what cannot be parsed is too long.
    let whole: u64 = whole.parse().map_err(|_| SizeError::TooLarge)?;
    let part = fraction_of(fraction, unit)?;
    whole.checked_mul(unit).and_then(|bytes| bytes.checked_add(part)).ok_or(SizeError::TooLarge)
}

fn parse_hex(digits: &str) -> Result<u64, SizeError> {
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(SizeError::Syntax);
    }
    u64::from_str_radix(digits, 16).map_err(|_| SizeError::TooLarge)
}

fn parse_unit(suffix: &str, default_unit: u64) -> Result<u64, SizeError> {
    let mut letters = suffix.chars();
    let Some(first) = letters.next().map(|c| c.to_ascii_uppercase()) else { return Ok(default_unit) };
    let rest = letters.as_str();
    if first == 'B' && rest.is_empty() {
        return Ok(1);
    }
    let known = UNITS.iter().find(|&&(unit, _)| unit == first);
    match known {
        Some(&(_, shift)) if rest.is_empty() || rest == "iB" => Ok(1 << shift),
        _ => Err(SizeError::Syntax),
    }
}

/// `unit * 0.digits`, cut to whole bytes.
fn fraction_of(digits: &str, unit: u64) -> Result<u64, SizeError> {
    // 18 digits of a unit of 2^60 tell bytes apart, and fit into 128 bits with it.
    let digits = digits.get(..18).unwrap_or(digits).trim_end_matches('0');
    if digits.is_empty() {
        return Ok(0);
    }
    if unit == 1 {
        return Err(SizeError::PartOfAByte);
    }
    let numerator: u64 = digits.parse().map_err(|_| SizeError::Syntax)?;
    let scaled = u128::from(numerator) * u128::from(unit) / 10_u128.pow(digits.len() as u32);
    u64::try_from(scaled).map_err(|_| SizeError::TooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_parse_as_qemu_users_write_them() {
        let cases = [
            ("0", 0),
            ("4096", 4096),
            ("0x1000", 4096),
            ("512M", 512 << 20),
            ("4g", 4 << 30),
            ("1.5G", 1536 << 20),
            ("1.1k", 1126),
            ("10B", 10),
            ("4 GiB", 4 << 30),
            ("15.999E", 18_445_591_152_204_944_769),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_size(text, 1), Ok(bytes), "{text}");
        }
        assert_eq!(parse_size("128", 1 << 20), Ok(128 << 20));
    }

    #[test]
    fn texts_that_are_no_size_are_refused() {
        use SizeError::*;
        let cases = [
            ("", Syntax),
            ("G", Syntax),
            ("-1", Syntax),
            ("1.", Syntax),
            (".5G", Syntax),
            ("1.2.3G", Syntax),
            ("1X", Syntax),
            ("1GB", Syntax),
            ("1é", Syntax),
            ("0x", Syntax),
            ("0x1G", Syntax),
            ("0x+1", Syntax),
            ("1.5", PartOfAByte),
            ("1.5B", PartOfAByte),
            ("16E", TooLarge),
            ("99999999999999999999", TooLarge),
            ("0x10000000000000000", TooLarge),
        ];
        for (text, error) in cases {
            assert_eq!(parse_size(text, 1), Err(error), "{text}");
        }
    }

    #[test]
    fn sizes_print_in_the_largest_unit_that_fits() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (4096, "4 KiB"),
            (1536 << 20, "1.5 GiB"),
            (u64::MAX, "15.99 EiB"),
            (1034, "1 KiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_to_nearly_the_same(bytes: u64) {
            let again = parse_size(&Size(bytes).to_string(), 1).unwrap();
            prop_assert!(again <= bytes && bytes - again <= bytes / 99, "{bytes} {again}");
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in "\\PC*", unit: u64) {
            let _ = parse_size(&text, unit);
        }
    }
}
