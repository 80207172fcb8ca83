//! The stream: actors from the inbox to the modelled tables. This file runs them: it starts the stages of the topology, waits
//! until the run ends, and drains them.

pub mod protocol; // the messages between the stages
pub mod options; // what one run is to do
pub mod topology; // which stages a run has, and how they are connected
mod intake; // files: claimed, passed to the reader, moved when loaded
mod claims; // the files of this process
mod admission; // files whose content is there already
mod reader; // files → chunks
mod parser; // chunks → rows and rejects
mod batcher; // rows → batches
mod writer; // batches → the database
mod fresh_chunks; // the rows and rejects of new chunks → the database
#[cfg(test)]
mod testing;
mod chunks; // which chunks are new
mod foreign; // which messages of other programs are new
mod attempts; // counts of messages that may crash a consumer
mod modeller; // changed days → modelled tables
mod tally; // counts of loaded files
mod link; // connections that reconnect
mod faults; // errors that end a run
mod drain; // how the stages finish their work
mod pulse; // the heartbeat
mod stats; // what the run has done, and does

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::{Config, Role};
use crate::dataset::Repeats;
use crate::error::{Error, Result};
use crate::signals::Signals;
use crate::summary::LoadSummary;

use faults::Faults;
use link::Links;
use topology::{Account, Context, Stages, Topology};

pub use options::RunOptions;
pub use parser::{ParseChunk, parse_chunk};
pub use stats::{DatasetStats, Histogram, Stats};

/// Runs the stream on its own actix system, until a signal arrives or until the inbox is loaded. `stats` receives the progress
/// meanwhile.
///
/// # Errors
/// An error that a stage could not recover from; an error if a second signal came.
pub fn run(config: &Config, options: RunOptions, stats: &Arc<Stats>) -> Result<LoadSummary> {
    if config.role == Role::Producer
        && let Some(dataset) = config.datasets.iter().find(|dataset| dataset.repeats == Repeats::Skip)
    {
        let message = format!("the dataset {} has repeats = \"skip\", and a producer has no ledger to ask", dataset.name);
        return Err(Error::usage(message).hint("run it with --role all, or leave `repeats` out"));
    }
    let system = actix::System::new();
    let ended = system.block_on(async {
        let links = Links::new(config, &stats.vitals)?;
        tokio::select! {
            never = pulse::beat(config, &links, stats) => match never {},
            ended = supervise(config, options, &links, stats) => ended,
        }
    });
    match ended {
        Ok(Ended::Drained(summary)) => Ok(summary),
        // Its threads may still wait for a server or a disk. The process ends without waiting for them.
        Ok(Ended::GivenUp(summary)) => {
            std::mem::forget(system);
            Ok(summary)
        }
        Err(error) => {
            std::mem::forget(system);
            Err(error)
        }
    }
}

/// How a run ended.
enum Ended {
    /// Every stage has finished its work.
    Drained(LoadSummary),
    /// After a signal nothing has progressed for the time limit.
    GivenUp(LoadSummary),
}

/// Starts the stages, waits for the end of the run, and drains them.
async fn supervise(config: &Config, options: RunOptions, links: &Links, stats: &Arc<Stats>) -> Result<Ended> {
    let mut signals = Signals::listen()?;
    let (faults, mut reported) = Faults::new();
    let context = Context { config, options, links, stats, faults: &faults };
    let topology = Topology::new(config.role, config.transport, options.once);
    let mut stages = tokio::select! {
        stages = Stages::start(&context, topology) => stages?,
        () = signals.next() => return interrupted_at_start(config, options),
    };
    let account = stages.account();
    let mut interrupted = tokio::select! {
        biased;
        Some(fault) = reported.recv() => return Err(fault),
        Ok(()) = &mut stages.idle => false,
        () = signals.next() => true,
    };
    if interrupted {
        interrupt(&account);
    }
    let mut drain = std::pin::pin!(stages.drain());
    let drained = loop {
        tokio::select! {
            biased;
            Some(fault) = reported.recv() => return Err(fault),
            () = signals.next() => {
                if interrupted {
                    return Err(Error::interrupted());
                }
                interrupted = true;
                interrupt(&account);
            }
            drained = &mut drain => break drained.map(|()| true)?,
            () = nothing_moves(links, stats, config.stream.drain_timeout), if interrupted => break false,
        }
    };
    let mut summary = account.summary().await?;
    if interrupted {
        summary.left = account.left(&context, drained);
    }
    match (drained, summary.left) {
        (true, Some(left)) => tracing::info!("left for the next start: {left}"),
        (false, Some(left)) => {
            tracing::warn!("nothing has moved for {:.0?}: left for the next start: {left}", config.stream.drain_timeout);
        }
        (_, None) => {}
    }
    Ok(if drained { Ended::Drained(summary) } else { Ended::GivenUp(summary) })
}

/// What the first signal does. What is in flight is still finished.
fn interrupt(account: &Account) {
    tracing::info!("finishing what is in flight; a second signal ends at once");
    account.interrupt();
}

/// The end of a run that got a signal while it waited for the database. Nothing is loaded, so `--once` has failed.
fn interrupted_at_start(config: &Config, options: RunOptions) -> Result<Ended> {
    if options.once { Err(Error::interrupted()) } else { Ok(Ended::Drained(LoadSummary::empty(&config.datasets))) }
}

/// Returns when no stage has made progress for `limit`.
async fn nothing_moves(links: &Links, stats: &Stats, limit: Duration) {
    let look = || (links.vitals.units(), stats.in_flight_bytes());
    let (mut before, mut since) = (look(), Instant::now());
    while since.elapsed() < limit {
        tokio::time::sleep((limit / 20).min(Duration::from_secs(1))).await;
        let now = look();
        if now != before {
            (before, since) = (now, Instant::now());
        }
    }
}
