//! INTx: a line per function, four PIRQs, and the GSIs behind them (PCI 3.0, section 2.2.6; PIIX3, PIRQRC registers).
//!
//! Lines are level-triggered and shared: a PIRQ is asserted while any function drives it, a GSI while any PIRQ that is
//! routed to it is asserted.

use std::sync::{Arc, Mutex};

use crate::{Devfn, lock};

/// Whoever owns the interrupt controllers.
///
/// Called with locks of this crate held, so that levels arrive in the order in which they changed: an implementation
/// must not call back into this crate.
pub trait GsiSink: Send + Sync {
    /// Sets the level at which this crate drives global system interrupt `gsi`. Other devices may share it: what the
    /// controller sees is the or of all.
    fn set_gsi(&self, gsi: u32, level: bool);
}

/// An interrupt pin of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pin {
    /// INTA#.
    A,
    /// INTB#.
    B,
    /// INTC#.
    C,
    /// INTD#.
    D,
}

impl Pin {
    /// As the interrupt pin register shows it, 1 to 4.
    pub fn register(self) -> u8 {
        self as u8 + 1
    }

    /// Which PIRQ, 0 to 3, this pin of a slot is wired to on the `pc` board: as in QEMU, `(slot - 1 + pin) mod 4`.
    pub fn pirq(self, at: Devfn) -> usize {
        usize::from((at.slot() + 3 + self as u8) % 4)
    }
}

/// GSIs that a PIRQ can be routed to: the ISA ones.
const GSIS: usize = 16;

#[derive(Default)]
struct Router {
    /// Functions that drive each PIRQ.
    drivers: [u32; 4],
    /// The four PIRQ routing registers.
    routes: [u8; 4],
    sci: bool,
    /// Level last told to the sink.
    levels: [bool; GSIS],
}

/// From PIRQs to GSIs, as the PIIX3's PIRQ routing registers say. Also drives the system control interrupt.
pub struct InterruptRouter {
    state: Mutex<Router>,
    sink: Arc<dyn GsiSink>,
}

impl InterruptRouter {
    /// Routing register bit: the PIRQ goes nowhere.
    pub const DISABLED: u8 = 0x80;

    /// GSI of the ACPI system control interrupt.
    pub const SCI: u32 = 9;

    /// A router with all PIRQs disconnected.
    pub fn new(sink: Arc<dyn GsiSink>) -> Arc<Self> {
        let state = Mutex::new(Router { routes: [Self::DISABLED; 4], ..Router::default() });
        Arc::new(Self { state, sink })
    }

    /// Sets the routing register of `pirq` (0 to 3). Reserved interrupt numbers disconnect it.
    pub fn set_route(&self, pirq: usize, register: u8) {
        self.change(|router| {
            if let Some(route) = router.routes.get_mut(pirq) {
                *route = register;
            }
        });
    }

    /// The GSI that `pirq` is routed to.
    pub fn gsi(&self, pirq: usize) -> Option<u32> {
        lock(&self.state).routes.get(pirq).and_then(|&register| decode(register))
    }

    /// Sets the level of the ACPI system control interrupt.
    pub fn set_sci(&self, level: bool) {
        self.change(|router| router.sci = level);
    }

    /// One function more (or fewer) drives `pirq`.
    fn drive(&self, pirq: usize, on: bool) {
        self.change(|router| {
            if let Some(count) = router.drivers.get_mut(pirq) {
                *count = if on { count.saturating_add(1) } else { count.saturating_sub(1) };
            }
        });
    }

    fn change(&self, f: impl FnOnce(&mut Router)) {
        let mut router = lock(&self.state);
        f(&mut router);
        let mut levels = [false; GSIS];
        levels[Self::SCI as usize] = router.sci;
        for (pirq, &register) in router.routes.iter().enumerate() {
            if let Some(gsi) = decode(register) {
                levels[gsi as usize] |= router.drivers[pirq] != 0;
            }
        }
        for (gsi, level) in levels.into_iter().enumerate() {
            if router.levels[gsi] != level {
                router.levels[gsi] = level;
                self.sink.set_gsi(gsi as u32, level);
            }
        }
    }
}

/// The interrupt that a routing register names: 3 to 7, 9 to 12, 14, 15 (82371SB, section 2.2.11).
fn decode(register: u8) -> Option<u32> {
    let irq = u32::from(register & 0xf);
    (register & InterruptRouter::DISABLED == 0 && !matches!(irq, 0..=2 | 8 | 13)).then_some(irq)
}

#[derive(Default)]
struct Line {
    level: bool,
    disabled: bool,
    wire: Option<(Arc<InterruptRouter>, usize)>,
}

impl Line {
    fn driven(&self) -> bool {
        self.level && !self.disabled
    }
}

/// The INTx line of one function. The device sets its level; the command register and the slot decide what of it
/// reaches an interrupt controller.
#[derive(Default)]
pub struct Intx {
    line: Mutex<Line>,
}

impl Intx {
    /// A line at rest that is connected to nothing.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Asserts or releases the line.
    pub fn set_level(&self, level: bool) {
        self.change(|line| line.level = level);
    }

    /// Whether the device asserts the line: the interrupt bit of the status register.
    pub fn level(&self) -> bool {
        lock(&self.line).level
    }

    /// Follows the INTx disable bit of the command register.
    pub(crate) fn set_disabled(&self, disabled: bool) {
        self.change(|line| line.disabled = disabled);
    }

    /// Connects the line to a PIRQ.
    pub(crate) fn connect(&self, router: Arc<InterruptRouter>, pirq: usize) {
        self.disconnect();
        let mut line = lock(&self.line);
        if line.driven() {
            router.drive(pirq, true);
        }
        line.wire = Some((router, pirq));
    }

    /// Releases the PIRQ and connects the line to nothing.
    pub(crate) fn disconnect(&self) {
        let mut line = lock(&self.line);
        if let Some((router, pirq)) = line.wire.take()
            && line.driven()
        {
            router.drive(pirq, false);
        }
    }

    fn change(&self, f: impl FnOnce(&mut Line)) {
        let mut line = lock(&self.line);
        let before = line.driven();
        f(&mut line);
        let after = line.driven();
        if let Some((router, pirq)) = &line.wire
            && before != after
        {
            router.drive(*pirq, after);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Remembers every change of level.
    #[derive(Default)]
    pub(crate) struct Recorder(pub(crate) Mutex<Vec<(u32, bool)>>);
    impl GsiSink for Recorder {
        fn set_gsi(&self, gsi: u32, level: bool) {
            lock(&self.0).push((gsi, level));
        }
    }
    impl Recorder {
        pub(crate) fn take(&self) -> Vec<(u32, bool)> {
            std::mem::take(&mut lock(&self.0))
        }
    }

    fn board() -> (Arc<Recorder>, Arc<InterruptRouter>) {
        let recorder = Arc::new(Recorder::default());
        let router = InterruptRouter::new(recorder.clone());
        for (pirq, irq) in [10, 10, 11, 11].into_iter().enumerate() {
            router.set_route(pirq, irq);
        }
        (recorder, router)
    }

    #[test]
    fn a_shared_gsi_stays_up_until_the_last_line_falls() {
        let (recorder, router) = board();
        let lines: Vec<_> = (0..3).map(|_| Intx::new()).collect();
        for (line, pirq) in lines.iter().zip([0, 0, 1]) {
            line.connect(router.clone(), pirq);
        }
        lines.iter().for_each(|line| line.set_level(true));
        lines.iter().for_each(|line| line.set_level(true));
        assert_eq!(recorder.take(), [(10, true)]);
        lines[0].set_level(false);
        lines[2].set_level(false);
        assert_eq!(recorder.take(), []);
        lines[1].set_level(false);
        assert_eq!(recorder.take(), [(10, false)]);
    }

    #[test]
    fn rerouting_moves_an_asserted_line() {
        let (recorder, router) = board();
        let line = Intx::new();
        line.connect(router.clone(), 2);
        line.set_level(true);
        router.set_route(2, 5);
        assert_eq!(recorder.take(), [(11, true), (5, true), (11, false)]);
        router.set_route(2, InterruptRouter::DISABLED | 5);
        assert_eq!((recorder.take(), router.gsi(2)), (vec![(5, false)], None));
        router.set_route(2, 13);
        assert_eq!((recorder.take(), router.gsi(2)), (vec![], None));
    }

    #[test]
    fn a_disabled_or_disconnected_line_drives_nothing() {
        let (recorder, router) = board();
        let line = Intx::new();
        line.connect(router, 0);
        line.set_disabled(true);
        line.set_level(true);
        assert!(line.level());
        assert_eq!(recorder.take(), []);
        line.set_disabled(false);
        assert_eq!(recorder.take(), [(10, true)]);
        line.disconnect();
        assert_eq!(recorder.take(), [(10, false)]);
        line.set_level(false);
        assert_eq!(recorder.take(), []);
    }

    #[test]
    fn the_sci_shares_its_gsi() {
        let (recorder, router) = board();
        let line = Intx::new();
        line.connect(router.clone(), 0);
        router.set_route(0, 9);
        router.set_sci(true);
        line.set_level(true);
        router.set_sci(false);
        line.set_level(false);
        assert_eq!(recorder.take(), [(9, true), (9, false)]);
    }

    #[test]
    fn pins_swizzle_by_slot() {
        let at = |slot| Devfn::new(slot, 0).unwrap();
        assert_eq!((0..5).map(|slot| Pin::A.pirq(at(slot))).collect::<Vec<_>>(), [3, 0, 1, 2, 3]);
        assert_eq!(Pin::D.pirq(at(1)), 3);
        assert_eq!((Pin::A.register(), Pin::D.register()), (1, 4));
    }
}
