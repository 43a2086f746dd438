//! Values to text: plain ASCII, on one line or indented.

use serde_json::{Number, Value};

/// How a value is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Layout {
    /// On one line, with a space after each `:` and `,`.
    #[default]
    Line,
    /// Each member on a line of its own, indented by four spaces; lines end in CR LF (`pretty=on`).
    Pretty,
}

/// Appends `value` to `out`. Everything beyond printable ASCII is escaped as `\uXXXX`.
pub fn write(out: &mut String, value: &Value, layout: Layout) {
    write_at(out, value, layout, 0);
}

fn write_at(out: &mut String, value: &Value, layout: Layout, depth: usize) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(n) => number(out, n),
        Value::String(s) => string(out, s),
        Value::Array(elements) => {
            out.push('[');
            for (index, element) in elements.iter().enumerate() {
                separate(out, index, layout, depth + 1);
                write_at(out, element, layout, depth + 1);
            }
            close(out, ']', layout, depth);
        }
        Value::Object(members) => {
            out.push('{');
            for (index, (key, member)) in members.iter().enumerate() {
                separate(out, index, layout, depth + 1);
                string(out, key);
                out.push_str(": ");
                write_at(out, member, layout, depth + 1);
            }
            close(out, '}', layout, depth);
        }
    }
}

fn separate(out: &mut String, index: usize, layout: Layout, depth: usize) {
    if index > 0 {
        out.push(',');
    }
    match layout {
        Layout::Pretty => new_line(out, depth),
        Layout::Line if index > 0 => out.push(' '),
        Layout::Line => {}
    }
}

fn close(out: &mut String, bracket: char, layout: Layout, depth: usize) {
    if layout == Layout::Pretty {
        new_line(out, depth);
    }
    out.push(bracket);
}

fn new_line(out: &mut String, depth: usize) {
    out.push_str("\r\n");
    out.extend(std::iter::repeat_n("    ", depth));
}

fn string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            ' '..='~' => out.push(c),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04X}"));
                }
            }
        }
    }
    out.push('"');
}

/// Integers as they are; doubles with the fewest digits that read back the same, and in C's `%g` manner otherwise:
/// no trailing `.0` except for -0.0, which would lose its sign; an exponent below 1e-4 and from 1e17 on.
fn number(out: &mut String, number: &Number) {
    let Some(value) = number.as_f64().filter(|_| number.is_f64()) else {
        out.push_str(&number.to_string());
        return;
    };
    if value == 0.0 {
        out.push_str(if value.is_sign_negative() { "-0.0" } else { "0" });
        return;
    }
    if (1e-4..1e17).contains(&value.abs()) {
        out.push_str(&format!("{value}"));
        return;
    }
    let text = format!("{value:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
    out.push_str(&format!("{digits}e{sign}{exponent:0>2}"));
}
