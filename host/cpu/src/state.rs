//! The processor's state as the interpreter keeps it.
#![expect(unsafe_code, reason = "register numbers in operations are valid by construction and not checked again")]

use std::sync::Arc;

use cardcage_accel::{Bus, Descriptor, LocalApic, Segment, VcpuSignal};
use cardcage_clock::VirtualClock;
use cardcage_fpu::FpuState;
use cardcage_memory::GuestRam;

use crate::blocks::{Cache, JumpEntry};
use crate::cpuid::CpuModel;
use crate::fault::Fault;
use crate::msr::Msrs;
use crate::op::Op;
use crate::tlb::{CodeTlb, Tlb};

/// Number of the register that always reads zero.
pub(crate) const ZERO: u8 = 16;
/// Number of the register that holds an effective address between two operations of one instruction.
pub(crate) const TMP: u8 = 17;
/// Number of the register that holds the base of ES; CS, SS, DS, FS and GS follow.
pub(crate) const SEG_BASE: u8 = 18;

pub(crate) const RAX: usize = 0;
pub(crate) const RCX: usize = 1;
pub(crate) const RDX: usize = 2;
pub(crate) const RBX: usize = 3;
pub(crate) const RSP: usize = 4;
pub(crate) const RBP: usize = 5;
pub(crate) const RSI: usize = 6;
pub(crate) const RDI: usize = 7;

pub(crate) const ES: usize = 0;
pub(crate) const CS: usize = 1;
pub(crate) const SS: usize = 2;
pub(crate) const DS: usize = 3;
pub(crate) const FS: usize = 4;
pub(crate) const GS: usize = 5;

/// RFLAGS bits.
pub(crate) mod rflags {
    pub(crate) const CF: u64 = 1;
    pub(crate) const FIXED: u64 = 2;
    pub(crate) const PF: u64 = 4;
    pub(crate) const AF: u64 = 0x10;
    pub(crate) const ZF: u64 = 0x40;
    pub(crate) const SF: u64 = 0x80;
    pub(crate) const TF: u64 = 0x100;
    pub(crate) const IF: u64 = 0x200;
    pub(crate) const DF: u64 = 0x400;
    pub(crate) const OF: u64 = 0x800;
    pub(crate) const IOPL: u64 = 0x3000;
    pub(crate) const NT: u64 = 0x4000;
    pub(crate) const RF: u64 = 0x1_0000;
    pub(crate) const VM: u64 = 0x2_0000;
    pub(crate) const AC: u64 = 0x4_0000;
    pub(crate) const VIF: u64 = 0x8_0000;
    pub(crate) const VIP: u64 = 0x10_0000;
    pub(crate) const ID: u64 = 0x20_0000;
    /// The six that arithmetic sets.
    pub(crate) const ARITH: u64 = CF | PF | AF | ZF | SF | OF;
    /// All that exist.
    pub(crate) const ALL: u64 = ARITH | TF | IF | DF | IOPL | NT | RF | VM | AC | VIF | VIP | ID;
}

/// CR0 bits.
pub(crate) mod cr0 {
    pub(crate) const PE: u64 = 1;
    pub(crate) const MP: u64 = 2;
    pub(crate) const EM: u64 = 4;
    pub(crate) const TS: u64 = 8;
    pub(crate) const ET: u64 = 0x10;
    pub(crate) const NE: u64 = 0x20;
    pub(crate) const WP: u64 = 0x1_0000;
    pub(crate) const AM: u64 = 0x4_0000;
    pub(crate) const NW: u64 = 0x2000_0000;
    pub(crate) const CD: u64 = 0x4000_0000;
    pub(crate) const PG: u64 = 0x8000_0000;
}

/// CR4 bits.
pub(crate) mod cr4 {
    pub(crate) const TSD: u64 = 4;
    pub(crate) const DE: u64 = 8;
    pub(crate) const PSE: u64 = 0x10;
    pub(crate) const PAE: u64 = 0x20;
    pub(crate) const MCE: u64 = 0x40;
    pub(crate) const PGE: u64 = 0x80;
    pub(crate) const PCE: u64 = 0x100;
    pub(crate) const OSFXSR: u64 = 0x200;
    pub(crate) const OSXMMEXCPT: u64 = 0x400;
}

/// EFER bits.
pub(crate) mod efer {
    pub(crate) const SCE: u64 = 1;
    pub(crate) const LME: u64 = 0x100;
    pub(crate) const LMA: u64 = 0x400;
    pub(crate) const NXE: u64 = 0x800;
    /// Automatic IBRS: a switch without effect, as nothing is speculated.
    pub(crate) const AIBRSE: u64 = 1 << 21;
}

/// Segment attribute bits, in the layout of [`Segment::attributes`].
pub(crate) mod attr {
    pub(crate) const ACCESSED: u32 = 1;
    /// Writable data, or readable code.
    pub(crate) const RW: u32 = 2;
    /// Expand-down data, or conforming code.
    pub(crate) const EC: u32 = 4;
    pub(crate) const CODE: u32 = 8;
    /// Code or data, not a system segment.
    pub(crate) const S: u32 = 0x10;
    pub(crate) const P: u32 = 0x80;
    pub(crate) const L: u32 = 0x2000;
    pub(crate) const DB: u32 = 0x4000;
    pub(crate) const G: u32 = 0x8000;
    pub(crate) const UNUSABLE: u32 = 0x1_0000;
}

/// Bits of [`Cpu::mode`], which is part of a block's identity.
pub(crate) mod mode {
    /// 64-bit code.
    pub(crate) const LONG: u8 = 1;
    /// 32-bit code; neither this nor `LONG` is 16-bit code.
    pub(crate) const B32: u8 = 2;
    /// CPL 3.
    pub(crate) const USER: u8 = 4;
    /// One instruction at a time.
    pub(crate) const STEP: u8 = 8;
    /// SSE instructions fault, because of CR0 or CR4.
    pub(crate) const NO_SSE: u8 = 16;
    /// MXCSR is not in the state that `cardcage_fpu::fast` is made for.
    pub(crate) const MXCSR: u8 = 32;
}

/// Everything that one processor is made of.
///
/// Arithmetic flags are kept as a result and carries (see `flags`); `rflags` has the others.
#[repr(C)]
pub(crate) struct Cpu {
    /// 0 to 15: general registers; then `ZERO`, `TMP` and the six segment bases.
    pub(crate) regs: [u64; 32],
    pub(crate) fl_res: u64,
    pub(crate) fl_aux: u64,
    /// Instructions until the run loop looks up.
    pub(crate) budget: i64,
    /// What the tag of a jump cache entry is made with, by bit 63 of the target.
    pub(crate) key: [u64; 2],
    /// Links made in an earlier epoch must be looked up again.
    pub(crate) epoch: [u32; 2],
    pub(crate) tlb: Tlb,
    pub(crate) fpu: FpuState,
    pub(crate) jumps: Box<[JumpEntry; 65536]>,
    /// Valid between operations only where an operation says so; always valid in the run loop.
    pub(crate) rip: u64,
    pub(crate) rflags: u64,
    pub(crate) cpl: u8,
    pub(crate) mode: u8,
    pub(crate) jump_epoch: [u16; 2],
    pub(crate) segs: [Segment; 6],
    pub(crate) tr: Segment,
    pub(crate) ldtr: Segment,
    pub(crate) gdtr: Descriptor,
    pub(crate) idtr: Descriptor,
    pub(crate) cr0: u64,
    pub(crate) cr2: u64,
    pub(crate) cr3: u64,
    pub(crate) cr4: u64,
    pub(crate) efer: u64,
    pub(crate) dr: [u64; 6],
    pub(crate) msrs: Msrs,
    /// PDPTEs of PAE paging, loaded with CR3.
    pub(crate) pdpte: [u64; 4],
    pub(crate) code_tlb: CodeTlb,
    pub(crate) cache: Cache,
    /// Code was fetched from the upper half of the address space through a page that is not global.
    pub(crate) local_code_above: bool,
    /// IA32_APIC_BASE, as the local APIC has it.
    pub(crate) apic_base: u64,
    /// The fault that made threaded code stop, and the operation at fault unless `rip` is right already.
    pub(crate) fault: Option<Fault>,
    pub(crate) fault_op: *const Op,
    pub(crate) fault_address: u64,
    pub(crate) trouble: String,
    /// No interrupts before the next instruction is done (STI, MOV SS, POP SS).
    pub(crate) shadow: bool,
    /// The shadow is one of SS.
    pub(crate) shadow_of_stack: bool,
    /// A gate or a system call was entered: the trap flag that was set before has no effect any more.
    pub(crate) entered: bool,
    pub(crate) halted: bool,
    pub(crate) shut_down: bool,
    pub(crate) wait_for_startup: bool,
    pub(crate) nmi_blocked: bool,
    pub(crate) nmi_pending: bool,
    /// The local APIC may have something for us.
    pub(crate) attention: bool,
    /// The run loop is to look at `attention` and `mode` before anything else.
    pub(crate) look_up: bool,
    /// Bits for DR6 of data and I/O breakpoints that the present instruction has met.
    pub(crate) breakpoints: u64,
    pub(crate) watch_hits_seen: u64,
    pub(crate) instructions: u64,
    pub(crate) index: u32,
    /// How many processors the machine has.
    pub(crate) processors: u32,
    pub(crate) model: CpuModel,
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) apic: Arc<dyn LocalApic>,
    pub(crate) signal: Arc<VcpuSignal>,
    pub(crate) clock: Arc<VirtualClock>,
}

#[inline(always)]
pub(crate) const fn mask(size: usize) -> u64 {
    match size {
        1 => 0xff,
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

#[inline(always)]
pub(crate) const fn sign_extend(v: u64, size: usize) -> u64 {
    match size {
        1 => v as i8 as u64,
        2 => v as i16 as u64,
        4 => v as i32 as u64,
        _ => v,
    }
}

impl Cpu {
    /// A register by number, all 64 bits.
    #[inline(always)]
    pub(crate) fn reg(&self, i: u8) -> u64 {
        // SAFETY: operations never hold register numbers above 31; lowering makes them with `number & 31`.
        unsafe { *self.regs.get_unchecked(usize::from(i)) }
    }

    #[inline(always)]
    pub(crate) fn reg_mut(&mut self, i: u8) -> &mut u64 {
        // SAFETY: as in `reg`.
        unsafe { self.regs.get_unchecked_mut(usize::from(i)) }
    }

    /// A register operand of `SZ` bytes; upper bits are undefined unless `SZ` is 1. For `SZ == 1`, `i` is a byte index.
    #[inline(always)]
    pub(crate) fn get<const SZ: usize>(&self, i: u8) -> u64 {
        if SZ == 1 { (self.reg(i >> 3) >> ((i & 1) << 3)) & 0xff } else { self.reg(i) }
    }

    /// Writes a register operand: 32-bit writes clear the upper half, narrower ones keep the rest.
    #[inline(always)]
    pub(crate) fn set<const SZ: usize>(&mut self, i: u8, v: u64) {
        if SZ == 1 {
            let shift = (i & 1) << 3;
            let p = self.reg_mut(i >> 3);
            *p = (*p & !(0xff << shift)) | (v & 0xff) << shift;
        } else {
            let p = self.reg_mut(i);
            *p = match SZ {
                8 => v,
                4 => v as u32 as u64,
                _ => (*p & !0xffff) | (v & 0xffff),
            };
        }
    }

    /// Whether code is 64-bit.
    #[inline]
    pub(crate) fn is_long(&self) -> bool {
        self.mode & mode::LONG != 0
    }

    /// Whether the processor is in long mode (64-bit or compatibility).
    #[inline]
    pub(crate) fn lma(&self) -> bool {
        self.efer & efer::LMA != 0
    }

    #[inline]
    pub(crate) fn protected(&self) -> bool {
        self.cr0 & cr0::PE != 0
    }

    /// Puts a segment register into its place, and its base where operations find it.
    pub(crate) fn set_segment(&mut self, index: usize, segment: Segment) {
        let old = self.segs[index];
        self.segs[index] = segment;
        self.regs[usize::from(SEG_BASE) + index] = segment.base;
        if index == CS {
            self.update_mode();
            if old.base != segment.base {
                self.new_epoch();
            }
        }
    }

    /// Works out `mode` from CS, CPL and what asks for single steps.
    pub(crate) fn update_mode(&mut self) {
        let attributes = self.segs[CS].attributes;
        let mut m = 0;
        if self.lma() && attributes & attr::L != 0 {
            m |= mode::LONG;
        } else if attributes & attr::DB != 0 && self.protected() {
            m |= mode::B32;
        }
        if self.cpl == 3 {
            m |= mode::USER;
        }
        if self.cr0 & (cr0::EM | cr0::TS) != 0 || self.cr4 & cr4::OSFXSR == 0 {
            m |= mode::NO_SSE;
        }
        if self.fpu.mxcsr() & 0xffc0 != 0x1f80 {
            m |= mode::MXCSR;
        }
        self.mode = m | (self.mode & mode::STEP);
        self.tlb.select(self.cpl == 3);
        self.update_keys();
    }

    /// Works out what jump cache tags are made with.
    pub(crate) fn update_keys(&mut self) {
        for half in 0..2 {
            self.key[half] = u64::from(self.mode) << 48 | u64::from(self.jump_epoch[half]) << 54;
        }
    }

    /// Sets or clears single-step execution for what is looked up from now on.
    pub(crate) fn set_step(&mut self, on: bool) {
        let m = if on { self.mode | mode::STEP } else { self.mode & !mode::STEP };
        if m != self.mode {
            self.mode = m;
            self.update_keys();
        }
    }

    /// Makes every link and jump cache entry be looked up again.
    pub(crate) fn new_epoch(&mut self) {
        self.new_epoch_of(0);
        self.new_epoch_of(1);
    }

    /// The same for one half of the address space.
    pub(crate) fn new_epoch_of(&mut self, half: usize) {
        let half = half & 1;
        self.epoch[half] = self.epoch[half].wrapping_add(1);
        if self.epoch[half] == 0 {
            // Links of four thousand million epochs ago would seem valid.
            self.epoch[half] = 1;
            self.cache.unlink_all();
        }
        self.jump_epoch[half] = (self.jump_epoch[half] + 1) & 0x1ff;
        if self.jump_epoch[half] == 0 {
            self.jumps.fill(JumpEntry::EMPTY);
        }
        self.update_keys();
    }

    /// The I/O privilege level.
    pub(crate) fn iopl(&self) -> u8 {
        ((self.rflags & rflags::IOPL) >> 12) as u8
    }

    /// The stack pointer's width in bytes.
    pub(crate) fn stack_size(&self) -> usize {
        if self.is_long() {
            8
        } else if self.segs[SS].attributes & attr::DB != 0 {
            4
        } else {
            2
        }
    }

    /// Guest time stamp counter.
    pub(crate) fn tsc(&self) -> u64 {
        self.clock.now().wrapping_add(self.msrs.tsc_offset)
    }
}
