//! Guests of a few instructions. Where /dev/kvm does not open each test says so and passes.
#![expect(clippy::print_stdout, reason = "why a test is skipped is for the log")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use cardcage_accel::{Bus, Exit, MpState, Segment, Vcpu, VcpuError, VcpuSignal, VcpuState};
use cardcage_memory::GuestRam;

use super::*;

const CODE: u64 = 0x8000;
const DATA: u64 = 0x9000;
const MMIO: u64 = 0x4000_0000;
/// The guest writes here when it is done.
const EXIT_PORT: u16 = 0xf4;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Access {
    Out(u16, u8, u32),
    In(u16, u8),
    Store(u64, u8, u64),
    Load(u64, u8),
}
use Access::{In, Load, Out, Store};

#[derive(Default)]
struct Recorder {
    log: Mutex<Vec<Access>>,
    signal: OnceLock<Arc<VcpuSignal>>,
    reads: AtomicU64,
}

impl Recorder {
    fn note(&self, access: Access) -> u64 {
        self.log.lock().unwrap().push(access);
        0x1122_3344_5566_7788 + self.reads.fetch_add(1, Ordering::SeqCst)
    }

    fn kick(&self) {
        self.signal.get().expect("set before the guest runs").kick();
    }
}

impl Bus for Recorder {
    fn port_read(&self, port: u16, size: u8) -> u32 {
        self.note(In(port, size)) as u32
    }
    fn port_write(&self, port: u16, size: u8, value: u32) {
        if port == EXIT_PORT {
            return self.kick();
        }
        self.note(Out(port, size, value));
    }
    fn memory_read(&self, addr: u64, size: u8) -> u64 {
        self.note(Load(addr, size))
    }
    fn memory_write(&self, addr: u64, size: u8, value: u64) {
        self.note(Store(addr, size, value));
    }
}

struct Guest {
    accelerator: KvmAccelerator,
    vcpu: KvmVcpu,
    ram: Arc<GuestRam>,
    bus: Arc<Recorder>,
}

/// A 64-bit guest with 2 MiB of RAM and the gigabytes 0 and 1 mapped; `None` where KVM cannot be used.
fn guest(code: &[u8]) -> Option<Guest> {
    if let Err(why) = check() {
        println!("skipped: {why}");
        return None;
    }
    let ram = Arc::new(GuestRam::new(&[(0, 2 << 20)]).unwrap());
    let pages = [(0x1000, 0x2003u64), (0x2000, 0x3003), (0x2008, 0x4003), (0x3000, 0x83), (0x4000, MMIO | 0x83)];
    pages.iter().for_each(|&(addr, entry)| ram.write(addr, &entry.to_le_bytes()).unwrap());
    ram.write(CODE, code).unwrap();
    let bus = Arc::new(Recorder::default());
    let accelerator = KvmAccelerator::new(ram.clone(), bus.clone(), &CpuModel::default(), 1).unwrap();
    let mut vcpu = accelerator.create_vcpu(0).unwrap();
    let _ = bus.signal.set(vcpu.signal());
    vcpu.set_state(&long_mode()).unwrap();
    Some(Guest { accelerator, vcpu, ram, bus })
}

fn long_mode() -> VcpuState {
    let data = Segment { selector: 16, base: 0, limit: u32::MAX, attributes: 0xc093 };
    let code = Segment { selector: 8, attributes: 0xa09b, ..data };
    let mut gpr = [0; 16];
    (gpr[3], gpr[4]) = (DATA, 0x8000);
    VcpuState {
        gpr,
        rip: CODE,
        segments: [data, code, data, data, data, data],
        cr0: 0x8000_0013,
        cr3: 0x1000,
        cr4: 0x620,
        efer: 0x500,
        ..VcpuState::default()
    }
}

impl Guest {
    /// Runs until the guest writes to [`EXIT_PORT`] (or the bus kicks for another reason).
    fn run(&mut self) -> VcpuState {
        assert_eq!(self.vcpu.run().unwrap(), Exit::Kicked);
        self.vcpu.state().unwrap()
    }

    fn log(&self) -> Vec<Access> {
        std::mem::take(&mut *self.bus.log.lock().unwrap())
    }
}

const EXIT: [u8; 2] = [0xe6, EXIT_PORT as u8];

#[test]
fn a_guest_reaches_ports_and_memory_mapped_registers() {
    let code = [
        &[0x66, 0xba, 0xf8, 0x03][..], // mov dx, 0x3f8
        &[0xb0, 0x41, 0xee],           // mov al, 'A'; out dx, al
        &[0x66, 0xef, 0xed],           // out dx, ax; in eax, dx
        &[0xb9, 0, 0, 0, 0x40],        // mov ecx, MMIO
        &[0x89, 0x01],                 // mov [rcx], eax
        &[0x48, 0x8b, 0x71, 0x08],     // mov rsi, [rcx + 8]
        &[0x66, 0x89, 0x71, 0x10],     // mov [rcx + 16], si
        &EXIT,
    ]
    .concat();
    let Some(mut guest) = guest(&code) else { return };
    let state = guest.run();
    let read = 0x1122_3344_5566_7788u64;
    let expected = [
        Out(0x3f8, 1, 0x41),
        Out(0x3f8, 2, 0x41),
        In(0x3f8, 4),
        Store(MMIO, 4, (read as u32 + 2).into()),
        Load(MMIO + 8, 8),
        Store(MMIO + 16, 2, read as u16 as u64 + 4),
    ];
    assert_eq!(guest.log(), expected);
    assert_eq!((state.rip, state.gpr[6]), (CODE + code.len() as u64, read + 4));
}

#[test]
fn string_port_instructions_move_each_element() {
    let code = [
        &[0xba, 0x70, 0x01, 0, 0, 0xfc][..],   // mov edx, 0x170; cld
        &[0x48, 0x89, 0xde],                   // mov rsi, rbx
        &[0xb9, 3, 0, 0, 0, 0xf3, 0x66, 0x6f], // mov ecx, 3; rep outsw
        &[0x48, 0x89, 0xdf],                   // mov rdi, rbx
        &[0xb9, 2, 0, 0, 0, 0xf3, 0x6d],       // mov ecx, 2; rep insd
        &EXIT,
    ]
    .concat();
    let Some(mut guest) = guest(&code) else { return };
    guest.ram.write(DATA, &[1, 2, 3, 4, 5, 6]).unwrap();
    guest.run();
    let expected = [Out(0x170, 2, 0x201), Out(0x170, 2, 0x403), Out(0x170, 2, 0x605), In(0x170, 4), In(0x170, 4)];
    assert_eq!(guest.log(), expected);
    let mut bytes = [0; 8];
    guest.ram.read(DATA, &mut bytes).unwrap();
    assert_eq!(bytes, [0x8b, 0x77, 0x66, 0x55, 0x8c, 0x77, 0x66, 0x55]);
}

#[test]
fn a_kick_from_another_thread_ends_an_endless_loop_and_a_halt() {
    for code in [&[0xeb, 0xfe][..], &[0xf4]] {
        let Some(mut guest) = guest(code) else { return };
        let (signal, returned) = (guest.vcpu.signal(), Arc::new(AtomicBool::new(false)));
        let seen = returned.clone();
        let thread = std::thread::spawn(move || {
            let exit = guest.vcpu.run().unwrap();
            seen.store(true, Ordering::SeqCst);
            (exit, guest.vcpu.state().unwrap().rip)
        });
        // The thread may be anywhere on its way into the guest: each kick has to be enough.
        signal.kick();
        let (exit, rip) = thread.join().unwrap();
        assert!(returned.load(Ordering::SeqCst));
        assert_eq!(exit, Exit::Kicked);
        assert!((CODE..=CODE + 1).contains(&rip), "{rip:#x}");
    }
}

#[test]
fn a_kick_before_the_run_is_not_lost_and_runs_nothing() {
    let Some(mut guest) = guest(&EXIT) else { return };
    guest.vcpu.signal().kick();
    assert_eq!(guest.run().rip, CODE);
    assert_eq!(guest.run().rip, CODE + 2);
}

#[test]
fn after_a_kick_an_answered_access_has_reached_its_register() {
    struct Kicking(Recorder);
    impl Bus for Kicking {
        fn port_read(&self, port: u16, size: u8) -> u32 {
            self.0.kick();
            self.0.port_read(port, size)
        }
        fn port_write(&self, _: u16, _: u8, _: u32) {}
        fn memory_read(&self, addr: u64, size: u8) -> u64 {
            self.0.memory_read(addr, size)
        }
        fn memory_write(&self, _: u64, _: u8, _: u64) {}
    }
    let Some(Guest { ram, .. }) = guest(&[0xe5, 0x60, 0xeb, 0xfe]) else { return };
    let bus = Arc::new(Kicking(Recorder::default()));
    let accelerator = KvmAccelerator::new(ram, bus.clone(), &CpuModel::default(), 1).unwrap();
    let mut vcpu = accelerator.create_vcpu(0).unwrap();
    let _ = bus.0.signal.set(vcpu.signal());
    vcpu.set_state(&long_mode()).unwrap();
    assert_eq!(vcpu.run().unwrap(), Exit::Kicked);
    let state = vcpu.state().unwrap();
    assert_eq!((state.rip, state.gpr[0]), (CODE + 2, 0x5566_7788));
}

/// What KVM keeps of a state that it is given, a line for each value: not the bytes of the FXSAVE image that the
/// processor reserves, nor the processor priority, which follows from other registers.
fn comparable(state: &VcpuState) -> Vec<String> {
    let mut state = state.clone();
    state.fxsave[28..32].fill(0);
    state.fxsave[416..].fill(0);
    if !state.apic.is_empty() {
        state.apic[0xa0..0xa4].fill(0);
    }
    // Counters go on.
    state.msrs.retain(|msr| !matches!(msr.0, 0x10 | 0xc1..=0xc8 | 0xe7 | 0xe8));
    format!("{state:#?}").lines().map(str::to_string).collect()
}

fn assert_same(found: &VcpuState, expected: &VcpuState) {
    let (found, expected) = (comparable(found), comparable(expected));
    assert_eq!(found.len(), expected.len());
    let different: Vec<_> = found.iter().zip(&expected).enumerate().filter(|(_, (a, b))| a != b).collect();
    assert!(different.is_empty(), "found and expected: {different:?}");
}

#[test]
fn state_comes_back_as_it_was_set() {
    let Some(mut guest) = guest(&EXIT) else { return };
    let before = guest.vcpu.state().unwrap();
    let mut state = before.clone();
    state.gpr = std::array::from_fn(|i| 0x1111_1111_1111_1111 * i as u64);
    (state.rip, state.rflags, state.cr2, state.cr8) = (0x1234, 0x246, 0x5678_9abc, 3);
    state.segments[4] = Segment { base: 0x7fff_1234_5000, ..state.segments[4] };
    state.gdtr.base = 0x5000;
    state.idtr.limit = 0x123;
    state.dr = [0x1000, 0x2000, 0x3000, 0x4000, 0xffff_0ff0, 0x400];
    (0..256).for_each(|i| state.fxsave[160 + i] = i as u8);
    state.apic[0x80] = 0x30;
    state.events.nmi_blocked = true;
    state.mp_state = MpState::Halted;
    if let Some(star) = state.msrs.iter_mut().find(|msr| msr.0 == 0xc000_0081) {
        star.1 = 0x0023_0010_0000_0000;
    }
    guest.vcpu.set_state(&state).unwrap();
    assert_same(&guest.vcpu.state().unwrap(), &state);
    guest.vcpu.set_state(&long_mode()).unwrap();
    assert_same(&guest.vcpu.state().unwrap(), &before);
}

#[test]
fn a_processor_that_waits_for_its_start_up_says_so() {
    let Some(mut guest) = guest(&EXIT) else { return };
    let waits = VcpuState { mp_state: MpState::WaitForStartup, ..VcpuState::default() };
    guest.vcpu.set_state(&waits).unwrap();
    assert_eq!(guest.vcpu.state().unwrap().mp_state, MpState::WaitForStartup);
    guest.vcpu.signal().kick();
    assert_eq!(guest.vcpu.run().unwrap(), Exit::Kicked);
}

#[test]
fn state_that_does_not_fit_is_refused() {
    let Some(mut guest) = guest(&EXIT) else { return };
    for (state, expected) in [
        (VcpuState { apic: vec![0; 5], ..long_mode() }, "saved local APIC has 5 bytes, not 1024"),
        (VcpuState { xsave: vec![0; 5], ..long_mode() }, "saved XSAVE area has 5 bytes after the legacy part"),
        (VcpuState { msrs: vec![(0x1234_5678, 1)], ..long_mode() }, "MSR 0x12345678 cannot be 0x1"),
    ] {
        match guest.vcpu.set_state(&state) {
            Err(VcpuError::State { index: 0, what }) => assert_eq!(what, expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
}

fn chip(guest: &Guest, id: u32) -> kvm_bindings::kvm_irqchip {
    controllers::get_chip(&guest.vcpu.machine, id).unwrap()
}

#[expect(unsafe_code, reason = "the kernel's chips come in a union")]
fn requests(guest: &Guest) -> (u8, u8, u32) {
    // SAFETY: plain numbers, filled in for each chip by the kernel.
    unsafe { (chip(guest, 0).chip.pic.irr, chip(guest, 1).chip.pic.irr, chip(guest, 2).chip.ioapic.irr) }
}

#[test]
fn interrupt_lines_reach_both_controllers_and_the_timer_has_pin_two() {
    let Some(guest) = guest(&EXIT) else { return };
    let controller = guest.accelerator.controller();
    for gsi in [0, 1, 2, 12, 20, 99] {
        controller.set_gsi(gsi, true);
    }
    let (master, slave, ioapic) = requests(&guest);
    assert_eq!((master & 0x03, slave, ioapic & 1), (0x03, 0x10, 0));
    assert_eq!(ioapic >> 20 & 1, 1);
    [0, 1, 12, 20].iter().for_each(|&gsi| controller.set_gsi(gsi, false));
    guest.accelerator.interrupts().reset().unwrap();
    let (master, slave, _) = requests(&guest);
    assert_eq!((master, slave), (0, 0));
}

#[test]
fn a_message_sets_its_vector_in_the_local_apic() {
    let Some(mut guest) = guest(&EXIT) else { return };
    let mut state = long_mode();
    state.apic = guest.vcpu.state().unwrap().apic;
    state.apic[0xf1] |= 1;
    guest.vcpu.set_state(&state).unwrap();
    let controller = guest.accelerator.controller();
    controller.send_msi(0xfee0_0000, 0x4051);
    controller.send_msi(0xfee0_0000 | 7 << 12, 0x4052);
    controller.send_msi(0x1000, 0x4053);
    let page = guest.vcpu.state().unwrap().apic;
    assert_eq!(page[0x220..0x224], [0, 0, 0x02, 0]);
}

#[test]
fn an_interrupt_that_was_acknowledged_but_not_delivered_is_pending_again_in_saved_state() {
    let Some(mut guest) = guest(&EXIT) else { return };
    let mut state = long_mode();
    state.apic = guest.vcpu.state().unwrap().apic;
    state.apic[0xf1] |= 1;
    state.apic[0x112] = 0x02;
    guest.vcpu.set_state(&state).unwrap();
    let mut events = guest.vcpu.fd.get_vcpu_events().unwrap();
    (events.interrupt.injected, events.interrupt.nr) = (1, 0x31);
    guest.vcpu.fd.set_vcpu_events(&events).unwrap();
    let page = guest.vcpu.state().unwrap().apic;
    assert_eq!((page[0x112], page[0x212]), (0x00, 0x02));
    assert_eq!(guest.vcpu.fd.get_vcpu_events().unwrap().interrupt.injected, 0);
}

#[test]
fn the_clock_starts_where_it_is_told_to() {
    let Some(guest) = guest(&EXIT) else { return };
    const HOURS: u64 = 3_600_000_000_000;
    guest.accelerator.start_clock(1000 * HOURS).unwrap();
    assert!((1000 * HOURS..2000 * HOURS).contains(&guest.accelerator.clock_ns().unwrap()));
}

/// `rdtsc` into RAX, again and again.
const READ_TSC: [u8; 13] = [
    0x0f, 0x31, // rdtsc
    0x48, 0xc1, 0xe2, 0x20, // shl rdx, 32
    0x48, 0x09, 0xd0, // or rax, rdx
    EXIT[0], EXIT[1], 0xeb, 0xf3, // jmp to the beginning
];

fn tsc(state: &VcpuState) -> u64 {
    state.msrs.iter().find(|msr| msr.0 == 0x10).expect("every processor has one").1
}

/// A guest that reads its time-stamp counter; `None` where KVM cannot give it one of its own.
fn guest_with_a_counter() -> Option<Guest> {
    const FAR: u64 = 1 << 53;
    let mut guest = guest(&READ_TSC)?;
    let far = kvm_bindings::kvm_msr_entry { index: 0x10, data: FAR, ..Default::default() };
    guest.vcpu.stood = None;
    assert_eq!(guest.vcpu.fd.set_msrs(&state::msrs(&[far])).unwrap(), 1);
    if guest.run().gpr[0] < FAR {
        println!("skipped: the guest reads the host's time-stamp counter, whatever KVM is told");
        return None;
    }
    guest.vcpu.set_state(&long_mode()).unwrap();
    Some(guest)
}

#[test]
fn the_time_stamp_counter_stands_still_while_the_machine_does() {
    const LONG: u64 = 1 << 50;
    let Some(mut guest) = guest_with_a_counter() else { return };
    guest.accelerator.start_clock(1).unwrap();
    let stopped = guest.run();
    guest.accelerator.stop_clock().unwrap();
    assert!(stopped.gpr[0] <= tsc(&stopped), "{:#x} {:#x}", stopped.gpr[0], tsc(&stopped));
    // What the host's time would do to it.
    let late = kvm_bindings::kvm_msr_entry { index: 0x10, data: tsc(&stopped) + LONG, ..Default::default() };
    assert_eq!(guest.vcpu.fd.set_msrs(&state::msrs(&[late])).unwrap(), 1);
    assert_eq!(tsc(&guest.vcpu.state().unwrap()), tsc(&stopped), "it stands still");
    guest.accelerator.start_clock(2).unwrap();
    let resumed = guest.run();
    assert!((tsc(&stopped)..tsc(&stopped) + LONG / 2).contains(&resumed.gpr[0]), "{:#x}", resumed.gpr[0]);
}

#[test]
fn a_counter_that_was_set_goes_on_from_there() {
    const THERE: u64 = 1 << 52;
    let Some(mut guest) = guest_with_a_counter() else { return };
    let mut state = guest.vcpu.state().unwrap();
    state.msrs.iter_mut().filter(|msr| msr.0 == 0x10).for_each(|msr| msr.1 = THERE);
    guest.vcpu.set_state(&state).unwrap();
    guest.accelerator.start_clock(1).unwrap();
    let read = guest.run().gpr[0];
    assert!((THERE..THERE + THERE / 2).contains(&read), "{read:#x}");
}

fn timer(guest: &Guest) -> kvm_bindings::kvm_pit_state2 {
    guest.vcpu.machine.vm.get_pit2().unwrap()
}

#[test]
fn the_interval_timer_is_silent_while_the_machine_stands_still() {
    let Some(guest) = guest(&EXIT) else { return };
    let mut periodic = timer(&guest);
    (periodic.channels[0].mode, periodic.channels[0].count, periodic.channels[0].gate) = (2, 1193, 1);
    guest.vcpu.machine.vm.set_pit2(&periodic).unwrap();
    guest.accelerator.stop_clock().unwrap();
    assert_eq!(timer(&guest).flags & kvm_bindings::KVM_PIT_FLAGS_HPET_LEGACY, kvm_bindings::KVM_PIT_FLAGS_HPET_LEGACY);
    guest.accelerator.start_clock(1).unwrap();
    let resumed = timer(&guest);
    assert_eq!((resumed.flags, resumed.channels[0].mode, resumed.channels[0].count), (periodic.flags, 2, 1193));
    guest.accelerator.stop_clock().unwrap();
    guest.accelerator.interrupts().reset().unwrap();
    guest.accelerator.start_clock(2).unwrap();
    assert_ne!(timer(&guest).channels[0].mode, 2, "a reset while it stands still counts");
}

#[test]
fn an_instruction_that_kvm_does_not_know_is_named_in_the_error() {
    // On most hosts the processor itself runs this one.
    let Some(mut guest) = guest(&[0x66, 0x0f, 0xd4, 0xc8, EXIT[0], EXIT[1]]) else { return };
    match guest.vcpu.run() {
        Ok(exit) => assert_eq!(exit, Exit::Kicked),
        Err(e) => {
            let text = e.to_string();
            assert!(text.contains("rip 0x8000") && text.contains("66 0f d4 c8"), "{text}");
        }
    }
}

#[test]
fn more_registers_than_the_kernel_takes_at_once_are_no_panic() {
    let Some(mut guest) = guest(&EXIT) else { return };
    let msrs = (0..1000).map(|n| (0x1234_0000 + n, 0)).collect();
    guest.vcpu.set_state(&VcpuState { msrs, ..long_mode() }).unwrap();
}

#[test]
fn a_triple_fault_is_a_shutdown() {
    // An undefined instruction with no usable interrupt table.
    let Some(mut guest) = guest(&[0x0f, 0x0b]) else { return };
    let mut state = long_mode();
    state.idtr.limit = 0;
    guest.vcpu.set_state(&state).unwrap();
    assert_eq!(guest.vcpu.run().unwrap(), Exit::Shutdown);
}
