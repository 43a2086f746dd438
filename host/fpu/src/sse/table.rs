//! All instructions that [`super::find`] knows, by encoding. One row is one instruction; nothing else lists them.

use super::Map::{M0F, M0F3A, M0F38};
use super::Prefix::{self, F2, F3, P66};
use super::Run::{self, BlendByXmm0, Mmx, ShiftByImmediate, WithImmediate};
use super::unmasked::Elements::{self, Doubles, Singles};
use super::unmasked::Operation::{Add, Composite, Divide, Multiply, Narrow, Subtract};
use super::{Float, FloatWithImmediate, Half, Instruction, Map, Plain, When, arrange, exact, packed, strings};
use crate::fast;

/// Every instruction.
pub(super) fn all() -> impl Iterator<Item = &'static Instruction> {
    [MOVES, FLOAT, CONVERT, LOGIC, PACKED, PACKED_MMX, SHIFTS, SHUFFLES, NEWER, NEWER_MMX].into_iter().flatten()
}

/// An instruction in all its encodings, with a memory operand that need not be aligned.
const fn row(map: Map, prefix: Prefix, opcode: u8, name: &'static str, run: Run) -> Instruction {
    let beyond_sse2 = !matches!(map, M0F);
    Instruction { name, map, prefix, opcode, when: When::Always, run, alignment: 1, mmx: false, beyond_sse2 }
}

const fn plain(prefix: Prefix, opcode: u8, name: &'static str, run: Plain) -> Instruction {
    row(M0F, prefix, opcode, name, Run::Plain(run))
}

const fn float(prefix: Prefix, opcode: u8, name: &'static str, run: Float, elements: Elements) -> Instruction {
    row(M0F, prefix, opcode, name, Run::Float(run, elements))
}

const fn compare(prefix: Prefix, name: &'static str, run: FloatWithImmediate) -> Instruction {
    row(M0F, prefix, 0xc2, name, Run::FloatWithImmediate(run))
}

impl Instruction {
    const fn when(self, when: When) -> Self {
        Self { when, ..self }
    }

    const fn aligned(self) -> Self {
        Self { alignment: 16, ..self }
    }

    const fn mmx(self) -> Self {
        Self { mmx: true, ..self }
    }

    const fn newer(self) -> Self {
        Self { beyond_sse2: true, ..self }
    }
}

/// Moves and masks.
const MOVES: &[Instruction] = &[
    plain(Prefix::None, 0x10, "movups", arrange::copy),
    plain(Prefix::None, 0x11, "movups", arrange::copy),
    plain(P66, 0x10, "movupd", arrange::copy),
    plain(P66, 0x11, "movupd", arrange::copy),
    plain(Prefix::None, 0x28, "movaps", arrange::copy).aligned(),
    plain(Prefix::None, 0x29, "movaps", arrange::copy).aligned(),
    plain(P66, 0x28, "movapd", arrange::copy).aligned(),
    plain(P66, 0x29, "movapd", arrange::copy).aligned(),
    plain(Prefix::None, 0x2b, "movntps", arrange::copy).when(When::Memory).aligned(),
    plain(P66, 0x2b, "movntpd", arrange::copy).when(When::Memory).aligned(),
    plain(P66, 0xe7, "movntdq", arrange::copy).when(When::Memory).aligned(),
    plain(P66, 0x6f, "movdqa", arrange::copy).aligned(),
    plain(P66, 0x7f, "movdqa", arrange::copy).aligned(),
    plain(F3, 0x6f, "movdqu", arrange::copy),
    plain(F3, 0x7f, "movdqu", arrange::copy),
    plain(F2, 0xf0, "lddqu", arrange::copy).when(When::Memory).newer(),
    plain(F3, 0x10, "movss", arrange::low_dword).when(When::Register),
    plain(F3, 0x10, "movss", arrange::low_dword_zero).when(When::Memory),
    plain(F3, 0x11, "movss", arrange::low_dword),
    plain(F2, 0x10, "movsd", arrange::low_quad).when(When::Register),
    plain(F2, 0x10, "movsd", arrange::low_quad_zero).when(When::Memory),
    plain(F2, 0x11, "movsd", arrange::low_quad),
    plain(Prefix::None, 0x12, "movhlps", arrange::high_to_low).when(When::Register),
    plain(Prefix::None, 0x12, "movlps", arrange::low_quad).when(When::Memory),
    plain(P66, 0x12, "movlpd", arrange::low_quad).when(When::Memory),
    plain(Prefix::None, 0x13, "movlps", arrange::low_quad).when(When::Memory),
    plain(P66, 0x13, "movlpd", arrange::low_quad).when(When::Memory),
    plain(Prefix::None, 0x16, "movlhps", arrange::low_to_high).when(When::Register),
    plain(Prefix::None, 0x16, "movhps", arrange::low_to_high).when(When::Memory),
    plain(P66, 0x16, "movhpd", arrange::low_to_high).when(When::Memory),
    plain(Prefix::None, 0x17, "movhps", arrange::high_to_low).when(When::Memory),
    plain(P66, 0x17, "movhpd", arrange::high_to_low).when(When::Memory),
    plain(P66, 0x6e, "movd", arrange::low_dword_zero).when(When::Narrow),
    plain(P66, 0x6e, "movq", arrange::low_quad_zero).when(When::Wide),
    plain(P66, 0x7e, "movd", arrange::low_dword_zero).when(When::Narrow),
    plain(P66, 0x7e, "movq", arrange::low_quad_zero).when(When::Wide),
    plain(F3, 0x7e, "movq", arrange::low_quad_zero),
    plain(P66, 0xd6, "movq", arrange::low_quad_zero),
    plain(Prefix::None, 0x6e, "movd", arrange::low_dword_zero).when(When::Narrow).mmx(),
    plain(Prefix::None, 0x6e, "movq", arrange::low_quad_zero).when(When::Wide).mmx(),
    plain(Prefix::None, 0x7e, "movd", arrange::low_dword_zero).when(When::Narrow).mmx(),
    plain(Prefix::None, 0x7e, "movq", arrange::low_quad_zero).when(When::Wide).mmx(),
    plain(Prefix::None, 0x6f, "movq", arrange::low_quad_zero).mmx(),
    plain(Prefix::None, 0x7f, "movq", arrange::low_quad_zero).mmx(),
    plain(Prefix::None, 0xe7, "movntq", arrange::low_quad_zero).when(When::Memory).mmx(),
    plain(F3, 0xd6, "movq2dq", arrange::low_quad_zero).when(When::Register).mmx(),
    plain(F2, 0xd6, "movdq2q", arrange::low_quad_zero).when(When::Register).mmx(),
    plain(F2, 0x12, "movddup", arrange::movddup).newer(),
    plain(F3, 0x12, "movsldup", arrange::movsldup).aligned().newer(),
    plain(F3, 0x16, "movshdup", arrange::movshdup).aligned().newer(),
    plain(Prefix::None, 0x50, "movmskps", mask_ps).when(When::Register),
    plain(P66, 0x50, "movmskpd", mask_pd).when(When::Register),
    plain(P66, 0xd7, "pmovmskb", mask_bytes).when(When::Register),
    row(M0F, Prefix::None, 0xd7, "pmovmskb", Mmx(mask_bytes, Half::Low)).when(When::Register).mmx(),
];

/// Arithmetic and comparisons under MXCSR.
const FLOAT: &[Instruction] = &[
    float(Prefix::None, 0x51, "sqrtps", exact::sqrtps, Elements::None).aligned(),
    float(P66, 0x51, "sqrtpd", exact::sqrtpd, Elements::None).aligned(),
    float(F3, 0x51, "sqrtss", exact::sqrtss, Elements::None),
    float(F2, 0x51, "sqrtsd", exact::sqrtsd, Elements::None),
    float(Prefix::None, 0x58, "addps", exact::addps, Singles(4, Add)).aligned(),
    float(P66, 0x58, "addpd", exact::addpd, Doubles(2, Add)).aligned(),
    float(F3, 0x58, "addss", exact::addss, Singles(1, Add)),
    float(F2, 0x58, "addsd", exact::addsd, Doubles(1, Add)),
    float(Prefix::None, 0x59, "mulps", exact::mulps, Singles(4, Multiply)).aligned(),
    float(P66, 0x59, "mulpd", exact::mulpd, Doubles(2, Multiply)).aligned(),
    float(F3, 0x59, "mulss", exact::mulss, Singles(1, Multiply)),
    float(F2, 0x59, "mulsd", exact::mulsd, Doubles(1, Multiply)),
    float(Prefix::None, 0x5c, "subps", exact::subps, Singles(4, Subtract)).aligned(),
    float(P66, 0x5c, "subpd", exact::subpd, Doubles(2, Subtract)).aligned(),
    float(F3, 0x5c, "subss", exact::subss, Singles(1, Subtract)),
    float(F2, 0x5c, "subsd", exact::subsd, Doubles(1, Subtract)),
    float(Prefix::None, 0x5d, "minps", exact::minps, Elements::None).aligned(),
    float(P66, 0x5d, "minpd", exact::minpd, Elements::None).aligned(),
    float(F3, 0x5d, "minss", exact::minss, Elements::None),
    float(F2, 0x5d, "minsd", exact::minsd, Elements::None),
    float(Prefix::None, 0x5e, "divps", exact::divps, Singles(4, Divide)).aligned(),
    float(P66, 0x5e, "divpd", exact::divpd, Doubles(2, Divide)).aligned(),
    float(F3, 0x5e, "divss", exact::divss, Singles(1, Divide)),
    float(F2, 0x5e, "divsd", exact::divsd, Doubles(1, Divide)),
    float(Prefix::None, 0x5f, "maxps", exact::maxps, Elements::None).aligned(),
    float(P66, 0x5f, "maxpd", exact::maxpd, Elements::None).aligned(),
    float(F3, 0x5f, "maxss", exact::maxss, Elements::None),
    float(F2, 0x5f, "maxsd", exact::maxsd, Elements::None),
    compare(Prefix::None, "cmpps", exact::cmpps).aligned(),
    compare(P66, "cmppd", exact::cmppd).aligned(),
    compare(F3, "cmpss", exact::cmpss),
    compare(F2, "cmpsd", exact::cmpsd),
    float(Prefix::None, 0x2e, "ucomiss", exact::ucomiss, Elements::None),
    float(P66, 0x2e, "ucomisd", exact::ucomisd, Elements::None),
    float(Prefix::None, 0x2f, "comiss", exact::comiss, Elements::None),
    float(P66, 0x2f, "comisd", exact::comisd, Elements::None),
    float(P66, 0xd0, "addsubpd", exact::addsubpd, Doubles(2, Composite)).aligned().newer(),
    float(F2, 0xd0, "addsubps", exact::addsubps, Singles(4, Composite)).aligned().newer(),
    float(P66, 0x7c, "haddpd", exact::haddpd, Doubles(2, Composite)).aligned().newer(),
    float(F2, 0x7c, "haddps", exact::haddps, Singles(4, Composite)).aligned().newer(),
    float(P66, 0x7d, "hsubpd", exact::hsubpd, Doubles(2, Composite)).aligned().newer(),
    float(F2, 0x7d, "hsubps", exact::hsubps, Singles(4, Composite)).aligned().newer(),
];

/// Conversions.
const CONVERT: &[Instruction] = &[
    float(Prefix::None, 0x5b, "cvtdq2ps", exact::cvtdq2ps, Elements::None).aligned(),
    float(P66, 0x5b, "cvtps2dq", exact::cvtps2dq, Elements::None).aligned(),
    float(F3, 0x5b, "cvttps2dq", exact::cvttps2dq, Elements::None).aligned(),
    float(Prefix::None, 0x5a, "cvtps2pd", exact::cvtps2pd, Elements::None),
    float(P66, 0x5a, "cvtpd2ps", exact::cvtpd2ps, Singles(2, Narrow)).aligned(),
    float(F3, 0x5a, "cvtss2sd", exact::cvtss2sd, Elements::None),
    float(F2, 0x5a, "cvtsd2ss", exact::cvtsd2ss, Singles(1, Narrow)),
    float(F3, 0xe6, "cvtdq2pd", exact::cvtdq2pd, Elements::None),
    float(F2, 0xe6, "cvtpd2dq", exact::cvtpd2dq, Elements::None).aligned(),
    float(P66, 0xe6, "cvttpd2dq", exact::cvttpd2dq, Elements::None).aligned(),
    float(F3, 0x2a, "cvtsi2ss", exact::cvtsi2ss_32, Elements::None).when(When::Narrow),
    float(F3, 0x2a, "cvtsi2ss", exact::cvtsi2ss_64, Elements::None).when(When::Wide),
    float(F3, 0x2c, "cvttss2si", exact::cvttss2si_32, Elements::None).when(When::Narrow),
    float(F3, 0x2c, "cvttss2si", exact::cvttss2si_64, Elements::None).when(When::Wide),
    float(F3, 0x2d, "cvtss2si", exact::cvtss2si_32, Elements::None).when(When::Narrow),
    float(F3, 0x2d, "cvtss2si", exact::cvtss2si_64, Elements::None).when(When::Wide),
    float(F2, 0x2a, "cvtsi2sd", exact::cvtsi2sd_32, Elements::None).when(When::Narrow),
    float(F2, 0x2a, "cvtsi2sd", exact::cvtsi2sd_64, Elements::None).when(When::Wide),
    float(F2, 0x2c, "cvttsd2si", exact::cvttsd2si_32, Elements::None).when(When::Narrow),
    float(F2, 0x2c, "cvttsd2si", exact::cvttsd2si_64, Elements::None).when(When::Wide),
    float(F2, 0x2d, "cvtsd2si", exact::cvtsd2si_32, Elements::None).when(When::Narrow),
    float(F2, 0x2d, "cvtsd2si", exact::cvtsd2si_64, Elements::None).when(When::Wide),
    float(Prefix::None, 0x2a, "cvtpi2ps", exact::cvtpi2ps, Elements::None).when(When::Register).mmx(),
    float(Prefix::None, 0x2a, "cvtpi2ps", exact::cvtpi2ps, Elements::None).when(When::Memory),
    float(P66, 0x2a, "cvtpi2pd", exact::cvtpi2pd, Elements::None).when(When::Register).mmx(),
    float(P66, 0x2a, "cvtpi2pd", exact::cvtpi2pd, Elements::None).when(When::Memory),
    float(Prefix::None, 0x2c, "cvttps2pi", exact::cvttps2pi, Elements::None).mmx(),
    float(Prefix::None, 0x2d, "cvtps2pi", exact::cvtps2pi, Elements::None).mmx(),
    float(P66, 0x2c, "cvttpd2pi", exact::cvttpd2dq, Elements::None).aligned().mmx(),
    float(P66, 0x2d, "cvtpd2pi", exact::cvtpd2dq, Elements::None).aligned().mmx(),
];

/// Logic, approximations and interleaving of floating-point registers.
const LOGIC: &[Instruction] = &[
    plain(Prefix::None, 0x54, "andps", fast::andps).aligned(),
    plain(P66, 0x54, "andpd", fast::andpd).aligned(),
    plain(Prefix::None, 0x55, "andnps", fast::andnps).aligned(),
    plain(P66, 0x55, "andnpd", fast::andnpd).aligned(),
    plain(Prefix::None, 0x56, "orps", fast::orps).aligned(),
    plain(P66, 0x56, "orpd", fast::orpd).aligned(),
    plain(Prefix::None, 0x57, "xorps", fast::xorps).aligned(),
    plain(P66, 0x57, "xorpd", fast::xorpd).aligned(),
    plain(Prefix::None, 0x52, "rsqrtps", fast::rsqrtps).aligned(),
    plain(F3, 0x52, "rsqrtss", fast::rsqrtss),
    plain(Prefix::None, 0x53, "rcpps", fast::rcpps).aligned(),
    plain(F3, 0x53, "rcpss", fast::rcpss),
    plain(Prefix::None, 0x14, "unpcklps", fast::unpcklps).aligned(),
    plain(P66, 0x14, "unpcklpd", fast::unpcklpd).aligned(),
    plain(Prefix::None, 0x15, "unpckhps", fast::unpckhps).aligned(),
    plain(P66, 0x15, "unpckhpd", fast::unpckhpd).aligned(),
];

/// Packed integers in XMM registers.
const PACKED: &[Instruction] = &[
    plain(P66, 0x60, "punpcklbw", fast::punpcklbw).aligned(),
    plain(P66, 0x61, "punpcklwd", fast::punpcklwd).aligned(),
    plain(P66, 0x62, "punpckldq", fast::punpckldq).aligned(),
    plain(P66, 0x63, "packsswb", fast::packsswb).aligned(),
    plain(P66, 0x64, "pcmpgtb", fast::pcmpgtb).aligned(),
    plain(P66, 0x65, "pcmpgtw", fast::pcmpgtw).aligned(),
    plain(P66, 0x66, "pcmpgtd", fast::pcmpgtd).aligned(),
    plain(P66, 0x67, "packuswb", fast::packuswb).aligned(),
    plain(P66, 0x68, "punpckhbw", fast::punpckhbw).aligned(),
    plain(P66, 0x69, "punpckhwd", fast::punpckhwd).aligned(),
    plain(P66, 0x6a, "punpckhdq", fast::punpckhdq).aligned(),
    plain(P66, 0x6b, "packssdw", fast::packssdw).aligned(),
    plain(P66, 0x6c, "punpcklqdq", fast::punpcklqdq).aligned(),
    plain(P66, 0x6d, "punpckhqdq", fast::punpckhqdq).aligned(),
    plain(P66, 0x74, "pcmpeqb", fast::pcmpeqb).aligned(),
    plain(P66, 0x75, "pcmpeqw", fast::pcmpeqw).aligned(),
    plain(P66, 0x76, "pcmpeqd", fast::pcmpeqd).aligned(),
    plain(P66, 0xd1, "psrlw", fast::psrlw).aligned(),
    plain(P66, 0xd2, "psrld", fast::psrld).aligned(),
    plain(P66, 0xd3, "psrlq", fast::psrlq).aligned(),
    plain(P66, 0xd4, "paddq", fast::paddq).aligned(),
    plain(P66, 0xd5, "pmullw", fast::pmullw).aligned(),
    plain(P66, 0xd8, "psubusb", fast::psubusb).aligned(),
    plain(P66, 0xd9, "psubusw", fast::psubusw).aligned(),
    plain(P66, 0xda, "pminub", fast::pminub).aligned(),
    plain(P66, 0xdb, "pand", fast::pand).aligned(),
    plain(P66, 0xdc, "paddusb", fast::paddusb).aligned(),
    plain(P66, 0xdd, "paddusw", fast::paddusw).aligned(),
    plain(P66, 0xde, "pmaxub", fast::pmaxub).aligned(),
    plain(P66, 0xdf, "pandn", fast::pandn).aligned(),
    plain(P66, 0xe0, "pavgb", fast::pavgb).aligned(),
    plain(P66, 0xe1, "psraw", fast::psraw).aligned(),
    plain(P66, 0xe2, "psrad", fast::psrad).aligned(),
    plain(P66, 0xe3, "pavgw", fast::pavgw).aligned(),
    plain(P66, 0xe4, "pmulhuw", fast::pmulhuw).aligned(),
    plain(P66, 0xe5, "pmulhw", fast::pmulhw).aligned(),
    plain(P66, 0xe8, "psubsb", fast::psubsb).aligned(),
    plain(P66, 0xe9, "psubsw", fast::psubsw).aligned(),
    plain(P66, 0xea, "pminsw", fast::pminsw).aligned(),
    plain(P66, 0xeb, "por", fast::por).aligned(),
    plain(P66, 0xec, "paddsb", fast::paddsb).aligned(),
    plain(P66, 0xed, "paddsw", fast::paddsw).aligned(),
    plain(P66, 0xee, "pmaxsw", fast::pmaxsw).aligned(),
    plain(P66, 0xef, "pxor", fast::pxor).aligned(),
    plain(P66, 0xf1, "psllw", fast::psllw).aligned(),
    plain(P66, 0xf2, "pslld", fast::pslld).aligned(),
    plain(P66, 0xf3, "psllq", fast::psllq).aligned(),
    plain(P66, 0xf4, "pmuludq", fast::pmuludq).aligned(),
    plain(P66, 0xf5, "pmaddwd", fast::pmaddwd).aligned(),
    plain(P66, 0xf6, "psadbw", fast::psadbw).aligned(),
    plain(P66, 0xf8, "psubb", fast::psubb).aligned(),
    plain(P66, 0xf9, "psubw", fast::psubw).aligned(),
    plain(P66, 0xfa, "psubd", fast::psubd).aligned(),
    plain(P66, 0xfb, "psubq", fast::psubq).aligned(),
    plain(P66, 0xfc, "paddb", fast::paddb).aligned(),
    plain(P66, 0xfd, "paddw", fast::paddw).aligned(),
    plain(P66, 0xfe, "paddd", fast::paddd).aligned(),
];

/// Packed integers in MMX registers.
const PACKED_MMX: &[Instruction] = &[
    row(M0F, Prefix::None, 0x60, "punpcklbw", Mmx(fast::punpcklbw, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0x61, "punpcklwd", Mmx(fast::punpcklwd, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0x62, "punpckldq", Mmx(fast::punpckldq, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0x63, "packsswb", Mmx(fast::packsswb, Half::Joined)).mmx(),
    row(M0F, Prefix::None, 0x64, "pcmpgtb", Mmx(fast::pcmpgtb, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0x65, "pcmpgtw", Mmx(fast::pcmpgtw, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0x66, "pcmpgtd", Mmx(fast::pcmpgtd, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0x67, "packuswb", Mmx(fast::packuswb, Half::Joined)).mmx(),
    row(M0F, Prefix::None, 0x68, "punpckhbw", Mmx(fast::punpcklbw, Half::High)).mmx(),
    row(M0F, Prefix::None, 0x69, "punpckhwd", Mmx(fast::punpcklwd, Half::High)).mmx(),
    row(M0F, Prefix::None, 0x6a, "punpckhdq", Mmx(fast::punpckldq, Half::High)).mmx(),
    row(M0F, Prefix::None, 0x6b, "packssdw", Mmx(fast::packssdw, Half::Joined)).mmx(),
    row(M0F, Prefix::None, 0x74, "pcmpeqb", Mmx(fast::pcmpeqb, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0x75, "pcmpeqw", Mmx(fast::pcmpeqw, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0x76, "pcmpeqd", Mmx(fast::pcmpeqd, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xd1, "psrlw", Mmx(fast::psrlw, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xd2, "psrld", Mmx(fast::psrld, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xd3, "psrlq", Mmx(fast::psrlq, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xd4, "paddq", Mmx(fast::paddq, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xd5, "pmullw", Mmx(fast::pmullw, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xd8, "psubusb", Mmx(fast::psubusb, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xd9, "psubusw", Mmx(fast::psubusw, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xda, "pminub", Mmx(fast::pminub, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xdb, "pand", Mmx(fast::pand, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xdc, "paddusb", Mmx(fast::paddusb, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xdd, "paddusw", Mmx(fast::paddusw, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xde, "pmaxub", Mmx(fast::pmaxub, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xdf, "pandn", Mmx(fast::pandn, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xe0, "pavgb", Mmx(fast::pavgb, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xe1, "psraw", Mmx(fast::psraw, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xe2, "psrad", Mmx(fast::psrad, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xe3, "pavgw", Mmx(fast::pavgw, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xe4, "pmulhuw", Mmx(fast::pmulhuw, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xe5, "pmulhw", Mmx(fast::pmulhw, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xe8, "psubsb", Mmx(fast::psubsb, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xe9, "psubsw", Mmx(fast::psubsw, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xea, "pminsw", Mmx(fast::pminsw, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xeb, "por", Mmx(fast::por, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xec, "paddsb", Mmx(fast::paddsb, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xed, "paddsw", Mmx(fast::paddsw, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xee, "pmaxsw", Mmx(fast::pmaxsw, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xef, "pxor", Mmx(fast::pxor, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xf1, "psllw", Mmx(fast::psllw, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xf2, "pslld", Mmx(fast::pslld, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xf3, "psllq", Mmx(fast::psllq, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xf4, "pmuludq", Mmx(fast::pmuludq, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xf5, "pmaddwd", Mmx(fast::pmaddwd, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xf6, "psadbw", Mmx(fast::psadbw, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xf8, "psubb", Mmx(fast::psubb, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xf9, "psubw", Mmx(fast::psubw, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xfa, "psubd", Mmx(fast::psubd, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xfb, "psubq", Mmx(fast::psubq, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xfc, "paddb", Mmx(fast::paddb, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xfd, "paddw", Mmx(fast::paddw, Half::Low)).mmx(),
    row(M0F, Prefix::None, 0xfe, "paddd", Mmx(fast::paddd, Half::Low)).mmx(),
];

/// Shifts by a constant. Those of MMX registers shift zeros into the unused high half.
const SHIFTS: &[Instruction] = &[
    row(M0F, P66, 0x71, "psrlw", ShiftByImmediate(fast::psrlw)).when(When::Reg(2)),
    row(M0F, Prefix::None, 0x71, "psrlw", ShiftByImmediate(fast::psrlw)).when(When::Reg(2)).mmx(),
    row(M0F, P66, 0x71, "psraw", ShiftByImmediate(fast::psraw)).when(When::Reg(4)),
    row(M0F, Prefix::None, 0x71, "psraw", ShiftByImmediate(fast::psraw)).when(When::Reg(4)).mmx(),
    row(M0F, P66, 0x71, "psllw", ShiftByImmediate(fast::psllw)).when(When::Reg(6)),
    row(M0F, Prefix::None, 0x71, "psllw", ShiftByImmediate(fast::psllw)).when(When::Reg(6)).mmx(),
    row(M0F, P66, 0x72, "psrld", ShiftByImmediate(fast::psrld)).when(When::Reg(2)),
    row(M0F, Prefix::None, 0x72, "psrld", ShiftByImmediate(fast::psrld)).when(When::Reg(2)).mmx(),
    row(M0F, P66, 0x72, "psrad", ShiftByImmediate(fast::psrad)).when(When::Reg(4)),
    row(M0F, Prefix::None, 0x72, "psrad", ShiftByImmediate(fast::psrad)).when(When::Reg(4)).mmx(),
    row(M0F, P66, 0x72, "pslld", ShiftByImmediate(fast::pslld)).when(When::Reg(6)),
    row(M0F, Prefix::None, 0x72, "pslld", ShiftByImmediate(fast::pslld)).when(When::Reg(6)).mmx(),
    row(M0F, P66, 0x73, "psrlq", ShiftByImmediate(fast::psrlq)).when(When::Reg(2)),
    row(M0F, Prefix::None, 0x73, "psrlq", ShiftByImmediate(fast::psrlq)).when(When::Reg(2)).mmx(),
    row(M0F, P66, 0x73, "psllq", ShiftByImmediate(fast::psllq)).when(When::Reg(6)),
    row(M0F, Prefix::None, 0x73, "psllq", ShiftByImmediate(fast::psllq)).when(When::Reg(6)).mmx(),
    row(M0F, P66, 0x73, "psrldq", WithImmediate(arrange::psrldq)).when(When::Reg(3)),
    row(M0F, P66, 0x73, "pslldq", WithImmediate(arrange::pslldq)).when(When::Reg(7)),
];

/// Shuffles, insertions and extractions.
const SHUFFLES: &[Instruction] = &[
    row(M0F, Prefix::None, 0xc6, "shufps", WithImmediate(arrange::shufps)).aligned(),
    row(M0F, P66, 0xc6, "shufpd", WithImmediate(arrange::shufpd)).aligned(),
    row(M0F, P66, 0x70, "pshufd", WithImmediate(arrange::pshufd)).aligned(),
    row(M0F, F2, 0x70, "pshuflw", WithImmediate(arrange::pshuflw)).aligned(),
    row(M0F, F3, 0x70, "pshufhw", WithImmediate(arrange::pshufhw)).aligned(),
    row(M0F, Prefix::None, 0x70, "pshufw", WithImmediate(arrange::pshuflw)).mmx(),
    row(M0F, P66, 0xc4, "pinsrw", WithImmediate(arrange::pinsrw)),
    row(M0F, Prefix::None, 0xc4, "pinsrw", WithImmediate(arrange::pinsrw_mm)).mmx(),
    row(M0F, P66, 0xc5, "pextrw", WithImmediate(arrange::pextrw)).when(When::Register),
    row(M0F, Prefix::None, 0xc5, "pextrw", WithImmediate(arrange::pextrw_mm)).when(When::Register).mmx(),
];

/// SSSE3 and SSE4 in XMM registers.
const NEWER: &[Instruction] = &[
    row(M0F38, P66, 0x00, "pshufb", Run::Plain(packed::pshufb)).aligned(),
    row(M0F38, P66, 0x01, "phaddw", Run::Plain(packed::phaddw)).aligned(),
    row(M0F38, P66, 0x02, "phaddd", Run::Plain(packed::phaddd)).aligned(),
    row(M0F38, P66, 0x03, "phaddsw", Run::Plain(packed::phaddsw)).aligned(),
    row(M0F38, P66, 0x04, "pmaddubsw", Run::Plain(packed::pmaddubsw)).aligned(),
    row(M0F38, P66, 0x05, "phsubw", Run::Plain(packed::phsubw)).aligned(),
    row(M0F38, P66, 0x06, "phsubd", Run::Plain(packed::phsubd)).aligned(),
    row(M0F38, P66, 0x07, "phsubsw", Run::Plain(packed::phsubsw)).aligned(),
    row(M0F38, P66, 0x08, "psignb", Run::Plain(packed::psignb)).aligned(),
    row(M0F38, P66, 0x09, "psignw", Run::Plain(packed::psignw)).aligned(),
    row(M0F38, P66, 0x0a, "psignd", Run::Plain(packed::psignd)).aligned(),
    row(M0F38, P66, 0x0b, "pmulhrsw", Run::Plain(packed::pmulhrsw)).aligned(),
    row(M0F38, P66, 0x1c, "pabsb", Run::Plain(packed::pabsb)).aligned(),
    row(M0F38, P66, 0x1d, "pabsw", Run::Plain(packed::pabsw)).aligned(),
    row(M0F38, P66, 0x1e, "pabsd", Run::Plain(packed::pabsd)).aligned(),
    row(M0F38, P66, 0x28, "pmuldq", Run::Plain(packed::pmuldq)).aligned(),
    row(M0F38, P66, 0x29, "pcmpeqq", Run::Plain(packed::pcmpeqq)).aligned(),
    row(M0F38, P66, 0x2b, "packusdw", Run::Plain(packed::packusdw)).aligned(),
    row(M0F38, P66, 0x37, "pcmpgtq", Run::Plain(packed::pcmpgtq)).aligned(),
    row(M0F38, P66, 0x38, "pminsb", Run::Plain(packed::pminsb)).aligned(),
    row(M0F38, P66, 0x39, "pminsd", Run::Plain(packed::pminsd)).aligned(),
    row(M0F38, P66, 0x3a, "pminuw", Run::Plain(packed::pminuw)).aligned(),
    row(M0F38, P66, 0x3b, "pminud", Run::Plain(packed::pminud)).aligned(),
    row(M0F38, P66, 0x3c, "pmaxsb", Run::Plain(packed::pmaxsb)).aligned(),
    row(M0F38, P66, 0x3d, "pmaxsd", Run::Plain(packed::pmaxsd)).aligned(),
    row(M0F38, P66, 0x3e, "pmaxuw", Run::Plain(packed::pmaxuw)).aligned(),
    row(M0F38, P66, 0x3f, "pmaxud", Run::Plain(packed::pmaxud)).aligned(),
    row(M0F38, P66, 0x40, "pmulld", Run::Plain(packed::pmulld)).aligned(),
    row(M0F38, P66, 0x41, "phminposuw", Run::Plain(packed::phminposuw)).aligned(),
    row(M0F38, P66, 0x17, "ptest", Run::Plain(packed::ptest)).aligned(),
    row(M0F38, P66, 0x2a, "movntdqa", Run::Plain(arrange::copy)).when(When::Memory).aligned(),
    row(M0F38, P66, 0x20, "pmovsxbw", Run::Plain(packed::pmovsxbw)),
    row(M0F38, P66, 0x30, "pmovzxbw", Run::Plain(packed::pmovzxbw)),
    row(M0F38, P66, 0x21, "pmovsxbd", Run::Plain(packed::pmovsxbd)),
    row(M0F38, P66, 0x31, "pmovzxbd", Run::Plain(packed::pmovzxbd)),
    row(M0F38, P66, 0x22, "pmovsxbq", Run::Plain(packed::pmovsxbq)),
    row(M0F38, P66, 0x32, "pmovzxbq", Run::Plain(packed::pmovzxbq)),
    row(M0F38, P66, 0x23, "pmovsxwd", Run::Plain(packed::pmovsxwd)),
    row(M0F38, P66, 0x33, "pmovzxwd", Run::Plain(packed::pmovzxwd)),
    row(M0F38, P66, 0x24, "pmovsxwq", Run::Plain(packed::pmovsxwq)),
    row(M0F38, P66, 0x34, "pmovzxwq", Run::Plain(packed::pmovzxwq)),
    row(M0F38, P66, 0x25, "pmovsxdq", Run::Plain(packed::pmovsxdq)),
    row(M0F38, P66, 0x35, "pmovzxdq", Run::Plain(packed::pmovzxdq)),
    row(M0F38, P66, 0x10, "pblendvb", BlendByXmm0(8)).aligned(),
    row(M0F38, P66, 0x14, "blendvps", BlendByXmm0(32)).aligned(),
    row(M0F38, P66, 0x15, "blendvpd", BlendByXmm0(64)).aligned(),
    row(M0F3A, P66, 0x08, "roundps", Run::FloatWithImmediate(exact::roundps)).aligned(),
    row(M0F3A, P66, 0x09, "roundpd", Run::FloatWithImmediate(exact::roundpd)).aligned(),
    row(M0F3A, P66, 0x0a, "roundss", Run::FloatWithImmediate(exact::roundss)),
    row(M0F3A, P66, 0x0b, "roundsd", Run::FloatWithImmediate(exact::roundsd)),
    row(M0F3A, P66, 0x0c, "blendps", WithImmediate(arrange::blendps)).aligned(),
    row(M0F3A, P66, 0x0d, "blendpd", WithImmediate(arrange::blendpd)).aligned(),
    row(M0F3A, P66, 0x0e, "pblendw", WithImmediate(arrange::pblendw)).aligned(),
    row(M0F3A, P66, 0x0f, "palignr", WithImmediate(arrange::palignr)).aligned(),
    row(M0F3A, P66, 0x14, "pextrb", WithImmediate(arrange::pextrb)),
    row(M0F3A, P66, 0x15, "pextrw", WithImmediate(arrange::pextrw)),
    row(M0F3A, P66, 0x16, "pextrd", WithImmediate(arrange::pextrd)).when(When::Narrow),
    row(M0F3A, P66, 0x16, "pextrq", WithImmediate(arrange::pextrq)).when(When::Wide),
    row(M0F3A, P66, 0x17, "extractps", WithImmediate(arrange::pextrd)),
    row(M0F3A, P66, 0x20, "pinsrb", WithImmediate(arrange::pinsrb)),
    row(M0F3A, P66, 0x21, "insertps", WithImmediate(arrange::insertps_register)).when(When::Register),
    row(M0F3A, P66, 0x21, "insertps", WithImmediate(arrange::insertps_memory)).when(When::Memory),
    row(M0F3A, P66, 0x22, "pinsrd", WithImmediate(arrange::pinsrd)).when(When::Narrow),
    row(M0F3A, P66, 0x22, "pinsrq", WithImmediate(arrange::pinsrq)).when(When::Wide),
    row(M0F3A, P66, 0x40, "dpps", Run::FloatWithImmediate(strings::dpps)).aligned(),
    row(M0F3A, P66, 0x41, "dppd", Run::FloatWithImmediate(strings::dppd)).aligned(),
    row(M0F3A, P66, 0x42, "mpsadbw", WithImmediate(packed::mpsadbw)).aligned(),
];

/// SSSE3 in MMX registers.
const NEWER_MMX: &[Instruction] = &[
    row(M0F38, Prefix::None, 0x00, "pshufb", Mmx(packed::pshufb, Half::ByteIndices)).mmx(),
    row(M0F38, Prefix::None, 0x01, "phaddw", Mmx(packed::phaddw, Half::Joined)).mmx(),
    row(M0F38, Prefix::None, 0x02, "phaddd", Mmx(packed::phaddd, Half::Joined)).mmx(),
    row(M0F38, Prefix::None, 0x03, "phaddsw", Mmx(packed::phaddsw, Half::Joined)).mmx(),
    row(M0F38, Prefix::None, 0x04, "pmaddubsw", Mmx(packed::pmaddubsw, Half::Low)).mmx(),
    row(M0F38, Prefix::None, 0x05, "phsubw", Mmx(packed::phsubw, Half::Joined)).mmx(),
    row(M0F38, Prefix::None, 0x06, "phsubd", Mmx(packed::phsubd, Half::Joined)).mmx(),
    row(M0F38, Prefix::None, 0x07, "phsubsw", Mmx(packed::phsubsw, Half::Joined)).mmx(),
    row(M0F38, Prefix::None, 0x08, "psignb", Mmx(packed::psignb, Half::Low)).mmx(),
    row(M0F38, Prefix::None, 0x09, "psignw", Mmx(packed::psignw, Half::Low)).mmx(),
    row(M0F38, Prefix::None, 0x0a, "psignd", Mmx(packed::psignd, Half::Low)).mmx(),
    row(M0F38, Prefix::None, 0x0b, "pmulhrsw", Mmx(packed::pmulhrsw, Half::Low)).mmx(),
    row(M0F38, Prefix::None, 0x1c, "pabsb", Mmx(packed::pabsb, Half::Low)).mmx(),
    row(M0F38, Prefix::None, 0x1d, "pabsw", Mmx(packed::pabsw, Half::Low)).mmx(),
    row(M0F38, Prefix::None, 0x1e, "pabsd", Mmx(packed::pabsd, Half::Low)).mmx(),
    row(M0F3A, Prefix::None, 0x0f, "palignr", WithImmediate(arrange::palignr_mm)).mmx(),
];

fn mask_ps(destination: &mut fast::Xmm, source: &fast::Xmm) {
    *destination = [fast::movmskps(source), 0];
}

fn mask_pd(destination: &mut fast::Xmm, source: &fast::Xmm) {
    *destination = [fast::movmskpd(source), 0];
}

fn mask_bytes(destination: &mut fast::Xmm, source: &fast::Xmm) {
    *destination = [fast::pmovmskb(source), 0];
}
