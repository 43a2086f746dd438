//! The state itself: an FXSAVE64 image with accessors (SDM volume 1, section 10.5.1).

use crate::Fault;
use crate::mxcsr::{MXCSR_DEFAULT, MXCSR_MASK};

/// XMM registers that FXSAVE stores outside 64-bit mode.
pub const XMM_COUNT_LEGACY: usize = 8;

const EXCEPTIONS: u16 = 0x3f;
const ERROR_SUMMARY: u16 = 0x80;
const BUSY: u16 = 0x8000;
const TOP_SHIFT: u32 = 11;
/// Control word bits that exist; bit 6 always reads as one.
const CONTROL_MASK: u16 = 0x1f7f;
const CONTROL_FIXED: u16 = 0x40;
/// Bytes that FXSAVE writes in 64-bit mode; the rest of the 512 stay as they are.
const WRITTEN: usize = 416;
const XMM_OFFSET: usize = 160;

/// Which pointers an FXSAVE image has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FxsaveLayout {
    /// FXSAVE64 and FXRSTOR64 (with REX.W): 64-bit instruction and data pointers.
    Wide,
    /// FXSAVE and FXRSTOR without REX.W: 32-bit pointers, and selectors that read as zero.
    Narrow,
}

/// All state of the x87 FPU, MMX and SSE, laid out as FXSAVE64 stores it.
///
/// Invariants, kept by every way to change it: MXCSR and the control word have no reserved bit set, and the error
/// summary of the status word agrees with its flags and the control word's masks.
#[derive(Clone, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct FpuState {
    pub(crate) control: u16,
    pub(crate) status: u16,
    /// One bit per *physical* register, set if it is not empty.
    pub(crate) tags: u8,
    reserved: u8,
    pub(crate) opcode: u16,
    pub(crate) instruction_pointer: u64,
    pub(crate) data_pointer: u64,
    pub(crate) mxcsr: u32,
    mxcsr_mask: u32,
    /// ST(0) to ST(7): 80 bits each, then padding.
    pub(crate) st: [[u64; 2]; 8],
    /// XMM0 to XMM15, low quadword first. Any value is valid.
    pub xmm: [[u64; 2]; 16],
    unused: [u64; 12],
}

const _: () = assert!(size_of::<FpuState>() == 512 && align_of::<FpuState>() == 16);

impl Default for FpuState {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for FpuState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FpuState")
            .field("control", &format_args!("{:#06x}", self.control))
            .field("status", &format_args!("{:#06x}", self.status))
            .field("tags", &format_args!("{:#04x}", self.tags))
            .field("mxcsr", &format_args!("{:#06x}", self.mxcsr))
            .field("st", &format_args!("{:x?}", self.st))
            .field("xmm", &format_args!("{:x?}", self.xmm))
            .finish_non_exhaustive()
    }
}

impl FpuState {
    /// The state after power-on (SDM volume 3, table 10-1): control word 0x40, all registers zero and valid.
    pub const fn new() -> Self {
        Self {
            control: CONTROL_FIXED,
            status: 0,
            tags: 0xff,
            reserved: 0,
            opcode: 0,
            instruction_pointer: 0,
            data_pointer: 0,
            mxcsr: MXCSR_DEFAULT,
            mxcsr_mask: MXCSR_MASK,
            st: [[0; 2]; 8],
            xmm: [[0; 2]; 16],
            unused: [0; 12],
        }
    }

    /// The state that an FXSAVE64 image holds. #GP if MXCSR has reserved bits; other reserved fields are ignored.
    pub fn from_image(image: &[u8; 512]) -> Result<Self, Fault> {
        let mut state = Self::new();
        state.fxrstor(image, FxsaveLayout::Wide, 16)?;
        state.unused = std::array::from_fn(|i| u64_at(image, WRITTEN + 8 * i));
        Ok(state)
    }

    /// The FXSAVE64 image of this state.
    pub fn to_image(&self) -> [u8; 512] {
        let mut image = [0; 512];
        for (chunk, word) in image[WRITTEN..].chunks_exact_mut(8).zip(&self.unused) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        self.fxsave(&mut image, FxsaveLayout::Wide, 16);
        image
    }

    /// FXSAVE: writes the leading bytes of `image`, with the first `xmm_count` XMM registers (16 in 64-bit mode,
    /// [`XMM_COUNT_LEGACY`] elsewhere). Returns how many bytes the instruction writes; bytes behind them keep their
    /// value.
    pub fn fxsave(&self, image: &mut [u8; 512], layout: FxsaveLayout, xmm_count: usize) -> usize {
        let xmm_count = xmm_count.min(16);
        let mut head = [0u8; XMM_OFFSET];
        head[0..2].copy_from_slice(&self.control.to_le_bytes());
        head[2..4].copy_from_slice(&self.status.to_le_bytes());
        head[4] = self.tags;
        head[6..8].copy_from_slice(&self.opcode.to_le_bytes());
        match layout {
            FxsaveLayout::Wide => {
                head[8..16].copy_from_slice(&self.instruction_pointer.to_le_bytes());
                head[16..24].copy_from_slice(&self.data_pointer.to_le_bytes());
            }
            FxsaveLayout::Narrow => {
                head[8..12].copy_from_slice(&(self.instruction_pointer as u32).to_le_bytes());
                head[16..20].copy_from_slice(&(self.data_pointer as u32).to_le_bytes());
            }
        }
        head[24..28].copy_from_slice(&self.mxcsr.to_le_bytes());
        head[28..32].copy_from_slice(&self.mxcsr_mask.to_le_bytes());
        for (slot, st) in head[32..].chunks_exact_mut(16).zip(&self.st) {
            slot.copy_from_slice(&bytes_of(*st));
        }
        image[..XMM_OFFSET].copy_from_slice(&head);
        for (slot, xmm) in image[XMM_OFFSET..].chunks_exact_mut(16).zip(&self.xmm[..xmm_count]) {
            slot.copy_from_slice(&bytes_of(*xmm));
        }
        XMM_OFFSET + 16 * xmm_count
    }

    /// FXRSTOR: takes over `image`, with the first `xmm_count` XMM registers. #GP if MXCSR has reserved bits.
    pub fn fxrstor(&mut self, image: &[u8; 512], layout: FxsaveLayout, xmm_count: usize) -> Result<(), Fault> {
        self.set_mxcsr(u32_at(image, 24))?;
        self.control = u16_at(image, 0) & CONTROL_MASK | CONTROL_FIXED;
        self.status = u16_at(image, 2);
        self.update_summary();
        self.tags = image[4];
        self.opcode = u16_at(image, 6) & 0x7ff;
        let pointer = |at| match layout {
            FxsaveLayout::Wide => u64_at(image, at),
            FxsaveLayout::Narrow => u64::from(u32_at(image, at)),
        };
        self.instruction_pointer = pointer(8);
        self.data_pointer = pointer(16);
        for (i, st) in self.st.iter_mut().enumerate() {
            *st = [u64_at(image, 32 + 16 * i), u64::from(u16_at(image, 40 + 16 * i))];
        }
        for (i, xmm) in self.xmm.iter_mut().enumerate().take(xmm_count) {
            *xmm = [u64_at(image, XMM_OFFSET + 16 * i), u64_at(image, XMM_OFFSET + 8 + 16 * i)];
        }
        Ok(())
    }

    /// MXCSR, as STMXCSR stores it.
    #[inline]
    pub fn mxcsr(&self) -> u32 {
        self.mxcsr
    }

    /// LDMXCSR. #GP for reserved bits.
    pub fn set_mxcsr(&mut self, value: u32) -> Result<(), Fault> {
        if value & !MXCSR_MASK != 0 {
            return Err(Fault::GeneralProtection);
        }
        self.mxcsr = value;
        Ok(())
    }

    /// Whether rounding mode, masks, DAZ and FTZ have their defaults: the condition for [`crate::fast`].
    #[inline]
    pub fn mxcsr_is_default(&self) -> bool {
        self.mxcsr & !0x3f == MXCSR_DEFAULT
    }

    /// The x87 control word.
    pub fn control_word(&self) -> u16 {
        self.control
    }

    /// The x87 status word.
    pub fn status_word(&self) -> u16 {
        self.status
    }

    /// ST(`index`), modulo 8: significand, then sign and exponent.
    pub fn st(&self, index: usize) -> (u64, u16) {
        let [significand, exponent] = self.st[index & 7];
        (significand, exponent as u16)
    }

    /// Whether an unmasked x87 exception waits: the next waiting x87 or MMX instruction, or FWAIT, raises #MF.
    #[inline]
    pub fn math_fault_pending(&self) -> bool {
        self.status & ERROR_SUMMARY != 0
    }

    /// What every MMX instruction but EMMS does to the x87 state: #MF if an exception is pending, else TOP becomes zero
    /// and all registers valid.
    #[inline]
    pub fn enter_mmx(&mut self) -> Result<(), Fault> {
        if self.math_fault_pending() {
            return Err(Fault::MathFault);
        }
        self.rotate_to_top(0);
        self.tags = 0xff;
        Ok(())
    }

    /// MM`index`, modulo 8: the significand of a *physical* x87 register.
    #[inline]
    pub fn mm(&self, index: usize) -> u64 {
        self.st[(index + 8 - self.top()) & 7][0]
    }

    /// Writes MM`index`, modulo 8; its sign and exponent become all ones. Does not do [`FpuState::enter_mmx`].
    #[inline]
    pub fn set_mm(&mut self, index: usize, value: u64) {
        self.st[(index + 8 - self.top()) & 7] = [value, 0xffff];
    }

    /// EMMS: all x87 registers become empty. #MF if an exception is pending.
    pub fn emms(&mut self) -> Result<(), Fault> {
        self.enter_mmx()?;
        self.tags = 0;
        Ok(())
    }

    /// Sets the last-instruction opcode (FOP), for callers who executed with a ModR/M byte that was not the guest's own.
    pub fn set_last_opcode(&mut self, opcode: u8, modrm: u8) {
        self.opcode = u16::from(opcode & 7) << 8 | u16::from(modrm);
    }

    pub(crate) fn top(&self) -> usize {
        usize::from(self.status >> TOP_SHIFT & 7)
    }

    /// Changes TOP so that every physical register keeps its content.
    pub(crate) fn rotate_to_top(&mut self, top: usize) {
        let old = self.top();
        if old != top {
            self.st.rotate_left((top + 8 - old) % 8);
            self.set_top(top);
        }
    }

    /// Changes TOP and leaves ST(0) to ST(7) where they are.
    pub(crate) fn set_top(&mut self, top: usize) {
        self.status = self.status & !(7 << TOP_SHIFT) | ((top & 7) as u16) << TOP_SHIFT;
    }

    pub(crate) fn set_control(&mut self, value: u16) {
        self.control = value & CONTROL_MASK | CONTROL_FIXED;
        self.update_summary();
    }

    pub(crate) fn set_status(&mut self, value: u16) {
        self.status = value;
        self.update_summary();
    }

    /// Makes ES and B say whether an unmasked exception is pending, as processors do whenever the words are loaded.
    pub(crate) fn update_summary(&mut self) {
        let pending = self.status & !self.control & EXCEPTIONS != 0;
        let summary = if pending { ERROR_SUMMARY | BUSY } else { 0 };
        self.status = self.status & !(ERROR_SUMMARY | BUSY) | summary;
    }

    /// Puts MXCSR_MASK back after the host has stored its own.
    pub(crate) fn reset_mxcsr_mask(&mut self) {
        self.mxcsr_mask = MXCSR_MASK;
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        std::ptr::from_mut(self).cast()
    }
}

fn bytes_of(value: [u64; 2]) -> [u8; 16] {
    (u128::from(value[0]) | u128::from(value[1]) << 64).to_le_bytes()
}

fn u16_at(image: &[u8; 512], at: usize) -> u16 {
    u16::from_le_bytes([image[at], image[at + 1]])
}

fn u32_at(image: &[u8; 512], at: usize) -> u32 {
    u32::from(u16_at(image, at)) | u32::from(u16_at(image, at + 2)) << 16
}

fn u64_at(image: &[u8; 512], at: usize) -> u64 {
    u64::from(u32_at(image, at)) | u64::from(u32_at(image, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> [u8; 512] {
        let mut image: [u8; 512] = std::array::from_fn(|i| (i as u8).wrapping_mul(37));
        image[..8].copy_from_slice(&[0x7f, 0x03, 0x00, 0x28, 0xf0, 0, 0x12, 0x01]);
        image[24..32].copy_from_slice(&[0x80, 0x1f, 0, 0, 0xff, 0xff, 0, 0]);
        for slot in image[32..160].chunks_exact_mut(16) {
            slot[10..].fill(0);
        }
        image
    }

    #[test]
    fn an_image_comes_back_as_it_was() {
        assert_eq!(FpuState::from_image(&sample()).unwrap().to_image(), sample());
    }

    #[test]
    fn reserved_bits_of_mxcsr_are_refused_and_change_nothing() {
        let mut image = sample();
        image[26] = 1;
        let mut state = FpuState::new();
        assert_eq!(state.fxrstor(&image, FxsaveLayout::Wide, 16), Err(Fault::GeneralProtection));
        assert_eq!(state.set_mxcsr(0x1_1f80), Err(Fault::GeneralProtection));
        assert!(state == FpuState::new());
    }

    #[test]
    fn the_narrow_layout_has_short_pointers_and_legacy_mode_eight_registers() {
        let state = FpuState::from_image(&sample()).unwrap();
        let mut narrow = [0xee; 512];
        assert_eq!(state.fxsave(&mut narrow, FxsaveLayout::Narrow, XMM_COUNT_LEGACY), 288);
        assert_eq!((&narrow[8..12], &narrow[12..16]), (&sample()[8..12], &[0; 4][..]));
        assert_eq!((&narrow[32..288], narrow[288]), (&sample()[32..288], 0xee));
        let mut other = FpuState::new();
        other.fxrstor(&narrow, FxsaveLayout::Narrow, XMM_COUNT_LEGACY).unwrap();
        assert_eq!((other.xmm[7], other.xmm[8]), (state.xmm[7], [0; 2]));
    }

    #[test]
    fn error_summary_follows_flags_and_masks_whatever_the_image_says() {
        let mut image = sample();
        image[2..4].copy_from_slice(&0x8080u16.to_le_bytes());
        assert_eq!(FpuState::from_image(&image).unwrap().status_word(), 0);
        (image[0], image[2], image[3]) = (0x7e, 1, 0);
        let mut state = FpuState::from_image(&image).unwrap();
        assert_eq!(state.status_word(), 0x8081);
        assert!(state.math_fault_pending());
        assert_eq!(state.enter_mmx(), Err(Fault::MathFault));
    }

    #[test]
    fn mmx_registers_are_physical_ones() {
        // TOP is 5: MM5 is ST(0).
        let mut state = FpuState::from_image(&sample()).unwrap();
        let before: Vec<u64> = (0..8).map(|i| state.mm(i)).collect();
        assert_eq!(before[5], state.st(0).0);
        state.enter_mmx().unwrap();
        assert_eq!(before, (0..8).map(|i| state.st(i).0).collect::<Vec<_>>());
        assert_eq!((state.status_word(), state.to_image()[4]), (0, 0xff));
        state.set_mm(5, 42);
        assert_eq!((state.mm(5), state.st(5)), (42, (42, 0xffff)));
        state.emms().unwrap();
        assert_eq!(state.to_image()[4], 0);
    }
}
