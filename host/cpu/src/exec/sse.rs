//! SSE and SSE2 in threaded form.
