//! The kvm accelerator on this board.

use std::sync::Arc;

use cardcage_clock::VirtualClock;
use cardcage_memory::GuestRam;

use crate::board::{BoardError, Spaces};
use crate::config::MachineConfig;
use crate::processors::Processors;

pub(crate) fn probe() -> Result<String, String> {
    Err("it is not part of this build".into())
}

pub(crate) fn check() -> Result<(), String> {
    probe().map(|_| ())
}

pub(crate) fn make(
    _config: &MachineConfig,
    _ram: &Arc<GuestRam>,
    _clock: &VirtualClock,
    _spaces: &Arc<Spaces>,
) -> Result<Processors, BoardError> {
    Err(BoardError::Accelerator(probe().unwrap_err()))
}
