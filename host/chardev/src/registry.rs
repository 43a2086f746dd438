//! All chardevs of a machine by id.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::chardev::Chardev;
use crate::core::QuitHook;
use crate::{CharError, ChardevOptions};

/// The chardevs of a machine.
#[derive(Default)]
pub struct Chardevs {
    by_id: Mutex<BTreeMap<String, Arc<Chardev>>>,
    quit: QuitHook,
}

/// A chardev, as `query-chardev` tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChardevInfo {
    /// Its id.
    pub label: String,
    /// What is behind it.
    pub filename: String,
    /// Whether a frontend uses it.
    pub frontend_open: bool,
}

impl Chardevs {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What happens when a user types Ctrl-A x. It is called on a chardev's thread and must not wait for it.
    pub fn on_quit(&self, quit: impl Fn() + Send + Sync + 'static) {
        *self.quit.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(quit));
    }

    /// Makes a chardev. One that waits for a connection keeps others from being made meanwhile.
    pub fn add(&self, options: &ChardevOptions) -> Result<Arc<Chardev>, CharError> {
        self.insert(&options.id, || Chardev::open(options, self.quit.clone()))
    }

    /// Makes a chardev on an open descriptor that is read and written, such as one end of a socket pair.
    pub fn add_fd(&self, id: &str, mux: bool, fd: OwnedFd) -> Result<Arc<Chardev>, CharError> {
        self.insert(id, || Chardev::from_fd(id, mux, fd, self.quit.clone()))
    }

    fn insert(&self, id: &str, make: impl FnOnce() -> Result<Chardev, CharError>) -> Result<Arc<Chardev>, CharError> {
        let mut by_id = self.lock();
        if by_id.contains_key(id) {
            return Err(CharError::Duplicate(id.to_owned()));
        }
        let chardev = Arc::new(make()?);
        by_id.insert(id.to_owned(), chardev.clone());
        Ok(chardev)
    }

    /// The chardev of this id.
    pub fn get(&self, id: &str) -> Result<Arc<Chardev>, CharError> {
        self.lock().get(id).cloned().ok_or_else(|| CharError::NotFound(id.to_owned()))
    }

    /// Removes a chardev that no frontend uses.
    pub fn remove(&self, id: &str) -> Result<(), CharError> {
        let mut by_id = self.lock();
        let chardev = by_id.get(id).ok_or_else(|| CharError::NotFound(id.to_owned()))?;
        if chardev.is_attached() {
            return Err(CharError::Busy(id.to_owned()));
        }
        if let Some(chardev) = by_id.remove(id) {
            chardev.close();
        }
        Ok(())
    }

    /// All chardevs, by id.
    pub fn list(&self) -> Vec<ChardevInfo> {
        let info = |chardev: &Arc<Chardev>| ChardevInfo {
            label: chardev.id().to_owned(),
            filename: chardev.filename().to_owned(),
            frontend_open: chardev.is_attached(),
        };
        self.lock().values().map(info).collect()
    }

    /// Writes what waits everywhere, and closes all chardevs: the last thing before the program ends.
    pub fn close_all(&self) {
        let all = std::mem::take(&mut *self.lock());
        all.values().for_each(|chardev| chardev.close());
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Chardev>>> {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Chardevs {
    fn drop(&mut self) {
        self.close_all();
    }
}
