//! The QMP commands of a machine.

use std::sync::Arc;

use cardcage_qmp::{Call, CommandError, Commands, Value, qmp_types};
use cardcage_registry::{Kind, PropertyDescription, Registry};
use serde_json::json;

use crate::control::{Cause, Control};
use crate::vm::Vm;

qmp_types! {
    /// Whether the machine runs.
    pub struct StatusInfo {
        /// The run state.
        status: String,
        /// Whether vCPUs run.
        running: bool,
    }

    /// The machine's name.
    pub struct NameInfo {
        /// What `-name` gave.
        name: Option<String>,
    }

    /// The machine's UUID.
    pub struct UuidInfo {
        /// The UUID; all zeroes if none was given.
        uuid: String = "UUID",
    }

    /// Whether KVM is in use.
    pub struct KvmInfo {
        /// Whether vCPUs run under KVM.
        enabled: bool,
        /// Whether this program can use KVM.
        present: bool,
    }

    /// What `query-available-devices` is to list.
    pub struct DeviceFilter {
        /// Only devices on this bus.
        bus: Option<String>,
        /// Only devices of this category.
        category: Option<String>,
        /// Only devices of this plugin.
        plugin: Option<String>,
    }

    /// A kind of device.
    pub struct AvailableDevice {
        /// Name, as after `-device`.
        name: String,
        /// Other names.
        aliases: Option<Vec<String>>,
        /// One line about it.
        summary: String,
        /// Heading under which it is listed.
        category: String,
        /// Bus that it is plugged into.
        bus: String,
        /// Plugin that it comes from.
        plugin: String,
        /// Version of that plugin.
        plugin_version: String = "plugin-version",
        /// Whether users can make one.
        creatable: bool,
        /// Whether it may come and go while the guest runs.
        hotpluggable: bool,
        /// Whether it can be saved and restored.
        migratable: bool,
        /// Newest version of its saved state.
        state_version: Option<u32> = "state-version",
        /// What can be set.
        properties: Vec<DeviceProperty>,
    }

    /// A property of a kind of device.
    pub struct DeviceProperty {
        /// Name.
        name: String,
        /// Type: `bool`, `str`, `size`, `uint8` to `uint64`, `int8` to `int64`, `mac`, `drive`, `chardev`, `netdev`, or the name of an enumeration.
        ty: String = "type",
        /// Text for users.
        description: Option<String>,
        /// Whether it must be given.
        required: bool,
        /// Value when it is not given.
        default: Option<Value>,
        /// Smallest number allowed.
        min: Option<Value>,
        /// Largest number allowed.
        max: Option<Value>,
        /// All values allowed, if they can be listed.
        choices: Option<Vec<String>>,
        /// Unit of a number.
        unit: Option<String>,
    }

    /// A plugin file.
    pub struct PluginInfo {
        /// Name; absent if the file could not be read as a plugin.
        name: Option<String>,
        /// Its version.
        version: Option<String>,
        /// One line about it.
        summary: Option<String>,
        /// The file.
        file: String,
        /// SHA-256 of what was loaded.
        sha256: Option<String>,
        /// Version of the plugin API that it was built with.
        api_version: Option<String> = "api-version",
        /// `loaded`, `shadowed`, `refused` or `excluded`.
        state: String,
        /// Why it is not loaded.
        reason: Option<String>,
        /// Kinds of device that it offers.
        devices: Vec<String>,
    }

    /// What `qom-list-types` is to list.
    pub struct ListTypes {
        /// Only types that implement this one.
        implements: Option<String>,
        /// Abstract types too.
        abstr: Option<bool> = "abstract",
    }

    /// A type.
    pub struct ObjectTypeInfo {
        /// Its name.
        name: String,
        /// Whether it is abstract.
        abstr: Option<bool> = "abstract",
        /// The type that it is derived from.
        parent: Option<String>,
    }

    /// Which kind of device.
    pub struct TypeName {
        /// Its name.
        typename: String,
    }

    /// A property in QEMU's form.
    pub struct ObjectPropertyInfo {
        /// Name.
        name: String,
        /// Type.
        ty: String = "type",
        /// Text for users.
        description: Option<String>,
        /// Value when it is not given.
        default_value: Option<Value> = "default-value",
    }

    /// A device of the machine.
    pub struct DeviceState {
        /// Its id, or a made-up name.
        id: String,
        /// Name of its kind.
        driver: String,
        /// Slot and function on the PCI bus.
        addr: Option<String>,
        /// Why it answers no more, if its plugin panicked.
        broken: Option<String>,
        /// What it tells about itself.
        state: Value,
    }
}

/// Registers all commands of a machine.
pub fn register(commands: &mut Commands, registry: &Arc<Registry>, control: &Control) {
    register_run_control(commands, control);
    register_queries(commands, control);
    register_introspection(commands, registry);
}

fn on_machine<R: Send + 'static>(
    control: &Control,
    f: impl FnOnce(&mut Vm) -> R + Send + 'static,
) -> Result<R, CommandError> {
    control.call(f).ok_or_else(|| CommandError::generic("the machine has ended"))
}

fn register_run_control(commands: &mut Commands, control: &Control) {
    let c = control.clone();
    commands.blocking("stop", move |(): (), _: &Call| on_machine(&c, Vm::stop));
    let c = control.clone();
    commands.blocking("cont", move |(): (), _: &Call| on_machine(&c, Vm::cont)?.map_err(CommandError::generic));
    let c = control.clone();
    commands.blocking("system_reset", move |(): (), _: &Call| on_machine(&c, |vm| vm.reset(Cause::HostQmpSystemReset)));
    let c = control.clone();
    commands.blocking("system_powerdown", move |(): (), _: &Call| on_machine(&c, Vm::power_down));
    let c = control.clone();
    commands
        .blocking("quit", move |(): (), _: &Call| on_machine(&c, |vm| vm.shutdown(Cause::HostQmpQuit, 0)))
        .allow_preconfig();
    commands.event::<Value>("SHUTDOWN").event::<Value>("RESET").event::<Value>("DEVICE_BROKEN");
    commands.event::<()>("STOP").event::<()>("RESUME").event::<()>("POWERDOWN");
    commands.event::<Value>("GUEST_PANICKED").event::<Value>("GUEST_CRASHLOADED").event::<Value>("GUEST_PVSHUTDOWN");
}

fn register_queries(commands: &mut Commands, control: &Control) {
    let c = control.clone();
    commands
        .blocking("query-status", move |(): (), _: &Call| {
            let state = on_machine(&c, |vm| vm.state())?;
            Ok(StatusInfo { status: state.name().into(), running: state.is_running() })
        })
        .allow_preconfig();
    let c = control.clone();
    commands
        .blocking("query-name", move |(): (), _: &Call| {
            Ok(NameInfo { name: on_machine(&c, |vm| vm.config().name.clone())? })
        })
        .allow_preconfig();
    let c = control.clone();
    commands
        .blocking("query-uuid", move |(): (), _: &Call| {
            Ok(UuidInfo { uuid: on_machine(&c, |vm| vm.config().uuid.to_string())? })
        })
        .allow_preconfig();
    let c = control.clone();
    commands.blocking("query-kvm", move |(): (), _: &Call| {
        let enabled = on_machine(&c, |vm| vm.config().accelerator == crate::Accelerator::Kvm)?;
        Ok(KvmInfo { enabled, present: true })
    });
    let c = control.clone();
    commands.blocking("query-devices", move |(): (), _: &Call| {
        let list = on_machine(&c, |vm| vm.board().devices.list())?;
        Ok(list.into_iter().map(device_state).collect::<Vec<_>>())
    });
}

fn device_state(mut v: Value) -> DeviceState {
    let text = |v: &Value, key: &str| v.get(key).and_then(Value::as_str).map(str::to_string);
    DeviceState {
        id: text(&v, "id").unwrap_or_default(),
        driver: text(&v, "driver").unwrap_or_default(),
        addr: text(&v, "addr"),
        broken: text(&v, "broken"),
        state: v.get_mut("state").map_or_else(|| json!({}), Value::take),
    }
}

fn register_introspection(commands: &mut Commands, registry: &Arc<Registry>) {
    let r = registry.clone();
    commands
        .blocking("query-available-devices", move |filter: DeviceFilter, _: &Call| {
            let matches =
                |wanted: &Option<String>, is: &str| wanted.as_ref().is_none_or(|w| w.eq_ignore_ascii_case(is));
            let kinds = r.kinds().filter(|k| {
                matches(&filter.bus, k.bus().name())
                    && matches(&filter.category, &k.description().category)
                    && matches(&filter.plugin, k.plugin().name())
            });
            Ok(kinds.map(available_device).collect::<Vec<_>>())
        })
        .allow_preconfig();
    let r = registry.clone();
    commands.blocking("query-plugins", move |(): (), _: &Call| Ok(plugins(&r))).allow_preconfig();
    let r = registry.clone();
    commands.blocking("qom-list-types", move |filter: ListTypes, _: &Call| Ok(types(&r, &filter))).allow_preconfig();
    let r = registry.clone();
    commands
        .blocking("device-list-properties", move |name: TypeName, _: &Call| {
            let name = name.typename;
            if ABSTRACT.iter().any(|(n, _)| *n == name) {
                return Err(CommandError::generic("Parameter 'typename' expects a non-abstract device type"));
            }
            let kind = r.kind(&name).ok_or_else(|| CommandError::device_not_found(&name))?;
            Ok(kind.properties().map(object_property).collect::<Vec<_>>())
        })
        .allow_preconfig();
}

/// A kind in the form of `query-available-devices`.
pub fn available_device(kind: &Kind) -> AvailableDevice {
    let d = kind.description();
    AvailableDevice {
        name: kind.name().into(),
        aliases: Some(kind.aliases().to_vec()).filter(|a| !a.is_empty()),
        summary: d.summary.clone(),
        category: d.category.clone(),
        bus: kind.bus().name().into(),
        plugin: kind.plugin().name().into(),
        plugin_version: kind.plugin().version().into(),
        creatable: true,
        hotpluggable: d.hotpluggable,
        migratable: d.migratable,
        state_version: d.state_version,
        properties: kind.properties().map(device_property).collect(),
    }
}

fn device_property(p: &PropertyDescription) -> DeviceProperty {
    DeviceProperty {
        name: p.name.clone(),
        ty: p.r#type.clone(),
        description: p.description.clone(),
        required: p.required,
        default: p.default.clone(),
        min: p.min.clone(),
        max: p.max.clone(),
        choices: Some(p.choices.clone()).filter(|c| !c.is_empty()),
        unit: p.unit.clone(),
    }
}

/// Ids of backends and Ethernet addresses are strings in QEMU's listing.
fn object_property(p: &PropertyDescription) -> ObjectPropertyInfo {
    let ty = match p.r#type.as_str() {
        "drive" | "chardev" | "netdev" | "mac" => "str".into(),
        other => other.to_string(),
    };
    ObjectPropertyInfo {
        name: p.name.clone(),
        ty,
        description: p.description.clone(),
        default_value: p.default.clone(),
    }
}

/// All plugin files that were found: those in use, then the others.
pub fn plugins(registry: &Registry) -> Vec<PluginInfo> {
    let loaded = registry.plugins().map(|p| PluginInfo {
        name: Some(p.name().into()),
        version: Some(p.version().into()),
        summary: Some(p.summary().into()),
        file: p.path().display().to_string(),
        sha256: Some(p.sha256().into()),
        api_version: Some(p.api_version().into()),
        state: "loaded".into(),
        reason: None,
        devices: registry.kinds().filter(|k| k.plugin().name() == p.name()).map(|k| k.name().into()).collect(),
    });
    let others = registry.unavailable().iter().map(|u| PluginInfo {
        name: None,
        version: None,
        summary: None,
        file: u.path.display().to_string(),
        sha256: None,
        api_version: None,
        state: u.state.into(),
        reason: Some(u.reason.clone()),
        devices: Vec::new(),
    });
    loaded.chain(others).collect()
}

/// Types that only others are derived from, with their parents.
const ABSTRACT: [(&str, &str); 5] = [
    ("device", "object"),
    ("pci-device", "device"),
    ("isa-device", "device"),
    ("sys-bus-device", "device"),
    ("virtio-device", "device"),
];

fn parent(kind: &Kind) -> &'static str {
    match kind.bus() {
        cardcage_registry::Bus::Pci => "pci-device",
        cardcage_registry::Bus::Isa => "isa-device",
        cardcage_registry::Bus::System => "sys-bus-device",
        cardcage_registry::Bus::VirtioMmio => "virtio-device",
    }
}

fn types(registry: &Registry, filter: &ListTypes) -> Vec<ObjectTypeInfo> {
    let kinds = registry.kinds().map(|k| (k.name().to_string(), parent(k), false));
    let abstr = ABSTRACT.iter().map(|(name, parent)| ((*name).to_string(), *parent, true));
    let is_a = |name: &str, parent: &str| match filter.implements.as_deref() {
        None | Some("object") => true,
        Some(wanted) => {
            name == wanted || parent == wanted || ABSTRACT.iter().any(|(n, p)| *n == parent && *p == wanted)
        }
    };
    abstr
        .filter(|_| filter.abstr != Some(false))
        .chain(kinds)
        .filter(|(name, parent, _)| is_a(name, parent))
        .map(|(name, parent, abstr)| ObjectTypeInfo { name, abstr: abstr.then_some(true), parent: Some(parent.into()) })
        .collect()
}
