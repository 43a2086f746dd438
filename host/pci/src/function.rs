//! One PCI function: what a device hands to the bus.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use cardcage_memory::IoHandler;
use serde::{Deserialize, Serialize};

use crate::msix::MsixBar;
use crate::registers::{self as reg, Command, Status};
use crate::windows::Wanted;
use crate::{Bar, BarKind, ConfigSize, ConfigSpace, Identity, Intx, Msix, MsixState, PciError, Pin, Space, lock};

/// What the device behind a function hears of. Called from the thread that accesses the configuration space, with no
/// lock held.
pub trait PciHook: Send + Sync {
    /// The guest reads: a value that the device gives instead of the bytes stored. For capabilities that are windows.
    fn config_read(&self, function: &PciFunction, offset: u16, size: u8) -> Option<u32> {
        let _ = (function, offset, size);
        None
    }
    /// The guest has written; the configuration space, the interrupt line and MSI-X follow already, BARs do
    /// afterwards.
    fn config_written(&self, function: &PciFunction, offset: u16, size: u8) {
        let _ = (function, offset, size);
    }
    /// The bus was reset; the configuration space is as it was when the function was built.
    fn reset(&self, function: &PciFunction) {
        let _ = function;
    }
    /// A saved state was loaded into the configuration space.
    fn restored(&self, function: &PciFunction) {
        let _ = function;
    }
}

/// A range that a function answers outside of its BARs: legacy ports, or a base register of its own.
#[derive(Clone)]
pub struct Window {
    /// Which address space.
    pub space: Space,
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// Who answers.
    pub handler: Arc<dyn IoHandler>,
}

/// Everything of a function that a guest can have changed, apart from what its device keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionState {
    /// Version of this layout.
    pub version: u32,
    /// The configuration space.
    pub config: Vec<u8>,
    /// Level of the INTx line, as the device drives it.
    pub intx: bool,
    /// The MSI-X table, if the function has one.
    pub msix: Option<MsixState>,
}

impl FunctionState {
    /// The version that this program writes.
    pub const VERSION: u32 = 1;
}

/// One function, as built by [`PciFunctionBuilder`]. Shared between the bus and whoever added it.
pub struct PciFunction {
    name: Arc<str>,
    id: Option<Arc<str>>,
    config: Mutex<ConfigSpace>,
    at_reset: Box<[u8]>,
    handlers: [Option<Arc<dyn IoHandler>>; 6],
    windows: Mutex<BTreeMap<u8, Window>>,
    intx: Option<(Pin, Arc<Intx>)>,
    msix: Option<(u16, Arc<Msix>)>,
    hook: Option<Arc<dyn PciHook>>,
    added: AtomicBool,
}

impl PciFunction {
    /// Starts a function. `name` is what errors and listings call it, such as `virtio-blk-pci`.
    pub fn builder(name: &str, identity: Identity) -> PciFunctionBuilder {
        PciFunctionBuilder::new(name, identity, ConfigSize::Conventional)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The id that the user gave its device.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// Name and id, as QEMU's errors print them: `e1000,id=nic0`.
    pub(crate) fn label(&self) -> String {
        self.id().map_or_else(|| self.name.to_string(), |id| format!("{},id={id}", self.name))
    }

    /// Whether function 0 of the slot tells of others.
    pub fn is_multifunction(&self) -> bool {
        lock(&self.config).read(reg::HEADER_TYPE, 1) as u8 & reg::MULTIFUNCTION != 0
    }

    /// The interrupt pin, if it has one.
    pub fn pin(&self) -> Option<Pin> {
        self.intx.as_ref().map(|(pin, _)| *pin)
    }

    /// A copy of the configuration space, as it is now.
    pub fn config(&self) -> ConfigSpace {
        lock(&self.config).clone()
    }

    /// The command register.
    pub fn command(&self) -> Command {
        lock(&self.config).command()
    }

    /// Changes configuration bytes as the device does, past all masks. Not for BARs and the command register.
    pub fn set_config(&self, offset: u16, bytes: &[u8]) {
        lock(&self.config).set(offset, bytes);
    }

    /// Where BAR `index` answers now.
    pub fn bar_address(&self, index: usize) -> Option<u64> {
        lock(&self.config).bar_address(index)
    }

    /// Opens, moves or closes (`None`) the function's window `number`, 0 to 15. Takes effect after the configuration
    /// access or reset during which a hook calls this, or when the function is added to a bus.
    pub fn set_window(&self, number: u8, window: Option<Window>) {
        let mut windows = lock(&self.windows);
        match window {
            Some(window) => windows.insert(number & 15, window),
            None => windows.remove(&(number & 15)),
        };
    }

    /// The guest reads `size` bytes of configuration space.
    pub(crate) fn config_read(&self, offset: u16, size: u8) -> u32 {
        if let Some(value) = self.hook.as_ref().and_then(|hook| hook.config_read(self, offset, size)) {
            return value;
        }
        let value = lock(&self.config).read(offset, size);
        let covers_status = offset <= reg::STATUS && reg::STATUS < offset.saturating_add(u16::from(size));
        if covers_status && self.intx.as_ref().is_some_and(|(_, line)| line.level()) {
            return value | u32::from(Status::INTERRUPT.bits()) << (8 * (reg::STATUS - offset));
        }
        value
    }

    /// The guest writes `size` bytes of configuration space. The bus maps BARs anew afterwards.
    pub(crate) fn config_write(&self, offset: u16, size: u8, value: u32) {
        lock(&self.config).write(offset, size, value);
        self.follow_control();
        if let Some(hook) = &self.hook {
            hook.config_written(self, offset, size);
        }
    }

    /// Makes the interrupt line and MSI-X obey the registers.
    fn follow_control(&self) {
        let config = lock(&self.config);
        let command = config.command();
        if let Some((_, line)) = &self.intx {
            line.set_disabled(command.contains(Command::INTX_DISABLE));
        }
        let Some((capability, msix)) = &self.msix else { return };
        let control = config.read(capability + 2, 2);
        drop(config);
        msix.set_control(control & 0x8000 != 0, control & 0x4000 != 0, command.contains(Command::BUS_MASTER));
    }

    pub(crate) fn reset(&self) {
        lock(&self.config).set(0, &self.at_reset);
        if let Some((_, line)) = &self.intx {
            line.set_level(false);
        }
        if let Some((_, msix)) = &self.msix {
            msix.reset();
        }
        self.follow_control();
        if let Some(hook) = &self.hook {
            hook.reset(self);
        }
    }

    /// What the function answers now: number, address space, range. BARs are numbers 0 to 5, other windows follow.
    pub(crate) fn wanted(&self) -> Vec<(u8, Space, Wanted)> {
        let mut list = Vec::new();
        let config = lock(&self.config);
        for (index, handler) in self.handlers.iter().enumerate() {
            let (Some(handler), Some(bar)) = (handler, config.bar(index)) else { continue };
            if let Some(start) = config.bar_address(index) {
                let owner = format!("{} BAR {index}", self.label()).into();
                let wanted = Wanted { start, len: bar.size, owner, handler: handler.clone() };
                list.push((index as u8, bar.kind.space(), wanted));
            }
        }
        drop(config);
        for (number, window) in lock(&self.windows).iter() {
            let Window { space, start, len, handler } = window.clone();
            list.push((6 + number, space, Wanted { start, len, owner: self.label().into(), handler }));
        }
        list
    }

    /// Marks the function as being on a bus; false if it was before.
    pub(crate) fn claim(&self) -> bool {
        !self.added.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn intx(&self) -> Option<&(Pin, Arc<Intx>)> {
        self.intx.as_ref()
    }

    pub(crate) fn msix(&self) -> Option<&Arc<Msix>> {
        self.msix.as_ref().map(|(_, msix)| msix)
    }

    /// What the guest has made of it, to be saved while nothing runs.
    pub fn save(&self) -> FunctionState {
        FunctionState {
            version: FunctionState::VERSION,
            config: lock(&self.config).bytes().to_vec(),
            intx: self.intx.as_ref().is_some_and(|(_, line)| line.level()),
            msix: self.msix().map(|msix| msix.save()),
        }
    }

    /// Whether `state` can be loaded into this function. Changes nothing.
    pub fn check(&self, state: &FunctionState) -> Result<(), PciError> {
        let (found, supported) = (state.version, FunctionState::VERSION);
        if found == 0 || found > supported {
            return Err(PciError::Version { name: self.label(), what: "the PCI function", found, supported });
        }
        lock(&self.config).check_saved(&self.label(), &state.config)?;
        match (self.msix(), &state.msix) {
            (None, None) => Ok(()),
            (Some(msix), Some(saved)) => msix.check(&self.label(), saved),
            (here, _) => {
                let what =
                    if here.is_some() { "is missing from the saved state" } else { "is in the saved state only" };
                Err(PciError::Msix { name: self.label(), what: what.into() })
            }
        }
    }

    /// Loads a state that [`PciFunction::check`] has passed.
    pub(crate) fn load(&self, state: &FunctionState) {
        lock(&self.config).set(0, &state.config);
        if let (Some(msix), Some(saved)) = (self.msix(), &state.msix) {
            msix.restore(saved);
        }
        if let Some((_, line)) = &self.intx {
            line.set_level(state.intx);
        }
        self.follow_control();
        if let Some(hook) = &self.hook {
            hook.restored(self);
        }
    }
}

/// Builds a [`PciFunction`].
pub struct PciFunctionBuilder {
    name: Arc<str>,
    id: Option<Arc<str>>,
    config: ConfigSpace,
    handlers: [Option<Arc<dyn IoHandler>>; 6],
    windows: BTreeMap<u8, Window>,
    intx: Option<(Pin, Arc<Intx>)>,
    msix: Option<(u16, Arc<Msix>)>,
    hook: Option<Arc<dyn PciHook>>,
}

impl PciFunctionBuilder {
    /// A function with nothing but a header.
    pub fn new(name: &str, identity: Identity, size: ConfigSize) -> Self {
        Self {
            name: name.into(),
            id: None,
            config: ConfigSpace::new(size, identity),
            handlers: Default::default(),
            windows: BTreeMap::new(),
            intx: None,
            msix: None,
            hook: None,
        }
    }

    /// The id that the user gave the device.
    pub fn id(&mut self, id: Option<&str>) -> &mut Self {
        self.id = id.map(Into::into);
        self
    }

    /// Says that the slot has more functions.
    pub fn multifunction(&mut self) -> &mut Self {
        self.config.set(reg::HEADER_TYPE, &[reg::MULTIFUNCTION]);
        self
    }

    /// Adds BAR `index` of `size` bytes.
    pub fn bar(
        &mut self,
        index: usize,
        kind: BarKind,
        size: u64,
        handler: Arc<dyn IoHandler>,
    ) -> Result<&mut Self, PciError> {
        self.config.add_bar(&self.name, index, Bar { kind, size })?;
        self.handlers[index] = Some(handler);
        Ok(self)
    }

    /// Adds a capability; see [`ConfigSpace::add_capability`]. Gives its offset.
    pub fn capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Result<u8, PciError> {
        self.config.add_capability(&self.name, id, body, writable)
    }

    /// Adds the MSI-X capability, with table and PBA in BARs that are there already, or in a memory BAR that is added
    /// here if it is not ([`MsixLayout::exclusive`](crate::MsixLayout::exclusive) tells its size).
    pub fn msix(&mut self, msix: Arc<Msix>) -> Result<&mut Self, PciError> {
        let layout = msix.layout();
        let wrong = |what: &str| PciError::Msix { name: self.name.to_string(), what: what.into() };
        if self.msix.is_some() {
            return Err(wrong("is there already"));
        }
        let parts = [
            (layout.table_bar, u64::from(layout.table_offset) + layout.table_len()),
            (layout.pba_bar, u64::from(layout.pba_offset) + layout.pba_len()),
        ];
        for (bar, _) in parts {
            if self.config.bar(usize::from(bar)).is_none() {
                let end = parts.iter().filter(|part| part.0 == bar).map(|part| part.1).max().unwrap_or(0);
                let size = end.next_power_of_two().max(0x1000);
                let kind = BarKind::Memory32 { prefetchable: false };
                self.config.add_bar(&self.name, usize::from(bar), Bar { kind, size })?;
            }
        }
        for (bar, end) in parts {
            let fits = |b: Bar| b.kind.space() == Space::Memory && end <= b.size;
            if !self.config.bar(usize::from(bar)).is_some_and(fits) {
                return Err(wrong("table or PBA is not inside a memory BAR"));
            }
        }
        let (body, writable) = layout.capability();
        let capability = self.capability(reg::CAP_MSIX, &body, &writable)?;
        self.msix = Some((u16::from(capability), msix));
        Ok(self)
    }

    /// Connects an interrupt pin.
    pub fn intx(&mut self, pin: Pin, line: Arc<Intx>) -> &mut Self {
        self.config.set(reg::INTERRUPT_PIN, &[pin.register()]);
        self.intx = Some((pin, line));
        self
    }

    /// Opens a window from the start; see [`PciFunction::set_window`].
    pub fn window(&mut self, number: u8, window: Window) -> &mut Self {
        self.windows.insert(number & 15, window);
        self
    }

    /// Who hears of configuration accesses and reset.
    pub fn hook(&mut self, hook: Arc<dyn PciHook>) -> &mut Self {
        self.hook = Some(hook);
        self
    }

    /// Sets bytes, and says which of their bits the guest may change: registers of the function's own.
    pub fn register(&mut self, offset: u16, bytes: &[u8], writable: &[u8]) -> &mut Self {
        self.config.set(offset, bytes);
        self.config.set_writable(offset, writable);
        self
    }

    /// The function. Its configuration space, as it is now, is what a reset brings back.
    pub fn build(mut self) -> Arc<PciFunction> {
        if let Some((_, msix)) = &self.msix {
            let layout = msix.layout();
            for bar in [layout.table_bar, layout.pba_bar] {
                let slot = &mut self.handlers[usize::from(bar)];
                let registers = slot.take();
                *slot = Some(Arc::new(MsixBar { msix: msix.clone(), bar, registers }));
                if layout.table_bar == layout.pba_bar {
                    break;
                }
            }
        }
        Arc::new(PciFunction {
            name: self.name,
            id: self.id,
            at_reset: self.config.bytes().into(),
            config: Mutex::new(self.config),
            handlers: self.handlers,
            windows: Mutex::new(self.windows),
            intx: self.intx,
            msix: self.msix,
            hook: self.hook,
            added: AtomicBool::new(false),
        })
    }
}
