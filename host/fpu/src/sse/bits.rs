//! Integer companions of SSE: CRC32, POPCNT, and the mask of MASKMOVDQU.

use crate::fast::Xmm;

/// CRC-32C polynomial, bit-reversed.
const CASTAGNOLI: u32 = 0x82f6_3b78;

/// Whether the host can run everything up to SSE4.2.
pub(super) fn host_has_sse42() -> bool {
    is_x86_feature_detected!("sse4.2") && is_x86_feature_detected!("ssse3")
}

/// CRC32: accumulates the low `bytes` (1, 2, 4 or 8) bytes of `value`.
pub fn crc32(crc: u32, value: u64, bytes: u32) -> u32 {
    value.to_le_bytes().iter().take(bytes as usize).fold(crc, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 != 0 { crc >> 1 ^ CASTAGNOLI } else { crc >> 1 })
    })
}

/// POPCNT of a zero-extended operand: the count, and the status flags (ZF if the operand is zero, the others clear).
pub fn popcnt(value: u64) -> (u64, u64) {
    const ZF: u64 = 0x40;
    (value.count_ones().into(), if value == 0 { ZF } else { 0 })
}

/// MASKMOVDQU and MASKMOVQ: one bit per byte that is to be written.
pub fn byte_mask(mask: &Xmm) -> u16 {
    crate::fast::pmovmskb(mask) as u16
}
