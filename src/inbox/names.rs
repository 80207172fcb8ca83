//! Names: the names of files on their way through the inbox. They are bytes, not text, because any name that a file system
//! allows must survive.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use uuid::Uuid;

/// The maximum length of a file name in bytes, on all common file systems.
pub const NAME_MAX: usize = 255;

/// The report of a failed file has the file's name followed by this.
pub const REPORT: &str = ".error.json";

/// Length of `<load key>-`.
const KEY_LEN: usize = uuid::fmt::Hyphenated::LENGTH + 1;

/// The names of files that are still being written end with one of these.
const UNFINISHED: [&[u8]; 2] = [b".tmp", b".part"];

/// Whether the inbox ignores a file of this name: dot files, `*.tmp`, `*.part`.
pub fn is_ignored(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(b".") || UNFINISHED.iter().any(|suffix| name.ends_with(suffix))
}

/// What follows the last dot of a name is an extension if it is at most this long, including the dot.
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

/// Returns the name, shortened to at most `max` bytes. Only the end of the stem is removed: the extension stays, and no UTF-8
/// character is split. `max` is at least 64.
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

/// `<load key>-<name>`, with the name shortened if necessary.
pub fn keyed(key: Uuid, name: &OsStr) -> OsString {
    keyed_within(NAME_MAX, key, name)
}

/// Like [`keyed`], but leaves room for [`REPORT`] at the end.
pub fn keyed_for_report(key: Uuid, name: &OsStr) -> OsString {
    keyed_within(NAME_MAX - REPORT.len(), key, name)
}

fn keyed_within(max: usize, key: Uuid, name: &OsStr) -> OsString {
    let mut keyed = OsString::from(format!("{key}-"));
    keyed.push(shortened(name, max - KEY_LEN));
    keyed
}

/// Whether [`keyed`] shortens the name.
pub fn is_shortened(name: &OsStr) -> bool {
    name.len() > NAME_MAX - KEY_LEN
}

/// Splits `<load key>-<name>`. Returns `None` if the name has another form.
pub fn split_key(name: &OsStr) -> Option<(Uuid, &OsStr)> {
    let (key, rest) = name.as_bytes().split_at_checked(KEY_LEN)?;
    // Only the hyphenated form of a UUID has this length.
    let key = Uuid::try_parse_ascii(key.strip_suffix(b"-")?).ok()?;
    (!rest.is_empty()).then(|| (key, OsStr::from_bytes(rest)))
}

/// The dot file beside a claim that contains the full name of a file whose name was shortened.
pub fn kept_name(key: Uuid) -> String {
    format!(".{key}.name")
}

/// The key in a name that [`kept_name`] made.
pub fn key_of_kept_name(name: &OsStr) -> Option<Uuid> {
    Uuid::try_parse(name.to_str()?.strip_prefix('.')?.strip_suffix(".name")?).ok()
}

/// The dot file beside a claim that grows by one byte with each crash.
pub fn crash_marks(key: Uuid) -> String {
    format!(".{key}.crashes")
}

/// The dot file for incomplete data of this load. It is renamed when it is complete.
pub fn unfinished(key: Uuid) -> String {
    format!(".{key}.part")
}

/// Whether [`unfinished`] made this name.
pub fn is_unfinished(name: &OsStr) -> bool {
    let key = name.as_bytes().strip_prefix(b".").and_then(|rest| rest.strip_suffix(b".part"));
    key.is_some_and(|key| key.len() == uuid::fmt::Hyphenated::LENGTH && Uuid::try_parse_ascii(key).is_ok())
}

/// The path as text that can be converted back. A byte that is not UTF-8 becomes `\xNN`. In a name that looks like this, the
/// backslash becomes `\x5c`. All other paths stay as they are.
pub fn path_text(path: &Path) -> String {
    let mut text = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        for (at, character) in chunk.valid().char_indices() {
            match character {
                '\\' if is_escape(&chunk.valid().as_bytes()[at..]) => text.push_str(r"\x5c"),
                _ => text.push(character),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!(r"\x{byte:02x}"));
        }
    }
    text
}

/// Whether the text begins with an escape for one byte, such as `\xff`.
fn is_escape(text: &[u8]) -> bool {
    matches!(text, [b'\\', b'x', high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Converts the text back into a path, as a reader of the ledger would.
    fn path_of(text: &str) -> Vec<u8> {
        let mut rest = text.as_bytes();
        let mut path = Vec::new();
        while let Some(&byte) = rest.first() {
            if is_escape(rest) {
                path.push(u8::from_str_radix(&text[text.len() - rest.len() + 2..][..2], 16).unwrap());
                rest = &rest[4..];
            } else {
                path.push(byte);
                rest = &rest[1..];
            }
        }
        path
    }

    proptest! {
        #[test]
        fn a_path_can_be_told_from_its_text(pieces in proptest::collection::vec(
            prop_oneof![r"(\\|x|[0-9a-f]|ä|\n| |'|/){0,6}".prop_map(String::into_bytes), proptest::collection::vec(1u8.., 0..4)], 0..6,
        )) {
            let path = pieces.concat();
            prop_assert_eq!(path_of(&path_text(Path::new(OsStr::from_bytes(&path)))), path);
        }

        #[test]
        fn names_fit_behind_a_key_and_come_back(name in proptest::collection::vec(1u8.., 1..=255), character in "[äx.🦀]{60,80}") {
            for name in [OsString::from_vec(name), OsString::from(character)] {
                prop_assume!(name.len() <= NAME_MAX);
                let key = Uuid::now_v7();
                let keyed = keyed(key, &name);
                prop_assert!(keyed.len() <= NAME_MAX);
                prop_assert!(keyed_for_report(key, &name).len() + REPORT.len() <= NAME_MAX);
                let (found, rest) = split_key(&keyed).unwrap();
                prop_assert_eq!(found, key);
                prop_assert_eq!(rest == name, !is_shortened(&name));
                prop_assert!(name.to_str().is_none() || rest.to_str().is_some(), "a character was cut in two");
            }
        }
    }

    #[test]
    fn ordinary_paths_are_their_own_text() {
        for path in ["/inbox/events/a b.json", r"C:\data\x", "line\nbreak", "\"ä'"] {
            assert_eq!(path_text(Path::new(path)), path);
        }
        assert_eq!(path_text(Path::new(OsStr::from_bytes(b"a\xffb"))), r"a\xffb");
        assert_eq!(path_text(Path::new(r"a\xffb")), r"a\x5cxffb");
    }

    #[test]
    fn unfinished_and_hidden_files_are_ignored() {
        for name in [".hidden", "x.tmp", "x.json.part", ".loading", "."] {
            assert!(is_ignored(OsStr::new(name)), "{name}");
        }
        for name in ["x", "x.json", "tmp", "part.json", "x.tmp.json", "x.PART"] {
            assert!(!is_ignored(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn only_what_was_made_for_a_load_is_unfinished() {
        let key = Uuid::now_v7();
        assert!(is_unfinished(OsStr::new(&unfinished(key))));
        for other in [".x.part".to_owned(), format!("{key}.part"), format!(".{key}"), format!(".{}.part", key.simple())] {
            assert!(!is_unfinished(OsStr::new(&other)), "{other}");
        }
    }

    #[test]
    fn only_load_keys_and_a_name_make_a_claim() {
        let key = Uuid::now_v7();
        assert!(split_key(OsStr::new(&format!("{key}-x"))).is_some());
        for foreign in
            [format!("{key}-"), format!("{key}"), format!("{key}.x"), "x.json".into(), format!("{}-abcd-x", key.simple())]
        {
            assert_eq!(split_key(OsStr::new(&foreign)), None, "{foreign}");
        }
    }
}
