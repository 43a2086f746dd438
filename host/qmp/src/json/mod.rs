//! JSON as QMP speaks it: a parser that is fed bytes and recovers from errors, and a writer of plain ASCII.
//!
//! Input is RFC 8259 with one extension, strings in single quotes (and the escape `\'`). Two keys of one name are an
//! error. Strings must be UTF-8, where U+0000 may be written C0 80, without noncharacters. Integers keep all their
//! digits from -2^63 to 2^64-1; others become `f64`.

mod lexer;
mod parser;
mod string;
mod writer;

pub use parser::{JsonError, Limits, Parser, parse};
pub use writer::{Layout, write};
