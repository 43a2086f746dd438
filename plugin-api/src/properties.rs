//! Properties: what a user can set on a device, and how it is described.
//!
//! Derive [`DeviceProperties`](crate::DeviceProperties) on a plain struct. Each field is a property:
//!
//! ```
//! use cardcage_plugin_api::{DeviceProperties, prop_enum, properties::*};
//!
//! prop_enum! {
//!     /// How fast
//!     pub enum Speed { Fast = "fast", Safe = "safe" }
//! }
//!
//! #[derive(DeviceProperties)]
//! struct Config {
//!     /// Descriptors in each queue
//!     #[prop(default = 256, range = 2..=1024, unit = "descriptors")]
//!     queue_size: u16,
//!     /// Trade safety for speed
//!     #[prop(default = "safe")]
//!     speed: Speed,
//!     /// Image to serve
//!     drive: DriveRef,
//!     /// Serial number that the guest sees
//!     serial: Option<String>,
//! }
//!
//! let given = Given::from_pairs([("drive", "disk0"), ("queue-size", "512")]);
//! let config: Config = parse(given).unwrap();
//! assert_eq!((config.queue_size, config.speed, config.drive.id()), (512, Speed::Safe, "disk0"));
//! assert!(config.serial.is_none());
//!
//! let refused = parse::<Config>(Given::from_pairs([("drive", "disk0"), ("queue-size", "9999")])).err().unwrap();
//! assert_eq!(refused.to_string(), "property 'queue-size' is 9999, allowed is 2..=1024");
//! ```
//!
//! Field names become property names with `-` for `_`; `#[prop(name = "…")]` gives another. `#[prop(flatten)]` takes
//! in the properties of another such struct. A field without a default is required, unless it is an `Option`.

use crate::json::{Array, Object};
use crate::{Error, Result};

/// A set of properties. Derived with [`DeviceProperties`](crate::DeviceProperties).
pub trait Properties: Sized {
    /// The description of each property, in the order of the fields.
    fn specs() -> Vec<PropertySpec>;
    /// Takes the own properties out of what was given.
    fn take(given: &mut Given) -> Result<Self>;
}

impl Properties for () {
    fn specs() -> Vec<PropertySpec> {
        Vec::new()
    }
    fn take(_: &mut Given) -> Result<Self> {
        Ok(())
    }
}

/// Parses a whole set, and refuses names that are not in it.
pub fn parse<P: Properties>(mut given: Given) -> Result<P> {
    let parsed = P::take(&mut given)?;
    match given.0.first() {
        None => Ok(parsed),
        Some((name, _)) => {
            let known: Vec<_> = P::specs().into_iter().map(|s| s.name).collect();
            Err(Error::new(format!("no property '{name}'; it has: {}", known.join(", "))))
        }
    }
}

/// The description of one property.
#[derive(Debug, Clone)]
pub struct PropertySpec {
    /// Name, as users write it.
    pub name: &'static str,
    /// One sentence for users.
    pub description: &'static str,
    /// Name of the type; see [`PropertyType::TYPE`].
    pub type_name: &'static str,
    /// Whether it must be given.
    pub required: bool,
    /// Value when it is not given, as text.
    pub default: Option<&'static str>,
    /// Unit of a number; may be empty.
    pub unit: &'static str,
    /// Smallest number allowed.
    pub min: Option<i128>,
    /// Largest number allowed.
    pub max: Option<i128>,
    /// All values allowed, if they can be listed.
    pub choices: &'static [&'static str],
}

impl PropertySpec {
    pub(crate) fn to_json(&self) -> Object {
        let mut o = Object::new().field("name", self.name).field("type", self.type_name);
        o = o.field("description", self.description).field("required", self.required);
        if let Some(text) = self.default {
            o = match (self.type_name, text.parse::<i128>()) {
                ("bool", _) => o.field("default", text == "on"),
                (t, Ok(n)) if is_number(t) => o.field("default", n),
                _ => o.field("default", text),
            };
        }
        if let Some(n) = self.min {
            o = o.field("min", n);
        }
        if let Some(n) = self.max {
            o = o.field("max", n);
        }
        if !self.choices.is_empty() {
            o = o.field("choices", self.choices.iter().fold(Array::new(), |a, c| a.item(*c)));
        }
        if !self.unit.is_empty() {
            o = o.field("unit", self.unit);
        }
        o
    }
}

fn is_number(type_name: &str) -> bool {
    type_name == "size" || type_name.starts_with("int") || type_name.starts_with("uint")
}

#[doc(hidden)]
pub fn spec<T: PropertyType>(
    name: &'static str,
    description: &'static str,
    required: bool,
    default: Option<&'static str>,
    unit: &'static str,
    min: Option<i128>,
    max: Option<i128>,
) -> PropertySpec {
    if let Some(Err(e)) = default.map(|text| checked::<T>(name, text, min, max)) {
        panic!("the default is not allowed: {e}");
    }
    let (min, max) = (min.or(T::RANGE.map(|r| r.0)), max.or(T::RANGE.map(|r| r.1)));
    // A default such as "0x1f0" is shown as the number that it is.
    let default = match default.map(|text| (text, T::parse(text).ok().and_then(|v| v.number()))) {
        Some((text, Some(n))) if text != n.to_string() => Some(&*n.to_string().leak()),
        other => other.map(|d| d.0),
    };
    PropertySpec { name, description, type_name: T::TYPE, required, default, unit, min, max, choices: T::CHOICES }
}

#[doc(hidden)]
pub fn missing(name: &str) -> Error {
    Error::new(format!("property '{name}' is required"))
}

fn checked<T: PropertyType>(name: &str, text: &str, min: Option<i128>, max: Option<i128>) -> Result<T> {
    let value = T::parse(text).map_err(|e| Error::new(format!("property '{name}': {e}")))?;
    if let Some(n) = value.number() {
        let (low, high) = (min.unwrap_or(i128::MIN), max.unwrap_or(i128::MAX));
        if n < low || n > high {
            let bound = |b: Option<i128>| b.map(|n| n.to_string()).unwrap_or_default();
            return Err(Error::new(format!("property '{name}' is {n}, allowed is {}..={}", bound(min), bound(max))));
        }
    }
    Ok(value)
}

/// Properties as they were given: names and values as text.
#[derive(Debug, Clone, Default)]
pub struct Given(Vec<(String, String)>);

impl Given {
    /// From names and values; of a name that occurs twice, the last counts.
    pub fn from_pairs<N: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (N, V)>) -> Self {
        Self(pairs.into_iter().map(|(n, v)| (n.into(), v.into())).collect())
    }

    #[doc(hidden)]
    pub fn take<T: PropertyType>(
        &mut self,
        name: &str,
        default: Option<&str>,
        min: Option<i128>,
        max: Option<i128>,
    ) -> Result<Option<T>> {
        let given = self.0.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        self.0.retain(|(n, _)| n != name);
        given.as_deref().or(default).map(|text| checked::<T>(name, text, min, max)).transpose()
    }
}

/// A type that a property can have. Implement it for types of your own; [`prop_enum!`](crate::prop_enum) does it for
/// enums.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a device property",
    label = "not a property type",
    note = "use an integer, bool, String, Size, MacAddr, DriveRef, ChardevRef, NetdevRef, an Option of one, or an enum made with `prop_enum!`"
)]
pub trait PropertyType: Sized {
    /// Name of the type in listings: `bool`, `str`, `size`, `uint8` … `uint64`, `int8` … `int64`, `mac`, `drive`,
    /// `chardev`, `netdev`, or the name of an enum.
    const TYPE: &'static str;
    /// All values, if they can be listed.
    const CHOICES: &'static [&'static str] = &[];
    /// Smallest and largest number that the type can hold.
    const RANGE: Option<(i128, i128)> = None;
    /// Reads a value in the syntax of the command line. The error says what is wrong and what is allowed.
    fn parse(text: &str) -> Result<Self>;
    /// The value as a number, for the range check.
    fn number(&self) -> Option<i128> {
        None
    }
}

macro_rules! integers { ($($type:ty, $name:literal;)*) => { $(
    impl PropertyType for $type {
        const TYPE: &'static str = $name;
        const RANGE: Option<(i128, i128)> = Some((<$type>::MIN as i128, <$type>::MAX as i128));
        fn parse(text: &str) -> Result<Self> {
            let (negative, digits) = text.strip_prefix('-').map_or((false, text), |d| (true, d));
            let hex = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X"));
            let n = hex.map_or_else(|| digits.parse::<u64>(), |h| u64::from_str_radix(h, 16));
            let n = n.ok().filter(|_| digits.starts_with(|c: char| c.is_ascii_digit())).map(i128::from);
            n.map(|n| if negative { -n } else { n }).and_then(|n| <$type>::try_from(n).ok()).ok_or_else(|| {
                Error::new(format!("'{text}' is not a number from {} to {}", <$type>::MIN, <$type>::MAX))
            })
        }
        fn number(&self) -> Option<i128> { Some(i128::from(*self)) }
    }
)* } }
integers! {
    u8, "uint8"; u16, "uint16"; u32, "uint32"; u64, "uint64";
    i8, "int8"; i16, "int16"; i32, "int32"; i64, "int64";
}

impl PropertyType for bool {
    const TYPE: &'static str = "bool";
    fn parse(text: &str) -> Result<Self> {
        match text {
            "on" | "yes" | "true" | "y" => Ok(true),
            "off" | "no" | "false" | "n" => Ok(false),
            _ => Err(Error::new(format!("'{text}' is neither 'on' nor 'off'"))),
        }
    }
}

impl PropertyType for String {
    const TYPE: &'static str = "str";
    fn parse(text: &str) -> Result<Self> {
        Ok(text.into())
    }
}

impl<T: PropertyType> PropertyType for Option<T> {
    const TYPE: &'static str = T::TYPE;
    const CHOICES: &'static [&'static str] = T::CHOICES;
    const RANGE: Option<(i128, i128)> = T::RANGE;
    fn parse(text: &str) -> Result<Self> {
        T::parse(text).map(Some)
    }
    fn number(&self) -> Option<i128> {
        self.as_ref().and_then(T::number)
    }
}

/// A number of bytes; users may write `4K`, `512M`, `1G`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl PropertyType for Size {
    const TYPE: &'static str = "size";
    const RANGE: Option<(i128, i128)> = Some((0, u64::MAX as i128));
    fn parse(text: &str) -> Result<Self> {
        let refuse = || Error::new(format!("'{text}' is not a size: give bytes, or a number with K, M, G, T, P or E"));
        let shift = match text.bytes().last().map(|b| b.to_ascii_uppercase()) {
            Some(b'B') => 0,
            Some(b'K') => 10,
            Some(b'M') => 20,
            Some(b'G') => 30,
            Some(b'T') => 40,
            Some(b'P') => 50,
            Some(b'E') => 60,
            _ => return u64::parse(text).map(Size).map_err(|_| refuse()),
        };
        let digits = text.get(..text.len() - 1).ok_or_else(refuse)?;
        let n = digits.parse::<u64>().ok().filter(|_| digits.starts_with(|c: char| c.is_ascii_digit()));
        n.and_then(|n| n.checked_mul(1 << shift)).map(Size).ok_or_else(refuse)
    }
    fn number(&self) -> Option<i128> {
        Some(i128::from(self.0))
    }
}

/// An Ethernet address, `52:54:00:12:34:56`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MacAddr(pub [u8; 6]);

impl PropertyType for MacAddr {
    const TYPE: &'static str = "mac";
    fn parse(text: &str) -> Result<Self> {
        let refuse = || Error::new(format!("'{text}' is not an Ethernet address such as 52:54:00:12:34:56"));
        let parts: Vec<&str> = text.split([':', '-']).collect();
        let bytes: Option<Vec<u8>> = parts
            .iter()
            .map(|p| u8::from_str_radix(p, 16).ok().filter(|_| p.len() == 2 && !p.starts_with('+')))
            .collect();
        bytes.and_then(|b| <[u8; 6]>::try_from(b).ok()).map(MacAddr).ok_or_else(refuse)
    }
}

macro_rules! references { ($($(#[$doc:meta])* $type:ident $name:literal;)*) => { $(
    $(#[$doc])*
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct $type(String);
    impl $type {
        /// The id, as the user gave it.
        pub fn id(&self) -> &str {
            &self.0
        }
    }
    impl PropertyType for $type {
        const TYPE: &'static str = $name;
        fn parse(text: &str) -> Result<Self> {
            Ok(Self(text.into()))
        }
    }
)* } }
references! {
    /// The id of a block backend (`-drive id=…`, `-blockdev node-name=…`).
    DriveRef "drive";
    /// The id of a character backend (`-chardev id=…`).
    ChardevRef "chardev";
    /// The id of a network backend (`-netdev id=…`).
    NetdevRef "netdev";
}

/// Makes an enum that can be a property: `prop_enum! { pub enum Mode { Fast = "fast", Safe = "safe" } }`.
#[macro_export]
macro_rules! prop_enum {
    ($(#[$meta:meta])* $vis:vis enum $name:ident { $($(#[$vmeta:meta])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $vis enum $name { $($(#[$vmeta])* #[doc = concat!("`", $text, "`")] $variant),* }
        impl $crate::properties::PropertyType for $name {
            const TYPE: &'static str = stringify!($name);
            const CHOICES: &'static [&'static str] = &[$($text),*];
            fn parse(text: &str) -> $crate::Result<Self> {
                match text {
                    $($text => Ok(Self::$variant),)*
                    _ => Err($crate::Error::new(format!("'{text}' is not one of: {}", [$($text),*].join(", ")))),
                }
            }
        }
    };
}

prop_enum! {
    /// A switch that can be left to the device.
    pub enum OnOffAuto { Auto = "auto", On = "on", Off = "off" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_accept_decimal_and_hexadecimal_and_name_their_bounds() {
        assert_eq!(u16::parse("0x3f8").unwrap(), 0x3f8);
        assert_eq!(i8::parse("-128").unwrap(), -128);
        for bad in ["", "-", "65536", "+1", "1 ", "0x", "1e3", "--1", "0x-1"] {
            let e = u16::parse(bad).unwrap_err().to_string();
            assert_eq!(e, format!("'{bad}' is not a number from 0 to 65535"));
        }
    }

    #[test]
    fn sizes_accept_suffixes_and_refuse_what_overflows() {
        assert_eq!(Size::parse("4K").unwrap(), Size(4096));
        assert_eq!(Size::parse("16E").ok(), None);
        assert_eq!(Size::parse("15E").unwrap(), Size(15 << 60));
        for bad in ["", "K", "4X", "-1K", "1.5G", "+4K", "4é"] {
            assert!(Size::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ethernet_addresses_have_six_two_digit_parts() {
        assert_eq!(MacAddr::parse("52:54:00:12:34:56").unwrap().0, [0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        for bad in ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "52:54:0:12:34:56", "52:54:00:12:34:+6"] {
            assert!(MacAddr::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn of_a_name_given_twice_the_last_counts() {
        let mut given = Given::from_pairs([("a", "1"), ("a", "2")]);
        assert_eq!(given.take::<u8>("a", None, None, None).unwrap(), Some(2));
        assert_eq!(given.take::<u8>("a", None, None, None).unwrap(), None);
    }

    #[test]
    fn a_spec_carries_the_bounds_of_its_type_and_a_readable_default() {
        let s = spec::<u16>("iobase", "port", false, Some("0x501"), "", None, None);
        let json = s.to_json().to_string();
        assert_eq!(
            json,
            r#"{"name":"iobase","type":"uint16","description":"port","required":false,"default":1281,"min":0,"max":65535}"#
        );
    }
}
