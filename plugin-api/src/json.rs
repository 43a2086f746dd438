//! A small writer for JSON objects: what [`inspect`](crate::Device::inspect) and [`stats`](crate::Device::stats) return.
//!
//! ```
//! use cardcage_plugin_api::json::{Array, Object};
//! let o = Object::new().field("port", 0x3f8).field("fifo", Array::new().item(1).item("two"));
//! assert_eq!(o.to_string(), r#"{"port":1016,"fifo":[1,"two"]}"#);
//! ```

use std::fmt;

/// A value that can be written as JSON.
pub trait ToJson {
    /// Appends the value.
    fn write(&self, out: &mut String);
}

macro_rules! numbers { ($($t:ty)*) => { $(impl ToJson for $t {
    fn write(&self, out: &mut String) { out.push_str(&self.to_string()); }
})* } }
numbers!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 bool);

impl ToJson for str {
    fn write(&self, out: &mut String) {
        out.push('"');
        for c in self.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04x}", c as u32)),
                c => out.push(c),
            }
        }
        out.push('"');
    }
}
impl ToJson for String {
    fn write(&self, out: &mut String) {
        self.as_str().write(out);
    }
}
impl<T: ToJson + ?Sized> ToJson for &T {
    fn write(&self, out: &mut String) {
        (**self).write(out);
    }
}
impl<T: ToJson> ToJson for Option<T> {
    fn write(&self, out: &mut String) {
        match self {
            Some(v) => v.write(out),
            None => out.push_str("null"),
        }
    }
}

/// A JSON object under construction.
#[derive(Debug, Clone, Default)]
pub struct Object(String);

impl Object {
    /// An empty object.
    pub fn new() -> Self {
        Self::default()
    }
    /// Adds a member.
    #[must_use]
    pub fn field(mut self, name: &str, value: impl ToJson) -> Self {
        if !self.0.is_empty() {
            self.0.push(',');
        }
        name.write(&mut self.0);
        self.0.push(':');
        value.write(&mut self.0);
        self
    }
}
impl ToJson for Object {
    fn write(&self, out: &mut String) {
        out.push('{');
        out.push_str(&self.0);
        out.push('}');
    }
}
impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{}}}", self.0)
    }
}

/// A JSON array under construction.
#[derive(Debug, Clone, Default)]
pub struct Array(String);

impl Array {
    /// An empty array.
    pub fn new() -> Self {
        Self::default()
    }
    /// Adds an element.
    #[must_use]
    pub fn item(mut self, value: impl ToJson) -> Self {
        if !self.0.is_empty() {
            self.0.push(',');
        }
        value.write(&mut self.0);
        self
    }
}
impl ToJson for Array {
    fn write(&self, out: &mut String) {
        out.push('[');
        out.push_str(&self.0);
        out.push(']');
    }
}

/// The unsigned number that the member `name` of the object in `text` has; `None` if there is no such number. Members
/// of inner objects do not count.
///
/// ```
/// use cardcage_plugin_api::json::number;
/// let machine = r#"{"cpus":2,"inner":{"x":7},"name":"a\"b: {","ram":4096}"#;
/// assert_eq!((number(machine, "cpus"), number(machine, "ram")), (Some(2), Some(4096)));
/// assert_eq!((number(machine, "x"), number(machine, "name")), (None, None));
/// ```
pub fn number(text: &str, name: &str) -> Option<u64> {
    let (mut depth, mut rest) = (0u32, text);
    loop {
        let at = rest.find(['{', '}', '[', ']', '"'])?;
        let (symbol, after) = (rest.as_bytes().get(at)?, rest.get(at + 1..)?);
        rest = after;
        match symbol {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {
                let key = after.get(..string_end(after)?)?;
                rest = after.get(key.len() + 1..)?;
                let value = rest.trim_start().strip_prefix(':').filter(|_| depth == 1 && key == name);
                if let Some(value) = value {
                    let value = value.trim_start();
                    let end = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
                    return value.get(..end)?.parse().ok();
                }
            }
        }
    }
}

/// Length of a JSON string whose opening quote has been taken.
fn string_end(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|b| {
        let end = b == b'"' && !escaped;
        escaped = b == b'\\' && !escaped;
        end
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_and_quotes_are_escaped() {
        assert_eq!(Object::new().field("a\"", "\u{1}\\\n").to_string(), r#"{"a\"":"\u0001\\\n"}"#);
    }

    #[test]
    fn empty_values_are_valid() {
        let o = Object::new().field("o", Object::new()).field("a", Array::new()).field("n", None::<u8>);
        assert_eq!(o.to_string(), r#"{"o":{},"a":[],"n":null}"#);
    }
}
