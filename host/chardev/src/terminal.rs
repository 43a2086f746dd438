//! The terminal that the program was started from: raw while a chardev uses it, and as it was afterwards.
//!
//! The old mode comes back when the chardev goes, when the process exits, and when a signal ends it that nobody else
//! has a handler for. After SIGCONT the raw mode is set again: the shell has changed it in between.
#![expect(unsafe_code, reason = "signal handlers and exit hooks exist in C only")]

use std::os::fd::{AsFd, OwnedFd};
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use rustix::io::fcntl_dupfd_cloexec;
use rustix::termios::{OptionalActions, isatty};

use crate::CharError;

/// Signals that end a process, or dump its core.
const FATAL: [libc::c_int; 9] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGABRT,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
];

/// Whether a chardev has the terminal.
static TAKEN: AtomicBool = AtomicBool::new(false);
/// The mode to go back to, and the raw one; null while the terminal is as it was.
static OLD: AtomicPtr<libc::termios> = AtomicPtr::new(ptr::null_mut());
static RAW: AtomicPtr<libc::termios> = AtomicPtr::new(ptr::null_mut());
static HOOKS: Once = Once::new();

/// The terminal, taken by a chardev.
#[derive(Debug)]
pub(crate) struct Terminal(());

impl Terminal {
    /// Takes standard input and output. If input is a terminal, it becomes raw; with `signal`, Ctrl-C and its like
    /// still make signals.
    pub(crate) fn take(signal: bool) -> Result<(Self, OwnedFd, OwnedFd), CharError> {
        if TAKEN.swap(true, Ordering::SeqCst) {
            return Err(CharError::StdioTaken);
        }
        let terminal = Self(());
        let failed = |errno| CharError::host("open standard input and output", errno);
        let input = fcntl_dupfd_cloexec(std::io::stdin().as_fd(), 3).map_err(failed)?;
        let output = fcntl_dupfd_cloexec(std::io::stdout().as_fd(), 3).map_err(failed)?;
        if isatty(&input) {
            make_raw(signal);
        }
        Ok((terminal, input, output))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore();
        TAKEN.store(false, Ordering::SeqCst);
    }
}

fn make_raw(signal: bool) {
    // SAFETY: a termios is plain numbers, and tcgetattr fills it.
    let mut old: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: `old` lives through the call.
    if unsafe { libc::tcgetattr(libc::STDIN_FILENO, &mut old) } != 0 {
        return;
    }
    let mut raw = old;
    raw.c_iflag &= !(libc::IGNBRK | libc::BRKINT | libc::PARMRK | libc::ISTRIP);
    raw.c_iflag &= !(libc::INLCR | libc::IGNCR | libc::ICRNL | libc::IXON);
    raw.c_oflag |= libc::OPOST;
    raw.c_lflag &= !(libc::ECHO | libc::ECHONL | libc::ICANON | libc::IEXTEN);
    if !signal {
        raw.c_lflag &= !libc::ISIG;
    }
    raw.c_cflag = (raw.c_cflag & !(libc::CSIZE | libc::PARENB)) | libc::CS8;
    raw.c_cc[libc::VMIN] = 1;
    raw.c_cc[libc::VTIME] = 0;
    HOOKS.call_once(install_hooks);
    // Leaked, because a signal may come at any time: a few bytes for each time that the terminal is taken.
    RAW.store(Box::leak(Box::new(raw)), Ordering::SeqCst);
    OLD.store(Box::leak(Box::new(old)), Ordering::SeqCst);
    set(&RAW);
}

/// Sets a mode, if there is one. Fit for signal handlers.
fn set(mode: &AtomicPtr<libc::termios>) {
    let mode = mode.load(Ordering::SeqCst);
    if !mode.is_null() {
        // SAFETY: what the pointer names was leaked, so it lives for ever; tcsetattr may be called in handlers.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, mode) };
    }
}

fn restore() {
    RAW.store(ptr::null_mut(), Ordering::SeqCst);
    set(&OLD);
    OLD.store(ptr::null_mut(), Ordering::SeqCst);
}

fn install_hooks() {
    // SAFETY: the hook is a function of this program, which is never unloaded.
    unsafe { libc::atexit(at_exit) };
    let handlers = FATAL.map(|signal| (signal, on_fatal as *const () as libc::sighandler_t));
    let on_continue = (libc::SIGCONT, on_continue as *const () as libc::sighandler_t);
    for (signal, handler) in handlers.into_iter().chain([on_continue]) {
        install(signal, handler);
    }
}

/// Handles a signal, unless somebody does already or it is ignored.
fn install(signal: libc::c_int, handler: libc::sighandler_t) {
    // SAFETY: a sigaction is plain data, and zeroes are the default action.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: reads the present action into `action`.
    let asked = unsafe { libc::sigaction(signal, ptr::null(), &mut action) };
    if asked != 0 || action.sa_sigaction != libc::SIG_DFL {
        return;
    }
    action.sa_sigaction = handler;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the handler is a function of this program that makes only calls allowed in handlers.
    unsafe { libc::sigaction(signal, &action, ptr::null_mut()) };
}

extern "C" fn at_exit() {
    set(&OLD);
}

extern "C" fn on_fatal(signal: libc::c_int) {
    set(&OLD);
    // SAFETY: both calls are allowed in handlers. The signal is blocked until the handler returns, and then ends us.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

extern "C" fn on_continue(_signal: libc::c_int) {
    set(&RAW);
}

/// Makes the terminal behind `fd` hand on bytes as they are.
pub(crate) fn make_pty_raw(fd: &OwnedFd) -> Result<(), rustix::io::Errno> {
    let mut mode = rustix::termios::tcgetattr(fd)?;
    mode.make_raw();
    rustix::termios::tcsetattr(fd, OptionalActions::Now, &mode)
}
