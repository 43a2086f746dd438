//! A software x86-64 CPU: decodes guest code into blocks of operations and runs them as threaded code.
//!
//! [`SoftCpu`] implements [`cardcage_accel::Vcpu`]. What it runs on: guest RAM ([`cardcage_memory::GuestRam`]), a
//! [`Bus`] for everything that is not RAM, a [`LocalApic`], and a [`VirtualClock`], of which the guest's time stamp
//! counter is the reading in nanoseconds.
//!
//! # Code map
//! * `state`, `flags`: registers; arithmetic flags in lazy form.
//! * `op`, `exec`: operations, and the handlers that carry them out one after the other.
//! * `lower`, `blocks`: from bytes to operations; the cache of blocks, and how code changes are noticed.
//! * `rare`: all instructions without a handler of their own, from their decoded form.
//! * `tlb`, `memory`, `paging`: loads and stores, fast and slow; page walks.
//! * `segment`, `interrupt`, `debug`, `msr`, `cpuid`, `kvmclock`: the system side.
//! * `run`: the loop around it all.
//!
//! # What is left out
//! Hardware task switches, virtual-8086 mode, PCID, 5-level paging, SMM, AVX. A guest that needs one of the first two
//! stops with [`cardcage_accel::VcpuError::Internal`]; the others are not announced, so their use is #UD or #GP.
//!
//! # Hosts
//! x86-64 only: floating point and locked instructions are carried out by the host's own.

#[cfg(not(target_arch = "x86_64"))]
compile_error!("cardcage-cpu runs on x86-64 hosts only: it uses the host's SSE, x87 and locked instructions");

mod blocks;
mod cpuid;
mod debug;
mod exec;
mod fault;
mod flags;
mod interrupt;
mod kvmclock;
mod lower;
mod memory;
mod msr;
mod op;
mod paging;
mod rare;
mod run;
mod segment;
mod soft;
mod state;
mod tlb;

pub use cpuid::{CpuModel, ModelError};
pub use soft::{SoftCpu, bare};

#[cfg(test)]
mod tests;
