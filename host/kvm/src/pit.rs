//! The kernel's 8254 while the machine stands still.
//!
//! The kernel's timer counts the host's time. It is silenced for the pause: channel 0 has no timer while the HPET is
//! said to stand in for it. Afterwards a periodic channel begins a period anew; a one-shot that was on its way goes on
//! with what was left.

use kvm_bindings::{KVM_PIT_FLAGS_HPET_LEGACY, kvm_pit_state2};

const FREQUENCY_KHZ: f64 = 1193.182;
/// Modes in which channel 0 of KVM's timer fires once: terminal count, one-shot, software strobe.
const ONCE: [u8; 3] = [0, 1, 4];
/// Modes in which it fires again and again.
const PERIODIC: [u8; 2] = [2, 3];

/// The clock of `count_load_time`.
pub(crate) fn now_ns() -> i64 {
    i64::try_from(cardcage_clock::host_monotonic_ns()).unwrap_or(i64::MAX)
}

/// The state with channel 0 silent.
pub(crate) fn silenced(pit: &kvm_pit_state2) -> kvm_pit_state2 {
    kvm_pit_state2 { flags: pit.flags | KVM_PIT_FLAGS_HPET_LEGACY, ..*pit }
}

/// The state from which channel 0 goes on after standing still since `now_ns`; `None` if it is silent anyway.
pub(crate) fn at_rest(pit: &kvm_pit_state2, now_ns: i64) -> Option<kvm_pit_state2> {
    let mut rest = *pit;
    let channel = &mut rest.channels[0];
    if ONCE.contains(&channel.mode) {
        let elapsed_ms = now_ns.saturating_sub(channel.count_load_time) as f64 / 1e6;
        // An elapsed time beyond all counts saturates.
        let ticks = (elapsed_ms.max(0.0) * FREQUENCY_KHZ) as u32;
        channel.count = channel.count.checked_sub(ticks).filter(|&left| left > 0)?;
        return Some(rest);
    }
    PERIODIC.contains(&channel.mode).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pit(mode: u8, count: u32) -> kvm_pit_state2 {
        let mut pit = kvm_pit_state2::default();
        (pit.channels[0].mode, pit.channels[0].count, pit.channels[0].count_load_time) = (mode, count, 1000);
        pit
    }

    #[test]
    fn a_one_shot_goes_on_with_what_was_left() {
        let rest = at_rest(&pit(0, 0x1_0000), 1000 + 25_000_000).expect("there is something left");
        assert_eq!(rest.channels[0].count, 0x1_0000 - 29_829);
        assert_eq!(rest.flags, 0, "or no count would start the timer again");
    }

    #[test]
    fn a_one_shot_that_has_fired_does_not_fire_again() {
        assert_eq!(at_rest(&pit(4, 1000), 1000 + 25_000_000), None);
        assert_eq!(at_rest(&pit(4, 1000), i64::MAX), None);
    }

    #[test]
    fn a_periodic_channel_keeps_its_period_and_an_unused_one_is_left_alone() {
        assert_eq!(at_rest(&pit(2, 1193), i64::MAX), Some(pit(2, 1193)));
        assert_eq!(at_rest(&pit(0xff, 0), i64::MAX), None);
    }
}
