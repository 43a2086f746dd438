//! System instructions: control and debug registers, descriptor tables, MSRs, CPUID, HLT and their like.

use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};

use super::operands::{self, get, read, set, write};
use crate::fault::{Fault, Res};
use crate::segment::Raw;
use crate::state::{Cpu, FS, GS, RAX, RBX, RCX, RDX, SS, attr, cr0, cr4, efer, mask, rflags};

/// `None` if the instruction is not one of these.
pub(super) fn execute(c: &mut Cpu, i: &Instruction) -> Option<Res> {
    Some(match i.mnemonic() {
        M::Mov => mov(c, i),
        M::Cli => set_interrupts(c, false),
        M::Sti => set_interrupts(c, true),
        M::Hlt => halt(c),
        M::Cpuid => {
            c.check_device_writes();
            cpuid(c);
            Ok(())
        }
        M::Rdmsr => supervisor(c).and_then(|()| {
            let v = c.read_msr(c.regs[RCX] as u32)?;
            c.regs[RAX] = v & 0xffff_ffff;
            c.regs[RDX] = v >> 32;
            Ok(())
        }),
        M::Wrmsr => supervisor(c).and_then(|()| {
            let v = (c.regs[RDX] & 0xffff_ffff) << 32 | c.regs[RAX] & 0xffff_ffff;
            c.write_msr(c.regs[RCX] as u32, v)
        }),
        M::Rdtsc => time_stamp(c, false),
        M::Rdtscp => time_stamp(c, true),
        M::Rdpmc => Err(Fault::GP),
        M::Invlpg => supervisor(c).map(|()| {
            let a = operands::offset(c, i).wrapping_add(segment_base(c, i));
            c.invalidate_page(a);
        }),
        M::Invd | M::Wbinvd => supervisor(c),
        M::Clflush | M::Prefetchw | M::Prefetch | M::Prefetchnta | M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2 => {
            if i.mnemonic() == M::Clflush {
                operands::address(c, i, 1, false).and_then(|a| c.probe_read(a, 1))
            } else {
                Ok(())
            }
        }
        M::Clts => supervisor(c).map(|()| {
            c.cr0 &= !cr0::TS;
            c.update_mode();
        }),
        M::Lmsw => supervisor(c).and_then(|()| {
            let v = read(c, i, 0)? & 15;
            // PE can be set but not cleared.
            let new = c.cr0 & !14 | v | c.cr0 & cr0::PE;
            c.set_cr0(new)
        }),
        M::Smsw => {
            let v = c.cr0;
            write(c, i, 0, v)
        }
        M::Swapgs => swapgs(c),
        M::Lgdt | M::Lidt => load_table(c, i),
        M::Sgdt | M::Sidt => store_table(c, i),
        M::Lldt => system(c).and_then(|()| {
            let v = read(c, i, 0)? as u16;
            c.load_ldtr(v)
        }),
        M::Ltr => system(c).and_then(|()| {
            let v = read(c, i, 0)? as u16;
            c.load_tr(v)
        }),
        M::Sldt => protected(c).and_then(|()| {
            let v = u64::from(c.ldtr.selector);
            write_word(c, i, v)
        }),
        M::Str => protected(c).and_then(|()| {
            let v = u64::from(c.tr.selector);
            write_word(c, i, v)
        }),
        M::Lar => protected(c).and_then(|()| load_rights(c, i, false)),
        M::Lsl => protected(c).and_then(|()| load_rights(c, i, true)),
        M::Verr => protected(c).and_then(|()| verify(c, i, false)),
        M::Verw => protected(c).and_then(|()| verify(c, i, true)),
        M::Lds | M::Les | M::Lfs | M::Lgs | M::Lss => load_far(c, i),
        M::Rdfsbase | M::Rdgsbase | M::Wrfsbase | M::Wrgsbase => Err(Fault::UD),
        M::Monitor | M::Mwait => Err(Fault::UD),
        _ => return None,
    })
}

fn supervisor(c: &Cpu) -> Res {
    if c.cpl == 0 { Ok(()) } else { Err(Fault::GP) }
}

fn protected(c: &Cpu) -> Res {
    if c.protected() { Ok(()) } else { Err(Fault::UD) }
}

fn system(c: &Cpu) -> Res {
    protected(c)?;
    supervisor(c)
}

fn segment_base(c: &Cpu, i: &Instruction) -> u64 {
    let seg = crate::segment::index_of(i.memory_segment());
    if !c.is_long() || seg == FS || seg == GS { c.segs[seg].base } else { 0 }
}

/// MOV with segment, control and debug registers, and whatever form of the plain MOV has no threaded handler.
fn mov(c: &mut Cpu, i: &Instruction) -> Res {
    if i.op0_kind() == OpKind::Register {
        let r = i.op0_register();
        if r.is_segment_register() {
            if r == Register::CS {
                return Err(Fault::UD);
            }
            let v = read(c, i, 1)? as u16;
            let seg = crate::segment::index_of(r);
            c.load_segment(seg, v)?;
            if seg == SS {
                c.begin_shadow(true);
            }
            return Ok(());
        }
        if r.is_cr() {
            let v = control_operand(c, i.op1_register());
            return c.set_control(r.number(), v);
        }
        if r.is_dr() {
            let v = control_operand(c, i.op1_register());
            return c.write_dr(r.number(), v);
        }
        if r.is_tr() {
            return Err(Fault::UD);
        }
    }
    if i.op1_kind() == OpKind::Register {
        let r = i.op1_register();
        if r.is_cr() {
            let v = c.control(r.number())?;
            set(c, i.op0_register(), v);
            return Ok(());
        }
        if r.is_dr() {
            let v = c.read_dr(r.number())?;
            set(c, i.op0_register(), v);
            return Ok(());
        }
        if r.is_tr() {
            return Err(Fault::UD);
        }
        if r.is_segment_register() {
            let v = u64::from(c.segs[crate::segment::index_of(r)].selector);
            return write_word(c, i, v);
        }
    }
    let v = read(c, i, 1)?;
    write(c, i, 0, v)
}

fn control_operand(c: &Cpu, r: Register) -> u64 {
    get(c, r)
}

/// Stores a selector: 16 bits to memory, zero-extended to a register.
fn write_word(c: &mut Cpu, i: &Instruction, v: u64) -> Res {
    if i.op0_kind() == OpKind::Memory {
        let a = operands::address(c, i, 2, true)?;
        return c.write_linear(a, 2, v);
    }
    set(c, i.op0_register(), v);
    Ok(())
}

fn set_interrupts(c: &mut Cpu, on: bool) -> Res {
    if c.protected() && c.cpl > c.iopl() {
        return Err(Fault::GP);
    }
    if !on {
        c.rflags &= !rflags::IF;
        return Ok(());
    }
    if c.rflags & rflags::IF == 0 {
        c.rflags |= rflags::IF;
        // The shadow ends with the next instruction, which lowering puts into the same block (`misc::unshadow`). Only
        // if the block ends here does the run loop see it.
        c.shadow = true;
        c.shadow_of_stack = false;
        if c.attention || c.signal.is_raised() || c.nmi_pending {
            c.look_up_soon();
        }
    }
    Ok(())
}

fn halt(c: &mut Cpu) -> Res {
    supervisor(c)?;
    c.halted = true;
    c.shadow = false;
    c.look_up_soon();
    Ok(())
}

fn cpuid(c: &mut Cpu) {
    let leaf = c.model.clone().leaf(c, c.regs[RAX] as u32, c.regs[RCX] as u32);
    for (r, v) in [RAX, RBX, RCX, RDX].into_iter().zip(leaf) {
        c.regs[r] = u64::from(v);
    }
}

fn time_stamp(c: &mut Cpu, with_aux: bool) -> Res {
    if c.cr4 & cr4::TSD != 0 && c.cpl != 0 && c.protected() {
        return Err(Fault::GP);
    }
    let t = c.tsc();
    c.regs[RAX] = t & 0xffff_ffff;
    c.regs[RDX] = t >> 32;
    if with_aux {
        c.regs[RCX] = c.msrs.tsc_aux & 0xffff_ffff;
    }
    Ok(())
}

fn swapgs(c: &mut Cpu) -> Res {
    if !c.is_long() {
        return Err(Fault::UD);
    }
    supervisor(c)?;
    let base = c.segs[GS].base;
    let other = c.msrs.kernel_gs_base;
    c.set_base(GS, other);
    c.msrs.kernel_gs_base = base;
    Ok(())
}

fn load_table(c: &mut Cpu, i: &Instruction) -> Res {
    supervisor(c)?;
    let size = if c.is_long() { 8 } else { 4 };
    let a = operands::address(c, i, size + 2, false)?;
    let limit = c.read_linear(a, 2)? as u16;
    let mut base = c.read_linear(c.wrap(a.wrapping_add(2)), size)?;
    if matches!(i.code(), iced_x86::Code::Lgdt_m1632_16 | iced_x86::Code::Lidt_m1632_16) {
        base &= 0xff_ffff;
    }
    if c.is_long() && !crate::memory::is_canonical(base) {
        return Err(Fault::GP);
    }
    let table = cardcage_accel::Descriptor { base, limit };
    if i.mnemonic() == M::Lgdt {
        c.gdtr = table;
    } else {
        c.idtr = table;
    }
    Ok(())
}

fn store_table(c: &mut Cpu, i: &Instruction) -> Res {
    let table = if i.mnemonic() == M::Sgdt { c.gdtr } else { c.idtr };
    let size = if c.is_long() { 8 } else { 4 };
    let a = operands::address(c, i, size + 2, true)?;
    c.probe_write(a, size + 2)?;
    c.write_linear(a, 2, u64::from(table.limit))?;
    c.write_linear(c.wrap(a.wrapping_add(2)), size, table.base & mask(size))
}

/// The descriptor that LAR, LSL, VERR and VERW look at, if it is visible to the present privilege.
fn visible(c: &mut Cpu, selector: u16) -> Res<Option<Raw>> {
    if selector & 0xfffc == 0 {
        return Ok(None);
    }
    let d = match c.descriptor(selector, Fault::gp) {
        Ok(d) => d,
        Err(Fault::Code(..)) => return Ok(None),
        Err(fault) => return Err(fault),
    };
    let conforming = d.is_code() && d.conforming();
    let seen = conforming || (c.cpl <= d.dpl() && (selector & 3) as u8 <= d.dpl());
    Ok(seen.then_some(d))
}

fn set_zf(c: &mut Cpu, zf: bool) {
    let f = c.arith_flags() & !rflags::ZF | if zf { rflags::ZF } else { 0 };
    c.set_arith_flags(f);
}

fn load_rights(c: &mut Cpu, i: &Instruction, limit: bool) -> Res {
    let selector = read(c, i, 1)? as u16;
    let d = visible(c, selector)?.filter(|d| {
        let kind = d.kind();
        d.is_segment()
            || match (c.lma(), limit) {
                (true, true) => matches!(kind, 2 | 9 | 11),
                (true, false) => matches!(kind, 2 | 9 | 11 | 12),
                (false, true) => matches!(kind, 1 | 2 | 3 | 9 | 11),
                (false, false) => matches!(kind, 1..=5 | 9 | 11 | 12),
            }
    });
    set_zf(c, d.is_some());
    if let Some(d) = d {
        let v = if limit { u64::from(d.limit()) } else { d.low >> 32 & 0x00ff_ff00 };
        set(c, i.op0_register(), v);
    }
    Ok(())
}

fn verify(c: &mut Cpu, i: &Instruction, for_write: bool) -> Res {
    let selector = read(c, i, 0)? as u16;
    let good = visible(c, selector)?.is_some_and(|d| {
        let t = d.attributes();
        d.is_segment() && if for_write { !d.is_code() && t & attr::RW != 0 } else { !d.is_code() || t & attr::RW != 0 }
    });
    set_zf(c, good);
    Ok(())
}

fn load_far(c: &mut Cpu, i: &Instruction) -> Res {
    let size = i.op0_register().size();
    let a = operands::address(c, i, size + 2, false)?;
    let offset = c.read_linear(a, size)?;
    let selector = c.read_linear(c.wrap(a.wrapping_add(size as u64)), 2)? as u16;
    let seg = match i.mnemonic() {
        M::Lds => crate::state::DS,
        M::Les => crate::state::ES,
        M::Lfs => FS,
        M::Lgs => GS,
        _ => SS,
    };
    c.load_segment(seg, selector)?;
    set(c, i.op0_register(), offset);
    if seg == SS {
        c.begin_shadow(true);
    }
    Ok(())
}

impl Cpu {
    fn control(&mut self, n: usize) -> Res<u64> {
        if !matches!(n, 0 | 2 | 3 | 4 | 8) {
            return Err(Fault::UD);
        }
        supervisor(self)?;
        Ok(match n {
            0 => self.cr0,
            2 => self.cr2,
            3 => self.cr3,
            4 => self.cr4,
            _ => u64::from(self.apic.cr8()),
        })
    }

    fn set_control(&mut self, n: usize, v: u64) -> Res {
        if !matches!(n, 0 | 2 | 3 | 4 | 8) {
            return Err(Fault::UD);
        }
        supervisor(self)?;
        match n {
            0 => self.set_cr0(v),
            2 => {
                self.cr2 = v;
                Ok(())
            }
            3 => self.set_cr3(v),
            4 => self.set_cr4(v),
            _ => {
                if v > 15 {
                    return Err(Fault::GP);
                }
                self.apic.set_cr8(v as u8);
                self.attention = true;
                self.look_up_soon();
                Ok(())
            }
        }
    }

    pub(crate) fn set_cr0(&mut self, v: u64) -> Res {
        let bad = v >> 32 != 0 || (v & cr0::PG != 0 && v & cr0::PE == 0) || (v & cr0::NW != 0 && v & cr0::CD == 0);
        if bad {
            return Err(Fault::GP);
        }
        let known = cr0::PE | cr0::MP | cr0::EM | cr0::TS | cr0::NE | cr0::WP | cr0::AM | cr0::NW | cr0::CD | cr0::PG;
        let new = v & known | cr0::ET;
        let changed = new ^ self.cr0;
        if changed & cr0::PG != 0 {
            if new & cr0::PG != 0 {
                if self.efer & efer::LME != 0 {
                    if self.cr4 & cr4::PAE == 0 || self.segs[crate::state::CS].attributes & attr::L != 0 {
                        return Err(Fault::GP);
                    }
                    self.efer |= efer::LMA;
                } else if self.cr4 & cr4::PAE != 0 {
                    self.load_pdptes(self.cr3)?;
                }
            } else {
                if self.is_long() {
                    return Err(Fault::GP);
                }
                self.efer &= !efer::LMA;
            }
        }
        self.cr0 = new;
        if changed & (cr0::PG | cr0::WP | cr0::PE) != 0 {
            self.flush_translations();
        }
        self.update_mode();
        self.look_up_soon();
        Ok(())
    }

    pub(crate) fn set_cr3(&mut self, v: u64) -> Res {
        let v = if self.lma() {
            if v >> crate::cpuid::PHYSICAL_BITS != 0 {
                return Err(Fault::GP);
            }
            v
        } else {
            v & 0xffff_ffff
        };
        if !self.lma() && self.cr0 & cr0::PG != 0 && self.cr4 & cr4::PAE != 0 {
            self.load_pdptes(v)?;
        }
        self.cr3 = v;
        self.tlb.flush_local();
        self.new_epoch_of(0);
        if self.local_code_above {
            self.local_code_above = false;
            self.new_epoch_of(1);
        }
        self.check_device_writes();
        Ok(())
    }

    pub(crate) fn set_cr4(&mut self, v: u64) -> Res {
        let known = self.model.cr4_mask();
        let bad = v & !known != 0 || (self.lma() && v & cr4::PAE == 0);
        if bad {
            return Err(Fault::GP);
        }
        let changed = v ^ self.cr4;
        let paging = cr4::PAE | cr4::PSE | cr4::PGE;
        if changed & cr4::PAE != 0 && self.cr0 & cr0::PG != 0 && v & cr4::PAE != 0 && !self.lma() {
            self.load_pdptes(self.cr3)?;
        }
        self.cr4 = v;
        if changed & paging != 0 {
            self.flush_translations();
        }
        self.update_mode();
        self.look_up_soon();
        Ok(())
    }

    /// Forgets all translations, global ones too.
    pub(crate) fn flush_translations(&mut self) {
        self.tlb.flush_all();
        self.local_code_above = false;
        self.new_epoch();
    }

    /// INVLPG.
    fn invalidate_page(&mut self, a: u64) {
        let a = self.wrap(a);
        if !crate::memory::is_canonical(a) {
            return;
        }
        if self.code_tlb.may_be_large(a) {
            self.flush_translations();
            return;
        }
        self.tlb.flush_page(a);
        if self.code_tlb.has_seen(a) {
            self.new_epoch_of((a >> 63) as usize);
        }
    }
}
