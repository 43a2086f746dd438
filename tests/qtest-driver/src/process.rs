//! Starts a machine as libqtest does: the test listens, the emulator connects.

#![expect(unsafe_code, reason = "a child that dies with its test needs a call between fork and exec")]

use std::ffi::{OsStr, OsString};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use serde_json::Value;

use crate::{PATIENCE, Qmp, Qtest};

/// How long a machine may take to end.
const END: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(5);

/// A machine that a test has started, with its qtest and QMP connections. The methods of [`Qtest`] are there directly.
///
/// Dropping it ends the machine as [`shutdown`](Self::shutdown) does, and checks how it ended.
pub struct Machine {
    qtest: Qtest,
    qmp: Mutex<Qmp>,
    child: Mutex<Option<Child>>,
}

impl std::ops::Deref for Machine {
    type Target = Qtest;
    fn deref(&self) -> &Qtest {
        &self.qtest
    }
}

impl Machine {
    /// Starts `binary` with libqtest's options, then `args`, then `-accel qtest`. Returns when the machine answers on
    /// both sockets. With `$QTEST_LOG` set the conversation appears on stderr.
    #[track_caller]
    pub fn start<I>(binary: impl AsRef<OsStr>, args: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<OsString>,
    {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (qtest_path, qmp_path) = (dir.path().join("qtest.sock"), dir.path().join("qmp.sock"));
        let listen = |path: &Path| UnixListener::bind(path).expect("a socket in an empty folder");
        let (qtest, qmp) = (listen(&qtest_path), listen(&qmp_path));
        let log = if std::env::var_os("QTEST_LOG").is_some() { "/dev/fd/2" } else { "/dev/null" };
        let mut command = Command::new(&binary);
        command
            .args(["-qtest", &format!("unix:{}", qtest_path.display()), "-qtest-log", log])
            .args(["-chardev", &format!("socket,path={},id=char0", qmp_path.display())])
            .args(["-mon", "chardev=char0,mode=control", "-display", "none", "-audio", "none"])
            .args(args.into_iter().map(Into::into))
            .args(["-accel", "qtest"])
            .stdin(Stdio::null());
        // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        let child = command.spawn();
        let mut child = child.unwrap_or_else(|e| panic!("cannot start {}: {e}", binary.as_ref().display()));
        let mut accept = |listener, what| accept(listener, &mut child, what);
        let (qtest, qmp) = (accept(&qtest, "qtest"), accept(&qmp, "QMP"));
        Self { qtest: Qtest::new(qtest), qmp: Mutex::new(Qmp::new(qmp)), child: Mutex::new(Some(child)) }
    }

    /// The QMP connection.
    pub fn monitor(&self) -> MutexGuard<'_, Qmp> {
        self.qmp.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Sends a QMP command and gives what it returns.
    #[track_caller]
    pub fn qmp(&self, command: Value) -> Value {
        self.monitor().execute(command)
    }

    /// Takes the first event of this name, or waits for it.
    #[track_caller]
    pub fn wait_event(&self, name: &str) -> Value {
        self.monitor().wait_event(name)
    }

    /// Ends the machine with SIGTERM and checks that its exit status is 0. Nothing else works after that.
    #[track_caller]
    pub fn shutdown(&self) {
        self.end();
    }

    /// Waits until the machine has ended by itself and gives its exit status.
    #[track_caller]
    pub fn wait_exit(&self) -> ExitStatus {
        let mut child = self.take_child().expect("the machine has not been ended before");
        wait(&mut child, PATIENCE)
    }

    fn take_child(&self) -> Option<Child> {
        self.child.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take()
    }

    #[track_caller]
    fn end(&self) {
        let Some(mut child) = self.take_child() else { return };
        // It may have ended already, which the status tells.
        let _ = kill_process(Pid::from_child(&child), Signal::TERM);
        let status = wait(&mut child, END);
        assert!(status.success(), "after SIGTERM the machine ends with {status}, not with exit status 0");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.end();
        } else if let Some(mut child) = self.take_child() {
            // The test has failed already; this only cleans up.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[track_caller]
fn wait(child: &mut Child, patience: Duration) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child of ours") {
            return status;
        }
        if start.elapsed() > patience {
            child.kill().expect("a child of ours");
            let _ = child.wait();
            panic!("the machine has not ended within {patience:?}");
        }
        std::thread::sleep(PAUSE);
    }
}

#[track_caller]
fn accept(listener: &UnixListener, child: &mut Child, what: &str) -> UnixStream {
    let start = Instant::now();
    let tick = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    loop {
        let mut ready = [PollFd::new(listener, PollFlags::IN)];
        if poll(&mut ready, Some(&tick)).is_ok_and(|n| n > 0) {
            return listener.accept().expect("a client is there").0;
        }
        if let Some(status) = child.try_wait().expect("a child of ours") {
            panic!("the machine ends with {status} before it connects its {what} socket");
        }
        if start.elapsed() > PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the machine has not connected its {what} socket within {PATIENCE:?}");
        }
    }
}
