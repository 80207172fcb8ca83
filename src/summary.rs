//! The summary of a batch or stream run: the object of `--format json`.

pub mod plan; // what a load would change

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::config::suggest::column_line;
use crate::counted::counted;
use crate::dataset::Dataset;
use crate::record::parse::column_of;
use crate::record::row::{Reject, RejectReason};
use crate::record::unknown::UnknownKey;
use crate::store::ledger::Counts;
use plan::{DatasetPlan, Plan};

/// The summary of a run over all its datasets.
#[derive(Debug, Clone, Serialize)]
pub struct LoadSummary {
    pub datasets: Vec<DatasetSummary>,
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub elapsed: Duration,
    /// What a load would change; after a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    /// The work that is left after a signal; absent if everything was done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left: Option<Left>,
}

/// The work that an interrupted run leaves to the next start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Left {
    /// Files that are claimed and not finished; with `--once` also files that are not claimed yet.
    pub files: u64,
    /// Messages that are delivered and not acknowledged.
    pub messages: u64,
}

impl std::fmt::Display for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.files, self.messages) {
            (0, 0) => f.write_str("messages in the queues, or days to model, perhaps"),
            (files, 0) => f.write_str(&counted(files, "file")),
            (0, messages) => f.write_str(&counted(messages, "message")),
            (files, messages) => write!(f, "{} and {}", counted(files, "file"), counted(messages, "message")),
        }
    }
}

/// The summary of one dataset.
#[derive(Debug, Clone, Serialize)]
pub struct DatasetSummary {
    pub dataset: String,
    pub files: usize,
    /// Number of files that were not loaded because their content is there already.
    pub unchanged: usize,
    #[serde(flatten)]
    pub counts: Counts,
    /// Master rows that the upsert deleted; in the stream also records that were outdated when they came.
    pub replaced: u64,
    /// Number of failed files. In batch, one failed file fails the run.
    #[serde(skip)]
    pub failed: usize,
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub elapsed: Duration,
    /// Keys that no column takes and that no load had before.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub new_keys: Vec<NewKey>,
    /// How many records were rejected for which reason, of those that this process wrote.
    #[serde(skip)]
    pub reasons: Vec<ReasonCount>,
    /// What a load would change; after a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<DatasetPlan>,
    /// The first rejects, for the user.
    #[serde(skip)]
    pub shown: Vec<ShownReject>,
}

/// A key that no column takes, with the first record that has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NewKey {
    /// As `from` names it.
    pub key: String,
    /// Absent if there is none yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load: Option<i64>,
    /// The first file that has it.
    pub source: String,
    pub record: u64,
    /// The line for the dataset's columns in `dataloader.toml`.
    pub line: String,
}

impl NewKey {
    /// `None` if a column of the dataset takes the key.
    pub fn new(dataset: &Dataset, key: &UnknownKey, load: Option<i64>, source: String) -> Option<Self> {
        let line = column_line(dataset, &key.place, key.column_type)?;
        Some(Self { key: key.place.clone(), load, source, record: key.ordinal, line })
    }
}

/// How many records were rejected, by the reason and the column whose value is the reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RejectReasons(BTreeMap<(RejectReason, Option<String>), u64>);

impl RejectReasons {
    /// Counts these rejects.
    pub fn add(&mut self, dataset: &Dataset, rejects: &[Reject]) {
        for reject in rejects {
            *self.0.entry((reject.reason, column_of(dataset, reject))).or_default() += 1;
        }
    }

    /// Adds what was counted elsewhere.
    pub fn merge(&mut self, other: &Self) {
        for (reason, records) in &other.0 {
            *self.0.entry(reason.clone()).or_default() += records;
        }
    }

    /// The counts, most records first.
    pub fn counts(&self) -> Vec<ReasonCount> {
        let count = |((reason, column), records): (&(RejectReason, Option<String>), &u64)| ReasonCount {
            reason: reason.as_str(),
            column: column.clone(),
            records: *records,
        };
        let mut counts: Vec<ReasonCount> = self.0.iter().map(count).collect();
        counts.sort_by_key(|count| std::cmp::Reverse(count.records));
        counts
    }
}

/// How many records were rejected for a reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReasonCount {
    pub reason: &'static str,
    /// The column whose value is the reason; absent if it is the record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    pub records: u64,
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
    /// Makes the line for a reject of a file.
    pub fn new(file: usize, input: impl std::fmt::Display, reject: &Reject) -> Self {
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
    /// The summary before anything of these datasets is loaded.
    pub fn empty(datasets: &[Arc<Dataset>]) -> Self {
        let nothing = |dataset: &Arc<Dataset>| DatasetSummary {
            dataset: dataset.name.clone(),
            files: 0,
            unchanged: 0,
            counts: Counts::default(),
            replaced: 0,
            failed: 0,
            elapsed: Duration::ZERO,
            new_keys: Vec::new(),
            reasons: Vec::new(),
            plan: None,
            shown: Vec::new(),
        };
        Self { datasets: datasets.iter().map(nothing).collect(), elapsed: Duration::ZERO, plan: None, left: None }
    }

    /// Adds a finished file, which has removed so many rows. `elapsed` is the time since the start of the run.
    pub fn add_file(&mut self, dataset: &str, counts: Counts, removed: u64, has_failed: bool, elapsed: Duration) {
        if let Some(summary) = self.datasets.iter_mut().find(|summary| summary.dataset == dataset) {
            summary.files += 1;
            summary.counts += counts;
            summary.replaced += removed;
            summary.failed += usize::from(has_failed);
            summary.elapsed = elapsed;
        }
    }

    /// Adds a file that was not loaded because its content is there already.
    pub fn add_unchanged(&mut self, dataset: &str, elapsed: Duration) {
        if let Some(summary) = self.datasets.iter_mut().find(|summary| summary.dataset == dataset) {
            summary.unchanged += 1;
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
}
