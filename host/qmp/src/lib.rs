//! The QMP server; it knows nothing of virtual machines
