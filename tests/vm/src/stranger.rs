//! Builds `tests/stranger`, a plugin outside of the workspace, against plugin-api as it is or as it might be one day.
//!
//! A [`Variant`] is a scratch copy of plugin-api with a few changes, beside a copy of the stranger. All of them share
//! one target folder, so that what they have in common is compiled once.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use crate::workspace;

/// Builds share files; tests run at once.
static BUILDING: Mutex<()> = Mutex::new(());

/// A change of one file: what is there once, and what comes in its place.
pub struct Patch {
    /// File, below plugin-api.
    pub file: &'static str,
    /// Text that occurs in it once.
    pub old: &'static str,
    /// Text instead.
    pub new: &'static str,
}

/// plugin-api with changes, and the stranger beside it.
pub struct Variant {
    folder: PathBuf,
    name: &'static str,
}

impl Variant {
    /// Copies plugin-api and the stranger, and makes the changes. `name` is that of the folder and the plugin, and the
    /// first part of the names of its devices.
    #[track_caller]
    pub fn new(name: &'static str, patches: &[Patch]) -> Self {
        Self::with_devices(name, patches, name)
    }

    /// A plugin of another name that offers the stranger's devices.
    #[track_caller]
    pub fn rival() -> Self {
        Self::with_devices("rival", &[], "stranger")
    }

    #[track_caller]
    fn with_devices(name: &'static str, patches: &[Patch], prefix: &str) -> Self {
        let _one_at_a_time = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = scratch().join(name);
        let root = workspace();
        copy(&root.join("plugin-api"), &folder.join("plugin-api"), &|file, text| {
            let of_this = patches.iter().filter(|patch| file.ends_with(Path::new("plugin-api").join(patch.file)));
            of_this.fold(text, |text, patch| {
                assert_eq!(text.matches(patch.old).count(), 1, "times that '{}' stands in {}", patch.old, patch.file);
                text.replace(patch.old, patch.new)
            })
        });
        copy(&root.join("tests/stranger"), &folder.join("tests/stranger"), &|file, text| {
            let name = if file.ends_with("Cargo.toml") { name } else { prefix };
            text.replace("stranger", name)
        });
        for krate in ["host/registry", "host/options"] {
            copy(&root.join(krate), &folder.join(krate), &|_, text| text);
        }
        write_workspace(&root, &folder);
        Self { folder, name }
    }

    /// Builds the plugin and gives its file, whose content stays as it is.
    #[track_caller]
    pub fn plugin(&self) -> PathBuf {
        let _one_at_a_time = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
        cargo(&["build", "--manifest-path", path_text(&self.folder.join("tests/stranger/Cargo.toml"))]);
        let file = format!("lib{}.so", self.name);
        keep(&target().join("debug").join(&file), &self.folder.join(&file))
    }

    /// Builds the registry's `load_plugin` example against this plugin-api.
    #[track_caller]
    pub fn loader(&self) -> PathBuf {
        let _one_at_a_time = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
        let manifest = self.folder.join("host/registry/Cargo.toml");
        cargo(&["build", "--manifest-path", path_text(&manifest), "--example", "load_plugin"]);
        keep(&target().join("debug/examples/load_plugin"), &self.folder.join("load_plugin"))
    }
}

/// Builds the stranger where it is, against plugin-api as it is.
#[track_caller]
pub fn stranger() -> PathBuf {
    let _one_at_a_time = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = workspace().join("tests/stranger");
    let lock = folder.join("Cargo.lock");
    if !lock.is_file() {
        // The workspace's choice of versions: what is there need not be fetched.
        std::fs::copy(workspace().join("Cargo.lock"), &lock).expect("a lock file can be written");
    }
    cargo(&["build", "--manifest-path", path_text(&folder.join("Cargo.toml"))]);
    keep(&target().join("debug/libstranger.so"), &scratch().join("libstranger.so"))
}

fn scratch() -> PathBuf {
    workspace().join("target/test/strangers")
}

fn target() -> PathBuf {
    scratch().join("target")
}

fn path_text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Runs cargo offline, and with the network if something has to be fetched.
#[track_caller]
fn cargo(args: &[&str]) {
    let attempt = |extra: &[&str]| {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(args).args(extra).args(["--quiet", "--target-dir", path_text(&target())]);
        // A stranger's cargo knows nothing of the one that runs this test.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG_")
                || matches!(&*text, "RUSTFLAGS" | "CARGO_MANIFEST_DIR" | "CARGO_MANIFEST_PATH")
            {
                command.env_remove(&name);
            }
        }
        command.env("CARGO_PROFILE_DEV_DEBUG", "0").stdin(Stdio::null());
        command.output().expect("cargo can be started")
    };
    let offline = attempt(&["--offline"]);
    if offline.status.success() {
        return;
    }
    let online = attempt(&[]);
    assert!(online.status.success(), "cargo {} fails:\n{}", args.join(" "), String::from_utf8_lossy(&online.stderr));
}

/// Copies what cargo has built to where nothing builds over it.
fn keep(built: &Path, kept: &Path) -> PathBuf {
    let bytes = std::fs::read(built).unwrap_or_else(|e| panic!("cargo has not built {}: {e}", built.display()));
    if std::fs::read(kept).ok().as_ref() != Some(&bytes) {
        let fresh = kept.with_extension("new");
        std::fs::copy(built, &fresh)
            .and_then(|_| std::fs::rename(&fresh, kept))
            .expect("the scratch folder is writable");
    }
    kept.to_path_buf()
}

/// Copies a crate's sources with changes. What stays as it was keeps its time, for cargo's sake.
#[track_caller]
fn copy(from: &Path, to: &Path, change: &dyn Fn(&Path, String) -> String) {
    std::fs::create_dir_all(to).expect("the scratch folder is writable");
    for entry in std::fs::read_dir(from).expect("a crate's folder").flatten() {
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() && !matches!(entry.file_name().to_str(), Some("target" | "fuzz" | "tests")) {
            copy(&path, &to, change);
        } else if path.extension().is_some_and(|e| e == "rs" || e == "toml") {
            let text = std::fs::read_to_string(&path).expect("sources are text");
            update(&to, &change(&path, text));
        }
    }
}

fn update(path: &Path, text: &str) {
    if std::fs::read_to_string(path).ok().as_deref() != Some(text) {
        std::fs::write(path, text).expect("the scratch folder is writable");
    }
}

/// The root manifest with the few members that are here.
fn write_workspace(root: &Path, folder: &Path) {
    let text = std::fs::read_to_string(root.join("Cargo.toml")).expect("the workspace has a manifest");
    let rest = text.find("[workspace.package]").expect("the workspace says what its packages share");
    let end = text.find("[profile.").unwrap_or(text.len());
    let members = r#"["plugin-api", "plugin-api/abi", "plugin-api/derive", "host/registry", "host/options"]"#;
    let head = format!("[workspace]\nresolver = \"3\"\nmembers = {members}\nexclude = [\"tests/stranger\"]\n\n");
    update(&folder.join("Cargo.toml"), &format!("{head}{}", &text[rest..end]));
    for lock in ["Cargo.lock", "tests/stranger/Cargo.lock"] {
        if !folder.join(lock).is_file() {
            std::fs::copy(root.join("Cargo.lock"), folder.join(lock)).expect("the scratch folder is writable");
        }
    }
}
