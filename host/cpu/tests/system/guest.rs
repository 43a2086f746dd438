//! A machine for the tests: RAM with page tables, GDT, IDT and TSS, a bus that records, a scripted local APIC.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use cardcage_accel::{
    ApicEvent, Bus, Descriptor, Exit, GeneralProtection, LocalApic, Segment, Vcpu, VcpuError, VcpuSignal, VcpuState,
};
use cardcage_clock::VirtualClock;
use cardcage_cpu::{CpuModel, SoftCpu};
use cardcage_memory::GuestRam;
use iced_x86::code_asm::CodeAssembler;

pub(crate) const PML4: u64 = 0x1000;
pub(crate) const GDT: u64 = 0x5000;
pub(crate) const IDT: u64 = 0x6000;
pub(crate) const TSS: u64 = 0x7000;
/// Where handlers' stacks begin, growing down.
pub(crate) const KERNEL_STACK: u64 = 0x2_0000;
pub(crate) const IST1: u64 = 0x2_4000;
pub(crate) const USER_STACK: u64 = 0x2_8000;
pub(crate) const CODE: u64 = 0x4_0000;
/// Handlers of exceptions: one page each would be too much; this is the first.
pub(crate) const HANDLER: u64 = 0x8_0000;
pub(crate) const DATA: u64 = 0x10_0000;
/// A page that is present but not for user mode.
pub(crate) const KERNEL_PAGE: u64 = 0x18_0000;
/// A page that is read-only.
pub(crate) const READ_ONLY: u64 = 0x18_1000;
/// A page that is not present.
pub(crate) const MISSING: u64 = 0x18_2000;
/// A page that cannot be executed.
pub(crate) const NO_EXECUTE: u64 = 0x18_3000;
/// A second name of the page at `CODE`.
pub(crate) const ALIAS: u64 = 0x18_4000;
const RAM: u64 = 0x20_0000;

pub(crate) const KERNEL_CS: u16 = 0x08;
pub(crate) const KERNEL_SS: u16 = 0x10;
pub(crate) const USER_CS32: u16 = 0x1b;
pub(crate) const USER_SS: u16 = 0x23;
pub(crate) const USER_CS: u16 = 0x2b;

/// Records port writes; port 0xf4 kicks.
pub(crate) struct Recorder {
    pub(crate) writes: Mutex<Vec<(u16, u32)>>,
    signal: Arc<VcpuSignal>,
    ram: Arc<GuestRam>,
    /// A byte that port 0xd0 makes a device write, as address << 8 | value.
    pub(crate) device_write: AtomicU64,
}

impl Bus for Recorder {
    fn port_read(&self, port: u16, _size: u8) -> u32 {
        u32::from(port)
    }
    fn port_write(&self, port: u16, _size: u8, value: u32) {
        self.writes.lock().unwrap().push((port, value));
        match port {
            0xf4 => self.signal.kick(),
            0xd0 => {
                let w = self.device_write.load(Ordering::SeqCst);
                self.ram.write(w >> 8, &[w as u8]).unwrap();
            }
            _ => {}
        }
    }
    fn memory_read(&self, addr: u64, _size: u8) -> u64 {
        addr
    }
    fn memory_write(&self, _addr: u64, _size: u8, _value: u64) {}
}

/// Has one vector to deliver, when told.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) vector: Mutex<Option<u8>>,
    pub(crate) nmi: Mutex<bool>,
}

impl LocalApic for Script {
    fn pending(&self, enabled: bool) -> Option<ApicEvent> {
        if *self.nmi.lock().unwrap() {
            return Some(ApicEvent::Nmi);
        }
        (enabled && self.vector.lock().unwrap().is_some()).then_some(ApicEvent::Interrupt)
    }
    fn taken(&self, event: ApicEvent) {
        if event == ApicEvent::Nmi {
            *self.nmi.lock().unwrap() = false;
        }
    }
    fn acknowledge(&self) -> Option<u8> {
        self.vector.lock().unwrap().take()
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
    fn mmio_read(&self, offset: u32) -> u32 {
        offset
    }
    fn mmio_write(&self, _offset: u32, _value: u32) {}
    fn read_msr(&self, _msr: u32) -> Result<u64, GeneralProtection> {
        Ok(0)
    }
    fn write_msr(&self, _msr: u32, _value: u64) -> Result<(), GeneralProtection> {
        Ok(())
    }
}

pub(crate) struct Guest {
    pub(crate) cpu: SoftCpu,
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) bus: Arc<Recorder>,
    pub(crate) apic: Arc<Script>,
    pub(crate) clock: Arc<VirtualClock>,
}

/// Assembles 64-bit code for `at`.
pub(crate) fn assemble(at: u64, write: impl FnOnce(&mut CodeAssembler)) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    write(&mut a);
    a.assemble(at).unwrap()
}

fn gate(handler: u64, ist: u64, dpl: u64) -> [u64; 2] {
    let low = (handler & 0xffff)
        | u64::from(KERNEL_CS) << 16
        | ist << 32
        | (0x8e | dpl << 5) << 40
        | (handler >> 16 & 0xffff) << 48;
    [low, handler >> 32]
}

impl Guest {
    /// In 64-bit mode at CPL 0 at `CODE`, with every exception vector leading to `HANDLER + 16 * vector`, where
    /// `mov al, vector; out 0xf4, al` stands until a test puts something else there.
    pub(crate) fn new() -> Guest {
        let ram = Arc::new(GuestRam::new(&[(0, RAM)]).unwrap());
        let signal = Arc::new(VcpuSignal::new(None));
        let bus = Arc::new(Recorder {
            writes: Mutex::default(),
            signal: signal.clone(),
            ram: ram.clone(),
            device_write: AtomicU64::new(0),
        });
        let apic = Arc::new(Script::default());
        let clock = Arc::new(VirtualClock::manual());
        let mut cpu =
            SoftCpu::new(0, ram.clone(), bus.clone(), apic.clone(), signal, clock.clone(), &CpuModel::default());
        let put = |at: u64, v: u64| ram.write(at, &v.to_le_bytes()).unwrap();
        put(PML4, 0x2007);
        put(0x2000, 0x3007);
        put(0x3000, 0x4007);
        for page in 0..512 {
            put(0x4000 + 8 * page, page << 12 | 7);
        }
        put(0x4000 + 8 * (KERNEL_PAGE >> 12), KERNEL_PAGE | 3);
        put(0x4000 + 8 * (READ_ONLY >> 12), READ_ONLY | 5);
        put(0x4000 + 8 * (MISSING >> 12), 0);
        put(0x4000 + 8 * (NO_EXECUTE >> 12), NO_EXECUTE | 7 | 1 << 63);
        put(0x4000 + 8 * (ALIAS >> 12), CODE | 7);
        let descriptors = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_fb00_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            0x0000_8b00_7000_0067,
            0,
        ];
        for (n, d) in descriptors.into_iter().enumerate() {
            put(GDT + 8 * n as u64, d);
        }
        for vector in 0..256 {
            let dpl = if vector == 3 || vector >= 0x80 { 3 } else { 0 };
            let [low, high] = gate(HANDLER + 16 * vector, u64::from(vector == 8), dpl);
            put(IDT + 16 * vector, low);
            put(IDT + 16 * vector + 8, high);
            ram.write(HANDLER + 16 * vector, &[0xb0, vector as u8, 0xe6, 0xf4, 0xf4]).unwrap();
        }
        put(TSS + 4, KERNEL_STACK);
        put(TSS + 36, IST1);
        // No I/O permission bitmap: it would begin beyond the limit.
        ram.write(TSS + 102, &0x68u16.to_le_bytes()).unwrap();
        let segment = |selector: u16, attributes: u32| Segment { selector, base: 0, limit: u32::MAX, attributes };
        let data = segment(KERNEL_SS, 0xc093);
        let state = VcpuState {
            rip: CODE,
            segments: [data, segment(KERNEL_CS, 0xa09b), data, data, data, data],
            tr: Segment { selector: 0x30, base: TSS, limit: 0x67, attributes: 0x8b },
            gdtr: Descriptor { base: GDT, limit: 0x3f },
            idtr: Descriptor { base: IDT, limit: 0xfff },
            cr0: 0x8001_0033,
            cr3: PML4,
            cr4: 0x6a8,
            efer: 0xd01,
            gpr: {
                let mut g = [0; 16];
                g[4] = KERNEL_STACK - 0x1000;
                g
            },
            ..VcpuState::default()
        };
        cpu.set_state(&state).unwrap();
        Guest { cpu, ram, bus, apic, clock }
    }

    /// Puts code at an address.
    pub(crate) fn code(&mut self, at: u64, write: impl FnOnce(&mut CodeAssembler)) -> u64 {
        let bytes = assemble(at, write);
        self.ram.write(at, &bytes).unwrap();
        at + bytes.len() as u64
    }

    /// Changes the state.
    pub(crate) fn with(&mut self, change: impl FnOnce(&mut VcpuState)) {
        let mut state = self.cpu.state().unwrap();
        change(&mut state);
        self.cpu.set_state(&state).unwrap();
    }

    /// Goes to user mode.
    pub(crate) fn user(&mut self) {
        self.with(|s| {
            let data = Segment { selector: USER_SS, base: 0, limit: u32::MAX, attributes: 0xc0f3 };
            s.segments = [data; 6];
            s.segments[1] = Segment { selector: USER_CS, attributes: 0xa0fb, ..data };
            s.gpr[4] = USER_STACK;
        });
    }

    pub(crate) fn try_run(&mut self) -> Result<Exit, VcpuError> {
        self.cpu.run()
    }

    /// Runs until port 0xf4 is written; gives the value and the state.
    pub(crate) fn run(&mut self) -> (u32, VcpuState) {
        assert_eq!(self.try_run().unwrap(), Exit::Kicked);
        let value = self.bus.writes.lock().unwrap().last().copied().expect("a port was written");
        assert_eq!(value.0, 0xf4);
        (value.1 & 0xff, self.cpu.state().unwrap())
    }

    pub(crate) fn word(&self, at: u64) -> u64 {
        let mut b = [0; 8];
        self.ram.read(at, &mut b).unwrap();
        u64::from_le_bytes(b)
    }
}
