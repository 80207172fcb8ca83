//! Options: what one run is to do, apart from its configuration.

use super::parser::{ParseChunk, parse_chunk};
use crate::retry::RetryPolicy;

/// The options of a run.
#[derive(Debug, Clone, Copy)]
pub struct RunOptions {
    /// Load what the inbox holds now, then end.
    pub once: bool,
    /// How chunks are parsed.
    pub parse: ParseChunk,
}

impl RunOptions {
    /// A run that ends at a signal, or one that loads the inbox once.
    pub fn new(once: bool) -> Self {
        Self { once, parse: parse_chunk }
    }

    /// `run` waits for an unavailable database or broker without limit. `run --once` gives up after a while.
    pub(super) fn retry_policy(self) -> RetryPolicy {
        if self.once { RetryPolicy::Limited } else { RetryPolicy::Forever }
    }
}
