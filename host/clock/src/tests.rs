use super::*;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc;

fn log_timer(clock: &VirtualClock, log: &Arc<Mutex<Vec<(u64, u32)>>>, name: u32) -> Timer {
    let (handle, log) = (clock.clone(), log.clone());
    clock.timer(move || log.lock().unwrap().push((handle.now(), name)))
}

#[test]
fn a_step_runs_each_timer_at_its_own_time_and_in_order() {
    let clock = VirtualClock::manual();
    let log = Arc::new(Mutex::new(Vec::new()));
    let timers: Vec<Timer> = (0..3).map(|i| log_timer(&clock, &log, i)).collect();
    timers[0].arm(500);
    timers[1].arm(20);
    timers[2].arm(501);
    assert_eq!(clock.next_deadline(), Some(20));
    assert_eq!(clock.step(500), Ok(500));
    assert_eq!(*log.lock().unwrap(), [(20, 1), (500, 0)]);
    assert_eq!(clock.step_to_next(), Ok(501));
    assert_eq!(*log.lock().unwrap(), [(20, 1), (500, 0), (501, 2)]);
    assert_eq!(clock.step_to_next(), Err(ClockError::NoDeadline));
    assert_eq!(clock.now(), 501);
}

#[test]
fn a_callback_can_rearm_its_own_timer() {
    let clock = VirtualClock::manual();
    let ticks = Arc::new(AtomicU64::new(0));
    let timer = Arc::new_cyclic(|weak: &std::sync::Weak<Timer>| {
        let (weak, clock2, ticks) = (weak.clone(), clock.clone(), ticks.clone());
        clock.timer(move || {
            ticks.fetch_add(1, Ordering::SeqCst);
            weak.upgrade().unwrap().arm(clock2.now() + 10);
        })
    });
    timer.arm(10);
    clock.step(105).unwrap();
    assert_eq!((ticks.load(Ordering::SeqCst), timer.deadline()), (10, Some(110)));
}

#[test]
fn a_timer_that_always_rearms_for_the_past_does_not_hold_up_the_clock() {
    let clock = VirtualClock::manual();
    let timer = Arc::new_cyclic(|weak: &std::sync::Weak<Timer>| {
        let weak = weak.clone();
        clock.timer(move || weak.upgrade().unwrap().arm(0))
    });
    timer.arm(5);
    assert_eq!(clock.step(2), Ok(2));
    assert_eq!(clock.step(8), Ok(10));
    assert!(clock.run_expired());
    assert_eq!(clock.host_wait(), Some(Duration::ZERO));
}

#[test]
fn a_cancelled_or_dropped_timer_does_not_run() {
    let clock = VirtualClock::manual();
    let log = Arc::new(Mutex::new(Vec::new()));
    let (first, second) = (log_timer(&clock, &log, 1), log_timer(&clock, &log, 2));
    first.arm(10);
    second.arm(10);
    first.cancel();
    drop(second);
    assert_eq!(clock.next_deadline(), None);
    clock.step(20).unwrap();
    assert!(log.lock().unwrap().is_empty());
}

#[test]
fn callbacks_cannot_step_their_clock() {
    let clock = VirtualClock::manual();
    let (sender, receiver) = mpsc::channel();
    let timer = clock.timer({
        let clock = clock.clone();
        move || sender.send((clock.step(1), clock.run_expired())).unwrap()
    });
    timer.arm(1);
    clock.step(1).unwrap();
    assert_eq!(receiver.recv().unwrap(), (Err(ClockError::Reentrant), false));
}

#[test]
fn a_stopped_clock_runs_no_timer_and_refuses_steps() {
    let clock = VirtualClock::manual();
    let log = Arc::new(Mutex::new(Vec::new()));
    let timer = log_timer(&clock, &log, 7);
    timer.arm(0);
    clock.stop();
    assert!(clock.run_expired());
    assert_eq!((clock.step(1), clock.host_wait()), (Err(ClockError::Stopped), None));
    clock.resume();
    assert_eq!(clock.host_wait(), Some(Duration::ZERO));
    assert!(clock.run_expired());
    assert_eq!(*log.lock().unwrap(), [(0, 7)]);
}

#[test]
fn a_step_beyond_the_end_of_time_is_refused() {
    let clock = VirtualClock::manual();
    clock.set(100);
    let refused = Err(ClockError::Overflow { now_ns: 100, by_ns: u64::MAX - 100 });
    assert_eq!(clock.step(u64::MAX - 100), refused);
    assert_eq!(clock.step(u64::MAX - 101), Ok(u64::MAX - 1));
}

#[test]
fn a_host_clock_cannot_be_stepped() {
    let clock = VirtualClock::host();
    clock.resume();
    assert_eq!(clock.step(1), Err(ClockError::NotManual));
}

#[test]
fn a_host_clock_stands_still_while_stopped_and_goes_on_from_there() {
    let clock = VirtualClock::host();
    assert_eq!((clock.now(), clock.is_running()), (0, false));
    clock.set(1 << 40);
    clock.resume();
    while clock.now() == 1 << 40 {}
    clock.stop();
    let stood = clock.now();
    assert!(stood > 1 << 40 && stood < (1 << 40) + 3_600_000_000_000, "{stood}");
    assert_eq!(clock.now(), stood);
    clock.set(5);
    assert_eq!((clock.now(), clock.is_running()), (5, false));
}

#[test]
fn no_reader_sees_time_go_back_across_stops() {
    let clock = VirtualClock::host();
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let reader = std::thread::spawn({
        let (clock, done) = (clock.clone(), done.clone());
        move || {
            let mut last = 0;
            while !done.load(Ordering::SeqCst) {
                let now = clock.now();
                assert!(now >= last, "{now} after {last}");
                last = now;
            }
        }
    });
    for _ in 0..20_000 {
        clock.resume();
        clock.stop();
    }
    done.store(true, Ordering::SeqCst);
    reader.join().unwrap();
}

#[test]
fn listeners_hear_of_earlier_deadlines_and_of_starts_only() {
    let clock = VirtualClock::manual();
    let heard = Arc::new(AtomicU64::new(0));
    let listener = clock.on_change({
        let heard = heard.clone();
        move || {
            heard.fetch_add(1, Ordering::SeqCst);
        }
    });
    let (early, late) = (clock.timer(|| ()), clock.timer(|| ()));
    late.arm(100);
    early.arm(50);
    assert_eq!(heard.load(Ordering::SeqCst), 2);
    late.arm(70);
    early.cancel();
    assert_eq!(heard.load(Ordering::SeqCst), 2);
    clock.stop();
    clock.resume();
    assert_eq!(heard.load(Ordering::SeqCst), 4);
    drop(listener);
    early.arm(1);
    assert_eq!(heard.load(Ordering::SeqCst), 4);
}

#[test]
fn the_wait_of_a_host_clock_ends_at_the_deadline() {
    let clock = VirtualClock::host();
    let timer = clock.timer(|| ());
    timer.arm(1 << 50);
    assert_eq!(clock.host_wait(), None);
    clock.resume();
    let wait = clock.host_wait().unwrap().as_nanos() as u64;
    assert!(wait <= 1 << 50 && wait > (1 << 50) - 3_600_000_000_000);
    timer.arm(0);
    assert_eq!(clock.host_wait(), Some(Duration::ZERO));
}

#[test]
fn a_time_of_day_goes_with_its_clock() {
    let clock = VirtualClock::manual();
    clock.set(1000);
    let utc = UtcClock::following(&clock, 1_700_000_000_000_000_000);
    clock.step(234).unwrap();
    assert_eq!(utc.utc_now_ns(), 1_700_000_000_000_000_234);
    assert_eq!(utc.deadline(&clock, 1_700_000_000_000_001_234), 2234);
    assert_eq!(utc.deadline(&clock, 0), 0);
}

#[test]
fn a_time_of_day_on_the_host_keeps_its_offset() {
    let utc = UtcClock::following_host(0);
    assert!(utc.virtual_clock().is_none());
    assert!(utc.utc_now_ns() >= 0 && utc.utc_now_ns() < 3_600_000_000_000);
}
