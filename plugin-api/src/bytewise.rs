//! Registers of one byte each: splits wider accesses, as an ISA bus does for an 8-bit device.
//!
//! ```
//! use cardcage_plugin_api::bytewise;
//! let registers = [0x11, 0x22, 0x33];
//! let read = |offset, size| {
//!     bytewise::read(offset, size, |at| registers.get(at as usize).copied().unwrap_or(0xff))
//! };
//! assert_eq!((read(0, 1), read(0, 2), read(2, 2)), (0x11, 0x2211, 0xff33));
//! ```

/// Reads `size` bytes from `offset` on, the lowest first.
#[inline]
pub fn read(offset: u64, size: u8, mut byte: impl FnMut(u64) -> u8) -> u64 {
    (0..u64::from(size.min(8))).fold(0, |value, i| value | u64::from(byte(offset.wrapping_add(i))) << (8 * i))
}

/// Writes the low `size` bytes of `value` from `offset` on, the lowest first.
#[inline]
pub fn write(offset: u64, size: u8, value: u64, mut byte: impl FnMut(u64, u8)) {
    for i in 0..u64::from(size.min(8)) {
        byte(offset.wrapping_add(i), (value >> (8 * i)) as u8);
    }
}
