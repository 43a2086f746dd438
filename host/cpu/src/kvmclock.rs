//! KVM's paravirtual clock (Linux, Documentation/virt/kvm/x86/msr.rst).
//!
//! The guest's time stamp counter counts nanoseconds, so the structure that the guest reads says: multiply by one. It
//! is written once, when the guest names its place, and again when the counter is set; the stable flag tells the guest
//! that it never needs to compare processors.

use crate::state::Cpu;

pub(crate) const WALL_CLOCK: u32 = 0x4b56_4d00;
pub(crate) const SYSTEM_TIME: u32 = 0x4b56_4d01;
pub(crate) const WALL_CLOCK_OLD: u32 = 0x11;
pub(crate) const SYSTEM_TIME_OLD: u32 = 0x12;

/// The structure is in use.
const ENABLE: u64 = 1;
/// PVCLOCK_TSC_STABLE_BIT.
const STABLE: u8 = 1;

/// Writes `struct pvclock_vcpu_time_info` where the guest wants it.
pub(crate) fn update(c: &mut Cpu) {
    let msr = c.msrs.system_time;
    if msr & ENABLE == 0 {
        return;
    }
    let at = msr & !ENABLE;
    let now = c.clock.now();
    let tsc = now.wrapping_add(c.msrs.tsc_offset);
    let version = read_version(c, at);
    let mut record = [0u8; 32];
    record[0..4].copy_from_slice(&version.wrapping_add(1).to_le_bytes());
    record[8..16].copy_from_slice(&tsc.to_le_bytes());
    record[16..24].copy_from_slice(&now.to_le_bytes());
    // nanoseconds = (ticks << 1) * 2^31 / 2^32.
    record[24..28].copy_from_slice(&0x8000_0000u32.to_le_bytes());
    record[28] = 1;
    record[29] = STABLE;
    write(c, at, &record);
    write(c, at, &version.wrapping_add(2).to_le_bytes());
}

/// Writes `struct pvclock_wall_clock`: the time of day at which the system time was zero.
pub(crate) fn write_wall_clock(c: &mut Cpu) {
    let at = c.msrs.wall_clock;
    let zero = cardcage_clock::host_utc_ns().saturating_sub_unsigned(c.clock.now()).max(0).unsigned_abs();
    let version = read_version(c, at);
    let mut record = [0u8; 12];
    record[0..4].copy_from_slice(&version.wrapping_add(2).to_le_bytes());
    record[4..8].copy_from_slice(&((zero / 1_000_000_000) as u32).to_le_bytes());
    record[8..12].copy_from_slice(&((zero % 1_000_000_000) as u32).to_le_bytes());
    write(c, at, &record);
}

/// The version that is there, made even.
fn read_version(c: &Cpu, at: u64) -> u32 {
    let mut word = [0; 4];
    match c.ram.read(at, &mut word) {
        Ok(()) => u32::from_le_bytes(word) & !1,
        Err(_) => 0,
    }
}

fn write(c: &mut Cpu, at: u64, bytes: &[u8]) {
    // Where the guest names a place that is not RAM, nothing is written, as with KVM.
    if c.ram.write(at, bytes).is_ok() {
        c.check_device_writes();
    }
}
