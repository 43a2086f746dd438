//! Interrupt controllers and interval timer: local APIC, I/O APIC, 8259 and 8254
