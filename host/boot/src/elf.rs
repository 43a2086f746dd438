//! ELF kernels: headers, segments, and the PVH entry note (System V ABI, x86-64 supplement; Xen, elfnote.h).

use std::ops::Range;

use cardcage_memory::GuestRam;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::{BootError, Source, place};

const MAGIC: &[u8] = b"\x7fELF";
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const TYPE_EXECUTABLE: u16 = 2;
const TYPE_SHARED: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// XEN_ELFNOTE_PHYS32_ENTRY.
const PHYS32_ENTRY: u32 = 18;
/// Most bytes of notes that are looked at.
const NOTES_MAX: u64 = 1 << 20;
/// What every Linux kernel has in its data.
const LINUX_BANNER: &[u8] = b"Linux version ";

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct FileHeader {
    magic: [u8; 4],
    class: u8,
    data: u8,
    ident: [u8; 10],
    kind: U16,
    machine: U16,
    version: U32,
    entry: U64,
    program_headers: U64,
    section_headers: U64,
    flags: U32,
    header_size: U16,
    program_header_size: U16,
    program_header_count: U16,
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct ProgramHeader {
    kind: U32,
    flags: U32,
    offset: U64,
    virtual_address: U64,
    physical_address: U64,
    file_size: U64,
    memory_size: U64,
    alignment: U64,
}

/// An ELF kernel of which the headers were read.
pub(crate) struct Image {
    entry: u64,
    segments: Vec<ProgramHeader>,
    pvh_entry: Option<u32>,
}

/// Whether a file that begins with these bytes is ELF.
pub(crate) fn is_elf(start: &[u8]) -> bool {
    start.starts_with(MAGIC)
}

impl Image {
    /// Reads the headers and the notes.
    pub(crate) fn parse(source: &Source) -> Result<Self, BootError> {
        let bytes = source.read_vec(0, size_of::<FileHeader>() as u64, "the ELF header")?;
        let damaged = |what: &str| BootError::Damaged { path: source.name().into(), what: what.into() };
        let (header, _) = FileHeader::read_from_prefix(&bytes).map_err(|_| damaged("its ELF header is too short"))?;
        check_machine(source, &header)?;
        let count = u64::from(header.program_header_count.get());
        let size = size_of::<ProgramHeader>() as u64;
        if count == 0 || u64::from(header.program_header_size.get()) != size {
            return Err(damaged("it has no ELF program headers of 56 bytes, so there is nothing to load"));
        }
        let table = source.read_vec(header.program_headers.get(), count * size, "its program headers")?;
        let headers = <[ProgramHeader]>::ref_from_bytes(&table).map_err(|_| damaged("its program headers are cut"))?;
        let segments: Vec<_> = headers.iter().filter(|h| h.kind == PT_LOAD && h.memory_size != 0).copied().collect();
        if segments.is_empty() {
            return Err(damaged("it has no loadable segment"));
        }
        let mut pvh_entry = None;
        for note in headers.iter().filter(|h| h.kind == PT_NOTE) {
            let len = note.file_size.get().min(NOTES_MAX);
            let bytes = source.read_vec(note.offset.get(), len, "its notes")?;
            pvh_entry = pvh_entry.or(find_pvh_entry(&bytes, note.alignment.get()));
        }
        Ok(Self { entry: header.entry.get(), segments, pvh_entry })
    }

    /// The 32-bit entry of the PVH note.
    pub(crate) fn pvh_entry(&self) -> Option<u32> {
        self.pvh_entry
    }

    /// Physical address of the entry of the ELF header. Linux gives a physical one; others give a virtual one.
    pub(crate) fn physical_entry(&self, source: &Source) -> Result<u64, BootError> {
        let inside = |start: u64, s: &ProgramHeader| {
            self.entry.checked_sub(start).filter(|&offset| offset < s.memory_size.get())
        };
        let physical = self.segments.iter().any(|s| inside(s.physical_address.get(), s).is_some());
        let from_virtual = || {
            let translate = |s: &ProgramHeader| {
                inside(s.virtual_address.get(), s).and_then(|offset| s.physical_address.get().checked_add(offset))
            };
            self.segments.iter().find_map(translate)
        };
        (if physical { Some(self.entry) } else { from_virtual() }).ok_or_else(|| BootError::Damaged {
            path: source.name().into(),
            what: format!("its entry {:#x} is in none of its segments", self.entry),
        })
    }

    /// Whether it is a Linux kernel, by the banner in its data.
    pub(crate) fn is_linux(&self, source: &Source) -> Result<bool, BootError> {
        const STEP: u64 = 1 << 20;
        for segment in &self.segments {
            let (offset, len) = (segment.offset.get(), segment.file_size.get());
            let mut done = 0;
            while done < len {
                // Pieces overlap, so that a banner on a border is seen.
                let part = (len - done).min(STEP + LINUX_BANNER.len() as u64);
                let bytes = source.read_vec(offset.saturating_add(done), part, "a segment")?;
                if bytes.windows(LINUX_BANNER.len()).any(|window| window == LINUX_BANNER) {
                    return Ok(true);
                }
                done += STEP;
            }
        }
        Ok(false)
    }

    /// Copies the segments to their physical addresses, and gives the range that they take.
    pub(crate) fn load(
        &self,
        source: &Source,
        ram: &GuestRam,
        blocked: &[Range<u64>],
    ) -> Result<Range<u64>, BootError> {
        let (mut first, mut last) = (u64::MAX, 0);
        for segment in &self.segments {
            let start = segment.physical_address.get();
            let end = start.saturating_add(segment.memory_size.get());
            if !place::is_free(ram, blocked, &(start..end)) {
                return Err(BootError::KernelTooBig { path: source.name().into(), start, end, ram: ram.size() });
            }
            if segment.file_size > segment.memory_size {
                let what = format!("its segment at {start:#x} has more bytes in the file than in memory");
                return Err(BootError::Damaged { path: source.name().into(), what });
            }
            let (needed, len) = (segment.offset.get().saturating_add(segment.file_size.get()), source.len());
            if needed > len {
                return Err(BootError::Truncated { path: source.name().into(), what: "a segment", needed, len });
            }
            (first, last) = (first.min(start), last.max(end));
        }
        for segment in &self.segments {
            let (start, len) = (segment.physical_address.get(), segment.file_size.get());
            source.copy_to_ram(segment.offset.get(), len, ram, start)?;
            // Not left as it is: after a reset the memory holds what the last kernel put there.
            let zeroes = segment.memory_size.get() - len;
            ram.fill(start + len, zeroes, 0).map_err(|_| BootError::KernelTooBig {
                path: source.name().into(),
                start,
                end: last,
                ram: ram.size(),
            })?;
        }
        Ok(first..last)
    }
}

fn check_machine(source: &Source, header: &FileHeader) -> Result<(), BootError> {
    let path = || source.name().to_string();
    let machine = header.machine.get();
    if header.class == CLASS_64 && header.data == LITTLE_ENDIAN && machine == MACHINE_X86_64 {
        return match header.kind.get() {
            TYPE_EXECUTABLE | TYPE_SHARED => Ok(()),
            1 => Err(BootError::NotAKernel { path: path(), found: "an ELF object file, not linked".into() }),
            4 => Err(BootError::NotAKernel { path: path(), found: "an ELF core dump".into() }),
            kind => Err(BootError::NotAKernel { path: path(), found: format!("an ELF file of type {kind}") }),
        };
    }
    // The first bytes of the machine number are in the file's own byte order.
    let number = if header.data == LITTLE_ENDIAN { machine } else { machine.swap_bytes() };
    let name = match number {
        3 => "32-bit x86 (i386)",
        8 => "MIPS",
        20 => "32-bit PowerPC",
        21 => "64-bit PowerPC",
        22 => "s390",
        40 => "32-bit Arm",
        MACHINE_X86_64 => "x32 (32-bit ELF for x86-64)",
        183 => "arm64 (AArch64)",
        243 => "RISC-V",
        258 => "LoongArch",
        _ => "another architecture",
    };
    Err(BootError::Architecture { path: path(), found: format!("{name}, ELF machine {number}") })
}

/// The entry in a list of notes, if the PVH note is among them.
fn find_pvh_entry(mut notes: &[u8], alignment: u64) -> Option<u32> {
    let alignment: usize = if alignment == 8 { 8 } else { 4 };
    while let Some((head, rest)) = notes.split_first_chunk::<12>() {
        let [name_len, desc_len, kind] = [0, 4, 8].map(|at| u32_at(head, at));
        let desc_at = (name_len as usize).checked_next_multiple_of(alignment)?;
        let end = desc_at.checked_add(desc_len as usize)?;
        if kind == PHYS32_ENTRY && rest.get(..name_len as usize)? == b"Xen\0" {
            return rest.get(desc_at..end)?.first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes));
        }
        notes = rest.get(end.checked_next_multiple_of(alignment)?..)?;
    }
    None
}

fn u32_at(bytes: &[u8; 12], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk::<4>()).map_or(0, |chunk| u32::from_le_bytes(*chunk))
}
