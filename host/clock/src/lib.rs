//! The virtual clock: all time that a guest can see
