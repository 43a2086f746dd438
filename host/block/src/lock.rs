//! Image locks: open-file-description locks on single bytes of the image, as QEMU and qemu-img take them.
//!
//! For permission number `i`, a shared lock on byte `100 + i` says "I do this", and one on byte `200 + i` says "I do
//! not let others do this". After taking its own locks, a process tests whether anyone else holds the opposite ones;
//! of two that come at the same time, at least one sees the other.
#![expect(unsafe_code, reason = "fcntl with byte ranges has no safe wrapper")]

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Mutex;

use rustix::io::Errno;

use crate::request::locked;
use crate::{BlockError, Permissions};

/// Byte of permission 0 that is locked by who uses it.
const PERMISSION_BASE: u32 = 100;
/// Byte of permission 0 that is locked by who forbids it to others.
const UNSHARED_BASE: u32 = 200;

/// What one open file has locked: permissions used, and permissions kept from others.
#[derive(Debug)]
pub(crate) struct ImageLocks {
    held: Mutex<(Permissions, Permissions)>,
}

impl ImageLocks {
    /// Nothing locked yet. An error if the file system has no such locks.
    pub(crate) fn new(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        is_locked_by_other(fd, PERMISSION_BASE)?;
        Ok(Self { held: Mutex::new((Permissions::empty(), Permissions::empty())) })
    }

    /// Goes over to other permissions, or leaves everything as it was.
    pub(crate) fn change(
        &self,
        fd: BorrowedFd<'_>,
        filename: &str,
        used: Permissions,
        shared: Permissions,
    ) -> Result<(), BlockError> {
        let mut held = locked(&self.held);
        let unshared = Permissions::all() - shared;
        let old = *held;
        let taken = (old.0 | used, old.1 | unshared);
        let result = take(fd, taken)
            .map_err(|errno| BlockError::CannotLock { filename: filename.to_owned(), errno })
            .and_then(|()| check(fd, filename, used, unshared));
        let keep = if result.is_ok() { (used, unshared) } else { old };
        release(fd, Permissions::all() - keep.0, Permissions::all() - keep.1);
        *held = keep;
        result
    }
}

fn byte(base: u32, permission: Permissions) -> u32 {
    base + permission.bits().trailing_zeros()
}

fn take(fd: BorrowedFd<'_>, (used, unshared): (Permissions, Permissions)) -> Result<(), Errno> {
    used.iter().try_for_each(|p| set(fd, byte(PERMISSION_BASE, p), true))?;
    unshared.iter().try_for_each(|p| set(fd, byte(UNSHARED_BASE, p), true))
}

fn release(fd: BorrowedFd<'_>, used: Permissions, unshared: Permissions) {
    let bytes = used.iter().map(|p| byte(PERMISSION_BASE, p)).chain(unshared.iter().map(|p| byte(UNSHARED_BASE, p)));
    for at in bytes {
        if let Err(errno) = set(fd, at, false) {
            tracing::warn!(%errno, at, "cannot unlock a byte of an image");
        }
    }
}

fn check(fd: BorrowedFd<'_>, filename: &str, used: Permissions, unshared: Permissions) -> Result<(), BlockError> {
    let sides = [(used, UNSHARED_BASE, false), (unshared, PERMISSION_BASE, true)];
    for (permissions, base, shared) in sides {
        for permission in permissions {
            let filename = filename.to_owned();
            match is_locked_by_other(fd, byte(base, permission)) {
                Ok(false) => (),
                Ok(true) => return Err(BlockError::Locked { filename, permission, shared }),
                Err(errno) => return Err(BlockError::CannotLock { filename, errno }),
            }
        }
    }
    Ok(())
}

fn one_byte(at: u32, kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: libc::off_t::from(at),
        l_len: 1,
        l_pid: 0,
    }
}

fn set(fd: BorrowedFd<'_>, at: u32, lock: bool) -> Result<(), Errno> {
    let flock = one_byte(at, if lock { libc::F_RDLCK } else { libc::F_UNLCK });
    // SAFETY: F_OFD_SETLK reads a `flock`, which lives through the call.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &flock) };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

fn is_locked_by_other(fd: BorrowedFd<'_>, at: u32) -> Result<bool, Errno> {
    let mut flock = one_byte(at, libc::F_WRLCK);
    // SAFETY: F_OFD_GETLK reads and writes a `flock`, which lives through the call.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_GETLK, &mut flock) };
    if result == 0 { Ok(libc::c_int::from(flock.l_type) != libc::F_UNLCK) } else { Err(last_errno()) }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn what_one_forbids_the_other_does_not_get() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let (a, b) = (File::open(image.path()).unwrap(), File::open(image.path()).unwrap());
        let (first, second) = (ImageLocks::new(a.as_fd()).unwrap(), ImageLocks::new(b.as_fd()).unwrap());
        let device = (Permissions::READ_WRITE, Permissions::SHARED_BY_DEVICE);
        let reader = (Permissions::CONSISTENT_READ, Permissions::all());
        let change = |locks: &ImageLocks, file: &File, p: (Permissions, Permissions)| {
            locks.change(file.as_fd(), "f.img", p.0, p.1).map_err(|e| (e.to_string(), e.hint().unwrap_or_default()))
        };
        change(&first, &a, device).unwrap();
        change(&second, &b, reader).unwrap();
        let hint = "Is another process using the image [f.img]?".to_owned();
        assert_eq!(change(&second, &b, device), Err(("Failed to get \"write\" lock".to_owned(), hint.clone())));
        let reader_alone = (Permissions::CONSISTENT_READ, Permissions::CONSISTENT_READ);
        assert_eq!(change(&second, &b, reader_alone), Err(("Failed to get shared \"write\" lock".to_owned(), hint)));
        change(&first, &a, reader).unwrap();
        change(&second, &b, device).unwrap();
    }

    #[test]
    fn a_failed_change_leaves_the_locks_as_they_were() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let files: Vec<_> = (0..3).map(|_| File::open(image.path()).unwrap()).collect();
        let locks: Vec<_> = files.iter().map(|f| ImageLocks::new(f.as_fd()).unwrap()).collect();
        let change = |i: usize, used, shared| locks[i].change(files[i].as_fd(), "f", used, shared);
        change(0, Permissions::READ_WRITE, Permissions::SHARED_BY_DEVICE).unwrap();
        change(1, Permissions::READ_WRITE, Permissions::empty()).unwrap_err();
        change(2, Permissions::CONSISTENT_READ, Permissions::all()).unwrap();
    }
}
