//! The native side: a child process runs each case on this processor and reports how it ended.
//!
//! The child maps code and data where the guest has them, loads a context and jumps to the code. Every case ends in an
//! exception, which arrives as a signal with all registers in its frame; the handler copies them out and returns to the
//! loop with fresh registers.
#![expect(unsafe_code, reason = "forks, maps memory at fixed addresses, and runs generated machine code")]

use std::arch::naked_asm;
use std::ptr::{addr_of, addr_of_mut};

use crate::context::{BATCH, CODE_ADDRESS, CODE_SLOT, CONTEXT_LEN, Context, DATA_ADDRESS, DATA_LEN, GS_BASE, Trouble};

const PAGE: usize = 4096;
const ALTERNATE_STACK: usize = 64 * 1024;
/// Seconds after which a child has lost its way. Cases have no backward branches; a batch takes milliseconds.
const CHILD_SECONDS: u32 = 10;

/// What parent and child share.
#[repr(C, align(4096))]
struct Shared {
    code: [u8; BATCH * CODE_SLOT],
    data: [u8; DATA_LEN],
    read_only: [u8; PAGE],
    input: [Context; BATCH],
    output: [Context; BATCH],
    output_data: [[u8; DATA_LEN]; BATCH],
    count: usize,
    /// The case that runs now.
    current: usize,
}

/// Cases on their way to the processor, and back.
pub(crate) struct Native {
    shared: *mut Shared,
}

impl Native {
    pub(crate) fn new() -> Self {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let shared = unsafe { libc::mmap(std::ptr::null_mut(), size_of::<Shared>(), prot, flags, -1, 0) };
        assert_ne!(shared, libc::MAP_FAILED, "no shared memory: {}", std::io::Error::last_os_error());
        Self { shared: shared.cast() }
    }

    /// Runs `inputs`, whose code starts at [`CODE_ADDRESS`] in slots. Afterwards [`Native::output`] has the results.
    /// If a case cannot be run at all, the error says which.
    pub(crate) fn run(
        &mut self,
        code: &[u8],
        data: &[u8],
        read_only: &[u8],
        inputs: &[Context],
    ) -> Result<(), Trouble> {
        // SAFETY: the mapping is ours and as large as `Shared`, and no child runs.
        let shared = unsafe { &mut *self.shared };
        shared.code[..code.len()].copy_from_slice(code);
        shared.data.copy_from_slice(data);
        shared.read_only.copy_from_slice(read_only);
        shared.input[..inputs.len()].copy_from_slice(inputs);
        shared.count = inputs.len();
        shared.current = usize::MAX;
        // SAFETY: the child calls only functions that are allowed after a fork of a program with threads.
        let child = unsafe { libc::fork() };
        assert!(child >= 0, "cannot fork: {}", std::io::Error::last_os_error());
        if child == 0 {
            // SAFETY: this is the child, which has nothing else to do.
            unsafe { run_child(self.shared) }
        }
        let mut status = 0;
        // SAFETY: waits for the child just made.
        while unsafe { libc::waitpid(child, &mut status, 0) } < 0 {}
        if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0 {
            return Ok(());
        }
        // SAFETY: as above; the child is gone.
        let current = unsafe { addr_of!((*self.shared).current).read_volatile() };
        let what = format!("the child that runs cases natively died with status {status:#x}");
        Err(Trouble { case: current, what })
    }

    pub(crate) fn output(&self, index: usize) -> (&Context, &[u8; DATA_LEN]) {
        // SAFETY: the mapping is ours, and no child runs.
        let shared = unsafe { &*self.shared };
        (&shared.output[index], &shared.output_data[index])
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length.
        unsafe { libc::munmap(self.shared.cast(), size_of::<Shared>()) };
    }
}

static mut SHARED: *mut Shared = std::ptr::null_mut();
static mut HOST_STACK: u64 = 0;
static mut TARGET: u64 = 0;

/// # Safety
/// Only in a forked child.
unsafe fn run_child(shared: *mut Shared) -> ! {
    // SAFETY: nothing else runs in this process; all pointers are to mappings made here or by `Native::new`.
    unsafe {
        libc::alarm(CHILD_SECONDS);
        SHARED = shared;
        map_at(CODE_ADDRESS, BATCH * CODE_SLOT);
        map_at(DATA_ADDRESS, DATA_LEN + PAGE);
        std::ptr::copy_nonoverlapping(addr_of!((*shared).code).cast(), CODE_ADDRESS as *mut u8, BATCH * CODE_SLOT);
        let read_only = (DATA_ADDRESS as usize + DATA_LEN) as *mut u8;
        std::ptr::copy_nonoverlapping(addr_of!((*shared).read_only).cast(), read_only, PAGE);
        check(libc::mprotect(CODE_ADDRESS as *mut _, BATCH * CODE_SLOT, libc::PROT_READ | libc::PROT_EXEC) == 0, 2);
        check(libc::mprotect(read_only.cast(), PAGE, libc::PROT_READ) == 0, 3);
        const ARCH_SET_GS: i32 = 0x1001;
        check(libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, GS_BASE) == 0, 4);
        install_handlers();
        for i in 0..(*shared).count {
            addr_of_mut!((*shared).current).write_volatile(i);
            std::ptr::copy_nonoverlapping(addr_of!((*shared).data).cast(), DATA_ADDRESS as *mut u8, DATA_LEN);
            TARGET = (*shared).input[i].rip;
            enter(addr_of!((*shared).input[i]));
            let to = addr_of_mut!((*shared).output_data[i]);
            std::ptr::copy_nonoverlapping(DATA_ADDRESS as *const u8, to.cast(), DATA_LEN);
        }
        libc::_exit(0)
    }
}

/// Ends the child unless `fine`.
///
/// # Safety
/// Only in a forked child.
unsafe fn check(fine: bool, status: i32) {
    if !fine {
        // SAFETY: ends the process.
        unsafe { libc::_exit(status) }
    }
}

/// # Safety
/// Only in a forked child.
unsafe fn map_at(address: u64, len: usize) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | libc::MAP_POPULATE;
    // SAFETY: maps where nothing is yet.
    let at = unsafe { libc::mmap(address as *mut _, len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    // SAFETY: passed on from the caller.
    unsafe { check(at as u64 == address, 1) };
}

/// # Safety
/// Only in a forked child.
unsafe fn install_handlers() {
    static mut STACK: [u8; ALTERNATE_STACK] = [0; ALTERNATE_STACK];
    // SAFETY: the stack is used by nothing else; the structures are plain data.
    unsafe {
        let stack = libc::stack_t { ss_sp: addr_of_mut!(STACK).cast(), ss_flags: 0, ss_size: ALTERNATE_STACK };
        check(libc::sigaltstack(&stack, std::ptr::null_mut()) == 0, 5);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP] {
            check(libc::sigaction(signal, &action, std::ptr::null_mut()) == 0, 6);
        }
    }
}

extern "C" fn on_signal(_signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    /// Where the kernel keeps the registers in the order of their encoding.
    const ORDER: [i32; 16] = [
        libc::REG_RAX,
        libc::REG_RCX,
        libc::REG_RDX,
        libc::REG_RBX,
        libc::REG_RSP,
        libc::REG_RBP,
        libc::REG_RSI,
        libc::REG_RDI,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
    ];
    // SAFETY: the kernel made the frame; `SHARED` is the child's, and `current` is the case that was interrupted.
    unsafe {
        let machine = &mut (*context).uc_mcontext;
        let index = addr_of!((*SHARED).current).read_volatile();
        let output = &mut *addr_of_mut!((*SHARED).output[index]);
        let get = |register: i32| machine.gregs[register as usize] as u64;
        output.gpr = ORDER.map(get);
        output.rip = get(libc::REG_RIP);
        output.rflags = get(libc::REG_EFL);
        output.vector = get(libc::REG_TRAPNO);
        output.error = get(libc::REG_ERR);
        output.cr2 = get(libc::REG_CR2);
        let fpu: *mut u8 = machine.fpregs.cast();
        std::ptr::copy_nonoverlapping(fpu, output.fpu.as_mut_ptr(), 512);
        // Control word, empty registers, MXCSR: as the ABI wants them.
        std::ptr::copy_nonoverlapping([0x7fu8, 3, 0, 0, 0, 0].as_ptr(), fpu, 6);
        std::ptr::copy_nonoverlapping([0x80u8, 0x1f, 0, 0].as_ptr(), fpu.add(24), 4);
        machine.gregs[libc::REG_RSP as usize] = HOST_STACK as i64;
        machine.gregs[libc::REG_RIP as usize] = leave as *const () as i64;
        machine.gregs[libc::REG_EFL as usize] = 0x202;
    }
}

/// Saves what the ABI wants kept, loads `context` and jumps to [`TARGET`].
#[unsafe(naked)]
unsafe extern "C" fn enter(context: *const Context) {
    naked_asm!(
        "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
        "mov [rip + {stack}], rsp",
        "fxrstor64 [rdi]",
        "push qword ptr [rdi + 648]",
        "popfq",
        "mov rax, [rdi + 512]", "mov rcx, [rdi + 520]", "mov rdx, [rdi + 528]", "mov rbx, [rdi + 536]",
        "mov rsp, [rdi + 544]", "mov rbp, [rdi + 552]", "mov rsi, [rdi + 560]",
        "mov r8, [rdi + 576]", "mov r9, [rdi + 584]", "mov r10, [rdi + 592]", "mov r11, [rdi + 600]",
        "mov r12, [rdi + 608]", "mov r13, [rdi + 616]", "mov r14, [rdi + 624]", "mov r15, [rdi + 632]",
        "mov rdi, [rdi + 568]",
        "jmp qword ptr [rip + {target}]",
        stack = sym HOST_STACK,
        target = sym TARGET,
    )
}

/// Returns from [`enter`], on its stack.
#[unsafe(naked)]
unsafe extern "C" fn leave() {
    naked_asm!("pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx", "ret")
}

const _: () = assert!(CONTEXT_LEN == size_of::<Context>());
