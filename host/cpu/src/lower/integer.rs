//! Which handler carries out an integer instruction.

use iced_x86::{FlowControl, Instruction, Mnemonic as M, OpKind, Register};

use super::{Lower, condition_number, is_immediate, number, operand};
use crate::exec::alu::{self, Form};
use crate::exec::{branch, fused, misc, mov, shift};
use crate::op::Op;
use crate::state::ZERO;

fn alu_kind(m: M) -> Option<u8> {
    Some(match m {
        M::Add => alu::ADD,
        M::Or => alu::OR,
        M::Adc => alu::ADC,
        M::Sbb => alu::SBB,
        M::And => alu::AND,
        M::Sub => alu::SUB,
        M::Xor => alu::XOR,
        M::Cmp => alu::CMP,
        M::Test => alu::TEST,
        _ => return None,
    })
}

fn shift_kind(m: M) -> Option<u8> {
    Some(match m {
        M::Shl | M::Sal => shift::SHL,
        M::Shr => shift::SHR,
        M::Sar => shift::SAR,
        M::Rol => shift::ROL,
        M::Ror => shift::ROR,
        M::Rcl => shift::RCL,
        M::Rcr => shift::RCR,
        _ => return None,
    })
}

/// Bytes of operand `n`.
fn size_of_operand(i: &Instruction, n: u32) -> usize {
    match i.op_kind(n) {
        OpKind::Register => i.op_register(n).size(),
        _ => i.memory_size().size(),
    }
}

fn is_memory(i: &Instruction, n: u32) -> bool {
    n < i.op_count() && i.op_kind(n) == OpKind::Memory
}

fn is_general(i: &Instruction, n: u32) -> bool {
    n < i.op_count() && i.op_kind(n) == OpKind::Register && i.op_register(n).is_gpr()
}

/// The form of a two-operand instruction, if it is one that handlers know.
fn form_of(i: &Instruction) -> Option<Form> {
    if i.op_count() != 2 {
        return None;
    }
    Some(match (is_general(i, 0), is_memory(i, 0)) {
        (true, _) if is_general(i, 1) => Form::RegReg,
        (true, _) if is_immediate(i, 1) => Form::RegImm,
        (true, _) if is_memory(i, 1) => Form::RegMem,
        (_, true) if is_general(i, 1) => Form::MemReg,
        (_, true) if is_immediate(i, 1) => Form::MemImm,
        _ => return None,
    })
}

impl Lower<'_> {
    /// Lowers to threaded handlers; 0 if there is none for this instruction.
    pub(super) fn fast(&mut self, i: &Instruction, next: Option<&Instruction>, live: bool) -> usize {
        if i.has_lock_prefix() {
            return 0;
        }
        let m = i.mnemonic();
        if let Some(kind) = alu_kind(m) {
            return self.arithmetic(i, next, live, kind);
        }
        match m {
            M::Mov => return self.mov(i, next),
            M::Inc | M::Dec | M::Neg | M::Not => return self.unary(i, next, live),
            M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr => return self.shift(i, live),
            M::Nop | M::Reservednop | M::Endbr64 | M::Endbr32 | M::Pause | M::Lfence | M::Sfence | M::Mfence => {
                let o = self.op(branch::nop);
                self.row.push(o);
                return 1;
            }
            M::Movzx | M::Movsx | M::Movsxd if is_general(i, 0) => return self.extend(i),
            M::Lea if self.long && is_general(i, 0) => return self.lea(i),
            M::Cdqe => return self.plain(mov::cdqe),
            M::Cwde => return self.plain(mov::cwde),
            M::Cqo => return self.plain(mov::cqo),
            M::Cdq => return self.plain(mov::cdq),
            M::Imul | M::Mul | M::Div | M::Idiv => return self.multiply(i, live),
            M::Bswap => {
                let size = i.op0_register().size();
                if size < 4 {
                    return 0;
                }
                let mut o = self.op(mov::pick_bswap(size));
                o.a = number(i.op0_register());
                self.row.push(o);
                return 1;
            }
            M::Bt | M::Bts | M::Btr | M::Btc => return self.bits(i),
            M::Bsf | M::Bsr => return self.scan(i),
            M::Shld | M::Shrd => return self.double_shift(i),
            M::Xchg if is_general(i, 0) && is_general(i, 1) => {
                let mut o = self.op(mov::pick_xchg(i.op0_register().size()));
                (o.a, o.b) = (operand(i.op0_register()), operand(i.op1_register()));
                self.row.push(o);
                return 1;
            }
            _ => {}
        }
        let cc = condition_number(i);
        if i.is_jcc_short_or_near() && self.near(i) {
            let o = self.op(branch::pick_jcc(cc));
            self.branch(o, 1, &[i.next_ip(), i.near_branch_target()]);
            return 1;
        }
        if i.is_jmp_short_or_near() && self.near(i) {
            let o = self.op(branch::jmp);
            self.branch(o, 1, &[i.near_branch_target()]);
            return 1;
        }
        if is_set(m) {
            let mut o = self.op(mov::pick_set(cc, is_memory(i, 0)));
            if is_memory(i, 0) {
                self.address(i, &mut o, 1, true);
            } else {
                o.a = operand(i.op0_register());
            }
            self.row.push(o);
            return 1;
        }
        if is_cmov(m) && i.op0_register().size() >= 4 {
            let size = i.op0_register().size();
            let mut o = self.op(mov::pick_cmov(cc, size, is_memory(i, 1)));
            o.a = number(i.op0_register());
            if is_memory(i, 1) {
                self.address(i, &mut o, size, false);
            } else {
                o.b = number(i.op1_register());
            }
            self.row.push(o);
            return 1;
        }
        if self.long {
            let used = self.stack(i);
            if used != 0 {
                return used;
            }
        }
        self.sse(i)
    }

    /// Whether a direct branch has the full width of the mode.
    fn near(&self, i: &Instruction) -> bool {
        match i.op0_kind() {
            OpKind::NearBranch64 => true,
            OpKind::NearBranch32 => !self.long,
            _ => false,
        }
    }

    fn plain(&mut self, f: crate::op::Handler) -> usize {
        let o = self.op(f);
        self.row.push(o);
        1
    }

    /// Fills registers, immediate and memory operand of a two-operand operation.
    fn operands(&mut self, i: &Instruction, o: &mut Op, form: Form, size: usize, write: bool) {
        match form {
            Form::RegReg => (o.a, o.b) = (operand(i.op0_register()), operand(i.op1_register())),
            Form::RegImm => (o.a, o.imm) = (operand(i.op0_register()), i.immediate(1)),
            Form::RegMem => {
                o.a = operand(i.op0_register());
                self.address(i, o, size, false);
            }
            Form::MemReg => {
                o.a = operand(i.op1_register());
                self.address(i, o, size, write);
            }
            Form::MemImm => {
                o.imm = i.immediate(1);
                self.address(i, o, size, write);
            }
        }
    }

    fn arithmetic(&mut self, i: &Instruction, next: Option<&Instruction>, live: bool, kind: u8) -> usize {
        let Some(form) = form_of(i) else { return 0 };
        let size = size_of_operand(i, 0);
        if (kind == alu::CMP || kind == alu::TEST)
            && let Some(j) = next
            && j.is_jcc_short_or_near()
            && self.near(j)
        {
            let mut o = self.op(fused::pick(kind == alu::TEST, condition_number(j), size, form));
            self.operands(i, &mut o, form, size, false);
            self.branch(o, 2, &[j.next_ip(), j.near_branch_target()]);
            return 2;
        }
        if matches!(form, Form::RegReg | Form::RegImm)
            && self.update_and_jump(i, next, kind, size, form == Form::RegImm)
        {
            return 2;
        }
        if kind == alu::XOR && form == Form::RegReg && size >= 4 && i.op0_register() == i.op1_register() {
            let mut o = self.op(if live { alu::zero } else { mov::pick_mov(8, Form::RegImm, true) });
            o.a = number(i.op0_register());
            self.row.push(o);
            return 1;
        }
        let mut o = self.op(alu::pick(kind, size, live, form));
        self.operands(i, &mut o, form, size, kind != alu::CMP && kind != alu::TEST);
        self.row.push(o);
        1
    }

    /// Lowers an operation on a register together with a conditional jump after it, if there is a handler for both.
    fn update_and_jump(
        &mut self,
        i: &Instruction,
        next: Option<&Instruction>,
        kind: u8,
        size: usize,
        immediate: bool,
    ) -> bool {
        let Some(j) = next else { return false };
        if !j.is_jcc_short_or_near() || !self.near(j) {
            return false;
        }
        let Some(f) = fused::pick_update(kind, condition_number(j), size, immediate) else { return false };
        let mut o = self.op(f);
        o.a = operand(i.op0_register());
        match (i.op_count(), immediate) {
            (1, _) => {}
            (_, true) => o.imm = i.immediate(1),
            (_, false) => o.b = operand(i.op1_register()),
        }
        self.branch(o, 2, &[j.next_ip(), j.near_branch_target()]);
        true
    }

    /// Lowers a copy of a register together with an operation on the copy, if there is a handler for both.
    fn copy_and_update(&mut self, i: &Instruction, next: Option<&Instruction>) -> bool {
        let Some(j) = next else { return false };
        if j.op_count() != 2
            || !is_general(j, 0)
            || j.op0_register().full_register() != i.op0_register().full_register()
        {
            return false;
        }
        let size = j.op0_register().size();
        // A copy of 32 bits clears the rest, of which a wider operation would make something else.
        if size < 4 || i.op0_register().size() < size {
            return false;
        }
        let immediate = is_immediate(j, 1);
        if !immediate && !is_general(j, 1) {
            return false;
        }
        let live = self.next_live;
        let found = match alu_kind(j.mnemonic()) {
            Some(kind) => fused::pick_three(kind, size, live, immediate),
            None if immediate => fused::pick_three_shift(shift_kind(j.mnemonic()), size, live),
            None => None,
        };
        let Some(f) = found else { return false };
        let mut o = self.op(f);
        (o.a, o.b) = (number(i.op0_register()), number(i.op1_register()));
        if immediate {
            let shifts = alu_kind(j.mnemonic()).is_none();
            let v = j.immediate(1);
            o.imm = if shifts { u64::from(shift::count_of(size, v)) } else { v };
        } else {
            let other = number(j.op1_register());
            o.base = if other == o.a { o.b } else { other };
        }
        self.row.push(o);
        true
    }

    fn mov(&mut self, i: &Instruction, next: Option<&Instruction>) -> usize {
        let Some(form) = form_of(i) else { return 0 };
        let size = size_of_operand(i, 0);
        if form == Form::RegReg && size >= 4 && self.copy_and_update(i, next) {
            return 2;
        }
        let mut o = self.op(mov::pick_mov(size, form, false));
        self.operands(i, &mut o, form, size, true);
        if o.idx == ZERO && matches!(form, Form::RegMem | Form::MemReg) {
            o.f.set(mov::pick_mov(size, form, true));
        }
        self.row.push(o);
        1
    }

    fn unary(&mut self, i: &Instruction, next: Option<&Instruction>, live: bool) -> usize {
        let kind = match i.mnemonic() {
            M::Inc => alu::INC,
            M::Dec => alu::DEC,
            M::Neg => alu::NEG,
            _ => alu::NOT,
        };
        let (size, memory) = (size_of_operand(i, 0), is_memory(i, 0));
        if !memory && self.update_and_jump(i, next, kind, size, true) {
            return 2;
        }
        let mut o = self.op(alu::pick_unary(kind, size, live, memory));
        if memory {
            self.address(i, &mut o, size, true);
        } else {
            o.a = operand(i.op0_register());
        }
        self.row.push(o);
        1
    }

    fn shift(&mut self, i: &Instruction, live: bool) -> usize {
        let kind = shift_kind(i.mnemonic()).unwrap_or(shift::RCR);
        let (size, memory) = (size_of_operand(i, 0), is_memory(i, 0));
        let by_cl = i.op1_kind() == OpKind::Register;
        let mut o = self.op(shift::pick(kind, size, live, memory, by_cl));
        if !by_cl {
            o.imm = u64::from(shift::count_of(size, i.immediate(1)));
        }
        if memory {
            self.address(i, &mut o, size, true);
        } else {
            o.a = operand(i.op0_register());
        }
        self.row.push(o);
        1
    }

    fn double_shift(&mut self, i: &Instruction) -> usize {
        let size = size_of_operand(i, 0);
        if is_memory(i, 0) || size < 4 {
            return 0;
        }
        let by_cl = i.op2_kind() == OpKind::Register;
        let mut o = self.op(shift::pick_double(i.mnemonic() == M::Shld, by_cl, size));
        (o.a, o.b) = (number(i.op0_register()), number(i.op1_register()));
        if !by_cl {
            o.imm = i.immediate(2);
        }
        self.row.push(o);
        1
    }

    fn extend(&mut self, i: &Instruction) -> usize {
        let (to, from) = (i.op0_register().size(), size_of_operand(i, 1));
        let signed = i.mnemonic() != M::Movzx;
        if from >= to {
            return 0;
        }
        let memory = is_memory(i, 1);
        let mut o = self.op(mov::pick_extend(from, signed, memory, to));
        o.a = number(i.op0_register());
        if memory {
            self.address(i, &mut o, from, false);
        } else {
            o.b = operand(i.op1_register());
        }
        self.row.push(o);
        1
    }

    fn lea(&mut self, i: &Instruction) -> usize {
        let size = i.op0_register().size();
        let mut plain = *i;
        plain.set_segment_prefix(Register::DS);
        let mut o = self.op(mov::pick_lea(size));
        o.a = number(i.op0_register());
        self.address(&plain, &mut o, 1, false);
        self.row.push(o);
        1
    }

    fn multiply(&mut self, i: &Instruction, live: bool) -> usize {
        let size = size_of_operand(i, 0);
        let memory = (0..i.op_count()).any(|n| is_memory(i, n));
        let m = i.mnemonic();
        if m == M::Imul && i.op_count() > 1 {
            let immediate = i.op_count() == 3;
            let mut o = self.op(alu::pick_imul(size, memory, immediate, live));
            o.a = number(i.op0_register());
            if immediate {
                o.imm = i.immediate(2);
            }
            if memory {
                self.address(i, &mut o, size, false);
            } else {
                o.b = number(i.op1_register());
            }
            self.row.push(o);
            return 1;
        }
        if size < 4 {
            return 0;
        }
        let f = match m {
            M::Mul => alu::pick_mul(size, memory, false),
            M::Imul => alu::pick_mul(size, memory, true),
            M::Div => misc::pick_div(false, memory, size),
            _ => misc::pick_div(true, memory, size),
        };
        let mut o = self.op(f);
        if memory {
            self.address(i, &mut o, size, false);
        } else {
            o.a = number(i.op0_register());
        }
        self.row.push(o);
        1
    }

    fn bits(&mut self, i: &Instruction) -> usize {
        if is_memory(i, 0) || i.op0_register().size() < 4 {
            return 0;
        }
        let kind = match i.mnemonic() {
            M::Bt => 0,
            M::Bts => 1,
            M::Btr => 2,
            _ => 3,
        };
        let immediate = is_immediate(i, 1);
        let mut o = self.op(misc::pick_bit(kind, immediate, i.op0_register().size()));
        o.a = number(i.op0_register());
        if immediate {
            o.imm = i.immediate(1);
        } else {
            o.b = number(i.op1_register());
        }
        self.row.push(o);
        1
    }

    fn scan(&mut self, i: &Instruction) -> usize {
        let size = i.op0_register().size();
        if size < 4 {
            return 0;
        }
        let memory = is_memory(i, 1);
        let mut o = self.op(misc::pick_scan(i.mnemonic() == M::Bsr, memory, size));
        o.a = number(i.op0_register());
        if memory {
            self.address(i, &mut o, size, false);
        } else {
            o.b = number(i.op1_register());
        }
        self.row.push(o);
        1
    }

    /// Stack and control flow of 64-bit mode.
    fn stack(&mut self, i: &Instruction) -> usize {
        use crate::op::flag::STACK;
        match i.mnemonic() {
            M::Push if is_general(i, 0) && i.op0_register().size() == 8 => {
                let mut o = self.op(mov::push_r);
                o.a = number(i.op0_register());
                o.flags |= STACK;
                self.row.push(o);
                1
            }
            M::Push if is_immediate(i, 0) && i.stack_pointer_increment() == -8 => {
                let mut o = self.op(mov::push_i);
                o.imm = i.immediate(0);
                o.flags |= STACK;
                self.row.push(o);
                1
            }
            M::Pop if is_general(i, 0) && i.op0_register().size() == 8 => {
                let mut o = self.op(mov::pop_r);
                o.a = number(i.op0_register());
                o.flags |= STACK;
                self.row.push(o);
                1
            }
            M::Leave if i.stack_pointer_increment() == 8 || i.code() == iced_x86::Code::Leaveq => {
                let mut o = self.op(mov::leave);
                o.flags |= STACK;
                self.row.push(o);
                1
            }
            M::Call if i.flow_control() == FlowControl::Call && self.near(i) => {
                let mut o = self.op(branch::call);
                o.imm = i.next_ip();
                o.flags |= STACK;
                self.branch(o, 1, &[i.near_branch_target()]);
                1
            }
            M::Call | M::Jmp
                if matches!(i.flow_control(), FlowControl::IndirectCall | FlowControl::IndirectBranch)
                    && (is_general(i, 0) && i.op0_register().size() == 8
                        || is_memory(i, 0) && i.memory_size().size() == 8 && !far(i)) =>
            {
                let memory = is_memory(i, 0);
                let mut o = self.op(match (i.mnemonic(), memory) {
                    (M::Call, false) => branch::call_r,
                    (M::Call, true) => branch::call_m,
                    (_, false) => branch::jmp_r,
                    (_, true) => branch::jmp_m,
                });
                o.imm = i.next_ip();
                if memory {
                    self.address(i, &mut o, 8, false);
                } else {
                    o.a = number(i.op0_register());
                }
                self.branch(o, 1, &[]);
                1
            }
            M::Ret if i.code() == iced_x86::Code::Retnq || i.code() == iced_x86::Code::Retnq_imm16 => {
                let mut o = self.op(branch::ret);
                o.imm = if i.op_count() == 1 { i.immediate(0) & 0xffff } else { 0 };
                o.flags |= STACK;
                self.branch(o, 1, &[]);
                1
            }
            _ => 0,
        }
    }
}

/// Whether an indirect branch loads CS too.
fn far(i: &Instruction) -> bool {
    i.is_jmp_far_indirect() || i.is_call_far_indirect()
}

fn is_set(m: M) -> bool {
    use M::*;
    matches!(
        m,
        Seto | Setno
            | Setb
            | Setae
            | Sete
            | Setne
            | Setbe
            | Seta
            | Sets
            | Setns
            | Setp
            | Setnp
            | Setl
            | Setge
            | Setle
            | Setg
    )
}

pub(crate) fn is_cmov(m: M) -> bool {
    use M::*;
    matches!(
        m,
        Cmovo
            | Cmovno
            | Cmovb
            | Cmovae
            | Cmove
            | Cmovne
            | Cmovbe
            | Cmova
            | Cmovs
            | Cmovns
            | Cmovp
            | Cmovnp
            | Cmovl
            | Cmovge
            | Cmovle
            | Cmovg
    )
}
