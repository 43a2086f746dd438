//! x87: every opcode, with any state, masked and unmasked exceptions, in both layouts of the environment.

use cardcage_fpu::x87::{self, Effect, EnvironmentLayout, OPERAND_MAX, Operand, Site};
use cardcage_fpu::{Fault, FpuState};
use proptest::prelude::*;

use crate::machine::{Machine, Page};

/// Whether the host keeps data pointer and opcode only after unmasked exceptions, and no selectors.
fn host_has_our_pointers() -> bool {
    let leaf = std::arch::x86_64::__cpuid_count(7, 0).ebx;
    leaf & (1 << 6 | 1 << 13) == 1 << 6 | 1 << 13
}

fn extended() -> impl Strategy<Value = (u64, u16)> {
    let significand = prop_oneof![
        any::<u64>(),
        any::<u64>().prop_map(|v| v | 1 << 63),
        Just(1 << 63),
        Just(0),
        Just(3 << 62),
        Just(1),
        (0u32..64).prop_map(|shift| u64::MAX << shift),
        (0u64..1000, 0u32..54).prop_map(|(v, shift)| v << shift),
    ];
    let exponent = prop_oneof![
        any::<u16>(),
        0x3ff0u16..0x4010,
        0x4030u16..0x4048,
        Just(0),
        Just(0x7fff),
        Just(1),
        Just(0x7ffe),
        0x3c00u16..0x3c10,
        0x43f0u16..0x4408,
        0x3f70u16..0x3f90,
        0x4070u16..0x4090,
    ];
    (significand, exponent, any::<bool>()).prop_map(|(s, e, sign)| (s, e & 0x7fff | u16::from(sign) << 15))
}

fn machine() -> impl Strategy<Value = Machine> {
    let control = prop_oneof![Just(0x37fu16), any::<u16>(), any::<u16>().prop_map(|cw| cw & 0xf00 | 0x7f)];
    let status = prop_oneof![any::<u16>().prop_map(|sw| sw & 0x7f00), any::<u16>()];
    let tags = prop_oneof![Just(0xffu8), any::<u8>(), any::<[u8; 3]>().prop_map(|[a, b, c]| a | b | c)];
    let operand = prop_oneof![
        any::<[u8; 16]>(),
        extended().prop_map(|(s, e)| (u128::from(s) | u128::from(e) << 64).to_le_bytes()),
        any::<f64>().prop_map(|v| u128::from(v.to_bits()).to_le_bytes()),
        any::<f32>().prop_map(|v| u128::from(v.to_bits()).to_le_bytes()),
    ];
    let registers = prop::collection::vec(extended(), 8);
    (control, status, tags, registers, operand, any::<[u8; 32]>(), any::<u64>()).prop_map(
        |(control, status, tags, registers, low, random, flags)| {
            let mut fpu = FpuState::new().to_image();
            fpu[..2].copy_from_slice(&control.to_le_bytes());
            fpu[2..4].copy_from_slice(&status.to_le_bytes());
            fpu[4] = tags;
            fpu[6..24].copy_from_slice(&random[..18]);
            // Processors do not agree on pointers that are not canonical.
            fpu[14..16].fill(0);
            fpu[22..24].fill(0);
            for (slot, (significand, exponent)) in fpu[32..160].chunks_exact_mut(16).zip(registers) {
                slot[..8].copy_from_slice(&significand.to_le_bytes());
                slot[8..10].copy_from_slice(&exponent.to_le_bytes());
            }
            let mut operand = [0; 128];
            for (i, byte) in operand.iter_mut().enumerate() {
                *byte = random[i % 32].wrapping_mul(i as u8 | 1);
            }
            operand[..16].copy_from_slice(&low);
            Machine { fpu, rax: flags.rotate_left(20), rcx: 0, rdx: 0, flags: flags & 0x8d5 | 0x202, operand }
        },
    )
}

/// Runs an instruction both ways from `machine`; nothing if it is undefined or has to wait.
fn compare(page: &Page, machine: &Machine, opcode: u8, modrm: u8, narrow: bool) -> Result<(), TestCaseError> {
    let mut state = FpuState::from_image(&machine.fpu).unwrap();
    let layout = if narrow { EnvironmentLayout::Protected16 } else { EnvironmentLayout::Protected32 };
    match x87::check(&state, opcode, modrm) {
        Err(Fault::MathFault) => {
            prop_assert!(state.status_word() & !state.control_word() & 0x3f != 0);
            return Ok(());
        }
        Err(_) => return Ok(()),
        Ok(()) => {}
    }
    let mut native = machine.clone();
    let mut expected = machine.clone();
    let code = if narrow { vec![0x66, opcode, modrm] } else { vec![opcode, modrm] };
    let address = page.run(&code, &mut native);
    let site = Site { instruction: address, operand: std::ptr::from_ref(&native.operand) as u64 };
    let effect = if modrm < 0xc0 {
        let mut buffer = [0; OPERAND_MAX];
        if let Operand::Load(len) = x87::operand(opcode, modrm, layout).unwrap() {
            buffer[..len].copy_from_slice(&machine.operand[..len]);
        }
        let effect = x87::execute_memory(&mut state, opcode, modrm, layout, site, &mut buffer).unwrap();
        if let Effect::Store(len) = effect {
            expected.operand[..len].copy_from_slice(&buffer[..len]);
        }
        effect
    } else {
        x87::execute_register(&mut state, opcode, modrm, site, &mut expected.flags).unwrap()
    };
    if let Effect::Ax(value) = effect {
        expected.rax = expected.rax & !0xffff | u64::from(value);
    }
    expected.fpu = state.to_image();
    expected.fpu[28..32].copy_from_slice(&native.fpu[28..32]);
    if !host_has_our_pointers() {
        expected.fpu[6..24].copy_from_slice(&native.fpu[6..24]);
        if matches!((opcode, modrm >> 3 & 7), (0xd9 | 0xdd, 6)) && modrm < 0xc0 {
            return Ok(());
        }
    }
    prop_assert!(
        expected == native,
        "{opcode:02x} {modrm:02x} narrow {narrow}\nfrom   {:x?}\nours   {:x?}\nnative {:x?}\nours   {:x} {:x} {:02x?} {:02x?}\nnative {:x} {:x} {:02x?} {:02x?}",
        FpuState::from_image(&machine.fpu),
        state,
        FpuState::from_image(&native.fpu),
        expected.rax,
        expected.flags,
        &expected.operand[..28],
        &expected.fpu[..32],
        native.rax,
        native.flags,
        &native.operand[..28],
        &native.fpu[..32]
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_opcode_agrees_with_the_host(machine in machine(), narrow: bool) {
        let page = Page::new_once();
        for opcode in 0xd8..=0xdf {
            for reg in 0..8u8 {
                // [rdi]
                let modrm = reg << 3 | 7;
                if x87::operand(opcode, modrm, EnvironmentLayout::Protected32).is_ok() {
                    compare(page, &machine, opcode, modrm, narrow)?;
                }
            }
            for modrm in 0xc0..=0xff {
                compare(page, &machine, opcode, modrm, false)?;
            }
        }
    }

    #[test]
    fn real_mode_environments_come_back(machine in machine(), wide: bool) {
        let layout = if wide { EnvironmentLayout::Real32 } else { EnvironmentLayout::Real16 };
        let mut state = FpuState::from_image(&machine.fpu).unwrap();
        let mut buffer = [0; OPERAND_MAX];
        let site = Site::default();
        let before = state.clone();
        x87::execute_memory(&mut state, 0xdd, 0x30, layout, site, &mut buffer).unwrap();
        prop_assert_eq!((state.control_word(), state.status_word()), (0x37f, 0));
        x87::execute_memory(&mut state, 0xdd, 0x20, layout, site, &mut buffer).unwrap();
        let (mut ours, mut theirs) = (state.to_image(), before.to_image());
        for image in [&mut ours, &mut theirs] {
            // Of the pointers, 32 or 20 bits are kept.
            let kept: u32 = if wide { u32::MAX } else { 0xf_ffff };
            for at in [8, 16] {
                let pointer = u32::from_le_bytes([image[at], image[at + 1], image[at + 2], image[at + 3]]) & kept;
                image[at..at + 4].copy_from_slice(&pointer.to_le_bytes());
                image[at + 4..at + 8].fill(0);
            }
        }
        prop_assert_eq!(ours, theirs);
    }
}

#[test]
fn a_waiting_instruction_raises_a_pending_exception_and_fnclex_ends_it() {
    let mut state = FpuState::new();
    let (site, mut flags) = (Site::default(), 2);
    let mut buffer = [0; OPERAND_MAX];
    x87::execute_register(&mut state, 0xdb, 0xe3, site, &mut flags).unwrap();
    // Unmask zero-divide; 1 / 0.
    buffer[..2].copy_from_slice(&0x37bu16.to_le_bytes());
    x87::execute_memory(&mut state, 0xd9, 0x28, EnvironmentLayout::Protected32, site, &mut buffer).unwrap();
    x87::execute_register(&mut state, 0xd9, 0xe8, site, &mut flags).unwrap();
    x87::execute_register(&mut state, 0xd9, 0xee, site, &mut flags).unwrap();
    let divide = Site { instruction: 0x1234, operand: 0 };
    assert_eq!(x87::execute_register(&mut state, 0xd8, 0xf9, divide, &mut flags), Ok(Effect::None));
    assert!(state.math_fault_pending());
    assert_eq!(x87::wait(&state), Err(Fault::MathFault));
    assert_eq!(x87::execute_register(&mut state, 0xd9, 0xe8, site, &mut flags), Err(Fault::MathFault));
    assert_eq!(state.enter_mmx(), Err(Fault::MathFault));
    assert_eq!(x87::execute_register(&mut state, 0xdf, 0xe0, site, &mut flags), Ok(Effect::Ax(state.status_word())));
    x87::execute_register(&mut state, 0xdb, 0xe2, site, &mut flags).unwrap();
    assert_eq!(x87::wait(&state), Ok(()));
}

#[test]
fn undefined_opcodes_are_refused() {
    let mut state = FpuState::new();
    for (opcode, modrm) in [(0xd9, 0xd1), (0xda, 0xe0), (0xdf, 0xff), (0xde, 0xd8), (0xd7, 0xc0), (0xd8, 0x00)] {
        let result = x87::execute_register(&mut state, opcode, modrm, Site::default(), &mut 2);
        assert_eq!(result, Err(Fault::InvalidOpcode), "{opcode:x} {modrm:x}");
    }
    assert!(x87::operand(0xd9, 0x08, EnvironmentLayout::Protected32).is_err());
}
