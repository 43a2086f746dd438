//! Character devices: where serial ports and monitors are connected
