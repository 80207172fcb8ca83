//! Chunks are runs of whole records. Their boundaries depend on constants and content only, so the same content always gives
//! the same chunks.

use std::ops::Range;

use twox_hash::XxHash3_128;

use super::row::Reject;

/// A chunk is complete when it has this many records.
pub const CHUNK_RECORDS: usize = 1_000;
/// A chunk is complete when the next record would bring its text over this many bytes. A single record may be larger.
pub const CHUNK_BYTES: usize = 1 << 20;
/// The largest record that is read as a whole. A larger one is rejected as `too_large`.
pub const MAX_RECORD_BYTES: usize = 8 << 20;
/// A reject keeps this many bytes of a record that is too large.
pub const KEPT_RECORD_BYTES: usize = 64 << 10;

/// How records are separated in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Elements of one JSON array, separated by commas.
    Array,
    /// Values in sequence, with or without white space between them: NDJSON, concatenated JSON or a single object.
    Stream,
}

/// A run of whole records. It is the unit that is queued, loaded exactly once and counted. `seq` numbers the chunks of a file
/// from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    pub seq: u64,
    /// The position of the first record among the records of the file, from 1.
    pub first_ordinal: u64,
    /// The offset of the first record in the decompressed text, from 0.
    pub first_byte_offset: u64,
    pub body: ChunkBody,
}

/// The content of a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChunkBody {
    /// Records to parse.
    Records {
        framing: Framing,
        /// The bytes of the file from the first record to the last, with separators but without the array's brackets.
        text: Vec<u8>,
        /// The range of each record in `text`. The first one begins at 0 and the last one ends at the end of the text. Invalid
        /// records have a range too: the parser rejects them.
        spans: Vec<Range<u32>>,
    },
    /// Records that the splitter rejected. They have no text that could be parsed.
    Rejects(Vec<Reject>),
}

/// Identifies the records of a chunk: the 128-bit XXH3 hash of their bytes, big-endian.
pub type Digest = [u8; 16];

impl Chunk {
    /// The digest of the chunk's records. It does not depend on where the chunk was cut or how it was transferred.
    pub fn digest(&self) -> Digest {
        self.digest_of_first(usize::MAX)
    }

    /// The digest of the chunk's first `records` records.
    pub fn digest_of_first(&self, records: usize) -> Digest {
        match &self.body {
            ChunkBody::Records { text, spans, .. } => {
                let end = spans.iter().take(records).next_back().map_or(0, |span| span.end as usize);
                XxHash3_128::oneshot(&text[..end]).to_be_bytes()
            }
            ChunkBody::Rejects(rejects) => {
                let mut hash = XxHash3_128::new();
                for Reject { byte_offset, detail, record, .. } in rejects.iter().take(records) {
                    hash.write(&byte_offset.to_be_bytes());
                    hash.write(&(record.len() as u64).to_be_bytes());
                    hash.write(record);
                    // The detail of a record that is too large contains the record's size.
                    hash.write(detail.as_bytes());
                }
                hash.finish_128().to_be_bytes()
            }
        }
    }

    /// The chunk without its first `records` records. For a file that has grown, these are the new records.
    pub fn behind(&self, records: usize) -> Self {
        let (first_byte_offset, body) = match &self.body {
            ChunkBody::Records { framing, text, spans } => {
                let start = spans.get(records).map_or(text.len(), |span| span.start as usize);
                let shift = spans.get(records).map_or(0, |span| span.start);
                let spans = spans.iter().skip(records).map(|span| span.start - shift..span.end - shift).collect();
                let body = ChunkBody::Records { framing: *framing, text: text[start..].to_vec(), spans };
                (self.first_byte_offset + start as u64, body)
            }
            ChunkBody::Rejects(rejects) => {
                let rest: Vec<Reject> = rejects.iter().skip(records).cloned().collect();
                (rest.first().map_or(self.first_byte_offset, |reject| reject.byte_offset), ChunkBody::Rejects(rest))
            }
        };
        Self { seq: self.seq, first_ordinal: self.first_ordinal + records as u64, first_byte_offset, body }
    }

    /// The number of records in the chunk, rejected ones included.
    pub fn records(&self) -> u64 {
        match &self.body {
            ChunkBody::Records { spans, .. } => spans.len() as u64,
            ChunkBody::Rejects(rejects) => rejects.len() as u64,
        }
    }

    /// The approximate size in memory, which counts against `in_flight_bytes`.
    pub fn bytes(&self) -> usize {
        match &self.body {
            ChunkBody::Records { text, .. } => text.len(),
            ChunkBody::Rejects(rejects) => rejects.iter().map(|r| r.record.len() + r.detail.len()).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::split::Splitter;
    use super::*;

    fn only_chunk(text: &str) -> Chunk {
        let mut splitter = Splitter::new(text.as_bytes());
        let chunk = splitter.next_chunk().unwrap().unwrap();
        assert!(splitter.next_chunk().unwrap().is_none());
        chunk
    }

    fn records(chunk: &Chunk) -> Vec<(u64, u64, Vec<u8>)> {
        let ChunkBody::Records { text, spans, .. } = &chunk.body else { panic!("these are records") };
        let place = |span: &Range<u32>| {
            (chunk.first_byte_offset + u64::from(span.start), text[span.start as usize..span.end as usize].to_vec())
        };
        (chunk.first_ordinal..).zip(spans).map(|(ordinal, span)| (ordinal, place(span).0, place(span).1)).collect()
    }

    #[test]
    fn the_digest_of_the_first_records_is_that_of_a_file_which_ends_behind_them() {
        let whole = only_chunk("{\"a\":1}\n {\"a\":22}\n\n{\"a\":333}\n");
        for (known, text) in [(1, "{\"a\":1}"), (2, "{\"a\":1}\n {\"a\":22}\n"), (3, "{\"a\":1}\n {\"a\":22}\n\n{\"a\":333}  ")] {
            assert_eq!(whole.digest_of_first(known), only_chunk(text).digest(), "{text}");
        }
        assert_ne!(whole.digest(), only_chunk("{\"a\":1}\n {\"a\":22}\n\n{\"a\":334}\n").digest());
        // An array's comma is not a line end, wherever records begin.
        assert_ne!(only_chunk("[{},{}]").digest(), only_chunk("[{},[]]").digest());
    }

    #[test]
    fn what_is_behind_some_records_are_the_others_in_their_places() {
        for text in ["{\"a\":1}\n {\"a\":22}\n\n{\"a\":333}\n", "[{\"a\":1}, {\"a\":22} ,{\"a\":333}]"] {
            let whole = only_chunk(text);
            for known in 0..=3 {
                assert_eq!(records(&whole.behind(known)), records(&whole)[known..]);
            }
        }
    }

    #[test]
    fn rejects_are_told_by_their_bytes_and_places() {
        let chunk = |text: &str| {
            let chunk = only_chunk(text);
            assert!(matches!(chunk.body, ChunkBody::Rejects(_)));
            chunk
        };
        let (one, two, shifted) = (chunk("[,]"), chunk("[,,]"), chunk("[ ,]"));
        assert_eq!(two.digest_of_first(1), one.digest_of_first(1));
        assert_ne!(one.digest(), shifted.digest());
        assert_eq!(one.behind(1).records(), 1);
        assert_eq!(one.behind(1).first_ordinal, 2);
    }
}
