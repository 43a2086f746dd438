//! One request line to one reply line.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::{IrqLines, QtestTarget};

/// Bytes that one request may read or fill.
const MAX_SIZE: u64 = 256 << 20;
/// Bytes that a fill hands to the target at a time.
const FILL_BLOCK: u64 = 64 << 10;
/// Encodes with padding; decodes with or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A reply other than OK: the whole line.
struct Refused(String);

type Reply = Result<String, Refused>;

fn fail<T>(text: impl std::fmt::Display) -> Result<T, Refused> {
    Err(Refused(format!("FAIL {text}")))
}

/// What the protocol remembers between two requests.
#[derive(Default)]
pub(crate) struct Interpreter {
    pub(crate) lines: IrqLines,
    /// The device whose lines are intercepted.
    intercepted: Option<String>,
}

impl Interpreter {
    /// Carries out one request and gives its reply, without the end of line.
    pub(crate) fn request(&mut self, target: &mut dyn QtestTarget, line: &[u8]) -> String {
        let line = String::from_utf8_lossy(line);
        let mut words = line.strip_suffix('\r').unwrap_or(&line).split(' ');
        let command = words.next().unwrap_or_default();
        let reply = self.command(target, command, &mut Words { command, words });
        match reply {
            Ok(value) if value.is_empty() => "OK".into(),
            Ok(value) => format!("OK {value}"),
            Err(Refused(reply)) => reply,
        }
    }

    fn command(&mut self, target: &mut dyn QtestTarget, command: &str, words: &mut Words<'_>) -> Reply {
        match command {
            "endianness" => Ok("little".into()),
            "inb" => port_in(target, words, 1),
            "inw" => port_in(target, words, 2),
            "inl" => port_in(target, words, 4),
            "outb" => port_out(target, words, 1),
            "outw" => port_out(target, words, 2),
            "outl" => port_out(target, words, 4),
            "readb" => read_one(target, words, 1),
            "readw" => read_one(target, words, 2),
            "readl" => read_one(target, words, 4),
            "readq" => read_one(target, words, 8),
            "writeb" => write_one(target, words, 1),
            "writew" => write_one(target, words, 2),
            "writel" => write_one(target, words, 4),
            "writeq" => write_one(target, words, 8),
            "read" => read_block(target, words).map(|data| format!("0x{}", hex(&data))),
            "b64read" => read_block(target, words).map(|data| BASE64.encode(data)),
            "write" => write_block(target, words),
            "b64write" => write_base64(target, words),
            "memset" => fill(target, words),
            "clock_step" => clock_step(target, words),
            "clock_set" => clock_set(target, words),
            "irq_intercept_in" => {
                let path = words.text("PATH")?;
                self.intercept(path, |lines| target.irq_intercept_in(path, lines))
            }
            "irq_intercept_out" => {
                let (path, name) = (words.text("PATH")?, words.optional());
                self.intercept(path, |lines| target.irq_intercept_out(path, name, lines))
            }
            "set_irq_in" => set_irq_in(target, words),
            "module_load" => done(target.module_load(words.text("PREFIX")?, words.text("LIBRARY")?)),
            _ => fail(format_args!("Unknown command '{command}'")),
        }
    }

    fn intercept(&mut self, path: &str, start: impl FnOnce(IrqLines) -> Result<(), String>) -> Reply {
        match &self.intercepted {
            Some(same) if same == path => Ok(String::new()),
            Some(_) => fail("IRQ intercept already enabled"),
            None => {
                start(self.lines.clone()).or_else(fail)?;
                self.intercepted = Some(path.into());
                Ok(String::new())
            }
        }
    }
}

fn done(outcome: Result<(), String>) -> Reply {
    outcome.map(|()| String::new()).or_else(fail)
}

fn port_in(target: &mut dyn QtestTarget, words: &mut Words<'_>, size: u8) -> Reply {
    let port = words.port()?;
    Ok(format!("0x{:04x}", target.port_in(port, size)))
}

fn port_out(target: &mut dyn QtestTarget, words: &mut Words<'_>, size: u8) -> Reply {
    let (port, value) = (words.port()?, words.number("VALUE")?);
    let mask = u32::MAX >> (32 - 8 * u32::from(size));
    // The access takes the low bytes of what the client sends.
    target.port_out(port, size, value as u32 & mask);
    Ok(String::new())
}

fn read_one(target: &mut dyn QtestTarget, words: &mut Words<'_>, size: usize) -> Reply {
    let addr = words.number("ADDR")?;
    let mut bytes = [0; 8];
    if let Some(data) = bytes.get_mut(..size) {
        target.read_memory(addr, data);
    }
    Ok(format!("0x{:016x}", u64::from_le_bytes(bytes)))
}

fn write_one(target: &mut dyn QtestTarget, words: &mut Words<'_>, size: usize) -> Reply {
    let (addr, value) = (words.number("ADDR")?, words.number("VALUE")?);
    target.write_memory(addr, value.to_le_bytes().get(..size).unwrap_or_default());
    Ok(String::new())
}

fn read_block(target: &mut dyn QtestTarget, words: &mut Words<'_>) -> Result<Vec<u8>, Refused> {
    let (addr, size) = (words.number("ADDR")?, words.size()?);
    if size == 0 {
        return fail("SIZE must not be 0");
    }
    let mut data = vec![0; size];
    target.read_memory(addr, &mut data);
    Ok(data)
}

/// Missing data is zero; excess data is left out.
fn write_block(target: &mut dyn QtestTarget, words: &mut Words<'_>) -> Reply {
    let (addr, size, text) = (words.number("ADDR")?, words.size()?, words.text("DATA")?);
    if size == 0 {
        return fail("SIZE must not be 0");
    }
    if text.len() < 3 {
        return Err(Refused("ERR invalid argument size".into()));
    }
    let digits = text.strip_prefix("0x").map_or_else(|| fail("DATA must begin with 0x"), Ok)?;
    let mut data = vec![0; size];
    for (byte, pair) in data.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        let digit = |d: &u8| char::from(*d).to_digit(16).and_then(|d| u8::try_from(d).ok());
        *byte = match pair {
            [high, low] => digit(high).zip(digit(low)).map(|(high, low)| high << 4 | low),
            _ => None,
        }
        .map_or_else(|| fail("DATA must be hexadecimal digits"), Ok)?;
    }
    target.write_memory(addr, &data);
    Ok(String::new())
}

fn write_base64(target: &mut dyn QtestTarget, words: &mut Words<'_>) -> Reply {
    let (addr, size, text) = (words.number("ADDR")?, words.size()?, words.text("DATA")?);
    if size == 0 {
        return fail("SIZE must not be 0");
    }
    let data = BASE64.decode(text).or_else(|e| fail(format_args!("DATA must be base64: {e}")))?;
    target.write_memory(addr, data.get(..size).unwrap_or(&data));
    Ok(String::new())
}

fn fill(target: &mut dyn QtestTarget, words: &mut Words<'_>) -> Reply {
    let (addr, size, value) = (words.number("ADDR")?, words.size()?, words.number("VALUE")?);
    let [value, ..] = value.to_le_bytes();
    let mut at = 0;
    let size = size as u64;
    while at < size {
        let len = (size - at).min(FILL_BLOCK);
        target.write_memory(addr.wrapping_add(at), &vec![value; len as usize]);
        at += len;
    }
    Ok(String::new())
}

fn clock_step(target: &mut dyn QtestTarget, words: &mut Words<'_>) -> Reply {
    let before = target.clock();
    let now = match words.optional_number("NS")? {
        Some(ns) => target.clock_step(ns).or_else(fail)?,
        None => match target.clock_step_to_next().or_else(fail)? {
            Some(now) => now,
            None => return fail("cannot advance clock to the next deadline because there is no pending deadline"),
        },
    };
    if now > before { Ok(now.to_string()) } else { fail(now) }
}

fn clock_set(target: &mut dyn QtestTarget, words: &mut Words<'_>) -> Reply {
    let ns = words.number("NS")?;
    let now = target.clock_set(ns).or_else(fail)?;
    if now == ns { Ok(now.to_string()) } else { fail(now) }
}

fn set_irq_in(target: &mut dyn QtestTarget, words: &mut Words<'_>) -> Reply {
    let (path, name) = (words.text("PATH")?, words.text("NAME")?);
    let (number, level) = (words.number("NUMBER")?, words.number("LEVEL")?);
    let name = Some(name).filter(|name| *name != "unnamed-gpio-in");
    let number = u32::try_from(number).or_else(|_| fail("NUMBER must fit 32 bits"))?;
    // A negative level came in as its two's complement.
    done(target.set_irq_in(path, name, number, level as i32))
}

fn hex(data: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(*DIGITS.get(usize::from(nibble)).unwrap_or(&b'?'));
    data.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// The words of a request after its first.
struct Words<'a> {
    command: &'a str,
    words: std::str::Split<'a, char>,
}

impl<'a> Words<'a> {
    fn optional(&mut self) -> Option<&'a str> {
        self.words.next().filter(|word| !word.is_empty())
    }

    fn text(&mut self, name: &str) -> Result<&'a str, Refused> {
        match self.optional() {
            Some(word) => Ok(word),
            None => fail(format_args!("{}: {name} is missing", self.command)),
        }
    }

    fn optional_number(&mut self, name: &str) -> Result<Option<u64>, Refused> {
        let Some(word) = self.optional() else { return Ok(None) };
        match number(word) {
            Some(value) => Ok(Some(value)),
            None => fail(format_args!("{}: {name} must be a number of 64 bits, not '{word}'", self.command)),
        }
    }

    fn number(&mut self, name: &str) -> Result<u64, Refused> {
        match self.optional_number(name)? {
            Some(value) => Ok(value),
            None => fail(format_args!("{}: {name} is missing", self.command)),
        }
    }

    fn port(&mut self) -> Result<u16, Refused> {
        let port = self.number("ADDR")?;
        u16::try_from(port).or_else(|_| fail(format_args!("{}: port {port:#x} is beyond 0xffff", self.command)))
    }

    fn size(&mut self) -> Result<usize, Refused> {
        let size = self.number("SIZE")?;
        match usize::try_from(size) {
            Ok(fitting) if size <= MAX_SIZE => Ok(fitting),
            _ => fail(format_args!("{}: SIZE {size:#x} is beyond {MAX_SIZE:#x}", self.command)),
        }
    }
}

/// As C's `strtoull` with base 0 reads it: `0x` hexadecimal, `0` octal, else decimal; a minus sign wraps around.
fn number(word: &str) -> Option<u64> {
    let (negative, digits) = word.strip_prefix('-').map_or((false, word), |digits| (true, digits));
    let value = match digits.as_bytes() {
        [b'0', b'x' | b'X', hexadecimal @ ..] if hexadecimal.first() != Some(&b'+') => {
            u64::from_str_radix(digits.get(2..)?, 16)
        }
        [b'0', octal, ..] if octal.is_ascii_digit() => u64::from_str_radix(digits, 8),
        [b'0'..=b'9', ..] => digits.parse(),
        _ => return None,
    }
    .ok()?;
    Some(if negative { value.wrapping_neg() } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_c_reads_them() {
        let table = [
            ("0", Some(0)),
            ("0x1F", Some(31)),
            ("0X1f", Some(31)),
            ("017", Some(15)),
            ("42", Some(42)),
            ("-1", Some(u64::MAX)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("0x", None),
            ("0x+1", None),
            ("+1", None),
            ("08", None),
            ("1x", None),
            ("", None),
            ("-", None),
        ];
        for (word, value) in table {
            assert_eq!(number(word), value, "{word}");
        }
    }
}
