//! Unpacks the kernel in a bzImage (boot.rst, payload_offset; Linux, scripts/Makefile.lib for the packers' options).
//!
//! gzip, bzip2, LZMA, xz, zstd and LZ4 are known. LZO is left to the guest: no Linux distribution uses it for x86-64.
//! The last four bytes of every payload are the length of what is in it.

use std::io::Read;

use crate::BootError;

/// Most that an LZ4 block in the legacy frame holds.
const LZ4_BLOCK: usize = 8 << 20;
/// Memory that an LZMA or xz decoder may take: more than any preset needs.
const LZMA_MEMORY_KIB: u32 = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Gzip,
    Bzip2,
    Lzma,
    Xz,
    Zstd,
    Lz4,
}

impl Format {
    fn of(payload: &[u8]) -> Option<Self> {
        let marks: [(&[u8], Self); 6] = [
            (&[0x1f, 0x8b, 0x08], Self::Gzip),
            (b"BZh", Self::Bzip2),
            (&[0x5d, 0, 0], Self::Lzma),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0], Self::Xz),
            (&[0x28, 0xb5, 0x2f, 0xfd], Self::Zstd),
            (&[0x02, 0x21, 0x4c, 0x18], Self::Lz4),
        ];
        marks.iter().find(|(mark, _)| payload.starts_with(mark)).map(|&(_, format)| format)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
        }
    }
}

/// Unpacks `payload`; `None` if it is packed in a way that is not known here. A kernel of more than `max` bytes is
/// refused before it is unpacked.
pub(crate) fn unpack(path: &str, payload: &[u8], max: u64) -> Result<Option<(&'static str, Vec<u8>)>, BootError> {
    let Some(format) = Format::of(payload) else { return Ok(None) };
    let damaged = |reason| BootError::Unpack { path: path.into(), format: format.name(), reason };
    let Some((packed, length)) = payload.split_last_chunk::<4>() else {
        return Err(damaged("it is empty".into()));
    };
    let length = u32::from_le_bytes(*length);
    if u64::from(length) > max {
        let end = 0x100_0000u64.saturating_add(length.into());
        return Err(BootError::KernelTooBig { path: path.into(), start: 0x100_0000, end, ram: max });
    }
    let length = length as usize;
    // gzip ends with the length anyway: there the four bytes are part of the stream.
    let bytes = match format {
        Format::Gzip => read_all(flate2::read::GzDecoder::new(payload), length),
        Format::Bzip2 => read_all(bzip2::read::BzDecoder::new(packed), length),
        Format::Lzma => lzma_rust2::LzmaReader::new_mem_limit(packed, LZMA_MEMORY_KIB, None)
            .map_err(|e| e.to_string())
            .and_then(|reader| read_all(reader, length)),
        Format::Xz => read_all(lzma_rust2::XzReader::new_mem_limit(packed, false, LZMA_MEMORY_KIB), length),
        Format::Zstd => zstd::stream::read::Decoder::with_buffer(packed)
            .map_err(|e| e.to_string())
            .and_then(|reader| read_all(reader.single_frame(), length)),
        Format::Lz4 => lz4_legacy(packed, length),
    }
    .map_err(damaged)?;
    Ok(Some((format.name(), bytes)))
}

/// Reads exactly `length` bytes.
fn read_all(reader: impl Read, length: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(length.min(256 << 20));
    // One more than there should be, so that a longer stream is noticed and never filled up with.
    reader.take(length as u64 + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() != length {
        let than = if bytes.len() > length { "more" } else { "fewer" };
        return Err(format!("it holds {than} than the {length} bytes that it announces"));
    }
    Ok(bytes)
}

/// The legacy LZ4 frame: a mark, then blocks of a 32-bit length and packed bytes.
fn lz4_legacy(packed: &[u8], length: usize) -> Result<Vec<u8>, String> {
    let mut rest = packed.get(4..).unwrap_or_default();
    let mut bytes = vec![0; length];
    let mut done = 0;
    while let Some((size, after)) = rest.split_first_chunk::<4>() {
        let size = u32::from_le_bytes(*size) as usize;
        let block = after.get(..size).ok_or_else(|| format!("a block of {size} bytes ends after {}", after.len()))?;
        let end = length.min(done + LZ4_BLOCK);
        let room = bytes.get_mut(done..end).unwrap_or_default();
        done += lz4_flex::block::decompress_into(block, room).map_err(|e| e.to_string())?;
        rest = after.get(size..).unwrap_or_default();
    }
    if done != length {
        return Err(format!("it holds {done} bytes, not the {length} that it announces"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn kernel() -> Vec<u8> {
        (0..100_000u32).flat_map(|i| (i / 7).to_le_bytes()).collect()
    }

    fn with_length(mut packed: Vec<u8>, length: usize) -> Vec<u8> {
        packed.extend((length as u32).to_le_bytes());
        packed
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn lz4(bytes: &[u8]) -> Vec<u8> {
        let mut packed = vec![0x02, 0x21, 0x4c, 0x18];
        for block in bytes.chunks(LZ4_BLOCK) {
            let block = lz4_flex::block::compress(block);
            packed.extend((block.len() as u32).to_le_bytes());
            packed.extend(block);
        }
        with_length(packed, bytes.len())
    }

    fn bzip2(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        with_length(encoder.finish().unwrap(), bytes.len())
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        with_length(zstd::encode_all(bytes, 3).unwrap(), bytes.len())
    }

    fn payloads() -> Vec<(&'static str, Vec<u8>)> {
        let kernel = kernel();
        vec![("gzip", gzip(&kernel)), ("bzip2", bzip2(&kernel)), ("zstd", zstd(&kernel)), ("lz4", lz4(&kernel))]
    }

    #[test]
    fn each_format_gives_the_kernel_back() {
        for (name, payload) in payloads() {
            let (format, bytes) = unpack("k", &payload, 1 << 30).unwrap().unwrap();
            assert_eq!(format, name);
            assert!(bytes == kernel(), "{name}");
        }
    }

    /// As `xz --check=crc32 --x86 --lzma2=,dict=1MiB` and `lzma -9` make them, of 64 times "cardcage ".
    const XZ: &[u8] = include_bytes!("../testdata/cards.xz");
    const LZMA: &[u8] = include_bytes!("../testdata/cards.lzma");

    #[test]
    fn xz_with_the_x86_filter_and_lzma_are_known() {
        let cards = b"cardcage ".repeat(64);
        for (name, packed) in [("xz", XZ), ("lzma", LZMA)] {
            let payload = with_length(packed.to_vec(), cards.len());
            assert_eq!(unpack("k", &payload, 1 << 20).unwrap(), Some((name, cards.clone())));
        }
    }

    #[test]
    fn a_wrong_length_is_an_error() {
        for (name, mut payload) in payloads() {
            let at = payload.len() - 4;
            for wrong in [399_999u32, 400_001] {
                payload[at..].copy_from_slice(&wrong.to_le_bytes());
                let text = unpack("k", &payload, 1 << 30).unwrap_err().to_string();
                assert!(text.starts_with(&format!("'k' is damaged: its {name} data cannot be unpacked")), "{text}");
            }
        }
    }

    #[test]
    fn a_kernel_that_is_larger_than_the_ram_is_not_unpacked() {
        let text = unpack("k", &zstd(&kernel()), 1000).unwrap_err().to_string();
        assert!(text.contains("needs guest memory at 0x1000000..0x1061a80"), "{text}");
    }

    #[test]
    fn unknown_payloads_are_left_to_the_guest() {
        for payload in [&b""[..], b"\x89LZO\0\r\n", b"\x7fELF"] {
            assert_eq!(unpack("k", payload, 1 << 30).unwrap(), None);
        }
    }

    proptest! {
        #[test]
        fn damaged_payloads_never_panic(which in 0usize..6, cut in 0usize..4000, flips: Vec<(usize, u8)>) {
            let mut all: Vec<Vec<u8>> = payloads().into_iter().map(|p| p.1).collect();
            all.extend([with_length(XZ.to_vec(), 576), with_length(LZMA.to_vec(), 576)]);
            let mut payload = all.swap_remove(which);
            payload.truncate(payload.len().saturating_sub(cut));
            for (at, bits) in flips {
                let len = payload.len().max(1);
                if let Some(byte) = payload.get_mut(at % len) {
                    *byte ^= bits;
                }
            }
            let _ = unpack("k", &payload, 1 << 20);
        }
    }
}
