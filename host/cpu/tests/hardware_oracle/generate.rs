//! Random sequences of user-level instructions of x86-64-v1 with CMPXCHG16B.
//!
//! A sequence is made of units: an instruction, preceded by others where it needs them (a string instruction its
//! pointers, a reader of flags that are undefined a definition of them). Branches go forward, to the start of a unit.

use iced_x86::{Code, Encoder, FlowControl, Instruction, Mnemonic, OpCodeOperandKind, OpKind, RflagsBits};

use crate::context::{CODE_SLOT, Context, DATA_ADDRESS, DATA_LEN};
use crate::forms::pick_form;
use crate::operands::{Plan, register};
use crate::random::Random;

/// Arithmetic flags, and DF.
pub(crate) const COMPARED_FLAGS: u64 = 0xcd5;

/// Units per case.
const UNITS_MAX: u64 = 8;
/// Bytes of code per case; the rest of the slot is INT3.
const CODE_MAX: usize = CODE_SLOT - 16;

/// A case.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) units: Vec<Unit>,
    pub(crate) code: Vec<u8>,
    pub(crate) input: Context,
    /// Where instructions start, and which flags are undefined there.
    pub(crate) undefined: Vec<(u64, u64)>,
}

/// Instructions that stay together.
#[derive(Clone)]
pub(crate) struct Unit {
    pub(crate) instructions: Vec<Instruction>,
    /// An instruction that is to get the address of another unit, as its branch target or immediate operand.
    fixup: Option<(usize, usize)>,
}

/// An assembled sequence: its units with addresses, its bytes, and which flags are undefined where.
type Assembled = (Vec<Unit>, Vec<u8>, Vec<(u64, u64)>);

impl Case {
    /// A random case whose code will stand at `address`.
    pub(crate) fn new(random: &mut Random, address: u64) -> Self {
        loop {
            let plan = Plan::new(random);
            let mut units = vec![];
            let count = 1 + random.below(UNITS_MAX) as usize;
            let mut maybe_undefined = 0;
            while units.len() < count {
                let code = pick_form(random, units.last());
                if let Some(unit) = Unit::new(random, &plan, code, units.len(), count, &mut maybe_undefined) {
                    units.push(unit);
                }
            }
            if let Some((units, code, undefined)) = assemble(&units, address) {
                return Self { units, code, input: input(random, &plan, address), undefined };
            }
        }
    }

    /// A case without instructions, in a slot of its own.
    pub(crate) fn empty_at(slot: usize) -> Self {
        let mut input = Context { rip: crate::slot_address(slot), rflags: 2, ..Context::ZERO };
        input.set_fpu(24, &[0x80, 0x1f]);
        Self { units: vec![], code: vec![], input, undefined: vec![] }
    }

    /// The same case without one unit, which becomes NOPs of the same length.
    pub(crate) fn without(&self, unit: usize, address: u64) -> Self {
        let mut case = self.clone();
        for instruction in &mut case.units[unit].instructions {
            let start = (instruction.ip() - address) as usize;
            case.code[start..start + instruction.len()].fill(0x90);
        }
        case.units[unit].instructions.clear();
        case
    }

    /// The instruction at `rip`, which may have an FWAIT of its own before it.
    pub(crate) fn instruction_at(&self, rip: u64) -> Option<&Instruction> {
        self.units.iter().flat_map(|unit| &unit.instructions).find(|i| (i.ip()..i.next_ip()).contains(&rip))
    }

    /// Flags that need not agree if the case ends at `rip`: those that are undefined, and after a fault also those that
    /// the instruction at fault or a later one would have overwritten. The interpreter does not work out flags that
    /// nobody can see but a fault's handler.
    pub(crate) fn undefined_at(&self, rip: u64, fault: bool) -> u64 {
        // INT3 reports the address behind it.
        let undefined = self.undefined.iter().filter(|&&(at, _)| at <= rip).map(|&(_, flags)| flags).next_back();
        let later = self.units.iter().flat_map(|unit| &unit.instructions).filter(|i| fault && i.ip() >= rip);
        later.fold(undefined.unwrap_or(0), |flags, i| flags | rflags(i.rflags_modified()))
    }
}

impl Unit {
    fn new(
        random: &mut Random,
        plan: &Plan,
        code: Code,
        index: usize,
        count: usize,
        maybe_undefined: &mut u64,
    ) -> Option<Self> {
        let instruction = plan.instruction(random, code)?;
        if has_undefined_result(&instruction) {
            return None;
        }
        // What cannot be encoded (AH with REX, for instance) does not count.
        Encoder::new(64).encode(&instruction, DATA_ADDRESS & !0xfff_ffff).ok()?;
        let mut unit = Self { instructions: vec![], fixup: None };
        unit.prepare(random, &instruction, index, count);
        let read = rflags(instruction.rflags_read());
        if read & *maybe_undefined != 0 {
            unit.instructions.push(random_definition(random));
        }
        if instruction.op0_kind() == OpKind::NearBranch64 {
            unit.fixup = Some((unit.instructions.len(), index + 1 + random.below((count - index) as u64) as usize));
        }
        unit.instructions.push(instruction);
        *maybe_undefined = undefined_after(&instruction, *maybe_undefined, false);
        Some(unit)
    }

    /// Puts in front what makes `instruction` do something of interest.
    fn prepare(&mut self, random: &mut Random, instruction: &Instruction, index: usize, count: usize) {
        use Mnemonic as M;
        let mut load = |to: usize, value: u64| {
            let instruction = Instruction::with2(Code::Mov_r32_imm32, register(to, 4), value as u32);
            self.instructions.extend(instruction);
        };
        let data = |random: &mut Random| DATA_ADDRESS + 256 + random.below(DATA_LEN as u64 - 512);
        let string = (0..instruction.op_count()).any(|i| {
            matches!(instruction.op_kind(i), OpKind::MemorySegRSI | OpKind::MemoryESRDI | OpKind::MemorySegRDI)
        });
        // Which of two faults of CMPS counts is the processor's choice, and so are faults of masked moves.
        let masked = instruction.op0_kind() == OpKind::MemorySegRDI;
        let compares_memory =
            instruction.op0_kind() == OpKind::MemorySegRSI && instruction.op1_kind() == OpKind::MemoryESRDI;
        if string && (compares_memory || masked || random.percent(90)) {
            load(6, data(random));
            load(7, data(random));
            load(1, if random.percent(10) { 5000 } else { random.below(20) });
        }
        match instruction.mnemonic() {
            M::Xlatb => load(3, data(random)),
            M::Div | M::Idiv if random.percent(75) => {
                let value = random.below(4) as u32;
                load(2, u64::from(value.wrapping_sub(1)));
                // The dividend's high half in AH.
                if instruction.code().op_code().op_kind(0) == OpCodeOperandKind::r8_or_mem {
                    load(0, random.below(0x200));
                }
            }
            M::Bt | M::Bts | M::Btr | M::Btc
                if instruction.op0_kind() == OpKind::Memory && instruction.op1_kind() == OpKind::Register =>
            {
                load(instruction.op1_register().number(), random.below(2000).wrapping_sub(1000));
            }
            M::Shld | M::Shrd if instruction.op2_kind() == OpKind::Register => load(1, random.below(17)),
            M::Jmp | M::Call if instruction.op0_kind() == OpKind::Register && random.percent(90) => {
                let to = instruction.op0_register().number();
                load(to, 0);
                self.fixup = Some((0, index + 1 + random.below((count - index) as u64) as usize));
            }
            M::Popfq | M::Popf => {
                // Neither NT nor AC, which the kernel would trip over; TF ends the case with #DB.
                let mut mask = Instruction::default();
                mask.set_code(Code::And_rm32_imm32);
                mask.set_op0_kind(OpKind::Memory);
                mask.set_memory_base(iced_x86::Register::RSP);
                mask.set_op1_kind(OpKind::Immediate32);
                mask.set_immediate32(if random.percent(10) { 0x0fd5 } else { 0x0ed5 });
                self.instructions.push(mask);
            }
            // Processors differ in what they make of an instruction pointer that is not canonical.
            M::Fxrstor64 => self.instructions.push(clear_word(instruction, 14)),
            _ => {}
        }
    }
}

/// An instruction that clears the two bytes at `offset` from the memory operand of `instruction`.
fn clear_word(instruction: &Instruction, offset: u64) -> Instruction {
    let mut clear = *instruction;
    clear.set_code(Code::Mov_rm16_imm16);
    clear.set_memory_displacement64(instruction.memory_displacement64().wrapping_add(offset));
    let narrow = instruction.memory_base().size() == 4 || instruction.memory_displ_size() == 4;
    clear.set_memory_displ_size(if narrow { 4 } else { 8 });
    clear.set_op1_kind(OpKind::Immediate16);
    clear.set_immediate16(0);
    clear
}

/// Whether the result itself, not only a flag, is undefined.
fn has_undefined_result(instruction: &Instruction) -> bool {
    let too_far = instruction.op_count() == 3
        && instruction.op2_kind() == OpKind::Immediate8
        && instruction.immediate8() & 31 > 16
        && instruction.op1_register().size() == 2;
    match instruction.mnemonic() {
        Mnemonic::Shld | Mnemonic::Shrd => too_far,
        Mnemonic::Bswap => instruction.op0_register().size() == 2,
        _ => false,
    }
}

/// An instruction that gives all arithmetic flags a value.
fn random_definition(random: &mut Random) -> Instruction {
    let (a, b) = (random.below(16) as usize, random.below(16) as usize);
    Instruction::with2(Code::Cmp_r32_rm32, register(a, 4), register(b, 4)).expect("both are registers of 32 bits")
}

/// What `instruction` makes of a set of flags that may be undefined. With `certain` false it may be jumped over.
fn undefined_after(instruction: &Instruction, before: u64, certain: bool) -> u64 {
    use Mnemonic as M;
    const CF: u64 = 1;
    let mut undefined = rflags(instruction.rflags_undefined());
    let mut defined = rflags(instruction.rflags_modified()) & !undefined;
    let bits = 8 * instruction.op0_register().size().max(instruction.memory_size().size()) as u64;
    match instruction.mnemonic() {
        M::Shl | M::Sal | M::Shr | M::Sar | M::Shld | M::Shrd | M::Rol | M::Ror | M::Rcl | M::Rcr => {
            // A count of zero changes nothing. One of at least the operand's size leaves CF undefined.
            let last = instruction.op_count() - 1;
            let count = instruction.try_immediate(last).map_or(31, |count| count & if bits == 64 { 63 } else { 31 });
            let rotates = matches!(instruction.mnemonic(), M::Rol | M::Ror | M::Rcl | M::Rcr | M::Sar);
            if count >= bits && !rotates {
                undefined |= CF;
            }
            if count == 0 || instruction.op_kind(last) == OpKind::Register {
                defined = 0;
            }
        }
        _ if instruction.has_rep_prefix() || instruction.has_repne_prefix() => defined = 0,
        _ => {}
    }
    if certain { before & !defined | undefined } else { before | undefined }
}

/// iced's flag bits as RFLAGS bits.
fn rflags(bits: u32) -> u64 {
    [
        (RflagsBits::OF, 11),
        (RflagsBits::SF, 7),
        (RflagsBits::ZF, 6),
        (RflagsBits::AF, 4),
        (RflagsBits::CF, 0),
        (RflagsBits::PF, 2),
        (RflagsBits::DF, 10),
    ]
    .iter()
    .filter(|(bit, _)| bits & bit != 0)
    .fold(0, |flags, (_, position)| flags | 1 << position)
}

fn assemble(units: &[Unit], address: u64) -> Option<Assembled> {
    let mut units = units.to_vec();
    let mut encoder = Encoder::new(64);
    // The first pass finds lengths: they do not depend on targets, because the forms of branches are fixed.
    let mut starts = vec![];
    let mut at = address;
    for unit in &mut units {
        starts.push(at);
        for instruction in &mut unit.instructions {
            if instruction.op0_kind() == OpKind::NearBranch64 {
                instruction.set_near_branch64(at);
            }
            at += encoder.encode(instruction, at).ok()? as u64;
        }
    }
    starts.push(at);
    let mut undefined = vec![];
    let (mut flags, mut straight) = (0, true);
    let mut at = address;
    let _ = encoder.take_buffer();
    for unit in &mut units {
        if let Some((index, target)) = unit.fixup {
            let instruction = &mut unit.instructions[index];
            if instruction.op0_kind() == OpKind::NearBranch64 {
                instruction.set_near_branch64(starts[target]);
            } else {
                instruction.set_immediate32(starts[target] as u32);
            }
        }
        for instruction in &mut unit.instructions {
            undefined.push((at, flags));
            let len = encoder.encode(instruction, at).ok()?;
            instruction.set_len(len);
            instruction.set_ip(at);
            at += len as u64;
            straight &= matches!(instruction.flow_control(), FlowControl::Next | FlowControl::Exception);
            flags = undefined_after(instruction, flags, straight);
        }
    }
    undefined.push((at, flags));
    let code = encoder.take_buffer();
    (code.len() <= CODE_MAX).then_some((units, code, undefined))
}

/// Registers to begin with.
fn input(random: &mut Random, plan: &Plan, address: u64) -> Context {
    let mut context = Context { gpr: plan.gpr, rip: address, ..Context::ZERO };
    context.rflags = random.next() & 0x8d5 | 0x202 | if random.percent(10) { 0x400 } else { 0 };
    let control: u16 = match random.below(10) {
        0 => random.next() as u16 & 0xf3f | 0x40,
        1..=3 => random.next() as u16 & 0xf00 | 0x7f,
        _ => 0x37f,
    };
    let mut status = random.next() as u16 & 0x7f7f;
    if !random.percent(5) {
        // No exception that waits.
        status &= control | !0x3f;
    }
    let tags = if random.percent(20) { random.next() } else { random.next() | random.next() | random.next() };
    context.set_fpu(0, &control.to_le_bytes());
    context.set_fpu(2, &status.to_le_bytes());
    context.set_fpu(4, &[tags as u8, 0]);
    let mxcsr: u16 = match random.below(10) {
        0 => random.next() as u16,
        1..=3 => random.next() as u16 | 0x1f80,
        _ => 0x1f80 | random.next() as u16 & 0x3f,
    };
    context.set_fpu(24, &mxcsr.to_le_bytes());
    context.set_fpu(28, &0xffffu32.to_le_bytes());
    for i in 0..8 {
        let (significand, exponent) = random.extended();
        context.set_fpu(32 + 16 * i, &significand.to_le_bytes());
        context.set_fpu(40 + 16 * i, &exponent.to_le_bytes());
    }
    for i in 0..32 {
        context.set_fpu(160 + 8 * i, &random.quad().to_le_bytes());
    }
    context
}
