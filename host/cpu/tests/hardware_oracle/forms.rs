//! Which instruction forms take part: user-level ones of x86-64-v1 with CMPXCHG16B, and some that must be refused.

use std::sync::LazyLock;

use iced_x86::{Code, CpuidFeature, EncodingKind, Mnemonic, OpCodeOperandKind};

use crate::generate::Unit;
use crate::random::Random;

/// All instruction forms that take part.
pub(crate) fn forms() -> &'static [Code] {
    static FORMS: LazyLock<Vec<Code>> = LazyLock::new(|| Code::values().filter(|&code| is_usable(code)).collect());
    &FORMS
}

fn is_usable(code: Code) -> bool {
    use CpuidFeature::*;
    use Mnemonic as M;
    let info = code.op_code();
    let features_fit = code.cpuid_features().iter().all(|feature| {
        matches!(
            feature,
            INTEL8086
                | INTEL186
                | INTEL286
                | INTEL386
                | INTEL486
                | X64
                | FPU
                | FPU287
                | FPU387
                | CMOV
                | CX8
                | CMPXCHG16B
                | MMX
                | SSE
                | SSE2
                | FXSR
                | PAUSE
                | MULTIBYTENOP
                | CLFSH
        )
    });
    // The processor's or the operating system's business rather than arithmetic: their results differ by design, or the
    // kernel stands in the way.
    let excluded = matches!(
        code.mnemonic(),
        M::Cpuid
            | M::Rdtsc
            | M::Rdpmc
            | M::Syscall
            | M::Sysenter
            | M::Sysexit
            | M::Sysret
            | M::Sysretq
            | M::Iret
            | M::Iretd
            | M::Iretq
            | M::Into
            | M::Sgdt
            | M::Sidt
            | M::Sldt
            | M::Str
            | M::Smsw
            | M::Lar
            | M::Lsl
            | M::Verr
            | M::Verw
            | M::Lss
            | M::Lfs
            | M::Lgs
            | M::Lds
            | M::Les
            | M::Retf
            | M::Umonitor
            | M::Rsm
            | M::Loadall
            | M::Xbegin
    );
    let excluded_forms = matches!(code, Code::Jmp_rel16 | Code::Call_rel16);
    let far = matches!(
        code,
        Code::Jmp_m1616 | Code::Jmp_m1632 | Code::Jmp_m1664 | Code::Call_m1616 | Code::Call_m1632 | Code::Call_m1664
    );
    info.is_instruction()
        && info.encoding() == EncodingKind::Legacy
        && info.mode64()
        // What the vendors decode differently (branches with an operand-size prefix).
        && info.intel_decoder64()
        && info.amd_decoder64()
        && (info.cpl3() || is_refused(code))
        && features_fit
        && !excluded
        && !excluded_forms
        && !far
        && info.decoder_option() == 0
        && !info.op_kinds().contains(&OpCodeOperandKind::seg_reg)
        && !matches!(
            code,
            Code::Pushq_FS
                | Code::Pushq_GS
                | Code::Pushw_FS
                | Code::Pushw_GS
                | Code::Popq_FS
                | Code::Popq_GS
                | Code::Popw_FS
                | Code::Popw_GS
        )
        && code.mnemonic() != M::INVALID
}

/// Privileged instructions, which must end in #GP.
fn is_refused(code: Code) -> bool {
    use Mnemonic as M;
    matches!(
        code.mnemonic(),
        M::Hlt
            | M::Clts
            | M::Invd
            | M::Wbinvd
            | M::Lgdt
            | M::Lidt
            | M::Lldt
            | M::Ltr
            | M::Lmsw
            | M::Rdmsr
            | M::Wrmsr
            | M::Invlpg
    )
}

/// The forms that programs are made of, and that interpreters therefore have special ways for.
fn common_forms() -> &'static [Code] {
    static FORMS: LazyLock<Vec<Code>> = LazyLock::new(|| {
        use Mnemonic as M;
        let common = |code: &Code| {
            matches!(
                code.mnemonic(),
                M::Mov
                    | M::Add
                    | M::Sub
                    | M::Cmp
                    | M::Test
                    | M::And
                    | M::Or
                    | M::Xor
                    | M::Inc
                    | M::Dec
                    | M::Neg
                    | M::Not
                    | M::Adc
                    | M::Sbb
                    | M::Lea
                    | M::Movzx
                    | M::Movsx
                    | M::Movsxd
                    | M::Shl
                    | M::Shr
                    | M::Sar
                    | M::Rol
                    | M::Ror
                    | M::Imul
                    | M::Push
                    | M::Pop
                    | M::Xchg
                    | M::Bswap
                    | M::Bt
                    | M::Cdqe
                    | M::Cqo
                    | M::Mul
                    | M::Shld
                    | M::Shrd
                    | M::Xadd
                    | M::Cmpxchg
            )
        };
        forms().iter().copied().filter(common).collect()
    });
    &FORMS
}

/// The forms that read flags to decide something.
fn deciding_forms() -> &'static [Code] {
    static FORMS: LazyLock<Vec<Code>> = LazyLock::new(|| {
        let decides =
            |code: &Code| code.is_jcc_short_or_near() || code.condition_code() != iced_x86::ConditionCode::None;
        forms().iter().copied().filter(decides).collect()
    });
    &FORMS
}

/// A random form: any, or often a common one, and often a decision after flags were set.
pub(crate) fn pick_form(random: &mut Random, before: Option<&Unit>) -> Code {
    let sets_flags = before.and_then(|unit| unit.instructions.last()).is_some_and(|i| i.rflags_modified() != 0);
    match random.below(100) {
        0..25 if sets_flags => random.pick(deciding_forms()),
        0..60 => random.pick(common_forms()),
        _ => random.pick(forms()),
    }
}
