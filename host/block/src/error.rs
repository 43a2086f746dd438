//! What can go wrong outside of requests. The texts are QEMU's where it has one.

use cardcage_options::OptionError;
use rustix::io::Errno;

use crate::Permissions;

/// Why a node could not be made, found, used or removed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// An option is wrong.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// The host refused to open the file.
    #[error("Could not open '{filename}': {}", strerror(*errno))]
    Open {
        /// The file.
        filename: String,
        /// The host's reason.
        errno: Errno,
    },
    /// The file is a directory, a socket or another thing without sectors.
    #[error("'{driver}' driver requires '{filename}' to be a regular file or a block device")]
    NotAFile {
        /// The driver.
        driver: &'static str,
        /// The file.
        filename: String,
    },
    /// The file system cannot do what `cache.direct=on` needs.
    #[error("Could not open '{filename}': file system does not support O_DIRECT, use cache.direct=off")]
    NoDirect {
        /// The file.
        filename: String,
    },
    /// A node of this name exists.
    #[error("Duplicate nodes with node-name='{0}'")]
    DuplicateNode(String),
    /// A drive of this name exists.
    #[error("node-name={0} is conflicting with a device id")]
    NodeNameIsDrive(String),
    /// The name has characters that names do not have.
    #[error("Invalid node-name: '{0}'")]
    InvalidNodeName(String),
    /// The name has more than 31 characters.
    #[error("Node name too long: '{0}' has more than 31 characters")]
    NodeNameTooLong(String),
    /// The root of a tree of nodes has no name.
    #[error("'node-name' must be specified for the root node")]
    NoNodeName,
    /// Neither a drive nor a node has this name.
    #[error("Cannot find device='{0}' nor node-name='{0}'")]
    NotFound(String),
    /// No node has this name.
    #[error("Failed to find node with node-name='{0}'")]
    NoSuchNode(String),
    /// A device uses the node.
    #[error("Node {0} is in use")]
    NodeInUse(String),
    /// Another node uses the node.
    #[error("Block device {0} is in use")]
    UsedByNode(String),
    /// The node belongs to a drive or to another node, and goes with it.
    #[error("Node {0} is not owned by the monitor")]
    NotOwned(String),
    /// A drive of this id exists.
    #[error("Duplicate ID '{0}' for drive")]
    DuplicateDrive(String),
    /// A node of this name exists, so that a drive cannot have it as its id.
    #[error("Device name '{0}' conflicts with an existing node name")]
    DriveIsNode(String),
    /// Two users of a node do not get along.
    #[error(
        "Permission conflict on node '{node}': permissions '{permissions}' are both required by {requires} \
         and unshared by {unshares}."
    )]
    Conflict {
        /// The node.
        node: String,
        /// What one needs and the other forbids.
        permissions: Permissions,
        /// Who needs it, and as what it uses the node.
        requires: String,
        /// Who forbids it, and as what it uses the node.
        unshares: String,
    },
    /// A user wants to write to a read-only node.
    #[error("Block node '{0}' is read-only")]
    ReadOnly(String),
    /// Writes to the end of the image would make it longer.
    #[error(
        "Cannot get 'write' permission without 'resize': Image size is not a multiple of request alignment \
         (node '{node}' has {length} bytes, alignment is {alignment})"
    )]
    UnalignedLength {
        /// The node.
        node: String,
        /// Its length in bytes.
        length: u64,
        /// What it would have to be a multiple of.
        alignment: u64,
    },
    /// Another process does with the image what this one must not let happen, or the other way round.
    #[error("Failed to get {}\"{}\" lock", if *shared { "shared " } else { "" }, crate::permissions::name(*permission))]
    Locked {
        /// The file.
        filename: String,
        /// The permission at issue.
        permission: Permissions,
        /// Whether the other one does it and this one forbids it; otherwise the other one forbids it.
        shared: bool,
    },
    /// The host cannot lock the file.
    #[error("Failed to lock '{filename}': {}; use locking=off if nobody else uses it", strerror(*errno))]
    CannotLock {
        /// The file.
        filename: String,
        /// The host's reason.
        errno: Errno,
    },
    /// The part of a node that a raw node shows begins beyond its end.
    #[error("Offset ({offset}) cannot be greater than size of the containing file ({length})")]
    RawOffset {
        /// The option.
        offset: u64,
        /// Length of the node below.
        length: u64,
    },
    /// The part of a node that a raw node shows ends beyond its end.
    #[error(
        "The sum of offset ({offset}) and size ({size}) has to be smaller or equal to the actual size of the \
         containing file ({length})"
    )]
    RawSize {
        /// The option.
        offset: u64,
        /// The option.
        size: u64,
        /// Length of the node below.
        length: u64,
    },
    /// Too many nodes above each other.
    #[error("Block node '{0}' already lies on top of 64 others: no further node can go on top of it")]
    TooDeep(String),
    /// A worker thread could not be started.
    #[error("cannot start a thread for block requests: {}", strerror(*.0))]
    Thread(Errno),
}

impl BlockError {
    /// What a user may try, printed below the error on a command line. Not part of the text that QMP clients get.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Locked { filename, .. } => Some(format!("Is another process using the image [{filename}]?")),
            _ => None,
        }
    }
}

/// The C library's text for an errno, as QEMU's messages have it.
pub(crate) fn strerror(errno: Errno) -> String {
    let text = std::io::Error::from_raw_os_error(errno.raw_os_error()).to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}
