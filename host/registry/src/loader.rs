//! Loads one plugin file.
#![expect(unsafe_code, reason = "loads foreign code")]

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use cardcage_plugin_abi::abi_stable::{
    StableAbi,
    library::{AbiHeader, AbiHeaderRef, LibHeader, RootModule, RootModuleError},
};
use cardcage_plugin_abi::{DeviceClassRef, ENTRY_SYMBOL, LogObj, ManifestRef};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use sha2::{Digest, Sha256};

use crate::layout::{self, Version};
use crate::{DeviceDescription, PluginError};

/// Version of the plugin API that this program speaks.
pub fn api_version() -> &'static str {
    ManifestRef::VERSION_STRINGS.version.as_str()
}

/// Makes the log sink of one plugin from its name.
pub type LogSink = dyn Fn(&str) -> LogObj + Send + Sync;

/// A plugin that was loaded: its code stays until the program ends.
pub struct LoadedPlugin {
    name: String,
    version: String,
    summary: String,
    api_version: String,
    path: PathBuf,
    image: &'static OwnedFd,
    sha256: OnceLock<String>,
    manifest: ManifestRef,
}

impl LoadedPlugin {
    /// Name, unique among the loaded ones.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Its own version.
    pub fn version(&self) -> &str {
        &self.version
    }
    /// One line about it.
    pub fn summary(&self) -> &str {
        &self.summary
    }
    /// Version of the plugin API that it was built with.
    pub fn api_version(&self) -> &str {
        &self.api_version
    }
    /// The file that it was read from. The file may have changed since.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// SHA-256 of what was loaded, in hexadecimal.
    pub fn sha256(&self) -> &str {
        self.sha256.get_or_init(|| hash(self.image).unwrap_or_default())
    }

    pub(crate) fn classes(&self) -> Result<Vec<(DeviceDescription, DeviceClassRef)>, PluginError> {
        let refuse = |reason| PluginError::Description { path: self.path.clone(), reason };
        let classes = self.manifest.devices();
        classes
            .iter()
            .map(|class| Ok((DeviceDescription::parse(&class.description()).map_err(refuse)?, *class)))
            .collect()
    }

    /// Gives the plugin its log sink. Once, before it makes anything.
    pub(crate) fn start(&self, sink: &LogSink) {
        self.manifest.init()(sink(&self.name));
    }
}

/// Reads, checks and links a file. Only the plugin's constructor has run afterwards.
pub(crate) fn load(path: &Path) -> Result<Arc<LoadedPlugin>, PluginError> {
    let path = path.to_path_buf();
    let image = image(&path).map_err(|source| PluginError::Read { path: path.clone(), source })?;
    check_library(&image, &path)?;
    // The dynamic linker takes a path it has seen before for the same library, so the descriptor stays open: its
    // number is then never reused for another plugin.
    let name = format!("/proc/self/fd/{}", image.as_raw_fd());
    // SAFETY: loading runs the library's initialisers. That is what a plugin is for; the user chose the file.
    let library = unsafe { Library::open(Some(&name), RTLD_NOW | RTLD_LOCAL) };
    let library = library.map_err(|e| link_error(&path, &name, &e))?;
    // Also where the file turns out to be of no use: what it has linked may stay all the same.
    let image: &'static OwnedFd = Box::leak(Box::new(image));
    let header = header(&library, &path)?;
    // Nothing of a plugin can be shown to be unused, so it is never unloaded.
    std::mem::forget(library);
    let manifest = manifest(header, &path)?;
    Ok(Arc::new(LoadedPlugin {
        name: manifest.name().to_string(),
        version: manifest.version().to_string(),
        summary: manifest.summary().to_string(),
        api_version: header.version_strings().version.to_string(),
        path,
        image,
        sha256: OnceLock::new(),
        manifest,
    }))
}

/// A sealed copy in memory: nobody can change it any more.
fn image(path: &Path) -> std::io::Result<OwnedFd> {
    let mut source = File::open(path)?;
    if !source.metadata()?.is_file() {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut copy = File::from(memfd_create("cardcage-plugin", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    std::io::copy(&mut source, &mut copy)?;
    copy.flush()?;
    fcntl_add_seals(&copy, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    Ok(copy.into())
}

/// Checks that the file is an x86-64 shared library (ELF64, ET_DYN; System V ABI, AMD64 supplement), and that all of
/// it is there: the dynamic linker maps segments without looking, and a truncated file would kill the program.
fn check_library(image: &OwnedFd, path: &Path) -> Result<(), PluginError> {
    let not_a_library = || PluginError::NotALibrary { path: path.to_path_buf() };
    let file = image.try_clone().map(File::from).map_err(|_| not_a_library())?;
    let len = file.metadata().map_err(|_| not_a_library())?.len();
    let mut head = [0; 64];
    file.read_exact_at(&mut head, 0).map_err(|_| not_a_library())?;
    let half = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    if !head.starts_with(b"\x7fELF\x02\x01") || half(16) != 3 || half(18) != 62 {
        return Err(not_a_library());
    }
    let table = u64::from_le_bytes(std::array::from_fn(|i| head[32 + i]));
    let truncated = || PluginError::Truncated { path: path.to_path_buf() };
    for i in 0..u64::from(half(56)) {
        let mut program_header = [0; 56];
        let at = table.checked_add(i * u64::from(half(54))).ok_or_else(truncated)?;
        file.read_exact_at(&mut program_header, at).map_err(|_| truncated())?;
        let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| program_header[at + i]));
        if long(8).checked_add(long(32)).is_none_or(|end| end > len) {
            return Err(truncated());
        }
    }
    Ok(())
}

fn hash(image: &OwnedFd) -> std::io::Result<String> {
    let mut file = File::from(image.try_clone()?);
    file.rewind()?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hasher.update(buffer.get(..n).unwrap_or_default()),
        }
    }
    Ok(hasher.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

fn link_error(path: &Path, name: &str, error: &libloading::Error) -> PluginError {
    let mut reason = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(s) = source {
        reason = s.to_string();
        source = s.source();
    }
    let path = path.to_path_buf();
    // glibc: "/lib/…/libc.so.6: version `GLIBC_2.38' not found (required by …)".
    if let Some(needed) = reason.split_once("version `").and_then(|(_, r)| r.split_once("' not found")) {
        return PluginError::LibcTooOld { path, needed: needed.0.to_string() };
    }
    PluginError::Link { reason: reason.replace(name, "the plugin"), path }
}

fn header(library: &Library, path: &Path) -> Result<&'static LibHeader, PluginError> {
    let missing = || PluginError::NotAPlugin { path: path.to_path_buf(), symbol: ENTRY_SYMBOL };
    // SAFETY: the symbol, where it exists, is the header that `plugin!` exports.
    let symbol = unsafe { library.get::<*const AbiHeader>(ENTRY_SYMBOL.as_bytes()) }.map_err(|_| missing())?;
    // SAFETY: `AbiHeaderRef` is a transparent reference to an `AbiHeader`; the library is never unloaded.
    let header: AbiHeaderRef =
        unsafe { std::mem::transmute::<*const AbiHeader, AbiHeaderRef>(symbol.into_raw().cast()) };
    header.upgrade().map_err(|_| PluginError::Foundation { path: path.to_path_buf(), ours: api_version().into() })
}

fn manifest(header: &'static LibHeader, path: &Path) -> Result<ManifestRef, PluginError> {
    let path = path.to_path_buf();
    let theirs = header.version_strings().version.to_string();
    let ours = api_version().to_string();
    let (Some(their_version), Some(our_version)) = (version(&theirs), version(&ours)) else {
        return Err(PluginError::OtherMajor { path, theirs, ours });
    };
    if their_version.0 != our_version.0 {
        return Err(PluginError::OtherMajor { path, theirs, ours });
    }
    let at = match header.layout() {
        None => Err("it carries no description of its types".to_string()),
        Some(layout) => layout::check((our_version, ManifestRef::LAYOUT), (their_version, layout)),
    };
    if let Err(at) = at {
        return Err(PluginError::Layout { path, theirs, ours, at });
    }
    // SAFETY: the layout was compared just now, with the older side as the interface.
    unsafe { header.unchecked_layout::<ManifestRef>() }.map_err(|e| {
        let reason = match e {
            RootModuleError::Returned(text) => text.to_string(),
            RootModuleError::Unwound => "it panicked".to_string(),
        };
        PluginError::Constructor { path, reason }
    })
}

fn version(text: &str) -> Option<Version> {
    let mut numbers = text.split('.').map(|n| n.parse().ok());
    Some((numbers.next()??, numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_with(content: &[u8]) -> tempfile::NamedTempFile {
        let mut f = tempfile::NamedTempFile::new().unwrap();
        f.write_all(content).unwrap();
        f
    }

    #[test]
    fn files_that_are_no_libraries_are_refused_without_being_loaded() {
        for content in [&b""[..], b"\x7fELF", b"#!/bin/sh\n", &[0; 4096]] {
            let f = file_with(content);
            assert!(matches!(load(f.path()).err(), Some(PluginError::NotALibrary { .. })));
        }
        assert!(matches!(load(Path::new("/nonexistent.so")).err(), Some(PluginError::Read { .. })));
        assert!(matches!(load(Path::new("/tmp")).err(), Some(PluginError::Read { .. })));
    }

    #[test]
    fn a_truncated_library_is_refused_before_the_linker_sees_it() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        for len in [64, 100, 4096] {
            let error = load(file_with(&own[..len]).path()).err().unwrap();
            assert!(matches!(error, PluginError::Truncated { .. }), "{len}: {error}");
        }
    }

    #[test]
    fn versions_have_three_numbers() {
        assert_eq!(version("1.2.3"), Some((1, 2, 3)));
        for bad in ["", "1", "1.2", "1.x.3", "a.b.c"] {
            assert_eq!(version(bad), None);
        }
    }
}
