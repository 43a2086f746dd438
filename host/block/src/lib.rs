//! Block nodes: the host's view of disk images
