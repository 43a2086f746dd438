//! The example server as a process of its own. The Python client library of the QEMU project drives the example server. Skipped where it is not installed
//! (`pip install qemu.qmp`; another interpreter than `python3` can be named in `$PYTHON`).

use std::io::{BufRead, BufReader, Read, Write};
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

#[test]
fn standard_input_and_output_carry_a_session_to_its_last_byte() {
    if !example().exists() {
        eprintln!("skipped: the example is not built");
        return;
    }
    let piped = || Stdio::piped();
    let mut server = Running(Command::new(example()).arg("-").stdin(piped()).stdout(piped()).spawn().unwrap());
    let mut input = server.0.stdin.take().unwrap();
    let mut output = BufReader::new(server.0.stdout.take().unwrap());
    input.write_all(br#"{"execute":"qmp_capabilities"}{"execute":"query-name"}{"execute":"quit","id":9}"#).unwrap();
    let mut greeting = String::new();
    output.read_line(&mut greeting).unwrap();
    assert!(greeting.starts_with(r#"{"QMP": "#), "{greeting}");
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    let lines: Vec<_> = rest.lines().collect();
    assert_eq!(lines[..2], [r#"{"return": {}}"#, r#"{"return": {"name": "example"}}"#]);
    assert!(lines[2].contains("SHUTDOWN"), "{rest}");
    assert_eq!(lines[3..], [r#"{"return": {}, "id": 9}"#]);
    // Input is still open: the server ends all the same.
    assert!(server.0.wait().unwrap().success());
    drop(input);
}
