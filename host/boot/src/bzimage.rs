//! The setup header of a Linux bzImage (boot.rst, "The Real-Mode Kernel Header").

use cardcage_memory::GuestRam;

use crate::{BootError, Source};

/// Offset of the 64-bit entry in the protected-mode code.
pub(crate) const ENTRY_64: u64 = 0x200;
/// First byte of the header; the zero page has it at the same offset.
pub(crate) const HEADER: usize = 0x1f1;
/// Where the header ends: at the offset in this byte, counted from the byte after it.
const HEADER_LENGTH: usize = 0x201;
/// Largest header that the zero page has room for.
const HEADER_MAX: usize = 0x290;
/// "HdrS".
const MAGIC: (usize, [u8; 4]) = (0x202, *b"HdrS");
/// Oldest protocol that tells of the 64-bit entry.
const OLDEST: u16 = 0x020c;
/// xloadflags bit 0, XLF_KERNEL_64: the 64-bit entry is there.
const KERNEL_64: u16 = 1;
/// loadflags bit 0, LOADED_HIGH: a bzImage, loaded above 1 MiB.
const LOADED_HIGH: u8 = 1;
const SECTOR: u64 = 512;

/// A setup header that was checked.
#[derive(Debug, Clone)]
pub(crate) struct Header {
    path: String,
    bytes: Vec<u8>,
    file_len: u64,
}

impl Header {
    /// The header in the first bytes of a file, `None` if there is none.
    pub(crate) fn parse(source: &Source, start: &[u8]) -> Result<Option<Self>, BootError> {
        if !start.get(MAGIC.0..).is_some_and(|rest| rest.starts_with(&MAGIC.1)) {
            return Ok(None);
        }
        let path = || source.name().to_string();
        let end = MAGIC.0 + usize::from(start.get(HEADER_LENGTH).copied().unwrap_or(0));
        let needed = end.clamp(0x268, HEADER_MAX);
        let Some(bytes) = start.get(..needed) else {
            let (needed, len) = (needed as u64, source.len());
            return Err(BootError::Truncated { path: path(), what: "the setup header", needed, len });
        };
        let header = Self { path: path(), bytes: bytes.to_vec(), file_len: source.len() };
        let (major, minor) = header.version();
        if header.u16(0x206) < OLDEST {
            return Err(BootError::Protocol { path: path(), major, minor });
        }
        if header.u8(0x211) & LOADED_HIGH == 0 || header.u16(0x236) & KERNEL_64 == 0 {
            return Err(BootError::Architecture { path: path(), found: "32-bit x86 (i386)".into() });
        }
        let code = header.code_offset();
        if code + ENTRY_64 >= source.len() {
            let (needed, len) = (code + ENTRY_64 + 1, source.len());
            return Err(BootError::Truncated { path: path(), what: "the protected-mode kernel", needed, len });
        }
        // syssize counts 16-byte units; a shorter file was cut.
        let needed = code + u64::from(header.u32(0x1f4)) * 16;
        if needed > source.len().next_multiple_of(16) {
            let len = source.len();
            return Err(BootError::Truncated { path: path(), what: "the protected-mode kernel", needed, len });
        }
        Ok(Some(header))
    }

    /// The file that it is of.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// The header from offset 0x1f1 on, as the zero page wants it.
    pub(crate) fn setup(&self) -> &[u8] {
        self.bytes.get(HEADER..).unwrap_or_default()
    }

    /// Version of the boot protocol.
    pub(crate) fn version(&self) -> (u8, u8) {
        (self.u8(0x207), self.u8(0x206))
    }

    /// Longest command line, without the zero at its end.
    pub(crate) fn command_line_max(&self) -> u64 {
        u64::from(self.u32(0x238))
    }

    /// Last address that a ramdisk may take.
    pub(crate) fn initrd_max(&self) -> u64 {
        u64::from(self.u32(0x22c))
    }

    /// Memory that the kernel needs before it can look at the memory map.
    pub(crate) fn init_size(&self) -> u64 {
        u64::from(self.u32(0x260)).max(self.file_len.saturating_sub(self.code_offset()))
    }

    /// Where the kernel would like to be, and, if it can be elsewhere, at multiples of what.
    pub(crate) fn preferred(&self) -> (u64, Option<u64>) {
        let at = u64::from(self.u32(0x258)) | u64::from(self.u32(0x25c)) << 32;
        let alignment = u64::from(self.u32(0x230));
        (at, (self.u8(0x234) != 0 && alignment.is_power_of_two()).then_some(alignment))
    }

    /// Copies the protected-mode code to where the kernel is to be.
    pub(crate) fn load(&self, source: &Source, ram: &GuestRam, to: u64) -> Result<(), BootError> {
        let code = self.code_offset();
        source.copy_to_ram(code, source.len().saturating_sub(code), ram, to)
    }

    /// The packed kernel, with the length that is appended to it.
    pub(crate) fn payload(&self, source: &Source) -> Result<Vec<u8>, BootError> {
        let (offset, len) = (u64::from(self.u32(0x248)), u64::from(self.u32(0x24c)));
        source.read_vec(self.code_offset() + offset, len, "the packed kernel")
    }

    fn code_offset(&self) -> u64 {
        let sectors = match self.u8(HEADER) {
            0 => 4,
            sectors => u64::from(sectors),
        };
        (sectors + 1) * SECTOR
    }

    fn u8(&self, offset: usize) -> u8 {
        self.bytes.get(offset).copied().unwrap_or(0)
    }

    fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.u8(offset), self.u8(offset + 1)])
    }

    fn u32(&self, offset: usize) -> u32 {
        u32::from(self.u16(offset)) | u32::from(self.u16(offset + 2)) << 16
    }
}
