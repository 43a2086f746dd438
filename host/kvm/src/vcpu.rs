//! A vCPU: the run loop, and what its exits ask of the machine.
#![expect(unsafe_code, reason = "exits are described in a union that the kernel shares")]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cardcage_accel::{Bus, Exit, Vcpu, VcpuError, VcpuSignal, VcpuState};
use kvm_bindings::{kvm_lapic_state, kvm_msr_entry, kvm_vcpu_events};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::accelerator::Machine;
use crate::kick::{ImmediateExit, Kicker};
use crate::time::Standing;
use crate::{KvmError, failed, state};

/// KVM_INTERNAL_ERROR_EMULATION: the kernel could not emulate an instruction.
const EMULATION_FAILED: u32 = 1;
/// Bytes of the longest instruction.
const INSTRUCTION_MAX: u64 = 15;

/// One vCPU of KVM.
pub struct KvmVcpu {
    pub(crate) index: u32,
    pub(crate) fd: VcpuFd,
    pub(crate) machine: Arc<Machine>,
    pub(crate) power_on: PowerOn,
    signal: Arc<VcpuSignal>,
    kicker: Arc<Kicker>,
    flag: ImmediateExit,
    /// An access was answered, but the kernel has not yet ended its instruction.
    unfinished: bool,
    /// [`Machine::starts`] when this vCPU ran last.
    starts: u64,
    /// Where its time stood when it came back from guest code last, or was given its state.
    pub(crate) stood: Option<Standing>,
}

/// State that a power-on [`VcpuState`] leaves to the processor.
pub(crate) struct PowerOn {
    pub(crate) lapic: kvm_lapic_state,
    pub(crate) msrs: Vec<kvm_msr_entry>,
    pub(crate) events: kvm_vcpu_events,
}

/// Why KVM_RUN came back, without borrowing the vCPU.
enum Reason {
    /// A signal, or nothing of ours.
    Nothing,
    Port {
        write: bool,
        port: u16,
    },
    Load {
        addr: u64,
        len: usize,
    },
    Store {
        addr: u64,
        len: usize,
        data: [u8; 8],
    },
    Shutdown,
    Debug,
    InternalError,
    Other(String),
}

impl Reason {
    fn of(exit: VcpuExit<'_>) -> Self {
        match exit {
            VcpuExit::IoIn(port, _) => Self::Port { write: false, port },
            VcpuExit::IoOut(port, _) => Self::Port { write: true, port },
            VcpuExit::MmioRead(addr, data) => Self::Load { addr, len: data.len() },
            VcpuExit::MmioWrite(addr, bytes) => {
                let mut data = [0; 8];
                let len = bytes.len().min(8);
                data[..len].copy_from_slice(&bytes[..len]);
                Self::Store { addr, len, data }
            }
            VcpuExit::Intr | VcpuExit::IrqWindowOpen => Self::Nothing,
            VcpuExit::Shutdown => Self::Shutdown,
            VcpuExit::Debug(_) => Self::Debug,
            VcpuExit::InternalError => Self::InternalError,
            VcpuExit::FailEntry(reason, _) => {
                Self::Other(format!("the processor refuses to enter it (reason {reason:#x})"))
            }
            other => Self::Other(format!("KVM reports {other:?}")),
        }
    }
}

impl KvmVcpu {
    pub(crate) fn new(machine: &Arc<Machine>, index: u32) -> Result<Self, KvmError> {
        let mut fd = machine.vm.create_vcpu(index.into()).map_err(failed("KVM_CREATE_VCPU"))?;
        let cpuid = machine.model.cpuid(&machine.kvm, index, machine.cpus)?;
        fd.set_cpuid2(&cpuid).map_err(failed("KVM_SET_CPUID2"))?;
        let power_on = PowerOn {
            lapic: fd.get_lapic().map_err(failed("KVM_GET_LAPIC"))?,
            msrs: state::readable_msrs(&machine.kvm, &fd)?,
            events: fd.get_vcpu_events().map_err(failed("KVM_GET_VCPU_EVENTS"))?,
        };
        let kicker = Arc::new(Kicker::new());
        let own = kicker.clone();
        let signal = Arc::new(VcpuSignal::new(Some(Box::new(move || own.interrupt()))));
        let flag = ImmediateExit::new(fd.get_kvm_run());
        let machine = machine.clone();
        Ok(Self { index, fd, machine, power_on, signal, kicker, flag, unfinished: false, starts: 0, stood: None })
    }

    /// The error for a call to the kernel.
    pub(crate) fn failed(&self, call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VcpuError + use<> {
        let index = self.index;
        move |e| VcpuError::Host { index, call, source: std::io::Error::from_raw_os_error(e.errno()) }
    }

    fn internal(&self, what: String) -> VcpuError {
        let rip = self.fd.get_regs().map_or(0, |regs| regs.rip);
        VcpuError::Internal { index: self.index, rip, what }
    }

    /// After a stop of the machine: time goes on from where it stood, and the guest is told that it did not run for a
    /// while, so that its watchdogs do not bark.
    fn note_start(&mut self) -> Result<(), VcpuError> {
        let starts = self.machine.starts.load(Ordering::SeqCst);
        self.put_time_back(starts)?;
        if self.starts != starts {
            self.starts = starts;
            // Fails for guests that do not use kvmclock.
            let _ = self.fd.kvmclock_ctrl();
        }
        Ok(())
    }

    /// Enters the guest once and does what it asks for.
    fn enter(&mut self) -> Result<Option<Exit>, VcpuError> {
        let reason = match self.fd.run() {
            Ok(exit) => Reason::of(exit),
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => Reason::Nothing,
            Err(e) => return Err(self.failed("KVM_RUN")(e)),
        };
        self.unfinished = matches!(reason, Reason::Port { .. } | Reason::Load { .. } | Reason::Store { .. });
        match reason {
            Reason::Nothing => {}
            Reason::Port { write, port } => self.port_access(write, port),
            Reason::Load { addr, len } => self.load(addr, len),
            Reason::Store { addr, len, data } => store(&*self.machine.bus, addr, data.get(..len).unwrap_or(&data)),
            Reason::Shutdown => return Ok(Some(Exit::Shutdown)),
            Reason::Debug => return Ok(Some(Exit::Debug)),
            Reason::InternalError => {
                let what = self.internal_error();
                return Err(self.internal(what));
            }
            Reason::Other(what) => return Err(self.internal(what)),
        }
        Ok(None)
    }

    /// IN, OUT, INS, OUTS: the kernel hands over a number of elements for one port.
    fn port_access(&mut self, write: bool, port: u16) {
        let bus = self.machine.bus.clone();
        let run = self.fd.get_kvm_run();
        // SAFETY: the exit was KVM_EXIT_IO, for which the kernel fills in this member.
        let io = unsafe { run.__bindgen_anon_1.io };
        let (size, count) = (usize::from(io.size), io.count as usize);
        let data = std::ptr::from_mut(run).cast::<u8>().wrapping_add(io.data_offset as usize);
        // SAFETY: the kernel tells where in its mapping, which lives as long as `self.fd`, these bytes are.
        let data = unsafe { std::slice::from_raw_parts_mut(data, size * count) };
        for element in data.chunks_exact_mut(size.clamp(1, 4)) {
            let mut value = [0; 4];
            let (value, size) = (&mut value, element.len());
            if write {
                value[..size].copy_from_slice(element);
                bus.port_write(port, size as u8, u32::from_le_bytes(*value));
            } else {
                *value = bus.port_read(port, size as u8).to_le_bytes();
                element.copy_from_slice(&value[..size]);
            }
        }
    }

    fn load(&mut self, addr: u64, len: usize) {
        let bus = self.machine.bus.clone();
        let mut data = [0; 8];
        let bytes = data.get_mut(..len).unwrap_or_default();
        for (at, size) in pieces(bytes.len()) {
            let value = bus.memory_read(addr.wrapping_add(at as u64), size as u8).to_le_bytes();
            bytes[at..at + size].copy_from_slice(&value[..size]);
        }
        self.fd.get_kvm_run().__bindgen_anon_1.mmio.data = data;
    }

    /// What the kernel says about an error of its own.
    fn internal_error(&mut self) -> String {
        // SAFETY: the exit was KVM_EXIT_INTERNAL_ERROR, for which the kernel fills in this member.
        let error = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.emulation_failure };
        if error.suberror != EMULATION_FAILED {
            return format!("KVM reports internal error {}", error.suberror);
        }
        // SAFETY: plain bytes.
        let known = unsafe { error.__bindgen_anon_1.__bindgen_anon_1 };
        let len = if error.flags & 1 != 0 { usize::from(known.insn_size).min(known.insn_bytes.len()) } else { 0 };
        let bytes = if len != 0 { known.insn_bytes[..len].to_vec() } else { self.instruction_bytes() };
        let bytes: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
        match bytes.as_slice() {
            [] => "KVM cannot emulate the instruction".into(),
            bytes => format!("KVM cannot emulate the instruction in {}", bytes.join(" ")),
        }
    }

    /// What stands at the instruction pointer, as far as it can be read.
    fn instruction_bytes(&self) -> Vec<u8> {
        let Ok((regs, sregs)) = self.fd.get_regs().and_then(|regs| Ok((regs, self.fd.get_sregs()?))) else {
            return Vec::new();
        };
        let start = sregs.cs.base.wrapping_add(regs.rip);
        let byte = |n: u64| {
            let at = self.fd.translate_gva(start.wrapping_add(n)).ok().filter(|t| t.valid != 0)?;
            let mut byte = [0];
            self.machine.ram.read(at.physical_address, &mut byte).ok()?;
            Some(byte[0])
        };
        (0..INSTRUCTION_MAX).map_while(byte).collect()
    }

    /// Lets the kernel end the instruction whose access was answered, and begin no other.
    fn finish_instruction(&mut self) -> Result<Option<Exit>, VcpuError> {
        while self.unfinished {
            self.flag.set(true);
            if let Some(exit) = self.enter()? {
                return Ok(Some(exit));
            }
        }
        Ok(None)
    }

    fn run_until_exit(&mut self) -> Result<Exit, VcpuError> {
        loop {
            // In this order: what is raised after it was looked for sets the flag again.
            self.flag.set(false);
            self.signal.take_attention();
            if self.signal.take_kick() {
                let exit = self.finish_instruction()?;
                if exit.is_some() {
                    self.signal.kick();
                }
                return Ok(exit.unwrap_or(Exit::Kicked));
            }
            if let Some(exit) = self.enter()? {
                return Ok(exit);
            }
        }
    }
}

impl Vcpu for KvmVcpu {
    fn run(&mut self) -> Result<Exit, VcpuError> {
        self.note_start()?;
        let kicker = self.kicker.clone();
        let running = kicker.enter(self.flag);
        let exit = self.run_until_exit()?;
        drop(running);
        self.stood = Some(self.standing(Some(self.starts))?);
        Ok(exit)
    }

    fn state(&mut self) -> Result<VcpuState, VcpuError> {
        self.read_state()
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<(), VcpuError> {
        self.unfinished = false;
        self.stood = None;
        self.write_state(state)?;
        self.stood = Some(self.standing(None)?);
        Ok(())
    }

    fn signal(&self) -> Arc<VcpuSignal> {
        self.signal.clone()
    }
}

/// Splits an access into powers of two: the kernel cuts at page borders wherever they fall.
fn pieces(len: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let left = len - at;
        let size = (left != 0).then(|| 1 << left.ilog2())?;
        at += size;
        Some((at - size, size))
    })
}

fn store(bus: &dyn Bus, addr: u64, bytes: &[u8]) {
    for (at, size) in pieces(bytes.len()) {
        let mut value = [0; 8];
        value[..size].copy_from_slice(&bytes[at..at + size]);
        bus.memory_write(addr.wrapping_add(at as u64), size as u8, u64::from_le_bytes(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_are_split_into_powers_of_two() {
        for (len, expected) in
            [(0, vec![]), (4, vec![(0, 4)]), (7, vec![(0, 4), (4, 2), (6, 1)]), (3, vec![(0, 2), (2, 1)])]
        {
            assert_eq!(pieces(len).collect::<Vec<_>>(), expected);
        }
    }
}
