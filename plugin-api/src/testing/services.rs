//! The host of a test, as a device sees it: the objects of the binary interface.

use std::sync::Arc;

use cardcage_plugin_abi as abi;
use cardcage_plugin_abi::AbiResult;
use cardcage_plugin_abi::abi_stable::{sabi_trait::TD_Opaque, std_types::*};

use super::disk::Pending;
use super::host::{RegionInfo, Shared, Space, TestHost};
use crate::context::Request;

fn refuse<T>(message: String) -> AbiResult<T> {
    RErr(abi::AbiError { code: abi::ERROR_GENERIC, message: message.into() })
}

pub(super) struct HostServices(pub(super) TestHost);

impl abi::HostAbi for HostServices {
    fn device_id(&self) -> RString {
        "test".into()
    }
    fn memory(&self) -> abi::MemoryObj {
        self.0.0.ram.object()
    }
    fn clock_ns(&self, clock: u32) -> u64 {
        let state = self.0.0.state();
        match clock {
            abi::CLOCK_RTC => state.rtc_start_ns.saturating_add(state.now_ns),
            _ => state.now_ns,
        }
    }
    fn timer(&self, token: u64) -> abi::TimerObj {
        let mut state = self.0.0.state();
        state.timers.push(super::host::TimerSlot { token, deadline: None });
        let timer = Timer { shared: self.0.0.clone(), slot: state.timers.len() - 1 };
        abi::TimerAbi_TO::from_ptr(RArc::new(timer), TD_Opaque)
    }
    fn reactor(&self) -> abi::ReactorObj {
        abi::ReactorAbi_TO::from_ptr(RArc::new(Reactor(self.0.0.clone())), TD_Opaque)
    }
    fn chardev(&self, id: RStr<'_>, token: u64) -> AbiResult<abi::CharObj> {
        let mut state = self.0.0.state();
        let Some(backend) = state.chardevs.get_mut(id.as_str()) else {
            return refuse(format!("there is no chardev '{id}'"));
        };
        if backend.token.replace(token).is_some() {
            return refuse(format!("chardev '{id}' is in use"));
        }
        let line = CharLine { shared: self.0.0.clone(), id: id.into() };
        ROk(abi::CharAbi_TO::from_ptr(RArc::new(line), TD_Opaque))
    }
    fn block(&self, id: RStr<'_>, _writable: bool) -> AbiResult<abi::BlockObj> {
        if !self.0.0.state().disks.contains_key(id.as_str()) {
            return refuse(format!("there is no drive '{id}'"));
        }
        let disk = DiskLine { host: self.0.clone(), id: id.into() };
        ROk(abi::BlockAbi_TO::from_ptr(RArc::new(disk), TD_Opaque))
    }
    fn emit_event(&self, name: RStr<'_>, json: RStr<'_>) {
        self.0.0.state().events.push((name.into(), json.into()));
    }
    fn request(&self, request: u32, argument: i64) {
        let request = match request {
            abi::REQUEST_EXIT => Request::Exit(argument as i32),
            abi::REQUEST_SHUTDOWN => Request::Shutdown,
            abi::REQUEST_RESET => Request::Reset,
            abi::REQUEST_GUEST_PANICKED => Request::GuestPanicked,
            abi::REQUEST_GUEST_CRASHLOADED => Request::GuestCrashLoaded,
            abi::REQUEST_GUEST_PVSHUTDOWN => Request::GuestPvShutdown,
            _ => return,
        };
        self.0.0.state().requests.push(request);
    }
    fn fill_random(&self, mut buffer: RSliceMut<'_, u8>) {
        self.0.0.state().random.fill(buffer.as_mut_slice());
    }
    fn machine(&self) -> RString {
        self.0.0.state().machine.as_str().into()
    }
    fn broken(&self, why: RStr<'_>) {
        self.0.0.state().broken = Some(why.into());
    }
}

struct Timer {
    shared: Arc<Shared>,
    slot: usize,
}

impl abi::TimerAbi for Timer {
    fn arm(&self, deadline_ns: u64) {
        self.shared.state().timers[self.slot].deadline = Some(deadline_ns);
    }
    fn cancel(&self) {
        self.shared.state().timers[self.slot].deadline = None;
    }
}

struct Reactor(Arc<Shared>);

impl abi::ReactorAbi for Reactor {
    fn watch(&self, fd: i32, interest: u32, token: u64) -> AbiResult<()> {
        self.0.state().watched.insert(fd, (interest, token));
        ROk(())
    }
    fn set_interest(&self, fd: i32, interest: u32) -> AbiResult<()> {
        match self.0.state().watched.get_mut(&fd) {
            Some(watch) => watch.0 = interest,
            None => return refuse(format!("fd {fd} is not watched")),
        }
        ROk(())
    }
    fn unwatch(&self, fd: i32) {
        self.0.state().watched.remove(&fd);
    }
    fn defer(&self, token: u64) {
        self.0.state().queue.push_back((abi::EVENT_DEFERRED, token, 0));
    }
}

struct CharLine {
    shared: Arc<Shared>,
    id: String,
}

impl abi::CharAbi for CharLine {
    fn write(&self, data: RSlice<'_, u8>) -> usize {
        let mut state = self.shared.state();
        let Some(backend) = state.chardevs.get_mut(&self.id) else { return 0 };
        let taken = backend.room.map_or(data.len(), |room| room.min(data.len()));
        backend.output.extend_from_slice(&data.as_slice()[..taken]);
        backend.room = backend.room.map(|room| room - taken);
        backend.refused |= taken < data.len();
        taken
    }
    /// Nothing to do: every run of the test offers waiting input anew.
    fn resume_input(&self) {}
    fn set_break(&self, on: bool) {
        if let Some(backend) = self.shared.state().chardevs.get_mut(&self.id) {
            backend.break_on = on;
        }
    }
}

struct DiskLine {
    host: TestHost,
    id: String,
}

impl abi::BlockAbi for DiskLine {
    fn info(&self) -> abi::BlockInfo {
        self.host.0.state().disks[&self.id].info
    }
    fn submit(&self, requests: RSlice<'_, abi::BlockRequest<'_>>) {
        let mut state = self.host.0.state();
        let Some(disk) = state.disks.get_mut(&self.id) else { return };
        disk.pending.extend(requests.iter().map(|r| Pending {
            op: r.op,
            may_unmap: r.flags & abi::BLOCK_REQ_MAY_UNMAP != 0,
            offset: r.offset,
            len: r.len,
            data: r.data.to_vec(),
            token: r.token,
        }));
    }
    fn drain(&self) {
        self.host.complete_disks(true);
    }
}

pub(super) struct TestBus(pub(super) Arc<Shared>);

impl TestBus {
    fn region(&self, space: Space, base: u64, len: u64) -> AbiResult<u32> {
        let mut state = self.0.state();
        if len == 0 || base.checked_add(len).is_none() {
            return refuse(format!("a region of {len} bytes at {base:#x} is impossible"));
        }
        let meets = |r: &&RegionInfo| r.space == space && base < r.base + r.len && r.base < base + len;
        if let Some(other) = state.regions.iter().find(meets) {
            return refuse(format!("{base:#x} is taken by the region at {:#x}", other.base));
        }
        state.regions.push(RegionInfo { space, base, len });
        ROk(state.regions.len() as u32 - 1)
    }
}

impl abi::BusAbi for TestBus {
    fn mmio(&mut self, addr: u64, len: u64) -> AbiResult<u32> {
        self.region(Space::Memory, addr, len)
    }
    fn pio(&mut self, port: u16, len: u16) -> AbiResult<u32> {
        if u32::from(port) + u32::from(len) > 0x1_0000 {
            return refuse(format!("{len} ports from {port:#x} on go beyond 0xffff"));
        }
        self.region(Space::Ports, port.into(), len.into())
    }
    fn pci(&mut self, _: abi::PciId) -> AbiResult<()> {
        ROk(())
    }
    fn bar(&mut self, index: u32, len: u64, _flags: u32) -> AbiResult<u32> {
        self.region(Space::Bar(index), 0, len)
    }
    fn irq(&mut self, line: u32) -> AbiResult<abi::IrqObj> {
        self.0.state().lines.entry(line).or_default();
        let irq = InterruptLine { shared: self.0.clone(), line };
        ROk(abi::IrqAbi_TO::from_ptr(RArc::new(irq), TD_Opaque))
    }
    fn msix(&mut self, vectors: u16, _bar: u32) -> AbiResult<abi::MsixObj> {
        let vectors = Vectors { shared: self.0.clone(), vectors };
        ROk(abi::MsixAbi_TO::from_ptr(RArc::new(vectors), TD_Opaque))
    }
    fn acpi(&mut self, json: RStr<'_>) -> AbiResult<()> {
        self.0.state().acpi.push(json.into());
        ROk(())
    }
}

struct InterruptLine {
    shared: Arc<Shared>,
    line: u32,
}

impl abi::IrqAbi for InterruptLine {
    fn set_level(&self, high: bool) {
        let mut state = self.shared.state();
        let line = state.lines.entry(self.line).or_default();
        line.edges += u64::from(high && !line.high);
        line.high = high;
    }
    fn pulse(&self) {
        self.set_level(true);
        self.set_level(false);
    }
}

struct Vectors {
    shared: Arc<Shared>,
    vectors: u16,
}

impl abi::MsixAbi for Vectors {
    fn notify(&self, vector: u16) -> bool {
        let mut state = self.shared.state();
        if state.msix_enabled && vector < self.vectors {
            *state.msix.entry(vector).or_default() += 1;
        }
        state.msix_enabled
    }
    fn is_enabled(&self) -> bool {
        self.shared.state().msix_enabled
    }
}

pub(super) struct DriverLink(pub(super) Arc<Shared>);

impl abi::VirtioLinkAbi for DriverLink {
    fn queue_interrupt(&self, queue: u16) {
        *self.0.state().queue_interrupts.entry(queue).or_default() += 1;
    }
    fn config_interrupt(&self) {
        self.0.state().config_interrupts += 1;
    }
    fn needs_reset(&self) {
        self.0.state().needs_reset = true;
    }
}
