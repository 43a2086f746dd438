//! String instructions over page boundaries, and what a fault in the middle leaves.

use iced_x86::code_asm::*;

use crate::guest::*;

#[test]
fn a_copy_that_faults_in_the_middle_leaves_exact_registers() {
    let mut g = Guest::new();
    g.ram.fill(MISSING - 0x1800, 0x1800, 0x5a).unwrap();
    g.code(CODE, |a| {
        a.mov(rsi, MISSING - 0x1800).unwrap();
        a.mov(rdi, DATA).unwrap();
        a.mov(ecx, 0x2000).unwrap();
        a.rep().movsb().unwrap();
    });
    // The page below MISSING is read-only, which a source may be.
    let (vector, s) = g.run();
    assert_eq!((vector, s.cr2), (14, MISSING));
    assert_eq!((s.gpr[6], s.gpr[7], s.gpr[1]), (MISSING, DATA + 0x1800, 0x800));
    assert_eq!(g.word(DATA + 0x17f8), 0x5a5a_5a5a_5a5a_5a5a);
    assert_eq!(g.word(DATA + 0x1800), 0);
}

#[test]
fn an_overlapping_copy_repeats_the_pattern() {
    let mut g = Guest::new();
    g.ram.write(DATA, &[1, 2, 3]).unwrap();
    g.code(CODE, |a| {
        a.mov(rsi, DATA).unwrap();
        a.lea(rdi, qword_ptr(rsi + 3)).unwrap();
        a.mov(ecx, 0x2000).unwrap();
        a.rep().movsb().unwrap();
        a.out(0xf4, al).unwrap();
    });
    g.run();
    let mut copied = vec![0; 0x2003];
    g.ram.read(DATA, &mut copied).unwrap();
    assert!(copied.iter().enumerate().all(|(n, &b)| usize::from(b) == n % 3 + 1));
}

#[test]
fn a_backward_copy_goes_down() {
    let mut g = Guest::new();
    g.ram.write(DATA, b"abcdefgh").unwrap();
    g.code(CODE, |a| {
        a.std().unwrap();
        a.mov(rsi, DATA + 7).unwrap();
        a.mov(rdi, DATA + 9).unwrap();
        a.mov(ecx, 8).unwrap();
        a.rep().movsb().unwrap();
        a.cld().unwrap();
        a.out(0xf4, al).unwrap();
    });
    let (_, s) = g.run();
    assert_eq!(g.word(DATA + 2).to_le_bytes(), *b"abcdefgh");
    assert_eq!((s.gpr[6], s.gpr[7]), (DATA - 1, DATA + 1));
}

#[test]
fn fills_and_scans_stop_where_they_should() {
    let mut g = Guest::new();
    g.code(CODE, |a| {
        a.mov(rdi, DATA + 5).unwrap();
        a.mov(eax, 0x1122_3344).unwrap();
        a.mov(ecx, 3000).unwrap();
        a.rep().stosd().unwrap();
        a.mov(rdi, DATA + 5).unwrap();
        a.xor(eax, eax).unwrap();
        a.mov(ecx, 100_000).unwrap();
        a.repne().scasb().unwrap();
        a.out(0xf4, al).unwrap();
    });
    let (_, s) = g.run();
    assert_eq!(g.word(DATA + 5 + 11_996) as u32, 0x1122_3344);
    assert_eq!((s.gpr[7], s.gpr[1]), (DATA + 5 + 12_001, 100_000 - 12_001));
}
