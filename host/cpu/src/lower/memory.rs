//! Memory operands: what one operation can add up itself, and what needs an operation before it.

use iced_x86::{Instruction, Register};

use super::{Lower, number};
use crate::exec::address;
use crate::op::{Op, flag};
use crate::state::{SEG_BASE, TMP, ZERO};

fn fits(v: u64) -> bool {
    v as i64 == i64::from(v as i32)
}

fn register(r: Register) -> u8 {
    if r == Register::None { ZERO } else { number(r) }
}

impl Lower<'_> {
    /// Makes `o` refer to the instruction's memory operand of `size` bytes.
    pub(super) fn address(&mut self, i: &Instruction, o: &mut Op, size: usize, write: bool) {
        let segment = i.memory_segment();
        if segment == Register::SS {
            o.flags |= flag::STACK;
        }
        if !self.long {
            let mut pre = self.op(address::legacy);
            pre.base = register(i.memory_base());
            pre.idx = register(i.memory_index());
            pre.scale = i.memory_index_scale().trailing_zeros() as u8 & 3;
            pre.disp = i.memory_displacement32() as i32;
            let narrow = i.memory_base().size() == 2 || i.memory_index().size() == 2 || i.memory_displ_size() == 2;
            pre.aux = address::legacy_form(crate::segment::index_of(segment), size, write, narrow);
            self.row.push(pre);
            o.base = TMP;
            return;
        }
        let extra = match segment {
            Register::FS => Some(SEG_BASE + 4),
            Register::GS => Some(SEG_BASE + 5),
            _ => None,
        };
        let (base, index) = (i.memory_base(), i.memory_index());
        if base == Register::RIP || base == Register::EIP {
            // iced-x86 has already added RIP to the displacement.
            self.constant(o, i.ip_rel_memory_address(), extra);
            return;
        }
        let narrow = base.size() == 4 || index.size() == 4;
        if base == Register::None && index == Register::None {
            self.constant(o, i.memory_displacement64(), extra);
            return;
        }
        let mut sum = Op::new(address::sum);
        sum.base = register(base);
        sum.idx = register(index);
        sum.scale = i.memory_index_scale().trailing_zeros() as u8 & 3;
        sum.disp = i.memory_displacement64() as i32;
        if narrow || (extra.is_some() && index != Register::None) {
            let mut pre = self.op(if narrow { address::sum32 } else { address::sum });
            (pre.base, pre.idx, pre.scale, pre.disp) = (sum.base, sum.idx, sum.scale, sum.disp);
            self.row.push(pre);
            o.base = TMP;
            o.idx = extra.unwrap_or(ZERO);
            o.scale = 0;
            o.disp = 0;
            return;
        }
        (o.base, o.idx, o.scale, o.disp) = (sum.base, sum.idx, sum.scale, sum.disp);
        if let Some(extra) = extra {
            o.idx = extra;
            o.scale = 0;
        }
    }

    /// An address that is known now.
    fn constant(&mut self, o: &mut Op, a: u64, extra: Option<u8>) {
        o.idx = extra.unwrap_or(ZERO);
        o.scale = 0;
        if fits(a) {
            o.disp = a as i32;
            return;
        }
        let mut pre = self.op(address::constant);
        pre.imm = a;
        self.row.push(pre);
        o.base = TMP;
    }
}
