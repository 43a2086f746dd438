//! Code that is written while it runs.

use std::sync::atomic::Ordering;

use iced_x86::code_asm::*;

use crate::guest::*;

#[test]
fn an_instruction_can_change_the_next_one() {
    let mut g = Guest::new();
    // mov byte [CODE + 9], 7 (8 bytes); mov al, 0 (immediate at offset 9); out 0xf4, al
    let mut code = vec![0xc6, 0x04, 0x25];
    code.extend((CODE as u32 + 9).to_le_bytes());
    code.extend([7, 0xb0, 0, 0xe6, 0xf4]);
    g.ram.write(CODE, &code).unwrap();
    assert_eq!(g.run().0, 7);
}

/// Calls a function, changes its immediate through `through`, and calls it again.
fn change_through(through: u64) -> (u64, u64) {
    let mut g = Guest::new();
    let function = CODE + 0x80;
    g.code(CODE, |a| {
        a.call(function).unwrap();
        a.mov(ebx, eax).unwrap();
        a.mov(byte_ptr(through + 0x81), 9).unwrap();
        a.call(function).unwrap();
        a.out(0xf4, al).unwrap();
    });
    g.ram.write(function, &[0xb8, 1, 0, 0, 0, 0xc3]).unwrap();
    let (_, s) = g.run();
    (s.gpr[3], s.gpr[0])
}

#[test]
fn a_store_to_code_is_seen_by_the_next_call() {
    assert_eq!(change_through(CODE), (1, 9));
}

#[test]
fn a_store_through_another_name_of_the_page_is_seen() {
    assert_eq!(change_through(ALIAS), (1, 9));
}

#[test]
fn what_a_device_writes_is_seen_after_the_access_that_told_it_to() {
    let mut g = Guest::new();
    let function = CODE + 0x1000;
    g.bus.device_write.store((function + 1) << 8 | 5, Ordering::SeqCst);
    g.code(CODE, |a| {
        a.call(function).unwrap();
        a.mov(ebx, eax).unwrap();
        a.out(0xd0, al).unwrap();
        a.call(function).unwrap();
        a.out(0xf4, al).unwrap();
    });
    g.ram.write(function, &[0xb8, 1, 0, 0, 0, 0xc3]).unwrap();
    let (_, s) = g.run();
    assert_eq!((s.gpr[3], s.gpr[0]), (1, 5));
}

#[test]
fn data_beside_code_can_be_written_without_end() {
    let mut g = Guest::new();
    g.code(CODE, |a| {
        let mut again = a.create_label();
        a.mov(ecx, 100_000).unwrap();
        a.set_label(&mut again).unwrap();
        a.add(qword_ptr(CODE + 0x800), 3).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(again).unwrap();
        a.out(0xf4, al).unwrap();
    });
    g.run();
    assert_eq!(g.word(CODE + 0x800), 300_000);
}

#[test]
fn an_instruction_across_pages_follows_its_second_page() {
    let mut g = Guest::new();
    // mov eax, imm32 begins two bytes before a page; its immediate's upper half is on the next.
    let function = CODE + 0x1ffe;
    g.code(CODE, |a| {
        a.call(function).unwrap();
        a.mov(ebx, eax).unwrap();
        a.mov(byte_ptr(CODE + 0x2001), 4).unwrap();
        a.call(function).unwrap();
        a.out(0xf4, al).unwrap();
    });
    g.ram.write(function, &[0xb8, 1, 0, 0, 0, 0xc3]).unwrap();
    let (_, s) = g.run();
    assert_eq!((s.gpr[3], s.gpr[0]), (1, 0x0004_0001 & 0xffff_ffff));
}

#[test]
fn more_code_than_is_kept_runs_and_can_be_changed() {
    const BLOCKS: u64 = 40_000;
    let mut g = Guest::new();
    // A long row of: add rax, 1; jmp to the next.
    let mut row = [0x48, 0x83, 0xc0, 1, 0xeb, 0].repeat(BLOCKS as usize);
    let changed = DATA + 6 * (BLOCKS / 2) + 3;
    let tail = assemble(DATA + 6 * BLOCKS, |a| {
        a.mov(rdx, changed).unwrap();
        a.inc(byte_ptr(rdx)).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(DATA).unwrap();
        a.out(0xf4, al).unwrap();
    });
    row.extend(tail);
    g.ram.write(DATA, &row).unwrap();
    g.code(CODE, |a| {
        a.xor(eax, eax).unwrap();
        a.mov(ecx, 3).unwrap();
        a.jmp(DATA).unwrap();
    });
    let (_, s) = g.run();
    assert_eq!(s.gpr[0], 3 * BLOCKS + 1 + 2);
}
