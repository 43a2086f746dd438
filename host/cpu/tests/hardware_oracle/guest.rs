//! The interpreter's side: a guest whose kernel, a page of assembly, takes the cases one by one.
//!
//! The kernel copies fresh data, loads a context, goes to user mode, takes the exception that ends the case, stores
//! context and data, and goes on with the next. After the last it writes to a port, and [`Bus`] stops the processor.
#![expect(unsafe_code, reason = "takes the guest's kernel as bytes from this program's code")]

use std::arch::naked_asm;
use std::sync::Arc;

use cardcage_accel::{
    ApicEvent, Bus, Descriptor, Exit, GeneralProtection, LocalApic, Segment, Vcpu, VcpuSignal, VcpuState,
};
use cardcage_clock::VirtualClock;
use cardcage_cpu::{CpuModel, SoftCpu};
use cardcage_memory::GuestRam;

use crate::context::{BATCH, CODE_ADDRESS, CODE_SLOT, CONTEXT_LEN, Context, DATA_ADDRESS, DATA_LEN, GS_BASE, Trouble};

const RAM_LEN: u64 = 0x80_0000;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const CODE_TABLE: u64 = 0x4000;
const DATA_TABLE: u64 = 0x5000;
const KERNEL_PD: u64 = 0xf000;
const KERNEL_PDPT: u64 = 0x1_0000;
const GDT: u64 = 0x6000;
const TSS: u64 = 0x6800;
const TSS_LIMIT: u32 = 0x67;
const IDT: u64 = 0x7000;
const KERNEL: u64 = 0x8000;
/// How many cases there are, then which is next.
const MAILBOX: u64 = 0xb000;
const STACK_TOP: u64 = 0xe000;
const CODE: u64 = 0x10_0000;
const DATA: u64 = 0x20_0000;
const FRESH_DATA: u64 = 0x21_0000;
const INPUT: u64 = 0x30_0000;
const OUTPUT: u64 = 0x40_0000;
const OUTPUT_DATA: u64 = 0x50_0000;

/// Where the kernel sees physical memory: in the upper half, so that user addresses are not mapped by accident.
const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;

const KERNEL_CODE: u16 = 0x08;
const KERNEL_DATA: u16 = 0x10;
const USER_DATA: u16 = 0x1b;
const USER_CODE: u16 = 0x23;
const TASK: u16 = 0x28;
const PORT: u16 = 0xf4;
/// Vectors that get an entry stub of [`STUB_LEN`] bytes each.
const VECTORS: u64 = 32;
const STUB_LEN: u64 = 16;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const LARGE: u64 = 0x80;
const NO_EXECUTE: u64 = 1 << 63;

/// A physical address as the kernel's, which an instruction has as a sign-extended 32-bit constant.
const fn seen_by_kernel(physical: u64) -> i32 {
    (KERNEL_BASE + physical) as i32
}

/// The guest's kernel: the entry stubs at its start, [`kernel_start`] behind them.
#[unsafe(naked)]
extern "C" fn kernel() {
    naked_asm!(
        "cardcage_oracle_vector = 0",
        ".rept 32",
        ".balign 16, 0x90",
        // #DF, #TS, #NP, #SS, #GP, #PF and #AC push an error code.
        ".if ((cardcage_oracle_vector >= 10) && (cardcage_oracle_vector <= 14)) || (cardcage_oracle_vector == 8) || (cardcage_oracle_vector == 17)",
        ".else",
        "push 0",
        ".endif",
        "push cardcage_oracle_vector",
        "jmp 2f",
        "cardcage_oracle_vector = cardcage_oracle_vector + 1",
        ".endr",
        ".balign 16, 0x90",
        // 512: begin.
        "jmp 3f",
        // A case has ended: its registers go to its output slot.
        "2:",
        "push rbx",
        "push rax",
        "mov rax, [{mailbox} + 8]",
        "imul rbx, rax, {context_len}",
        "add rbx, {output}",
        "fxsave64 [rbx]",
        "pop qword ptr [rbx + 512]",
        "mov [rbx + 520], rcx",
        "mov [rbx + 528], rdx",
        "pop qword ptr [rbx + 536]",
        "mov [rbx + 552], rbp",
        "mov [rbx + 560], rsi",
        "mov [rbx + 568], rdi",
        "mov [rbx + 576], r8",
        "mov [rbx + 584], r9",
        "mov [rbx + 592], r10",
        "mov [rbx + 600], r11",
        "mov [rbx + 608], r12",
        "mov [rbx + 616], r13",
        "mov [rbx + 624], r14",
        "mov [rbx + 632], r15",
        "pop qword ptr [rbx + 656]",
        "pop qword ptr [rbx + 664]",
        "pop qword ptr [rbx + 640]",
        "pop rcx",
        "pop qword ptr [rbx + 648]",
        "pop qword ptr [rbx + 544]",
        "mov rcx, cr2",
        "mov [rbx + 672], rcx",
        "mov rsi, {data}",
        "mov rdi, rax",
        "shl rdi, 13",
        "add rdi, {output_data}",
        "mov ecx, {data_quads}",
        "cld",
        "rep movsq",
        "inc qword ptr [{mailbox} + 8]",
        // The next case.
        "3:",
        "mov rax, [{mailbox} + 8]",
        "cmp rax, [{mailbox}]",
        "jae 4f",
        "mov rsi, {fresh_data}",
        "mov rdi, {data}",
        "mov ecx, {data_quads}",
        "cld",
        "rep movsq",
        "imul rdi, rax, {context_len}",
        "add rdi, {input}",
        "fxrstor64 [rdi]",
        "mov rsp, {stack_top}",
        "push {user_data}",
        "push qword ptr [rdi + 544]",
        "push qword ptr [rdi + 648]",
        "push {user_code}",
        "push qword ptr [rdi + 640]",
        "mov rax, [rdi + 512]",
        "mov rcx, [rdi + 520]",
        "mov rdx, [rdi + 528]",
        "mov rbx, [rdi + 536]",
        "mov rbp, [rdi + 552]",
        "mov rsi, [rdi + 560]",
        "mov r8, [rdi + 576]",
        "mov r9, [rdi + 584]",
        "mov r10, [rdi + 592]",
        "mov r11, [rdi + 600]",
        "mov r12, [rdi + 608]",
        "mov r13, [rdi + 616]",
        "mov r14, [rdi + 624]",
        "mov r15, [rdi + 632]",
        "mov rdi, [rdi + 568]",
        "iretq",
        "4:",
        "out {port}, al",
        // The host may have put more into the mailbox.
        "jmp 3b",
        mailbox = const seen_by_kernel(MAILBOX),
        context_len = const CONTEXT_LEN,
        input = const seen_by_kernel(INPUT),
        output = const seen_by_kernel(OUTPUT),
        output_data = const seen_by_kernel(OUTPUT_DATA),
        data = const seen_by_kernel(DATA),
        fresh_data = const seen_by_kernel(FRESH_DATA),
        data_quads = const DATA_LEN / 8,
        stack_top = const seen_by_kernel(STACK_TOP),
        user_data = const USER_DATA,
        user_code = const USER_CODE,
        port = const PORT,
    )
}

/// More than the kernel takes.
const KERNEL_LEN: usize = 2048;

/// The machine around the processor: one port, which stops it.
struct StopPort(Arc<VcpuSignal>);

impl Bus for StopPort {
    fn port_read(&self, _port: u16, _size: u8) -> u32 {
        u32::MAX
    }
    fn port_write(&self, _port: u16, _size: u8, _value: u32) {
        self.0.kick();
    }
    fn memory_read(&self, _addr: u64, _size: u8) -> u64 {
        u64::MAX
    }
    fn memory_write(&self, _addr: u64, _size: u8, _value: u64) {}
}

/// A local APIC that never has anything to say.
struct SilentApic;

impl LocalApic for SilentApic {
    fn pending(&self, _interrupts_enabled: bool) -> Option<ApicEvent> {
        None
    }
    fn taken(&self, _event: ApicEvent) {}
    fn acknowledge(&self) -> Option<u8> {
        None
    }
    fn cr8(&self) -> u8 {
        0
    }
    fn set_cr8(&self, _priority: u8) {}
    fn base(&self) -> u64 {
        0xfee0_0900
    }
    fn set_base(&self, _value: u64) -> Result<(), GeneralProtection> {
        Ok(())
    }
    fn mmio_read(&self, _offset: u32) -> u32 {
        u32::MAX
    }
    fn mmio_write(&self, _offset: u32, _value: u32) {}
    fn read_msr(&self, _msr: u32) -> Result<u64, GeneralProtection> {
        Err(GeneralProtection)
    }
    fn write_msr(&self, _msr: u32, _value: u64) -> Result<(), GeneralProtection> {
        Err(GeneralProtection)
    }
}

/// Cases on their way to the interpreter, and back.
pub(crate) struct Guest {
    ram: Arc<GuestRam>,
    vcpu: SoftCpu,
    cases: usize,
}

impl Guest {
    pub(crate) fn new() -> Self {
        let ram = Arc::new(GuestRam::new(&[(0, RAM_LEN)]).expect("8 MiB of memory"));
        let signal = Arc::new(VcpuSignal::new(None));
        let bus = Arc::new(StopPort(signal.clone()));
        let clock = Arc::new(VirtualClock::manual());
        let vcpu = SoftCpu::new(0, ram.clone(), bus, Arc::new(SilentApic), signal, clock, &CpuModel::default());
        let guest = Self { ram, vcpu, cases: 0 };
        guest.write_tables();
        // SAFETY: the kernel is assembled into this program's code, which does not end within these bytes of it.
        let kernel = unsafe { std::slice::from_raw_parts(kernel as *const u8, KERNEL_LEN) };
        guest.write(KERNEL, kernel);
        guest
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.ram.write(at, bytes).expect("all addresses are inside RAM");
    }

    fn write_words(&self, at: u64, words: &[u64]) {
        for (i, word) in words.iter().enumerate() {
            self.write(at + 8 * i as u64, &word.to_le_bytes());
        }
    }

    fn write_tables(&self) {
        let directory = PRESENT | WRITABLE | USER;
        self.write_words(PML4, &[PDPT | directory]);
        self.write_words(PML4 + 8 * 511, &[KERNEL_PDPT | PRESENT | WRITABLE]);
        self.write_words(PDPT, &[PD | directory]);
        self.write_words(KERNEL_PDPT + 8 * 510, &[KERNEL_PD | PRESENT | WRITABLE]);
        for i in 0..RAM_LEN >> 21 {
            self.write_words(KERNEL_PD + 8 * i, &[i << 21 | PRESENT | WRITABLE | LARGE]);
        }
        self.write_words(PD + 8 * (CODE_ADDRESS >> 21), &[CODE_TABLE | directory]);
        self.write_words(PD + 8 * (DATA_ADDRESS >> 21), &[DATA_TABLE | directory]);
        for page in 0..(BATCH * CODE_SLOT / 4096) as u64 {
            self.write_words(CODE_TABLE + 8 * page, &[(CODE + page * 4096) | PRESENT | USER]);
        }
        let data_pages = (DATA_LEN / 4096) as u64;
        for page in 0..=data_pages {
            let writable = if page < data_pages { WRITABLE } else { 0 };
            self.write_words(DATA_TABLE + 8 * page, &[(DATA + page * 4096) | PRESENT | USER | NO_EXECUTE | writable]);
        }
        // The task register is loaded with the initial state, not from here.
        let descriptors = [0, 0x20_9b00_0000_0000, 0xcf_9300_0000_ffff, 0xcf_f300_0000_ffff, 0x20_fb00_0000_0000];
        self.write_words(GDT, &descriptors);
        self.write(TSS + 4, &(KERNEL_BASE + STACK_TOP).to_le_bytes());
        // The I/O bitmap is behind the limit: user mode has no ports.
        self.write(TSS + 102, &(TSS_LIMIT as u16 + 1).to_le_bytes());
        for vector in 0..VECTORS {
            let entry = KERNEL_BASE + KERNEL + STUB_LEN * vector;
            // INT3 and INTO may be raised by software.
            let privilege: u64 = if matches!(vector, 3 | 4) { 3 } else { 0 };
            let low = entry & 0xffff | u64::from(KERNEL_CODE) << 16 | (0x8e | privilege << 5) << 40;
            self.write_words(IDT + 16 * vector, &[low | (entry >> 16 & 0xffff) << 48, entry >> 32]);
        }
    }

    /// The processor at the kernel's start, in 64-bit mode with paging on.
    fn initial_state(&self) -> VcpuState {
        let user_gs = Segment { selector: USER_DATA, base: GS_BASE, limit: u32::MAX, attributes: 0xc0f3 };
        let data = Segment { selector: KERNEL_DATA, base: 0, limit: u32::MAX, attributes: 0xc093 };
        let code = Segment { selector: KERNEL_CODE, base: 0, limit: u32::MAX, attributes: 0xa09b };
        let user_data = Segment { selector: USER_DATA, base: 0, limit: u32::MAX, attributes: 0xc0f3 };
        let (cr0_pg_am_wp_ne_et_mp_pe, cr4_osxmmexcpt_osfxsr_pae) = (0x8005_0033, 0x620);
        let efer_nxe_lma_lme_sce = 0xd01;
        VcpuState {
            rip: KERNEL_BASE + KERNEL + STUB_LEN * VECTORS,
            rflags: 2,
            segments: [user_data, code, data, user_data, user_data, user_gs],
            tr: Segment { selector: TASK, base: KERNEL_BASE + TSS, limit: TSS_LIMIT, attributes: 0x8b },
            gdtr: Descriptor { base: KERNEL_BASE + GDT, limit: 0x37 },
            idtr: Descriptor { base: KERNEL_BASE + IDT, limit: (16 * VECTORS - 1) as u16 },
            cr0: cr0_pg_am_wp_ne_et_mp_pe,
            cr3: PML4,
            cr4: cr4_osxmmexcpt_osfxsr_pae,
            efer: efer_nxe_lma_lme_sce,
            ..VcpuState::default()
        }
    }

    /// Runs `inputs`, as [`Native::run`](crate::native::Native::run) does.
    pub(crate) fn run(
        &mut self,
        code: &[u8],
        data: &[u8],
        read_only: &[u8],
        inputs: &[Context],
    ) -> Result<(), Trouble> {
        self.write(CODE, code);
        self.write(FRESH_DATA, data);
        self.write(DATA + DATA_LEN as u64, read_only);
        for (i, input) in inputs.iter().enumerate() {
            self.write(INPUT + (i * CONTEXT_LEN) as u64, &input.to_bytes());
            self.write(OUTPUT + (i * CONTEXT_LEN) as u64, &[0; CONTEXT_LEN]);
        }
        self.cases = inputs.len();
        if let Err(error) = self.vcpu.set_state(&self.initial_state()) {
            return Err(Trouble { case: 0, what: error.to_string() });
        }
        self.run_again()
    }

    /// Runs the same cases once more, by code that the interpreter already knows.
    pub(crate) fn run_again(&mut self) -> Result<(), Trouble> {
        self.write_words(MAILBOX, &[self.cases as u64, 0]);
        let exit = self.vcpu.run();
        if matches!(exit, Ok(Exit::Kicked)) {
            return Ok(());
        }
        Err(Trouble { case: self.current() as usize, what: format!("the interpreter stopped with {exit:?}") })
    }

    /// The case that runs, or ran last.
    fn current(&self) -> u64 {
        let mut word = [0; 8];
        self.ram.read(MAILBOX + 8, &mut word).expect("the mailbox is inside RAM");
        u64::from_le_bytes(word)
    }

    pub(crate) fn output(&self, index: usize) -> (Context, Vec<u8>) {
        let mut context = [0; CONTEXT_LEN];
        let mut data = vec![0; DATA_LEN];
        self.ram.read(OUTPUT + (index * CONTEXT_LEN) as u64, &mut context).expect("inside RAM");
        self.ram.read(OUTPUT_DATA + (index * DATA_LEN) as u64, &mut data).expect("inside RAM");
        (Context::from_bytes(&context), data)
    }
}
