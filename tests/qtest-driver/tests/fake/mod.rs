//! A machine for testing the driver: 64 MiB of RAM, one PCI function with an I/O BAR, a memory BAR and MSI-X, and a
//! virtio-mmio entropy device that answers every buffer with 0x5a.

use cardcage_qtest::{IrqLines, QtestTarget};

const RAM: usize = 64 << 20;
/// Where the virtio-mmio device is.
pub(crate) const MMIO: u64 = 0xfeb0_0000;
/// Sizes of BAR 0 (ports) and BAR 1 (memory, with the MSI-X table at 0x800).
const BAR_SIZES: [u32; 2] = [0x20, 0x1000];

pub(crate) struct Fake {
    ram: Vec<u8>,
    now: u64,
    lines: Option<IrqLines>,
    config_address: u32,
    config: [u8; 256],
    registers: [u8; 0x1000],
    mmio: Mmio,
}

#[derive(Default)]
struct Mmio {
    select: u32,
    status: u32,
    features: [u32; 2],
    driver_select: u32,
    size: u32,
    rings: [u64; 3],
    ready: bool,
    seen: u16,
    interrupt: u32,
}

impl Default for Fake {
    fn default() -> Self {
        let mut config = [0; 256];
        config[..4].copy_from_slice(&[0x34, 0x12, 0x78, 0x56]);
        config[6] = 0x10;
        config[0x10] = 1;
        config[0x34] = 0x40;
        config[0x40..0x44].copy_from_slice(&[0x09, 0x50, 0, 0]);
        config[0x50..0x5c].copy_from_slice(&[0x11, 0, 3, 0, 0x01, 0x08, 0, 0, 0x01, 0x0c, 0, 0]);
        Self {
            ram: vec![0; RAM],
            now: 0,
            lines: None,
            config_address: 0,
            config,
            registers: [0; 0x1000],
            mmio: Mmio::default(),
        }
    }
}

impl Fake {
    fn ram(&mut self, addr: u64, len: usize) -> Option<&mut [u8]> {
        let start = usize::try_from(addr).ok()?;
        self.ram.get_mut(start..start.checked_add(len)?)
    }

    fn bar(&self, number: usize) -> u32 {
        let at = 0x10 + 4 * number;
        u32::from_le_bytes(self.config[at..at + 4].try_into().unwrap()) & !3
    }

    /// The offset in the configuration space of device 3 that port `port` now stands for.
    fn config_offset(&self, port: u16) -> Option<usize> {
        let here = self.config_address & 0xffff_ff00 == 0x8000_1800 && (0xcfc..0xd00).contains(&port);
        here.then(|| (self.config_address & 0xfc) as usize + usize::from(port - 0xcfc))
    }

    fn config_write(&mut self, offset: usize, data: &[u8]) {
        self.config[offset..offset + data.len()].copy_from_slice(data);
        for (number, size) in BAR_SIZES.iter().enumerate() {
            let io = u32::from(number == 0);
            let at = 0x10 + 4 * number;
            let value = u32::from_le_bytes(self.config[at..at + 4].try_into().unwrap()) & !(size - 1) | io;
            self.config[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        self.config[0x18..0x28].fill(0);
    }

    fn register(&mut self, offset: u64, value: u32) {
        let mmio = &mut self.mmio;
        match offset {
            0x14 => mmio.select = value,
            0x20 => mmio.features[(mmio.driver_select & 1) as usize] = value,
            0x24 => mmio.driver_select = value,
            0x38 => mmio.size = value,
            0x44 => mmio.ready = value == 1,
            0x50 => self.answer_queue(),
            0x64 => mmio.interrupt &= !value,
            0x70 if value == 0 => *mmio = Mmio::default(),
            0x70 => mmio.status = value,
            0x80 | 0x90 | 0xa0 => mmio.rings[(offset as usize - 0x80) / 0x10] = value.into(),
            _ => {}
        }
    }

    fn register_value(&self, offset: u64) -> u32 {
        match offset {
            0x00 => 0x7472_6976,
            0x04 => 2,
            0x08 => 4,
            0x10 => [1 << 28, 1][(self.mmio.select & 1) as usize],
            0x34 => 4,
            0x60 => self.mmio.interrupt,
            // Without version 1 the features are not accepted.
            0x70 if self.mmio.features[1] & 1 == 0 => self.mmio.status & !8,
            0x70 => self.mmio.status,
            0x100 => 0xc0ff_ee00,
            _ => 0,
        }
    }

    fn number(&mut self, addr: u64, len: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(self.ram(addr, len).unwrap());
        u64::from_le_bytes(bytes)
    }

    fn answer_queue(&mut self) {
        let [desc, avail, used] = self.mmio.rings;
        let size = u64::from(self.mmio.size);
        assert!(self.mmio.ready && self.mmio.status & 4 != 0, "a notification before the device is started");
        while self.number(avail + 2, 2) != u64::from(self.mmio.seen) {
            let slot = u64::from(self.mmio.seen) % size;
            let head = self.number(avail + 4 + 2 * slot, 2);
            let (table, first) = match self.number(desc + 16 * head + 12, 2) & 4 {
                0 => (desc, head),
                _ => (self.number(desc + 16 * head, 8), 0),
            };
            let written = self.fill_chain(table, first);
            let entry = used + 4 + 8 * slot;
            self.ram(entry, 4).unwrap().copy_from_slice(&(head as u32).to_le_bytes());
            self.ram(entry + 4, 4).unwrap().copy_from_slice(&written.to_le_bytes());
            self.mmio.seen += 1;
            let seen = self.mmio.seen;
            self.ram(used + 2, 2).unwrap().copy_from_slice(&seen.to_le_bytes());
            self.mmio.interrupt = 1;
        }
    }

    fn fill_chain(&mut self, table: u64, mut index: u64) -> u32 {
        let mut written = 0;
        loop {
            let at = table + 16 * index;
            let (addr, len, flags) = (self.number(at, 8), self.number(at + 8, 4), self.number(at + 12, 2));
            if flags & 2 != 0 {
                self.ram(addr, len as usize).unwrap().fill(0x5a);
                written += len as u32;
            }
            if flags & 1 == 0 {
                return written;
            }
            index = self.number(at + 14, 2);
        }
    }

    /// Port 0x80 makes the function send its MSI-X vector 1.
    fn send_msix(&mut self) {
        let entry: Vec<u32> =
            self.registers[0x810..0x820].chunks(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect();
        if self.config[0x53] & 0x80 != 0 && entry[3] & 1 == 0 {
            let addr = u64::from(entry[0]) | u64::from(entry[1]) << 32;
            self.ram(addr, 4).unwrap().copy_from_slice(&entry[2].to_le_bytes());
        }
    }
}

impl QtestTarget for Fake {
    fn port_in(&mut self, port: u16, size: u8) -> u32 {
        let mut bytes = [0xff; 4];
        if let Some(at) = self.config_offset(port) {
            bytes.copy_from_slice(&self.config[at..at + 4]);
        } else if port == 0xcf8 {
            bytes = self.config_address.to_le_bytes();
        } else if u32::from(port) & !0x1f == self.bar(0) && self.bar(0) != 0 {
            bytes = u32::from(port).to_le_bytes();
        }
        u32::from_le_bytes(bytes) & u32::MAX >> (32 - 8 * u32::from(size))
    }
    fn port_out(&mut self, port: u16, size: u8, value: u32) {
        match (port, self.config_offset(port)) {
            (_, Some(at)) => self.config_write(at, &value.to_le_bytes()[..usize::from(size)]),
            (0xcf8, _) => self.config_address = value,
            (0x80, _) => self.send_msix(),
            (0x70, _) => self.lines.iter().for_each(|lines| lines.set(8, value != 0)),
            _ => {}
        }
    }
    fn read_memory(&mut self, addr: u64, data: &mut [u8]) {
        let bar = u64::from(self.bar(1));
        if let Some(ram) = self.ram(addr, data.len()) {
            data.copy_from_slice(ram);
        } else if let 4 = data.len()
            && addr >= MMIO
        {
            data.copy_from_slice(&self.register_value(addr - MMIO).to_le_bytes());
        } else if addr & !0xfff == bar {
            let at = (addr - bar) as usize;
            data.copy_from_slice(&self.registers[at..at + data.len()]);
        } else {
            data.fill(0xff);
        }
    }
    fn write_memory(&mut self, addr: u64, data: &[u8]) {
        let bar = u64::from(self.bar(1));
        if let Some(ram) = self.ram(addr, data.len()) {
            ram.copy_from_slice(data);
        } else if addr >= MMIO {
            self.register(addr - MMIO, u32::from_le_bytes(data.try_into().unwrap()));
        } else if addr & !0xfff == bar {
            let at = (addr - bar) as usize;
            self.registers[at..at + data.len()].copy_from_slice(data);
        }
    }
    fn clock(&mut self) -> u64 {
        self.now
    }
    fn clock_step(&mut self, ns: u64) -> Result<u64, String> {
        self.now += ns;
        Ok(self.now)
    }
    fn clock_step_to_next(&mut self) -> Result<Option<u64>, String> {
        self.now += 100;
        Ok(Some(self.now))
    }
    fn clock_set(&mut self, ns: u64) -> Result<u64, String> {
        self.now = ns;
        Ok(self.now)
    }
    fn irq_intercept_in(&mut self, _: &str, lines: IrqLines) -> Result<(), String> {
        self.lines = Some(lines);
        Ok(())
    }
    fn irq_intercept_out(&mut self, path: &str, _: Option<&str>, _: IrqLines) -> Result<(), String> {
        Err(format!("there is no device '{path}'"))
    }
    fn set_irq_in(&mut self, path: &str, _: Option<&str>, number: u32, level: i32) -> Result<(), String> {
        Err(format!("there is no device '{path}' with a line {number} to set to {level}"))
    }
}
