//! Run states, and requests to change them.

use std::sync::mpsc::{Receiver, Sender, channel};

use crate::vm::Vm;

/// QEMU's run states, as far as this program has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// Built, and not started yet (`-S`).
    Prelaunch,
    /// vCPUs run.
    Running,
    /// Stopped by the user.
    Paused,
    /// The guest has powered off, and `-no-shutdown` keeps the program.
    Shutdown,
    /// The guest says that it panicked.
    GuestPanicked,
    /// A vCPU cannot go on.
    InternalError,
}

impl RunState {
    /// Name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prelaunch => "prelaunch",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Shutdown => "shutdown",
            Self::GuestPanicked => "guest-panicked",
            Self::InternalError => "internal-error",
        }
    }

    /// Whether vCPUs run.
    pub fn is_running(self) -> bool {
        self == Self::Running
    }
}

/// Why the machine is shut down or reset (QEMU's ShutdownCause).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// QMP `quit`.
    HostQmpQuit,
    /// QMP `system_reset`.
    HostQmpSystemReset,
    /// SIGINT, SIGTERM or SIGHUP.
    HostSignal,
    /// The monitor's escape key, or the last window closed.
    HostUi,
    /// The guest powered off.
    GuestShutdown,
    /// The guest asked to be reset.
    GuestReset,
    /// The guest panicked.
    GuestPanic,
    /// An error of this program.
    HostError,
}

impl Cause {
    /// Name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::HostQmpQuit => "host-qmp-quit",
            Self::HostQmpSystemReset => "host-qmp-system-reset",
            Self::HostSignal => "host-signal",
            Self::HostUi => "host-ui",
            Self::GuestShutdown => "guest-shutdown",
            Self::GuestReset => "guest-reset",
            Self::GuestPanic => "guest-panic",
            Self::HostError => "host-error",
        }
    }

    /// Whether the guest caused it.
    pub fn is_guest(self) -> bool {
        matches!(self, Self::GuestShutdown | Self::GuestReset | Self::GuestPanic)
    }
}

/// A change that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// End the program with this status.
    Exit(i32),
    /// Power off.
    Shutdown(Cause),
    /// Reset.
    Reset(Cause),
    /// The guest says that it panicked.
    GuestPanicked,
    /// A vCPU cannot go on.
    InternalError(String),
}

type Call = Box<dyn FnOnce(&mut Vm) + Send>;

pub(crate) enum Message {
    Request(Request),
    Call(Call),
}

/// Sends requests to the thread that owns the machine.
#[derive(Clone)]
pub struct Control(Sender<Message>);

impl Control {
    pub(crate) fn new() -> (Self, Receiver<Message>) {
        let (sender, receiver) = channel();
        (Self(sender), receiver)
    }

    /// Asks for a change, from any thread, without waiting for it. A machine that has ended ignores it.
    pub fn send(&self, request: Request) {
        let _ = self.0.send(Message::Request(request));
    }

    /// Runs `f` on the machine's thread and waits for its result. `None` if the machine has ended.
    pub fn call<R: Send + 'static>(&self, f: impl FnOnce(&mut Vm) -> R + Send + 'static) -> Option<R> {
        let (reply, result) = channel();
        let call: Call = Box::new(move |vm| {
            let _ = reply.send(f(vm));
        });
        self.0.send(Message::Call(call)).ok()?;
        result.recv().ok()
    }
}
