//! The virtio transports: virtio-pci (modern and transitional) and virtio-mmio
