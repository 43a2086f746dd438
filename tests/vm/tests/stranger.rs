//! A plugin that knows nothing of cardcage but plugin-api is built, listed, driven, and survives its own panic.

use std::path::PathBuf;

use cardcage_qtest_driver::{Machine, Pci};
use cardcage_tests::{program, run, stranger};
use serde_json::{Value, json};

/// The program and the plugin's file.
fn setup() -> Option<(PathBuf, String)> {
    let program = program()?;
    Some((program, stranger::stranger().display().to_string()))
}

fn start(program: &PathBuf, plugin: &str, devices: &[&str]) -> Machine {
    let mut args = vec!["-machine", "pc", "-nodefaults", "--plugin", plugin];
    devices.iter().for_each(|d| args.extend(["-device", d]));
    Machine::start(program, args)
}

#[test]
fn a_strangers_plugin_is_listed_with_its_devices() {
    let Some((program, plugin)) = setup() else { return };
    let listed = run(&program, ["plugin", "list", "--json", "--plugin", &plugin]);
    assert_eq!((listed.status, listed.stderr.as_str()), (0, ""));
    let list: Value = serde_json::from_str(&listed.stdout).unwrap();
    let entry = list.as_array().unwrap().iter().find(|p| p["name"] == "stranger").expect("the plugin is listed");
    assert_eq!(entry["state"], "loaded");
    assert_eq!(entry["version"], "0.3.0");
    assert_eq!(entry["summary"], "Devices of somebody who has never seen the inside of cardcage");
    assert_eq!(entry["file"], plugin.as_str());
    assert_eq!(entry["api-version"], "1.0.0");
    assert_eq!(entry["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(entry["devices"], json!(["stranger-dice", "stranger-fragile"]));

    let table = run(&program, ["plugin", "list", "--plugin", &plugin]);
    for part in ["stranger-dice,", "stranger-fragile", "0.3.0", "loaded"] {
        assert!(table.stdout.contains(part), "'{part}' is not in\n{}", table.stdout);
    }
    assert!(
        table.stdout.lines().take_while(|line| line.starts_with(' ')).all(|line| line.chars().count() <= 100),
        "{}",
        table.stdout
    );
    let shown = run(&program, ["plugin", "inspect", "stranger", "--plugin", &plugin]);
    assert_eq!(shown.status, 0);
    for part in ["stranger 0.3.0: ", "stranger-dice (ISA, misc): A die behind a port", "fair|loaded", "2..=100 faces"] {
        assert!(shown.stdout.contains(part), "'{part}' is not in\n{}", shown.stdout);
    }
}

#[test]
fn a_strangers_devices_explain_themselves() {
    let Some((program, plugin)) = setup() else { return };
    let help = run(&program, ["--plugin", &plugin, "-device", "help"]);
    assert_eq!(help.status, 0);
    assert!(help.stdout.contains("name \"stranger-dice\", bus ISA, desc \"A die behind a port\"\n"), "{}", help.stdout);
    assert!(help.stdout.contains("name \"stranger-fragile\", bus PCI"), "{}", help.stdout);

    let help = run(&program, ["--plugin", &plugin, "-device", "stranger-dice,help"]);
    assert_eq!(help.status, 0);
    for (property, words) in [
        ("iobase", ["uint16", "736", "Port"]),
        ("faces", ["uint8 2..=100 faces", "6", "Number of faces"]),
        ("fall", ["fair|loaded", "fair", "A loaded die always shows its highest face"]),
    ] {
        let line = help.stdout.lines().find(|l| l.trim_start().starts_with(property));
        let line = line.unwrap_or_else(|| panic!("no line for {property} in\n{}", help.stdout));
        for word in words {
            assert!(line.contains(word), "'{word}' is not in '{line}'");
        }
    }
}

#[test]
fn qmp_lists_a_strangers_properties() {
    let Some((program, plugin)) = setup() else { return };
    let machine = start(&program, &plugin, &[]);
    let all = machine.qmp(json!({"execute": "query-available-devices", "arguments": {"plugin": "stranger"}}));
    let names: Vec<_> = all.as_array().unwrap().iter().map(|d| d["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["stranger-dice", "stranger-fragile"]);
    let dice = &all[0];
    assert_eq!(dice["bus"], "ISA");
    assert_eq!((&dice["plugin"], &dice["plugin-version"]), (&json!("stranger"), &json!("0.3.0")));
    assert_eq!((&dice["hotpluggable"], &dice["migratable"]), (&json!(false), &json!(false)));
    assert_eq!(
        dice["properties"],
        json!([
            {"name": "iobase", "type": "uint16", "description": "Port", "required": false, "default": 0x2e0,
             "min": 0, "max": 0xffff},
            {"name": "faces", "type": "uint8", "description": "Number of faces", "required": false, "default": 6,
             "min": 2, "max": 100, "unit": "faces"},
            {"name": "fall", "type": "Fall", "description": "A loaded die always shows its highest face",
             "required": false, "default": "fair", "choices": ["fair", "loaded"]},
        ])
    );
    let properties =
        machine.qmp(json!({"execute": "device-list-properties", "arguments": {"typename": "stranger-dice"}}));
    assert!(
        properties.as_array().unwrap().iter().any(|p| p["name"] == "faces" && p["default-value"] == 6),
        "{properties}"
    );
    let types = machine.qmp(json!({"execute": "qom-list-types", "arguments": {"implements": "isa-device"}}));
    assert!(types.as_array().unwrap().iter().any(|t| t["name"] == "stranger-dice"), "{types}");
}

#[test]
fn a_strangers_device_is_driven_through_its_registers() {
    let Some((program, plugin)) = setup() else { return };
    let machine = start(
        &program,
        &plugin,
        &[
            "stranger-dice,id=d1",
            r#"{"driver": "stranger-dice", "id": "d2", "iobase": 1000, "fall": "loaded", "faces": 20}"#,
        ],
    );
    for _ in 0..20 {
        assert!((1..=6).contains(&machine.inb(0x2e0)));
        assert_eq!(machine.inb(1000), 20);
    }
    machine.outb(0x2e0, 1);
    assert_eq!(machine.wait_event("STRANGER_THROWS")["data"], json!({"throws": 20}));
    let devices = machine.qmp(json!({"execute": "query-devices"}));
    let d1 = devices.as_array().unwrap().iter().find(|d| d["id"] == "d1").expect("the device is listed");
    assert_eq!((&d1["driver"], &d1["state"]), (&json!("stranger-dice"), &json!({"throws": 20})));
    assert!(d1.get("broken").is_none());
    machine.shutdown();
}

#[test]
fn a_strangers_values_are_checked() {
    let Some((program, plugin)) = setup() else { return };
    for (device, parts) in [
        ("stranger-dice,faces=1", ["faces", "from 2 to 100 faces"]),
        ("stranger-dice,faces=101", ["faces", "from 2 to 100 faces"]),
        ("stranger-dice,faces=six", ["faces", "six"]),
        ("stranger-dice,fall=odd", ["odd", "fair"]),
        ("stranger-dice,face=3", ["face", "faces"]),
    ] {
        let ended = run(&program, ["-accel", "qtest", "-nodefaults", "--plugin", &plugin, "-device", device]);
        assert_eq!(ended.status, 2, "{device}: {}", ended.stderr);
        assert_eq!(ended.stderr.trim_end().lines().count(), 1, "{device}: {}", ended.stderr);
        for part in parts {
            assert!(ended.stderr.contains(part), "{device}: '{part}' is not in {}", ended.stderr);
        }
    }
}

#[test]
fn a_panic_breaks_one_device_and_the_machine_goes_on() {
    let Some((program, plugin)) = setup() else { return };
    let machine =
        start(&program, &plugin, &["stranger-fragile,id=glass", "stranger-fragile,id=other", "stranger-dice"]);
    let pci = Pci::new(&machine);
    let fragile: Vec<_> = pci.scan().into_iter().filter(|d| d.vendor() == 0xcafe).collect();
    let bars: Vec<_> = fragile.iter().map(|d| (d.map_bar(0), d.enable()).0).collect();
    assert_eq!(bars[0].read32(0), 0x5a);
    bars[0].write32(0, 0x77);
    assert_eq!(bars[0].read32(0), 0x77);
    bars[0].write32(8, 0x1bad);

    let event = machine.wait_event("DEVICE_BROKEN");
    assert_eq!((&event["data"]["device"], &event["data"]["driver"]), (&json!("glass"), &json!("stranger-fragile")));
    assert!(event["data"]["reason"].as_str().unwrap().contains("nobody writes 0x1bad to register 8"), "{event}");

    assert_eq!((bars[0].read8(0), bars[0].read16(2), bars[0].read32(0)), (0xff, 0xffff, 0xffff_ffff));
    bars[0].write32(0, 1);
    bars[0].write32(8, 1);
    assert_eq!(bars[0].read32(0), 0xffff_ffff);
    assert_eq!(bars[1].read32(0), 0x5a, "the other device of the kind is whole");
    assert!((1..=6).contains(&machine.inb(0x2e0)));
    assert_eq!(fragile[0].vendor(), 0xcafe, "its configuration space is the host's");

    let devices = machine.qmp(json!({"execute": "query-devices"}));
    let broken: Vec<_> = devices.as_array().unwrap().iter().filter(|d| d.get("broken").is_some()).collect();
    assert_eq!(broken.len(), 1, "{devices}");
    assert_eq!(broken[0]["id"], "glass");
    assert!(broken[0]["broken"].as_str().unwrap().contains("nobody writes 0x1bad"));

    assert_eq!(machine.qmp(json!({"execute": "query-status"}))["running"], true);
    machine.qmp(json!({"execute": "system_reset"}));
    assert_eq!(machine.qmp(json!({"execute": "query-status"}))["running"], true);
    let again = machine.monitor().take_events().into_iter().filter(|e| e["event"] == "DEVICE_BROKEN").count();
    assert_eq!(again, 0, "it is told once");
    machine.shutdown();
}
