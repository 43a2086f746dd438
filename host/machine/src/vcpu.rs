//! vCPU threads: they run guest code while the machine runs, and are parked otherwise.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use cardcage_accel::{Exit, Vcpu, VcpuError, VcpuSignal, VcpuState};

use crate::accelerator::Accelerator;
use crate::control::{Cause, Control, Request};

/// Plugins run on these threads too, so they get more than a vCPU alone would need.
const STACK: usize = 4 << 20;

struct Gate {
    /// Guest code may run.
    open: bool,
    /// Threads that wait at the gate.
    parked: usize,
    /// Threads are to end.
    quit: bool,
    /// Counts openings: a vCPU that cannot go on waits for the next one.
    openings: u64,
}

struct Shared {
    gate: Mutex<Gate>,
    changed: Condvar,
    control: Control,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn wait<'a>(&self, gate: MutexGuard<'a, Gate>) -> MutexGuard<'a, Gate> {
        self.changed.wait(gate).unwrap_or_else(PoisonError::into_inner)
    }
}

type SharedVcpu = Arc<Mutex<Box<dyn Vcpu>>>;

/// All vCPUs of a machine.
pub(crate) struct Vcpus {
    shared: Arc<Shared>,
    vcpus: Vec<(SharedVcpu, Arc<VcpuSignal>)>,
    threads: Vec<JoinHandle<()>>,
}

impl Vcpus {
    /// Starts a thread for each vCPU, named after what runs it; they are parked at first.
    pub(crate) fn new(vcpus: Vec<Box<dyn Vcpu>>, accelerator: Accelerator, control: &Control) -> std::io::Result<Self> {
        let gate = Mutex::new(Gate { open: false, parked: 0, quit: false, openings: 0 });
        let shared = Arc::new(Shared { gate, changed: Condvar::new(), control: control.clone() });
        let mut all = Self { shared, vcpus: Vec::new(), threads: Vec::new() };
        let suffix = accelerator.to_string().to_uppercase();
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            let signal = vcpu.signal();
            let vcpu: SharedVcpu = Arc::new(Mutex::new(vcpu));
            let (shared, own) = (all.shared.clone(), vcpu.clone());
            let builder = std::thread::Builder::new().name(format!("CPU {index}/{suffix}")).stack_size(STACK);
            all.threads.push(builder.spawn(move || run(&shared, &own, index as u32))?);
            all.vcpus.push((vcpu, signal));
        }
        Ok(all)
    }

    /// Lets guest code run.
    pub(crate) fn resume(&self) {
        let mut gate = self.shared.lock();
        gate.open = true;
        gate.openings += 1;
        self.shared.changed.notify_all();
    }

    /// Stops guest code; none runs when this returns.
    pub(crate) fn pause(&self) {
        let mut gate = self.shared.lock();
        gate.open = false;
        self.vcpus.iter().for_each(|(_, signal)| signal.kick());
        while gate.parked < self.threads.len() {
            gate = self.shared.wait(gate);
        }
    }

    /// Replaces the state of one vCPU. The machine is paused.
    pub(crate) fn set_state(&self, index: usize, state: &VcpuState) -> Result<(), VcpuError> {
        let Some((vcpu, _)) = self.vcpus.get(index) else { return Ok(()) };
        vcpu.lock().unwrap_or_else(PoisonError::into_inner).set_state(state)
    }

    /// Number of vCPUs.
    pub(crate) fn len(&self) -> usize {
        self.vcpus.len()
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        {
            let mut gate = self.shared.lock();
            gate.open = false;
            gate.quit = true;
            self.vcpus.iter().for_each(|(_, signal)| signal.kick());
            self.shared.changed.notify_all();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn run(shared: &Shared, vcpu: &SharedVcpu, index: u32) {
    // Waits for an opening after this one: 0 for any.
    let mut after = 0;
    while let Some(opening) = wait_for_opening(shared, after) {
        let exit = catch_unwind(AssertUnwindSafe(|| vcpu.lock().unwrap_or_else(PoisonError::into_inner).run()));
        // A slip of this program's stops the guest, and leaves it to be looked at; it must not leave it half alive.
        let exit = exit.unwrap_or_else(|_| {
            let what = "the program panicked while it ran guest code; please report it with the message above".into();
            Err(VcpuError::Internal { index, rip: 0, what })
        });
        after = match exit {
            Ok(Exit::Kicked | Exit::Debug) => 0,
            Ok(Exit::Shutdown) => {
                shared.control.send(Request::Reset(Cause::GuestReset));
                opening
            }
            Err(e) => {
                shared.control.send(Request::InternalError(e.to_string()));
                opening
            }
        };
    }
}

/// Waits until guest code may run in an opening after number `after`; `None` when the thread is to end.
fn wait_for_opening(shared: &Shared, after: u64) -> Option<u64> {
    let mut gate = shared.lock();
    gate.parked += 1;
    shared.changed.notify_all();
    while !gate.quit && (!gate.open || gate.openings <= after) {
        gate = shared.wait(gate);
    }
    gate.parked -= 1;
    (!gate.quit).then_some(gate.openings)
}
