//! What can be wrong with an option, in QEMU's words where it has some, and with what is allowed instead.

/// An option that cannot be used: where it stood, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionError {
    /// The option the user typed, such as `-drive`; empty where there is none, as in QMP.
    pub context: String,
    /// What is wrong.
    pub problem: Problem,
}

impl std::fmt::Display for OptionError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.context.is_empty() {
            write!(f, "{}: ", self.context)?;
        }
        self.problem.fmt(f)
    }
}

impl std::error::Error for OptionError {}

/// What is wrong with an option. The keys are full paths: `file.driver`, not `driver`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A `=` or a comma where a key should stand.
    #[error("Invalid parameter '' in '{text}': a key must stand before '='")]
    EmptyKey {
        /// The rest of the option, from the fault on.
        text: String,
    },
    /// No such key.
    #[error("Invalid parameter '{key}'{}", hint(nearest, allowed))]
    Unknown {
        /// The key.
        key: String,
        /// A key that exists and looks much like it.
        nearest: Option<String>,
        /// All keys that exist.
        allowed: Vec<String>,
    },
    /// A key that must be there is not.
    #[error("Parameter '{key}' is missing")]
    Missing {
        /// The key.
        key: String,
    },
    /// A key that must be there is not, for a reason that its name does not tell.
    #[error("Parameter '{key}' is missing: {reason}")]
    MissingBecause {
        /// The key.
        key: String,
        /// Why it must be there, and what to say.
        reason: &'static str,
    },
    /// Not a boolean.
    #[error("Parameter '{key}' expects 'on' or 'off', not '{value}'")]
    NotABool {
        /// The key.
        key: String,
        /// Its value.
        value: String,
    },
    /// Not a number, or one out of range.
    #[error("Parameter '{key}' expects a number from {min} to {max}, not '{value}'")]
    NotANumber {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// Least allowed value.
        min: u64,
        /// Greatest allowed value.
        max: u64,
    },
    /// Not a size.
    #[error("Parameter '{key}' expects a size such as 4096, 512M or 1.5G, not '{value}': {reason}")]
    NotASize {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: crate::SizeError,
    },
    /// None of the allowed words.
    #[error("Parameter '{key}' does not accept value '{value}'{}", hint(nearest, allowed))]
    NotAChoice {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// An allowed word that looks much like it.
        nearest: Option<String>,
        /// All allowed words.
        allowed: Vec<String>,
    },
    /// A JSON value of the wrong type.
    #[error("Invalid parameter type for '{key}', expected: {expected}")]
    WrongType {
        /// The key.
        key: String,
        /// Name of the JSON type that is allowed.
        expected: &'static str,
    },
    /// A key that is used both as a value and as the start of dotted keys, or both as a list and as an object.
    #[error("Parameters '{key}.*' used inconsistently")]
    Inconsistent {
        /// The key.
        key: String,
    },
    /// An id with other characters than ids have.
    #[error(
        "Parameter '{key}' expects an identifier, not '{value}': letters, digits, '-', '.' and '_', starting with a letter"
    )]
    NotAnIdentifier {
        /// The key.
        key: String,
        /// Its value.
        value: String,
    },
    /// Text that starts like a JSON object and is none.
    #[error("JSON parse error: {0}")]
    Json(String),
    /// JSON that nests deeper than any option does.
    #[error("Parameter '{key}' nests deeper than {limit} levels")]
    TooDeep {
        /// Where it got too deep, shortened.
        key: String,
        /// Levels that are allowed.
        limit: usize,
    },
    /// A value that has the right form, but cannot be used.
    #[error("Parameter '{key}' does not accept value '{value}': {reason}")]
    Rejected {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// Why not, and what is allowed.
        reason: String,
    },
}

impl Problem {
    /// `key` is none of `allowed`.
    pub fn unknown<'a>(key: impl Into<String>, allowed: impl IntoIterator<Item = &'a str>) -> Self {
        let (key, allowed) = (key.into(), owned(allowed));
        Self::Unknown { nearest: nearest(&key, allowed.iter().map(String::as_str)).map(str::to_owned), key, allowed }
    }

    /// `value` is none of `allowed`.
    pub fn not_a_choice<'a>(
        key: impl Into<String>,
        value: impl Into<String>,
        allowed: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let (value, allowed) = (value.into(), owned(allowed));
        let nearest = nearest(&value, allowed.iter().map(String::as_str)).map(str::to_owned);
        Self::NotAChoice { key: key.into(), value, nearest, allowed }
    }

    /// This problem at an option of the command line (`-drive`), or at none (the empty string).
    pub fn at(self, context: impl Into<String>) -> OptionError {
        OptionError { context: context.into(), problem: self }
    }
}

/// The candidate that a user most likely meant by `word`, if any looks enough like it.
///
/// ```
/// assert_eq!(cardcage_options::nearest("serail", ["serial", "parallel"]), Some("serial"));
/// assert_eq!(cardcage_options::nearest("bogus", ["serial", "parallel"]), None);
/// ```
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Comparing takes time in proportion to the product of the lengths; no name is longer than this.
    const LONGEST_NAME: usize = 128;
    if word.len() > LONGEST_NAME {
        return None;
    }
    let lower = word.to_lowercase();
    let scored = candidates.into_iter().map(|c| (strsim::damerau_levenshtein(&lower, &c.to_lowercase()), c));
    let (distance, best) = scored.min_by_key(|&(distance, _)| distance)?;
    let allowed = (word.chars().count() / 3).max(1);
    (distance <= allowed && distance < best.chars().count()).then_some(best)
}

fn owned<'a>(words: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    words.into_iter().map(str::to_owned).collect()
}

/// The half sentence that tells what would be right.
fn hint(nearest: &Option<String>, allowed: &[String]) -> String {
    match (nearest, allowed) {
        (Some(word), _) => format!(", did you mean '{word}'?"),
        (None, []) => String::new(),
        (None, words) => format!("; allowed: {}", words.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_far_from_all_words_lists_them() {
        let text = Problem::not_a_choice("cache", "turbo", ["none", "writeback"]).at("-drive").to_string();
        assert_eq!(text, "-drive: Parameter 'cache' does not accept value 'turbo'; allowed: none, writeback");
    }

    #[test]
    fn one_wrong_letter_gets_the_right_word() {
        let text = Problem::not_a_choice("cache", "nome", ["none", "writeback"]).at("").to_string();
        assert_eq!(text, "Parameter 'cache' does not accept value 'nome', did you mean 'none'?");
    }

    #[test]
    fn a_word_of_one_letter_suggests_nothing_unrelated() {
        assert_eq!(nearest("x", ["y", "id"]), None);
        assert_eq!(nearest("", ["y", "id"]), None);
        assert_eq!(nearest(&"a".repeat(100_000), ["a"]), None);
    }
}
