//! Derive macro for device properties
