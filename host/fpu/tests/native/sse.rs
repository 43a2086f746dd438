//! SSE and MMX: every instruction of the table in its register form.

use cardcage_fpu::sse::{self, Encoding, Map, Prefix, StringCompare};
use cardcage_fpu::{Fault, FpuState, MXCSR_DEFAULT};
use proptest::prelude::*;

use crate::machine::{Machine, Page};

/// Where an operand of a register form is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    Xmm,
    Mm,
    Gpr,
    Flags,
    Nowhere,
}

/// Operand 0, operand 1, whether operand 0 is the r/m operand, and whether an immediate byte follows.
fn operands(encoding: Encoding, mmx: bool) -> (Place, Place, bool, bool) {
    use Place::{Flags, Gpr, Mm, Nowhere, Xmm};
    let vector = if mmx { Mm } else { Xmm };
    match (encoding.map, encoding.prefix, encoding.opcode) {
        (Map::M0F3A, _, 0x14..=0x17) => (Gpr, Xmm, true, true),
        (Map::M0F3A, _, 0x20 | 0x22) => (Xmm, Gpr, false, true),
        (Map::M0F3A, _, _) => (vector, vector, false, true),
        (Map::M0F38, _, 0x17) => (Flags, Xmm, false, false),
        (Map::M0F38, _, _) => (vector, vector, false, false),
        (_, _, 0x2e | 0x2f) => (Flags, Xmm, false, false),
        (_, _, 0x71..=0x73) => (vector, Nowhere, true, true),
        (_, Prefix::F2 | Prefix::F3, 0x2c | 0x2d) => (Gpr, Xmm, false, false),
        (_, Prefix::F2 | Prefix::F3, 0x2a) => (Xmm, Gpr, false, false),
        (_, _, 0x2a) => (Xmm, Mm, false, false),
        (_, _, 0x2c | 0x2d) => (Mm, Xmm, false, false),
        (_, Prefix::F3, 0xd6) => (Xmm, Mm, false, false),
        (_, Prefix::F2, 0xd6) => (Mm, Xmm, false, false),
        (_, _, 0x50 | 0xd7) => (Gpr, vector, false, false),
        (_, _, 0xc5) => (Gpr, vector, false, true),
        (_, _, 0xc4) => (vector, Gpr, false, true),
        (_, Prefix::F3, 0x7e) => (Xmm, Xmm, false, false),
        (_, _, 0x6e) => (vector, Gpr, false, false),
        (_, _, 0x7e) => (Gpr, vector, true, false),
        (_, _, 0x11 | 0x29 | 0x7f | 0xd6) => (vector, vector, true, false),
        (_, _, 0x70 | 0xc2 | 0xc6) => (vector, vector, false, true),
        _ => (vector, vector, false, false),
    }
}

fn encode(encoding: Encoding, immediate: Option<u8>) -> Vec<u8> {
    let mut code = match encoding.prefix {
        Prefix::None => vec![],
        Prefix::P66 => vec![0x66],
        Prefix::F3 => vec![0xf3],
        Prefix::F2 => vec![0xf2],
    };
    if encoding.wide {
        code.push(0x48);
    }
    code.push(0x0f);
    match encoding.map {
        Map::M0F => {}
        Map::M0F38 => code.push(0x38),
        Map::M0F3A => code.push(0x3a),
    }
    code.extend([encoding.opcode, 0xc1 | encoding.reg << 3]);
    code.extend(immediate);
    code
}

/// Runs the instruction both ways from `machine`, and says what differs.
fn compare(page: &Page, encoding: Encoding, machine: &Machine, immediate: u8) -> Result<(), TestCaseError> {
    let Some(instruction) = sse::find(encoding) else { return Ok(()) };
    let (to, from, to_is_rm, has_immediate) = operands(encoding, instruction.is_mmx());
    let mut native = machine.clone();
    page.run(&encode(encoding, has_immediate.then_some(immediate)), &mut native);

    let mut state = FpuState::from_image(&machine.fpu).unwrap();
    let (to_index, from_index) = if to_is_rm { (1, usize::from(encoding.reg)) } else { (usize::from(encoding.reg), 1) };
    let gpr = [machine.rax, machine.rcx];
    let truncate = |value: u64| if encoding.wide { value } else { value & 0xffff_ffff };
    let read = |state: &FpuState, place, index: usize| match place {
        Place::Xmm | Place::Flags => state.xmm[index],
        Place::Mm => [state.mm(index), 0],
        Place::Gpr => [truncate(gpr[index]), 0],
        Place::Nowhere => [0; 2],
    };
    let mut value = read(&state, to, to_index);
    let source = read(&state, from, from_index);
    instruction.execute(&mut state, &mut value, &source, immediate).unwrap();
    let mut expected = native.clone();
    (expected.rax, expected.rcx, expected.flags) = (machine.rax, machine.rcx, machine.flags);
    match to {
        Place::Xmm => state.xmm[to_index] = value,
        Place::Mm => state.set_mm(to_index, value[0]),
        Place::Gpr if to_index == 0 => expected.rax = value[0],
        Place::Gpr => expected.rcx = value[0],
        Place::Flags => expected.flags = machine.flags & !0x8d5 | value[0],
        Place::Nowhere => {}
    }
    expected.fpu[..416].copy_from_slice(&state.to_image()[..416]);
    // A host with MMX pointers of its own: they are the generated code's addresses.
    expected.fpu[6..24].copy_from_slice(&native.fpu[6..24]);
    expected.fpu[28..32].copy_from_slice(&native.fpu[28..32]);
    prop_assert!(
        expected == native,
        "{} {encoding:x?} imm {immediate:#x} of {value:x?} <- {source:x?}\nours   {:x?}\nnative {:x?}\nours   {:x} {:x} {:x}\nnative {:x} {:x} {:x}",
        instruction.name(),
        state,
        FpuState::from_image(&native.fpu),
        expected.rax,
        expected.rcx,
        expected.flags,
        native.rax,
        native.rcx,
        native.flags
    );
    Ok(())
}

fn all_encodings() -> Vec<Encoding> {
    let mut all = vec![];
    for map in [Map::M0F, Map::M0F38, Map::M0F3A] {
        for prefix in [Prefix::None, Prefix::P66, Prefix::F3, Prefix::F2] {
            for opcode in 0..=255 {
                for wide in [false, true] {
                    let group = map == Map::M0F && (0x71..=0x73).contains(&opcode);
                    for reg in if group { 0..8 } else { 0..1 } {
                        let encoding = Encoding { map, prefix, opcode, reg, wide, memory: false };
                        if sse::find(encoding).is_some() {
                            all.push(encoding);
                        }
                    }
                }
            }
        }
    }
    all
}

/// Quadwords that are likely to be special as floats, as doubles or as integers.
fn quad() -> impl Strategy<Value = u64> {
    let single = prop_oneof![
        any::<u32>(),
        prop::sample::select(vec![
            0,
            0x8000_0000,
            0x3f80_0000,
            0x7f80_0000,
            0xff80_0000,
            0x7fc0_0000,
            0x7f80_0001,
            0xffc1_2345,
            1,
            0x7f_ffff,
            0x80_0000,
            0x8000_0001,
            0x7f7f_ffff,
            0xff7f_ffff,
            0x4f00_0000,
            0xcf00_0000,
            0x5f00_0000,
            0x3f00_0000,
        ]),
        (0u32..256, 0u32..4, any::<bool>()).prop_map(|(e, m, s)| e << 23 | m << 21 | u32::from(s) << 31),
    ];
    let double = prop_oneof![
        any::<u64>(),
        prop::sample::select(vec![
            0,
            1 << 63,
            0x3ff0 << 48,
            0x7ff0 << 48,
            0xfff0 << 48,
            0x7ff8 << 48,
            (0x7ff0 << 48) | 1,
            (0xfff8 << 48) | 5,
            1,
            (1 << 52) - 1,
            1 << 52,
            (0x7ff0 << 48) - 1,
            0x41e0 << 48,
            0xc1e0 << 48,
            0x43e0 << 48,
            0xc3e0 << 48,
            0x3690 << 48,
            0x47f0 << 48,
            0x380f_ffff_ffff_ffff,
            0x3810 << 48,
        ]),
        (0u64..2048, 0u64..4, any::<bool>()).prop_map(|(e, m, s)| e << 52 | m << 50 | u64::from(s) << 63),
    ];
    prop_oneof![(single.clone(), single).prop_map(|(a, b)| u64::from(a) | u64::from(b) << 32), double]
}

fn machine() -> impl Strategy<Value = Machine> {
    // All exceptions masked: rounding mode, FTZ, DAZ and flags are free.
    let mxcsr = prop_oneof![
        Just(MXCSR_DEFAULT),
        (0u32..64, any::<bool>(), 0u32..8)
            .prop_map(|(flags, daz, high)| MXCSR_DEFAULT | flags | u32::from(daz) << 6 | high << 13)
    ];
    (prop::collection::vec(quad(), 4), prop::collection::vec(any::<u64>(), 5), mxcsr, 0u16..8, any::<u8>()).prop_map(
        |(xmm, random, mxcsr, top, tags)| {
            let mut fpu = FpuState::new().to_image();
            fpu[..2].copy_from_slice(&0x37fu16.to_le_bytes());
            fpu[2..4].copy_from_slice(&(top << 11).to_le_bytes());
            fpu[4] = tags;
            fpu[24..28].copy_from_slice(&mxcsr.to_le_bytes());
            for (i, quad) in xmm.iter().enumerate() {
                fpu[160 + 8 * i..168 + 8 * i].copy_from_slice(&quad.to_le_bytes());
                for st in 0..8 {
                    fpu[32 + 16 * st..40 + 16 * st].copy_from_slice(&random[0].rotate_left(st as u32).to_le_bytes());
                }
            }
            Machine {
                fpu,
                rax: random[1],
                rcx: random[2],
                rdx: random[3],
                flags: random[4] & 0x8d5 | 0x202,
                operand: [0; 128],
            }
        },
    )
}

#[test]
fn the_table_has_all_of_sse_and_sse2() {
    let names: std::collections::BTreeSet<_> =
        all_encodings().into_iter().filter_map(sse::find).map(|instruction| instruction.name()).collect();
    assert!(names.len() >= 220, "only {} instructions", names.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn every_register_form_agrees_with_the_host(machine in machine(), immediate: u8) {
        let page = Page::new_once();
        for encoding in all_encodings() {
            compare(page, encoding, &machine, immediate)?;
        }
    }

    #[test]
    fn string_comparisons_agree_with_the_host(machine in machine(), immediate: u8, wide: bool, small: bool) {
        let page = Page::new_once();
        let mut machine = machine;
        if small {
            machine.rax %= 20;
            machine.rdx %= 20;
        }
        let kinds = [StringCompare::Estrm, StringCompare::Estri, StringCompare::Istrm, StringCompare::Istri];
        for (opcode, kind) in (0x60..).zip(kinds) {
            let state = FpuState::from_image(&machine.fpu).unwrap();
            let lengths = [machine.rax, machine.rdx];
            let Some(ours) = kind.execute(&state.xmm[0], &state.xmm[1], immediate, lengths, wide) else { return Ok(()) };
            let mut native = machine.clone();
            let mut code = vec![0x66];
            code.extend(wide.then_some(0x48));
            code.extend([0x0f, 0x3a, opcode, 0xc1, immediate]);
            page.run(&code, &mut native);
            prop_assert_eq!(ours.rflags, native.flags & 0x8d5);
            if matches!(kind, StringCompare::Estrm | StringCompare::Istrm) {
                prop_assert_eq!(ours.mask, FpuState::from_image(&native.fpu).unwrap().xmm[0]);
            } else {
                prop_assert_eq!(ours.index, native.rcx);
            }
        }
    }

    #[test]
    fn crc32_and_popcnt_agree_with_the_host(machine in machine()) {
        let page = Page::new_once();
        for (bytes, code) in [
            (1, &[0xf2, 0x0f, 0x38, 0xf0, 0xc1][..]), (2, &[0x66, 0xf2, 0x0f, 0x38, 0xf1, 0xc1]),
            (4, &[0xf2, 0x0f, 0x38, 0xf1, 0xc1]), (8, &[0xf2, 0x48, 0x0f, 0x38, 0xf1, 0xc1]),
        ] {
            let mut native = machine.clone();
            page.run(code, &mut native);
            prop_assert_eq!(u64::from(sse::crc32(machine.rax as u32, machine.rcx, bytes)), native.rax);
        }
        let mut native = machine.clone();
        page.run(&[0xf3, 0x48, 0x0f, 0xb8, 0xc1], &mut native);
        prop_assert_eq!(sse::popcnt(machine.rcx), (native.rax, native.flags & 0x8d5));
    }
}

#[test]
fn an_unmasked_exception_leaves_the_destination() {
    let add = Encoding { map: Map::M0F, prefix: Prefix::F2, opcode: 0x5e, reg: 0, wide: false, memory: false };
    let divide = sse::find(add).unwrap();
    let mut state = FpuState::new();
    state.set_mxcsr(MXCSR_DEFAULT & !0x200).unwrap();
    let mut value = [1f64.to_bits(), 7];
    assert_eq!(divide.execute(&mut state, &mut value, &[0, 0], 0), Err(Fault::SimdException));
    assert_eq!((value, state.mxcsr() & 0x3f), ([1f64.to_bits(), 7], 4));
}
