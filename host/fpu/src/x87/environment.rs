//! The x87 environment and state in memory (SDM volume 1, figures 8-9 to 8-12), and the instructions that reset it.

use crate::FpuState;

/// Bytes that the largest x87 memory operand takes: FNSAVE with 32-bit operand size.
pub const OPERAND_MAX: usize = 108;

const EXCEPTION_MASKS: u16 = 0x3f;
const INITIAL_CONTROL: u16 = 0x37f;
/// Flags, stack fault, error summary and busy: what FNCLEX clears.
const CLEARED: u16 = 0x80ff;
const REGISTER_LEN: usize = 10;

/// How FNSTENV, FLDENV, FNSAVE and FRSTOR lay out the environment. Long mode uses the protected-mode layouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnvironmentLayout {
    /// Protected or long mode, 32-bit or 64-bit operand size.
    Protected32,
    /// Protected or long mode, 16-bit operand size.
    Protected16,
    /// Real or virtual-8086 mode, 32-bit operand size.
    Real32,
    /// Real or virtual-8086 mode, 16-bit operand size.
    Real16,
}

impl EnvironmentLayout {
    fn is_wide(self) -> bool {
        matches!(self, Self::Protected32 | Self::Real32)
    }

    /// Bytes of FNSTENV and FLDENV.
    pub fn environment_len(self) -> usize {
        if self.is_wide() { 28 } else { 14 }
    }

    /// Bytes of FNSAVE and FRSTOR.
    pub fn state_len(self) -> usize {
        self.environment_len() + 8 * REGISTER_LEN
    }
}

impl FpuState {
    /// FNINIT: registers keep their content but become empty.
    pub(crate) fn initialize(&mut self) {
        self.rotate_to_top(0);
        self.control = INITIAL_CONTROL;
        self.status = 0;
        self.tags = 0;
        self.opcode = 0;
        self.instruction_pointer = 0;
        self.data_pointer = 0;
    }

    /// FNCLEX.
    pub(crate) fn clear_exceptions(&mut self) {
        self.status &= !CLEARED;
    }

    /// FNSTENV: stores the environment, then masks all exceptions.
    pub(crate) fn store_environment(&mut self, layout: EnvironmentLayout, buffer: &mut [u8; OPERAND_MAX]) {
        let ip = self.instruction_pointer as u32;
        let dp = self.data_pointer as u32;
        let opcode = u32::from(self.opcode);
        let words: [u32; 7] = [
            self.control.into(),
            self.status.into(),
            self.full_tags().into(),
            ip,
            match layout {
                EnvironmentLayout::Protected32 => opcode << 16,
                EnvironmentLayout::Protected16 => 0,
                EnvironmentLayout::Real32 => (ip >> 16) << 12 | opcode,
                EnvironmentLayout::Real16 => (ip >> 16 & 0xf) << 12 | opcode,
            },
            dp,
            match layout {
                EnvironmentLayout::Protected32 | EnvironmentLayout::Protected16 => 0,
                EnvironmentLayout::Real32 => (dp >> 16) << 12,
                EnvironmentLayout::Real16 => (dp >> 16 & 0xf) << 12,
            },
        ];
        if layout.is_wide() {
            // Unused upper halves read as ones.
            let upper: [bool; 7] = match layout {
                EnvironmentLayout::Protected32 => [true, true, true, false, false, false, true],
                _ => [true, true, true, true, false, true, false],
            };
            for ((bytes, word), ones) in buffer.chunks_exact_mut(4).zip(words).zip(upper) {
                bytes.copy_from_slice(&(if ones { word | 0xffff_0000 } else { word }).to_le_bytes());
            }
        } else {
            for (bytes, word) in buffer.chunks_exact_mut(2).zip(words) {
                bytes.copy_from_slice(&(word as u16).to_le_bytes());
            }
        }
        self.set_control(self.control | EXCEPTION_MASKS);
    }

    /// FLDENV. Registers stay where they are; of the tags only "empty" counts.
    pub(crate) fn load_environment(&mut self, layout: EnvironmentLayout, buffer: &[u8; OPERAND_MAX]) {
        let word = |i: usize| match buffer.get(4 * i..4 * i + 4) {
            Some(&[a, b, c, d]) if layout.is_wide() => u32::from_le_bytes([a, b, c, d]),
            _ => u32::from(u16::from_le_bytes([buffer[2 * i], buffer[2 * i + 1]])),
        };
        self.rotate_to_top(usize::from(word(1) as u16 >> 11 & 7));
        self.control = 0;
        self.set_control(word(0) as u16);
        self.set_status(word(1) as u16);
        self.tags = (0..8).filter(|i| word(2) >> (2 * i) & 3 != 3).fold(0, |tags, i| tags | 1 << i);
        let (ip, dp, opcode) = match layout {
            EnvironmentLayout::Protected32 => (word(3), word(5), word(4) >> 16),
            EnvironmentLayout::Protected16 => (word(3), word(5), 0),
            EnvironmentLayout::Real32 => {
                (word(3) & 0xffff | word(4) << 4 & 0xffff_0000, word(5) & 0xffff | word(6) << 4 & 0xffff_0000, word(4))
            }
            EnvironmentLayout::Real16 => {
                (word(3) | word(4) << 4 & 0xf_0000, word(5) | word(6) << 4 & 0xf_0000, word(4))
            }
        };
        self.instruction_pointer = ip.into();
        self.data_pointer = dp.into();
        self.opcode = opcode as u16 & 0x7ff;
    }

    /// FNSAVE: stores environment and registers, then initializes.
    pub(crate) fn store_all(&mut self, layout: EnvironmentLayout, buffer: &mut [u8; OPERAND_MAX]) {
        self.store_environment(layout, buffer);
        let registers = &mut buffer[layout.environment_len()..];
        for (bytes, &[significand, exponent]) in registers.chunks_exact_mut(REGISTER_LEN).zip(&self.st) {
            bytes[..8].copy_from_slice(&significand.to_le_bytes());
            bytes[8..].copy_from_slice(&(exponent as u16).to_le_bytes());
        }
        self.initialize();
    }

    /// FRSTOR.
    pub(crate) fn load_all(&mut self, layout: EnvironmentLayout, buffer: &[u8; OPERAND_MAX]) {
        self.load_environment(layout, buffer);
        let registers = &buffer[layout.environment_len()..];
        for (bytes, st) in registers.chunks_exact(REGISTER_LEN).zip(&mut self.st) {
            let significand = bytes[..8].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
            *st = [significand, u64::from(u16::from_le_bytes([bytes[8], bytes[9]]))];
        }
    }

    /// The tag word with two bits per physical register: 0 valid, 1 zero, 2 special, 3 empty.
    fn full_tags(&self) -> u16 {
        (0..8).fold(0, |tags, physical| {
            let (significand, exponent) = self.st((physical + 8 - self.top()) & 7);
            let tag = match exponent & 0x7fff {
                _ if self.tags >> physical & 1 == 0 => 3,
                0 if significand == 0 => 1,
                0 | 0x7fff => 2,
                _ if significand >> 63 == 0 => 2,
                _ => 0,
            };
            tags | tag << (2 * physical)
        })
    }
}
