//! Devices and backends from their options.

use cardcage_block::{BlockGraph, DriveOptions, Interface, NodeOptions};
use cardcage_chardev::{ChardevOptions, Chardevs, Legacy, parse_legacy};
use cardcage_machine::DeviceOptions;
use cardcage_options::{Options, Value};
use cardcage_registry::{PropertyValue, Registry};

use crate::args::Args;
use crate::{help, usage};

/// Serial ports that the ISA bus has addresses for.
const SERIAL_PORTS: usize = 4;
/// Devices that every PC has, as far as there are plugins for them.
const ONBOARD: [&str; 2] = ["mc146818rtc", "i8042"];

fn property(value: &Value) -> PropertyValue {
    match value {
        Value::Text(text) => PropertyValue::Text(text.clone()),
        Value::Json(json) => PropertyValue::Json(json.clone()),
    }
}

fn parse(option: &str, text: &str, implied: Option<&str>) -> anyhow::Result<Options> {
    let options = Options::parse(option, text, implied).map_err(usage)?;
    for warning in options.warnings() {
        tracing::warn!("{warning}");
    }
    Ok(options)
}

/// Reads a `-device`; `None` after help was printed.
fn device(text: &str, registry: &Registry) -> anyhow::Result<Option<DeviceOptions>> {
    let mut options = parse("-device", text, Some("driver"))?;
    if text == "help" || text == "?" {
        print(&help::devices(registry));
        return Ok(None);
    }
    let help_wanted = options.wants_help();
    let driver = options.require_str("driver").map_err(usage)?;
    if help_wanted {
        let kind = registry.kind(&driver).ok_or_else(|| {
            let hint = registry.nearest_kind(&driver).map(|n| format!(", did you mean '{n}'?")).unwrap_or_default();
            usage(format!("-device {driver},help: '{driver}' is not a valid device model name{hint}"))
        })?;
        print(&help::device(kind));
        return Ok(None);
    }
    let id = options.take_id("id").map_err(usage)?;
    let bus = options.take_str("bus").map_err(usage)?;
    let properties = options.iter().map(|p| (p.key.clone(), property(&p.value))).collect();
    Ok(Some(DeviceOptions { driver, id, bus, properties }))
}

#[expect(clippy::print_stdout, reason = "help is what the user asked for")]
fn print(text: &str) {
    print!("{text}");
}

/// All devices, in the order in which they are made; `None` after help was printed. Makes the backends too.
pub(crate) fn all(
    args: &Args,
    registry: &Registry,
    blocks: &BlockGraph,
    chardevs: &Chardevs,
) -> anyhow::Result<Option<Vec<DeviceOptions>>> {
    let mut wanted = Vec::new();
    for text in &args.device {
        match device(text, registry)? {
            Some(options) => wanted.push(options),
            None => return Ok(None),
        }
    }
    for text in &args.chardev {
        let options = parse("-chardev", text, Some("backend"))?;
        add_chardev(chardevs, &ChardevOptions::from_options(options).map_err(usage)?)?;
    }
    for text in &args.blockdev {
        let options = parse("-blockdev", text, None)?;
        blocks.add(NodeOptions::from_options(options).map_err(usage)?).map_err(with_hint)?;
    }
    let mut devices = onboard(registry, &wanted);
    devices.extend(serial(args, registry, chardevs)?);
    for text in &args.drive {
        let options = DriveOptions::from_options(parse("-drive", text, None)?).map_err(usage)?;
        // The only device model for disks that a bare -drive can mean.
        let interface = options.interface.unwrap_or(Interface::Virtio);
        let drive = blocks.add_drive(options).map_err(with_hint)?;
        if interface == Interface::Virtio {
            devices.push(of("virtio-blk-pci", [("drive", drive.id)]));
        }
    }
    devices.extend(wanted);
    Ok(Some(devices))
}

/// Makes a chardev, and says where a pseudo-terminal is: nobody could know.
fn add_chardev(chardevs: &Chardevs, options: &ChardevOptions) -> anyhow::Result<()> {
    let chardev = chardevs.add(options)?;
    if let Some(path) = chardev.pty_path() {
        eprintln!("cardcage: char device redirected to {path} (label {})", chardev.id());
    }
    Ok(())
}

fn with_hint(error: cardcage_block::BlockError) -> anyhow::Error {
    match error.hint() {
        _ if matches!(error, cardcage_block::BlockError::NoNodeName) => usage(format!("-blockdev: {error}")),
        Some(hint) => anyhow::anyhow!("{error}\n{hint}"),
        None => anyhow::anyhow!("{error}"),
    }
}

fn of<const N: usize>(driver: &str, properties: [(&str, String); N]) -> DeviceOptions {
    let properties = properties.into_iter().map(|(n, v)| (n.into(), PropertyValue::Text(v))).collect();
    DeviceOptions { driver: driver.into(), id: None, bus: None, properties }
}

/// What a PC has on its board, unless the user adds the same kind.
fn onboard(registry: &Registry, wanted: &[DeviceOptions]) -> Vec<DeviceOptions> {
    let missing = |name: &str| registry.kind(name).is_some() && !wanted.iter().any(|d| d.driver == name);
    ONBOARD.iter().filter(|name| missing(name)).map(|name| of(name, [])).collect()
}

/// Serial ports with their chardevs.
fn serial(args: &Args, registry: &Registry, chardevs: &Chardevs) -> anyhow::Result<Vec<DeviceOptions>> {
    let default = match (args.nodefaults, args.nographic || args.display.is_none()) {
        (true, _) => "none",
        (false, true) => "mon:stdio",
        (false, false) => "null",
    };
    let given: Vec<&str> =
        if args.serial.is_empty() { vec![default] } else { args.serial.iter().map(String::as_str).collect() };
    if given.len() > SERIAL_PORTS {
        return Err(usage(format!("-serial: at most {SERIAL_PORTS} serial ports, not {}", given.len())));
    }
    // A plugin set may leave serial ports out: then only those that the user names are an error.
    if args.serial.is_empty() && registry.kind("isa-serial").is_none() {
        return Ok(Vec::new());
    }
    let mut devices = Vec::new();
    for (index, text) in given.into_iter().enumerate() {
        let id = match parse_legacy("-serial", &format!("serial{index}"), text).map_err(usage)? {
            Legacy::None => continue,
            Legacy::Existing(id) => id,
            Legacy::New { options, .. } => {
                add_chardev(chardevs, &options)?;
                options.id
            }
        };
        devices.push(of("isa-serial", [("chardev", id), ("index", index.to_string())]));
    }
    Ok(devices)
}
