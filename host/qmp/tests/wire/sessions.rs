//! Sessions over real sockets: order, queues, events, clients that misbehave, transports, the end.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};

use crate::harness::{Client, start};
use cardcage_qmp::json::Layout;
use cardcage_qmp::{Error, ListenOptions};
use serde_json::{Value, json};

fn many(request: &str, ids: std::ops::Range<u32>) -> String {
    ids.map(|id| request.replace("ID", &id.to_string())).collect()
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let fixture = start();
    let mut client = fixture.client();
    client.send(many(r#"{"execute":"quick","id":ID}{"execute":"quick-blocking","id":ID}{bad}"#, 0..200));
    for id in 0..200 {
        assert_eq!(client.json(), json!({"return": {}, "id": id}));
        assert_eq!(client.json(), json!({"return": {}, "id": id}));
        assert_eq!(client.json()["error"]["desc"], "JSON parse error, invalid keyword 'bad'");
    }
}

#[test]
fn out_of_band_commands_overtake_queued_ones() {
    let fixture = start();
    let mut client = fixture.oob_client();
    client.send(many(r#"{"execute":"wait","id":ID}"#, 0..6));
    client.ask(r#"{"exec-oob":"quick","id":"oob"}"#, r#"{"return": {}, "id": "oob"}"#);
    client.ask(r#"{"exec-oob":"quick-blocking","id":"oob"}"#, r#"{"return": {}, "id": "oob"}"#);
    for id in 0..6 {
        fixture.go.send(()).unwrap();
        assert_eq!(client.json()["event"], "WAITED");
        assert_eq!(client.json(), json!({"return": {}, "id": id}));
    }
}

#[test]
fn out_of_band_commands_behind_a_full_queue_wait() {
    let fixture = start();
    let mut client = fixture.oob_client();
    client.send(many(r#"{"execute":"wait","id":ID}"#, 0..10) + r#"{"exec-oob":"quick","id":"oob"}"#);
    for _ in 0..10 {
        fixture.go.send(()).unwrap();
    }
    let replies: Vec<Value> = (0..21).map(|_| client.json()).filter(|r| r.get("return").is_some()).collect();
    assert_eq!(replies[0]["id"], 0, "nine wait, and the tenth stands in front of the one that would overtake");
    assert_eq!(replies.iter().filter(|r| r["id"] == "oob").count(), 1);
}

#[test]
fn malformed_requests_are_answered_in_band() {
    let fixture = start();
    let mut client = fixture.oob_client();
    client.send(r#"{"execute":"wait","id":1}[}{"exec-oob":"quick","id":2}"#);
    assert_eq!(client.json()["id"], 2);
    fixture.go.send(()).unwrap();
    assert_eq!(client.json()["event"], "WAITED");
    assert_eq!(client.json()["id"], 1);
    assert_eq!(client.json()["error"]["desc"], "JSON parse error, expecting value");
}

#[test]
fn events_reach_every_client_in_command_mode_before_the_reply() {
    let fixture = start();
    let (mut one, mut two, mut negotiating) = (fixture.client(), fixture.client(), fixture.connect());
    one.send(r#"{"execute":"stop","id":1}"#);
    let event = one.json();
    let members: Vec<_> = event.as_object().unwrap().keys().collect();
    assert_eq!(members, ["timestamp", "event"]);
    assert!(event["timestamp"]["seconds"].as_u64().unwrap() > 1_700_000_000);
    assert!(event["timestamp"]["microseconds"].as_u64().unwrap() < 1_000_000);
    assert_eq!(one.json(), json!({"return": {}, "id": 1}));
    assert_eq!(two.json(), event);
    negotiating.ask(r#"{"execute":"qmp_capabilities"}"#, r#"{"return": {}}"#);
    fixture.server.events().emit("RESUME", json!({"x": 1}));
    assert_eq!((negotiating.json()["event"].clone(), two.json()["data"].clone()), (json!("RESUME"), json!({"x": 1})));
}

#[test]
fn rate_limited_events_come_first_and_last() {
    let fixture = start();
    let mut client = fixture.client();
    client.send(r#"{"execute":"emit","arguments":{"event":"RTC_CHANGE","times":5,"size":0}}"#);
    let (first, reply, last) = (client.json(), client.json(), client.json());
    assert_eq!((&first["data"]["n"], &reply["return"], &last["data"]["n"]), (&json!(0), &json!({}), &json!(4)));
    let micros = |e: &Value| {
        e["timestamp"]["seconds"].as_u64().unwrap() * 1_000_000 + { e["timestamp"]["microseconds"].as_u64().unwrap() }
    };
    assert!(micros(&last) - micros(&first) < 1_000_000, "the timestamp is that of the occurrence");
}

#[test]
fn a_client_that_never_reads_events_is_disconnected_and_holds_nobody_up() {
    let fixture = start();
    let (mut reader, mut sleeper) = (fixture.client(), fixture.client());
    for _ in 0..40 {
        reader.send(r#"{"execute":"emit","arguments":{"event":"NOISE","times":8,"size":65536}}"#);
        (0..8).for_each(|_| assert_eq!(reader.json()["event"], "NOISE"));
        assert_eq!(reader.json(), json!({"return": {}}));
    }
    let mut got = Vec::new();
    sleeper.stream.read_to_end(&mut got).unwrap();
    assert!(got.len() < 16 << 20, "the queue was bounded: {} bytes", got.len());
    reader.ask(r#"{"execute":"quick"}"#, r#"{"return": {}}"#);
}

#[test]
fn a_client_that_never_reads_replies_stops_being_read() {
    let fixture = start();
    let client = fixture.client();
    let mut stream = client.stream.into_inner();
    stream.set_nonblocking(true).unwrap();
    let requests = many(r#"{"execute":"query-qmp-schema","id":ID}"#, 0..1000);
    let mut sent = 0;
    // Full buffers in both directions and a server that rests: nothing more can be sent.
    while let Ok(len) = stream.write(requests.as_bytes()) {
        sent += len;
        assert!(sent < 64 << 20);
    }
    fixture.client().ask(r#"{"execute":"quick"}"#, r#"{"return": {}}"#);
}

#[test]
fn a_client_that_vanishes_leaves_its_command_running_and_the_server_well() {
    let fixture = start();
    for request in [r#"{"execute":"wait"}"#, r#"{"execute":"wait","#] {
        let mut client = fixture.client();
        client.send(request);
        drop(client);
    }
    let mut client = fixture.client();
    fixture.go.send(()).unwrap();
    assert_eq!(client.json()["event"], "WAITED", "the command has gone on without its client");
    assert_eq!(*fixture.done.lock().unwrap(), ["wait"]);
    client.ask(r#"{"execute":"quick-blocking"}"#, r#"{"return": {}}"#);
}

#[test]
fn half_a_connection_is_none_once_its_requests_are_answered() {
    let fixture = start();
    let mut client = fixture.client();
    client.send(r#"{"execute":"quick","id":1}{"execute":"quick","id":2}{"exec"#);
    client.stream.get_mut().shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.rest(), "{\"return\": {}, \"id\": 1}\r\n{\"return\": {}, \"id\": 2}\r\n");
}

#[test]
fn half_a_command_is_given_up_at_a_0xff() {
    let fixture = start();
    let mut client = fixture.client();
    client.ask_error(b"{\"execute\":\"query-na\xff", "JSON parse error, stray '\"query-na\u{fffd}'");
    client.ask(r#"{"execute":"quick"}"#, r#"{"return": {}}"#);
    client.ask(r#"{"execute":"quick"}}"#, r#"{"return": {}}"#);
    client.ask_error("", "JSON parse error, expecting value");
}

#[test]
fn a_flood_of_brackets_gives_errors_and_no_harm() {
    let fixture = start();
    let mut client = fixture.client();
    client.send("[".repeat(64 << 10));
    for _ in 0..63 {
        client.ask_error("", "JSON nesting depth limit exceeded");
    }
    client.send("\u{1}");
    assert_eq!(client.json()["error"]["desc"], "JSON parse error, stray '\u{1}'");
    client.ask(r#"{"execute":"quick"}"#, r#"{"return": {}}"#);
    client.ask_error(b"\"\xfc\xfd\"", "JSON parse error, invalid UTF-8 sequence in string");
}

#[test]
fn a_request_of_two_mebibytes_is_answered() {
    let fixture = start();
    let mut client = fixture.client();
    let name = "é".repeat(1 << 20);
    client.send(format!(r#"{{"execute":"test-all","arguments":{{"name":"{name}","up":true}}}}"#));
    assert_eq!(client.json()["return"]["name"], name.as_str());
}

#[test]
fn quit_is_an_event_then_a_reply_then_the_end() {
    let fixture = start();
    let (mut client, other) = (fixture.client(), fixture.client());
    client.send(r#"{"execute":"quit","id":"bye"}{"execute":"quick"}"#);
    let event = client.json();
    assert_eq!((&event["event"], &event["data"]["reason"]), (&json!("SHUTDOWN"), &json!("host-qmp-quit")));
    assert_eq!(client.rest(), "{\"return\": {}, \"id\": \"bye\"}\r\n");
    assert_eq!(serde_json::from_str::<Value>(&other.rest()).unwrap(), event);
    fixture.server.wait();
    assert!(!fixture.path.exists(), "the socket file goes with the server");
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let fixture = start();
    let options = ListenOptions::default();
    let error = fixture.server.listen_unix(&fixture.path, options).unwrap_err();
    assert!(matches!(error, Error::PathInUse { .. }));
    assert!(error.to_string().contains(fixture.path.to_str().unwrap()), "{error}");

    let stale = fixture.dir.path().join("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    fixture.server.listen_unix(&stale, options).unwrap();
    Client::new(UnixStream::connect(&stale).unwrap()).line();

    let file = fixture.dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    let error = fixture.server.listen_unix(&file, options).unwrap_err();
    assert!(matches!(error, Error::NotASocket { .. }) && error.to_string().contains("file"), "{error}");
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");

    let error = fixture.server.listen_unix("/nonexistent/dir/qmp.sock", options).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/dir/qmp.sock"), "{error}");
    let long = fixture.dir.path().join("x".repeat(200));
    assert!(fixture.server.listen_unix(&long, options).unwrap_err().to_string().contains("xxxx"));
}

#[test]
fn listening_with_wait_returns_with_the_first_client() {
    let fixture = start();
    let path = fixture.dir.path().join("wait.sock");
    let handle = fixture.server.handle().clone();
    let (returned, listening) = std::sync::mpsc::channel();
    let thread = std::thread::spawn({
        let path = path.clone();
        move || {
            handle.listen_unix(&path, ListenOptions { wait: true, layout: Layout::Line }).unwrap();
            returned.send(()).unwrap();
        }
    });
    while !path.exists() {
        std::thread::yield_now();
    }
    assert!(listening.try_recv().is_err());
    let stream = loop {
        match UnixStream::connect(&path) {
            Ok(stream) => break stream,
            Err(_) => std::thread::yield_now(),
        }
    };
    Client::new(stream).line();
    listening.recv_timeout(crate::harness::HANG).unwrap();
    thread.join().unwrap();
}

#[test]
fn the_server_connects_to_harnesses_that_listen() {
    let fixture = start();
    let path = fixture.dir.path().join("harness.sock");
    assert!(fixture.server.connect_unix(&path, Layout::Line).unwrap_err().to_string().contains("harness.sock"));
    let listener = UnixListener::bind(&path).unwrap();
    fixture.server.connect_unix(&path, Layout::Line).unwrap();
    let mut client = Client::new(listener.accept().unwrap().0);
    assert!(client.line().starts_with(r#"{"QMP": "#));
    client.ask(r#"{"execute":"qmp_capabilities"}"#, r#"{"return": {}}"#);
}

#[test]
fn tcp_works_both_ways_and_names_a_port_in_use() {
    let fixture = start();
    let any = "127.0.0.1:0".parse().unwrap();
    let address = fixture.server.listen_tcp(any, ListenOptions::default()).unwrap();
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let mut start = [0; 8];
    stream.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"{\"QMP\": ");
    let error = fixture.server.listen_tcp(address, ListenOptions::default()).unwrap_err();
    assert!(error.to_string().contains(&address.to_string()), "{error}");
    let listener = std::net::TcpListener::bind(any).unwrap();
    fixture.server.connect_tcp(listener.local_addr().unwrap(), Layout::Line).unwrap();
    listener.accept().unwrap().0.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"{\"QMP\": ");
}

#[test]
fn blocking_streams_are_served_and_their_end_is_not_the_servers() {
    let fixture = start();
    let (input, mut requests) = std::io::pipe().unwrap();
    let (mut replies, output) = std::io::pipe().unwrap();
    fixture.server.serve_blocking(input, output, Layout::Pretty).unwrap();
    requests.write_all(br#"{"execute":"qmp_capabilities"}{"execute":"quick","id":[]}"#).unwrap();
    drop(requests);
    let mut text = String::new();
    replies.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("{\r\n    \"QMP\": {\r\n        \"version\": {\r\n"), "{text}");
    assert!(text.ends_with("{\r\n    \"return\": {\r\n    },\r\n    \"id\": [\r\n    ]\r\n}\r\n"), "{text}");
    fixture.client();
}

#[test]
fn a_stopped_server_refuses_further_connections() {
    let fixture = start();
    fixture.server.shutdown();
    let address = "127.0.0.1:0".parse().unwrap();
    assert!(matches!(fixture.server.listen_tcp(address, ListenOptions::default()), Err(Error::Stopped)));
}
