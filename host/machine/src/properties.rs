//! Properties that the host's buses and transports give to every device on them.

use cardcage_registry::{Bus, PropertyDescription, Registry, RegistryBuilder, Transport};
use serde_json::{Value, json};

fn descriptions(list: Value) -> Vec<PropertyDescription> {
    serde_json::from_value(list).expect("the host's own descriptions are well formed")
}

/// A registry builder that knows the buses and transports of this program.
pub fn registry_builder() -> RegistryBuilder {
    let pci = descriptions(json!([
        {"name": "addr", "type": "str", "description": "Slot and optional function number, example: 06.0 or 06"},
        {"name": "multifunction", "type": "bool", "default": false,
         "description": "Whether other functions share the slot"},
    ]));
    let virtio_pci = descriptions(json!([
        {"name": "disable-legacy", "type": "OnOffAuto", "choices": ["auto", "on", "off"], "default": "auto",
         "description": "Whether the legacy registers are left out"},
        {"name": "disable-modern", "type": "bool", "default": false,
         "description": "Whether the modern registers are left out"},
        {"name": "vectors", "type": "uint16", "min": 0, "max": 2048, "unit": "vectors",
         "description": "MSI-X vectors; by default one for each queue and one for configuration changes"},
    ]));
    Registry::builder()
        .bus_properties(Bus::Pci, pci)
        .transport(Transport { suffix: "pci", bus: Bus::Pci, default: true, properties: virtio_pci })
        .transport(Transport { suffix: "device", bus: Bus::VirtioMmio, default: false, properties: Vec::new() })
}
