//! Arbitrary bytes through the JSON layer: nothing panics, pieces give what the whole gives, what is accepted can be
//! written and read back, and 0xFF gets the parser back into a known state.

#![no_main]

use cardcage_qmp::json::{JsonError, Layout, Parser, parse, write};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fn messages(parser: &mut Parser, mut input: &[u8]) -> Vec<Result<Value, JsonError>> {
    let mut all = Vec::new();
    loop {
        let (used, message) = parser.feed(input);
        input = &input[used..];
        match message {
            Some(message) => all.push(message),
            None => return all,
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let mut parser = Parser::default();
    let whole = messages(&mut parser, input);
    let mut bytewise = Parser::default();
    let pieces: Vec<_> = input.chunks(1).flat_map(|piece| messages(&mut bytewise, piece)).collect();
    assert_eq!(whole, pieces);
    for value in whole.into_iter().flatten() {
        let mut text = String::new();
        write(&mut text, &value, Layout::Line);
        let mut again = String::new();
        write(&mut again, &parse(text.as_bytes()).expect("what was written is JSON"), Layout::Line);
        assert_eq!(text, again);
    }
    messages(&mut parser, b"\xff\n");
    assert_eq!(messages(&mut parser, b"{}"), [Ok(Value::Object(Default::default()))]);
});
