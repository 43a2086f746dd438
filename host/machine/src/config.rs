//! What a machine is to be: the command line, checked.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use cardcage_block::BlockGraph;
use cardcage_chardev::Chardevs;
use cardcage_qmp::Events;
use cardcage_registry::Registry;

use crate::accelerator::Accelerator;
use crate::device::DeviceOptions;

/// Everything that a machine is built from. Backends exist already.
pub struct MachineConfig {
    /// `-name`.
    pub name: Option<String>,
    /// `-uuid`.
    pub uuid: uuid::Uuid,
    /// Bytes of RAM.
    pub ram_size: u64,
    /// Number of vCPUs.
    pub cpus: u32,
    /// What runs them.
    pub accelerator: Accelerator,
    /// CPU model, as after `-cpu`.
    pub cpu: Option<String>,
    /// `-kernel`.
    pub kernel: Option<PathBuf>,
    /// `-initrd`.
    pub initrd: Option<PathBuf>,
    /// `-append`.
    pub cmdline: String,
    /// Devices, in the order in which they are made.
    pub devices: Vec<DeviceOptions>,
    /// All kinds of device.
    pub registry: Arc<Registry>,
    /// Block backends.
    pub blocks: Arc<BlockGraph>,
    /// Character backends.
    pub chardevs: Arc<Chardevs>,
    /// QMP events, once there is a server.
    pub events: Arc<OnceLock<Events>>,
    /// `-S`.
    pub start_paused: bool,
    /// `-no-reboot`.
    pub no_reboot: bool,
    /// `-no-shutdown`.
    pub no_shutdown: bool,
}
