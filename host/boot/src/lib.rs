//! Direct boot of Linux bzImage and ELF/PVH kernels
