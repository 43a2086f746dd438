//! Plugins and programs of different versions of the plugin API meet.
//!
//! The other versions are made here: copies of plugin-api with a few lines changed (see [`cardcage_tests::stranger`]).
//! `newer` stands for 1.1.0: a method appended to a trait of each side, a field appended to each prefix struct.

use std::path::{Path, PathBuf};

use cardcage_qtest_driver::Machine;
use cardcage_tests::stranger::{Patch, Variant, stranger};
use cardcage_tests::{program, run};
use serde_json::{Value, json};

const VERSION: &str = "version = \"1.0.0\"";

/// plugin-api 1.1.0 as it might be: everything grows at its end.
fn newer() -> Variant {
    Variant::new(
        "newcomer",
        &[
            Patch { file: "abi/Cargo.toml", old: VERSION, new: "version = \"1.1.0\"" },
            Patch {
                file: "abi/src/lib.rs",
                old: "    fn virtio_reset(&self);\n",
                new: "    fn virtio_reset(&self);\n    /// New in 1.1.\n    fn temperature(&self) -> u64 { 42 }\n",
            },
            Patch {
                file: "abi/src/lib.rs",
                old: "    fn broken(&self, why: RStr<'_>);\n",
                new: "    fn broken(&self, why: RStr<'_>);\n    /// New in 1.1.\n    fn host_name(&self) -> RString { RString::new() }\n",
            },
            Patch {
                file: "abi/src/lib.rs",
                old: "    pub create: extern \"C\" fn(HostObj, RVec<Prop>) -> AbiResult<DeviceObj>,\n",
                new: "    pub create: extern \"C\" fn(HostObj, RVec<Prop>) -> AbiResult<DeviceObj>,\n    /// New in 1.1.\n    #[sabi(missing_field(value = 7))]\n    pub weight: u32,\n",
            },
            Patch {
                file: "abi/src/lib.rs",
                old: "    pub devices: RSlice<'static, DeviceClassRef>,\n",
                new: "    pub devices: RSlice<'static, DeviceClassRef>,\n    /// New in 1.1.\n    #[sabi(missing_field(value = 9))]\n    pub netdevs: u32,\n",
            },
            Patch {
                file: "src/export.rs",
                old: "create: create::<D, V> }",
                new: "create: create::<D, V>, weight: 3 }",
            },
            Patch {
                file: "src/export.rs",
                old: "                devices,\n            };",
                new: "                devices,\n                netdevs: 0,\n            };",
            },
        ],
    )
}

fn loaded(program: &Path, plugins: &[&PathBuf]) -> Vec<Value> {
    let files = plugins.iter().flat_map(|p| ["--plugin".to_string(), p.display().to_string()]);
    let ended = run(program, ["plugin".into(), "list".into(), "--json".into()].into_iter().chain(files));
    assert_eq!((ended.status, ended.stderr.as_str()), (0, ""));
    let list: Vec<Value> = serde_json::from_str(&ended.stdout).unwrap();
    list.into_iter().filter(|p| plugins.iter().any(|file| p["file"] == file.display().to_string())).collect()
}

fn refusal(program: &Path, plugin: &Path) -> String {
    let ended = run(program, ["plugin".as_ref(), "list".as_ref(), "--plugin".as_ref(), plugin.as_os_str()]);
    assert_eq!((ended.status, ended.stdout.as_str()), (1, ""), "{}", ended.stderr);
    ended.stderr.trim_end().to_string()
}

#[test]
fn a_plugin_of_a_newer_minor_works_in_this_program() {
    let Some(program) = program() else { return };
    let (new, real) = (newer().plugin(), stranger());
    let list = loaded(&program, &[&new, &real]);
    assert_eq!(list.len(), 2, "{list:?}");
    assert_eq!((&list[0]["api-version"], &list[0]["state"]), (&json!("1.1.0"), &json!("loaded")));
    assert_eq!((&list[1]["api-version"], &list[1]["state"]), (&json!("1.0.0"), &json!("loaded")));

    let plugin = new.display().to_string();
    let args =
        ["-nodefaults", "--plugin", &plugin, "-device", "newcomer-dice,fall=loaded", "-device", "newcomer-fragile"];
    let machine = Machine::start(&program, args);
    assert_eq!(machine.inb(0x2e0), 6);
    let devices = machine.qmp(json!({"execute": "query-devices"}));
    let dice = devices.as_array().unwrap().iter().find(|d| d["driver"] == "newcomer-dice").expect("it is there");
    assert_eq!(dice["state"], json!({"throws": 1}));
    machine.shutdown();
}

#[test]
fn a_newer_program_loads_a_plugin_of_this_version_beside_newer_ones_in_any_order() {
    let variant = newer();
    let (loader, new, real) = (variant.loader(), variant.plugin(), stranger());
    let old_line = "stranger 0.3.0, plugin API 1.0.0: stranger-dice (ISA), stranger-fragile (PCI)\n";
    let new_line = "newcomer 0.3.0, plugin API 1.1.0: newcomer-dice (ISA), newcomer-fragile (PCI)\n";
    for (files, expected) in [
        (vec![&real], old_line.to_string()),
        (vec![&real, &new], format!("{old_line}{new_line}")),
        (vec![&new, &real], format!("{new_line}{old_line}")),
    ] {
        let ended = run(&loader, files);
        assert_eq!((ended.status, ended.stderr.as_str(), ended.stdout), (0, "", expected));
    }
}

#[test]
fn a_plugin_of_another_major_is_refused_in_one_sentence() {
    let Some(program) = program() else { return };
    let future = Variant::new("future", &[Patch { file: "abi/Cargo.toml", old: VERSION, new: "version = \"2.0.0\"" }]);
    let plugin = future.plugin();
    assert_eq!(
        refusal(&program, &plugin),
        format!(
            "cardcage: plugin '{}' was built for plugin API 2.0.0; this program speaks 1.0.0: \
             build it with cardcage-plugin-api 1",
            plugin.display()
        )
    );
}

#[test]
fn a_method_in_the_middle_is_refused_with_its_place() {
    let Some(program) = program() else { return };
    let changed = Variant::new(
        "squeezer",
        &[Patch {
            file: "abi/src/lib.rs",
            old: "    fn resume_input(&self);\n",
            new: "    fn squeezed_in(&self) {}\n    /// Goes on.\n    fn resume_input(&self);\n",
        }],
    );
    let plugin = changed.plugin();
    let text = refusal(&program, &plugin);
    assert!(text.lines().count() <= 3 && text.len() < 1000, "{text}");
    for part in
        [&*plugin.display().to_string(), "does not fit plugin API 1.0.0", "chardev", "squeezed_in", "resume_input"]
    {
        assert!(text.contains(part), "'{part}' is not in: {text}");
    }
}

#[test]
fn a_changed_field_is_refused_with_its_place() {
    let Some(program) = program() else { return };
    let changed = Variant::new(
        "shrinker",
        &[Patch {
            file: "abi/src/lib.rs",
            old: "    /// Requests must start and end at multiples of this many bytes.\n    pub request_alignment: u32,\n",
            new: "    /// Requests must start and end at multiples of this many bytes.\n    pub request_alignment: i32,\n",
        }],
    );
    let plugin = changed.plugin();
    let text = refusal(&program, &plugin);
    assert!(text.lines().count() <= 3 && text.len() < 1000, "{text}");
    for part in ["does not fit plugin API 1.0.0", "block", "request_alignment", "u32", "i32"] {
        assert!(text.contains(part), "'{part}' is not in: {text}");
    }
}
