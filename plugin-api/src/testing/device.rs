//! One device on a test host.

use std::os::fd::{AsFd, AsRawFd};

use cardcage_plugin_abi as abi;
use cardcage_plugin_abi::abi_stable::{sabi_trait::TD_Opaque, std_types::*};

use super::host::{Space, TestHost};
use super::services::TestBus;
use crate::context::Interest;
use crate::device::CharEvent;
use crate::{Device, ResetKind, Result, Unplug, export, from_abi};

/// How many events may follow from one another before a test calls it an endless loop.
const ENDLESS: u32 = 100_000;

/// A device, made and called through the plugin's binary interface.
///
/// Its methods do what a guest or a host would: access ports, move the clock, type, stop the machine. Events that the
/// device caused (deferred calls, completed block requests, room in a character backend) wait for [`run`](Self::run).
pub struct TestDevice {
    pub(super) class: abi::DeviceClassRef,
    pub(super) properties: Vec<(String, String)>,
    pub(super) device: abi::DeviceObj,
    pub(super) host: TestHost,
}

/// What a device saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedState {
    /// Name, version and data of each section.
    pub sections: Vec<(String, u32, Vec<u8>)>,
}

impl SavedState {
    fn to_abi(&self) -> RVec<abi::Section> {
        let section = |(name, version, data): &(String, u32, Vec<u8>)| abi::Section {
            name: name.as_str().into(),
            version: *version,
            data: RVec::from(data.clone()),
        };
        self.sections.iter().map(section).collect()
    }
}

impl TestDevice {
    /// Makes a device with these properties, realizes it and resets it, as at power on.
    pub fn new<D: Device>(host: &TestHost, properties: &[(&str, &str)]) -> Result<Self> {
        Self::of_class(export::device_class::<D>(), host, properties)
    }

    pub(super) fn of_class(class: abi::DeviceClassRef, host: &TestHost, properties: &[(&str, &str)]) -> Result<Self> {
        let properties: Vec<_> = properties.iter().map(|&(n, v)| (n.to_string(), v.to_string())).collect();
        let texts = properties.iter().map(|(n, v)| abi::Prop { name: n.as_str().into(), value: v.as_str().into() });
        let device = from_abi(class.create()(host.object(), texts.collect()))?;
        let bus = abi::BusAbi_TO::from_value(TestBus(host.0.clone()), TD_Opaque);
        from_abi(device.realize(bus))?;
        device.reset(abi::RESET_COLD);
        Ok(Self { class, properties, device, host: host.clone() })
    }

    /// The host that it lives on.
    pub fn host(&self) -> &TestHost {
        &self.host
    }
    /// The description of its kind: a JSON object.
    pub fn description(&self) -> &'static str {
        self.class.description().as_str()
    }

    /// Reads a register by region, in the order of registration.
    pub fn read(&self, region: u32, offset: u64, size: u8) -> u64 {
        let mask = u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8)));
        self.device.read(region, offset, size) & mask
    }
    /// Writes a register by region, in the order of registration.
    pub fn write(&mut self, region: u32, offset: u64, size: u8, value: u64) {
        self.device.write(region, offset, size, value);
    }

    #[track_caller]
    fn locate(&self, space: Space, addr: u64) -> (u32, u64) {
        let state = self.host.0.state();
        let here = state.regions.iter().position(|r| r.space == space && addr >= r.base && addr - r.base < r.len);
        let region = here.unwrap_or_else(|| panic!("the device does not answer at {addr:#x}"));
        (region as u32, addr - state.regions[region].base)
    }

    /// Reads a byte from a port.
    #[track_caller]
    pub fn inb(&self, port: u16) -> u8 {
        let (region, offset) = self.locate(Space::Ports, port.into());
        self.read(region, offset, 1) as u8
    }
    /// Reads a word from a port.
    #[track_caller]
    pub fn inw(&self, port: u16) -> u16 {
        let (region, offset) = self.locate(Space::Ports, port.into());
        self.read(region, offset, 2) as u16
    }
    /// Reads a double word from a port.
    #[track_caller]
    pub fn inl(&self, port: u16) -> u32 {
        let (region, offset) = self.locate(Space::Ports, port.into());
        self.read(region, offset, 4) as u32
    }
    /// Writes a byte to a port.
    #[track_caller]
    pub fn outb(&mut self, port: u16, value: u8) {
        let (region, offset) = self.locate(Space::Ports, port.into());
        self.write(region, offset, 1, value.into());
    }
    /// Writes a word to a port.
    #[track_caller]
    pub fn outw(&mut self, port: u16, value: u16) {
        let (region, offset) = self.locate(Space::Ports, port.into());
        self.write(region, offset, 2, value.into());
    }
    /// Writes a double word to a port.
    #[track_caller]
    pub fn outl(&mut self, port: u16, value: u32) {
        let (region, offset) = self.locate(Space::Ports, port.into());
        self.write(region, offset, 4, value.into());
    }
    /// Reads a register at a guest-physical address.
    #[track_caller]
    pub fn mmio_read(&self, addr: u64, size: u8) -> u64 {
        let (region, offset) = self.locate(Space::Memory, addr);
        self.read(region, offset, size)
    }
    /// Writes a register at a guest-physical address.
    #[track_caller]
    pub fn mmio_write(&mut self, addr: u64, size: u8, value: u64) {
        let (region, offset) = self.locate(Space::Memory, addr);
        self.write(region, offset, size, value);
    }
    /// Reads a register in a BAR.
    #[track_caller]
    pub fn bar_read(&self, bar: u32, offset: u64, size: u8) -> u64 {
        let (region, offset) = self.locate(Space::Bar(bar), offset);
        self.read(region, offset, size)
    }
    /// Writes a register in a BAR.
    #[track_caller]
    pub fn bar_write(&mut self, bar: u32, offset: u64, size: u8, value: u64) {
        let (region, offset) = self.locate(Space::Bar(bar), offset);
        self.write(region, offset, size, value);
    }

    /// Delivers all that is on its way to the device, and what follows from it.
    pub fn run(&mut self) {
        for _ in 0..ENDLESS {
            self.host.complete_disks(false);
            let next = self.host.0.state().queue.pop_front();
            match next {
                Some((kind, token, data)) => self.device.event(kind, token, data),
                None if self.offer_input() => {}
                None => return,
            }
        }
        panic!("the device keeps causing new events for itself");
    }

    /// Moves the virtual clock. Timers on the way expire at their time, each followed by a [`run`](Self::run).
    pub fn advance(&mut self, ns: u64) {
        let target = self.host.now().saturating_add(ns);
        let mut in_a_row = 0;
        while let Some(token) = self.next_timer(target) {
            in_a_row += 1;
            assert!(in_a_row < ENDLESS, "the device arms its timers in the past again and again");
            self.device.event(abi::EVENT_TIMER, token, 0);
            self.run();
        }
        self.host.0.state().now_ns = target;
        self.run();
    }

    /// Takes the first timer that expires until `target`, and moves the clock to its time.
    fn next_timer(&self, target: u64) -> Option<u64> {
        let mut state = self.host.0.state();
        let due = |t: &&mut super::host::TimerSlot| t.deadline.is_some_and(|d| d <= target);
        let timer = state.timers.iter_mut().filter(due).min_by_key(|t| t.deadline)?;
        let (token, deadline) = (timer.token, timer.deadline.take()?);
        state.now_ns = state.now_ns.max(deadline);
        Some(token)
    }

    /// Input for a character backend's device. What it has no room for waits.
    #[track_caller]
    pub fn type_in(&mut self, chardev: &str, input: &[u8]) {
        match self.host.0.state().chardevs.get_mut(chardev) {
            Some(backend) => backend.input.extend(input),
            None => panic!("the test host has no chardev '{chardev}'"),
        }
        self.run();
    }

    /// Offers waiting input; false if there is none or no room for it.
    fn offer_input(&mut self) -> bool {
        let waiting = |c: &super::host::CharBackend| c.token.filter(|_| !c.input.is_empty());
        let tokens: Vec<_> =
            self.host.0.state().chardevs.iter().filter_map(|(id, c)| Some((id.clone(), waiting(c)?))).collect();
        let mut moved = false;
        for (id, token) in tokens {
            let room = self.device.char_room(token);
            let data: Vec<u8> = match self.host.0.state().chardevs.get_mut(&id) {
                Some(c) => c.input.drain(..room.min(c.input.len())).collect(),
                None => continue,
            };
            if !data.is_empty() {
                self.device.char_receive(token, RSlice::from_slice(&data));
                moved = true;
            }
        }
        moved
    }

    /// Something happened to a character backend.
    #[track_caller]
    pub fn char_event(&mut self, chardev: &str, event: CharEvent) {
        let token = self.host.0.state().chardevs.get(chardev).and_then(|c| c.token);
        let token = token.unwrap_or_else(|| panic!("no device uses the chardev '{chardev}'"));
        let data = match event {
            CharEvent::Closed => 0,
            CharEvent::Opened => 1,
            CharEvent::Break => 2,
        };
        self.device.event(abi::EVENT_CHAR_CHANGED, token, data);
        self.run();
    }

    /// A watched fd has become ready; false if the device does not wait for that.
    pub fn fd_ready(&mut self, fd: &impl AsFd, ready: Interest) -> bool {
        let watch = self.host.0.state().watched.get(&fd.as_fd().as_raw_fd()).copied();
        let always = (Interest::ERROR | Interest::HANGUP).0;
        let Some((interest, token)) = watch.filter(|(i, _)| (i | always) & ready.0 != 0) else { return false };
        self.device.event(abi::EVENT_FD, token, (ready.0 & (interest | always)).into());
        self.run();
        true
    }

    /// Resets the device.
    pub fn reset(&mut self, kind: ResetKind) {
        self.device.reset(match kind {
            ResetKind::Cold => abi::RESET_COLD,
            ResetKind::Warm => abi::RESET_WARM,
            ResetKind::Function => abi::RESET_FUNCTION,
        });
    }
    /// The machine stops or goes on.
    pub fn set_running(&mut self, running: bool) {
        self.device.run_state(running);
    }

    /// Saves the state. Stop the machine first.
    pub fn save(&self) -> Result<SavedState> {
        let sections = from_abi(self.device.save())?;
        let sections = sections.into_iter().map(|s| (s.name.into(), s.version, s.data.into_vec())).collect();
        Ok(SavedState { sections })
    }
    /// Loads a state into this device, which must be fresh.
    pub fn load(&mut self, state: &SavedState) -> Result<()> {
        from_abi(self.device.load(state.to_abi()))
    }

    /// A fresh device like this one, on a host with the same RAM and copies of clock and disks.
    pub fn successor(&self) -> Result<Self> {
        let properties: Vec<_> = self.properties.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        Self::of_class(self.class, &self.host.successor(), &properties)
    }
    /// Stops this device, and goes on with a [successor](Self::successor) that has loaded its state.
    pub fn migrate(&mut self) -> Result<Self> {
        self.set_running(false);
        let state = self.save()?;
        let mut next = self.successor()?;
        next.load(&state)?;
        next.set_running(true);
        next.run();
        Ok(next)
    }

    /// Asks the device to leave.
    pub fn unplug_request(&mut self) -> Result<Unplug> {
        let answer = from_abi(self.device.unplug_request())?;
        Ok(if answer == abi::UNPLUG_ASKED { Unplug::Asked } else { Unplug::Now })
    }
    /// Live state: a JSON object.
    pub fn inspect(&self) -> String {
        self.device.inspect().into()
    }
    /// Counters: a JSON object.
    pub fn stats(&self) -> String {
        self.device.stats().into()
    }
}

impl Drop for TestDevice {
    fn drop(&mut self) {
        self.device.unrealize();
    }
}
