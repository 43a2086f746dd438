//! Exceptions and interrupts.

use cardcage_accel::{Exit, Vcpu};
use iced_x86::code_asm::*;

use crate::guest::*;

/// The frame that an exception with an error code leaves: error, RIP, CS, RFLAGS, RSP, SS.
fn frame(g: &Guest, top: u64) -> [u64; 6] {
    std::array::from_fn(|n| g.word(top + 8 * n as u64))
}

#[test]
fn a_division_by_zero_pushes_the_address_of_the_instruction() {
    let mut g = Guest::new();
    g.code(CODE, |a| {
        a.mov(rsp, 0x1_f00bu64).unwrap();
        a.xor(ecx, ecx).unwrap();
        a.div(rcx).unwrap();
    });
    let (vector, s) = g.run();
    assert_eq!(vector, 0);
    // The stack is aligned to 16 bytes before the frame of five words is pushed.
    assert_eq!(s.gpr[4], 0x1_f000 - 40);
    assert_eq!(g.word(s.gpr[4]), CODE + 12);
    assert_eq!(g.word(s.gpr[4] + 24), 0x1_f00b);
}

#[test]
fn page_faults_tell_what_was_tried() {
    for (user, address, write, code) in [
        (false, MISSING, false, 0),
        (false, MISSING, true, 2),
        (false, READ_ONLY, true, 3),
        (true, MISSING, false, 4),
        (true, MISSING, true, 6),
        (true, KERNEL_PAGE, false, 5),
        (true, READ_ONLY, true, 7),
    ] {
        let mut g = Guest::new();
        g.code(CODE, |a| {
            a.mov(rbx, address + 8).unwrap();
            if write { a.inc(qword_ptr(rbx)) } else { a.mov(rcx, qword_ptr(rbx)) }.unwrap();
        });
        if user {
            g.user();
        }
        let (vector, s) = g.run();
        let f = frame(&g, s.gpr[4]);
        assert_eq!((vector, f[0], s.cr2), (14, code, address + 8), "{user} {address:#x} {write}");
        assert_eq!(f[1], CODE + 10);
        assert_eq!(f[5], if user { u64::from(USER_SS) } else { u64::from(KERNEL_SS) });
    }
}

#[test]
fn an_access_across_pages_faults_with_the_address_of_the_second() {
    let mut g = Guest::new();
    g.code(CODE, |a| {
        a.mov(rbx, MISSING - 3).unwrap();
        a.mov(rcx, qword_ptr(rbx)).unwrap();
    });
    let (vector, s) = g.run();
    assert_eq!((vector, s.cr2), (14, MISSING));
}

#[test]
fn execution_of_a_no_execute_page_is_a_fetch_fault() {
    let mut g = Guest::new();
    g.code(CODE, |a| {
        a.mov(rbx, NO_EXECUTE).unwrap();
        a.jmp(rbx).unwrap();
    });
    let (vector, s) = g.run();
    assert_eq!((vector, g.word(s.gpr[4]), s.cr2), (14, 0x11, NO_EXECUTE));
}

#[test]
fn addresses_that_are_not_canonical_are_gp_or_ss() {
    for (stack, expected) in [(false, 13), (true, 12)] {
        let mut g = Guest::new();
        g.code(CODE, |a| {
            a.mov(rbp, 0x8000_0000_0000_0000u64).unwrap();
            if stack { a.mov(rcx, qword_ptr(rbp)) } else { a.mov(rcx, qword_ptr(rbp).ds()) }.unwrap();
        });
        assert_eq!(g.run().0, expected);
    }
}

#[test]
fn a_fault_in_a_page_fault_handler_that_is_not_there_is_a_double_fault_on_its_own_stack() {
    let mut g = Guest::new();
    // The gate of #PF is not present.
    let gate = g.word(IDT + 16 * 14) & !(1 << 47);
    g.ram.write(IDT + 16 * 14, &gate.to_le_bytes()).unwrap();
    g.code(CODE, |a| a.mov(rcx, qword_ptr(MISSING)).unwrap());
    let (vector, s) = g.run();
    assert_eq!((vector, g.word(s.gpr[4])), (8, 0));
    assert_eq!(s.gpr[4], IST1 - 48);
}

#[test]
fn a_triple_fault_shuts_down() {
    let mut g = Guest::new();
    g.with(|s| s.idtr.limit = 0);
    g.code(CODE, |a| a.ud2().unwrap());
    assert_eq!(g.try_run().unwrap(), Exit::Shutdown);
}

#[test]
fn opcodes_that_the_model_does_not_have_are_undefined() {
    // popcnt eax, eax; vaddps ymm0; rdrand eax; monitor.
    for code in [&[0xf3, 0x0f, 0xb8, 0xc0][..], &[0xc5, 0xfc, 0x58, 0xc0], &[0x0f, 0xc7, 0xf0], &[0x0f, 0x01, 0xc8]] {
        let mut g = Guest::new();
        g.ram.write(CODE, code).unwrap();
        let (vector, s) = g.run();
        assert_eq!((vector, g.word(s.gpr[4])), (6, CODE), "{code:x?}");
    }
}

#[test]
fn unknown_msrs_are_gp_and_known_ones_come_back() {
    let mut g = Guest::new();
    g.code(CODE, |a| {
        a.mov(ecx, 0xc000_0082u32).unwrap();
        a.mov(eax, 0x1234_5678).unwrap();
        a.xor(edx, edx).unwrap();
        a.wrmsr().unwrap();
        a.xor(eax, eax).unwrap();
        a.rdmsr().unwrap();
        a.mov(esi, eax).unwrap();
        a.mov(ecx, 0x1234).unwrap();
        a.rdmsr().unwrap();
    });
    let (vector, s) = g.run();
    assert_eq!((vector, s.gpr[6]), (13, 0x1234_5678));
}

#[test]
fn an_interrupt_waits_for_sti_and_the_instruction_after_it() {
    let mut g = Guest::new();
    *g.apic.vector.lock().unwrap() = Some(0x41);
    g.cpu.signal().attention();
    g.code(CODE, |a| {
        a.mov(ebx, 1).unwrap();
        a.sti().unwrap();
        a.mov(ebx, 2).unwrap();
        a.mov(ebx, 3).unwrap();
        a.hlt().unwrap();
    });
    let (vector, s) = g.run();
    assert_eq!((vector, s.gpr[3]), (0x41, 2));
    assert_eq!(s.rflags & 0x200, 0);
    assert_ne!(g.word(s.gpr[4] + 16) & 0x200, 0);
}

#[test]
fn an_interrupt_gets_its_chance_between_sti_and_cli() {
    let mut g = Guest::new();
    *g.apic.vector.lock().unwrap() = Some(0x41);
    g.cpu.signal().attention();
    g.code(CODE, |a| {
        a.sti().unwrap();
        a.nop().unwrap();
        a.cli().unwrap();
        a.mov(al, 0xff).unwrap();
        a.out(0xf4, al).unwrap();
    });
    assert_eq!(g.run().0, 0x41);
}

#[test]
fn a_halted_processor_wakes_for_an_interrupt() {
    let mut g = Guest::new();
    g.code(CODE, |a| {
        a.sti().unwrap();
        a.hlt().unwrap();
        a.mov(al, 0x77).unwrap();
        a.out(0xf4, al).unwrap();
    });
    g.code(HANDLER + 16 * 0x50, |a| a.iretq().unwrap());
    let (apic, signal) = (g.apic.clone(), g.cpu.signal());
    let waker = std::thread::spawn(move || {
        std::thread::yield_now();
        *apic.vector.lock().unwrap() = Some(0x50);
        signal.attention();
    });
    assert_eq!(g.run().0, 0x77);
    waker.join().unwrap();
}

#[test]
fn an_nmi_is_not_masked_and_blocks_the_next_until_iret() {
    let mut g = Guest::new();
    *g.apic.nmi.lock().unwrap() = true;
    g.cpu.signal().attention();
    g.code(CODE, |a| {
        a.nop().unwrap();
        a.hlt().unwrap();
    });
    let (vector, s) = g.run();
    assert_eq!(vector, 2);
    assert!(s.events.nmi_blocked);
}

#[test]
fn state_comes_back_as_it_was_put() {
    let mut g = Guest::new();
    g.user();
    g.with(|s| {
        for (n, r) in s.gpr.iter_mut().enumerate() {
            *r = 0x0101_0101_0101_0101 * n as u64;
        }
        s.rflags = 0xad7;
        s.fxsave[160] = 7;
        s.dr[0] = 0x1234;
    });
    let s = g.cpu.state().unwrap();
    g.cpu.set_state(&s).unwrap();
    assert_eq!(g.cpu.state().unwrap(), s);
    assert_eq!((s.rflags, s.fxsave[160], s.gpr[15], s.dr[0]), (0xad7, 7, 0x0f0f_0f0f_0f0f_0f0f, 0x1234));
}

#[test]
fn state_that_cannot_be_is_refused() {
    let mut g = Guest::new();
    let good = g.cpu.state().unwrap();
    let mut bad = good.clone();
    bad.efer = 1 << 20;
    assert!(g.cpu.set_state(&bad).unwrap_err().to_string().contains("EFER"));
    bad = good.clone();
    bad.msrs.push((0x9999, 1));
    assert!(g.cpu.set_state(&bad).unwrap_err().to_string().contains("0x9999"));
}

#[test]
fn the_paravirtual_clock_is_written_where_the_guest_wants_it() {
    let mut g = Guest::new();
    g.clock.step(5_000).unwrap();
    g.code(CODE, |a| {
        a.mov(ecx, 0x4b56_4d01).unwrap();
        a.mov(eax, DATA as u32 | 1).unwrap();
        a.xor(edx, edx).unwrap();
        a.wrmsr().unwrap();
        a.rdtsc().unwrap();
        a.mov(ebx, eax).unwrap();
        a.out(0xf4, al).unwrap();
    });
    let (_, s) = g.run();
    assert_eq!(s.gpr[3], 5_000);
    assert_eq!((g.word(DATA) as u32 & 1, g.word(DATA + 8), g.word(DATA + 16)), (0, 5_000, 5_000));
    assert_eq!(g.word(DATA + 24), 0x0101_8000_0000);
}
