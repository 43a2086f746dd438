//! What both sides agree on: addresses, and the layout of a processor context.

/// Cases in a batch. Each has a slot of its own for code, contexts and resulting data.
pub(crate) const BATCH: usize = 256;
/// Bytes per slot of code; unused ones hold INT3.
pub(crate) const CODE_SLOT: usize = 256;
/// Where code stands, in the native process and in the guest.
pub(crate) const CODE_ADDRESS: u64 = 0x2000_0000;
/// Where data stands: two writable pages, then a read-only one; nothing before and behind.
pub(crate) const DATA_ADDRESS: u64 = 0x3000_0000;
/// Bytes of writable data.
pub(crate) const DATA_LEN: usize = 0x2000;
/// Base of GS.
pub(crate) const GS_BASE: u64 = DATA_ADDRESS + 0x180;

/// The registers of a case, before or after. Assembly on both sides knows the offsets.
#[derive(Clone, Copy, PartialEq)]
#[repr(C, align(16))]
pub(crate) struct Context {
    /// FXSAVE64 image.
    pub(crate) fpu: [u8; 512],
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub(crate) gpr: [u64; 16],
    pub(crate) rip: u64,
    pub(crate) rflags: u64,
    /// How it ended: the exception vector and its error code, and CR2 for #PF.
    pub(crate) vector: u64,
    pub(crate) error: u64,
    pub(crate) cr2: u64,
    pub(crate) unused: [u64; 3],
}

pub(crate) const CONTEXT_LEN: usize = 704;
const _: () = assert!(size_of::<Context>() == CONTEXT_LEN);
const _: () = assert!(std::mem::offset_of!(Context, gpr) == 512 && std::mem::offset_of!(Context, rip) == 640);

impl Context {
    pub(crate) const ZERO: Self =
        Self { fpu: [0; 512], gpr: [0; 16], rip: 0, rflags: 0, vector: 0, error: 0, cr2: 0, unused: [0; 3] };

    pub(crate) fn fpu_word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.fpu[at], self.fpu[at + 1]])
    }

    pub(crate) fn mxcsr(&self) -> u32 {
        u32::from(self.fpu_word(24)) | u32::from(self.fpu_word(26)) << 16
    }

    pub(crate) fn set_fpu(&mut self, at: usize, bytes: &[u8]) {
        self.fpu[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// The FXSAVE image and the registers as bytes.
    pub(crate) fn to_bytes(self) -> [u8; CONTEXT_LEN] {
        let mut bytes = [0; CONTEXT_LEN];
        bytes[..512].copy_from_slice(&self.fpu);
        let words = self.gpr.iter().chain([&self.rip, &self.rflags, &self.vector, &self.error, &self.cr2]);
        for (to, word) in bytes[512..].chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8; CONTEXT_LEN]) -> Self {
        let word = |i: usize| u64::from_le_bytes(std::array::from_fn(|k| bytes[512 + 8 * i + k]));
        Self {
            fpu: std::array::from_fn(|i| bytes[i]),
            gpr: std::array::from_fn(word),
            rip: word(16),
            rflags: word(17),
            vector: word(18),
            error: word(19),
            cr2: word(20),
            unused: [0; 3],
        }
    }
}

/// A case that a side could not run to an end.
pub(crate) struct Trouble {
    pub(crate) case: usize,
    pub(crate) what: String,
}
