//! ACPI fixed hardware registers: PM1 event and control, PM timer, GPE0 (ACPI 6.4, section 4.8; 82371AB, section 7.1).
//!
//! Pure state: time comes in as nanoseconds, and what has to happen goes out as levels, deadlines and a sleep request.

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

/// Frequency of the PM timer.
const PM_TIMER_HZ: u128 = 3_579_545;
/// The PM timer counts 24 bits; its status bit is set whenever bit 23 changes.
const TIMER_MASK: u64 = 0xff_ffff;
/// Log2 of the ticks between two changes of bit 23.
const TIMER_CARRY: u32 = 23;

/// SLP_EN in PM1 control: go to the state that SLP_TYP names. Reads as zero.
const SLEEP_ENABLE: u16 = 1 << 13;
/// Value for the APM control port that turns ACPI mode on; FADT names it.
pub(crate) const ACPI_ENABLE: u8 = 0xf1;
/// Value for the APM control port that turns ACPI mode off.
pub(crate) const ACPI_DISABLE: u8 = 0xf0;
/// SCI_EN in PM1 control: power management events raise the SCI.
const SCI_ENABLE: u16 = 1;

bitflags! {
    /// PM1 status and enable bits.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) struct Pm1: u16 {
        const TIMER = 1 << 0;
        const GLOBAL_LOCK = 1 << 5;
        const POWER_BUTTON = 1 << 8;
        const RTC = 1 << 10;
        const WAKE = 1 << 15;
        /// Bits that can raise the SCI.
        const EVENTS = 0x0521;
    }
}

/// Saved power management registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PmState {
    /// Version of this layout.
    pub version: u32,
    /// PM1 status, without the timer's bit if it follows from the time.
    pub pm1_status: u16,
    /// PM1 enable.
    pub pm1_enable: u16,
    /// PM1 control.
    pub pm1_control: u16,
    /// Tick, counted from the start of the virtual clock, at which the timer's status bit is set.
    pub timer_carry: u64,
    /// GPE0 status.
    pub gpe_status: u16,
    /// GPE0 enable.
    pub gpe_enable: u16,
    /// APM control and status ports.
    pub apm: [u8; 2],
    /// The guest sleeps in S3.
    pub suspended: bool,
}

impl PmState {
    /// The version that this program writes.
    pub const VERSION: u32 = 1;
}

/// What SLP_TYP asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sleep {
    Suspend,
    PowerOff,
}

/// The registers.
#[derive(Debug, Clone)]
pub(crate) struct PmRegisters(pub(crate) PmState);

impl PmRegisters {
    pub(crate) fn new() -> Self {
        Self(PmState {
            version: PmState::VERSION,
            pm1_status: 0,
            pm1_enable: 0,
            pm1_control: 0,
            timer_carry: 1 << TIMER_CARRY,
            gpe_status: 0,
            gpe_enable: 0,
            apm: [0; 2],
            suspended: false,
        })
    }

    /// Everything to zero; the timer goes on.
    pub(crate) fn reset(&mut self, now_ns: u64) {
        *self = Self::new();
        self.0.timer_carry = next_carry(now_ns);
    }

    /// PM1 status as the guest reads it.
    pub(crate) fn status(&self, now_ns: u64) -> Pm1 {
        let timer = if ticks(now_ns) >= self.0.timer_carry { Pm1::TIMER } else { Pm1::empty() };
        Pm1::from_bits_retain(self.0.pm1_status) | timer
    }

    /// Level of the system control interrupt.
    pub(crate) fn sci(&self, now_ns: u64) -> bool {
        let events = self.status(now_ns) & Pm1::from_bits_retain(self.0.pm1_enable) & Pm1::EVENTS;
        let pending = !events.is_empty() || self.0.gpe_status & self.0.gpe_enable != 0;
        self.0.pm1_control & SCI_ENABLE != 0 && pending
    }

    /// When the timer's status bit will be set, if that matters.
    pub(crate) fn deadline(&self, now_ns: u64) -> Option<u64> {
        let enabled = Pm1::from_bits_retain(self.0.pm1_enable).contains(Pm1::TIMER);
        let waits = enabled && !self.status(now_ns).contains(Pm1::TIMER);
        waits.then(|| nanoseconds(self.0.timer_carry))
    }

    /// Reads the block at PMBASE.
    pub(crate) fn read(&self, offset: u64, size: u8, now_ns: u64) -> u64 {
        let mut image = [0; 64];
        image[..2].copy_from_slice(&self.status(now_ns).bits().to_le_bytes());
        image[2..4].copy_from_slice(&self.0.pm1_enable.to_le_bytes());
        image[4..6].copy_from_slice(&self.0.pm1_control.to_le_bytes());
        image[8..12].copy_from_slice(&((ticks(now_ns) & TIMER_MASK) as u32).to_le_bytes());
        gather(&image, offset, size)
    }

    /// Writes the block at PMBASE.
    pub(crate) fn write(&mut self, offset: u64, size: u8, value: u64, now_ns: u64) -> Option<Sleep> {
        let (cleared, _) = part(0, offset, size, value);
        if cleared & self.status(now_ns).bits() & Pm1::TIMER.bits() != 0 {
            self.0.timer_carry = next_carry(now_ns);
        }
        self.0.pm1_status &= !cleared;
        let (bits, mask) = part(2, offset, size, value);
        self.0.pm1_enable = self.0.pm1_enable & !mask | bits;
        let (bits, mask) = part(4, offset, size, value);
        self.0.pm1_control = (self.0.pm1_control & !mask | bits) & !SLEEP_ENABLE;
        if bits & SLEEP_ENABLE == 0 {
            return None;
        }
        // SLP_TYP values as the tables announce them: 0 is S5, 1 is S3, 2 is S4, which ends with the power off too.
        match self.0.pm1_control >> 10 & 7 {
            0 | 2 => Some(Sleep::PowerOff),
            1 => Some(Sleep::Suspend),
            _ => None,
        }
    }

    /// Reads the GPE0 block.
    pub(crate) fn read_gpe(&self, offset: u64, size: u8) -> u64 {
        let [s0, s1] = self.0.gpe_status.to_le_bytes();
        let [e0, e1] = self.0.gpe_enable.to_le_bytes();
        gather(&[s0, s1, e0, e1], offset, size)
    }

    /// Writes the GPE0 block: ones clear status bits.
    pub(crate) fn write_gpe(&mut self, offset: u64, size: u8, value: u64) {
        self.0.gpe_status &= !part(0, offset, size, value).0;
        let (bits, mask) = part(2, offset, size, value);
        self.0.gpe_enable = self.0.gpe_enable & !mask | bits;
    }

    /// Reads the APM ports.
    pub(crate) fn read_apm(&self, offset: u64, size: u8) -> u64 {
        gather(&self.0.apm, offset, size)
    }

    /// Writes the APM ports. There is no SMM: what its handler would do is done here.
    pub(crate) fn write_apm(&mut self, offset: u64, size: u8, value: u64) {
        let (bits, mask) = part(0, offset, size, value);
        self.0.apm = (u16::from_le_bytes(self.0.apm) & !mask | bits).to_le_bytes();
        if mask & 0xff == 0 {
            return;
        }
        match self.0.apm[0] {
            ACPI_ENABLE => self.0.pm1_control |= SCI_ENABLE,
            ACPI_DISABLE => self.0.pm1_control &= !SCI_ENABLE,
            _ => {}
        }
    }
}

/// Ticks of the PM timer since the virtual clock started.
fn ticks(now_ns: u64) -> u64 {
    (u128::from(now_ns) * PM_TIMER_HZ / 1_000_000_000) as u64
}

/// The first nanosecond at which `ticks` are over.
fn nanoseconds(ticks: u64) -> u64 {
    u64::try_from((u128::from(ticks) * 1_000_000_000).div_ceil(PM_TIMER_HZ)).unwrap_or(u64::MAX)
}

/// The tick at which bit 23 changes next.
fn next_carry(now_ns: u64) -> u64 {
    ((ticks(now_ns) >> TIMER_CARRY) + 1) << TIMER_CARRY
}

/// Little-endian value of `size` bytes at `offset`; zeroes beyond the end.
fn gather(bytes: &[u8], offset: u64, size: u8) -> u64 {
    let byte = |i: u64| bytes.get(usize::try_from(offset.saturating_add(i)).ok()?).copied();
    (0..u64::from(size.min(8))).fold(0, |value, i| value | u64::from(byte(i).unwrap_or(0)) << (8 * i))
}

/// What an access of `size` bytes at `offset` writes into the 16-bit register at `register`: bits, and mask of the bits
/// that it covers.
fn part(register: u64, offset: u64, size: u8, value: u64) -> (u16, u16) {
    let mut written = (0, 0);
    for (i, byte) in (0..u64::from(size.min(8))).zip(value.to_le_bytes()) {
        let at = offset.saturating_add(i);
        if at == register {
            written = (written.0 | u16::from(byte), written.1 | 0xff);
        } else if at == register + 1 {
            written = (written.0 | u16::from(byte) << 8, written.1 | 0xff00);
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_timer_counts_3579545_ticks_a_second_in_24_bits() {
        let pm = PmRegisters::new();
        assert_eq!(pm.read(8, 4, 0), 0);
        assert_eq!(pm.read(8, 4, 1_000_000_000), 3_579_545);
        assert_eq!(pm.read(8, 4, 10_000_000_000), 35_795_450 & 0xff_ffff);
        assert_eq!(pm.read(9, 1, 1_000_000_000), 3_579_545 >> 8 & 0xff);
        assert_eq!(pm.read(8, 4, u64::MAX) >> 24, 0);
    }

    #[test]
    fn the_timer_status_is_set_at_the_carry_and_can_be_cleared() {
        let mut pm = PmRegisters::new();
        pm.write(2, 2, 1, 0);
        let carry = pm.deadline(0).unwrap();
        assert_eq!(pm.read(0, 2, carry - 1), 0);
        assert_eq!((pm.read(0, 2, carry), pm.deadline(carry)), (1, None));
        pm.write(0, 2, 1, carry);
        assert_eq!(pm.read(0, 2, carry), 0);
        assert_eq!(pm.deadline(carry), Some(nanoseconds(2 << 23)));
    }

    #[test]
    fn the_sci_needs_acpi_mode_an_event_and_its_enable_bit() {
        let mut pm = PmRegisters::new();
        pm.0.pm1_status |= Pm1::POWER_BUTTON.bits();
        pm.write(3, 1, 1, 0);
        assert!(!pm.sci(0));
        pm.write_apm(0, 1, u64::from(ACPI_ENABLE));
        assert!(pm.sci(0) && pm.read(4, 2, 0) == 1 && pm.read_apm(0, 1) == 0xf1);
        pm.write(1, 1, 1, 0);
        assert!(!pm.sci(0));
        pm.0.gpe_status = 2;
        pm.write_gpe(2, 1, 2);
        assert!(pm.sci(0));
        pm.write_gpe(0, 1, 2);
        assert!(!pm.sci(0));
        pm.write_apm(0, 1, u64::from(ACPI_DISABLE));
        assert_eq!(pm.read(4, 2, 0), 0);
    }

    #[test]
    fn sleep_enable_acts_and_reads_as_zero() {
        let mut pm = PmRegisters::new();
        assert_eq!(pm.write(4, 2, 0x2001, 0), Some(Sleep::PowerOff));
        assert_eq!(pm.read(4, 2, 0), 1);
        assert_eq!(pm.write(5, 1, 0x24, 0), Some(Sleep::Suspend));
        assert_eq!(pm.write(4, 2, 0x2c00, 0), None);
        assert_eq!(pm.write(4, 1, 0xff, 0), None);
    }

    #[test]
    fn an_access_across_registers_writes_each_part() {
        let mut pm = PmRegisters::new();
        pm.0.pm1_status = 0x0121;
        pm.write(0, 4, 0x0520_0100, 0);
        assert_eq!(pm.read(0, 4, 0), 0x0520_0021);
        assert_eq!(pm.read(1, 2, 0), 0x2000);
    }

    proptest! {
        #[test]
        fn any_access_at_any_time_is_survived(accesses: Vec<(u64, u8, u64, u64)>) {
            let mut pm = PmRegisters::new();
            for (offset, size, value, now) in accesses {
                for offset in [offset, offset % 70] {
                    pm.write(offset, size, value, now);
                    pm.write_gpe(offset, size, value);
                    pm.write_apm(offset, size, value);
                    pm.read(offset, size, now);
                    pm.read_gpe(offset, size);
                    pm.read_apm(offset, size);
                    if let Some(deadline) = pm.deadline(now) {
                        prop_assert!(deadline > now && pm.status(deadline).contains(Pm1::TIMER));
                    }
                }
            }
        }
    }
}
