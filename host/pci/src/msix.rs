//! MSI-X: the table and the pending bits in a BAR, and the capability that switches them on (PCI 3.0, section 6.8.2).
//!
//! A vector that fires while it, the function or bus mastering is off stays pending and is sent when the last of them is
//! switched on again.

use std::sync::{Arc, Mutex};

use cardcage_memory::IoHandler;
use serde::{Deserialize, Serialize};

use crate::{PciError, lock};

/// Where a message-signalled interrupt goes: a write of `data` to `address`, on the machine's bus.
pub trait MsiSink: Send + Sync {
    /// Carries out the write. The address and the data are the guest's; RAM is a legal target.
    fn send_msi(&self, address: u64, data: u32);
}

/// Bytes of a table entry: address, data, vector control.
const ENTRY: usize = 16;
/// Vector control bit: the vector is masked.
const MASKED: u8 = 1;
/// Most vectors that a capability can tell of.
const MAX_VECTORS: u16 = 2048;

/// Where the table and the pending bit array (PBA) are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsixLayout {
    /// How many vectors, 1 to 2048.
    pub vectors: u16,
    /// BAR that holds the table.
    pub table_bar: u8,
    /// Offset of the table in it, a multiple of 8.
    pub table_offset: u32,
    /// BAR that holds the PBA.
    pub pba_bar: u8,
    /// Offset of the PBA in it, a multiple of 8.
    pub pba_offset: u32,
}

impl MsixLayout {
    /// A BAR of its own with the table at 0 and the PBA behind it; and that BAR's size, at least 4 KiB.
    pub fn exclusive(vectors: u16, bar: u8) -> (Self, u64) {
        let table = u32::from(vectors) * ENTRY as u32;
        let pba_offset = table.next_multiple_of(0x800).max(0x800);
        let end = u64::from(pba_offset) + u64::from(vectors).div_ceil(64) * 8;
        let layout = Self { vectors, table_bar: bar, table_offset: 0, pba_bar: bar, pba_offset };
        (layout, end.next_power_of_two().max(0x1000))
    }

    /// Bytes of the table.
    pub fn table_len(&self) -> u64 {
        u64::from(self.vectors) * ENTRY as u64
    }

    /// Bytes of the PBA.
    pub fn pba_len(&self) -> u64 {
        u64::from(self.vectors).div_ceil(64) * 8
    }

    /// The capability without ID and link, and which bits of it the guest may change.
    pub(crate) fn capability(&self) -> ([u8; 10], [u8; 10]) {
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(self.vectors - 1).to_le_bytes());
        body[2..6].copy_from_slice(&(self.table_offset | u32::from(self.table_bar)).to_le_bytes());
        body[6..10].copy_from_slice(&(self.pba_offset | u32::from(self.pba_bar)).to_le_bytes());
        let mut writable = [0; 10];
        writable[1] = 0xc0;
        (body, writable)
    }

    fn check(&self) -> Result<(), String> {
        let Self { vectors, table_bar, table_offset, pba_bar, pba_offset } = *self;
        if vectors == 0 || vectors > MAX_VECTORS {
            return Err(format!("has {vectors} vectors, 1 to {MAX_VECTORS} are possible"));
        }
        if table_bar > 5 || pba_bar > 5 || table_offset % 8 != 0 || pba_offset % 8 != 0 {
            return Err(format!(
                "table at BAR {table_bar}+{table_offset:#x} or PBA at BAR {pba_bar}+{pba_offset:#x} is not in BAR 0 to 5 at a multiple of 8"
            ));
        }
        let (table, pba) = (u64::from(table_offset), u64::from(pba_offset));
        if table_bar == pba_bar && table < pba + self.pba_len() && pba < table + self.table_len() {
            return Err(format!("table at {table:#x} and PBA at {pba:#x} overlap in BAR {pba_bar}"));
        }
        Ok(())
    }
}

/// What the guest has made of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    /// Table entries, 16 bytes each.
    pub table: Vec<u8>,
    /// Pending bits, 64 to a word.
    pub pending: Vec<u64>,
}

struct Table {
    entries: Box<[[u8; ENTRY]]>,
    pending: Box<[u64]>,
    enabled: bool,
    function_masked: bool,
    bus_master: bool,
    sink: Option<Arc<dyn MsiSink>>,
}

/// The MSI-X table of one function: the device fires vectors, the guest says where they go.
pub struct Msix {
    layout: MsixLayout,
    table: Mutex<Table>,
}

impl Msix {
    /// A table with all vectors masked. `owner` names the function in errors.
    pub fn new(owner: &str, layout: MsixLayout) -> Result<Arc<Self>, PciError> {
        layout.check().map_err(|what| PciError::Msix { name: owner.into(), what })?;
        let (entries, pending) = blank(&layout);
        let table = Table { entries, pending, enabled: false, function_masked: false, bus_master: false, sink: None };
        Ok(Arc::new(Self { layout, table: Mutex::new(table) }))
    }

    /// Where the table and the PBA are.
    pub fn layout(&self) -> MsixLayout {
        self.layout
    }

    /// Whether the guest has switched MSI-X on: interrupts go by vectors, not by the INTx line.
    pub fn is_enabled(&self) -> bool {
        lock(&self.table).enabled
    }

    /// Whether a vector would have to wait now. A vector that is not there counts as masked.
    pub fn is_masked(&self, vector: u16) -> bool {
        let table = lock(&self.table);
        !table.open() || table.entries.get(usize::from(vector)).is_none_or(|e| e[12] & MASKED != 0)
    }

    /// Address and data of a vector.
    pub fn message(&self, vector: u16) -> Option<(u64, u32)> {
        lock(&self.table).entries.get(usize::from(vector)).map(message)
    }

    /// Fires a vector: sends its message, or makes it pending while it is masked. False if MSI-X is off or there is no
    /// such vector: then nothing happens.
    pub fn fire(&self, vector: u16) -> bool {
        let mut table = lock(&self.table);
        if !table.enabled || vector >= self.layout.vectors {
            return false;
        }
        let (word, bit) = (usize::from(vector / 64), 1 << (vector % 64));
        table.pending[word] |= bit;
        let due = table.take_due(vector.into());
        let sink = table.sink.clone();
        drop(table);
        if let (Some((address, data)), Some(sink)) = (due, sink) {
            sink.send_msi(address, data);
        }
        true
    }

    /// Follows the message control and command registers.
    pub(crate) fn set_control(&self, enabled: bool, function_masked: bool, bus_master: bool) {
        self.change(|table| {
            (table.enabled, table.function_masked, table.bus_master) = (enabled, function_masked, bus_master);
        });
    }

    /// Connects the table to the machine's bus.
    pub(crate) fn connect(&self, sink: Option<Arc<dyn MsiSink>>) {
        lock(&self.table).sink = sink;
    }

    /// Masks all vectors and forgets what is pending.
    pub(crate) fn reset(&self) {
        let mut table = lock(&self.table);
        (table.entries, table.pending) = blank(&self.layout);
    }

    pub(crate) fn save(&self) -> MsixState {
        let table = lock(&self.table);
        MsixState { table: table.entries.concat(), pending: table.pending.to_vec() }
    }

    pub(crate) fn check(&self, owner: &str, state: &MsixState) -> Result<(), PciError> {
        let length = |what, found, expected| PciError::Length { name: owner.into(), what, found, expected };
        let (table, pba) = (self.layout.table_len() as usize, self.layout.pba_len() as usize);
        if state.table.len() != table {
            return Err(length("MSI-X table", state.table.len(), table));
        }
        if state.pending.len() * 8 != pba {
            return Err(length("MSI-X pending bits", state.pending.len() * 8, pba));
        }
        Ok(())
    }

    /// Takes over a state that [`Msix::check`] has passed.
    pub(crate) fn restore(&self, state: &MsixState) {
        let mut table = lock(&self.table);
        for (entry, saved) in table.entries.iter_mut().zip(state.table.chunks_exact(ENTRY)) {
            entry.copy_from_slice(saved);
        }
        for (word, &saved) in table.pending.iter_mut().zip(&state.pending) {
            *word = saved;
        }
    }

    fn change(&self, f: impl FnOnce(&mut Table)) {
        let mut table = lock(&self.table);
        f(&mut table);
        let due: Vec<_> = (0..self.layout.vectors.into()).filter_map(|vector| table.take_due(vector)).collect();
        let sink = table.sink.clone();
        drop(table);
        if let Some(sink) = sink {
            due.into_iter().for_each(|(address, data)| sink.send_msi(address, data));
        }
    }

    /// Which byte of the table or the PBA an offset into a BAR is, if any.
    fn locate(&self, bar: u8, offset: u64) -> Option<Place> {
        let within = |start: u32, len| offset.checked_sub(u64::from(start)).filter(|&at| at < len);
        let MsixLayout { table_bar, table_offset, pba_bar, pba_offset, .. } = self.layout;
        let table = || within(table_offset, self.layout.table_len()).map(|at| Place::Table(at as usize));
        let pba = || within(pba_offset, self.layout.pba_len()).map(|at| Place::Pending(at as usize));
        (bar == table_bar).then(table).flatten().or_else(|| (bar == pba_bar).then(pba).flatten())
    }

    fn read_at(&self, place: Place, size: u8) -> u64 {
        let table = lock(&self.table);
        let byte = |i| match place {
            Place::Table(at) => table.entries.as_flattened().get(at + i).copied(),
            Place::Pending(at) => table.pending.get((at + i) / 8).map(|word: &u64| word.to_le_bytes()[(at + i) % 8]),
        };
        (0..usize::from(size.min(8))).fold(0, |value, i| value | u64::from(byte(i).unwrap_or(0)) << (8 * i))
    }

    fn write_at(&self, place: Place, size: u8, value: u64) {
        let Place::Table(at) = place else { return };
        self.change(|table| {
            let bytes = table.entries.as_flattened_mut().iter_mut().enumerate().skip(at);
            for ((at, byte), new) in bytes.zip(value.to_le_bytes()).take(usize::from(size)) {
                // Reserved bits of vector control stay zero.
                *byte = match at % ENTRY {
                    12 => new & MASKED,
                    13.. => 0,
                    _ => new,
                };
            }
        });
    }
}

enum Place {
    Table(usize),
    Pending(usize),
}

fn blank(layout: &MsixLayout) -> (Box<[[u8; ENTRY]]>, Box<[u64]>) {
    let mut entry = [0; ENTRY];
    entry[12] = MASKED;
    let words = usize::from(layout.vectors).div_ceil(64);
    (vec![entry; usize::from(layout.vectors)].into(), vec![0; words].into())
}

fn message(entry: &[u8; ENTRY]) -> (u64, u32) {
    let value = u128::from_le_bytes(*entry);
    (value as u64 & !3, (value >> 64) as u32)
}

impl Table {
    fn open(&self) -> bool {
        self.enabled && !self.function_masked && self.bus_master
    }

    /// Takes the message of `vector`, if it is pending and nothing masks it.
    fn take_due(&mut self, vector: usize) -> Option<(u64, u32)> {
        let open = self.open() && self.sink.is_some();
        let entry = self.entries.get(vector).filter(|entry| open && entry[12] & MASKED == 0)?;
        let (word, bit) = (self.pending.get_mut(vector / 64)?, 1 << (vector % 64));
        let due = *word & bit != 0;
        *word &= !bit;
        due.then(|| message(entry))
    }
}

/// A BAR that holds the table, the PBA or both, and perhaps registers of the device around them.
pub(crate) struct MsixBar {
    pub(crate) msix: Arc<Msix>,
    pub(crate) bar: u8,
    pub(crate) registers: Option<Arc<dyn IoHandler>>,
}

impl IoHandler for MsixBar {
    fn read(&self, offset: u64, size: u8) -> u64 {
        match (self.msix.locate(self.bar, offset), &self.registers) {
            (Some(place), _) => self.msix.read_at(place, size),
            (None, Some(registers)) => registers.read(offset, size),
            (None, None) => 0,
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        match (self.msix.locate(self.bar, offset), &self.registers) {
            (Some(place), _) => self.msix.write_at(place, size, value),
            (None, Some(registers)) => registers.write(offset, size, value),
            (None, None) => {}
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Remembers every message.
    #[derive(Default)]
    pub(crate) struct Inbox(Mutex<Vec<(u64, u32)>>);
    impl MsiSink for Inbox {
        fn send_msi(&self, address: u64, data: u32) {
            lock(&self.0).push((address, data));
        }
    }
    impl Inbox {
        pub(crate) fn take(&self) -> Vec<(u64, u32)> {
            std::mem::take(&mut lock(&self.0))
        }
    }

    fn table_of(vectors: u16) -> (Arc<Inbox>, Arc<Msix>, MsixBar) {
        let inbox = Arc::new(Inbox::default());
        let msix = Msix::new("x", MsixLayout::exclusive(vectors, 1).0).unwrap();
        msix.connect(Some(inbox.clone()));
        let bar = MsixBar { msix: msix.clone(), bar: 1, registers: None };
        (inbox, msix, bar)
    }

    fn program(bar: &MsixBar, vector: u64, address: u64, data: u64, masked: bool) {
        bar.write(16 * vector, 8, address);
        bar.write(16 * vector + 8, 4, data);
        bar.write(16 * vector + 12, 4, u64::from(masked));
    }

    #[test]
    fn a_vector_is_sent_to_where_the_guest_says() {
        let (inbox, msix, bar) = table_of(3);
        program(&bar, 1, 0x1_fee0_1000, 0x1234_5678, false);
        assert!(!msix.fire(1));
        msix.set_control(true, false, true);
        assert!(msix.fire(1) && !msix.fire(3));
        assert_eq!(inbox.take(), [(0x1_fee0_1000, 0x1234_5678)]);
        assert_eq!(bar.read(16, 8), 0x1_fee0_1000);
        assert_eq!(bar.read(24, 8), 0x1234_5678);
    }

    #[test]
    fn each_mask_holds_a_vector_back_until_it_is_lifted() {
        let (inbox, msix, bar) = table_of(70);
        program(&bar, 69, 0x1000, 7, true);
        msix.set_control(true, false, true);
        assert!(msix.fire(69) && msix.fire(69) && msix.is_masked(69));
        assert_eq!(bar.read(u64::from(msix.layout().pba_offset) + 8, 8), 1 << 5);
        bar.write(16 * 69 + 12, 4, 0xffff_fffe);
        assert_eq!(inbox.take(), [(0x1000, 7)]);
        assert_eq!(bar.read(16 * 69 + 12, 4), 0);
        for control in [(true, true, true), (true, false, false)] {
            msix.set_control(control.0, control.1, control.2);
            assert!(msix.fire(69) && msix.is_masked(69));
            assert_eq!(inbox.take(), []);
            msix.set_control(true, false, true);
            assert_eq!(inbox.take(), [(0x1000, 7)]);
        }
    }

    #[test]
    fn pending_bits_are_read_only_and_gone_after_reset() {
        let (inbox, msix, bar) = table_of(2);
        msix.set_control(true, false, true);
        msix.fire(0);
        let pba = u64::from(msix.layout().pba_offset);
        bar.write(pba, 8, 0xff);
        assert_eq!(bar.read(pba, 1), 1);
        msix.reset();
        assert_eq!((bar.read(pba, 1), bar.read(12, 4), inbox.take()), (0, 1, vec![]));
    }

    #[test]
    fn accesses_at_the_end_of_the_table_stay_inside() {
        let (_, msix, bar) = table_of(1);
        bar.write(15, 8, u64::MAX);
        bar.write(0x7ff, 8, u64::MAX);
        assert_eq!(bar.read(12, 4), 1);
        assert_eq!(bar.read(u64::from(msix.layout().pba_offset) + 7, 8), 0);
    }

    #[test]
    fn layouts_that_cannot_be_are_refused() {
        let layout = MsixLayout { vectors: 8, table_bar: 0, table_offset: 0, pba_bar: 0, pba_offset: 0x78 };
        let text = |layout| Msix::new("x", layout).err().map(|e| e.to_string()).unwrap_or_default();
        assert_eq!(text(layout), "PCI: x: MSI-X table at 0x0 and PBA at 0x78 overlap in BAR 0");
        assert!(text(MsixLayout { vectors: 0, ..layout }).contains("has 0 vectors, 1 to 2048"));
        assert!(text(MsixLayout { pba_offset: 0x84, ..layout }).contains("multiple of 8"));
        assert_eq!(text(MsixLayout { pba_offset: 0x80, ..layout }), "");
        for vectors in [1, 3, 128, 129, 2048] {
            let (layout, size) = MsixLayout::exclusive(vectors, 4);
            assert_eq!(text(layout), "");
            assert!(u64::from(layout.pba_offset) + layout.pba_len() <= size, "{vectors}");
        }
    }

    #[test]
    fn state_of_another_size_is_refused() {
        let (_, msix, bar) = table_of(4);
        program(&bar, 2, 0x2000, 9, false);
        let state = msix.save();
        let (_, other, _) = table_of(5);
        assert!(other.check("x", &state).unwrap_err().to_string().contains("MSI-X table has 64 bytes, 80"));
        let (_, same, _) = table_of(4);
        same.check("x", &state).unwrap();
        same.restore(&state);
        assert_eq!(same.message(2), Some((0x2000, 9)));
    }
}
