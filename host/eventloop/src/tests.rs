use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;

/// Long enough for any machine; only reached when something is broken.
const LIMIT: Duration = Duration::from_secs(20);

fn wait<T>(receiver: &Receiver<T>) -> T {
    receiver.recv_timeout(LIMIT).expect("the callback came")
}

fn teller<T: Send + 'static>() -> (Arc<Mutex<Sender<T>>>, Receiver<T>) {
    let (sender, receiver) = channel();
    (Arc::new(Mutex::new(sender)), receiver)
}

#[test]
fn a_watched_descriptor_tells_of_input_until_it_is_unwatched() {
    let event_loop = EventLoop::new("test", None).unwrap();
    let handle = event_loop.handle();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let (tell, told) = teller();
    let fd = theirs.as_raw_fd();
    let stream = Mutex::new(theirs);
    handle
        .watch(fd, events::IN, move |events| {
            let mut byte = [0];
            stream.lock().unwrap().read_exact(&mut byte).unwrap();
            tell.lock().unwrap().send((events & events::IN, byte[0])).unwrap();
        })
        .unwrap();
    ours.write_all(&[7, 8]).unwrap();
    assert_eq!([wait(&told), wait(&told)], [(1, 7), (1, 8)], "level triggered");
    handle.set_interest(fd, 0).unwrap();
    ours.write_all(&[9]).unwrap();
    let (tell_deferred, deferred) = channel();
    handle.defer(move || tell_deferred.send(()).unwrap());
    wait(&deferred);
    assert!(told.try_recv().is_err());
    handle.set_interest(fd, events::IN).unwrap();
    assert_eq!(wait(&told), (1, 9));
    handle.unwatch(fd);
    assert!(handle.set_interest(fd, events::IN).is_err());
}

#[test]
fn a_paused_descriptor_is_silent_even_when_its_other_end_is_gone() {
    let event_loop = EventLoop::new("test", None).unwrap();
    let handle = event_loop.handle();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (tell, told) = teller();
    let (fd, pausing) = (theirs.as_raw_fd(), event_loop.handle());
    handle
        .watch(fd, 0, move |events| {
            pausing.set_interest(fd, 0).unwrap();
            tell.lock().unwrap().send(events & events::HUP).unwrap();
        })
        .unwrap();
    drop(ours);
    for _ in 0..2 {
        let (tell_deferred, deferred) = channel();
        handle.defer(move || tell_deferred.send(()).unwrap());
        wait(&deferred);
        assert!(told.try_recv().is_err());
        handle.set_interest(fd, events::IN).unwrap();
        assert_eq!(wait(&told), events::HUP);
    }
}

#[test]
fn deferred_calls_run_in_order_and_may_defer_more() {
    let event_loop = EventLoop::new("test", None).unwrap();
    let (tell, told) = channel();
    let (inner, again) = (event_loop.handle(), tell.clone());
    event_loop.handle().defer(move || {
        again.send(1).unwrap();
        let last = again.clone();
        inner.defer(move || last.send(3).unwrap());
    });
    event_loop.handle().defer(move || tell.send(2).unwrap());
    assert_eq!([wait(&told), wait(&told), wait(&told)], [1, 2, 3]);
}

#[test]
fn timers_of_the_clock_run_on_the_loop() {
    let clock = VirtualClock::host();
    let _event_loop = EventLoop::new("ticker", Some(&clock)).unwrap();
    let (tell, told) = teller();
    let timer = clock.timer(move || {
        tell.lock().unwrap().send(std::thread::current().name().map(str::to_string)).unwrap();
    });
    clock.resume();
    timer.arm(clock.now() + 2_000_000);
    assert_eq!(wait(&told).as_deref(), Some("ticker"));
}

#[test]
fn nothing_runs_while_the_loop_is_paused_and_nothing_is_lost() {
    let event_loop = EventLoop::new("test", None).unwrap();
    let handle = event_loop.handle();
    let (tell, told) = channel();
    let first = tell.clone();
    handle.defer(move || first.send(1).unwrap());
    event_loop.pause();
    assert_eq!(told.try_recv(), Ok(1), "what was deferred before the pause has run");
    handle.defer(move || tell.send(2).unwrap());
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let (tell_input, input) = teller();
    let fd = theirs.as_raw_fd();
    let stream = Mutex::new(theirs);
    handle
        .watch(fd, events::IN, move |_| {
            let mut byte = [0];
            stream.lock().unwrap().read_exact(&mut byte).unwrap();
            tell_input.lock().unwrap().send(byte[0]).unwrap();
        })
        .unwrap();
    ours.write_all(&[5]).unwrap();
    event_loop.pause();
    assert!(told.try_recv().is_err() && input.try_recv().is_err());
    event_loop.resume();
    assert!(told.try_recv().is_err() && input.try_recv().is_err(), "pauses are counted");
    event_loop.resume();
    assert_eq!((wait(&told), wait(&input)), (2, 5));
}

#[test]
fn a_paused_loop_can_be_dropped() {
    let event_loop = EventLoop::new("test", None).unwrap();
    event_loop.pause();
    drop(event_loop);
}
