//! The interrupt controllers and the interval timer inside the kernel.
#![expect(unsafe_code, reason = "the kernel's chips come in a union")]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cardcage_accel::InterruptController;
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting,
    kvm_irq_routing_entry, kvm_irq_routing_irqchip, kvm_irqchip, kvm_msi, kvm_pit_state2,
};

use crate::accelerator::Machine;
use crate::{KvmError, failed, pit};

/// Input pins of the I/O APIC.
const PINS: u32 = 24;
/// The I/O APIC's pin for GSI 0.
const TIMER_PIN: u32 = 2;
/// The slave before the master, whose input it would otherwise set again.
const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_IOAPIC];

/// The way from devices to the interrupt controllers inside the kernel.
pub struct KvmInterrupts {
    machine: Arc<Machine>,
    power_on: ([kvm_irqchip; 3], kvm_pit_state2),
    /// From where the interval timer goes on, while it is silenced.
    resting: Mutex<Option<kvm_pit_state2>>,
}

impl KvmInterrupts {
    pub(crate) fn new(machine: &Arc<Machine>) -> Result<Self, KvmError> {
        machine.vm.set_gsi_routing(&routing()?).map_err(failed("KVM_SET_GSI_ROUTING"))?;
        let mut chips = [kvm_irqchip::default(); 3];
        for (chip, id) in chips.iter_mut().zip(CHIPS) {
            *chip = get_chip(machine, id).map_err(failed("KVM_GET_IRQCHIP"))?;
        }
        let pit = machine.vm.get_pit2().map_err(failed("KVM_GET_PIT2"))?;
        Ok(Self { machine: machine.clone(), power_on: (chips, pit), resting: Mutex::default() })
    }

    /// The state of the 8259 pair, the I/O APIC and the 8254 after power-on. Local APICs are their vCPUs' state.
    pub fn reset(&self) -> Result<(), KvmError> {
        for chip in &self.power_on.0 {
            self.machine.vm.set_irqchip(chip).map_err(failed("KVM_SET_IRQCHIP"))?;
        }
        *self.resting() = None;
        self.put_timer(&self.power_on.1)
    }

    /// Silences the interval timer until [`start_timer`](Self::start_timer).
    pub(crate) fn stop_timer(&self) -> Result<(), KvmError> {
        let mut resting = self.resting();
        if resting.is_none() {
            let now = self.machine.vm.get_pit2().map_err(failed("KVM_GET_PIT2"))?;
            if let Some(rest) = pit::at_rest(&now, pit::now_ns()) {
                self.put_timer(&pit::silenced(&now))?;
                *resting = Some(rest);
            }
        }
        Ok(())
    }

    pub(crate) fn start_timer(&self) -> Result<(), KvmError> {
        match self.resting().take() {
            Some(rest) => self.put_timer(&rest),
            None => Ok(()),
        }
    }

    fn put_timer(&self, timer: &kvm_pit_state2) -> Result<(), KvmError> {
        self.machine.vm.set_pit2(timer).map_err(failed("KVM_SET_PIT2"))
    }

    fn resting(&self) -> MutexGuard<'_, Option<kvm_pit_state2>> {
        self.resting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InterruptController for KvmInterrupts {
    fn set_gsi(&self, gsi: u32, level: bool) {
        if gsi < PINS
            && let Err(e) = self.machine.vm.set_irq_line(gsi, level)
        {
            tracing::warn!("KVM_IRQ_LINE of GSI {gsi} failed: {e}");
        }
    }

    fn send_msi(&self, address: u64, data: u32) {
        if address & !0xf_ffff != 0xfee0_0000 {
            return;
        }
        let msi = kvm_msi { address_lo: address as u32, data, ..Default::default() };
        // A message to nobody is no error of ours: the guest programmed it.
        if let Err(e) = self.machine.vm.signal_msi(msi) {
            tracing::debug!("KVM_SIGNAL_MSI to {address:#x} with {data:#x} failed: {e}");
        }
    }
}

pub(crate) fn get_chip(machine: &Machine, id: u32) -> Result<kvm_irqchip, kvm_ioctls::Error> {
    let mut chip = kvm_irqchip { chip_id: id, ..Default::default() };
    machine.vm.get_irqchip(&mut chip)?;
    Ok(chip)
}

/// Makes an interrupt of the 8259 pair that was acknowledged, but never reached the processor, pending again.
pub(crate) fn unacknowledge(machine: &Machine, vector: u8) -> Result<(), kvm_ioctls::Error> {
    let mut own = None;
    for id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE] {
        let mut chip = get_chip(machine, id)?;
        // SAFETY: the kernel has filled in this member for this chip.
        let pic = unsafe { &mut chip.chip.pic };
        if pic.irq_base == vector & 0xf8 {
            let bit = 1 << (vector & 7);
            pic.isr &= !bit;
            pic.irr |= bit;
            machine.vm.set_irqchip(&chip)?;
            own = Some(id);
        }
    }
    if own == Some(KVM_IRQCHIP_PIC_SLAVE) {
        let mut master = get_chip(machine, KVM_IRQCHIP_PIC_MASTER)?;
        // SAFETY: as above.
        let pic = unsafe { &mut master.chip.pic };
        pic.isr &= !4;
        pic.irr |= 4;
        machine.vm.set_irqchip(&master)?;
    }
    Ok(())
}

/// ISA interrupts go to the 8259 pair and to the I/O APIC, the timer to its pin 2; the others to the I/O APIC.
fn routing() -> Result<KvmIrqRouting, KvmError> {
    let entry = |gsi: u32, irqchip: u32, pin: u32| {
        let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
        entry.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
        entry
    };
    let mut entries = Vec::new();
    for gsi in (0..PINS).filter(|&gsi| gsi != TIMER_PIN) {
        match gsi {
            0..8 => entries.push(entry(gsi, KVM_IRQCHIP_PIC_MASTER, gsi)),
            8..16 => entries.push(entry(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - 8)),
            _ => {}
        }
        entries.push(entry(gsi, KVM_IRQCHIP_IOAPIC, if gsi == 0 { TIMER_PIN } else { gsi }));
    }
    KvmIrqRouting::from_entries(&entries).map_err(|_| KvmError::Missing("room for interrupt routes"))
}
