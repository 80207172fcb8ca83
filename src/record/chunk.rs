//! Chunks: runs of whole records cut from a text by fixed constants, so that the same content always gives the same chunks.

use std::ops::Range;

use super::row::Reject;

/// A chunk ends with the record that brings it to this many records.
pub const CHUNK_RECORDS: usize = 1_000;
/// A chunk ends before the record that would bring its text over this many bytes, unless that record is its only one.
pub const CHUNK_BYTES: usize = 1 << 20;
/// The largest record that is read as a whole; a larger one is rejected as `too_large`.
pub const MAX_RECORD_BYTES: usize = 8 << 20;
/// How much of a too large record is kept.
pub const KEPT_RECORD_BYTES: usize = 64 << 10;

/// How records follow each other in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Elements of one JSON array, separated by commas.
    Array,
    /// One after another with any or no white space between: NDJSON, concatenated or a single object.
    Stream,
}

/// A run of whole records: the unit that is queued, loaded once and counted. Chunks are numbered by `seq` from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    pub seq: u64,
    /// Position of the first record among the file's records, from 1.
    pub first_ordinal: u64,
    /// Where the first record begins in the decompressed text, from 0.
    pub first_byte_offset: u64,
    pub body: ChunkBody,
}

/// What a chunk holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChunkBody {
    /// Records to parse.
    Records {
        framing: Framing,
        /// The file's own bytes from the first record to the last, separators included, brackets not.
        text: Vec<u8>,
        /// Where each record stands in `text`; the first begins at 0 and the last ends at the text's end. A record
        /// that is no JSON stands here too: the parser rejects it.
        spans: Vec<Range<u32>>,
    },
    /// Records that were rejected while splitting, because they are not in any text that could be parsed.
    Rejects(Vec<Reject>),
}

impl Chunk {
    /// How many of the file's records it holds, rejected ones included.
    pub fn records(&self) -> u64 {
        match &self.body {
            ChunkBody::Records { spans, .. } => spans.len() as u64,
            ChunkBody::Rejects(rejects) => rejects.len() as u64,
        }
    }

    /// Its size in memory, roughly: what it takes from the budget of bytes in flight.
    pub fn bytes(&self) -> usize {
        match &self.body {
            ChunkBody::Records { text, .. } => text.len(),
            ChunkBody::Rejects(rejects) => rejects.iter().map(|r| r.record.len() + r.detail.len()).sum(),
        }
    }
}
