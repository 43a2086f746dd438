//! From bytes to operations: decoding, flag liveness, choice of handlers.

mod integer;
mod memory;
mod sse;

pub(crate) use integer::is_cmov;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

use crate::blocks::Code;
use crate::exec::{branch, misc};
use crate::fault::Res;
use crate::op::{self, Handler, Op, flag};
use crate::state::{Cpu, mode};

/// Instructions in one block at most.
const LIMIT: usize = 64;
/// The arithmetic flags, in iced-x86's numbering.
const ALL_FLAGS: u32 = 0x3f;

/// A block that has been lowered.
pub(crate) struct Lowered {
    pub(crate) row: Vec<Op>,
    pub(crate) instructions: Box<[Instruction]>,
    pub(crate) len: u32,
    pub(crate) count: u8,
}

const OPTIONS: u32 = DecoderOptions::AMD
    | DecoderOptions::FORCE_RESERVED_NOP
    | DecoderOptions::NO_WBNOINVD
    | DecoderOptions::NO_MPFX_0FBC
    | DecoderOptions::NO_MPFX_0FBD;

fn bitness(m: u8) -> u32 {
    if m & mode::LONG != 0 {
        64
    } else if m & mode::B32 != 0 {
        32
    } else {
        16
    }
}

/// Whether the first instruction needs bytes of the next page.
pub(crate) fn needs_more(c: &Cpu, rip: u64, code: &Code) -> bool {
    if code.first >= 15 {
        return false;
    }
    let bytes = &code.bytes[..code.first];
    let mut decoder = Decoder::with_ip(bitness(c.mode), bytes, rip, OPTIONS);
    let instruction = decoder.decode();
    instruction.is_invalid() && decoder.last_error() == iced_x86::DecoderError::NoMoreBytes
}

/// Decodes and lowers the block at `rip`.
pub(crate) fn block(c: &Cpu, rip: u64, code: &Code) -> Res<Lowered> {
    let bits = bitness(c.mode);
    let mut decoder = Decoder::with_ip(bits, &code.bytes[..code.len], rip, OPTIONS);
    let limit = if c.mode & mode::STEP != 0 { 1 } else { LIMIT };
    let mut decoded: Vec<Instruction> = Vec::with_capacity(16);
    let mut len = 0;
    while decoded.len() < limit && len < code.first {
        let instruction = decoder.decode();
        if instruction.is_invalid()
            && !decoded.is_empty()
            && decoder.last_error() == iced_x86::DecoderError::NoMoreBytes
        {
            break;
        }
        len += instruction.len();
        // Interrupts must get their chance after the instruction that follows STI.
        let shadowed = decoded.last().is_some_and(is_sti);
        decoded.push(instruction);
        if shadowed || ends_block(&instruction) {
            break;
        }
    }
    let live = liveness(&decoded);
    let mut l = Lower {
        c,
        long: bits == 64,
        row: Vec::with_capacity(decoded.len() + 4),
        kept: Vec::new(),
        fixes: Vec::new(),
        n: 0,
        current: 0,
        begun: 0,
        next_live: true,
    };
    let mut k = 0;
    while let Some(instruction) = decoded.get(k) {
        l.current = (instruction.ip().wrapping_sub(rip)) as u16;
        l.begun = l.row.len();
        if k > 0 && decoded.get(k - 1).is_some_and(is_sti) {
            let o = l.op(misc::unshadow);
            l.row.push(o);
        }
        let flags_live = live.get(k).copied().unwrap_or(true);
        l.next_live = live.get(k + 1).copied().unwrap_or(true);
        let used = l.instruction(instruction, decoded.get(k + 1), flags_live);
        l.n += used as u8;
        k += used;
        if let Some(first) = l.row.get_mut(l.begun) {
            first.flags |= flag::START;
        }
    }
    if decoded.last().is_none_or(|i| !ends_block(i)) {
        l.current = len as u16;
        l.begun = l.row.len();
        let mut o = l.op(branch::fall);
        o.flags |= flag::START;
        l.row.push(o);
        let next = decoded.last().map_or(rip, Instruction::next_ip);
        l.row.push(Op::link(next, op::link));
    }
    let Lower { mut row, kept, fixes, n, .. } = l;
    let instructions = kept.into_boxed_slice();
    for (at, which) in fixes {
        if let (Some(o), Some(i)) = (row.get_mut(at), instructions.get(which)) {
            o.imm = std::ptr::from_ref(i) as u64;
        }
    }
    Ok(Lowered { row, instructions, len: len as u32, count: n })
}

/// Which instructions set flags that somebody reads.
fn liveness(decoded: &[Instruction]) -> Vec<bool> {
    let mut live = vec![true; decoded.len()];
    let mut wanted = ALL_FLAGS;
    for (instruction, live) in decoded.iter().zip(&mut live).rev() {
        let modified = instruction.rflags_modified() & ALL_FLAGS;
        *live = modified & wanted != 0;
        let by_cl = (0..instruction.op_count())
            .any(|i| instruction.op_kind(i) == OpKind::Register && instruction.op_register(i) == Register::CL);
        let conditional = by_cl || instruction.has_rep_prefix() || instruction.has_repne_prefix();
        if !conditional {
            wanted &= !modified;
        }
        wanted |= instruction.rflags_read() & ALL_FLAGS;
        if ends_block(instruction) && !instruction.is_jcc_short_or_near() {
            wanted = ALL_FLAGS;
        }
    }
    live
}

fn is_sti(i: &Instruction) -> bool {
    i.mnemonic() == Mnemonic::Sti
}

/// Whether nothing may follow in the same block.
fn ends_block(i: &Instruction) -> bool {
    use Mnemonic as M;
    if i.flow_control() != FlowControl::Next {
        return true;
    }
    match i.mnemonic() {
        M::Mov => {
            let r = i.op0_register();
            let special = |r: Register| r.is_cr() || r.is_dr() || r.is_tr();
            (i.op0_kind() == OpKind::Register && (special(r) || r == Register::SS))
                || (i.op1_kind() == OpKind::Register && special(i.op1_register()))
        }
        M::Pop => i.op0_kind() == OpKind::Register && i.op0_register() == Register::SS,
        M::Lss
        | M::Popf
        | M::Popfd
        | M::Popfq
        | M::Wrmsr
        | M::Invlpg
        | M::Lmsw
        | M::Clts
        | M::Cpuid
        | M::In
        | M::Out
        | M::Insb
        | M::Insw
        | M::Insd
        | M::Outsb
        | M::Outsw
        | M::Outsd
        | M::Hlt
        | M::Fxrstor
        | M::Fxrstor64
        | M::Ldmxcsr
        | M::Wbinvd
        | M::Invd
        | M::Swapgs
        | M::Int3
        | M::Int1
        | M::INVALID => true,
        _ => false,
    }
}

/// The work of lowering one block.
struct Lower<'a> {
    c: &'a Cpu,
    long: bool,
    row: Vec<Op>,
    kept: Vec<Instruction>,
    /// Operations whose `imm` becomes the address of a kept instruction.
    fixes: Vec<(usize, usize)>,
    /// Instructions lowered so far.
    n: u8,
    /// Offset of the present instruction.
    current: u16,
    /// Where its first operation is.
    begun: usize,
    /// Whether somebody reads the flags that the instruction after it sets.
    next_live: bool,
}

impl Lower<'_> {
    fn op(&self, f: Handler) -> Op {
        let mut o = Op::new(f);
        o.n = self.n;
        o.offset = self.current;
        o
    }

    /// Lowers an instruction, and the next one too if they fuse; returns how many.
    fn instruction(&mut self, i: &Instruction, next: Option<&Instruction>, live: bool) -> usize {
        let from = self.row.len();
        if i.is_invalid() || !crate::cpuid::allows(&self.c.model, i) {
            let o = self.op(misc::undefined);
            self.row.push(o);
            return 1;
        }
        let used = self.fast(i, next, live);
        if used != 0 {
            for o in &mut self.row[from..] {
                if o.flags & flag::LINK == 0 {
                    o.len = i.len() as u8;
                }
            }
            return used;
        }
        self.row.truncate(from);
        self.rare(i);
        1
    }

    /// Lowers to a call of [`crate::rare`].
    fn rare(&mut self, i: &Instruction) {
        let mut o = self.op(misc::rare);
        o.len = i.len() as u8;
        self.fixes.push((self.row.len(), self.kept.len()));
        self.kept.push(*i);
        self.row.push(o);
        if ends_block(i) {
            let mut o = self.op(branch::go);
            o.n = self.n.wrapping_add(1);
            self.row.push(o);
        }
    }

    /// Pushes a branch that ends the block, with its links.
    fn branch(&mut self, mut o: Op, instructions: u8, links: &[u64]) {
        o.n = self.n.wrapping_add(instructions);
        self.row.push(o);
        for &rip in links {
            self.row.push(Op::link(rip, op::link));
        }
    }
}

/// Number of a general register.
fn number(r: Register) -> u8 {
    r.full_register().number() as u8 & 15
}

/// The operand number that handlers expect: a byte index for 8-bit registers.
fn operand(r: Register) -> u8 {
    match r {
        Register::AH | Register::CH | Register::DH | Register::BH => number(r) << 3 | 1,
        _ if r.size() == 1 => number(r) << 3,
        _ => number(r),
    }
}

/// Whether operand `n` is an immediate.
fn is_immediate(i: &Instruction, n: u32) -> bool {
    matches!(
        i.op_kind(n),
        OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64
    )
}

/// The condition code of a Jcc, SETcc or CMOVcc, as in the encoding.
pub(crate) fn condition_number(i: &Instruction) -> u8 {
    use iced_x86::ConditionCode as C;
    match i.condition_code() {
        C::o | C::None => 0,
        C::no => 1,
        C::b => 2,
        C::ae => 3,
        C::e => 4,
        C::ne => 5,
        C::be => 6,
        C::a => 7,
        C::s => 8,
        C::ns => 9,
        C::p => 10,
        C::np => 11,
        C::l => 12,
        C::ge => 13,
        C::le => 14,
        C::g => 15,
    }
}
