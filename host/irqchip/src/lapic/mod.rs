//! The local APIC in xAPIC and x2APIC mode (SDM volume 3, chapter 11, "Advanced Programmable Interrupt Controller").
//!
//! The timer counts at 1 GHz before its divider, and the time-stamp counter that TSC deadlines refer to is the virtual
//! clock in nanoseconds. A processor whose counter has an offset translates deadlines on their way in and out.
//!
//! Left out: system management interrupts, the CMCI, thermal and performance counter sources (their LVT entries hold
//! what is written), suppression of EOI broadcasts.

mod registers;
mod timer;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use cardcage_accel::{ApicEvent, GeneralProtection, LocalApic, VcpuSignal};
use cardcage_clock::{Timer, VirtualClock};

use crate::message::{ApicBus, DeliveryMode, Destination, Message};
use registers::{BASE_BSP, BASE_ENABLE, BASE_X2APIC, Effect, Lvt, Registers};

/// IA32_TSC_DEADLINE.
const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// First x2APIC register's MSR.
const MSR_X2APIC: u32 = 0x800;
/// Bits of IA32_APIC_BASE that must be zero: 0 to 7, 9, and those beyond the largest physical address.
const BASE_RESERVED: u64 = 0xfff0_0000_0000_02ff;
/// The shortest distance between two ticks of a periodic timer that are delivered: what a guest cannot tell from a
/// busy host, and a bound on what it can make the host do.
const MIN_PERIOD_NS: u64 = 20_000;

/// The local APIC of one vCPU. See the module.
pub struct Lapic {
    id: u32,
    bootstrap: bool,
    clock: VirtualClock,
    bus: Arc<ApicBus>,
    registers: Mutex<Registers>,
    timer: OnceLock<Timer>,
    signal: OnceLock<Arc<VcpuSignal>>,
}

impl Lapic {
    /// The local APIC with this id, as after power-on. The bootstrap processor's starts at once, others wait for a
    /// start-up IPI.
    pub(crate) fn new(id: u32, bootstrap: bool, clock: &VirtualClock, bus: &Arc<ApicBus>) -> Arc<Self> {
        let lapic = Arc::new(Self {
            id,
            bootstrap,
            clock: clock.clone(),
            bus: bus.clone(),
            registers: Mutex::new(Registers::power_on(id, bootstrap)),
            timer: OnceLock::new(),
            signal: OnceLock::new(),
        });
        let weak = Arc::downgrade(&lapic);
        let timer = clock.timer(move || {
            if let Some(lapic) = weak.upgrade() {
                lapic.timer_expired();
            }
        });
        let _ = lapic.timer.set(timer);
        bus.connect_lapic(&lapic);
        lapic
    }

    /// The APIC id.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Says whose attention to call for. The first call counts.
    pub fn connect(&self, signal: Arc<VcpuSignal>) {
        let _ = self.signal.set(signal);
        self.call_for_attention();
    }

    /// The state after power-on or a reset of the machine.
    pub fn reset(&self) {
        let mut registers = self.lock();
        *registers = Registers::power_on(self.id, self.bootstrap);
        self.arm(&registers);
    }

    /// A non-maskable interrupt at LINT1, where the machine's NMI line is.
    pub fn nmi(&self) {
        let mut registers = self.lock();
        if registers.is_enabled() {
            deliver_local(&mut registers, Lvt::Lint1);
        } else {
            registers.latched.nmi = true;
        }
        drop(registers);
        self.call_for_attention();
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(|p| p.into_inner())
    }

    fn call_for_attention(&self) {
        if let Some(signal) = self.signal.get() {
            signal.attention();
        }
    }

    /// Whether a message is for this local APIC.
    pub(crate) fn matches(&self, destination: Destination) -> bool {
        let registers = self.lock();
        registers.is_enabled()
            && match destination {
                Destination::All => true,
                Destination::AllBut(id) => id != self.id,
                Destination::Physical(id) => id == self.id,
                Destination::Logical { mda, narrow } => registers.matches_logical(mda, narrow),
            }
    }

    /// The priority by which the least busy processor is found; `None` if this one takes no fixed interrupts.
    pub(crate) fn arbitration_priority(&self) -> Option<u8> {
        let registers = self.lock();
        registers.is_software_enabled().then(|| registers.processor_priority())
    }

    /// Takes a message that is for this local APIC.
    pub(crate) fn accept(&self, message: &Message) {
        accept(&mut self.lock(), message.mode, message.vector, message.level_triggered);
        self.call_for_attention();
    }

    /// The output of the 8259 pair changed.
    pub(crate) fn set_lint0(&self, level: bool) {
        if level {
            let mut registers = self.lock();
            if registers.is_enabled() {
                deliver_local(&mut registers, Lvt::Lint0);
            }
            drop(registers);
            self.call_for_attention();
        }
    }

    fn timer_expired(&self) {
        let mut registers = self.lock();
        if registers.timer.expire(self.clock.now()) {
            deliver_local(&mut registers, Lvt::Timer);
        }
        self.arm(&registers);
        drop(registers);
        self.call_for_attention();
    }

    fn arm(&self, registers: &Registers) {
        if let Some(timer) = self.timer.get() {
            timer.arm(registers.timer.wake_at().unwrap_or(u64::MAX));
        }
    }

    /// Does what a register write asks for beyond the registers; `registers` is given up for it.
    fn carry_out(&self, registers: MutexGuard<'_, Registers>, effect: Effect) {
        if effect == Effect::Timer {
            self.arm(&registers);
        }
        let attention = registers.interrupt_waits() || (registers.takes_external() && self.bus.pic_asserts());
        drop(registers);
        match effect {
            Effect::EndOfLevel(vector) => self.bus.end_of_interrupt(vector),
            Effect::Send(message) => self.bus.deliver(&message),
            Effect::None | Effect::Timer => {}
        }
        if attention {
            self.call_for_attention();
        }
    }
}

/// Takes an interrupt, whatever its source.
fn accept(registers: &mut Registers, mode: DeliveryMode, vector: u8, level_triggered: bool) {
    match mode {
        DeliveryMode::Fixed | DeliveryMode::LowestPriority => registers.request(vector, level_triggered),
        DeliveryMode::Nmi => registers.latched.nmi = true,
        DeliveryMode::ExtInt => registers.latched.external = true,
        DeliveryMode::Init => {
            registers.latched.init = true;
            registers.latched.startup = None;
        }
        DeliveryMode::Startup if registers.waits_for_startup || registers.latched.init => {
            registers.latched.startup = Some(vector);
        }
        DeliveryMode::Startup | DeliveryMode::Smi | DeliveryMode::Reserved => {}
    }
}

/// Delivers an interrupt of the local APIC's own through its LVT entry. ExtINT is not latched here: the 8259 pair holds
/// its request.
fn deliver_local(registers: &mut Registers, source: Lvt) {
    let lvt = registers.lvt(source);
    if lvt & registers::LVT_MASKED != 0 {
        return;
    }
    let mode = match source {
        Lvt::Timer | Lvt::Error => DeliveryMode::Fixed,
        _ => DeliveryMode::from_register(lvt),
    };
    if matches!(mode, DeliveryMode::Fixed | DeliveryMode::Nmi) {
        accept(registers, mode, lvt as u8, false);
    }
}

impl LocalApic for Lapic {
    fn pending(&self, interrupts_enabled: bool) -> Option<ApicEvent> {
        let registers = self.lock();
        if registers.latched.init {
            return Some(ApicEvent::Init);
        }
        if registers.waits_for_startup {
            return registers.latched.startup.map(ApicEvent::Startup);
        }
        if registers.latched.nmi {
            return Some(ApicEvent::Nmi);
        }
        let external = || registers.latched.external || (registers.takes_external() && self.bus.pic_asserts());
        (interrupts_enabled && (registers.interrupt_waits() || external())).then_some(ApicEvent::Interrupt)
    }

    fn taken(&self, event: ApicEvent) {
        let mut registers = self.lock();
        match event {
            ApicEvent::Init => {
                registers.init();
                self.arm(&registers);
            }
            ApicEvent::Startup(_) => {
                registers.waits_for_startup = false;
                registers.latched.startup = None;
            }
            ApicEvent::Nmi => registers.latched.nmi = false,
            ApicEvent::Interrupt => {}
        }
    }

    fn acknowledge(&self) -> Option<u8> {
        let mut registers = self.lock();
        let latched = std::mem::take(&mut registers.latched.external);
        if latched || (registers.takes_external() && self.bus.pic_asserts()) {
            drop(registers);
            return self.bus.pic_acknowledge();
        }
        registers.acknowledge()
    }

    fn cr8(&self) -> u8 {
        self.lock().tpr >> 4
    }

    fn set_cr8(&self, priority: u8) {
        let mut registers = self.lock();
        registers.tpr = (priority & 0xf) << 4;
        self.carry_out(registers, Effect::None);
    }

    fn base(&self) -> u64 {
        self.lock().base
    }

    fn set_base(&self, value: u64) -> Result<(), GeneralProtection> {
        let mut registers = self.lock();
        if value & BASE_RESERVED != 0 || !registers::is_legal_change(registers.base, value) {
            return Err(GeneralProtection);
        }
        registers.set_base(value);
        self.carry_out(registers, Effect::Timer);
        Ok(())
    }

    fn mmio_read(&self, offset: u32) -> u32 {
        let mut registers = self.lock();
        match registers.base & (BASE_ENABLE | BASE_X2APIC) {
            BASE_ENABLE => {}
            _ => return u32::MAX,
        }
        if offset & 0xf != 0 {
            return 0;
        }
        let now = self.clock.now();
        registers.read(offset >> 4, now).unwrap_or_else(|| {
            registers.illegal_register();
            0
        })
    }

    fn mmio_write(&self, offset: u32, value: u32) {
        let mut registers = self.lock();
        if registers.base & (BASE_ENABLE | BASE_X2APIC) != BASE_ENABLE || offset & 0xf != 0 {
            return;
        }
        let now = self.clock.now();
        let effect = registers.write(offset >> 4, value, now).unwrap_or_else(|| {
            registers.illegal_register();
            Effect::None
        });
        self.carry_out(registers, effect);
    }

    fn read_msr(&self, msr: u32) -> Result<u64, GeneralProtection> {
        let registers = self.lock();
        if msr == MSR_TSC_DEADLINE {
            return Ok(registers.timer.tsc_deadline());
        }
        if !registers.is_x2apic() {
            return Err(GeneralProtection);
        }
        let register = msr.wrapping_sub(MSR_X2APIC);
        registers.read_x2apic(register, self.clock.now()).ok_or(GeneralProtection)
    }

    fn write_msr(&self, msr: u32, value: u64) -> Result<(), GeneralProtection> {
        let mut registers = self.lock();
        let now = self.clock.now();
        let effect = if msr == MSR_TSC_DEADLINE {
            registers.timer.set_tsc_deadline(value);
            Effect::Timer
        } else if registers.is_x2apic() {
            registers.write_x2apic(msr.wrapping_sub(MSR_X2APIC), value, now).ok_or(GeneralProtection)?
        } else {
            return Err(GeneralProtection);
        };
        self.carry_out(registers, effect);
        Ok(())
    }

    fn save(&self) -> Vec<u8> {
        self.lock().to_page(self.clock.now())
    }

    fn restore(&self, page: &[u8], base: u64, waits_for_startup: bool) -> Result<(), String> {
        if base & BASE_RESERVED != 0 || base & (BASE_ENABLE | BASE_X2APIC) == BASE_X2APIC {
            return Err(format!("IA32_APIC_BASE {base:#x} has reserved bits set"));
        }
        let mut restored = Registers::power_on(self.id, base & BASE_BSP != 0);
        restored.base = base;
        restored.waits_for_startup = waits_for_startup;
        if !page.is_empty() {
            restored.load_page(page, self.clock.now())?;
        }
        let mut registers = self.lock();
        *registers = restored;
        self.arm(&registers);
        drop(registers);
        self.call_for_attention();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
