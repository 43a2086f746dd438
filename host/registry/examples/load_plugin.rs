//! Loads the plugin files that are given, in this order and into one process, and prints what each of them is.
//!
//! ```text
//! cargo run -p cardcage-registry --example load_plugin -- libstranger.so
//! stranger 0.3.0, plugin API 1.0.0: stranger-dice (ISA), stranger-fragile (PCI)
//! ```
//!
//! Exit status: 0 all were loaded, 1 one was refused, 2 none was named.

use std::path::PathBuf;
use std::process::ExitCode;

use cardcage_registry::{Registry, SearchPath};

#[expect(clippy::print_stdout, reason = "it is what the example is for")]
fn main() -> ExitCode {
    let files: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if files.is_empty() {
        eprintln!("load_plugin: name the files to load");
        return ExitCode::from(2);
    }
    let registry = match Registry::builder().load(&SearchPath::exactly(files, Vec::new())) {
        Ok(registry) => registry,
        Err(error) => {
            eprintln!("load_plugin: {error}");
            return ExitCode::FAILURE;
        }
    };
    for plugin in registry.plugins() {
        let kinds = registry.kinds().filter(|kind| kind.plugin().path() == plugin.path());
        let kinds: Vec<_> = kinds.map(|kind| format!("{} ({})", kind.name(), kind.bus().name())).collect();
        println!("{} {}, plugin API {}: {}", plugin.name(), plugin.version(), plugin.api_version(), kinds.join(", "));
    }
    ExitCode::SUCCESS
}
