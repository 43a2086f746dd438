//! Hand-assembled user-mode code.

use std::sync::Arc;

use cardcage_memory::GuestRam;

use crate::CpuModel;
use crate::bare::{self, Outcome};
use crate::soft::SoftCpu;

const CODE: u64 = 0x10000;

fn load(code: &[u8]) -> SoftCpu {
    let ram = Arc::new(GuestRam::new(&[(0, 0x10_0000)]).unwrap());
    ram.write(CODE, code).unwrap();
    bare::long_mode(ram, &CpuModel::default())
}

fn start(cpu: &mut SoftCpu, gpr: [u64; 16]) {
    let fxsave = cpu.bare_state().fxsave;
    cpu.set_bare_state(gpr, CODE, 2, &fxsave);
}

#[test]
fn a_loop_adds_up() {
    // xor eax, eax; mov ecx, 100; l: add rax, rcx; dec ecx; jnz l; nop
    let code = [0x31, 0xc0, 0xb9, 100, 0, 0, 0, 0x48, 0x01, 0xc8, 0xff, 0xc9, 0x75, 0xf9, 0x90];
    let mut cpu = load(&code);
    start(&mut cpu, [0; 16]);
    assert_eq!(cpu.run_bare(CODE + 14, 1000), Outcome::Done);
    let s = cpu.bare_state();
    assert_eq!((s.gpr[0], s.gpr[1], s.rip), (5050, 0, CODE + 14));
}

#[test]
fn a_page_fault_reports_its_address_and_leaves_registers() {
    // mov rbx, [rdi]
    let mut cpu = load(&[0x48, 0x8b, 0x1f]);
    let mut gpr = [7; 16];
    gpr[7] = 0x4000_1234;
    start(&mut cpu, gpr);
    let met = cpu.run_bare(CODE + 3, 10);
    assert_eq!(met, Outcome::Exception { vector: 14, error: Some(4), address: Some(0x4000_1234) });
    assert_eq!(cpu.bare_state().gpr, gpr);
    assert_eq!(cpu.bare_state().rip, CODE);
}

/// A loop of 10^8 operations on a thread with 64 KiB of stack overflows it unless handlers tail-call each other.
#[test]
#[cfg_attr(not(tail_calls), ignore = "only optimised builds tail-call")]
fn handlers_follow_one_another_without_growing_the_stack() {
    // l: add rax, rcx; mov rbx, [rdi]; mov [rdi+8], rbx; addsd xmm0, xmm1; dec ecx; jnz l
    let code = [
        0x48, 0x01, 0xc8, 0x48, 0x8b, 0x1f, 0x48, 0x89, 0x5f, 0x08, 0xf2, 0x0f, 0x58, 0xc1, 0xff, 0xc9, 0x75, 0xee,
        0x90,
    ];
    // Made here, as making it takes more stack than that.
    let mut cpu = load(&code);
    let mut gpr = [0; 16];
    gpr[1] = 20_000_000;
    gpr[7] = 0x20000;
    start(&mut cpu, gpr);
    let run = move || {
        cpu.run_in_bursts(CODE + 18, 1 << 40);
        cpu.instructions()
    };
    let thread = std::thread::Builder::new().stack_size(64 << 10).spawn(run).unwrap();
    assert!(thread.join().unwrap() >= 100_000_000);
}

/// Registers and arithmetic flags after `code`, one instruction at a time or as one block where that is possible.
fn outcome_of(code: &[u8], gpr: [u64; 16], steps: bool) -> ([u64; 16], u64) {
    const TF: u64 = 0x100;
    const ARITHMETIC: u64 = 0x8d5;
    // A jump to what follows ends the last block.
    let mut cpu = load(&[code, &[0xeb, 0]].concat());
    let fxsave = cpu.bare_state().fxsave;
    cpu.set_bare_state(gpr, CODE, if steps { 2 | TF } else { 2 }, &fxsave);
    assert_eq!(cpu.run_bare(CODE + code.len() as u64 + 2, 100), Outcome::Done);
    let s = cpu.bare_state();
    (s.gpr, s.rflags & ARITHMETIC)
}

const VALUES: [u64; 6] = [0, 1, 0x7fff_ffff, 0x8000_0000, 0x7fff_ffff_ffff_ffff, 0xffff_ffff_8000_0001];

/// Whether `code` comes to the same in both ways, with some values in RAX, RCX and RDX.
fn assert_same(code: &[u8]) {
    for x in VALUES {
        for y in VALUES {
            let mut gpr = [5; 16];
            (gpr[0], gpr[1], gpr[2]) = (0xdead_beef_dead_beef, x, y);
            assert_eq!(outcome_of(code, gpr, false), outcome_of(code, gpr, true), "{code:x?} of {x:#x}, {y:#x}");
        }
    }
}

#[test]
fn a_copy_with_what_changes_it_is_what_both_are() {
    // add r8, 1: nobody reads the flags of what stands before it.
    let hides_flags = [0x49, 0x83, 0xc0, 1];
    for (copy_rex, rex) in [(0x48, 0x48), (0x48, 0x40), (0x40, 0x40), (0x40, 0x48)] {
        let copy = [copy_rex, 0x89, 0xc8]; // mov rax, rcx
        // add, or, and, sub, xor with RDX, RCX, RAX and an immediate; rol, ror, shl, shr, sar by an immediate.
        let mut seconds: Vec<Vec<u8>> = Vec::new();
        for k in [0, 1, 4, 5, 6] {
            seconds.extend([0xd0, 0xc8, 0xc0].map(|modrm| vec![rex, k << 3 | 1, modrm]));
            seconds.push(vec![rex, 0x83, 0xc0 | k << 3, 0x85]);
        }
        for k in [0, 1, 4, 5, 7] {
            seconds.extend([0, 1, 13].map(|count| vec![rex, 0xc1, 0xc0 | k << 3, count]));
        }
        for second in seconds {
            let pair = [&copy[..], &second].concat();
            assert_same(&pair);
            assert_same(&[&pair[..], &hides_flags].concat());
        }
    }
}

#[test]
fn an_operation_with_the_jump_after_it_is_what_both_are() {
    for rex in [0x40, 0x48] {
        // add, or, and, sub rcx, rdx; add rcx, -1; inc and dec rcx.
        let mut firsts: Vec<Vec<u8>> = [0, 1, 4, 5].map(|k| vec![rex, k << 3 | 1, 0xd1]).to_vec();
        firsts.extend([vec![rex, 0x83, 0xc1, 0xff], vec![rex, 0xff, 0xc1], vec![rex, 0xff, 0xc9]]);
        for first in firsts {
            for cc in 0..16 {
                // The jump goes around lea rax, [rax + 1], which leaves the flags.
                assert_same(&[&first[..], &[0x70 | cc, 4, 0x48, 0x8d, 0x40, 1]].concat());
            }
        }
    }
}
