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
use tokio::sync::OwnedSemaphorePermit;
use uuid::Uuid;

use crate::dataset::Dataset;
use crate::inbox::Claim;
use crate::record::chunk::Chunk;
use crate::record::row::Reject;
use crate::store::Rows;
use crate::store::ledger::Counts;
use crate::transport::amqp::consumer::Delivery;

/// A file on its way into the database; its key is what makes a chunk of it the same chunk wherever and whenever it is read.
#[derive(Debug, Clone)]
pub struct Load {
    pub key: Uuid,
    pub dataset: Arc<Dataset>,
    /// What the ledger calls the file.
    pub source: String,
}

/// Intake → Reader: a file was claimed; read it.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ReadFile(pub Claim);

/// Reader → Parser or publisher, consumer → Parser: a part of a load, in the order of the file. Bounded channels carry it.
#[derive(Debug)]
pub struct Piece {
    pub load: Arc<Load>,
    pub content: Content,
    pub receipt: Receipt,
}

/// What a piece is.
#[derive(Debug)]
pub enum Content {
    /// A run of records, in the ledger once by load and `seq`.
    Chunk(Chunk),
    /// Nothing more comes of this load.
    End(FileEnd),
    /// The records of another program's message.
    Foreign(ForeignMessage),
}

/// The totals of a file that was read as far as it goes; with them the ledger closes the load when all chunks are in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEnd {
    /// How many chunks were cut; their `seq` are `0..chunks`.
    pub chunks: u64,
    /// How many records they hold.
    pub records: u64,
    /// Length of the decompressed text.
    pub bytes: u64,
    /// Why the file failed, if it did.
    pub error: Option<String>,
}

/// A message without `kind`: booked on the `open` ledger row of its dataset and `app_id`.
#[derive(Debug)]
pub struct ForeignMessage {
    pub app_id: String,
    /// With it the message is loaded exactly once, without it at least once.
    pub message_id: Option<String>,
    /// SHA-256 of the body: the same id with another body is an error of the sender.
    pub digest: [u8; 32],
    /// All its records, however many.
    pub chunk: Chunk,
}

/// Who holds a piece until it is durable. Dropped without [`Receipt::settle`], the piece was not loaded: the file stays claimed
/// or the message is delivered again.
#[derive(Debug)]
pub enum Receipt {
    /// Bytes of the budget, free again when this is dropped.
    Budget(OwnedSemaphorePermit),
    /// A message to acknowledge.
    Delivery(Delivery),
}

impl Receipt {
    /// The piece is durable.
    pub fn settle(self) {
        match self {
            Self::Budget(permit) => drop(permit),
            Self::Delivery(delivery) => delivery.ack(),
        }
    }

    /// The piece can never be loaded; `reason` is one word. Only another program's message can be such a piece.
    pub fn refuse(self, reason: &str, detail: &str) {
        match self {
            Self::Budget(permit) => drop(permit),
            Self::Delivery(delivery) => delivery.dead_letter(reason, detail),
        }
    }
}

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
}
