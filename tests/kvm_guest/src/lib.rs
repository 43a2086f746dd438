//! A small long-mode guest that the real program runs under each accelerator: see `tests/`.
//!
//! `guest.S` is the guest, `link.ld` lays it out as a PVH kernel. The test builds it with the host's `gcc`.
