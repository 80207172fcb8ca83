//! Pieces: the parts of a load that travel from the reader to the parsers, with their receipts. Nothing here depends on the
//! transport.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use uuid::Uuid;

use crate::dataset::Dataset;
use crate::record::chunk::Chunk;
use crate::record::content::ContentHash;

/// A file that is being loaded. Its key identifies it: together with `seq`, it identifies a chunk of the file, in every process
/// and in every reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Load {
    pub key: Uuid,
    pub dataset: Arc<Dataset>,
    /// The file's name in the ledger.
    pub source: String,
}

/// A part of a load. The pieces of a file leave the reader in the order of the file.
#[derive(Debug)]
pub struct Piece {
    pub load: Arc<Load>,
    pub content: Content,
    pub receipt: Receipt,
}

impl Piece {
    /// How many records it has.
    pub fn records(&self) -> u64 {
        match &self.content {
            Content::Chunk(chunk) | Content::Foreign(ForeignMessage { chunk, .. }) => chunk.records(),
            Content::End(_) => 0,
        }
    }
}

/// The content of a piece.
#[derive(Debug)]
pub enum Content {
    /// Consecutive records. The ledger has them once, by load and `seq`.
    Chunk(Chunk),
    /// The load has no more pieces.
    End(FileEnd),
    /// The records of another program's message.
    Foreign(ForeignMessage),
}

/// The totals of a file that was read to its end. With them the ledger closes the load when all its chunks are loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEnd {
    /// How many records its chunks have.
    pub records: u64,
    /// Length of the decompressed text.
    pub bytes: u64,
    /// Why the file failed, if it did.
    pub error: Option<String>,
    /// Of the stored bytes. `None` if they were not read to their end, and for a file that version 0.1.0 has read.
    pub sha256: Option<ContentHash>,
    /// Where the file was read. `None` for a file that version 0.1.0 has read.
    pub host: Option<String>,
}

/// A message of another program, without the header `kind`. It is counted on the `open` ledger row of its dataset and `app_id`.
#[derive(Debug)]
pub struct ForeignMessage {
    pub app_id: String,
    /// If it is set, the message is loaded exactly once. Otherwise it is loaded at least once.
    pub message_id: Option<String>,
    /// SHA-256 of the body. The same id with another body is an error of the sender.
    pub digest: [u8; 32],
    /// All its records, however many there are.
    pub chunk: Chunk,
}

/// What a transport does when a piece is durable, or can never be loaded.
pub trait Acknowledge: fmt::Debug + Send {
    /// The piece is durable.
    fn settle(self: Box<Self>);

    /// The piece can never be loaded. `reason` is one word, for programs to read. Only a message of another program can be
    /// refused.
    fn refuse(self: Box<Self>, reason: &str, detail: &str);

    /// The piece was not processed, and may be delivered again.
    fn give_back(self: Box<Self>);

    /// Whether the transport redelivers the piece when its receipt is dropped, and dead-letters it after several failures.
    /// Otherwise the file stays claimed, and the next start reads it again.
    fn redelivers(&self) -> bool;
}

/// Records that are in flight. They are counted until this is dropped.
#[derive(Debug)]
pub struct Carried {
    counter: Arc<AtomicU64>,
    records: u64,
}

impl Carried {
    /// Adds the records to the counter.
    pub fn new(counter: &Arc<AtomicU64>, records: u64) -> Self {
        counter.fetch_add(records, Ordering::Relaxed);
        Self { counter: Arc::clone(counter), records }
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.counter.fetch_sub(self.records, Ordering::Relaxed);
    }
}

/// Connects a piece to its transport until the piece is durable. If it is dropped without [`Receipt::settle`], the piece was
/// not loaded.
#[derive(Debug)]
pub struct Receipt {
    transport: Box<dyn Acknowledge>,
    /// The piece's records are in flight as long as its receipt is there.
    carried: Option<Carried>,
}

impl Receipt {
    /// A receipt of the transport that `acknowledge` belongs to.
    pub fn new(acknowledge: impl Acknowledge + 'static) -> Self {
        Self { transport: Box::new(acknowledge), carried: None }
    }

    /// Counts the piece's records as in flight.
    pub fn carry(&mut self, carried: Option<Carried>) {
        self.carried = carried;
    }

    /// The piece is durable.
    pub fn settle(self) {
        self.transport.settle();
    }

    /// The piece can never be loaded. See [`Acknowledge::refuse`].
    pub fn refuse(self, reason: &str, detail: &str) {
        self.transport.refuse(reason, detail);
    }

    /// The piece was not processed. See [`Acknowledge::give_back`].
    pub fn give_back(self) {
        self.transport.give_back();
    }

    /// Whether the piece is redelivered when this is dropped. See [`Acknowledge::redelivers`].
    pub fn redelivers(&self) -> bool {
        self.transport.redelivers()
    }
}
