//! One virtual machine of KVM.
#![expect(unsafe_code, reason = "KVM is given the addresses of guest RAM")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cardcage_accel::{Bus, InterruptController};
use cardcage_memory::GuestRam;
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_clock_data, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VmFd};

use crate::controllers::KvmInterrupts;
use crate::cpuid::CpuModel;
use crate::vcpu::KvmVcpu;
use crate::{KvmError, failed};

/// Four pages that some Intel processors need to run real-mode code, where no board has RAM or ROM.
const IDENTITY_MAP: u64 = 0xfeff_c000;
const TASK_STATE: usize = 0xfeff_d000;

/// What this program cannot do without.
const REQUIRED: [(Cap, &str); 12] = [
    (Cap::UserMemory, "user memory slots (KVM_CAP_USER_MEMORY)"),
    (Cap::Irqchip, "in-kernel interrupt controllers (KVM_CAP_IRQCHIP)"),
    (Cap::IrqRouting, "interrupt routing (KVM_CAP_IRQ_ROUTING)"),
    (Cap::Pit2, "in-kernel interval timer (KVM_CAP_PIT2)"),
    (Cap::SignalMsi, "message-signalled interrupts (KVM_CAP_SIGNAL_MSI)"),
    (Cap::ExtCpuid, "CPUID configuration (KVM_CAP_EXT_CPUID)"),
    (Cap::ImmediateExit, "immediate exit (KVM_CAP_IMMEDIATE_EXIT)"),
    (Cap::VcpuEvents, "access to pending events (KVM_CAP_VCPU_EVENTS)"),
    (Cap::Debugregs, "access to debug registers (KVM_CAP_DEBUGREGS)"),
    (Cap::Xsave, "access to the XSAVE area (KVM_CAP_XSAVE)"),
    (Cap::MpState, "access to the run state (KVM_CAP_MP_STATE)"),
    (Cap::AdjustClock, "an adjustable clock (KVM_CAP_ADJUST_CLOCK)"),
];

/// What vCPUs share with their machine.
pub(crate) struct Machine {
    pub(crate) vm: VmFd,
    pub(crate) kvm: Kvm,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) model: CpuModel,
    pub(crate) cpus: u32,
    /// How often the clock was started: a vCPU tells its guest that it stood still.
    pub(crate) starts: AtomicU64,
    /// KVM holds addresses in it. After `vm`: dropped later.
    pub(crate) ram: Arc<GuestRam>,
}

/// One virtual machine of KVM. See the crate's front page.
pub struct KvmAccelerator {
    machine: Arc<Machine>,
    interrupts: Arc<KvmInterrupts>,
}

/// Opens /dev/kvm and checks that it has what this program needs.
pub(crate) fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|e| KvmError::Open(std::io::Error::from_raw_os_error(e.errno())))?;
    match kvm.get_api_version() {
        12 => {}
        version => return Err(KvmError::Version(version)),
    }
    match REQUIRED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        Some((_, what)) => Err(KvmError::Missing(what)),
        None => Ok(kvm),
    }
}

/// Makes every region of `ram` a memory slot.
pub(crate) fn add_memory(vm: &VmFd, ram: &GuestRam) -> Result<(), KvmError> {
    for (slot, region) in (0..).zip(ram.regions()) {
        let slot = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start(),
            memory_size: region.len(),
            userspace_addr: region.hva() as u64,
        };
        // SAFETY: the region is mapped at that address for as long as the `GuestRam` lives, and callers keep that for
        // as long as the VM; it is shared memory that nobody has Rust references to.
        unsafe { vm.set_user_memory_region(slot) }.map_err(failed("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}

impl KvmAccelerator {
    /// A machine for `cpus` vCPUs of `model`, with `ram` in its memory slots and the rest answered by `bus`.
    pub fn new(ram: Arc<GuestRam>, bus: Arc<dyn Bus>, model: &CpuModel, cpus: u32) -> Result<Self, KvmError> {
        let kvm = open()?;
        model.check(&kvm)?;
        let max = kvm.get_max_vcpus();
        if cpus as usize > max {
            return Err(KvmError::TooManyCpus { wanted: cpus, max });
        }
        let vm = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
        vm.set_identity_map_address(IDENTITY_MAP).map_err(failed("KVM_SET_IDENTITY_MAP_ADDR"))?;
        vm.set_tss_address(TASK_STATE).map_err(failed("KVM_SET_TSS_ADDR"))?;
        vm.create_irq_chip().map_err(failed("KVM_CREATE_IRQCHIP"))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.create_pit2(pit).map_err(failed("KVM_CREATE_PIT2"))?;
        add_memory(&vm, &ram)?;
        let model = model.clone();
        let machine = Arc::new(Machine { vm, kvm, bus, model, cpus, starts: AtomicU64::new(0), ram });
        let interrupts = Arc::new(KvmInterrupts::new(&machine)?);
        Ok(Self { machine, interrupts })
    }

    /// The vCPU with this number, which is its APIC id, as after power-on. Number 0 is the bootstrap processor.
    pub fn create_vcpu(&self, index: u32) -> Result<KvmVcpu, KvmError> {
        KvmVcpu::new(&self.machine, index)
    }

    /// The way from devices to the in-kernel interrupt controllers.
    pub fn controller(&self) -> Arc<dyn InterruptController> {
        self.interrupts.clone()
    }

    /// The in-kernel interrupt controllers, to reset them.
    pub fn interrupts(&self) -> &Arc<KvmInterrupts> {
        &self.interrupts
    }

    /// Sets kvmclock to `now_ns`, the virtual clock's time, from where it goes on, and lets the interval timer go on.
    /// Call it when the machine starts to run, before its vCPUs do.
    pub fn start_clock(&self, now_ns: u64) -> Result<(), KvmError> {
        let clock = kvm_clock_data { clock: now_ns, ..Default::default() };
        self.machine.vm.set_clock(&clock).map_err(failed("KVM_SET_CLOCK"))?;
        self.machine.starts.fetch_add(1, Ordering::SeqCst);
        self.interrupts.start_timer()
    }

    /// Makes the interval timer stand still. Call it when the machine stops, after its vCPUs have. Nobody sees kvmclock
    /// then.
    pub fn stop_clock(&self) -> Result<(), KvmError> {
        self.interrupts.stop_timer()
    }

    /// What kvmclock shows, in ns.
    pub fn clock_ns(&self) -> Result<u64, KvmError> {
        Ok(self.machine.vm.get_clock().map_err(failed("KVM_GET_CLOCK"))?.clock)
    }
}
