//! Decompresses gzip and zstd. The format is detected by the first bytes; the file's name does not matter.

use std::error::Error;
use std::fmt;
use std::io::{self, BufReader, Read};

use zstd::zstd_safe::zstd_sys::ZSTD_ErrorCode;

/// The input could be read but not decompressed: it is truncated or corrupt, or it needs too much memory. The reader of
/// [`decompress`] wraps this in an [`io::Error`]. Callers can thus tell it from a failed disk or pipe: a retry does not help
/// here.
#[derive(Debug)]
pub struct CannotDecompress {
    message: String,
    cause: io::Error,
}

impl CannotDecompress {
    fn gzip(cause: io::Error) -> Self {
        Self::broken("gzip", cause)
    }

    fn zstd(cause: io::Error, window_mib: u32) -> Self {
        let is_too_large = |error: &zstd::Error| error.is(ZSTD_ErrorCode::ZSTD_error_frameParameter_windowTooLarge);
        if cause.get_ref().and_then(|error| error.downcast_ref()).is_some_and(is_too_large) {
            let message = format!(
                "the zstd window is larger than {window_mib} MiB, and reading takes as much memory: compress the file again \
                 without --long and --ultra, or raise the setting zstd_window_mib"
            );
            return Self { message, cause };
        }
        Self::broken("zstd", cause)
    }

    fn broken(format: &str, cause: io::Error) -> Self {
        let message = match cause.kind() {
            io::ErrorKind::UnexpectedEof => format!("broken {format}: the compressed data is cut off"),
            _ => format!("broken {format}: {cause}"),
        };
        Self { message, cause }
    }
}

impl fmt::Display for CannotDecompress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for CannotDecompress {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.cause)
    }
}

/// Returns a reader of the decompressed text. It decompresses all members of a gzip file and all frames of a zstd file; any
/// other input passes through unchanged.
///
/// `zstd_window_mib` is the largest window of a zstd frame that is accepted, and a power of two. Decompression takes as much
/// memory as the window is large.
///
/// # Errors
/// If the first bytes cannot be read. The returned reader fails with the errors of `reader`, or with a [`CannotDecompress`].
pub fn decompress(mut reader: impl Read + Send + 'static, zstd_window_mib: u32) -> io::Result<Box<dyn Read + Send>> {
    let mut magic = Vec::with_capacity(4);
    reader.by_ref().take(4).read_to_end(&mut magic)?;
    let format = Format::of(&magic);
    let reader = io::Cursor::new(magic).chain(reader);
    Ok(match format {
        Format::Plain => Box::new(reader),
        Format::Gzip => {
            let decoder = flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(COMPRESSED_BUFFER, Source(reader)));
            Box::new(Decoder { decoder, explain: CannotDecompress::gzip })
        }
        Format::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(BufReader::with_capacity(COMPRESSED_BUFFER, Source(reader)))?;
            decoder.window_log_max(MIB_LOG + zstd_window_mib.ilog2())?;
            Box::new(Decoder { decoder, explain: move |cause| CannotDecompress::zstd(cause, zstd_window_mib) })
        }
    })
}

/// Whether a file that begins with these four bytes is compressed.
pub fn is_compressed(magic: &[u8]) -> bool {
    !matches!(Format::of(magic), Format::Plain)
}

/// log₂ of the number of bytes in a MiB.
const MIB_LOG: u32 = 20;
/// The decoder reads this many compressed bytes at a time.
const COMPRESSED_BUFFER: usize = 128 << 10;

enum Format {
    Plain,
    Gzip,
    Zstd,
}

impl Format {
    fn of(magic: &[u8]) -> Self {
        match magic {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or a skippable frame: parallel compressors write one first.
            [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Self::Zstd,
            _ => Self::Plain,
        }
    }
}

/// Marks the errors of the source. They pass through the decoder, and can then be told from the decoder's own errors.
struct Source<R>(R);

#[derive(Debug)]
struct SourceError(io::Error);

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for SourceError {}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf).map_err(|e| io::Error::new(e.kind(), SourceError(e)))
    }
}

struct Decoder<D, E> {
    decoder: D,
    /// Turns an error of the decoder (not of its source) into an explanation.
    explain: E,
}

impl<D: Read, E: Fn(io::Error) -> CannotDecompress> Read for Decoder<D, E> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.decoder.read(buf).map_err(|e| match e.downcast::<SourceError>() {
            Ok(source) => source.0,
            Err(cause) => io::Error::new(io::ErrorKind::InvalidData, (self.explain)(cause)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(text: &[u8]) -> Vec<u8> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.include_checksum(true).unwrap();
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn read_all(bytes: Vec<u8>) -> (Vec<u8>, io::Result<()>) {
        let mut text = Vec::new();
        let result = decompress(io::Cursor::new(bytes), 64).and_then(|mut reader| reader.read_to_end(&mut text));
        (text, result.map(drop))
    }

    fn is_broken(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|e| e.is::<CannotDecompress>())
    }

    /// Returns one byte at a time, then fails.
    struct Failing(io::Cursor<Vec<u8>>);

    impl Read for Failing {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            match self.0.read(&mut buf[..1])? {
                0 => Err(io::Error::other("the disk is gone")),
                n => Ok(n),
            }
        }
    }

    #[test]
    fn plain_text_passes_through_however_short() {
        for text in [&b""[..], b"[", b"{}", b"\x1f", b"\x28\xb5\x2f", b"[{\"a\":1}]"] {
            let (read, result) = read_all(text.to_vec());
            assert_eq!(read, text);
            result.unwrap();
        }
    }

    #[test]
    fn all_members_and_frames_are_read() {
        for pack in [gzip, zstd] {
            let (text, result) = read_all([pack(b"[1,"), pack(b""), pack(b"2]")].concat());
            result.unwrap();
            assert_eq!(text, b"[1,2]");
        }
    }

    #[test]
    fn a_skippable_frame_may_come_first() {
        let (text, result) = read_all([&b"\x50\x2a\x4d\x18\x02\0\0\0xx"[..], &zstd(b"{}")].concat());
        result.unwrap();
        assert_eq!(text, b"{}");
    }

    #[test]
    fn cut_off_data_gives_the_text_before_it_then_says_so() {
        let plain: Vec<u8> = (0..200_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        for (pack, name) in [(gzip as fn(&[u8]) -> Vec<u8>, "gzip"), (zstd, "zstd")] {
            let packed = pack(&plain);
            for cut in [5, packed.len() / 2, packed.len() - 1] {
                let (text, result) = read_all(packed[..cut].to_vec());
                let error = result.unwrap_err();
                assert!(is_broken(&error), "{error:?}");
                assert_eq!(error.to_string(), format!("broken {name}: the compressed data is cut off"));
                assert!(plain.starts_with(&text));
                assert!(text.len() + (1 << 18) > plain.len() * cut / packed.len(), "{name} {cut}: {}", text.len());
            }
        }
    }

    #[test]
    fn damaged_data_is_broken_compression() {
        for pack in [gzip, zstd] {
            let mut checksum = pack(b"{\"a\":1}");
            let last = checksum.len() - 1;
            checksum[last - 2] ^= 0xff;
            let trailing_garbage = [pack(b"{}"), b"garbage".to_vec()].concat();
            for packed in [checksum, trailing_garbage] {
                let error = read_all(packed).1.unwrap_err();
                assert!(is_broken(&error), "{error:?}");
            }
        }
    }

    #[test]
    fn a_failing_disk_is_not_broken_compression() {
        for packed in [gzip(b"{\"a\":1}"), zstd(b"{\"a\":1}"), b"{\"a\":1}".to_vec()] {
            for length in [0, 3, 7, packed.len() - 4] {
                let error = decompress(Failing(io::Cursor::new(packed[..length.min(packed.len())].to_vec())), 64)
                    .and_then(|mut reader| reader.read_to_end(&mut Vec::new()))
                    .unwrap_err();
                assert!(!is_broken(&error));
                assert_eq!(error.to_string(), "the disk is gone");
            }
        }
    }
}
