//! All architectural state of a vCPU, whatever the accelerator.

/// A segment register with its hidden part (SDM volume 3, section 3.4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Segment {
    /// Visible selector.
    pub selector: u16,
    /// Cached base address.
    pub base: u64,
    /// Cached limit in bytes, granularity already applied.
    pub limit: u32,
    /// Cached attributes as in bits 8 to 23 of a descriptor's high word, shifted down by 8: type, S, DPL, P in bits
    /// 0 to 7, AVL, L, D/B, G in bits 12 to 15. Bit 16 marks a segment that is unusable.
    pub attributes: u32,
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Descriptor {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// Whether a vCPU runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MpState {
    /// Executes instructions.
    #[default]
    Running,
    /// In HLT.
    Halted,
    /// Waits for INIT and a start-up IPI (an application processor before it is started).
    WaitForStartup,
}

/// Events that were begun but not yet delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PendingEvents {
    /// Blocking by STI or MOV SS for one instruction.
    pub interrupt_shadow: bool,
    /// NMIs are blocked until IRET.
    pub nmi_blocked: bool,
    /// An NMI waits.
    pub nmi_pending: bool,
}

/// Everything that a vCPU needs to go on elsewhere.
#[derive(Debug, Clone, PartialEq)]
pub struct VcpuState {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15: in the order of their encoding.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS: in the order of their encoding.
    pub segments: [Segment; 6],
    /// Task register.
    pub tr: Segment,
    /// Local descriptor table register.
    pub ldtr: Segment,
    /// Global descriptor table register.
    pub gdtr: Descriptor,
    /// Interrupt descriptor table register.
    pub idtr: Descriptor,
    /// Control registers.
    pub cr0: u64,
    /// Page-fault linear address.
    pub cr2: u64,
    /// Page-table root.
    pub cr3: u64,
    /// Architecture extensions.
    pub cr4: u64,
    /// Task priority, 0 to 15.
    pub cr8: u64,
    /// Extended feature enables.
    pub efer: u64,
    /// DR0 to DR3, DR6, DR7.
    pub dr: [u64; 6],
    /// The 512 bytes that FXSAVE64 stores (SDM volume 1, section 10.5.1).
    pub fxsave: [u8; 512],
    /// XCR0; 1 on processors without XSAVE.
    pub xcr0: u64,
    /// What XSAVE stores after those 512 bytes, in standard format: the header and the extended components. Empty if
    /// all of them are in their initial state (SDM volume 1, section 13.4).
    pub xsave: Vec<u8>,
    /// Model-specific registers by number, ascending; those that have a field of their own are left out.
    pub msrs: Vec<(u32, u64)>,
    /// IA32_APIC_BASE.
    pub apic_base: u64,
    /// The local APIC's registers as 4-byte words at 16-byte steps, in the layout of the xAPIC page.
    pub apic: Vec<u8>,
    /// Whether it runs.
    pub mp_state: MpState,
    /// Events in flight.
    pub events: PendingEvents,
}

impl Default for VcpuState {
    /// The state after power-on (SDM volume 3, table 10-1), on the bootstrap processor.
    fn default() -> Self {
        let data = Segment { limit: 0xffff, attributes: 0x93, ..Segment::default() };
        let code = Segment { selector: 0xf000, base: 0xffff_0000, limit: 0xffff, attributes: 0x9b };
        let mut fxsave = [0; 512];
        fxsave[..2].copy_from_slice(&0x40u16.to_le_bytes());
        fxsave[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        fxsave[28..32].copy_from_slice(&0xffffu32.to_le_bytes());
        let mut gpr = [0; 16];
        gpr[2] = 0x600;
        Self {
            gpr,
            rip: 0xfff0,
            rflags: 2,
            segments: [data, code, data, data, data, data],
            tr: Segment { limit: 0xffff, attributes: 0x8b, ..Segment::default() },
            ldtr: Segment { limit: 0xffff, attributes: 0x82, ..Segment::default() },
            gdtr: Descriptor { base: 0, limit: 0xffff },
            idtr: Descriptor { base: 0, limit: 0xffff },
            cr0: 0x6000_0010,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            efer: 0,
            dr: [0, 0, 0, 0, 0xffff_0ff0, 0x400],
            fxsave,
            xcr0: 1,
            xsave: Vec::new(),
            msrs: Vec::new(),
            apic_base: 0xfee0_0900,
            apic: Vec::new(),
            mp_state: MpState::Running,
            events: PendingEvents::default(),
        }
    }
}
