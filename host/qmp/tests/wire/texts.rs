//! Every text of the protocol that the server itself gives, over a real socket.

use crate::harness::start;
use serde_json::json;

#[test]
fn the_greeting_is_qemus() {
    let fixture = start();
    let mut client = crate::harness::Client::new(std::os::unix::net::UnixStream::connect(&fixture.path).unwrap());
    assert_eq!(
        client.line(),
        r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian 1:10.0.2+ds-2+deb13u1~bpo12+1"}, "capabilities": ["oob"]}}"#
    );
}

#[test]
fn negotiation_comes_first_and_only_once() {
    let fixture = start();
    let mut client = fixture.connect();
    let expecting = r#"{"error": {"class": "CommandNotFound", "desc": "Expecting capabilities negotiation with 'qmp_capabilities'"}}"#;
    client.ask(r#"{"execute":"query-version"}"#, expecting);
    client.ask(r#"{"execute":"no-such"}"#, expecting);
    client.ask_error(r#"{"execute":"qmp_capabilities","arguments":{"enable":[5]}}"#, {
        "Invalid parameter type for 'enable[0]', expected: string"
    });
    client.ask_error(r#"{"execute":"qmp_capabilities","arguments":{"enable":"oob"}}"#, {
        "Invalid parameter type for 'enable', expected: array"
    });
    client.ask_error(r#"{"execute":"qmp_capabilities","arguments":{"enable":["bogus"]}}"#, {
        "Parameter 'null' does not accept value 'bogus'"
    });
    client.ask_error(r#"{"execute":"qmp_capabilities","arguments":{"bogus":1}}"#, "Parameter 'bogus' is unexpected");
    client.ask_error(r#"{"execute":5}"#, "QMP input member 'execute' must be a string");
    client.ask_error(r#"{"exec-oob":"quick"}"#, "QMP input member 'exec-oob' is unexpected");
    client.ask_error("{bad}", "JSON parse error, invalid keyword 'bad'");
    client.ask(r#"{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}"#, r#"{"return": {}}"#);
    client.ask(r#"{"execute":"qmp_capabilities","id":1}"#, {
        r#"{"id": 1, "error": {"class": "CommandNotFound", "desc": "Capabilities negotiation is already complete, command ignored"}}"#
    });
}

#[test]
fn requests_of_wrong_form_get_their_texts() {
    let fixture = start();
    let mut client = fixture.client();
    client.ask(r#"{"execute":"no-such","id":3}"#, {
        r#"{"id": 3, "error": {"class": "CommandNotFound", "desc": "The command no-such has not been found"}}"#
    });
    client.ask(r#"{"execute":5,"id":16}"#, {
        r#"{"id": 16, "error": {"class": "GenericError", "desc": "QMP input member 'execute' must be a string"}}"#
    });
    client.ask(r#"{"arguments":{},"id":17}"#, {
        r#"{"id": 17, "error": {"class": "GenericError", "desc": "QMP input lacks member 'execute'"}}"#
    });
    let table = [
        (r#"{"execute":"quick","foo":1}"#, "QMP input member 'foo' is unexpected"),
        (r#"{"execute":"quick","arguments":[]}"#, "QMP input member 'arguments' must be an object"),
        (r#"{"execute":"quick","arguments":null}"#, "QMP input member 'arguments' must be an object"),
        ("[1,2]", "QMP input must be a JSON object"),
        ("\"hello\"", "QMP input must be a JSON object"),
        ("42\n", "QMP input must be a JSON object"),
        (r#"{"exec-oob":"quick"}"#, "QMP input member 'exec-oob' is unexpected"),
        (r#"{"execute":"quick","execute":"quick"}"#, "JSON parse error, duplicate key"),
        (r#"{"execute":"quick","id":1,"id":2}"#, "JSON parse error, duplicate key"),
    ];
    for (request, desc) in table {
        client.ask_error(request, desc);
    }
}

#[test]
fn out_of_band_requests_have_texts_of_their_own() {
    let fixture = start();
    let mut client = fixture.oob_client();
    client.ask_error(r#"{"exec-oob":"query-version"}"#, "The command query-version does not support OOB");
    client.ask_error(r#"{"execute":"quick","exec-oob":"quick"}"#, {
        "QMP input member 'execute' clashes with 'exec-oob'"
    });
    client.ask_error(r#"{"exec-oob":7}"#, "QMP input member 'exec-oob' must be a string");
    client.ask(r#"{"exec-oob":"nope","id":"x"}"#, {
        r#"{"id": "x", "error": {"class": "CommandNotFound", "desc": "The command nope has not been found"}}"#
    });
    client.ask(r#"{"exec-oob":"quick","id":4}"#, r#"{"return": {}, "id": 4}"#);
    client.ask(r#"{"exec-oob":"quick-blocking","id":5}"#, r#"{"return": {}, "id": 5}"#);
}

#[test]
fn arguments_are_checked_with_qemus_texts() {
    let fixture = start();
    let mut client = fixture.client();
    let table = [
        ("{}", "Parameter 'name' is missing"),
        (r#"{"name":"n"}"#, "Parameter 'up' is missing"),
        (r#"{"name":5,"up":true}"#, "Invalid parameter type for 'name', expected: string"),
        (r#"{"name":null,"up":true}"#, "Invalid parameter type for 'name', expected: string"),
        (r#"{"name":"n","up":1}"#, "Invalid parameter type for 'up', expected: boolean"),
        (r#"{"name":"n","up":true,"bogus":1}"#, "Parameter 'bogus' is unexpected"),
        (r#"{"name":"n","up":true,"count":"1"}"#, "Invalid parameter type for 'count', expected: integer"),
        (r#"{"name":"n","up":true,"count":1.5}"#, "Invalid parameter type for 'count', expected: integer"),
        (r#"{"name":"n","up":true,"byte-size":"a"}"#, "Parameter 'byte-size' expects uint64"),
        (r#"{"name":"n","up":true,"byte_size":1}"#, "Parameter 'byte_size' is unexpected"),
        (r#"{"name":"n","up":true,"ratio":"x"}"#, "Invalid parameter type for 'ratio', expected: number"),
        (r#"{"name":"n","up":true,"type":"nope"}"#, "Parameter 'type' does not accept value 'nope'"),
        (r#"{"name":"n","up":true,"type":1}"#, "Invalid parameter type for 'type', expected: string"),
        (r#"{"name":"n","up":true,"address":1}"#, "Invalid parameter type for 'address', expected: object"),
        (r#"{"name":"n","up":true,"address":{"host":"h"}}"#, "Parameter 'address.port' is missing"),
        (r#"{"name":"n","up":true,"address":{"host":"h","port":70000}}"#, "Parameter 'address.port' expects uint16_t"),
        (r#"{"name":"n","up":true,"address":{"host":"h","port":-1}}"#, "Parameter 'address.port' expects uint16_t"),
        (r#"{"name":"n","up":true,"address":{"host":"h","port":1,"z":1}}"#, "Parameter 'address.z' is unexpected"),
        (
            r#"{"name":"n","up":true,"address":{"host":"h","port":1,"next":[{"host":5}]}}"#,
            "Invalid parameter type for 'address.next[0].host', expected: string",
        ),
        (r#"{"name":"n","up":true,"names":"x"}"#, "Invalid parameter type for 'names', expected: array"),
        (r#"{"name":"n","up":true,"names":["x",[]]}"#, "Invalid parameter type for 'names[1]', expected: string"),
        (r#"{"name":"n","up":true,"any":null,"other":null}"#, "Parameter 'other' is unexpected"),
    ];
    for (arguments, desc) in table {
        client.ask_error(format!(r#"{{"execute":"test-all","arguments":{arguments}}}"#), desc);
    }
    client.ask_error(r#"{"execute":"quick","arguments":{"bogus":1}}"#, "Parameter 'bogus' is unexpected");
}

#[test]
fn arguments_arrive_and_results_leave_under_their_names() {
    let fixture = start();
    let mut client = fixture.client();
    let arguments = r#"{"name": "n", "up": true, "count": -1, "byte-size": 18446744073709551615, "ratio": 1, "type": "left", "address": {"host": "h", "port": 1, "next": []}, "names": ["a"], "any": null}"#;
    client
        .ask(format!(r#"{{"execute":"test-all","arguments":{arguments}}}"#), &format!(r#"{{"return": {arguments}}}"#));
    client.ask(r#"{"execute":"test-all","arguments":{"up":false,"name":""}}"#, {
        r#"{"return": {"name": "", "up": false}}"#
    });
    client.ask(r#"{"execute":"device_add","arguments":{"id":"x","driver":"y","addr":1}}"#, {
        r#"{"return": {"id": "x", "addr": 1}}"#
    });
}

#[test]
fn ids_are_echoed_whatever_they_are() {
    let fixture = start();
    let mut client = fixture.client();
    let ids =
        [r#""abc""#, r#"{"a": [1, 2.5, null, true]}"#, "12345678901234567890", r#""\u0000""#, "null", "false", "[]"];
    for id in ids {
        let request = format!(r#"{{"execute":"quick","id":{id}}}"#);
        client.ask(request, &format!(r#"{{"return": {{}}, "id": {id}}}"#));
    }
}

#[test]
fn a_machine_that_is_still_to_be_built_allows_few_commands() {
    let fixture = start();
    fixture.server.set_preconfig(true);
    let mut client = fixture.client();
    client.ask_error(r#"{"execute":"stop"}"#, {
        "The command 'stop' is permitted only after machine initialization has completed"
    });
    client.send(r#"{"execute":"query-version"}"#);
    assert_eq!(client.json()["return"]["qemu"]["major"], 10);
    fixture.server.set_preconfig(false);
    client.send(r#"{"execute":"stop"}"#);
    assert_eq!(client.json()["event"], "STOP");
    client.ask("", r#"{"return": {}}"#);
}

#[test]
fn errors_of_commands_keep_their_class() {
    let fixture = start();
    let mut client = fixture.client();
    client.ask(r#"{"execute":"device_del","id":1}"#, {
        r#"{"id": 1, "error": {"class": "DeviceNotFound", "desc": "Device 'nope' not found"}}"#
    });
}

#[test]
fn a_handler_that_panics_fails_its_command_only() {
    let fixture = start();
    let mut client = fixture.client();
    for command in ["panic", "panic-async", "panic"] {
        client.ask_error(format!(r#"{{"execute":"{command}"}}"#), "The command failed: internal error");
    }
    client.ask(r#"{"execute":"quick-blocking"}"#, r#"{"return": {}}"#);
}

#[test]
fn the_list_of_commands_is_the_registry() {
    let fixture = start();
    let mut client = fixture.client();
    client.send(r#"{"execute":"query-commands"}"#);
    let reply = client.json();
    let names: Vec<_> = reply["return"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    for name in ["device_add", "qmp_capabilities", "query-commands", "query-version", "query-qmp-schema", "quit"] {
        assert!(names.contains(&name), "{name} not in {names:?}");
    }
    assert!(reply["return"][0].as_object().unwrap().len() == 1);
}

#[test]
fn the_schema_describes_every_type_once() {
    let fixture = start();
    let mut client = fixture.client();
    client.send(r#"{"execute":"query-qmp-schema"}"#);
    let schema = client.json()["return"].as_array().unwrap().clone();
    let mut names: Vec<_> = schema.iter().map(|s| (s["name"].as_str().unwrap(), s["meta-type"] == "event")).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|w| w[0] != w[1]), "{names:?}");
    let find = |name: &str| schema.iter().find(|s| s["name"] == name).unwrap_or_else(|| panic!("no {name}"));
    let member = |of: &serde_json::Value, name: &str| {
        of["members"].as_array().unwrap().iter().find(|m| m["name"] == name).unwrap().clone()
    };
    let type_of = |member: &serde_json::Value| find(member["type"].as_str().unwrap()).clone();
    for entry in &schema {
        for key in ["arg-type", "ret-type", "element-type"] {
            if let Some(name) = entry.get(key) {
                find(name.as_str().unwrap());
            }
        }
    }
    let all = find(find("test-all")["arg-type"].as_str().unwrap());
    assert_eq!(member(all, "name"), json!({"name": "name", "type": "str"}));
    assert_eq!(member(all, "byte-size"), json!({"name": "byte-size", "type": "int", "default": null}));
    assert_eq!(type_of(&member(all, "type"))["values"], json!(["left", "right"]));
    let address = type_of(&member(all, "address"));
    let next = type_of(&member(&address, "next"));
    assert_eq!((&next["meta-type"], &next["element-type"]), (&json!("array"), &address["name"]));
    assert_eq!(find("quick")["allow-oob"], true);
    assert_eq!(find("int"), &json!({"name": "int", "meta-type": "builtin", "json-type": "int"}));
}
