//! Decoded blocks: how they are found, and how they die when their code changes.
//!
//! A block is known by its instruction pointer, the physical address of its first byte and the processor's mode. It
//! covers bytes of one page, or of two if its last instruction crosses into the next. While a page has blocks, its
//! bit in the watch bitmap of [`cardcage_memory::GuestRam`] is set, and no TLB has a write tag for it. Stores to such a
//! page come to [`Cpu::note_store`], which kills the blocks that overlap the bytes written; stores by devices set the
//! page's dirty bit and are noticed by [`Cpu::check_device_writes`] at serialising points.
//!
//! A dead block's operations are replaced by [`op::stale`], so threaded code that is inside it, or that reaches it
//! through a link, leaves before the next instruction. Its memory is kept until [`Cpu::trim_blocks`] or
//! [`Cpu::flush_blocks`] frees it, which run only when no handler is active.
//!
//! Most code runs once and never again. So when blocks have come to take much memory, a new generation begins: every
//! link and every entry of the jump cache is looked up again, which marks the blocks that are still in use. Once more
//! code has been decoded, those without the mark are freed.
#![expect(unsafe_code, reason = "blocks are boxed rows that operations point into")]

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::Ordering;

use iced_x86::Instruction;

use crate::fault::Res;
use crate::lower;
use crate::op::{self, Op, flag};
use crate::paging::Access;
use crate::state::{CS, Cpu, mode};

/// Bytes of blocks above which all are dropped, even if they are in use.
const CAPACITY: usize = 96 << 20;
/// Bytes of blocks at which a new generation begins, unless more than that is in use.
const ENOUGH: usize = 6 << 20;
/// Bytes that are added before blocks without the mark of the present generation are freed.
const SLICE: usize = 2 << 20;
/// What a block costs beside its row and its instructions: itself, its places in the maps, the allocator's own.
const OVERHEAD: usize = 192;
/// No page.
const NONE: u64 = u64::MAX;

/// One decoded block.
pub(crate) struct Block {
    pub(crate) rip: u64,
    phys: u64,
    /// Bytes of code.
    len: u32,
    /// The second page, if the block crosses into one.
    second: u64,
    mode: u8,
    dead: bool,
    /// When it was last looked up.
    generation: u32,
    row: Box<[Op]>,
    /// Instructions that handlers of rare ones look at.
    instructions: Box<[Instruction]>,
}

impl Block {
    /// Memory that it takes.
    fn bytes(&self) -> usize {
        size_of_val::<[Op]>(&self.row) + size_of_val::<[Instruction]>(&self.instructions) + OVERHEAD
    }

    /// The 64-byte lines of `page` that its code is on.
    fn lines_on(&self, page: u64) -> u64 {
        let (start, end) = if self.phys & !0xfff == page {
            (self.phys & 0xfff, ((self.phys & 0xfff) + u64::from(self.len)).min(0x1000))
        } else {
            (0, ((self.phys & 0xfff) + u64::from(self.len)).saturating_sub(0x1000))
        };
        lines(start, end.saturating_sub(start).max(1))
    }
}

/// An entry of the jump cache.
#[derive(Clone, Copy)]
pub(crate) struct JumpEntry {
    pub(crate) tag: u64,
    pub(crate) op: *const Op,
}

impl JumpEntry {
    /// No canonical address has this tag: bits 63 and 47 differ, and no key changes either.
    pub(crate) const EMPTY: JumpEntry = JumpEntry { tag: 1 << 63, op: std::ptr::null() };
}

/// A hash for keys that are addresses.
#[derive(Default)]
pub(crate) struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.write_u64(u64::from(b));
        }
    }
    fn write_u64(&mut self, v: u64) {
        let h = (self.0.rotate_left(26) ^ v).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = h ^ (h >> 32);
    }
}

type Map<K, V> = HashMap<K, V, BuildHasherDefault<AddressHasher>>;

/// What is known of a physical page with code.
#[derive(Default)]
struct CodePage {
    /// 64-byte lines that some block overlaps.
    lines: u64,
    blocks: Vec<*mut Block>,
}

impl CodePage {
    /// Works out `lines` anew.
    fn recount(&mut self, page: u64) {
        // SAFETY: pages list live blocks only.
        self.lines = self.blocks.iter().fold(0, |all, &b| all | unsafe { &*b }.lines_on(page));
    }
}

/// All blocks of one processor.
#[derive(Default)]
pub(crate) struct Cache {
    /// By instruction pointer, and physical address with the mode in the low bits of a shifted word.
    map: Map<(u64, u64), *mut Block>,
    pages: Map<u64, CodePage>,
    #[expect(clippy::vec_box, reason = "blocks are pointed at and must not move")]
    all: Vec<Box<Block>>,
    bytes: usize,
    /// Whether blocks have died since links were last looked up again because of that, by bit 63 of their address.
    dead_since_epoch: [bool; 2],
    generation: u32,
    /// Bytes at which the next step is taken: a new generation, or freeing what is not of the present one.
    next_step: usize,
    /// The step is to free blocks.
    marking: bool,
}

impl Cache {
    /// Makes every link be looked up again.
    pub(crate) fn unlink_all(&mut self) {
        for block in &self.all {
            for (i, op) in block.row.iter().enumerate() {
                if op.flags & flag::LINK != 0 && i > 0 {
                    block.row[i - 1].link_at(0).resolve(std::ptr::null(), 0);
                }
            }
        }
    }
}

/// The code bytes that a block can be made of.
pub(crate) struct Code {
    pub(crate) bytes: [u8; 4096 + 16],
    pub(crate) start: usize,
    /// Bytes up to the end of the first page.
    pub(crate) first: usize,
    /// Bytes in all.
    pub(crate) len: usize,
}

impl Cpu {
    /// The row at `rip` in the present mode; null if fetching faults (the fault is then noted).
    pub(crate) fn find_block(&mut self, rip: u64) -> *const Op {
        let entry = self.jumps[(rip & 0xffff) as usize];
        if entry.tag == rip ^ self.key[(rip >> 63) as usize] {
            return entry.op;
        }
        match self.look_up_block(rip) {
            Ok(op) => {
                let tag = rip ^ self.key[(rip >> 63) as usize];
                self.jumps[(rip & 0xffff) as usize] = JumpEntry { tag, op };
                op
            }
            Err(fault) => {
                self.fault = Some(fault);
                self.fault_op = std::ptr::null();
                self.rip = rip;
                std::ptr::null()
            }
        }
    }

    fn look_up_block(&mut self, rip: u64) -> Res<*const Op> {
        let linear = self.code_address(rip)?;
        let phys = self.translate_code(linear)?;
        let key = (rip, phys << 8 | u64::from(self.mode));
        if let Some(&block) = self.cache.map.get(&key) {
            // SAFETY: the map holds live blocks only; `all` owns them.
            let block = unsafe { &mut *block };
            block.generation = self.cache.generation;
            if block.second == NONE {
                return Ok(block.row.as_ptr());
            }
            let next = self.translate_code(self.wrap((linear | 0xfff).wrapping_add(1)))?;
            if next & !0xfff == block.second {
                return Ok(block.row.as_ptr());
            }
            let stale: *mut Block = block;
            self.kill(stale);
        }
        self.build(rip, linear, phys)
    }

    /// The linear address of code at `rip`.
    fn code_address(&self, rip: u64) -> Res<u64> {
        if self.is_long() {
            self.check_linear(rip, 1, false)?;
            return Ok(rip);
        }
        let cs = &self.segs[CS];
        if rip > u64::from(cs.limit) {
            return Err(crate::fault::Fault::GP);
        }
        Ok(cs.base.wrapping_add(rip) & 0xffff_ffff)
    }

    /// Translates for instruction fetch, with a small cache in front.
    fn translate_code(&mut self, linear: u64) -> Res<u64> {
        let page = linear & !0xfff;
        let user = self.mode & mode::USER != 0;
        let tag = page | if user { 2 } else { 0 };
        let half = (linear >> 63) as usize;
        let at = (page >> 12) as usize & 255;
        let e = self.code_tlb.entries[at];
        if e.tag == tag && e.epoch == self.epoch[half] {
            return Ok(e.phys | (linear & 0xfff));
        }
        let m = self.translate(linear, Access::Fetch, user)?;
        if half == 1 && !m.global {
            self.local_code_above = true;
        }
        self.code_tlb.note(page);
        self.code_tlb.entries[at] = crate::tlb::CodeEntry { tag, phys: m.phys & !0xfff, epoch: self.epoch[half] };
        Ok(m.phys)
    }

    fn build(&mut self, rip: u64, linear: u64, phys: u64) -> Res<*const Op> {
        let page = phys & !0xfff;
        self.watch_code(page);
        let mut code = Code { bytes: [0; 4096 + 16], start: 0, first: 0, len: 0 };
        code.start = (phys & 0xfff) as usize;
        code.first = 0x1000 - code.start;
        code.len = code.first;
        self.fetch(phys, &mut code.bytes[..code.first]);
        let mut second = NONE;
        if lower::needs_more(self, rip, &code) {
            let next = self.translate_code(self.wrap((linear | 0xfff).wrapping_add(1)))?;
            second = next & !0xfff;
            self.watch_code(second);
            let first = code.first;
            self.fetch(second, &mut code.bytes[first..first + 15]);
            code.len = first + 15;
        }
        let lowered = lower::block(self, rip, &code)?;
        let mut row = lowered.row;
        let block = Box::new(Block {
            rip,
            phys,
            len: lowered.len,
            second,
            mode: self.mode,
            dead: false,
            generation: self.cache.generation,
            row: Box::default(),
            instructions: lowered.instructions,
        });
        let mut last = Op::new(op::end);
        last.flags = flag::END;
        last.n = lowered.count;
        last.offset = lowered.len as u16;
        last.imm = &raw const *block as u64;
        row.push(last);
        self.cache.all.push(block);
        let Some(block) = self.cache.all.last_mut() else { return Err(crate::fault::Fault::Trouble) };
        block.row = row.into_boxed_slice();
        self.cache.bytes += block.bytes();
        let entry = block.row.as_ptr();
        let pointer: *mut Block = &raw mut **block;
        self.cache.map.insert((rip, phys << 8 | u64::from(self.mode)), pointer);
        let in_first = u64::from(lowered.len).min(0x1000 - (phys & 0xfff));
        let entry_page = self.cache.pages.entry(page).or_default();
        entry_page.lines |= lines(phys & 0xfff, in_first);
        entry_page.blocks.push(pointer);
        if second != NONE {
            let entry_page = self.cache.pages.entry(second).or_default();
            entry_page.lines |= lines(0, u64::from(lowered.len).saturating_sub(in_first).max(1));
            entry_page.blocks.push(pointer);
        }
        Ok(entry)
    }

    /// Copies code bytes of one page.
    fn fetch(&mut self, phys: u64, buf: &mut [u8]) {
        if self.ram.read(phys, buf).is_err() {
            for (i, byte) in buf.iter_mut().enumerate() {
                *byte = self.read_phys(phys + i as u64, 1) as u8;
            }
        }
    }

    /// From here on, stores to the page are noticed.
    fn watch_code(&mut self, page: u64) {
        if self.ram.is_watched(page) || !self.ram.watch(page) {
            return;
        }
        // What was written before is in the bytes that are read next; only later writes matter.
        clear_dirty(&self.ram, page);
        if let Some(host) = self.ram.host_address(page, 0x1000) {
            self.tlb.protect(host as u64);
        }
    }

    /// Bytes of RAM were written by this processor: drops the blocks that overlap them.
    #[inline]
    pub(crate) fn note_store(&mut self, phys: u64, len: u64) {
        if self.ram.is_watched(phys) {
            self.drop_code(phys, len);
        }
    }

    /// Kills all blocks that overlap `len` bytes at `phys`, all of one page.
    fn drop_code(&mut self, phys: u64, len: u64) {
        let page = phys & !0xfff;
        let hit = lines(phys & 0xfff, len);
        let Some(info) = self.cache.pages.get(&page) else { return };
        if info.lines & hit == 0 {
            return;
        }
        let mut doomed = Vec::new();
        for &block in &info.blocks {
            // SAFETY: pages list live blocks only.
            if unsafe { &*block }.lines_on(page) & hit != 0 {
                doomed.push(block);
            }
        }
        for block in doomed {
            self.kill(block);
        }
    }

    /// Makes a block unreachable and its operations stale.
    fn kill(&mut self, block: *mut Block) {
        // SAFETY: callers pass live blocks; `all` keeps the memory until blocks are freed. No reference to the block's
        // fields other than its row exists outside this module's functions.
        let (rip, phys, second, mode) = unsafe {
            let b = &mut *block;
            if b.dead {
                return;
            }
            b.dead = true;
            for op in &b.row {
                if op.flags & flag::START != 0 {
                    op.f.set(op::stale);
                }
            }
            (b.rip, b.phys, b.second, b.mode)
        };
        self.cache.map.remove(&(rip, phys << 8 | u64::from(mode)));
        let entry = &mut self.jumps[(rip & 0xffff) as usize];
        // The cache may hold the dead row under a tag of the present epoch.
        // SAFETY: as above.
        if entry.op == unsafe { (*block).row.as_ptr() } {
            *entry = JumpEntry::EMPTY;
        }
        for page in [phys & !0xfff, second] {
            let Some(info) = self.cache.pages.get_mut(&page) else { continue };
            info.blocks.retain(|&b| b != block);
            if info.blocks.is_empty() {
                self.cache.pages.remove(&page);
                self.ram.unwatch(page);
            } else {
                info.recount(page);
            }
        }
        // Links into the block lead to `op::stale`, which ends the epoch if ever it is run.
        self.cache.dead_since_epoch[(rip >> 63) as usize] = true;
    }

    /// Makes links be looked up again if some may lead to dead blocks in the half of the address space that `rip` is in.
    pub(crate) fn forget_dead_links(&mut self, rip: u64) {
        let half = (rip >> 63) as usize;
        if self.cache.dead_since_epoch[half] {
            self.cache.dead_since_epoch[half] = false;
            self.new_epoch_of(half);
        }
    }

    /// Drops what devices or the host have overwritten. Called where the processor serialises.
    #[inline]
    pub(crate) fn check_device_writes(&mut self) {
        if self.ram.watch_hits().load(Ordering::Acquire) != self.watch_hits_seen {
            self.drop_written_pages();
        }
    }

    #[cold]
    fn drop_written_pages(&mut self) {
        self.watch_hits_seen = self.ram.watch_hits().load(Ordering::SeqCst);
        let pages: Vec<u64> = self.cache.pages.keys().copied().filter(|&page| clear_dirty(&self.ram, page)).collect();
        for page in pages {
            self.drop_code(page, 0x1000);
        }
    }

    /// Keeps the memory that blocks take within bounds. Only from the run loop, when no handler is active.
    pub(crate) fn trim_blocks(&mut self) {
        if self.cache.bytes <= self.cache.next_step.max(ENOUGH) {
            return;
        }
        if self.cache.bytes > CAPACITY {
            self.flush_blocks();
        } else if !self.cache.marking {
            self.cache.generation = self.cache.generation.wrapping_add(1);
            self.cache.marking = true;
            self.cache.next_step = self.cache.bytes + SLICE;
            self.new_epoch();
        } else {
            self.free_unmarked();
            self.cache.marking = false;
            self.cache.next_step = self.cache.bytes + (self.cache.bytes / 2).max(SLICE);
        }
    }

    /// Frees the blocks that have not been looked up in the present generation, and dead ones.
    fn free_unmarked(&mut self) {
        // Since the generation began, links and jumps were resolved to marked blocks only; but some may have died.
        self.forget_dead_links(0);
        self.forget_dead_links(u64::MAX);
        self.fault_op = std::ptr::null();
        let now = self.cache.generation;
        // SAFETY: map and pages list live blocks only; `all`, which owns them, comes last.
        let marked = |b: *mut Block| unsafe { (*b).generation == now };
        self.cache.map.retain(|_, b| marked(*b));
        let ram = &self.ram;
        self.cache.pages.retain(|&page, info| {
            info.blocks.retain(|&b| marked(b));
            if info.blocks.is_empty() {
                ram.unwatch(page);
                return false;
            }
            info.blocks.shrink_to_fit();
            info.recount(page);
            true
        });
        self.cache.all.retain(|b| !b.dead && b.generation == now);
        self.cache.bytes = self.cache.all.iter().map(|b| b.bytes()).sum();
    }

    /// Drops all blocks and frees them. Only from the run loop, when no handler is active.
    pub(crate) fn flush_blocks(&mut self) {
        for &page in self.cache.pages.keys() {
            self.ram.unwatch(page);
        }
        self.cache = Cache::default();
        self.jumps.fill(JumpEntry::EMPTY);
        self.fault_op = std::ptr::null();
        self.new_epoch();
    }
}

/// Clears the dirty bit of a page; whether it was set.
fn clear_dirty(ram: &cardcage_memory::GuestRam, page: u64) -> bool {
    ram.find(page, 1).is_some_and(|(region, offset)| {
        let page = offset >> cardcage_memory::PAGE_SHIFT;
        let bit = 1 << (page % 64);
        region.dirty_bitmap()[(page / 64) as usize].fetch_and(!bit, Ordering::SeqCst) & bit != 0
    })
}

/// The 64-byte lines of a page that `len` bytes at `offset` touch.
fn lines(offset: u64, len: u64) -> u64 {
    let first = offset >> 6;
    let last = (offset + len.max(1) - 1).min(0xfff) >> 6;
    (u64::MAX >> (63 - last)) & (u64::MAX << first)
}

#[cfg(test)]
mod tests {
    use super::lines;

    #[test]
    fn lines_cover_what_is_touched() {
        assert_eq!(lines(0, 1), 1);
        assert_eq!(lines(63, 2), 3);
        assert_eq!(lines(0xfff, 1), 1 << 63);
        assert_eq!(lines(0, 0x1000), u64::MAX);
        assert_eq!(lines(64, 64), 2);
    }
}
