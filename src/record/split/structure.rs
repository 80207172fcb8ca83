//! Finds the end of a JSON value: by strings and brackets alone, or by JSON's syntax.

use std::io::Read;

use serde::de::IgnoredAny;
use serde_json::Deserializer;

use crate::record::chunk::Framing;

/// Whether JSON treats the byte as white space.
pub(super) fn is_white_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// The text without trailing white space.
pub(super) fn trim_end(text: &[u8]) -> &[u8] {
    &text[..text.iter().rposition(|b| !is_white_space(*b)).map_or(0, |last| last + 1)]
}

/// Finds the end of one value by its structure, in pieces of any size. It skips strings. An opening bracket of either kind
/// increases the depth, a closing one decreases it. The value may be invalid JSON.
///
/// A value that begins with neither a bracket nor a quote has no end marker. In an array it extends to the next `,` or `]`
/// outside of strings and brackets. In a stream it extends to the next white space or punctuation.
pub(super) struct Structure {
    framing: Framing,
    /// The value began with neither a bracket nor a quote.
    bare: bool,
    depth: u64,
    in_string: bool,
    /// The previous byte was a backslash in a string.
    escaped: bool,
}

impl Structure {
    /// Starts a value whose first byte is `first`.
    pub fn new(framing: Framing, first: u8) -> Self {
        let bare = !matches!(first, b'{' | b'[' | b'"');
        Self { framing, bare, depth: 0, in_string: false, escaped: false }
    }

    /// Whether the value may end at the end of the text.
    pub fn may_end_here(&self) -> bool {
        self.bare && self.depth == 0 && !self.in_string
    }

    /// Reads the next piece of the value; the first piece starts with the value's first byte. Returns the index after the value
    /// if it ends in this piece.
    pub fn find_end(&mut self, piece: &[u8]) -> Option<usize> {
        let mut at = 0;
        loop {
            if self.in_string {
                at = self.find_string_end(piece, at)?;
                if self.in_string || (self.depth == 0 && !self.bare) {
                    return Some(at);
                }
            }
            loop {
                match *piece.get(at)? {
                    b'"' => {
                        if self.bare && self.framing == Framing::Stream {
                            return Some(at);
                        }
                        self.in_string = true;
                        at += 1;
                        break;
                    }
                    byte if self.bare && self.depth == 0 => match (self.framing, byte) {
                        (Framing::Array, b',' | b']') => return Some(at),
                        (Framing::Array, b'[' | b'{') => self.depth = 1,
                        (Framing::Stream, b'[' | b']' | b'{' | b'}' | b',' | b':') => return Some(at),
                        (Framing::Stream, byte) if is_white_space(byte) => return Some(at),
                        _ => {}
                    },
                    b'{' | b'[' => self.depth += 1,
                    b'}' | b']' => {
                        self.depth -= 1;
                        if self.depth == 0 && !self.bare {
                            return Some(at + 1);
                        }
                    }
                    _ => {}
                }
                at += 1;
            }
        }
    }

    /// The index after the closing quote of the string. In a stream a line end also ends the string; then `in_string` stays
    /// true.
    fn find_string_end(&mut self, piece: &[u8], mut at: usize) -> Option<usize> {
        let stream = self.framing == Framing::Stream;
        loop {
            if self.escaped {
                // A backslash does not escape a line end.
                if *piece.get(at)? != b'\n' || !stream {
                    at += 1;
                }
                self.escaped = false;
            }
            let rest = piece.get(at..)?;
            at += if stream { memchr::memchr3(b'"', b'\\', b'\n', rest) } else { find_quote_or_backslash(rest) }?;
            match piece[at] {
                b'"' => {
                    self.in_string = false;
                    return Some(at + 1);
                }
                b'\\' => self.escaped = true,
                _ => return Some(at),
            }
            at += 1;
        }
    }
}

/// Most strings are short: checking their first words takes less time than a call of `memchr2`.
#[inline(always)]
fn find_quote_or_backslash(text: &[u8]) -> Option<usize> {
    const WORD: usize = size_of::<u64>();
    const NEAR_WORDS: usize = 4;
    let mut at = 0;
    for word in text.chunks_exact(WORD).take(NEAR_WORDS) {
        let word = u64::from_le_bytes(word.try_into().expect("the chunk is a word"));
        let found = zero_bytes(word ^ repeated(b'"')) | zero_bytes(word ^ repeated(b'\\'));
        if found != 0 {
            return Some(at + found.trailing_zeros() as usize / 8);
        }
        at += WORD;
    }
    memchr::memchr2(b'"', b'\\', &text[at..]).map(|i| at + i)
}

const fn repeated(byte: u8) -> u64 {
    u64::from_le_bytes([byte; 8])
}

/// Sets the high bit of the first zero byte. Bits of later bytes may be wrong.
const fn zero_bytes(word: u64) -> u64 {
    word.wrapping_sub(repeated(1)) & !word & repeated(0x80)
}

/// The kind of value at the beginning of a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Syntax {
    /// A value of this many bytes.
    Value(usize),
    /// Invalid, whatever follows.
    Invalid,
    /// The beginning of a value that is not complete yet.
    Unfinished,
}

/// Checks by JSON's syntax which value `text` begins with. `text` has no leading white space. `last` says that no text follows.
/// The value may nest to any depth (serde_json skips values without recursion), and its strings need not be UTF-8.
pub(super) fn first_value(text: &[u8], last: bool) -> Syntax {
    let mut values = Deserializer::from_slice(text).into_iter::<IgnoredAny>();
    match values.next() {
        Some(Ok(_)) => {
            let end = values.byte_offset();
            // A number or a literal may continue after the text.
            let open_ended = end == text.len() && !matches!(text[0], b'{' | b'[' | b'"');
            if open_ended && !last { Syntax::Unfinished } else { Syntax::Value(end) }
        }
        Some(Err(e)) if e.is_eof() || is_cut_number(text) => Syntax::Unfinished,
        Some(Err(_)) => Syntax::Invalid,
        None => Syntax::Unfinished,
    }
}

/// Whether the text ends after the sign, point or exponent of a number. serde_json reports that as a syntax error, not as the
/// end of the text. The check appends a digit and parses again.
fn is_cut_number(text: &[u8]) -> bool {
    if !matches!(text.last(), Some(b'-' | b'+' | b'.' | b'e' | b'E')) {
        return false;
    }
    let mended = text.chain(&b"0"[..]);
    match Deserializer::from_reader(mended).into_iter::<IgnoredAny>().next() {
        Some(Err(e)) => e.is_eof(),
        _ => true,
    }
}
