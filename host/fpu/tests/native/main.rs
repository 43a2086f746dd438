//! Every instruction against the host's own: each is encoded, put on an executable page, and run between FXRSTOR64 and
//! FXSAVE64 with the same operands.

mod machine;
mod sse;
mod x87;
