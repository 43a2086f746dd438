//! Small programs, run on a bare CPU.

mod programs;
