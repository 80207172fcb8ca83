//! The files of a drill: generated, dropped, and remembered by what must become of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::answers::status::DatasetStatus;
use crate::commands::generate::{SplitMix64, generate};
use crate::config::Config;
use crate::error::{IoContext, Result};
use crate::inbox::{Symlinks, drop_file};

/// What was dropped, by dataset.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Dropped(BTreeMap<&'static str, Counts>);

#[derive(Debug, Default, Clone, Copy, Serialize)]
struct Counts {
    files: u64,
    records: u64,
    not_loadable: u64,
}

/// Makes files and drops them.
pub struct Files {
    inbox: PathBuf,
    /// Where a file is before it is dropped.
    made: PathBuf,
    pub dropped: Dropped,
}

impl Files {
    pub fn new(config: &Config, directory: &Path) -> Self {
        Self { inbox: config.inbox.clone(), made: directory.join("made.json"), dropped: Dropped::default() }
    }

    /// Drops a few files, most of them small.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn drop_some(&mut self, random: &mut SplitMix64) -> Result<()> {
        for _ in 0..=random.below(3) {
            let (dataset, counts, text) = if random.below(8) == 0 { organizations(random) } else { events(random) };
            fs::write(&self.made, text).cannot(format_args!("write {}", self.made.display()))?;
            drop_file(&self.inbox, dataset, &self.made, Symlinks::Refused)?;
            let sums = self.dropped.0.entry(dataset).or_default();
            sums.files += 1;
            sums.records += counts.records;
            sums.not_loadable += counts.not_loadable;
        }
        Ok(())
    }
}

/// Events; in one file of four the last record lacks what is required.
fn events(random: &mut SplitMix64) -> (&'static str, Counts, Vec<u8>) {
    let records = 1 + if random.below(6) == 0 { random.below(6_000) } else { random.below(60) };
    let mut text = Vec::new();
    generate(records, random.next(), &mut text).expect("memory takes everything");
    let not_loadable = u64::from(random.below(4) == 0);
    if not_loadable > 0 {
        text.truncate(text.len() - "\n]\n".len());
        text.extend_from_slice(b",\n  {\"id\": \"without a time\"}\n]\n");
    }
    ("events", Counts { files: 1, records: records + not_loadable, not_loadable }, text)
}

/// Organisations whose keys come again: each replaces the one before.
fn organizations(random: &mut SplitMix64) -> (&'static str, Counts, Vec<u8>) {
    let first = random.below(20);
    let records = 1 + random.below(10);
    let lines = (first..first + records)
        .map(|key| format!("{{\"organization_key\": \"{key}\", \"organization_name\": \"{}\"}}\n", random.below(1_000)));
    let text = lines.collect::<String>().into_bytes();
    ("orgs", Counts { files: 1, records, not_loadable: 0 }, text)
}

impl Dropped {
    fn sum(&self, count: fn(&Counts) -> u64) -> u64 {
        self.0.values().map(count).sum()
    }

    pub fn files(&self) -> u64 {
        self.sum(|counts| counts.files)
    }

    pub fn records(&self) -> u64 {
        self.sum(|counts| counts.records)
    }

    pub fn not_loadable(&self) -> u64 {
        self.sum(|counts| counts.not_loadable)
    }

    /// What the ledger says otherwise.
    pub fn compare(&self, found: &[DatasetStatus]) -> Vec<String> {
        let mut differences = Vec::new();
        for (dataset, Counts { files, records, not_loadable }) in &self.0 {
            let Some(found) = found.iter().find(|found| found.dataset == *dataset) else {
                differences.push(format!("{dataset}: nothing of it is in the ledger"));
                continue;
            };
            let waiting = found.waiting_files.unwrap_or(0);
            for (what, expected, found) in [
                ("files", *files, found.files.unsigned_abs()),
                ("records read", *records, found.read.unsigned_abs()),
                ("records loaded", records - not_loadable, found.loaded.unsigned_abs()),
                ("records rejected", *not_loadable, found.rejected.unsigned_abs()),
                ("files in flight", 0, found.in_flight.unsigned_abs()),
                ("failed files", 0, found.failed.unsigned_abs()),
                ("waiting files", 0, waiting),
            ] {
                if found != expected {
                    differences.push(format!("{dataset}: {found} {what} in the ledger, not {expected}"));
                }
            }
        }
        differences
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_or_doubled_is_a_finding() {
        let counts = Counts { files: 2, records: 10, not_loadable: 1 };
        let dropped = Dropped(BTreeMap::from([("events", counts)]));
        let status = DatasetStatus { files: 2, read: 10, loaded: 9, rejected: 1, ..DatasetStatus::nothing("events") };
        assert_eq!(dropped.compare(std::slice::from_ref(&status)), [""; 0]);
        assert_eq!(dropped.compare(&[]), ["events: nothing of it is in the ledger"]);
        let lost = DatasetStatus { loaded: 8, ..status.clone() };
        assert_eq!(dropped.compare(&[lost]), ["events: 8 records loaded in the ledger, not 9"]);
        let doubled = DatasetStatus { files: 3, read: 15, loaded: 14, ..status.clone() };
        assert_eq!(dropped.compare(&[doubled]).len(), 3);
        let waiting = DatasetStatus { in_flight: 1, waiting_files: Some(4), ..status };
        assert_eq!(dropped.compare(&[waiting]).len(), 2);
    }

    #[test]
    fn a_file_has_the_records_that_are_expected_of_it() {
        for seed in 0..200 {
            let (_, counts, text) = events(&mut SplitMix64::new(seed));
            let records: Vec<serde_json::Value> = serde_json::from_slice(&text).expect("an array");
            let not_loadable = records.iter().filter(|record| record["received_at"].is_null()).count();
            assert_eq!((records.len() as u64, not_loadable as u64), (counts.records, counts.not_loadable), "seed {seed}");
        }
    }
}
