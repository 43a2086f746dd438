//! The kvm accelerator on this board: the processors, interrupt controllers and interval timer are the kernel's.

use std::sync::Arc;

use cardcage_accel::Vcpu;
use cardcage_clock::VirtualClock;
use cardcage_kvm::{CpuModel, KvmAccelerator, KvmError};
use cardcage_memory::GuestRam;
use tracing::error;

use crate::board::{BoardError, Spaces};
use crate::config::MachineConfig;
use crate::processors::Processors;

/// The default model: all that the host has.
const MODEL: &str = "host";

/// Whether KVM is the better choice here; the text says why, or why not.
pub(crate) fn probe() -> Result<String, String> {
    cardcage_kvm::probe().map(|report| report.to_string())
}

/// Whether KVM can be used at all.
pub(crate) fn check() -> Result<(), String> {
    cardcage_kvm::check().map_err(|e| e.to_string())
}

pub(crate) fn make(
    config: &MachineConfig,
    ram: &Arc<GuestRam>,
    spaces: &Arc<Spaces>,
) -> Result<Processors, BoardError> {
    let refused = |e: KvmError| match e {
        KvmError::Cpu(what) => BoardError::Cpu(what),
        other => BoardError::Accelerator(other.to_string()),
    };
    let model: CpuModel = CpuModel::parse(config.cpu.as_deref().unwrap_or(MODEL)).map_err(refused)?;
    let kvm = KvmAccelerator::new(ram.clone(), spaces.clone(), &model, config.cpus).map_err(refused)?;
    let mut vcpus: Vec<Box<dyn Vcpu>> = Vec::new();
    for index in 0..config.cpus {
        vcpus.push(Box::new(kvm.create_vcpu(index).map_err(refused)?));
    }
    let kernel = KernelChips(kvm);
    Ok(Processors { vcpus, controller: kernel.0.controller(), irqchip: None, kernel: Some(kernel) })
}

/// What the kernel has of a machine besides the processors.
pub(crate) struct KernelChips(KvmAccelerator);

impl KernelChips {
    /// The interrupt controllers and the interval timer are as after power-on.
    pub(crate) fn reset(&self) {
        if let Err(e) = self.0.interrupts().reset() {
            error!("the interrupt controllers are not reset: {e}");
        }
    }

    /// The guest's time goes on from where the machine's stands. No vCPU runs yet.
    pub(crate) fn resume(&self, clock: &VirtualClock) {
        if let Err(e) = self.0.start_clock(clock.now()) {
            error!("the guest's clock jumps: {e}");
        }
    }
    /// The guest's time stands still. No vCPU runs.
    pub(crate) fn pause(&self) {
        if let Err(e) = self.0.stop_clock() {
            error!("the interval timer goes on while the machine stands still: {e}");
        }
    }
}
