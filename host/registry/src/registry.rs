//! The table of kinds.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use cardcage_options::nearest;
use cardcage_plugin_abi::DeviceClassRef;
use tracing::{debug, warn};

use crate::kind::{Bus, Kind, Transport};
use crate::loader::{LogSink, load};
use crate::search::Candidate;
use crate::{DeviceDescription, LoadedPlugin, PluginError, PluginSet, PropertyDescription, SearchPath};

/// A file that was found but is not in use, and why.
#[derive(Debug, Clone)]
pub struct Unavailable {
    /// The file.
    pub path: PathBuf,
    /// `shadowed`, `refused` or `excluded`.
    pub state: &'static str,
    /// One sentence.
    pub reason: String,
}

/// Collects what a registry is made from.
#[derive(Default)]
pub struct RegistryBuilder {
    set: Option<PluginSet>,
    transports: Vec<Transport>,
    bus_properties: HashMap<Bus, Vec<PropertyDescription>>,
    log: Option<Box<LogSink>>,
}

impl RegistryBuilder {
    /// Load only what this set lists.
    #[must_use]
    pub fn plugin_set(mut self, set: Option<PluginSet>) -> Self {
        self.set = set;
        self
    }
    /// A transport for virtio devices.
    #[must_use]
    pub fn transport(mut self, transport: Transport) -> Self {
        self.transports.push(transport);
        self
    }
    /// Properties that every device on a bus has.
    #[must_use]
    pub fn bus_properties(mut self, bus: Bus, properties: Vec<PropertyDescription>) -> Self {
        self.bus_properties.insert(bus, properties);
        self
    }
    /// Where the plugins' messages go.
    #[must_use]
    pub fn log(mut self, sink: Box<LogSink>) -> Self {
        self.log = Some(sink);
        self
    }

    /// Loads what the path leads to. A file that the user named and that is refused ends it, as does an entry of the
    /// set that cannot be met; other refusals are kept as [`Registry::unavailable`].
    pub fn load(self, path: &SearchPath) -> Result<Registry, PluginError> {
        let mut registry =
            Registry { plugins: Vec::new(), kinds: BTreeMap::new(), aliases: HashMap::new(), unavailable: Vec::new() };
        for candidate in path.candidates() {
            self.consider(&mut registry, &candidate)?;
        }
        if let Some(set) = &self.set {
            let missing = set.entries().iter().find(|e| !registry.plugins.iter().any(|p| p.name() == e.name));
            if let Some(entry) = missing {
                return Err(set.absent(entry, path.describe()));
            }
        }
        Ok(registry)
    }

    fn consider(&self, registry: &mut Registry, candidate: &Candidate) -> Result<(), PluginError> {
        let plugin = match load(&candidate.path) {
            Ok(plugin) => plugin,
            // Beside cargo's plugins lie other libraries.
            Err(PluginError::NotAPlugin { .. }) if candidate.incidental => return Ok(()),
            Err(error) => return registry.refuse(candidate, "refused", error),
        };
        if let Some(first) = registry.plugins.iter().find(|p| p.name() == plugin.name()) {
            let reason =
                format!("plugin '{}' is shadowed by {}, which comes first", plugin.name(), first.path().display());
            if candidate.explicit {
                warn!("{reason}");
            }
            debug!("{}: {reason}", candidate.path.display());
            registry.unavailable.push(Unavailable { path: candidate.path.clone(), state: "shadowed", reason });
            return Ok(());
        }
        if let Some(error) = self.set.as_ref().and_then(|set| set.admit(&plugin).err()) {
            let listed = !matches!(error, PluginError::NotInSet { .. });
            if listed {
                return Err(error);
            }
            return registry.refuse(candidate, "excluded", error);
        }
        let kinds = match self.kinds(&plugin).and_then(|kinds| registry.check_names(&plugin, kinds)) {
            Ok(kinds) => kinds,
            Err(error) => return registry.refuse(candidate, "refused", error),
        };
        if let Some(sink) = &self.log {
            plugin.start(sink);
        }
        debug!("plugin '{}' {} from {}", plugin.name(), plugin.version(), plugin.path().display());
        registry.add(plugin, kinds);
        Ok(())
    }

    /// The kinds that a plugin's classes give, composed with the host's transports.
    fn kinds(&self, plugin: &Arc<LoadedPlugin>) -> Result<Vec<Kind>, PluginError> {
        let mut kinds = Vec::new();
        for (description, class) in plugin.classes()? {
            let bus = match description.bus.as_str() {
                "PCI" => Bus::Pci,
                "ISA" => Bus::Isa,
                "System" => Bus::System,
                _ => {
                    kinds.extend(self.transports.iter().map(|t| self.over(t, plugin, &description, class)));
                    continue;
                }
            };
            kinds.push(Kind {
                name: description.name.clone(),
                aliases: description.aliases.clone(),
                bus,
                host_properties: self.bus_properties.get(&bus).cloned().unwrap_or_default(),
                description,
                class,
                plugin: plugin.clone(),
            });
        }
        Ok(kinds)
    }

    fn over(&self, t: &Transport, plugin: &Arc<LoadedPlugin>, d: &DeviceDescription, class: DeviceClassRef) -> Kind {
        let bus_properties = self.bus_properties.get(&t.bus).cloned().unwrap_or_default();
        let mut host_properties = t.properties.clone();
        host_properties.extend(bus_properties);
        // What the device itself declares counts.
        host_properties.retain(|p| !d.properties.iter().any(|own| own.name == p.name));
        let mut aliases: Vec<_> = d.aliases.iter().map(|a| format!("{a}-{}", t.suffix)).collect();
        if t.default {
            aliases.push(d.name.clone());
            aliases.extend(d.aliases.clone());
        }
        Kind {
            name: format!("{}-{}", d.name, t.suffix),
            aliases,
            bus: t.bus,
            host_properties,
            description: d.clone(),
            class,
            plugin: plugin.clone(),
        }
    }
}

/// All plugins that were loaded and all kinds that they offer.
pub struct Registry {
    plugins: Vec<Arc<LoadedPlugin>>,
    kinds: BTreeMap<String, Kind>,
    aliases: HashMap<String, String>,
    unavailable: Vec<Unavailable>,
}

impl Registry {
    /// Starts to make one.
    pub fn builder() -> RegistryBuilder {
        RegistryBuilder::default()
    }

    /// The kind with this name or alias.
    pub fn kind(&self, name: &str) -> Option<&Kind> {
        self.kinds.get(self.aliases.get(name).map_or(name, String::as_str))
    }
    /// All kinds, by name.
    pub fn kinds(&self) -> impl Iterator<Item = &Kind> {
        self.kinds.values()
    }
    /// The existing name nearest to a wrong one.
    pub fn nearest_kind(&self, name: &str) -> Option<&str> {
        nearest(name, self.kinds.keys().chain(self.aliases.keys()).map(String::as_str))
    }
    /// The plugins, in the order in which they were loaded.
    pub fn plugins(&self) -> impl Iterator<Item = &LoadedPlugin> {
        self.plugins.iter().map(|p| &**p)
    }
    /// Files that were found but are not in use.
    pub fn unavailable(&self) -> &[Unavailable] {
        &self.unavailable
    }

    fn refuse(&mut self, candidate: &Candidate, state: &'static str, error: PluginError) -> Result<(), PluginError> {
        if candidate.explicit {
            return Err(error);
        }
        if state == "refused" {
            warn!("{error}");
        }
        self.unavailable.push(Unavailable { path: candidate.path.clone(), state, reason: error.to_string() });
        Ok(())
    }

    fn check_names(&self, plugin: &LoadedPlugin, kinds: Vec<Kind>) -> Result<Vec<Kind>, PluginError> {
        for name in kinds.iter().flat_map(|k| std::iter::once(&k.name).chain(&k.aliases)) {
            if let Some(other) = self.kind(name) {
                return Err(PluginError::NameTaken {
                    path: plugin.path().into(),
                    kind: name.clone(),
                    owner: other.plugin.name().into(),
                    owner_path: other.plugin.path().into(),
                });
            }
        }
        Ok(kinds)
    }

    fn add(&mut self, plugin: Arc<LoadedPlugin>, kinds: Vec<Kind>) {
        self.plugins.push(plugin);
        for kind in kinds {
            self.aliases.extend(kind.aliases.iter().map(|a| (a.clone(), kind.name.clone())));
            self.kinds.insert(kind.name.clone(), kind);
        }
    }
}
