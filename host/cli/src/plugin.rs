//! `cardcage plugin …`: what plugins there are and what they offer.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

use cardcage_machine::{available_device, plugins};
use cardcage_registry::{PluginSet, Registry, SearchPath};
use clap::{Args, Parser, Subcommand};
use serde_json::json;

use crate::help;

/// Looks at plugins.
#[derive(Debug, Parser)]
#[command(name = "cardcage plugin")]
struct Command {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List the plugins that a machine would load, and those that it would not, with the reason
    List(Common),
    /// Show one plugin, or one device, with all properties
    Inspect {
        /// Name of a plugin or of a device
        name: String,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, Args)]
struct Common {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Load this plugin
    #[arg(long, value_name = "FILE")]
    plugin: Vec<PathBuf>,
    /// Load the plugins in this folder
    #[arg(long, value_name = "DIR")]
    plugin_dir: Vec<PathBuf>,
    /// Load only the plugins that this file lists
    #[arg(long, value_name = "FILE")]
    plugin_set: Option<PathBuf>,
}

/// Loads everything that the search path leads to.
pub(crate) fn load(files: &[PathBuf], folders: &[PathBuf], set: Option<&PathBuf>) -> anyhow::Result<Registry> {
    let set = set.map(|path| PluginSet::read(path)).transpose()?;
    let path = SearchPath::new(files.to_vec(), folders.to_vec());
    let builder = cardcage_machine::registry_builder().plugin_set(set).log(Box::new(crate::log::plugin_sink));
    Ok(builder.load(&path)?)
}

/// Runs the subcommand.
pub(crate) fn run(words: impl Iterator<Item = OsString>) -> anyhow::Result<()> {
    let command = Command::parse_from(words);
    let common = match &command.what {
        What::List(common) | What::Inspect { common, .. } => common,
    };
    let registry = load(&common.plugin, &common.plugin_dir, common.plugin_set.as_ref())?;
    let text = match &command.what {
        What::List(c) => list(&registry, c.json),
        What::Inspect { name, common } => inspect(&registry, name, common.json)?,
    };
    // A reader that closes early is no error.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}

fn list(registry: &Registry, as_json: bool) -> String {
    let all = plugins(registry);
    if as_json {
        return format!("{:#}\n", json!(all));
    }
    let mut t = help::table(&["plugin", "version", "api", "state", "devices", "file"]);
    let mut remarks = String::new();
    for p in &all {
        let text = |o: &Option<String>| o.clone().unwrap_or_else(|| "-".into());
        let row = [text(&p.name), text(&p.version), text(&p.api_version), p.state.clone(), p.devices.join(", ")];
        t.add_row(row.into_iter().chain([p.file.clone()]));
        if let Some(reason) = &p.reason {
            remarks.push_str(&format!("{}: {reason}\n", p.state));
        }
    }
    if all.is_empty() {
        return "no plugins found; give some with --plugin or --plugin-dir, or set CARDCAGE_PLUGIN_PATH\n".into();
    }
    format!("{t}\n{remarks}")
}

fn inspect(registry: &Registry, name: &str, as_json: bool) -> anyhow::Result<String> {
    if let Some(p) = plugins(registry).into_iter().find(|p| p.name.as_deref() == Some(name)) {
        let kinds: Vec<_> = registry.kinds().filter(|k| k.plugin().name() == name).collect();
        if as_json {
            let devices: Vec<_> = kinds.iter().map(|k| available_device(k)).collect();
            return Ok(format!("{:#}\n", json!({"plugin": p, "kinds": devices})));
        }
        let mut out = format!("{name} {}: {}\n", p.version.unwrap_or_default(), p.summary.unwrap_or_default());
        out.push_str(&format!("  file    {}\n  sha256  {}\n", p.file, p.sha256.unwrap_or_default()));
        out.push_str(&format!("  API     {}\n", p.api_version.unwrap_or_default()));
        for kind in kinds {
            out.push_str(&format!("\n{}", describe(kind)));
        }
        return Ok(out);
    }
    let Some(kind) = registry.kind(name) else {
        let names = registry.plugins().map(|p| p.name()).chain(registry.kinds().map(|k| k.name()));
        let hint = cardcage_options::nearest(name, names).map(|n| format!("; did you mean '{n}'?")).unwrap_or_default();
        return Err(crate::usage(format!("there is no plugin and no device '{name}'{hint}")));
    };
    Ok(if as_json { format!("{:#}\n", json!(available_device(kind))) } else { describe(kind) })
}

fn describe(kind: &cardcage_registry::Kind) -> String {
    let d = kind.description();
    let yes = |b: bool| if b { "yes" } else { "no" };
    let mut out = format!("{} ({}, {}): {}\n", kind.name(), kind.bus().name(), d.category, d.summary);
    if !kind.aliases().is_empty() {
        out.push_str(&format!("  aliases: {}\n", kind.aliases().join(", ")));
    }
    out.push_str(&format!("  hotpluggable: {}, migratable: {}\n", yes(d.hotpluggable), yes(d.migratable)));
    out.push_str(&help::properties(kind));
    out
}
