//! The binary interface between cardcage and its plugins
