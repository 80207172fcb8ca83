//! Names of files on their way through the inbox. They are bytes, not text: any name a file system allows must survive.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// The longest name of a file, in bytes, on every file system that matters.
pub const NAME_MAX: usize = 255;

/// Files that are still being made: their names end in one of these.
const UNFINISHED: [&[u8]; 2] = [b".tmp", b".part"];

/// Whether the inbox passes over a file of this name: dot files, `*.tmp`, `*.part`.
pub fn is_ignored(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(b".") || UNFINISHED.iter().any(|suffix| name.ends_with(suffix))
}

/// What follows the last dot of a name is an extension up to this length, dot included.
const EXTENSION_MAX: usize = 32;

/// Splits `data.json.gz` into `data` and `.json.gz`; the second part is empty when there is no extension.
pub fn split_extension(name: &OsStr) -> (&OsStr, &OsStr) {
    let bytes = name.as_bytes();
    let dot =
        |end: usize| bytes[..end].iter().rposition(|&b| b == b'.').filter(|&dot| dot > 0 && bytes.len() - dot <= EXTENSION_MAX);
    let start = match dot(bytes.len()) {
        Some(last) if matches!(&bytes[last..], b".gz" | b".zst") => dot(last).unwrap_or(last),
        Some(last) => last,
        None => bytes.len(),
    };
    (OsStr::from_bytes(&bytes[..start]), OsStr::from_bytes(&bytes[start..]))
}

/// The name, or when it is longer than `max` bytes, one without the end of its stem: the extension stays, and no UTF-8
/// character is cut in two. `max` is at least 64.
pub fn shortened(name: &OsStr, max: usize) -> OsString {
    if name.len() <= max {
        return name.to_owned();
    }
    let (stem, extension) = split_extension(name);
    let stem = stem.as_bytes();
    let longest = max - extension.len();
    let is_boundary = |&end: &usize| stem[end] & 0xC0 != 0x80;
    let end = (longest - 3..=longest).rev().find(is_boundary).unwrap_or(longest);
    OsString::from_vec([&stem[..end], extension.as_bytes()].concat())
}
