//! The Python client library of the QEMU project drives the example server. Skipped where it is not installed
//! (`pip install qemu.qmp`; another interpreter than `python3` can be named in `$PYTHON`).

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already unless the test failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn example() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    program.parent().and_then(Path::parent).unwrap().join("examples/qmp_server")
}

#[test]
fn qemus_own_python_client_gets_along_with_the_server() {
    let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    let probe = Command::new(&python).args(["-c", "import qemu.qmp"]).stderr(Stdio::null()).status();
    if !probe.is_ok_and(|status| status.success()) || !example().exists() {
        eprintln!("skipped: {python:?} cannot import qemu.qmp, or the example is not built");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("qmp.sock");
    let mut server = Running(Command::new(example()).arg(&socket).spawn().unwrap());
    while !socket.exists() {
        assert!(server.0.try_wait().unwrap().is_none(), "the example has ended");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python.py");
    let output = Command::new(&python).arg(script).arg(&socket).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("all is well"), "{text}{}", {
        String::from_utf8_lossy(&output.stderr)
    });
    assert!(server.0.wait().unwrap().success());
}
