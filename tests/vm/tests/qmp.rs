//! QMP of a machine without a CPU: what each command gives and refuses, on every kind of connection.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cardcage_tests::{Cage, Monitor, PATIENCE, program, program_with, run, skip, tool};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A machine under test that runs no guest, with a QMP socket.
struct Lab {
    cage: Cage,
    folder: TempDir,
}

impl Lab {
    fn start(args: &[&str]) -> Option<Self> {
        let program = program()?;
        let folder = tempfile::tempdir().unwrap();
        let socket = format!("unix:{},server=on,wait=off", folder.path().join("qmp.sock").display());
        let all = ["-accel", "qtest", "-nodefaults", "-display", "none", "-qmp", &socket]
            .into_iter()
            .chain(args.iter().copied());
        Some(Self { cage: Cage::start(&program, all), folder })
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("qmp.sock")
    }

    fn monitor(&self) -> Monitor {
        Monitor::connect(&self.socket())
    }

    /// Ends it and checks how it ends.
    fn quit(self) {
        let socket = self.socket();
        let mut monitor = self.monitor();
        assert_eq!(monitor.ask("quit"), json!({}));
        let ended = self.cage.wait();
        assert_eq!((ended.status, ended.stderr.as_str()), (0, ""));
        assert!(!socket.exists(), "the socket is gone");
    }
}

fn connect(path: &PathBuf) -> UnixStream {
    let start = Instant::now();
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return stream,
            Err(e) => assert!(start.elapsed() < PATIENCE, "{}: {e}", path.display()),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_greeting_comes_first_and_commands_wait_for_negotiation() {
    let Some(lab) = Lab::start(&[]) else { return };
    let mut monitor = Monitor::unix(connect(&lab.socket()));
    let qmp = &monitor.greeting["QMP"];
    assert!(qmp["capabilities"].is_array() && qmp["version"]["package"].is_string(), "{qmp}");
    for part in ["major", "minor", "micro"] {
        assert!(qmp["version"]["qemu"][part].is_u64(), "{qmp}");
    }
    let (class, text) = monitor.refused("query-status", json!({}));
    assert_eq!(class, "CommandNotFound");
    assert_eq!(text, "Expecting capabilities negotiation with 'qmp_capabilities'");
    let (class, _) = monitor.refused("qmp_capabilities", json!({"enable": ["time-travel"]}));
    assert_eq!(class, "GenericError");
    assert_eq!(monitor.ask("qmp_capabilities"), json!({}));
    let (class, text) = monitor.refused("qmp_capabilities", json!({}));
    assert_eq!(class, "CommandNotFound");
    assert_eq!(text, "Capabilities negotiation is already complete, command ignored");
    assert_eq!(monitor.ask("query-version")["qemu"], monitor.greeting["QMP"]["version"]["qemu"]);
    lab.quit();
}

#[test]
fn ids_come_back_and_errors_have_classes() {
    let Some(lab) = Lab::start(&[]) else { return };
    let mut monitor = lab.monitor();
    for id in [json!(1), json!("a"), json!({"deep": [1, null]}), json!(null), json!(1.5), json!(true)] {
        monitor.send(json!({"execute": "query-name", "id": id}).to_string().as_bytes());
        assert_eq!(monitor.reply(), json!({"return": {}, "id": id}));
        monitor.send(json!({"execute": "no-such", "id": id}).to_string().as_bytes());
        let reply = monitor.reply();
        assert_eq!((&reply["id"], &reply["error"]["class"]), (&id, &json!("CommandNotFound")));
        assert_eq!(reply["error"]["desc"], "The command no-such has not been found");
    }
    for (command, arguments, part) in [
        ("query-status", json!({"x": 1}), "Parameter 'x' is unexpected"),
        ("stop", json!({"now": true}), "Parameter 'now' is unexpected"),
        ("device-list-properties", json!({}), "Parameter 'typename' is missing"),
        ("device-list-properties", json!({"typename": 5}), "typename"),
        ("query-available-devices", json!({"bus": []}), "bus"),
        ("qom-list-types", json!({"abstract": "yes"}), "abstract"),
    ] {
        let (class, text) = monitor.refused(command, arguments);
        assert_eq!(class, "GenericError", "{command}: {text}");
        assert!(text.contains(part), "{command}: {text}");
    }
    let (class, text) = monitor.refused("device-list-properties", json!({"typename": "no-such-device"}));
    assert_eq!(class, "DeviceNotFound");
    assert_eq!(text, "Device 'no-such-device' not found");
    for (line, part) in [
        (r#"{"execute": 5}"#, "execute"),
        (r#"{"arguments": {}}"#, "execute"),
        (r#"{"execute": "stop", "arguments": []}"#, "arguments"),
        (r#"{"execute": "stop", "extra": 1}"#, "extra"),
        (r#"[1]"#, "object"),
        (r#""text""#, "object"),
    ] {
        monitor.send(line.as_bytes());
        let reply = monitor.reply();
        assert_eq!(reply["error"]["class"], "GenericError", "{line}: {reply}");
        assert!(reply["error"]["desc"].as_str().unwrap().contains(part), "{line}: {reply}");
    }
    assert_eq!(monitor.ask("query-status")["running"], true);
    lab.quit();
}

#[test]
fn queries_tell_what_the_command_line_said() {
    let uuid = "01234567-89ab-cdef-0123-456789abcdef";
    let Some(lab) = Lab::start(&["-name", "guest=cage", "-uuid", uuid, "-S"]) else { return };
    let mut monitor = lab.monitor();
    assert_eq!(monitor.ask("query-name"), json!({"name": "cage"}));
    assert_eq!(monitor.ask("query-uuid"), json!({"UUID": uuid}));
    assert_eq!(monitor.ask("query-status"), json!({"status": "prelaunch", "running": false}));
    assert_eq!(monitor.ask("query-kvm")["enabled"], false);

    let commands = monitor.ask("query-commands");
    let names: Vec<_> = commands.as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    for name in [
        "query-version",
        "query-status",
        "query-name",
        "query-kvm",
        "query-commands",
        "query-available-devices",
        "query-plugins",
        "qom-list-types",
        "device-list-properties",
        "stop",
        "cont",
        "system_reset",
        "system_powerdown",
        "quit",
        "qmp_capabilities",
    ] {
        assert!(names.contains(&name), "{name} is not among {names:?}");
    }

    assert_eq!(monitor.ask("cont"), json!({}));
    assert_eq!(monitor.take_event_names(), ["RESUME"]);
    assert_eq!(monitor.ask("query-status"), json!({"status": "running", "running": true}));
    lab.quit();
}

#[test]
fn every_list_of_devices_tells_the_same() {
    let Some(program) = program_with(&["isa-debug-exit", "virtio-rng"]) else { return };
    let Some(lab) = Lab::start(&["-device", "isa-debug-exit,id=x"]) else { return };
    let mut monitor = lab.monitor();
    let devices = monitor.ask("query-available-devices");
    let devices = devices.as_array().unwrap();
    let exit = devices.iter().find(|d| d["name"] == "isa-debug-exit").expect("it is listed");
    let size = exit["properties"].as_array().unwrap().iter().find(|p| p["name"] == "iosize").unwrap();
    assert_eq!(
        (&size["min"], &size["max"], &size["unit"], &size["default"]),
        (&json!(1), &json!(4), &json!("bytes"), &json!(2))
    );
    assert!(devices.iter().any(|d| d["name"] == "virtio-rng-pci" && d["bus"] == "PCI"));

    let only = |monitor: &mut Monitor, filter: Value| {
        monitor.execute("query-available-devices", filter).as_array().unwrap().clone()
    };
    let isa = only(&mut monitor, json!({"bus": "ISA"}));
    assert!(!isa.is_empty() && isa.iter().all(|d| d["bus"] == "ISA"));
    let mine = only(&mut monitor, json!({"plugin": "virtio-rng"}));
    assert_eq!(mine.len(), 2);
    assert_eq!(only(&mut monitor, json!({"plugin": "nothing"})), [] as [Value; 0]);

    let types = monitor.execute("qom-list-types", json!({"implements": "device", "abstract": false}));
    let types: Vec<_> = types.as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap()).collect();
    for device in devices {
        let name = device["name"].as_str().unwrap();
        assert!(types.contains(&name), "{name} is no type");
        let listed = monitor.execute("device-list-properties", json!({"typename": name}));
        let listed: Vec<_> = listed.as_array().unwrap().iter().map(|p| p["name"].clone()).collect();
        for property in device["properties"].as_array().unwrap() {
            assert!(listed.contains(&property["name"]), "{name} lacks {property}");
        }
    }

    let plugins = monitor.ask("query-plugins");
    let plugin = plugins.as_array().unwrap().iter().find(|p| p["name"] == "isa-debug-exit").unwrap();
    assert_eq!((&plugin["state"], &plugin["devices"]), (&json!("loaded"), &json!(["isa-debug-exit"])));
    let listed = run(&program, ["plugin", "list", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&listed.stdout).unwrap(), plugins);
    lab.quit();
}

#[test]
fn events_come_before_the_reply_that_caused_them() {
    let Some(lab) = Lab::start(&[]) else { return };
    let mut monitor = lab.monitor();
    let mut watcher = lab.monitor();
    for (command, events) in [
        ("stop", &["STOP"][..]),
        ("stop", &[]),
        ("cont", &["RESUME"]),
        ("cont", &[]),
        ("system_reset", &["RESET"]),
        ("system_powerdown", &["POWERDOWN"]),
    ] {
        assert_eq!(monitor.ask(command), json!({}), "{command}");
        assert_eq!(monitor.take_event_names(), events, "after {command}");
        for event in events {
            let seen = watcher.receive();
            assert_eq!(seen["event"], *event, "every client sees it");
            assert!(seen["timestamp"]["seconds"].as_u64().unwrap() > 1_600_000_000, "{seen}");
            assert!(seen["timestamp"]["microseconds"].as_u64().unwrap() < 1_000_000, "{seen}");
            if *event == "RESET" {
                assert_eq!(seen["data"], json!({"guest": false, "reason": "host-qmp-system-reset"}));
            }
        }
    }
    assert_eq!(monitor.ask("quit"), json!({}));
    let ended = watcher.rest();
    assert_eq!(ended.len(), 1, "{ended:?}");
    assert_eq!(ended[0]["event"], "SHUTDOWN");
    assert_eq!(ended[0]["data"], json!({"guest": false, "reason": "host-qmp-quit"}));
    assert_eq!(lab.cage.wait().status, 0);
}

#[test]
fn a_reset_of_a_stopped_machine_leaves_it_stopped() {
    let Some(lab) = Lab::start(&[]) else { return };
    let mut monitor = lab.monitor();
    monitor.ask("stop");
    monitor.ask("system_reset");
    assert_eq!(monitor.ask("query-status"), json!({"status": "paused", "running": false}));
    monitor.ask("cont");
    assert_eq!(monitor.take_event_names(), ["STOP", "RESET", "RESUME"]);
    lab.quit();
}

#[test]
fn no_reboot_turns_a_reset_into_the_end() {
    let Some(lab) = Lab::start(&["-no-reboot"]) else { return };
    let mut monitor = lab.monitor();
    monitor.send(br#"{"execute": "system_reset"}"#);
    let lines = monitor.rest();
    assert!(
        lines.iter().any(|l| l["event"] == "SHUTDOWN" && l["data"]["reason"] == "host-qmp-system-reset"),
        "{lines:?}"
    );
    assert_eq!(lab.cage.wait().status, 0);
}

#[test]
fn signals_end_the_machine_in_order() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let Some(lab) = Lab::start(&[]) else { return };
        let monitor = lab.monitor();
        lab.cage.signal(signal);
        let lines = monitor.rest();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert_eq!(lines[0]["event"], "SHUTDOWN");
        assert_eq!(lines[0]["data"], json!({"guest": false, "reason": "host-signal"}));
        let socket = lab.socket();
        let ended = lab.cage.wait();
        assert_eq!((ended.status, ended.stderr.as_str()), (0, ""));
        assert!(!socket.exists());
    }
}

#[test]
fn nonsense_from_a_client_harms_nobody() {
    let Some(lab) = Lab::start(&[]) else { return };
    let mut steady = lab.monitor();
    let nonsense: Vec<Vec<u8>> = vec![
        b"{".to_vec(),
        b"}{]\n".to_vec(),
        b"{\"execute\": \"stop\" \"x\"}\n".to_vec(),
        b"\xff\xfe\x00\x01\x80".to_vec(),
        vec![b'['; 200_000],
        [&b"{\"execute\":\"query-status\",\"id\":"[..], &vec![b'['; 3000], &vec![b']'; 3000], b"}"].concat(),
        b"{\"execute\": \"query-status\", \"id\": \""
            .iter()
            .copied()
            .chain(std::iter::repeat_n(b'x', 1 << 20))
            .collect(),
        b"{\"execute\": \"\\ud800\"}\n".to_vec(),
        vec![0; 4096],
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
    ];
    for bytes in &nonsense {
        let mut client = connect(&lab.socket());
        // The server may close while we write.
        let _ = client.write_all(bytes);
        drop(client);
        let mut client = lab.monitor();
        client.send(bytes);
        drop(client);
        assert_eq!(steady.ask("query-status")["running"], true, "after {:?}", &bytes[..bytes.len().min(40)]);
    }
    // A client that is still there after a mistake is heard again.
    let mut client = lab.monitor();
    client.send(b"{\"execute\": }\n");
    assert_eq!(client.reply()["error"]["class"], "GenericError");
    client.send(b"\xff\n");
    assert_eq!(client.reply()["error"]["class"], "GenericError");
    assert_eq!(client.ask("query-status")["running"], true);
    lab.quit();
}

#[test]
fn a_client_that_vanishes_in_the_middle_is_not_missed() {
    let Some(lab) = Lab::start(&[]) else { return };
    let mut steady = lab.monitor();
    for _ in 0..20 {
        let mut client = lab.monitor();
        client.send(
            br#"{"execute": "query-available-devices"}{"execute": "stop"}{"execute": "cont"}{"execute": "query-st"#,
        );
        drop(client);
    }
    // One that never reads, while there is much to say.
    let mut deaf = lab.monitor();
    for _ in 0..50 {
        deaf.send(br#"{"execute": "query-available-devices"}"#);
    }
    steady.ask("stop");
    assert_eq!(steady.ask("query-status")["running"], false);
    steady.ask("cont");
    assert_eq!(steady.ask("query-status")["running"], true);
    drop(deaf);
    lab.quit();
}

#[test]
fn commands_of_many_clients_are_answered_to_those_who_asked() {
    let Some(lab) = Lab::start(&["-name", "many"]) else { return };
    let mut clients: Vec<_> = (0..10).map(|_| lab.monitor()).collect();
    for round in 0..10 {
        for (n, client) in clients.iter_mut().enumerate() {
            client.send(json!({"execute": "query-name", "id": [n, round]}).to_string().as_bytes());
        }
        for (n, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.reply(), json!({"return": {"name": "many"}, "id": [n, round]}));
        }
    }
    drop(clients);
    lab.quit();
}

#[test]
fn qmp_is_spoken_over_every_transport() {
    let Some(program) = program() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (client, mon) = (UnixListener::bind(path("client")).unwrap(), UnixListener::bind(path("mon")).unwrap());
    let tcp_client = TcpListener::bind("127.0.0.1:0").unwrap();
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let args = [
        "-accel".into(),
        "qtest".into(),
        "-nodefaults".into(),
        "-display".into(),
        "none".into(),
        "-qmp".into(),
        format!("unix:{},server=on,wait=off", path("server").display()),
        "-qmp".into(),
        format!("unix:{}", path("client").display()),
        "-qmp".into(),
        format!("tcp:127.0.0.1:{port},server=on,wait=off"),
        "-qmp".into(),
        format!("tcp:127.0.0.1:{}", tcp_client.local_addr().unwrap().port()),
        "-chardev".into(),
        format!("socket,path={},id=m1", path("mon").display()),
        "-mon".into(),
        "chardev=m1,mode=control".into(),
        "-chardev".into(),
        format!("socket,path={},server=on,wait=off,id=m2", path("mon2").display()),
        "-mon".into(),
        "chardev=m2,mode=control,pretty=on".into(),
    ];
    let args: Vec<String> = args.into_iter().collect();
    let cage = Cage::start(&program, &args);
    let mut sessions = vec![
        Monitor::unix(client.accept().unwrap().0).negotiate(),
        Monitor::tcp(tcp_client.accept().unwrap().0).negotiate(),
        Monitor::unix(mon.accept().unwrap().0).negotiate(),
        Monitor::connect(&path("server")),
    ];
    sessions.push(Monitor::tcp(TcpStream::connect(("127.0.0.1", port)).unwrap()).negotiate());
    for session in &mut sessions {
        assert_eq!(session.ask("query-status")["running"], true);
    }
    sessions[0].ask("stop");
    for session in &mut sessions {
        assert_eq!(session.wait_event("STOP")["event"], "STOP");
    }

    // The indented layout: several lines for one value; and a server that is there for the next client.
    for _ in 0..2 {
        let mut pretty = connect(&path("mon2"));
        pretty.set_read_timeout(Some(PATIENCE)).unwrap();
        pretty.write_all(b"{\"execute\": \"qmp_capabilities\"}{\"execute\": \"query-status\"}").unwrap();
        let mut text = String::new();
        while !text.contains("\"paused\"") {
            let mut buffer = [0; 4096];
            let n = pretty.read(&mut buffer).unwrap();
            assert!(n > 0, "it closes after {text}");
            text.push_str(str::from_utf8(&buffer[..n]).unwrap());
        }
        assert!(text.starts_with("{\r\n    \"QMP\": {\r\n"), "{text:?}");
    }
    sessions[4].ask("quit");
    assert_eq!(cage.wait().status, 0);
}

#[test]
fn qmp_is_spoken_on_standard_input_and_output() {
    let Some(program) = program() else { return };
    let mut command = Command::new(program);
    command.args(["-accel", "qtest", "-nodefaults", "-display", "none", "-qmp", "stdio"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = command.spawn().unwrap();
    let (output, input) = (child.stdout.take().unwrap(), child.stdin.take().unwrap());
    let mut monitor = Monitor::raw(output, input).negotiate();
    assert_eq!(monitor.ask("query-status")["running"], true);
    assert_eq!(monitor.ask("quit"), json!({}));
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_server_can_wait_for_its_client() {
    let Some(program) = program() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp.sock");
    let socket = format!("unix:{},server=on,wait=on", path.display());
    let cage = Cage::start(&program, ["-accel", "qtest", "-nodefaults", "-display", "none", "-qmp", &socket]);
    let mut monitor = Monitor::connect(&path);
    assert_eq!(monitor.ask("query-status")["running"], true);
    monitor.ask("quit");
    let ended = cage.wait();
    assert_eq!(ended.status, 0, "{}", ended.stderr);
}

#[test]
fn qemus_own_client_library_holds_a_session() {
    let Some(lab) = Lab::start(&["-name", "library"]) else { return };
    if !tool("python3") {
        return lab.quit();
    }
    let folder = cardcage_tests::workspace().join("target/test/qemu.qmp");
    if !folder.join("qemu/qmp").is_dir() {
        let pip = Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"])
            .arg(&folder)
            .arg("qemu.qmp")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        if !pip.status.success() {
            let text = String::from_utf8_lossy(&pip.stderr).into_owned();
            skip(format!("PyPI's qemu.qmp cannot be installed: {}", text.lines().last().unwrap_or_default()));
            return lab.quit();
        }
    }
    let script = r#"
import asyncio, sys
from qemu.qmp import QMPClient, ExecuteError, EventListener

async def main(path):
    client = QMPClient("cage")
    await client.connect(path)
    print((await client.execute("query-name"))["name"])
    with client.listener(("STOP", "RESUME")) as events:
        await client.execute("stop")
        print((await events.get())["event"], (await client.execute("query-status"))["status"])
        await client.execute("cont")
        print((await events.get())["event"])
    try:
        await client.execute("device-list-properties", {"typename": "nothing"})
    except ExecuteError as error:
        print(error.error.error.class_)
    print(len(await client.execute("query-available-devices")) > 0)
    await client.execute("quit")
    await client.disconnect()

asyncio.run(main(sys.argv[1]))
"#;
    let mut command = Command::new("python3");
    command.args(["-B", "-c", script]).arg(lab.socket()).env("PYTHONPATH", &folder);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // The socket is there once another session has answered.
    lab.monitor().ask("query-status");
    let ended = Cage::spawn(command).wait();
    assert_eq!(ended.stdout, "library\nSTOP paused\nRESUME\nDeviceNotFound\nTrue\n", "{}", ended.stderr);
    assert_eq!(lab.cage.wait().status, 0);
}
