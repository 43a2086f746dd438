//! A port that ends the VM.
