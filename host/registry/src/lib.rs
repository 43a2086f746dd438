//! Finds, checks and loads plugins, and keeps the tables of what they offer.
//!
//! The [`Registry`] is the only list of device kinds there is: construction, help texts, QMP listings, checks of
//! properties and command-line completion all read it.
//!
//! # From a file to a kind
//! 1. [`SearchPath`] says where plugin files are looked for; the first file of a name wins, others are *shadowed*.
//! 2. The loader copies the file into a sealed memfd and loads that, so the file may be replaced while the VM
//!    runs, and what was hashed is what is loaded.
//! 3. The entry symbol, the API version and the layout of every type that crosses the interface are checked before
//!    any function of the plugin is called. A refusal is one sentence ([`PluginError`]).
//! 4. Each class in the plugin becomes a [`Kind`], or several for a virtio device: one for each transport.
//!
//! A plugin stays loaded until the program ends.

mod description;
mod error;
mod kind;
mod layout;
mod loader;
mod registry;
mod search;
mod set;

pub use description::{DeviceDescription, PropertyDescription};
pub use error::PluginError;
pub use kind::{Bus, Kind, Properties, PropertyError, PropertyValue, Transport};
pub use loader::{LoadedPlugin, LogSink, api_version};
pub use registry::{Registry, RegistryBuilder, Unavailable};
pub use search::SearchPath;
pub use set::{PluginSet, SetEntry, SetError};
