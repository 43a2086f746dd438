//! How any thread makes a vCPU look up from guest code.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, OnceLock};

const KICK: u32 = 1;
const ATTENTION: u32 = 2;

/// A flag word, and a way to wake a vCPU that sleeps or is inside the kernel.
///
/// `attention` means "something may be pending in your local APIC": `run` looks and goes on. `kick` means "come
/// back": `run` returns [`Exit::Kicked`](crate::Exit::Kicked). Both may be called from any thread, also before the
/// vCPU runs, and are never lost.
#[derive(Default)]
pub struct VcpuSignal {
    word: AtomicU32,
    sleeping: Mutex<()>,
    wake: Condvar,
    interrupt: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl VcpuSignal {
    /// A signal that nobody has raised. `interrupt` gets a vCPU out of the kernel; accelerators without need pass none.
    pub fn new(interrupt: Option<Box<dyn Fn() + Send + Sync>>) -> Self {
        let signal = Self::default();
        if let Some(f) = interrupt {
            let _ = signal.interrupt.set(f);
        }
        signal
    }

    /// Makes `run` return soon.
    pub fn kick(&self) {
        self.raise(KICK);
    }

    /// Makes the vCPU look at its local APIC soon.
    pub fn attention(&self) {
        self.raise(ATTENTION);
    }

    fn raise(&self, bit: u32) {
        if self.word.fetch_or(bit, Ordering::SeqCst) & bit != 0 {
            return;
        }
        drop(self.sleeping.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        self.wake.notify_all();
        if let Some(f) = self.interrupt.get() {
            f();
        }
    }

    /// Whether anything was raised and not yet taken. One relaxed load: cheap enough for the run loop.
    #[inline]
    pub fn is_raised(&self) -> bool {
        self.word.load(Ordering::Relaxed) != 0
    }

    /// Takes a kick, if there is one. Called by the vCPU's thread.
    pub fn take_kick(&self) -> bool {
        self.word.fetch_and(!KICK, Ordering::SeqCst) & KICK != 0
    }

    /// Takes a call for attention, if there is one. Take it *before* looking at the local APIC.
    pub fn take_attention(&self) -> bool {
        self.word.fetch_and(!ATTENTION, Ordering::SeqCst) & ATTENTION != 0
    }

    /// Sleeps until something is raised.
    pub fn wait(&self) {
        let mut guard = self.sleeping.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        while self.word.load(Ordering::SeqCst) == 0 {
            guard = self.wake.wait(guard).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_kick_before_the_wait_is_not_lost() {
        let signal = VcpuSignal::new(None);
        signal.kick();
        signal.wait();
        assert!(signal.take_kick() && !signal.take_kick() && !signal.is_raised());
    }

    #[test]
    fn attention_wakes_a_sleeper_and_leaves_no_kick() {
        let signal = Arc::new(VcpuSignal::new(None));
        let sleeper = signal.clone();
        let thread = std::thread::spawn(move || {
            sleeper.wait();
            (sleeper.take_kick(), sleeper.take_attention())
        });
        signal.attention();
        assert_eq!(thread.join().unwrap(), (false, true));
    }
}
