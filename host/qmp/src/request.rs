//! From a JSON value to a command that may be run, and from its outcome to a reply.

use serde_json::{Map, Value, json};

use crate::{CommandError, ErrorClass};

/// A request whose form is right.
#[derive(Debug, PartialEq)]
pub(crate) struct Request {
    pub(crate) command: String,
    pub(crate) arguments: Map<String, Value>,
    pub(crate) out_of_band: bool,
}

/// Takes the `id` to echo out of anything that came in.
pub(crate) fn take_id(value: &mut Value) -> Option<Value> {
    value.as_object_mut()?.shift_remove("id")
}

/// Whether a client that has enabled out-of-band execution wants this to overtake.
pub(crate) fn is_out_of_band(value: &Value) -> bool {
    value.get("exec-oob").is_some() && value.get("execute").is_none()
}

impl Request {
    /// Checks the form of a request, without its `id`.
    pub(crate) fn new(value: Value, oob_enabled: bool) -> Result<Self, CommandError> {
        let Value::Object(members) = value else {
            return Err(CommandError::generic("QMP input must be a JSON object"));
        };
        let mut command: Option<(String, String)> = None;
        let mut arguments = Map::new();
        for (key, member) in members {
            match key.as_str() {
                "execute" => set_command(&mut command, key, member)?,
                "exec-oob" if oob_enabled => set_command(&mut command, key, member)?,
                "arguments" => match member {
                    Value::Object(members) => arguments = members,
                    _ => return Err(member_error("arguments", "must be an object")),
                },
                _ => return Err(member_error(&key, "is unexpected")),
            }
        }
        let Some((key, command)) = command else {
            return Err(CommandError::generic("QMP input lacks member 'execute'"));
        };
        Ok(Self { command, arguments, out_of_band: key == "exec-oob" })
    }
}

fn set_command(command: &mut Option<(String, String)>, key: String, value: Value) -> Result<(), CommandError> {
    let Value::String(name) = value else { return Err(member_error(&key, "must be a string")) };
    match command {
        None => *command = Some((key, name)),
        Some(_) => return Err(member_error("execute", "clashes with 'exec-oob'")),
    }
    Ok(())
}

fn member_error(member: &str, what: &str) -> CommandError {
    CommandError::generic(format!("QMP input member '{member}' {what}"))
}

/// The error for a command that is not in the registry.
pub(crate) fn unknown_command(name: &str) -> CommandError {
    CommandError::new(ErrorClass::CommandNotFound, format!("The command {name} has not been found"))
}

/// The reply to a request.
pub(crate) fn reply(id: Option<Value>, outcome: Result<Value, CommandError>) -> Value {
    let mut reply = Map::new();
    match outcome {
        Ok(result) => {
            reply.insert("return".into(), result);
            reply.extend(id.map(|id| ("id".into(), id)));
        }
        Err(error) => {
            reply.extend(id.map(|id| ("id".into(), id)));
            reply.insert("error".into(), json!({"class": error.class.name(), "desc": error.desc}));
        }
    }
    Value::Object(reply)
}
