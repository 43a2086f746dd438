//! The host of a test, as the test sees it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cardcage_plugin_abi as abi;
use cardcage_plugin_abi::abi_stable::{sabi_trait::TD_Opaque, std_types::RArc};

use super::disk::{DiskOp, TestDisk};
use super::ram::Ram;
use super::random::TestRandom;
use super::services::HostServices;
use crate::context::Request;
use crate::json::Object;
use crate::memory::{GuestMemory, MemoryView};

/// 2026-01-01T00:00:00Z, where the real-time clock of a test starts.
const RTC_START_NS: u64 = 1_767_225_600 * 1_000_000_000;
const RAM_LEN: usize = 16 << 20;

/// A host for one device. Clones are the same host.
#[derive(Clone)]
pub struct TestHost(pub(super) Arc<Shared>);

pub(super) struct Shared {
    pub(super) ram: Arc<Ram>,
    state: Mutex<State>,
}

/// One line of a device.
#[derive(Default, Clone, Copy)]
pub(super) struct Line {
    pub(super) high: bool,
    pub(super) edges: u64,
}

#[derive(Clone, Copy)]
pub(super) struct TimerSlot {
    pub(super) token: u64,
    pub(super) deadline: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Space {
    Ports,
    Memory,
    Bar(u32),
}

#[derive(Clone, Copy)]
pub(super) struct RegionInfo {
    pub(super) space: Space,
    pub(super) base: u64,
    pub(super) len: u64,
}

#[derive(Default, Clone)]
pub(super) struct CharBackend {
    pub(super) token: Option<u64>,
    pub(super) output: Vec<u8>,
    /// Bytes that it still takes; `None` for no limit.
    pub(super) room: Option<usize>,
    pub(super) refused: bool,
    pub(super) input: VecDeque<u8>,
    pub(super) break_on: bool,
}

/// All that a device did, and all that is on its way to it.
pub(super) struct State {
    pub(super) now_ns: u64,
    pub(super) rtc_start_ns: u64,
    pub(super) machine: String,
    pub(super) random: TestRandom,
    pub(super) timers: Vec<TimerSlot>,
    /// Kind, token and data of events that were not delivered yet.
    pub(super) queue: VecDeque<(u32, u64, u64)>,
    pub(super) watched: BTreeMap<i32, (u32, u64)>,
    pub(super) regions: Vec<RegionInfo>,
    pub(super) lines: BTreeMap<u32, Line>,
    pub(super) acpi: Vec<String>,
    pub(super) msix: BTreeMap<u16, u64>,
    pub(super) msix_enabled: bool,
    pub(super) events: Vec<(String, String)>,
    pub(super) requests: Vec<Request>,
    pub(super) chardevs: BTreeMap<String, CharBackend>,
    pub(super) disks: BTreeMap<String, TestDisk>,
    pub(super) queue_interrupts: BTreeMap<u16, u64>,
    pub(super) config_interrupts: u64,
    pub(super) needs_reset: bool,
    pub(super) broken: Option<String>,
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
    pub(super) fn memory(&self) -> GuestMemory {
        MemoryView::new(self.ram.object()).get().clone()
    }
}

impl Default for TestHost {
    fn default() -> Self {
        Self::new()
    }
}

impl TestHost {
    /// A host with 16 MiB of RAM, one CPU and no backends, at time 0.
    pub fn new() -> Self {
        let ram = Ram::new(RAM_LEN);
        let machine = Object::new().field("ram-below-4g", ram.len()).field("ram-above-4g", 0).field("cpus", 1);
        let state = State {
            now_ns: 0,
            rtc_start_ns: RTC_START_NS,
            machine: machine.to_string(),
            random: TestRandom::new(0),
            timers: Vec::new(),
            queue: VecDeque::new(),
            watched: BTreeMap::new(),
            regions: Vec::new(),
            lines: BTreeMap::new(),
            acpi: Vec::new(),
            msix: BTreeMap::new(),
            msix_enabled: false,
            events: Vec::new(),
            requests: Vec::new(),
            chardevs: BTreeMap::new(),
            disks: BTreeMap::new(),
            queue_interrupts: BTreeMap::new(),
            config_interrupts: 0,
            needs_reset: false,
            broken: None,
        };
        Self(Arc::new(Shared { ram, state: Mutex::new(state) }))
    }

    /// Adds a character backend.
    #[must_use]
    pub fn with_chardev(self, id: &str) -> Self {
        self.0.state().chardevs.insert(id.into(), CharBackend::default());
        self
    }
    /// Adds a block backend.
    #[must_use]
    pub fn with_disk(self, id: &str, disk: TestDisk) -> Self {
        self.0.state().disks.insert(id.into(), disk);
        self
    }
    /// Replaces what [`Context::machine`](crate::Context::machine) says.
    #[must_use]
    pub fn with_machine(self, machine: &Object) -> Self {
        self.0.state().machine = machine.to_string();
        self
    }
    /// Sets what the real-time clock shows now: seconds since 1970.
    #[must_use]
    pub fn with_rtc(self, seconds: u64) -> Self {
        self.0.state().rtc_start_ns = seconds.saturating_mul(1_000_000_000);
        self
    }

    /// A host like this one for another device: the same RAM, and copies of clock and disks. Nothing is attached.
    pub(super) fn successor(&self) -> Self {
        let state = self.0.state();
        let mut disks = state.disks.clone();
        disks.values_mut().for_each(|d| d.pending.clear());
        let chardevs = state.chardevs.keys().map(|id| (id.clone(), CharBackend::default())).collect();
        let next = Self::new();
        {
            let mut s = next.0.state();
            (s.now_ns, s.rtc_start_ns, s.machine) = (state.now_ns, state.rtc_start_ns, state.machine.clone());
            (s.disks, s.chardevs, s.random) = (disks, chardevs, state.random.clone());
        }
        let Ok(inner) = Arc::try_unwrap(next.0) else { unreachable!("nobody else has the new host yet") };
        Self(Arc::new(Shared { ram: self.0.ram.clone(), ..inner }))
    }

    /// Guest RAM: from address 0 on.
    pub fn memory(&self) -> GuestMemory {
        self.0.memory()
    }
    /// The virtual clock, in nanoseconds.
    pub fn now(&self) -> u64 {
        self.0.state().now_ns
    }
    /// When the next timer expires, in virtual nanoseconds.
    pub fn next_deadline(&self) -> Option<u64> {
        self.0.state().timers.iter().filter_map(|t| t.deadline).min()
    }

    /// Level of an interrupt line: the number of the ISA interrupt, or 0 for a PCI pin.
    pub fn irq(&self, line: u32) -> bool {
        self.0.state().lines.get(&line).is_some_and(|l| l.high)
    }
    /// How often a line went from low to high.
    pub fn irq_edges(&self, line: u32) -> u64 {
        self.0.state().lines.get(&line).map_or(0, |l| l.edges)
    }
    /// Switches MSI-X on or off, as the guest would.
    pub fn set_msix_enabled(&self, on: bool) {
        self.0.state().msix_enabled = on;
    }
    /// How often an MSI-X vector was sent.
    pub fn msix_count(&self, vector: u16) -> u64 {
        self.0.state().msix.get(&vector).copied().unwrap_or(0)
    }
    /// What the device said about itself for the ACPI namespace, as JSON objects.
    pub fn acpi(&self) -> Vec<String> {
        self.0.state().acpi.clone()
    }
    /// Ports that the device answers: first port and number.
    pub fn ports(&self) -> Vec<(u64, u64)> {
        let state = self.0.state();
        state.regions.iter().filter(|r| r.space == Space::Ports).map(|r| (r.base, r.len)).collect()
    }

    /// Takes the QMP events that were emitted so far: name and JSON object.
    pub fn take_events(&self) -> Vec<(String, String)> {
        std::mem::take(&mut self.0.state().events)
    }
    /// Takes the changes of run state that were asked for so far.
    pub fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.0.state().requests)
    }
    /// Why the device is broken: the text of its panic.
    pub fn broken(&self) -> Option<String> {
        self.0.state().broken.clone()
    }

    fn on_chardev<R>(&self, id: &str, f: impl FnOnce(&mut CharBackend) -> R) -> R {
        let mut state = self.0.state();
        f(state.chardevs.get_mut(id).unwrap_or_else(|| panic!("the test host has no chardev '{id}'")))
    }
    /// Takes what the device has written to a character backend.
    #[track_caller]
    pub fn take_output(&self, chardev: &str) -> Vec<u8> {
        self.on_chardev(chardev, |c| std::mem::take(&mut c.output))
    }
    /// How many more bytes a character backend takes; `None` for no limit. A device that was refused before hears of
    /// new room at the next [`TestDevice::run`](super::TestDevice::run).
    #[track_caller]
    pub fn set_output_room(&self, chardev: &str, room: Option<usize>) {
        let token = self.on_chardev(chardev, |c| {
            c.room = room;
            let wake = c.refused && room != Some(0);
            c.refused &= !wake;
            c.token.filter(|_| wake)
        });
        if let Some(token) = token {
            self.0.state().queue.push_back((abi::EVENT_CHAR_WRITABLE, token, 0));
        }
    }
    /// Input that the device had no room for yet, in bytes.
    #[track_caller]
    pub fn waiting_input(&self, chardev: &str) -> usize {
        self.on_chardev(chardev, |c| c.input.len())
    }
    /// Whether the device holds a break condition.
    #[track_caller]
    pub fn break_is_on(&self, chardev: &str) -> bool {
        self.on_chardev(chardev, |c| c.break_on)
    }

    fn on_disk<R>(&self, id: &str, f: impl FnOnce(&mut TestDisk) -> R) -> R {
        let mut state = self.0.state();
        f(state.disks.get_mut(id).unwrap_or_else(|| panic!("the test host has no disk '{id}'")))
    }
    /// Content of a disk.
    #[track_caller]
    pub fn disk_data(&self, disk: &str) -> Vec<u8> {
        self.on_disk(disk, |d| d.data.clone())
    }
    /// Changes the content of a disk behind the device's back.
    #[track_caller]
    pub fn fill_disk(&self, disk: &str, offset: usize, data: &[u8]) {
        self.on_disk(disk, |d| d.data[offset..offset + data.len()].copy_from_slice(data));
    }
    /// Changes the length of a disk; the device hears of it at the next run.
    #[track_caller]
    pub fn resize_disk(&self, disk: &str, len: usize) {
        self.on_disk(disk, |d| {
            d.data.resize(len, 0);
            d.info.len = len as u64;
        });
        self.0.state().queue.push_back((abi::EVENT_BLOCK_CHANGED, 0, 0));
    }
    /// Takes what a disk has performed so far.
    #[track_caller]
    pub fn take_disk_ops(&self, disk: &str) -> Vec<DiskOp> {
        self.on_disk(disk, |d| std::mem::take(&mut d.performed))
    }
    /// While held, requests wait until [`complete_disk`](Self::complete_disk) picks them.
    #[track_caller]
    pub fn hold_disk(&self, disk: &str, hold: bool) {
        self.on_disk(disk, |d| d.hold = hold);
    }
    /// Number of requests that wait.
    #[track_caller]
    pub fn disk_requests(&self, disk: &str) -> usize {
        self.on_disk(disk, |d| d.pending.len())
    }
    /// Lets the next request fail with a host errno.
    #[track_caller]
    pub fn fail_disk(&self, disk: &str, errno: i32) {
        self.on_disk(disk, |d| d.failures.push(errno));
    }
    /// Performs one waiting request, by its place among them. The device hears of it at the next run.
    #[track_caller]
    pub fn complete_disk(&self, disk: &str, at: usize) {
        let memory = self.memory();
        let (token, result) = self.on_disk(disk, |d| {
            let request = d.pending.remove(at);
            (request.token, d.perform(&request, &memory))
        });
        let data = result.err().map_or(0, |errno| -i64::from(errno)) as u64;
        self.0.state().queue.push_back((abi::EVENT_BLOCK_DONE, token, data));
    }
    /// Performs all waiting requests of all disks, or of those that are not held.
    pub(super) fn complete_disks(&self, held_too: bool) {
        let ids: Vec<_> = self.0.state().disks.keys().cloned().collect();
        for id in ids {
            while self.on_disk(&id, |d| (held_too || !d.hold) && !d.pending.is_empty()) {
                self.complete_disk(&id, 0);
            }
        }
    }

    pub(super) fn object(&self) -> abi::HostObj {
        abi::HostAbi_TO::from_ptr(RArc::new(HostServices(self.clone())), TD_Opaque)
    }
}
