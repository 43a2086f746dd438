//! Whether KVM here really runs guest code, and how fast.
//!
//! /dev/kvm may open, and every capability be there, and guests still not be usable: on hosts without hardware
//! virtualisation some kernels emulate guest ring 0 instruction by instruction. So a small 64-bit guest is run, and
//! timed.

use std::fmt;
use std::time::Instant;

use cardcage_memory::GuestRam;
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::accelerator::{add_memory, open};
use crate::{KvmError, failed};

/// Instructions a second below which the software CPU is faster.
const ENOUGH: u64 = 400_000_000;
/// Beyond this no second, longer run is needed.
const CLEARLY_ENOUGH: u64 = 1_000_000_000;
/// Below this none is, either: also where each way into the guest takes long, because the host is a guest itself.
const CLEARLY_EMULATED: u64 = 5_000_000;
const SHORT_RUN: u32 = 100;
const LONG_RUN: u32 = 20_000;
/// The best of so many short runs counts: a busy host may interrupt one.
const SHORT_RUNS: u32 = 3;

const RAM: u64 = 2 << 20;
const TABLES: u64 = 0x1000;
const STACK: u64 = 0x8000;
const CODE: u64 = 0x8000;
const DATA: u64 = 0x9000;

/// Instructions in one round of [`LOOP`].
const LOOP_INSTRUCTIONS: u64 = 10;
/// `mov r8d, rounds` comes before it, `hlt` after it.
const LOOP: &[u8] = &[
    0x4c, 0x01, 0xc0, // add rax, r8
    0x48, 0x6b, 0xd0, 0x03, // imul rdx, rax, 3
    0x48, 0x31, 0xd0, // xor rax, rdx
    0x48, 0x89, 0x03, // mov [rbx], rax
    0x48, 0x03, 0x03, // add rax, [rbx]
    0x50, // push rax
    0x5e, // pop rsi
    0x48, 0xd1, 0xc6, // rol rsi, 1
    0x41, 0xff, 0xc8, // dec r8d
    0x75, 0xe6, // jnz to the beginning
];

/// What a kernel uses from its first moments on: each is followed by `hlt`.
const INSTRUCTIONS: &[(&str, &[u8])] = &[
    ("cpuid", &[0x31, 0xc0, 0x53, 0x0f, 0xa2, 0x5b]),
    ("mov cr3", &[0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8]),
    ("invlpg", &[0x0f, 0x01, 0x3b]),
    ("rdmsr and wrmsr", &[0xb9, 0x01, 0x01, 0x00, 0xc0, 0x0f, 0x32, 0x0f, 0x30]),
    ("rdtsc", &[0x0f, 0x31]),
    ("movdqa", &[0x66, 0x0f, 0x6f, 0x03, 0x66, 0x0f, 0x7f, 0x03]),
    ("paddq", &[0x66, 0x0f, 0xd4, 0xc8]),
    ("fxsave", &[0x48, 0x0f, 0xae, 0x83, 0x00, 0x01, 0x00, 0x00]),
    ("fninit", &[0xdb, 0xe3]),
    ("cmpxchg16b", &[0x48, 0x0f, 0xc7, 0x0b]),
    ("lock xadd", &[0xf0, 0x48, 0x0f, 0xc1, 0x03]),
    ("bsf", &[0x48, 0x0f, 0xbc, 0xc3]),
    ("rep stosq", &[0x48, 0x89, 0xdf, 0xb9, 0x08, 0x00, 0x00, 0x00, 0xf3, 0x48, 0xab]),
    ("swapgs", &[0x0f, 0x01, 0xf8, 0x0f, 0x01, 0xf8]),
    ("pushf and popf", &[0x9c, 0x9d]),
];

/// What [`probe`] measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeReport {
    /// Guest instructions a second, as far as a short run shows.
    pub speed: u64,
}

impl fmt::Display for ProbeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millions = self.speed as f64 / 1e6;
        let digits = usize::from(millions < 10.0);
        write!(f, "KVM runs guest code at {millions:.digits$} million instructions a second")
    }
}

/// Whether KVM can be used at all, however slow. The error is one sentence without an end.
pub fn check() -> Result<(), String> {
    open().map(drop).map_err(|e| sentence(&e))
}

/// Whether KVM is worth using: runs a 64-bit guest of our own for some microseconds. The error is one sentence without
/// an end, with what was measured.
pub fn probe() -> Result<ProbeReport, String> {
    let mut guest = open().and_then(|kvm| Guest::new(&kvm)).map_err(|e| sentence(&e))?;
    let result = judge(&mut guest);
    // The kernel takes its time to end a machine, and nobody has to wait for it. Without a thread it ends here.
    let _ = std::thread::Builder::new().name("kvm-probe".into()).spawn(move || drop(guest));
    result
}

fn judge(guest: &mut Guest) -> Result<ProbeReport, String> {
    let mut speed = 0;
    for _ in 0..SHORT_RUNS {
        speed = speed.max(guest.measure(SHORT_RUN)?);
        if speed >= CLEARLY_EMULATED {
            break;
        }
    }
    if (CLEARLY_EMULATED..CLEARLY_ENOUGH).contains(&speed) {
        speed = guest.measure(LONG_RUN)?;
    }
    if speed < ENOUGH {
        return Err(format!("{}, which the software CPU outdoes", ProbeReport { speed }));
    }
    let refused = INSTRUCTIONS.iter().filter(|(_, code)| guest.execute(code).is_err()).map(|(name, _)| *name);
    match refused.collect::<Vec<&str>>().as_slice() {
        [] => Ok(ProbeReport { speed }),
        names => Err(format!("{}, but fails on {}", ProbeReport { speed }, names.join(", "))),
    }
}

fn sentence(error: &KvmError) -> String {
    error.to_string().replace('\n', " ")
}

/// A guest in 64-bit mode with one large page. It has no interrupt controller, so HLT comes back to us.
struct Guest {
    // Dropped before the RAM that they refer to.
    vcpu: VcpuFd,
    _vm: kvm_ioctls::VmFd,
    ram: GuestRam,
    start: kvm_sregs,
}

impl Guest {
    fn new(kvm: &kvm_ioctls::Kvm) -> Result<Self, KvmError> {
        let ram = GuestRam::new(&[(0, RAM)]).map_err(|_| KvmError::Missing("2 MiB of memory for a probe"))?;
        let tables = [(0, TABLES + 0x1003), (0x1000, TABLES + 0x2003), (0x2000, 0x83)];
        for (offset, entry) in tables {
            ram.write(TABLES + offset, &u64::to_le_bytes(entry)).map_err(|_| KvmError::Missing("page tables"))?;
        }
        let vm = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
        add_memory(&vm, &ram)?;
        let vcpu = vm.create_vcpu(0).map_err(failed("KVM_CREATE_VCPU"))?;
        let cpuid = crate::CpuModel::default().cpuid(kvm, 0, 1)?;
        vcpu.set_cpuid2(&cpuid).map_err(failed("KVM_SET_CPUID2"))?;
        let mut start = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
        let flat =
            kvm_segment { limit: u32::MAX, present: 1, s: 1, g: 1, type_: 3, selector: 16, ..Default::default() };
        let code = kvm_segment { l: 1, type_: 11, selector: 8, ..flat };
        (start.cs, start.ds, start.es, start.ss) = (code, flat, flat, flat);
        (start.cr0, start.cr3, start.cr4, start.efer) = (0x8000_0013, TABLES, 0x620, 0x500);
        Ok(Self { vcpu, _vm: vm, ram, start })
    }

    /// Runs `code` up to its end, with RBX at some data. Gives RAX.
    fn execute(&mut self, code: &[u8]) -> Result<u64, String> {
        let registers = kvm_regs { rip: CODE, rflags: 2, rsp: STACK, rbx: DATA, ..Default::default() };
        let code = [code, &[0xf4]].concat();
        self.ram.write(CODE, &code).map_err(|e| e.to_string())?;
        self.vcpu.set_sregs(&self.start).map_err(|e| failed("KVM_SET_SREGS")(e).to_string())?;
        self.vcpu.set_regs(&registers).map_err(|e| failed("KVM_SET_REGS")(e).to_string())?;
        match self.vcpu.run() {
            Ok(VcpuExit::Hlt) => {}
            Ok(exit) => return Err(format!("a guest of a few instructions ends with {exit:?}")),
            Err(e) => return Err(failed("KVM_RUN")(e).to_string()),
        }
        let registers = self.vcpu.get_regs().map_err(|e| failed("KVM_GET_REGS")(e).to_string())?;
        if registers.rip != CODE + code.len() as u64 {
            return Err(format!("a guest of a few instructions ends at {:#x}", registers.rip));
        }
        Ok(registers.rax)
    }

    /// Instructions a second.
    fn measure(&mut self, rounds: u32) -> Result<u64, String> {
        let code = [&[0x41, 0xb8], rounds.to_le_bytes().as_slice(), LOOP].concat();
        let begin = Instant::now();
        let rax = self.execute(&code)?;
        let ns = begin.elapsed().as_nanos().max(1);
        if rax != expected(rounds) {
            return Err(format!("guest code computes {rax:#x} where it should be {:#x}", expected(rounds)));
        }
        let instructions = u128::from(rounds) * u128::from(LOOP_INSTRUCTIONS);
        Ok(u64::try_from(instructions * 1_000_000_000 / ns).unwrap_or(u64::MAX))
    }
}

/// What RAX is after so many rounds of [`LOOP`].
fn expected(rounds: u32) -> u64 {
    (1..=u64::from(rounds)).rev().fold(0u64, |rax, r8| {
        let rax = rax.wrapping_add(r8);
        let rax = rax ^ rax.wrapping_mul(3);
        rax.wrapping_add(rax)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, FlowControl};

    #[test]
    fn the_loop_has_the_instructions_that_it_is_measured_by() {
        let decoded: Vec<_> = Decoder::with_ip(64, LOOP, CODE, DecoderOptions::NONE).into_iter().collect();
        assert_eq!(decoded.len() as u64, LOOP_INSTRUCTIONS);
        let jump = decoded.last().unwrap();
        assert_eq!((jump.flow_control(), jump.near_branch64()), (FlowControl::ConditionalBranch, CODE));
    }

    #[test]
    fn every_probed_instruction_is_a_valid_one() {
        for (name, code) in INSTRUCTIONS {
            let decoded: Vec<_> = Decoder::with_ip(64, code, CODE, DecoderOptions::NONE).into_iter().collect();
            assert!(decoded.iter().all(|i| !i.is_invalid()), "{name}");
            assert_eq!(decoded.iter().map(|i| i.len()).sum::<usize>(), code.len(), "{name}");
        }
    }

    #[test]
    fn reports_round_to_what_was_measured() {
        for (speed, text) in [(1_540_000, "1.5 million"), (1_234_000_000, "1234 million")] {
            assert!(ProbeReport { speed }.to_string().contains(text), "{}", ProbeReport { speed });
        }
    }

    #[test]
    fn the_probe_gives_a_figure_or_one_sentence() {
        match probe() {
            Ok(report) => assert!(report.speed >= ENOUGH, "{report}"),
            Err(why) => assert!(!why.is_empty() && !why.contains('\n') && !why.ends_with('.'), "{why}"),
        }
    }
}
