//! Finds where records begin and end in a text, and cuts it into chunks, in constant memory.
//!
//! The first byte determines the framing. In an array, strings and brackets alone determine where a record ends. In a stream,
//! JSON's syntax does, so a truncated line cannot damage the next one. The parser validates records. The splitter rejects only
//! records that it cannot pass on: too large, or empty between two commas.
//!
//! The boundaries of chunks depend on constants and content only, not on the sizes of the reads. A file that is read again
//! gives the same chunks.

mod structure;
#[cfg(test)]
mod tests;
mod window;

use std::fmt;
use std::io::{self, Read};
use std::ops::Range;

use self::structure::{Structure, Syntax, first_value, is_white_space, trim_end};
use self::window::Window;
use super::chunk::{CHUNK_BYTES, CHUNK_RECORDS, Chunk, ChunkBody, Framing, KEPT_RECORD_BYTES, MAX_RECORD_BYTES};
use super::decompress::CannotDecompress;
use super::row::{Reject, RejectReason};

const BOM: &[u8] = b"\xef\xbb\xbf";

/// Why the splitter stopped before the end of a text.
#[derive(Debug)]
pub enum SplitError {
    /// The text could not be read. A retry from the beginning may succeed.
    Io(io::Error),
    /// The beginning or the end of the next record is unknown, so the file fails.
    Boundary {
        /// From 1.
        line: u64,
        /// In bytes, from 1.
        column: u64,
        /// In the decompressed text, from 0.
        byte_offset: u64,
        /// What was found and what was expected.
        message: String,
    },
}

impl fmt::Display for SplitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(e) => write!(f, "cannot read: {e}"),
            Self::Boundary { line, column, byte_offset, message } => {
                write!(f, "line {line}, column {column} (byte {byte_offset}): {message}")
            }
        }
    }
}

impl std::error::Error for SplitError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(e) => Some(e),
            Self::Boundary { .. } => None,
        }
    }
}

/// The limits of chunks and records; tests use small ones.
#[derive(Debug, Clone, Copy)]
struct Limits {
    chunk_records: usize,
    chunk_bytes: usize,
    record_bytes: usize,
    kept_bytes: usize,
    /// The initial size of the window. It does not influence the chunks.
    window_bytes: usize,
}

impl Limits {
    const DEFAULT: Self = Self {
        chunk_records: CHUNK_RECORDS,
        chunk_bytes: CHUNK_BYTES,
        record_bytes: MAX_RECORD_BYTES,
        kept_bytes: KEPT_RECORD_BYTES,
        window_bytes: 256 << 10,
    };
}

/// Splits the decompressed text of one file into chunks of whole records.
pub struct Splitter<R> {
    window: Window<R>,
    limits: Limits,
    state: State,
    /// The chunk in progress; its text is in the window.
    draft: Draft,
    /// A complete chunk that is not yet returned.
    sealed: Option<Chunk>,
    /// The error that ended the splitting. It is returned after the last chunk.
    failed: Option<SplitError>,
    records: u64,
    chunks: u64,
}

/// What the splitter expects next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Begin,
    /// In an array, before its first element.
    FirstElement,
    /// In an array, after a comma.
    Element,
    /// In an array, after an element.
    Separator,
    Stream,
    Ended,
}

#[derive(Default)]
struct Draft {
    first_ordinal: u64,
    first_byte_offset: u64,
    /// Relative to the start of the held text. Either these or `rejects` are empty.
    spans: Vec<Range<u32>>,
    rejects: Vec<Reject>,
    rejected_bytes: usize,
}

/// How to find the end of a record that is too large for memory.
enum LargeEnd {
    Value(Structure),
    Line,
}

impl<R: Read> Splitter<R> {
    /// `reader` returns the decompressed text; it needs no buffering.
    pub fn new(reader: R) -> Self {
        Self::with_limits(reader, Limits::DEFAULT)
    }

    fn with_limits(reader: R, limits: Limits) -> Self {
        Self {
            window: Window::new(reader, limits.window_bytes),
            limits,
            state: State::Begin,
            draft: Draft::default(),
            sealed: None,
            failed: None,
            records: 0,
            chunks: 0,
        }
    }

    /// The number of bytes that are split so far.
    pub fn bytes(&self) -> u64 {
        self.window.offset()
    }

    /// The number of records found so far. It includes rejected records and those of the chunk in progress. After the end or an
    /// error, it counts exactly the records of the returned chunks.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Returns the next chunk, or `None` at the end of the text. After the end or an error it always returns `None`.
    ///
    /// # Errors
    /// Before a [`SplitError::Boundary`], all records before the error have been returned in chunks. A [`SplitError::Io`]
    /// discards the chunk in progress: it would be shorter than the chunk that a retry cuts with the same `seq`.
    pub fn next_chunk(&mut self) -> Result<Option<Chunk>, SplitError> {
        loop {
            if let Some(chunk) = self.sealed.take() {
                return Ok(Some(chunk));
            }
            if let Some(e) = self.failed.take() {
                return Err(e);
            }
            if self.state == State::Ended {
                return Ok(None);
            }
            if let Err(e) = self.step() {
                match e {
                    SplitError::Io(_) => {
                        let dropped = std::mem::take(&mut self.draft);
                        self.records -= (dropped.spans.len() + dropped.rejects.len()) as u64;
                    }
                    SplitError::Boundary { .. } => self.seal(),
                }
                self.failed = Some(e);
                self.state = State::Ended;
            }
        }
    }

    /// Reads one record, or the text between two records. Completes at most one chunk.
    fn step(&mut self) -> Result<(), SplitError> {
        match self.state {
            State::Begin => self.begin(),
            State::FirstElement | State::Element | State::Separator => self.in_array(),
            State::Stream => self.in_stream(),
            State::Ended => Ok(()),
        }
    }

    fn begin(&mut self) -> Result<(), SplitError> {
        while self.window.unread().len() < BOM.len() && self.fill()? {}
        let start = self.window.unread();
        let utf16 = start.starts_with(b"\xff\xfe") || start.starts_with(b"\xfe\xff");
        if start.starts_with(BOM) {
            self.window.advance(BOM.len());
        }
        self.state = match self.skip_white_space()? {
            None => State::Ended,
            Some(b'[') => {
                self.window.advance(1);
                State::FirstElement
            }
            Some(b'{') => State::Stream,
            Some(byte) => {
                let hint = if utf16 { ": this is UTF-16; convert it to UTF-8" } else { "" };
                return Err(self.boundary(format!("the text begins with no object or array but with {}{hint}", Shown(byte))));
            }
        };
        Ok(())
    }

    fn in_array(&mut self) -> Result<(), SplitError> {
        let Some(byte) = self.skip_white_space()? else {
            return Err(self.boundary("the text ends, but the array is not closed".into()));
        };
        match (self.state, byte) {
            (State::Separator, b',') => {
                self.window.advance(1);
                self.state = State::Element;
            }
            (State::Separator | State::FirstElement, b']') => return self.close_array(),
            (State::Separator, _) => {
                return Err(self.boundary(format!("expected `,` or `]` after the element, found {}", Shown(byte))));
            }
            (_, b',' | b']') => {
                let detail = format!("no value before {}: a stray comma", Shown(byte));
                self.reject(self.window.offset(), RejectReason::InvalidJson, detail, Vec::new());
                self.state = State::Separator;
            }
            _ => {
                self.element(byte)?;
                self.state = State::Separator;
            }
        }
        Ok(())
    }

    fn close_array(&mut self) -> Result<(), SplitError> {
        self.window.advance(1);
        if let Some(byte) = self.skip_white_space()? {
            return Err(self.boundary(format!("expected nothing but white space after the closing `]`, found {}", Shown(byte))));
        }
        self.seal();
        self.state = State::Ended;
        Ok(())
    }

    fn element(&mut self, first: u8) -> Result<(), SplitError> {
        let mut structure = Structure::new(Framing::Array, first);
        let mut scanned = 0;
        let length = loop {
            let text = self.readable();
            if let Some(end) = structure.find_end(&text[scanned..]) {
                break scanned + end;
            }
            scanned = text.len();
            if scanned > self.limits.record_bytes {
                break scanned;
            }
            if !self.fill()? {
                return Err(self.ended_inside(self.window.position(self.window.offset())));
            }
        };
        if length > self.limits.record_bytes {
            return self.too_large(LargeEnd::Value(Structure::new(Framing::Array, first)));
        }
        self.record(trim_end(&self.window.unread()[..length]).len());
        Ok(())
    }

    fn in_stream(&mut self) -> Result<(), SplitError> {
        let Some(first) = self.skip_white_space()? else {
            self.seal();
            self.state = State::Ended;
            return Ok(());
        };
        loop {
            let text = self.readable();
            let length = text.len();
            let full = length > self.limits.record_bytes;
            match first_value(text, self.window.ended() && !full) {
                Syntax::Value(length) if length <= self.limits.record_bytes => {
                    self.record(length);
                    return Ok(());
                }
                Syntax::Invalid => return self.bad_line(),
                Syntax::Unfinished if !full => {
                    if self.window.ended() {
                        return Err(self.ended_inside(self.window.position(self.window.offset())));
                    }
                    // Read twice as much before the next attempt. Otherwise each read would parse a large record again.
                    while self.readable().len() < 2 * length && self.readable().len() <= self.limits.record_bytes && self.fill()? {}
                }
                Syntax::Value(_) | Syntax::Unfinished => {
                    return self.too_large(LargeEnd::Value(Structure::new(Framing::Stream, first)));
                }
            }
        }
    }

    /// Ends a record that is not valid JSON at the end of its line.
    fn bad_line(&mut self) -> Result<(), SplitError> {
        let mut searched = 0;
        let length = loop {
            let text = self.readable();
            if let Some(end) = memchr::memchr(b'\n', &text[searched..]) {
                break searched + end;
            }
            searched = text.len();
            if searched > self.limits.record_bytes {
                return self.too_large(LargeEnd::Line);
            }
            if !self.fill()? {
                break searched;
            }
        };
        self.record(trim_end(&self.window.unread()[..length]).len());
        Ok(())
    }

    /// Skips and rejects a record that is larger than the limit. More than the limit is in memory already.
    fn too_large(&mut self, mut end: LargeEnd) -> Result<(), SplitError> {
        // The window must not hold the text of earlier records while it skips this one.
        if !self.draft.spans.is_empty() {
            self.seal();
        }
        let start = self.window.offset();
        let start_position = self.window.position(start);
        let kept = self.window.unread()[..self.limits.kept_bytes].to_vec();
        loop {
            let text = self.window.unread();
            let found = match &mut end {
                LargeEnd::Value(structure) => structure.find_end(text),
                LargeEnd::Line => memchr::memchr(b'\n', text),
            };
            self.window.advance(found.unwrap_or(text.len()));
            if found.is_some() {
                break;
            }
            if !self.fill()? {
                match &end {
                    LargeEnd::Value(structure) if self.state != State::Stream || !structure.may_end_here() => {
                        return Err(self.ended_inside(start_position));
                    }
                    _ => break,
                }
            }
        }
        let size = self.window.offset() - start;
        let detail = format!(
            "the record has {size} bytes, more than the limit of {}; its first {} bytes are kept",
            self.limits.record_bytes, self.limits.kept_bytes
        );
        self.reject(start, RejectReason::TooLarge, detail, kept);
        Ok(())
    }

    /// Adds the next `length` bytes to the chunk as a record.
    fn record(&mut self, length: usize) {
        let draft = &self.draft;
        let over = !draft.spans.is_empty() && self.window.held_bytes() + length > self.limits.chunk_bytes;
        if over || !draft.rejects.is_empty() {
            self.seal();
        }
        if self.draft.spans.is_empty() {
            self.window.hold();
            self.draft.first_byte_offset = self.window.offset();
            self.draft.first_ordinal = self.records + 1;
        }
        let start = self.window.held_bytes();
        self.draft.spans.push(span(start..start + length));
        self.window.advance(length);
        self.records += 1;
        if self.draft.spans.len() == self.limits.chunk_records {
            self.seal();
        }
    }

    fn reject(&mut self, byte_offset: u64, reason: RejectReason, detail: String, record: Vec<u8>) {
        let draft = &self.draft;
        let over = !draft.rejects.is_empty() && draft.rejected_bytes + record.len() > self.limits.chunk_bytes;
        if over || !draft.spans.is_empty() {
            self.seal();
        }
        self.records += 1;
        if self.draft.rejects.is_empty() {
            self.draft.first_byte_offset = byte_offset;
            self.draft.first_ordinal = self.records;
        }
        self.draft.rejected_bytes += record.len();
        self.draft.rejects.push(Reject { ordinal: self.records, byte_offset, reason, detail, record });
        if self.draft.rejects.len() == self.limits.chunk_records {
            self.seal();
        }
    }

    /// Completes the chunk in progress, if there is one.
    fn seal(&mut self) {
        let draft = std::mem::take(&mut self.draft);
        let body = if let Some(last) = draft.spans.last() {
            // The chunks of a file tend to have the same number of records.
            self.draft.spans.reserve(draft.spans.len());
            let framing = if self.state == State::Stream { Framing::Stream } else { Framing::Array };
            ChunkBody::Records { framing, text: self.window.take_held(last.end as usize), spans: draft.spans }
        } else if !draft.rejects.is_empty() {
            ChunkBody::Rejects(draft.rejects)
        } else {
            return;
        };
        debug_assert!(self.sealed.is_none(), "a step seals at most one chunk");
        let Draft { first_ordinal, first_byte_offset, .. } = draft;
        self.sealed = Some(Chunk { seq: self.chunks, first_ordinal, first_byte_offset, body });
        self.chunks += 1;
    }

    /// The unread text that one record may use: at most one byte more than the largest record.
    fn readable(&self) -> &[u8] {
        let text = self.window.unread();
        &text[..text.len().min(self.limits.record_bytes + 1)]
    }

    /// Skips white space and returns the byte after it.
    fn skip_white_space(&mut self) -> Result<Option<u8>, SplitError> {
        loop {
            let text = self.window.unread();
            if let Some(at) = text.iter().position(|b| !is_white_space(*b)) {
                let byte = text[at];
                self.window.advance(at);
                return Ok(Some(byte));
            }
            self.window.advance(text.len());
            // After so much white space no further record fits into the chunk, so its text need not be held.
            if self.window.held_bytes() > self.limits.chunk_bytes {
                self.seal();
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    /// Reads once; returns false at the end of the text.
    fn fill(&mut self) -> Result<bool, SplitError> {
        self.window.fill().map_err(|e| match e.get_ref() {
            Some(broken) if broken.is::<CannotDecompress>() => self.boundary_at(self.window.end_offset(), e.to_string()),
            _ => SplitError::Io(e),
        })
    }

    fn ended_inside(&self, (line, column): (u64, u64)) -> SplitError {
        let message = format!("the text ends inside the record that begins at line {line}, column {column}");
        self.boundary_at(self.window.end_offset(), message)
    }

    /// An error at the first unread byte.
    fn boundary(&self, message: String) -> SplitError {
        self.boundary_at(self.window.offset(), message)
    }

    fn boundary_at(&self, byte_offset: u64, message: String) -> SplitError {
        let (line, column) = self.window.position(byte_offset);
        SplitError::Boundary { line, column, byte_offset, message }
    }
}

/// Finds the records in the text of a chunk that was transferred without its spans. The result equals the chunk that a
/// [`Splitter`] cut. `text` does not include the brackets of an array.
///
/// # Errors
/// If no splitter cut this text. Positions in the error are relative to `text`.
pub fn split_text(
    text: Vec<u8>,
    framing: Framing,
    seq: u64,
    first_ordinal: u64,
    first_byte_offset: u64,
) -> Result<Chunk, SplitError> {
    let fail = |at: usize, message: &str| {
        let front = &text[..at];
        let line_start = memchr::memrchr(b'\n', front).map_or(0, |i| i + 1);
        SplitError::Boundary {
            line: memchr::memchr_iter(b'\n', front).count() as u64 + 1,
            column: (at - line_start) as u64 + 1,
            byte_offset: at as u64,
            message: message.into(),
        }
    };
    if u32::try_from(text.len()).is_err() {
        return Err(fail(0, "the text of a chunk is smaller than 4 GiB"));
    }
    let mut spans = Vec::new();
    let mut start = 0;
    loop {
        let rest = &text[start..];
        let length = match (framing, rest.first()) {
            (_, None) => return Err(fail(start, "the text of a chunk ends with a record")),
            (_, Some(byte)) if is_white_space(*byte) => return Err(fail(start, "the text of a chunk begins with a record")),
            (Framing::Array, Some(b',' | b']')) => return Err(fail(start, "expected a record")),
            (Framing::Array, Some(first)) => {
                let mut structure = Structure::new(framing, *first);
                match structure.find_end(rest) {
                    Some(end) => trim_end(&rest[..end]).len(),
                    None if structure.may_end_here() => rest.len(),
                    None => return Err(fail(text.len(), "the text ends inside a record")),
                }
            }
            (Framing::Stream, Some(_)) => match first_value(rest, true) {
                Syntax::Value(length) => length,
                // The bytes that make it invalid may be in a later chunk.
                Syntax::Invalid | Syntax::Unfinished => trim_end(&rest[..memchr::memchr(b'\n', rest).unwrap_or(rest.len())]).len(),
            },
        };
        let end = start + length;
        spans.push(span(start..end));
        if end == text.len() {
            return Ok(Chunk { seq, first_ordinal, first_byte_offset, body: ChunkBody::Records { framing, text, spans } });
        }
        start = skip(&text, end);
        if framing == Framing::Array {
            if text.get(start) != Some(&b',') {
                return Err(fail(start, "expected `,` after the element"));
            }
            start = skip(&text, start + 1);
        }
    }
}

/// The end of the white space that begins at `at`.
fn skip(text: &[u8], at: usize) -> usize {
    at + text[at..].iter().take_while(|b| is_white_space(**b)).count()
}

fn span(range: Range<usize>) -> Range<u32> {
    let narrow = |i: usize| u32::try_from(i).expect("the text of a chunk is smaller than 4 GiB");
    narrow(range.start)..narrow(range.end)
}

/// Displays a byte in a message.
struct Shown(u8);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            byte @ b' '..=b'~' => write!(f, "`{}`", char::from(byte)),
            byte => write!(f, "byte 0x{byte:02X}"),
        }
    }
}
