//! The only crate a cardcage plugin needs
