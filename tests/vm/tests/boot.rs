//! Debian's kernels and userland, as they come: each reaches its programs, and what they compute is right.
//!
//! With `CARDCAGE_LONG=1` (`scripts/test --long`) each kernel boots twenty times, and every time counts.

#![expect(clippy::print_stdout, reason = "why a test is skipped is for the log")]

use std::path::{Path, PathBuf};
use std::process::Command;

use cardcage_tests::{Ended, program_with, run};

fn guests() -> Option<PathBuf> {
    let folder = std::env::var_os("CARDCAGE_GUESTS").map(PathBuf::from);
    if folder.is_none() {
        println!("skipped: CARDCAGE_GUESTS names no folder with guests; scripts/test sets it");
    }
    folder
}

/// Boots a kernel with the busybox ramdisk; its shell runs `commands`, then it powers off.
fn boot(program: &Path, kernel: &Path, initrd: &Path, append: &str, commands: &str, more: &[&str]) -> Ended {
    let append = format!("console=ttyS0 {append} cardcage.run=\"{commands}\"");
    let kernel_args = ["-kernel".as_ref(), kernel.as_os_str(), "-initrd".as_ref(), initrd.as_os_str()];
    let common = ["-M", "pc", "-accel", "soft", "-nographic", "-no-reboot", "-append", &append];
    let more = more.iter().map(|s| (*s).as_ref());
    run(program, common.map(|s| s.as_ref()).into_iter().chain(kernel_args).chain(more))
}

fn every_time(series: &str, image: &str) {
    let (Some(program), Some(guests)) = (program_with(&["isa-serial", "mc146818rtc", "i8042"]), guests()) else {
        return;
    };
    let (kernel, initrd) = (guests.join(series).join(image), guests.join("initramfs.cpio.gz"));
    if !kernel.is_file() {
        println!("skipped: there is no {}; scripts/guests makes it", kernel.display());
        return;
    }
    let times = if std::env::var_os("CARDCAGE_LONG").is_some() { 20 } else { 1 };
    for time in 1..=times {
        let ended = boot(&program, &kernel, &initrd, "", "echo sum is $((40+2)); uname -r", &["-m", "256M"]);
        let Ended { status, stdout, stderr } = &ended;
        let right = *status == 0
            && ["cardcage: user space is up", "sum is 42", "commands ended with status 0"]
                .iter()
                .all(|s| stdout.contains(s))
            && !["Oops", "BUG:", "Call Trace", "segfault"].iter().any(|s| stdout.contains(s));
        assert!(right, "boot {time} of {times}: status {status}\n{stdout}\n{stderr}");
    }
}

#[test]
fn the_6_1_bzimage_boots_every_time() {
    every_time("linux-6.1", "bzImage");
}

#[test]
fn the_6_1_elf_boots_every_time() {
    every_time("linux-6.1", "vmlinux");
}

#[test]
fn the_6_12_bzimage_boots_every_time() {
    every_time("linux-6.12", "bzImage");
}

#[test]
fn the_6_12_elf_boots_every_time() {
    every_time("linux-6.12", "vmlinux");
}

/// The image is left as it was: the guest writes to a copy.
#[test]
fn a_debian_root_computes_what_this_machine_computes() {
    let (Some(program), Some(guests)) = (program_with(&["isa-serial", "virtio-blk"]), guests()) else { return };
    let (image, kernel) = (guests.join("debian.img"), guests.join("linux-6.1/bzImage"));
    if !image.is_file() || !kernel.is_file() {
        println!("skipped: there is no {}; scripts/guests root makes it", image.display());
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let copy = folder.path().join("root.img");
    let copied = Command::new("cp").arg("--sparse=always").args([&image, &copy]).status().expect("cp starts");
    assert!(copied.success(), "there is room for a copy of {}", image.display());
    // The commands run beside the boot: the login comes when it comes.
    let login = "for i in $(seq 100); do systemctl is-active serial-getty@ttyS0 && break; sleep 1; done; sleep 3";
    let compute = "echo packages:$(dpkg -l | grep -c ^ii):; python3 -c 'print(2**0.5)'; printf abc > /tmp/x; openssl sha256 /tmp/x";
    let commands = format!("{login}; {compute}");
    let drive = format!("file={},format=raw,if=virtio", copy.display());
    let initrd = guests.join("initramfs.cpio.gz");
    let more = ["-m", "512M", "-drive", &drive, "-device", "virtio-rng-pci"];
    let Ended { status, stdout, stderr } = boot(&program, &kernel, &initrd, "root=/dev/vda", &commands, &more);
    // The login's prompt may stand on the same line; the command itself is repeated in the kernel's first lines.
    let packages =
        stdout.split("packages:").filter_map(|after| after.split(':').next()?.parse::<u32>().ok()).any(|n| n > 50);
    let facts = [
        "login: root",
        "1.4142135623730951",
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "commands ended with status 0",
    ];
    let missing: Vec<_> = facts.iter().filter(|f| !stdout.contains(**f)).collect();
    assert!(status == 0 && packages && missing.is_empty(), "status {status}, missing {missing:?}\n{stdout}\n{stderr}");
}
