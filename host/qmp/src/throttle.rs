//! Rate limits of events: the first goes out at once; of those that follow within the window the last is kept and goes
//! out when the window ends.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Length of a window.
const WINDOW: Duration = Duration::from_secs(1);

/// Events that are limited, and the member of their data that separates one source from another.
const LIMITED: [(&str, Option<&str>); 9] = [
    ("RTC_CHANGE", None),
    ("BLOCK_IO_ERROR", Some("qom-path")),
    ("WATCHDOG", None),
    ("BALLOON_CHANGE", None),
    ("QUORUM_REPORT_BAD", Some("node-name")),
    ("QUORUM_FAILURE", None),
    ("VSERPORT_CHANGE", Some("id")),
    ("MEMORY_DEVICE_SIZE_CHANGE", Some("qom-path")),
    ("HV_BALLOON_STATUS_REPORT", None),
];

struct Window {
    ends: Instant,
    held: Option<Value>,
}

/// The windows that are open. Time is handed in.
#[derive(Default)]
pub(crate) struct Throttle {
    windows: HashMap<(&'static str, String), Window>,
}

impl Throttle {
    /// Takes an event that happened at `now`; gives it back if it may go out at once.
    pub(crate) fn offer(&mut self, name: &str, event: Value, now: Instant) -> Option<Value> {
        let Some((name, member)) = LIMITED.iter().find(|(limited, _)| *limited == name) else { return Some(event) };
        let source = member.and_then(|m| event.get("data")?.get(m)?.as_str()).unwrap_or_default().to_owned();
        match self.windows.get_mut(&(*name, source.clone())) {
            Some(window) if now < window.ends => {
                window.held = Some(event);
                None
            }
            // The window has ended and its last event is overtaken by this one.
            _ => {
                self.windows.insert((name, source), Window { ends: now + WINDOW, held: None });
                Some(event)
            }
        }
    }

    /// Closes the windows that have ended by `now` and gives the events that they held, in order. Each of those opens
    /// a new window.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<Value> {
        let mut due: Vec<(Instant, Value)> = Vec::new();
        self.windows.retain(|_, window| {
            if now < window.ends {
                return true;
            }
            let held = window.held.take();
            let keep = held.is_some();
            due.extend(held.map(|event| (window.ends, event)));
            window.ends = now + WINDOW;
            keep
        });
        due.sort_by_key(|(ends, _)| *ends);
        due.into_iter().map(|(_, event)| event).collect()
    }

    /// When [`due`](Self::due) next has something to do.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.windows.values().map(|window| window.ends).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(source: &str, n: u32) -> Value {
        json!({"data": {"id": source, "n": n}})
    }

    #[test]
    fn the_first_goes_out_at_once_and_the_last_when_the_window_ends() {
        let mut throttle = Throttle::default();
        let start = Instant::now();
        assert_eq!(throttle.offer("RTC_CHANGE", event("", 1), start), Some(event("", 1)));
        assert_eq!(throttle.offer("RTC_CHANGE", event("", 2), start + WINDOW / 4), None);
        assert_eq!(throttle.offer("RTC_CHANGE", event("", 3), start + WINDOW / 2), None);
        assert_eq!(throttle.next(), Some(start + WINDOW));
        assert_eq!(throttle.due(start + WINDOW / 2), Vec::<Value>::new());
        assert_eq!(throttle.due(start + WINDOW), [event("", 3)]);
        assert_eq!(throttle.offer("RTC_CHANGE", event("", 4), start + WINDOW * 3 / 2), None);
        assert_eq!(throttle.due(start + WINDOW * 2), [event("", 4)]);
        assert_eq!(throttle.due(start + WINDOW * 3), Vec::<Value>::new());
        assert_eq!(throttle.next(), None);
    }

    #[test]
    fn each_source_has_a_window_of_its_own() {
        let mut throttle = Throttle::default();
        let now = Instant::now();
        for id in ["a", "b"] {
            assert!(throttle.offer("VSERPORT_CHANGE", event(id, 1), now).is_some());
            assert!(throttle.offer("VSERPORT_CHANGE", event(id, 2), now).is_none());
        }
        assert_eq!(throttle.due(now + WINDOW).len(), 2);
    }

    #[test]
    fn other_events_are_never_held() {
        let mut throttle = Throttle::default();
        let now = Instant::now();
        assert!((0..10).all(|n| throttle.offer("STOP", event("", n), now).is_some()));
        assert_eq!(throttle.next(), None);
    }
}
