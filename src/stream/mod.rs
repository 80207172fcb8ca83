//! The stream: actors from the inbox to the modelled tables. This file runs them: it starts the stages of the topology, waits for
//! whatever ends the run, and drains them.

pub mod protocol; // what the stages tell each other
pub mod options; // what a run is asked for
pub mod topology; // which stages a run has, and how they are joined
mod intake; // files: claimed, handed to the reader, put where they belong
mod reader; // files → chunks
mod parser; // chunks → rows and rejects
mod batcher; // rows → batches
mod writer; // batches → the database
mod chunks; // which of them are new
mod foreign; // other programs' messages among them
mod modeller; // changed days → modelled tables
mod tally; // what was loaded
mod link; // connections that outlive absences
mod faults; // what ends a run
mod pulse; // signs of life
mod stats; // what the run has done so far

use std::sync::Arc;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::signals::Signals;
use crate::summary::LoadSummary;

use faults::Faults;
use link::Links;
use topology::{Context, Stages, Topology};

pub use options::RunOptions;
pub use parser::{ParseChunk, parse_chunk};
pub use stats::Stats;

/// Runs the stream on a system of its own: until a signal, or until what the inbox holds is loaded. `stats` says meanwhile what
/// it has done.
///
/// # Errors
/// What a stage could not mend; that a second signal came.
pub fn run(config: &Config, options: RunOptions, stats: &Arc<Stats>) -> Result<LoadSummary> {
    actix::System::new().block_on(async {
        let links = Links::new(config)?;
        tokio::select! {
            never = pulse::beat(config, &links) => match never {},
            summary = supervise(config, options, &links, stats) => summary,
        }
    })
}

/// Starts the stages, waits for whatever ends the run, and drains them.
async fn supervise(config: &Config, options: RunOptions, links: &Links, stats: &Arc<Stats>) -> Result<LoadSummary> {
    let mut signals = Signals::listen()?;
    let (faults, mut reported) = Faults::new();
    let context = Context { config, options, links, stats, faults: &faults };
    let topology = Topology::new(config.role, config.transport, options.once);
    let mut stages = tokio::select! {
        stages = Stages::start(&context, topology) => stages?,
        () = signals.next() => return Ok(LoadSummary::empty(&config.datasets)),
    };
    let interrupted = tokio::select! {
        Some(fault) = reported.recv() => return Err(fault),
        () = signals.next() => true,
        Ok(()) = &mut stages.idle => false,
    };
    if interrupted {
        tracing::info!("finishing what is in flight; a second signal ends at once");
    }
    tokio::select! {
        summary = stages.drain(interrupted) => summary,
        Some(fault) = reported.recv() => Err(fault),
        () = signals.next() => Err(Error::interrupted()),
    }
}
