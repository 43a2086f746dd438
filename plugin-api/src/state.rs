//! Saved state: named sections, each with a version of its own.
//!
//! ```
//! use cardcage_plugin_api::state::*;
//! let mut saved = StateWriter::default();
//! saved.section("registers", 1, |s| {
//!     s.u8(0x60);
//!     s.u16(12);
//!     s.bytes(b"fifo");
//! });
//!
//! let saved = saved.into_reader();
//! let mut s = saved.section("registers", 1).unwrap();
//! assert_eq!((s.u8().unwrap(), s.u16().unwrap(), s.bytes().unwrap()), (0x60, 12, &b"fifo"[..]));
//! s.end().unwrap();
//! ```

use crate::abi::{Section, abi_stable::std_types::RVec};
use crate::{Error, Result};

/// Collects the sections of one device.
#[derive(Default)]
pub struct StateWriter(pub(crate) Vec<Section>);

impl StateWriter {
    /// Adds a section. Raise `version` when its layout changes.
    pub fn section(&mut self, name: &str, version: u32, fill: impl FnOnce(&mut SectionWriter)) {
        let mut data = SectionWriter(Vec::new());
        fill(&mut data);
        self.0.push(Section { name: name.into(), version, data: RVec::from(data.0) });
    }
    /// What was written, ready to be read: for tests.
    pub fn into_reader(self) -> StateReader {
        StateReader(self.0)
    }
}

/// The bytes of one section under construction. Numbers are little-endian.
pub struct SectionWriter(Vec<u8>);

/// The bytes of one section. Every read past the end is an error that names the section.
pub struct SectionReader<'a> {
    name: &'a str,
    version: u32,
    data: &'a [u8],
}

macro_rules! numbers { ($($t:ident)*) => {
    impl SectionWriter { $(
        #[doc = concat!("Appends a `", stringify!($t), "`.")]
        pub fn $t(&mut self, value: $t) { self.0.extend_from_slice(&value.to_le_bytes()); }
    )* }
    impl<'a> SectionReader<'a> { $(
        #[doc = concat!("Takes a `", stringify!($t), "`.")]
        pub fn $t(&mut self) -> Result<$t> {
            let name = self.name;
            let (head, rest) = self.data.split_first_chunk().ok_or_else(|| short(name))?;
            self.data = rest;
            Ok($t::from_le_bytes(*head))
        }
    )* }
} }
numbers!(u8 u16 u32 u64 i64);

fn short(name: &str) -> Error {
    Error::new(format!("section '{name}' of the saved state is too short"))
}

impl SectionWriter {
    /// Appends a bool.
    pub fn bool(&mut self, value: bool) {
        self.u8(u8::from(value));
    }
    /// Appends a length and bytes.
    pub fn bytes(&mut self, value: &[u8]) {
        self.u64(value.len() as u64);
        self.0.extend_from_slice(value);
    }
}

impl<'a> SectionReader<'a> {
    /// The version that it was saved with.
    pub fn version(&self) -> u32 {
        self.version
    }
    /// Takes a bool.
    pub fn bool(&mut self) -> Result<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            n => Err(Error::new(format!("section '{}' of the saved state has {n} where a bool belongs", self.name))),
        }
    }
    /// Takes a length and bytes.
    pub fn bytes(&mut self) -> Result<&'a [u8]> {
        let len = usize::try_from(self.u64()?).map_err(|_| short(self.name))?;
        let (head, rest) = self.data.split_at_checked(len).ok_or_else(|| short(self.name))?;
        self.data = rest;
        Ok(head)
    }
    /// Checks that everything was taken.
    pub fn end(self) -> Result<()> {
        if self.data.is_empty() {
            return Ok(());
        }
        Err(Error::new(format!("section '{}' of the saved state has {} bytes too many", self.name, self.data.len())))
    }
}

/// The saved sections of one device.
pub struct StateReader(pub(crate) Vec<Section>);

impl StateReader {
    /// The section with this name. One that is newer than `newest` is refused.
    pub fn section(&self, name: &str, newest: u32) -> Result<SectionReader<'_>> {
        let found = self.0.iter().find(|s| s.name == name);
        let s = found.ok_or_else(|| Error::new(format!("the saved state has no section '{name}'")))?;
        if s.version > newest {
            let text = format!("section '{name}' has version {}; this plugin reads up to {newest}", s.version);
            return Err(Error::new(text));
        }
        Ok(SectionReader { name: s.name.as_str(), version: s.version, data: s.data.as_slice() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_section_and_a_missing_one_are_refused_by_name() {
        let mut w = StateWriter::default();
        w.section("queue", 3, |_| {});
        let r = w.into_reader();
        assert_eq!(
            r.section("queue", 2).err().unwrap().to_string(),
            "section 'queue' has version 3; this plugin reads up to 2"
        );
        assert_eq!(r.section("fifo", 2).err().unwrap().to_string(), "the saved state has no section 'fifo'");
        assert!(r.section("queue", 3).is_ok());
    }

    #[test]
    fn truncated_and_oversized_data_are_errors() {
        let mut w = StateWriter::default();
        w.section("s", 1, |s| s.u32(u32::MAX));
        w.section("long", 1, |s| s.u64(u64::MAX));
        let r = w.into_reader();
        assert!(r.section("s", 1).unwrap().u64().is_err());
        assert!(r.section("s", 1).unwrap().end().is_err());
        assert!(r.section("long", 1).unwrap().bytes().is_err());
        assert!(r.section("s", 1).unwrap().bool().is_err());
    }
}
