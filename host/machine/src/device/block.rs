//! The block interface that plugins see, over the host's block nodes.
#![expect(unsafe_code, reason = "requests carry raw pointers into guest memory")]

use std::sync::{Arc, Mutex, PoisonError, Weak};

use cardcage_block::{BlockBackend, Completion, IoBuffers, IoResult, Request};
use cardcage_eventloop::EventLoopHandle;
use cardcage_memory::GuestRam;
use cardcage_plugin_abi as abi;
use cardcage_plugin_abi::abi_stable::std_types::*;

use super::slot::Slot;

const EINVAL: i32 = 22;

/// One device's end of a block backend.
pub(crate) struct Port {
    backend: BlockBackend,
    ram: Arc<GuestRam>,
    completions: Arc<Completions>,
}

/// Ended requests on their way to the device, which hears of them on its event loop.
struct Completions {
    ended: Mutex<Vec<(u64, i64)>>,
    slot: Weak<Slot>,
    event_loop: EventLoopHandle,
}

impl Completions {
    fn push(self: &Arc<Self>, token: u64, result: i64) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.push((token, result));
        if ended.len() == 1 {
            let me = self.clone();
            self.event_loop.defer(move || me.deliver());
        }
    }

    fn deliver(&self) {
        let ended = std::mem::take(&mut *self.ended.lock().unwrap_or_else(PoisonError::into_inner));
        let Some(slot) = self.slot.upgrade() else { return };
        for (token, result) in ended {
            slot.event(abi::EVENT_BLOCK_DONE, token, result as u64);
        }
    }
}

impl Port {
    pub(crate) fn new(
        backend: BlockBackend,
        ram: Arc<GuestRam>,
        slot: Weak<Slot>,
        event_loop: EventLoopHandle,
    ) -> Self {
        let completions = Arc::new(Completions { ended: Mutex::default(), slot, event_loop });
        Self { backend, ram, completions }
    }

    /// Host addresses of the ranges; `None` if one is not RAM.
    fn buffers(&self, ranges: &[abi::GuestRange]) -> Option<IoBuffers> {
        let pieces = ranges.iter().map(|r| Some((self.ram.host_address(r.addr, r.len)?, r.len as usize)));
        let pieces: Vec<_> = pieces.collect::<Option<_>>()?;
        // SAFETY: the pieces are guest RAM, which the completion's reference keeps mapped, and which is only reached
        // through raw pointers.
        Some(unsafe { IoBuffers::from_raw(pieces) })
    }

    fn completion(&self, token: u64, written: Vec<abi::GuestRange>) -> Completion {
        let (completions, ram) = (self.completions.clone(), self.ram.clone());
        Completion::new(move |result: IoResult| {
            for r in &written {
                if let Some((region, offset)) = ram.find(r.addr, r.len) {
                    ram.mark_written(region, offset, r.len);
                }
            }
            completions.push(token, result.map_or_else(|e| -i64::from(e.raw_os_error()), |()| 0));
        })
    }

    fn start(&self, r: &abi::BlockRequest<'_>) {
        let data = r.data.as_slice();
        let Some(buffers) = self.buffers(data) else {
            self.completions.push(r.token, -i64::from(EINVAL));
            return;
        };
        let done = |written| self.completion(r.token, written);
        let request = match r.op {
            abi::BLOCK_OP_READ => Request::read(r.offset, buffers, done(data.to_vec())),
            abi::BLOCK_OP_WRITE => Request::write(r.offset, buffers, false, done(Vec::new())),
            abi::BLOCK_OP_FLUSH => Request::flush(done(Vec::new())),
            abi::BLOCK_OP_DISCARD => Request::discard(r.offset, r.len, done(Vec::new())),
            abi::BLOCK_OP_WRITE_ZEROES => {
                Request::write_zeroes(r.offset, r.len, r.flags & abi::BLOCK_REQ_MAY_UNMAP != 0, done(Vec::new()))
            }
            _ => {
                self.completions.push(r.token, -i64::from(EINVAL));
                return;
            }
        };
        self.backend.submit(request);
    }
}

impl abi::BlockAbi for Port {
    fn info(&self) -> abi::BlockInfo {
        let limits = self.backend.limits();
        let mut flags = 0;
        if self.backend.is_read_only() {
            flags |= abi::BLOCK_READ_ONLY;
        }
        if self.backend.write_cache() {
            flags |= abi::BLOCK_WRITE_BACK;
        }
        if self.backend.node().discard() == cardcage_block::Discard::Unmap {
            flags |= abi::BLOCK_DISCARD;
        }
        let (logical, physical) = limits.block_sizes.unwrap_or((512, 512));
        abi::BlockInfo {
            len: self.backend.length(),
            request_alignment: limits.request_alignment as u32,
            logical_block_size: logical,
            physical_block_size: physical,
            flags,
        }
    }

    fn submit(&self, requests: RSlice<'_, abi::BlockRequest<'_>>) {
        requests.iter().for_each(|r| self.start(r));
    }

    fn drain(&self) {
        self.backend.drain();
    }
}
