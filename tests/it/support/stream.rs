//! The stream as its users see it: a pipeline that runs, files dropped into its inbox, and what must be true of the tables,
//! the ledger and the files afterwards.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::database::Store;
use super::process::{Background, Invocation, Outcome};
use super::{Sandbox, wait_until};

/// What the kill tests have in common: a source of choices that are the same in every run.
#[derive(Debug)]
pub struct Choices(u64);

impl Choices {
    pub fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound` (SplitMix64).
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// `count` events over ten days whose ids begin with `prefix`, a record to a line.
pub fn events_over_days(prefix: &str, count: usize) -> String {
    let day = |id: usize| format!("2024-05-{:02} 10:00:00", id % 10 + 1);
    (1..=count).map(|id| super::event(&format!("{prefix}-{id}"), &format!("u{}", id % 100), &day(id)) + "\n").collect()
}

impl Sandbox {
    /// The pipeline of this sandbox, not started: the one place that knows how it is run.
    pub fn pipeline<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Invocation {
        self.command(["run"].into_iter().chain(args))
    }

    /// Starts the pipeline; it watches the inbox when this returns.
    #[track_caller]
    pub fn start_pipeline(&self) -> Background {
        let mut pipeline = self.pipeline([]).spawn();
        pipeline.wait_for_stderr("watching ");
        pipeline
    }

    /// Loads what the inbox holds and ends.
    #[track_caller]
    pub fn run_once(&self) -> Outcome {
        self.pipeline(["--once", "--format", "json"]).run()
    }

    /// Puts a file into the inbox, whole at once.
    pub fn drop_in(&self, dataset: &str, name: impl AsRef<OsStr>, contents: impl AsRef<[u8]>) -> PathBuf {
        let unfinished = self.write(&format!("inbox/{dataset}/.unfinished"), contents);
        let path = unfinished.with_file_name(name.as_ref());
        fs::rename(unfinished, &path).expect("the inbox is writable");
        path
    }

    /// The names of the files in a directory of the inbox, sorted; none when it is missing.
    pub fn names_in(&self, directory: &str) -> Vec<Vec<u8>> {
        let entries = fs::read_dir(self.file("inbox").join(directory)).into_iter().flatten().flatten();
        let files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
        let mut names: Vec<Vec<u8>> = files.map(|entry| entry.file_name().as_bytes().to_vec()).collect();
        names.sort();
        names
    }

    /// The same without the load key in front.
    pub fn dropped_names_in(&self, directory: &str) -> Vec<String> {
        let mut names: Vec<String> =
            self.names_in(directory).iter().map(|name| String::from_utf8_lossy(&name[37..]).into_owned()).collect();
        names.sort();
        names
    }

    /// How many files of a dataset are in their last place.
    pub fn finished(&self, dataset: &str) -> usize {
        let failed = self.names_in(&format!("{dataset}/failed"));
        let reports = failed.iter().filter(|name| name.ends_with(b".error.json")).count();
        self.names_in(&format!("{dataset}/processed")).len() + failed.len() - reports
    }

    /// Waits until so many files of the dataset are in their last place, and their loads are over. In one process the one
    /// follows the other; over RabbitMQ a file moves when the broker has all of it.
    #[track_caller]
    pub fn wait_until_finished(&self, dataset: &str, files: usize) {
        wait_until(&format!("{files} files of {dataset} are finished"), || self.finished(dataset) >= files);
        if self.is_over_amqp() {
            let dropped = format!(
                "SELECT count(*) FROM {{raw.loads}} WHERE dataset = '{dataset}' AND source LIKE '%/inbox/%' AND status IN ('loaded', 'failed', 'repeated')"
            );
            let loads = || self.try_query(&dropped).ok()?[0][0].as_ref()?.parse::<usize>().ok();
            wait_until(&format!("{files} loads of {dataset} are over"), || loads().is_some_and(|loads| loads >= files));
        }
    }

    /// What must hold whenever the pipeline has nothing to do: every load is over and accounts for every record of its file, the
    /// model is right, no file or message is on its way, and all of it can be verified. Loads of messages have no end.
    #[track_caller]
    pub fn assert_settled(&self) {
        self.assert_at_rest();
        self.run(["verify"]).ok();
    }

    /// The same where the test has made rows that no load has brought.
    #[track_caller]
    pub fn assert_at_rest(&self) {
        if self.is_over_amqp() && self.datasets().iter().any(|dataset| self.queues().waiting(dataset) > 0) {
            // A run that a signal ends may leave messages that are loaded and not acknowledged: the next one passes over them.
            self.run_once();
        }
        self.assert_conserved();
        assert_eq!(
            self.lines("SELECT id, status, source FROM {raw.loads} WHERE status NOT IN ('loaded', 'failed', 'repeated', 'open')"),
            [""; 0]
        );
        for dataset in self.datasets() {
            for place in [dataset.clone(), format!("{dataset}/.loading")] {
                assert_eq!(self.names_in(&place), Vec::<Vec<u8>>::new(), "in inbox/{place}");
            }
            if self.is_over_amqp() {
                assert_eq!(self.queues().waiting(&dataset), 0, "messages in the queue of {dataset}");
            }
        }
        self.run(["model", "--check"]).ok();
    }

    /// What must hold at any moment: rows, rejects, chunks and counts of every load agree.
    #[track_caller]
    pub fn assert_conserved(&self) {
        let violations = [
            (
                "a load's counts do not add up",
                "SELECT id FROM {raw.loads} WHERE status = 'loaded' AND records_read <> rows_loaded + rows_rejected + records_skipped",
            ),
            (
                "rows are missing or doubled",
                "SELECT l.id, l.rows_loaded FROM {raw.loads} l WHERE l.dataset = 'events' \
                 AND l.rows_loaded <> (SELECT count(*) FROM {raw.events} e WHERE e._load_id = l.id)",
            ),
            (
                "the rows of a dataset whose records replace older ones are not those loaded less those removed",
                "SELECT sum(l.rows_loaded), sum(l.rows_removed) FROM {raw.loads} l WHERE l.dataset = 'orgs' \
                 HAVING sum(l.rows_loaded) - sum(l.rows_removed) <> (SELECT count(*) FROM {raw.orgs})",
            ),
            (
                "rejects are missing or doubled",
                "SELECT l.id FROM {raw.loads} l WHERE l.rows_rejected < (SELECT count(*) FROM {raw.rejects} r WHERE r.load_id = l.id)",
            ),
            (
                "chunks do not add up",
                "SELECT l.id FROM {raw.loads} l WHERE (SELECT coalesce(sum(b.records), 0) FROM {raw.batches} b WHERE b.load_id = l.id) \
                 <> l.rows_loaded + l.rows_rejected + l.records_skipped",
            ),
            (
                "chunks of a finished load are not in a row",
                "SELECT b.load_id, b.seq FROM {raw.batches} b JOIN {raw.loads} l ON l.id = b.load_id WHERE l.status <> 'loading' AND \
                 b.first_ordinal <> 1 + (SELECT coalesce(sum(p.records), 0) FROM {raw.batches} p WHERE p.load_id = b.load_id AND \
                 p.seq < b.seq)",
            ),
        ];
        for (what, sql) in violations {
            assert_eq!(self.lines(sql), [""; 0], "{what}");
        }
    }

    /// Every file was loaded exactly once: it is in `processed/` byte for byte, and its load has the rows it should have.
    /// `dropped`: name (each another one), contents, and how many records that are.
    #[track_caller]
    pub fn assert_each_loaded_once(&self, dropped: &[(String, String, usize)]) {
        let processed = self.file("inbox/events/processed");
        let mut found: BTreeMap<String, String> = BTreeMap::new();
        for entry in fs::read_dir(processed).expect("the pipeline made it").flatten() {
            let name = String::from_utf8_lossy(&entry.file_name().as_bytes()[37..]).into_owned();
            let contents = fs::read_to_string(entry.path()).expect("what was dropped here is UTF-8");
            assert_eq!(found.insert(name.clone(), contents), None, "{name} is there twice");
        }
        let expected: BTreeMap<String, String> =
            dropped.iter().map(|(name, contents, _)| (name.clone(), contents.clone())).collect();
        assert!(found == expected, "processed/ holds {:?}", found.keys());

        let mut loads: Vec<String> =
            dropped.iter().map(|(name, _, records)| format!("{name}|loaded|{records}|{records}")).collect();
        loads.sort();
        let mut ledger = self.lines("SELECT source, status, records_read, rows_loaded FROM {raw.loads}");
        for load in &mut ledger {
            *load = load.rsplit_once('/').map_or(load.clone(), |(_, name)| name.to_owned());
        }
        ledger.sort();
        assert_eq!(ledger, loads);
        let records: usize = dropped.iter().map(|(_, _, records)| records).sum();
        let ids = self.lines("SELECT count(*), count(DISTINCT id) FROM {raw.events}");
        assert_eq!(ids, [format!("{records}|{records}")], "rows, and different ones");
    }

    /// Waits until the process has ended, and returns what it printed with the kilobytes of its memory at its largest.
    #[track_caller]
    pub fn wait_and_measure(mut process: Background) -> (Outcome, u64) {
        let mut peak = 0;
        wait_until("it has ended", || {
            peak = peak.max(Self::peak_memory(&process).unwrap_or_default());
            !process.is_running()
        });
        (process.wait(), peak)
    }

    /// Kilobytes of the process's memory at its largest.
    pub fn peak_memory(process: &Background) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", process.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        line.trim().strip_suffix(" kB")?.trim().parse().ok()
    }

    /// Bytes that the process has read from anywhere.
    pub fn bytes_read(process: &Background) -> Option<u64> {
        let io = fs::read_to_string(format!("/proc/{}/io", process.id())).ok()?;
        io.lines().find_map(|line| line.strip_prefix("rchar: "))?.parse().ok()
    }

    /// Is the database one that writers lock as a whole?
    pub fn is_sqlite(&self) -> bool {
        self.store() == Store::Sqlite
    }
}

/// The one file of a directory whose name ends so.
#[track_caller]
pub fn only_file(directory: &Path, ending: &str) -> PathBuf {
    let entries = fs::read_dir(directory).expect("the directory is there").flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> = entries.filter(|path| path.as_os_str().as_bytes().ends_with(ending.as_bytes())).collect();
    assert_eq!(found.len(), 1, "in {}: {found:?}", directory.display());
    found.remove(0)
}
