//! Locks against other processes: QEMU's own tools are the other side.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use cardcage_block::{BlockGraph, Permissions};
use serde_json::json;

/// False, and a word about it, if QEMU's tools are not there.
fn have_qemu_tools() -> bool {
    let found = ["qemu-img", "qemu-io"].iter().all(|tool| Command::new(tool).arg("--version").output().is_ok());
    if !found {
        eprintln!("skipped: qemu-img and qemu-io are not installed (Debian package qemu-utils)");
    }
    found
}

fn qemu_io(image: &Path, options: &[&str], command: &str) -> (bool, String) {
    let output = Command::new("qemu-io").args(["-f", "raw"]).args(options).args(["-c", command]).arg(image).output();
    let output = output.expect("qemu-io runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn graph_with(image: &Path, locking: &str) -> BlockGraph {
    let graph = BlockGraph::new().unwrap();
    graph
        .add_json(&json!({"driver": "raw", "node-name": "d", "file": {"driver": "file", "filename": image,
            "locking": locking}}))
        .unwrap();
    graph
}

#[test]
fn qemu_tools_are_kept_from_writing_what_a_device_here_writes() {
    if !have_qemu_tools() {
        return;
    }
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let graph = graph_with(image.path(), "auto");
    let (ok, text) = qemu_io(image.path(), &[], "write 0 512");
    assert!(ok, "nobody is attached yet: {text}");
    let device = graph.attach("d", "disk", true).unwrap();
    let (ok, text) = qemu_io(image.path(), &[], "write 0 512");
    assert!(
        !ok && text.contains("Failed to get \"write\" lock") && text.contains("Is another process using"),
        "{text}"
    );
    let resize = Command::new("qemu-img").args(["resize", "-f", "raw"]).arg(image.path()).arg("2M").output().unwrap();
    let text = String::from_utf8_lossy(&resize.stderr);
    assert!(!resize.status.success() && text.contains("Failed to get \"write\" lock"), "{text}");
    drop(device);
    let (ok, text) = qemu_io(image.path(), &[], "write 0 512");
    assert!(ok, "the device has gone: {text}");
}

#[test]
fn readers_here_and_there_do_not_disturb_each_other() {
    if !have_qemu_tools() {
        return;
    }
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let graph = graph_with(image.path(), "on");
    let _reader = graph.attach_with("d", "disk", Permissions::CONSISTENT_READ, Permissions::all()).unwrap();
    let (ok, text) = qemu_io(image.path(), &["-r"], "read 0 512");
    assert!(ok, "{text}");
}

#[test]
fn a_device_here_does_not_get_what_qemu_holds() {
    if !have_qemu_tools() {
        return;
    }
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let mut other = Command::new("qemu-io")
        .args(["-f", "raw"])
        .arg(image.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It answers a command once it holds the image.
    let mut stdin = other.stdin.take().unwrap();
    stdin.write_all(b"length\n").unwrap();
    let mut answer = Vec::new();
    let mut stdout = other.stdout.take().unwrap();
    while !answer.ends_with(b"1 MiB\n") {
        let mut byte = [0];
        assert_ne!(stdout.read(&mut byte).unwrap(), 0, "{}", String::from_utf8_lossy(&answer));
        answer.push(byte[0]);
    }
    let graph = graph_with(image.path(), "auto");
    let error = graph.attach("d", "disk", true).unwrap_err();
    assert!(error.to_string().starts_with("Failed to get "), "{error}");
    assert!(error.to_string().ends_with("\"write\" lock"), "{error}");
    let hint = format!("Is another process using the image [{}]?", image.path().display());
    assert_eq!(error.hint(), Some(hint));
    let unlocked = graph_with(image.path(), "off");
    unlocked.attach("d", "disk", true).unwrap();
    drop(stdin);
    drop(stdout);
    other.wait().unwrap();
    graph.attach("d", "disk", true).unwrap();
}
