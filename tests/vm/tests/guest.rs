//! Linux on the software CPU: run states as the guest and QMP see them, and the console.

use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::time::Duration;

use cardcage_tests::{Cage, Console, Guest, kernel, program_with, skip};
use rustix::fs::OFlags;
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use serde_json::json;

/// Seconds since the guest started, by its own clock.
fn uptime(guest: &mut Guest) -> f64 {
    let text = guest.shell("cut -d ' ' -f 1 /proc/uptime");
    text.parse().unwrap_or_else(|_| panic!("'{text}' is no uptime"))
}

#[test]
fn stop_really_stops_and_cont_goes_on() {
    let Some(mut guest) = Guest::boot(None, &["-name", "stopper"]) else { return };
    assert_eq!(guest.monitor.ask("query-status"), json!({"status": "running", "running": true}));
    guest.wait_shell();
    guest.console.line("while :; do echo tick-$((x=x+1)); done & echo loop-is-$!");
    guest.console.wait("loop-is-");
    guest.console.wait("tick-20");

    guest.monitor.ask("stop");
    assert_eq!(guest.monitor.take_event_names(), ["STOP"]);
    // What the guest has sent before is on its way; then there is silence.
    let mut silent = 0;
    let mut seen = guest.console.len();
    for _ in 0..200 {
        std::thread::sleep(Duration::from_millis(50));
        silent = if guest.console.len() == seen { silent + 1 } else { 0 };
        seen = guest.console.len();
        if silent == 20 {
            break;
        }
    }
    assert_eq!(silent, 20, "the guest still prints");
    assert_eq!(guest.monitor.ask("query-status"), json!({"status": "paused", "running": false}));
    // What is typed meanwhile waits.
    guest.console.line("kill %1; echo killed-$((6*7))");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(guest.console.len(), seen);

    guest.monitor.ask("cont");
    assert_eq!(guest.monitor.take_event_names(), ["RESUME"]);
    guest.console.wait("killed-42");
    guest.monitor.ask("quit");
    assert_eq!(guest.cage.wait().status, 0);
}

#[test]
fn the_guests_clock_stands_still_while_it_is_stopped() {
    let Some(mut guest) = Guest::boot(None, &[]) else { return };
    guest.wait_shell();
    let before = uptime(&mut guest);
    guest.monitor.ask("stop");
    let pause = Duration::from_secs(6);
    std::thread::sleep(pause);
    guest.monitor.ask("cont");
    let after = uptime(&mut guest);
    // Reading takes time of its own, on a slow machine much of it; the six seconds are not in it.
    assert!(after >= before, "{before} then {after}");
    assert!(after - before < pause.as_secs_f64(), "the guest's clock has moved by {} s over a stop", after - before);
    guest.monitor.ask("quit");
}

#[test]
fn a_reset_starts_the_guest_again() {
    let Some(mut guest) = Guest::boot(None, &[]) else { return };
    guest.wait_ready();
    guest.monitor.ask("system_reset");
    assert_eq!(guest.monitor.take_events()[0]["data"], json!({"guest": false, "reason": "host-qmp-system-reset"}));
    guest.wait_ready();
    guest.wait_shell();
    // The guest resets itself: the machine tells, and goes on.
    guest.console.line("reboot -f");
    let event = guest.monitor.wait_event("RESET");
    assert_eq!(event["data"], json!({"guest": true, "reason": "guest-reset"}));
    guest.wait_ready();
    assert_eq!(guest.console.text().matches("cardcage: user space is up").count(), 3);
    guest.monitor.ask("quit");
    assert_eq!(guest.cage.wait().status, 0);
}

#[test]
fn a_guests_reboot_ends_the_program_with_no_reboot() {
    let Some(guest) = Guest::boot(Some("reboot -f"), &["-no-reboot"]) else { return };
    let lines = guest.monitor.rest();
    let last = lines.last().expect("there is an event");
    assert_eq!((&last["event"], &last["data"]), (&json!("SHUTDOWN"), &json!({"guest": true, "reason": "guest-reset"})));
    assert_eq!(guest.cage.wait().status, 0);
}

#[test]
fn a_guest_that_powers_off_ends_the_program() {
    let Some(guest) = Guest::boot(Some("cat /proc/cpuinfo; lspci; ls /sys/bus/pci/devices"), &[]) else { return };
    let lines = guest.monitor.rest();
    let last = lines.last().expect("there is an event");
    assert_eq!(
        (&last["event"], &last["data"]),
        (&json!("SHUTDOWN"), &json!({"guest": true, "reason": "guest-shutdown"}))
    );
    let text = guest.console.finish();
    assert!(text.contains("cardcage: commands ended with status 0"), "{text}");
    let ended = guest.cage.wait();
    assert_eq!((ended.status, ended.stderr.as_str()), (0, ""));
}

#[test]
fn a_guest_that_has_powered_off_is_kept_with_no_shutdown() {
    let Some(mut guest) = Guest::boot(Some("true"), &["-no-shutdown"]) else { return };
    guest.monitor.wait_event("SHUTDOWN");
    guest.monitor.wait_event("STOP");
    assert_eq!(guest.monitor.ask("query-status"), json!({"status": "shutdown", "running": false}));
    let (class, text) = guest.monitor.refused("cont", json!({}));
    assert_eq!((class.as_str(), text.as_str()), ("GenericError", "Resetting the Virtual Machine is required"));
    guest.monitor.ask("system_reset");
    guest.monitor.ask("cont");
    guest.console.wait("cardcage: user space is up");
    guest.console.wait("cardcage: user space is up");
    guest.monitor.ask("quit");
    assert_eq!(guest.cage.wait().status, 0);
}

#[test]
fn the_power_button_reaches_the_guest() {
    let Some((kernel, initrd)) = kernel() else { return };
    let module = kernel.with_file_name("modules").join("kernel/drivers/acpi/button.ko");
    let Ok(module) = std::fs::read(&module) else {
        skip(format!("there is no {}", module.display()));
        return;
    };
    // The kernel takes several archives, one behind the other.
    let folder = tempfile::tempdir().unwrap();
    let with_button = folder.path().join("initrd");
    let mut archive = std::fs::read(initrd).unwrap();
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(cpio("button.ko", &module));
    std::fs::write(&with_button, archive).unwrap();
    let Some(mut guest) = Guest::boot(None, &["-initrd", with_button.to_str().unwrap()]) else { return };
    guest.wait_shell();
    assert_eq!(guest.shell("insmod /button.ko; echo $?"), "0");
    assert_eq!(presses(&mut guest), 0);
    guest.monitor.ask("system_powerdown");
    assert_eq!(guest.monitor.take_event_names(), ["POWERDOWN"]);
    // The guest takes the interrupt before it gets to the next command, or soon after.
    let pressed = (0..100).any(|_| presses(&mut guest) == 1);
    assert!(pressed, "the guest has not seen the power button");
    guest.console.line("poweroff -f");
    let event = guest.monitor.wait_event("SHUTDOWN");
    assert_eq!(event["data"], json!({"guest": true, "reason": "guest-shutdown"}));
    assert_eq!(guest.cage.wait().status, 0);
}

/// How often the guest has seen the power button.
fn presses(guest: &mut Guest) -> u64 {
    let text = guest.shell("awk '{ print $1 }' /sys/firmware/acpi/interrupts/ff_pwr_btn");
    text.parse().unwrap_or_else(|_| panic!("'{text}' is no number"))
}

/// An archive with one file, in the format that Linux takes for its initial file system (initramfs buffer format).
fn cpio(name: &str, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, content, mode) in [(name, content, 0o100_644), ("TRAILER!!!", &[][..], 0)] {
        let fields = [1, mode, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        out.extend(b"070701");
        fields.iter().for_each(|field| out.extend(format!("{field:08x}").bytes()));
        out.extend(name.bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend(content);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

#[test]
fn a_machine_that_starts_stopped_runs_nothing() {
    let Some(mut guest) = Guest::boot(Some("true"), &["-S"]) else { return };
    assert_eq!(guest.monitor.ask("query-status"), json!({"status": "prelaunch", "running": false}));
    std::thread::sleep(Duration::from_millis(500));
    assert!(guest.console.is_empty(), "{}", guest.console.text());
    guest.monitor.ask("cont");
    assert_eq!(guest.monitor.take_event_names(), ["RESUME"]);
    guest.console.wait("cardcage: user space is up");
    guest.cage.signal(Signal::TERM);
    let lines = guest.monitor.rest();
    assert_eq!(lines.last().unwrap()["data"], json!({"guest": false, "reason": "host-signal"}));
    assert_eq!(guest.cage.wait().status, 0);
}

#[test]
fn clients_come_go_and_talk_nonsense_while_a_guest_boots() {
    let Some(mut guest) = Guest::boot(Some("echo alive-$((40+2))"), &[]) else { return };
    for n in 0..10 {
        let mut client = guest.another_monitor();
        match n % 3 {
            0 => client.send(br#"{"execute": "query-available-devices"}{"execute": "query-dev"#),
            1 => client.send(&[b'['; 10_000]),
            _ => {
                client.ask("stop");
                client.ask("cont");
            }
        }
    }
    guest.console.wait("alive-42");
    guest.console.wait("cardcage: commands ended with status 0");
    assert_eq!(guest.cage.wait().status, 0);
}

/// The two ends of a pseudo-terminal that repeats nothing.
fn terminal() -> (std::fs::File, std::os::fd::OwnedFd) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let slave =
        rustix::fs::open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, rustix::fs::Mode::empty())
            .unwrap();
    (std::fs::File::from(master), slave)
}

#[test]
fn the_console_on_a_terminal_is_typed_into_and_left_with_ctrl_a_x() {
    let Some(program) = program_with(&["isa-serial"]) else { return };
    let Some((kernel, initrd)) = kernel() else { return };
    let (master, slave) = terminal();
    let before = tcgetattr(&slave).unwrap();
    let watch = slave.try_clone().unwrap();
    let args = [
        "-accel".into(),
        "soft".into(),
        "-m".into(),
        "256M".into(),
        "-nographic".into(),
        "-kernel".into(),
        kernel.display().to_string(),
        "-initrd".into(),
        initrd.display().to_string(),
        "-append".into(),
        "console=ttyS0 quiet".into(),
    ];
    let args: Vec<String> = args.into_iter().collect();
    let cage = Cage::start_on(&program, &args, slave);
    let mut console = Console::open(master.try_clone().unwrap(), master);
    console.wait("This is a shell inside the virtual machine");
    console.line("echo the-answer-is-$((6*7))");
    console.wait("the-answer-is-42");
    // Ctrl-C is the guest's.
    console.line("sleep 1000; echo slept-$?");
    std::thread::sleep(Duration::from_millis(500));
    console.send(b"\x03");
    console.wait("^C");
    // Ctrl-A twice is one for the guest; another letter is none.
    console.send(b"\x01h");
    console.wait("x");
    console.line("echo still-$((40+2))");
    console.wait("still-42");
    console.send(b"\x01x");
    let ended = cage.wait();
    assert_eq!(ended.status, 0, "{}", ended.stderr);
    let after = tcgetattr(&watch).unwrap();
    assert_eq!(after.local_modes, before.local_modes, "the terminal is as it was");
    assert_eq!(after.input_modes, before.input_modes);
    tcsetattr(&watch, OptionalActions::Now, &before).unwrap();
}

#[test]
fn the_console_can_be_a_pseudo_terminal_of_the_programs_own() {
    let Some(program) = program_with(&["isa-serial"]) else { return };
    let Some((kernel, initrd)) = kernel() else { return };
    let args = [
        "-accel".into(),
        "soft".into(),
        "-m".into(),
        "256M".into(),
        "-display".into(),
        "none".into(),
        "-serial".into(),
        "pty".into(),
        "-nodefaults".into(),
        "-kernel".into(),
        kernel.display().to_string(),
        "-initrd".into(),
        initrd.display().to_string(),
        "-append".into(),
        "console=ttyS0 quiet".into(),
    ];
    let args: Vec<String> = args.into_iter().collect();
    let (cage, mut errors) = Cage::start_watched(&program, &args);
    errors.wait("char device redirected to ");
    let device = PathBuf::from(errors.wait(" (label serial0)"));
    assert!(std::fs::metadata(&device).unwrap().file_type().is_char_device(), "{}", device.display());
    let open = || std::fs::OpenOptions::new().read(true).write(true).open(&device).unwrap();
    let mut console = Console::open(open(), open());
    console.wait("This is a shell inside the virtual machine");
    console.line("uname -m; echo end-$((40+2))");
    console.wait("x86_64");
    console.wait("end-42");
    cage.signal(Signal::TERM);
    assert_eq!(cage.wait().status, 0);
}
