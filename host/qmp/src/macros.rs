//! The macro that declares structures and enumerations of the wire.

/// Declares types that cross the wire, with their description.
///
/// A structure gets [`Describe`](crate::Describe), [`Argument`](crate::Argument) and `serde::Serialize`. Members of
/// type `Option<T>` are optional and left out when `None`. A member's key is the field's name, or the string after
/// `=`. A last line `..rest` collects members that are not listed. An enumeration lists each variant's string.
/// Documentation comments become part of the description.
///
/// ```
/// cardcage_qmp::qmp_types! {
///     /// How a job is doing.
///     pub enum JobStatus {
///         /// It works.
///         Running = "running",
///         /// It has ended.
///         Concluded = "concluded",
///     }
///
///     /// A job.
///     pub struct JobInfo {
///         /// Its id.
///         id: String = "job-id",
///         /// How it is doing.
///         status: JobStatus,
///         /// Why it failed.
///         error: Option<String>,
///     }
/// }
/// let job = JobInfo { id: "j0".into(), status: JobStatus::Running, error: None };
/// assert_eq!(serde_json::to_value(&job).unwrap(), serde_json::json!({"job-id": "j0", "status": "running"}));
/// ```
#[macro_export]
macro_rules! qmp_types {
    () => {};
    (
        $(#[doc = $doc:literal])*
        $vis:vis struct $name:ident {
            $( $(#[doc = $mdoc:literal])* $field:ident : $ty:ty $(= $wire:literal)? ),*
            $(, .. $rest:ident)? $(,)?
        }
        $($more:tt)*
    ) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone, PartialEq)]
        $vis struct $name {
            $( $(#[doc = $mdoc])* pub $field: $ty, )*
            $(
                /// Members beyond those listed.
                pub $rest: $crate::Map<String, $crate::Value>,
            )?
        }

        impl $crate::Describe for $name {
            fn describe() -> $crate::Type {
                static TYPE: $crate::ObjectType = $crate::ObjectType {
                    name: stringify!($name),
                    doc: concat!($($doc, "\n",)*),
                    members: &[ $( $crate::Member {
                        name: $crate::qmp_types!(@wire $field $($wire)?),
                        doc: concat!($($mdoc, "\n",)*),
                        ty: <$ty as $crate::Describe>::describe,
                        optional: <$ty as $crate::Describe>::OPTIONAL,
                    } ),* ],
                    open: $crate::qmp_types!(@open $($rest)?),
                };
                $crate::Type::Object(&TYPE)
            }
        }

        impl $crate::Argument for $name {
            fn from_json(value: $crate::Value, place: &$crate::Place<'_>) -> Result<Self, $crate::CommandError> {
                let members = &mut $crate::Members::of(value, place)?;
                $( let $field = members.take($crate::qmp_types!(@wire $field $($wire)?))?; )*
                $crate::qmp_types!(@finish members $($rest)?);
                Ok(Self { $($field,)* $($rest)? })
            }
        }

        impl $crate::Serialize for $name {
            fn serialize<S: $crate::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let members = &mut $crate::MembersOut::begin(serializer)?;
                $( members.put($crate::qmp_types!(@wire $field $($wire)?), &self.$field)?; )*
                $( for (key, value) in &self.$rest {
                    members.put(key, value)?;
                } )?
                members.end()
            }
        }

        $crate::qmp_types! { $($more)* }
    };
    (
        $(#[doc = $doc:literal])*
        $vis:vis enum $name:ident {
            $( $(#[doc = $vdoc:literal])* $variant:ident = $wire:literal ),* $(,)?
        }
        $($more:tt)*
    ) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        $vis enum $name {
            $( $(#[doc = $vdoc])* $variant, )*
        }

        impl $name {
            /// The string on the wire.
            $vis fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $wire, )* }
            }
        }

        impl $crate::Describe for $name {
            fn describe() -> $crate::Type {
                static TYPE: $crate::EnumType = $crate::EnumType {
                    name: stringify!($name),
                    doc: concat!($($doc, "\n",)*),
                    values: &[ $($wire),* ],
                };
                $crate::Type::Enum(&TYPE)
            }
        }

        impl $crate::Argument for $name {
            fn from_json(value: $crate::Value, place: &$crate::Place<'_>) -> Result<Self, $crate::CommandError> {
                match <String as $crate::Argument>::from_json(value, place)?.as_str() {
                    $( $wire => Ok(Self::$variant), )*
                    other => Err(place.not_accepted(other)),
                }
            }
        }

        impl $crate::Serialize for $name {
            fn serialize<S: $crate::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        $crate::qmp_types! { $($more)* }
    };
    (@wire $field:ident) => { stringify!($field) };
    (@wire $field:ident $wire:literal) => { $wire };
    (@open) => { false };
    (@open $rest:ident) => { true };
    (@finish $members:ident) => { $members.finish()?; };
    (@finish $members:ident $rest:ident) => { let $rest = $members.rest(); };
}
