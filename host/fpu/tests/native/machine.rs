//! Runs generated machine code with a given FPU state.
#![expect(unsafe_code, reason = "runs generated machine code")]

use std::arch::asm;

use cardcage_fpu::MXCSR_DEFAULT;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

/// What the generated code loads and stores, at the offsets that it knows.
#[derive(Clone, Debug, PartialEq)]
#[repr(C, align(16))]
pub(crate) struct Machine {
    pub(crate) fpu: [u8; 512],
    pub(crate) rax: u64,
    pub(crate) rcx: u64,
    pub(crate) rdx: u64,
    pub(crate) flags: u64,
    /// Where RDI points.
    pub(crate) operand: [u8; 128],
}

/// A page to put code on.
pub(crate) struct Page(*mut u8);

impl Page {
    fn new() -> Self {
        let all = ProtFlags::READ | ProtFlags::WRITE | ProtFlags::EXEC;
        // SAFETY: a new private mapping; nothing else refers to it. It lives as long as the test process.
        Self(unsafe { mmap_anonymous(std::ptr::null_mut(), 4096, all, MapFlags::PRIVATE) }.unwrap().cast())
    }

    /// Runs one instruction, and returns where it stood.
    pub(crate) fn run(&self, instruction: &[u8], machine: &mut Machine) -> u64 {
        let mut code = vec![0x53, 0x48, 0x89, 0xfb]; // push rbx; mov rbx, rdi
        code.extend([0x48, 0x0f, 0xae, 0x0b]); // fxrstor64 [rbx]
        code.extend([0x48, 0x8b, 0x83, 0, 2, 0, 0]); // mov rax, [rbx+512]
        code.extend([0x48, 0x8b, 0x8b, 8, 2, 0, 0]); // mov rcx, [rbx+520]
        code.extend([0x48, 0x8b, 0x93, 16, 2, 0, 0]); // mov rdx, [rbx+528]
        code.extend([0xff, 0xb3, 24, 2, 0, 0, 0x9d]); // push [rbx+536]; popfq
        code.extend([0x48, 0x8d, 0xbb, 32, 2, 0, 0]); // lea rdi, [rbx+544]
        let start = code.len();
        code.extend(instruction);
        code.extend([0x9c, 0x8f, 0x83, 24, 2, 0, 0]); // pushfq; pop [rbx+536]
        code.extend([0x48, 0x89, 0x83, 0, 2, 0, 0]); // mov [rbx+512], rax
        code.extend([0x48, 0x89, 0x8b, 8, 2, 0, 0]); // mov [rbx+520], rcx
        code.extend([0x48, 0x0f, 0xae, 0x03]); // fxsave64 [rbx]
        code.extend([0xdb, 0xe3, 0x5b, 0xc3]); // fninit; pop rbx; ret
        let mut host = MXCSR_DEFAULT;
        // SAFETY: the code fits the page, changes only `machine` and registers that the ABI lets it, and leaves the FPU as
        // the ABI wants it; MXCSR is put back.
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), self.0, code.len());
            asm!("stmxcsr [r12]", "call {code}", "ldmxcsr [r12]", code = in(reg) self.0, in("r12") &raw mut host,
                in("rdi") std::ptr::from_mut(machine), clobber_abi("C"));
        }
        self.0 as u64 + start as u64
    }
}

impl Page {
    /// One page per thread: tests run at the same time.
    pub(crate) fn new_once() -> &'static Self {
        thread_local!(static PAGE: &'static Page = Box::leak(Box::new(Page::new())));
        PAGE.with(|page| *page)
    }
}
