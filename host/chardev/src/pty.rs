//! Pseudo terminals: another program opens the other side by its path.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::CharError;
use crate::terminal::make_pty_raw;

/// Makes a pair; returns our side, which does not block, and the path of the other one.
pub(crate) fn open_pty() -> Result<(OwnedFd, String), CharError> {
    let failed = |errno| CharError::host("create PTY", errno);
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).map_err(failed)?;
    grantpt(&master).map_err(failed)?;
    unlockpt(&master).map_err(failed)?;
    let path = ptsname(&master, Vec::new()).map_err(failed)?;
    let other = open(&path, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    make_pty_raw(&other).map_err(failed)?;
    rustix::io::ioctl_fionbio(&master, true).map_err(failed)?;
    Ok((master, path.to_string_lossy().into_owned()))
}
