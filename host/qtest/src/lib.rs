//! The qtest protocol: a machine driven over a socket, with no CPU
