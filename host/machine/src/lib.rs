//! The machine: board, buses, devices, run states and boot.
//!
//! A [`MachineConfig`] says what the machine is to be; [`Vm::build`] builds it and [`Vm::run`] runs it on the calling
//! thread. Everybody else reaches it through a [`Control`].
//!
//! # Threads
//! * The caller of [`Vm::run`] owns the machine and changes its run state.
//! * A thread for each vCPU runs guest code and register accesses.
//! * The event loop `devices` runs everything else of the devices: timers, fds, queues, completions.
//!
//! While the machine is paused, none of the last two runs: see `Vm::pause_guest`.

mod accelerator;
mod board;
mod config;
mod control;
mod device;
mod firmware;
mod kvm;
mod layout;
mod lines;
mod processors;
mod properties;
mod qmp;
mod qtest;
mod services;
mod vcpu;
mod vm;

pub use accelerator::Accelerator;
pub use board::BoardError;
pub use config::MachineConfig;
pub use control::{Cause, Control, Request, RunState};
pub use device::{DeviceError, DeviceOptions};
pub use processors::cpu_models;
pub use properties::registry_builder;
pub use qmp::{AvailableDevice, PluginInfo, available_device, plugins, register as register_commands};
pub use qtest::QtestOptions;
pub use vm::Vm;
