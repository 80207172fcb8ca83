//! Stats: counters that show what a run has done so far.

use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

use crate::transport::budget::Budget;

/// Counters that the stages update. They start at zero with the process.
#[derive(Debug, Default)]
pub struct Stats {
    /// Records committed, rejects included.
    pub records: AtomicU64,
    /// Loads that are over.
    pub loads: AtomicU64,
    /// Rejected records of other programs' messages. No file's counts include them.
    pub rejected_in_messages: AtomicU64,
    pub(super) budget: OnceLock<Budget>,
}

impl Stats {
    /// Bytes that are read but not yet durable.
    pub fn in_flight_bytes(&self) -> u64 {
        self.budget.get().map_or(0, Budget::taken) as u64
    }
}
