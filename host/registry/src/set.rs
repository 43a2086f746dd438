//! Plugin sets: what a VM may load, and nothing else.
//!
//! ```toml
//! [[plugin]]
//! name = "isa-serial"
//!
//! [[plugin]]
//! name = "virtio-blk"
//! version = "0.1.0"     # optional: exactly this one
//! sha256 = "9f86d0…"    # optional: exactly this file
//! ```

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::{LoadedPlugin, PluginError};

/// Why a plugin set cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    /// The file cannot be read.
    #[error("cannot read plugin set '{}': {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The host's reason.
        source: std::io::Error,
    },
    /// The file is no plugin set.
    #[error("plugin set '{}' is not understood: {reason}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },
}

/// One plugin of a set.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetEntry {
    /// Name of the plugin.
    pub name: String,
    /// Exactly this version.
    pub version: Option<String>,
    /// Exactly this content, as 64 hexadecimal digits.
    pub sha256: Option<String>,
}

/// A list of plugins that may be loaded.
#[derive(Debug, Clone)]
pub struct PluginSet {
    path: PathBuf,
    entries: Vec<SetEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    plugin: Vec<SetEntry>,
}

impl PluginSet {
    /// Reads a TOML file.
    pub fn read(path: &Path) -> Result<Self, SetError> {
        let text = std::fs::read_to_string(path).map_err(|source| SetError::Read { path: path.into(), source })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, SetError> {
        let refuse = |reason: String| SetError::Parse { path: path.into(), reason };
        let document: Document = toml::from_str(text).map_err(|e| {
            let line = e.span().map(|s| text.bytes().take(s.start).filter(|&b| b == b'\n').count() + 1);
            refuse(line.map_or_else(|| e.message().to_string(), |n| format!("line {n}: {}", e.message())))
        })?;
        let entries = document.plugin;
        for (i, e) in entries.iter().enumerate() {
            if entries.iter().take(i).any(|other| other.name == e.name) {
                return Err(refuse(format!("plugin '{}' is listed twice", e.name)));
            }
            let hex = |s: &String| s.len() == 64 && s.bytes().all(|b| b.is_ascii_hexdigit());
            if let Some(bad) = e.sha256.as_ref().filter(|s| !hex(s)) {
                return Err(refuse(format!("sha256 '{bad}' of plugin '{}' is not 64 hexadecimal digits", e.name)));
            }
        }
        Ok(Self { path: path.into(), entries })
    }

    /// The entries, in order.
    pub fn entries(&self) -> &[SetEntry] {
        &self.entries
    }

    /// Whether this plugin may be loaded.
    pub(crate) fn admit(&self, plugin: &LoadedPlugin) -> Result<(), PluginError> {
        let (path, name, set) = (plugin.path().to_path_buf(), plugin.name().to_string(), self.path.clone());
        let Some(entry) = self.entries.iter().find(|e| e.name == name) else {
            return Err(PluginError::NotInSet { path, name, set });
        };
        if let Some(wanted) = entry.version.clone().filter(|v| v != plugin.version()) {
            return Err(PluginError::WrongVersion { path, name, found: plugin.version().into(), wanted, set });
        }
        if let Some(wanted) = entry.sha256.clone().filter(|h| !h.eq_ignore_ascii_case(plugin.sha256())) {
            return Err(PluginError::WrongHash { path, name, found: plugin.sha256().into(), wanted, set });
        }
        Ok(())
    }

    /// The error for an entry that was found nowhere.
    pub(crate) fn absent(&self, entry: &SetEntry, searched: String) -> PluginError {
        PluginError::Absent { name: entry.name.clone(), set: self.path.clone(), searched }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<PluginSet, SetError> {
        PluginSet::parse(Path::new("set.toml"), text)
    }

    #[test]
    fn a_set_lists_names_with_optional_versions_and_hashes() {
        let set = parse("[[plugin]]\nname = \"a\"\n[[plugin]]\nname = \"b\"\nversion = \"1.0.0\"\n").unwrap();
        assert_eq!(set.entries().len(), 2);
        assert_eq!(set.entries()[1].version.as_deref(), Some("1.0.0"));
        assert!(parse("").unwrap().entries().is_empty());
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        let cases = [
            ("[[plugin]]\nname = \"a\"\nhash = \"b\"\n", "line 3: unknown field `hash`"),
            ("[[plugin]]\nname = \"a\"\n[[plugin]]\nname = \"a\"\n", "plugin 'a' is listed twice"),
            ("[[plugin]]\nname = \"a\"\nsha256 = \"12\"\n", "sha256 '12' of plugin 'a' is not 64 hexadecimal digits"),
            ("[[plugin]]\nversion = \"1\"\n", "missing field `name`"),
            ("[plugin", "line 1"),
        ];
        for (text, part) in cases {
            let e = parse(text).unwrap_err().to_string();
            assert!(e.starts_with("plugin set 'set.toml' is not understood: ") && e.contains(part), "{e}");
        }
    }
}
