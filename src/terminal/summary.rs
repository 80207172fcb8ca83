//! Prints what a load has done.

mod plan; // what a load would change

use std::io::{self, Write};
use std::time::Duration;

use indicatif::HumanCount;

use super::table::{Align, Table};
use crate::counted::counted;
use crate::store::ledger::Counts;
use crate::summary::{DatasetSummary, LoadSummary, NewKey, ReasonCount};

/// Writes the summary as text: a table, the first rejects, and the speed.
///
/// # Errors
/// If the text cannot be written.
pub fn write(summary: &LoadSummary, out: &mut dyn Write) -> io::Result<()> {
    let loaded = if summary.plan.is_some() { "would load" } else { "loaded" };
    let mut table = Table::new(&[
        ("dataset", Align::Left),
        ("files", Align::Right),
        ("read", Align::Right),
        (loaded, Align::Right),
        ("rejected", Align::Right),
        ("skipped", Align::Right),
        ("replaced", Align::Right),
    ]);
    for dataset in &summary.datasets {
        let Counts { read, loaded, rejected, skipped } = dataset.counts;
        let files = dataset.files as u64;
        let counts = [files, read, loaded, rejected, skipped, dataset.replaced].map(|count| HumanCount(count).to_string());
        table.row(std::iter::once(dataset.dataset.clone()).chain(counts));
    }
    writeln!(out, "{table}")?;
    for dataset in summary.datasets.iter().filter(|dataset| dataset.unchanged > 0) {
        let count = HumanCount(dataset.unchanged as u64);
        writeln!(out, "files of {} that were not loaded, because their content is there already: {count}", dataset.dataset)?;
    }
    for dataset in summary.datasets.iter().filter(|dataset| dataset.counts.rejected > 0) {
        write_rejects(dataset, out)?;
    }
    if summary.has_rejects() && summary.plan.is_none() {
        writeln!(out, "see them all with `dataloader rejects list`, get them for repair with `dataloader rejects export`")?;
    }
    if let Some(plan) = &summary.plan {
        plan::write(plan, &summary.datasets, out)?;
    }
    for dataset in &summary.datasets {
        write_new_keys(&dataset.dataset, &dataset.new_keys, summary.plan.is_some(), out)?;
    }
    if let Some(left) = summary.left {
        writeln!(out, "\ninterrupted; left for the next run: {left}")?;
    }
    let read: u64 = summary.datasets.iter().map(|dataset| dataset.counts.read).sum();
    writeln!(out, "\n{}", pace(read, summary.elapsed))
}

/// Writes how many records were rejected, the first of them, and the reasons.
fn write_rejects(dataset: &DatasetSummary, out: &mut dyn Write) -> io::Result<()> {
    let DatasetSummary { counts: Counts { rejected, .. }, shown, reasons, .. } = dataset;
    let were = if *rejected == 1 { "was" } else { "were" };
    writeln!(out, "\n{} of {} {were} rejected:", counted(*rejected, "record"), dataset.dataset)?;
    for reject in shown {
        writeln!(out, "  {reject}")?;
    }
    let more = rejected - shown.len() as u64;
    if more > 0 && !shown.is_empty() {
        writeln!(out, "  and {} more", HumanCount(more))?;
    }
    // The first rejects say a single reason.
    if reasons.len() > 1 || shown.is_empty() {
        write_reasons(reasons, out)?;
    }
    // Of the stream, another process may have written some, or an earlier run.
    let elsewhere = rejected.saturating_sub(reasons.iter().map(|reason| reason.records).sum());
    if elsewhere > 0 {
        writeln!(out, "  written by another process or run: {}", counted(elsewhere, "record"))?;
    }
    Ok(())
}

/// Writes how many records each column, or the record itself, is the reason for.
fn write_reasons(reasons: &[ReasonCount], out: &mut dyn Write) -> io::Result<()> {
    if reasons.is_empty() {
        return Ok(());
    }
    writeln!(out, "by column and reason:")?;
    let mut table = Table::new(&[("column", Align::Left), ("reason", Align::Left), ("records", Align::Right)]);
    for ReasonCount { reason, column, records } in reasons {
        let column = column.as_deref().unwrap_or("-").to_owned();
        table.row([column, (*reason).to_owned(), HumanCount(*records).to_string()]);
    }
    writeln!(out, "{table}")
}

/// Writes the keys that no load had before, each with the line that makes it a column.
///
/// # Errors
/// If the text cannot be written.
pub fn write_new_keys(dataset: &str, keys: &[NewKey], dry_run: bool, out: &mut dyn Write) -> io::Result<()> {
    if keys.is_empty() {
        return Ok(());
    }
    let kept = if dry_run { "would be kept" } else { "are kept" };
    writeln!(out, "\nnew keys of {dataset} that no column takes; their values {kept} in _extra:")?;
    for NewKey { key, source, record, .. } in keys {
        writeln!(out, "  {key}, first in {source}, record {record}")?;
    }
    writeln!(out, "to make them columns, add to [datasets.{dataset}.columns], then run `dataloader migrate --backfill`:")?;
    keys.iter().try_for_each(|key| writeln!(out, "  {}", key.line))
}

/// Example: `1,000,000 records in 3.0 s (333,333 per second)`. Below one second the rate is omitted.
fn pace(records: u64, elapsed: Duration) -> String {
    if elapsed < Duration::from_secs(1) {
        return format!("{} in {} ms", counted(records, "record"), elapsed.as_millis());
    }
    let per_second = u64::try_from(u128::from(records) * 1_000 / elapsed.as_millis()).unwrap_or(u64::MAX);
    format!("{} in {:.1} s ({} per second)", counted(records, "record"), elapsed.as_secs_f64(), HumanCount(per_second))
}
