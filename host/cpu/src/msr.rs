//! Model-specific registers (SDM volume 4; APM volume 2, appendix A). Unknown ones are #GP.

use crate::fault::{Fault, Res};
use crate::kvmclock;
use crate::memory::is_canonical;
use crate::state::{Cpu, FS, GS, cr0, efer};

const TSC: u32 = 0x10;
const APIC_BASE: u32 = 0x1b;
const PATCH_LEVEL: u32 = 0x8b;
const MTRR_CAP: u32 = 0xfe;
const SYSENTER_CS: u32 = 0x174;
const SYSENTER_ESP: u32 = 0x175;
const SYSENTER_EIP: u32 = 0x176;
const MCG_CAP: u32 = 0x179;
const MCG_STATUS: u32 = 0x17a;
const DEBUG_CTL: u32 = 0x1d9;
const MTRR_VARIABLE: u32 = 0x200;
const PAT: u32 = 0x277;
const MTRR_DEFAULT: u32 = 0x2ff;
const TSC_DEADLINE: u32 = 0x6e0;
const EFER: u32 = 0xc000_0080;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const CSTAR: u32 = 0xc000_0083;
const SFMASK: u32 = 0xc000_0084;
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const TSC_AUX: u32 = 0xc000_0103;
/// AMD registers that read as zero and take no notice of writes.
const IGNORED: [u32; 7] = [
    0xc001_0010, // SYSCFG
    0xc001_0055, // interrupt pending message
    0xc001_0112, // TSEG base
    0xc001_001f, // NB_CFG
    0xc001_1020, // LS_CFG
    0xc001_1022, // DC_CFG
    0xc001_102a, // BU_CFG2
];
/// AMD HWCR: bit 24 says that the TSC counts at the frequency of P0, that is, always at the same.
const HWCR: u32 = 0xc001_0015;
/// AMD DE_CFG: bit 1 says that LFENCE serialises, which it does.
const DE_CFG: u32 = 0xc001_1029;

/// Fixed-range MTRRs, in the order of `Msrs::mtrr_fixed`.
const MTRR_FIXED: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];

/// The registers that are only kept here.
#[derive(Debug, Clone)]
pub(crate) struct Msrs {
    pub(crate) star: u64,
    pub(crate) lstar: u64,
    pub(crate) cstar: u64,
    pub(crate) sfmask: u64,
    pub(crate) kernel_gs_base: u64,
    pub(crate) tsc_aux: u64,
    pub(crate) tsc_offset: u64,
    pub(crate) sysenter_cs: u64,
    pub(crate) sysenter_esp: u64,
    pub(crate) sysenter_eip: u64,
    pat: u64,
    mtrr_default: u64,
    mtrr_variable: [u64; 16],
    mtrr_fixed: [u64; 11],
    mcg_status: u64,
    pub(crate) wall_clock: u64,
    pub(crate) system_time: u64,
}

impl Default for Msrs {
    fn default() -> Self {
        Self {
            star: 0,
            lstar: 0,
            cstar: 0,
            sfmask: 0,
            kernel_gs_base: 0,
            tsc_aux: 0,
            tsc_offset: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            pat: 0x0007_0406_0007_0406,
            mtrr_default: 0,
            mtrr_variable: [0; 16],
            mtrr_fixed: [0; 11],
            mcg_status: 0,
            wall_clock: 0,
            system_time: 0,
        }
    }
}

/// Every register that `VcpuState::msrs` lists: readable, writable, and without a field of its own.
pub(crate) const SAVED: [u32; 45] = {
    let mut all = [0; 45];
    let scattered = [
        TSC,
        SYSENTER_CS,
        SYSENTER_ESP,
        SYSENTER_EIP,
        MCG_STATUS,
        PAT,
        MTRR_DEFAULT,
        TSC_DEADLINE,
        kvmclock::WALL_CLOCK,
        kvmclock::SYSTEM_TIME,
        STAR,
        LSTAR,
        CSTAR,
        SFMASK,
        FS_BASE,
        GS_BASE,
        KERNEL_GS_BASE,
        TSC_AUX,
    ];
    let mut n = 0;
    while n < 18 {
        all[n] = scattered[n];
        n += 1;
    }
    while n < 34 {
        all[n] = MTRR_VARIABLE + n as u32 - 18;
        n += 1;
    }
    while n < 45 {
        all[n] = MTRR_FIXED[n - 34];
        n += 1;
    }
    all
};

fn memory_type(v: u64) -> bool {
    matches!(v, 0 | 1 | 4 | 5 | 6 | 7)
}

fn canonical(v: u64) -> Res<u64> {
    if is_canonical(v) { Ok(v) } else { Err(Fault::GP) }
}

impl Cpu {
    /// RDMSR.
    pub(crate) fn read_msr(&mut self, msr: u32) -> Res<u64> {
        let m = &self.msrs;
        Ok(match msr {
            TSC => self.tsc(),
            APIC_BASE => self.apic_base,
            PATCH_LEVEL => 0x0a00_1000,
            // Eight variable ranges, fixed ranges, write-combining.
            MTRR_CAP => 0x508,
            SYSENTER_CS => m.sysenter_cs,
            SYSENTER_ESP => m.sysenter_esp,
            SYSENTER_EIP => m.sysenter_eip,
            MCG_CAP => 0,
            MCG_STATUS => m.mcg_status,
            DEBUG_CTL => 0,
            0x200..=0x20f => m.mtrr_variable[(msr & 15) as usize],
            PAT => m.pat,
            MTRR_DEFAULT => m.mtrr_default,
            // The local APIC counts in the clock's nanoseconds, the guest in its own.
            TSC_DEADLINE => match self.apic.read_msr(msr).map_err(|_| Fault::GP)? {
                0 => 0,
                deadline => deadline.wrapping_add(self.msrs.tsc_offset),
            },
            0x800..=0x8ff => return self.apic.read_msr(msr).map_err(|_| Fault::GP),
            EFER => self.efer,
            STAR => m.star,
            LSTAR => m.lstar,
            CSTAR => m.cstar,
            SFMASK => m.sfmask,
            FS_BASE => self.segs[FS].base,
            GS_BASE => self.segs[GS].base,
            KERNEL_GS_BASE => m.kernel_gs_base,
            TSC_AUX => m.tsc_aux,
            DE_CFG => 2,
            HWCR => 1 << 24,
            kvmclock::WALL_CLOCK | kvmclock::WALL_CLOCK_OLD => m.wall_clock,
            kvmclock::SYSTEM_TIME | kvmclock::SYSTEM_TIME_OLD => m.system_time,
            _ => match MTRR_FIXED.iter().position(|&f| f == msr) {
                Some(n) => m.mtrr_fixed[n],
                None if IGNORED.contains(&msr) => 0,
                None => return Err(Fault::GP),
            },
        })
    }

    /// WRMSR.
    pub(crate) fn write_msr(&mut self, msr: u32, v: u64) -> Res {
        match msr {
            TSC => {
                self.msrs.tsc_offset = v.wrapping_sub(self.clock.now());
                kvmclock::update(self);
            }
            APIC_BASE => {
                self.apic.set_base(v).map_err(|_| Fault::GP)?;
                self.apic_base = self.apic.base();
                self.flush_translations();
            }
            SYSENTER_CS => self.msrs.sysenter_cs = v & 0xffff_ffff,
            SYSENTER_ESP => self.msrs.sysenter_esp = canonical(v)?,
            SYSENTER_EIP => self.msrs.sysenter_eip = canonical(v)?,
            MCG_STATUS => self.msrs.mcg_status = v & 7,
            PATCH_LEVEL | DEBUG_CTL | DE_CFG | HWCR => {}
            0x200..=0x20f => {
                if v >> crate::cpuid::PHYSICAL_BITS != 0 {
                    return Err(Fault::GP);
                }
                self.msrs.mtrr_variable[(msr & 15) as usize] = v;
            }
            PAT => {
                if v.to_le_bytes().iter().any(|&b| !memory_type(u64::from(b)) || b == 2 || b == 3) {
                    return Err(Fault::GP);
                }
                self.msrs.pat = v;
            }
            MTRR_DEFAULT => {
                if v & !0xcff != 0 || !memory_type(v & 0xff) {
                    return Err(Fault::GP);
                }
                self.msrs.mtrr_default = v;
            }
            TSC_DEADLINE | 0x800..=0x8ff => {
                let v = if msr == TSC_DEADLINE && v != 0 { self.deadline_on_clock(v) } else { v };
                self.apic.write_msr(msr, v).map_err(|_| Fault::GP)?;
                self.attention = true;
                self.look_up_soon();
            }
            EFER => self.set_efer(v)?,
            STAR => self.msrs.star = v,
            LSTAR => self.msrs.lstar = canonical(v)?,
            CSTAR => self.msrs.cstar = canonical(v)?,
            SFMASK => self.msrs.sfmask = v & 0xffff_ffff,
            FS_BASE => self.set_base(FS, canonical(v)?),
            GS_BASE => self.set_base(GS, canonical(v)?),
            KERNEL_GS_BASE => self.msrs.kernel_gs_base = canonical(v)?,
            TSC_AUX => {
                if v >> 32 != 0 {
                    return Err(Fault::GP);
                }
                self.msrs.tsc_aux = v;
            }
            kvmclock::WALL_CLOCK | kvmclock::WALL_CLOCK_OLD => {
                self.msrs.wall_clock = v;
                kvmclock::write_wall_clock(self);
            }
            kvmclock::SYSTEM_TIME | kvmclock::SYSTEM_TIME_OLD => {
                self.msrs.system_time = v;
                kvmclock::update(self);
            }
            _ => match MTRR_FIXED.iter().position(|&f| f == msr) {
                Some(n) => self.msrs.mtrr_fixed[n] = v,
                None if IGNORED.contains(&msr) => {}
                None => return Err(Fault::GP),
            },
        }
        Ok(())
    }

    /// When the clock will stand where the guest's counter reads `deadline`; now, if that has passed.
    fn deadline_on_clock(&self, deadline: u64) -> u64 {
        let now = self.clock.now();
        let counter = now.wrapping_add(self.msrs.tsc_offset);
        now.saturating_add(deadline.saturating_sub(counter)).max(1)
    }

    fn set_efer(&mut self, v: u64) -> Res {
        let ibrs = if self.model.has("auto-ibrs") { efer::AIBRSE } else { 0 };
        let known = efer::SCE | efer::LME | efer::LMA | efer::NXE | ibrs;
        if v & !known != 0 || ((v ^ self.efer) & efer::LME != 0 && self.cr0 & cr0::PG != 0) {
            return Err(Fault::GP);
        }
        let new = v & !efer::LMA | self.efer & efer::LMA;
        if (new ^ self.efer) & efer::NXE != 0 {
            self.flush_translations();
        }
        self.efer = new;
        Ok(())
    }
}
