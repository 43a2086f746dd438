//! Finds, checks and loads plugins, and keeps the tables of kinds
