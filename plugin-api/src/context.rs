//! What the host does for a device.

use std::cell::RefCell;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use cardcage_plugin_abi as abi;
use cardcage_plugin_abi::abi_stable::std_types::{RSlice, RSliceMut};
pub use cardcage_plugin_abi::{BlockInfo, GuestRange};

use crate::json::Object;
use crate::memory::{GuestMemory, MemoryView};
use crate::properties::{ChardevRef, DriveRef};
use crate::{Result, from_abi};

/// The host, as one device sees it. Every method of a device gets one; it is the same throughout the device's life.
///
/// Nothing here calls back into the device before it returns.
pub struct Context {
    host: Arc<abi::HostObj>,
    id: String,
    reactor: abi::ReactorObj,
    memory: RefCell<MemoryView>,
}

impl Context {
    pub(crate) fn new(host: Arc<abi::HostObj>) -> Self {
        let memory = RefCell::new(MemoryView::new(host.memory()));
        Self { id: host.device_id().into(), reactor: host.reactor(), memory, host }
    }

    /// The id that the user gave the device, or a name that the host made up for it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Guest RAM as it is now.
    #[inline]
    pub fn memory(&self) -> GuestMemory {
        self.memory.borrow_mut().get().clone()
    }

    /// Time in nanoseconds.
    #[inline]
    pub fn now(&self, clock: Clock) -> u64 {
        self.host.clock_ns(clock as u32)
    }

    /// A new timer on the virtual clock; [`Device::timer`](crate::Device::timer) is called with `token`.
    pub fn timer(&self, token: u64) -> Timer {
        Timer(self.host.timer(token))
    }

    /// Calls [`Device::fd_ready`](crate::Device::fd_ready) with `token` whenever `fd` has one of the wanted events,
    /// again and again while it has. Unwatch it before closing it.
    pub fn watch(&self, fd: &impl AsFd, interest: Interest, token: u64) -> Result<()> {
        from_abi(self.reactor.watch(fd.as_fd().as_raw_fd(), interest.0, token))
    }

    /// Changes what is wanted of a watched fd. [`Interest::NONE`] pauses it.
    pub fn set_interest(&self, fd: &impl AsFd, interest: Interest) -> Result<()> {
        from_abi(self.reactor.set_interest(fd.as_fd().as_raw_fd(), interest.0))
    }

    /// Forgets a watched fd. A call that is already on its way may still come.
    pub fn unwatch(&self, fd: &impl AsFd) {
        self.reactor.unwatch(fd.as_fd().as_raw_fd());
    }

    /// Calls [`Device::deferred`](crate::Device::deferred) with `token` soon, from the event loop.
    pub fn defer(&self, token: u64) {
        self.reactor.defer(token);
    }

    /// Attaches to a character backend. A backend serves one device; a second attempt fails. Input and events carry
    /// `token`.
    pub fn chardev(&self, chardev: &ChardevRef, token: u64) -> Result<Chardev> {
        from_abi(self.host.chardev(chardev.id().into(), token)).map(Chardev)
    }

    /// Attaches to a block backend. `writable` asks for writing too; of a backend that is read-only,
    /// [`Block::is_read_only`] tells it afterwards.
    pub fn block(&self, drive: &DriveRef, writable: bool) -> Result<Block> {
        from_abi(self.host.block(drive.id().into(), writable)).map(Block)
    }

    /// Sends a QMP event with these data.
    pub fn emit(&self, event: &str, data: &Object) {
        self.host.emit_event(event.into(), data.to_string().as_str().into());
    }

    /// Asks for a change of the VM's run state. It happens after the current call.
    pub fn request(&self, request: Request) {
        let (kind, argument) = match request {
            Request::Exit(status) => (abi::REQUEST_EXIT, i64::from(status)),
            Request::Shutdown => (abi::REQUEST_SHUTDOWN, 0),
            Request::Reset => (abi::REQUEST_RESET, 0),
            Request::GuestPanicked => (abi::REQUEST_GUEST_PANICKED, 0),
            Request::GuestCrashLoaded => (abi::REQUEST_GUEST_CRASHLOADED, 0),
            Request::GuestPvShutdown => (abi::REQUEST_GUEST_PVSHUTDOWN, 0),
        };
        self.host.request(kind, argument);
    }

    /// Fills a buffer with random bytes from the host.
    pub fn fill_random(&self, buffer: &mut [u8]) {
        self.host.fill_random(RSliceMut::from_mut_slice(buffer));
    }

    /// What the machine is like, as the text of a JSON object: `ram-below-4g` and `ram-above-4g` in bytes, `cpus`.
    pub fn machine(&self) -> String {
        self.host.machine().into()
    }
}

/// Which time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
#[non_exhaustive]
pub enum Clock {
    /// The machine's own time: starts at 0, stands still while the machine is stopped.
    Virtual = abi::CLOCK_VIRTUAL,
    /// The host's monotonic clock: for limits and rates that the guest does not see.
    Host = abi::CLOCK_HOST,
    /// Time since 1970-01-01T00:00:00Z as the guest's real-time clock is to show it.
    Rtc = abi::CLOCK_RTC,
}

/// A change of run state that a device can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Request {
    /// End the VM at once with this exit status.
    Exit(i32),
    /// The guest asked to be powered off.
    Shutdown,
    /// The guest asked to be reset.
    Reset,
    /// The guest says that it panicked.
    GuestPanicked,
    /// The guest says that it panicked and runs its crash kernel.
    GuestCrashLoaded,
    /// The guest says that it shut down orderly.
    GuestPvShutdown,
}

/// Events of a watched fd, with the bits of poll(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interest(pub(crate) u32);

impl Interest {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// There is something to read, or the other end has closed.
    pub const READABLE: Self = Self(0x1);
    /// There is room for writing.
    pub const WRITABLE: Self = Self(0x4);
    /// An error; always reported.
    pub const ERROR: Self = Self(0x8);
    /// The other end is gone; always reported.
    pub const HANGUP: Self = Self(0x10);

    /// Whether any of `other` is in here.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}
impl std::ops::BitOr for Interest {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A timer on the virtual clock. Dropping it cancels it.
pub struct Timer(abi::TimerObj);

impl Timer {
    /// Expire at this virtual time in nanoseconds. Replaces an earlier deadline.
    pub fn arm(&self, deadline_ns: u64) {
        self.0.arm(deadline_ns);
    }
    /// Do not expire.
    pub fn cancel(&self) {
        self.0.cancel();
    }
}
impl Drop for Timer {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// An interrupt line.
pub struct Irq(pub(crate) abi::IrqObj);

impl Irq {
    /// Drives the line.
    #[inline]
    pub fn set(&self, high: bool) {
        self.0.set_level(high);
    }
    /// One edge.
    pub fn pulse(&self) {
        self.0.pulse();
    }
}

/// The MSI-X vectors of a PCI function. The host keeps the table.
pub struct Msix(pub(crate) abi::MsixObj);

impl Msix {
    /// Sends a vector's message. False if the guest has MSI-X off: use the pin instead.
    #[inline]
    pub fn notify(&self, vector: u16) -> bool {
        self.0.notify(vector)
    }
    /// Whether the guest has MSI-X on.
    pub fn is_enabled(&self) -> bool {
        self.0.is_enabled()
    }
}

/// A character backend: a terminal, a socket, a file.
pub struct Chardev(abi::CharObj);

impl Chardev {
    /// Hands over bytes and returns how many were taken. After fewer than given,
    /// [`Device::char_writable`](crate::Device::char_writable) says when to offer the rest.
    pub fn write(&self, data: &[u8]) -> usize {
        self.0.write(RSlice::from_slice(data)).min(data.len())
    }
    /// The device has room for input again.
    pub fn resume_input(&self) {
        self.0.resume_input();
    }
    /// Starts or ends a break condition.
    pub fn set_break(&self, on: bool) {
        self.0.set_break(on);
    }
}

/// A block backend. Requests name guest memory by address; the host resolves it.
pub struct Block(abi::BlockObj);

impl Block {
    /// Current size, block sizes and abilities.
    pub fn info(&self) -> BlockInfo {
        self.0.info()
    }
    /// Whether the backend refuses writes.
    pub fn is_read_only(&self) -> bool {
        self.0.info().flags & abi::BLOCK_READ_ONLY != 0
    }
    /// Whether the backend has a write cache: writes are volatile until they are flushed.
    pub fn is_write_back(&self) -> bool {
        self.0.info().flags & abi::BLOCK_WRITE_BACK != 0
    }
    /// Starts requests. Each ends with one call of [`Device::block_done`](crate::Device::block_done).
    pub fn submit(&self, requests: &[BlockRequest<'_>]) {
        let raw: Vec<_> = requests.iter().map(|r| r.0).collect();
        self.0.submit(RSlice::from_slice(&raw));
    }
    /// Waits until no request is in flight. Their `block_done` calls may still be on the way.
    pub fn drain(&self) {
        self.0.drain();
    }
}

/// One request to a block backend. Offsets and lengths are in bytes.
pub struct BlockRequest<'a>(abi::BlockRequest<'a>);

impl<'a> BlockRequest<'a> {
    fn new(op: u32, offset: u64, len: u64, data: &'a [GuestRange], token: u64) -> Self {
        Self(abi::BlockRequest { op, flags: 0, offset, len, data: RSlice::from_slice(data), token })
    }
    /// Reads into guest memory.
    pub fn read(offset: u64, data: &'a [GuestRange], token: u64) -> Self {
        Self::new(abi::BLOCK_OP_READ, offset, total(data), data, token)
    }
    /// Writes from guest memory.
    pub fn write(offset: u64, data: &'a [GuestRange], token: u64) -> Self {
        Self::new(abi::BLOCK_OP_WRITE, offset, total(data), data, token)
    }
    /// Makes all completed writes durable.
    pub fn flush(token: u64) -> Self {
        Self::new(abi::BLOCK_OP_FLUSH, 0, 0, &[], token)
    }
    /// Gives up the content of a range.
    pub fn discard(offset: u64, len: u64, token: u64) -> Self {
        Self::new(abi::BLOCK_OP_DISCARD, offset, len, &[], token)
    }
    /// Writes zeroes; `may_unmap` lets the backend deallocate the range.
    pub fn write_zeroes(offset: u64, len: u64, may_unmap: bool, token: u64) -> Self {
        let mut r = Self::new(abi::BLOCK_OP_WRITE_ZEROES, offset, len, &[], token);
        r.0.flags = if may_unmap { abi::BLOCK_REQ_MAY_UNMAP } else { 0 };
        r
    }
}

fn total(data: &[GuestRange]) -> u64 {
    data.iter().fold(0, |sum, r| sum.saturating_add(r.len))
}
