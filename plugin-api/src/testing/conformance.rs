//! What every device should pass: it survives a guest that does anything, its state makes the journey, a reset is a
//! reset, and a damaged state is refused or harmless.

use super::device::{SavedState, TestDevice};
use super::host::TestHost;
use super::random::TestRandom;
use super::virtio::{DESC_WRITE, TestVirtio};
use crate::{Device, ResetKind, VirtioDevice};

const RUNS: u64 = 12;
const STEPS: u64 = 1500;

/// Checks a device on hosts that `host` makes. Panics with the seed of the run that failed.
///
/// * Random register accesses of all sizes, input, time and resets do not break it.
/// * If it is migratable: what a device saves, loads and saves again is the same. Two resets in a row leave the state of
///   one. A state with flipped or missing bytes is refused, or leaves a device that still does not break.
#[track_caller]
pub fn check<D: Device>(host: impl Fn() -> TestHost, properties: &[(&str, &str)]) {
    check_each(|| Subject::Plain(TestDevice::new::<D>(&host(), properties).expect("the device can be made")));
}

/// Checks a virtio device as [`check`] does, with random chains in its queues instead of register accesses.
#[track_caller]
pub fn check_virtio<D: VirtioDevice>(host: impl Fn() -> TestHost, properties: &[(&str, &str)]) {
    check_each(|| {
        let mut device = TestVirtio::new::<D>(&host(), properties).expect("the device can be made");
        device.start(u64::MAX).expect("the device can be started");
        Subject::Virtio(device)
    });
}

enum Subject {
    Plain(TestDevice),
    Virtio(TestVirtio),
}

impl Subject {
    fn device(&mut self) -> &mut TestDevice {
        match self {
            Self::Plain(d) => d,
            Self::Virtio(d) => d,
        }
    }
    fn successor(&self) -> Self {
        match self {
            Self::Plain(d) => Self::Plain(d.successor().expect("a second device can be made")),
            Self::Virtio(d) => Self::Virtio(d.successor().expect("a second device can be made")),
        }
    }
    #[track_caller]
    fn assert_whole(&mut self, when: &str) {
        if let Some(why) = self.device().host().broken() {
            panic!("the device broke {when}: {why}");
        }
    }

    fn reset(&mut self) {
        match self {
            Self::Plain(d) => d.reset(ResetKind::Warm),
            Self::Virtio(d) => d.reset(ResetKind::Warm),
        }
    }
    /// The driver begins, where there is one.
    fn start(&mut self, features: u64) {
        if let Self::Virtio(d) = self {
            let _ = d.start(features);
        }
    }

    fn act(&mut self, random: &mut TestRandom) {
        match random.below(12) {
            0 => self.device().advance(random_ns(random)),
            1 => self.type_something(random),
            2 => self.device().run(),
            3 if random.one_in(40) => {
                self.reset();
                self.start(random.any());
            }
            3 if random.one_in(20) => {
                self.device().set_running(false);
                self.device().run();
                self.device().set_running(true);
            }
            _ => match self {
                Self::Plain(d) => access(d, random),
                Self::Virtio(d) => drive(d, random),
            },
        }
    }

    fn type_something(&mut self, random: &mut TestRandom) {
        let ids: Vec<_> = self.device().host().0.state().chardevs.keys().cloned().collect();
        for id in ids {
            let mut input = vec![0; random.below(20) as usize];
            random.fill(&mut input);
            self.device().type_in(&id, &input);
            let room = [None, Some(0), Some(random.below(10) as usize)][random.below(3) as usize];
            self.device().host().set_output_room(&id, room);
        }
    }
}

/// Mostly short times, now and then hours.
fn random_ns(random: &mut TestRandom) -> u64 {
    let digits = random.below(44);
    random.below(1 << digits)
}

/// One access to a register.
fn access(device: &mut TestDevice, random: &mut TestRandom) {
    let regions = device.host().0.state().regions.clone();
    let count = regions.len() as u64;
    let Some(region) = regions.get(random.below(count) as usize) else { return };
    let index = regions.iter().position(|r| std::ptr::eq(r, region)).unwrap_or(0) as u32;
    let (offset, size) = (random.below(region.len), 1 << random.below(4));
    if random.one_in(2) {
        device.read(index, offset, size);
    } else {
        let digits = random.below(64);
        device.write(index, offset, size, random.any() >> digits);
    }
}

/// One act of a driver that keeps few of the rules.
fn drive(device: &mut TestVirtio, random: &mut TestRandom) {
    let queues = device.queue_count() as u64;
    let queue = random.below(queues) as u16;
    match random.below(10) {
        0 => {
            let mut data = vec![0; random.below(16) as usize];
            device.config_bytes(random.below(300) as u32, &mut data);
        }
        1 => device.write_config(random.below(300) as u32, &random.any().to_le_bytes()[..1 << random.below(4)]),
        2 if random.one_in(8) => {
            device.driver_reset();
            // Requests on their way complete into a device that has no queues.
            device.run();
            let _ = device.start(random.any());
        }
        3 => device.kick(random.below(queues + 2) as u16),
        4 if random.one_in(8) => device.offer(queue, random.any() as u16),
        _ => {
            device.used(queue);
            offer_anything(device, queue, random);
            device.kick(queue);
        }
    }
    if device.needs_reset() {
        device.driver_reset();
        device.run();
        let _ = device.start(random.any());
    }
}

fn offer_anything(device: &mut TestVirtio, queue: u16, random: &mut TestRandom) {
    let ram = device.host().0.ram.len();
    let mut parts = Vec::new();
    for _ in 0..=random.below(5) {
        let len = [16, 1, 512, random.below(10_000) as u32, random.any() as u32][random.below(5) as usize];
        let addr = match random.below(8) {
            0 => random.any(),
            1 => ram - random.below(100),
            _ => device.allocate(u64::from(len.min(1 << 16))),
        };
        let flags = [0, DESC_WRITE, DESC_WRITE, random.any() as u16][random.below(4) as usize];
        parts.push((addr, len, flags));
    }
    // Something that may look like the header of a request.
    let header = [random.below(16) as u8, 0, 0, 0, 0, 0, 0, 0, random.below(8) as u8];
    let memory = device.host().memory();
    let _ = crate::memory::Bytes::write_slice(&*memory, &header, crate::memory::GuestAddress(parts[0].0));
    if device.room(queue) >= parts.len() {
        device.add_parts(queue, &parts);
    }
}

#[track_caller]
fn check_each(make: impl Fn() -> Subject) {
    for seed in 0..RUNS {
        let mut random = TestRandom::new(seed);
        let mut subject = make();
        for step in 0..STEPS {
            subject.act(&mut random);
            subject.assert_whole(&format!("in step {step} of seed {seed}"));
        }
        if subject.device().description().contains(r#""migratable":true"#) {
            check_journey(&mut subject, seed);
            check_damage(&mut subject, &mut random, seed);
            check_reset(&mut subject, seed);
        }
    }
}

#[track_caller]
fn stopped_state(subject: &mut Subject) -> SavedState {
    subject.device().set_running(false);
    subject.device().run();
    subject.device().save().expect("a migratable device can be saved")
}

#[track_caller]
fn check_journey(subject: &mut Subject, seed: u64) {
    let before = stopped_state(subject);
    let mut next = subject.successor();
    next.device().load(&before).expect("a device loads what a device like it has saved");
    next.device().set_running(false);
    assert_eq!(before, next.device().save().expect("saves again"), "seed {seed}: the state changed on the journey");
    subject.device().set_running(true);
    subject.device().run();
}

#[track_caller]
fn check_reset(subject: &mut Subject, seed: u64) {
    // Input that still waits would come in between.
    subject.device().host().0.state().chardevs.values_mut().for_each(|c| c.input.clear());
    subject.reset();
    let once = stopped_state(subject);
    subject.device().set_running(true);
    subject.reset();
    let twice = stopped_state(subject);
    assert_eq!(once, twice, "seed {seed}: a second reset changed the state");
}

#[track_caller]
fn check_damage(subject: &mut Subject, random: &mut TestRandom, seed: u64) {
    let state = stopped_state(subject);
    for _ in 0..20 {
        let mut damaged = state.clone();
        let count = damaged.sections.len() as u64;
        let Some((_, _, data)) = damaged.sections.get_mut(random.below(count) as usize) else { return };
        match random.below(3) {
            0 => data.truncate(random.below(data.len() as u64) as usize),
            1 => data.extend(random.any().to_le_bytes()),
            _ => {
                for _ in 0..=random.below(4) {
                    let at = random.below(data.len() as u64) as usize;
                    if let Some(byte) = data.get_mut(at) {
                        *byte ^= random.any() as u8;
                    }
                }
            }
        }
        let mut next = subject.successor();
        let loaded = next.device().load(&damaged);
        next.assert_whole(&format!("while it loaded a damaged state, seed {seed}"));
        if loaded.is_err() {
            continue;
        }
        next.device().set_running(true);
        next.device().run();
        for _ in 0..100 {
            next.act(random);
            next.assert_whole(&format!("after it had loaded a damaged state, seed {seed}"));
        }
    }
    subject.device().set_running(true);
    subject.device().run();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{StateReader, StateWriter};
    use crate::*;

    /// A register of one byte, with a fault of the kind `FAULT`.
    struct Register<const FAULT: u8>(u8);

    const NONE: u8 = 0;
    const PANICS: u8 = 1;
    const FORGETS: u8 = 2;
    const RESETS_LATE: u8 = 3;
    const TRUSTS: u8 = 4;

    impl<const FAULT: u8> Device for Register<FAULT> {
        const INFO: DeviceInfo = DeviceInfo::new("register", BusKind::Isa, Category::Misc, "A register").migratable(1);
        type Config = ();

        fn new(_: (), _: &Context) -> Result<Self> {
            Ok(Self(0))
        }
        fn realize(&mut self, bus: &mut Bus, _: &Context) -> Result<()> {
            bus.pio(0x100, 1)?;
            Ok(())
        }
        fn reset(&mut self, _: ResetKind, _: &Context) {
            self.0 = if FAULT == RESETS_LATE { self.0 / 2 } else { 0 };
        }
        fn read(&mut self, _: Region, _: u64, _: u8, _: &Context) -> u64 {
            u64::from([1u8; 101][usize::from(self.0)])
        }
        fn write(&mut self, _: Region, _: u64, _: u8, value: u64, _: &Context) {
            assert!(FAULT != PANICS || value as u8 != 77, "77 is too much");
            self.0 = value as u8 % 101;
        }
        fn save(&mut self, state: &mut StateWriter) -> Result<()> {
            state.section("register", 1, |s| s.u8(self.0));
            Ok(())
        }
        fn load(&mut self, state: &StateReader, _: &Context) -> Result<()> {
            let value = state.section("register", 1)?.u8()?;
            if value > 100 && FAULT != TRUSTS {
                return Err(Error::new(format!("the saved value is {value}, allowed is 0..=100")));
            }
            self.0 = if FAULT == FORGETS { 0 } else { value };
            Ok(())
        }
    }

    #[test]
    fn a_sound_device_passes() {
        check::<Register<NONE>>(TestHost::new, &[]);
    }

    #[test]
    #[should_panic(expected = "77 is too much")]
    fn a_device_that_panics_is_found() {
        check::<Register<PANICS>>(TestHost::new, &[]);
    }

    #[test]
    #[should_panic(expected = "the state changed on the journey")]
    fn a_device_that_forgets_is_found() {
        check::<Register<FORGETS>>(TestHost::new, &[]);
    }

    #[test]
    #[should_panic(expected = "a second reset changed the state")]
    fn a_reset_that_is_none_is_found() {
        check::<Register<RESETS_LATE>>(TestHost::new, &[]);
    }

    #[test]
    #[should_panic(expected = "after it had loaded a damaged state")]
    fn a_device_that_trusts_what_it_loads_is_found() {
        check::<Register<TRUSTS>>(TestHost::new, &[]);
    }
}
