//! Handlers in threaded form, for the instructions that guests spend their time in.
//!
//! Handlers are generic over operation, operand size and whether the flags they set are read later; the functions
//! called `pick_…` choose one. What has no handler here is carried out by [`crate::rare`].

pub(crate) mod address;
pub(crate) mod alu;
pub(crate) mod branch;
pub(crate) mod fused;
pub(crate) mod misc;
pub(crate) mod mov;
pub(crate) mod shift;
pub(crate) mod sse;

/// The value of an `Option`, or leave threaded code (a fault has been noted).
macro_rules! get {
    ($e:expr) => {
        match $e {
            Some(v) => v,
            None => return crate::op::stop(),
        }
    };
}
/// Goes on only if true; else leaves threaded code (a fault has been noted).
macro_rules! check {
    ($e:expr) => {
        if !$e {
            return crate::op::stop();
        }
    };
}
/// The value of an `Option`, or carry on with the handler for what the TLB does not have. As the last thing that a
/// handler does, that call costs the usual path nothing: no register has to be saved for it.
macro_rules! fast {
    ($e:expr, $slowly:expr) => {
        match $e {
            Some(v) => v,
            None => return $slowly,
        }
    };
}
/// Chooses an instance by operand size.
macro_rules! by_size {
    ($size:expr, $f:ident [$($p:expr),* ; $($q:expr),*]) => {
        match $size {
            1 => $f::<$({ $p },)* 1 $(, { $q })*> as crate::op::Handler,
            2 => $f::<$({ $p },)* 2 $(, { $q })*>,
            4 => $f::<$({ $p },)* 4 $(, { $q })*>,
            _ => $f::<$({ $p },)* 8 $(, { $q })*>,
        }
    };
}
/// Chooses an instance by condition code, then size.
macro_rules! by_cc {
    ($cc:expr, $m:ident!($($head:tt)*)) => {
        match $cc & 15 {
            0 => $m!($($head)* 0), 1 => $m!($($head)* 1), 2 => $m!($($head)* 2), 3 => $m!($($head)* 3),
            4 => $m!($($head)* 4), 5 => $m!($($head)* 5), 6 => $m!($($head)* 6), 7 => $m!($($head)* 7),
            8 => $m!($($head)* 8), 9 => $m!($($head)* 9), 10 => $m!($($head)* 10), 11 => $m!($($head)* 11),
            12 => $m!($($head)* 12), 13 => $m!($($head)* 13), 14 => $m!($($head)* 14), _ => $m!($($head)* 15),
        }
    };
}
pub(crate) use {by_cc, by_size, check, fast, get};
