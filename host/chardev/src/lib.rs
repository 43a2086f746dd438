//! Character devices: where serial ports and monitors are connected.
//!
//! A [`Chardev`] is the host's side: a terminal, a file, a pty, a socket, a ring buffer or nothing. A [`Frontend`] is
//! who talks to it: a serial port, a monitor. [`Chardevs`] holds them by id, as `-chardev` makes them.
//!
//! # Flow
//! * **Output** never blocks: [`CharHandle::write`] takes what fits into a bounded buffer and says how much that was. A
//!   frontend that was refused bytes gets [`Event::Writable`] when there is room again. While nobody is connected,
//!   output is taken and dropped, as on a serial cable that is not plugged in.
//! * **Input** comes when the frontend has room for it: [`Frontend::room`] is asked before the host reads. A frontend
//!   that said 0 calls [`CharHandle::resume_input`] later.
//! * **Events** tell when the other side comes and goes.
//!
//! Each chardev that has descriptors is served by one thread of its own, so that a terminal that blocks holds up
//! nothing else. Frontends are called from that thread, with no lock held; they may write from inside a call.
//!
//! # Several frontends on one chardev
//! With `mux=on` all frontends write to the same place, and input goes to the one in focus. Ctrl-A is the way to speak
//! to the multiplexer: `c` goes on to the next frontend, `x` quits, `b` sends a break, `h` prints help, and Ctrl-A
//! again is a Ctrl-A for the frontend.

mod bridge;
mod chardev;
mod core;
mod error;
mod legacy;
mod mux;
mod options;
mod pty;
mod registry;
mod ring;
mod socket;
mod terminal;
mod worker;

pub use bridge::Bridge;
pub use chardev::{CharHandle, Chardev};
pub use error::CharError;
pub use legacy::{Legacy, parse_legacy};
pub use options::{BackendOptions, ChardevOptions, SocketAddress, SocketOptions};
pub use registry::{ChardevInfo, Chardevs};

/// Who talks through a chardev. All calls come from the chardev's thread, except that [`Event::Opened`] also comes
/// from inside of [`Chardev::attach`].
pub trait Frontend: Send + Sync {
    /// Bytes of input that it can take just now.
    fn room(&self) -> usize;
    /// Takes input: never more than `room` said.
    fn receive(&self, bytes: &[u8]);
    /// Something happened on the other side.
    fn event(&self, event: Event);
}

/// What happens to a chardev.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Somebody is there to read and write.
    Opened,
    /// Nobody is there any more.
    Closed,
    /// The other side sent a break condition.
    Break,
    /// Output that was refused can be offered again.
    Writable,
    /// The multiplexer's input comes here from now on.
    FocusIn,
    /// The multiplexer's input goes elsewhere from now on.
    FocusOut,
}
