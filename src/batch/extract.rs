//! Reads and parses files on separate threads: one reader cuts chunks, and several parsers turn them into rows. The results go
//! through a bounded channel, so a slow receiver slows the readers down.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;

use super::input::{Input, Text};
use crate::dataset::Dataset;
use crate::error::{Error, Result, io_text};
use crate::record::chunk::{Chunk, Digest};
use crate::record::content::ContentHash;
use crate::record::parse::{DayRange, Parsed, Parser};
use crate::record::split::{SplitError, Splitter};
use crate::store::{Dialect, Rows};

/// A message of the extraction. Chunks arrive in no particular order.
pub enum Extracted {
    Chunk(ExtractedChunk),
    /// A file was read to its end.
    End {
        /// Index of the file among the inputs.
        file: usize,
        /// Length of its decompressed text.
        bytes: u64,
        /// Of its stored bytes; `None` for standard input.
        sha256: Option<ContentHash>,
        /// Number of records in the file.
        records: u64,
    },
    /// A file cannot be read to its end. No message follows this one.
    Failed {
        file: usize,
        bytes: u64,
        /// `None` if its stored bytes were not read to their end.
        sha256: Option<ContentHash>,
        error: Error,
    },
}

/// A chunk's rows and rejects.
pub struct ExtractedChunk {
    pub file: usize,
    pub seq: u64,
    pub first_ordinal: u64,
    pub records: u64,
    /// SHA-256 of the chunk's records.
    pub digest: Digest,
    pub rows: Rows,
    pub parsed: Parsed,
}

/// The progress of an extraction, for the progress bar.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of all files as stored, before decompression.
    pub stored_total: AtomicU64,
    /// How many of these bytes were read.
    pub stored_read: Arc<AtomicU64>,
    /// Number of parsed records.
    pub records: AtomicU64,
    /// Number of files that were read, to the end or to an error.
    pub files: AtomicU64,
}

/// How files are read.
#[derive(Debug, Clone, Copy)]
pub struct Extraction {
    pub days: DayRange,
    /// The database that the rows are encoded for.
    pub dialect: Dialect,
    /// Number of parser threads.
    pub parsers: usize,
    /// The largest allowed window of a zstd file.
    pub zstd_window_mib: u32,
}

/// Starts to read `inputs`, one after the other. The threads end when the receiver is dropped.
pub fn extract(dataset: &Arc<Dataset>, inputs: Vec<Input>, how: Extraction, progress: &Arc<Progress>) -> mpsc::Receiver<Extracted> {
    let Extraction { days, dialect, parsers, zstd_window_mib } = how;
    let (chunks_in, chunks_out) = crossbeam_channel::bounded::<(usize, Chunk)>(parsers);
    let (extracted_in, extracted_out) = mpsc::channel(parsers);
    for _ in 0..parsers {
        let (chunks, extracted) = (chunks_out.clone(), extracted_in.clone());
        let (mut parser, days, progress) = (Parser::new(Arc::clone(dataset)), days, Arc::clone(progress));
        std::thread::spawn(move || {
            for (file, chunk) in chunks {
                let mut rows = Rows::new(dialect);
                let parsed = parser.parse(&chunk, &days, &mut rows);
                let records = chunk.records();
                progress.records.fetch_add(records, Ordering::Relaxed);
                let (seq, first_ordinal, digest) = (chunk.seq, chunk.first_ordinal, chunk.digest());
                let chunk = ExtractedChunk { file, seq, first_ordinal, records, digest, rows, parsed };
                if extracted.blocking_send(Extracted::Chunk(chunk)).is_err() {
                    return;
                }
            }
        });
    }
    let progress = Arc::clone(progress);
    std::thread::spawn(move || {
        for (file, input) in inputs.iter().enumerate() {
            let (mut bytes, mut stored) = (0, None);
            let opened = input.open(&progress.stored_read, zstd_window_mib);
            let reading = opened.and_then(|Text { text, seen }| {
                stored = seen;
                read(file, input, text, &chunks_in, &mut bytes)
            });
            let sha256 = stored.and_then(|seen| seen.hash());
            let message = match reading {
                Ok(Reading::Ended { records }) => Extracted::End { file, bytes, sha256, records },
                Ok(Reading::NobodyListens) => return,
                Err(error) => Extracted::Failed { file, bytes, sha256, error },
            };
            let failed = matches!(message, Extracted::Failed { .. });
            progress.files.fetch_add(1, Ordering::Relaxed);
            if extracted_in.blocking_send(message).is_err() || failed {
                return;
            }
        }
    });
    extracted_out
}

enum Reading {
    Ended { records: u64 },
    NobodyListens,
}

fn read(
    file: usize,
    input: &Input,
    text: Box<dyn Read + Send>,
    chunks: &crossbeam_channel::Sender<(usize, Chunk)>,
    bytes: &mut u64,
) -> Result<Reading> {
    let mut splitter = Splitter::new(text);
    loop {
        let chunk = splitter.next_chunk();
        *bytes = splitter.bytes();
        match chunk {
            Ok(Some(chunk)) => {
                if chunks.send((file, chunk)).is_err() {
                    return Ok(Reading::NobodyListens);
                }
            }
            Ok(None) => return Ok(Reading::Ended { records: splitter.records() }),
            Err(SplitError::Io(error)) => return Err(Error::failed(format!("cannot read {input}: {}", io_text(&error)))),
            Err(boundary) => {
                return Err(Error::failed(format!("{input}: {boundary}"))
                    .hint("nothing of this run was loaded: repair the file or move it away, then load again"));
            }
        }
    }
}
