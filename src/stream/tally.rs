//! Tally: counts the loaded files, of this and of other processes, for the log and the summary.

use std::collections::HashSet;
use std::time::Instant;

use actix::{Actor, Context, Handler, Message, MessageResult};
use uuid::Uuid;

use super::faults::{Faults, StageWatch};
use super::protocol::LoadFinished;
use crate::config::{Config, Role};
use crate::summary::LoadSummary;

/// The actor.
pub struct Tally {
    role: Role,
    summary: LoadSummary,
    /// Failed loads. The consumers report a changed file more than once: at its first changed chunk, and at its end.
    failed: HashSet<Uuid>,
    started: Instant,
    _watch: StageWatch,
}

impl Tally {
    /// A tally of zero files.
    pub fn new(config: &Config, faults: &Faults) -> Self {
        Self {
            role: config.role,
            summary: LoadSummary::empty(&config.datasets),
            failed: HashSet::new(),
            started: Instant::now(),
            _watch: faults.watch("tally"),
        }
    }
}

impl Actor for Tally {
    type Context = Context<Self>;
}

impl Handler<LoadFinished> for Tally {
    type Result = ();

    fn handle(&mut self, finished: LoadFinished, _: &mut Self::Context) {
        let LoadFinished { key, dataset, source, counts, removed, error, repeats, .. } = finished;
        if let Some(repeats) = repeats {
            tracing::info!(%dataset, file = %source, repeats, "its content is there already");
            return self.summary.add_unchanged(&dataset, self.started.elapsed());
        }
        if error.is_some() && !self.failed.insert(key) {
            return;
        }
        self.summary.add_file(&dataset, counts, removed, error.is_some(), self.started.elapsed());
        match error {
            // Only the consumers know whether the records are valid.
            None if self.role == Role::Producer => tracing::info!(%dataset, file = %source, read = counts.read, "published"),
            None => tracing::info!(%dataset, file = %source, read = counts.read, rejected = counts.rejected, "loaded"),
            Some(error) => tracing::warn!(%dataset, file = %source, loaded = counts.loaded, "failed: {error}"),
        }
    }
}

/// Asks for the summary so far.
#[derive(Debug, Message)]
#[rtype(result = "LoadSummary")]
pub struct Summarize;

impl Handler<Summarize> for Tally {
    type Result = MessageResult<Summarize>;

    fn handle(&mut self, _: Summarize, _: &mut Self::Context) -> Self::Result {
        let mut summary = self.summary.clone();
        summary.elapsed = self.started.elapsed();
        MessageResult(summary)
    }
}
