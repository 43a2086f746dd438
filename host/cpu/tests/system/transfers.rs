//! System calls, changes of privilege and mode.

use iced_x86::code_asm::*;

use crate::guest::*;

#[test]
fn syscall_and_sysret_go_to_the_kernel_and_back() {
    let mut g = Guest::new();
    g.user();
    g.with(|s| {
        // STAR: user base 0x1b (SS 0x23, CS 0x2b), kernel CS 0x08.
        s.msrs.retain(|m| !(0xc000_0081..=0xc000_0084).contains(&m.0));
        s.msrs.extend([(0xc000_0081, 0x001b_0008 << 32), (0xc000_0082, HANDLER + 0x2000), (0xc000_0084, 0x200)]);
        s.rflags |= 0x200;
    });
    g.code(CODE, |a| {
        a.syscall().unwrap();
        a.mov(rsi, rdi).unwrap();
        a.int(0x80).unwrap();
    });
    g.code(HANDLER + 0x2000, |a| {
        a.mov(rdi, rcx).unwrap();
        a.pushfq().unwrap();
        a.pop(rbp).unwrap();
        a.db(&[0x48, 0x0f, 0x07]).unwrap();
    });
    let (vector, s) = g.run();
    assert_eq!(vector, 0x80);
    assert_eq!((s.gpr[6], s.gpr[5] & 0x200), (CODE + 2, 0));
    // The frame of INT shows user mode with interrupts on again, and the stack of the TSS.
    let top = s.gpr[4];
    assert_eq!((g.word(top + 8), g.word(top + 32)), (u64::from(USER_CS), u64::from(USER_SS)));
    assert_ne!(g.word(top + 16) & 0x200, 0);
    assert_eq!(top, KERNEL_STACK - 40);
}

#[test]
fn int_from_user_mode_needs_a_gate_for_user_mode() {
    let mut g = Guest::new();
    g.user();
    g.code(CODE, |a| a.int(0x21).unwrap());
    let (vector, s) = g.run();
    assert_eq!((vector, g.word(s.gpr[4])), (13, 0x21 << 3 | 2));
}

#[test]
fn privileged_instructions_are_gp_in_user_mode() {
    for code in
        [&[0xf4][..], &[0xfa], &[0x0f, 0x22, 0xc0], &[0x0f, 0x30], &[0x0f, 0x01, 0x38], &[0xe6, 0x80], &[0x0f, 0x09]]
    {
        let mut g = Guest::new();
        g.user();
        g.ram.write(CODE, code).unwrap();
        assert_eq!(g.run().0, 13, "{code:x?}");
    }
}

#[test]
fn the_io_permission_bitmap_opens_single_ports() {
    let mut g = Guest::new();
    g.user();
    g.with(|s| s.tr.limit = 0x68 + 0x20);
    g.ram.write(TSS + 102, &0x68u16.to_le_bytes()).unwrap();
    g.ram.fill(TSS + 0x68, 0x21, 0xff).unwrap();
    g.ram.write(TSS + 0x68 + 0x10, &[0xfe]).unwrap();
    g.code(CODE, |a| {
        a.out(0x80, al).unwrap();
        a.out(0x81, al).unwrap();
    });
    let (vector, s) = g.run();
    assert_eq!((vector, g.word(s.gpr[4] + 8)), (13, CODE + 2));
    assert_eq!(g.bus.writes.lock().unwrap()[0], (0x80, 0));
}

#[test]
fn iret_returns_to_compatibility_mode_where_addresses_have_32_bits() {
    let mut g = Guest::new();
    g.code(CODE, |a| {
        // A data segment of the kernel's would be taken away on the way out.
        a.mov(eax, u32::from(USER_SS)).unwrap();
        a.mov(ds, eax).unwrap();
        a.push(i32::from(USER_SS)).unwrap();
        a.push(USER_STACK as i32).unwrap();
        a.push(2).unwrap();
        a.push(i32::from(USER_CS32)).unwrap();
        a.push(CODE as i32 + 0x100).unwrap();
        a.iretq().unwrap();
    });
    // 32-bit: mov eax, 0x100008; lea ebx, [eax-0x200000]; mov ecx, [ebx+0x200000]; inc ecx; push ecx; pop edx; int 0x80
    let code =
        [0xb8, 8, 0, 0x10, 0, 0x8d, 0x98, 0, 0, 0xe0, 0xff, 0x8b, 0x8b, 0, 0, 0x20, 0, 0x41, 0x51, 0x5a, 0xcd, 0x80];
    g.ram.write(CODE + 0x100, &code).unwrap();
    g.ram.write(DATA + 8, &0x55u32.to_le_bytes()).unwrap();
    let (vector, s) = g.run();
    assert_eq!(vector, 0x80);
    assert_eq!((s.gpr[1], s.gpr[2], s.gpr[3]), (0x56, 0x56, 0xfff0_0008));
    assert_eq!(g.word(s.gpr[4] + 8), u64::from(USER_CS32));
    assert_eq!(g.word(s.gpr[4] + 24), USER_STACK);
}

#[test]
fn far_calls_and_returns_keep_the_stack_balanced() {
    let mut g = Guest::new();
    let pointer = [(CODE as u32 + 0x200).to_le_bytes().as_slice(), &KERNEL_CS.to_le_bytes()].concat();
    g.ram.write(DATA, &pointer).unwrap();
    // call far [DATA]; out 0xf4, al
    g.ram.write(CODE, &[0xff, 0x1c, 0x25, 0, 0, 0x10, 0, 0xe6, 0xf4]).unwrap();
    g.ram.write(CODE + 0x200, &[0xb0, 0x44, 0xcb]).unwrap();
    let before = KERNEL_STACK - 0x1000;
    let (value, s) = g.run();
    assert_eq!((value, s.gpr[4]), (0x44, before));
}

#[test]
fn swapgs_exchanges_bases() {
    let mut g = Guest::new();
    g.with(|s| {
        s.segments[5].base = DATA;
        s.msrs.retain(|m| m.0 != 0xc000_0101 && m.0 != 0xc000_0102);
        s.msrs.extend([(0xc000_0101, DATA), (0xc000_0102, DATA + 0x100)]);
    });
    g.ram.write(DATA, &1u64.to_le_bytes()).unwrap();
    g.ram.write(DATA + 0x100, &2u64.to_le_bytes()).unwrap();
    g.code(CODE, |a| {
        a.mov(rbx, qword_ptr(0).gs()).unwrap();
        a.swapgs().unwrap();
        a.mov(rcx, qword_ptr(0).gs()).unwrap();
        a.out(0xf4, al).unwrap();
    });
    let (_, s) = g.run();
    assert_eq!((s.gpr[3], s.gpr[1]), (1, 2));
}

#[test]
fn a_new_page_table_shows_other_code_at_the_same_address() {
    let mut g = Guest::new();
    // A second set of tables, in which the page at CODE + 0x1000 is another.
    let put = |g: &Guest, at: u64, v: u64| g.ram.write(at, &v.to_le_bytes()).unwrap();
    for (to, from) in [(0xa000u64, 0x1000u64), (0xb000, 0x2000), (0xc000, 0x3000), (0xd000, 0x4000)] {
        let mut page = vec![0; 4096];
        g.ram.read(from, &mut page).unwrap();
        g.ram.write(to, &page).unwrap();
    }
    put(&g, 0xa000, 0xb007);
    put(&g, 0xb000, 0xc007);
    put(&g, 0xc000, 0xd007);
    put(&g, 0xd000 + 8 * ((CODE + 0x1000) >> 12), (CODE + 0x2000) | 7);
    g.code(CODE, |a| {
        let target = CODE + 0x1000;
        a.call(target).unwrap();
        a.mov(ebx, eax).unwrap();
        a.mov(edx, 0xa000).unwrap();
        a.mov(cr3, rdx).unwrap();
        a.call(target).unwrap();
        a.out(0xf4, al).unwrap();
    });
    g.ram.write(CODE + 0x1000, &[0xb8, 1, 0, 0, 0, 0xc3]).unwrap();
    g.ram.write(CODE + 0x2000, &[0xb8, 2, 0, 0, 0, 0xc3]).unwrap();
    let (_, s) = g.run();
    assert_eq!((s.gpr[3], s.gpr[0]), (1, 2));
}
