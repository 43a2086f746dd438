//! PCI configuration space, BARs, MSI-X, host bridge and the PIIX functions of the pc machine
