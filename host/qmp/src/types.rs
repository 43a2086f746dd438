//! Types that cross the wire: how they describe themselves, and how arguments become Rust values.
//!
//! The description is what `query-qmp-schema` is made of and what arguments are checked against: there is no second
//! list. Structures and enumerations get it from [`qmp_types!`](crate::qmp_types); error texts are QEMU's.

use std::fmt;

use serde::ser::{Error as _, SerializeMap};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use crate::CommandError;

/// A type as the schema shows it.
#[derive(Debug, Clone, Copy)]
pub enum Type {
    /// A string.
    Str,
    /// An integer.
    Int,
    /// An integer or a fraction.
    Number,
    /// true or false.
    Bool,
    /// Any JSON value.
    Any,
    /// An array of this type. A function, so that types may contain themselves.
    Array(fn() -> Type),
    /// One of a few strings.
    Enum(&'static EnumType),
    /// An object.
    Object(&'static ObjectType),
}

/// A set of strings.
#[derive(Debug)]
pub struct EnumType {
    /// Name of the type.
    pub name: &'static str,
    /// What it is for.
    pub doc: &'static str,
    /// The strings.
    pub values: &'static [&'static str],
}

/// An object with known members.
#[derive(Debug)]
pub struct ObjectType {
    /// Name of the type.
    pub name: &'static str,
    /// What it is for.
    pub doc: &'static str,
    /// The members, in the order in which they are checked.
    pub members: &'static [Member],
    /// Whether there may be members beyond these.
    pub open: bool,
}

/// A member of an object.
#[derive(Debug)]
pub struct Member {
    /// Its key.
    pub name: &'static str,
    /// What it is for.
    pub doc: &'static str,
    /// Its type.
    pub ty: fn() -> Type,
    /// Whether it may be absent.
    pub optional: bool,
}

/// The type of `()`: an object without members.
pub static EMPTY: ObjectType = ObjectType { name: "Empty", doc: "Nothing.", members: &[], open: false };
static OPEN: ObjectType = ObjectType { name: "AnyObject", doc: "Any members.", members: &[], open: true };

/// A type that can tell what it is on the wire. Results of commands and data of events are `Describe + Serialize`.
pub trait Describe {
    /// Whether a member of this type may be absent.
    const OPTIONAL: bool = false;
    /// The description.
    fn describe() -> Type;
    /// Whether this value, as a member, is left out.
    fn is_absent(&self) -> bool {
        false
    }
}

/// A type that can be an argument of a command, or part of one.
pub trait Argument: Describe + Sized {
    /// Takes the value that stands at `place`.
    fn from_json(value: Value, place: &Place<'_>) -> Result<Self, CommandError>;
    /// What the argument is when nothing stands at `place`: an error, unless it is optional.
    fn absent(place: &Place<'_>) -> Result<Self, CommandError> {
        Err(CommandError::generic(format!("Parameter '{place}' is missing")))
    }
}

/// Where in a command's arguments a value stands: `backend.data.addr`, `enable[0]`.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    parent: Option<&'a Place<'a>>,
    step: Step<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Step<'a> {
    Arguments,
    Member(&'a str),
    Element(usize),
}

impl<'a> Place<'a> {
    /// The arguments as a whole.
    pub fn arguments() -> Self {
        Self { parent: None, step: Step::Arguments }
    }

    /// The member `name` of the object here.
    pub fn member(&'a self, name: &'a str) -> Place<'a> {
        Place { parent: Some(self), step: Step::Member(name) }
    }

    /// An element of the array here.
    pub fn element(&'a self, index: usize) -> Place<'a> {
        Place { parent: Some(self), step: Step::Element(index) }
    }

    /// The name of the member alone, without the way to it. An element of an array has none, and is `null` in
    /// QEMU's texts.
    pub fn name(&self) -> &'a str {
        match self.step {
            Step::Member(name) => name,
            Step::Arguments | Step::Element(_) => "null",
        }
    }

    /// The error for a value of another JSON type.
    pub fn wrong_type(&self, expected: &str) -> CommandError {
        CommandError::generic(format!("Invalid parameter type for '{self}', expected: {expected}"))
    }

    /// The error for a value that fits the JSON type but not the argument; `expected` continues "expects".
    pub fn wrong_value(&self, expected: &str) -> CommandError {
        CommandError::generic(format!("Parameter '{self}' expects {expected}"))
    }

    /// The error for a string that is not among an enumeration's.
    pub fn not_accepted(&self, value: &str) -> CommandError {
        CommandError::generic(format!("Parameter '{}' does not accept value '{value}'", self.name()))
    }

    /// The error for a member that nobody asked for.
    pub fn unexpected(&self) -> CommandError {
        CommandError::generic(format!("Parameter '{self}' is unexpected"))
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parent = self.parent.filter(|p| !matches!(p.step, Step::Arguments));
        if let Some(parent) = parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Arguments => f.write_str("arguments"),
            Step::Member(name) if parent.is_some() => write!(f, ".{name}"),
            Step::Member(name) => f.write_str(name),
            Step::Element(index) => write!(f, "[{index}]"),
        }
    }
}

/// The members of an object, taken one by one by name. For code that [`qmp_types!`](crate::qmp_types) writes, and for
/// implementations of [`Argument`] by hand.
#[derive(Debug)]
pub struct Members<'a> {
    map: Map<String, Value>,
    place: &'a Place<'a>,
}

impl<'a> Members<'a> {
    /// The members of `value`, which must be an object.
    pub fn of(value: Value, place: &'a Place<'a>) -> Result<Self, CommandError> {
        match value {
            Value::Object(map) => Ok(Self { map, place }),
            _ => Err(place.wrong_type("object")),
        }
    }

    /// Takes a member.
    pub fn take<T: Argument>(&mut self, name: &str) -> Result<T, CommandError> {
        let place = self.place.member(name);
        match self.map.shift_remove(name) {
            Some(value) => T::from_json(value, &place),
            None => T::absent(&place),
        }
    }

    /// The members that were not taken.
    pub fn rest(&mut self) -> Map<String, Value> {
        std::mem::take(&mut self.map)
    }

    /// Refuses members that were not taken.
    pub fn finish(&mut self) -> Result<(), CommandError> {
        match self.map.keys().next() {
            Some(name) => Err(self.place.member(name).unexpected()),
            None => Ok(()),
        }
    }
}

/// The members of an object on their way out. For code that [`qmp_types!`](crate::qmp_types) writes.
#[derive(Debug)]
pub struct MembersOut<S: Serializer> {
    map: Option<S::SerializeMap>,
}

impl<S: Serializer> MembersOut<S> {
    /// Begins an object.
    pub fn begin(serializer: S) -> Result<Self, S::Error> {
        Ok(Self { map: Some(serializer.serialize_map(None)?) })
    }

    /// Adds a member, unless its value is absent.
    pub fn put<T: Describe + Serialize>(&mut self, name: &str, value: &T) -> Result<(), S::Error> {
        match &mut self.map {
            Some(map) if !value.is_absent() => map.serialize_entry(name, value),
            _ => Ok(()),
        }
    }

    /// Ends the object; only once.
    pub fn end(&mut self) -> Result<S::Ok, S::Error> {
        self.map.take().ok_or_else(|| S::Error::custom("the object has ended already"))?.end()
    }
}

/// A result or an event's data as JSON: `{}` for nothing.
pub(crate) fn to_json<T: Serialize>(value: &T) -> Result<Value, CommandError> {
    match serde_json::to_value(value) {
        Ok(Value::Null) => Ok(Value::Object(Map::new())),
        Ok(value) => Ok(value),
        Err(error) => Err(CommandError::generic(format!("The result cannot be expressed in JSON: {error}"))),
    }
}

impl Describe for () {
    fn describe() -> Type {
        Type::Object(&EMPTY)
    }
}

impl Argument for () {
    fn from_json(value: Value, place: &Place<'_>) -> Result<Self, CommandError> {
        Members::of(value, place)?.finish()
    }
}

impl Describe for String {
    fn describe() -> Type {
        Type::Str
    }
}

impl Argument for String {
    fn from_json(value: Value, place: &Place<'_>) -> Result<Self, CommandError> {
        match value {
            Value::String(text) => Ok(text),
            _ => Err(place.wrong_type("string")),
        }
    }
}

impl Describe for &str {
    fn describe() -> Type {
        Type::Str
    }
}

impl Describe for bool {
    fn describe() -> Type {
        Type::Bool
    }
}

impl Argument for bool {
    fn from_json(value: Value, place: &Place<'_>) -> Result<Self, CommandError> {
        value.as_bool().ok_or_else(|| place.wrong_type("boolean"))
    }
}

impl Describe for f64 {
    fn describe() -> Type {
        Type::Number
    }
}

impl Argument for f64 {
    fn from_json(value: Value, place: &Place<'_>) -> Result<Self, CommandError> {
        value.as_f64().ok_or_else(|| place.wrong_type("number"))
    }
}

impl Describe for Value {
    fn describe() -> Type {
        Type::Any
    }
}

impl Argument for Value {
    fn from_json(value: Value, _place: &Place<'_>) -> Result<Self, CommandError> {
        Ok(value)
    }
}

impl Describe for Map<String, Value> {
    fn describe() -> Type {
        Type::Object(&OPEN)
    }
}

impl Argument for Map<String, Value> {
    fn from_json(value: Value, place: &Place<'_>) -> Result<Self, CommandError> {
        Ok(Members::of(value, place)?.rest())
    }
}

impl<T: Describe> Describe for Vec<T> {
    fn describe() -> Type {
        Type::Array(T::describe)
    }
}

impl<T: Argument> Argument for Vec<T> {
    fn from_json(value: Value, place: &Place<'_>) -> Result<Self, CommandError> {
        let Value::Array(elements) = value else { return Err(place.wrong_type("array")) };
        elements.into_iter().enumerate().map(|(i, element)| T::from_json(element, &place.element(i))).collect()
    }
}

impl<T: Describe> Describe for Option<T> {
    const OPTIONAL: bool = true;
    fn describe() -> Type {
        T::describe()
    }
    fn is_absent(&self) -> bool {
        self.is_none()
    }
}

impl<T: Argument> Argument for Option<T> {
    fn from_json(value: Value, place: &Place<'_>) -> Result<Self, CommandError> {
        T::from_json(value, place).map(Some)
    }
    fn absent(_place: &Place<'_>) -> Result<Self, CommandError> {
        Ok(None)
    }
}

impl<T: Describe> Describe for Box<T> {
    const OPTIONAL: bool = T::OPTIONAL;
    fn describe() -> Type {
        T::describe()
    }
    fn is_absent(&self) -> bool {
        T::is_absent(self)
    }
}

impl<T: Argument> Argument for Box<T> {
    fn from_json(value: Value, place: &Place<'_>) -> Result<Self, CommandError> {
        T::from_json(value, place).map(Box::new)
    }
    fn absent(place: &Place<'_>) -> Result<Self, CommandError> {
        T::absent(place).map(Box::new)
    }
}

macro_rules! integers {
    ($($ty:ident $c_name:literal $take:ident),*) => { $(
        impl Describe for $ty {
            fn describe() -> Type {
                Type::Int
            }
        }

        impl Argument for $ty {
            fn from_json(value: Value, place: &Place<'_>) -> Result<Self, CommandError> {
                $take(&value, place)?.try_into().map_err(|_| place.wrong_value($c_name))
            }
        }
    )* };
}

integers! {
    i8 "int8_t" signed, i16 "int16_t" signed, i32 "int32_t" signed, i64 "int64_t" signed,
    u8 "uint8_t" unsigned, u16 "uint16_t" unsigned, u32 "uint32_t" unsigned, u64 "uint64_t" unsigned
}

fn signed(value: &Value, place: &Place<'_>) -> Result<i64, CommandError> {
    value.as_i64().ok_or_else(|| place.wrong_type("integer"))
}

/// Negative numbers stand for their two's complement, as old clients of QEMU write them.
fn unsigned(value: &Value, place: &Place<'_>) -> Result<u64, CommandError> {
    value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned)).ok_or_else(|| place.wrong_value("uint64"))
}
