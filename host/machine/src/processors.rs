//! vCPUs and interrupt controllers of the chosen accelerator.

use std::sync::Arc;

use cardcage_accel::{InterruptController, Vcpu, VcpuSignal};
use cardcage_clock::VirtualClock;
use cardcage_cpu::{CpuModel, SoftCpu};
use cardcage_irqchip::Irqchip;
use cardcage_memory::GuestRam;

use crate::accelerator::Accelerator;
use crate::board::{BoardError, Spaces};
use crate::config::MachineConfig;
use crate::kvm::KernelChips;

/// The default model of the software CPU.
const SOFT_MODEL: &str = "cardcage-v1";

pub(crate) struct Processors {
    pub(crate) vcpus: Vec<Box<dyn Vcpu>>,
    pub(crate) controller: Arc<dyn InterruptController>,
    /// This program's own controllers, if the accelerator has none.
    pub(crate) irqchip: Option<Arc<Irqchip>>,
    /// The kernel's, if it has.
    pub(crate) kernel: Option<KernelChips>,
}

pub(crate) fn make(
    config: &MachineConfig,
    ram: &Arc<GuestRam>,
    clock: &VirtualClock,
    spaces: &Arc<Spaces>,
) -> Result<Processors, BoardError> {
    match config.accelerator {
        Accelerator::Kvm => crate::kvm::make(config, ram, spaces),
        Accelerator::Soft => soft(config, ram, clock, spaces),
        Accelerator::Qtest => {
            let irqchip = own_irqchip(config, clock, spaces)?;
            Ok(Processors { vcpus: Vec::new(), controller: irqchip.clone(), irqchip: Some(irqchip), kernel: None })
        }
    }
}

fn own_irqchip(config: &MachineConfig, clock: &VirtualClock, spaces: &Spaces) -> Result<Arc<Irqchip>, BoardError> {
    let ids: Vec<u32> = (0..config.cpus).collect();
    let irqchip = Irqchip::new(clock, &ids);
    irqchip.map(&spaces.ports, &spaces.memory)?;
    Ok(irqchip)
}

fn soft(
    config: &MachineConfig,
    ram: &Arc<GuestRam>,
    clock: &VirtualClock,
    spaces: &Arc<Spaces>,
) -> Result<Processors, BoardError> {
    let model = soft_model(config.cpu.as_deref().unwrap_or(SOFT_MODEL)).map_err(BoardError::Cpu)?;
    let irqchip = own_irqchip(config, clock, spaces)?;
    let mut vcpus: Vec<Box<dyn Vcpu>> = Vec::new();
    for index in 0..config.cpus {
        let signal = Arc::new(VcpuSignal::new(None));
        let lapic = irqchip
            .lapic(index as usize)
            .cloned()
            .ok_or_else(|| BoardError::Wiring(format!("vCPU {index} has no local APIC")))?;
        lapic.connect(signal.clone());
        let cpu = SoftCpu::new(index, ram.clone(), spaces.clone(), lapic, signal, Arc::new(clock.clone()), &model);
        vcpus.push(Box::new(cpu));
    }
    Ok(Processors { vcpus, controller: irqchip.clone(), irqchip: Some(irqchip), kernel: None })
}

/// `MODEL[,+FEATURE][,-FEATURE][,FEATURE=on|off]`, as QEMU's `-cpu`.
fn soft_model(text: &str) -> Result<CpuModel, String> {
    let mut parts = text.split(',');
    let name = parts.next().unwrap_or_default();
    let name = if matches!(name, "max" | "host" | "qemu64") { SOFT_MODEL } else { name };
    let mut model = CpuModel::by_name(name).ok_or_else(|| {
        format!("unable to find CPU model '{name}'; the software CPU has: {}", CpuModel::names().join(", "))
    })?;
    for part in parts {
        let (feature, on) = match part.split_once('=') {
            Some((feature, "on")) => (feature, true),
            Some((feature, "off")) => (feature, false),
            Some((feature, value)) => {
                return Err(format!("CPU feature '{feature}' doesn't take value '{value}': say on or off"));
            }
            None => part.strip_prefix('-').map_or((part.strip_prefix('+').unwrap_or(part), true), |f| (f, false)),
        };
        model = model.with_feature(feature, on).map_err(|e| e.to_string())?;
    }
    Ok(model)
}

/// Names of the software CPU's models.
pub fn cpu_models() -> &'static [&'static str] {
    CpuModel::names()
}
