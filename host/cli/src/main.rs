//! The `cardcage` binary: the command line, and the tools around virtual machines.
//!
//! `cardcage OPTIONS` runs a machine ([`vm`]); `cardcage plugin …` looks at plugins ([`plugin`]).

mod args;
mod devices;
mod help;
mod log;
mod monitor;
mod plugin;
mod signals;
mod vm;

use std::ffi::OsString;
use std::process::ExitCode;

/// Exit status of a command line that makes no sense.
pub(crate) const USAGE: u8 = 2;

/// An error of the command line: ends with status 2.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for Usage {}

/// Makes any error one of the command line.
pub(crate) fn usage(error: impl std::fmt::Display) -> anyhow::Error {
    Usage(error.to_string()).into()
}

/// The error with those of its causes that it does not tell itself.
fn sentence(error: &anyhow::Error) -> String {
    error
        .chain()
        .skip(1)
        .map(ToString::to_string)
        .fold(error.to_string(), |text, cause| if text.contains(&cause) { text } else { format!("{text}: {cause}") })
}

fn main() -> ExitCode {
    log::init();
    let words: Vec<OsString> = std::env::args_os().collect();
    let result = match words.get(1).and_then(|w| w.to_str()) {
        Some("plugin") => plugin::run(words.into_iter().skip(1)).map(|()| 0),
        _ => args::parse(words).and_then(|args| vm::run(&args)),
    };
    match result {
        Ok(status) => ExitCode::from(u8::try_from(status & 0xff).unwrap_or(1)),
        Err(error) => {
            eprintln!("cardcage: {}", sentence(&error));
            ExitCode::from(if error.is::<Usage>() { USAGE } else { 1 })
        }
    }
}
