//! What users of a node do, and let others do. The bits are QEMU's: their positions are the bytes that image locks use.

use std::fmt;

bitflags::bitflags! {
    /// Kinds of access to a node.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct Permissions: u32 {
        /// Reads content that makes sense.
        const CONSISTENT_READ = 1;
        /// Changes what is read.
        const WRITE = 1 << 1;
        /// Writes without changing what is read.
        const WRITE_UNCHANGED = 1 << 2;
        /// Changes the length.
        const RESIZE = 1 << 3;
    }
}

impl Permissions {
    /// What a device that writes takes.
    pub const READ_WRITE: Self = Self::CONSISTENT_READ.union(Self::WRITE);
    /// What a device lets others do: no writes beside its own.
    pub const SHARED_BY_DEVICE: Self = Self::CONSISTENT_READ.union(Self::WRITE_UNCHANGED).union(Self::RESIZE);
}

/// The name of one permission, as in QEMU's messages.
pub(crate) fn name(bit: Permissions) -> &'static str {
    match bit {
        Permissions::CONSISTENT_READ => "consistent read",
        Permissions::WRITE => "write",
        Permissions::WRITE_UNCHANGED => "write unchanged",
        _ => "resize",
    }
}

impl fmt::Display for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.iter().map(name).collect();
        f.write_str(&names.join(", "))
    }
}
