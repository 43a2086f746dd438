//! The argument of `-qtest`: `unix:PATH[,server=on|off][,wait=on|off]`.

use std::path::PathBuf;
use std::str::FromStr;

/// Where the client is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QtestAddress {
    /// Path of a unix socket.
    pub path: PathBuf,
    /// Whether to listen there rather than to connect.
    pub server: bool,
    /// As a server: whether to hold up the program until the client has come.
    pub wait: bool,
}

/// An argument of `-qtest` that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Another kind of address.
    #[error("qtest address '{0}' must have the form unix:PATH[,server=on|off][,wait=on|off]")]
    Form(String),
    /// An option that does not exist.
    #[error("qtest address has no option '{0}'; there are server=on|off and wait=on|off")]
    Option(String),
    /// A value other than on and off.
    #[error("qtest option '{option}' cannot be '{value}'; it is on or off")]
    Value {
        /// The option.
        option: String,
        /// What was given.
        value: String,
    },
}

impl FromStr for QtestAddress {
    type Err = AddressError;

    /// A comma in the path is written twice. `server` and `nowait` are the old names of `server=on` and `wait=off`.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let rest = text.strip_prefix("unix:").ok_or_else(|| AddressError::Form(text.into()))?;
        let mut parts = split_options(rest).into_iter();
        let path = parts.next().filter(|path| !path.is_empty()).ok_or_else(|| AddressError::Form(text.into()))?;
        let mut address = Self { path: path.into(), server: false, wait: true };
        for part in parts {
            match part.split_once('=').unwrap_or((part.as_str(), "on")) {
                ("server", value) => address.server = on_off("server", value)?,
                ("wait", value) => address.wait = on_off("wait", value)?,
                ("nowait", value) => address.wait = !on_off("nowait", value)?,
                (option, _) => return Err(AddressError::Option(option.into())),
            }
        }
        Ok(address)
    }
}

fn on_off(option: &str, value: &str) -> Result<bool, AddressError> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(AddressError::Value { option: option.into(), value: value.into() }),
    }
}

/// Splits at commas; two commas are one in the text.
fn split_options(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            ',' if chars.next_if_eq(&',').is_none() => parts.push(String::new()),
            _ => parts.last_mut().into_iter().for_each(|part| part.push(c)),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_understood() {
        let address = |path: &str, server, wait| Ok(QtestAddress { path: path.into(), server, wait });
        assert_eq!("unix:/tmp/a.sock".parse(), address("/tmp/a.sock", false, true));
        assert_eq!("unix:/tmp/a,,b,server=on,wait=off".parse(), address("/tmp/a,b", true, false));
        assert_eq!("unix:x,server,nowait".parse(), address("x", true, false));
    }

    #[test]
    fn mistakes_name_what_is_allowed() {
        let error = |text: &str| text.parse::<QtestAddress>().unwrap_err().to_string();
        assert!(error("tcp:1").contains("'tcp:1' must have the form unix:PATH"));
        assert!(error("unix:").contains("must have the form"));
        assert!(error("unix:x,sever=on").contains("'sever'; there are server=on|off"));
        assert!(error("unix:x,wait=maybe").contains("'wait' cannot be 'maybe'"));
    }
}
