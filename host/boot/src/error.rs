//! What can be wrong with a kernel, its ramdisk or its command line: one sentence each, with a way out.

/// Why a kernel cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The host does not let us read the file.
    #[error("cannot read '{path}': {source}; check the path and its permissions")]
    Read {
        /// The file.
        path: String,
        /// The host's reason.
        source: std::io::Error,
    },
    /// The file ends too early.
    #[error("'{path}' is truncated: {what} needs {needed} bytes, the file has {len}; copy it again")]
    Truncated {
        /// The file.
        path: String,
        /// What ends early.
        what: &'static str,
        /// Bytes that the file would need.
        needed: u64,
        /// Bytes that it has.
        len: u64,
    },
    /// Something that is no kernel at all.
    #[error("'{path}' is no kernel: it is {found}; use an x86-64 Linux bzImage or an x86-64 ELF kernel")]
    NotAKernel {
        /// The file.
        path: String,
        /// What it looks like.
        found: String,
    },
    /// A kernel for another processor.
    #[error("'{path}' is a kernel for {found}, but this machine is x86-64; use a kernel built for x86-64")]
    Architecture {
        /// The file.
        path: String,
        /// What it is for.
        found: String,
    },
    /// A Linux kernel from before 2013.
    #[error("'{path}' speaks boot protocol {major}.{minor}, 2.12 or newer is needed (Linux 3.8); use a newer kernel")]
    Protocol {
        /// The file.
        path: String,
        /// Major version of its protocol.
        major: u8,
        /// Minor version of its protocol.
        minor: u8,
    },
    /// An ELF file that does not say how it is entered.
    #[error(
        "'{path}' is an x86-64 ELF file, but neither a Linux kernel nor one with a PVH entry; \
         link the note XEN_ELFNOTE_PHYS32_ENTRY into it"
    )]
    NoEntry {
        /// The file.
        path: String,
    },
    /// A header says what cannot be.
    #[error("'{path}' is damaged: {what}")]
    Damaged {
        /// The file.
        path: String,
        /// What cannot be.
        what: String,
    },
    /// The packed kernel cannot be unpacked.
    #[error("'{path}' is damaged: its {format} data cannot be unpacked: {reason}")]
    Unpack {
        /// The file.
        path: String,
        /// How it is packed.
        format: &'static str,
        /// What the decoder says.
        reason: String,
    },
    /// Not enough RAM, or not where the kernel wants it.
    #[error(
        "'{path}' needs guest memory at {start:#x}..{end:#x}, which is not free RAM ({} MiB in all); {}",
        ram >> 20,
        remedy(*ram, *end)
    )]
    KernelTooBig {
        /// The file.
        path: String,
        /// First address that it needs.
        start: u64,
        /// End of what it needs.
        end: u64,
        /// Bytes of RAM that the machine has.
        ram: u64,
    },
    /// No place for the initial ramdisk.
    #[error(
        "initial ramdisk '{path}' of {len} bytes does not fit into {} MiB of guest memory beside the kernel and below \
         {limit:#x}; use a larger -m or a smaller ramdisk",
        ram >> 20
    )]
    InitrdTooBig {
        /// The file.
        path: String,
        /// Its length in bytes.
        len: u64,
        /// End of the memory that the kernel takes one from.
        limit: u64,
        /// Bytes of RAM that the machine has.
        ram: u64,
    },
    /// The kernel has no room for the command line.
    #[error("the kernel command line has {len} bytes, '{path}' takes at most {max}; shorten -append")]
    CommandLineTooLong {
        /// The kernel file.
        path: String,
        /// Bytes of the command line.
        len: u64,
        /// Most that the kernel takes.
        max: u64,
    },
    /// The command line is handed over as a C string.
    #[error("the kernel command line has a zero byte at position {at}; remove it from -append")]
    CommandLineNul {
        /// Where.
        at: usize,
    },
    /// Not even the tables for the kernel fit.
    #[error("no RAM at {start:#x}..{end:#x}, where a directly booted kernel finds its parameters; use -m 1M or more")]
    NoLowMemory {
        /// First address.
        start: u64,
        /// End.
        end: u64,
    },
    /// Too many ranges of RAM.
    #[error("the memory map has {entries} entries, a kernel takes at most {max}; use fewer memory ranges")]
    MemoryMap {
        /// How many there are.
        entries: usize,
        /// How many are possible.
        max: usize,
    },
}

/// What helps when `end` is not free RAM.
fn remedy(ram: u64, end: u64) -> String {
    if end > ram && end < 3 << 30 {
        format!("use -m {}M or more", end.div_ceil(1 << 20))
    } else {
        String::from("use a kernel that is linked to another address")
    }
}
