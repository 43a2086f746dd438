//! The JSON form: nested objects to dotted keys, and back.

use serde_json::{Map, Value as Json};

use crate::error::{OptionError, Problem};
use crate::options::{Options, Value};

/// Levels of nesting that options may have. Block graphs nest a handful.
const MAX_DEPTH: usize = 32;

impl Options {
    /// The options in a JSON object. Members of objects in it get dotted keys; so do list elements, by their index.
    pub fn from_json(context: &str, object: &Json) -> Result<Self, OptionError> {
        let Json::Object(members) = object else {
            return Err(Problem::Json("an object with the options is expected".to_owned()).at(context));
        };
        let mut options = Self::new(context);
        for (key, value) in members {
            options.flatten(key, value, 1)?;
        }
        Ok(options)
    }

    fn flatten(&mut self, key: &str, value: &Json, depth: usize) -> Result<(), OptionError> {
        if depth > MAX_DEPTH {
            let key = key.chars().take(60).collect();
            return Err(self.fail(Problem::TooDeep { key, limit: MAX_DEPTH }));
        }
        if key.is_empty() {
            return Err(self.fail(Problem::EmptyKey { text: value.to_string() }));
        }
        match value {
            Json::Object(members) if !members.is_empty() => {
                members.iter().try_for_each(|(k, v)| self.flatten(&format!("{key}.{k}"), v, depth + 1))
            }
            Json::Array(elements) if !elements.is_empty() => {
                elements.iter().enumerate().try_for_each(|(i, v)| self.flatten(&format!("{key}.{i}"), v, depth + 1))
            }
            scalar => {
                self.push(key, Value::Json(scalar.clone()));
                Ok(())
            }
        }
    }

    /// The pairs not taken yet as one JSON object: dotted keys nest, and objects whose keys are 0, 1, 2, … are lists.
    /// Typed text becomes strings.
    pub fn to_json(&self) -> Result<Json, OptionError> {
        let mut root = Map::new();
        for pair in self.iter() {
            let value = match &pair.value {
                Value::Text(text) => Json::String(text.clone()),
                Value::Json(value) => value.clone(),
            };
            self.insert(&mut root, &pair.key, value)?;
        }
        Ok(lists(Json::Object(root)))
    }

    fn insert(&self, root: &mut Map<String, Json>, key: &str, value: Json) -> Result<(), OptionError> {
        let mut at = root;
        let (groups, last) = key.rsplit_once('.').map_or((None, key), |(groups, last)| (Some(groups), last));
        for (depth, part) in groups.into_iter().flat_map(|g| g.split('.')).enumerate() {
            if depth >= MAX_DEPTH {
                let key = key.chars().take(60).collect();
                return Err(self.fail(Problem::TooDeep { key, limit: MAX_DEPTH }));
            }
            match at.entry(part).or_insert_with(|| Json::Object(Map::new())) {
                Json::Object(inner) => at = inner,
                _ => return Err(self.fail(Problem::Inconsistent { key: self.path(part) })),
            }
        }
        match at.get(last) {
            Some(Json::Object(inner)) if !inner.is_empty() => {
                Err(self.fail(Problem::Inconsistent { key: self.path(key) }))
            }
            _ => {
                at.insert(last.to_owned(), value);
                Ok(())
            }
        }
    }
}

/// `value` with objects that are lists made so. Recursion is bounded by what `insert` lets in.
fn lists(value: Json) -> Json {
    let Json::Object(members) = value else { return value };
    let members: Map<String, Json> = members.into_iter().map(|(k, v)| (k, lists(v))).collect();
    let is_list = !members.is_empty() && members.keys().enumerate().all(|(i, key)| *key == i.to_string());
    if is_list { Json::Array(members.into_iter().map(|(_, v)| v).collect()) } else { Json::Object(members) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn nested_objects_become_dotted_keys() {
        let value =
            json!({"driver": "raw", "file": {"driver": "file", "filename": "a,b"}, "list": [1, 2], "none": null});
        let options = Options::from_json("", &value).unwrap();
        assert_eq!(options.to_text(), "driver=raw,file.driver=file,file.filename=a,,b,list.0=1,list.1=2,none=null");
        assert_eq!(options.to_json().unwrap(), value);
    }

    #[test]
    fn dotted_keys_become_nested_objects_and_lists() {
        let options = Options::parse("", "a.0=x,a.1.b=y,c.1=z", None).unwrap();
        assert_eq!(options.to_json().unwrap(), json!({"a": ["x", {"b": "y"}], "c": {"1": "z"}}));
    }

    #[test]
    fn a_key_that_is_both_value_and_group_is_refused_in_either_order() {
        for text in ["file=f0,file.driver=file", "file.driver=file,file=f0"] {
            let error = Options::parse("-x", text, None).unwrap().to_json().unwrap_err();
            assert_eq!(error.to_string(), "-x: Parameters 'file.*' used inconsistently");
        }
    }

    #[test]
    fn bad_json_says_where() {
        let error = Options::parse("-device", "{\"driver\": }", None).unwrap_err().to_string();
        assert_eq!(error, "-device: JSON parse error: expected value at line 1 column 12");
        assert!(Options::from_json("", &json!([1])).is_err());
        assert!(Options::from_json("", &json!({"": 1})).is_err());
    }

    #[test]
    fn nesting_without_end_is_refused() {
        let mut deep = json!(1);
        for _ in 0..100 {
            deep = json!({ "a": deep });
        }
        let error = Options::from_json("-x", &deep).unwrap_err();
        assert!(matches!(error.problem, Problem::TooDeep { .. }));
        let dots = Options::parse("-x", &format!("{}b=1", "a.".repeat(5000)), None).unwrap();
        assert!(matches!(dots.to_json().unwrap_err().problem, Problem::TooDeep { .. }));
    }

    fn any_options() -> impl Strategy<Value = Json> {
        let scalar = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::from),
            any::<u64>().prop_map(Json::from),
            ".*".prop_map(Json::from)
        ];
        let key = "[a-z][a-z-]{0,6}";
        let tree = scalar.prop_recursive(4, 32, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Json::from),
                prop::collection::vec((key, inner), 0..4).prop_map(|m| Json::Object(m.into_iter().collect())),
            ]
        });
        prop::collection::vec((key, tree), 0..5).prop_map(|m| Json::Object(m.into_iter().collect()))
    }

    proptest! {
        #[test]
        fn json_comes_back_from_its_dotted_form(value in any_options()) {
            prop_assert_eq!(Options::from_json("", &value).unwrap().to_json().unwrap(), value);
        }

        #[test]
        fn any_dotted_keys_nest_or_are_refused(keys in prop::collection::vec("[a-b.0-2]{1,8}", 0..8)) {
            let mut options = Options::new("");
            for key in &keys {
                options.push(key, Value::Text("v".into()));
            }
            let _ = options.to_json();
        }
    }
}
