//! What the host does for one device: the services behind a plugin's `Context`.

use std::sync::{Arc, Weak};

use cardcage_eventloop::EventLoopHandle;
use cardcage_memory::{GuestRam, PAGE_SHIFT};
use cardcage_plugin_abi as abi;
use cardcage_plugin_abi::abi_stable::{sabi_trait::TD_Opaque, std_types::*};
use tracing::error;

use super::reactor::Reactor;
use super::{block, chardev, slot::Slot};
use crate::services::Services;

/// The host, as one device sees it.
pub(crate) struct DeviceHost {
    services: Arc<Services>,
    slot: Weak<Slot>,
    id: String,
}

impl DeviceHost {
    pub(crate) fn object(services: &Arc<Services>, slot: &Arc<Slot>) -> abi::HostObj {
        let host = Self { services: services.clone(), slot: Arc::downgrade(slot), id: slot.id().into() };
        abi::HostAbi_TO::from_ptr(RArc::new(host), TD_Opaque)
    }

    fn event_loop(&self) -> EventLoopHandle {
        self.services.event_loop.clone()
    }
}

fn to_abi<T>(result: Result<T, String>) -> abi::AbiResult<T> {
    result.map_err(|text| abi::AbiError { code: abi::ERROR_GENERIC, message: text.into() }).into()
}

impl abi::HostAbi for DeviceHost {
    fn device_id(&self) -> RString {
        self.id.as_str().into()
    }

    fn memory(&self) -> abi::MemoryObj {
        abi::MemoryAbi_TO::from_ptr(RArc::new(Memory(self.services.ram.clone())), TD_Opaque)
    }

    fn clock_ns(&self, clock: u32) -> u64 {
        match clock {
            abi::CLOCK_HOST => cardcage_clock::host_monotonic_ns(),
            abi::CLOCK_RTC => u64::try_from(self.services.rtc.utc_now_ns()).unwrap_or(0),
            _ => self.services.clock.now(),
        }
    }

    fn timer(&self, token: u64) -> abi::TimerObj {
        let slot = self.slot.clone();
        let timer = self.services.clock.timer(move || {
            if let Some(slot) = slot.upgrade() {
                slot.event(abi::EVENT_TIMER, token, 0);
            }
        });
        abi::TimerAbi_TO::from_ptr(RArc::new(Timer(timer)), TD_Opaque)
    }

    fn reactor(&self) -> abi::ReactorObj {
        let reactor = Reactor::new(self.slot.clone(), self.event_loop());
        abi::ReactorAbi_TO::from_ptr(RArc::new(reactor), TD_Opaque)
    }

    fn chardev(&self, id: RStr<'_>, token: u64) -> abi::AbiResult<abi::CharObj> {
        to_abi(chardev::attach(&self.services, &id, self.slot.clone(), token))
    }

    fn block(&self, id: RStr<'_>, writable: bool) -> abi::AbiResult<abi::BlockObj> {
        let blocks = &self.services.blocks;
        let attached = blocks.find(&id).and_then(|node| blocks.attach(&id, &self.id, writable && !node.is_read_only()));
        let attached = attached.map_err(|e| e.hint().map_or_else(|| e.to_string(), |hint| format!("{e}\n{hint}")));
        to_abi(attached.map(|backend| {
            let port = block::Port::new(backend, self.services.ram.clone(), self.slot.clone(), self.event_loop());
            abi::BlockAbi_TO::from_ptr(RArc::new(port), TD_Opaque)
        }))
    }

    fn emit_event(&self, name: RStr<'_>, json: RStr<'_>) {
        match serde_json::from_str(&json) {
            Ok(data) => self.services.emit(&name, Some(data)),
            Err(_) if json.is_empty() => self.services.emit(&name, None),
            Err(e) => error!("{}: event {name} has data that are no JSON object: {e}", self.id),
        }
    }

    fn request(&self, request: u32, argument: i64) {
        self.services.device_request(request, argument);
    }

    fn fill_random(&self, mut buffer: RSliceMut<'_, u8>) {
        let mut rest = buffer.as_mut_slice();
        while !rest.is_empty() {
            match rustix::rand::getrandom(&mut *rest, rustix::rand::GetRandomFlags::empty()) {
                Ok(n) => rest = rest.split_at_mut(n.min(rest.len())).1,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => {
                    error!("{}: the host has no random numbers: {e}", self.id);
                    return;
                }
            }
        }
    }

    fn machine(&self) -> RString {
        let below: u64 = self.services.ram.regions().iter().filter(|r| r.start() < 1 << 32).map(|r| r.len()).sum();
        let facts = serde_json::json!({
            "ram-below-4g": below,
            "ram-above-4g": self.services.ram.size() - below,
            "cpus": self.services.cpus,
        });
        facts.to_string().into()
    }

    fn broken(&self, why: RStr<'_>) {
        if let Some(slot) = self.slot.upgrade() {
            self.services.device_broken(&slot, &why);
        }
    }
}

/// Guest RAM: the table never changes while the machine has no memory hotplug.
struct Memory(Arc<GuestRam>);

static GENERATION: u64 = 1;

impl abi::MemoryAbi for Memory {
    fn snapshot(&self) -> RArc<abi::MemTable> {
        use std::os::fd::AsRawFd;
        let fd = self.0.fd().as_raw_fd();
        let regions = self.0.regions().iter().map(|r| abi::Region {
            start: r.start(),
            len: r.len(),
            hva: r.hva(),
            dirty: r.dirty_bitmap().as_ptr().cast(),
            watch: r.watch_bitmap().as_ptr().cast(),
            watch_hits: std::ptr::from_ref(self.0.watch_hits()).cast(),
            file_offset: r.file_offset(),
            fd,
            page_shift: PAGE_SHIFT,
            flags: 0,
        });
        RArc::new(abi::MemTable { generation: GENERATION, regions: regions.collect() })
    }

    fn generation(&self) -> *const u64 {
        &raw const GENERATION
    }
}

struct Timer(cardcage_clock::Timer);

impl abi::TimerAbi for Timer {
    fn arm(&self, deadline_ns: u64) {
        self.0.arm(deadline_ns);
    }
    fn cancel(&self) {
        self.0.cancel();
    }
}
