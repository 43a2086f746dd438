//! A machine that runs the small Linux guest on the software CPU.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::monitor::connect;
use crate::{Cage, Console, Monitor, program_with, skip};

/// Kernel and initial ramdisk; `None`, with the reason printed, where there are none.
pub fn kernel() -> Option<(PathBuf, PathBuf)> {
    let Some(folder) = std::env::var_os("CARDCAGE_GUESTS").map(PathBuf::from) else {
        skip("CARDCAGE_GUESTS names no folder with guests; scripts/test sets it");
        return None;
    };
    let kernels = ["linux-6.1", "linux-6.12"].map(|series| folder.join(series).join("bzImage"));
    let initrd = folder.join("initramfs.cpio.gz");
    match kernels.into_iter().find(|k| k.is_file()).filter(|_| initrd.is_file()) {
        Some(kernel) => Some((kernel, initrd)),
        None => {
            skip(format!("{} holds no kernel with an initial ramdisk; scripts/guests makes them", folder.display()));
            None
        }
    }
}

/// A running guest with its console and a QMP session.
pub struct Guest {
    /// The program.
    pub cage: Cage,
    /// The serial port, over a socket.
    pub console: Console,
    /// A session, negotiated before the guest starts.
    pub monitor: Monitor,
    folder: TempDir,
}

impl Guest {
    /// Boots the guest; `None`, with the reason printed, where that is not possible. `commands` are run by its shell,
    /// then it powers off; without them there is a shell on the console. The guest has started when this returns, and
    /// printed nothing that is not on the console.
    #[track_caller]
    pub fn boot(commands: Option<&str>, args: &[&str]) -> Option<Self> {
        let program = program_with(&["isa-serial"])?;
        let (kernel, initrd) = kernel()?;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (serial, qmp) = (folder.path().join("serial.sock"), folder.path().join("qmp.sock"));
        let run = commands.map(|c| format!(" cardcage.run=\"{c}\"")).unwrap_or_default();
        let mut all = strings(["-M", "pc", "-accel", "soft", "-m", "256M", "-display", "none"]);
        all.extend(["-kernel".into(), text(&kernel), "-initrd".into(), text(&initrd)]);
        all.extend(["-append".into(), format!("console=ttyS0 quiet{run}")]);
        all.extend(["-serial".into(), format!("unix:{},server=on,wait=on", serial.display())]);
        all.extend(["-qmp".into(), format!("unix:{},server=on,wait=off", qmp.display())]);
        all.push("-S".into());
        all.extend(args.iter().map(|a| (*a).to_string()));
        let mut cage = Cage::start(&program, &all);
        while !serial.exists() {
            if !cage.is_alive() {
                panic!("the program ends at once: {:?}", cage.wait());
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let stream = connect(&serial);
        let console = Console::open(stream.try_clone().expect("a second descriptor"), stream);
        let mut monitor = Monitor::connect(&qmp);
        if !args.contains(&"-S") {
            monitor.ask("cont");
            monitor.take_events();
        }
        Some(Self { cage, console, monitor, folder })
    }

    /// Another QMP session.
    #[track_caller]
    pub fn another_monitor(&self) -> Monitor {
        Monitor::connect(&self.folder.path().join("qmp.sock"))
    }

    /// Waits until the guest's programs run.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        self.console.wait("cardcage: guest ready, Linux");
    }

    /// Waits for the shell, and stops it from repeating what is typed.
    #[track_caller]
    pub fn wait_shell(&mut self) {
        self.console.wait("This is a shell inside the virtual machine");
        self.console.line("stty -echo; echo shell-is-$((40+2))");
        self.console.wait("shell-is-42");
        self.console.wait("# ");
    }

    /// Runs a command in the shell and gives what it prints.
    #[track_caller]
    pub fn shell(&mut self, command: &str) -> String {
        self.console.line(&format!("{command}; echo end-of-$((40+2))"));
        let text = self.console.wait("end-of-42");
        self.console.wait("# ");
        text.replace('\r', "").trim().to_string()
    }
}

fn strings<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(String::from).to_vec()
}

fn text(path: &Path) -> String {
    path.to_str().expect("a path in UTF-8").into()
}
