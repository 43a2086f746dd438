//! What a plugin library exports.

use std::panic::{AssertUnwindSafe, catch_unwind};

use cardcage_plugin_abi::abi_stable::{
    library::{CheckTypeLayout, LibHeader, RootModuleError, RootModuleResult},
    prefix_type::PrefixTypeTrait,
    std_types::*,
};
use cardcage_plugin_abi::{DeviceClass, DeviceClassRef, Manifest, ManifestRef};

use crate::json::Object;
use crate::shim::{IsVirtio, NoVirtio, VirtioHalf, create, panic_text};
use crate::{Device, VirtioDevice};

fn class<D: Device, V: VirtioHalf<D>>(extra: impl FnOnce(Object) -> Object) -> DeviceClassRef {
    let description: &'static str = D::INFO.describe::<D::Config>(extra).leak();
    DeviceClass { description: description.into(), create: create::<D, V> }.leak_into_prefix()
}

#[doc(hidden)]
pub fn device_class<D: Device>() -> DeviceClassRef {
    class::<D, NoVirtio>(|o| o)
}

#[doc(hidden)]
pub fn virtio_class<D: VirtioDevice>() -> DeviceClassRef {
    class::<D, IsVirtio>(|o| o.field("virtio-device-id", D::DEVICE_ID))
}

#[doc(hidden)]
pub fn manifest(
    package: &'static str,
    version: &'static str,
    summary: &'static str,
    devices: fn() -> Vec<DeviceClassRef>,
) -> RootModuleResult {
    match catch_unwind(AssertUnwindSafe(devices)) {
        Ok(devices) => {
            let name = package.strip_prefix("cardcage-").unwrap_or(package);
            let devices = RSlice::from_slice(devices.leak());
            let manifest = Manifest {
                name: name.into(),
                version: version.into(),
                summary: summary.into(),
                init: crate::logging::init,
                devices,
            };
            ROk(manifest.leak_into_prefix().cast_root())
        }
        Err(payload) => RErr(RootModuleError::Returned(RBoxError::from_fmt(&panic_text(&*payload)))),
    }
}

/// Turns a typed reference to the manifest into what a library header wants.
trait CastRoot {
    fn cast_root(
        self,
    ) -> cardcage_plugin_abi::abi_stable::prefix_type::PrefixRef<
        cardcage_plugin_abi::abi_stable::marker_type::ErasedPrefix,
    >;
}
impl CastRoot for ManifestRef {
    #[expect(unsafe_code, reason = "erases the type that the header's layout then vouches for")]
    fn cast_root(
        self,
    ) -> cardcage_plugin_abi::abi_stable::prefix_type::PrefixRef<
        cardcage_plugin_abi::abi_stable::marker_type::ErasedPrefix,
    > {
        // SAFETY: `header` describes the root as a `ManifestRef`.
        unsafe { self.0.cast() }
    }
}

#[doc(hidden)]
#[expect(unsafe_code, reason = "the header must describe what the constructor returns")]
pub const fn header(constructor: extern "C" fn() -> RootModuleResult) -> LibHeader {
    // SAFETY: `plugin!` is the only caller, and its constructor returns what `manifest` made: a ManifestRef.
    unsafe { LibHeader::from_constructor::<ManifestRef>(constructor, CheckTypeLayout::Yes) }
}

/// Exports the kinds of device that this library offers. Once per library.
///
/// ```ignore
/// plugin! { devices: [Serial], virtio: [Entropy] }
/// ```
///
/// Name, version and summary of the plugin are the package's.
#[macro_export]
macro_rules! plugin {
    ($(devices: [$($device:ty),* $(,)?])? $(,)? $(virtio: [$($virtio:ty),* $(,)?])? $(,)?) => {
        const _: () = {
            fn classes() -> ::std::vec::Vec<$crate::abi::DeviceClassRef> {
                ::std::vec![
                    $($($crate::export::device_class::<$device>(),)*)?
                    $($($crate::export::virtio_class::<$virtio>(),)*)?
                ]
            }
            extern "C" fn constructor() -> $crate::abi::abi_stable::library::RootModuleResult {
                $crate::export::manifest(
                    ::std::env!("CARGO_PKG_NAME"),
                    ::std::env!("CARGO_PKG_VERSION"),
                    ::std::env!("CARGO_PKG_DESCRIPTION"),
                    classes,
                )
            }
            #[unsafe(no_mangle)]
            #[allow(non_upper_case_globals)]
            pub static cardcage_plugin_v1: $crate::abi::abi_stable::library::LibHeader =
                $crate::export::header(constructor);
        };
    };
}
