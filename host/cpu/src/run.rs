//! The run loop: events, single steps, faults, halting.

use cardcage_accel::{ApicEvent, Exit, VcpuError};
use cardcage_fpu::HostFlags;

use crate::debug::{DR6_BS, DR6_FIXED, DR7_GD};
use crate::fault::{Fault, vector};
use crate::interrupt::Cause;
use crate::op;
use crate::state::{Cpu, mode, rflags};

/// Instructions between two looks at the signal.
const QUANTUM: i64 = 16_384;

impl Cpu {
    /// Runs until there is a reason to return.
    pub(crate) fn run(&mut self) -> Result<Exit, VcpuError> {
        HostFlags::clear();
        let result = self.run_until_exit();
        HostFlags::collect(&mut self.fpu);
        result
    }

    fn run_until_exit(&mut self) -> Result<Exit, VcpuError> {
        loop {
            self.look_up = false;
            if let Some(exit) = self.handle_events()? {
                return Ok(exit);
            }
            self.trim_blocks();
            let step = self.shadow || self.rflags & rflags::TF != 0 || self.breakpoints_enabled();
            self.set_step(step);
            if step {
                self.step()?;
            } else {
                self.rflags &= !rflags::RF;
                self.budget = QUANTUM;
                self.burst();
                self.handle_fault()?;
            }
        }
    }

    /// Runs threaded code until it stops.
    fn burst(&mut self) {
        let before = self.budget;
        let op = self.find_block(self.rip);
        if !op.is_null() {
            op::run(self, op);
        }
        self.instructions = self.instructions.wrapping_add(before.wrapping_sub(self.budget).max(0) as u64);
    }

    /// Executes one instruction, with all that debugging asks for.
    fn step(&mut self) -> Result<(), VcpuError> {
        let hit = self.code_breakpoints();
        if hit != 0 && !(self.shadow && self.shadow_of_stack) {
            self.dr[4] = self.dr[4] & !0xf | hit;
            return self.debug_exception(true);
        }
        let trap = self.rflags & rflags::TF != 0;
        self.rflags &= !rflags::RF;
        self.shadow = false;
        self.shadow_of_stack = false;
        self.entered = false;
        self.breakpoints = 0;
        self.budget = 0;
        self.burst();
        let met = std::mem::take(&mut self.breakpoints);
        if matches!(self.fault, Some(fault) if fault != Fault::Restart) {
            return self.handle_fault();
        }
        self.fault = None;
        let single = trap && !self.entered;
        if (single || met != 0) && !(self.shadow && self.shadow_of_stack) {
            self.dr[4] |= met | if single { DR6_BS } else { 0 };
            return self.debug_exception(false);
        }
        Ok(())
    }

    /// #DB as a trap, or as a fault before an instruction.
    fn debug_exception(&mut self, fault: bool) -> Result<(), VcpuError> {
        self.dr[4] |= DR6_FIXED;
        self.dr[5] &= !DR7_GD;
        if fault {
            self.rflags |= rflags::RF;
        }
        self.deliver_or_stop(vector::DB, None, Cause::Exception)
    }

    /// Delivers what made threaded code stop, if a fault did.
    fn handle_fault(&mut self) -> Result<(), VcpuError> {
        let Some(fault) = self.fault.take() else { return Ok(()) };
        if let Some(op) = self.faulting_operation() {
            self.rip = op;
        }
        if fault == Fault::Restart {
            return Ok(());
        }
        if fault == Fault::Trouble {
            return Err(self.internal_error());
        }
        let (vector, error) = fault.parts();
        if vector == vector::PF {
            self.cr2 = self.fault_address;
        }
        self.deliver_or_stop(vector, error, Cause::Exception)
    }

    fn deliver_or_stop(&mut self, vector: u8, error: Option<u32>, cause: Cause) -> Result<(), VcpuError> {
        self.deliver(vector, error, cause).map_err(|_| self.internal_error())
    }

    fn internal_error(&mut self) -> VcpuError {
        VcpuError::Internal {
            index: self.index,
            rip: self.rip,
            what: format!("the software CPU does not carry out {}", std::mem::take(&mut self.trouble)),
        }
    }

    /// Kicks, interrupts, NMI, INIT; sleeps while halted.
    fn handle_events(&mut self) -> Result<Option<Exit>, VcpuError> {
        loop {
            if self.shut_down {
                return Ok(Some(Exit::Shutdown));
            }
            if self.signal.is_raised() {
                if self.signal.take_attention() {
                    self.attention = true;
                }
                if self.signal.take_kick() {
                    return Ok(Some(Exit::Kicked));
                }
            }
            if self.attention {
                self.poll_apic()?;
            }
            if self.nmi_pending && !self.nmi_blocked && !self.shadow && !self.wait_for_startup {
                self.nmi_pending = false;
                self.nmi_blocked = true;
                self.set_step(false);
                self.deliver_or_stop(vector::NMI, None, Cause::External)?;
            }
            if !self.halted && !self.wait_for_startup {
                return Ok(None);
            }
            if !self.shut_down {
                self.signal.wait();
            }
        }
    }

    /// Asks the local APIC what there is to do.
    fn poll_apic(&mut self) -> Result<(), VcpuError> {
        let enabled = self.rflags & rflags::IF != 0 && !self.shadow && !self.wait_for_startup;
        match self.apic.pending(enabled) {
            Some(event @ ApicEvent::Init) => {
                self.apic.taken(event);
                self.reset_by_init();
            }
            Some(event @ ApicEvent::Startup(page)) => {
                self.apic.taken(event);
                self.start_up(page);
            }
            Some(event @ ApicEvent::Nmi) => {
                self.apic.taken(event);
                self.nmi_pending = true;
            }
            Some(ApicEvent::Interrupt) => {
                if let Some(vector) = self.apic.acknowledge() {
                    self.deliver_or_stop(vector, None, Cause::External)?;
                }
            }
            None => {
                if enabled {
                    self.attention = false;
                }
            }
        }
        Ok(())
    }

    /// INIT: the state after power-on, but for what INIT leaves (SDM volume 3, table 10-1).
    fn reset_by_init(&mut self) {
        let fresh = cardcage_accel::VcpuState::default();
        let keep = (self.cr0 & (crate::state::cr0::CD | crate::state::cr0::NW), self.fpu.clone());
        self.put_registers(&fresh);
        self.cr0 = fresh.cr0 & !(crate::state::cr0::CD | crate::state::cr0::NW) | keep.0;
        self.fpu = keep.1;
        self.efer = 0;
        self.halted = false;
        // The bootstrap processor begins anew at the reset vector; others wait.
        self.wait_for_startup = self.apic_base & 0x100 == 0;
        self.flush_translations();
        self.update_mode();
    }

    /// A start-up IPI: real mode at `page << 12`.
    fn start_up(&mut self, page: u8) {
        if !self.wait_for_startup {
            return;
        }
        let code = cardcage_accel::Segment {
            selector: u16::from(page) << 8,
            base: u64::from(page) << 12,
            limit: 0xffff,
            attributes: 0x9b,
        };
        self.set_segment(crate::state::CS, code);
        self.rip = 0;
        self.wait_for_startup = false;
        self.halted = false;
    }

    /// Before host code runs in the middle of guest code: exception flags that belong to the guest are put away.
    pub(crate) fn leave_for_host(&mut self) {
        HostFlags::collect(&mut self.fpu);
    }

    /// After host code has run: its own exception flags are forgotten, and it may have raised an interrupt.
    pub(crate) fn back_from_host(&mut self) {
        HostFlags::clear();
        if self.signal.is_raised() && self.mode & mode::STEP == 0 {
            self.look_up_soon();
        }
    }
}

/// For a CPU without a machine.
impl Cpu {
    /// Runs one block at most and returns the fault that it met.
    pub(crate) fn run_one_burst(&mut self) -> Option<Fault> {
        self.run_burst_of(0)
    }

    /// Runs for so many instructions.
    pub(crate) fn run_burst_of(&mut self, budget: i64) -> Option<Fault> {
        let step = self.shadow || self.rflags & rflags::TF != 0;
        self.set_step(step);
        self.shadow = false;
        self.look_up = false;
        self.budget = budget;
        self.burst();
        let fault = self.fault.take();
        if let Some(rip) = self.faulting_operation() {
            self.rip = rip;
        }
        fault.filter(|&f| f != Fault::Restart)
    }
}
