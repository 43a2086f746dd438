//! x87, MMX and SSE instructions as operations on an FXSAVE image
