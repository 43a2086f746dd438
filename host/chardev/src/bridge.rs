//! A chardev as a byte stream with descriptors, for programs' parts that read and write streams: monitors.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFlags, eventfd};
use rustix::io::{Errno, read, write};

use crate::worker::poll_some;
use crate::{CharError, CharHandle, Chardev, Event, Frontend};

/// Bytes on their way in either direction.
const CHUNK: usize = 4096;

/// A frontend that gives each connection to a chardev to somebody as a stream.
///
/// Whenever somebody connects, the callback gets one end of a socket pair, which does not block. It reads end of file
/// when the other side has gone. Dropping the bridge ends the stream and detaches it.
pub struct Bridge {
    shared: Arc<Shared>,
}

type OnStream = Box<dyn Fn(UnixStream) + Send + Sync>;

struct Shared {
    state: Mutex<State>,
    on_stream: OnStream,
    wake: OwnedFd,
    /// The thread has been through its work once more.
    settled: Condvar,
}

#[derive(Default)]
struct State {
    stream: Option<Arc<UnixStream>>,
    /// Input of the chardev that the stream did not take yet.
    inbound: Vec<u8>,
    /// Output for the chardev that it did not take yet.
    outbound: Vec<u8>,
    /// The chardev is being offered what was outbound.
    offering: bool,
    stopped: bool,
    /// Given up when the bridge goes: it keeps the chardev, which keeps this.
    handle: Option<Arc<CharHandle>>,
}

impl Bridge {
    /// Attaches to a chardev. `on_stream` is called from inside of this if somebody is connected already, else later
    /// from the chardev's thread.
    pub fn attach(
        chardev: &Arc<Chardev>,
        on_stream: impl Fn(UnixStream) + Send + Sync + 'static,
    ) -> Result<Self, CharError> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let wake = wake.map_err(|e| CharError::host("make an eventfd", e))?;
        let shared =
            Arc::new(Shared { state: Mutex::default(), on_stream: Box::new(on_stream), wake, settled: Condvar::new() });
        let bridge = Self { shared: shared.clone() };
        let handle = chardev.attach(shared.clone())?;
        shared.lock().handle = Some(Arc::new(handle));
        let name = format!("bridge-{}", chardev.id());
        let pump = thread::Builder::new().name(name).spawn(move || shared.pump());
        pump.map_err(|e| CharError::io("start a thread for a chardev", &e))?;
        Ok(bridge)
    }

    /// Waits until the chardev has taken everything that the stream's owner, who has closed it, has written; but not
    /// longer than `limit`, since nobody may be reading there.
    pub fn drain(&self, limit: Duration) {
        let busy = |state: &mut State| state.stream.is_some() || state.offering || !state.outbound.is_empty();
        drop(self.shared.settled.wait_timeout_while(self.shared.lock(), limit, busy));
    }

    /// Makes a multiplexer's input come here.
    pub fn take_focus(&self) {
        if let Some(handle) = self.shared.handle() {
            handle.take_focus();
        }
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.stopped = true;
        state.stream = None;
        let handle = state.handle.take();
        drop(state);
        drop(handle);
        self.shared.wake();
    }
}

impl Frontend for Shared {
    fn room(&self) -> usize {
        let state = self.lock();
        // Without a stream, input of a connection that nobody serves any more is read and dropped.
        if state.stream.is_none() { CHUNK } else { CHUNK - state.inbound.len().min(CHUNK) }
    }

    fn receive(&self, bytes: &[u8]) {
        let mut state = self.lock();
        if state.stream.is_some() {
            state.inbound.extend_from_slice(bytes);
            drop(state);
            self.wake();
        }
    }

    fn event(&self, event: Event) {
        match event {
            Event::Opened => self.open(),
            Event::Closed => self.close(),
            Event::Writable => self.wake(),
            Event::Break | Event::FocusIn | Event::FocusOut => (),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self) -> Option<Arc<CharHandle>> {
        self.lock().handle.clone()
    }

    fn wake(&self) {
        // Fails only when the counter is full, and then the thread wakes anyway.
        let _ = write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn open(&self) {
        let pair = UnixStream::pair().and_then(|(ours, theirs)| {
            ours.set_nonblocking(true)?;
            theirs.set_nonblocking(true)?;
            Ok((ours, theirs))
        });
        match pair {
            Ok((ours, theirs)) => {
                let mut state = self.lock();
                state.stream = Some(Arc::new(ours));
                state.inbound.clear();
                state.outbound.clear();
                drop(state);
                self.wake();
                (self.on_stream)(theirs);
            }
            Err(error) => tracing::warn!(%error, "a connection to a chardev cannot be served"),
        }
    }

    /// The stream takes what came before the end, if it has room, and reads end of file then.
    fn close(&self) {
        let mut state = self.lock();
        if let Some(stream) = state.stream.take() {
            let _ = write(&*stream, &state.inbound);
        }
        state.inbound.clear();
        state.outbound.clear();
        drop(state);
        self.wake();
    }

    fn pump(&self) {
        loop {
            let state = self.lock();
            if state.stopped {
                return;
            }
            let stream = state.stream.clone();
            let (has_inbound, can_read) = (!state.inbound.is_empty(), state.outbound.is_empty());
            drop(state);
            let source = |flags| move |stream: &Arc<UnixStream>| (stream.clone(), flags);
            let input = stream.as_ref().filter(|_| can_read).map(source(PollFlags::IN));
            let output = stream.as_ref().filter(|_| has_inbound).map(source(PollFlags::OUT));
            let found = poll_some(
                [
                    Some((self.wake.as_fd(), PollFlags::IN)),
                    input.as_ref().map(|(stream, flags)| (stream.as_fd(), *flags)),
                    output.as_ref().map(|(stream, flags)| (stream.as_fd(), *flags)),
                ],
                None,
            );
            if !found[0].is_empty() {
                let _ = read(&self.wake, &mut [0_u8; 8]);
            }
            if let Some(stream) = stream {
                if !found[1].is_empty() {
                    self.take_outbound(&stream);
                }
                if !found[2].is_empty() {
                    self.give_inbound(&stream);
                }
            }
            self.offer_outbound();
        }
    }

    fn give_inbound(&self, stream: &Arc<UnixStream>) {
        let mut state = self.lock();
        match write(&**stream, &state.inbound) {
            Ok(count) => drop(state.inbound.drain(..count)),
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(_) => state.drop_stream(stream),
        }
        drop(state);
        if let Some(handle) = self.handle() {
            handle.resume_input();
        }
    }

    fn take_outbound(&self, stream: &Arc<UnixStream>) {
        let mut bytes = [0; CHUNK];
        let result = read(&**stream, &mut bytes);
        let mut state = self.lock();
        match result {
            Err(Errno::AGAIN | Errno::INTR) => (),
            Ok(count) if count != 0 => state.outbound.extend_from_slice(&bytes[..count]),
            _ => state.drop_stream(stream),
        }
    }

    fn offer_outbound(&self) {
        let Some(handle) = self.handle() else { return };
        // Taken out while the chardev is called; nobody else adds to it.
        let mut state = self.lock();
        state.offering = true;
        let mut bytes = std::mem::take(&mut state.outbound);
        drop(state);
        let taken = handle.write(&bytes);
        bytes.drain(..taken);
        let mut state = self.lock();
        state.outbound = bytes;
        state.offering = false;
        drop(state);
        self.settled.notify_all();
    }
}

impl State {
    /// The stream's owner has closed it; another one may be there already.
    fn drop_stream(&mut self, stream: &Arc<UnixStream>) {
        if self.stream.as_ref().is_some_and(|current| Arc::ptr_eq(current, stream)) {
            self.stream = None;
            self.inbound.clear();
        }
    }
}
