//! Packed instructions of SSSE3 and SSE4 that do not depend on MXCSR. [`super::find`] offers them only where the host
//! has them.
#![expect(unsafe_code, reason = "single instructions as assembly")]

use std::arch::asm;

use crate::fast::{Xmm, load, store};

macro_rules! packed {
    ($($name:ident)*) => { $(
        pub(super) fn $name(destination: &mut Xmm, source: &Xmm) {
            let mut value = load(destination);
            // SAFETY: one instruction on registers, which the host has.
            unsafe {
                asm!(concat!(stringify!($name), " {0}, {1}"), inout(xmm_reg) value, in(xmm_reg) load(source),
                    options(pure, nomem, nostack, preserves_flags));
            }
            store(destination, value);
        }
    )* };
}
packed! {
    pshufb phaddw phaddd phaddsw pmaddubsw phsubw phsubd phsubsw psignb psignw psignd pmulhrsw pabsb pabsw pabsd
    pmovsxbw pmovsxbd pmovsxbq pmovsxwd pmovsxwq pmovsxdq pmovzxbw pmovzxbd pmovzxbq pmovzxwd pmovzxwq pmovzxdq
    pmuldq pcmpeqq pcmpgtq packusdw pminsb pminsd pminuw pminud pmaxsb pmaxsd pmaxuw pmaxud pmulld phminposuw
}

/// PTEST: ZF if no bit of the source is set in the destination, CF if none is clear.
pub(super) fn ptest(destination: &mut Xmm, source: &Xmm) {
    const CF: u64 = 1;
    const ZF: u64 = 0x40;
    let [d, s] = [*destination, *source];
    let zf = if s[0] & d[0] | s[1] & d[1] == 0 { ZF } else { 0 };
    let cf = if s[0] & !d[0] | s[1] & !d[1] == 0 { CF } else { 0 };
    *destination = [zf | cf, 0];
}

/// MPSADBW (SDM volume 2): sums of absolute differences of four bytes of the source with sliding windows.
pub(super) fn mpsadbw(destination: &mut Xmm, source: &Xmm, immediate: u8) {
    let bytes = |value: &Xmm, i: usize| (value[i / 8] >> (8 * (i % 8))) as u8;
    let window = usize::from(immediate >> 2 & 1) * 4;
    let block = usize::from(immediate & 3) * 4;
    let mut sums = [0u64; 2];
    for i in 0..8 {
        let sum = (0..4)
            .map(|k| u64::from(bytes(destination, window + i + k).abs_diff(bytes(source, block + k))))
            .sum::<u64>();
        sums[i / 4] |= sum << (16 * (i % 4));
    }
    *destination = sums;
}
