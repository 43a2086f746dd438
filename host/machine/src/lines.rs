//! Interrupt lines: several devices may share one global system interrupt.

use std::sync::{Arc, Mutex, PoisonError};

use cardcage_accel::InterruptController;
use cardcage_memory::GuestRam;
use cardcage_pci::{GsiSink, MsiSink};

/// GSIs of the pc: 16 ISA interrupts and 8 more pins of the I/O APIC.
pub(crate) const GSIS: usize = 24;

/// All lines of the machine: a GSI is asserted while any of its users drives it.
pub(crate) struct Lines {
    users: Mutex<[u32; GSIS]>,
    controller: Arc<dyn InterruptController>,
    ram: Arc<GuestRam>,
}

impl Lines {
    pub(crate) fn new(controller: Arc<dyn InterruptController>, ram: Arc<GuestRam>) -> Arc<Self> {
        Arc::new(Self { users: Mutex::new([0; GSIS]), controller, ram })
    }

    /// A new user of `gsi`, which must exist.
    pub(crate) fn line(self: &Arc<Self>, gsi: u32) -> Line {
        Line { lines: self.clone(), gsi, level: Mutex::new(false) }
    }

    /// Counts a user in or out; the controller hears of the first and the last, in order.
    fn count(&self, gsi: u32, level: bool) {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(n) = users.get_mut(gsi as usize) else { return };
        let before = *n;
        *n = if level { before.saturating_add(1) } else { before.saturating_sub(1) };
        if (before == 0) != (*n == 0) {
            self.controller.set_gsi(gsi, level);
        }
    }
}

/// The PCI router counts its own users and is one user of each GSI that it drives.
impl GsiSink for Lines {
    fn set_gsi(&self, gsi: u32, level: bool) {
        self.count(gsi, level);
    }
}

/// A message is a write to the bus: to the local APICs where they are, to RAM elsewhere.
impl MsiSink for Lines {
    fn send_msi(&self, address: u64, data: u32) {
        if address >> 20 == 0xfee {
            self.controller.send_msi(address, data);
        } else if self.ram.write(address, &data.to_le_bytes()).is_err() {
            tracing::debug!("a message for {address:#x} reaches nobody");
        }
    }
}

/// One user's end of a line. Dropping it releases the line.
pub(crate) struct Line {
    lines: Arc<Lines>,
    gsi: u32,
    level: Mutex<bool>,
}

impl Line {
    pub(crate) fn set(&self, level: bool) {
        let mut now = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        if *now != level {
            *now = level;
            self.lines.count(self.gsi, level);
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Seen(Mutex<Vec<(u32, bool)>>);
    impl InterruptController for Seen {
        fn set_gsi(&self, gsi: u32, level: bool) {
            self.0.lock().unwrap().push((gsi, level));
        }
        fn send_msi(&self, address: u64, data: u32) {
            self.0.lock().unwrap().push((data, address == 0xfee0_0000));
        }
    }

    #[test]
    fn a_shared_line_stays_up_until_its_last_user_lets_go() {
        let seen = Arc::new(Seen::default());
        let ram = Arc::new(GuestRam::new(&[(0, 0x1000)]).unwrap());
        let lines = Lines::new(seen.clone(), ram);
        let (a, b) = (lines.line(5), lines.line(5));
        a.set(true);
        b.set(true);
        a.set(true);
        a.set(false);
        assert_eq!(*seen.0.lock().unwrap(), [(5, true)]);
        drop(b);
        assert_eq!(*seen.0.lock().unwrap(), [(5, true), (5, false)]);
    }

    #[test]
    fn a_message_outside_of_the_apics_is_a_write_to_ram() {
        let seen = Arc::new(Seen::default());
        let ram = Arc::new(GuestRam::new(&[(0, 0x1000)]).unwrap());
        let lines = Lines::new(seen.clone(), ram.clone());
        lines.send_msi(0x100, 0x1234_5678);
        lines.send_msi(0xfee0_0000, 0x41);
        lines.send_msi(0x9000_0000, 1);
        let mut word = [0; 4];
        ram.read(0x100, &mut word).unwrap();
        assert_eq!(u32::from_le_bytes(word), 0x1234_5678);
        assert_eq!(*seen.0.lock().unwrap(), [(0x41, true)]);
    }
}
