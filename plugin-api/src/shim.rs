//! Between the ABI's objects and the author's types: one lock per device, panics caught, errors turned into text.

use std::any::Any;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cardcage_plugin_abi as abi;
use cardcage_plugin_abi::abi_stable::{sabi_trait::TD_Opaque, std_types::*};
use cardcage_plugin_abi::{AbiError, AbiResult, DeviceAbi, DeviceObj, HostObj};

use crate::context::Interest;
use crate::device::{CharEvent, Region};
use crate::logging::Thread;
use crate::properties::{Given, parse};
use crate::state::{StateReader, StateWriter};
use crate::{Bus, Context, Device, Driver, Error, ResetKind, Result, Unplug, VirtioDevice};

pub(crate) fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|s| (*s).to_string());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panic".into())
}

/// The virtio half of a device, or its absence.
pub(crate) trait VirtioHalf<D>: Send + Sync + 'static {
    fn features(_: &D) -> u64 {
        0
    }
    fn queue_sizes(_: &D) -> Vec<u16> {
        Vec::new()
    }
    fn config_read(_: &D, _offset: u32, data: &mut [u8]) {
        data.fill(0);
    }
    fn config_write(_: &mut D, _offset: u32, _data: &[u8], _: &Context) {}
    fn activate(_: &mut D, _: Driver, _: &Context) -> Result<()> {
        Err(Error::new("not a virtio device"))
    }
    fn notified(_: &mut D, _queue: u16, _: &Context) -> Result<()> {
        Ok(())
    }
    fn driver_reset(_: &mut D, _: &Context) {}
}

pub(crate) struct NoVirtio;
impl<D: Device> VirtioHalf<D> for NoVirtio {}

pub(crate) struct IsVirtio;
impl<D: VirtioDevice> VirtioHalf<D> for IsVirtio {
    fn features(d: &D) -> u64 {
        d.features()
    }
    fn queue_sizes(d: &D) -> Vec<u16> {
        d.queue_sizes()
    }
    fn config_read(d: &D, offset: u32, data: &mut [u8]) {
        d.config_read(offset, data);
    }
    fn config_write(d: &mut D, offset: u32, data: &[u8], ctx: &Context) {
        d.config_write(offset, data, ctx);
    }
    fn activate(d: &mut D, driver: Driver, ctx: &Context) -> Result<()> {
        d.activate(driver, ctx)
    }
    fn notified(d: &mut D, queue: u16, ctx: &Context) -> Result<()> {
        d.notified(queue, ctx)
    }
    fn driver_reset(d: &mut D, ctx: &Context) {
        d.driver_reset(ctx);
    }
}

struct Inner<D> {
    /// Dropped by hand, under a catch: a panic in it must not reach the ABI.
    device: ManuallyDrop<D>,
    ctx: Context,
    link: Option<Arc<abi::VirtioLinkObj>>,
}

struct Shim<D, V> {
    inner: Mutex<Inner<D>>,
    /// A copy of the id that outlives every call, for log messages.
    id: String,
    host: Arc<HostObj>,
    broken: AtomicBool,
    /// The thread that is inside, as the address of a thread-local; 0 for none.
    owner: AtomicUsize,
    half: PhantomData<fn() -> V>,
}

impl<D: Device, V: VirtioHalf<D>> Shim<D, V> {
    /// Runs `f` alone on the device, unless it is broken; `dead` is the answer of a broken device.
    #[inline]
    fn call<R>(&self, dead: R, f: impl FnOnce(&mut Inner<D>) -> R) -> R {
        if self.broken.load(Ordering::Relaxed) {
            return dead;
        }
        Thread::with(|me| {
            if self.owner.load(Ordering::Relaxed) == me.id() {
                return self.reentered(dead);
            }
            let result = {
                let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
                self.owner.store(me.id(), Ordering::Relaxed);
                let _current = me.enter(&self.id);
                let result = catch_unwind(AssertUnwindSafe(|| f(&mut inner)));
                self.owner.store(0, Ordering::Relaxed);
                result
            };
            match result {
                Ok(value) => value,
                Err(payload) => self.fail(payload, dead),
            }
        })
    }

    #[cold]
    #[inline(never)]
    fn fail<R>(&self, payload: Box<dyn Any + Send>, dead: R) -> R {
        self.broken.store(true, Ordering::Relaxed);
        self.host.broken(panic_text(&*payload).as_str().into());
        // Dropping an unknown payload could panic again.
        std::mem::forget(payload);
        dead
    }

    #[cold]
    #[inline(never)]
    fn reentered<R>(&self, dead: R) -> R {
        log::error!("{} was called from inside one of its own calls; the inner call is refused", self.id);
        dead
    }

    /// A call whose error means that the driver has broken the rules of virtio.
    fn virtio_call(&self, what: &str, f: impl FnOnce(&mut Inner<D>) -> Result<()>) {
        self.call((), |i| {
            if let Err(e) = f(i) {
                log::error!("{what}: {e}; the device waits to be reset");
                if let Some(link) = &i.link {
                    link.needs_reset();
                }
            }
        });
    }
}

impl<D, V> Drop for Shim<D, V> {
    #[expect(unsafe_code, reason = "drops the device under a catch")]
    fn drop(&mut self) {
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: dropped once, here, and not used afterwards.
        let result = catch_unwind(AssertUnwindSafe(|| unsafe { ManuallyDrop::drop(&mut inner.device) }));
        if let Err(payload) = result {
            std::mem::forget(payload);
        }
    }
}

fn broken<T>() -> AbiResult<T> {
    RErr(AbiError { code: abi::ERROR_BROKEN, message: "the device is broken: it panicked before".into() })
}

fn to_abi<T>(result: Result<T>) -> AbiResult<T> {
    result.map_err(|e| AbiError { code: abi::ERROR_GENERIC, message: e.to_string().into() }).into()
}

impl<D: Device, V: VirtioHalf<D>> DeviceAbi for Shim<D, V> {
    fn realize(&self, bus: abi::BusObj) -> AbiResult<()> {
        self.call(broken(), |i| to_abi(i.device.realize(&mut Bus(bus), &i.ctx)))
    }
    fn unrealize(&self) {
        self.call((), |i| i.device.unrealize(&i.ctx));
    }
    fn reset(&self, kind: u32) {
        let kind = match kind {
            abi::RESET_COLD => ResetKind::Cold,
            abi::RESET_FUNCTION => ResetKind::Function,
            _ => ResetKind::Warm,
        };
        self.call((), |i| i.device.reset(kind, &i.ctx));
    }
    fn read(&self, region: u32, offset: u64, size: u8) -> u64 {
        self.call(u64::MAX, |i| i.device.read(Region(region), offset, size, &i.ctx))
    }
    fn write(&self, region: u32, offset: u64, size: u8, value: u64) {
        self.call((), |i| i.device.write(Region(region), offset, size, value, &i.ctx));
    }
    fn config_written(&self, offset: u16, size: u8, value: u32) {
        self.call((), |i| i.device.config_written(offset, size, value, &i.ctx));
    }
    fn event(&self, kind: u32, token: u64, data: u64) {
        self.call((), |i| {
            let (d, ctx) = (&mut *i.device, &i.ctx);
            match kind {
                abi::EVENT_FD => d.fd_ready(token, Interest(data as u32), ctx),
                abi::EVENT_TIMER => d.timer(token, ctx),
                abi::EVENT_DEFERRED => d.deferred(token, ctx),
                abi::EVENT_BLOCK_DONE => {
                    let errno = i32::try_from((data as i64).unsigned_abs()).unwrap_or(i32::MAX);
                    d.block_done(token, if errno == 0 { Ok(()) } else { Err(errno) }, ctx);
                }
                abi::EVENT_CHAR_WRITABLE => d.char_writable(token, ctx),
                abi::EVENT_CHAR_CHANGED => match data {
                    0 => d.char_event(token, CharEvent::Closed, ctx),
                    1 => d.char_event(token, CharEvent::Opened, ctx),
                    2 => d.char_event(token, CharEvent::Break, ctx),
                    _ => {}
                },
                abi::EVENT_MEMORY => d.memory_changed(ctx),
                abi::EVENT_BLOCK_CHANGED => d.block_changed(ctx),
                _ => {}
            }
        });
    }
    fn char_room(&self, token: u64) -> usize {
        self.call(0, |i| i.device.char_room(token))
    }
    fn char_receive(&self, token: u64, data: RSlice<'_, u8>) {
        self.call((), |i| i.device.char_receive(token, data.as_slice(), &i.ctx));
    }
    fn run_state(&self, running: bool) {
        self.call((), |i| i.device.run_state(running, &i.ctx));
    }
    fn save(&self) -> AbiResult<RVec<abi::Section>> {
        self.call(broken(), |i| {
            let mut writer = StateWriter::default();
            to_abi(i.device.save(&mut writer).map(|()| RVec::from(writer.0)))
        })
    }
    fn load(&self, sections: RVec<abi::Section>) -> AbiResult<()> {
        let reader = StateReader(sections.into_vec());
        self.call(broken(), |i| to_abi(i.device.load(&reader, &i.ctx)))
    }
    fn set_property(&self, property: &abi::Prop) -> AbiResult<()> {
        to_abi(Err(Error::new(format!("property '{}' cannot be changed while the device exists", property.name))))
    }
    fn unplug_request(&self) -> AbiResult<u32> {
        self.call(ROk(abi::UNPLUG_NOW), |i| {
            to_abi(i.device.unplug_request(&i.ctx).map(|u| match u {
                Unplug::Now => abi::UNPLUG_NOW,
                Unplug::Asked => abi::UNPLUG_ASKED,
            }))
        })
    }
    fn inspect(&self) -> RString {
        self.call("{}".into(), |i| i.device.inspect().to_string().into())
    }
    fn stats(&self) -> RString {
        self.call("{}".into(), |i| i.device.stats().to_string().into())
    }
    fn virtio_features(&self) -> u64 {
        self.call(0, |i| V::features(&i.device))
    }
    fn virtio_queues(&self) -> RVec<u16> {
        self.call(RVec::new(), |i| RVec::from(V::queue_sizes(&i.device)))
    }
    fn virtio_config_read(&self, offset: u32, mut data: RSliceMut<'_, u8>) {
        let data = data.as_mut_slice();
        if self.call(false, |i| {
            V::config_read(&i.device, offset, data);
            true
        }) {
            return;
        }
        data.fill(0xff);
    }
    fn virtio_config_write(&self, offset: u32, data: RSlice<'_, u8>) {
        self.call((), |i| V::config_write(&mut i.device, offset, data.as_slice(), &i.ctx));
    }
    fn virtio_activate(&self, features: u64, queues: RVec<abi::QueueSetup>, link: abi::VirtioLinkObj) -> AbiResult<()> {
        self.call(broken(), |i| {
            let link = Arc::new(link);
            i.link = Some(link.clone());
            let driver = Driver::new(features, queues.as_slice(), link);
            to_abi(driver.and_then(|driver| V::activate(&mut i.device, driver, &i.ctx)))
        })
    }
    fn virtio_notify(&self, queue: u16) {
        self.virtio_call("virtqueue", |i| V::notified(&mut i.device, queue, &i.ctx));
    }
    fn virtio_reset(&self) {
        self.call((), |i| {
            i.link = None;
            V::driver_reset(&mut i.device, &i.ctx);
        });
    }
}

/// Makes a device; a panic becomes an error.
pub(crate) extern "C" fn create<D: Device, V: VirtioHalf<D>>(
    host: HostObj,
    properties: RVec<abi::Prop>,
) -> AbiResult<DeviceObj> {
    let made = catch_unwind(AssertUnwindSafe(|| {
        let given = properties.into_iter().map(|p| (p.name.into_string(), p.value.into_string()));
        let config = parse::<D::Config>(Given::from_pairs(given))?;
        let host = Arc::new(host);
        let ctx = Context::new(host.clone());
        let id = ctx.id().to_string();
        let device = Thread::with(|me| {
            let _current = me.enter(&id);
            D::new(config, &ctx)
        })?;
        let inner = Mutex::new(Inner { device: ManuallyDrop::new(device), ctx, link: None });
        let (broken, owner) = (AtomicBool::new(false), AtomicUsize::new(0));
        let shim = Shim::<D, V> { inner, id, host, broken, owner, half: PhantomData };
        Ok(abi::DeviceAbi_TO::from_value(shim, TD_Opaque))
    }));
    match made {
        Ok(result) => to_abi(result),
        Err(payload) => {
            let message = format!("panicked while it was made: {}", panic_text(&*payload));
            std::mem::forget(payload);
            RErr(AbiError { code: abi::ERROR_BROKEN, message: message.into() })
        }
    }
}
