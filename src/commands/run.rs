//! `dataloader run`: the stream, with a line that shows its progress.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount};

use super::{DONE, INTERRUPTED, REJECTED};
use crate::config::Config;
use crate::error::Result;
use crate::stream::{self, RunOptions, Stats};
use crate::terminal::cli::RunArgs;
use crate::terminal::output::Output;
use crate::terminal::progress::LiveLine;
use crate::terminal::summary;

/// Runs the stream until a signal comes. With `--once`, runs it until the inbox is loaded and prints a summary.
///
/// # Errors
/// As [`stream::run`].
pub fn run(config: &Config, args: &RunArgs, output: Output) -> Result<u8> {
    let stats = Arc::new(Stats::default());
    let live = LiveLine::start(live_text(Arc::clone(&stats)));
    let loaded = stream::run(config, RunOptions::new(args.once), &stats);
    drop(live);
    let loaded = loaded?;
    if !args.once {
        return Ok(DONE);
    }
    let in_messages = stats.rejected_in_messages.load(Ordering::Relaxed);
    output.result(&loaded, |out| {
        summary::write(&loaded, out)?;
        match in_messages {
            0 => Ok(()),
            rejected => writeln!(out, "{} records of messages were rejected: `dataloader rejects list`", HumanCount(rejected)),
        }
    })?;
    if loaded.left.is_some() {
        return Ok(INTERRUPTED);
    }
    Ok(if loaded.has_rejects() || loaded.has_failures() || in_messages > 0 { REJECTED } else { DONE })
}

/// The text of the progress line: files, records, records per second, and bytes in flight.
fn live_text(stats: Arc<Stats>) -> impl FnMut() -> String + Send {
    let (mut before, mut since, mut rate) = (0, Instant::now(), 0);
    move || {
        let (files, records) = (stats.loads.load(Ordering::Relaxed), stats.records.load(Ordering::Relaxed));
        let elapsed = since.elapsed();
        if elapsed >= Duration::from_secs(1) {
            rate = (records - before) * 1_000 / u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
            (before, since) = (records, Instant::now());
        }
        format!(
            "{} files, {} records, {}/s, {} in flight",
            HumanCount(files),
            HumanCount(records),
            HumanCount(rate),
            HumanBytes(stats.in_flight_bytes())
        )
    }
}
