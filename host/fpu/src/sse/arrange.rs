//! Moves and shuffles: instructions that only rearrange bits.

use crate::fast::Xmm;

pub(super) fn copy(destination: &mut Xmm, source: &Xmm) {
    *destination = *source;
}

/// MOVSS between registers, MOVSS to memory.
pub(super) fn low_dword(destination: &mut Xmm, source: &Xmm) {
    destination[0] = destination[0] & !0xffff_ffff | source[0] & 0xffff_ffff;
}

/// MOVSD between registers, MOVLPS and MOVLPD in both directions.
pub(super) fn low_quad(destination: &mut Xmm, source: &Xmm) {
    destination[0] = source[0];
}

/// MOVQ and MOVD, and loads by MOVSD: the rest becomes zero.
pub(super) fn low_quad_zero(destination: &mut Xmm, source: &Xmm) {
    *destination = [source[0], 0];
}

/// MOVD of 32 bits, loads by MOVSS.
pub(super) fn low_dword_zero(destination: &mut Xmm, source: &Xmm) {
    *destination = [source[0] & 0xffff_ffff, 0];
}

/// MOVHPS and MOVHPD from memory, MOVLHPS.
pub(super) fn low_to_high(destination: &mut Xmm, source: &Xmm) {
    destination[1] = source[0];
}

/// MOVHPS and MOVHPD to memory, MOVHLPS.
pub(super) fn high_to_low(destination: &mut Xmm, source: &Xmm) {
    destination[0] = source[1];
}

pub(super) fn movddup(destination: &mut Xmm, source: &Xmm) {
    *destination = [source[0], source[0]];
}

pub(super) fn movsldup(destination: &mut Xmm, source: &Xmm) {
    let s = dwords(source);
    *destination = from_dwords([s[0], s[0], s[2], s[2]]);
}

pub(super) fn movshdup(destination: &mut Xmm, source: &Xmm) {
    let s = dwords(source);
    *destination = from_dwords([s[1], s[1], s[3], s[3]]);
}

pub(super) fn shufps(destination: &mut Xmm, source: &Xmm, immediate: u8) {
    let (d, s) = (dwords(destination), dwords(source));
    let pick = |i: u8| usize::from(immediate >> (2 * i) & 3);
    *destination = from_dwords([d[pick(0)], d[pick(1)], s[pick(2)], s[pick(3)]]);
}

pub(super) fn shufpd(destination: &mut Xmm, source: &Xmm, immediate: u8) {
    *destination = [destination[usize::from(immediate & 1)], source[usize::from(immediate >> 1 & 1)]];
}

pub(super) fn pshufd(destination: &mut Xmm, source: &Xmm, immediate: u8) {
    let s = dwords(source);
    *destination = from_dwords(std::array::from_fn(|i| s[usize::from(immediate >> (2 * i) & 3)]));
}

/// PSHUFLW: and PSHUFW, whose source has no high half.
pub(super) fn pshuflw(destination: &mut Xmm, source: &Xmm, immediate: u8) {
    *destination = [shuffle_words(source[0], immediate), source[1]];
}

pub(super) fn pshufhw(destination: &mut Xmm, source: &Xmm, immediate: u8) {
    *destination = [source[0], shuffle_words(source[1], immediate)];
}

fn shuffle_words(quad: u64, immediate: u8) -> u64 {
    (0..4).fold(0, |value, i| value | (quad >> (16 * (immediate >> (2 * i) & 3)) & 0xffff) << (16 * i))
}

pub(super) fn pinsrw(destination: &mut Xmm, source: &Xmm, immediate: u8) {
    let index = u32::from(immediate & 7);
    *destination =
        from_u128(as_u128(destination) & !(0xffff << (16 * index)) | u128::from(source[0] as u16) << (16 * index));
}

/// PINSRW of an MMX register.
pub(super) fn pinsrw_mm(destination: &mut Xmm, source: &Xmm, immediate: u8) {
    pinsrw(destination, source, immediate & 3);
}

pub(super) fn pextrw(destination: &mut Xmm, source: &Xmm, immediate: u8) {
    *destination = [(as_u128(source) >> (16 * u32::from(immediate & 7))) as u64 & 0xffff, 0];
}

/// PEXTRW of an MMX register.
pub(super) fn pextrw_mm(destination: &mut Xmm, source: &Xmm, immediate: u8) {
    pextrw(destination, source, immediate & 3);
}

pub(super) fn pslldq(destination: &mut Xmm, _: &Xmm, immediate: u8) {
    *destination = from_u128(as_u128(destination).checked_shl(8 * u32::from(immediate)).unwrap_or(0));
}

pub(super) fn psrldq(destination: &mut Xmm, _: &Xmm, immediate: u8) {
    *destination = from_u128(as_u128(destination).checked_shr(8 * u32::from(immediate)).unwrap_or(0));
}

pub(super) fn palignr(destination: &mut Xmm, source: &Xmm, immediate: u8) {
    let shift = 8 * u32::from(immediate);
    let high = if shift < 128 {
        as_u128(destination).checked_shl(128 - shift).unwrap_or(0)
    } else {
        as_u128(destination).checked_shr(shift - 128).unwrap_or(0)
    };
    *destination = from_u128(as_u128(source).checked_shr(shift).unwrap_or(0) | high);
}

/// PALIGNR of MMX registers.
pub(super) fn palignr_mm(destination: &mut Xmm, source: &Xmm, immediate: u8) {
    let both = u128::from(source[0]) | u128::from(destination[0]) << 64;
    *destination = [both.checked_shr(8 * u32::from(immediate)).unwrap_or(0) as u64, 0];
}

pub(super) fn blendps(destination: &mut Xmm, source: &Xmm, immediate: u8) {
    blend::<4>(destination, source, immediate);
}

pub(super) fn blendpd(destination: &mut Xmm, source: &Xmm, immediate: u8) {
    blend::<2>(destination, source, immediate);
}

pub(super) fn pblendw(destination: &mut Xmm, source: &Xmm, immediate: u8) {
    blend::<8>(destination, source, immediate);
}

fn blend<const ELEMENTS: u32>(destination: &mut Xmm, source: &Xmm, immediate: u8) {
    let width = 128 / ELEMENTS;
    let element = u128::MAX >> (128 - width);
    let mask = (0..ELEMENTS).filter(|i| immediate >> i & 1 != 0).fold(0, |mask, i| mask | element << (width * i));
    *destination = from_u128(as_u128(destination) & !mask | as_u128(source) & mask);
}

pub(super) fn insertps_register(destination: &mut Xmm, source: &Xmm, immediate: u8) {
    insert_single(destination, dwords(source)[usize::from(immediate >> 6)], immediate);
}

/// INSERTPS from memory ignores the source selector.
pub(super) fn insertps_memory(destination: &mut Xmm, source: &Xmm, immediate: u8) {
    insert_single(destination, source[0] as u32, immediate);
}

fn insert_single(destination: &mut Xmm, element: u32, immediate: u8) {
    let mut d = dwords(destination);
    d[usize::from(immediate >> 4 & 3)] = element;
    *destination = from_dwords(std::array::from_fn(|i| if immediate >> i & 1 != 0 { 0 } else { d[i] }));
}

pub(super) fn pinsrb(destination: &mut Xmm, source: &Xmm, immediate: u8) {
    let shift = 8 * u32::from(immediate & 15);
    *destination = from_u128(as_u128(destination) & !(0xff << shift) | (u128::from(source[0]) & 0xff) << shift);
}

pub(super) fn pinsrd(destination: &mut Xmm, source: &Xmm, immediate: u8) {
    let mut d = dwords(destination);
    d[usize::from(immediate & 3)] = source[0] as u32;
    *destination = from_dwords(d);
}

pub(super) fn pinsrq(destination: &mut Xmm, source: &Xmm, immediate: u8) {
    destination[usize::from(immediate & 1)] = source[0];
}

pub(super) fn pextrb(destination: &mut Xmm, source: &Xmm, immediate: u8) {
    *destination = [(as_u128(source) >> (8 * u32::from(immediate & 15))) as u64 & 0xff, 0];
}

pub(super) fn pextrd(destination: &mut Xmm, source: &Xmm, immediate: u8) {
    *destination = [u64::from(dwords(source)[usize::from(immediate & 3)]), 0];
}

pub(super) fn pextrq(destination: &mut Xmm, source: &Xmm, immediate: u8) {
    *destination = [source[usize::from(immediate & 1)], 0];
}

/// Takes from `source` the bytes, dwords or quads of `width` bits whose sign bit in `mask` is set.
pub(super) fn blend_by_sign(destination: &mut Xmm, source: &Xmm, mask: &Xmm, width: u32) {
    let element = u128::MAX >> (128 - width);
    let selected = (0..128 / width)
        .filter(|i| as_u128(mask) >> (width * (i + 1) - 1) & 1 != 0)
        .fold(0, |selected, i| selected | element << (width * i));
    *destination = from_u128(as_u128(destination) & !selected | as_u128(source) & selected);
}

fn as_u128(value: &Xmm) -> u128 {
    u128::from(value[0]) | u128::from(value[1]) << 64
}

fn from_u128(value: u128) -> Xmm {
    [value as u64, (value >> 64) as u64]
}

fn dwords(value: &Xmm) -> [u32; 4] {
    [value[0] as u32, (value[0] >> 32) as u32, value[1] as u32, (value[1] >> 32) as u32]
}

fn from_dwords(value: [u32; 4]) -> Xmm {
    [u64::from(value[0]) | u64::from(value[1]) << 32, u64::from(value[2]) | u64::from(value[3]) << 32]
}
