//! Direct boot: puts a Linux kernel (bzImage) or any PVH/ELF kernel into guest RAM and says how to enter it.
//!
//! Follows the Linux/x86 boot protocol (Documentation/arch/x86/boot.rst, protocol 2.12 and later, 64-bit entry) and the
//! x86/HVM direct boot ABI, PVH for short (Xen, docs/misc/pvh.pandoc, start info version 1).
//!
//! # What is entered how
//! | file | entry |
//! |---|---|
//! | bzImage | the ELF kernel inside is unpacked here and entered by its PVH note; if it has none, or is packed in a way that is not known here, the kernel's own decompressor is entered by the 64-bit protocol |
//! | ELF with a PVH note | PVH: 32-bit protected mode |
//! | ELF without it, if it is a Linux kernel | the 64-bit protocol, with identity page tables |
//!
//! Unpacking here saves a guest that is emulated 0.8 G instructions. The kernel then runs at the address it was linked
//! for: nothing relocates it, so KASLR does not take place ([`Unpack::InGuest`] leaves it to the guest).
//!
//! # Low memory
//! What the kernel is told lies below 0x40000, where no kernel is loaded; Linux copies it early and then owns the
//! memory. The hole from 640 KiB to 1 MiB is never used or announced as RAM.

mod bzimage;
mod elf;
mod error;
mod foreign;
mod linux64;
mod memory_map;
mod place;
mod pvh;
mod source;
mod unpack;

use std::ops::Range;
use std::path::Path;

use cardcage_accel::VcpuState;
use cardcage_memory::GuestRam;

pub use error::BootError;
pub use memory_map::{MemoryKind, MemoryMapEntry, memory_map};
pub use source::Source;

/// Who unpacks the kernel in a bzImage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unpack {
    /// This program, where it can.
    #[default]
    OnHost,
    /// The kernel's own decompressor: slower, but with KASLR.
    InGuest,
}

/// What the board tells a kernel beside its command line.
#[derive(Debug, Clone, Default)]
pub struct BootOptions {
    /// Guest-physical address of the ACPI root pointer, if there are tables.
    pub rsdp: Option<u64>,
    /// Ranges of RAM that hold ACPI tables; nothing is loaded there.
    pub acpi: Vec<Range<u64>>,
    /// Ranges of RAM that the guest must leave alone; nothing is loaded there.
    pub reserved: Vec<Range<u64>>,
    /// Who unpacks a bzImage.
    pub unpack: Unpack,
}

/// How a kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// PVH: 32-bit protected mode, paging off, EBX points at the start info.
    Pvh,
    /// Linux 64-bit boot protocol: long mode, identity page tables, RSI points at the zero page.
    Linux64,
}

/// A kernel that is ready to run.
#[derive(Debug, Clone)]
pub struct BootInfo {
    /// State in which the boot processor enters it.
    pub state: VcpuState,
    /// How it is entered.
    pub protocol: Protocol,
    /// Guest-physical addresses that the kernel takes, with its zeroed data.
    pub kernel: Range<u64>,
    /// Guest-physical addresses of the initial ramdisk.
    pub initrd: Option<Range<u64>>,
    /// What was found and done, for a log: `bzImage 2.15, zstd, PVH`.
    pub summary: String,
}

/// Loads a kernel from files. After an error guest RAM may hold parts of it, but nothing else has happened.
pub fn load(
    kernel: &Path,
    initrd: Option<&Path>,
    cmdline: &str,
    ram: &GuestRam,
    options: &BootOptions,
) -> Result<BootInfo, BootError> {
    let kernel = Source::open(kernel)?;
    let initrd = initrd.map(Source::open).transpose()?;
    load_sources(&kernel, initrd.as_ref(), cmdline, ram, options)
}

/// Loads a kernel from wherever its bytes are; see [`load`].
pub fn load_sources(
    kernel: &Source,
    initrd: Option<&Source>,
    cmdline: &str,
    ram: &GuestRam,
    options: &BootOptions,
) -> Result<BootInfo, BootError> {
    if let Some(at) = cmdline.find('\0') {
        return Err(BootError::CommandLineNul { at });
    }
    let job = Job { kernel, initrd, cmdline, ram, options };
    let start = kernel.head(0x1000)?;
    if elf::is_elf(&start) {
        let image = elf::Image::parse(kernel)?;
        return job.elf(kernel, &image, String::from("ELF"));
    }
    match bzimage::Header::parse(kernel, &start)? {
        Some(header) => job.bzimage(&header),
        None => Err(foreign::refuse(kernel, &start)),
    }
}

/// One call of [`load_sources`].
struct Job<'a> {
    kernel: &'a Source,
    initrd: Option<&'a Source>,
    cmdline: &'a str,
    ram: &'a GuestRam,
    options: &'a BootOptions,
}

impl Job<'_> {
    /// An ELF kernel, on its own or from a bzImage.
    fn elf(&self, from: &Source, image: &elf::Image, form: String) -> Result<BootInfo, BootError> {
        self.check_command_line(place::COMMAND_LINE_MAX)?;
        if let Some(entry) = image.pvh_entry() {
            let kernel = image.load(from, self.ram, &self.blocked())?;
            if !kernel.contains(&entry.into()) {
                let what = format!("its PVH entry {entry:#x} is outside of its segments");
                return Err(BootError::Damaged { path: from.name().into(), what });
            }
            let initrd = self.load_initrd(&kernel, u64::from(u32::MAX))?;
            let state = pvh::enter(self.ram, self.options, self.cmdline, entry, initrd.as_ref())?;
            let summary = format!("{form}, PVH entry at {entry:#x}");
            return Ok(BootInfo { state, protocol: Protocol::Pvh, kernel, initrd, summary });
        }
        if !image.is_linux(from)? {
            return Err(BootError::NoEntry { path: from.name().into() });
        }
        let entry = image.physical_entry(from)?;
        let kernel = image.load(from, self.ram, &self.blocked())?;
        let initrd = self.load_initrd(&kernel, u64::from(u32::MAX))?;
        let setup = linux64::Setup { header: None, entry, initrd: initrd.as_ref() };
        let state = linux64::enter(self.ram, self.options, self.cmdline, &setup)?;
        let summary = format!("{form}, 64-bit entry at {entry:#x}");
        Ok(BootInfo { state, protocol: Protocol::Linux64, kernel, initrd, summary })
    }

    fn bzimage(&self, header: &bzimage::Header) -> Result<BootInfo, BootError> {
        self.check_command_line(header.command_line_max())?;
        let (major, minor) = header.version();
        let form = format!("bzImage {major}.{minor}");
        if self.options.unpack == Unpack::OnHost
            && let Some(info) = self.unpacked(header, &form)?
        {
            return Ok(info);
        }
        let start = place::kernel(self.ram, &self.blocked(), header)?;
        let kernel = start..start.saturating_add(header.init_size());
        header.load(self.kernel, self.ram, start)?;
        let initrd = self.load_initrd(&kernel, header.initrd_max())?;
        let entry = start + bzimage::ENTRY_64;
        let setup = linux64::Setup { header: Some(header), entry, initrd: initrd.as_ref() };
        let state = linux64::enter(self.ram, self.options, self.cmdline, &setup)?;
        let summary = format!("{form}, unpacked by the guest, 64-bit entry at {entry:#x}");
        Ok(BootInfo { state, protocol: Protocol::Linux64, kernel, initrd, summary })
    }

    /// The kernel inside, if it can be got at and has a PVH entry.
    fn unpacked(&self, header: &bzimage::Header, form: &str) -> Result<Option<BootInfo>, BootError> {
        let payload = header.payload(self.kernel)?;
        let Some((format, bytes)) = unpack::unpack(self.kernel.name(), &payload, self.ram.size())? else {
            tracing::debug!(kernel = self.kernel.name(), "packed in an unknown way: the guest unpacks it");
            return Ok(None);
        };
        let inner = Source::bytes(self.kernel.name(), bytes);
        if !elf::is_elf(&inner.head(0x1000)?) {
            tracing::debug!(kernel = self.kernel.name(), "holds no ELF file: the guest unpacks it");
            return Ok(None);
        }
        let image = elf::Image::parse(&inner)?;
        if image.pvh_entry().is_none() {
            tracing::debug!(kernel = self.kernel.name(), "has no PVH entry: the guest unpacks it");
            return Ok(None);
        }
        self.elf(&inner, &image, format!("{form}, {format}")).map(Some)
    }

    fn check_command_line(&self, max: u64) -> Result<(), BootError> {
        let (len, max) = (self.cmdline.len() as u64, max.min(place::COMMAND_LINE_MAX));
        if len > max {
            return Err(BootError::CommandLineTooLong { path: self.kernel.name().into(), len, max });
        }
        Ok(())
    }

    /// RAM that nothing may be loaded to.
    fn blocked(&self) -> Vec<Range<u64>> {
        let mut blocked = vec![0..place::LOW_END, place::HOLE];
        blocked.extend(self.options.acpi.iter().chain(&self.options.reserved).cloned());
        blocked
    }

    /// Puts the initial ramdisk as high as it may be.
    fn load_initrd(&self, kernel: &Range<u64>, max: u64) -> Result<Option<Range<u64>>, BootError> {
        let Some(initrd) = self.initrd else { return Ok(None) };
        let mut blocked = self.blocked();
        blocked.push(0..0x10_0000);
        blocked.push(kernel.clone());
        let limit = max.saturating_add(1).min(1 << 32);
        let start = place::highest(self.ram, &blocked, initrd.len(), limit).ok_or_else(|| BootError::InitrdTooBig {
            path: initrd.name().into(),
            len: initrd.len(),
            limit,
            ram: self.ram.size(),
        })?;
        initrd.copy_to_ram(0, initrd.len(), self.ram, start)?;
        Ok(Some(start..start + initrd.len()))
    }
}

#[cfg(test)]
mod tests;
