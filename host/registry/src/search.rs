//! Where plugin files are looked for.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Environment variable with more folders, separated by colons.
pub(crate) const ENV: &str = "CARDCAGE_PLUGIN_PATH";

/// Files and folders in the order in which they count.
///
/// 1. files named with `--plugin`;
/// 2. folders named with `--plugin-dir`;
/// 3. folders in `$CARDCAGE_PLUGIN_PATH`;
/// 4. `plugins/` beside the program, and the program's own folder when cargo has built it there;
/// 5. `~/.local/lib/cardcage/`;
/// 6. `/usr/lib/cardcage/`.
#[derive(Debug, Clone, Default)]
pub struct SearchPath {
    files: Vec<PathBuf>,
    folders: Vec<PathBuf>,
    cargo_folder: Option<PathBuf>,
}

/// A file that may be a plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) path: PathBuf,
    /// Named by the user: a refusal is an error, not a remark.
    pub(crate) explicit: bool,
    /// In a folder where other libraries are to be expected.
    pub(crate) incidental: bool,
}

impl SearchPath {
    /// The path as the command line and the environment give it.
    pub fn new(files: Vec<PathBuf>, folders: Vec<PathBuf>) -> Self {
        let mut path = Self { files, folders, cargo_folder: None };
        if let Some(list) = std::env::var_os(ENV) {
            path.folders.extend(std::env::split_paths(&list).filter(|p| !p.as_os_str().is_empty()));
        }
        if let Some(folder) = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf)) {
            path.folders.push(folder.join("plugins"));
            if folder.join(".fingerprint").is_dir() {
                path.cargo_folder = Some(folder);
            }
        }
        if let Some(home) = std::env::var_os("HOME").filter(|h| !h.is_empty()) {
            path.folders.push(Path::new(&home).join(".local/lib/cardcage"));
        }
        path.folders.push("/usr/lib/cardcage".into());
        path
    }

    /// Only these files and folders: no environment, no standard places.
    pub fn exactly(files: Vec<PathBuf>, folders: Vec<PathBuf>) -> Self {
        Self { files, folders, cargo_folder: None }
    }

    /// All files in order; each at most once, whatever the number of ways that lead to it.
    pub(crate) fn candidates(&self) -> Vec<Candidate> {
        let mut all: Vec<Candidate> =
            self.files.iter().map(|f| Candidate { path: f.clone(), explicit: true, incidental: false }).collect();
        let folders = self.folders.iter().map(|f| (f, false)).chain(self.cargo_folder.iter().map(|f| (f, true)));
        for (folder, incidental) in folders {
            all.extend(libraries(folder).map(|path| Candidate { path, explicit: false, incidental }));
        }
        let mut seen = HashSet::new();
        all.retain(|c| c.explicit || seen.insert(c.path.canonicalize().unwrap_or_else(|_| c.path.clone())));
        all
    }

    /// The places, for an error text.
    pub(crate) fn describe(&self) -> String {
        let places = self.files.iter().chain(&self.folders).chain(&self.cargo_folder);
        places.map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
    }
}

/// The shared libraries in a folder, in order of their names. A folder that cannot be read has none.
fn libraries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries.map(|e| e.path()).filter(|p| p.extension() == Some(OsStr::new("so"))).collect();
    found.sort();
    found.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_before_folders_and_folders_in_their_order() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (dir, names) in [(&a, ["z.so", "y.so"]), (&b, ["x.so", "notes.txt"])] {
            for n in names {
                std::fs::write(dir.path().join(n), "").unwrap();
            }
        }
        let folders = vec![a.path().into(), b.path().into(), a.path().into(), "/nonexistent".into()];
        let path = SearchPath::exactly(vec!["one.so".into()], folders);
        let names: Vec<_> = path.candidates().iter().map(|c| c.path.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["one.so", "y.so", "z.so", "x.so"]);
        assert!(path.candidates()[0].explicit && !path.candidates()[1].explicit);
    }
}
