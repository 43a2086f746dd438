//! Instructions that have no handler in threaded form, carried out from their decoded form.
//!
//! [`execute`] is called with `Cpu::rip` at the next instruction; branches change it. On a fault nothing but what the
//! architecture says has changed, and the caller puts `rip` back.

mod control;
mod integer;
mod operands;
mod stack;
mod string;
mod system;
mod vector;
mod x87;

use iced_x86::{Instruction, Mnemonic as M};

use crate::fault::{Fault, Res};
use crate::state::Cpu;

/// Carries out one instruction.
pub(crate) fn execute(c: &mut Cpu, i: &Instruction) -> Res {
    if i.has_lock_prefix() && !lockable(i) {
        return Err(Fault::UD);
    }
    if let Some(result) = integer::execute(c, i) {
        return result;
    }
    if let Some(result) = stack::execute(c, i) {
        return result;
    }
    if let Some(result) = string::execute(c, i) {
        return result;
    }
    if let Some(result) = control::execute(c, i) {
        return result;
    }
    if let Some(result) = system::execute(c, i) {
        return result;
    }
    if let Some(result) = x87::execute(c, i) {
        return result;
    }
    if let Some(result) = vector::execute(c, i) {
        return result;
    }
    Err(Fault::UD)
}

/// Whether LOCK is allowed: only with a destination in memory, on some instructions.
fn lockable(i: &Instruction) -> bool {
    i.op0_kind() == iced_x86::OpKind::Memory
        && matches!(
            i.mnemonic(),
            M::Add
                | M::Or
                | M::Adc
                | M::Sbb
                | M::And
                | M::Sub
                | M::Xor
                | M::Inc
                | M::Dec
                | M::Neg
                | M::Not
                | M::Xchg
                | M::Xadd
                | M::Cmpxchg
                | M::Cmpxchg8b
                | M::Cmpxchg16b
                | M::Bts
                | M::Btr
                | M::Btc
        )
}
