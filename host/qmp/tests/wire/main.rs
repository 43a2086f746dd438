//! The server over real sockets.

mod harness;
mod process;
mod sessions;
mod texts;
