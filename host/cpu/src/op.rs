//! The form that guest code is executed in: rows of operations, each of which calls the next.
//!
//! A decoded block is a boxed row of [`Op`]s. Its last member carries [`flag::END`] and points at the block; direct
//! branches are followed by [`Link`]s in the same row, which remember where they lead. An operation's handler ends
//! with a call of the next operation's handler. Optimised builds turn these calls into jumps ("threaded code"); others
//! return the next operation to a loop in [`run`].
//!
//! # Invariants
//! * Every `Op` lives in a row that ends with `END`, and no handler steps beyond its own block's end.
//! * Rows are freed only when no handler is active (`Cpu::trim_blocks`, `Cpu::flush_blocks`).
//! * Register numbers in an `Op` are below 32 ([`Reg`]); byte registers below 128 ([`Op::a`] as a byte index).
#![expect(unsafe_code, reason = "operations are reached through raw pointers within their row")]

use std::cell::Cell;

use iced_x86::Instruction;

use crate::blocks::Block;
use crate::state::Cpu;

/// Flags of an operation.
pub(crate) mod flag {
    /// Last of its row; `imm` is the address of the block.
    pub(crate) const END: u8 = 1;
    /// First operation of an instruction.
    pub(crate) const START: u8 = 2;
    /// The memory operand is relative to SS: a non-canonical address is #SS instead of #GP.
    pub(crate) const STACK: u8 = 4;
    /// The row entry is a [`Link`].
    pub(crate) const LINK: u8 = 8;
}

#[cfg(tail_calls)]
pub(crate) type Ret = ();
#[cfg(not(tail_calls))]
pub(crate) type Ret = *const Op;

/// What an operation does.
pub(crate) type Handler = extern "C" fn(&mut Cpu, &Op) -> Ret;

/// One operation: 32 bytes.
#[repr(C)]
#[derive(Clone)]
pub(crate) struct Op {
    /// Replaced by `stale` when the block dies.
    pub(crate) f: Cell<Handler>,
    pub(crate) imm: u64,
    pub(crate) disp: i32,
    pub(crate) base: u8,
    pub(crate) idx: u8,
    pub(crate) scale: u8,
    /// First register operand: a register number, or a byte index for 8-bit operands.
    pub(crate) a: u8,
    /// Second register operand.
    pub(crate) b: u8,
    /// Instructions of the block that are done when control leaves here.
    pub(crate) n: u8,
    pub(crate) flags: u8,
    /// Length of the instruction.
    pub(crate) len: u8,
    /// Offset of the instruction from the start of the block.
    pub(crate) offset: u16,
    pub(crate) aux: u16,
}

/// Where a direct branch leads: follows the branch in the row.
#[repr(C)]
pub(crate) struct Link {
    f: Cell<Handler>,
    to: Cell<*const Op>,
    rip: u64,
    _n: [u8; 2],
    flags: u8,
    /// Which of the two epochs counts: bit 63 of the target.
    half: u8,
    epoch: Cell<u32>,
}

const _: () = assert!(size_of::<Op>() == 32 && size_of::<Link>() == 32);
const _: () = assert!(std::mem::offset_of!(Op, flags) == std::mem::offset_of!(Link, flags));

impl Op {
    /// An operation that does nothing but go on.
    pub(crate) fn new(f: Handler) -> Op {
        Op {
            f: Cell::new(f),
            imm: 0,
            disp: 0,
            base: crate::state::ZERO,
            idx: crate::state::ZERO,
            scale: 0,
            a: 0,
            b: 0,
            n: 0,
            flags: 0,
            len: 0,
            offset: 0,
            aux: 0,
        }
    }

    /// A link to `rip`, not yet resolved, in the shape of an operation.
    pub(crate) fn link(rip: u64, f: Handler) -> Op {
        let link = Link {
            f: Cell::new(f),
            to: Cell::new(std::ptr::null()),
            rip,
            _n: [0; 2],
            flags: flag::LINK,
            half: (rip >> 63) as u8,
            epoch: Cell::new(0),
        };
        // SAFETY: both are `repr(C)`, 32 bytes, without padding that matters, and every bit pattern that a link has is
        // one that an `Op` may have: a function pointer, then integers.
        unsafe { std::mem::transmute::<Link, Op>(link) }
    }

    /// The operation after this one.
    #[inline(always)]
    pub(crate) fn next(&self) -> &Op {
        // SAFETY: see the module's invariants: only `END` has no successor, and `END` is never executed past.
        unsafe { &*(self as *const Op).add(1) }
    }

    /// The `i`-th link after this operation.
    #[inline(always)]
    pub(crate) fn link_at(&self, i: usize) -> &Link {
        // SAFETY: lowering puts as many links behind a branch as its handler asks for; the layouts agree.
        unsafe { &*(self as *const Op).add(1 + i).cast::<Link>() }
    }

    /// The decoded instruction that `imm` points at.
    #[inline(always)]
    pub(crate) fn instruction(&self) -> &Instruction {
        // SAFETY: used only by handlers for which lowering has stored the address of an instruction that the block
        // owns.
        unsafe { &*(self.imm as *const Instruction) }
    }

    /// The block that this operation is part of. Slow: walks to the end of the row.
    pub(crate) fn block(&self) -> *const Block {
        let mut op = self as *const Op;
        // SAFETY: every row ends with an `END`.
        unsafe {
            while (*op).flags & flag::END == 0 {
                op = op.add(1);
            }
            (*op).imm as *const Block
        }
    }

    /// The guest instruction pointer of this operation's instruction.
    pub(crate) fn rip(&self) -> u64 {
        let block = self.block();
        // SAFETY: blocks live as long as their rows.
        let start = unsafe { (*block).rip };
        start.wrapping_add(u64::from(self.offset))
    }
}

impl Link {
    /// Remembers where the target is, until the epoch of its half ends.
    pub(crate) fn resolve(&self, to: *const Op, epoch: u32) {
        self.to.set(to);
        self.epoch.set(epoch);
    }
}

/// Calls `op`'s handler.
#[inline(always)]
#[cfg(tail_calls)]
pub(crate) fn enter(c: &mut Cpu, op: &Op) -> Ret {
    (op.f.get())(c, op)
}
/// Hands `op` to the loop.
#[inline(always)]
#[cfg(not(tail_calls))]
pub(crate) fn enter(_c: &mut Cpu, op: &Op) -> Ret {
    op
}

/// Goes on with the next operation.
#[inline(always)]
pub(crate) fn next(c: &mut Cpu, op: &Op) -> Ret {
    enter(c, op.next())
}

/// Leaves threaded code: back to the run loop.
#[inline(always)]
#[cfg(tail_calls)]
pub(crate) fn stop() -> Ret {}
/// Leaves threaded code: back to the run loop.
#[inline(always)]
#[cfg(not(tail_calls))]
pub(crate) fn stop() -> Ret {
    std::ptr::null()
}

/// Follows the `i`-th link of a branch.
#[inline(always)]
pub(crate) fn follow(c: &mut Cpu, op: &Op, i: usize) -> Ret {
    let link = op.link_at(i);
    c.budget = c.budget.wrapping_sub(i64::from(op.n));
    if c.budget >= 0 && link.epoch.get() == c.epoch[usize::from(link.half & 1)] {
        // SAFETY: a link whose epoch is the present one leads to a live row: rows are freed only after
        // new epochs have begun.
        return enter(c, unsafe { &*link.to.get() });
    }
    follow_slowly(c, link)
}

/// Has the calling convention of handlers, so that a handler can end with a jump here.
#[cold]
#[inline(never)]
extern "C" fn follow_slowly(c: &mut Cpu, link: &Link) -> Ret {
    c.rip = link.rip;
    if c.budget < 0 {
        return stop();
    }
    let to = c.find_block(link.rip);
    if to.is_null() {
        return stop();
    }
    link.resolve(to, c.epoch[usize::from(link.half & 1)]);
    // SAFETY: `find_block` returns null or a live row.
    enter(c, unsafe { &*to })
}

/// Goes on at `rip`, wherever that is.
#[inline(always)]
pub(crate) fn jump(c: &mut Cpu, rip: u64, n: u8) -> Ret {
    c.budget = c.budget.wrapping_sub(i64::from(n));
    let entry = &c.jumps[(rip & 0xffff) as usize];
    if c.budget >= 0 && entry.tag == rip ^ c.key[(rip >> 63) as usize] {
        // SAFETY: a tag that matches belongs to the present epoch, in which the row is live.
        return enter(c, unsafe { &*entry.op });
    }
    jump_slowly(c, rip)
}

/// As [`follow_slowly`].
#[cold]
#[inline(never)]
extern "C" fn jump_slowly(c: &mut Cpu, rip: u64) -> Ret {
    c.rip = rip;
    if c.budget < 0 {
        return stop();
    }
    let to = c.find_block(rip);
    if to.is_null() {
        return stop();
    }
    // SAFETY: as in `follow_slowly`.
    enter(c, unsafe { &*to })
}

/// Replaces the handlers of a block that has died: control leaves before the instruction.
///
/// A link may have led here. From now on all links are looked up again, so that none does so twice. That is dear, and
/// most blocks that die are never run again; hence it is done here, not where the block dies.
pub(crate) extern "C" fn stale(c: &mut Cpu, op: &Op) -> Ret {
    let rip = op.rip();
    c.forget_dead_links(rip);
    c.budget = c.budget.wrapping_sub(i64::from(op.n));
    c.rip = rip;
    stop()
}

/// Never executed: the mark at the end of a row.
pub(crate) extern "C" fn end(c: &mut Cpu, op: &Op) -> Ret {
    stale(c, op)
}

/// Never executed: a link is not an operation.
pub(crate) extern "C" fn link(c: &mut Cpu, op: &Op) -> Ret {
    stale(c, op)
}

/// Runs from `op` until control leaves threaded code.
#[inline(never)]
pub(crate) fn run(c: &mut Cpu, op: *const Op) {
    #[cfg(tail_calls)]
    // SAFETY: the caller got `op` from `find_block`.
    enter(c, unsafe { &*op });
    #[cfg(not(tail_calls))]
    {
        let mut op = op;
        while !op.is_null() {
            // SAFETY: handlers return null or an operation of a live row.
            let current = unsafe { &*op };
            op = (current.f.get())(c, current);
        }
    }
}
