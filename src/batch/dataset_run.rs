//! The state of one dataset in a run, and of each of its files.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use super::extract::ExtractedChunk;
use super::input::Input;
use super::{FailedFile, Failure};
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::host;
use crate::record::content::ContentHash;
use crate::record::unknown::{MOST_KEYS, UnknownKey};
use crate::store::Day;
use crate::store::chunk_lines::ChunkLine;
use crate::store::ledger::Counts;
use crate::store::unknown_keys::NotedKey;
use crate::summary::plan::DatasetPlan;
use crate::summary::{DatasetSummary, NewKey, RejectReasons, ShownReject};

/// How many rejects the summary shows per dataset.
const SHOWN_REJECTS: usize = 5;

/// The state of one dataset in a run.
pub(super) struct DatasetRun {
    pub(super) dataset: Arc<Dataset>,
    pub(super) files: Vec<FileRun>,
    /// How many files are not loaded because their content is there already.
    pub(super) unchanged: usize,
    /// Their names in the ledger.
    pub(super) left_out: Vec<String>,
    /// The ledger ids of the files.
    pub(super) ids: Vec<i64>,
    /// With the number of rows of each.
    pub(super) days: BTreeMap<Day, u64>,
    /// What a load would change; in a dry run alone.
    pub(super) plan: Option<DatasetPlan>,
    pub(super) replaced: u64,
    pub(super) misses_key_index: bool,
    /// Keys that no column takes, each with the index of its first file.
    pub(super) unknown: BTreeMap<String, (usize, UnknownKey)>,
    /// Those of these that no load had before.
    pub(super) new_keys: Vec<NewKey>,
    pub(super) reasons: RejectReasons,
    /// The first rejects, sorted by file and ordinal.
    pub(super) shown: Vec<ShownReject>,
    pub(super) elapsed: Duration,
}

pub(super) struct FileRun {
    pub(super) input: Input,
    pub(super) source: String,
    /// Made when the rows are moved into the master: that is when the load comes, among those of the stream.
    pub(super) load_key: Uuid,
    pub(super) bytes: u64,
    /// Of its stored bytes. `None` until the reader is at the end, and for standard input.
    pub(super) sha256: Option<ContentHash>,
    /// How many records the reader found; `None` until it is at the end.
    pub(super) records: Option<u64>,
    pub(super) counts: Counts,
    pub(super) started_at: Timestamp,
    /// The chunk lines. Their load id is set later.
    pub(super) chunks: Vec<ChunkLine>,
}

impl FileRun {
    /// Where it is read. Standard input is no file of a host.
    pub(super) fn host(&self) -> Option<&'static str> {
        (self.input != Input::StandardInput).then(host::name)
    }
}

impl DatasetRun {
    pub(super) fn new(dataset: &Arc<Dataset>, inputs: Vec<Input>) -> Self {
        let files = inputs
            .into_iter()
            .map(|input| FileRun {
                source: input.source(),
                input,
                load_key: Uuid::nil(),
                bytes: 0,
                sha256: None,
                records: None,
                counts: Counts::default(),
                started_at: Timestamp::now(),
                chunks: Vec::new(),
            })
            .collect();
        Self {
            dataset: Arc::clone(dataset),
            files,
            unchanged: 0,
            left_out: Vec::new(),
            ids: Vec::new(),
            days: BTreeMap::new(),
            plan: None,
            replaced: 0,
            misses_key_index: false,
            unknown: BTreeMap::new(),
            new_keys: Vec::new(),
            reasons: RejectReasons::default(),
            shown: Vec::new(),
            elapsed: Duration::ZERO,
        }
    }

    pub(super) fn inputs(&self) -> Vec<Input> {
        self.files.iter().map(|file| file.input.clone()).collect()
    }

    /// The files' names in the ledger.
    pub(super) fn sources(&self) -> Vec<String> {
        self.files.iter().map(|file| file.source.clone()).collect()
    }

    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for file in &self.files {
            counts += file.counts;
        }
        counts
    }

    /// Adds a chunk to the counts of its file and returns the chunk's counts.
    pub(super) fn add(&mut self, chunk: &ExtractedChunk) -> Counts {
        let counts = Counts {
            read: chunk.records,
            loaded: chunk.parsed.rows,
            rejected: chunk.parsed.rejects.len() as u64,
            skipped: chunk.parsed.skipped,
        };
        let file = &mut self.files[chunk.file];
        let &ExtractedChunk { seq, first_ordinal, records, digest, .. } = chunk;
        file.chunks.push(ChunkLine { load_id: 0, seq, first_ordinal, records, digest });
        file.counts += counts;
        for (day, rows) in &chunk.parsed.days {
            *self.days.entry(Day(*day)).or_default() += rows;
        }
        self.add_unknown(chunk);
        self.reasons.add(&self.dataset, &chunk.parsed.rejects);
        let file = &self.files[chunk.file];
        if let Some(first) = chunk.parsed.rejects.first() {
            // Chunks arrive in no order, so the first rejects of all chunks are kept.
            let is_early = |last: &ShownReject| (chunk.file, first.ordinal) < (last.file, last.ordinal);
            if self.shown.len() < SHOWN_REJECTS || self.shown.last().is_some_and(is_early) {
                let input = &file.input;
                self.shown.extend(
                    chunk.parsed.rejects.iter().take(SHOWN_REJECTS).map(|reject| ShownReject::new(chunk.file, input, reject)),
                );
                self.shown.sort_by_key(|reject| (reject.file, reject.ordinal));
                self.shown.truncate(SHOWN_REJECTS);
            }
        }
        counts
    }

    /// Keeps the first record of each key. Chunks arrive in no order.
    fn add_unknown(&mut self, chunk: &ExtractedChunk) {
        for key in &chunk.parsed.unknown {
            let first = (chunk.file, key.clone());
            if let Some(known) = self.unknown.get_mut(&key.place) {
                if (chunk.file, key.ordinal) < (known.0, known.1.ordinal) {
                    *known = first;
                }
            } else if self.unknown.len() < 2 * MOST_KEYS {
                self.unknown.insert(key.place.clone(), first);
            }
        }
    }

    /// The keys with the loads that bring them, in the order of the records.
    pub(super) fn noted_keys(&self) -> Vec<NotedKey> {
        let mut keys: Vec<&(usize, UnknownKey)> = self.unknown.values().collect();
        keys.sort_by_key(|(file, key)| (*file, key.ordinal));
        keys.into_iter().map(|(file, key)| NotedKey { key: key.clone(), load_id: self.ids[*file] }).collect()
    }

    pub(super) fn failed(&self, file: usize, bytes: u64, sha256: Option<ContentHash>, error: Error) -> Failure {
        let run = &self.files[file];
        Failure::File(Box::new(FailedFile {
            dataset: self.dataset.name.clone(),
            source: run.source.clone(),
            bytes,
            sha256,
            host: run.host(),
            counts: Counts { loaded: 0, ..run.counts },
            started_at: run.started_at,
            error,
        }))
    }

    /// Fails if no record of a dataset without a day can be loaded. Such a dataset is replaced in full, and its table must not
    /// be emptied only because all records are invalid.
    pub(super) fn check_any_loadable(&self) -> Result<(), Failure> {
        let Counts { read, loaded, .. } = self.counts();
        if self.dataset.day.is_some() || read == 0 || loaded > 0 {
            return Ok(());
        }
        let name = &self.dataset.name;
        let why = self.shown.first().map(|reject| format!("; the first: {reject}")).unwrap_or_default();
        Err(Failure::Run(
            Error::failed(format!("none of the {read} records of dataset {name} can be loaded, so its table is not replaced{why}"))
                .hint("repair the files, then load again"),
        ))
    }

    /// Fails if the files of a dataset without a day hold no record: another program may be about to write them.
    pub(super) fn check_any_record(&self) -> Result<()> {
        if self.dataset.day.is_some() || self.files.is_empty() || self.counts().read > 0 {
            return Ok(());
        }
        let files = self.files.iter().map(|file| file.input.to_string()).take(3).collect::<Vec<_>>().join(", ");
        let more = if self.files.len() > 3 { ", …" } else { "" };
        let name = &self.dataset.name;
        let message = format!("the files of dataset {name} hold no record ({files}{more}), so its table is not replaced");
        Err(Error::failed(message).hint("repair the files, or empty the table with --allow-empty"))
    }

    pub(super) fn summary(self) -> DatasetSummary {
        DatasetSummary {
            counts: self.counts(),
            files: self.files.len(),
            unchanged: self.unchanged,
            dataset: self.dataset.name.clone(),
            replaced: self.replaced,
            failed: 0,
            elapsed: self.elapsed,
            new_keys: self.new_keys,
            reasons: self.reasons.counts(),
            plan: self.plan,
            shown: self.shown,
        }
    }
}
