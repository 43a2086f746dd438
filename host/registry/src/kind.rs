//! A kind of device: what can stand after `-device`.

use std::sync::Arc;

use cardcage_options::nearest;
use cardcage_plugin_abi::DeviceClassRef;
use serde_json::{Map, Value};

use crate::{DeviceDescription, LoadedPlugin, PropertyDescription};

/// The bus that a kind is plugged into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Bus {
    /// A PCI function.
    Pci,
    /// The ISA bus.
    Isa,
    /// The system bus: fixed addresses.
    System,
    /// A virtio-mmio transport.
    VirtioMmio,
}

impl Bus {
    /// The name that users see, as QEMU's.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pci => "PCI",
            Self::Isa => "ISA",
            Self::System => "System",
            Self::VirtioMmio => "virtio-bus",
        }
    }
}

/// A way for virtio devices to reach the guest: the host supplies it.
#[derive(Debug, Clone)]
pub struct Transport {
    /// What is appended to the device's name: `pci`, `device`.
    pub suffix: &'static str,
    /// The bus that the result is plugged into.
    pub bus: Bus,
    /// Whether the bare name of the device means this transport.
    pub default: bool,
    /// Properties of the transport.
    pub properties: Vec<PropertyDescription>,
}

/// The value of a property as it was given.
#[derive(Debug, Clone, PartialEq)]
pub enum PropertyValue {
    /// Text of a command line.
    Text(String),
    /// JSON of QMP or of a command line.
    Json(Value),
}

/// Checked properties: names and values as text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties {
    /// Those that the plugin declared.
    pub device: Vec<(String, String)>,
    /// Those of the bus and the transport, which the host supplies.
    pub host: Vec<(String, String)>,
}

impl Properties {
    /// A property of the bus or transport.
    pub fn host_value(&self, name: &str) -> Option<&str> {
        self.host.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// A property that a kind does not have, or a value that it does not take. The texts are QEMU's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PropertyError {
    /// No such property.
    #[error("Property '{kind}.{name}' not found")]
    Unknown {
        /// The kind.
        kind: String,
        /// The name that was given.
        name: String,
        /// The nearest name that exists.
        nearest: Option<String>,
    },
    /// Not a value of the property's type, or out of its range.
    #[error("Property '{kind}.{name}' doesn't take value '{value}'")]
    Value {
        /// The kind.
        kind: String,
        /// The property.
        name: String,
        /// The value that was given.
        value: String,
        /// What is allowed.
        allowed: String,
    },
    /// Required, but not given.
    #[error("Property '{kind}.{name}' is required")]
    Missing {
        /// The kind.
        kind: String,
        /// The property.
        name: String,
    },
}

impl PropertyError {
    /// What would be right, as a clause to append.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown { nearest, .. } => nearest.as_ref().map(|n| format!("did you mean '{n}'?")),
            Self::Value { allowed, .. } => Some(format!("expected {allowed}")),
            Self::Missing { .. } => None,
        }
    }
}

/// A kind of device that can be made.
pub struct Kind {
    pub(crate) name: String,
    pub(crate) aliases: Vec<String>,
    pub(crate) bus: Bus,
    pub(crate) description: DeviceDescription,
    /// Properties that the host supplies.
    pub(crate) host_properties: Vec<PropertyDescription>,
    pub(crate) class: DeviceClassRef,
    pub(crate) plugin: Arc<LoadedPlugin>,
}

impl Kind {
    /// Name, as after `-device`.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Other names.
    pub fn aliases(&self) -> &[String] {
        &self.aliases
    }
    /// The bus it is plugged into.
    pub fn bus(&self) -> Bus {
        self.bus
    }
    /// What the plugin says about it. For a virtio device, name and bus are those of the bare device.
    pub fn description(&self) -> &DeviceDescription {
        &self.description
    }
    /// The plugin that it comes from.
    pub fn plugin(&self) -> &LoadedPlugin {
        &self.plugin
    }
    /// Its class, to make devices of.
    pub fn class(&self) -> DeviceClassRef {
        self.class
    }
    /// Device ID, if it is a virtio device behind one of the host's transports.
    pub fn virtio_device_id(&self) -> Option<u32> {
        self.description.virtio_device_id
    }
    /// All properties: the plugin's, then the host's.
    pub fn properties(&self) -> impl Iterator<Item = &PropertyDescription> {
        self.description.properties.iter().chain(&self.host_properties)
    }

    /// Everything that is known, as `query-available-devices` returns it.
    pub fn to_json(&self) -> Value {
        let d = &self.description;
        let mut o = Map::new();
        o.insert("name".into(), self.name.clone().into());
        if !self.aliases.is_empty() {
            o.insert("aliases".into(), self.aliases.clone().into());
        }
        o.insert("summary".into(), d.summary.clone().into());
        o.insert("category".into(), d.category.clone().into());
        o.insert("bus".into(), self.bus.name().into());
        o.insert("plugin".into(), self.plugin.name().into());
        o.insert("plugin-version".into(), self.plugin.version().into());
        o.insert("creatable".into(), true.into());
        o.insert("hotpluggable".into(), d.hotpluggable.into());
        o.insert("migratable".into(), d.migratable.into());
        if let Some(v) = d.state_version {
            o.insert("state-version".into(), v.into());
        }
        let properties = self.properties().map(|p| serde_json::to_value(p).unwrap_or_default()).collect();
        o.insert("properties".into(), Value::Array(properties));
        Value::Object(o)
    }

    /// Checks properties against the descriptions, and sorts them by who takes them. Of a name given twice, the last
    /// counts.
    pub fn check<'a>(
        &self,
        given: impl IntoIterator<Item = (&'a str, PropertyValue)>,
    ) -> Result<Properties, PropertyError> {
        let mut checked = Properties::default();
        for (name, value) in given {
            let device = self.description.properties.iter().find(|p| p.name == name);
            let host = self.host_properties.iter().find(|p| p.name == name);
            let Some(p) = device.or(host) else {
                let nearest = nearest(name, self.properties().map(|p| p.name.as_str())).map(str::to_string);
                return Err(PropertyError::Unknown { kind: self.name.clone(), name: name.into(), nearest });
            };
            let text = accept(p, &value).map_err(|allowed| PropertyError::Value {
                kind: self.name.clone(),
                name: name.into(),
                value: value.to_string(),
                allowed,
            })?;
            let list = if device.is_some() { &mut checked.device } else { &mut checked.host };
            list.retain(|(n, _)| n != name);
            list.push((name.into(), text));
        }
        let missing = self
            .description
            .properties
            .iter()
            .find(|p| p.required && !checked.device.iter().any(|(n, _)| *n == p.name));
        match missing {
            Some(p) => Err(PropertyError::Missing { kind: self.name.clone(), name: p.name.clone() }),
            None => Ok(checked),
        }
    }
}

impl std::fmt::Display for PropertyValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(t) | Self::Json(Value::String(t)) => f.write_str(t),
            Self::Json(v) => write!(f, "{v}"),
        }
    }
}

/// The value as the text that the plugin gets, or what would be allowed.
fn accept(p: &PropertyDescription, value: &PropertyValue) -> Result<String, String> {
    let allowed = || allowed(p);
    let text = match value {
        PropertyValue::Text(t) => t.clone(),
        PropertyValue::Json(Value::String(t)) => t.clone(),
        PropertyValue::Json(Value::Bool(b)) if p.r#type == "bool" || p.choices.contains(&on_off(*b)) => on_off(*b),
        PropertyValue::Json(Value::Number(n)) if p.is_number() || p.r#type == "str" => n.to_string(),
        PropertyValue::Json(_) => return Err(allowed()),
    };
    if p.r#type == "bool" {
        return match text.as_str() {
            "on" | "yes" | "true" | "y" => Ok("on".into()),
            "off" | "no" | "false" | "n" => Ok("off".into()),
            _ => Err(allowed()),
        };
    }
    if !p.choices.is_empty() {
        return if p.choices.contains(&text) { Ok(text) } else { Err(allowed()) };
    }
    if p.is_number() {
        let n = number(&p.r#type, &text).ok_or_else(allowed)?;
        let (min, max) = p.range();
        if min.is_some_and(|m| n < m) || max.is_some_and(|m| n > m) {
            return Err(allowed());
        }
        return Ok(n.to_string());
    }
    if p.r#type == "mac" && !is_mac(&text) {
        return Err(allowed());
    }
    Ok(text)
}

fn on_off(value: bool) -> String {
    if value { "on" } else { "off" }.into()
}

fn number(type_name: &str, text: &str) -> Option<i128> {
    if type_name == "size" {
        return cardcage_options::parse_size(text, 1).ok().map(i128::from);
    }
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |d| (true, d));
    let hex = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X"));
    let clean = digits.starts_with(|c: char| c.is_ascii_digit()) && !hex.is_some_and(|h| h.starts_with('+'));
    let n = hex.map_or_else(|| digits.parse::<u64>(), |h| u64::from_str_radix(h, 16)).ok().filter(|_| clean)?;
    Some(if negative { -i128::from(n) } else { i128::from(n) })
}

fn is_mac(text: &str) -> bool {
    let parts: Vec<&str> = text.split([':', '-']).collect();
    parts.len() == 6 && parts.iter().all(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// What a property takes, in words.
fn allowed(p: &PropertyDescription) -> String {
    if !p.choices.is_empty() {
        return format!("one of {}", p.choices.join(", "));
    }
    match p.r#type.as_str() {
        "bool" => "'on' or 'off'".into(),
        "mac" => "an Ethernet address such as 52:54:00:12:34:56".into(),
        _ if p.is_number() => {
            let what = if p.r#type == "size" { "a size" } else { "a number" };
            let unit = p.unit.as_ref().map(|u| format!(" {u}")).unwrap_or_default();
            match p.range() {
                (Some(min), Some(max)) => format!("{what} from {min} to {max}{unit}"),
                (Some(min), None) => format!("{what} of at least {min}{unit}"),
                (None, Some(max)) => format!("{what} of at most {max}{unit}"),
                (None, None) => what.into(),
            }
        }
        _ => "a string".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn property(v: Value) -> PropertyDescription {
        serde_json::from_value(v).unwrap()
    }

    #[test]
    fn values_are_accepted_from_text_and_from_json_alike() {
        let p = property(json!({"name":"n","type":"uint16","min":1,"max":1024,"unit":"ports"}));
        for v in [PropertyValue::Text("0x10".into()), PropertyValue::Json(json!(16)), PropertyValue::Json(json!("16"))]
        {
            assert_eq!(accept(&p, &v).unwrap(), "16");
        }
        for bad in [json!(0), json!(1025), json!(-1), json!(1.5), json!(true), json!("x"), json!([]), json!("")] {
            assert_eq!(accept(&p, &PropertyValue::Json(bad)).unwrap_err(), "a number from 1 to 1024 ports");
        }
    }

    #[test]
    fn booleans_choices_sizes_and_addresses_have_their_own_rules() {
        let b = property(json!({"name":"b","type":"bool"}));
        assert_eq!(accept(&b, &PropertyValue::Json(json!(true))).unwrap(), "on");
        assert_eq!(accept(&b, &PropertyValue::Text("no".into())).unwrap(), "off");
        let c = property(json!({"name":"c","type":"OnOffAuto","choices":["auto","on","off"]}));
        assert_eq!(accept(&c, &PropertyValue::Json(json!(false))).unwrap(), "off");
        assert_eq!(accept(&c, &PropertyValue::Text("maybe".into())).unwrap_err(), "one of auto, on, off");
        let s = property(json!({"name":"s","type":"size","min":0,"max":8192}));
        assert_eq!(accept(&s, &PropertyValue::Text("8K".into())).unwrap(), "8192");
        assert!(accept(&s, &PropertyValue::Text("9K".into())).is_err());
        let m = property(json!({"name":"m","type":"mac"}));
        assert!(accept(&m, &PropertyValue::Text("52:54:00:12:34:56".into())).is_ok());
        assert!(accept(&m, &PropertyValue::Text("zz".into())).is_err());
    }
}
