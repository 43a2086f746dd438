//! Lists of kinds and their properties, for `-device help` and `cardcage plugin inspect`.

use std::collections::BTreeMap;

use cardcage_registry::{Kind, PropertyDescription, Registry};
use comfy_table::{ContentArrangement, Table, presets};

/// Width of tables.
const WIDTH: u16 = 100;

/// A table without borders.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut t = Table::new();
    t.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    t.set_header(header.iter().map(|h| h.to_uppercase()));
    t
}

/// Headings of `-device help`, as QEMU's.
fn heading(category: &str) -> &'static str {
    match category {
        "bridge" => "Controller/Bridge/Hub devices",
        "usb" => "USB devices",
        "storage" => "Storage devices",
        "network" => "Network devices",
        "input" => "Input devices",
        "display" => "Display devices",
        "sound" => "Sound devices",
        "misc" => "Misc devices",
        "watchdog" => "Watchdog devices",
        _ => "Uncategorized devices",
    }
}

/// `-device help`.
pub(crate) fn devices(registry: &Registry) -> String {
    let mut groups: BTreeMap<&str, Vec<&Kind>> = BTreeMap::new();
    for kind in registry.kinds() {
        groups.entry(heading(&kind.description().category)).or_default().push(kind);
    }
    let mut out = String::new();
    for (heading, kinds) in groups {
        out.push_str(&format!("{heading}:\n"));
        for k in kinds {
            out.push_str(&format!("name \"{}\", bus {}", k.name(), k.bus().name()));
            for alias in k.aliases() {
                out.push_str(&format!(", alias \"{alias}\""));
            }
            out.push_str(&format!(", desc \"{}\"\n", k.description().summary));
        }
        out.push('\n');
    }
    out
}

/// What a property takes, in a few words.
fn takes(p: &PropertyDescription) -> String {
    if !p.choices.is_empty() {
        return p.choices.join("|");
    }
    let natural = match p.r#type.as_str() {
        "uint8" => Some((0, 0xff)),
        "uint16" => Some((0, 0xffff)),
        "uint32" => Some((0, 0xffff_ffff)),
        "uint64" | "size" => Some((0, i128::from(u64::MAX))),
        _ => None,
    };
    let unit = p.unit.as_ref().map(|u| format!(" {u}")).unwrap_or_default();
    match p.range() {
        (Some(min), Some(max)) if natural != Some((min, max)) => format!("{} {min}..={max}{unit}", p.r#type),
        _ => format!("{}{unit}", p.r#type),
    }
}

/// A table of properties.
pub(crate) fn properties(kind: &Kind) -> String {
    let mut t = table(&["property", "takes", "default", "description"]);
    for p in kind.properties() {
        let default = if p.required { "(required)".into() } else { p.default_text().unwrap_or_default() };
        t.add_row([p.name.clone(), takes(p), default, p.description.clone().unwrap_or_default()]);
    }
    if t.is_empty() { "no properties\n".into() } else { format!("{t}\n") }
}

/// `-device DRIVER,help`.
pub(crate) fn device(kind: &Kind) -> String {
    format!("{} options:\n{}", kind.name(), properties(kind))
}
