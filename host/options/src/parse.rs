//! The key=value syntax, from text to pairs and back.

use crate::error::{OptionError, Problem};
use crate::options::{Options, Pair, Value};

/// Whether QEMU would take `text` as an id or a node name: letters, digits, `-`, `.`, `_`, starting with a letter.
pub fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
}

impl Options {
    /// Reads an option of either form. `context` is the option's name (`-drive`) for errors; `implied` is the key of a
    /// first word that has none.
    pub fn parse(context: &str, text: &str, implied: Option<&str>) -> Result<Self, OptionError> {
        if text.starts_with('{') {
            let value = serde_json::from_str(text).map_err(|e| Problem::Json(e.to_string()).at(context))?;
            return Self::from_json(context, &value);
        }
        let mut options = Self::new(context);
        let mut rest = text;
        let mut implied = implied;
        while !rest.is_empty() {
            let (pair, after) = parse_pair(rest, implied.take()).map_err(|p| p.at(context))?;
            options.pairs.push(pair);
            rest = after;
        }
        Ok(options)
    }

    /// The option as text that parses to the same pairs. Booleans of JSON become `on` and `off`.
    pub fn to_text(&self) -> String {
        let pair = |p: &Pair| format!("{}={}", p.key, p.value.text().replace(',', ",,"));
        self.pairs.iter().map(pair).collect::<Vec<_>>().join(",")
    }
}

/// One pair, and the text after its comma.
fn parse_pair<'a>(text: &'a str, implied: Option<&str>) -> Result<(Pair, &'a str), Problem> {
    let key_len = text.find(['=', ',']).unwrap_or(text.len());
    let (key, rest) = text.split_at(key_len);
    if let Some(after) = rest.strip_prefix('=') {
        if key.is_empty() {
            return Err(Problem::EmptyKey { text: text.to_owned() });
        }
        let (value, rest) = parse_value(after);
        return Ok((Pair::new(key, Value::Text(value)), rest));
    }
    if let Some(implied) = implied {
        let (value, rest) = parse_value(text);
        return Ok((Pair::new(implied, Value::Text(value)), rest));
    }
    if key.is_empty() {
        return Err(Problem::EmptyKey { text: text.to_owned() });
    }
    Ok((Pair::flag(key), rest.strip_prefix(',').unwrap_or(rest)))
}

/// A value up to its comma, with `,,` read as one comma, and the text after it.
fn parse_value(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(',') {
        value.push_str(before);
        match after.strip_prefix(',') {
            Some(more) => {
                value.push(',');
                rest = more;
            }
            None => return (value, after),
        }
    }
    value.push_str(rest);
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pairs(text: &str, implied: Option<&str>) -> Vec<(String, String)> {
        let options = Options::parse("-x", text, implied).unwrap();
        options.iter().map(|p| (p.key.clone(), p.value.text())).collect()
    }

    fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    #[test]
    fn keys_and_values_keep_their_order() {
        assert_eq!(pairs("b=1,a=2,b=3", None), owned(&[("b", "1"), ("a", "2"), ("b", "3")]));
        assert_eq!(pairs("a=x=y,b=", None), owned(&[("a", "x=y"), ("b", "")]));
        assert_eq!(pairs("", Some("driver")), owned(&[]));
        assert_eq!(pairs("a=b,", None), owned(&[("a", "b")]));
    }

    #[test]
    fn two_commas_are_one_in_the_value() {
        assert_eq!(pairs("file=a,,b,c=d,,,,e,,", None), owned(&[("file", "a,b"), ("c", "d,,e,")]));
        assert_eq!(pairs("x,,y,z=1", Some("file")), owned(&[("file", "x,y"), ("z", "1")]));
    }

    #[test]
    fn only_the_first_word_takes_the_implied_key() {
        assert_eq!(pairs("stdio,mux", Some("backend")), owned(&[("backend", "stdio"), ("mux", "on")]));
        assert_eq!(pairs("id=c0,mux", Some("backend")), owned(&[("id", "c0"), ("mux", "on")]));
    }

    #[test]
    fn a_key_alone_is_on_and_with_no_before_it_off_with_a_warning() {
        let options = Options::parse("-chardev", "socket,server,nowait", Some("backend")).unwrap();
        let found: Vec<_> = options.iter().map(|p| (p.key.as_str(), p.value.text())).collect();
        assert_eq!(found, [("backend", "socket".into()), ("server", "on".into()), ("wait", "off".into())]);
        assert_eq!(
            options.warnings(),
            [
                "-chardev: short-form boolean option 'server' deprecated; please use server=on instead",
                "-chardev: short-form boolean option 'nowait' deprecated; please use wait=off instead",
            ]
        );
    }

    #[test]
    fn help_is_no_flag_to_warn_of() {
        for text in ["e1000,help", "e1000,?"] {
            let options = Options::parse("-device", text, Some("driver")).unwrap();
            assert!(options.wants_help() && options.warnings().is_empty());
        }
        assert!(!Options::parse("-device", "e1000,help=on", Some("driver")).unwrap().wants_help());
    }

    #[test]
    fn a_value_without_key_is_an_error_that_shows_it() {
        let error = |text| Options::parse("-drive", text, None).unwrap_err().to_string();
        assert_eq!(error("a=b,=c"), "-drive: Invalid parameter '' in '=c': a key must stand before '='");
        assert_eq!(error(",a=b"), "-drive: Invalid parameter '' in ',a=b': a key must stand before '='");
    }

    #[test]
    fn identifiers_are_those_of_qemu() {
        for good in ["a", "disk0", "a-b.c_d"] {
            assert!(is_identifier(good), "{good}");
        }
        for bad in ["", "1q", "-a", "#block1", "a b", "ä"] {
            assert!(!is_identifier(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn text_made_from_pairs_parses_to_them(made in prop::collection::vec(("[a-z][a-z.0-9-]{0,8}", "\\PC{0,12}"), 0..8)) {
            let mut options = Options::new("-x");
            for (key, value) in &made {
                options.push(key, Value::Text(value.clone()));
            }
            prop_assert_eq!(pairs(&options.to_text(), Some("implied")), made);
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in "[a-z,=.{}\":0-9]{0,40}|\\PC*", implied: bool) {
            if let Ok(options) = Options::parse("-x", &text, implied.then_some("driver")) {
                let again = Options::parse("-x", &options.to_text(), None).unwrap();
                prop_assert_eq!(again.to_text(), options.to_text());
            }
        }
    }
}
