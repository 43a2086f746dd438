//! The server over real sockets.

mod harness;
mod python;
mod sessions;
mod texts;
