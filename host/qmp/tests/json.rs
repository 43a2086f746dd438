//! The JSON layer: every text of the dialect, recovery, limits, and properties over arbitrary input.

use cardcage_qmp::json::{JsonError, Layout, Limits, Parser, parse, write};
use proptest::prelude::*;
use serde_json::{Value, json};

/// All messages in `input`: values as JSON text, errors as their own.
fn messages(input: &[u8]) -> Vec<String> {
    messages_with(&mut Parser::default(), input)
}

fn messages_with(parser: &mut Parser, mut input: &[u8]) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        let (used, message) = parser.feed(input);
        input = &input[used..];
        match message {
            None => {
                assert!(input.is_empty());
                return all;
            }
            Some(Ok(value)) => all.push(text(&value)),
            Some(Err(error)) => all.push(error.to_string()),
        }
    }
}

fn text(value: &Value) -> String {
    let mut text = String::new();
    write(&mut text, value, Layout::Line);
    text
}

#[test]
fn each_mistake_has_its_text() {
    let table: &[(&[u8], &str)] = &[
        (br#"{"execute":"x" "id":1}"#, "expected separator in dict"),
        (br#"{"execute":"x",}"#, "expecting value"),
        (b"[1,]", "expecting value"),
        (b"}", "expecting value"),
        (b"]", "expecting value"),
        (b",", "expecting value"),
        (br#"{"a":}"#, "expecting value"),
        (b"[}", "expecting value"),
        (b"[{]}", "expecting value"),
        (br#"["a"}"#, "expected separator in list"),
        (b"[1 2]", "expected separator in list"),
        (br#"{"a" 1}"#, "missing : in object pair"),
        (b"{1:2}", "key is not a string in object"),
        (b"{[1]:2}", "key is not a string in object"),
        (br#"{"a":1,"a":2}"#, "duplicate key"),
        (b"{bad}", "invalid keyword 'bad'"),
        (b"nul ", "invalid keyword 'nul'"),
        (b"@", "stray '@'"),
        (b"/", "stray '/'"),
        (b"%", "stray '%'"),
        (b"01 ", "stray '01'"),
        (b"-01", "stray '-01'"),
        (b"1.x", "stray '1.x'"),
        (b"+", "stray '+'"),
        (b"\x7f", "stray '\u{7f}'"),
        (b"\x01", "stray '\u{1}'"),
        (b"\"abc\n", "stray '\"abc\n'"),
        (b"{\"execute\":\"query-na\xff", "stray '\"query-na\u{fffd}'"),
        (b"'\xc0\x80\xed\xa0\x80\xc3x\x80\xef\xbf\xbe\n", "stray ''\0\u{fffd}\u{fffd}x\u{fffd}\u{fffd}\n'"),
        (br#""\q""#, "invalid escape sequence in string"),
        (b"\"a\x80b\"", "invalid UTF-8 sequence in string"),
        (b"\"\xc1\x80\"", "invalid UTF-8 sequence in string"),
        (b"\"\xed\xa0\x80\"", "invalid UTF-8 sequence in string"),
        (b"\"\xef\xbf\xbe\"", "invalid UTF-8 sequence in string"),
        (br#""\ud800""#, r"\ud800 is not a valid Unicode character"),
        (br#""\ud800\u0041""#, r"\ud800 is not a valid Unicode character"),
        (br#""\udc00""#, r"\udc00 is not a valid Unicode character"),
        (br#""\uFFFF""#, r"\uFFFF is not a valid Unicode character"),
        (br#""\ud83f\udfff""#, r"\ud83f\udfff is not a valid Unicode character"),
        (br#""\u12g4""#, r"\u12g4 is not a valid Unicode character"),
        (br#""\u1""#, r"\u1 is not a valid Unicode character"),
        (b"1e400 ", "number out of range '1e400'"),
    ];
    for (input, error) in table {
        assert_eq!(messages(input), [format!("JSON parse error, {error}")], "{}", input.escape_ascii());
    }
}

#[test]
fn values_are_echoed_as_qemu_echoes_them() {
    let table = [
        (r#"{'execute':'query-name','id':'it\'s'}"#, r#"{"execute": "query-name", "id": "it's"}"#),
        (r#"{"a":[1,2.5,null,true]}"#, r#"{"a": [1, 2.5, null, true]}"#),
        ("[12345678901234567890]", "[12345678901234567890]"),
        ("[-9223372036854775808]", "[-9223372036854775808]"),
        ("[-9223372036854775809]", "[-9.223372036854776e+18]"),
        ("[18446744073709551616]", "[1.8446744073709552e+19]"),
        ("[1e2, 0e1, -0, -0.0, 1.5e-7]", "[100, 0, 0, -0.0, 1.5e-07]"),
        ("[123456.75, 1e16, 1e17, 5e-324]", "[123456.75, 10000000000000000, 1e+17, 5e-324]"),
        (r#"["\u0000", "é\u00e9", "😀\ud83d\ude00", "\u007f"]"#, {
            r#"["\u0000", "\u00E9\u00E9", "\uD83D\uDE00\uD83D\uDE00", "\u007F"]"#
        }),
        (r#""\"\\\/\b\f\n\r\t""#, r#""\"\\/\b\f\n\r\t""#),
        ("[]", "[]"),
        ("{}", "{}"),
    ];
    for (input, echo) in table {
        assert_eq!(messages(input.as_bytes()), [echo], "{input}");
    }
    assert_eq!(messages(b"\"\xc0\x80\""), [r#""\u0000""#]);
}

#[test]
fn several_values_may_stand_back_to_back() {
    assert_eq!(
        messages(b"{}{}\n[1] 2 \"x\"true,"),
        ["{}", "{}", "[1]", "2", "\"x\"", "true", "JSON parse error, expecting value"]
    );
    assert_eq!(messages(b"42"), Vec::<String>::new(), "a number ends only with what follows");
}

#[test]
fn recovery_ends_at_a_structural_or_control_character() {
    let stray = |s: &str| format!("JSON parse error, stray '{s}'");
    assert_eq!(messages(b"01 1.5e3 {}"), [stray("01"), "{}".into()], "text after the error is swallowed");
    assert_eq!(messages(b"@ x 1 2\n[1]"), [stray("@"), "[1]".into()]);
    assert_eq!(messages(b"@\t7 \x013 "), [stray("@"), stray("\u{1}"),]);
    assert_eq!(messages(b"{\"a\": \"b\xff{}"), [stray("\"b\u{fffd}"), "{}".into()]);
    assert_eq!(messages(b"{} }"), ["{}", "JSON parse error, expecting value"]);
    assert_eq!(messages(b"{}]]").len(), 3, "excess brackets give one error each");
}

#[test]
fn nesting_is_accepted_to_the_limit_and_no_further() {
    let deep = "[".repeat(1024) + &"]".repeat(1024);
    assert_eq!(messages(deep.as_bytes()), std::slice::from_ref(&deep));
    assert_eq!(messages("[".repeat(1025).as_bytes()), ["JSON nesting depth limit exceeded"]);
    assert_eq!(messages(format!("{}[", "{\"a\":[".repeat(512)).as_bytes()), ["JSON nesting depth limit exceeded"]);
    assert_eq!(messages("[".repeat(64 << 10).as_bytes()).len(), 63);
}

#[test]
fn size_and_count_are_limited() {
    assert_eq!(Limits::default(), Limits { bytes: 64 << 20, tokens: 2 << 20, nesting: 1024 });
    let small = || Parser::with_limits(Limits { bytes: 64, tokens: 8, nesting: 4 });
    let size = "JSON token size limit exceeded";
    assert_eq!(messages_with(&mut small(), format!("\"{}\"", "x".repeat(61)).as_bytes()).len(), 1);
    for len in 62..70 {
        let long = format!("\"{}\" {{}}", "x".repeat(len));
        assert_eq!(messages_with(&mut small(), long.as_bytes()), [size, "{}"], "{len}");
    }
    assert_eq!(messages_with(&mut small(), b"[1,2,3,4]\n[]"), { ["JSON token count limit exceeded", "[]"] });
}

#[test]
fn whole_texts_are_parsed_to_their_end() {
    assert_eq!(parse(b" {'a': 12} \n"), Ok(json!({"a": 12})));
    assert_eq!(parse(b"12"), Ok(json!(12)));
    assert_eq!(parse(b""), Err(JsonError::PrematureEnd));
    assert_eq!(parse(b"{\"a\":"), Err(JsonError::PrematureEnd));
    assert_eq!(parse(b"\"abc"), Err(JsonError::Stray("\"abc".into())));
    assert_eq!(parse(b"{} x"), Err(JsonError::Stray("x".into())));
}

#[test]
fn an_error_text_shows_only_the_start_of_a_long_token() {
    let long = format!("\"{}\n", "y".repeat(100_000));
    assert!(messages(long.as_bytes())[0].len() < 400);
}

#[test]
fn pretty_output_has_each_member_on_its_line() {
    let mut text = String::new();
    write(&mut text, &json!({"return": {}, "id": [1, [2], []]}), Layout::Pretty);
    let lines = [
        "{",
        "    \"return\": {",
        "    },",
        "    \"id\": [",
        "        1,",
        "        [",
        "            2",
        "        ],",
        "        [",
        "        ]",
        "    ]",
        "}",
    ];
    assert_eq!(text, lines.join("\r\n"));
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_filter("JSON has no infinities", |f| f.is_finite()).prop_map(Value::from),
        "\\PC*".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 64, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
            prop::collection::vec(("\\PC{0,6}", inner), 0..8).prop_map(|members| members.into_iter().collect()),
        ]
    })
}

/// Equal as JSON values, where numbers may differ by a factor of 1 + `tolerance`: 100 and 100.0 are one number, and
/// serde_json as configured here reads doubles only nearly right.
fn same(a: &Value, b: &Value, tolerance: f64) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => {
            let (x, y) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            a == b || (x - y).abs() <= tolerance * x.abs()
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b, tolerance)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b, tolerance)))
        }
        _ => a == b,
    }
}

fn json_like_bytes() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        8 => prop::sample::select(&b"{}[]:,\"'\\ \n\t0123456789-+.eEtrufalsn%@\x00\xff\xfe\xc0\x80\xed"[..])
            .prop_map(|b| vec![b]),
        1 => prop::sample::select(&["true", "null", "\"a\"", "{\"a\":", "\\ud83d", "1e5", "[1,"][..])
            .prop_map(|s| s.as_bytes().to_vec()),
        1 => any::<u8>().prop_map(|b| vec![b]),
    ];
    prop::collection::vec(piece, 0..200).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn what_is_written_reads_back(value in any_json()) {
        for layout in [Layout::Line, Layout::Pretty] {
            let mut text = String::new();
            write(&mut text, &value, layout);
            prop_assert!(text.bytes().all(|b| b.is_ascii_graphic() || b" \r\n".contains(&b)));
            let back = parse(text.as_bytes());
            prop_assert!(back.as_ref().is_ok_and(|back| same(back, &value, 0.0)), "{text} gives {back:?}");
            prop_assert!(same(&serde_json::from_str(&text).unwrap(), &value, 1e-14), "{text}");
        }
    }

    #[test]
    fn pieces_of_any_size_give_the_same_messages(input in json_like_bytes(), cut in 1usize..40) {
        let whole = messages(&input);
        let mut parser = Parser::default();
        let pieces: Vec<_> = input.chunks(cut).flat_map(|piece| messages_with(&mut parser, piece)).collect();
        prop_assert_eq!(whole, pieces);
    }

    #[test]
    fn a_control_byte_brings_any_input_back_into_step(input in json_like_bytes()) {
        let mut parser = Parser::default();
        messages_with(&mut parser, &input);
        messages_with(&mut parser, b"\xff\n");
        prop_assert!(parser.is_between_messages());
        prop_assert_eq!(messages_with(&mut parser, b"{}"), ["{}"]);
    }

    #[test]
    fn what_serde_accepts_is_accepted(input in json_like_bytes()) {
        if let Ok(theirs) = serde_json::from_slice::<Value>(&input) {
            let ours = parse(&input);
            let excused = matches!(ours, Err(JsonError::DuplicateKey | JsonError::NotUnicode(_) | JsonError::Utf8));
            prop_assert!(excused || ours.as_ref().is_ok_and(|ours| same(ours, &theirs, 1e-14)), "{ours:?}, {theirs:?}");
        }
    }
}
