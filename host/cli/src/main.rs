//! The cardcage binary: command line, monitors and tools
fn main() {}
