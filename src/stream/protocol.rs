//! The whole protocol of the stream on one page: what travels between the stages, and who answers for it.
//!
//! ```text
//! Intake ─ ReadFile ▶ Reader ─ Piece ▶ Parser ×n ─ ParsedPiece ▶ Batcher ─ Batch ▶ Writer ×n ─ ModelChanged ▶ Modeller
//!   ▲                                                                                │
//!   ╰────────────────────────────────── LoadFinished ◀───────────────────────────────╯
//! ```
//!
//! With RabbitMQ the way from Reader to Parser leads through the broker: the publisher takes each `Piece` and, when all of a
//! file is confirmed, answers `LoadFinished` itself; the consumer makes the `Piece` again.

use std::collections::BTreeSet;
use std::sync::Arc;

use actix::Message;
use uuid::Uuid;

use crate::dataset::Dataset;
use crate::inbox::Claim;
use crate::record::chunk::{Chunk, Digest};
use crate::record::parse::Parsed;
use crate::record::row::Reject;
use crate::store::ledger::Counts;
use crate::store::{Dialect, Rows};
use crate::transport::amqp::publisher::Published;
use crate::transport::piece::{FileEnd, Load, Receipt};

/// Intake → Reader: a file was claimed; read it.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ReadFile(pub Claim);

/// Parser → Batcher: a piece whose records are rows or rejects.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ParsedPiece {
    pub load: Arc<Load>,
    pub content: ParsedContent,
    pub receipt: Receipt,
}

/// What a parsed piece is.
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
    /// Of its records.
    pub digest: Digest,
    pub rows: Rows,
    pub rejects: Vec<Reject>,
    /// Days since 1970-01-01 that the rows change.
    pub days: BTreeSet<i32>,
    /// Roughly, in memory.
    pub bytes: usize,
    /// The chunk itself, from which a row that the database refuses is cut out as a reject.
    pub chunk: Chunk,
}

impl ParsedChunk {
    /// The chunk, parsed by `parse` into rows of that dialect.
    pub fn new(chunk: Chunk, dialect: Dialect, parse: impl FnOnce(&Chunk, &mut Rows) -> Parsed) -> Self {
        let mut rows = Rows::new(dialect);
        let Parsed { rejects, days, .. } = parse(&chunk, &mut rows);
        Self {
            seq: chunk.seq,
            first_ordinal: chunk.first_ordinal,
            records: chunk.records(),
            digest: chunk.digest(),
            rows,
            rejects,
            days,
            bytes: chunk.bytes(),
            chunk,
        }
    }

    /// Counts its records from another ordinal on.
    pub fn renumber(&mut self, first_ordinal: u64) {
        for reject in &mut self.rejects {
            reject.ordinal = reject.ordinal - self.first_ordinal + first_ordinal;
        }
        self.first_ordinal = first_ordinal;
    }
}

/// Batcher → a Writer: pieces that share a transaction. The answer says that they are durable.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Batch {
    pub pieces: Vec<ParsedPiece>,
}

/// Writer → Modeller: days of this dataset are marked as changed.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct ModelChanged {
    pub dataset: Arc<Dataset>,
    /// How many rows the commit added.
    pub rows: u64,
}

/// Writer or publisher → Intake and Tally: all of a load is durable, or the file failed; its file can go where it belongs.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct LoadFinished {
    pub key: Uuid,
    pub dataset: String,
    /// What the ledger calls the file.
    pub source: String,
    /// What became of the file's records; of a published file only `read` is known.
    pub counts: Counts,
    /// Why the file failed, if it did.
    pub error: Option<String>,
    /// Said with the file's end, which decides what became of a file that is read again; before it the ledger may still have
    /// the end of an earlier reading.
    pub with_end: bool,
}

impl From<Published> for LoadFinished {
    fn from(Published { load, end }: Published) -> Self {
        let counts = Counts { read: end.records, ..Counts::default() };
        Self {
            key: load.key,
            dataset: load.dataset.name.clone(),
            source: load.source.clone(),
            counts,
            error: end.error,
            with_end: true,
        }
    }
}
