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
