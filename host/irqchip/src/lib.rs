//! The interrupt controllers and the interval timer of a PC, wired as a PC wires them.
//!
//! [`Irqchip`] is the whole: one [`Lapic`] per vCPU, the [`IoApic`], the pair of 8259A ([`PicPair`]) and the 8254
//! ([`Pit`]). Devices reach it through [`InterruptController`]; each vCPU through its [`Lapic`].
//!
//! # Wiring
//! * GSI 0 to 15 are the ISA interrupts: each goes to the 8259 pair and to the I/O APIC's pin of the same number; GSI 0,
//!   the timer, goes to pin 2. GSI 2 is the cascade of the pair: nothing can be connected there.
//! * GSI 16 to 23 go to the I/O APIC.
//! * The 8259 pair's output is at LINT0 of every local APIC, the machine's NMI line at LINT1.
//!
//! # Locks
//! Every chip has one short lock of its own. A chip sends to another one after it has let go of its lock, but for the
//! timer, which drives its line under it. So the order is timer, then any one other. Observers and
//! [`VcpuSignal::attention`](cardcage_accel::VcpuSignal::attention) must not call back.
//!
//! # Time
//! Timers run on the machine's virtual clock. Nothing needs the guest to measure anything: the local APIC's timer
//! counts at exactly 1 GHz, TSC deadlines are in ns of that clock, the 8254 runs at 1.193182 MHz.

mod ioapic;
mod lapic;
mod message;
mod pic;
mod pit;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use cardcage_accel::InterruptController;
use cardcage_clock::VirtualClock;
use cardcage_memory::{AddressSpace, MapError};
use serde::{Deserialize, Serialize};

pub use ioapic::{IoApic, IoApicState, PINS};
pub use lapic::Lapic;
pub use message::{ApicBus, DeliveryMode, Destination, Message};
pub use pic::{Expect, PicChipState, PicPair, PicState};
pub use pit::{Access, CounterState, FREQUENCY as PIT_FREQUENCY, Phase, Pit, PitState};

/// Where the I/O APIC is.
pub const IOAPIC_ADDRESS: u64 = 0xfec0_0000;
/// How much of the address space it takes.
const IOAPIC_LEN: u64 = 0x1000;
/// The I/O APIC's pin for GSI 0.
const TIMER_PIN: u32 = 2;
/// Version of every saved state.
const STATE_VERSION: u32 = 1;

/// Saved state that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Made by a newer program.
    #[error("saved state of the {chip} has version {version}; this program knows version 1")]
    Version {
        /// Which chip.
        chip: &'static str,
        /// The version found.
        version: u32,
    },
}

/// Saved state of all but the local APICs, whose state belongs to their vCPUs
/// ([`VcpuState::apic`](cardcage_accel::VcpuState::apic)).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IrqchipState {
    /// The 8259 pair.
    pub pic: PicState,
    /// The I/O APIC.
    pub ioapic: IoApicState,
    /// The interval timer.
    pub pit: PitState,
}

type Observer = Box<dyn Fn(u32, bool) + Send + Sync>;

/// GSI lines and who listens to them; shared with the timer, which drives GSI 0.
struct Lines {
    ioapic: Arc<IoApic>,
    pic: Arc<PicPair>,
    /// Levels, one bit per GSI.
    levels: AtomicU32,
    observer: OnceLock<Observer>,
}

impl Lines {
    fn set(&self, gsi: u32, level: bool) {
        if gsi >= PINS || gsi == TIMER_PIN {
            return;
        }
        let bit = 1 << gsi;
        let before = if level {
            self.levels.fetch_or(bit, Ordering::SeqCst)
        } else {
            self.levels.fetch_and(!bit, Ordering::SeqCst)
        };
        if let Some(observer) = self.observer.get().filter(|_| (before & bit != 0) != level) {
            observer(gsi, level);
        }
        self.pic.set_irq(gsi, level);
        self.ioapic.set_pin(if gsi == 0 { TIMER_PIN } else { gsi }, level);
    }
}

/// All interrupt controllers of a machine. See the crate's front page.
pub struct Irqchip {
    lapics: Vec<Arc<Lapic>>,
    bus: Arc<ApicBus>,
    lines: Arc<Lines>,
    pit: Arc<Pit>,
}

impl Irqchip {
    /// Interrupt controllers for vCPUs with these APIC ids, after power-on. The first is the bootstrap processor.
    pub fn new(clock: &VirtualClock, apic_ids: &[u32]) -> Arc<Self> {
        let bus = Arc::new(ApicBus::default());
        let (ioapic, pic) = (IoApic::new(&bus), PicPair::new(&bus));
        bus.connect_chips(&ioapic, &pic);
        let lapics = apic_ids.iter().enumerate().map(|(i, &id)| Lapic::new(id, i == 0, clock, &bus)).collect();
        let lines = Arc::new(Lines { ioapic, pic, levels: AtomicU32::new(0), observer: OnceLock::new() });
        let timer_lines = lines.clone();
        let pit = Pit::new(clock, move |level| timer_lines.set(0, level));
        Arc::new(Self { lapics, bus, lines, pit })
    }

    /// The local APIC of a vCPU, in the order of [`new`](Self::new).
    pub fn lapic(&self, index: usize) -> Option<&Arc<Lapic>> {
        self.lapics.get(index)
    }

    /// The I/O APIC.
    pub fn ioapic(&self) -> &Arc<IoApic> {
        &self.lines.ioapic
    }

    /// The 8259 pair.
    pub fn pic(&self) -> &Arc<PicPair> {
        &self.lines.pic
    }

    /// The interval timer.
    pub fn pit(&self) -> &Arc<Pit> {
        &self.pit
    }

    /// Puts the chips at their ports and addresses: 0x20, 0x40, 0x61, 0xa0, 0x4d0; [`IOAPIC_ADDRESS`]. What was mapped
    /// before a conflict stays. The local APICs' page is the vCPUs' affair.
    pub fn map(&self, ports: &AddressSpace, memory: &AddressSpace) -> Result<(), MapError> {
        use pic::PicPorts::{Chip, Elcr};
        use pit::PitPorts::{Control, Counters};
        let pic = self.pic();
        ports.map(0x20, 2, "8259 master", Arc::new(Chip(pic.clone(), 0)))?;
        ports.map(0xa0, 2, "8259 slave", Arc::new(Chip(pic.clone(), 1)))?;
        ports.map(0x4d0, 2, "8259 trigger modes", Arc::new(Elcr(pic.clone())))?;
        ports.map(0x40, 4, "8254", Arc::new(Counters(self.pit.clone())))?;
        ports.map(0x61, 1, "8254 gate", Arc::new(Control(self.pit.clone())))?;
        memory.map(IOAPIC_ADDRESS, IOAPIC_LEN, "ioapic", self.ioapic().clone())
    }

    /// Calls `observer` with GSI and level at every change of an input of the I/O APIC, numbered as before the timer's
    /// detour to pin 2. Only the first call counts: false for others. `observer` runs under the timer's lock and must
    /// not call back.
    pub fn observe_inputs(&self, observer: impl Fn(u32, bool) + Send + Sync + 'static) -> bool {
        self.lines.observer.set(Box::new(observer)).is_ok()
    }

    /// The machine's non-maskable interrupt, as a front panel or QMP `inject-nmi` gives it, at every processor.
    pub fn nmi(&self) {
        self.lapics.iter().for_each(|lapic| lapic.nmi());
    }

    /// The state after power-on, local APICs included; levels of lines stay, as they are their drivers'.
    pub fn reset(&self) {
        self.lapics.iter().for_each(|lapic| lapic.reset());
        self.lines.ioapic.reset();
        self.lines.pic.reset();
        self.pit.reset();
    }

    /// The state for a snapshot, without the local APICs.
    pub fn save(&self) -> IrqchipState {
        IrqchipState { pic: self.pic().save(), ioapic: self.ioapic().save(), pit: self.pit.save() }
    }

    /// Takes over saved state, all or nothing. The virtual clock must stand where it stood then.
    pub fn restore(&self, saved: &IrqchipState) -> Result<(), RestoreError> {
        let versions =
            [("8259 pair", saved.pic.version), ("I/O APIC", saved.ioapic.version), ("8254", saved.pit.version)];
        if let Some(&(chip, version)) = versions.iter().find(|(_, version)| *version != STATE_VERSION) {
            return Err(RestoreError::Version { chip, version });
        }
        self.ioapic().restore(&saved.ioapic);
        self.pic().restore(&saved.pic);
        let isa = saved.pic.chips.iter().rev().fold(0, |lines, chip| lines << 8 | u32::from(chip.lines));
        let levels = (isa & 0xffff | saved.ioapic.pins & 0xff_0000) & !(1 << TIMER_PIN);
        self.lines.levels.store(levels, Ordering::SeqCst);
        self.pit.restore(&saved.pit);
        Ok(())
    }
}

impl InterruptController for Irqchip {
    fn set_gsi(&self, gsi: u32, level: bool) {
        self.lines.set(gsi, level);
    }

    fn send_msi(&self, address: u64, data: u32) {
        if let Some(message) = msi(address, data) {
            self.bus.deliver(&message);
        }
    }
}

/// The message that a store of `data` to `address` stands for (SDM volume 3, section 11.11), if it is one.
fn msi(address: u64, data: u32) -> Option<Message> {
    const REDIRECTION_HINT: u64 = 1 << 3;
    const LOGICAL: u64 = 1 << 2;
    const ASSERT: u32 = 1 << 14;
    const LEVEL: u32 = 1 << 15;
    if address & !0xf_ffff != 0xfee0_0000 || data & (LEVEL | ASSERT) == LEVEL {
        return None;
    }
    let logical = address & LOGICAL != 0;
    let mode = match DeliveryMode::from_register(data) {
        DeliveryMode::Fixed if logical && address & REDIRECTION_HINT != 0 => DeliveryMode::LowestPriority,
        mode => mode,
    };
    let destination = Destination::narrow((address >> 12) as u8, (address >> 5) as u8 & 0x7f, logical);
    Some(Message { destination, mode, vector: data as u8, level_triggered: data & LEVEL != 0 })
}

#[cfg(test)]
mod tests;
