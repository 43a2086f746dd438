//! Where the bytes of a kernel or a ramdisk come from: a file that is read in parts, or memory.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use cardcage_memory::GuestRam;

use crate::BootError;

/// Bytes that are copied at once.
const CHUNK: usize = 1 << 20;
/// Most that is taken from a pipe.
const PIPE_MAX: u64 = 1 << 32;

enum Inner {
    File(File),
    Bytes(Vec<u8>),
}

/// The bytes of a kernel or a ramdisk, and the name of the file for errors.
pub struct Source {
    name: String,
    len: u64,
    inner: Inner,
}

impl Source {
    /// Opens a file. What is not a regular file (a pipe) is read into memory.
    pub fn open(path: &Path) -> Result<Self, BootError> {
        let name = path.display().to_string();
        let failed = |source| BootError::Read { path: name.clone(), source };
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.is_file() {
            return Ok(Self { name, len: metadata.len(), inner: Inner::File(file) });
        }
        let mut bytes = Vec::new();
        file.take(PIPE_MAX).read_to_end(&mut bytes).map_err(failed)?;
        Ok(Self::bytes(&name, bytes))
    }

    /// Bytes in memory.
    pub fn bytes(name: &str, bytes: Vec<u8>) -> Self {
        Self { name: name.into(), len: bytes.len() as u64, inner: Inner::Bytes(bytes) }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Fills `buf` from `offset` on. `what` names it if the file ends before.
    pub(crate) fn read(&self, offset: u64, buf: &mut [u8], what: &'static str) -> Result<(), BootError> {
        let needed = offset.saturating_add(buf.len() as u64);
        if needed > self.len {
            return Err(BootError::Truncated { path: self.name.clone(), what, needed, len: self.len });
        }
        match &self.inner {
            Inner::File(file) => {
                file.read_exact_at(buf, offset).map_err(|source| BootError::Read { path: self.name.clone(), source })?
            }
            Inner::Bytes(bytes) => {
                let from = bytes.iter().skip(offset as usize);
                buf.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            }
        }
        Ok(())
    }

    /// `len` bytes from `offset` on.
    pub(crate) fn read_vec(&self, offset: u64, len: u64, what: &'static str) -> Result<Vec<u8>, BootError> {
        let needed = offset.saturating_add(len);
        if needed > self.len {
            // Before anything is allocated: `len` comes from the file.
            return Err(BootError::Truncated { path: self.name.clone(), what, needed, len: self.len });
        }
        let mut bytes = vec![0; len as usize];
        self.read(offset, &mut bytes, what)?;
        Ok(bytes)
    }

    /// The first `len` bytes, or all if there are fewer.
    pub(crate) fn head(&self, len: u64) -> Result<Vec<u8>, BootError> {
        self.read_vec(0, len.min(self.len), "the file")
    }

    /// Copies bytes into guest RAM, at a place that is known to be RAM.
    pub(crate) fn copy_to_ram(&self, offset: u64, len: u64, ram: &GuestRam, to: u64) -> Result<(), BootError> {
        let mut chunk = vec![0; CHUNK.min(len as usize)];
        let mut done = 0;
        while done < len {
            let part = chunk.len().min((len - done) as usize);
            let Some(buf) = chunk.get_mut(..part) else { break };
            self.read(offset.saturating_add(done), buf, "its contents")?;
            ram.write(to + done, buf).map_err(|_| BootError::KernelTooBig {
                path: self.name.clone(),
                start: to,
                end: to.saturating_add(len),
                ram: ram.size(),
            })?;
            done += part as u64;
        }
        Ok(())
    }
}
