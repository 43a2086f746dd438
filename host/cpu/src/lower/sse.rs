//! Which handler carries out an SSE instruction.

use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};

use super::{Lower, number};
use crate::exec::sse::{self, moves};
use crate::op::Handler;
use crate::state::mode;

fn xmm(r: Register) -> u8 {
    r.number() as u8 & 15
}

fn is_xmm(i: &Instruction, n: u32) -> bool {
    n < i.op_count() && i.op_kind(n) == OpKind::Register && i.op_register(n).is_xmm()
}

fn is_general(i: &Instruction, n: u32) -> bool {
    n < i.op_count() && i.op_kind(n) == OpKind::Register && i.op_register(n).is_gpr()
}

fn is_memory(i: &Instruction, n: u32) -> bool {
    n < i.op_count() && i.op_kind(n) == OpKind::Memory
}

impl Lower<'_> {
    /// Lowers to a threaded SSE handler; 0 if there is none.
    pub(super) fn sse(&mut self, i: &Instruction) -> usize {
        if self.c.mode & mode::NO_SSE != 0 {
            return 0;
        }
        let done = self.sse_move(i) || self.sse_packed(i) || self.sse_float(i);
        usize::from(done)
    }

    /// Pushes an operation with its destination in `a` and a source of `size` bytes in `b` or memory.
    fn with_source(&mut self, i: &Instruction, f: Handler, size: usize) {
        let mut o = self.op(f);
        o.a = xmm(i.op0_register());
        if is_memory(i, 1) {
            self.address(i, &mut o, size, false);
        } else {
            o.b = if is_xmm(i, 1) { xmm(i.op1_register()) } else { number(i.op1_register()) };
        }
        self.row.push(o);
    }

    fn sse_store(&mut self, i: &Instruction, f: Handler, size: usize) {
        let mut o = self.op(f);
        o.a = xmm(i.op1_register());
        self.address(i, &mut o, size, true);
        self.row.push(o);
    }

    fn sse_move(&mut self, i: &Instruction) -> bool {
        let (to_xmm, to_memory) = (is_xmm(i, 0), is_memory(i, 0));
        let (from_xmm, from_memory) = (is_xmm(i, 1), is_memory(i, 1));
        match i.mnemonic() {
            M::Movaps | M::Movapd | M::Movdqa if to_xmm && from_xmm => self.with_source(i, moves::reg, 16),
            M::Movups | M::Movupd | M::Movdqu if to_xmm && from_xmm => self.with_source(i, moves::reg, 16),
            M::Movaps | M::Movapd | M::Movdqa if from_memory => self.with_source(i, moves::load_aligned, 16),
            M::Movups | M::Movupd | M::Movdqu if from_memory => self.with_source(i, moves::load, 16),
            M::Movaps | M::Movapd | M::Movdqa | M::Movntps | M::Movntpd | M::Movntdq if to_memory && from_xmm => {
                self.sse_store(i, moves::store_aligned, 16);
            }
            M::Movups | M::Movupd | M::Movdqu if to_memory => self.sse_store(i, moves::store, 16),
            M::Movss if to_xmm && from_xmm => self.with_source(i, moves::single, 4),
            M::Movsd if to_xmm && from_xmm => self.with_source(i, moves::double, 8),
            M::Movq if to_xmm && from_xmm => self.with_source(i, moves::low_zeroed, 8),
            M::Movss | M::Movd if to_xmm && from_memory => self.with_source(i, moves::load_low::<4>, 4),
            M::Movsd | M::Movq if to_xmm && from_memory => self.with_source(i, moves::load_low::<8>, 8),
            M::Movss | M::Movd if to_memory && from_xmm => self.sse_store(i, moves::store_low::<4>, 4),
            M::Movsd | M::Movq if to_memory && from_xmm => self.sse_store(i, moves::store_low::<8>, 8),
            M::Movd if to_xmm && is_general(i, 1) => self.with_source(i, moves::from_general::<4>, 4),
            M::Movq if to_xmm && is_general(i, 1) => self.with_source(i, moves::from_general::<8>, 8),
            M::Movd | M::Movq if is_general(i, 0) && from_xmm => {
                let wide = i.op0_register().size() == 8;
                let mut o = self.op(if wide { moves::to_general::<8> } else { moves::to_general::<4> });
                (o.a, o.b) = (xmm(i.op1_register()), number(i.op0_register()));
                self.row.push(o);
            }
            M::Movlps | M::Movlpd if from_memory => self.with_source(i, moves::insert_low, 8),
            M::Movhps | M::Movhpd if from_memory => self.with_source(i, moves::insert_high, 8),
            M::Movlps | M::Movlpd if to_memory => self.sse_store(i, moves::store_low::<8>, 8),
            M::Movhps | M::Movhpd if to_memory => self.sse_store(i, moves::store_high, 8),
            M::Movhlps => self.with_source(i, moves::high_to_low, 8),
            M::Movlhps => self.with_source(i, moves::low_to_high, 8),
            _ => return false,
        }
        true
    }

    fn sse_packed(&mut self, i: &Instruction) -> bool {
        let m = i.mnemonic();
        if is_general(i, 0) && is_xmm(i, 1) && i.op_count() == 2 {
            let Some(f) = sse::pick_mask(m) else { return false };
            let mut o = self.op(f);
            (o.a, o.b) = (number(i.op0_register()), xmm(i.op1_register()));
            self.row.push(o);
            return true;
        }
        if !is_xmm(i, 0) || !(is_xmm(i, 1) || is_memory(i, 1) || i.op1_kind() == OpKind::Immediate8) {
            return false;
        }
        if i.op1_kind() == OpKind::Immediate8 {
            let f = match m {
                M::Pslldq => sse::pick_shift_bytes(true),
                M::Psrldq => sse::pick_shift_bytes(false),
                _ => match sse::pick_shift(m) {
                    Some(f) => f,
                    None => return false,
                },
            };
            let mut o = self.op(f);
            o.a = xmm(i.op0_register());
            o.imm = u64::from(i.immediate8());
            self.row.push(o);
            return true;
        }
        let shuffle = match m {
            M::Pshufd => sse::PSHUFD,
            M::Pshuflw => sse::PSHUFLW,
            M::Pshufhw => sse::PSHUFHW,
            M::Shufps => sse::SHUFPS,
            M::Shufpd => sse::SHUFPD,
            _ => {
                let Some((f, size)) = sse::pick_packed(m, is_memory(i, 1)) else { return false };
                self.with_source(i, f, size);
                return true;
            }
        };
        self.with_source(i, sse::pick_shuffle(shuffle, is_memory(i, 1)), 16);
        if let Some(o) = self.row.last_mut() {
            o.imm = u64::from(i.immediate8());
        }
        true
    }

    /// Instructions that depend on MXCSR.
    fn sse_float(&mut self, i: &Instruction) -> bool {
        if self.c.mode & mode::MXCSR != 0 {
            return false;
        }
        let m = i.mnemonic();
        let memory = is_memory(i, 1);
        if is_general(i, 0) && (memory || is_xmm(i, 1)) {
            let wide = i.op0_register().size() == 8;
            let Some((f, size)) = sse::pick_to_integer(m, memory, wide) else { return false };
            self.with_source(i, f, size);
            if let Some(o) = self.row.last_mut() {
                o.a = number(i.op0_register());
            }
            return true;
        }
        if !is_xmm(i, 0) {
            return false;
        }
        if matches!(m, M::Cvtsi2sd | M::Cvtsi2ss) {
            let size = if memory { i.memory_size().size() } else { i.op1_register().size() };
            self.with_source(i, sse::pick_from_integer(m == M::Cvtsi2sd, memory, size), size);
            return true;
        }
        if !memory && !is_xmm(i, 1) {
            return false;
        }
        let compare = || {
            let predicate = (i.op_count() == 3).then(|| i.immediate8())?;
            if predicate > 7 { None } else { sse::pick_compare(m, memory, predicate) }
        };
        let found = sse::pick_ordered(m, memory).or_else(|| sse::pick_float(m, memory)).or_else(compare);
        let Some((f, size)) = found else { return false };
        self.with_source(i, f, size);
        true
    }
}
