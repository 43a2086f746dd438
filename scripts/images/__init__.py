"""How scripts/guests makes kernels, the initramfs and the Debian root."""
