//! The same guest under each accelerator, with the real program: serial port, string output, virtio through
//! virtio-mmio, an interrupt through the I/O APIC, a reset, and an end with a checked status.
#![expect(clippy::print_stdout, reason = "why a test is skipped is for the log")]

use std::path::{Path, PathBuf};

use cardcage_tests::{Ended, program_with, run, tool};
use tempfile::TempDir;

/// `PASSED` of `guest.S`, as isa-debug-exit turns it into a status.
const PASSED: i32 = 0x15 << 1 | 1;
const PLUGINS: [&str; 4] = ["isa-serial", "isa-debugcon", "isa-debug-exit", "virtio-rng"];
const SERIAL: &str = "serial: long mode is up\n";
const STRINGS: &str = "string: one instruction, many bytes\n";

/// The program and the guest, in a folder of their own.
struct Setting {
    program: PathBuf,
    folder: TempDir,
    kernel: PathBuf,
}

/// Builds the guest; `None`, with the reason printed, where something is missing.
fn setting() -> Option<Setting> {
    let program = program_with(&PLUGINS)?;
    if !tool("gcc") {
        return None;
    }
    let folder = tempfile::tempdir().expect("a folder for the test");
    let kernel = folder.path().join("guest.elf");
    let source = Path::new(env!("CARGO_MANIFEST_DIR"));
    let linker = format!("-Wl,-T,{},--build-id=none,--no-warn-rwx-segments", source.join("link.ld").display());
    let (input, output) = (source.join("guest.S"), kernel.clone());
    let options = ["-nostdlib", "-static", "-no-pie", &linker, "-o"].map(PathBuf::from);
    let built = run(Path::new("gcc"), options.into_iter().chain([output, input]));
    assert_eq!(built.status, 0, "{}", built.stderr);
    Some(Setting { program, folder, kernel })
}

/// Whether `/dev/kvm` opens; prints the reason for skipping where it does not.
fn has_kvm() -> bool {
    let kvm = std::fs::File::options().read(true).write(true).open("/dev/kvm");
    if let Err(e) = &kvm {
        println!("skipped: /dev/kvm does not open: {e}");
    }
    kvm.is_ok()
}

impl Setting {
    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs the guest until it ends by itself.
    fn run(&self, accelerator: &str, command_line: &str) -> Ended {
        let chardev = |id: &str| format!("file,id={id},path={}", self.file(id).display());
        let (serial, strings) = (chardev("serial"), chardev("strings"));
        let kernel = self.kernel.to_str().expect("a path in UTF-8");
        let args = [
            ["-accel", accelerator],
            ["-m", "32M"],
            ["-display", "none"],
            ["-kernel", kernel],
            ["-append", command_line],
            ["-chardev", &serial],
            ["-device", "isa-serial,chardev=serial"],
            ["-chardev", &strings],
            ["-device", "isa-debugcon,iobase=0x402,chardev=strings"],
            ["-device", "virtio-rng-device"],
            ["-device", "isa-debug-exit"],
        ];
        run(&self.program, args.concat().into_iter().chain(["-nodefaults"]))
    }

    /// Runs the guest, which is to pass, and to begin `times` times.
    #[track_caller]
    fn assert_passes(&self, accelerator: &str, command_line: &str, times: usize) {
        let ended = self.run(accelerator, command_line);
        let output = |name: &str| std::fs::read_to_string(self.file(name)).unwrap_or_default();
        assert_eq!(ended.status, PASSED, "{ended:?}; serial: {:?}", output("serial"));
        assert_eq!((output("serial"), output("strings")), (SERIAL.repeat(times), STRINGS.repeat(times)));
    }
}

#[test]
fn the_software_cpu_runs_the_guest_to_its_end() {
    let Some(setting) = setting() else { return };
    setting.assert_passes("soft", "", 1);
}

#[test]
fn the_software_cpu_runs_the_guest_again_after_a_reset() {
    let Some(setting) = setting() else { return };
    setting.assert_passes("soft", "reset", 2);
}

#[test]
fn kvm_runs_the_guest_to_its_end() {
    let Some(setting) = setting() else { return };
    if has_kvm() {
        setting.assert_passes("kvm", "", 1);
    }
}

#[test]
fn kvm_runs_the_guest_again_after_a_reset() {
    let Some(setting) = setting() else { return };
    if has_kvm() {
        setting.assert_passes("kvm", "reset", 2);
    }
}
