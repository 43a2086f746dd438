//! ACPI tables of the pc machine
