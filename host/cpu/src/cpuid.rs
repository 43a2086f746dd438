//! Processor models: what CPUID says, and which instructions there are.
//!
//! `cardcage-v1` is x86-64-v1 with CMPXCHG16B, as an AMD processor of family 0x19 without speculation flaws would show
//! it to a guest of KVM: clock sources that need no calibration, and no mitigations that cost time.

use iced_x86::{CpuidFeature, Instruction};

use crate::state::{Cpu, cr4};

/// Physical address bits.
pub(crate) const PHYSICAL_BITS: u32 = 40;

/// A word of CPUID that feature flags live in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
enum Word {
    /// Leaf 1.
    Ecx1,
    Edx1,
    /// Leaf 7, subleaf 0.
    Ebx7,
    Ecx7,
    Edx7,
    /// Leaf 0x8000_0001.
    Ecx8,
    Edx8,
    /// Leaf 0x8000_0007.
    Edx87,
    /// Leaf 0x8000_0008.
    Ebx88,
    /// Leaf 0x8000_0021.
    Eax821,
    /// KVM's leaf 0x4000_0001.
    Kvm,
}

const WORDS: usize = 11;

/// A feature that the software CPU can show: its name as in QEMU, word, bit, and whether it is part of `cardcage-v1`.
struct Feature {
    name: &'static str,
    word: Word,
    bit: u8,
    v1: bool,
}

const fn feature(name: &'static str, word: Word, bit: u8, v1: bool) -> Feature {
    Feature { name, word, bit, v1 }
}

/// Everything that can be switched with `+name` and `-name`.
const FEATURES: &[Feature] = &[
    feature("fpu", Word::Edx1, 0, true),
    feature("de", Word::Edx1, 2, true),
    feature("pse", Word::Edx1, 3, true),
    feature("tsc", Word::Edx1, 4, true),
    feature("msr", Word::Edx1, 5, true),
    feature("pae", Word::Edx1, 6, true),
    feature("mce", Word::Edx1, 7, true),
    feature("cx8", Word::Edx1, 8, true),
    feature("apic", Word::Edx1, 9, true),
    feature("sep", Word::Edx1, 11, true),
    feature("mtrr", Word::Edx1, 12, true),
    feature("pge", Word::Edx1, 13, true),
    feature("mca", Word::Edx1, 14, true),
    feature("cmov", Word::Edx1, 15, true),
    feature("pat", Word::Edx1, 16, true),
    feature("pse36", Word::Edx1, 17, true),
    feature("clflush", Word::Edx1, 19, true),
    feature("mmx", Word::Edx1, 23, true),
    feature("fxsr", Word::Edx1, 24, true),
    feature("sse", Word::Edx1, 25, true),
    feature("sse2", Word::Edx1, 26, true),
    feature("sse3", Word::Ecx1, 0, false),
    feature("ssse3", Word::Ecx1, 9, false),
    feature("cx16", Word::Ecx1, 13, true),
    feature("sse4.1", Word::Ecx1, 19, false),
    feature("x2apic", Word::Ecx1, 21, true),
    feature("popcnt", Word::Ecx1, 23, false),
    feature("tsc-deadline", Word::Ecx1, 24, true),
    feature("hypervisor", Word::Ecx1, 31, true),
    feature("erms", Word::Ebx7, 9, true),
    feature("fsrm", Word::Edx7, 4, false),
    feature("syscall", Word::Edx8, 11, true),
    feature("nx", Word::Edx8, 20, true),
    feature("pdpe1gb", Word::Edx8, 26, true),
    feature("rdtscp", Word::Edx8, 27, true),
    feature("lm", Word::Edx8, 29, true),
    feature("lahf-lm", Word::Ecx8, 0, true),
    feature("3dnowprefetch", Word::Ecx8, 8, true),
    feature("invtsc", Word::Edx87, 8, true),
    feature("amd-no-ssb", Word::Ebx88, 26, true),
    feature("lfence-always-serializing", Word::Eax821, 2, true),
    // Nothing is speculated here: with these two the guest needs neither retpolines nor safe returns.
    feature("auto-ibrs", Word::Eax821, 8, true),
    feature("srso-no", Word::Eax821, 29, true),
    feature("kvmclock", Word::Kvm, 3, true),
    feature("kvm-nopiodelay", Word::Kvm, 1, true),
    feature("kvmclock-stable-bit", Word::Kvm, 24, true),
];

/// Bits that are always set and have no name of their own: FDP and FCS/FDS deprecation (leaf 7, EBX 6 and 13).
const FIXED_EBX7: u32 = 1 << 6 | 1 << 13;

/// A model or feature name that there is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// No such feature.
    #[error("the software CPU has no feature '{name}'; it has: {known}")]
    UnknownFeature {
        /// What was asked for.
        name: String,
        /// All names, separated by spaces.
        known: String,
    },
}

/// A processor model: a name and a set of features.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuModel {
    name: &'static str,
    words: [u32; WORDS],
}

impl Default for CpuModel {
    fn default() -> Self {
        Self::v1()
    }
}

impl CpuModel {
    fn v1() -> Self {
        let mut model = Self { name: "cardcage-v1", words: [0; WORDS] };
        for f in FEATURES.iter().filter(|f| f.v1) {
            model.words[f.word as usize] |= 1 << f.bit;
        }
        model
    }

    /// The model of this name.
    pub fn by_name(name: &str) -> Option<Self> {
        (name == "cardcage-v1").then(Self::v1)
    }

    /// The names of all models, the default first.
    pub fn names() -> &'static [&'static str] {
        &["cardcage-v1"]
    }

    /// This model's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The names of all features that can be switched.
    pub fn feature_names() -> impl Iterator<Item = &'static str> {
        FEATURES.iter().map(|f| f.name)
    }

    /// The same model with one feature switched on or off.
    pub fn with_feature(mut self, name: &str, on: bool) -> Result<Self, ModelError> {
        let canonical = name.replace('_', "-");
        let found = FEATURES.iter().find(|f| f.name == canonical || f.name == name);
        let Some(f) = found else {
            let known = Self::feature_names().collect::<Vec<_>>().join(" ");
            return Err(ModelError::UnknownFeature { name: name.to_string(), known });
        };
        let word = &mut self.words[f.word as usize];
        *word = if on { *word | 1 << f.bit } else { *word & !(1 << f.bit) };
        Ok(self)
    }

    /// Whether the model has a feature.
    pub fn has(&self, name: &str) -> bool {
        FEATURES.iter().any(|f| f.name == name && self.bit(f.word, f.bit))
    }

    fn word(&self, word: Word) -> u32 {
        self.words[word as usize]
    }

    fn bit(&self, word: Word, bit: u8) -> bool {
        self.word(word) >> bit & 1 != 0
    }

    /// Bits of CR4 that can be set.
    pub(crate) fn cr4_mask(&self) -> u64 {
        let mut mask = cr4::TSD | cr4::PSE | cr4::PAE | cr4::MCE | cr4::PGE | cr4::PCE;
        if self.bit(Word::Edx1, 2) {
            mask |= cr4::DE;
        }
        if self.bit(Word::Edx1, 24) {
            mask |= cr4::OSFXSR | cr4::OSXMMEXCPT;
        }
        mask
    }

    /// EAX, EBX, ECX and EDX of a leaf.
    pub(crate) fn leaf(&self, c: &Cpu, leaf: u32, subleaf: u32) -> [u32; 4] {
        let id = c.index;
        match leaf {
            // "AuthenticAMD".
            0 => [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65],
            // Family 0x19, model 1, stepping 1.
            1 => {
                let apic_on = c.apic_base & 0x800 != 0;
                let edx = self.word(Word::Edx1) & if apic_on { !0 } else { !(1 << 9) };
                let edx = if c.apic_base & 0x100 == 0 || c.processors > 1 { edx | smp(c) } else { edx };
                [0x00a1_0f11, id << 24 | c.processors.min(255) << 16 | 8 << 8, self.word(Word::Ecx1), edx]
            }
            7 if subleaf == 0 => [0, self.word(Word::Ebx7) | FIXED_EBX7, self.word(Word::Ecx7), self.word(Word::Edx7)],
            0xb => topology(c, subleaf),
            0x4000_0000 => [0x4000_0010, 0x4b4d_564b, 0x564b_4d56, 0x4d],
            0x4000_0001 => [self.word(Word::Kvm), 0, 0, 0],
            // TSC and bus frequency in kHz.
            0x4000_0010 => [1_000_000, 1_000_000, 0, 0],
            0x8000_0000 => [0x8000_0021, 0x6874_7541, 0x444d_4163, 0x6974_6e65],
            0x8000_0001 => {
                // AMD repeats part of leaf 1.
                let common = self.word(Word::Edx1) & 0x0183_f3ff;
                [0x00a1_0f11, 0, self.word(Word::Ecx8), self.word(Word::Edx8) | common]
            }
            0x8000_0002..=0x8000_0004 => brand(leaf - 0x8000_0002),
            0x8000_0005 => [0, 0x0140_0140, 0x2008_0140, 0x2008_0140],
            0x8000_0006 => [0, 0, 0x0200_6140, 0],
            0x8000_0007 => [0, 0, 0, self.word(Word::Edx87)],
            0x8000_0008 => [48 << 8 | PHYSICAL_BITS, self.word(Word::Ebx88), c.processors.saturating_sub(1) & 0xff, 0],
            0x8000_0021 => [self.word(Word::Eax821), 0, 0, 0],
            _ => [0; 4],
        }
    }
}

/// The HTT bit: several logical processors.
fn smp(c: &Cpu) -> u32 {
    if c.processors > 1 { 1 << 28 } else { 0 }
}

/// One thread per core, all cores in one package.
fn topology(c: &Cpu, subleaf: u32) -> [u32; 4] {
    let bits = u32::BITS - c.processors.saturating_sub(1).leading_zeros();
    match subleaf {
        0 => [0, 1, 0x100, c.index],
        1 => [bits, c.processors, 0x201, c.index],
        _ => [0, 0, subleaf & 0xff, c.index],
    }
}

fn brand(part: u32) -> [u32; 4] {
    let mut text = [0u8; 48];
    let name = b"Cardcage software CPU (x86-64-v1)";
    text[..name.len()].copy_from_slice(name);
    let at = 16 * part as usize;
    std::array::from_fn(|i| {
        let b = at + 4 * i;
        u32::from_le_bytes([text[b], text[b + 1], text[b + 2], text[b + 3]])
    })
}

/// Whether the model has what the instruction needs.
pub(crate) fn allows(model: &CpuModel, i: &Instruction) -> bool {
    use CpuidFeature as F;
    i.cpuid_features().iter().all(|f| match f {
        F::INTEL8086 | F::INTEL186 | F::INTEL286 | F::INTEL386 | F::INTEL486 => true,
        F::X64
        | F::MULTIBYTENOP
        | F::SMM
        | F::PAUSE
        | F::CPUID
        | F::FPU
        | F::FPU287
        | F::FPU387
        | F::TSC
        | F::MSR
        | F::CX8
        | F::CMOV
        | F::RDPMC
        | F::CET_IBT
        | F::CET_SS => true,
        F::PREFETCHW => model.bit(Word::Ecx8, 8),
        F::SEP => model.bit(Word::Edx1, 11),
        F::SYSCALL => model.bit(Word::Edx8, 11),
        F::RDTSCP => model.bit(Word::Edx8, 27),
        F::CMPXCHG16B => model.bit(Word::Ecx1, 13),
        F::CLFSH => model.bit(Word::Edx1, 19),
        F::FXSR => model.bit(Word::Edx1, 24),
        F::MMX => model.bit(Word::Edx1, 23),
        F::SSE => model.bit(Word::Edx1, 25),
        F::SSE2 => model.bit(Word::Edx1, 26),
        F::SSE3 => model.bit(Word::Ecx1, 0),
        F::SSSE3 => model.bit(Word::Ecx1, 9),
        F::SSE4_1 => model.bit(Word::Ecx1, 19),
        F::POPCNT => model.bit(Word::Ecx1, 23),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_feature_is_named_with_what_there_is() {
        let err = CpuModel::default().with_feature("avx", true).unwrap_err().to_string();
        assert!(err.contains("'avx'") && err.contains("sse2"), "{err}");
    }

    #[test]
    fn features_can_be_switched() {
        let model = CpuModel::by_name("cardcage-v1").unwrap();
        assert!(model.has("cx16") && !model.has("popcnt"));
        let model = model.with_feature("popcnt", true).unwrap().with_feature("lahf_lm", false).unwrap();
        assert!(model.has("popcnt") && !model.has("lahf-lm"));
        assert!(CpuModel::by_name("host").is_none());
    }
}
