//! Routes this plugin's own copy of `log` to the host. Authors use the `log` crate's macros.
#![expect(unsafe_code, reason = "reads the host's level cell")]

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use cardcage_plugin_abi::{LogObj, LogRecord, abi_stable::std_types::RStr};

struct Sink {
    host: LogObj,
    max_level: &'static AtomicU8,
}

static SINK: OnceLock<Sink> = OnceLock::new();

/// What this plugin knows of a thread. One variable: to find a thread-local of a shared library costs a call.
pub(crate) struct Thread {
    /// The device whose method runs on this thread: pointer and length of its id.
    current: Cell<(*const u8, usize)>,
}

thread_local! {
    static THREAD: Thread = const { Thread { current: Cell::new((std::ptr::null(), 0)) } };
}

impl Thread {
    /// Calls `f` with the calling thread. The variable has nothing to drop, so it is there to the thread's end.
    #[inline]
    pub(crate) fn with<R>(f: impl FnOnce(&Self) -> R) -> R {
        THREAD.with(f)
    }

    /// A number for the thread, never 0.
    #[inline]
    pub(crate) fn id(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }

    /// Messages of this thread carry `id` until the guard is dropped; `id` must outlive it: the shim holds both.
    #[inline]
    pub(crate) fn enter(&self, id: &str) -> CurrentDevice<'_> {
        CurrentDevice(self, self.current.replace((id.as_ptr(), id.len())))
    }
}

/// Restores what was there before when it is dropped.
pub(crate) struct CurrentDevice<'a>(&'a Thread, (*const u8, usize));

impl Drop for CurrentDevice<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.current.set(self.1);
    }
}

fn send(level: u32, target: &str, file: &str, line: u32, args: std::fmt::Arguments<'_>) {
    let Some(sink) = SINK.get() else { return };
    let text;
    let message = match args.as_str() {
        Some(m) => m,
        None => {
            text = args.to_string();
            &text
        }
    };
    let (id, len) = THREAD.with(|t| t.current.get());
    let device = if id.is_null() {
        ""
    } else {
        // SAFETY: set from a `&str` by a guard that is still alive on this thread.
        unsafe { std::str::from_utf8_unchecked(std::slice::from_raw_parts(id, len)) }
    };
    let [device, target, file, message] = [device, target, file, message].map(RStr::from_str);
    sink.host.log(&LogRecord { level, line, device, target, file, message });
}

#[inline]
fn wanted(level: log::Level) -> bool {
    SINK.get().is_some_and(|s| level as u8 <= s.max_level.load(Ordering::Relaxed))
}

struct Forward;

impl log::Log for Forward {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        wanted(metadata.level())
    }
    fn log(&self, r: &log::Record<'_>) {
        if wanted(r.level()) {
            send(r.level() as u32, r.target(), r.file().unwrap_or(""), r.line().unwrap_or(0), *r.args());
        }
    }
    fn flush(&self) {}
}

pub(crate) extern "C" fn init(host: LogObj) {
    // SAFETY: the host keeps the cell for the life of the process.
    let max_level = unsafe { &*host.max_level().cast::<AtomicU8>() };
    if SINK.set(Sink { host, max_level }).is_err() {
        return;
    }
    let _ = log::set_logger(&Forward);
    log::set_max_level(log::LevelFilter::Trace);
    // A plugin has a std of its own, and with it a panic hook of its own: without this one, the message of a caught
    // panic would go to stderr, with no word about the device.
    std::panic::set_hook(Box::new(|info| {
        let (file, line) = info.location().map_or(("", 0), |l| (l.file(), l.line()));
        send(
            1,
            "panic",
            file,
            line,
            format_args!("panicked at {file}:{line}: {}", crate::shim::panic_text(info.payload())),
        );
    }));
}
