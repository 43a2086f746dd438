//! Any option string parses or is refused, and what parses comes back from its own text and JSON.
#![no_main]

use cardcage_options::{Options, parse_size};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = parse_size(text, 1);
    let Ok(mut options) = Options::parse("-x", text, Some("driver")) else { return };
    let again = Options::parse("-x", &options.to_text(), None).expect("printed options parse");
    assert_eq!(again.to_text(), options.to_text());
    if let Ok(json) = options.to_json() {
        let _ = Options::from_json("-x", &json);
    }
    let _ = options.take_bool("a");
    let _ = options.take_size("b");
    let _ = options.take_group("file");
    let _ = options.finish();
});
