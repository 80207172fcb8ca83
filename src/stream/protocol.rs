//! The protocol of the stream: all messages between the stages, and which stage answers which.
//!
//! ```text
//! Intake ─ ReadFile ▶ Reader ─ Piece ▶ Parser ×n ─ ParsedPiece ▶ Batcher ─ Batch ▶ Writer ×n ─ ModelChanged ▶ Modeller
//!   ▲                                                                                │
//!   ╰────────────────────────────────── LoadFinished ◀───────────────────────────────╯
//! ```
//!
//! For datasets with `repeats = "skip"` the admission is between Intake and Reader. It sends `LoadFinished` for the repeats.
//! With RabbitMQ the broker is between Reader and Parser. The publisher takes each `Piece`, and sends `LoadFinished` itself
//! when the broker has confirmed the whole file. The consumer turns messages back into pieces.

use std::collections::BTreeSet;
use std::sync::Arc;

use actix::Message;
use uuid::Uuid;

use crate::dataset::Dataset;
use crate::inbox::Claim;
use crate::record::chunk::{Chunk, Digest};
use crate::record::parse::Parsed;
use crate::record::row::Reject;
use crate::record::unknown::UnknownKey;
use crate::store::ledger::Counts;
use crate::store::model::Noting;
use crate::store::{Dialect, Rows};
use crate::transport::amqp::publisher::Published;
use crate::transport::piece::{FileEnd, Load, Receipt};

/// Intake → Reader, through the admission where repeats are skipped: read this claimed file.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ReadFile(pub Claim);

/// Parser → Batcher: a piece after its records were parsed.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ParsedPiece {
    pub load: Arc<Load>,
    pub content: ParsedContent,
    pub receipt: Receipt,
}

/// The content of a parsed piece.
#[derive(Debug)]
pub enum ParsedContent {
    Chunk(ParsedChunk),
    End(FileEnd),
    Foreign { app_id: String, message_id: Option<String>, digest: [u8; 32], chunk: ParsedChunk },
}

/// A chunk's rows and rejects: `records == rows.len() + rejects.len()`.
#[derive(Debug)]
pub struct ParsedChunk {
    pub seq: u64,
    pub first_ordinal: u64,
    pub records: u64,
    /// The digest of its records.
    pub digest: Digest,
    pub rows: Rows,
    pub rejects: Vec<Reject>,
    /// Days since 1970-01-01 that the rows change.
    pub days: BTreeSet<i32>,
    /// Keys of the rows that no column takes, each once.
    pub unknown: Vec<UnknownKey>,
    /// Approximate size in memory.
    pub bytes: usize,
    /// The chunk itself. If the database refuses a row, its record is taken from here for the reject.
    pub chunk: Chunk,
}

impl ParsedChunk {
    /// Parses the chunk with `parse`, into rows for this dialect.
    pub fn new(chunk: Chunk, dialect: Dialect, parse: impl FnOnce(&Chunk, &mut Rows) -> Parsed) -> Self {
        let mut rows = Rows::new(dialect);
        let Parsed { rejects, days, unknown, .. } = parse(&chunk, &mut rows);
        Self {
            seq: chunk.seq,
            first_ordinal: chunk.first_ordinal,
            records: chunk.records(),
            digest: chunk.digest(),
            rows,
            rejects,
            days: days.into_keys().collect(),
            unknown,
            bytes: chunk.bytes(),
            chunk,
        }
    }

    /// Renumbers the records, starting at `first_ordinal`.
    pub fn renumber(&mut self, first_ordinal: u64) {
        let ordinals = self.rejects.iter_mut().map(|reject| &mut reject.ordinal);
        for ordinal in ordinals.chain(self.unknown.iter_mut().map(|unknown| &mut unknown.ordinal)) {
            *ordinal = *ordinal - self.first_ordinal + first_ordinal;
        }
        self.first_ordinal = first_ordinal;
    }
}

/// Batcher → Writer: pieces that share a transaction. The answer means that the batch was committed.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Batch {
    pub pieces: Vec<ParsedPiece>,
}

/// Writer → Modeller: a commit has changed days of this dataset.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct ModelChanged {
    pub dataset: Arc<Dataset>,
    /// How many rows the commit added.
    pub rows: u64,
    pub noting: Noting,
}

/// Writer or publisher → Intake and Tally: the whole load is durable, or the file has failed. Its file can be moved.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct LoadFinished {
    pub key: Uuid,
    pub dataset: String,
    /// The file's name in the ledger.
    pub source: String,
    /// The counts of the file's records. For a published file only `read` is known.
    pub counts: Counts,
    /// Rows that the load has removed. For a published file this is not known.
    pub removed: u64,
    /// Why the file failed, if it did.
    pub error: Option<String>,
    /// Whether this was sent together with the file's end. If a file is read again, only its new end decides the result: before
    /// that the ledger may still hold the end of an earlier reading.
    pub with_end: bool,
    /// The load that has the file's content already, if the file was not loaded because of that.
    pub repeats: Option<i64>,
}

/// Admission → Intake: a file that was claimed waits for another load. There is room for another claim.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct FileWaits;

/// Admission → Intake: files that waited for another load can be claimed again.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct WaitIsOver;

impl From<Published> for LoadFinished {
    fn from(Published { load, end }: Published) -> Self {
        let counts = Counts { read: end.records, ..Counts::default() };
        Self {
            key: load.key,
            dataset: load.dataset.name.clone(),
            source: load.source.clone(),
            counts,
            removed: 0,
            error: end.error,
            with_end: true,
            repeats: None,
        }
    }
}
