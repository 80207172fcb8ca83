//! Where a value ends, judged by strings and brackets alone, or by JSON's syntax.

use std::io::Read;

use serde::de::IgnoredAny;
use serde_json::Deserializer;

use crate::record::chunk::Framing;

/// White space of JSON.
pub(super) fn is_white_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Without the white space at its end.
pub(super) fn trim_end(text: &[u8]) -> &[u8] {
    &text[..text.iter().rposition(|b| !is_white_space(*b)).map_or(0, |last| last + 1)]
}

/// Finds the end of one value by its structure, in pieces of any size: strings are skipped, an opening bracket of either
/// kind goes one level down and a closing one of either kind one level up. The value need not be valid JSON.
///
/// A value that begins with neither bracket nor quote has no end of its own: in an array it runs to the next `,` or `]`
/// outside strings and brackets, in a stream to the next white space or punctuation.
pub(super) struct Structure {
    framing: Framing,
    /// Began with neither bracket nor quote.
    bare: bool,
    depth: u64,
    in_string: bool,
    /// The last byte was a backslash in a string.
    escaped: bool,
}

impl Structure {
    /// For a value that begins with `first`.
    pub fn new(framing: Framing, first: u8) -> Self {
        let bare = !matches!(first, b'{' | b'[' | b'"');
        Self { framing, bare, depth: 0, in_string: false, escaped: false }
    }

    /// Whether the value may end where the text does.
    pub fn may_end_here(&self) -> bool {
        self.bare && self.depth == 0 && !self.in_string
    }

    /// Reads the next piece of the text, the first one from the value's first byte; the index in it behind the value.
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

    /// The index behind the quote that ends the string; in a stream also of a line end in it, which leaves `in_string`.
    fn find_string_end(&mut self, piece: &[u8], mut at: usize) -> Option<usize> {
        let stream = self.framing == Framing::Stream;
        loop {
            if self.escaped {
                // A line end is one even behind a backslash.
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

/// Most strings are so short that a call of `memchr2` takes longer than looking at their first words.
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

/// The high bit of the first byte that is zero; of bytes behind it perhaps, too.
const fn zero_bytes(word: u64) -> u64 {
    word.wrapping_sub(repeated(1)) & !word & repeated(0x80)
}

/// What a text begins with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Syntax {
    /// A value of that many bytes.
    Value(usize),
    /// No value, whatever follows.
    Bad,
    /// The beginning of a value.
    Unfinished,
}

/// Judges by JSON's syntax what `text` begins with, white space excluded; `last`: nothing follows it. Nesting may be of any
/// depth (serde_json skips values without recursion), and strings need not be UTF-8.
pub(super) fn first_value(text: &[u8], last: bool) -> Syntax {
    let mut values = Deserializer::from_slice(text).into_iter::<IgnoredAny>();
    match values.next() {
        Some(Ok(_)) => {
            let end = values.byte_offset();
            // A number or literal may go on behind the text.
            let open_ended = end == text.len() && !matches!(text[0], b'{' | b'[' | b'"');
            if open_ended && !last { Syntax::Unfinished } else { Syntax::Value(end) }
        }
        Some(Err(e)) if e.is_eof() || is_cut_number(text) => Syntax::Unfinished,
        Some(Err(_)) => Syntax::Bad,
        None => Syntax::Unfinished,
    }
}

/// A number that is cut off behind its sign, point or exponent is no end of text for serde_json but an error: see whether a
/// digit mends it.
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
