//! Encodings that `acpi_tables` does not have (ACPI 6.5, section 6.4).

use acpi_tables::{Aml, AmlSink};

/// AML that is encoded already.
pub(crate) struct Raw(pub(crate) Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// An ISA interrupt, edge-triggered and active high: the small IRQ descriptor without flags.
pub(crate) struct Irq(pub(crate) u8);

impl Aml for Irq {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x22);
        sink.word(1u16.checked_shl(self.0.into()).unwrap_or(0));
    }
}

/// Interrupts of a PCI link: level-triggered, active high, shared. The extended interrupt descriptor.
pub(crate) struct LinkInterrupts(pub(crate) Vec<u32>);

impl Aml for LinkInterrupts {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        const CONSUMER: u8 = 1;
        const SHARED: u8 = 1 << 3;
        let count = self.0.len().min(63);
        sink.byte(0x89);
        sink.word(2 + 4 * count as u16);
        sink.byte(CONSUMER | SHARED);
        sink.byte(count as u8);
        for gsi in self.0.iter().take(count) {
            sink.dword(*gsi);
        }
    }
}

/// `CreateDWordField (source, offset, name)`.
pub(crate) struct DWordField<'a> {
    pub(crate) source: &'a dyn Aml,
    pub(crate) offset: u8,
    pub(crate) name: &'a dyn Aml,
}

impl Aml for DWordField<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x8a);
        self.source.to_aml_bytes(sink);
        self.offset.to_aml_bytes(sink);
        self.name.to_aml_bytes(sink);
    }
}
