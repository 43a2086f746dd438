//! The program as a process: started, fed, and ended.

#![expect(unsafe_code, reason = "a child that dies with its test needs a call between fork and exec")]

use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

use crate::{Console, PATIENCE};

const PAUSE: std::time::Duration = std::time::Duration::from_millis(5);

/// A process that has ended by itself.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Exit status; 128 and the signal's number if a signal killed it.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs the program to its end, with nothing on its standard input.
#[track_caller]
pub fn run<A: AsRef<OsStr>>(program: &Path, args: impl IntoIterator<Item = A>) -> Ended {
    Cage::start(program, args).wait()
}

/// The program while it runs. Killed when dropped.
pub struct Cage {
    child: Child,
    stdout: Option<Receiver<String>>,
    stderr: Option<Receiver<String>>,
}

impl Cage {
    /// Starts the program with nothing on its standard input; its output is kept for [`wait`](Self::wait).
    #[track_caller]
    pub fn start<A: AsRef<OsStr>>(program: &Path, args: impl IntoIterator<Item = A>) -> Self {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self::spawn(command)
    }

    /// Starts the program with a terminal as its standard input and output; standard error is kept.
    #[track_caller]
    pub fn start_on<A: AsRef<OsStr>>(program: &Path, args: impl IntoIterator<Item = A>, terminal: OwnedFd) -> Self {
        let input = terminal.try_clone().expect("a second descriptor");
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::from(input)).stdout(Stdio::from(terminal)).stderr(Stdio::piped());
        Self::spawn(command)
    }

    /// Starts the program with nothing on its standard input, and gives what it says on standard error at once.
    #[track_caller]
    pub fn start_watched<A: AsRef<OsStr>>(program: &Path, args: impl IntoIterator<Item = A>) -> (Self, Console) {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::from(write));
        (Self::spawn(command), Console::listen(std::fs::File::from(read)))
    }

    /// Starts a command that is set up already.
    #[track_caller]
    pub fn spawn(mut command: Command) -> Self {
        // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
        let stdout = child.stdout.take().map(drain);
        let stderr = child.stderr.take().map(drain);
        Self { child, stdout, stderr }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the process is there");
    }

    /// The child's standard input and output, where they are pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended yet.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().expect("a child of ours").is_none()
    }

    /// Waits for the end.
    #[track_caller]
    pub fn wait(mut self) -> Ended {
        let status = self.wait_status();
        let text = |output: Option<Receiver<String>>| {
            output.map(|o| o.recv_timeout(PATIENCE).expect("output ends with the process")).unwrap_or_default()
        };
        Ended { status, stdout: text(self.stdout.take()), stderr: text(self.stderr.take()) }
    }

    #[track_caller]
    fn wait_status(&mut self) -> i32 {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                return code(status);
            }
            assert!(start.elapsed() < PATIENCE, "the program has not ended within {PATIENCE:?}");
            std::thread::sleep(PAUSE);
        }
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

/// Reads everything on a thread, so that the child never waits for room.
fn drain(mut from: impl Read + Send + 'static) -> Receiver<String> {
    let (send, receive) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // A pipe that breaks has ended.
        let _ = from.read_to_end(&mut bytes);
        let _ = send.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receive
}
