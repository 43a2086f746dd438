//! The register file of a local APIC: what each register holds, reads as and does when written (SDM volume 3, tables
//! 11-1 and 11-6). Register numbers are x2APIC's: the offset in the xAPIC page divided by 16.

use super::timer::{ApicTimer, Mode};
use crate::message::{DeliveryMode, Destination, Message};

/// IA32_APIC_BASE: bootstrap processor.
pub(super) const BASE_BSP: u64 = 1 << 8;
/// IA32_APIC_BASE: x2APIC mode.
pub(super) const BASE_X2APIC: u64 = 1 << 10;
/// IA32_APIC_BASE: enabled.
pub(super) const BASE_ENABLE: u64 = 1 << 11;
/// Where the page is after power-on.
const BASE_ADDRESS: u64 = 0xfee0_0000;

/// Integrated APIC with six LVT entries.
const VERSION: u32 = 0x0005_0014;
/// SVR: software enable.
const SVR_ENABLE: u32 = 1 << 8;
/// SVR: vector, software enable, focus checking.
const SVR_BITS: u32 = 0x3ff;
/// Bits of the SVR that x2APIC mode has.
const SVR_X2APIC_BITS: u32 = 0x1ff;
/// LVT: masked.
pub(super) const LVT_MASKED: u32 = 1 << 16;
/// Bits of ICR that are not reserved, without the destination.
const ICR_BITS: u32 = 0x000c_cfff;
/// ICR: delivery status. There is no busy APIC: reads as zero.
const ICR_BUSY: u32 = 1 << 12;
/// ICR: logical destination.
const ICR_LOGICAL: u32 = 1 << 11;
/// ICR: assert.
const ICR_ASSERT: u32 = 1 << 14;
/// ICR: level triggered.
const ICR_LEVEL: u32 = 1 << 15;

/// ESR: an IPI with a vector below 16 was sent.
const ESR_SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
/// ESR: an interrupt with a vector below 16 was received.
const ESR_RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
/// ESR: a register that does not exist was accessed.
const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;

const ID: u32 = 0x02;
const VERSION_REGISTER: u32 = 0x03;
const TPR: u32 = 0x08;
const APR: u32 = 0x09;
const PPR: u32 = 0x0a;
const EOI: u32 = 0x0b;
const RRD: u32 = 0x0c;
const LDR: u32 = 0x0d;
const DFR: u32 = 0x0e;
const SVR: u32 = 0x0f;
const ISR: u32 = 0x10;
const TMR: u32 = 0x18;
const IRR: u32 = 0x20;
const ESR: u32 = 0x28;
const ICR_LOW: u32 = 0x30;
const ICR_HIGH: u32 = 0x31;
const LVT_FIRST: u32 = 0x32;
const LVT_LAST: u32 = 0x37;
const TIMER_INITIAL: u32 = 0x38;
const TIMER_CURRENT: u32 = 0x39;
const TIMER_DIVIDE: u32 = 0x3e;
const SELF_IPI: u32 = 0x3f;
/// In a saved page only, where no register can be read: what is latched, see [`Latched::to_word`].
const SAVED_LATCHES: u32 = 0x3f;

/// Bytes of a saved page.
const PAGE_LEN: usize = 0x400;

/// The local vector table, in the order of the registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lvt {
    Timer,
    Lint0 = 3,
    Lint1,
    Error,
}

/// Bits of each LVT entry that are not reserved, and may be written.
const LVT_BITS: [u32; 6] = [0x0007_00ff, 0x0001_07ff, 0x0001_07ff, 0x0001_a7ff, 0x0001_a7ff, 0x0001_00ff];
/// Bits of each LVT entry that can be read only; writes of them are ignored.
const LVT_READ_ONLY: [u32; 6] = [1 << 12, 1 << 12, 1 << 12, 5 << 12, 5 << 12, 1 << 12];

/// What a register write asks for beyond the registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    /// The timer's deadline changed.
    Timer,
    /// A level-triggered interrupt ended: tell the I/O APIC.
    EndOfLevel(u8),
    Send(Message),
}

/// A 256-bit register: IRR, ISR, TMR.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Vectors([u32; 8]);

impl Vectors {
    fn set(&mut self, vector: u8, on: bool) {
        let word = &mut self.0[usize::from(vector >> 5)];
        let bit = 1 << (vector & 31);
        *word = if on { *word | bit } else { *word & !bit };
    }

    pub(super) fn contains(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 5)] >> (vector & 31) & 1 != 0
    }

    fn highest(&self) -> Option<u8> {
        let word = self.0.iter().rposition(|&word| word != 0)?;
        u8::try_from(word as u32 * 32 + self.0[word].ilog2()).ok()
    }

    fn word(&self, index: u32) -> u32 {
        self.0[index as usize & 7]
    }
}

/// Events that wait for the processor beside the vectors in IRR.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Latched {
    pub(super) init: bool,
    pub(super) nmi: bool,
    pub(super) external: bool,
    pub(super) startup: Option<u8>,
}

impl Latched {
    /// Bit 0 INIT, 1 NMI, 2 ExtINT, 3 start-up IPI; bits 8 to 15 the start-up vector.
    fn to_word(self) -> u32 {
        let flags = [self.init, self.nmi, self.external, self.startup.is_some()];
        let bits = flags.iter().enumerate().map(|(i, &f)| u32::from(f) << i).sum::<u32>();
        bits | u32::from(self.startup.unwrap_or(0)) << 8
    }

    fn from_word(word: u32) -> Self {
        let flag = |bit: u32| word >> bit & 1 != 0;
        Self { init: flag(0), nmi: flag(1), external: flag(2), startup: flag(3).then_some((word >> 8) as u8) }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Registers {
    id: u32,
    pub(super) base: u64,
    pub(super) tpr: u8,
    ldr: u32,
    dfr: u32,
    svr: u32,
    pub(super) irr: Vectors,
    isr: Vectors,
    tmr: Vectors,
    esr: u32,
    /// Errors since the last write of ESR.
    errors: u32,
    icr: u64,
    lvt: [u32; 6],
    pub(super) timer: ApicTimer,
    pub(super) latched: Latched,
    pub(super) waits_for_startup: bool,
}

/// Whether IA32_APIC_BASE may go from one value to the other (SDM volume 3, figure 11-27).
pub(super) fn is_legal_change(from: u64, to: u64) -> bool {
    let mode = |base: u64| (base & BASE_ENABLE != 0, base & BASE_X2APIC != 0);
    let change = (mode(from), mode(to));
    !matches!(change, (_, (false, true)) | ((false, _), (true, true)) | ((true, true), (true, false)))
}

impl Registers {
    /// The state after power-on. The bootstrap processor's LINT0 takes interrupts of the 8259 pair at once, as
    /// firmware leaves it, so that kernels which are booted without firmware get their first timer interrupt.
    pub(super) fn power_on(id: u32, bootstrap: bool) -> Self {
        let base = BASE_ADDRESS | BASE_ENABLE | if bootstrap { BASE_BSP } else { 0 };
        let mut lvt = [LVT_MASKED; 6];
        if bootstrap {
            lvt[Lvt::Lint0 as usize] = 0x700;
        }
        Self {
            id,
            base,
            tpr: 0,
            ldr: 0,
            dfr: u32::MAX,
            svr: 0xff,
            irr: Vectors::default(),
            isr: Vectors::default(),
            tmr: Vectors::default(),
            esr: 0,
            errors: 0,
            icr: 0,
            lvt,
            timer: ApicTimer::default(),
            latched: Latched::default(),
            waits_for_startup: !bootstrap,
        }
    }

    /// Acts on INIT: as after power-on, but mode and what came after INIT stay. The bootstrap processor does not wait
    /// for a start-up IPI.
    pub(super) fn init(&mut self) {
        let bootstrap = self.base & BASE_BSP != 0;
        let startup = self.latched.startup.filter(|_| !bootstrap);
        *self = Self { base: self.base, ..Self::power_on(self.id, bootstrap) };
        self.latched.startup = startup;
        self.enter_x2apic();
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.base & BASE_ENABLE != 0
    }

    pub(super) fn is_x2apic(&self) -> bool {
        self.is_enabled() && self.base & BASE_X2APIC != 0
    }

    pub(super) fn is_software_enabled(&self) -> bool {
        self.is_enabled() && self.svr & SVR_ENABLE != 0
    }

    /// Sets IA32_APIC_BASE to a value that was checked. Disabling loses all state.
    pub(super) fn set_base(&mut self, value: u64) {
        if self.is_enabled() && value & BASE_ENABLE == 0 {
            let latched = self.latched;
            *self =
                Self { waits_for_startup: self.waits_for_startup, ..Self::power_on(self.id, value & BASE_BSP != 0) };
            self.latched = latched;
        }
        self.base = value;
        self.enter_x2apic();
    }

    /// In x2APIC mode the logical id follows from the id.
    fn enter_x2apic(&mut self) {
        if self.is_x2apic() {
            self.ldr = (self.id >> 4) << 16 | 1 << (self.id & 0xf);
        }
    }

    /// SDM volume 3, section 11.6.2.2.
    pub(super) fn matches_logical(&self, mda: u32, narrow: bool) -> bool {
        if self.is_x2apic() {
            return (narrow && mda == 0xff) || (mda >> 16 == self.ldr >> 16 && mda & self.ldr & 0xffff != 0);
        }
        let ldr = self.ldr >> 24;
        match self.dfr >> 28 {
            0xf => mda & ldr != 0 && mda <= 0xff,
            0 => (mda >> 4 == ldr >> 4 || mda >> 4 == 0xf) && mda & ldr & 0xf != 0,
            _ => false,
        }
    }

    pub(super) fn lvt(&self, entry: Lvt) -> u32 {
        self.lvt[entry as usize]
    }

    /// Whether the 8259 pair's interrupts go to this processor.
    pub(super) fn takes_external(&self) -> bool {
        let lint0 = self.lvt(Lvt::Lint0);
        let routed = lint0 & LVT_MASKED == 0 && DeliveryMode::from_register(lint0) == DeliveryMode::ExtInt;
        !self.is_enabled() || routed
    }

    pub(super) fn processor_priority(&self) -> u8 {
        let in_service = self.isr.highest().unwrap_or(0) & 0xf0;
        if self.tpr & 0xf0 >= in_service { self.tpr } else { in_service }
    }

    /// Whether IRR holds something above the processor's priority.
    pub(super) fn interrupt_waits(&self) -> bool {
        self.is_enabled() && self.irr.highest().is_some_and(|v| v & 0xf0 > self.processor_priority() & 0xf0)
    }

    /// Accepts a fixed interrupt.
    pub(super) fn request(&mut self, vector: u8, level_triggered: bool) {
        if vector < 16 {
            self.error(ESR_RECEIVE_ILLEGAL_VECTOR);
        } else if self.is_software_enabled() {
            self.irr.set(vector, true);
            self.tmr.set(vector, level_triggered);
        }
    }

    /// Moves the most urgent vector from IRR to ISR.
    pub(super) fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.irr.highest().filter(|_| self.interrupt_waits())?;
        self.irr.set(vector, false);
        self.isr.set(vector, true);
        Some(vector)
    }

    fn end_of_interrupt(&mut self) -> Effect {
        let Some(vector) = self.isr.highest() else { return Effect::None };
        self.isr.set(vector, false);
        if self.tmr.contains(vector) { Effect::EndOfLevel(vector) } else { Effect::None }
    }

    pub(super) fn illegal_register(&mut self) {
        self.error(ESR_ILLEGAL_REGISTER);
    }

    fn error(&mut self, bit: u32) {
        let new = self.errors & bit == 0;
        self.errors |= bit;
        let lvt = self.lvt(Lvt::Error);
        if new && lvt & LVT_MASKED == 0 {
            // An illegal vector here is an error that is already noted, or the other one: no endless recursion.
            self.request(lvt as u8, false);
        }
    }

    /// A register as both modes read it; `None` if there is none.
    pub(super) fn read(&self, register: u32, now: u64) -> Option<u32> {
        Some(match register {
            ID if self.is_x2apic() => self.id,
            ID => self.id << 24,
            VERSION_REGISTER => VERSION,
            TPR => self.tpr.into(),
            APR | PPR => self.processor_priority().into(),
            EOI | RRD => 0,
            LDR => self.ldr,
            DFR => self.dfr,
            SVR => self.svr,
            ISR..TMR => self.isr.word(register),
            TMR..IRR => self.tmr.word(register),
            IRR..ESR => self.irr.word(register),
            ESR => self.esr,
            ICR_LOW => self.icr as u32,
            ICR_HIGH => (self.icr >> 32) as u32,
            LVT_FIRST..=LVT_LAST => *self.lvt.get((register - LVT_FIRST) as usize)?,
            TIMER_INITIAL => self.timer.initial(),
            TIMER_CURRENT => self.timer.current(now),
            TIMER_DIVIDE => self.timer.divide(),
            _ => return None,
        })
    }

    /// A write in xAPIC mode; `None` if there is no such register.
    pub(super) fn write(&mut self, register: u32, value: u32, now: u64) -> Option<Effect> {
        match register {
            TPR => self.tpr = value as u8,
            EOI => return Some(self.end_of_interrupt()),
            LDR if !self.is_x2apic() => self.ldr = value & 0xff00_0000,
            DFR => self.dfr = value | 0x0fff_ffff,
            SVR => self.set_svr(value & SVR_BITS),
            ESR => self.esr = std::mem::take(&mut self.errors),
            ICR_LOW => {
                self.icr = self.icr & !0xffff_ffff | u64::from(value & ICR_BITS & !ICR_BUSY);
                return Some(self.send());
            }
            ICR_HIGH => self.icr = self.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32,
            LVT_FIRST..=LVT_LAST => return self.set_lvt((register - LVT_FIRST) as usize, value),
            TIMER_INITIAL => {
                self.timer.set_initial(value, now);
                return Some(Effect::Timer);
            }
            TIMER_DIVIDE => {
                self.timer.set_divide(value, now);
                return Some(Effect::Timer);
            }
            // Read-only registers: the write is dropped, without an error.
            ID | VERSION_REGISTER | APR | PPR | RRD | LDR | ISR..ESR | TIMER_CURRENT => {}
            _ => return None,
        }
        Some(Effect::None)
    }

    /// RDMSR in x2APIC mode; `None` is #GP.
    pub(super) fn read_x2apic(&self, register: u32, now: u64) -> Option<u64> {
        match register {
            ICR_LOW => Some(self.icr),
            APR | EOI | RRD | DFR | ICR_HIGH => None,
            _ => self.read(register, now).map(u64::from),
        }
    }

    /// WRMSR in x2APIC mode; `None` is #GP.
    pub(super) fn write_x2apic(&mut self, register: u32, value: u64, now: u64) -> Option<Effect> {
        if register == ICR_LOW {
            if value as u32 & !ICR_BITS != 0 {
                return None;
            }
            self.icr = value & !u64::from(ICR_BUSY);
            return Some(self.send());
        }
        let value = u32::try_from(value).ok()?;
        let lvt_bits = |index: usize| Some(LVT_BITS.get(index)? | LVT_READ_ONLY.get(index)?);
        let allowed = match register {
            TPR => 0xff,
            EOI | ESR => 0,
            SVR => SVR_X2APIC_BITS,
            LVT_FIRST..=LVT_LAST => lvt_bits((register - LVT_FIRST) as usize)?,
            TIMER_INITIAL => u32::MAX,
            TIMER_DIVIDE => 0xb,
            SELF_IPI => 0xff,
            _ => return None,
        };
        if value & !allowed != 0 {
            return None;
        }
        if register == SELF_IPI {
            self.send_vector_check(value as u8);
            self.request(value as u8, false);
            return Some(Effect::None);
        }
        self.write(register, value, now)
    }

    fn set_svr(&mut self, value: u32) {
        self.svr = value;
        if value & SVR_ENABLE == 0 {
            self.lvt.iter_mut().for_each(|lvt| *lvt |= LVT_MASKED);
        }
    }

    fn set_lvt(&mut self, index: usize, value: u32) -> Option<Effect> {
        let forced = if self.svr & SVR_ENABLE == 0 { LVT_MASKED } else { 0 };
        *self.lvt.get_mut(index)? = value & LVT_BITS.get(index)? | forced;
        if index == Lvt::Timer as usize {
            self.timer.set_mode(Mode::from_lvt(value));
            return Some(Effect::Timer);
        }
        Some(Effect::None)
    }

    fn send_vector_check(&mut self, vector: u8) {
        if vector < 16 {
            self.error(ESR_SEND_ILLEGAL_VECTOR);
        }
    }

    /// What the ICR says is sent (SDM volume 3, section 11.6.1).
    fn send(&mut self) -> Effect {
        let low = self.icr as u32;
        let high = (self.icr >> 32) as u32;
        let (mode, vector) = (DeliveryMode::from_register(low), low as u8);
        let uses_vector = matches!(mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority);
        if uses_vector {
            self.send_vector_check(vector);
            if vector < 16 {
                return Effect::None;
            }
        }
        let destination = match low >> 18 & 3 {
            0 if self.is_x2apic() => Destination::wide(high, low & ICR_LOGICAL != 0),
            0 => Destination::narrow((high >> 24) as u8, 0, low & ICR_LOGICAL != 0),
            1 => Destination::Physical(self.id),
            2 => Destination::All,
            _ => Destination::AllBut(self.id),
        };
        // INIT level de-assert has no effect; a processor cannot reset or start itself, nor take ExtINT by IPI.
        let dropped = match mode {
            DeliveryMode::Init => low & (ICR_LEVEL | ICR_ASSERT) == ICR_LEVEL || matches!(low >> 18 & 3, 1 | 2),
            DeliveryMode::Startup => matches!(low >> 18 & 3, 1 | 2),
            DeliveryMode::ExtInt | DeliveryMode::Smi | DeliveryMode::Reserved => true,
            _ => false,
        };
        if dropped {
            return Effect::None;
        }
        Effect::Send(Message { destination, mode, vector, level_triggered: false })
    }

    /// The registers in the layout of the xAPIC page.
    pub(super) fn to_page(&self, now: u64) -> Vec<u8> {
        let mut page = vec![0; PAGE_LEN];
        let words = page.chunks_exact_mut(16).zip(0u32..);
        for (slot, register) in words {
            let word = match register {
                ESR => self.esr | self.errors << 16,
                // What has expired but not yet been delivered must not be lost.
                TIMER_CURRENT if self.timer.is_counting() => self.timer.current(now).max(1),
                SAVED_LATCHES => self.latched.to_word(),
                _ => self.read(register, now).unwrap_or(0),
            };
            slot[..4].copy_from_slice(&word.to_le_bytes());
        }
        page
    }

    /// Takes over a page that [`to_page`](Self::to_page) made. Mode and id are not in it.
    pub(super) fn load_page(&mut self, page: &[u8], now: u64) -> Result<(), String> {
        if page.len() != PAGE_LEN {
            return Err(format!("saved local APIC has {} bytes, not {PAGE_LEN}", page.len()));
        }
        let word = |register: u32| {
            let at = register as usize * 16;
            page.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
        };
        let vectors = |first: u32| Vectors(std::array::from_fn(|i| word(first + i as u32)));
        self.tpr = word(TPR) as u8;
        self.ldr = word(LDR) & 0xff00_0000;
        self.dfr = word(DFR) | 0x0fff_ffff;
        self.svr = word(SVR) & SVR_BITS;
        (self.isr, self.tmr, self.irr) = (vectors(ISR), vectors(TMR), vectors(IRR));
        (self.esr, self.errors) = (word(ESR) & 0xff, word(ESR) >> 16 & 0xff);
        self.icr = u64::from(word(ICR_HIGH)) << 32 | u64::from(word(ICR_LOW) & ICR_BITS);
        for (entry, (lvt, bits)) in self.lvt.iter_mut().zip(LVT_BITS).enumerate() {
            *lvt = word(LVT_FIRST + entry as u32) & bits;
        }
        let mode = Mode::from_lvt(self.lvt(Lvt::Timer));
        self.timer = ApicTimer::load(mode, word(TIMER_INITIAL), word(TIMER_DIVIDE));
        self.timer.continue_from(word(TIMER_CURRENT), now);
        self.latched = Latched::from_word(word(SAVED_LATCHES));
        self.enter_x2apic();
        Ok(())
    }
}
