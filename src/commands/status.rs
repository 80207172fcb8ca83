//! `dataloader status`: prints the ledger, and what the pipeline of this working directory does.

use std::convert::Infallible;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{HumanBytes, HumanCount};

use super::DONE;
use crate::answers::status::{Status, UnknownKeyStatus, status};
use crate::config::Config;
use crate::counted::counted;
use crate::error::Result;
use crate::terminal::output::{self, Format, Output};
use crate::terminal::table::{Align, Table};

/// Prints the ledger.
///
/// # Errors
/// As [`status`].
pub async fn run(config: &Config, output: Output) -> Result<u8> {
    let status = status(config).await?;
    output.result(&status, |out| write(&status, out))?;
    Ok(DONE)
}

/// Prints the ledger and the pipeline every second, on a terminal in place, for as long as it is polled. A database that is away
/// is waited for.
///
/// # Errors
/// If standard output cannot be written.
pub async fn watch(config: &Config, output: Output) -> Result<Infallible> {
    let is_terminal = io::stdout().is_terminal() && output.format() == Format::Text;
    loop {
        let status = status(config).await;
        if is_terminal {
            output::clear_screen()?;
        }
        match status {
            Ok(status) => output.result(&status, |out| write(&status, out))?,
            Err(error) => output.error(&error),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Writes the text output.
fn write(status: &Status, out: &mut dyn Write) -> io::Result<()> {
    if let Some(nothing_is_there) = status.notes.first() {
        return writeln!(out, "{nothing_is_there}");
    }
    let count = |value: i64| HumanCount(value.unsigned_abs()).to_string();
    let numbers = ["files", "read", "loaded", "rejected", "skipped", "in flight", "failed", "unloaded", "repeated", "open rejects"];
    let columns: Vec<(&str, Align)> =
        std::iter::once(("dataset", Align::Left)).chain(numbers.map(|name| (name, Align::Right))).collect();
    let mut table = Table::new(&columns);
    for d in &status.datasets {
        let counts =
            [d.files, d.read, d.loaded, d.rejected, d.skipped, d.in_flight, d.failed, d.unloaded, d.repeated, d.open_rejects]
                .map(count);
        table.row(std::iter::once(d.dataset.clone()).chain(counts));
    }
    writeln!(out, "{table}")?;
    if let Some(host) = &status.host {
        writeln!(out, "read from the database at {host}")?;
    }
    write_waiting(status, out)?;
    write_unknown_keys(status, out)?;
    write_pipeline(status, out)?;
    if status.loads.is_empty() {
        return Ok(());
    }
    let text = ["id", "dataset", "status", "loaded", "rejected", "source", "error"]
        .map(|name| (name, if matches!(name, "id" | "loaded" | "rejected") { Align::Right } else { Align::Left }));
    let mut table = Table::new(&text);
    for load in &status.loads {
        table.row([
            load.id.to_string(),
            load.dataset.clone(),
            load.status.clone(),
            count(load.loaded),
            count(load.rejected),
            load.source.clone(),
            load.error.clone().unwrap_or_default(),
        ]);
    }
    writeln!(out, "\n{table}")
}

/// Writes what is not loaded or not modelled yet.
fn write_waiting(status: &Status, out: &mut dyn Write) -> io::Result<()> {
    for d in &status.datasets {
        if let (Some(files @ 1..), Some(seconds)) = (d.waiting_files, d.oldest_waiting_seconds) {
            let wait = if files == 1 { "waits" } else { "wait" };
            writeln!(out, "{}: {} {wait} in the inbox, the oldest for {seconds:.0} s", d.dataset, counted(files, "file"))?;
        }
        if d.missing > 0 {
            writeln!(out, "{}: {} records are MISSING: ledger and rows do not agree", d.dataset, d.missing)?;
        }
        if let Some(day) = &d.oldest_unmodelled_day {
            writeln!(out, "{}: days from {day} on are not modelled yet", d.dataset)?;
        }
    }
    Ok(())
}

/// Writes the keys that no column takes, with the lines that make them columns.
fn write_unknown_keys(status: &Status, out: &mut dyn Write) -> io::Result<()> {
    if status.unknown_keys.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nkeys that no column takes; their values are kept in _extra:")?;
    let mut table = Table::new(&[
        ("dataset", Align::Left),
        ("key", Align::Left),
        ("first in load", Align::Right),
        ("record", Align::Right),
        ("line for its columns in dataloader.toml", Align::Left),
    ]);
    for UnknownKeyStatus { dataset, first } in &status.unknown_keys {
        let [load, record] = [first.load.unwrap_or_default().to_string(), first.record.to_string()];
        table.row([dataset.clone(), first.key.clone(), load, record, first.line.clone()]);
    }
    writeln!(out, "{table}\n`dataloader migrate --backfill` fills the columns that were added")
}

/// Writes what the stages of the pipeline do, and which one limits.
fn write_pipeline(status: &Status, out: &mut dyn Write) -> io::Result<()> {
    for process in &status.pipeline {
        let flow = &process.flow;
        writeln!(out, "\nprocess {}: {}", process.pid, flow.says)?;
        for (target, host) in process.connected.hosts() {
            writeln!(out, "connected to the {} at {host}", target.name())?;
        }
        process.problems.iter().try_for_each(|problem| writeln!(out, "{problem}"))?;
        let mut table =
            Table::new(&[("stage", Align::Left), ("per second", Align::Right), ("of", Align::Left), ("busy", Align::Right)]);
        for stage in &flow.stages {
            let name = if stage.count > 1 { format!("{} ×{}", stage.stage, stage.count) } else { stage.stage.clone() };
            let (rate, busy) = (format!("{:.0}", stage.per_second), format!("{:.0} %", stage.busy * 100.0));
            table.row([name, rate, stage.unit.clone(), busy]);
        }
        writeln!(out, "{table}")?;
        let (held, limit) = (HumanBytes(flow.in_flight_bytes), HumanBytes(flow.in_flight_limit_bytes));
        writeln!(out, "in flight: {held} of at most {limit}")?;
    }
    Ok(())
}
