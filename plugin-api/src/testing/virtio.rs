//! A virtio driver for tests: it lays out split virtqueues (virtio 1.2, section 2.7) in guest RAM.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

use cardcage_plugin_abi as abi;
use cardcage_plugin_abi::abi_stable::{sabi_trait::TD_Opaque, std_types::*};

use super::device::{SavedState, TestDevice};
use super::host::TestHost;
use super::services::DriverLink;
use crate::memory::{Bytes, GuestAddress};
use crate::virtio::{F_EVENT_IDX, F_VERSION_1};
use crate::{ResetKind, Result, VirtioDevice, export, from_abi};

/// VIRTQ_DESC_F_NEXT.
pub const DESC_NEXT: u16 = 1;
/// VIRTQ_DESC_F_WRITE.
pub const DESC_WRITE: u16 = 2;

const RINGS: u64 = 0x1000;
const BUFFERS: u64 = 0x40_0000;

/// A virtio device with its driver.
///
/// ```no_run
/// # use cardcage_plugin_api::{testing::*, *};
/// # fn story<Echo: VirtioDevice>() -> Result<()> {
/// let mut device = TestVirtio::new::<Echo>(&TestHost::new(), &[])?;
/// device.start(u64::MAX)?;
/// let buffer = device.add(0, &[b"hello"], &[16]);
/// device.kick(0);
/// assert_eq!(device.used(0), [Used { head: buffer.head, len: 5 }]);
/// assert_eq!(&device.written(&buffer)[..5], b"hello");
/// # Ok(()) }
/// ```
pub struct TestVirtio {
    device: TestDevice,
    features: u64,
    queues: Vec<Ring>,
    next_buffer: u64,
}

/// A queue, as the driver keeps it.
#[derive(Clone)]
struct Ring {
    size: u16,
    desc: u64,
    avail: u64,
    used: u64,
    available: u16,
    seen: u16,
    free: Vec<u16>,
    /// Descriptors of each chain that the device has, by its head.
    chains: BTreeMap<u16, Vec<u16>>,
}

impl Ring {
    fn new(size: u16, at: u64) -> Self {
        let (desc, n) = (at, u64::from(size));
        let avail = desc + 16 * n;
        let used = (avail + 6 + 2 * n).next_multiple_of(4);
        let free = (0..size).rev().collect();
        Self { size, desc, avail, used, available: 0, seen: 0, free, chains: BTreeMap::new() }
    }
    fn end(&self) -> u64 {
        (self.used + 6 + 8 * u64::from(self.size)).next_multiple_of(4096)
    }
}

/// A chain that the driver has made available.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buffer {
    /// Index of its first descriptor.
    pub head: u16,
    /// Guest-physical address and length of each device-writable part.
    pub writable: Vec<(u64, u32)>,
}

/// An element of the used ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// Index of the chain's first descriptor.
    pub head: u16,
    /// Number of bytes that the device says it has written.
    pub len: u32,
}

impl Deref for TestVirtio {
    type Target = TestDevice;
    fn deref(&self) -> &TestDevice {
        &self.device
    }
}
impl DerefMut for TestVirtio {
    fn deref_mut(&mut self) -> &mut TestDevice {
        &mut self.device
    }
}

impl TestVirtio {
    /// Makes a device. The driver does nothing yet.
    pub fn new<D: VirtioDevice>(host: &TestHost, properties: &[(&str, &str)]) -> Result<Self> {
        Ok(Self::of_device(TestDevice::of_class(export::virtio_class::<D>(), host, properties)?))
    }

    pub(super) fn of_device(device: TestDevice) -> Self {
        Self { device, features: 0, queues: Vec::new(), next_buffer: BUFFERS }
    }

    /// The features that the device offers.
    pub fn offered(&self) -> u64 {
        self.device.device.virtio_features() | F_VERSION_1
    }
    /// The features that were agreed on at the last start.
    pub fn features(&self) -> u64 {
        self.features
    }
    /// Number of queues that the device has.
    pub fn queue_count(&self) -> usize {
        self.device.device.virtio_queues().len()
    }

    /// Accepts what is offered of `wanted`, sets up all queues and starts the device (DRIVER_OK).
    pub fn start(&mut self, wanted: u64) -> Result<()> {
        self.features = self.offered() & (wanted | F_VERSION_1);
        let mut at = RINGS;
        self.queues.clear();
        for &size in &self.device.device.virtio_queues() {
            let ring = Ring::new(size, at);
            assert!(ring.end() <= BUFFERS, "the queues do not fit the test's RAM");
            self.zero(at, ring.end() - at);
            at = ring.end();
            self.queues.push(ring);
        }
        self.activate()
    }

    fn activate(&mut self) -> Result<()> {
        let setup = |(index, r): (usize, &Ring)| abi::QueueSetup {
            index: index as u16,
            size: r.size,
            desc: r.desc,
            avail: r.avail,
            used: r.used,
        };
        let setups: RVec<_> = self.queues.iter().enumerate().map(setup).collect();
        let link = DriverLink(self.device.host.0.clone());
        let link = abi::VirtioLinkAbi_TO::from_ptr(RArc::new(link), TD_Opaque);
        from_abi(self.device.device.virtio_activate(self.features, setups, link))
    }

    /// Resets the device as a driver does.
    pub fn driver_reset(&mut self) {
        self.device.device.virtio_reset();
        self.device.host.0.state().needs_reset = false;
    }

    /// Resets the whole device with its transport: the driver has to start again.
    pub fn reset(&mut self, kind: ResetKind) {
        self.driver_reset();
        self.queues.clear();
        self.device.reset(kind);
    }

    fn zero(&self, at: u64, len: u64) {
        self.put(at, &vec![0; len as usize]);
    }
    fn put(&self, at: u64, data: &[u8]) {
        self.device.host.memory().write_slice(data, GuestAddress(at)).expect("test buffers are in RAM");
    }
    fn get<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut data = [0; N];
        self.device.host.memory().read_slice(&mut data, GuestAddress(at)).expect("test buffers are in RAM");
        data
    }

    /// Address of `len` bytes of RAM for a buffer. After some megabytes the space is used anew.
    pub fn allocate(&mut self, len: u64) -> u64 {
        let end = self.device.host.0.ram.len();
        if self.next_buffer + len > end {
            self.next_buffer = BUFFERS;
        }
        let at = self.next_buffer;
        assert!(at + len <= end, "a buffer of {len} bytes does not fit the test's RAM");
        self.next_buffer = (at + len).next_multiple_of(16);
        at
    }

    /// Makes a chain available: parts that the device reads, filled with these bytes, then parts that it may write.
    pub fn add(&mut self, queue: u16, readable: &[&[u8]], writable: &[u32]) -> Buffer {
        let mut parts = Vec::new();
        for data in readable {
            let at = self.allocate(data.len() as u64);
            self.put(at, data);
            parts.push((at, data.len() as u32, 0));
        }
        let writable: Vec<_> = writable.iter().map(|&len| (self.allocate(u64::from(len)), len)).collect();
        parts.extend(writable.iter().map(|&(at, len)| (at, len, DESC_WRITE)));
        let head = self.add_parts(queue, &parts);
        Buffer { head, writable }
    }

    /// Makes a chain of any descriptors available: address, length and flags; [`DESC_NEXT`] is added where another
    /// follows. Returns its head.
    pub fn add_parts(&mut self, queue: u16, parts: &[(u64, u32, u16)]) -> u16 {
        let ring = &mut self.queues[usize::from(queue)];
        assert!(!parts.is_empty() && parts.len() <= ring.free.len(), "queue {queue} has no room for the chain");
        let indices: Vec<u16> = ring.free.split_off(ring.free.len() - parts.len());
        let desc = ring.desc;
        for (i, &(addr, len, flags)) in parts.iter().enumerate() {
            let next = indices.get(i + 1);
            let flags = flags | if next.is_some() { DESC_NEXT } else { 0 };
            let mut raw = [0; 16];
            raw[..8].copy_from_slice(&addr.to_le_bytes());
            raw[8..12].copy_from_slice(&len.to_le_bytes());
            raw[12..14].copy_from_slice(&flags.to_le_bytes());
            raw[14..].copy_from_slice(&next.unwrap_or(&0).to_le_bytes());
            self.put(desc + 16 * u64::from(indices[i]), &raw);
        }
        let head = indices[0];
        self.queues[usize::from(queue)].chains.insert(head, indices);
        self.offer(queue, head);
        head
    }

    /// Number of descriptors that a chain can still have.
    pub fn room(&self, queue: u16) -> usize {
        self.queues.get(usize::from(queue)).map_or(0, |ring| ring.free.len())
    }

    /// Puts a head, valid or not, into the available ring.
    pub fn offer(&mut self, queue: u16, head: u16) {
        let ring = &mut self.queues[usize::from(queue)];
        let slot = ring.avail + 4 + 2 * u64::from(ring.available % ring.size);
        ring.available = ring.available.wrapping_add(1);
        let (index, available) = (ring.avail + 2, ring.available);
        self.put(slot, &head.to_le_bytes());
        self.put(index, &available.to_le_bytes());
    }

    /// Notifies the device of a queue, and delivers what follows.
    pub fn kick(&mut self, queue: u16) {
        self.device.device.virtio_notify(queue);
        self.device.run();
    }

    /// Takes the new elements of the used ring, and frees their descriptors. With EVENT_IDX, it asks for an interrupt when
    /// more follow.
    pub fn used(&mut self, queue: u16) -> Vec<Used> {
        let mut found = Vec::new();
        let (at, size) = (self.queues[usize::from(queue)].used, self.queues[usize::from(queue)].size);
        let index = u16::from_le_bytes(self.get(at + 2));
        while self.queues[usize::from(queue)].seen != index {
            let slot = self.queues[usize::from(queue)].seen % size;
            let raw: [u8; 8] = self.get(at + 4 + 8 * u64::from(slot));
            let (id, len) = raw.split_at(4);
            let number = |b: &[u8]| b.iter().rev().fold(0, |n, &b| n << 8 | u32::from(b));
            let head = number(id) as u16;
            let ring = &mut self.queues[usize::from(queue)];
            ring.seen = ring.seen.wrapping_add(1);
            ring.free.extend(ring.chains.remove(&head).unwrap_or_default());
            found.push(Used { head, len: number(len) });
        }
        self.want_interrupt(queue);
        found
    }

    /// Asks for an interrupt when the next element is used, as drivers do that have caught up.
    fn want_interrupt(&mut self, queue: u16) {
        if self.features & F_EVENT_IDX != 0 {
            let ring = &self.queues[usize::from(queue)];
            self.put(ring.avail + 4 + 2 * u64::from(ring.size), &ring.seen.to_le_bytes());
        }
    }

    /// What is now in the device-writable parts of a buffer.
    pub fn written(&self, buffer: &Buffer) -> Vec<u8> {
        let memory = self.device.host.memory();
        let mut all = Vec::new();
        for &(at, len) in &buffer.writable {
            let mut part = vec![0; len as usize];
            memory.read_slice(&mut part, GuestAddress(at)).expect("test buffers are in RAM");
            all.extend(part);
        }
        all
    }

    /// How often the device has interrupted for a queue.
    pub fn interrupts(&self, queue: u16) -> u64 {
        self.device.host.0.state().queue_interrupts.get(&queue).copied().unwrap_or(0)
    }
    /// How often the device has said that its configuration space changed.
    pub fn config_interrupts(&self) -> u64 {
        self.device.host.0.state().config_interrupts
    }
    /// Whether the device has set DEVICE_NEEDS_RESET since the last reset.
    pub fn needs_reset(&self) -> bool {
        self.device.host.0.state().needs_reset
    }

    /// Reads a little-endian number of `N` bytes from the configuration space.
    pub fn config<const N: usize>(&self, offset: u32) -> u64 {
        let mut data = [0; N];
        self.config_bytes(offset, &mut data);
        data.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b))
    }
    /// Reads the configuration space.
    pub fn config_bytes(&self, offset: u32, data: &mut [u8]) {
        self.device.device.virtio_config_read(offset, RSliceMut::from_mut_slice(data));
    }
    /// Writes the configuration space.
    pub fn write_config(&mut self, offset: u32, data: &[u8]) {
        self.device.device.virtio_config_write(offset, RSlice::from_slice(data));
    }

    /// A fresh device like this one with the same queues, started as the driver had started this one.
    pub fn successor(&self) -> Result<Self> {
        let device = self.device.successor()?;
        let (features, next_buffer) = (self.features, self.next_buffer);
        let mut next = Self { device, features, queues: self.queues.clone(), next_buffer };
        if !next.queues.is_empty() {
            next.activate()?;
        }
        Ok(next)
    }
    /// Stops this device, and goes on with a [successor](Self::successor) that has loaded its state.
    pub fn migrate(&mut self) -> Result<Self> {
        self.device.set_running(false);
        self.resume_from(&self.device.save()?)
    }
    /// A [successor](Self::successor) that has loaded this state and runs.
    pub fn resume_from(&self, state: &SavedState) -> Result<Self> {
        let mut next = self.successor()?;
        next.device.load(state)?;
        next.device.set_running(true);
        next.device.run();
        Ok(next)
    }
}
