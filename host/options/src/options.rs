//! An option's pairs, and how a reader takes what it knows out of them.

use std::ops::RangeInclusive;

use serde_json::Value as Json;

use crate::error::{OptionError, Problem};
use crate::parse::is_identifier;
use crate::size::parse_size;

/// A value: text that was typed and means whatever its reader wants, or a JSON scalar that has a type.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// From key=value syntax.
    Text(String),
    /// From JSON: null, a boolean, a number, a string, or an empty list or object.
    Json(Json),
}

impl Value {
    /// The value as a user would type it.
    pub fn text(&self) -> String {
        match self {
            Self::Text(text) | Self::Json(Json::String(text)) => text.clone(),
            Self::Json(Json::Bool(on)) => if *on { "on" } else { "off" }.to_owned(),
            Self::Json(other) => other.to_string(),
        }
    }
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// The key, with dots where it nests.
    pub key: String,
    /// The value.
    pub value: Value,
    /// The word that stood for the whole pair, if it was one without `=`.
    pub flag: Option<String>,
}

impl Pair {
    pub(crate) fn new(key: &str, value: Value) -> Self {
        Self { key: key.to_owned(), value, flag: None }
    }

    /// `key` alone is on; `nokey` is off.
    pub(crate) fn flag(word: &str) -> Self {
        let (key, value) = match word.strip_prefix("no") {
            Some(key) if !key.is_empty() => (key, "off"),
            _ => (word, "on"),
        };
        Self { key: key.to_owned(), value: Value::Text(value.to_owned()), flag: Some(word.to_owned()) }
    }

    fn is_help(&self) -> bool {
        self.flag.as_deref().is_some_and(|word| word == "help" || word == "?")
    }
}

/// The pairs of one option, in the order in which they were given.
#[derive(Debug, Clone)]
pub struct Options {
    context: String,
    /// What stands before all keys in errors: `file.` in a nested group.
    prefix: String,
    pub(crate) pairs: Vec<Pair>,
    asked: Vec<String>,
}

impl Options {
    /// No pairs yet. `context` is the option's name for errors (`-drive`), empty in QMP.
    pub fn new(context: &str) -> Self {
        Self { context: context.to_owned(), prefix: String::new(), pairs: Vec::new(), asked: Vec::new() }
    }

    /// Adds a pair after the others.
    pub fn push(&mut self, key: &str, value: Value) {
        self.pairs.push(Pair::new(key, value));
    }

    /// The option's name for errors.
    pub fn context(&self) -> &str {
        &self.context
    }

    /// The pairs not taken yet.
    pub fn iter(&self) -> impl Iterator<Item = &Pair> {
        self.pairs.iter()
    }

    /// Whether nothing is left to take.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// Whether `key`, or a key nested in it, is there and not taken yet.
    pub fn contains(&self, key: &str) -> bool {
        self.pairs.iter().any(|p| p.key == key || within(&p.key, key))
    }

    /// The value of `key` that counts, left where it is.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.pairs.iter().rev().find(|p| p.key == key).map(|p| &p.value)
    }

    /// Whether `help` or `?` stood among the words, as in `-device e1000,help`.
    pub fn wants_help(&self) -> bool {
        self.pairs.iter().any(Pair::is_help)
    }

    /// What the user should hear of that is no error: words of the old style. Ask before anything is taken.
    pub fn warnings(&self) -> Vec<String> {
        let old_style = |p: &Pair| {
            let word = p.flag.as_ref().filter(|_| !p.is_help())?;
            let at = if self.context.is_empty() { String::new() } else { format!("{}: ", self.context) };
            let instead = format!("{}={}", p.key, p.value.text());
            Some(format!("{at}short-form boolean option '{word}' deprecated; please use {instead} instead"))
        };
        self.pairs.iter().filter_map(old_style).collect()
    }

    /// Takes all values of `key`; the last one counts.
    pub fn take(&mut self, key: &str) -> Option<Value> {
        self.take_all(key).pop()
    }

    /// Takes all values of a key that may stand several times (`hostfwd`).
    pub fn take_all(&mut self, key: &str) -> Vec<Value> {
        self.note(key);
        self.pairs.extract_if(.., |p| p.key == key).map(|p| p.value).collect()
    }

    /// Takes all keys `key.x`, as options of their own with the keys `x`. None if there are none.
    pub fn take_group(&mut self, key: &str) -> Result<Option<Self>, OptionError> {
        self.note(key);
        let nested = |p: &Pair| within(&p.key, key);
        let mut pairs: Vec<Pair> = self.pairs.extract_if(.., |p| nested(p)).collect();
        if pairs.is_empty() {
            return Ok(None);
        }
        if self.pairs.iter().any(|p| p.key == key) {
            return Err(self.fail(Problem::Inconsistent { key: self.path(key) }));
        }
        for pair in &mut pairs {
            pair.key.drain(..=key.len());
        }
        let prefix = format!("{}{key}.", self.prefix);
        Ok(Some(Self { context: self.context.clone(), prefix, pairs, asked: Vec::new() }))
    }

    /// Takes a string.
    pub fn take_str(&mut self, key: &str) -> Result<Option<String>, OptionError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Text(text) | Value::Json(Json::String(text))) => Ok(Some(text)),
            Some(Value::Json(_)) => Err(self.wrong_type(key, "string")),
        }
    }

    /// Takes a string that must be there.
    pub fn require_str(&mut self, key: &str) -> Result<String, OptionError> {
        self.take_str(key)?.ok_or_else(|| self.missing(key))
    }

    /// Takes an id: letters, digits, `-`, `.`, `_`, starting with a letter.
    pub fn take_id(&mut self, key: &str) -> Result<Option<String>, OptionError> {
        match self.take_str(key)? {
            Some(value) if !is_identifier(&value) => {
                Err(self.fail(Problem::NotAnIdentifier { key: self.path(key), value }))
            }
            id => Ok(id),
        }
    }

    /// Takes a boolean: `on`, `yes`, `true`, `y` or their opposites; in JSON true or false.
    pub fn take_bool(&mut self, key: &str) -> Result<Option<bool>, OptionError> {
        let text = match self.take(key) {
            None => return Ok(None),
            Some(Value::Json(Json::Bool(on))) => return Ok(Some(on)),
            Some(Value::Json(_)) => return Err(self.wrong_type(key, "boolean")),
            Some(Value::Text(text)) => text,
        };
        match text.as_str() {
            "on" | "yes" | "true" | "y" => Ok(Some(true)),
            "off" | "no" | "false" | "n" => Ok(Some(false)),
            _ => Err(self.fail(Problem::NotABool { key: self.path(key), value: text })),
        }
    }

    /// Takes a number, decimal or with 0x before it, that lies in `range`.
    pub fn take_u64(&mut self, key: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, OptionError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let number = match &value {
            Value::Json(Json::Number(number)) => number.as_u64(),
            Value::Json(_) => return Err(self.wrong_type(key, "integer")),
            Value::Text(text) => parse_number(text),
        };
        let (min, max) = (*range.start(), *range.end());
        match number.filter(|n| range.contains(n)) {
            Some(n) => Ok(Some(n)),
            None => Err(self.fail(Problem::NotANumber { key: self.path(key), value: value.text(), min, max })),
        }
    }

    /// Takes a size in bytes: `4096`, `512M`, `1.5G`; in JSON a number.
    pub fn take_size(&mut self, key: &str) -> Result<Option<u64>, OptionError> {
        let (value, parsed) = match self.take(key) {
            None => return Ok(None),
            Some(Value::Json(Json::Number(n))) => (n.to_string(), parse_size(&n.to_string(), 1)),
            Some(Value::Json(_)) => return Err(self.wrong_type(key, "integer")),
            Some(Value::Text(text)) => {
                let parsed = parse_size(&text, 1);
                (text, parsed)
            }
        };
        parsed.map(Some).map_err(|reason| self.fail(Problem::NotASize { key: self.path(key), value, reason }))
    }

    /// Takes one of the given words, as what it stands for.
    pub fn take_choice<T: Copy>(&mut self, key: &str, choices: &[(&str, T)]) -> Result<Option<T>, OptionError> {
        let Some(value) = self.take_str(key)? else { return Ok(None) };
        match choices.iter().find(|(word, _)| *word == value) {
            Some(&(_, meaning)) => Ok(Some(meaning)),
            None => Err(self.fail(Problem::not_a_choice(self.path(key), value, choices.iter().map(|c| c.0)))),
        }
    }

    /// Says that all known keys have been taken: an error if any other is left.
    pub fn finish(self) -> Result<(), OptionError> {
        let Some(pair) = self.pairs.first() else { return Ok(()) };
        let key = pair.flag.as_ref().unwrap_or(&pair.key);
        let allowed: Vec<String> = self.asked.iter().map(|key| self.path(key)).collect();
        Err(self.fail(Problem::unknown(self.path(key), allowed.iter().map(String::as_str))))
    }

    /// The error that `key` must be given.
    pub fn missing(&self, key: &str) -> OptionError {
        self.fail(Problem::Missing { key: self.path(key) })
    }

    /// The error that `value` cannot be what `key` is.
    pub fn reject(&self, key: &str, value: &str, reason: impl Into<String>) -> OptionError {
        self.fail(Problem::Rejected { key: self.path(key), value: value.to_owned(), reason: reason.into() })
    }

    /// `problem` with this option's name.
    pub fn fail(&self, problem: Problem) -> OptionError {
        problem.at(&self.context)
    }

    /// The whole path of a key of this group.
    pub fn path(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn wrong_type(&self, key: &str, expected: &'static str) -> OptionError {
        self.fail(Problem::WrongType { key: self.path(key), expected })
    }

    fn note(&mut self, key: &str) {
        if !self.asked.iter().any(|k| k == key) {
            self.asked.push(key.to_owned());
        }
    }
}

/// Whether `key` is `group.` and something.
fn within(key: &str, group: &str) -> bool {
    key.strip_prefix(group).is_some_and(|rest| rest.starts_with('.'))
}

fn parse_number(text: &str) -> Option<u64> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        None => (text, 10),
    };
    // `from_str_radix` would take a sign.
    digits.starts_with(|c: char| c.is_ascii_hexdigit()).then(|| u64::from_str_radix(digits, radix).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Options {
        Options::parse("-x", text, None).unwrap()
    }

    #[test]
    fn the_last_value_of_a_key_counts_and_none_is_left() {
        let mut o = parse("a=1,b=2,a=3");
        assert_eq!(o.take_u64("a", 0..=9).unwrap(), Some(3));
        assert_eq!(o.take_u64("a", 0..=9).unwrap(), None);
        assert_eq!(o.iter().count(), 1);
    }

    #[test]
    fn values_of_the_wrong_form_are_named_with_what_is_allowed() {
        let mut o = parse("b=maybe,n=65,h=+1,s=1.5,id=1q");
        assert_eq!(o.take_bool("b").unwrap_err().to_string(), "-x: Parameter 'b' expects 'on' or 'off', not 'maybe'");
        let text = "-x: Parameter 'n' expects a number from 1 to 64, not '65'";
        assert_eq!(o.take_u64("n", 1..=64).unwrap_err().to_string(), text);
        assert!(o.take_u64("h", 0..=9).is_err());
        let text = "-x: Parameter 's' expects a size such as 4096, 512M or 1.5G, not '1.5': a fraction needs a unit of K or more";
        assert_eq!(o.take_size("s").unwrap_err().to_string(), text);
        let text = "-x: Parameter 'id' expects an identifier, not '1q': letters, digits, '-', '.' and '_', starting with a letter";
        assert_eq!(o.take_id("id").unwrap_err().to_string(), text);
        assert_eq!(o.require_str("driver").unwrap_err().to_string(), "-x: Parameter 'driver' is missing");
    }

    #[test]
    fn json_values_must_have_the_type_that_is_asked_for() {
        let json = r#"{"a":true,"b":"on","c":4,"d":"4","e":4.5,"f":7}"#;
        let mut o = Options::parse("", json, None).unwrap();
        assert_eq!(o.take_bool("a").unwrap(), Some(true));
        let text = "Invalid parameter type for 'b', expected: boolean";
        assert_eq!(o.take_bool("b").unwrap_err().to_string(), text);
        assert_eq!(o.take_u64("c", 0..=9).unwrap(), Some(4));
        assert!(o.take_u64("d", 0..=9).is_err());
        assert!(o.take_size("e").is_err());
        assert!(o.take_str("f").is_err());
        o.finish().unwrap();
    }

    #[test]
    fn unknown_keys_of_a_group_are_named_with_their_path() {
        let mut o = parse("file.driver=file,file.filname=x");
        let mut file = o.take_group("file").unwrap().unwrap();
        assert_eq!(file.require_str("driver").unwrap(), "file");
        assert_eq!(file.take_str("filename").unwrap(), None);
        let text = "-x: Invalid parameter 'file.filname', did you mean 'file.filename'?";
        assert_eq!(file.finish().unwrap_err().to_string(), text);
        o.finish().unwrap();
    }

    #[test]
    fn a_key_cannot_be_a_value_and_a_group() {
        let mut o = parse("file=f0,file.driver=file");
        let text = "-x: Parameters 'file.*' used inconsistently";
        assert_eq!(o.take_group("file").unwrap_err().to_string(), text);
        assert!(parse("filex.a=1").take_group("file").unwrap().is_none());
    }

    #[test]
    fn an_unknown_flag_is_named_as_it_was_typed() {
        let mut o = parse("nodename");
        o.take_str("node-name").unwrap();
        assert_eq!(o.finish().unwrap_err().to_string(), "-x: Invalid parameter 'nodename', did you mean 'node-name'?");
    }
}
