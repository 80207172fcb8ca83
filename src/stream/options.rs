//! What a run is asked for, beside its configuration.

use super::parser::{ParseChunk, parse_chunk};
use crate::retry::RetryPolicy;

/// What a run is to do.
#[derive(Debug, Clone, Copy)]
pub struct RunOptions {
    /// Load what the inbox holds now, then end.
    pub once: bool,
    /// How chunks are parsed.
    pub parse: ParseChunk,
}

impl RunOptions {
    /// Until a signal, or once.
    pub fn new(once: bool) -> Self {
        Self { once, parse: parse_chunk }
    }

    /// `run` waits for a database or broker that is away, `run --once` gives up.
    pub(super) fn retry_policy(self) -> RetryPolicy {
        if self.once { RetryPolicy::Limited } else { RetryPolicy::Forever }
    }
}
