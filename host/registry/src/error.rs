//! Why a plugin was refused: one sentence each, naming the file and the remedy.

use std::path::PathBuf;

/// Why a file is not a plugin that this program can use.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// The file cannot be read.
    #[error("cannot read plugin '{}': {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The host's reason.
        source: std::io::Error,
    },
    /// No shared library, or one for another machine.
    #[error("'{}' is not a cardcage plugin: it is not an x86-64 shared library", path.display())]
    NotALibrary {
        /// The file.
        path: PathBuf,
    },
    /// A shared library that ends too early.
    #[error("plugin '{}' is truncated: copy or build it again", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
    },
    /// A library without the entry symbol.
    #[error("'{}' is not a cardcage plugin: it has no symbol {symbol}; does it call plugin!?", path.display())]
    NotAPlugin {
        /// The file.
        path: PathBuf,
        /// The symbol that was looked for.
        symbol: &'static str,
    },
    /// Built on a system with a newer C library.
    #[error(
        "plugin '{}' needs {needed} of the C library, which this system does not have: build it on a system as old as this one",
        path.display()
    )]
    LibcTooOld {
        /// The file.
        path: PathBuf,
        /// The symbol version that is missing.
        needed: String,
    },
    /// The dynamic linker refused it.
    #[error("plugin '{}' cannot be loaded: {reason}", path.display())]
    Link {
        /// The file.
        path: PathBuf,
        /// What the dynamic linker said.
        reason: String,
    },
    /// Built with another version of abi_stable.
    #[error(
        "plugin '{}' was built with an incompatible abi_stable: build it with cardcage-plugin-api {ours}",
        path.display()
    )]
    Foundation {
        /// The file.
        path: PathBuf,
        /// Version of the plugin API in this program.
        ours: String,
    },
    /// Built for another major version of the plugin API.
    #[error(
        "plugin '{}' was built for plugin API {theirs}; this program speaks {ours}: build it with cardcage-plugin-api {}",
        path.display(), major(ours)
    )]
    OtherMajor {
        /// The file.
        path: PathBuf,
        /// Version of the plugin API that it was built with.
        theirs: String,
        /// Version in this program.
        ours: String,
    },
    /// Same major version, but a type that crosses the interface looks different.
    #[error("plugin '{}' (plugin API {theirs}) does not fit plugin API {ours}: {at}", path.display())]
    Layout {
        /// The file.
        path: PathBuf,
        /// Version of the plugin API that it was built with.
        theirs: String,
        /// Version in this program.
        ours: String,
        /// Where the first difference is.
        at: String,
    },
    /// The plugin's own code failed when it was asked what it offers.
    #[error("plugin '{}' failed while it described itself: {reason}", path.display())]
    Constructor {
        /// The file.
        path: PathBuf,
        /// Its text.
        reason: String,
    },
    /// A description that makes no sense.
    #[error("plugin '{}' describes a device wrongly: {reason}", path.display())]
    Description {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Another plugin offers a device of this name.
    #[error(
        "plugin '{}' offers device '{kind}', but plugin '{owner}' ({}) has that name already: load only one of them",
        path.display(), owner_path.display()
    )]
    NameTaken {
        /// The file.
        path: PathBuf,
        /// Name of the kind.
        kind: String,
        /// Name of the other plugin.
        owner: String,
        /// File of the other plugin.
        owner_path: PathBuf,
    },
    /// The plugin set does not list it.
    #[error("plugin '{name}' ({}) is not in the plugin set '{}': add it there to load it", path.display(), set.display())]
    NotInSet {
        /// The file.
        path: PathBuf,
        /// Name of the plugin.
        name: String,
        /// File of the set.
        set: PathBuf,
    },
    /// The plugin set wants another version.
    #[error(
        "plugin '{name}' ({}) is version {found}, but the plugin set '{}' asks for {wanted}",
        path.display(), set.display()
    )]
    WrongVersion {
        /// The file.
        path: PathBuf,
        /// Name of the plugin.
        name: String,
        /// Its version.
        found: String,
        /// What the set says.
        wanted: String,
        /// File of the set.
        set: PathBuf,
    },
    /// The plugin set wants other content.
    #[error(
        "plugin '{name}' ({}) has sha256 {found}, but the plugin set '{}' asks for {wanted}",
        path.display(), set.display()
    )]
    WrongHash {
        /// The file.
        path: PathBuf,
        /// Name of the plugin.
        name: String,
        /// Its hash.
        found: String,
        /// What the set says.
        wanted: String,
        /// File of the set.
        set: PathBuf,
    },
    /// The plugin set names a plugin that is nowhere.
    #[error("the plugin set '{}' names plugin '{name}', which was not found in {searched}", set.display())]
    Absent {
        /// Name of the plugin.
        name: String,
        /// File of the set.
        set: PathBuf,
        /// Folders and files that were looked at.
        searched: String,
    },
}

fn major(version: &str) -> String {
    version.split('.').next().unwrap_or(version).to_string()
}

impl PluginError {
    /// The file at fault, where there is one.
    pub fn path(&self) -> Option<&std::path::Path> {
        use PluginError as E;
        match self {
            E::Read { path, .. }
            | E::NotALibrary { path }
            | E::Truncated { path }
            | E::NotAPlugin { path, .. }
            | E::LibcTooOld { path, .. }
            | E::Link { path, .. }
            | E::Foundation { path, .. }
            | E::OtherMajor { path, .. }
            | E::Layout { path, .. }
            | E::Constructor { path, .. }
            | E::Description { path, .. }
            | E::NameTaken { path, .. }
            | E::NotInSet { path, .. }
            | E::WrongVersion { path, .. }
            | E::WrongHash { path, .. } => Some(path),
            E::Absent { .. } => None,
        }
    }
}
