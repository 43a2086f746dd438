//! `-qtest-log`: each line that is received or sent, with the time since the client came.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::Instant;

/// A log file, or none.
pub(crate) struct Log {
    file: Option<File>,
    opened: Instant,
}

impl Log {
    /// Opens the file for writing, from its start; `none` and no path mean no log.
    pub(crate) fn open(path: Option<&Path>) -> io::Result<Self> {
        let path = path.filter(|path| *path != Path::new("none"));
        Ok(Self { file: path.map(File::create).transpose()?, opened: Instant::now() })
    }

    /// A client has come (`OPENED`) or gone (`CLOSED`).
    pub(crate) fn connection(&mut self, what: &str) {
        if what == "OPENED" {
            self.opened = Instant::now();
        }
        self.line('I', what.as_bytes());
    }

    /// A line that was received (`R`) or sent (`S`), without its end.
    pub(crate) fn line(&mut self, kind: char, line: &[u8]) {
        let Some(file) = &mut self.file else { return };
        let since = self.opened.elapsed();
        let mut text = format!("[{kind} +{}.{:06}] ", since.as_secs(), since.subsec_micros()).into_bytes();
        text.extend_from_slice(line);
        text.push(b'\n');
        if let Err(error) = file.write_all(&text) {
            tracing::warn!("the qtest log ends: {error}");
            self.file = None;
        }
    }
}
