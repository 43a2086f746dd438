//! What can go wrong: on the wire ([`CommandError`]) and when a server is set up ([`Error`]).

use std::path::PathBuf;

/// The class of an error reply: the part that clients may act upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ErrorClass {
    /// Anything without a class of its own.
    #[default]
    GenericError,
    /// There is no such command, or not in this state of the session.
    CommandNotFound,
    /// The device is there but not active.
    DeviceNotActive,
    /// There is no such device.
    DeviceNotFound,
    /// KVM lacks a capability that the command needs.
    KvmMissingCap,
}

impl ErrorClass {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::GenericError => "GenericError",
            Self::CommandNotFound => "CommandNotFound",
            Self::DeviceNotActive => "DeviceNotActive",
            Self::DeviceNotFound => "DeviceNotFound",
            Self::KvmMissingCap => "KVMMissingCap",
        }
    }
}

/// An error reply: what a command answers when it has done nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{desc}")]
pub struct CommandError {
    /// Its class.
    pub class: ErrorClass,
    /// The text for people.
    pub desc: String,
}

impl CommandError {
    /// An error of class GenericError.
    pub fn generic(desc: impl Into<String>) -> Self {
        Self::new(ErrorClass::GenericError, desc)
    }

    /// An error of any class.
    pub fn new(class: ErrorClass, desc: impl Into<String>) -> Self {
        Self { class, desc: desc.into() }
    }

    /// `Device 'name' not found`, of class DeviceNotFound.
    pub fn device_not_found(name: &str) -> Self {
        Self::new(ErrorClass::DeviceNotFound, format!("Device '{name}' not found"))
    }
}

impl From<crate::json::JsonError> for CommandError {
    fn from(error: crate::json::JsonError) -> Self {
        Self::generic(error.to_string())
    }
}

/// A server or one of its connections cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process listens on this path.
    #[error("socket path '{}' is in use by another process; choose another path or end that process", .path.display())]
    PathInUse {
        /// The path.
        path: PathBuf,
    },
    /// There is a file, and it is no socket that could be replaced.
    #[error("'{}' exists and is not a socket; remove it or choose another path", .path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Listening failed.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// Connecting failed.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Where.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// The server's own thread, its event queue or a helper thread of a connection could not be made.
    #[error("cannot start {what}: {source}")]
    Start {
        /// What could not be started.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The server has been shut down.
    #[error("the QMP server has been shut down")]
    Stopped,
}
