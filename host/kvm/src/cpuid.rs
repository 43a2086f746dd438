//! What the guest's CPUID shows: `-cpu host` and `max`, less or more what the user switches.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use crate::{KvmError, failed};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}
use Register::{Eax, Ebx, Ecx, Edx};

/// One register of CPUID: leaf, subleaf, register, and names of bits as QEMU has them.
struct Word(u32, u32, Register, &'static [(u8, &'static str)]);

const WORDS: &[Word] = &[
    Word(
        1,
        0,
        Edx,
        &[
            (0, "fpu"),
            (1, "vme"),
            (2, "de"),
            (3, "pse"),
            (4, "tsc"),
            (5, "msr"),
            (6, "pae"),
            (7, "mce"),
            (8, "cx8"),
            (9, "apic"),
            (11, "sep"),
            (12, "mtrr"),
            (13, "pge"),
            (14, "mca"),
            (15, "cmov"),
            (16, "pat"),
            (17, "pse36"),
            (19, "clflush"),
            (23, "mmx"),
            (24, "fxsr"),
            (25, "sse"),
            (26, "sse2"),
            (27, "ss"),
        ],
    ),
    Word(
        1,
        0,
        Ecx,
        &[
            (0, "pni"),
            (0, "sse3"),
            (1, "pclmulqdq"),
            (5, "vmx"),
            (9, "ssse3"),
            (12, "fma"),
            (13, "cx16"),
            (15, "pdcm"),
            (17, "pcid"),
            (19, "sse4.1"),
            (20, "sse4.2"),
            (21, "x2apic"),
            (22, "movbe"),
            (23, "popcnt"),
            (24, "tsc-deadline"),
            (25, "aes"),
            (26, "xsave"),
            (28, "avx"),
            (29, "f16c"),
            (30, "rdrand"),
            (31, "hypervisor"),
        ],
    ),
    Word(
        7,
        0,
        Ebx,
        &[
            (0, "fsgsbase"),
            (1, "tsc-adjust"),
            (3, "bmi1"),
            (4, "hle"),
            (5, "avx2"),
            (7, "smep"),
            (8, "bmi2"),
            (9, "erms"),
            (10, "invpcid"),
            (11, "rtm"),
            (16, "avx512f"),
            (17, "avx512dq"),
            (18, "rdseed"),
            (19, "adx"),
            (20, "smap"),
            (21, "avx512ifma"),
            (23, "clflushopt"),
            (24, "clwb"),
            (28, "avx512cd"),
            (29, "sha-ni"),
            (30, "avx512bw"),
            (31, "avx512vl"),
        ],
    ),
    Word(
        7,
        0,
        Ecx,
        &[
            (1, "avx512vbmi"),
            (2, "umip"),
            (3, "pku"),
            (6, "avx512vbmi2"),
            (8, "gfni"),
            (9, "vaes"),
            (10, "vpclmulqdq"),
            (11, "avx512vnni"),
            (12, "avx512bitalg"),
            (14, "avx512-vpopcntdq"),
            (16, "la57"),
            (22, "rdpid"),
            (25, "cldemote"),
            (27, "movdiri"),
            (28, "movdir64b"),
        ],
    ),
    Word(
        7,
        0,
        Edx,
        &[
            (4, "fsrm"),
            (8, "avx512-vp2intersect"),
            (10, "md-clear"),
            (14, "serialize"),
            (16, "tsx-ldtrk"),
            (26, "spec-ctrl"),
            (27, "stibp"),
            (28, "flush-l1d"),
            (29, "arch-capabilities"),
            (31, "ssbd"),
        ],
    ),
    Word(
        7,
        1,
        Eax,
        &[
            (4, "avx-vnni"),
            (5, "avx512-bf16"),
            (10, "fzrm"),
            (11, "fsrs"),
            (12, "fsrc"),
            (21, "amx-fp16"),
            (23, "avx-ifma"),
        ],
    ),
    Word(0xd, 1, Eax, &[(0, "xsaveopt"), (1, "xsavec"), (2, "xgetbv1"), (3, "xsaves")]),
    Word(
        0x4000_0001,
        0,
        Eax,
        &[
            (0, "kvmclock"),
            (1, "kvm-nopiodelay"),
            (3, "kvmclock2"),
            (4, "kvm-asyncpf"),
            (5, "kvm-steal-time"),
            (6, "kvm-pv-eoi"),
            (7, "kvm-pv-unhalt"),
            (9, "kvm-pv-tlb-flush"),
            (11, "kvm-pv-ipi"),
            (12, "kvm-poll-control"),
            (13, "kvm-pv-sched-yield"),
            (14, "kvm-asyncpf-int"),
            (24, "kvmclock-stable-bit"),
        ],
    ),
    Word(
        0x8000_0001,
        0,
        Edx,
        &[(11, "syscall"), (20, "nx"), (22, "mmxext"), (25, "fxsr-opt"), (26, "pdpe1gb"), (27, "rdtscp"), (29, "lm")],
    ),
    Word(
        0x8000_0001,
        0,
        Ecx,
        &[
            (0, "lahf-lm"),
            (2, "svm"),
            (4, "cr8legacy"),
            (5, "abm"),
            (6, "sse4a"),
            (7, "misalignsse"),
            (8, "3dnowprefetch"),
            (9, "osvw"),
            (21, "tbm"),
            (23, "perfctr-core"),
        ],
    ),
    Word(0x8000_0007, 0, Edx, &[(8, "invtsc")]),
    Word(
        0x8000_0008,
        0,
        Ebx,
        &[
            (0, "clzero"),
            (2, "xsaveerptr"),
            (9, "wbnoinvd"),
            (12, "ibpb"),
            (14, "ibrs"),
            (24, "amd-ssbd"),
            (25, "virt-ssbd"),
        ],
    ),
];

/// Leaf 1, ECX: x2APIC, TSC deadline, hypervisor. KVM's list leaves some of them to whoever makes the VM.
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: more than one logical processor in the package.
const HTT: u32 = 1 << 28;

/// A processor model: `host` or `max`, which are the same, with features switched on or off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuModel {
    /// Names, and whether they were switched on.
    switches: Vec<(String, bool)>,
}

impl Default for CpuModel {
    /// `host`.
    fn default() -> Self {
        Self { switches: Vec::new() }
    }
}

impl CpuModel {
    /// The models that there are.
    pub const NAMES: [&'static str; 2] = ["host", "max"];

    /// Reads `MODEL[,+FEATURE][,-FEATURE][,FEATURE=on|off]`, as QEMU's `-cpu`.
    pub fn parse(text: &str) -> Result<Self, KvmError> {
        let mut parts = text.split(',');
        let name = parts.next().unwrap_or_default();
        if !Self::NAMES.contains(&name) {
            let names = Self::NAMES.join(", ");
            return Err(KvmError::Cpu(format!("unable to find CPU model '{name}'; the kvm accelerator has: {names}")));
        }
        let mut switches = Vec::new();
        for part in parts {
            let (name, on) = match part.split_once('=') {
                Some((name, "on")) => (name, true),
                Some((name, "off")) => (name, false),
                Some((name, value)) => {
                    return Err(KvmError::Cpu(format!(
                        "CPU feature '{name}' doesn't take value '{value}': say on or off"
                    )));
                }
                None => part.strip_prefix('-').map_or((part.strip_prefix('+').unwrap_or(part), true), |f| (f, false)),
            };
            if find(name).is_none() {
                return Err(KvmError::Cpu(format!("the kvm accelerator knows no CPU feature '{name}'")));
            }
            switches.push((name.to_string(), on));
        }
        Ok(Self { switches })
    }

    /// Whether the host can give what is switched on.
    pub(crate) fn check(&self, kvm: &Kvm) -> Result<(), KvmError> {
        let entries = supported(kvm)?;
        for (name, _) in self.switches.iter().filter(|(_, on)| *on) {
            let has = find(name).is_some_and(|(word, bit)| {
                entries.iter().any(|e| e.function == word.0 && e.index == word.1 && value(e, word.2) >> bit & 1 != 0)
            });
            if !has {
                return Err(KvmError::Cpu(format!("the host's KVM cannot give the CPU feature '{name}'")));
            }
        }
        Ok(())
    }

    /// CPUID of vCPU `index` of `cpus`.
    pub(crate) fn cpuid(&self, kvm: &Kvm, index: u32, cpus: u32) -> Result<CpuId, KvmError> {
        let mut entries = supported(kvm)?;
        for (name, _) in self.switches.iter().filter(|(_, on)| !on) {
            let Some((word, bit)) = find(name) else { continue };
            for entry in entries.iter_mut().filter(|e| e.function == word.0 && e.index == word.1) {
                *register(entry, word.2) &= !(1 << bit);
            }
        }
        set_topology(&mut entries, index, cpus.max(1));
        CpuId::from_entries(&entries).map_err(|_| KvmError::Missing("room for CPUID leaves"))
    }
}

fn find(name: &str) -> Option<(&'static Word, u8)> {
    WORDS.iter().find_map(|word| word.3.iter().find(|(_, n)| *n == name).map(|(bit, _)| (word, *bit)))
}

fn register(entry: &mut kvm_cpuid_entry2, which: Register) -> &mut u32 {
    match which {
        Eax => &mut entry.eax,
        Ebx => &mut entry.ebx,
        Ecx => &mut entry.ecx,
        Edx => &mut entry.edx,
    }
}

fn value(entry: &kvm_cpuid_entry2, which: Register) -> u32 {
    *register(&mut entry.clone(), which)
}

/// What the host's KVM can show, with the bits that its list leaves to us.
fn supported(kvm: &Kvm) -> Result<Vec<kvm_cpuid_entry2>, KvmError> {
    let list = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
    let mut entries = list.as_slice().to_vec();
    for entry in &mut entries {
        match entry.function {
            1 => {
                entry.ecx |= X2APIC | HYPERVISOR;
                if kvm.check_extension(Cap::TscDeadlineTimer) {
                    entry.ecx |= TSC_DEADLINE;
                }
            }
            // Some kernels leave out how far the leaves of KVM go.
            0x4000_0000 => entry.eax = entry.eax.max(0x4000_0001),
            _ => {}
        }
    }
    Ok(entries)
}

/// One package of `cpus` cores of one thread each; APIC ids are indices.
fn set_topology(entries: &mut Vec<kvm_cpuid_entry2>, index: u32, cpus: u32) {
    let last = cpus - 1;
    let bits = u32::BITS - last.leading_zeros();
    for entry in entries.iter_mut() {
        match entry.function {
            1 => {
                entry.ebx = entry.ebx & 0xffff | cpus.min(0xff) << 16 | (index & 0xff) << 24;
                entry.edx = entry.edx & !HTT | if cpus > 1 { HTT } else { 0 };
            }
            // Cores per package; processors that share this cache: all share level 3, nobody the others.
            4 if entry.eax & 0x1f != 0 => {
                let sharing = if entry.eax >> 5 & 7 >= 3 { last.min(0xfff) } else { 0 };
                entry.eax = entry.eax & 0x3fff | sharing << 14 | last.min(0x3f) << 26;
            }
            0x8000_0008 => entry.ecx = bits.min(0xf) << 12 | last.min(0xff),
            0x8000_001d if entry.eax & 0x1f != 0 => {
                let sharing = if entry.eax >> 5 & 7 >= 3 { last.min(0xfff) } else { 0 };
                entry.eax = entry.eax & 0x3fff | sharing << 14;
            }
            0x8000_001e => {
                entry.eax = index;
                entry.ebx = index & 0xff;
                entry.ecx = 0;
            }
            _ => {}
        }
    }
    entries.retain(|entry| !matches!(entry.function, 0xb | 0x1f));
    if entries.iter().any(|entry| entry.function == 0 && entry.eax >= 0xb) {
        // Threads of a core, cores of the package, the end.
        let levels = [(0, 1, 1 << 8), (bits, cpus, 2 << 8), (0, 0, 0)];
        for (subleaf, (eax, ebx, ecx)) in (0..).zip(levels) {
            entries.push(kvm_cpuid_entry2 {
                function: 0xb,
                index: subleaf,
                flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                eax,
                ebx,
                ecx: ecx | subleaf,
                edx: index,
                ..Default::default()
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_named_as_qemu_names_them() {
        assert_eq!(CpuModel::parse("host").unwrap(), CpuModel::default());
        let model = CpuModel::parse("max,-avx2,+popcnt,invtsc=off,lm").unwrap();
        let expected = [("avx2", false), ("popcnt", true), ("invtsc", false), ("lm", true)];
        assert_eq!(model.switches, expected.map(|(name, on)| (name.to_string(), on)));
        for (text, message) in [
            ("Haswell", "unable to find CPU model 'Haswell'; the kvm accelerator has: host, max"),
            ("host,+nonsense", "the kvm accelerator knows no CPU feature 'nonsense'"),
            ("host,avx=maybe", "CPU feature 'avx' doesn't take value 'maybe': say on or off"),
        ] {
            assert_eq!(CpuModel::parse(text).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn no_name_stands_for_two_bits() {
        let mut names: Vec<_> = WORDS.iter().flat_map(|word| word.3.iter().map(|n| n.1)).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn the_topology_is_one_package_of_cores() {
        let leaf = |function| kvm_cpuid_entry2 { function, eax: 0x20, ..Default::default() };
        let mut entries = vec![leaf(0), leaf(1), leaf(0xb), leaf(0x1f)];
        set_topology(&mut entries, 2, 3);
        let ids: Vec<_> = entries.iter().filter(|e| e.function == 0xb).map(|e| (e.eax, e.ebx, e.ecx, e.edx)).collect();
        assert_eq!(ids, [(0, 1, 0x100, 2), (2, 3, 0x201, 2), (0, 0, 2, 2)]);
        assert_eq!((entries[1].ebx, entries[1].edx), (0x0203_0000, HTT));
        assert!(!entries.iter().any(|e| e.function == 0x1f));
    }
}
