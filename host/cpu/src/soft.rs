//! The software CPU as the machine sees it.
#![expect(unsafe_code, reason = "a CPU moves between threads although it holds raw pointers into its own blocks")]

use std::sync::Arc;

use cardcage_accel::{Bus, Exit, LocalApic, MpState, PendingEvents, Segment, Vcpu, VcpuError, VcpuSignal, VcpuState};
use cardcage_clock::VirtualClock;
use cardcage_fpu::FpuState;
use cardcage_memory::GuestRam;

use crate::blocks::{Cache, JumpEntry};
use crate::cpuid::CpuModel;
use crate::msr::{Msrs, SAVED};
use crate::state::{CS, Cpu, cr0, efer};
use crate::tlb::{CodeTlb, Tlb};

/// One virtual CPU, carried out by software.
pub struct SoftCpu {
    cpu: Box<Cpu>,
}

// SAFETY: the raw pointers inside lead to blocks that the CPU itself owns and that nobody else can reach; everything
// shared is behind `Arc`s of types that are `Send` and `Sync`.
unsafe impl Send for SoftCpu {}

impl SoftCpu {
    /// A CPU in its state after power-on. `index` is its number and local APIC ID.
    pub fn new(
        index: u32,
        ram: Arc<GuestRam>,
        bus: Arc<dyn Bus>,
        apic: Arc<dyn LocalApic>,
        signal: Arc<VcpuSignal>,
        clock: Arc<VirtualClock>,
        model: &CpuModel,
    ) -> SoftCpu {
        let jumps = vec![JumpEntry::EMPTY; 65536].into_boxed_slice();
        let jumps: Box<[JumpEntry; 65536]> = jumps.try_into().unwrap_or_else(|_| unreachable!("the length fits"));
        let apic_base = apic.base();
        let mut cpu = Box::new(Cpu {
            regs: [0; 32],
            fl_res: 1 << 8,
            fl_aux: 0,
            budget: 0,
            key: [0; 2],
            epoch: [1; 2],
            tlb: Tlb::new(),
            fpu: FpuState::new(),
            jumps,
            rip: 0,
            rflags: 0,
            cpl: 0,
            mode: 0,
            jump_epoch: [0; 2],
            segs: [Segment::default(); 6],
            tr: Segment::default(),
            ldtr: Segment::default(),
            gdtr: Default::default(),
            idtr: Default::default(),
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            dr: [0; 6],
            msrs: Msrs::default(),
            pdpte: [0; 4],
            code_tlb: CodeTlb::new(),
            cache: Cache::default(),
            local_code_above: false,
            apic_base,
            fault: None,
            fault_op: std::ptr::null(),
            fault_address: 0,
            trouble: String::new(),
            shadow: false,
            shadow_of_stack: false,
            entered: false,
            halted: false,
            shut_down: false,
            wait_for_startup: false,
            nmi_blocked: false,
            nmi_pending: false,
            attention: true,
            look_up: false,
            breakpoints: 0,
            watch_hits_seen: 0,
            instructions: 0,
            index,
            processors: 1,
            model: model.clone(),
            ram,
            bus,
            apic,
            signal,
            clock,
        });
        cpu.put_registers(&VcpuState::default());
        SoftCpu { cpu }
    }

    /// Tells CPUID how many processors the machine has (1 unless told).
    pub fn set_processors(&mut self, count: u32) {
        self.cpu.processors = count.max(1);
    }

    /// Guest instructions carried out so far. An iteration of a REP instruction does not count.
    pub fn instructions(&self) -> u64 {
        self.cpu.instructions
    }
}

impl Vcpu for SoftCpu {
    fn run(&mut self) -> Result<Exit, VcpuError> {
        self.cpu.run()
    }

    fn state(&mut self) -> Result<VcpuState, VcpuError> {
        Ok(self.cpu.take_state())
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<(), VcpuError> {
        self.cpu.put_state(state)
    }

    fn signal(&self) -> Arc<VcpuSignal> {
        self.cpu.signal.clone()
    }
}

impl Cpu {
    /// Everything but FPU, MSRs and the local APIC.
    pub(crate) fn put_registers(&mut self, s: &VcpuState) {
        self.regs[..16].copy_from_slice(&s.gpr);
        self.rip = s.rip;
        self.set_rflags(s.rflags);
        (self.cr0, self.cr2, self.cr3, self.cr4, self.efer) = (s.cr0, s.cr2, s.cr3, s.cr4, s.efer);
        (self.tr, self.ldtr, self.gdtr, self.idtr) = (s.tr, s.ldtr, s.gdtr, s.idtr);
        self.dr = s.dr;
        for (n, segment) in s.segments.iter().enumerate() {
            if n != CS {
                self.set_segment(n, *segment);
            }
        }
        // The privilege level is SS's; in real mode it is 0.
        let cpl = if s.cr0 & cr0::PE == 0 { 0 } else { (s.segments[crate::state::SS].attributes >> 5 & 3) as u8 };
        self.set_code(s.segments[CS], cpl);
        self.halted = s.mp_state == MpState::Halted;
        self.wait_for_startup = s.mp_state == MpState::WaitForStartup;
        self.shadow = s.events.interrupt_shadow;
        self.nmi_blocked = s.events.nmi_blocked;
        self.nmi_pending = s.events.nmi_pending;
        self.shut_down = false;
        self.fault = None;
    }

    fn put_state(&mut self, s: &VcpuState) -> Result<(), VcpuError> {
        let refuse = |what: String| VcpuError::State { index: self.index, what };
        let fpu = FpuState::from_image(&s.fxsave).map_err(|e| refuse(format!("the FXSAVE image: {e}")))?;
        if s.cr4 & !self.model.cr4_mask() != 0 {
            return Err(refuse(format!("CR4 {:#x} has bits beyond {:#x}", s.cr4, self.model.cr4_mask())));
        }
        let known = efer::SCE | efer::LME | efer::LMA | efer::NXE;
        if s.efer & !known != 0 {
            return Err(refuse(format!("EFER {:#x} has bits beyond {known:#x}", s.efer)));
        }
        let paging = s.cr0 & cr0::PG != 0;
        if (s.efer & efer::LMA != 0) != (paging && s.efer & efer::LME != 0) {
            return Err(refuse(format!("EFER {:#x} does not fit CR0 {:#x}", s.efer, s.cr0)));
        }
        if s.xcr0 != 1 || !s.xsave.is_empty() {
            return Err(refuse(format!("XCR0 is {:#x}, and this processor has no XSAVE", s.xcr0)));
        }
        if let Some((msr, _)) = s.msrs.iter().find(|(msr, _)| !SAVED.contains(msr)) {
            return Err(refuse(format!("there is no MSR {msr:#x}")));
        }
        self.apic
            .restore(&s.apic, s.apic_base, s.mp_state == MpState::WaitForStartup)
            .map_err(|e| refuse(format!("local APIC: {e}")))?;
        self.apic_base = self.apic.base();
        self.fpu = fpu;
        self.put_registers(s);
        self.apic.set_cr8((s.cr8 & 15) as u8);
        if paging && s.efer & efer::LMA == 0 && s.cr4 & crate::state::cr4::PAE != 0 {
            let cr3 = self.cr3;
            let _ = self.load_pdptes(cr3);
        }
        for &(msr, v) in &s.msrs {
            self.write_msr(msr, v)
                .map_err(|_| VcpuError::State { index: self.index, what: format!("MSR {msr:#x} cannot be {v:#x}") })?;
        }
        self.flush_blocks();
        self.flush_translations();
        self.attention = true;
        Ok(())
    }

    fn take_state(&mut self) -> VcpuState {
        let mut gpr = [0; 16];
        gpr.copy_from_slice(&self.regs[..16]);
        let mut msrs: Vec<(u32, u64)> =
            SAVED.iter().filter_map(|&msr| self.read_msr(msr).ok().map(|v| (msr, v))).collect();
        msrs.sort_unstable();
        VcpuState {
            gpr,
            rip: self.rip,
            rflags: self.rflags_value(),
            segments: self.segs,
            tr: self.tr,
            ldtr: self.ldtr,
            gdtr: self.gdtr,
            idtr: self.idtr,
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            cr8: u64::from(self.apic.cr8()),
            efer: self.efer,
            dr: self.dr,
            fxsave: self.fpu.to_image(),
            xcr0: 1,
            xsave: Vec::new(),
            msrs,
            apic_base: self.apic_base,
            apic: self.apic.save(),
            mp_state: if self.wait_for_startup {
                MpState::WaitForStartup
            } else if self.halted {
                MpState::Halted
            } else {
                MpState::Running
            },
            events: PendingEvents {
                interrupt_shadow: self.shadow,
                nmi_blocked: self.nmi_blocked,
                nmi_pending: self.nmi_pending,
            },
        }
    }

    /// The instruction pointer of the operation at fault, if `rip` does not have it.
    pub(crate) fn faulting_operation(&mut self) -> Option<u64> {
        let op = std::mem::replace(&mut self.fault_op, std::ptr::null());
        // SAFETY: `note_fault` was called by a handler of a row that lives until blocks are freed next, which takes
        // the pointer back.
        (!op.is_null()).then(|| unsafe { (*op).rip() })
    }
}

/// A CPU without a machine around it, for tests that compare instructions with another processor.
pub mod bare {
    use super::*;
    use cardcage_accel::{ApicEvent, GeneralProtection};

    /// Where the page tables of [`long_mode`] begin, below the RAM that a test can use.
    pub const RESERVED: u64 = 0x8000;

    /// No devices: reads give all ones.
    struct NoBus;
    impl Bus for NoBus {
        fn port_read(&self, _port: u16, _size: u8) -> u32 {
            u32::MAX
        }
        fn port_write(&self, _port: u16, _size: u8, _value: u32) {}
        fn memory_read(&self, _addr: u64, _size: u8) -> u64 {
            u64::MAX
        }
        fn memory_write(&self, _addr: u64, _size: u8, _value: u64) {}
    }

    /// Never has anything to say.
    struct NoApic;
    impl LocalApic for NoApic {
        fn pending(&self, _enabled: bool) -> Option<ApicEvent> {
            None
        }
        fn taken(&self, _event: ApicEvent) {}
        fn acknowledge(&self) -> Option<u8> {
            None
        }
        fn cr8(&self) -> u8 {
            0
        }
        fn set_cr8(&self, _priority: u8) {}
        fn base(&self) -> u64 {
            0xfee0_0100
        }
        fn set_base(&self, _value: u64) -> Result<(), GeneralProtection> {
            Ok(())
        }
        fn mmio_read(&self, _offset: u32) -> u32 {
            u32::MAX
        }
        fn mmio_write(&self, _offset: u32, _value: u32) {}
        fn read_msr(&self, _msr: u32) -> Result<u64, GeneralProtection> {
            Err(GeneralProtection)
        }
        fn write_msr(&self, _msr: u32, _value: u64) -> Result<(), GeneralProtection> {
            Err(GeneralProtection)
        }
    }

    /// How a sequence of instructions ended.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum Outcome {
        /// So many steps were taken.
        Done,
        /// An exception: vector, error code, and CR2 if it is #PF.
        Exception {
            /// Its vector.
            vector: u8,
            /// Its error code.
            error: Option<u32>,
            /// The address of a page fault.
            address: Option<u64>,
        },
    }

    /// A CPU in 64-bit user mode over `ram`, of which the first [`RESERVED`] bytes hold page tables that map the first
    /// GiB to itself, writable and executable from user mode. SSE and x87 are enabled. There are no devices, no
    /// interrupts, and no descriptor tables.
    ///
    /// `ram` must have at least [`RESERVED`] bytes at address 0; what is missing is an error of the page walk.
    pub fn long_mode(ram: Arc<GuestRam>, model: &CpuModel) -> SoftCpu {
        let clock = Arc::new(VirtualClock::manual());
        let signal = Arc::new(VcpuSignal::new(None));
        let mut soft = SoftCpu::new(0, ram.clone(), Arc::new(NoBus), Arc::new(NoApic), signal, clock, model);
        let entry = |at: u64, v: u64| {
            let _ = ram.write(at, &v.to_le_bytes());
        };
        entry(0x1000, 0x2007);
        entry(0x2000, 0x3007);
        for n in 0..512 {
            entry(0x3000 + 8 * n, n << 21 | 0xe7);
        }
        let code = Segment { selector: 0x33, base: 0, limit: u32::MAX, attributes: 0xa0fb };
        let data = Segment { selector: 0x2b, base: 0, limit: u32::MAX, attributes: 0xc0f3 };
        let state = VcpuState {
            segments: [data, code, data, data, data, data],
            cr0: 0x8001_0033,
            cr3: 0x1000,
            cr4: 0x620,
            efer: 0xd01,
            fxsave: fresh_fpu(),
            gdtr: Default::default(),
            idtr: Default::default(),
            ..VcpuState::default()
        };
        soft.cpu.fpu = FpuState::from_image(&state.fxsave).unwrap_or_default();
        soft.cpu.put_registers(&state);
        soft.cpu.flush_translations();
        soft
    }

    fn fresh_fpu() -> [u8; 512] {
        let mut image = VcpuState::default().fxsave;
        image[..2].copy_from_slice(&0x37fu16.to_le_bytes());
        image
    }

    impl SoftCpu {
        /// Runs from the present state until `rip` is `end`, or `limit` blocks were run, or an exception is met, which
        /// is reported instead of delivered: registers are then as the exception's handler would find them, with RIP
        /// at the instruction (or after it for traps).
        pub fn run_bare(&mut self, end: u64, limit: u32) -> Outcome {
            use cardcage_fpu::HostFlags;
            let c = &mut self.cpu;
            HostFlags::clear();
            let mut outcome = Outcome::Done;
            for _ in 0..limit {
                if c.rip == end {
                    break;
                }
                if let Some(fault) = c.run_one_burst() {
                    let (vector, error) = fault.parts();
                    let address = (vector == crate::fault::vector::PF).then_some(c.fault_address);
                    outcome = Outcome::Exception { vector, error, address };
                    break;
                }
            }
            HostFlags::collect(&mut c.fpu);
            outcome
        }

        /// Runs up to `budget` instructions at once, or until `rip` is `end` or an exception is met.
        #[cfg(test)]
        pub(crate) fn run_in_bursts(&mut self, end: u64, budget: i64) {
            let c = &mut self.cpu;
            while c.rip != end && c.run_burst_of(budget).is_none() {}
        }

        /// All registers, for comparison.
        pub fn bare_state(&mut self) -> VcpuState {
            self.cpu.take_state()
        }

        /// Sets general registers, RIP, RFLAGS and the FXSAVE image; the rest stays.
        pub fn set_bare_state(&mut self, gpr: [u64; 16], rip: u64, rflags: u64, fxsave: &[u8; 512]) {
            let c = &mut self.cpu;
            c.regs[..16].copy_from_slice(&gpr);
            c.rip = rip;
            c.set_rflags(rflags);
            if let Ok(fpu) = FpuState::from_image(fxsave) {
                c.fpu = fpu;
            }
            c.update_mode();
            c.fault = None;
        }
    }
}
