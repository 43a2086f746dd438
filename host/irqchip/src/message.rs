//! Interrupt messages and the bus that carries them between I/O APIC, local APICs and the 8259 pair (SDM volume 3,
//! sections 11.6.2 and 11.11).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, RwLock, Weak};

use crate::ioapic::IoApic;
use crate::lapic::Lapic;
use crate::pic::PicPair;

/// How a message is to be taken; the three-bit field of ICR, LVT, redirection table and MSI data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryMode {
    /// The vector, at every destination.
    Fixed,
    /// The vector, at the destination of lowest priority.
    LowestPriority,
    /// System management interrupt. There is no system management mode: ignored.
    Smi,
    /// Reserved: ignored.
    Reserved,
    /// Non-maskable interrupt.
    Nmi,
    /// Reset of the processor, not of its memory.
    Init,
    /// Start at the vector's page.
    Startup,
    /// An interrupt whose vector the 8259 pair tells.
    ExtInt,
}

impl DeliveryMode {
    /// From bits 8 to 10 of ICR, LVT, redirection table entry or MSI data.
    pub fn from_register(value: u32) -> Self {
        match value >> 8 & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::Startup,
            7 => Self::ExtInt,
            _ => Self::Reserved,
        }
    }
}

/// Whom a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// The local APIC with this id.
    Physical(u32),
    /// The local APICs whose logical id matches. `narrow`: the sender had eight bits for it, so 0xff means all.
    Logical {
        /// Message destination address.
        mda: u32,
        /// Came from an eight-bit field.
        narrow: bool,
    },
    /// Every local APIC.
    All,
    /// Every local APIC but the one with this id.
    AllBut(u32),
}

impl Destination {
    /// From an eight-bit destination field and the seven bits that extend it where hypervisors say so (MSI address
    /// bits 5 to 11, redirection table bits 49 to 55).
    pub fn narrow(low: u8, extension: u8, logical: bool) -> Self {
        match (logical, extension, low) {
            (true, _, _) => Self::Logical { mda: u32::from(low), narrow: true },
            (false, 0, 0xff) => Self::All,
            (false, ..) => Self::Physical(u32::from(extension & 0x7f) << 8 | u32::from(low)),
        }
    }

    /// From a 32-bit destination field (x2APIC).
    pub fn wide(id: u32, logical: bool) -> Self {
        match (logical, id) {
            (_, u32::MAX) => Self::All,
            (true, mda) => Self::Logical { mda, narrow: false },
            (false, id) => Self::Physical(id),
        }
    }
}

/// An interrupt message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// For whom.
    pub destination: Destination,
    /// How to take it.
    pub mode: DeliveryMode,
    /// Which vector.
    pub vector: u8,
    /// Level triggered: the end of interrupt goes back to the I/O APIC.
    pub level_triggered: bool,
}

/// Connects local APICs, I/O APIC and 8259 pair.
#[derive(Default)]
pub struct ApicBus {
    lapics: RwLock<Vec<Weak<Lapic>>>,
    ioapic: OnceLock<Weak<IoApic>>,
    pic: OnceLock<Weak<PicPair>>,
    /// Where the search for the lowest priority starts, so that equals take turns.
    turn: AtomicUsize,
}

impl ApicBus {
    pub(crate) fn connect_lapic(&self, lapic: &Arc<Lapic>) {
        self.lapics.write().unwrap_or_else(|p| p.into_inner()).push(Arc::downgrade(lapic));
    }

    pub(crate) fn connect_chips(&self, ioapic: &Arc<IoApic>, pic: &Arc<PicPair>) {
        let _ = self.ioapic.set(Arc::downgrade(ioapic));
        let _ = self.pic.set(Arc::downgrade(pic));
    }

    /// Delivers `message` to its destinations. Messages to nobody vanish.
    pub fn deliver(&self, message: &Message) {
        let lapics = self.lapics.read().unwrap_or_else(|p| p.into_inner());
        let there = lapics.iter().filter_map(Weak::upgrade).filter(|lapic| lapic.matches(message.destination));
        if message.mode == DeliveryMode::LowestPriority {
            let candidates: Vec<_> = there.filter_map(|l| l.arbitration_priority().map(|p| (p, l))).collect();
            let Some(lowest) = candidates.iter().map(|c| c.0).min() else { return };
            let equals: Vec<_> = candidates.iter().filter(|c| c.0 == lowest).collect();
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            if let Some((_, lapic)) = equals.get(turn % equals.len().max(1)) {
                lapic.accept(message);
            }
        } else {
            there.for_each(|lapic| lapic.accept(message));
        }
    }

    /// Tells the I/O APIC that a level-triggered interrupt has ended.
    pub(crate) fn end_of_interrupt(&self, vector: u8) {
        if let Some(ioapic) = self.ioapic.get().and_then(Weak::upgrade) {
            ioapic.end_of_interrupt(vector);
        }
    }

    /// Whether the 8259 pair asks for an interrupt.
    pub(crate) fn pic_asserts(&self) -> bool {
        self.pic.get().and_then(Weak::upgrade).is_some_and(|pic| pic.output())
    }

    /// The interrupt-acknowledge cycle at the 8259 pair; `None` without one.
    pub(crate) fn pic_acknowledge(&self) -> Option<u8> {
        self.pic.get().and_then(Weak::upgrade).map(|pic| pic.acknowledge())
    }

    /// The output of the 8259 pair, which every local APIC has at LINT0, went to `level`.
    pub(crate) fn pic_output_changed(&self, level: bool) {
        let lapics = self.lapics.read().unwrap_or_else(|p| p.into_inner());
        lapics.iter().filter_map(Weak::upgrade).for_each(|lapic| lapic.set_lint0(level));
    }
}
