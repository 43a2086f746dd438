//! Interrupt lines that a test intercepts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// Changes that are kept for a client that asks for nothing; beyond them only each line's last level is.
const KEPT: usize = 1 << 16;

#[derive(Default)]
struct State {
    levels: BTreeMap<u32, bool>,
    changes: Vec<(u32, bool)>,
}

/// Where levels of intercepted lines are reported. Cheap to clone; usable from any thread.
///
/// The client hears of changes before the reply to its next command.
#[derive(Clone, Default)]
pub struct IrqLines(Arc<Mutex<State>>);

impl IrqLines {
    /// Sets a line's level. Setting the level that it has already is no change.
    pub fn set(&self, number: u32, raised: bool) {
        let mut state = self.state();
        if state.levels.insert(number, raised).unwrap_or(false) == raised {
            return;
        }
        state.changes.push((number, raised));
        if state.changes.len() > KEPT {
            state.changes = state.levels.iter().map(|(n, raised)| (*n, *raised)).collect();
        }
    }

    /// Takes the changes since the last call.
    pub(crate) fn take(&self) -> Vec<(u32, bool)> {
        std::mem::take(&mut self.state().changes)
    }

    /// Forgets all levels: a new client has come.
    pub(crate) fn reset(&self) {
        *self.state() = State::default();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_are_reported() {
        let lines = IrqLines::default();
        for (number, raised) in [(1, false), (1, true), (1, true), (8, true), (1, false)] {
            lines.set(number, raised);
        }
        assert_eq!(lines.take(), [(1, true), (8, true), (1, false)]);
        assert_eq!(lines.take(), []);
    }

    #[test]
    fn a_line_that_toggles_for_nobody_takes_no_memory() {
        let lines = IrqLines::default();
        (0..1 << 20).for_each(|n| lines.set(3, n % 2 == 0));
        let changes = lines.take();
        assert!(changes.len() <= KEPT);
        assert_eq!(changes.last(), Some(&(3, false)));
    }
}
