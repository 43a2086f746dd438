//! PCI configuration through ports 0xcf8 and 0xcfc, BARs, capabilities and MSI-X (PCI Local Bus Specification 3.0,
//! sections 3.2.2.3.2, 6.2.5, 6.7 and 6.8.2).

use std::cell::Cell;

use crate::Qtest;

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
const COMMAND: u8 = 0x04;
const STATUS: u8 = 0x06;
const BAR0: u8 = 0x10;
const CAPABILITIES: u8 = 0x34;
const COMMAND_IO_MEMORY_MASTER: u16 = 7;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const CAP_MSIX: u8 = 0x11;
const MSIX_ENABLE: u16 = 1 << 15;
/// Where BARs are put: the addresses that libqos uses.
const IO_WINDOW: (u32, u32) = (0xc000, 0x1_0000);
const MEMORY_WINDOW: (u32, u32) = (0xe000_0000, 0xfeb0_0000);

/// Bus 0 of a PC, and the addresses that are left for BARs.
pub struct Pci<'a> {
    qtest: &'a Qtest,
    next_io: Cell<u32>,
    next_memory: Cell<u32>,
}

impl<'a> Pci<'a> {
    /// The bus, with no BAR placed yet.
    pub fn new(qtest: &'a Qtest) -> Self {
        Self { qtest, next_io: Cell::new(IO_WINDOW.0), next_memory: Cell::new(MEMORY_WINDOW.0) }
    }

    /// A function of bus 0, whether or not there is one.
    pub fn device(&'a self, device: u8, function: u8) -> PciDevice<'a> {
        PciDevice { pci: self, devfn: device << 3 | function & 7 }
    }

    /// Every function that answers, in order.
    pub fn scan(&'a self) -> Vec<PciDevice<'a>> {
        let mut found = Vec::new();
        for device in 0..32 {
            let first = self.device(device, 0);
            if first.vendor() == 0xffff {
                continue;
            }
            let functions = if first.config_read8(0x0e) & 0x80 != 0 { 8 } else { 1 };
            found.extend((0..functions).map(|f| self.device(device, f)).filter(|f| f.vendor() != 0xffff));
        }
        found
    }

    /// The first function with these ids.
    pub fn find(&'a self, vendor: u16, device: u16) -> Option<PciDevice<'a>> {
        self.scan().into_iter().find(|f| (f.vendor(), f.device_id()) == (vendor, device))
    }
}

/// One function.
#[derive(Clone, Copy)]
pub struct PciDevice<'a> {
    pci: &'a Pci<'a>,
    devfn: u8,
}

/// A capability in configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability {
    /// What it is.
    pub id: u8,
    /// Where it starts.
    pub offset: u8,
}

impl<'a> PciDevice<'a> {
    /// Device and function number.
    pub fn slot(&self) -> (u8, u8) {
        (self.devfn >> 3, self.devfn & 7)
    }

    /// Vendor id; 0xffff if nobody is there.
    pub fn vendor(&self) -> u16 {
        self.config_read16(0)
    }

    /// Device id.
    pub fn device_id(&self) -> u16 {
        self.config_read16(2)
    }

    fn select(&self, offset: u8) -> (&'a Qtest, u16) {
        let qtest = self.pci.qtest;
        qtest.outl(CONFIG_ADDRESS, 0x8000_0000 | u32::from(self.devfn) << 8 | u32::from(offset & !3));
        (qtest, CONFIG_DATA + u16::from(offset & 3))
    }

    /// Reads configuration space.
    pub fn config_read8(&self, offset: u8) -> u8 {
        let (qtest, port) = self.select(offset);
        qtest.inb(port)
    }

    /// Reads configuration space at an even offset.
    pub fn config_read16(&self, offset: u8) -> u16 {
        let (qtest, port) = self.select(offset);
        qtest.inw(port)
    }

    /// Reads configuration space at a multiple of four.
    pub fn config_read32(&self, offset: u8) -> u32 {
        let (qtest, port) = self.select(offset);
        qtest.inl(port)
    }

    /// Writes configuration space.
    pub fn config_write8(&self, offset: u8, value: u8) {
        let (qtest, port) = self.select(offset);
        qtest.outb(port, value);
    }

    /// Writes configuration space at an even offset.
    pub fn config_write16(&self, offset: u8, value: u16) {
        let (qtest, port) = self.select(offset);
        qtest.outw(port, value);
    }

    /// Writes configuration space at a multiple of four.
    pub fn config_write32(&self, offset: u8, value: u32) {
        let (qtest, port) = self.select(offset);
        qtest.outl(port, value);
    }

    /// Lets the device answer on its BARs and reach memory.
    pub fn enable(&self) {
        self.config_write16(COMMAND, self.config_read16(COMMAND) | COMMAND_IO_MEMORY_MASTER);
    }

    /// Finds out how large a BAR is, gives it an address and returns it. A 64-bit BAR is put below 4 GiB.
    #[track_caller]
    pub fn map_bar(&self, number: u8) -> Bar<'a> {
        assert!(number < 6, "there are BARs 0 to 5, not {number}");
        let register = BAR0 + 4 * number;
        self.config_write32(register, u32::MAX);
        let mask = self.config_read32(register);
        let is_io = mask & 1 != 0;
        let size = (mask & if is_io { !3 } else { !15 }).wrapping_neg() & if is_io { 0xffff } else { u32::MAX };
        assert!(size.is_power_of_two(), "BAR {number} is absent: it reads {mask:#x} after writing ones");
        let (next, window) =
            if is_io { (&self.pci.next_io, IO_WINDOW) } else { (&self.pci.next_memory, MEMORY_WINDOW) };
        let start = next.get().next_multiple_of(size);
        assert!(window.1 - start >= size, "BAR {number} of {size:#x} bytes does not fit below {:#x}", window.1);
        next.set(start + size);
        self.config_write32(register, start);
        if !is_io && mask & 6 == 4 {
            self.config_write32(register + 4, 0);
        }
        Bar { qtest: self.pci.qtest, address: start, size, is_io }
    }

    /// The capabilities, in the order of the list.
    pub fn capabilities(&self) -> Vec<Capability> {
        let mut found: Vec<Capability> = Vec::new();
        if self.config_read16(STATUS) & STATUS_CAPABILITIES == 0 {
            return found;
        }
        let mut offset = self.config_read8(CAPABILITIES) & !3;
        while offset != 0 {
            assert!(found.iter().all(|cap| cap.offset != offset), "the list of capabilities loops at {offset:#x}");
            found.push(Capability { id: self.config_read8(offset), offset });
            offset = self.config_read8(offset + 1) & !3;
        }
        found
    }

    /// Turns MSI-X on, all vectors masked. `bars` maps the BAR that holds the table, unless it is mapped already.
    #[track_caller]
    pub fn enable_msix(&self, mut bars: impl FnMut(u8) -> Bar<'a>) -> Msix<'a> {
        let capability = self.capabilities().into_iter().find(|cap| cap.id == CAP_MSIX).expect("MSI-X is there");
        let control = self.config_read16(capability.offset + 2);
        let table = self.config_read32(capability.offset + 4);
        self.config_write16(capability.offset + 2, control | MSIX_ENABLE);
        let msix = Msix { table: bars((table & 7) as u8), start: table & !7, vectors: (control & 0x7ff) + 1 };
        (0..msix.vectors).for_each(|vector| msix.mask(vector, true));
        msix
    }
}

/// A BAR that has been given an address.
#[derive(Clone, Copy)]
pub struct Bar<'a> {
    qtest: &'a Qtest,
    address: u32,
    size: u32,
    is_io: bool,
}

macro_rules! bar_accesses {
    ($($read:ident $write:ident $ty:ident $inp:ident $outp:ident $load:ident $store:ident;)*) => { $(
        /// Reads at an offset, as one access.
        #[track_caller]
        pub fn $read(&self, offset: u32) -> $ty {
            match self.port(offset) {
                Some(port) => self.qtest.$inp(port),
                None => self.qtest.$load(self.memory(offset)),
            }
        }
        /// Writes at an offset, as one access.
        #[track_caller]
        pub fn $write(&self, offset: u32, value: $ty) {
            match self.port(offset) {
                Some(port) => self.qtest.$outp(port, value),
                None => self.qtest.$store(self.memory(offset), value),
            }
        }
    )* };
}

impl Bar<'_> {
    /// Where it is.
    pub fn address(&self) -> u32 {
        self.address
    }

    /// How large it is.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Whether it is in port space.
    pub fn is_io(&self) -> bool {
        self.is_io
    }

    fn port(&self, offset: u32) -> Option<u16> {
        self.is_io.then(|| u16::try_from(self.address + offset).expect("ports end at 0xffff"))
    }

    fn memory(&self, offset: u32) -> u64 {
        u64::from(self.address) + u64::from(offset)
    }

    bar_accesses! {
        read8 write8 u8 inb outb readb writeb;
        read16 write16 u16 inw outw readw writew;
        read32 write32 u32 inl outl readl writel;
    }
}

/// MSI-X of one function, with vectors that write to RAM, where a test can see them.
pub struct Msix<'a> {
    table: Bar<'a>,
    start: u32,
    vectors: u16,
}

impl Msix<'_> {
    /// How many vectors there are.
    pub fn vectors(&self) -> u16 {
        self.vectors
    }

    fn entry(&self, vector: u16) -> u32 {
        assert!(vector < self.vectors, "there are {} vectors, not {vector}", self.vectors);
        self.start + 16 * u32::from(vector)
    }

    /// Makes a vector write `data` to guest RAM at `addr`, which is cleared; and unmasks it.
    #[track_caller]
    pub fn arm(&self, vector: u16, addr: u64, data: u32) {
        let entry = self.entry(vector);
        self.table.qtest.writel(addr, 0);
        self.table.write32(entry, (addr & 0xffff_ffff) as u32);
        self.table.write32(entry + 4, (addr >> 32) as u32);
        self.table.write32(entry + 8, data);
        self.mask(vector, false);
    }

    /// Masks or unmasks a vector.
    #[track_caller]
    pub fn mask(&self, vector: u16, masked: bool) {
        self.table.write32(self.entry(vector) + 12, u32::from(masked));
    }

    /// Whether an armed vector has been sent since the last call.
    #[track_caller]
    pub fn take(&self, vector: u16) -> bool {
        let qtest = self.table.qtest;
        let entry = self.entry(vector);
        let addr = u64::from(self.table.read32(entry)) | u64::from(self.table.read32(entry + 4)) << 32;
        let sent = qtest.readl(addr) == self.table.read32(entry + 8);
        if sent {
            qtest.writel(addr, 0);
        }
        sent
    }
}
