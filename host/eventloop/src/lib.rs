//! Event loop threads: file descriptors, deferred calls and virtual-clock timers
