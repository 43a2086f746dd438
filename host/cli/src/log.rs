//! Messages of the program and of its plugins, on standard error.
//!
//! `CARDCAGE_LOG` chooses what is shown, in the syntax of `tracing-subscriber`'s filters: `debug`, `plugin=trace`.

use std::sync::atomic::{AtomicU8, Ordering};

use cardcage_plugin_abi as abi;
use cardcage_plugin_abi::abi_stable::{sabi_trait::TD_Opaque, std_types::*};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

const ENV: &str = "CARDCAGE_LOG";

/// Messages above this level are not wanted: plugins read it before they format anything.
static PLUGIN_LEVEL: AtomicU8 = AtomicU8::new(2);

/// Starts logging.
pub(crate) fn init() {
    let filter =
        EnvFilter::builder().with_default_directive(LevelFilter::WARN.into()).with_env_var(ENV).from_env_lossy();
    let level = match filter.max_level_hint() {
        Some(LevelFilter::OFF) => 0,
        Some(LevelFilter::ERROR) => 1,
        Some(LevelFilter::INFO) => 3,
        Some(LevelFilter::DEBUG) => 4,
        Some(LevelFilter::TRACE) | None => 5,
        Some(_) => 2,
    };
    PLUGIN_LEVEL.store(level, Ordering::Relaxed);
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
}

/// Where the messages of one plugin go.
pub(crate) fn plugin_sink(plugin: &str) -> abi::LogObj {
    abi::LogAbi_TO::from_ptr(RArc::new(Sink { plugin: plugin.into() }), TD_Opaque)
}

struct Sink {
    plugin: String,
}

impl abi::LogAbi for Sink {
    fn log(&self, r: &abi::LogRecord<'_>) {
        let plugin = self.plugin.as_str();
        let device = if r.device.is_empty() { plugin } else { r.device.as_str() };
        let message = r.message.as_str();
        match r.level {
            1 => tracing::error!(target: "plugin", plugin, "{device}: {message}"),
            2 => tracing::warn!(target: "plugin", plugin, "{device}: {message}"),
            3 => tracing::info!(target: "plugin", plugin, "{device}: {message}"),
            4 => tracing::debug!(target: "plugin", plugin, "{device}: {message}"),
            _ => tracing::trace!(target: "plugin", plugin, "{device}: {message}"),
        }
    }

    fn max_level(&self) -> *const u8 {
        PLUGIN_LEVEL.as_ptr()
    }
}
