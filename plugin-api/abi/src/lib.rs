//! The binary interface between cardcage and its plugins.
//!
//! Plugin authors do not see this crate: they use `cardcage-plugin-api`. It is the only place, beside the loader, that
//! knows abi_stable. Everything here has a C layout that abi_stable describes, so that the loader can compare a
//! plugin's idea of it with its own before it calls anything.
//!
//! # Rules of evolution
//! A plugin built against an older minor version works in a newer host, and a newer plugin in an older host. Hence:
//! * Traits grow only at the end, and each appended method has a default. `last_prefix_field` stays where it is for
//!   all of a major version: what stands after it may be missing on the other side.
//! * Prefix structs ([`Manifest`], [`DeviceClass`]) grow only at the end.
//! * Plain structs ([`Region`], [`Prop`], …) are frozen. A new need is a new struct and a new method.
//! * No enums: `u32` constants, of which a receiver ignores those that it does not know.
//! * Descriptions, statistics and inspection results cross as JSON text.
//! * A changed *meaning* is invisible to the layout check and needs a new method or a new major version.
//!
//! # Threads
//! Every object is `Send + Sync`. The host calls a device from vCPU threads and from event-loop threads; the SDK
//! serialises the calls. A plugin calls host services from inside such calls only. No host service calls back into the
//! device that called it before it returns.
#![expect(
    unsafe_code,
    reason = "tables of raw pointers are shared between threads, and abi_stable's macros expand to unsafe code"
)]
#![allow(
    clippy::allow_attributes,
    non_local_definitions,
    non_camel_case_types,
    unused_braces,
    unused_qualifications,
    clippy::undocumented_unsafe_blocks,
    reason = "abi_stable's macros expand to these"
)]
#![allow(
    missing_docs,
    reason = "abi_stable's macros generate public items without docs; what is written here has them"
)]

pub use abi_stable;
use abi_stable::{
    StableAbi, declare_root_module_statics, library::RootModule, package_version_strings, sabi_trait,
    sabi_types::VersionStrings, std_types::*,
};

/// The symbol that a plugin exports: a pointer to its abi_stable library header.
pub const ENTRY_SYMBOL: &str = "cardcage_plugin_v1";

/// Why something failed, as a sentence for people.
#[repr(C)]
#[derive(StableAbi, Clone, Debug)]
pub struct AbiError {
    /// One of the `ERROR_` constants.
    pub code: u32,
    /// The sentence.
    pub message: RString,
}
/// Any failure without a code of its own.
pub const ERROR_GENERIC: u32 = 1;
/// The device panicked before; nothing can be done with it.
pub const ERROR_BROKEN: u32 = 2;
/// Result of a fallible call.
pub type AbiResult<T> = RResult<T, AbiError>;

// ---------------------------------------------------------------------------------------------- guest memory

/// One contiguous range of guest RAM in this process.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct Region {
    /// Guest-physical address of the first byte.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// Host address of the first byte.
    pub hva: *mut u8,
    /// One bit per page, to be set after writing; null if nobody wants to know.
    pub dirty: *const u64,
    /// One bit per page; a writer that finds it set after setting the dirty bit adds one to `watch_hits`. May be null.
    pub watch: *const u64,
    /// Counter of writes to watched pages; null together with `watch`.
    pub watch_hits: *const u64,
    /// Offset of the first byte in `fd`.
    pub file_offset: u64,
    /// The file behind the mapping, or -1.
    pub fd: i32,
    /// Log2 of the page size of the bitmaps.
    pub page_shift: u32,
    /// Reserved, zero.
    pub flags: u32,
}
// SAFETY: the pointers name memory shared between threads by design; all access to it is volatile or atomic.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

/// All guest RAM at one moment.
#[repr(C)]
#[derive(StableAbi, Clone, Debug)]
pub struct MemTable {
    /// The value of the generation counter that this table belongs to.
    pub generation: u64,
    /// The regions, in ascending order.
    pub regions: RVec<Region>,
}

/// Guest RAM.
#[sabi_trait]
pub trait MemoryAbi: Send + Sync + 'static {
    /// The current table. The host unmaps a region only after every table that names it has been dropped.
    fn snapshot(&self) -> RArc<MemTable>;
    /// Address of a `u64` that lives as long as this object and changes, with release order, when the table does.
    #[sabi(last_prefix_field)]
    fn generation(&self) -> *const u64;
}
/// Guest RAM, shared.
pub type MemoryObj = MemoryAbi_TO<RArc<()>>;

// ---------------------------------------------------------------------------------------------- interrupts

/// One interrupt line.
#[sabi_trait]
pub trait IrqAbi: Send + Sync + 'static {
    /// Drives the line.
    fn set_level(&self, high: bool);
    /// High and low again: one edge.
    #[sabi(last_prefix_field)]
    fn pulse(&self);
}
/// One interrupt line, shared.
pub type IrqObj = IrqAbi_TO<RArc<()>>;

/// The MSI-X vectors of one PCI function.
#[sabi_trait]
pub trait MsixAbi: Send + Sync + 'static {
    /// Sends the vector's message, or sets its pending bit while it is masked. False if the guest has MSI-X disabled.
    fn notify(&self, vector: u16) -> bool;
    /// Whether the guest has switched MSI-X on.
    #[sabi(last_prefix_field)]
    fn is_enabled(&self) -> bool;
}
/// MSI-X vectors, shared.
pub type MsixObj = MsixAbi_TO<RArc<()>>;

/// How a virtio device reaches its driver through the transport.
#[sabi_trait]
pub trait VirtioLinkAbi: Send + Sync + 'static {
    /// Tells the driver about used buffers in a queue.
    fn queue_interrupt(&self, queue: u16);
    /// Tells the driver that the configuration space changed.
    fn config_interrupt(&self);
    /// Sets DEVICE_NEEDS_RESET (virtio 1.2, section 2.1.1) and tells the driver.
    #[sabi(last_prefix_field)]
    fn needs_reset(&self);
}
/// Link to the driver, shared.
pub type VirtioLinkObj = VirtioLinkAbi_TO<RArc<()>>;

// ---------------------------------------------------------------------------------------------- time and events

/// One timer on the machine's virtual clock. Expiry arrives as [`EVENT_TIMER`].
#[sabi_trait]
pub trait TimerAbi: Send + Sync + 'static {
    /// Expire at this virtual time, in nanoseconds; replaces an earlier deadline.
    fn arm(&self, deadline_ns: u64);
    /// Do not expire.
    #[sabi(last_prefix_field)]
    fn cancel(&self);
}
/// One timer, shared.
pub type TimerObj = TimerAbi_TO<RArc<()>>;

/// The event loop that a device lives on.
#[sabi_trait]
pub trait ReactorAbi: Send + Sync + 'static {
    /// Send [`EVENT_FD`] while `fd` has one of the events in `interest` (poll(2) bits). The fd stays the plugin's.
    fn watch(&self, fd: i32, interest: u32, token: u64) -> AbiResult<()>;
    /// Change the interest in a watched fd; 0 pauses it.
    fn set_interest(&self, fd: i32, interest: u32) -> AbiResult<()>;
    /// Forget the fd.
    fn unwatch(&self, fd: i32);
    /// Send [`EVENT_DEFERRED`] soon.
    #[sabi(last_prefix_field)]
    fn defer(&self, token: u64);
}
/// Event loop, shared.
pub type ReactorObj = ReactorAbi_TO<RArc<()>>;

// ---------------------------------------------------------------------------------------------- backends

/// The host's end of a character device. Input arrives through `DeviceAbi::char_receive`.
#[sabi_trait]
pub trait CharAbi: Send + Sync + 'static {
    /// Hands over bytes; returns how many were taken. Fewer than given: offer the rest after [`EVENT_CHAR_WRITABLE`].
    fn write(&self, data: RSlice<'_, u8>) -> usize;
    /// The device can take input again (asks `char_room` anew).
    fn resume_input(&self);
    /// Starts or ends a break condition on the line.
    #[sabi(last_prefix_field)]
    fn set_break(&self, on: bool);
}
/// Character backend, shared.
pub type CharObj = CharAbi_TO<RArc<()>>;

/// What a block backend is like.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct BlockInfo {
    /// Length in bytes.
    pub len: u64,
    /// Requests must start and end at multiples of this many bytes.
    pub request_alignment: u32,
    /// Bytes per logical block as probed, or 512.
    pub logical_block_size: u32,
    /// Bytes per physical block as probed, or the logical size.
    pub physical_block_size: u32,
    /// `BLOCK_` flags.
    pub flags: u32,
}
/// The backend refuses writes.
pub const BLOCK_READ_ONLY: u32 = 1;
/// Discarded ranges may be given back.
pub const BLOCK_DISCARD: u32 = 2;
/// Writes are volatile until flushed.
pub const BLOCK_WRITE_BACK: u32 = 4;

/// A piece of guest memory by guest-physical address. The host resolves it, so a plugin cannot name what is not RAM.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct GuestRange {
    /// Guest-physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u64,
}

/// One request to a block backend.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct BlockRequest<'a> {
    /// One of the `BLOCK_OP_` constants.
    pub op: u32,
    /// `BLOCK_REQ_` flags.
    pub flags: u32,
    /// First byte in the image.
    pub offset: u64,
    /// Bytes, for requests without data; else the sum of `data`.
    pub len: u64,
    /// Where the bytes come from or go to.
    pub data: RSlice<'a, GuestRange>,
    /// Comes back with the completion.
    pub token: u64,
}
/// Read into guest memory.
pub const BLOCK_OP_READ: u32 = 0;
/// Write from guest memory.
pub const BLOCK_OP_WRITE: u32 = 1;
/// Make completed writes durable.
pub const BLOCK_OP_FLUSH: u32 = 2;
/// The range's content is no longer needed.
pub const BLOCK_OP_DISCARD: u32 = 3;
/// Write zeroes without data.
pub const BLOCK_OP_WRITE_ZEROES: u32 = 4;
/// With write zeroes: the range may be deallocated.
pub const BLOCK_REQ_MAY_UNMAP: u32 = 1;

/// A block backend. Completions arrive as [`EVENT_BLOCK_DONE`].
#[sabi_trait]
pub trait BlockAbi: Send + Sync + 'static {
    /// Current properties.
    fn info(&self) -> BlockInfo;
    /// Starts requests. Each completes later exactly once, also those that fail; never during this call.
    fn submit(&self, requests: RSlice<'_, BlockRequest<'_>>);
    /// Waits until no request of this device is in flight. Their completions may still be on the way as events.
    #[sabi(last_prefix_field)]
    fn drain(&self);
}
/// Block backend, shared.
pub type BlockObj = BlockAbi_TO<RArc<()>>;

// ---------------------------------------------------------------------------------------------- logging

/// One message.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct LogRecord<'a> {
    /// 1 error, 2 warn, 3 info, 4 debug, 5 trace.
    pub level: u32,
    /// Source line.
    pub line: u32,
    /// Id of the device whose call this happened in; empty outside of one.
    pub device: RStr<'a>,
    /// Module path.
    pub target: RStr<'a>,
    /// Source file.
    pub file: RStr<'a>,
    /// The text.
    pub message: RStr<'a>,
}

/// Where a plugin's messages go.
#[sabi_trait]
pub trait LogAbi: Send + Sync + 'static {
    /// Takes a message.
    fn log(&self, record: &LogRecord<'_>);
    /// Address of a `u8` that lives for the whole process: messages above this level are not wanted.
    #[sabi(last_prefix_field)]
    fn max_level(&self) -> *const u8;
}
/// Log sink, shared.
pub type LogObj = LogAbi_TO<RArc<()>>;

// ---------------------------------------------------------------------------------------------- host

/// Nanoseconds of the machine's virtual clock, which stands still while the machine is stopped.
pub const CLOCK_VIRTUAL: u32 = 0;
/// Nanoseconds of the host's monotonic clock.
pub const CLOCK_HOST: u32 = 1;
/// Nanoseconds since 1970-01-01T00:00:00Z as the guest's real-time clock is to show them (`-rtc`).
pub const CLOCK_RTC: u32 = 2;

/// End the VM at once with exit status `argument`.
pub const REQUEST_EXIT: u32 = 0;
/// The guest asked to be powered off.
pub const REQUEST_SHUTDOWN: u32 = 1;
/// The guest asked to be reset.
pub const REQUEST_RESET: u32 = 2;
/// The guest says that it panicked.
pub const REQUEST_GUEST_PANICKED: u32 = 3;
/// The guest says that it panicked and loaded a crash kernel.
pub const REQUEST_GUEST_CRASHLOADED: u32 = 4;
/// The guest says that it shut down orderly.
pub const REQUEST_GUEST_PVSHUTDOWN: u32 = 5;

/// The host, as one device sees it.
#[sabi_trait]
pub trait HostAbi: Send + Sync + 'static {
    /// The device's id, or the name that stands for it.
    fn device_id(&self) -> RString;
    /// Guest RAM.
    fn memory(&self) -> MemoryObj;
    /// A clock, in nanoseconds.
    fn clock_ns(&self, clock: u32) -> u64;
    /// A new timer.
    fn timer(&self, token: u64) -> TimerObj;
    /// The device's event loop.
    fn reactor(&self) -> ReactorObj;
    /// Attaches to the character device with this id; input and events come with `token`.
    fn chardev(&self, id: RStr<'_>, token: u64) -> AbiResult<CharObj>;
    /// Attaches to the block backend with this id; completions come with the request's token.
    fn block(&self, id: RStr<'_>, writable: bool) -> AbiResult<BlockObj>;
    /// Sends a QMP event. `json` is an object, or empty.
    fn emit_event(&self, name: RStr<'_>, json: RStr<'_>);
    /// Asks for a change of the VM's run state.
    fn request(&self, request: u32, argument: i64);
    /// Fills a buffer from the host's random number generator.
    fn fill_random(&self, buffer: RSliceMut<'_, u8>);
    /// What the machine is like, as a JSON object.
    fn machine(&self) -> RString;
    /// The device panicked.
    #[sabi(last_prefix_field)]
    fn broken(&self, why: RStr<'_>);
}
/// Host, shared.
pub type HostObj = HostAbi_TO<RArc<()>>;

/// What a PCI function says it is (PCI 3.0, section 6.1).
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct PciId {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
    /// Base class, sub-class and programming interface in the low 24 bits.
    pub class: u32,
    /// Revision ID.
    pub revision: u8,
}
/// An I/O BAR; without it a memory BAR.
pub const BAR_IO: u32 = 1;
/// A 64-bit memory BAR.
pub const BAR_64: u32 = 2;
/// A prefetchable memory BAR.
pub const BAR_PREFETCH: u32 = 4;

/// Where a device plugs itself in. Everything stays invisible to the guest until `realize` has succeeded.
#[sabi_trait]
pub trait BusAbi: Send + 'static {
    /// Guest-physical addresses; returns the region's number.
    fn mmio(&mut self, addr: u64, len: u64) -> AbiResult<u32>;
    /// I/O ports; returns the region's number.
    fn pio(&mut self, port: u16, len: u16) -> AbiResult<u32>;
    /// The function's identity.
    fn pci(&mut self, id: PciId) -> AbiResult<()>;
    /// A BAR; returns the region's number.
    fn bar(&mut self, index: u32, len: u64, flags: u32) -> AbiResult<u32>;
    /// An interrupt line: the ISA IRQ with this number, or the PCI function's pin (`line` is then ignored).
    fn irq(&mut self, line: u32) -> AbiResult<IrqObj>;
    /// MSI-X vectors, with table and pending bits in the given BAR.
    fn msix(&mut self, vectors: u16, bar: u32) -> AbiResult<MsixObj>;
    /// Lets the ACPI namespace name this device with these JSON attributes (`hid`, `uid`, `cid`, …) and the resources
    /// that it registers.
    #[sabi(last_prefix_field)]
    fn acpi(&mut self, json: RStr<'_>) -> AbiResult<()>;
}
/// Bus, owned by one `realize`.
pub type BusObj = BusAbi_TO<RBox<()>>;

// ---------------------------------------------------------------------------------------------- plugin side

/// A property and its value, both as text.
#[repr(C)]
#[derive(StableAbi, Clone, Debug)]
pub struct Prop {
    /// Name.
    pub name: RString,
    /// Value, in the syntax of the command line.
    pub value: RString,
}

/// A named, versioned piece of saved state.
#[repr(C)]
#[derive(StableAbi, Clone, Debug)]
pub struct Section {
    /// Name, unique in the device.
    pub name: RString,
    /// Version of the data's layout.
    pub version: u32,
    /// The data.
    pub data: RVec<u8>,
}

/// A virtqueue that the driver has set up (virtio 1.2, section 2.6).
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct QueueSetup {
    /// Number of the queue.
    pub index: u16,
    /// Number of descriptors.
    pub size: u16,
    /// Guest-physical address of the descriptor area.
    pub desc: u64,
    /// Guest-physical address of the driver area.
    pub avail: u64,
    /// Guest-physical address of the device area.
    pub used: u64,
}

/// Power on.
pub const RESET_COLD: u32 = 0;
/// Reset of a running machine.
pub const RESET_WARM: u32 = 1;
/// Reset of this function alone.
pub const RESET_FUNCTION: u32 = 2;

/// A watched fd is ready; `data` has the poll(2) bits.
pub const EVENT_FD: u32 = 0;
/// A timer expired.
pub const EVENT_TIMER: u32 = 1;
/// A deferred call is due.
pub const EVENT_DEFERRED: u32 = 2;
/// A block request completed; `data` is 0 or a negated errno, as an `i64`.
pub const EVENT_BLOCK_DONE: u32 = 3;
/// A character backend takes output again.
pub const EVENT_CHAR_WRITABLE: u32 = 4;
/// A character backend was opened (`data` 1), closed (0) or received a break (2).
pub const EVENT_CHAR_CHANGED: u32 = 5;
/// The memory table changed.
pub const EVENT_MEMORY: u32 = 6;
/// The size or another property of a block backend changed.
pub const EVENT_BLOCK_CHANGED: u32 = 7;

/// The device can go now.
pub const UNPLUG_NOW: u32 = 0;
/// The guest was asked; the device goes when it agrees.
pub const UNPLUG_ASKED: u32 = 1;

/// One device.
#[sabi_trait]
pub trait DeviceAbi: Send + Sync + 'static {
    /// Becomes part of the machine.
    fn realize(&self, bus: BusObj) -> AbiResult<()>;
    /// Leaves the machine. No register access runs or follows.
    fn unrealize(&self);
    /// Back to the state after power on.
    fn reset(&self, kind: u32);
    /// The guest reads a register.
    fn read(&self, region: u32, offset: u64, size: u8) -> u64;
    /// The guest writes a register.
    fn write(&self, region: u32, offset: u64, size: u8, value: u64);
    /// The guest has written the PCI configuration space, which the host keeps.
    fn config_written(&self, offset: u16, size: u8, value: u32);
    /// Something happened; see the `EVENT_` constants. Unknown kinds are ignored.
    fn event(&self, kind: u32, token: u64, data: u64);
    /// How many bytes of input the device can take now.
    fn char_room(&self, token: u64) -> usize;
    /// Input; never more than `char_room` said.
    fn char_receive(&self, token: u64, data: RSlice<'_, u8>);
    /// The machine starts (true) or has stopped (false). Stopped: touch guest memory no more.
    fn run_state(&self, running: bool);
    /// The state, in sections.
    fn save(&self) -> AbiResult<RVec<Section>>;
    /// Takes a saved state.
    fn load(&self, sections: RVec<Section>) -> AbiResult<()>;
    /// A property changes while the device lives.
    fn set_property(&self, property: &Prop) -> AbiResult<()>;
    /// Somebody wants the device removed: `UNPLUG_` constant, or why not.
    fn unplug_request(&self) -> AbiResult<u32>;
    /// Live state for people, as a JSON object.
    fn inspect(&self) -> RString;
    /// Counters, as a JSON object.
    fn stats(&self) -> RString;
    /// virtio: offered device features, without the transport's.
    fn virtio_features(&self) -> u64;
    /// virtio: largest size of each queue.
    fn virtio_queues(&self) -> RVec<u16>;
    /// virtio: reads the device-specific configuration space.
    fn virtio_config_read(&self, offset: u32, data: RSliceMut<'_, u8>);
    /// virtio: writes the device-specific configuration space.
    fn virtio_config_write(&self, offset: u32, data: RSlice<'_, u8>);
    /// virtio: DRIVER_OK was set, with these features and queues.
    fn virtio_activate(&self, features: u64, queues: RVec<QueueSetup>, link: VirtioLinkObj) -> AbiResult<()>;
    /// virtio: the driver has made buffers available.
    fn virtio_notify(&self, queue: u16);
    /// virtio: the driver reset the device; forget the queues.
    #[sabi(last_prefix_field)]
    fn virtio_reset(&self);
}
/// One device, owned by the host.
pub type DeviceObj = DeviceAbi_TO<RBox<()>>;

/// A kind of device.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = DeviceClassRef)))]
#[sabi(missing_field(panic))]
pub struct DeviceClass {
    /// What it is, as a JSON object: the one source of every list, help text and check.
    pub description: RStr<'static>,
    /// Makes a device from properties. No effect that the guest could see.
    #[sabi(last_prefix_field)]
    pub create: extern "C" fn(HostObj, RVec<Prop>) -> AbiResult<DeviceObj>,
}

/// What a plugin exports.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = ManifestRef)))]
#[sabi(missing_field(panic))]
pub struct Manifest {
    /// Name of the plugin.
    pub name: RStr<'static>,
    /// Its version.
    pub version: RStr<'static>,
    /// One line about it.
    pub summary: RStr<'static>,
    /// Called once after loading.
    pub init: extern "C" fn(LogObj),
    /// The kinds of device that it offers.
    #[sabi(last_prefix_field)]
    pub devices: RSlice<'static, DeviceClassRef>,
}

impl RootModule for ManifestRef {
    declare_root_module_statics! {ManifestRef}
    const BASE_NAME: &'static str = "cardcage_plugin";
    const NAME: &'static str = "cardcage plugin API";
    const VERSION_STRINGS: VersionStrings = package_version_strings!();
}
