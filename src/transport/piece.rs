//! What travels from the reader to the parsers: the parts of a load, and who answers for each of them. Nothing here knows how
//! they travel.

use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

use crate::dataset::Dataset;
use crate::record::chunk::Chunk;

/// A file on its way into the database; its key is what makes a chunk of it the same chunk wherever and whenever it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Load {
    pub key: Uuid,
    pub dataset: Arc<Dataset>,
    /// What the ledger calls the file.
    pub source: String,
}

/// A part of a load. The pieces of a file leave the reader in the order of the file.
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

/// What a transport does once a piece is durable, or can never be.
pub trait Acknowledge: fmt::Debug + Send {
    /// The piece is durable.
    fn settle(self: Box<Self>);

    /// The piece can never be loaded; `reason` is one word, for programs. Only another program's message can be such a piece.
    fn refuse(self: Box<Self>, reason: &str, detail: &str);

    /// Nothing was done with the piece: whoever comes next may have it.
    fn give_back(self: Box<Self>);

    /// Whether the transport delivers the piece again, and in the end sets it aside, when the receipt is dropped. If not, the
    /// file stays claimed and the next start reads it again.
    fn redelivers(&self) -> bool;
}

/// Who answers for a piece until it is durable. Dropped without [`Receipt::settle`], the piece was not loaded.
#[derive(Debug)]
pub struct Receipt(Box<dyn Acknowledge>);

impl Receipt {
    /// A receipt of the transport that `acknowledge` belongs to.
    pub fn new(acknowledge: impl Acknowledge + 'static) -> Self {
        Self(Box::new(acknowledge))
    }

    /// The piece is durable.
    pub fn settle(self) {
        self.0.settle();
    }

    /// The piece can never be loaded. See [`Acknowledge::refuse`].
    pub fn refuse(self, reason: &str, detail: &str) {
        self.0.refuse(reason, detail);
    }

    /// Nothing was done with the piece. See [`Acknowledge::give_back`].
    pub fn give_back(self) {
        self.0.give_back();
    }

    /// Whether the piece comes again by itself when this is dropped. See [`Acknowledge::redelivers`].
    pub fn redelivers(&self) -> bool {
        self.0.redelivers()
    }
}
