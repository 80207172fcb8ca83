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
mod attempts; // messages that may end the process
mod modeller; // changed days → modelled tables
mod tally; // what was loaded
mod link; // connections that outlive absences
mod faults; // what ends a run
mod pulse; // signs of life
mod stats; // what the run has done so far

use std::sync::Arc;
use std::time::{Duration, Instant};

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
    let system = actix::System::new();
    let ended = system.block_on(async {
        let links = Links::new(config)?;
        tokio::select! {
            never = pulse::beat(config, &links) => match never {},
            ended = supervise(config, options, &links, stats) => ended,
        }
    });
    match ended {
        Ok(Ended::Drained(summary)) => Ok(summary),
        // Its threads may still wait, for a server or a disk: they end with the process, which waits for none.
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
    /// Every stage has finished what it had.
    Drained(LoadSummary),
    /// After a signal nothing moved any more.
    GivenUp(LoadSummary),
}

/// Starts the stages, waits for whatever ends the run, and drains them.
async fn supervise(config: &Config, options: RunOptions, links: &Links, stats: &Arc<Stats>) -> Result<Ended> {
    let mut signals = Signals::listen()?;
    let (faults, mut reported) = Faults::new();
    let context = Context { config, options, links, stats, faults: &faults };
    let topology = Topology::new(config.role, config.transport, options.once);
    let mut stages = tokio::select! {
        stages = Stages::start(&context, topology) => stages?,
        () = signals.next() => return interrupted_at_start(config, options),
    };
    let interrupted = tokio::select! {
        biased;
        Some(fault) = reported.recv() => return Err(fault),
        Ok(()) = &mut stages.idle => false,
        () = signals.next() => true,
    };
    if interrupted {
        tracing::info!("finishing what is in flight; a second signal ends at once");
    }
    let account = stages.account();
    let drained = tokio::select! {
        biased;
        Some(fault) = reported.recv() => return Err(fault),
        () = signals.next() => return Err(Error::interrupted()),
        drained = stages.drain(interrupted) => drained.map(|()| true)?,
        () = nothing_moves(links, stats, config.stream.drain_timeout), if interrupted => false,
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

/// A signal came while the database was waited for: nothing is loaded, so `--once` has not done its work.
fn interrupted_at_start(config: &Config, options: RunOptions) -> Result<Ended> {
    if options.once { Err(Error::interrupted()) } else { Ok(Ended::Drained(LoadSummary::empty(&config.datasets))) }
}

/// Returns when no stage has finished anything for that long.
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
