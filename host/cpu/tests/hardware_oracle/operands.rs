//! Random operands for an instruction form.

use iced_x86::{Code, Instruction, Mnemonic, OpCodeInfo, OpCodeOperandKind as Kind, OpKind, Register};

use crate::context::{DATA_ADDRESS, DATA_LEN, GS_BASE};
use crate::random::Random;

/// What the registers hold when a case begins, and which of them are meant for addresses.
pub(crate) struct Plan {
    pub(crate) gpr: [u64; 16],
    /// Registers that point into the data.
    pub(crate) pointers: Vec<usize>,
    /// Registers with small values, for indices.
    pub(crate) indices: Vec<usize>,
}

const SIZED: [[Register; 16]; 4] = {
    use Register::*;
    [
        [AL, CL, DL, BL, SPL, BPL, SIL, DIL, R8L, R9L, R10L, R11L, R12L, R13L, R14L, R15L],
        [AX, CX, DX, BX, SP, BP, SI, DI, R8W, R9W, R10W, R11W, R12W, R13W, R14W, R15W],
        [EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI, R8D, R9D, R10D, R11D, R12D, R13D, R14D, R15D],
        [RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15],
    ]
};
const HIGH_BYTES: [Register; 4] = [Register::AH, Register::CH, Register::DH, Register::BH];

/// General register `index` with 1, 2, 4 or 8 bytes.
pub(crate) fn register(index: usize, size: usize) -> Register {
    SIZED[size.trailing_zeros() as usize][index]
}

impl Plan {
    pub(crate) fn new(random: &mut Random) -> Self {
        let mut plan = Self { gpr: [0; 16], pointers: vec![4], indices: vec![] };
        for i in 0..16 {
            plan.gpr[i] = match random.below(10) {
                _ if i == 4 => DATA_ADDRESS + 0x1000 + 8 * random.below(128) + u64::from(random.percent(10)),
                0..=2 => {
                    plan.pointers.push(i);
                    DATA_ADDRESS + random.below(DATA_LEN as u64 / 16) * 16
                }
                3 => {
                    plan.indices.push(i);
                    random.below(128).wrapping_sub(64)
                }
                _ => random.integer(),
            };
        }
        plan
    }

    /// A register that is fit to be written.
    fn scratch(&self, random: &mut Random) -> usize {
        for _ in 0..4 {
            let i = random.below(16) as usize;
            if !self.pointers.contains(&i) && !self.indices.contains(&i) {
                return i;
            }
        }
        random.below(16) as usize
    }

    fn general(&self, random: &mut Random, size: usize, operand: u32) -> Register {
        let index = if operand == 0 { self.scratch(random) } else { random.below(16) as usize };
        if size == 1 && index < 4 && random.percent(30) { HIGH_BYTES[index] } else { register(index, size) }
    }

    /// Gives `instruction` a memory operand of `size` bytes that is mostly inside the data.
    fn memory(&self, random: &mut Random, instruction: &mut Instruction, size: usize) {
        let aligned = random.percent(92);
        let len = DATA_LEN as u64;
        let mut offset = match random.below(100) {
            // Across the pages' boundary, into the read-only page, out of the data at both ends.
            0..=5 => 0x1000 - random.below(size as u64 + 2),
            6 | 7 => len - random.below(size as u64 + 2),
            8 => len + 0x1000 - random.below(size as u64 + 2),
            9 => 0u64.wrapping_sub(random.below(size as u64 + 1)),
            _ => random.below(len - size as u64),
        };
        if aligned && size >= 16 {
            offset &= !15;
        }
        let mut target = DATA_ADDRESS.wrapping_add(offset);
        if random.percent(4) {
            instruction.set_segment_prefix(Register::GS);
            target = target.wrapping_sub(GS_BASE);
        }
        instruction.set_memory_displ_size(8);
        let narrow = random.percent(8);
        match random.below(20) {
            0 if instruction.segment_prefix() == Register::None => {
                instruction.set_memory_base(if narrow { Register::EIP } else { Register::RIP });
                instruction.set_memory_displacement64(target);
                return;
            }
            1 => {
                instruction.set_memory_displacement64(target & if narrow { 0xffff_ffff } else { u64::MAX });
                instruction.set_memory_displ_size(if narrow { 4 } else { 8 });
                return;
            }
            _ => {}
        }
        let width = if narrow { 4 } else { 8 };
        let mut rest = target;
        if random.percent(95) {
            let base = random.pick(&self.pointers);
            instruction.set_memory_base(register(base, width));
            rest = rest.wrapping_sub(self.gpr[base]);
        }
        if random.percent(35) && !self.indices.is_empty() || instruction.memory_base() == Register::None {
            let index = if self.indices.is_empty() { 5 } else { random.pick(&self.indices) };
            let scale = 1 << random.below(4);
            instruction.set_memory_index(register(index, width));
            instruction.set_memory_index_scale(scale);
            rest = rest.wrapping_sub(self.gpr[index].wrapping_mul(scale.into()));
        }
        // Displacements have 32 bits; what does not fit faults, which is worth a try, too.
        let displacement = rest as i32;
        instruction.set_memory_displacement64(displacement as u64);
        let displ_size = if displacement == 0 && instruction.memory_base() != Register::None {
            0
        } else if i8::try_from(displacement).is_ok() && instruction.memory_base() != Register::None {
            1
        } else if narrow {
            4
        } else {
            8
        };
        instruction.set_memory_displ_size(displ_size);
        if narrow {
            instruction.set_memory_displacement64(u64::from(displacement as u32));
        }
    }

    /// Fills in operand `operand`. False if the form is not for user programs of this kind.
    fn fill(&self, random: &mut Random, instruction: &mut Instruction, operand: u32, kind: Kind) -> bool {
        let set_register = |instruction: &mut Instruction, register| {
            instruction.set_op_kind(operand, OpKind::Register);
            instruction.set_op_register(operand, register);
            true
        };
        let set_immediate = |instruction: &mut Instruction, op_kind, value: u64| {
            instruction.set_op_kind(operand, op_kind);
            instruction.try_set_immediate_u64(operand, value).is_ok()
        };
        let xmm = |random: &mut Random| Register::XMM0 + random.below(16) as u32;
        let mm = |random: &mut Random| Register::MM0 + random.below(8) as u32;
        let memory_instead = matches!(
            kind,
            Kind::r8_or_mem
                | Kind::r16_or_mem
                | Kind::r32_or_mem
                | Kind::r64_or_mem
                | Kind::mm_or_mem
                | Kind::xmm_or_mem
        ) && random.percent(45);
        if memory_instead || kind == Kind::mem {
            let size = match instruction.mnemonic() {
                // The space before the operand counts, too, with a bit offset.
                Mnemonic::Lea | Mnemonic::Nop | Mnemonic::Invlpg => 1,
                _ => instruction.code().op_code().memory_size().size().max(1),
            };
            instruction.set_op_kind(operand, OpKind::Memory);
            self.memory(random, instruction, size);
            return true;
        }
        match kind {
            Kind::r8_or_mem | Kind::r8_reg | Kind::r8_opcode => {
                let register = self.general(random, 1, operand);
                set_register(instruction, register)
            }
            Kind::r16_or_mem | Kind::r16_reg | Kind::r16_opcode | Kind::r16_rm => {
                let register = self.general(random, 2, operand);
                set_register(instruction, register)
            }
            Kind::r32_or_mem | Kind::r32_reg | Kind::r32_opcode | Kind::r32_rm => {
                let register = self.general(random, 4, operand);
                set_register(instruction, register)
            }
            Kind::r64_or_mem | Kind::r64_reg | Kind::r64_opcode | Kind::r64_rm => {
                let register = self.general(random, 8, operand);
                set_register(instruction, register)
            }
            Kind::xmm_or_mem | Kind::xmm_reg | Kind::xmm_rm => {
                let register = xmm(random);
                set_register(instruction, register)
            }
            Kind::mm_or_mem | Kind::mm_reg | Kind::mm_rm => {
                let register = mm(random);
                set_register(instruction, register)
            }
            Kind::al => set_register(instruction, Register::AL),
            Kind::cl => set_register(instruction, Register::CL),
            Kind::ax => set_register(instruction, Register::AX),
            Kind::dx => set_register(instruction, Register::DX),
            Kind::eax => set_register(instruction, Register::EAX),
            Kind::rax => set_register(instruction, Register::RAX),
            Kind::st0 => set_register(instruction, Register::ST0),
            Kind::sti_opcode => {
                let register = Register::ST0 + random.below(8) as u32;
                set_register(instruction, register)
            }
            Kind::imm8 if instruction.code() == Code::Int_imm8 => {
                // 0x80 is a system call.
                let vector = random.below(0x80);
                set_immediate(instruction, OpKind::Immediate8, vector)
            }
            Kind::imm8 => {
                let value = if random.percent(50) { random.below(40) } else { random.next() };
                let op_kind = if instruction.code() == Code::Enterq_imm16_imm8 && operand == 1 {
                    OpKind::Immediate8_2nd
                } else {
                    OpKind::Immediate8
                };
                set_immediate(instruction, op_kind, value & 0xff)
            }
            Kind::imm8_const_1 => set_immediate(instruction, OpKind::Immediate8, 1),
            Kind::imm8sex16 => {
                let value = random.integer() as i8;
                set_immediate(instruction, OpKind::Immediate8to16, value as u64)
            }
            Kind::imm8sex32 => {
                let value = random.integer() as i8;
                set_immediate(instruction, OpKind::Immediate8to32, value as u64)
            }
            Kind::imm8sex64 => {
                let value = random.integer() as i8;
                set_immediate(instruction, OpKind::Immediate8to64, value as u64)
            }
            Kind::imm16 => {
                let value =
                    if instruction.code() == Code::Enterq_imm16_imm8 { random.below(64) } else { random.integer() };
                set_immediate(instruction, OpKind::Immediate16, value & 0xffff)
            }
            Kind::imm32 => {
                let value = random.integer();
                set_immediate(instruction, OpKind::Immediate32, value & 0xffff_ffff)
            }
            Kind::imm32sex64 => {
                let value = random.integer() as i32;
                set_immediate(instruction, OpKind::Immediate32to64, value as u64)
            }
            Kind::imm64 => {
                let value = random.integer();
                set_immediate(instruction, OpKind::Immediate64, value)
            }
            Kind::mem_offs => {
                instruction.set_op_kind(operand, OpKind::Memory);
                instruction.set_memory_displ_size(8);
                instruction.set_memory_displacement64(DATA_ADDRESS + random.below(DATA_LEN as u64 - 8));
                true
            }
            Kind::seg_rSI => self.string(instruction, operand, OpKind::MemorySegRSI),
            Kind::es_rDI => self.string(instruction, operand, OpKind::MemoryESRDI),
            Kind::seg_rDI => self.string(instruction, operand, OpKind::MemorySegRDI),
            Kind::seg_rBX_al => {
                instruction.set_op_kind(operand, OpKind::Memory);
                instruction.set_memory_base(Register::RBX);
                instruction.set_memory_index(Register::AL);
                true
            }
            Kind::br64_1 | Kind::br64_4 => {
                instruction.set_op_kind(operand, OpKind::NearBranch64);
                true
            }
            _ => false,
        }
    }

    fn string(&self, instruction: &mut Instruction, operand: u32, kind: OpKind) -> bool {
        instruction.set_op_kind(operand, kind);
        true
    }

    /// An instruction of this form with random operands and prefixes.
    pub(crate) fn instruction(&self, random: &mut Random, code: Code) -> Option<Instruction> {
        let mut instruction = Instruction::default();
        instruction.set_code(code);
        let info: &OpCodeInfo = code.op_code();
        for operand in 0..info.op_count() {
            if !self.fill(random, &mut instruction, operand, info.op_kind(operand)) {
                return None;
            }
        }
        if info.can_use_lock_prefix() {
            let locked = instruction.op0_kind() == OpKind::Memory && random.percent(25);
            // A LOCK that is not allowed is #UD.
            instruction.set_has_lock_prefix(locked || random.percent(1));
        }
        if info.can_use_rep_prefix() && random.percent(50) {
            instruction.set_has_rep_prefix(true);
        } else if info.can_use_repne_prefix() && random.percent(40) {
            instruction.set_has_repne_prefix(true);
        }
        Some(instruction)
    }
}
