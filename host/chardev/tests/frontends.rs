//! What frontends can rely on: room, refusal, focus, ids.

mod ear;

use std::io::{Read, Write};
use std::sync::{Arc, mpsc};

use cardcage_chardev::{Chardevs, Event, Frontend};
use ear::{LIMIT, add, bytes, ear, event, pair, read};

#[test]
fn input_waits_until_the_frontend_has_room() {
    let chardevs = Chardevs::new();
    let (chardev, theirs) = pair(&chardevs, false);
    let (handle, ear, heard) = ear(&chardev, 3);
    (&theirs).write_all(b"abcdefg").unwrap();
    assert_eq!(bytes(&heard, 3), b"abc");
    *ear.room.lock().unwrap() = 2;
    handle.resume_input();
    assert_eq!(bytes(&heard, 2), b"de");
    *ear.room.lock().unwrap() = 100;
    handle.resume_input();
    assert_eq!(bytes(&heard, 2), b"fg");
}

#[test]
fn a_writer_that_was_refused_hears_when_there_is_room_and_nothing_is_lost() {
    let chardevs = Chardevs::new();
    let (chardev, theirs) = pair(&chardevs, false);
    let (handle, _ear, heard) = ear(&chardev, 0);
    event(&heard, Event::Opened);
    let sent: Vec<u8> = (0..1_000_000_u32).map(|i| (i % 251) as u8).collect();
    let len = sent.len();
    let reader = std::thread::spawn(move || read(&theirs, len));
    let mut at = 0;
    while at < sent.len() {
        at += handle.write(&sent[at..]);
        if at < sent.len() {
            event(&heard, Event::Writable);
        }
    }
    assert!(reader.join().unwrap() == sent);
}

#[test]
fn ids_are_taken_once_and_chardevs_in_use_stay() {
    let chardevs = Chardevs::new();
    let c0 = add(&chardevs, "null,id=c0").unwrap();
    assert_eq!(add(&chardevs, "null,id=c0").unwrap_err().to_string(), "Chardev with id 'c0' already exists");
    assert_eq!(chardevs.remove("zz").unwrap_err().to_string(), "Chardev 'zz' not found");
    let (handle, ear, _heard) = ear(&c0, 0);
    assert_eq!(chardevs.remove("c0").unwrap_err().to_string(), "Chardev 'c0' is busy");
    let error = c0.attach(ear).unwrap_err().to_string();
    assert_eq!(error, "Chardev 'c0' is already in use; mux=on lets several share it");
    assert!(chardevs.list()[0].frontend_open);
    drop(handle);
    chardevs.remove("c0").unwrap();
    assert!(chardevs.list().is_empty());
}

#[test]
fn a_multiplexer_sends_input_to_the_frontend_in_focus() {
    let chardevs = Chardevs::new();
    let (chardev, theirs) = pair(&chardevs, true);
    let (first, _ear1, heard1) = ear(&chardev, 1000);
    let (second, _ear2, heard2) = ear(&chardev, 1000);
    event(&heard2, Event::FocusIn);
    (&theirs).write_all(b"two\x01cone\x01c\x01\x01\x01b").unwrap();
    assert_eq!(bytes(&heard1, 3), b"one");
    assert_eq!(bytes(&heard2, 4), b"two\x01");
    first.take_focus();
    event(&heard1, Event::FocusIn);
    event(&heard2, Event::FocusOut);
    first.write(b"from one, ");
    second.write(b"from two");
    assert_eq!(read(&theirs, 18), b"from one, from two");
    (&theirs).write_all(b"\x01b\x01h").unwrap();
    event(&heard1, Event::Break);
    assert!(String::from_utf8(read(&theirs, 60)).unwrap().contains("C-a h"));
}

#[test]
fn ctrl_a_x_quits_even_if_the_guest_reads_nothing() {
    let chardevs = Chardevs::new();
    let (quit, asked) = mpsc::channel();
    chardevs.on_quit(move || quit.send(()).unwrap());
    let (chardev, theirs) = pair(&chardevs, true);
    let (_handle, _ear, _heard) = ear(&chardev, 0);
    (&theirs).write_all(b"is anybody there?\x01x").unwrap();
    asked.recv_timeout(LIMIT).unwrap();
}

#[test]
fn a_multiplexer_gives_what_it_read_ahead_when_there_is_room() {
    let chardevs = Chardevs::new();
    let (chardev, theirs) = pair(&chardevs, true);
    let (handle, ear, heard) = ear(&chardev, 0);
    (&theirs).write_all(&[b'x'; 10_000]).unwrap();
    let mut got = 0;
    while got < 10_000 {
        *ear.room.lock().unwrap() = 16;
        handle.resume_input();
        got += bytes(&heard, 16.min(10_000 - got)).len();
    }
}

#[test]
fn a_frontend_that_panics_closes_its_chardev_and_nothing_else() {
    struct Panics;
    impl Frontend for Panics {
        fn room(&self) -> usize {
            1
        }
        fn receive(&self, _: &[u8]) {
            panic!("a test's panic")
        }
        fn event(&self, _: Event) {}
    }
    let chardevs = Chardevs::new();
    let (chardev, theirs) = pair(&chardevs, false);
    let _handle = chardev.attach(Arc::new(Panics)).unwrap();
    (&theirs).write_all(b"x").unwrap();
    assert_eq!((&theirs).read(&mut [0; 1]).unwrap(), 0, "the descriptor is closed");
}
