//! What tests of the whole program share: where the program, its plugins and the guests are, and how a test starts one
//! and talks to it.
//!
//! The environment says where things are (`scripts/test` sets it):
//!
//! * `CARDCAGE_BIN`: the program;
//! * `CARDCAGE_PLUGIN_PATH`: folders with plugins, which the program reads itself;
//! * `CARDCAGE_GUESTS`: kernels and the initial ramdisk, as `scripts/guests` makes them.
//!
//! A test that cannot run prints `skipped: REASON` at the start of a line and returns. Whatever does not go as expected
//! panics with a text that names it, and no wait is without end.

#![expect(clippy::print_stdout, reason = "why a test is skipped is for the log")]

mod cage;
mod console;
mod guest;
mod monitor;
pub mod stranger;

pub use cage::{Cage, Ended, run};
pub use console::Console;
pub use guest::{Guest, kernel};
pub use monitor::Monitor;

use std::path::PathBuf;
use std::time::Duration;

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Says why a test does not run.
pub fn skip(reason: impl std::fmt::Display) {
    println!("skipped: {reason}");
}

/// The program under test; `None`, with the reason printed, where there is none.
pub fn program() -> Option<PathBuf> {
    let Some(path) = std::env::var_os("CARDCAGE_BIN").map(PathBuf::from) else {
        skip("CARDCAGE_BIN names no program; scripts/test sets it");
        return None;
    };
    assert!(path.is_file(), "CARDCAGE_BIN is '{}', which is no file", path.display());
    Some(path)
}

/// The program under test with some plugins in its path; `None`, with the reason printed, where one is missing.
pub fn program_with(plugins: &[&str]) -> Option<PathBuf> {
    let program = program()?;
    let list = run(&program, ["plugin", "list", "--json"]);
    let list: serde_json::Value = serde_json::from_str(&list.stdout).expect("plugin list --json prints JSON");
    let has = |name: &str| list.as_array().expect("a list").iter().any(|p| p["name"] == name && p["state"] == "loaded");
    match plugins.iter().find(|name| !has(name)) {
        None => Some(program),
        Some(missing) => {
            skip(format!("there is no plugin '{missing}' in CARDCAGE_PLUGIN_PATH"));
            None
        }
    }
}

/// Whether a tool of the host can be started; prints the reason for skipping where it cannot.
pub fn tool(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = std::env::split_paths(&path).any(|folder| folder.join(name).is_file());
    if !there {
        skip(format!("this machine has no {name}"));
    }
    there
}

/// The workspace that this crate was built in.
pub fn workspace() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace is there")
}
