//! What a run did: `load --format json`'s object, and the lines for people.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use indicatif::HumanCount;
use serde::{Serialize, Serializer};

use super::input::Input;
use crate::dataset::Dataset;
use crate::record::row::Reject;
use crate::store::ledger::Counts;
use crate::table::{Align, Table};

/// A run over all its datasets.
#[derive(Debug, Clone, Serialize)]
pub struct LoadSummary {
    pub datasets: Vec<DatasetSummary>,
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub elapsed: Duration,
    #[serde(skip)]
    pub dry_run: bool,
}

/// What became of a dataset's files.
#[derive(Debug, Clone, Serialize)]
pub struct DatasetSummary {
    pub dataset: String,
    pub files: usize,
    #[serde(flatten)]
    pub counts: Counts,
    /// Master rows that the upsert deleted.
    pub replaced: u64,
    /// Files that failed; in batch one fails the run.
    #[serde(skip)]
    pub failed: usize,
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub elapsed: Duration,
    /// The first rejects.
    #[serde(skip)]
    pub shown: Vec<ShownReject>,
}

/// A reject in the summary.
#[derive(Debug, Clone)]
pub struct ShownReject {
    /// Index of the file among the dataset's inputs.
    pub file: usize,
    pub ordinal: u64,
    text: String,
}

impl ShownReject {
    /// The line for a reject of a file.
    pub fn new(file: usize, input: &Input, reject: &Reject) -> Self {
        let Reject { ordinal, byte_offset, reason, detail, .. } = reject;
        let text = format!("{input}: record {ordinal} at byte {byte_offset}: {}: {detail}", reason.as_str());
        Self { file, ordinal: *ordinal, text }
    }
}

impl std::fmt::Display for ShownReject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

fn seconds<S: Serializer>(elapsed: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((elapsed.as_secs_f64() * 1_000.0).round() / 1_000.0)
}

impl LoadSummary {
    /// Nothing loaded yet of these datasets.
    pub fn empty(datasets: &[Arc<Dataset>]) -> Self {
        let nothing = |dataset: &Arc<Dataset>| DatasetSummary {
            dataset: dataset.name.clone(),
            files: 0,
            counts: Counts::default(),
            replaced: 0,
            failed: 0,
            elapsed: Duration::ZERO,
            shown: Vec::new(),
        };
        Self { datasets: datasets.iter().map(nothing).collect(), elapsed: Duration::ZERO, dry_run: false }
    }

    /// Adds a file that is over, so long after the start of the run.
    pub fn add_file(&mut self, dataset: &str, counts: Counts, has_failed: bool, elapsed: Duration) {
        if let Some(summary) = self.datasets.iter_mut().find(|summary| summary.dataset == dataset) {
            summary.files += 1;
            summary.counts += counts;
            summary.failed += usize::from(has_failed);
            summary.elapsed = elapsed;
        }
    }

    /// Whether any file failed.
    pub fn has_failures(&self) -> bool {
        self.datasets.iter().any(|dataset| dataset.failed > 0)
    }

    /// Whether any record was rejected.
    pub fn has_rejects(&self) -> bool {
        self.datasets.iter().any(|dataset| dataset.counts.rejected > 0)
    }

    /// The lines for people: a table, the first rejects, how fast it was.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let loaded = if self.dry_run { "would load" } else { "loaded" };
        let mut table = Table::new(&[
            ("dataset", Align::Left),
            ("files", Align::Right),
            ("read", Align::Right),
            (loaded, Align::Right),
            ("rejected", Align::Right),
            ("skipped", Align::Right),
            ("replaced", Align::Right),
        ]);
        for dataset in &self.datasets {
            let Counts { read, loaded, rejected, skipped } = dataset.counts;
            let files = dataset.files as u64;
            let counts = [files, read, loaded, rejected, skipped, dataset.replaced].map(|count| HumanCount(count).to_string());
            table.row(std::iter::once(dataset.dataset.clone()).chain(counts));
        }
        writeln!(out, "{table}")?;
        for dataset in self.datasets.iter().filter(|dataset| dataset.counts.rejected > 0) {
            writeln!(out, "\n{} records of {} were rejected:", HumanCount(dataset.counts.rejected), dataset.dataset)?;
            for reject in &dataset.shown {
                writeln!(out, "  {reject}")?;
            }
            let more = dataset.counts.rejected - dataset.shown.len() as u64;
            if more > 0 {
                writeln!(out, "  and {} more", HumanCount(more))?;
            }
        }
        if self.has_rejects() && !self.dry_run {
            writeln!(out, "see them all with `dataloader rejects list`, get them for repair with `dataloader rejects export`")?;
        }
        let read: u64 = self.datasets.iter().map(|dataset| dataset.counts.read).sum();
        writeln!(out, "\n{}", pace(read, self.elapsed))
    }
}

/// `1,000,000 records in 3 seconds (333,333 per second)`; without a rate where there is nothing to speak of.
fn pace(records: u64, elapsed: Duration) -> String {
    if elapsed < Duration::from_secs(1) {
        return format!("{} records in {} ms", HumanCount(records), elapsed.as_millis());
    }
    let per_second = u64::try_from(u128::from(records) * 1_000 / elapsed.as_millis()).unwrap_or(u64::MAX);
    format!("{} records in {:.1} s ({} per second)", HumanCount(records), elapsed.as_secs_f64(), HumanCount(per_second))
}
