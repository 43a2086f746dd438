//! The `file` driver: a host file or block device.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use crate::lock::ImageLocks;
use crate::node::{BlockDriver, Limits};
use crate::options::{CacheOptions, FileOptions, Locking};
use crate::{BlockError, HostFile, IoEngine, Permissions, Request, SECTOR_SIZE, probe};

/// An image file, and its locks.
pub(crate) struct FileDriver {
    driver: &'static str,
    filename: String,
    file: Arc<HostFile>,
    length: u64,
    block_sizes: Option<(u32, u32)>,
    locks: Option<ImageLocks>,
    engine: Arc<dyn IoEngine>,
}

/// How a file was opened.
pub(crate) struct Opened {
    pub(crate) driver: FileDriver,
    pub(crate) read_only: bool,
}

impl FileDriver {
    /// Opens the file, read-only if it must be or, with `auto_read_only`, if it cannot be opened otherwise.
    pub(crate) fn open(
        options: &FileOptions,
        cache: CacheOptions,
        read_only: bool,
        auto_read_only: bool,
        engine: Arc<dyn IoEngine>,
    ) -> Result<Opened, BlockError> {
        let filename = &options.filename;
        let failed = |errno| BlockError::Open { filename: filename.clone(), errno };
        let (file, read_only) = match open(filename, read_only, cache.direct) {
            Err(Errno::ACCESS | Errno::ROFS | Errno::PERM) if auto_read_only && !read_only => {
                (open(filename, true, cache.direct), true)
            }
            opened => (opened, read_only),
        };
        let file = file.map_err(|errno| match errno {
            Errno::INVAL if cache.direct => BlockError::NoDirect { filename: filename.clone() },
            errno => failed(errno),
        })?;
        let kind = file.metadata().map_err(|e| failed(Errno::from_io_error(&e).unwrap_or(Errno::IO)))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(BlockError::NotAFile { driver: options.driver, filename: filename.clone() });
        }
        let locks = locks(&file, options)?;
        let length = probe::length(&file).map_err(failed)?.div_ceil(SECTOR_SIZE).saturating_mul(SECTOR_SIZE);
        let block_sizes = kind.is_block_device().then(|| probe::block_sizes(&file)).flatten();
        let direct = cache.direct.then(|| probe::direct_alignment(&file, kind.is_block_device()));
        let file = Arc::new(HostFile::new(file, direct, cache.no_flush));
        let filename = filename.clone();
        let driver = Self { driver: options.driver, filename, file, length, block_sizes, locks, engine };
        Ok(Opened { driver, read_only })
    }
}

fn open(filename: &str, read_only: bool, direct: bool) -> Result<File, Errno> {
    let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
    let direct = if direct { OFlags::DIRECT } else { OFlags::empty() };
    // Without NONBLOCK, a FIFO would keep us waiting for a writer.
    let fd = rustix::fs::open(filename, access | direct | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())?;
    fcntl_setfl(&fd, fcntl_getfl(&fd)? - OFlags::NONBLOCK)?;
    Ok(File::from(fd))
}

fn locks(file: &File, options: &FileOptions) -> Result<Option<ImageLocks>, BlockError> {
    match (options.locking, ImageLocks::new(file.as_fd())) {
        (Locking::Off, _) => Ok(None),
        (Locking::Auto, Err(errno)) => {
            tracing::warn!(file = options.filename, %errno, "the image cannot be locked against other processes");
            Ok(None)
        }
        (Locking::On, Err(errno)) => Err(BlockError::CannotLock { filename: options.filename.clone(), errno }),
        (_, Ok(locks)) => Ok(Some(locks)),
    }
}

impl BlockDriver for FileDriver {
    fn name(&self) -> &'static str {
        self.driver
    }

    fn length(&self) -> u64 {
        self.length
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: self.file.request_alignment(),
            memory_alignment: self.file.memory_alignment(),
            block_sizes: self.block_sizes,
        }
    }

    fn submit(&self, request: Request) {
        self.engine.submit(&self.file, request);
    }

    fn filename(&self) -> Option<&str> {
        Some(&self.filename)
    }

    fn set_permissions(&self, used: Permissions, shared: Permissions) -> Result<(), BlockError> {
        match &self.locks {
            Some(locks) => locks.change(self.file.fd(), &self.filename, used, shared),
            None => Ok(()),
        }
    }
}
