//! Comparison of the interface's types as the plugin and as this program know them.
//!
//! abi_stable's check is directional: the *interface* may be smaller than the *implementation*. Its own loader always
//! takes the program for the interface, and so refuses plugins older than the program. Here the older side is the
//! interface. Each comparison has tables of its own: abi_stable's process-wide ones mix up plugins of different
//! versions.

use cardcage_plugin_abi::abi_stable::{
    abi_stability::abi_checking::{
        AbiInstability, AbiInstabilityErrors, CheckingGlobals, check_layout_compatibility_with_globals,
    },
    type_layout::{TLFieldOrFunction, TypeLayout},
};

/// Version numbers of the plugin API.
pub(crate) type Version = (u32, u32, u32);

/// Compares; the error says where the first differences are.
pub(crate) fn check(
    ours: (Version, &'static TypeLayout),
    theirs: (Version, &'static TypeLayout),
) -> Result<(), String> {
    let (interface, implementation) = if theirs.0 < ours.0 { (theirs.1, ours.1) } else { (ours.1, theirs.1) };
    check_layout_compatibility_with_globals(interface, implementation, &CheckingGlobals::new())
        .map_err(|errors| summary(&errors))
}

/// The leaves of abi_stable's error tree, with the path of fields that leads to them: one or two instead of hundreds
/// of lines.
fn summary(errors: &AbiInstabilityErrors) -> String {
    let mut places: Vec<String> = Vec::new();
    for place in errors.errors.iter().filter(|e| !e.errs.is_empty()) {
        let path: Vec<&str> = place.stack_trace.iter().filter_map(|frame| field_name(&frame.found)).collect();
        for error in place.errs.iter() {
            let text = format!("{}: {}", path.join("."), describe(error));
            if !places.contains(&text) {
                places.push(text);
            }
        }
    }
    let more = places.len().saturating_sub(2);
    places.truncate(2);
    let mut text = places.join("; ");
    if more > 0 {
        text.push_str(&format!("; and {more} more"));
    }
    text
}

/// Leaves out the steps that only abi_stable's own structure adds.
fn field_name(step: &TLFieldOrFunction) -> Option<&'static str> {
    match step {
        TLFieldOrFunction::Field(f) => {
            let name = f.name();
            let internal = name.starts_with(|c: char| c.is_ascii_digit()) || matches!(name, "obj" | "vtable");
            (!internal).then_some(name)
        }
        TLFieldOrFunction::Function(_) => None,
    }
}

fn describe(error: &AbiInstability) -> String {
    match error {
        AbiInstability::UnexpectedField(f) => {
            format!("'{}' found where '{}' was expected", f.found.name(), f.expected.name())
        }
        AbiInstability::Size(f) => format!("{} bytes expected, {} found", f.expected, f.found),
        AbiInstability::FieldCountMismatch(f) => format!("{} members expected, {} found", f.expected, f.found),
        AbiInstability::Name(f) => format!("type {} expected, {} found", f.expected, f.found),
        other => format!("{other:?}").chars().take(100).collect(),
    }
}
