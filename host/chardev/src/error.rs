//! What can go wrong with chardevs. The texts are QEMU's where it has one.

use cardcage_options::OptionError;
use rustix::io::Errno;

/// Why a chardev could not be made, found, used or removed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CharError {
    /// An option is wrong.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// A chardev of this id exists.
    #[error("Chardev with id '{0}' already exists")]
    Duplicate(String),
    /// No chardev has this id.
    #[error("Chardev '{0}' not found")]
    NotFound(String),
    /// It cannot be removed while a frontend uses it.
    #[error("Chardev '{0}' is busy")]
    Busy(String),
    /// It has its frontend, and is no multiplexer.
    #[error("Chardev '{0}' is already in use; mux=on lets several share it")]
    InUse(String),
    /// There is one terminal only.
    #[error("cannot use stdio by multiple character devices")]
    StdioTaken,
    /// The other chardev is not a ring buffer.
    #[error("{0} is not a ringbuf device")]
    NotARing(String),
    /// The host refused something.
    #[error("Failed to {what}: {}", strerror(*.errno))]
    Host {
        /// What was tried, with the path or address.
        what: String,
        /// The host's reason.
        errno: Errno,
    },
    /// A short form of `-serial` and its like that is none.
    #[error("could not connect {option} to character backend '{text}': {reason}")]
    Legacy {
        /// The option.
        option: String,
        /// What it said.
        text: String,
        /// What is allowed.
        reason: String,
    },
}

impl CharError {
    pub(crate) fn host(what: impl Into<String>, errno: Errno) -> Self {
        Self::Host { what: what.into(), errno }
    }

    pub(crate) fn io(what: impl Into<String>, error: &std::io::Error) -> Self {
        Self::host(what, Errno::from_io_error(error).unwrap_or(Errno::IO))
    }
}

/// The C library's text for an errno.
fn strerror(errno: Errno) -> String {
    let text = std::io::Error::from_raw_os_error(errno.raw_os_error()).to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}
