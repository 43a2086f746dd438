//! A ring buffer: the last bytes that were written.

/// Bytes, the oldest of which give way to new ones.
#[derive(Debug)]
pub(crate) struct Ring {
    bytes: Box<[u8]>,
    /// Bytes written and read since the start; their difference is at most the length.
    written: u64,
    read: u64,
}

impl Ring {
    /// `size` is a power of two, so that positions stay right when the counters wrap.
    pub(crate) fn new(size: u64) -> Self {
        Self { bytes: vec![0; size as usize].into(), written: 0, read: 0 }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        let len = self.bytes.len();
        // Only the last `len` bytes survive.
        let skipped = bytes.len().saturating_sub(len);
        self.written = self.written.wrapping_add(skipped as u64);
        for &byte in &bytes[skipped..] {
            self.bytes[self.written as usize & (len - 1)] = byte;
            self.written = self.written.wrapping_add(1);
        }
        if self.written.wrapping_sub(self.read) > len as u64 {
            self.read = self.written.wrapping_sub(len as u64);
        }
    }

    pub(crate) fn read(&mut self, max: usize) -> Vec<u8> {
        let mask = self.bytes.len() - 1;
        let count = self.written.wrapping_sub(self.read).min(max as u64);
        let bytes = (0..count).map(|i| self.bytes[self.read.wrapping_add(i) as usize & mask]).collect();
        self.read = self.read.wrapping_add(count);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_last_unread_bytes_come_out_in_order(
            steps in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..40), 0..20_usize), 0..20),
        ) {
            let (mut ring, mut model) = (Ring::new(16), Vec::new());
            for (written, wanted) in steps {
                ring.write(&written);
                model.extend(written);
                model.drain(..model.len().saturating_sub(16));
                let expected: Vec<u8> = model.drain(..wanted.min(model.len())).collect();
                prop_assert_eq!(ring.read(wanted), expected);
            }
        }
    }
}
