//! The interface between the machine and whatever runs its vCPUs.
//!
//! An accelerator runs guest code until something needs the rest of the program ([`Exit`]). Port and memory-mapped
//! accesses are *not* exits: a vCPU calls the machine's [`Bus`] from inside [`Vcpu::run`], whichever accelerator it
//! belongs to.
//!
//! # Roles
//! * [`Bus`]: the machine as a vCPU sees it. Implemented by the machine.
//! * [`LocalApic`]: the local APIC of one vCPU, for accelerators that have none of their own. Implemented by
//!   `cardcage-irqchip`.
//! * [`InterruptController`]: how devices raise interrupts. Implemented by `cardcage-irqchip`, and by accelerators with
//!   an interrupt controller of their own.
//! * [`Vcpu`]: one virtual CPU. Owned by its thread; `run` is called in a loop.
//! * [`VcpuSignal`]: how any thread makes a vCPU look up from guest code.
//! * [`VcpuState`]: all architectural state of a vCPU in one neutral form, the same for every accelerator.
//!
//! # Lifecycle of a vCPU
//! 1. The machine creates it and sets its state ([`Vcpu::set_state`]).
//! 2. Its thread calls [`Vcpu::run`] again and again. `run` blocks while the guest halts; it returns with
//!    [`Exit::Kicked`] soon after [`VcpuSignal::kick`].
//! 3. After a kick nothing of the guest runs until `run` is called again, and [`Vcpu::state`] is exact: every
//!    instruction is either wholly done or not begun.

mod interrupt;
mod signal;
mod state;

pub use interrupt::InterruptController;
pub use signal::VcpuSignal;
pub use state::{Descriptor, MpState, PendingEvents, Segment, VcpuState};

/// The machine as a vCPU sees it: whoever answers accesses that are not RAM.
///
/// Called from vCPU threads, several at a time. Sizes are 1, 2, 4 or (memory only) 8 bytes; values are in the low
/// bytes. An access that crosses the end of a device's range belongs to the device that holds its first byte.
pub trait Bus: Send + Sync {
    /// `IN`.
    fn port_read(&self, port: u16, size: u8) -> u32;
    /// `OUT`.
    fn port_write(&self, port: u16, size: u8, value: u32);
    /// A load from a guest-physical address that is not RAM.
    fn memory_read(&self, addr: u64, size: u8) -> u64;
    /// A store to a guest-physical address that is not RAM.
    fn memory_write(&self, addr: u64, size: u8, value: u64);
}

/// An access that the processor answers with #GP(0).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("general protection")]
pub struct GeneralProtection;

/// What a local APIC wants its processor to do next (SDM volume 3, section 6.9: in this order of priority).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApicEvent {
    /// INIT: go to the wait-for-SIPI state.
    Init,
    /// Start-up IPI with this vector: start at `vector << 12` in real mode. Only reported after INIT.
    Startup(u8),
    /// Non-maskable interrupt.
    Nmi,
    /// A maskable interrupt is deliverable; [`LocalApic::acknowledge`] gives its vector.
    Interrupt,
}

/// The local APIC of one vCPU, as that vCPU sees it. All calls come from the vCPU's own thread.
///
/// Whoever makes something pending (another vCPU, the I/O APIC, a timer, the 8259 pair through LINT0) also calls
/// [`VcpuSignal::attention`], so a vCPU need not poll.
pub trait LocalApic: Send + Sync {
    /// The most urgent thing to do. `interrupts_enabled` is RFLAGS.IF without an interrupt shadow; without it
    /// [`ApicEvent::Interrupt`] is not reported.
    fn pending(&self, interrupts_enabled: bool) -> Option<ApicEvent>;
    /// Takes note that the processor has acted on INIT, start-up or NMI.
    fn taken(&self, event: ApicEvent);
    /// The interrupt-acknowledge cycle: moves the most urgent vector from IRR to ISR, or asks the 8259 pair for an
    /// external interrupt. `None` if it has gone away in between.
    fn acknowledge(&self) -> Option<u8>;
    /// The task priority as CR8 shows it, 0 to 15.
    fn cr8(&self) -> u8;
    /// Sets the task priority from CR8, 0 to 15.
    fn set_cr8(&self, priority: u8);
    /// IA32_APIC_BASE.
    fn base(&self) -> u64;
    /// Sets IA32_APIC_BASE; refuses reserved bits and illegal changes of mode.
    fn set_base(&self, value: u64) -> Result<(), GeneralProtection>;
    /// A 32-bit load at `offset` into the APIC page; xAPIC mode only (else all ones).
    fn mmio_read(&self, offset: u32) -> u32;
    /// A 32-bit store at `offset` into the APIC page; xAPIC mode only (else ignored).
    fn mmio_write(&self, offset: u32, value: u32);
    /// RDMSR of 0x800 to 0x8ff (x2APIC mode only) or IA32_TSC_DEADLINE (0x6e0).
    fn read_msr(&self, msr: u32) -> Result<u64, GeneralProtection>;
    /// WRMSR of 0x800 to 0x8ff (x2APIC mode only) or IA32_TSC_DEADLINE (0x6e0).
    fn write_msr(&self, msr: u32, value: u64) -> Result<(), GeneralProtection>;
    /// The registers, as [`VcpuState::apic`] describes them. Without IA32_APIC_BASE and IA32_TSC_DEADLINE, which are
    /// state of their own.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }
    /// Takes over registers that [`save`](Self::save) gave (none: as after power-on), IA32_APIC_BASE, and whether the
    /// processor waits for a start-up IPI. Disarms the TSC deadline: write it afterwards. The error says what does not
    /// fit; nothing has changed then.
    fn restore(&self, page: &[u8], base: u64, waits_for_startup: bool) -> Result<(), String> {
        let _ = (page, base, waits_for_startup);
        Ok(())
    }
}

/// Why [`Vcpu::run`] came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// [`VcpuSignal::kick`] was called.
    Kicked,
    /// Triple fault: the processor has shut down.
    Shutdown,
    /// A debug event that the host asked for.
    Debug,
}

/// Why guest code cannot go on. The text names what was met and where.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// The accelerator met something that it cannot carry out.
    #[error("vCPU {index} cannot go on at rip {rip:#x}: {what}")]
    Internal {
        /// Which vCPU.
        index: u32,
        /// Guest instruction pointer.
        rip: u64,
        /// What was met.
        what: String,
    },
    /// A state that this accelerator cannot take.
    #[error("vCPU {index} cannot take this state: {what}")]
    State {
        /// Which vCPU.
        index: u32,
        /// What does not fit.
        what: String,
    },
    /// A call to the host failed.
    #[error("vCPU {index}: {call} failed: {source}")]
    Host {
        /// Which vCPU.
        index: u32,
        /// The call.
        call: &'static str,
        /// Its reason.
        source: std::io::Error,
    },
}

/// One virtual CPU.
pub trait Vcpu: Send {
    /// Runs guest code until an [`Exit`]. Blocks while the guest halts.
    fn run(&mut self) -> Result<Exit, VcpuError>;
    /// All architectural state. Exact between two calls of `run`.
    fn state(&mut self) -> Result<VcpuState, VcpuError>;
    /// Replaces all architectural state.
    fn set_state(&mut self, state: &VcpuState) -> Result<(), VcpuError>;
    /// How other threads reach this vCPU.
    fn signal(&self) -> std::sync::Arc<VcpuSignal>;
}
