//! Operands of decoded instructions: registers, memory, immediates; atomic read-modify-write.
#![expect(unsafe_code, reason = "locked instructions are the host's own, on host addresses of guest RAM")]

use iced_x86::{Instruction, OpKind, Register};

use crate::fault::{Fault, Res};
use crate::segment::index_of as segment_index;
use crate::state::{Cpu, mask, sign_extend};

/// Size of operand `n` in bytes.
pub(super) fn size(i: &Instruction, n: u32) -> usize {
    match i.op_kind(n) {
        OpKind::Register => i.op_register(n).size(),
        OpKind::Memory => i.memory_size().size(),
        OpKind::Immediate8 => 1,
        OpKind::Immediate16 | OpKind::Immediate8to16 => 2,
        OpKind::Immediate32 | OpKind::Immediate8to32 => 4,
        _ => 8,
    }
}

/// A general register's value.
pub(super) fn get(c: &Cpu, r: Register) -> u64 {
    let n = r.full_register().number() & 15;
    match r {
        Register::AH | Register::CH | Register::DH | Register::BH => (c.regs[n] >> 8) & 0xff,
        _ => c.regs[n] & mask(r.size()),
    }
}

/// Sets a general register: 32-bit writes clear the upper half.
pub(super) fn set(c: &mut Cpu, r: Register, v: u64) {
    let n = r.full_register().number() & 15;
    let p = &mut c.regs[n];
    match r {
        Register::AH | Register::CH | Register::DH | Register::BH => *p = *p & !0xff00 | (v & 0xff) << 8,
        _ => match r.size() {
            1 => *p = *p & !0xff | v & 0xff,
            2 => *p = *p & !0xffff | v & 0xffff,
            4 => *p = v & 0xffff_ffff,
            _ => *p = v,
        },
    }
}

/// Sets a register by number and size.
pub(super) fn set_number(c: &mut Cpu, n: usize, size: usize, v: u64) {
    let p = &mut c.regs[n & 15];
    match size {
        1 => *p = *p & !0xff | v & 0xff,
        2 => *p = *p & !0xffff | v & 0xffff,
        4 => *p = v & 0xffff_ffff,
        _ => *p = v,
    }
}

/// Offset of the memory operand in its segment.
pub(super) fn offset(c: &Cpu, i: &Instruction) -> u64 {
    let base = i.memory_base();
    if base == Register::RIP || base == Register::EIP {
        return i.ip_rel_memory_address();
    }
    let index = i.memory_index();
    let mut sum = i.memory_displacement64();
    if base != Register::None {
        sum = sum.wrapping_add(get(c, base));
    }
    if index != Register::None {
        sum = sum.wrapping_add(get(c, index).wrapping_mul(u64::from(i.memory_index_scale())));
    }
    sum & address_mask(c, i)
}

/// What offsets are cut to.
fn address_mask(c: &Cpu, i: &Instruction) -> u64 {
    let size = if i.memory_base() != Register::None {
        i.memory_base().size()
    } else if i.memory_index() != Register::None {
        i.memory_index().size()
    } else if i.memory_displ_size() > 1 {
        i.memory_displ_size() as usize
    } else {
        8
    };
    mask(if c.is_long() { size } else { size.min(4) })
}

/// Linear address of the memory operand, `size` bytes, after the segment's checks.
pub(super) fn address(c: &mut Cpu, i: &Instruction, size: usize, write: bool) -> Res<u64> {
    let o = offset(c, i);
    c.linear(segment_index(i.memory_segment()), o, size, write)
}

/// Linear address `delta` bytes into the memory operand.
pub(super) fn address_at(c: &mut Cpu, i: &Instruction, delta: u64, size: usize, write: bool) -> Res<u64> {
    let o = offset(c, i).wrapping_add(delta) & address_mask(c, i);
    c.linear(segment_index(i.memory_segment()), o, size, write)
}

/// The value of operand `n`, zero-extended; immediates are sign-extended.
pub(super) fn read(c: &mut Cpu, i: &Instruction, n: u32) -> Res<u64> {
    match i.op_kind(n) {
        OpKind::Register => {
            let r = i.op_register(n);
            if r.is_segment_register() { Ok(u64::from(c.segs[segment_index(r)].selector)) } else { Ok(get(c, r)) }
        }
        OpKind::Memory => {
            let size = i.memory_size().size();
            let a = address(c, i, size, false)?;
            c.read_linear(a, size)
        }
        _ => Ok(i.immediate(n)),
    }
}

/// Writes operand `n`.
pub(super) fn write(c: &mut Cpu, i: &Instruction, n: u32, v: u64) -> Res {
    match i.op_kind(n) {
        OpKind::Register => set(c, i.op_register(n), v),
        OpKind::Memory => {
            let size = i.memory_size().size();
            let a = address(c, i, size, true)?;
            c.write_linear(a, size, v)?;
        }
        _ => return Err(Fault::UD),
    }
    Ok(())
}

/// Replaces operand 0 by `f` of it; atomically if it is memory and the instruction is locked. Returns what `f` was
/// last given. `f` may be called several times.
pub(super) fn update(
    c: &mut Cpu,
    i: &Instruction,
    locked: bool,
    mut f: impl FnMut(&mut Cpu, u64) -> Res<u64>,
) -> Res<u64> {
    let size = size(i, 0);
    if i.op0_kind() != OpKind::Memory {
        let x = get(c, i.op0_register());
        let v = f(c, x)?;
        set(c, i.op0_register(), v);
        return Ok(x);
    }
    let a = address(c, i, size, true)?;
    update_at(c, a, size, locked, &mut f)
}

/// The same at a linear address.
pub(super) fn update_at(
    c: &mut Cpu,
    a: u64,
    size: usize,
    locked: bool,
    f: &mut impl FnMut(&mut Cpu, u64) -> Res<u64>,
) -> Res<u64> {
    c.probe_write(a, size)?;
    let inside = (a & 0xfff) + size as u64 <= 0x1000;
    if locked
        && inside
        && let Some(p) = c.tlb.span(a, true)
    {
        loop {
            let old = match size {
                1 => crate::tlb::peek::<1>(p),
                2 => crate::tlb::peek::<2>(p),
                4 => crate::tlb::peek::<4>(p),
                _ => crate::tlb::peek::<8>(p),
            };
            let new = f(c, old)?;
            if compare_exchange(p, size, old, new) {
                return Ok(old);
            }
        }
    }
    // Registers, memory-mapped I/O, accesses across pages and pages with code: not atomic as seen by others.
    let old = c.read_linear(a, size)?;
    let new = f(c, old)?;
    c.write_linear(a, size, new)?;
    Ok(old)
}

/// The host's LOCK CMPXCHG, which takes any alignment.
fn compare_exchange(p: *mut u8, size: usize, old: u64, new: u64) -> bool {
    let ok: u8;
    // SAFETY: the TLB has validated `size` writable bytes at `p`, all on one page of guest RAM. The instruction is
    // atomic at any alignment.
    unsafe {
        match size {
            1 => {
                std::arch::asm!("lock cmpxchg byte ptr [{p}], {n}", "sete {ok}", p = in(reg) p, n = in(reg_byte) new as u8,
                ok = lateout(reg_byte) ok, inout("al") old as u8 => _)
            }
            2 => std::arch::asm!("lock cmpxchg word ptr [{p}], {n:x}", "sete {ok}", p = in(reg) p, n = in(reg) new,
                ok = lateout(reg_byte) ok, inout("rax") old => _),
            4 => std::arch::asm!("lock cmpxchg dword ptr [{p}], {n:e}", "sete {ok}", p = in(reg) p, n = in(reg) new,
                ok = lateout(reg_byte) ok, inout("rax") old => _),
            _ => std::arch::asm!("lock cmpxchg qword ptr [{p}], {n}", "sete {ok}", p = in(reg) p, n = in(reg) new,
                ok = lateout(reg_byte) ok, inout("rax") old => _),
        }
    }
    ok != 0
}

/// The linear address of a memory operand. Misalignment (#GP) counts before a stack address that is not canonical (#SS).
pub(super) fn aligned_address(c: &mut Cpu, i: &Instruction, len: usize, alignment: u64, write: bool) -> Res<u64> {
    let misaligned = |a: u64| a & (alignment - 1) != 0;
    match address(c, i, len, write) {
        Ok(a) if misaligned(a) => Err(Fault::GP),
        Err(_) if misaligned(offset(c, i)) => Err(Fault::GP),
        result => result,
    }
}

/// The host's LOCK CMPXCHG16B at an aligned address: whether it stored, and what was there.
pub(super) fn compare_exchange16(p: *mut u8, old: [u64; 2], new: [u64; 2]) -> (bool, [u64; 2]) {
    let ok: u8;
    let (mut low, mut high) = (old[0], old[1]);
    // SAFETY: the caller has validated 16 aligned writable bytes. RBX is exchanged because LLVM reserves it.
    unsafe {
        std::arch::asm!(
            "xchg {b}, rbx",
            "lock cmpxchg16b [{p}]",
            "mov rbx, {b}",
            "sete {ok}",
            b = inout(reg) new[0] => _,
            p = in(reg) p,
            ok = lateout(reg_byte) ok,
            in("rcx") new[1],
            inout("rax") low,
            inout("rdx") high,
        );
    }
    (ok != 0, [low, high])
}

/// The operand size of an instruction as its prefixes give it: 2, 4 or 8, from the stack pointer's change or code.
pub(super) fn signed(v: u64, size: usize) -> i64 {
    sign_extend(v, size) as i64
}
