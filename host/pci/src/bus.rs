//! Bus 0: which function is where, and what of it answers in the two address spaces.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use cardcage_memory::AddressSpace;

use crate::windows::Windows;
use crate::{Devfn, FunctionState, InterruptRouter, MsiSink, PciError, PciFunction, Space, lock};

struct Spaces {
    memory: Windows,
    io: Windows,
}

/// A conventional PCI bus of 32 slots with 8 functions each.
pub struct PciBus {
    functions: Mutex<BTreeMap<Devfn, Arc<PciFunction>>>,
    spaces: Mutex<Spaces>,
    router: Arc<InterruptRouter>,
    messages: Arc<dyn MsiSink>,
}

impl PciBus {
    /// An empty bus. BARs appear in `memory` and `ports`, INTx lines go to `router`, MSIs to `messages`.
    pub fn new(
        memory: Arc<AddressSpace>,
        ports: Arc<AddressSpace>,
        router: Arc<InterruptRouter>,
        messages: Arc<dyn MsiSink>,
    ) -> Arc<Self> {
        let spaces = Mutex::new(Spaces { memory: Windows::new(memory), io: Windows::new(ports) });
        Arc::new(Self { functions: Mutex::default(), spaces, router, messages })
    }

    /// Adds a function before the guest runs: where it is told, or in the first slot that is free.
    pub fn add(&self, at: Option<Devfn>, function: Arc<PciFunction>) -> Result<Devfn, PciError> {
        self.insert(at, function, false)
    }

    /// Adds a function while the guest runs. Refused where the guest would not look again: in a slot whose function 0
    /// it has seen.
    pub fn plug(&self, at: Option<Devfn>, function: Arc<PciFunction>) -> Result<Devfn, PciError> {
        self.insert(at, function, true)
    }

    fn insert(&self, at: Option<Devfn>, function: Arc<PciFunction>, plugged: bool) -> Result<Devfn, PciError> {
        let mut functions = lock(&self.functions);
        let at = match at {
            Some(at) => at,
            None => (0..Devfn::SLOTS)
                .filter_map(|slot| Devfn::new(slot, 0))
                .find(|&at| check_place(&functions, at, &function, plugged).is_ok())
                .ok_or_else(|| PciError::Full { new: function.name().into() })?,
        };
        check_place(&functions, at, &function, plugged)?;
        if !function.claim() {
            return Err(PciError::AddedTwice { name: function.label() });
        }
        if let Some((pin, line)) = function.intx() {
            line.connect(self.router.clone(), pin.pirq(at));
        }
        if let Some(msix) = function.msix() {
            msix.connect(Some(self.messages.clone()));
        }
        functions.insert(at, function);
        drop(functions);
        self.follow(at);
        Ok(at)
    }

    /// Removes a function: its BARs vanish, its line is released. Accesses that other threads are in the middle of may
    /// still reach its handlers.
    pub fn remove(&self, at: Devfn) -> Option<Arc<PciFunction>> {
        let function = lock(&self.functions).remove(&at)?;
        self.follow(at);
        if let Some((_, line)) = function.intx() {
            line.disconnect();
        }
        if let Some(msix) = function.msix() {
            msix.connect(None);
        }
        Some(function)
    }

    /// The function at `at`.
    pub fn function(&self, at: Devfn) -> Option<Arc<PciFunction>> {
        lock(&self.functions).get(&at).cloned()
    }

    /// All functions, in the order of their numbers.
    pub fn functions(&self) -> Vec<(Devfn, Arc<PciFunction>)> {
        lock(&self.functions).iter().map(|(at, function)| (*at, function.clone())).collect()
    }

    /// Reads 1, 2 or 4 bytes of configuration space; all ones where nobody is.
    pub fn config_read(&self, at: Devfn, offset: u16, size: u8) -> u32 {
        match self.function(at) {
            Some(function) => function.config_read(offset, size),
            None => ones(size),
        }
    }

    /// Writes 1, 2 or 4 bytes of configuration space. BARs have moved when this returns.
    pub fn config_write(&self, at: Devfn, offset: u16, size: u8, value: u32) {
        if let Some(function) = self.function(at) {
            function.config_write(offset, size, value);
            self.follow(at);
        }
    }

    /// RST#: every function as it was built, no BAR mapped, no line asserted.
    pub fn reset(&self) {
        for (at, function) in self.functions() {
            function.reset();
            self.follow(at);
        }
    }

    /// Loads saved state into the function at `at`: all of it, or nothing. False if nobody is there.
    pub fn restore(&self, at: Devfn, state: &FunctionState) -> Result<bool, PciError> {
        let Some(function) = self.function(at) else { return Ok(false) };
        function.check(state)?;
        function.load(state);
        self.follow(at);
        Ok(true)
    }

    /// Makes the address spaces show what the function at `at` answers now. Its registers are read under the lock, so
    /// that the last to come here brings the newest.
    fn follow(&self, at: Devfn) {
        let mut spaces = lock(&self.spaces);
        let wanted = self.function(at).map(|function| function.wanted()).unwrap_or_default();
        let (mut memory, mut io) = (Vec::new(), Vec::new());
        for (number, space, window) in wanted {
            match space {
                Space::Memory => memory.push((number, window)),
                Space::Io => io.push((number, window)),
            }
        }
        spaces.memory.update(at, memory);
        spaces.io.update(at, io);
    }
}

/// All ones in the low `size` bytes.
pub(crate) fn ones(size: u8) -> u32 {
    u32::MAX >> (32 - 8 * u32::from(size.clamp(1, 4)))
}

fn check_place(
    functions: &BTreeMap<Devfn, Arc<PciFunction>>,
    at: Devfn,
    new: &PciFunction,
    plugged: bool,
) -> Result<(), PciError> {
    if let Some(present) = functions.get(&at) {
        return Err(PciError::InUse { at, new: new.name().into(), present: present.label() });
    }
    let first = Devfn::from_byte(at.byte() & !7);
    match functions.get(&first) {
        Some(zero) if plugged => Err(PciError::Hidden { at, new: new.name().into(), present: zero.name().into() }),
        Some(zero) if !zero.is_multifunction() => Err(PciError::SingleFunction { at }),
        None if at == first && !new.is_multifunction() => {
            let slot = Devfn::from_byte(first.byte() + 1)..=Devfn::from_byte(first.byte() + 7);
            functions.range(slot).next().map_or(Ok(()), |(&populated, _)| Err(PciError::Populated { populated }))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "bus_tests.rs"]
mod tests;
