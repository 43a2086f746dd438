//! `mc146818rtc`: the real-time clock of a PC, with 128 bytes of CMOS RAM.
//!
//! The chip is in [`rtc`]; this file connects it to ports 0x70 and 0x71, an interrupt and a timer, and fills in the bytes
//! that a PC's firmware expects: memory sizes and equipment. Names and properties are QEMU's. Left out: the NMI mask in
//! bit 7 of port 0x70 is kept and has no effect; no square wave; no daylight saving; no second bank at 0x72.

pub mod calendar;
pub mod rtc;

use cardcage_plugin_api::state::{StateReader, StateWriter};
use cardcage_plugin_api::*;
use rtc::{Now, Rtc};

/// CMOS RAM: equipment that the firmware finds (IBM AT).
const EQUIPMENT: u8 = 0x14;
/// A coprocessor and a PS/2 mouse; no floppy drives; display with a BIOS of its own.
const EQUIPMENT_VALUE: u8 = 0x06;
/// KiB below 1 MiB.
const BASE_MEMORY: u8 = 0x15;
/// KiB above 1 MiB, twice.
const EXTENDED_MEMORY: [u8; 2] = [0x17, 0x30];
/// 64 KiB units between 16 MiB and 4 GiB.
const MEMORY_ABOVE_16M: u8 = 0x34;
/// 64 KiB units above 4 GiB, three bytes.
const MEMORY_ABOVE_4G: u8 = 0x5b;
/// Number of processors beyond the first.
const MORE_CPUS: u8 = 0x5f;

/// Bounds of what a saved state may say, far beyond what a guest can cause.
const MAX_SECONDS: i64 = 1 << 40;
const MAX_CYCLES: u64 = 1 << 60;
const SECOND_NS: i128 = 1_000_000_000;

prop_enum! {
    /// What becomes of periodic interrupts that come while the one before waits.
    enum LostTickPolicy { Discard = "discard", Slew = "slew" }
}

/// What users can set.
#[derive(DeviceProperties)]
struct Config {
    /// Year from which the year and century bytes count. 2000 stands for a century byte that tells the truth, as on every
    /// PC; with others, it counts centuries from there
    #[prop(default = 2000, name = "base_year", range = 0..=9999)]
    base_year: i32,
    /// First port
    #[prop(default = "0x70")]
    iobase: u16,
    /// Interrupt
    #[prop(default = 8, range = 0..=15)]
    irq: u8,
    /// What becomes of periodic interrupts that the guest is too slow for: discard forgets them, slew sends them as soon
    /// as it has read register C
    #[prop(default = "discard", name = "lost_tick_policy")]
    lost_tick_policy: LostTickPolicy,
}

impl Config {
    fn base_year(&self) -> i64 {
        if self.base_year == 2000 { 0 } else { self.base_year.into() }
    }
    fn makes_up(&self) -> bool {
        self.lost_tick_policy == LostTickPolicy::Slew
    }
}

struct Clockwork {
    config: Config,
    rtc: Rtc,
    wires: Option<Wires>,
    set_by_guest: u64,
}

struct Wires {
    irq: Irq,
    timer: Timer,
    high: bool,
    deadline: Option<u64>,
}

fn now(ctx: &Context) -> Now {
    Now { virtual_ns: ctx.now(Clock::Virtual), rtc_ns: ctx.now(Clock::Rtc) }
}

impl Clockwork {
    fn update_wires(&mut self, now: Now) {
        let Some(wires) = &mut self.wires else { return };
        let high = self.rtc.interrupt();
        if high != wires.high {
            wires.high = high;
            wires.irq.set(high);
        }
        let deadline = self.rtc.deadline(now);
        if deadline != wires.deadline {
            wires.deadline = deadline;
            match deadline {
                Some(at) => wires.timer.arm(at),
                None => wires.timer.cancel(),
            }
        }
    }

    fn read_data(&mut self, now: Now) -> u8 {
        let acknowledges = self.rtc.selected() == rtc::REG_C;
        let value = self.rtc.read(now);
        if let Some(wires) = self.wires.as_mut().filter(|w| acknowledges && w.high) {
            // A tick that was lost may follow at once: it needs an edge of its own.
            wires.high = false;
            wires.irq.set(false);
        }
        value
    }

    fn write_data(&mut self, value: u8, now: Now, ctx: &Context) {
        if let Some(offset) = self.rtc.write(value, now) {
            self.set_by_guest = self.set_by_guest.saturating_add(1);
            ctx.emit("RTC_CHANGE", &json::Object::new().field("offset", offset));
        }
    }

    /// The bytes that tell firmware of the machine, after the memory map that `machine` describes.
    fn fill_ram(&mut self, machine: &str) {
        let number = |name| json::number(machine, name).unwrap_or(0);
        let (below, above) = (number("ram-below-4g"), number("ram-above-4g"));
        let capped = |units: u64| u16::try_from(units).unwrap_or(u16::MAX);
        let mut word = |at: u8, value: u16| {
            let [low, high] = value.to_le_bytes();
            self.rtc.set_ram(at, low);
            self.rtc.set_ram(at + 1, high);
        };
        word(BASE_MEMORY, capped((below >> 10).min(640)));
        for at in EXTENDED_MEMORY {
            word(at, capped(below.saturating_sub(1 << 20) >> 10));
        }
        word(MEMORY_ABOVE_16M, capped(below.saturating_sub(16 << 20) >> 16));
        let high_units = (above >> 16).min(0xff_ffff).to_le_bytes();
        for (at, byte) in (MEMORY_ABOVE_4G..).zip(&high_units[..3]) {
            self.rtc.set_ram(at, *byte);
        }
        self.rtc.set_ram(MORE_CPUS, u8::try_from(number("cpus").saturating_sub(1)).unwrap_or(u8::MAX));
        self.rtc.set_ram(EQUIPMENT, EQUIPMENT_VALUE);
    }
}

impl Device for Clockwork {
    const INFO: DeviceInfo =
        DeviceInfo::new("mc146818rtc", BusKind::Isa, Category::Misc, "Real-time clock with CMOS RAM").migratable(1);
    type Config = Config;

    fn new(config: Config, ctx: &Context) -> Result<Self> {
        let rtc = Rtc::new(config.base_year(), config.makes_up(), now(ctx));
        Ok(Self { config, rtc, wires: None, set_by_guest: 0 })
    }

    fn realize(&mut self, bus: &mut Bus, ctx: &Context) -> Result<()> {
        bus.pio(self.config.iobase, 2)?;
        let irq = bus.isa_irq(self.config.irq)?;
        bus.acpi("PNP0B00")?;
        self.fill_ram(&ctx.machine());
        self.wires = Some(Wires { irq, timer: ctx.timer(0), high: false, deadline: None });
        Ok(())
    }

    /// The battery keeps the time and the RAM: only the interrupts are reset.
    fn reset(&mut self, _: ResetKind, ctx: &Context) {
        let now = now(ctx);
        self.rtc.reset(now);
        self.update_wires(now);
    }

    fn read(&mut self, _: Region, offset: u64, size: u8, ctx: &Context) -> u64 {
        let now = now(ctx);
        let value = bytewise::read(offset, size, |at| if at == 1 { self.read_data(now) } else { 0xff });
        self.update_wires(now);
        value
    }

    fn write(&mut self, _: Region, offset: u64, size: u8, value: u64, ctx: &Context) {
        let now = now(ctx);
        bytewise::write(offset, size, value, |at, byte| match at {
            0 => self.rtc.select(byte),
            1 => self.write_data(byte, now, ctx),
            _ => {}
        });
        self.update_wires(now);
    }

    fn timer(&mut self, _: u64, ctx: &Context) {
        let now = now(ctx);
        if let Some(wires) = &mut self.wires {
            wires.deadline = None;
        }
        self.rtc.expire(now);
        self.update_wires(now);
    }

    /// While the machine stood, the real-time clock may have gone on.
    fn run_state(&mut self, running: bool, ctx: &Context) {
        if running {
            self.update_wires(now(ctx));
        }
    }

    fn save(&mut self, state: &mut StateWriter) -> Result<()> {
        let r = &self.rtc;
        state.section("registers", 1, |s| {
            s.u8(r.index);
            s.bytes(&r.cmos);
        });
        state.section("clock", 1, |s| {
            s.i64(r.offset_ns.div_euclid(SECOND_NS) as i64);
            s.u64(r.offset_ns.rem_euclid(SECOND_NS) as u64);
            s.i64(r.seen_second);
            s.u64(r.stopped_ns as u64);
            s.u64(r.tick_base);
            s.u64(r.lost_ticks);
            s.u8(r.made_up);
        });
        Ok(())
    }

    fn load(&mut self, state: &StateReader, ctx: &Context) -> Result<()> {
        let now = now(ctx);
        let mut rtc = Rtc::new(self.config.base_year(), self.config.makes_up(), now);
        let mut s = state.section("registers", 1)?;
        rtc.index = s.u8()?;
        rtc.cmos = s.bytes()?.try_into().map_err(|_| Error::new("the saved CMOS RAM does not have 128 bytes"))?;
        s.end()?;

        let mut s = state.section("clock", 1)?;
        let (seconds, nanoseconds) = (bounded(s.i64()?, "offset")?, s.u64()?);
        rtc.offset_ns = i128::from(seconds) * SECOND_NS + i128::from(nanoseconds % 1_000_000_000);
        rtc.seen_second = bounded(s.i64()?, "last second")?;
        rtc.stopped_ns = i128::from(s.u64()? % 1_000_000_000);
        rtc.tick_base = s.u64()?;
        if rtc.tick_base > MAX_CYCLES {
            return Err(Error::new(format!("the saved tick {} is beyond all time", rtc.tick_base)));
        }
        rtc.lost_ticks = s.u64()?;
        rtc.made_up = s.u8()?;
        s.end()?;
        self.rtc = rtc;
        self.update_wires(now);
        Ok(())
    }

    fn inspect(&self) -> json::Object {
        let r = &self.rtc;
        json::Object::new()
            .field("selected", r.selected())
            .field("register-a", r.cmos[usize::from(rtc::REG_A)])
            .field("register-b", r.cmos[usize::from(rtc::REG_B)])
            .field("register-c", r.cmos[usize::from(rtc::REG_C)])
            .field("offset-seconds", (r.offset_ns.div_euclid(SECOND_NS)) as i64)
            .field("lost-ticks", r.lost_ticks)
    }
    fn stats(&self) -> json::Object {
        json::Object::new().field("set-by-guest-times", self.set_by_guest)
    }
}

fn bounded(seconds: i64, what: &str) -> Result<i64> {
    if (-MAX_SECONDS..=MAX_SECONDS).contains(&seconds) {
        return Ok(seconds);
    }
    Err(Error::new(format!("the saved {what} is {seconds} seconds, which is beyond all time")))
}

plugin! { devices: [Clockwork] }

#[cfg(test)]
mod tests;
