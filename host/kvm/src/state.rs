//! The neutral state of a vCPU, to and from KVM's.
#![expect(unsafe_code, reason = "KVM takes an XSAVE area whose size the caller answers for")]

use cardcage_accel::{Descriptor, MpState, PendingEvents, Segment, VcpuError, VcpuState};
use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_SIPI_RECEIVED,
    KVM_MP_STATE_UNINITIALIZED, KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW,
    KVM_VCPUEVENT_VALID_SIPI_VECTOR, Msrs, kvm_debugregs, kvm_dtable, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd};

use crate::vcpu::KvmVcpu;
use crate::{KvmError, controllers, failed};

/// MSRs that have a field of their own: IA32_APIC_BASE, EFER, FS base, GS base.
const FIELDS: [u32; 4] = [0x1b, 0xc000_0080, 0xc000_0100, 0xc000_0101];
/// IA32_TIME_STAMP_COUNTER. Goes on through a reset: all processors must show the same.
const MSR_TSC: u32 = 0x10;
/// MSRs that the kernel takes at once.
const BATCH: usize = 255;
/// Offsets in the local APIC's page.
const APIC_ID: usize = 0x20;
const APIC_ISR: usize = 0x100;
const APIC_IRR: usize = 0x200;
/// Where a page in the neutral form holds what is latched: bit 0 INIT, 1 NMI, 3 start-up IPI with its vector in bits 8
/// to 15. The kernel has fields for it.
const APIC_LATCHES: usize = 0x3f0;
const LATCHED_INIT: u32 = 1;
const LATCHED_NMI: u32 = 1 << 1;
const LATCHED_STARTUP: u32 = 1 << 3;
/// Bytes of the legacy part of an XSAVE area; where XSTATE_BV is behind it.
const LEGACY: usize = 512;
/// x87 and SSE in XSTATE_BV and XCR0.
const LEGACY_COMPONENTS: u64 = 3;
/// Blocking by STI in the events of KVM.
const SHADOW_STI: u8 = 2;
/// Unusable, in [`Segment::attributes`].
const UNUSABLE: u32 = 1 << 16;

/// The MSRs that can be saved, with their values now.
pub(crate) fn readable_msrs(kvm: &Kvm, fd: &VcpuFd) -> Result<Vec<kvm_msr_entry>, KvmError> {
    let list = kvm.get_msr_index_list().map_err(failed("KVM_GET_MSR_INDEX_LIST"))?;
    let mut readable = Vec::new();
    for &index in list.as_slice().iter().filter(|index| !FIELDS.contains(index)) {
        let mut one = msrs(&[kvm_msr_entry { index, ..Default::default() }]);
        // The list has registers that this model does not.
        if matches!(fd.get_msrs(&mut one), Ok(1)) {
            readable.extend_from_slice(one.as_slice());
        }
    }
    readable.sort_unstable_by_key(|msr| msr.index);
    Ok(readable)
}

pub(crate) fn msrs(entries: &[kvm_msr_entry]) -> Msrs {
    Msrs::from_entries(entries).expect("the kernel's own list is not longer than it allows")
}

pub(crate) fn word(page: &[u8], offset: usize) -> u32 {
    page.get(offset..offset + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

pub(crate) fn set_word(page: &mut [u8], offset: usize, value: u32) {
    if let Some(bytes) = page.get_mut(offset..offset + 4) {
        bytes.copy_from_slice(&value.to_le_bytes());
    }
}

pub(crate) fn page_of(lapic: &kvm_lapic_state) -> Vec<u8> {
    lapic.regs.iter().map(|&b| b.cast_unsigned()).collect()
}

pub(crate) fn lapic_of(page: &[u8]) -> kvm_lapic_state {
    let mut lapic = kvm_lapic_state::default();
    lapic.regs.iter_mut().zip(page).for_each(|(reg, byte)| *reg = byte.cast_signed());
    lapic
}

fn segment(s: &kvm_segment) -> Segment {
    let bits = [(s.type_, 0), (s.s, 4), (s.dpl, 5), (s.present, 7), (s.avl, 12), (s.l, 13), (s.db, 14), (s.g, 15)];
    let attributes = bits.iter().fold(0, |all, &(value, at)| all | u32::from(value) << at);
    let unusable = if s.unusable != 0 { UNUSABLE } else { 0 };
    Segment { selector: s.selector, base: s.base, limit: s.limit, attributes: attributes | unusable }
}

fn kvm_segment(s: &Segment) -> kvm_segment {
    let bits = |at: u32, mask: u32| (s.attributes >> at & mask) as u8;
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: bits(0, 15),
        s: bits(4, 1),
        dpl: bits(5, 3),
        present: bits(7, 1),
        avl: bits(12, 1),
        l: bits(13, 1),
        db: bits(14, 1),
        g: bits(15, 1),
        unusable: u8::from(s.attributes & UNUSABLE != 0),
        padding: 0,
    }
}

fn kvm_registers(state: &VcpuState) -> kvm_regs {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = state.gpr;
    let (rip, rflags) = (state.rip, state.rflags);
    kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
}

fn kvm_system_registers(state: &VcpuState) -> kvm_sregs {
    let [es, cs, ss, ds, fs, gs] = state.segments.each_ref().map(kvm_segment);
    let table = |t: Descriptor| kvm_dtable { base: t.base, limit: t.limit, ..Default::default() };
    kvm_sregs {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr: kvm_segment(&state.tr),
        ldt: kvm_segment(&state.ldtr),
        gdt: table(state.gdtr),
        idt: table(state.idtr),
        cr0: state.cr0,
        cr2: state.cr2,
        cr3: state.cr3,
        cr4: state.cr4,
        cr8: state.cr8,
        efer: state.efer,
        apic_base: state.apic_base,
        interrupt_bitmap: [0; 4],
    }
}

/// The XSAVE area: legacy part, header, components.
fn kvm_extended(state: &VcpuState) -> kvm_xsave {
    let mut bytes = state.fxsave.to_vec();
    bytes.extend_from_slice(&state.xsave);
    bytes.resize(bytes.len().max(LEGACY + 64), 0);
    // x87 and SSE are always there, whatever the header says: a fresh header says nothing.
    bytes[LEGACY] |= LEGACY_COMPONENTS as u8;
    let mut area = kvm_xsave::default();
    for (word, bytes) in area.region.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    area
}

/// What is latched in a page of the neutral form, as KVM has it: its run state and events.
fn kvm_pending(state: &VcpuState, power_on: &kvm_vcpu_events) -> (kvm_mp_state, kvm_vcpu_events) {
    let latches = word(&state.apic, APIC_LATCHES);
    let mut events =
        kvm_vcpu_events { flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW, ..*power_on };
    events.interrupt.shadow = if state.events.interrupt_shadow { SHADOW_STI } else { 0 };
    events.nmi.masked = state.events.nmi_blocked.into();
    events.nmi.pending = u8::from(state.events.nmi_pending || latches & LATCHED_NMI != 0);
    let waits = state.mp_state == MpState::WaitForStartup || latches & LATCHED_INIT != 0;
    let mp_state = match state.mp_state {
        _ if waits && latches & LATCHED_STARTUP != 0 => {
            events.sipi_vector = latches >> 8 & 0xff;
            events.flags |= KVM_VCPUEVENT_VALID_SIPI_VECTOR;
            KVM_MP_STATE_SIPI_RECEIVED
        }
        _ if waits => KVM_MP_STATE_UNINITIALIZED,
        MpState::Halted => KVM_MP_STATE_HALTED,
        _ => KVM_MP_STATE_RUNNABLE,
    };
    (kvm_mp_state { mp_state }, events)
}

impl KvmVcpu {
    pub(crate) fn read_state(&mut self) -> Result<VcpuState, VcpuError> {
        self.settle_interrupt()?;
        let fd = &self.fd;
        // First: the kernel acts on INIT and start-up IPIs that wait.
        let mp_state = fd.get_mp_state().map_err(self.failed("KVM_GET_MP_STATE"))?.mp_state;
        let r = fd.get_regs().map_err(self.failed("KVM_GET_REGS"))?;
        let s = fd.get_sregs().map_err(self.failed("KVM_GET_SREGS"))?;
        let events = fd.get_vcpu_events().map_err(self.failed("KVM_GET_VCPU_EVENTS"))?;
        let debug = fd.get_debug_regs().map_err(self.failed("KVM_GET_DEBUGREGS"))?;
        let (fxsave, xsave, xcr0) = self.read_extended()?;
        let mut apic = page_of(&fd.get_lapic().map_err(self.failed("KVM_GET_LAPIC"))?);
        if mp_state == KVM_MP_STATE_SIPI_RECEIVED {
            set_word(&mut apic, APIC_LATCHES, LATCHED_STARTUP | events.sipi_vector << 8);
        }
        let mut msrs = self.read_msrs()?;
        if let Some(stood) = &self.stood {
            stood.amend(&mut apic, &mut msrs);
        }
        let table = |t: kvm_dtable| Descriptor { base: t.base, limit: t.limit };
        Ok(VcpuState {
            gpr: [
                r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14,
                r.r15,
            ],
            rip: r.rip,
            rflags: r.rflags,
            segments: [s.es, s.cs, s.ss, s.ds, s.fs, s.gs].each_ref().map(segment),
            tr: segment(&s.tr),
            ldtr: segment(&s.ldt),
            gdtr: table(s.gdt),
            idtr: table(s.idt),
            cr0: s.cr0,
            cr2: s.cr2,
            cr3: s.cr3,
            cr4: s.cr4,
            cr8: s.cr8,
            efer: s.efer,
            dr: [debug.db[0], debug.db[1], debug.db[2], debug.db[3], debug.dr6, debug.dr7],
            fxsave,
            xcr0,
            xsave,
            msrs,
            apic_base: s.apic_base,
            apic,
            mp_state: match mp_state {
                KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED | KVM_MP_STATE_SIPI_RECEIVED => {
                    MpState::WaitForStartup
                }
                KVM_MP_STATE_HALTED => MpState::Halted,
                _ => MpState::Running,
            },
            events: PendingEvents {
                interrupt_shadow: events.interrupt.shadow != 0,
                nmi_blocked: events.nmi.masked != 0,
                nmi_pending: events.nmi.pending != 0 || events.nmi.injected != 0,
            },
        })
    }

    /// Replaces the state. If the kernel refuses a part of it, what came before stays changed: the vCPU is not to run.
    pub(crate) fn write_state(&mut self, state: &VcpuState) -> Result<(), VcpuError> {
        let power_on_page = page_of(&self.power_on.lapic);
        let mut page = if state.apic.is_empty() { power_on_page.clone() } else { state.apic.clone() };
        let refuse = |what: String| VcpuError::State { index: self.index, what };
        if page.len() != power_on_page.len() {
            return Err(refuse(format!("saved local APIC has {} bytes, not {}", page.len(), power_on_page.len())));
        }
        if LEGACY + state.xsave.len() > size_of::<kvm_xsave>() || !matches!(state.xsave.len(), 0 | 64..) {
            return Err(refuse(format!("saved XSAVE area has {} bytes after the legacy part", state.xsave.len())));
        }
        // The kernel gives the id, always in the xAPIC's form.
        set_word(&mut page, APIC_ID, word(&power_on_page, APIC_ID));
        set_word(&mut page, APIC_LATCHES, 0);
        let (mp_state, events) = kvm_pending(state, &self.power_on.events);
        let fd = &self.fd;
        fd.set_sregs(&kvm_system_registers(state)).map_err(self.failed("KVM_SET_SREGS"))?;
        fd.set_regs(&kvm_registers(state)).map_err(self.failed("KVM_SET_REGS"))?;
        self.write_extended(state)?;
        fd.set_lapic(&lapic_of(&page)).map_err(self.failed("KVM_SET_LAPIC"))?;
        // After the local APIC: a TSC deadline needs its timer's mode.
        self.write_msrs(state)?;
        let debug = kvm_debugregs {
            db: [state.dr[0], state.dr[1], state.dr[2], state.dr[3]],
            dr6: state.dr[4],
            dr7: state.dr[5],
            ..Default::default()
        };
        fd.set_debug_regs(&debug).map_err(self.failed("KVM_SET_DEBUGREGS"))?;
        fd.set_mp_state(mp_state).map_err(self.failed("KVM_SET_MP_STATE"))?;
        fd.set_vcpu_events(&events).map_err(self.failed("KVM_SET_VCPU_EVENTS"))
    }

    /// An interrupt that was acknowledged but did not get to the guest becomes pending again. An exception in the same
    /// position is not kept: its instruction will raise it again.
    fn settle_interrupt(&mut self) -> Result<(), VcpuError> {
        let mut events = self.fd.get_vcpu_events().map_err(self.failed("KVM_GET_VCPU_EVENTS"))?;
        if events.interrupt.injected == 0 || events.interrupt.soft != 0 {
            return Ok(());
        }
        let vector = events.interrupt.nr;
        let (offset, bit) = (usize::from(vector >> 5) * 16, 1 << (vector & 31));
        let mut page = page_of(&self.fd.get_lapic().map_err(self.failed("KVM_GET_LAPIC"))?);
        let in_service = word(&page, APIC_ISR + offset);
        if in_service & bit != 0 {
            set_word(&mut page, APIC_ISR + offset, in_service & !bit);
            let requested = word(&page, APIC_IRR + offset);
            set_word(&mut page, APIC_IRR + offset, requested | bit);
            self.fd.set_lapic(&lapic_of(&page)).map_err(self.failed("KVM_SET_LAPIC"))?;
        } else {
            controllers::unacknowledge(&self.machine, vector).map_err(self.failed("KVM_SET_IRQCHIP"))?;
        }
        events.interrupt.injected = 0;
        self.fd.set_vcpu_events(&events).map_err(self.failed("KVM_SET_VCPU_EVENTS"))
    }

    /// The legacy part of the XSAVE area, the rest unless it is in its initial state, and XCR0.
    fn read_extended(&self) -> Result<([u8; LEGACY], Vec<u8>, u64), VcpuError> {
        let area = self.fd.get_xsave().map_err(self.failed("KVM_GET_XSAVE"))?;
        let bytes: Vec<u8> = area.region.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut fxsave = [0; LEGACY];
        fxsave.copy_from_slice(&bytes[..LEGACY]);
        let components = word(&bytes, LEGACY) as u64 | u64::from(word(&bytes, LEGACY + 4)) << 32;
        let extended = components & !LEGACY_COMPONENTS != 0;
        let xcrs = self.fd.get_xcrs().map(|xcrs| xcrs.xcrs[0].value).unwrap_or(1);
        Ok((fxsave, if extended { bytes[LEGACY..].to_vec() } else { Vec::new() }, xcrs))
    }

    fn write_extended(&self, state: &VcpuState) -> Result<(), VcpuError> {
        let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
        xcrs.xcrs[0].value = state.xcr0;
        match self.fd.set_xcrs(&xcrs) {
            Err(_) if state.xcr0 == 1 => {}
            result => result.map_err(self.failed("KVM_SET_XCRS"))?,
        }
        // SAFETY: no dynamic XSTATE feature was asked for in this process, so the area has its fixed size.
        unsafe { self.fd.set_xsave(&kvm_extended(state)) }.map_err(self.failed("KVM_SET_XSAVE"))
    }

    fn read_msrs(&self) -> Result<Vec<(u32, u64)>, VcpuError> {
        let mut values = Vec::with_capacity(self.power_on.msrs.len());
        for batch in self.power_on.msrs.chunks(BATCH) {
            let mut list = msrs(batch);
            let read = self.fd.get_msrs(&mut list).map_err(self.failed("KVM_GET_MSRS"))?;
            if let Some(msr) = list.as_slice().get(read) {
                return Err(self.refused(msr, "be read"));
            }
            values.extend(list.as_slice().iter().map(|msr| (msr.index, msr.data)));
        }
        Ok(values)
    }

    fn refused(&self, msr: &kvm_msr_entry, what: &str) -> VcpuError {
        VcpuError::State { index: self.index, what: format!("MSR {:#x} cannot {what}", msr.index) }
    }

    /// Sets the MSRs that the state has, and all others to what they were at power-on.
    fn write_msrs(&self, state: &VcpuState) -> Result<(), VcpuError> {
        let saved = |index: u32| state.msrs.iter().any(|msr| msr.0 == index);
        let others = self.power_on.msrs.iter().filter(|msr| !saved(msr.index) && msr.index != MSR_TSC).copied();
        let entry = |&(index, data): &(u32, u64)| kvm_msr_entry { index, data, ..Default::default() };
        let mut entries: Vec<_> = others.chain(state.msrs.iter().map(entry)).collect();
        entries.sort_unstable_by_key(|msr| msr.index);
        let mut rest = entries.as_slice();
        while !rest.is_empty() {
            let batch = &rest[..rest.len().min(BATCH)];
            let set = self.fd.set_msrs(&msrs(batch)).map_err(self.failed("KVM_SET_MSRS"))?;
            let Some(stuck) = batch.get(set) else {
                rest = &rest[batch.len()..];
                continue;
            };
            // A register that cannot be written need not be, if it reads as wanted or is of another accelerator and 0.
            let mut now = msrs(&[kvm_msr_entry { index: stuck.index, ..Default::default() }]);
            let as_wanted = matches!(self.fd.get_msrs(&mut now), Ok(1)) && now.as_slice()[0].data == stuck.data;
            if !as_wanted && stuck.data != 0 {
                return Err(self.refused(stuck, &format!("be {:#x}", stuck.data)));
            }
            rest = &rest[set + 1..];
        }
        Ok(())
    }
}
