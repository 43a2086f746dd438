//! The chip's saved state.

use std::collections::VecDeque;

use cardcage_plugin_api::state::{SectionReader, SectionWriter};
use cardcage_plugin_api::{Error, Result};

use crate::uart::*;

/// The layout that is written.
pub(crate) const VERSION: u32 = 1;

pub(crate) fn write(uart: &Uart, s: &mut SectionWriter) {
    s.u16(uart.divisor);
    for register in [
        uart.ier.bits(),
        uart.fcr.bits(),
        uart.lcr.bits(),
        uart.mcr.bits(),
        uart.lsr.bits(),
        uart.msr.bits(),
        uart.scr,
        uart.receiver_buffer,
    ] {
        s.u8(register);
    }
    s.bytes(&uart.received.iter().copied().collect::<Vec<u8>>());
    s.bytes(&uart.sending.iter().copied().collect::<Vec<u8>>());
    s.bool(uart.shift.is_some());
    s.u8(uart.shift.unwrap_or(0));
    s.bool(uart.thr_pending);
    s.bool(uart.timed_out);
    s.bool(uart.timeout_at.is_some());
    s.u64(uart.timeout_at.unwrap_or(0));
}

pub(crate) fn read(mut s: SectionReader<'_>, baud_base: u32) -> Result<Uart> {
    let mut uart = Uart::new(baud_base);
    uart.divisor = s.u16()?;
    uart.ier = InterruptEnable::from_bits_truncate(s.u8()?);
    uart.fcr = FifoControl::from_bits_truncate(s.u8()?);
    uart.lcr = LineControl::from_bits_retain(s.u8()?);
    uart.mcr = ModemControl::from_bits_truncate(s.u8()?);
    uart.lsr = LineStatus::from_bits_truncate(s.u8()?);
    uart.msr = ModemStatus::from_bits_retain(s.u8()?);
    uart.scr = s.u8()?;
    uart.receiver_buffer = s.u8()?;
    uart.received = fifo(&mut s)?;
    uart.sending = fifo(&mut s)?;
    let shift = (s.bool()?, s.u8()?);
    uart.shift = shift.0.then_some(shift.1);
    uart.thr_pending = s.bool()?;
    uart.timed_out = s.bool()?;
    let timeout = (s.bool()?, s.u64()?);
    uart.timeout_at = timeout.0.then_some(timeout.1);
    s.end()?;
    Ok(uart)
}

fn fifo(s: &mut SectionReader<'_>) -> Result<VecDeque<u8>> {
    let bytes = s.bytes()?;
    if bytes.len() > FIFO {
        return Err(Error::new(format!("a saved FIFO has {} bytes, allowed are {FIFO}", bytes.len())));
    }
    Ok(bytes.iter().copied().collect())
}
