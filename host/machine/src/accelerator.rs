//! What runs the vCPUs, and how it is chosen.

use std::fmt;

/// An accelerator as `-accel` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The host's KVM.
    Kvm,
    /// The software CPU.
    Soft,
    /// None: a test drives the machine.
    Qtest,
}

impl Accelerator {
    /// All names that `-accel` takes; `tcg` is QEMU's name for a software CPU.
    pub const NAMES: [(&'static str, Self); 4] =
        [("kvm", Self::Kvm), ("soft", Self::Soft), ("tcg", Self::Soft), ("qtest", Self::Qtest)];

    /// Whether it can be used here; the error says why not.
    pub fn check(self) -> Result<String, String> {
        match self {
            Self::Kvm => crate::kvm::probe(),
            Self::Soft => Ok("the software CPU works everywhere".into()),
            Self::Qtest => Ok("driven by a test".into()),
        }
    }

    /// The first of `wanted` that works; without a wish kvm, if it really runs guest code, else soft. The text says
    /// why.
    pub fn choose(wanted: &[Self]) -> Result<(Self, String), String> {
        if wanted.is_empty() {
            return Ok(match Self::Kvm.check() {
                Ok(why) => (Self::Kvm, why),
                Err(why) => (Self::Soft, format!("kvm cannot be used: {why}")),
            });
        }
        let mut refusals = Vec::new();
        for &accelerator in wanted {
            // What the user asked for by name need not be fast.
            let usable = if accelerator == Self::Kvm { crate::kvm::check() } else { accelerator.check().map(|_| ()) };
            match usable {
                Ok(()) => return Ok((accelerator, refusals.join("; "))),
                Err(why) => refusals.push(format!("{accelerator} cannot be used: {why}")),
            }
        }
        Err(refusals.join("; "))
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Soft => "soft",
            Self::Qtest => "qtest",
        })
    }
}
