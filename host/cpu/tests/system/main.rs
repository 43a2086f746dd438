//! The system side of the CPU: exceptions, interrupts, system calls, debugging, code that changes.
//!
//! Each test assembles a small kernel in 64-bit mode, or user code under one, and looks at registers, memory and exits
//! afterwards. `0xf4` is a port that ends a test.

mod code_changes;
mod debugging;
mod events;
mod guest;
mod strings;
mod transfers;
