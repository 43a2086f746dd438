//! What must agree between the two sides, and how a difference is told.

use std::fmt::Write as _;
use std::sync::LazyLock;

use iced_x86::{Formatter, IntelFormatter, OpKind};

use crate::context::{Context, DATA_ADDRESS, DATA_LEN};
use crate::generate::{COMPARED_FLAGS, Case};

const REGISTERS: [&str; 16] =
    ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];
const BREAKPOINT: u64 = 3;
const GENERAL_PROTECTION: u64 = 13;
const PAGE_FAULT: u64 = 14;
/// From here on the kernel does not tell what is mapped. (The last page below the canonical hole counts as its own.)
const USER_END: u64 = (1 << 47) - 0x1000;
const USER_MASK: u64 = (1 << 47) - 1;

/// Whether this processor keeps the x87 pointers as the model of `cardcage-fpu` does: data pointer and opcode only after
/// unmasked exceptions, selectors zero.
static HOST_POINTERS_FIT: LazyLock<bool> = LazyLock::new(|| {
    let leaf = std::arch::x86_64::__cpuid_count(7, 0).ebx;
    leaf & (1 << 6 | 1 << 13) == 1 << 6 | 1 << 13
});

/// Whether this machine runs with 57-bit addresses, so that some that the guest refuses are merely not mapped.
static HOST_ADDRESSES_ARE_WIDE: LazyLock<bool> = LazyLock::new(|| {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.split_whitespace().any(|flag| flag == "la57")
});

/// What the architecture leaves to the processor after a fault, beyond undefined flags.
struct Tolerance {
    /// Bits of the page-fault address and its error code that count.
    cr2: u64,
    error: u64,
    /// Whether memory and the x87 state count.
    memory: bool,
    x87: bool,
}

impl Tolerance {
    fn new(case: &Case, native: &Context) -> Self {
        let mut tolerance = Self { cr2: u64::MAX, error: u64::MAX, memory: true, x87: true };
        if native.cr2 >= USER_END {
            // The kernel does not tell whether its pages are present.
            tolerance.error &= !1;
        }
        let Some(instruction) = case.instruction_at(native.rip).filter(|_| native.vector != BREAKPOINT) else {
            return tolerance;
        };
        let size = instruction.memory_size().size();
        if size > 8 && size != 16 {
            // Carried out in parts, in an order of the processor's choice, and stored as far as possible.
            (tolerance.cr2, tolerance.error, tolerance.memory) = (0, 0, false);
        }
        let uses_mmx = |i| instruction.op_kind(i) == OpKind::Register && instruction.op_register(i).is_mm();
        // MMX instructions reset TOP and tags before or after they access memory.
        tolerance.x87 = !(0..instruction.op_count()).any(uses_mmx);
        tolerance
    }
}

/// Differences between the native outcome and the interpreter's, one a line; empty if there are none.
pub(crate) fn differences(case: &Case, native: (&Context, &[u8]), guest: (&Context, &[u8])) -> String {
    let mut text = String::new();
    let mut differ = |what: &str, native: u64, guest: u64| {
        if native != guest {
            let _ = writeln!(text, "  {what:<12} native {native:#018x}  interpreter {guest:#018x}");
        }
    };
    let (n, g) = (native.0, guest.0);
    let canonical = (n.cr2 as i64) << 16 >> 16 == n.cr2 as i64;
    if n.vector == PAGE_FAULT && !canonical && *HOST_ADDRESSES_ARE_WIDE {
        return String::new();
    }
    let tolerance = Tolerance::new(case, n);
    differ("vector", n.vector, g.vector);
    differ("rip", n.rip, g.rip);
    for (i, name) in REGISTERS.iter().enumerate() {
        differ(name, n.gpr[i], g.gpr[i]);
    }
    let flags = COMPARED_FLAGS & !case.undefined_at(n.rip, n.vector != BREAKPOINT);
    differ("rflags", n.rflags & flags, g.rflags & flags);
    if n.vector == PAGE_FAULT && g.vector == PAGE_FAULT {
        differ("cr2", n.cr2 & tolerance.cr2, g.cr2 & tolerance.cr2);
        differ("error code", n.error & tolerance.error, g.error & tolerance.error);
    } else if n.vector == GENERAL_PROTECTION {
        differ("error code", n.error, g.error);
    }
    compare_sse(&mut differ, n, g);
    if tolerance.x87 {
        compare_x87(&mut differ, n, g);
    }
    for (at, (&a, &b)) in native.1.iter().zip(guest.1).enumerate() {
        if a != b && tolerance.memory {
            differ(&format!("[{:#x}]", DATA_ADDRESS as usize + at), a.into(), b.into());
        }
    }
    text
}

fn quad(context: &Context, at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| context.fpu[at + i]))
}

fn compare_sse(differ: &mut impl FnMut(&str, u64, u64), n: &Context, g: &Context) {
    differ("mxcsr", n.mxcsr().into(), g.mxcsr().into());
    for i in 0..16 {
        differ(&format!("xmm{i} low"), quad(n, 160 + 16 * i), quad(g, 160 + 16 * i));
        differ(&format!("xmm{i} high"), quad(n, 168 + 16 * i), quad(g, 168 + 16 * i));
    }
}

fn compare_x87(differ: &mut impl FnMut(&str, u64, u64), n: &Context, g: &Context) {
    differ("fcw", n.fpu_word(0).into(), g.fpu_word(0).into());
    differ("fsw", n.fpu_word(2).into(), g.fpu_word(2).into());
    differ("ftw", n.fpu_word(4).into(), g.fpu_word(4).into());
    if *HOST_POINTERS_FIT {
        differ("fop", n.fpu_word(6).into(), g.fpu_word(6).into());
        // Processors differ in what they make of pointers that are not canonical.
        differ("fip", quad(n, 8) & USER_MASK, quad(g, 8) & USER_MASK);
        differ("fdp", quad(n, 16) & USER_MASK, quad(g, 16) & USER_MASK);
    }
    for i in 0..8 {
        differ(&format!("st{i}"), quad(n, 32 + 16 * i), quad(g, 32 + 16 * i));
        differ(&format!("st{i} exponent"), n.fpu_word(40 + 16 * i).into(), g.fpu_word(40 + 16 * i).into());
    }
}

/// Code and registers of a case, for people.
pub(crate) fn describe(case: &Case, data: &[u8]) -> String {
    let mut text = String::new();
    let mut formatter = IntelFormatter::new();
    for instruction in case.units.iter().flat_map(|unit| &unit.instructions) {
        let mut line = String::new();
        formatter.format(instruction, &mut line);
        let at = (instruction.ip() - case.input.rip) as usize;
        let bytes: String = case.code[at..at + instruction.len()].iter().map(|byte| format!("{byte:02x}")).collect();
        let _ = writeln!(text, "  {:#x}  {bytes:<30} {line}  ({:?})", instruction.ip(), instruction.code());
    }
    let input = &case.input;
    for (row, names) in REGISTERS.chunks(4).enumerate() {
        for (i, name) in names.iter().enumerate() {
            let _ = write!(text, "  {name:>3}={:016x}", input.gpr[4 * row + i]);
        }
        text.push('\n');
    }
    let _ = writeln!(
        text,
        "  rflags={:x} fcw={:04x} fsw={:04x} ftw={:02x} mxcsr={:04x}",
        input.rflags,
        input.fpu_word(0),
        input.fpu_word(2),
        input.fpu[4],
        input.mxcsr()
    );
    let hex = |bytes: &[u8]| bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect::<String>();
    for i in 0..8 {
        let _ = writeln!(
            text,
            "  st{i}={}  xmm{i}={}  xmm{}={}",
            hex(&input.fpu[32 + 16 * i..42 + 16 * i]),
            hex(&input.fpu[160 + 16 * i..176 + 16 * i]),
            i + 8,
            hex(&input.fpu[288 + 16 * i..304 + 16 * i])
        );
    }
    for instruction in case.units.iter().flat_map(|unit| &unit.instructions) {
        let address = instruction.virtual_address(0, 0, |register, _, _| {
            let full = register.full_register();
            Some(if register.is_segment_register() {
                if register == iced_x86::Register::GS { crate::context::GS_BASE } else { 0 }
            } else {
                input.gpr.get(full.number()).copied().unwrap_or(0)
            })
        });
        if let Some(at) = address.and_then(|a| a.checked_sub(DATA_ADDRESS)).filter(|&at| at < DATA_LEN as u64 - 16) {
            let _ = writeln!(text, "  [{:#x}]={}", DATA_ADDRESS + at, hex(&data[at as usize..at as usize + 16]));
        }
    }
    text
}
