//! Which handler carries out an SSE instruction.

use iced_x86::Instruction;

use super::Lower;

impl Lower<'_> {
    /// Lowers to a threaded SSE handler; 0 if there is none.
    pub(super) fn sse(&mut self, _i: &Instruction) -> usize {
        0
    }
}
