//! Single steps and breakpoints.

use iced_x86::code_asm::*;

use crate::guest::*;

#[test]
fn the_trap_flag_traps_after_each_instruction() {
    let mut g = Guest::new();
    // The handler counts in R15 and notes the addresses; after three it ends.
    g.code(HANDLER + 16, |a| a.jmp(HANDLER + 0x3000).unwrap());
    g.code(HANDLER + 0x3000, |a| {
        let mut done = a.create_label();
        a.pop(r14).unwrap();
        a.push(r14).unwrap();
        a.mov(qword_ptr(r15 * 8 + DATA), r14).unwrap();
        a.inc(r15).unwrap();
        a.cmp(r15, 3).unwrap();
        a.je(done).unwrap();
        a.iretq().unwrap();
        a.set_label(&mut done).unwrap();
        a.mov(rbx, dr6).unwrap();
        a.out(0xf4, al).unwrap();
    });
    g.code(CODE, |a| {
        a.pushfq().unwrap();
        a.or(qword_ptr(rsp), 0x100).unwrap();
        a.popfq().unwrap();
        a.nop().unwrap();
        a.mov(eax, 1).unwrap();
        a.nop().unwrap();
        a.nop().unwrap();
    });
    let (_, s) = g.run();
    let first = g.word(DATA);
    assert_eq!([g.word(DATA + 8) - first, g.word(DATA + 16) - first], [5, 6]);
    assert_ne!(s.gpr[3] & 0x4000, 0);
}

#[test]
fn a_data_breakpoint_traps_after_the_access() {
    let mut g = Guest::new();
    g.with(|s| {
        s.dr[0] = DATA + 4;
        s.dr[5] = 0x400 | 1 | 0xd << 16;
    });
    let end = g.code(CODE, |a| {
        a.mov(qword_ptr(DATA + 8), rcx).unwrap();
        a.mov(dword_ptr(DATA + 4), ecx).unwrap();
    });
    g.code(end, |a| a.hlt().unwrap());
    let (vector, s) = g.run();
    assert_eq!((vector, g.word(s.gpr[4])), (1, end));
    assert_eq!(s.dr[4] & 0xf, 1);
}

#[test]
fn an_instruction_breakpoint_faults_before_and_rf_gets_past_it() {
    let mut g = Guest::new();
    g.code(CODE, |a| {
        a.nop().unwrap();
        a.mov(al, 0x33).unwrap();
        a.out(0xf4, al).unwrap();
    });
    g.with(|s| {
        s.dr[1] = CODE + 1;
        s.dr[5] = 0x400 | 4;
    });
    g.code(HANDLER + 16, |a| {
        a.inc(r15).unwrap();
        a.iretq().unwrap();
    });
    let (value, s) = g.run();
    assert_eq!((value, s.gpr[15], s.dr[4] & 0xf), (0x33, 1, 2));
}
