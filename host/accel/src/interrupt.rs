//! How devices raise interrupts, whoever models the interrupt controllers.

/// The way from devices to the processors: the machine's own interrupt controllers or the accelerator's.
///
/// Called from any thread.
pub trait InterruptController: Send + Sync {
    /// Sets the level of a global system interrupt. GSIs 0 to 15 are the ISA interrupts, which reach the 8259 pair and
    /// the I/O APIC (0 at its pin 2); 16 to 23 reach only the I/O APIC. Others are ignored.
    fn set_gsi(&self, gsi: u32, level: bool);
    /// Sends the message-signalled interrupt that a store of `data` to `address` stands for (SDM volume 3, section
    /// 11.11). Addresses outside 0xfee00000 to 0xfeefffff are ignored: they are memory.
    fn send_msi(&self, address: u64, data: u32);
}
