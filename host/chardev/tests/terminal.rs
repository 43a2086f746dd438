//! The terminal becomes raw, and is as before however the program ends. A pty stands in for it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use cardcage_chardev::{CharError, ChardevOptions, Chardevs};
use cardcage_options::Options;
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, tcgetattr};

const HOW: &str = "CARDCAGE_TEST_HOW_TO_END";

/// The program that has the terminal. It does nothing where the other test has not started it.
#[test]
fn child() {
    let Ok(how) = std::env::var(HOW) else { return };
    let chardevs = Chardevs::new();
    let text = if how == "ctrl-c" { "stdio,id=c" } else { "stdio,id=c,signal=off" };
    let options = ChardevOptions::from_options(Options::parse("", text, Some("backend")).unwrap()).unwrap();
    chardevs.add(&options).unwrap();
    let second = ChardevOptions { id: "d".into(), ..options };
    assert_eq!(chardevs.add(&second).unwrap_err(), CharError::StdioTaken);
    eprintln!("raw");
    match how.as_str() {
        "close" => {
            chardevs.close_all();
            eprintln!("closed");
            std::thread::park();
        }
        "exit" => std::process::exit(0),
        "panic" => panic!("a test's panic"),
        "abort" => std::process::abort(),
        _ => std::thread::park(),
    }
}

fn pty() -> (OwnedFd, OwnedFd) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let path = ptsname(&master, Vec::new()).unwrap();
    let other = rustix::fs::open(&path, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    (master, other)
}

fn modes(terminal: &OwnedFd) -> (LocalModes, String) {
    let modes: Termios = tcgetattr(terminal).unwrap();
    (modes.local_modes, format!("{:?} {:?} {:?}", modes.input_modes, modes.output_modes, modes.control_modes))
}

/// Reads what the child says until it says `word`.
fn until(said: &mut impl Read, word: &str) {
    let (mut all, mut byte) = (String::new(), [0]);
    while !all.ends_with(word) {
        assert_eq!(said.read(&mut byte).unwrap(), 1, "no {word:?} in {all:?}");
        all.push(char::from(byte[0]));
    }
}

#[test]
fn the_terminal_is_as_before_however_the_program_ends() {
    for how in ["close", "exit", "panic", "abort", "terminate", "ctrl-c"] {
        let (master, terminal) = pty();
        let before = modes(&terminal);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(HOW, how)
            .stdin(Stdio::from(terminal.try_clone().unwrap()))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = child.stderr.take().unwrap();
        until(&mut said, "raw\n");
        let ended = matches!(how, "exit" | "panic" | "abort");
        if !ended {
            let raw = modes(&terminal).0;
            if how != "close" {
                assert!(!raw.intersects(LocalModes::ICANON | LocalModes::ECHO), "{how}: {raw:?}");
                assert_eq!(raw.contains(LocalModes::ISIG), how == "ctrl-c");
            }
            let pid = rustix::process::Pid::from_child(&child);
            match how {
                "close" => {
                    until(&mut said, "closed\n");
                    assert_eq!(modes(&terminal), before, "{how}");
                    child.kill().unwrap();
                }
                "terminate" => rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap(),
                // The pty is not the child's controlling terminal, which would make this of a typed Ctrl-C.
                _ => rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap(),
            }
        }
        let mut rest = String::new();
        said.read_to_string(&mut rest).unwrap();
        assert!(!child.wait().unwrap().success() || how == "exit", "{how}: {rest}");
        assert_eq!(modes(&terminal), before, "{how}");
        drop(File::from(master).write_all(b""));
    }
}
