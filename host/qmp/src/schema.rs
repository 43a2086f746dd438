//! `query-qmp-schema`: the registry as the SchemaInfo list of QEMU's qapi/introspect.json.
//!
//! Types of ours are numbered, so that clients look at what a type holds and not at what it is called.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::{Commands, Member, Type};

/// The list that `query-qmp-schema` returns.
pub fn introspect(commands: &Commands) -> Vec<Value> {
    let mut schema = Schema::default();
    for (name, command) in commands.iter() {
        let arguments = schema.name((command.arguments)());
        let result = schema.name((command.result)());
        let mut info = json!({"name": name, "meta-type": "command", "arg-type": arguments, "ret-type": result});
        if command.allow_oob {
            info["allow-oob"] = true.into();
        }
        if !command.features.is_empty() {
            info["features"] = command.features.into();
        }
        schema.list.push(info);
    }
    for (name, data) in commands.events() {
        let data = schema.name(data);
        schema.list.push(json!({"name": name, "meta-type": "event", "arg-type": data}));
    }
    schema.list
}

/// Each type once, whichever way it is reached.
#[derive(Default)]
struct Schema {
    list: Vec<Value>,
    /// From what tells a type of ours apart (its description's address, or its element's name) to its name.
    known: HashMap<Key, String>,
}

#[derive(PartialEq, Eq, Hash)]
enum Key {
    Builtin(&'static str),
    Declared(usize),
    ArrayOf(String),
}

impl Schema {
    /// The name of `ty`, which is described in the list from then on.
    fn name(&mut self, ty: Type) -> String {
        match ty {
            Type::Str => self.builtin("str", "string"),
            Type::Int => self.builtin("int", "int"),
            Type::Number => self.builtin("number", "number"),
            Type::Bool => self.builtin("bool", "boolean"),
            Type::Any => self.builtin("any", "value"),
            Type::Array(element) => {
                let element = self.name(element());
                let name = format!("[{element}]");
                if self.known.insert(Key::ArrayOf(element.clone()), name.clone()).is_none() {
                    self.list.push(json!({"name": name, "meta-type": "array", "element-type": element}));
                }
                name
            }
            Type::Enum(ty) => self.declared(std::ptr::from_ref(ty).addr(), |_, name| {
                let members: Vec<_> = ty.values.iter().map(|value| json!({"name": value})).collect();
                json!({"name": name, "meta-type": "enum", "members": members, "values": ty.values})
            }),
            Type::Object(ty) => self.declared(std::ptr::from_ref(ty).addr(), |schema, name| {
                let members: Vec<_> = ty.members.iter().map(|member| schema.member(member)).collect();
                json!({"name": name, "meta-type": "object", "members": members})
            }),
        }
    }

    fn member(&mut self, member: &Member) -> Value {
        let mut info = json!({"name": member.name, "type": self.name((member.ty)())});
        if member.optional {
            info["default"] = Value::Null;
        }
        info
    }

    fn builtin(&mut self, name: &'static str, json_type: &str) -> String {
        if self.known.insert(Key::Builtin(name), name.into()).is_none() {
            self.list.push(json!({"name": name, "meta-type": "builtin", "json-type": json_type}));
        }
        name.into()
    }

    /// Names a type before it describes it, since it may contain itself.
    fn declared(&mut self, address: usize, info: impl FnOnce(&mut Self, &str) -> Value) -> String {
        if let Some(name) = self.known.get(&Key::Declared(address)) {
            return name.clone();
        }
        let name = self.known.len().to_string();
        self.known.insert(Key::Declared(address), name.clone());
        let info = info(self, &name);
        self.list.push(info);
        name
    }
}
