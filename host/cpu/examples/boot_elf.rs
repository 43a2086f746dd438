//! Boots a PVH kernel on the software CPU with next to no machine around it: `boot_elf KERNEL [INITRD] [-- ARGUMENTS]`.
//!
//! There are a serial port on standard output, the interrupt controllers and the interval timer, and two ways out:
//! port 0xf4 (as QEMU's isa-debug-exit) and the keyboard controller's reset command. For bringing up the CPU and for
//! measuring it without a disk, a network or a firmware.
#![expect(clippy::print_stdout, reason = "the guest's console")]

use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cardcage_accel::{Bus, Exit, InterruptController, Segment, Vcpu, VcpuSignal, VcpuState};
use cardcage_clock::VirtualClock;
use cardcage_cpu::{CpuModel, SoftCpu};
use cardcage_irqchip::Irqchip;
use cardcage_memory::{AddressSpace, GuestRam};

const RAM: u64 = 512 << 20;
const START_INFO: u64 = 0x6000;
const MODULES: u64 = 0x6100;
const MEMORY_MAP: u64 = 0x6200;
const COMMAND_LINE: u64 = 0x7000;
const SERIAL: u16 = 0x3f8;

/// A transmitter that is always ready.
struct Machine {
    ports: AddressSpace,
    memory: AddressSpace,
    irqchip: Arc<Irqchip>,
    signal: Arc<VcpuSignal>,
    uart: Mutex<[u8; 8]>,
    exit: AtomicU32,
}

impl Machine {
    fn uart_level(&self, registers: &[u8; 8]) {
        // The transmitter is always empty: its interrupt waits whenever it is enabled.
        self.irqchip.set_gsi(4, registers[1] & 2 != 0 && registers[4] & 8 != 0);
    }
}

impl Bus for Machine {
    fn port_read(&self, port: u16, size: u8) -> u32 {
        if (SERIAL..SERIAL + 8).contains(&port) {
            let registers = self.uart.lock().unwrap();
            let divisor = registers[3] & 0x80 != 0;
            return match port - SERIAL {
                0 if !divisor => 0,
                2 => {
                    if registers[1] & 2 != 0 {
                        2
                    } else {
                        1
                    }
                }
                5 => 0x60,
                6 => 0xb0,
                n => u32::from(registers[usize::from(n)]),
            };
        }
        // The keyboard controller is always ready for its reset command.
        if port == 0x64 { 0 } else { self.ports.read(port.into(), size) as u32 }
    }

    fn port_write(&self, port: u16, size: u8, value: u32) {
        match port {
            SERIAL if self.uart.lock().unwrap()[3] & 0x80 == 0 => {
                let mut out = std::io::stdout().lock();
                let _ = out.write_all(&[value as u8]);
                let _ = out.flush();
                let registers = self.uart.lock().unwrap();
                // An edge for every byte that has gone out.
                self.irqchip.set_gsi(4, false);
                self.uart_level(&registers);
            }
            _ if (SERIAL..SERIAL + 8).contains(&port) => {
                let mut registers = self.uart.lock().unwrap();
                if !(port == SERIAL + 1 && registers[3] & 0x80 != 0) {
                    registers[usize::from(port - SERIAL)] = value as u8;
                }
                self.uart_level(&registers);
            }
            0xf4 => {
                self.exit.store(value << 1 | 1, Ordering::SeqCst);
                self.signal.kick();
            }
            0x64 if value == 0xfe => {
                self.exit.store(1, Ordering::SeqCst);
                self.signal.kick();
            }
            _ => self.ports.write(port.into(), size, value.into()),
        }
    }

    fn memory_read(&self, addr: u64, size: u8) -> u64 {
        self.memory.read(addr, size)
    }

    fn memory_write(&self, addr: u64, size: u8, value: u64) {
        self.memory.write(addr, size, value);
    }
}

fn word(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().rev().fold(0, |v, b| v << 8 | u64::from(*b))
}

/// Loads the segments of an ELF file; gives the entry point of its PVH note.
fn load(ram: &GuestRam, elf: &[u8]) -> u64 {
    let (headers, len, count) = (word(elf, 32, 8) as usize, word(elf, 54, 2) as usize, word(elf, 56, 2) as usize);
    let mut entry = None;
    for n in 0..count {
        let h = &elf[headers + n * len..];
        let (offset, phys, size) = (word(h, 8, 8) as usize, word(h, 24, 8), word(h, 32, 8) as usize);
        match word(h, 0, 4) {
            1 => ram.write(phys, &elf[offset..offset + size]).expect("the kernel fits into RAM"),
            4 => {
                let mut notes = &elf[offset..offset + size];
                while notes.len() >= 12 {
                    let (name, data) = (word(notes, 0, 4) as usize, word(notes, 4, 4) as usize);
                    let at = 12 + name.next_multiple_of(4);
                    if word(notes, 8, 4) == 18 {
                        entry = Some(word(notes, at, 4));
                    }
                    notes = notes.get(at + data.next_multiple_of(4)..).unwrap_or_default();
                }
            }
            _ => {}
        }
    }
    entry.expect("the file has a PVH entry note")
}

/// The boot information of PVH (xen/include/public/arch-x86/hvm/start_info.h).
fn start_info(ram: &GuestRam, initrd: Option<&[u8]>, command_line: &str) {
    let put = |at: u64, words: &[u64]| {
        for (n, w) in words.iter().enumerate() {
            ram.write(at + 8 * n as u64, &w.to_le_bytes()).expect("low memory is RAM");
        }
    };
    ram.write(COMMAND_LINE, command_line.as_bytes()).expect("low memory is RAM");
    let mut modules = 0;
    if let Some(initrd) = initrd {
        let at = (RAM - initrd.len() as u64) & !0xfff;
        ram.write(at, initrd).expect("the initrd fits into RAM");
        put(MODULES, &[at, initrd.len() as u64, 0, 0]);
        modules = 1;
    }
    put(MEMORY_MAP, &[0, 0x9_fc00, 1, 0x10_0000, RAM - 0x10_0000, 1]);
    put(START_INFO, &[1 << 32 | 0x336e_c578, modules << 32, MODULES, COMMAND_LINE, 0, MEMORY_MAP, 2, 0]);
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let files: Vec<String> = arguments.by_ref().take_while(|a| a != "--").collect();
    let command_line = arguments.collect::<Vec<_>>().join(" ");
    let elf = std::fs::read(&files[0]).expect("the kernel can be read");
    let initrd = files.get(1).map(|f| std::fs::read(f).expect("the initrd can be read"));

    let ram = Arc::new(GuestRam::new(&[(0, RAM)]).expect("there is memory"));
    let entry = load(&ram, &elf);
    start_info(&ram, initrd.as_deref(), &command_line);

    let clock = VirtualClock::host();
    clock.resume();
    let irqchip = Irqchip::new(&clock, &[0]);
    let signal = Arc::new(VcpuSignal::new(None));
    let machine = Arc::new(Machine {
        ports: AddressSpace::new(),
        memory: AddressSpace::new(),
        irqchip: irqchip.clone(),
        signal: signal.clone(),
        uart: Mutex::default(),
        exit: AtomicU32::new(0),
    });
    irqchip.map(&machine.ports, &machine.memory).expect("nothing else is there");
    let lapic = irqchip.lapic(0).expect("the first processor").clone();
    lapic.connect(signal.clone());
    drive(clock.clone());

    let model = CpuModel::default();
    let mut cpu = SoftCpu::new(0, ram, machine.clone(), lapic, signal, Arc::new(clock), &model);
    let data = Segment { selector: 0x10, base: 0, limit: u32::MAX, attributes: 0xc093 };
    let code = Segment { selector: 0x8, attributes: 0xc09b, ..data };
    let mut state =
        VcpuState { rip: entry, cr0: 0x11, segments: [data, code, data, data, data, data], ..Default::default() };
    state.gpr = [0; 16];
    state.gpr[3] = START_INFO;
    cpu.set_state(&state).expect("the state is one that PVH asks for");
    let begun = std::time::Instant::now();
    let exit = loop {
        match cpu.run() {
            Ok(Exit::Kicked) => {
                let code = machine.exit.load(Ordering::SeqCst);
                if code != 0 {
                    break format!("exit code {code}");
                }
            }
            Ok(other) => break format!("{other:?}"),
            Err(e) => break e.to_string(),
        }
    };
    let state = cpu.state().expect("the state can be read");
    let seconds = begun.elapsed().as_secs_f64();
    let million = cpu.instructions() as f64 / 1e6;
    println!(
        "\n{exit} at {:#x}; {million:.1} M instructions, {seconds:.2} s, {:.0} MIPS",
        state.rip,
        million / seconds
    );
}

/// A thread that runs the clock's timers.
fn drive(clock: VirtualClock) {
    let pair = Arc::new((Mutex::new(()), std::sync::Condvar::new()));
    let waker = pair.clone();
    let listener = clock.on_change(move || waker.1.notify_one());
    std::thread::spawn(move || {
        let _listener = listener;
        loop {
            clock.run_expired();
            let wait = clock.host_wait().unwrap_or(Duration::from_millis(10)).min(Duration::from_millis(10));
            if !wait.is_zero() {
                let guard = pair.0.lock().unwrap();
                let _ = pair.1.wait_timeout(guard, wait);
            }
        }
    });
}
