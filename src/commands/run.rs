//! `dataloader run`: the stream, with a line that shows its progress.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use indicatif::{HumanBytes, HumanCount};
use jiff::Timestamp;

use super::{DONE, INTERRUPTED, REJECTED};
use crate::config::Config;
use crate::counted::counted;
use crate::error::Result;
use crate::stream::{self, RunOptions, Stats};
use crate::terminal::cli::RunArgs;
use crate::terminal::output::Output;
use crate::terminal::progress::LiveLine;
use crate::terminal::summary;
use crate::web::{Server, Site};

/// Runs the stream until a signal comes. With `--once`, runs it until the inbox is loaded and prints a summary.
///
/// # Errors
/// As [`stream::run`].
pub fn run(config: &Config, args: &RunArgs, output: Output) -> Result<u8> {
    let stats = Stats::new(&config.datasets);
    // Dropped last: the page shows the end of the run as well.
    let _page = match &config.http {
        Some(address) => Some(Server::bind(address, Site::of_run(config, &stats)?)?.start()?),
        None => None,
    };
    let live = LiveLine::start(live_text(Arc::clone(&stats)));
    let loaded = stream::run(config, RunOptions::new(args.once), &stats);
    drop(live);
    let mut loaded = loaded?;
    if !args.once {
        return Ok(DONE);
    }
    for summary in &mut loaded.datasets {
        let Some(of_dataset) = stats.of(&summary.dataset) else { continue };
        (summary.new_keys, summary.reasons) = (of_dataset.new_keys(), of_dataset.reasons());
    }
    let in_messages = stats.rejected_in_messages.load(Ordering::Relaxed);
    output.result(&loaded, |out| {
        summary::write(&loaded, out)?;
        match in_messages {
            0 => Ok(()),
            rejected => writeln!(out, "rejected of messages: {}; see `dataloader rejects list`", counted(rejected, "record")),
        }
    })?;
    if loaded.left.is_some() {
        return Ok(INTERRUPTED);
    }
    Ok(if loaded.has_rejects() || loaded.has_failures() || in_messages > 0 { REJECTED } else { DONE })
}

/// The text of the progress line: files, records, records per second, bytes in flight, and what limits.
fn live_text(stats: Arc<Stats>) -> impl FnMut() -> String + Send {
    move || {
        let flow = stats.beat().map(|beat| beat.process(Timestamp::now()).flow).unwrap_or_default();
        let (files, records) = (HumanCount(stats.loads()), HumanCount(stats.records()));
        let in_flight = HumanBytes(stats.in_flight_bytes());
        format!("{files} files, {records} records, {:.0}/s, {in_flight} in flight. {}", flow.records_per_second(), flow.says)
    }
}
