//! Split virtqueues laid out by hand (virtio 1.2, section 2.7): what a driver in a guest would do, one step at a time.

use std::time::Instant;

use crate::{GuestAllocator, PATIENCE, Qtest};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Alignment of the used ring in the legacy layout.
const LEGACY_ALIGN: u64 = 4096;

/// Where the three parts of a queue are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLayout {
    /// Number of descriptors.
    pub size: u16,
    /// Descriptor table.
    pub desc: u64,
    /// Available ring.
    pub avail: u64,
    /// Used ring.
    pub used: u64,
}

impl QueueLayout {
    /// Finds cleared memory for a queue. The legacy layout is one block, in pages.
    pub fn alloc(qtest: &Qtest, memory: &GuestAllocator, size: u16, legacy: bool) -> Self {
        let entries = u64::from(size);
        let (avail, used_len) = (16 * entries, 6 + 8 * entries);
        let avail_end = avail + 6 + 2 * entries;
        let used = avail_end.next_multiple_of(if legacy { LEGACY_ALIGN } else { 4 });
        let desc = memory.alloc(used + used_len, LEGACY_ALIGN);
        qtest.memset(desc, usize::try_from(used + used_len).expect("a queue is small"), 0);
        Self { size, desc, avail: desc + avail, used: desc + used }
    }
}

/// A buffer that the device has given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// Head of its descriptor chain, as [`Virtqueue::add`] gave it.
    pub head: u16,
    /// Bytes that the device says it has written.
    pub len: u32,
}

/// The driver's side of one queue.
pub struct Virtqueue<'a> {
    qtest: &'a Qtest,
    layout: QueueLayout,
    free: Vec<u16>,
    /// Descriptors of each chain in flight, by head.
    chains: Vec<(u16, Vec<u16>)>,
    avail_index: u16,
    used_index: u16,
}

impl<'a> Virtqueue<'a> {
    /// A queue whose memory is cleared.
    pub fn new(qtest: &'a Qtest, layout: QueueLayout) -> Self {
        let free = (0..layout.size).rev().collect();
        Self { qtest, layout, free, chains: Vec::new(), avail_index: 0, used_index: 0 }
    }

    /// Where it is.
    pub fn layout(&self) -> QueueLayout {
        self.layout
    }

    /// Writes one descriptor, whatever it says: for tests of devices against bad drivers.
    pub fn write_descriptor(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        self.qtest.write(self.layout.desc + 16 * u64::from(index), &descriptor(addr, len, flags, next));
    }

    /// Puts a head into the available ring without checks. The device sees it after [`publish`](Self::publish).
    pub fn push_available(&mut self, head: u16) {
        let slot = u64::from(self.avail_index % self.layout.size);
        self.qtest.writew(self.layout.avail + 4 + 2 * slot, head);
        self.avail_index = self.avail_index.wrapping_add(1);
    }

    /// Adds a chain of buffers (address and length), first those that the device reads, then those that it writes.
    /// Gives its head. The device sees it after [`publish`](Self::publish).
    #[track_caller]
    pub fn add(&mut self, readable: &[(u64, u32)], writable: &[(u64, u32)]) -> u16 {
        let count = readable.len() + writable.len();
        assert!(count > 0 && count <= self.free.len(), "{count} buffers, {} descriptors free", self.free.len());
        let chain = self.free.split_off(self.free.len() - count);
        let buffers = readable.iter().map(|b| (b, 0)).chain(writable.iter().map(|b| (b, WRITE)));
        for (at, ((addr, len), flags)) in buffers.enumerate() {
            match chain.get(at + 1) {
                Some(next) => self.write_descriptor(chain[at], *addr, *len, flags | NEXT, *next),
                None => self.write_descriptor(chain[at], *addr, *len, flags, 0),
            }
        }
        self.begin(chain)
    }

    /// Adds the same chain through an indirect table, which is put at `table`.
    #[track_caller]
    pub fn add_indirect(&mut self, table: u64, readable: &[(u64, u32)], writable: &[(u64, u32)]) -> u16 {
        let count = readable.len() + writable.len();
        let buffers = readable.iter().map(|b| (b, 0)).chain(writable.iter().map(|b| (b, WRITE)));
        let mut bytes = Vec::new();
        for (at, ((addr, len), flags)) in buffers.enumerate() {
            let next = if at + 1 < count { NEXT } else { 0 };
            bytes.extend(descriptor(*addr, *len, flags | next, u16::try_from(at + 1).expect("a table is small")));
        }
        self.qtest.write(table, &bytes);
        let index = self.free.pop().expect("a descriptor is free");
        let len = u32::try_from(bytes.len()).expect("a table is small");
        self.write_descriptor(index, table, len, INDIRECT, 0);
        self.begin(vec![index])
    }

    fn begin(&mut self, chain: Vec<u16>) -> u16 {
        let head = chain[0];
        self.chains.push((head, chain));
        self.push_available(head);
        head
    }

    /// Lets the device see what has been added. It looks when it is notified.
    pub fn publish(&self) {
        self.qtest.writew(self.layout.avail + 2, self.avail_index);
    }

    /// Asks the device to interrupt, or not to.
    pub fn set_no_interrupt(&self, no_interrupt: bool) {
        self.qtest.writew(self.layout.avail, u16::from(no_interrupt));
    }

    /// The next buffer that the device has given back, if there is one.
    #[track_caller]
    pub fn poll_used(&mut self) -> Option<Used> {
        if self.qtest.readw(self.layout.used + 2) == self.used_index {
            return None;
        }
        let slot = self.layout.used + 4 + 8 * u64::from(self.used_index % self.layout.size);
        let (id, len) = (self.qtest.readl(slot), self.qtest.readl(slot + 4));
        let at = self.chains.iter().position(|(head, _)| u32::from(*head) == id);
        let at = at.unwrap_or_else(|| panic!("the device gives back buffer {id}, which it does not have"));
        let (head, chain) = self.chains.swap_remove(at);
        self.free.extend(chain.into_iter().rev());
        self.used_index = self.used_index.wrapping_add(1);
        Some(Used { head, len })
    }

    /// Waits for the next buffer that the device gives back.
    #[track_caller]
    pub fn wait_used(&mut self) -> Used {
        let start = Instant::now();
        loop {
            if let Some(used) = self.poll_used() {
                return used;
            }
            assert!(start.elapsed() < PATIENCE, "the device gives no buffer back within {PATIENCE:?}");
            std::thread::yield_now();
        }
    }
}

fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let value = u128::from(addr) | u128::from(len) << 64 | u128::from(flags) << 96 | u128::from(next) << 112;
    value.to_le_bytes()
}
