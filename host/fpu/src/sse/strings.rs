//! PCMPESTRI, PCMPESTRM, PCMPISTRI and PCMPISTRM (SDM volume 2, section 4.1), and DPPS and DPPD: instructions whose
//! immediate byte has too many meanings to write each out. They run from tables of stubs, one per immediate.
#![expect(unsafe_code, reason = "jumps into tables of instructions")]

use std::arch::{asm, naked_asm};

use crate::fast::{Xmm, load, store};
use crate::mxcsr::Env;

/// Bytes per stub.
const STUB_LEN: usize = 8;

/// A table of 256 stubs: `66 0F 3A opcode` on XMM0 and XMM1 with each immediate, then RET and padding.
macro_rules! stubs {
    ($($name:ident $opcode:literal;)*) => { $(
        #[unsafe(naked)]
        extern "C" fn $name() {
            naked_asm!(
                concat!("cardcage_", stringify!($name), "_n = 0"),
                ".rept 256",
                concat!(".byte 0x66, 0x0f, 0x3a, ", $opcode, ", 0xc1, cardcage_", stringify!($name), "_n, 0xc3, 0x90"),
                concat!("cardcage_", stringify!($name), "_n = cardcage_", stringify!($name), "_n + 1"),
                ".endr",
            )
        }
    )* };
}
stubs! {
    dpps_stubs 0x40; dppd_stubs 0x41;
    pcmpestrm_stubs 0x60; pcmpestri_stubs 0x61; pcmpistrm_stubs 0x62; pcmpistri_stubs 0x63;
}

fn stub(table: extern "C" fn(), immediate: u8) -> *const u8 {
    (table as *const u8).wrapping_add(usize::from(immediate) * STUB_LEN)
}

macro_rules! dot_product {
    ($($name:ident $stubs:ident;)*) => { $(
        pub(super) fn $name(env: &mut Env, destination: &mut Xmm, source: &Xmm, immediate: u8) {
            let mut value = load(destination);
            // SAFETY: the stub is one instruction on XMM0 and XMM1 and RET; MXCSR is the host's again afterwards.
            unsafe {
                asm!("stmxcsr [{env} + 4]", "ldmxcsr [{env}]", "call {stub}", "stmxcsr [{env}]", "ldmxcsr [{env} + 4]",
                    inout("xmm0") value, in("xmm1") load(source), stub = in(reg) stub($stubs, immediate),
                    env = in(reg) std::ptr::from_mut(env));
            }
            store(destination, value);
        }
    )* };
}
dot_product! { dpps dpps_stubs; dppd dppd_stubs; }

/// A string comparison of SSE4.2, by what follows `PCMP`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StringCompare {
    /// PCMPESTRM: lengths in RAX and RDX, result a mask in XMM0.
    Estrm,
    /// PCMPESTRI: lengths in RAX and RDX, result an index in ECX.
    Estri,
    /// PCMPISTRM: implicit lengths, result a mask in XMM0.
    Istrm,
    /// PCMPISTRI: implicit lengths, result an index in ECX.
    Istri,
}

/// What a string comparison gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StringResult {
    /// New XMM0 of PCMPxSTRM.
    pub mask: Xmm,
    /// New RCX of PCMPxSTRI.
    pub index: u64,
    /// CF, ZF, SF and OF at their places in RFLAGS; AF and PF become zero.
    pub rflags: u64,
}

impl StringCompare {
    /// Carries it out. `lengths` are RAX and RDX; without REX.W (`wide` false) their low halves count. `None` if the host
    /// lacks SSE4.2.
    pub fn execute(
        self,
        first: &Xmm,
        second: &Xmm,
        immediate: u8,
        lengths: [u64; 2],
        wide: bool,
    ) -> Option<StringResult> {
        if !super::bits::host_has_sse42() {
            return None;
        }
        let table = match self {
            Self::Estrm => pcmpestrm_stubs,
            Self::Estri => pcmpestri_stubs,
            Self::Istrm => pcmpistrm_stubs,
            Self::Istri => pcmpistri_stubs,
        };
        // The stubs use 32-bit lengths, which saturate at 16 and beyond whatever their width.
        let [rax, rdx] = lengths.map(|length| if wide { saturate(length as i64) } else { length as u32 });
        let mut mask = load(first);
        let (index, rflags): (u64, u64);
        // SAFETY: the stub is one instruction that the host has, on XMM0, XMM1, EAX, EDX and ECX, and RET.
        unsafe {
            asm!("call {stub}", "pushfq", "pop {flags}", inout("xmm0") mask, in("xmm1") load(second),
                in("eax") rax, in("edx") rdx, inout("rcx") 0u64 => index, flags = out(reg) rflags,
                stub = in(reg) stub(table, immediate));
        }
        let mut result = StringResult { mask: [0; 2], index, rflags: rflags & 0x8c1 };
        store(&mut result.mask, mask);
        Some(result)
    }
}

fn saturate(length: i64) -> u32 {
    length.clamp(-16, 16) as i32 as u32
}
