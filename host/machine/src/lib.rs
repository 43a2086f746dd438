//! The board: buses, device tree, run states, boot
