//! Budget: limits the bytes in flight. It bounds the memory of the stream, so mailboxes and channels do not have to.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::piece::{Acknowledge, Receipt};
use crate::dataset::Dataset;
use crate::record::chunk::Chunk;

/// The bytes that are read but not durable yet. A piece takes its bytes before it is passed on, and holds them until it is
/// committed or given up.
#[derive(Debug, Clone)]
pub struct Budget {
    free: Arc<Semaphore>,
    total: usize,
    runtime: tokio::runtime::Handle,
}

impl Budget {
    /// A budget of this many bytes. Must be called on the runtime.
    pub fn new(bytes: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(bytes)), total: bytes, runtime: tokio::runtime::Handle::current() }
    }

    /// Waits until this many bytes are free, and takes them. For threads outside the runtime.
    pub fn take(&self, bytes: usize) -> Receipt {
        let bytes = u32::try_from(bytes.min(self.total)).unwrap_or(u32::MAX);
        let taken = self.runtime.block_on(Arc::clone(&self.free).acquire_many_owned(bytes));
        Receipt::from(taken.expect("the budget is never closed"))
    }

    /// Waits until all bytes that were taken before are free again, because their pieces are durable or given up. For threads
    /// outside the runtime.
    pub fn wait_until_all_is_free(&self) {
        drop(self.take(self.total));
    }

    /// The limit.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Bytes in flight.
    pub fn taken(&self) -> usize {
        self.total - self.free.available_permits()
    }
}

/// The memory that a chunk takes until it is durable: its text, and its rows. The rows of small records are many times as large
/// as their text.
pub fn footprint(chunk: &Chunk, dataset: &Dataset) -> usize {
    /// The most that a value in a row takes, apart from its text.
    const VALUE_BYTES: usize = 64;
    let values = chunk.records() * (dataset.columns.len() as u64 + 1);
    2 * chunk.bytes() + usize::try_from(values).unwrap_or(usize::MAX / 2 / VALUE_BYTES) * VALUE_BYTES
}

/// A piece's share of the budget. Dropping it frees the bytes.
#[derive(Debug)]
struct Share(#[expect(dead_code, reason = "held for its release")] OwnedSemaphorePermit);

impl From<OwnedSemaphorePermit> for Receipt {
    /// A receipt that holds the permit while the piece is in flight.
    fn from(permit: OwnedSemaphorePermit) -> Self {
        Self::new(Share(permit))
    }
}

impl Acknowledge for Share {
    fn settle(self: Box<Self>) {}

    fn refuse(self: Box<Self>, _: &str, _: &str) {}

    fn give_back(self: Box<Self>) {}

    fn redelivers(&self) -> bool {
        false
    }
}
