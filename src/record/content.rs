//! The content of a file: its bytes as they are stored, compressed or not. Two files with the same SHA-256 have the same content.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};

/// The SHA-256 of a file's stored bytes. As text it is 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash([u8; 32]);

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for ContentHash {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "a SHA-256 has 64 hexadecimal digits";
        let mut hash = [0; 32];
        if text.len() != 2 * hash.len() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(WRONG);
        }
        for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| WRONG)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| WRONG)?;
        }
        Ok(Self(hash))
    }
}

/// A reader that hashes the bytes which it passes on, so that hashing needs no second reading.
#[derive(Debug)]
pub struct Hashing<R> {
    inner: R,
    seen: Seen,
}

/// What a [`Hashing`] reader has seen so far. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Seen(Arc<Mutex<Bytes>>);

#[derive(Debug, Default)]
struct Bytes {
    hash: Sha256,
    is_all: bool,
}

impl<R> Hashing<R> {
    /// Reads from `inner`. The second value tells the hash when all is read.
    pub fn new(inner: R) -> (Self, Seen) {
        let seen = Seen::default();
        (Self { inner, seen: seen.clone() }, seen)
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        if !buffer.is_empty() {
            let mut seen = self.seen.0.lock().unwrap_or_else(PoisonError::into_inner);
            seen.hash.update(&buffer[..read]);
            // A file may grow after its end was seen.
            seen.is_all = read == 0;
        }
        Ok(read)
    }
}

impl Seen {
    /// The hash of the whole content. `None` as long as the end was not reached: what follows would change it.
    pub fn hash(&self) -> Option<ContentHash> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.is_all.then(|| ContentHash(seen.hash.clone().finalize().into()))
    }
}

/// Reads to the end and returns the hash. `on_read` is told of each part that was read; `None` if it says not to go on.
///
/// # Errors
/// If the content cannot be read.
pub fn hash_to_end(reader: impl Read, mut on_read: impl FnMut(u64) -> bool) -> io::Result<Option<ContentHash>> {
    /// Few calls for each file, in little memory.
    const BUFFER: usize = 256 << 10;
    let (mut reader, seen) = Hashing::new(reader);
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = reader.read(&mut buffer)?;
        if read == 0 || !on_read(read as u64) {
            return Ok(seen.hash());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// SHA-256 of `abc`, from FIPS 180-4.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    /// Returns these pieces, one at a time. An empty one is an end after which more may follow.
    struct Pieces(VecDeque<&'static [u8]>);

    impl Read for Pieces {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let piece = self.0.pop_front().unwrap_or_default();
            buffer[..piece.len()].copy_from_slice(piece);
            Ok(piece.len())
        }
    }

    fn pieces(pieces: &[&'static str]) -> (Hashing<Pieces>, Seen) {
        Hashing::new(Pieces(pieces.iter().map(|piece| piece.as_bytes()).collect()))
    }

    #[test]
    fn the_hash_is_known_at_the_end_and_not_before() {
        let (mut reader, seen) = pieces(&["a", "bc"]);
        let mut buffer = [0; 8];
        for expected in [1, 2] {
            assert_eq!(reader.read(&mut buffer).unwrap(), expected);
            assert_eq!(seen.hash(), None);
        }
        assert_eq!(reader.read(&mut []).unwrap(), 0);
        assert_eq!(seen.hash(), None, "nothing was asked for, so that says nothing about the end");
        assert_eq!(reader.read(&mut buffer).unwrap(), 0);
        assert_eq!(seen.hash().map(|hash| hash.to_string()).as_deref(), Some(ABC));
    }

    #[test]
    fn a_file_that_grows_after_its_end_has_another_hash() {
        let (mut reader, seen) = pieces(&["a", "", "bc", ""]);
        let mut buffer = [0; 8];
        let mut hashes = Vec::new();
        for expected in [1, 0, 2, 0] {
            assert_eq!(reader.read(&mut buffer).unwrap(), expected);
            hashes.push(seen.hash().map(|hash| hash.to_string()));
        }
        assert_eq!((hashes[0].as_deref(), hashes[2].as_deref()), (None, None));
        assert_ne!(hashes[1].as_deref(), Some(ABC));
        assert_eq!(hashes[3].as_deref(), Some(ABC));
    }

    #[test]
    fn a_hash_is_read_back_from_its_text_and_nothing_else_is() {
        let hash: ContentHash = ABC.parse().unwrap();
        assert_eq!(hash.to_string(), ABC);
        for wrong in ["", "ba", &ABC[1..], &format!("{ABC}00"), &ABC.replace('b', "g"), &format!("+{}", &ABC[1..]), &"ß".repeat(32)]
        {
            assert!(wrong.parse::<ContentHash>().is_err(), "{wrong}");
        }
    }
}
