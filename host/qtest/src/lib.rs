//! The server side of the qtest protocol: a test drives a machine's ports, memory, clock and interrupt lines over a
//! socket, with no CPU.
//!
//! Requests and replies are lines of words; each request gets one reply, in order. `IRQ raise N` and `IRQ lower N` lines
//! come before the reply to the command that caused them. The protocol is QEMU's (its system/qtest.c), so that its
//! device tests run through this server.
//!
//! * [`QtestTarget`] is what is driven: implemented by the machine.
//! * [`Qtest`] is the server, on a thread of its own: `-qtest` and `-qtest-log`.
//! * [`IrqLines`] is where the target reports interrupt lines that the test intercepts.

mod address;
mod command;
mod irq;
mod log;
mod server;

pub use address::{AddressError, QtestAddress};
pub use irq::IrqLines;
pub use server::{Error, Qtest};

/// What a qtest client drives. All calls come from one thread.
///
/// Accesses have happened when a call returns, with everything that they cause at once; interrupt lines that they
/// change have been reported by then. Times are nanoseconds of the machine's virtual clock, which starts at 0 and moves
/// only by the calls here.
pub trait QtestTarget: Send {
    /// A port read of `size` 1, 2 or 4; all ones where nobody answers.
    fn port_in(&mut self, port: u16, size: u8) -> u32;
    /// A port write of `size` 1, 2 or 4.
    fn port_out(&mut self, port: u16, size: u8, value: u32);
    /// Reads guest-physical memory or device registers. 1, 2, 4 or 8 bytes are one access; more are split as a CPU's
    /// bus would.
    fn read_memory(&mut self, addr: u64, data: &mut [u8]);
    /// Writes guest-physical memory or device registers, split in the same way.
    fn write_memory(&mut self, addr: u64, data: &[u8]);
    /// The time.
    fn clock(&mut self) -> u64;
    /// Moves the clock on by `ns`, running each timer on the way at its own time. Gives the time then. Refuses while
    /// something else moves the clock.
    fn clock_step(&mut self, ns: u64) -> Result<u64, String>;
    /// Moves the clock to the next deadline and gives the time then; `None` if no timer is armed.
    fn clock_step_to_next(&mut self) -> Result<Option<u64>, String>;
    /// Moves the clock to `ns` as [`clock_step`](Self::clock_step) does.
    fn clock_set(&mut self, ns: u64) -> Result<u64, String>;
    /// Reports the input lines of the device at this (partial) path to `lines` from now on.
    fn irq_intercept_in(&mut self, path: &str, lines: IrqLines) -> Result<(), String>;
    /// Reports the output lines of the device, the anonymous ones or those called `name`.
    fn irq_intercept_out(&mut self, path: &str, name: Option<&str>, lines: IrqLines) -> Result<(), String>;
    /// Sets an input line of the device; `None` means the anonymous ones.
    fn set_irq_in(&mut self, path: &str, name: Option<&str>, number: u32, level: i32) -> Result<(), String>;
    /// Loads a module, for hosts that have such a thing.
    fn module_load(&mut self, prefix: &str, library: &str) -> Result<(), String> {
        Err(format!("there is no module {prefix}{library}: this program has no modules"))
    }
}
