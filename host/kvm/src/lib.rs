//! The kvm accelerator: vCPUs and interrupt controllers of the host's KVM (Documentation/virt/kvm/api.rst in Linux).
//!
//! * [`probe`] says whether KVM here really runs guest code, and how fast; [`check`] only whether it can be used.
//! * [`KvmAccelerator`] is one virtual machine: guest RAM as memory slots, the in-kernel interrupt controllers and
//!   interval timer, and the clock that its guest sees.
//! * [`KvmVcpu`] implements [`Vcpu`](cardcage_accel::Vcpu). Port and memory-mapped accesses call the machine's
//!   [`Bus`](cardcage_accel::Bus) from inside `run`.
//!
//! # Time
//! Guest time is KVM's: kvmclock, the time-stamp counter and the timers in the kernel go with the host's clock.
//! [`KvmAccelerator::start_clock`] sets kvmclock to the machine's virtual clock whenever the machine starts to run, so
//! that a stop is not seen there; [`KvmAccelerator::stop_clock`] silences the interval timer until then. Each vCPU
//! notes where its time-stamp counter and its local APIC's timer are when it comes back from guest code, and goes on
//! from there after a stop.
//!
//! # What this needs of the host
//! An in-kernel interrupt controller and PIT, `KVM_CAP_IMMEDIATE_EXIT`, `KVM_CAP_XSAVE` and other things that Linux has
//! had since 4.13. Where one is absent, [`KvmError::Missing`] names it. Dirty page logging is not used.

mod accelerator;
mod controllers;
mod cpuid;
mod kick;
mod pit;
mod probe;
mod state;
mod time;
mod vcpu;

pub use accelerator::KvmAccelerator;
pub use controllers::KvmInterrupts;
pub use cpuid::CpuModel;
pub use probe::{ProbeReport, check, probe};
pub use vcpu::KvmVcpu;

/// Why KVM cannot be used, or not like this.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The device node is not there or not ours.
    #[error("cannot open /dev/kvm: {0}; {remedy}", remedy = remedy(.0))]
    Open(#[source] std::io::Error),
    /// An API from before 2007 or of the future.
    #[error("/dev/kvm has API version {0}; this program knows version 12")]
    Version(i32),
    /// Something that this program needs is absent.
    #[error("the host's KVM has no {0}")]
    Missing(&'static str),
    /// A call failed.
    #[error("{call} failed: {source}")]
    Host {
        /// The call.
        call: &'static str,
        /// The host's reason.
        source: std::io::Error,
    },
    /// `-cpu` names something that there is not.
    #[error("{0}")]
    Cpu(String),
    /// Too many vCPUs.
    #[error("the host's KVM takes at most {max} vCPUs, not {wanted}")]
    TooManyCpus {
        /// What was asked for.
        wanted: u32,
        /// The host's limit.
        max: usize,
    },
}

/// What the user can do where /dev/kvm does not open.
fn remedy(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => "add the user to group 'kvm' and log in again, or use '-accel soft'",
        std::io::ErrorKind::NotFound => {
            "load the module kvm_intel or kvm_amd, switch on virtualisation in the firmware, or use '-accel soft'"
        }
        _ => "use '-accel soft'",
    }
}

/// Turns the error of a KVM call into ours.
pub(crate) fn failed(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |e| KvmError::Host { call, source: std::io::Error::from_raw_os_error(e.errno()) }
}

#[cfg(test)]
mod tests;
