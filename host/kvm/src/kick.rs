//! Getting a vCPU's thread out of the kernel.
#![expect(unsafe_code, reason = "signals, and a flag in memory that the kernel shares")]

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use kvm_bindings::kvm_run;

/// The signal that interrupts KVM_RUN. It does nothing else.
fn signal() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn do_nothing(_: libc::c_int) {}

fn install_handler() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: all zeroes is a valid sigaction: no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = do_nothing as *const () as usize;
        // Other system calls of the thread go on; KVM_RUN does not.
        action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
        // SAFETY: `action` is initialised, and the handler does nothing.
        unsafe { libc::sigaction(signal(), &action, std::ptr::null_mut()) };
    });
}

/// The kernel's page of a vCPU, for its one flag that other threads set.
#[derive(Clone, Copy)]
pub(crate) struct ImmediateExit(*const AtomicU8);

// SAFETY: points to an atomic. Whoever has one makes sure that the page is still mapped.
unsafe impl Send for ImmediateExit {}

impl ImmediateExit {
    /// The flag in `run`. Use it only while that is mapped.
    pub(crate) fn new(run: &mut kvm_run) -> Self {
        Self((&raw mut run.immediate_exit).cast())
    }

    /// Makes KVM_RUN come back at once, or not any more.
    pub(crate) fn set(self, on: bool) {
        // SAFETY: mapped, by the contract of `new`; the kernel reads the byte at any time.
        unsafe { &*self.0 }.store(on.into(), Ordering::SeqCst);
    }
}

struct Target {
    thread: libc::pthread_t,
    flag: ImmediateExit,
}

/// Knows which thread is inside a vCPU's `run`, if one is.
pub(crate) struct Kicker(Mutex<Option<Target>>);

impl Kicker {
    pub(crate) fn new() -> Self {
        install_handler();
        Self(Mutex::new(None))
    }

    /// The calling thread is in `run` until the result is dropped.
    pub(crate) fn enter(&self, flag: ImmediateExit) -> Running<'_> {
        // SAFETY: always succeeds.
        let thread = unsafe { libc::pthread_self() };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Target { thread, flag });
        Running(self)
    }

    /// Gets the thread out of KVM_RUN, also if it is only about to enter it.
    pub(crate) fn interrupt(&self) {
        let target = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(target) = &*target {
            target.flag.set(true);
            // SAFETY: the thread is inside `run`: to leave it, it needs the lock that is held here.
            unsafe { libc::pthread_kill(target.thread, signal()) };
        }
    }
}

pub(crate) struct Running<'a>(&'a Kicker);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
