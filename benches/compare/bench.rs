//! What the measurements share: files, the server, and the program's command lines.

use std::cell::OnceCell;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::Deserialize;
use tokio::runtime::Runtime;

use crate::Result;
use crate::process::{Measured, Running};
use crate::server::{OURS, Observer, Server};

pub const DATALOADER: &str = env!("CARGO_BIN_EXE_dataloader");
const EVENTS: u64 = 1_000_000;
const RUNS: usize = 5;
/// The 3 GB file has this many times the events.
const LARGE_FILE: u64 = 11;
/// The number of events in each small file.
const SMALL_FILE: usize = 1_000;
/// The interval of polling during a load. It is long enough to have no measurable effect on the load.
pub const POLL_INTERVAL: Duration = Duration::from_millis(5);

pub struct Bench {
    pub events: u64,
    pub runs: usize,
    pub dir: tempfile::TempDir,
    pub server: Server,
    pub runtime: Runtime,
    /// The events, in the directory that `load` reads.
    pub json: PathBuf,
    /// The same events as CSV. A null is an empty unquoted field.
    pub csv: PathBuf,
    small: OnceCell<Vec<PathBuf>>,
    large: OnceCell<PathBuf>,
}

impl Bench {
    pub fn prepare() -> Result<Self> {
        let server = Server(std::env::var("DATABASE_URL").map_err(|_| "DATABASE_URL must name a private PostgreSQL server")?);
        let events = setting("DATALOADER_BENCH_EVENTS")?.unwrap_or(EVENTS);
        let runs = setting("DATALOADER_BENCH_RUNS")?.unwrap_or(RUNS);
        if runs == 0 || events == 0 {
            return Err("DATALOADER_BENCH_RUNS and DATALOADER_BENCH_EVENTS must be at least 1".into());
        }
        // Not in /tmp, which may be a RAM disk.
        let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let json = write_events(&dir.path().join("raw_data"), events)?;
        let csv = dir.path().join("events.csv");
        write_csv(&json, &csv)?;
        // One thread for the connections of the benches. The other cores are for the measured processes.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        Ok(Self { events, runs, dir, server, runtime, json, csv, small: OnceCell::new(), large: OnceCell::new() })
    }

    /// The program with default settings except for the database, in a directory without a `dataloader.toml`.
    pub fn dataloader(&self, url: &str, args: &[&str]) -> Command {
        let mut command = Command::new(DATALOADER);
        command.current_dir(self.dir.path()).args(["--database", url]).args(args);
        command
    }

    /// Starts `run` on the program's database.
    pub fn start_run(&self, inbox: &Path, args: &[&str]) -> Result<Running> {
        self.start_run_on(&self.server.url(OURS), inbox, args)
    }

    /// Starts `run` on another server.
    pub fn start_run_on(&self, url: &str, inbox: &Path, args: &[&str]) -> Result<Running> {
        let mut command = self.dataloader(url, &["run", "--inbox"]);
        command.arg(inbox).args(args);
        let log = tempfile::Builder::new().prefix("run-").suffix(".log").tempfile_in(&self.dir)?.into_temp_path().keep()?;
        Running::start(command, log)
    }

    /// Creates the program's database anew, with its tables.
    pub fn fresh_database(&self) -> Result<()> {
        self.fresh_database_on(&self.server)
    }

    pub fn fresh_database_on(&self, server: &Server) -> Result<()> {
        server.recreate(OURS)?;
        self.dataloader(&server.url(OURS), &["migrate"]).timed()?;
        server.checkpoint()
    }

    /// Polls the program's database.
    pub fn observe(&self, pause: Duration) -> Result<Observer<'_>> {
        Observer::new(&self.runtime, &self.server.url(OURS), pause)
    }

    /// A new inbox with hard links to these files, so that the originals stay in place.
    pub fn inbox(&self, files: &[PathBuf]) -> Result<PathBuf> {
        let inbox = self.dir.path().join("inbox");
        if inbox.exists() {
            fs::remove_dir_all(&inbox)?;
        }
        let events = inbox.join("events");
        fs::create_dir_all(&events)?;
        for file in files {
            fs::hard_link(file, events.join(file.file_name().unwrap_or_default()))?;
        }
        Ok(inbox)
    }

    /// The events as many small files, each of them an array.
    pub fn small_files(&self) -> Result<&[PathBuf]> {
        if self.small.get().is_none() {
            let files = self.write_small_files()?;
            return Ok(self.small.get_or_init(|| files));
        }
        Ok(self.small.get().map(Vec::as_slice).unwrap_or_default())
    }

    fn write_small_files(&self) -> Result<Vec<PathBuf>> {
        let dir = self.dir.path().join("small");
        fs::create_dir_all(&dir)?;
        let records: Vec<String> = self.records(usize::MAX)?;
        let mut files = Vec::new();
        for (i, records) in records.chunks(SMALL_FILE).enumerate() {
            let path = dir.join(format!("events-{i:04}.json"));
            fs::write(&path, format!("[\n{}\n]\n", records.join(",\n")))?;
            files.push(path);
        }
        Ok(files)
    }

    /// The texts of the first events, at most `most`.
    pub fn records(&self, most: usize) -> Result<Vec<String>> {
        self.first_records(&self.json, most)
    }

    /// The texts of the first events of a file of [`Bench::events_file`].
    pub fn first_records(&self, file: &Path, most: usize) -> Result<Vec<String>> {
        records_of(file)?.take(most).collect()
    }

    /// A file of so many events, an array, in a directory of its own.
    pub fn events_file(&self, dir: &str, events: u64) -> Result<PathBuf> {
        write_events(&self.dir.path().join(dir), events)
    }

    /// An array file of 3 GB.
    pub fn large_file(&self) -> Result<&Path> {
        if self.large.get().is_none() {
            let file = self.events_file("large", self.large_events())?;
            return Ok(self.large.get_or_init(|| file));
        }
        Ok(self.large.get().map(PathBuf::as_path).unwrap_or(Path::new("")))
    }

    /// The number of events in the large file.
    pub fn large_events(&self) -> u64 {
        self.events * LARGE_FILE
    }

    /// The path of a database file that does not exist; an existing one is deleted.
    pub fn fresh_file(&self, name: &str) -> Result<PathBuf> {
        for suffix in ["", "-wal", "-shm"] {
            match fs::remove_file(self.dir.path().join(format!("{name}{suffix}"))) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
                _ => {}
            }
        }
        Ok(self.dir.path().join(name))
    }
}

/// Writes `<data>/events/events.json` with the program's own generator.
fn write_events(data: &Path, events: u64) -> Result<PathBuf> {
    let dir = data.join("events");
    fs::create_dir_all(&dir)?;
    let path = dir.join("events.json");
    let mut file = File::create(&path)?;
    dataloader::commands::generate::generate(events, 1, &mut file)?;
    file.sync_all()?;
    Ok(path)
}

/// The records of the generator's array, which has one record per line.
fn records_of(json: &Path) -> Result<impl Iterator<Item = Result<String>>> {
    let lines = BufReader::new(File::open(json)?).lines();
    Ok(lines.filter_map(|line| match line {
        Err(error) => Some(Err(error.into())),
        Ok(line) => {
            let record = line.trim().trim_end_matches(',');
            (!matches!(record, "[" | "]")).then(|| Ok(record.to_owned()))
        }
    }))
}

#[derive(Deserialize)]
struct Event<'a> {
    id: &'a str,
    event_type: &'a str,
    username: &'a str,
    user_email: &'a str,
    user_type: &'a str,
    organization_name: Option<&'a str>,
    plan_name: Option<&'a str>,
    received_at: &'a str,
}

/// Converts the generator's array to CSV.
fn write_csv(json: &Path, csv: &Path) -> Result<()> {
    let mut out = BufWriter::new(File::create(csv)?);
    for record in records_of(json)? {
        let record = record?;
        let e: Event = serde_json::from_str(&record)?;
        let (organization, plan) = (e.organization_name.unwrap_or_default(), e.plan_name.unwrap_or_default());
        let fields = [e.id, e.event_type, e.username, e.user_email, e.user_type, organization, plan, e.received_at];
        // Quotes would slow the peers down, and no generated value needs them.
        if fields.iter().any(|f| f.contains(['"', ',', '\n', '\r'])) {
            return Err(format!("needs quotes in CSV: {record}").into());
        }
        writeln!(out, "{}", fields.join(","))?;
    }
    out.into_inner()?.sync_all()?;
    Ok(())
}

pub fn peer_script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers").join(name)
}

fn setting<T: std::str::FromStr>(name: &str) -> Result<Option<T>> {
    match std::env::var(name) {
        Err(_) => Ok(None),
        Ok(text) => text.parse().map(Some).map_err(|_| format!("{name}={text} is not a number").into()),
    }
}
