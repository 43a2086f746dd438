//! What a plugin says about a kind of device: the JSON text in its class, checked.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A kind of device, as its plugin describes it. Members that this version does not know are ignored.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DeviceDescription {
    /// What users write after `-device`.
    pub name: String,
    /// One line about it.
    #[serde(default)]
    pub summary: String,
    /// `PCI`, `ISA`, `System` or `virtio-bus`.
    pub bus: String,
    /// Heading under which it is listed.
    pub category: String,
    /// Other names.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Whether it may come and go while the guest runs.
    #[serde(default)]
    pub hotpluggable: bool,
    /// Whether it can be saved and restored.
    #[serde(default)]
    pub migratable: bool,
    /// Newest layout of its saved state.
    pub state_version: Option<u32>,
    /// Device ID of a virtio device.
    pub virtio_device_id: Option<u32>,
    /// What can be set.
    #[serde(default)]
    pub properties: Vec<PropertyDescription>,
}

/// A property, as its plugin describes it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PropertyDescription {
    /// Name.
    pub name: String,
    /// `bool`, `str`, `size`, `uint8` … `int64`, `mac`, `drive`, `chardev`, `netdev`, or the name of an enum.
    pub r#type: String,
    /// One sentence for users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Whether it must be given.
    #[serde(default)]
    pub required: bool,
    /// Value when it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<Value>,
    /// Smallest number allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<Value>,
    /// Largest number allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<Value>,
    /// All values allowed, if they can be listed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<String>,
    /// Unit of a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
}

impl PropertyDescription {
    /// Whether values are numbers.
    pub fn is_number(&self) -> bool {
        self.r#type == "size" || self.r#type.starts_with("uint") || self.r#type.starts_with("int")
    }

    /// Smallest and largest number, where known.
    pub fn range(&self) -> (Option<i128>, Option<i128>) {
        let number = |v: &Option<Value>| v.as_ref().and_then(|v| v.to_string().parse().ok());
        (number(&self.min), number(&self.max))
    }

    /// The default as a user would write it.
    pub fn default_text(&self) -> Option<String> {
        self.default.as_ref().map(|v| match v {
            Value::String(s) => s.clone(),
            Value::Bool(true) => "on".into(),
            Value::Bool(false) => "off".into(),
            other => other.to_string(),
        })
    }
}

impl DeviceDescription {
    /// Reads and checks the text of a class.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let d: Self = serde_json::from_str(text).map_err(|e| format!("the description is not understood: {e}"))?;
        let bad_name =
            |n: &str| n.is_empty() || !n.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        if let Some(name) = std::iter::once(&d.name).chain(&d.aliases).find(|n| bad_name(n)) {
            return Err(format!("'{name}' is no name for a device: use letters, digits, '-', '_' and '.'"));
        }
        if !["PCI", "ISA", "System", "virtio-bus"].contains(&d.bus.as_str()) {
            return Err(format!("device '{}' wants bus '{}', which this program does not have", d.name, d.bus));
        }
        if (d.bus == "virtio-bus") != d.virtio_device_id.is_some() {
            return Err(format!("device '{}' and its virtio device ID do not agree", d.name));
        }
        for (i, p) in d.properties.iter().enumerate() {
            if bad_name(&p.name) || d.properties.iter().take(i).any(|q| q.name == p.name) {
                return Err(format!("property '{}' of device '{}' is misnamed or there twice", p.name, d.name));
            }
        }
        Ok(d)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = r#"{"name":"a-b","bus":"ISA","category":"misc","new-member":1,
        "properties":[{"name":"size","type":"size","min":0,"max":18446744073709551615,"default":4096}]}"#;

    #[test]
    fn unknown_members_are_ignored_and_bounds_are_exact() {
        let d = DeviceDescription::parse(GOOD).unwrap();
        assert_eq!(d.properties[0].range(), (Some(0), Some(u64::MAX as i128)));
        assert_eq!(d.properties[0].default_text().unwrap(), "4096");
        assert!(!d.migratable && !d.hotpluggable);
    }

    #[test]
    fn nonsense_is_refused_with_its_name() {
        let cases = [
            (GOOD.replace("a-b", "a b"), "'a b' is no name"),
            (GOOD.replace("\"ISA\"", "\"VLB\""), "wants bus 'VLB'"),
            (GOOD.replace("\"ISA\"", "\"virtio-bus\""), "do not agree"),
            (GOOD.replace("}]", "},{\"name\":\"size\",\"type\":\"bool\"}]"), "there twice"),
            ("[]".into(), "not understood"),
        ];
        for (text, part) in cases {
            let e = DeviceDescription::parse(&text).unwrap_err();
            assert!(e.contains(part), "{e}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC*") {
            let _ = DeviceDescription::parse(&text);
        }
    }
}
