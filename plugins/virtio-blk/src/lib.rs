//! `virtio-blk`: the virtio disk (virtio 1.2, section 5.2), on a block backend of the host.
//!
//! [`config`] is what users set and guests read, [`request`] turns chains into requests, [`flights`] keeps those that the
//! drive has. This file moves them: all chains of a notification go to the drive together, come back in any order, and
//! the driver gets one interrupt for those that came back together. Names and properties are QEMU's.
//!
//! Left out: stopping the machine on errors (`rerror`/`werror=stop` and `enospc`), sharing the drive with other writers
//! (`share-rw`), merging of requests and I/O threads (the host's block layer has its own), secure erase, lifetime and
//! zoned commands, SCSI commands of the legacy device.

mod config;
mod flights;
mod request;
mod saved;

use cardcage_plugin_api::memory::{Bytes, GuestAddress, GuestMemory};
use cardcage_plugin_api::state::{StateReader, StateWriter};
use cardcage_plugin_api::virtio::Link;
use cardcage_plugin_api::*;
use config::{Config, F_CONFIG_WCE, F_FLUSH, Shape, WRITEBACK};
use flights::{Flights, Stage};
use request::{End, Op, Parsed, Request, Rules, S_IOERR, S_OK, S_UNSUPP};

/// virtio device ID (virtio 1.2, section 5).
const BLOCK_DEVICE: u32 = 2;
/// Host errno: the backend cannot do that.
const ENOTSUP: i32 = 95;
/// Token of the deferred call that interrupts for what has come back.
const NOTIFY: u64 = 0;

struct Disk {
    config: Config,
    drive: Option<Drive>,
    driver: Option<ActiveDriver>,
    /// Whether the write cache is on.
    write_back: bool,
    flights: Flights,
    /// Completions that came while the machine stood: guest memory is not to be touched then.
    held: Vec<(u64, std::result::Result<(), i32>)>,
    running: bool,
    /// A deferred call to interrupt is on its way.
    deferred: bool,
    stats: Stats,
}

/// The backend, and what the device is like on it.
struct Drive {
    block: Block,
    shape: Shape,
}

/// What the driver has set up.
struct ActiveDriver {
    features: u64,
    link: Link,
    queues: Vec<ActiveQueue>,
}

struct ActiveQueue {
    queue: VirtQueue,
    /// Requests of this queue that the drive has.
    in_flight: u32,
    /// Something came back that the driver was not told of.
    news: bool,
}

#[derive(Default)]
struct Stats {
    reads: u64,
    read_bytes: u64,
    writes: u64,
    written_bytes: u64,
    flushes: u64,
    discards: u64,
    zero_writes: u64,
    errors: u64,
}

impl Stats {
    fn count(&mut self, request: &Request, ok: bool) {
        let add = |n: &mut u64, more: u64| *n = n.saturating_add(more);
        if !ok {
            return add(&mut self.errors, 1);
        }
        match request.op {
            Op::Read => {
                add(&mut self.reads, 1);
                add(&mut self.read_bytes, request.len);
            }
            Op::Write => {
                add(&mut self.writes, 1);
                add(&mut self.written_bytes, request.len);
            }
            Op::Flush => add(&mut self.flushes, 1),
            Op::Discard => add(&mut self.discards, 1),
            Op::WriteZeroes { .. } => add(&mut self.zero_writes, 1),
        }
    }
}

impl ActiveQueue {
    /// Gives a chain back with its status.
    fn finish(&mut self, end: End, status: u8, memory: &GuestMemory) -> Result<()> {
        memory.write_obj(status, GuestAddress(end.status))?;
        self.queue.push(memory, end.head, end.writable)?;
        self.news = true;
        Ok(())
    }
    fn notify(&mut self, memory: &GuestMemory) -> Result<()> {
        if std::mem::take(&mut self.news) { self.queue.notify(memory) } else { Ok(()) }
    }
}

impl ActiveDriver {
    fn queue(&mut self, index: u16) -> Option<&mut ActiveQueue> {
        self.queues.iter_mut().find(|q| q.queue.index() == index)
    }
}

impl Disk {
    /// Takes all chains of a queue, and hands what they want to the drive in one go.
    fn serve(&mut self, index: u16, ctx: &Context) -> Result<()> {
        if !self.running {
            return Ok(());
        }
        let memory = ctx.memory();
        let mut tokens = Vec::new();
        let result = self.take_chains(index, &memory, &mut tokens);
        // What came before a chain that breaks the rules is done all the same.
        if let Some(drive) = self.drive.as_ref().filter(|_| !tokens.is_empty()) {
            drive.block.submit(&self.flights.block_requests(&tokens));
        }
        result
    }

    fn take_chains(&mut self, index: u16, memory: &GuestMemory, tokens: &mut Vec<u64>) -> Result<()> {
        let (Some(drive), Some(driver)) = (&self.drive, &mut self.driver) else { return Ok(()) };
        let capacity = drive.shape.capacity(drive.block.info().len);
        let rules = Rules { shape: &drive.shape, features: driver.features, capacity, id: self.config.id() };
        let Some(active) = driver.queue(index) else { return Ok(()) };
        while let Some(chain) = active.queue.pop(memory)? {
            match rules.parse(index, &chain, memory)? {
                Parsed::Submit(request) => {
                    // Only a driver that offers chains twice gets here.
                    if active.in_flight >= u32::from(active.queue.size()) {
                        return Err(Error::new(format!("queue {index} has more requests than descriptors")));
                    }
                    active.in_flight += 1;
                    tokens.push(self.flights.add(request, Stage::Working));
                }
                Parsed::Done(end, status) => {
                    if status != S_OK {
                        self.stats.errors = self.stats.errors.saturating_add(1);
                    }
                    active.finish(end, status, memory)?;
                }
            }
        }
        active.notify(memory)
    }

    /// A request came back from the drive.
    fn complete(&mut self, token: u64, result: std::result::Result<(), i32>, ctx: &Context) -> Result<()> {
        let Some(flight) = self.flights.get_mut(token) else { return Ok(()) };
        let writes = matches!(flight.request.op, Op::Write | Op::WriteZeroes { .. });
        if writes && result.is_ok() && !self.write_back && flight.stage != Stage::Flushing {
            flight.stage = Stage::Flushing;
            if let Some(drive) = &self.drive {
                drive.block.submit(&self.flights.block_requests(&[token]));
            }
            return Ok(());
        }
        let Some(request) = self.flights.remove(token) else { return Ok(()) };
        self.stats.count(&request, result.is_ok());
        let ignored = match request.op {
            Op::Read => self.config.ignores_read_errors(),
            _ => self.config.ignores_write_errors(),
        };
        let status = match result {
            Ok(()) => S_OK,
            Err(ENOTSUP) if !ignored => S_UNSUPP,
            Err(_) if !ignored => S_IOERR,
            Err(_) => S_OK,
        };
        let idle = self.flights.len() == 0;
        let Some(active) = self.driver.as_mut().and_then(|d| d.queue(request.end.queue)) else { return Ok(()) };
        active.in_flight = active.in_flight.saturating_sub(1);
        let memory = ctx.memory();
        active.finish(request.end, status, &memory)?;
        if idle {
            // Nothing else can come back: there is nothing to wait for.
            return self.notify_all(&memory);
        }
        if !std::mem::replace(&mut self.deferred, true) {
            ctx.defer(NOTIFY);
        }
        Ok(())
    }

    /// Tells the driver of all that has come back.
    fn notify_all(&mut self, memory: &GuestMemory) -> Result<()> {
        let queues = self.driver.iter_mut().flat_map(|d| &mut d.queues);
        queues.map(|q| q.notify(memory)).fold(Ok(()), Result::and)
    }

    /// The machine goes on: what was held and what was saved, then what the driver has added.
    fn resume(&mut self, ctx: &Context) -> Result<()> {
        for (token, result) in std::mem::take(&mut self.held) {
            self.complete(token, result, ctx)?;
        }
        let waiting = self.flights.take_waiting();
        if let Some(drive) = self.drive.as_ref().filter(|_| !waiting.is_empty()) {
            drive.block.submit(&self.flights.block_requests(&waiting));
        }
        let indices: Vec<_> = self.driver.iter().flat_map(|d| &d.queues).map(|q| q.queue.index()).collect();
        indices.into_iter().map(|index| self.serve(index, ctx)).fold(Ok(()), Result::and)
    }

    /// Outside of a call of the driver, it hears of its faults through the link.
    fn or_needs_reset(&self, result: Result<()>) {
        if let Err(e) = result {
            log::warn!("{e}; the device needs to be reset");
            if let Some(driver) = &self.driver {
                driver.link.needs_reset();
            }
        }
    }

    fn capacity(&self) -> u64 {
        self.drive.as_ref().map_or(0, |d| d.shape.capacity(d.block.info().len))
    }
}

impl Device for Disk {
    const INFO: DeviceInfo =
        DeviceInfo::new("virtio-blk", BusKind::Virtio, Category::Storage, "virtio disk").hotpluggable().migratable(1);
    type Config = Config;

    fn new(config: Config, _: &Context) -> Result<Self> {
        config.check()?;
        Ok(Self {
            config,
            drive: None,
            driver: None,
            write_back: true,
            flights: Flights::default(),
            held: Vec::new(),
            running: true,
            deferred: false,
            stats: Stats::default(),
        })
    }

    fn realize(&mut self, _: &mut Bus, ctx: &Context) -> Result<()> {
        let block = ctx.block(&self.config.drive, true)?;
        let info = block.info();
        let cpus = json::number(&ctx.machine(), "cpus").unwrap_or(1);
        let shape = Shape::new(&self.config, &info, block.is_read_only(), block.is_write_back(), cpus)?;
        self.write_back = shape.write_back;
        self.drive = Some(Drive { block, shape });
        Ok(())
    }
    fn unrealize(&mut self, ctx: &Context) {
        self.driver_reset(ctx);
        self.drive = None;
    }
    fn reset(&mut self, _: ResetKind, ctx: &Context) {
        self.driver_reset(ctx);
    }

    fn block_done(&mut self, token: u64, result: std::result::Result<(), i32>, ctx: &Context) {
        if self.running {
            let result = self.complete(token, result, ctx);
            self.or_needs_reset(result);
        } else {
            self.held.push((token, result));
        }
    }
    fn block_changed(&mut self, _: &Context) {
        if let Some(driver) = &self.driver {
            driver.link.config_changed();
        }
    }
    fn deferred(&mut self, _: u64, ctx: &Context) {
        self.deferred = false;
        // A machine that stands is told when it goes on.
        if self.running {
            let result = self.notify_all(&ctx.memory());
            self.or_needs_reset(result);
        }
    }

    fn run_state(&mut self, running: bool, ctx: &Context) {
        self.running = running;
        if running {
            let result = self.resume(ctx).and(self.notify_all(&ctx.memory()));
            self.or_needs_reset(result);
        } else if let Some(drive) = &self.drive {
            // The drive must not write guest memory any more either.
            drive.block.drain();
        }
    }

    fn save(&mut self, state: &mut StateWriter) -> Result<()> {
        let queues = self.driver.as_ref().map_or(&[][..], |d| &d.queues);
        saved::write(state, self.write_back, queues, self.flights.requests());
        Ok(())
    }
    fn load(&mut self, state: &StateReader, _: &Context) -> Result<()> {
        let Some(drive) = &self.drive else { return Err(Error::new("the device is not realized")) };
        let mut none = Vec::new();
        let queues = self.driver.as_mut().map_or(&mut none, |d| &mut d.queues);
        self.write_back = saved::read_write_back(state)?;
        saved::read_queues(state, queues)?;
        for request in saved::read_requests(state, queues, &drive.shape, drive.block.info().len)? {
            if let Some(active) = queues.iter_mut().find(|a| a.queue.index() == request.end.queue) {
                active.in_flight += 1;
                self.flights.add(request, Stage::Waiting);
            }
        }
        self.running = false;
        Ok(())
    }

    fn inspect(&self) -> json::Object {
        let shape = self.drive.as_ref().map(|d| &d.shape);
        json::Object::new()
            .field("capacity-sectors", self.capacity())
            .field("logical-block-size", shape.map(|s| s.logical))
            .field("read-only", shape.map(|s| s.read_only))
            .field("write-cache", self.write_back)
            .field("active-queues", self.driver.as_ref().map_or(0, |d| d.queues.len()))
            .field("requests-in-flight", self.flights.len())
    }
    fn stats(&self) -> json::Object {
        let s = &self.stats;
        json::Object::new()
            .field("read-operations", s.reads)
            .field("read-bytes", s.read_bytes)
            .field("write-operations", s.writes)
            .field("written-bytes", s.written_bytes)
            .field("flush-operations", s.flushes)
            .field("discard-operations", s.discards)
            .field("write-zeroes-operations", s.zero_writes)
            .field("failed-operations", s.errors)
    }
}

impl VirtioDevice for Disk {
    const DEVICE_ID: u32 = BLOCK_DEVICE;

    fn features(&self) -> u64 {
        self.drive.as_ref().map_or(0, |d| d.shape.features)
    }
    fn queue_sizes(&self) -> Vec<u16> {
        self.drive.as_ref().map_or(Vec::new(), |d| vec![d.shape.queue_size; d.shape.queues.into()])
    }

    fn config_read(&self, offset: u32, data: &mut [u8]) {
        data.fill(0);
        let Some(drive) = &self.drive else { return };
        let space = drive.shape.config_space(self.capacity(), self.write_back);
        let rest = space.get(offset as usize..).unwrap_or_default();
        data.iter_mut().zip(rest).for_each(|(place, byte)| *place = *byte);
    }

    /// Of the configuration space, only `writeback` can be written, and only where that was agreed on.
    fn config_write(&mut self, offset: u32, data: &[u8], _: &Context) {
        let features = self.driver.as_ref().map_or(self.features(), |d| d.features);
        let byte = WRITEBACK.checked_sub(offset).and_then(|at| data.get(at as usize));
        if let Some(byte) = byte.filter(|_| features & F_CONFIG_WCE != 0) {
            self.write_back = *byte != 0;
        }
    }

    fn activate(&mut self, driver: Driver, _: &Context) -> Result<()> {
        let features = driver.features;
        // A driver that cannot switch the cache and does not flush expects none (section 5.2.5.2).
        if features & F_CONFIG_WCE == 0 {
            self.write_back = features & F_FLUSH != 0;
        }
        let active = |queue| ActiveQueue { queue, in_flight: 0, news: false };
        let queues = driver.queues.into_iter().map(active).collect();
        self.driver = Some(ActiveDriver { features, link: driver.link, queues });
        Ok(())
    }
    fn notified(&mut self, queue: u16, ctx: &Context) -> Result<()> {
        self.serve(queue, ctx)
    }

    fn driver_reset(&mut self, _: &Context) {
        if let Some(drive) = &self.drive {
            drive.block.drain();
            self.write_back = drive.shape.write_back;
        }
        self.driver = None;
        self.held.clear();
        self.flights.clear();
    }
}

plugin! { virtio: [Disk] }

#[cfg(test)]
mod tests;
