//! What users can set, what becomes of it on a given drive, and the configuration space that follows
//! (virtio 1.2, sections 5.2.3 and 5.2.4).

use cardcage_plugin_api::properties::{DriveRef, OnOffAuto, Size};
use cardcage_plugin_api::virtio::{F_EVENT_IDX, F_INDIRECT_DESC};
use cardcage_plugin_api::*;

/// Unit of capacity and of sector numbers, whatever the block size.
pub(crate) const SECTOR: u64 = 512;
/// Length of the identification that GET_ID returns.
pub(crate) const ID_LEN: usize = 20;
const MAX_BLOCK: u64 = 2 << 20;
/// Segments of a request where `seg-max-adjust` is off: what old machine types had.
const FIXED_SEG_MAX: u32 = 126;
/// Descriptors of a request that are not data: header and status.
const OVERHEAD: u16 = 2;

/// Feature bits (section 5.2.3).
pub(crate) const F_SEG_MAX: u64 = 1 << 2;
pub(crate) const F_GEOMETRY: u64 = 1 << 4;
pub(crate) const F_RO: u64 = 1 << 5;
pub(crate) const F_BLK_SIZE: u64 = 1 << 6;
pub(crate) const F_FLUSH: u64 = 1 << 9;
pub(crate) const F_TOPOLOGY: u64 = 1 << 10;
pub(crate) const F_CONFIG_WCE: u64 = 1 << 11;
pub(crate) const F_MQ: u64 = 1 << 12;
pub(crate) const F_DISCARD: u64 = 1 << 13;
pub(crate) const F_WRITE_ZEROES: u64 = 1 << 14;

/// Offset of the `writeback` byte in the configuration space.
pub(crate) const WRITEBACK: u32 = 32;
const CONFIG_LEN: usize = 60;

prop_enum! {
    /// What becomes of a request that failed.
    pub(crate) enum OnError { Auto = "auto", Report = "report", Ignore = "ignore" }
}

/// What users can set.
#[derive(DeviceProperties)]
pub(crate) struct Config {
    /// Block backend that holds the data
    pub(crate) drive: DriveRef,
    /// Serial number, up to 20 bytes
    pub(crate) serial: Option<String>,
    /// Number of request queues; by default one for each CPU
    #[prop(name = "num-queues", range = 1..=1024)]
    num_queues: Option<u16>,
    /// Descriptors in each queue: a power of two
    #[prop(name = "queue-size", default = 256, range = 4..=1024, unit = "descriptors")]
    queue_size: u16,
    /// Let requests have as many segments as fit a queue, instead of 126
    #[prop(name = "seg-max-adjust", default = true)]
    seg_max_adjust: bool,
    /// Smallest unit that the guest may read or write: a power of two; 0 takes the drive's
    #[prop(name = "logical_block_size", default = 0, range = 0..=2097152, unit = "bytes")]
    logical_block_size: Size,
    /// Unit that the drive writes without reading first: a power of two; 0 takes the drive's
    #[prop(name = "physical_block_size", default = 0, range = 0..=2097152, unit = "bytes")]
    physical_block_size: Size,
    /// Smallest request that is efficient; 0 tells the guest nothing
    #[prop(name = "min_io_size", default = 0, unit = "bytes")]
    min_io_size: Size,
    /// Best size of a request; 0 tells the guest nothing
    #[prop(name = "opt_io_size", default = 0, unit = "bytes")]
    opt_io_size: Size,
    /// Unit that the drive discards; by default the logical block size
    #[prop(name = "discard_granularity", unit = "bytes")]
    discard_granularity: Option<Size>,
    /// Tell the guest the unit of discards
    #[prop(name = "report-discard-granularity", default = true)]
    report_discard_granularity: bool,
    /// Offer the guest to discard
    #[prop(default = true)]
    discard: bool,
    /// Offer the guest to write zeroes without data
    #[prop(name = "write-zeroes", default = true)]
    write_zeroes: bool,
    /// Sectors of one discard at most
    #[prop(name = "max-discard-sectors", default = 4194303, range = 1..=4194303, unit = "sectors")]
    max_discard_sectors: u32,
    /// Sectors of one write of zeroes at most
    #[prop(name = "max-write-zeroes-sectors", default = 4194303, range = 1..=4194303, unit = "sectors")]
    max_write_zeroes_sectors: u32,
    /// Whether writes may wait in a cache until they are flushed; auto takes what the drive does
    #[prop(name = "write-cache", default = "auto")]
    write_cache: OnOffAuto,
    /// Let the guest switch the write cache
    #[prop(name = "config-wce", default = true)]
    config_wce: bool,
    /// What the guest hears of a read that failed: auto and report tell it, ignore does not. Stopping the machine is not
    /// offered
    #[prop(default = "auto")]
    rerror: OnError,
    /// What the guest hears of a write that failed: auto and report tell it, ignore does not. Stopping the machine is not
    /// offered
    #[prop(default = "auto")]
    werror: OnError,
    /// Cylinders of the geometry; 0 makes one up
    #[prop(default = 0, range = 0..=65535)]
    cyls: u32,
    /// Heads of the geometry; 0 makes one up
    #[prop(default = 0, range = 0..=255)]
    heads: u32,
    /// Sectors of a track of the geometry; 0 makes one up
    #[prop(default = 0, range = 0..=255)]
    secs: u32,
}

impl Config {
    /// What can be checked without the drive.
    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |text: String| Err(Error::new(text));
        if !self.queue_size.is_power_of_two() {
            return refuse(format!(
                "property 'queue-size' is {}, allowed is a power of two from 4 to 1024",
                self.queue_size
            ));
        }
        for (name, size) in
            [("logical_block_size", self.logical_block_size), ("physical_block_size", self.physical_block_size)]
        {
            if size.0 != 0 && (!size.0.is_power_of_two() || size.0 < SECTOR) {
                return refuse(format!(
                    "property '{name}' is {}, allowed is a power of two from 512 to 2097152",
                    size.0
                ));
            }
        }
        match self.serial.as_ref().map(String::len).filter(|&len| len > ID_LEN) {
            Some(len) => refuse(format!("property 'serial' has {len} bytes, allowed are {ID_LEN}")),
            None => Ok(()),
        }
    }
    pub(crate) fn ignores_read_errors(&self) -> bool {
        self.rerror == OnError::Ignore
    }
    pub(crate) fn ignores_write_errors(&self) -> bool {
        self.werror == OnError::Ignore
    }
    /// The identification that GET_ID returns, filled up with zeroes.
    pub(crate) fn id(&self) -> [u8; ID_LEN] {
        let mut id = [0; ID_LEN];
        let serial = self.serial.as_deref().unwrap_or_default().bytes();
        id.iter_mut().zip(serial).for_each(|(place, byte)| *place = byte);
        id
    }
}

/// The device on its drive: everything that does not change while it lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) queues: u16,
    pub(crate) queue_size: u16,
    seg_max: u32,
    /// Block sizes in bytes.
    pub(crate) logical: u32,
    physical: u32,
    min_io_blocks: u16,
    opt_io_blocks: u32,
    discard_alignment: u32,
    pub(crate) max_discard_sectors: u32,
    pub(crate) max_write_zeroes_sectors: u32,
    geometry: (u16, u8, u8),
    pub(crate) read_only: bool,
    /// Whether the write cache is on after a reset.
    pub(crate) write_back: bool,
    /// Device-specific feature bits and those of the rings.
    pub(crate) features: u64,
}

impl Shape {
    /// Fits the configuration to a drive; an error names the property that does not fit.
    pub(crate) fn new(config: &Config, info: &BlockInfo, read_only: bool, write_back: bool, cpus: u64) -> Result<Self> {
        let refuse = |text: String| Err(Error::new(text));
        let alignment = u64::from(info.request_alignment);
        let probed = u64::from(info.logical_block_size).max(alignment).max(SECTOR);
        let logical = if config.logical_block_size.0 == 0 { probed } else { config.logical_block_size.0 };
        if !logical.is_power_of_two() || logical > MAX_BLOCK {
            return refuse(format!("the drive has blocks of {logical} bytes, allowed is a power of two up to 2097152"));
        }
        if logical < alignment {
            return refuse(format!(
                "property 'logical_block_size' is {logical}, but the drive needs requests aligned to {alignment}"
            ));
        }
        let probed = u64::from(info.physical_block_size).max(logical);
        let physical = if config.physical_block_size.0 == 0 { probed } else { config.physical_block_size.0 };
        if physical < logical {
            return refuse(format!(
                "property 'physical_block_size' is {physical}, less than the logical block size {logical}"
            ));
        }
        let blocks = |name: &str, size: Size, max: u64| {
            let (count, rest) = (size.0 / logical, size.0 % logical);
            if rest != 0 || count > max {
                let bytes = max.saturating_mul(logical);
                let allowed = format!("allowed is a multiple of the logical block size {logical} up to {bytes}");
                return Err(Error::new(format!("property '{name}' is {}, {allowed}", size.0)));
            }
            Ok(count)
        };
        let granularity = config.discard_granularity.filter(|_| config.report_discard_granularity);
        let granularity =
            blocks("discard_granularity", granularity.unwrap_or(Size(logical)), u64::from(u32::MAX) / 4096)?;
        let queues = config.num_queues.unwrap_or_else(|| u16::try_from(cpus.clamp(1, 1024)).unwrap_or(1));
        let mut shape = Self {
            queues,
            queue_size: config.queue_size,
            seg_max: if config.seg_max_adjust { u32::from(config.queue_size - OVERHEAD) } else { FIXED_SEG_MAX },
            logical: logical as u32,
            physical: physical as u32,
            min_io_blocks: blocks("min_io_size", config.min_io_size, u16::MAX.into())? as u16,
            opt_io_blocks: blocks("opt_io_size", config.opt_io_size, u32::MAX.into())? as u32,
            discard_alignment: (granularity * (logical / SECTOR)) as u32,
            max_discard_sectors: config.max_discard_sectors,
            max_write_zeroes_sectors: config.max_write_zeroes_sectors,
            geometry: geometry(config, info.len / SECTOR),
            read_only,
            write_back: match config.write_cache {
                OnOffAuto::On => true,
                OnOffAuto::Off => false,
                OnOffAuto::Auto => write_back,
            },
            features: 0,
        };
        shape.features = shape.offered(config);
        Ok(shape)
    }

    fn offered(&self, config: &Config) -> u64 {
        let either = |on: bool, bit: u64| if on { bit } else { 0 };
        let always = F_INDIRECT_DESC | F_EVENT_IDX | F_SEG_MAX | F_GEOMETRY | F_BLK_SIZE | F_TOPOLOGY | F_FLUSH;
        always
            | either(self.read_only, F_RO)
            | either(config.config_wce, F_CONFIG_WCE)
            | either(self.queues > 1, F_MQ)
            | either(config.discard && !self.read_only, F_DISCARD)
            | either(config.write_zeroes && !self.read_only, F_WRITE_ZEROES)
    }

    /// Sectors that the guest sees of a drive with this length: whole blocks only.
    pub(crate) fn capacity(&self, len: u64) -> u64 {
        let logical = u64::from(self.logical);
        len / logical * (logical / SECTOR)
    }

    /// The configuration space.
    pub(crate) fn config_space(&self, capacity: u64, write_back: bool) -> [u8; CONFIG_LEN] {
        let mut space = [0; CONFIG_LEN];
        let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
        let (cylinders, heads, sectors) = self.geometry;
        put(0, &capacity.to_le_bytes());
        put(12, &self.seg_max.to_le_bytes());
        put(16, &cylinders.to_le_bytes());
        put(18, &[heads, sectors]);
        put(20, &self.logical.to_le_bytes());
        put(24, &[(self.physical / self.logical).trailing_zeros() as u8, 0]);
        put(26, &self.min_io_blocks.to_le_bytes());
        put(28, &self.opt_io_blocks.to_le_bytes());
        put(WRITEBACK as usize, &[u8::from(write_back), 0]);
        put(34, &self.queues.to_le_bytes());
        if self.features & F_DISCARD != 0 {
            put(36, &self.max_discard_sectors.to_le_bytes());
            put(40, &1u32.to_le_bytes());
            put(44, &self.discard_alignment.to_le_bytes());
        }
        if self.features & F_WRITE_ZEROES != 0 {
            put(48, &self.max_write_zeroes_sectors.to_le_bytes());
            put(52, &1u32.to_le_bytes());
            put(56, &[1]);
        }
        space
    }
}

/// Cylinders, heads and sectors of a track: as given, or the usual ones for a disk of this size.
fn geometry(config: &Config, sectors: u64) -> (u16, u8, u8) {
    let or = |given: u32, made_up: u64| if given == 0 { made_up } else { given.into() };
    let (heads, secs) = (or(config.heads, 16), or(config.secs, 63));
    let cylinders = or(config.cyls, (sectors / (heads * secs)).clamp(2, 16_383));
    (cylinders as u16, heads as u8, secs as u8)
}
