//! `./run.sh bench`: the program beside the usual tools, measured in one run on one machine.
//!
//! Needs `psql`, `sqlite3` and a private PostgreSQL server in `DATABASE_URL` (its user must be able to create databases and to
//! run `CHECKPOINT`). Arguments choose rows by a part of their name. `DATALOADER_BENCH_EVENTS` and `DATALOADER_BENCH_RUNS` make
//! a quick try of it; the figures that count are those of the defaults.

use std::error::Error;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;

mod table; // rows of figures and targets, printed as they come

use table::{Measure, Row};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const DATALOADER: &str = env!("CARGO_BIN_EXE_dataloader");
const EVENTS: u64 = 1_000_000;
const RUNS: usize = 5;
/// So many times the events make the 3 GB file.
const LARGE_FILE: u64 = 11;
const HELP_RUNS: usize = 20;

fn main() -> ExitCode {
    // `cargo bench` adds `--bench`.
    let chosen: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    match run(&chosen) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("bench: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(chosen: &[String]) -> Result<()> {
    let wanted = |row: &str| chosen.is_empty() || chosen.iter().any(|c| row.contains(c.as_str()));
    let bench = Bench::prepare()?;
    println!("{} events, medians of {}\n\n{}", bench.events, bench.runs, table::HEADER);

    if wanted("load, empty master") || wanted("load, same rows in master") {
        let [empty, same] = load(&bench)?;
        println!("{empty}\n{same}");
    }
    if wanted("load, SQLite") {
        println!("{}", load_sqlite(&bench)?);
    }
    if wanted("memory, 3 GB array") {
        println!("{}", memory(&bench)?);
    }
    if wanted("help") {
        println!("{}", help(&bench)?);
    }
    if wanted("binary size") {
        let bytes = fs::metadata(DATALOADER)?.len();
        println!("{}", Row::limit("binary size", Measure::Megabytes(bytes), Measure::Megabytes(25_000_000)));
    }
    Ok(())
}

/// `load` into an empty master, then into one that holds the same rows, beside the psql script in the same states.
fn load(bench: &Bench) -> Result<[Row; 2]> {
    let (mut ours, mut peers) = ([vec![], vec![]], [vec![], vec![]]);
    for _ in 0..bench.runs {
        bench.server.recreate("bench_ours")?;
        bench.dataloader(&bench.server.url("bench_ours"), &["migrate"]).timed()?;
        for times in &mut ours {
            bench.server.checkpoint()?;
            times.push(bench.dataloader(&bench.server.url("bench_ours"), &LOAD).timed()?);
        }
        bench.server.expect_events("bench_ours", "raw.events", bench.events)?;

        bench.server.recreate("bench_peer")?;
        bench.server.psql("bench_peer").arg("-f").arg(peer_script("load_tables.sql")).timed()?;
        for times in &mut peers {
            bench.server.checkpoint()?;
            let mut psql = bench.server.psql("bench_peer");
            times.push(psql.arg("-f").arg(peer_script("load.sql")).stdin(File::open(&bench.csv)?).timed()?);
        }
        bench.server.expect_events("bench_peer", "events", bench.events)?;
    }
    let ([our_empty, our_same], [peer_empty, peer_same]) = (ours, peers);
    Ok([
        Row::ratio("load, empty master", median(our_empty), "psql script", median(peer_empty), 0.6),
        Row::ratio("load, same rows in master", median(our_same), "psql script", median(peer_same), 0.6),
    ])
}

/// `load` into a new SQLite file, beside the sqlite3 script.
fn load_sqlite(bench: &Bench) -> Result<Row> {
    let (mut ours, mut peers) = (vec![], vec![]);
    for _ in 0..bench.runs {
        let database = bench.fresh_file("ours.db")?;
        let url = format!("sqlite://{}", database.display());
        bench.dataloader(&url, &["migrate"]).timed()?;
        ours.push(bench.dataloader(&url, &LOAD).timed()?);

        let database = bench.fresh_file("peer.db")?;
        bench.sqlite3(&database, "load_sqlite_tables.sql")?.timed()?;
        peers.push(bench.sqlite3(&database, "load_sqlite.sql")?.timed()?);
    }
    Ok(Row::ratio("load, SQLite", median(ours), "sqlite3 script", median(peers), 1.0))
}

/// The most memory that `load` of one large array ever holds.
fn memory(bench: &Bench) -> Result<Row> {
    let data = bench.dir.path().join("large");
    write_events(&data, bench.events * LARGE_FILE)?;
    bench.server.recreate("bench_ours")?;
    let mut load = bench.dataloader(&bench.server.url("bench_ours"), &LOAD);
    let peak = load.arg("--data-dir").arg(&data).peak_memory()?;
    fs::remove_dir_all(&data)?;
    Ok(Row::limit("memory, 3 GB array", Measure::Megabytes(peak), Measure::Megabytes(100_000_000)))
}

/// What a person waits for the program to start.
fn help(bench: &Bench) -> Result<Row> {
    let url = bench.server.url("bench_ours");
    let times: Result<Vec<_>> = (0..HELP_RUNS).map(|_| bench.dataloader(&url, &["--help"]).timed()).collect();
    Ok(Row::limit("--help", Measure::Milliseconds(median(times?)), Measure::Milliseconds(0.010)))
}

/// The batch command of every row; the other datasets have no files here.
const LOAD: [&str; 5] = ["load", "--dataset", "events", "--format", "json"];

/// The files and the server that the rows share.
struct Bench {
    events: u64,
    runs: usize,
    dir: tempfile::TempDir,
    server: Server,
    /// The same events as the JSON file's, null as the empty unquoted field.
    csv: PathBuf,
}

impl Bench {
    fn prepare() -> Result<Self> {
        let server = Server(std::env::var("DATABASE_URL").map_err(|_| "DATABASE_URL must name a private PostgreSQL server")?);
        let events = setting("DATALOADER_BENCH_EVENTS")?.unwrap_or(EVENTS);
        let runs = setting("DATALOADER_BENCH_RUNS")?.unwrap_or(RUNS);
        if runs == 0 {
            return Err("DATALOADER_BENCH_RUNS must be at least 1".into());
        }
        // Not in /tmp, which may be memory.
        let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let json = write_events(&dir.path().join("raw_data"), events)?;
        let csv = dir.path().join("events.csv");
        write_csv(&json, &csv)?;
        Ok(Self { events, runs, dir, server, csv })
    }

    /// The program with default settings but for the database; in a directory without a `dataloader.toml`.
    fn dataloader(&self, url: &str, args: &[&str]) -> Command {
        let mut command = Command::new(DATALOADER);
        command.current_dir(self.dir.path()).args(["--database", url]).args(args);
        command
    }

    fn sqlite3(&self, database: &Path, script: &str) -> Result<Command> {
        let mut command = Command::new("sqlite3");
        command.current_dir(self.dir.path()).arg("-bail").arg(database).stdin(File::open(peer_script(script))?);
        Ok(command)
    }

    /// The path of a database file that does not exist (any more).
    fn fresh_file(&self, name: &str) -> Result<PathBuf> {
        for suffix in ["", "-wal", "-shm"] {
            match fs::remove_file(self.dir.path().join(format!("{name}{suffix}"))) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
                _ => {}
            }
        }
        Ok(self.dir.path().join(name))
    }
}

/// A PostgreSQL server by the URL of a database on it, which stays as it is.
struct Server(String);

impl Server {
    /// The URL of another database of the server.
    fn url(&self, database: &str) -> String {
        let (url, query) = self.0.split_once('?').map_or((&*self.0, String::new()), |(url, query)| (url, format!("?{query}")));
        let authority = url.find("://").map_or(0, |i| i + 3);
        let end = url[authority..].find('/').map_or(url.len(), |i| authority + i);
        format!("{}/{database}{query}", &url[..end])
    }

    /// psql on that database, ended by the first error.
    fn psql(&self, database: &str) -> Command {
        let mut command = Command::new("psql");
        command.arg(self.url(database)).args(["-X", "-q", "-v", "ON_ERROR_STOP=1"]);
        command
    }

    fn execute(&self, statement: &str) -> Result<()> {
        Command::new("psql").arg(&self.0).args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", statement]).timed()?;
        Ok(())
    }

    fn recreate(&self, database: &str) -> Result<()> {
        self.execute(&format!("drop database if exists {database} with (force)"))?;
        self.execute(&format!("create database {database}"))
    }

    /// So that no measurement pays for what the one before it left to be written.
    fn checkpoint(&self) -> Result<()> {
        self.execute("checkpoint")
    }

    /// A fast program that loads nothing must not win.
    fn expect_events(&self, database: &str, table: &str, events: u64) -> Result<()> {
        let output = self.psql(database).args(["-A", "-t", "-c", &format!("select count(*) from {table}")]).output()?;
        let found = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if found == events.to_string() {
            Ok(())
        } else {
            Err(format!("{database}: {table} holds {found} of {events} events").into())
        }
    }
}

/// What the rows measure of a command that must succeed.
trait Measured {
    /// Seconds from start to end.
    fn timed(&mut self) -> Result<f64>;
    /// Bytes of resident memory at the most.
    fn peak_memory(&mut self) -> Result<u64>;
}

impl Measured for Command {
    fn timed(&mut self) -> Result<f64> {
        let start = Instant::now();
        let output = self.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?.wait_with_output()?;
        let seconds = start.elapsed().as_secs_f64();
        if output.status.success() {
            return Ok(seconds);
        }
        let program = self.get_program().display();
        Err(format!("{program}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()).into())
    }

    fn peak_memory(&mut self) -> Result<u64> {
        let mut child = self.stdout(Stdio::null()).spawn()?;
        let status = format!("/proc/{}/status", child.id());
        let mut peak = 0;
        let ended = loop {
            // The kernel keeps the high-water mark, so a look now and then misses only the last moment.
            if let Some(bytes) = fs::read_to_string(&status).ok().as_deref().and_then(high_water_mark) {
                peak = bytes;
            }
            if let Some(ended) = child.try_wait()? {
                break ended;
            }
            thread::sleep(Duration::from_millis(10));
        };
        if ended.success() { Ok(peak) } else { Err(format!("{}: {ended}", self.get_program().display()).into()) }
    }
}

/// `VmHWM` of a process's status, in bytes.
fn high_water_mark(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Writes `<data>/events/events.json` with the program's own generator.
fn write_events(data: &Path, events: u64) -> Result<PathBuf> {
    let dir = data.join("events");
    fs::create_dir_all(&dir)?;
    let path = dir.join("events.json");
    let mut file = File::create(&path)?;
    dataloader::generate::generate(events, 1, &mut file)?;
    file.sync_all()?;
    Ok(path)
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

/// The generator's array, which has one event per line, as CSV.
fn write_csv(json: &Path, csv: &Path) -> Result<()> {
    let mut out = BufWriter::new(File::create(csv)?);
    for line in BufReader::new(File::open(json)?).lines() {
        let line = line?;
        let record = line.trim().trim_end_matches(',');
        if matches!(record, "[" | "]") {
            continue;
        }
        let e: Event = serde_json::from_str(record)?;
        let (organization, plan) = (e.organization_name.unwrap_or_default(), e.plan_name.unwrap_or_default());
        let fields = [e.id, e.event_type, e.username, e.user_email, e.user_type, organization, plan, e.received_at];
        // Quotes would slow the peers down, and the generator makes nothing that needs them.
        if fields.iter().any(|f| f.contains(['"', ',', '\n', '\r'])) {
            return Err(format!("needs quotes in CSV: {record}").into());
        }
        writeln!(out, "{}", fields.join(","))?;
    }
    out.into_inner()?.sync_all()?;
    Ok(())
}

fn peer_script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers").join(name)
}

fn setting<T: std::str::FromStr>(name: &str) -> Result<Option<T>> {
    match std::env::var(name) {
        Err(_) => Ok(None),
        Ok(text) => text.parse().map(Some).map_err(|_| format!("{name}={text} is not a number").into()),
    }
}

/// The middle one; of an even number the lower of the two in the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() - 1) / 2]
}
