//! The other end of a guest's serial port.

use std::io::{Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::PATIENCE;

#[derive(Default)]
struct Seen {
    bytes: Vec<u8>,
    closed: bool,
}

/// What a guest prints, and a way to type.
pub struct Console {
    seen: Arc<(Mutex<Seen>, Condvar)>,
    input: Option<Box<dyn Write + Send>>,
    /// Everything before has been looked at.
    at: usize,
}

impl Console {
    /// A console that only listens.
    pub fn listen(output: impl Read + Send + 'static) -> Self {
        Self::new(output, None)
    }

    /// A console to type into.
    pub fn open(output: impl Read + Send + 'static, input: impl Write + Send + 'static) -> Self {
        Self::new(output, Some(Box::new(input)))
    }

    fn new(mut output: impl Read + Send + 'static, input: Option<Box<dyn Write + Send>>) -> Self {
        let seen = Arc::new((Mutex::new(Seen::default()), Condvar::new()));
        let theirs = seen.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // A terminal whose other side has closed gives an error.
            while let Ok(n @ 1..) = output.read(&mut buffer) {
                lock(&theirs.0).bytes.extend_from_slice(&buffer[..n]);
                theirs.1.notify_all();
            }
            lock(&theirs.0).closed = true;
            theirs.1.notify_all();
        });
        Self { seen, input, at: 0 }
    }

    /// Types.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        let input = self.input.as_mut().expect("this console has no input");
        input.write_all(bytes).and_then(|()| input.flush()).expect("the console takes input");
    }

    /// Types a line.
    #[track_caller]
    pub fn line(&mut self, text: &str) {
        self.send(format!("{text}\n").as_bytes());
    }

    /// Waits until `text` appears after what earlier calls have found; gives what stands between.
    #[track_caller]
    pub fn wait(&mut self, text: &str) -> String {
        let start = Instant::now();
        let mut seen = lock(&self.seen.0);
        loop {
            let rest = &seen.bytes[self.at..];
            if let Some(found) = rest.windows(text.len()).position(|w| w == text.as_bytes()) {
                let before = String::from_utf8_lossy(&rest[..found]).into_owned();
                self.at += found + text.len();
                return before;
            }
            let left = PATIENCE.saturating_sub(start.elapsed());
            if left.is_zero() || seen.closed {
                let (why, all) = (if seen.closed { "closes" } else { "is silent" }, seen.bytes.clone());
                drop(seen);
                panic!("the console {why} before it says '{text}':\n{}", String::from_utf8_lossy(&all));
            }
            seen = wait(&self.seen.1, seen, left);
        }
    }

    /// Everything so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&lock(&self.seen.0).bytes).into_owned()
    }

    /// Number of bytes so far.
    pub fn len(&self) -> usize {
        lock(&self.seen.0).bytes.len()
    }

    /// Whether nothing has come yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until the other end has closed; everything that it said.
    #[track_caller]
    pub fn finish(self) -> String {
        let start = Instant::now();
        let mut seen = lock(&self.seen.0);
        while !seen.closed {
            let left = PATIENCE.saturating_sub(start.elapsed());
            assert!(!left.is_zero(), "the console is not closed within {PATIENCE:?}");
            seen = wait(&self.seen.1, seen, left);
        }
        String::from_utf8_lossy(&seen.bytes).into_owned()
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wait<'a>(changed: &Condvar, seen: MutexGuard<'a, Seen>, left: Duration) -> MutexGuard<'a, Seen> {
    changed.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0
}
