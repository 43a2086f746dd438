//! SSE and MMX instructions as operations on operand values (SDM volume 2; volume 1, chapters 9 to 12).
//!
//! A decoder finds an [`Instruction`] once, by its [`Encoding`]; [`Instruction::execute`] then computes the new value
//! of the destination from its old value, the source and the immediate byte:
//! * *destination* is operand 0 and *source* operand 1, zero-extended to 16 bytes each. Of the result the interpreter
//!   writes as many bytes as operand 0 has: an XMM register takes all 16.
//! * Where the destination is a general register, the low quadword is its value, zero-extended.
//! * Where the destination is RFLAGS (COMISS and its kin, PTEST), the low quadword holds ZF, PF and CF at their places;
//!   OF, SF and AF become zero.
//! * The immediate of shifts by a constant counts as `immediate`, with no source.
//!
//! MMX registers come from [`FpuState::mm`]; `execute` does the change of the x87 state that MMX instructions bring.
//! An interpreter looks at [`FpuState::math_fault_pending`] before it touches the memory operand of one.
//!
//! MASKMOVDQU, MASKMOVQ, MOVNTI, EMMS, LDMXCSR, STMXCSR, FXSAVE, FXRSTOR and CLFLUSH are the interpreter's, with
//! [`byte_mask`] and the methods of [`FpuState`]; CRC32 and POPCNT are [`crc32`] and [`popcnt`]; the string
//! comparisons of SSE4.2 are [`StringCompare`].

mod arrange;
mod bits;
mod exact;
mod packed;
mod strings;
mod table;
mod unmasked;

use std::collections::HashMap;
use std::sync::LazyLock;

pub use crate::fast::Xmm;
pub use bits::{byte_mask, crc32, popcnt};
pub use strings::{StringCompare, StringResult};

use crate::mxcsr::{Env, settle};
use crate::{Fault, FpuState};
use unmasked::Elements;

/// Opcode map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Map {
    /// 0F.
    M0F,
    /// 0F 38.
    M0F38,
    /// 0F 3A.
    M0F3A,
}

/// Mandatory prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Prefix {
    /// None of the others.
    None,
    /// 66.
    P66,
    /// F3.
    F3,
    /// F2.
    F2,
}

/// What selects an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoding {
    /// Opcode map.
    pub map: Map,
    /// Mandatory prefix.
    pub prefix: Prefix,
    /// Opcode byte.
    pub opcode: u8,
    /// The reg field of the ModR/M byte, which selects within 0F 71 to 0F 73.
    pub reg: u8,
    /// REX.W.
    pub wide: bool,
    /// Whether the r/m operand is in memory.
    pub memory: bool,
}

/// Which encodings with the same map, prefix and opcode an [`Instruction`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Always,
    Register,
    Memory,
    Narrow,
    Wide,
    Reg(u8),
}

impl When {
    fn holds(self, encoding: Encoding) -> bool {
        match self {
            Self::Always => true,
            Self::Register => !encoding.memory,
            Self::Memory => encoding.memory,
            Self::Narrow => !encoding.wide,
            Self::Wide => encoding.wide,
            Self::Reg(reg) => encoding.reg == reg,
        }
    }
}

type Plain = fn(&mut Xmm, &Xmm);
type WithImmediate = fn(&mut Xmm, &Xmm, u8);
type Float = fn(&mut Env, &mut Xmm, &Xmm);
type FloatWithImmediate = fn(&mut Env, &mut Xmm, &Xmm, u8);

/// How an instruction is carried out.
#[derive(Debug, Clone, Copy)]
enum Run {
    Plain(Plain),
    WithImmediate(WithImmediate),
    /// The immediate is the shift count.
    ShiftByImmediate(Plain),
    Float(Float, Elements),
    FloatWithImmediate(FloatWithImmediate),
    /// Blends elements of so many bits by the signs in XMM0.
    BlendByXmm0(u32),
    /// An MMX instruction by way of the XMM one.
    Mmx(Plain, Half),
}

/// How 64-bit operands go through a 128-bit instruction.
#[derive(Debug, Clone, Copy)]
enum Half {
    /// Operands and result in the low half.
    Low,
    /// Result in the high half.
    High,
    /// Both operands in one register; the result of either source in the low half.
    Joined,
    /// As `Low`; bit 3 of each byte of the source is ignored.
    ByteIndices,
}

/// An SSE or MMX instruction.
#[derive(Debug)]
pub struct Instruction {
    name: &'static str,
    map: Map,
    prefix: Prefix,
    opcode: u8,
    when: When,
    run: Run,
    alignment: u8,
    mmx: bool,
    beyond_sse2: bool,
}

type ByOpcode = HashMap<(Map, Prefix, u8), Vec<&'static Instruction>>;

/// The instruction with this encoding. `None` if there is none such, or if it is newer than SSE2 and the host lacks
/// SSE4.2.
pub fn find(encoding: Encoding) -> Option<&'static Instruction> {
    static BY_OPCODE: LazyLock<ByOpcode> = LazyLock::new(|| {
        let mut map = ByOpcode::new();
        for instruction in table::all() {
            map.entry((instruction.map, instruction.prefix, instruction.opcode)).or_default().push(instruction);
        }
        map
    });
    let candidates = BY_OPCODE.get(&(encoding.map, encoding.prefix, encoding.opcode))?;
    let found = candidates.iter().find(|instruction| instruction.when.holds(encoding))?;
    (!found.beyond_sse2 || bits::host_has_sse42()).then_some(*found)
}

/// The first instruction with this mnemonic.
#[cfg(test)]
pub(crate) fn named(name: &str) -> Option<&'static Instruction> {
    table::all().find(|instruction| instruction.name == name)
}

impl Instruction {
    /// Its mnemonic.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether it belongs to MMX or takes an MMX register: it waits for x87 exceptions and resets TOP and tags.
    pub fn is_mmx(&self) -> bool {
        self.mmx
    }

    /// The alignment that a memory operand must have (else #GP): 16 or 1.
    pub fn alignment(&self) -> u64 {
        self.alignment.into()
    }

    /// Computes the new value of the destination. After a fault `destination` is as before, and of the state only
    /// flags of MXCSR and what MMX instructions change in the x87 state.
    pub fn execute(
        &self,
        state: &mut FpuState,
        destination: &mut Xmm,
        source: &Xmm,
        immediate: u8,
    ) -> Result<(), Fault> {
        if self.mmx {
            // The registers have become MMX registers even if a SIMD exception follows.
            state.enter_mmx()?;
        }
        let mut value = *destination;
        match self.run {
            Run::Plain(run) => run(&mut value, source),
            Run::WithImmediate(run) => run(&mut value, source, immediate),
            Run::ShiftByImmediate(run) => run(&mut value, &[immediate.into(), 0]),
            Run::Float(run, elements) => {
                let mut env = Env::of(state);
                run(&mut env, &mut value, source);
                let raised = elements.flags(state, env.raised(), run, [destination, source], &value);
                settle(state, raised)?;
            }
            Run::FloatWithImmediate(run) => {
                let mut env = Env::of(state);
                run(&mut env, &mut value, source, immediate);
                settle(state, env.raised())?;
            }
            Run::BlendByXmm0(width) => arrange::blend_by_sign(&mut value, source, &state.xmm[0], width),
            Run::Mmx(run, half) => half.run(run, &mut value, source),
        }
        *destination = value;
        Ok(())
    }
}

impl Half {
    fn run(self, run: Plain, destination: &mut Xmm, source: &Xmm) {
        let (d, s) = (destination[0], source[0]);
        let (mut value, operand) = match self {
            Self::Low | Self::High => ([d, 0], [s, 0]),
            Self::Joined => ([d, s], [d, s]),
            Self::ByteIndices => ([d, 0], [s & 0x8787_8787_8787_8787, 0]),
        };
        run(&mut value, &operand);
        *destination = [if matches!(self, Self::High) { value[1] } else { value[0] }, 0];
    }
}
