//! Stats: what this process has done so far, and does now. The stages count here; the page, the metrics, the terminal and the
//! heartbeat read it, so that all of them say the same.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use super::topology::Topology;
use crate::dataset::Dataset;
use crate::heartbeat::Beat;
use crate::store::ledger::Counts;
use crate::summary::{NewKey, ReasonCount, RejectReasons};
use crate::transport::budget::Budget;
use crate::transport::piece::Carried;
use crate::vitals::Vitals;

/// What a process has done and does. The counters start at zero with the process.
#[derive(Debug)]
pub struct Stats {
    /// What each stage does and has done.
    pub vitals: Vitals,
    datasets: BTreeMap<String, DatasetStats>,
    /// Rejected records of other programs' messages. No file's counts include them.
    pub rejected_in_messages: AtomicU64,
    /// How long transactions of the writers took, those that had to be repeated included.
    pub commit_seconds: Histogram,
    /// From the drop of a file to the commit of its last record.
    pub drop_to_commit_seconds: Histogram,
    /// Microseconds since 1970; 0 before the first commit.
    last_commit: AtomicU64,
    pub(super) topology: OnceLock<Topology>,
    pub(super) budget: OnceLock<Budget>,
    /// The latest heartbeat.
    beat: Mutex<Option<Beat>>,
    /// Commits that were begun, and those of them whose records still count as in flight.
    commits: AtomicU64,
    unsettled: AtomicU64,
}

/// A commit from just before its statement until its records do not count as in flight any more.
#[derive(Debug)]
pub struct Committing(Arc<Stats>);

impl Drop for Committing {
    fn drop(&mut self) {
        self.0.unsettled.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What was done for a dataset.
#[derive(Debug, Default)]
pub struct DatasetStats {
    pub loaded: AtomicU64,
    pub rejected: AtomicU64,
    pub skipped: AtomicU64,
    pub files_loaded: AtomicU64,
    pub files_failed: AtomicU64,
    /// Files that were not loaded, because the dataset has their content.
    pub files_repeated: AtomicU64,
    /// Bytes of text that were committed, or by a producer published.
    pub bytes: AtomicU64,
    pub batches: AtomicU64,
    /// Keys that no column takes and that no load had before.
    new_keys: Mutex<Vec<NewKey>>,
    /// Why records of files were rejected.
    reasons: Mutex<RejectReasons>,
    /// Records that are read and not committed yet.
    in_flight: Arc<AtomicU64>,
}

impl Stats {
    /// Nothing is done yet.
    pub fn new(datasets: &[Arc<Dataset>]) -> Arc<Self> {
        Arc::new(Self {
            vitals: Vitals::default(),
            datasets: datasets.iter().map(|dataset| (dataset.name.clone(), DatasetStats::default())).collect(),
            rejected_in_messages: AtomicU64::new(0),
            commit_seconds: Histogram::default(),
            drop_to_commit_seconds: Histogram::default(),
            last_commit: AtomicU64::new(0),
            topology: OnceLock::new(),
            budget: OnceLock::new(),
            beat: Mutex::new(None),
            commits: AtomicU64::new(0),
            unsettled: AtomicU64::new(0),
        })
    }

    /// The counters of a configured dataset.
    pub fn of(&self, dataset: &str) -> Option<&DatasetStats> {
        self.datasets.get(dataset)
    }

    /// The counters of all datasets, by their names.
    pub fn datasets(&self) -> impl Iterator<Item = (&str, &DatasetStats)> {
        self.datasets.iter().map(|(name, stats)| (name.as_str(), stats))
    }

    /// Records committed, rejects included.
    pub fn records(&self) -> u64 {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        self.datasets.values().map(|d| get(&d.loaded) + get(&d.rejected) + get(&d.skipped)).sum()
    }

    /// Loads that are over.
    pub fn loads(&self) -> u64 {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        self.datasets.values().map(|d| get(&d.files_loaded) + get(&d.files_failed) + get(&d.files_repeated)).sum()
    }

    /// Counts records as in flight until the returned value is dropped.
    pub fn carry(&self, dataset: &str, records: u64) -> Option<Carried> {
        self.of(dataset).map(|stats| Carried::new(&stats.in_flight, records))
    }

    /// Bytes that are read but not yet durable.
    pub fn in_flight_bytes(&self) -> u64 {
        self.budget.get().map_or(0, Budget::taken) as u64
    }

    /// The limit of [`Self::in_flight_bytes`]; zero before the stages have started.
    pub fn in_flight_limit_bytes(&self) -> u64 {
        self.budget.get().map_or(0, Budget::total) as u64
    }

    /// Which stages the process has; `None` before they have started.
    pub fn topology(&self) -> Option<Topology> {
        self.topology.get().copied()
    }

    /// Counts a commit of a batch.
    pub(super) fn committed(&self, took: Duration) {
        self.commit_seconds.observe(took);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.last_commit.store(u64::try_from(now.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Marks a commit as under way.
    pub(super) fn begin_commit(self: &Arc<Self>) -> Committing {
        self.unsettled.fetch_add(1, Ordering::SeqCst);
        self.commits.fetch_add(1, Ordering::SeqCst);
        Committing(Arc::clone(self))
    }

    /// The number of commits; `None` while one is under way. If it is the same before and after a look at the database, no record
    /// became durable in between: what is in flight here is not in the database there.
    pub fn settled_commits(&self) -> Option<u64> {
        let commits = self.commits.load(Ordering::SeqCst);
        (self.unsettled.load(Ordering::SeqCst) == 0).then_some(commits)
    }

    /// The time of the last commit since 1970, if there was one.
    pub fn last_commit(&self) -> Option<Duration> {
        match self.last_commit.load(Ordering::Relaxed) {
            0 => None,
            micros => Some(Duration::from_micros(micros)),
        }
    }

    /// The latest heartbeat: connections, troubles and flow.
    pub fn beat(&self) -> Option<Beat> {
        self.beat.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_beat(&self, beat: Beat) {
        *self.beat.lock().unwrap_or_else(PoisonError::into_inner) = Some(beat);
    }
}

impl DatasetStats {
    /// Adds a key that no load had before.
    pub(super) fn add_new_key(&self, key: NewKey) {
        self.new_keys.lock().unwrap_or_else(PoisonError::into_inner).push(key);
    }

    /// The keys that no column takes and that no load had before.
    pub fn new_keys(&self) -> Vec<NewKey> {
        self.new_keys.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts why records of files were rejected.
    pub(super) fn add_reasons(&self, reasons: &RejectReasons) {
        self.reasons.lock().unwrap_or_else(PoisonError::into_inner).merge(reasons);
    }

    /// How many records of files were rejected for which reason.
    pub fn reasons(&self) -> Vec<ReasonCount> {
        self.reasons.lock().unwrap_or_else(PoisonError::into_inner).counts()
    }

    /// Adds what a batch committed.
    pub fn add(&self, counts: Counts, bytes: u64) {
        for (counter, value) in [
            (&self.loaded, counts.loaded),
            (&self.rejected, counts.rejected),
            (&self.skipped, counts.skipped),
            (&self.bytes, bytes),
        ] {
            counter.fetch_add(value, Ordering::Relaxed);
        }
        self.batches.fetch_add(1, Ordering::Relaxed);
    }

    /// Records that are read and not committed yet.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }
}

/// How long something took, in buckets.
#[derive(Debug, Default)]
pub struct Histogram {
    /// One for each bound, and one for all that took longer.
    buckets: [AtomicU64; Self::BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl Histogram {
    /// The upper bounds of the buckets, in seconds.
    pub const BOUNDS: [f64; 14] = [0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];

    /// Counts one duration.
    pub fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = Self::BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(Self::BOUNDS.len());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How many durations were at most as long as each bound; the last is the number of all.
    pub fn cumulative(&self) -> Vec<u64> {
        let mut sum = 0;
        let add = |bucket: &AtomicU64| {
            sum += bucket.load(Ordering::Relaxed);
            sum
        };
        self.buckets.iter().map(add).collect()
    }

    /// All durations together, in seconds.
    pub fn sum(&self) -> f64 {
        Duration::from_micros(self.micros.load(Ordering::Relaxed)).as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_up_to_each_bound() {
        let histogram = Histogram::default();
        for millis in [2, 3, 60, 500_000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let cumulative = histogram.cumulative();
        assert_eq!((cumulative[0], cumulative[1], cumulative[5], cumulative[13], cumulative[14]), (1, 2, 3, 3, 4));
        assert!((histogram.sum() - 500.065).abs() < 1e-6);
    }

    #[test]
    fn commits_are_settled_when_none_is_under_way() {
        let stats = Stats::new(&[]);
        assert_eq!(stats.settled_commits(), Some(0));
        let [first, second] = [stats.begin_commit(), stats.begin_commit()];
        drop(first);
        assert_eq!(stats.settled_commits(), None);
        drop(second);
        assert_eq!(stats.settled_commits(), Some(2));
    }

    #[test]
    fn records_are_in_flight_as_long_as_they_are_carried() {
        let stats = Stats::new(&[Arc::new(Dataset::without_columns("events"))]);
        let first = stats.carry("events", 5);
        let second = stats.carry("events", 7);
        assert_eq!(stats.of("events").map(DatasetStats::in_flight), Some(12));
        drop(first);
        assert_eq!(stats.of("events").map(DatasetStats::in_flight), Some(7));
        drop(second);
        assert_eq!(stats.of("events").map(DatasetStats::in_flight), Some(0));
        assert!(stats.carry("unknown", 1).is_none());
    }
}
