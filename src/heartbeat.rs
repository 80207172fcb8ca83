//! The heartbeat files of the pipeline. Every `run` writes one, and `dataloader health` reads those of its working directory.
//!
//! The files are in a directory under the system's temporary directory. Its name is derived from the working directory. It is
//! thus writable in a container with a read-only root, and the same for all users. Each process has a file of its own and holds
//! a lock on it. The operating system releases the lock when the process ends. A file without a lock belongs to a dead process.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_128;
use uuid::Uuid;

use crate::config::{Role, Transport};
use crate::error::{Error, IoContext, Result, io_text};
use crate::flow::Flow;
use crate::vitals::Trouble;

/// The interval of a process's heartbeats.
pub const BEAT_INTERVAL: Duration = Duration::from_secs(5);
/// A process hangs if its last heartbeat is older than this.
const STALE_AFTER: Duration = Duration::from_secs(15);

/// The current connections of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    pub database: bool,
    /// Always `false` without RabbitMQ, where no broker is needed.
    pub broker: bool,
}

/// A heartbeat: the content of the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Beat {
    pid: u32,
    role: Role,
    transport: Transport,
    connected: Connections,
    /// What the stages of the process wait for.
    troubles: Vec<Problem>,
    flow: Flow,
    /// Milliseconds since 1970.
    at: i64,
}

/// What a stage waits for, or that it makes no progress.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Problem {
    text: String,
    /// The same without any host, user or file.
    without_names: String,
    /// The start, in milliseconds since 1970.
    since: i64,
}

impl Problem {
    fn new(trouble: &Trouble, now: Timestamp) -> Self {
        let lasted = i64::try_from(trouble.since.elapsed().as_millis()).unwrap_or(i64::MAX);
        let (text, without_names) = (trouble.to_string(), trouble.without_names());
        Self { text, without_names, since: now.as_millisecond().saturating_sub(lasted) }
    }

    /// A text of it, followed by how long the problem has lasted.
    fn at(&self, text: &str, now: Timestamp) -> String {
        format!("{text} (for {} s)", now.as_millisecond().saturating_sub(self.since).max(0) / 1_000)
    }
}

/// Reports to `dataloader health` that this process is alive, until it is dropped.
#[derive(Debug)]
pub struct Heartbeat {
    path: PathBuf,
    /// The locked file at `path`.
    file: File,
}

impl Heartbeat {
    /// Writes a first heartbeat, without any connection.
    ///
    /// # Errors
    /// If the temporary directory is not writable. The pipeline works without a heartbeat.
    pub fn start(role: Role, transport: Transport) -> Result<Self> {
        Self::start_in(&directory()?, role, transport, Timestamp::now())
    }

    fn start_in(directory: &Path, role: Role, transport: Transport, now: Timestamp) -> Result<Self> {
        fs::create_dir_all(directory).cannot(format_args!("make {} for the heartbeat", directory.display()))?;
        // Not named after the process id: in containers, every start may have the same one.
        let path = directory.join(format!("{}.json", Uuid::now_v7()));
        let file = write_locked(&path, &Beat::of(role, transport, Connections::default(), &[], Flow::default(), now))?;
        Ok(Self { path, file })
    }

    /// Reports that the process is alive, its connections, the problems of its stages, and what passes through them. Call it
    /// every [`BEAT_INTERVAL`], and whenever connections or problems change.
    ///
    /// # Errors
    /// If the file cannot be written. The next call may succeed.
    pub fn beat(&mut self, beat: &Beat) -> Result<()> {
        self.file = write_locked(&self.path, beat)?;
        Ok(())
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        // If the file remains, it has no lock and is ignored.
        let _ = fs::remove_file(&self.path);
    }
}

impl Beat {
    /// A heartbeat of this process, now.
    pub fn now(role: Role, transport: Transport, connected: Connections, troubles: &[Trouble], flow: Flow) -> Self {
        Self::of(role, transport, connected, troubles, flow, Timestamp::now())
    }

    fn of(role: Role, transport: Transport, connected: Connections, troubles: &[Trouble], flow: Flow, now: Timestamp) -> Self {
        let troubles = troubles.iter().map(|trouble| Problem::new(trouble, now)).collect();
        Self { pid: std::process::id(), role, transport, connected, troubles, flow, at: now.as_millisecond() }
    }

    /// The connections of the process.
    pub fn connected(&self) -> Connections {
        self.connected
    }

    /// The process, as this heartbeat shows it at a later time.
    pub fn process(self, now: Timestamp) -> Process {
        let troubles = |text: fn(&Problem) -> &str| self.troubles.iter().map(|t| t.at(text(t), now)).collect();
        Process {
            pid: self.pid,
            role: self.role,
            transport: self.transport,
            connected: self.connected,
            troubles: troubles(|trouble| &trouble.text),
            troubles_without_names: troubles(|trouble| &trouble.without_names),
            // The difference counts in both directions: a clock that was set back must not make a hanging process look alive.
            seconds_since_beat: now.as_millisecond().abs_diff(self.at) / 1_000,
            flow: self.flow,
        }
    }
}

/// Replaces the file atomically by one that is already locked. A reader thus always finds a complete and locked file.
fn write_locked(path: &Path, beat: &Beat) -> Result<File> {
    let unfinished = path.with_extension("tmp");
    let write = || -> io::Result<File> {
        // Remains of an interrupted attempt. The file is always created anew, because other users may write to the directory,
        // and links that they made must not be followed.
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).open(&unfinished)?;
        file.lock()?;
        file.write_all(&serde_json::to_vec(beat)?)?;
        fs::rename(&unfinished, path)?;
        Ok(file)
    };
    write().cannot(format_args!("write the heartbeat {}", path.display()))
}

/// The directory of the heartbeats of this working directory.
fn directory() -> Result<PathBuf> {
    let working_directory = std::env::current_dir().cannot("find the working directory")?;
    // Every process that uses this directory must find it, so the hash has no random seed.
    let hash = XxHash3_128::oneshot(working_directory.as_os_str().as_bytes());
    Ok(std::env::temp_dir().join(format!("dataloader-{hash:032x}")))
}

/// The health of the pipeline of this working directory.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Health {
    /// True if at least one process is alive, and every live process has a recent heartbeat, all its connections, and no
    /// problem.
    pub healthy: bool,
    /// The reason, in one line.
    pub reason: String,
    /// The live processes, the oldest first.
    pub processes: Vec<Process>,
}

/// A process of the pipeline.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Process {
    pub pid: u32,
    pub role: Role,
    pub transport: Transport,
    pub connected: Connections,
    /// What the stages wait for, and for how long; empty if there is no problem.
    pub troubles: Vec<String>,
    /// The same without any host, user or file.
    #[serde(skip)]
    pub troubles_without_names: Vec<String>,
    /// The age of the last heartbeat.
    pub seconds_since_beat: u64,
    /// What passes through its stages.
    #[serde(skip)]
    pub flow: Flow,
}

/// Reads the heartbeats of this working directory.
///
/// # Errors
/// If they cannot be read.
pub fn health() -> Result<Health> {
    Ok(Health::of(processes(&directory()?, Timestamp::now())?))
}

impl Health {
    /// The health of these processes.
    pub fn of(processes: Vec<Process>) -> Self {
        let problems: Vec<String> = processes.iter().flat_map(Process::problems).collect();
        let (healthy, reason) = if processes.is_empty() {
            (false, "no `dataloader run` is alive in this working directory".to_owned())
        } else if problems.is_empty() {
            (true, processes.iter().map(Process::to_string).collect::<Vec<_>>().join("; "))
        } else {
            (false, problems.join("; "))
        };
        Self { healthy, reason, processes }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let health = if self.healthy { "healthy" } else { "unhealthy" };
        write!(f, "{health}: {}", self.reason)
    }
}

impl Process {
    /// Why it is not healthy, without any host, user or file; empty if it is.
    pub fn problems_without_names(&self) -> Vec<String> {
        self.problems_of(&self.troubles_without_names)
    }

    /// Why it is not healthy; empty if it is.
    pub fn problems(&self) -> Vec<String> {
        self.problems_of(&self.troubles)
    }

    fn problems_of(&self, troubles: &[String]) -> Vec<String> {
        let Self { pid, seconds_since_beat, .. } = self;
        if *seconds_since_beat > STALE_AFTER.as_secs() {
            return vec![format!("process {pid} hangs: its last sign of life was {seconds_since_beat} s ago")];
        }
        let missing = self.missing().map(|missing| format!("process {pid} is not connected to {missing}"));
        missing.into_iter().chain(troubles.iter().map(|trouble| format!("process {pid}: {trouble}"))).collect()
    }

    /// The required connections that the process lacks.
    fn missing(&self) -> Option<&'static str> {
        let connected = self.connected;
        let needs_database = self.transport == Transport::Inproc || self.role != Role::Producer;
        let needs_broker = self.transport == Transport::Amqp;
        match (needs_database && !connected.database, needs_broker && !connected.broker) {
            (false, false) => None,
            (true, false) => Some("the database"),
            (false, true) => Some("the broker"),
            (true, true) => Some("the database and the broker"),
        }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} is alive and connected", self.pid)
    }
}

fn processes(directory: &Path, now: Timestamp) -> Result<Vec<Process>> {
    let cannot = |error: &io::Error| Error::failed(format!("cannot read {}: {}", directory.display(), io_text(error)));
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| cannot(&error))?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| cannot(&error))?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            paths.push(path);
        }
    }
    paths.sort(); // The names are time-ordered UUIDs.
    let mut processes = Vec::new();
    for path in paths {
        let Some(text) = read_live(&path).cannot(format_args!("read the heartbeat {}", path.display()))? else { continue };
        let beat: Beat = serde_json::from_slice(&text).map_err(|error| {
            Error::failed(format!("the heartbeat {} makes no sense: {error}", path.display()))
                .hint("was it written by another version? restart `dataloader run`")
        })?;
        processes.push(beat.process(now));
    }
    Ok(processes)
}

/// Reads the file of a live process. If the process is dead, removes the file and returns `None`.
fn read_live(path: &Path) -> io::Result<Option<Vec<u8>>> {
    loop {
        let mut file = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        // A shared lock, so that two concurrent readers do not take each other for the live process.
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => {
                let mut text = Vec::new();
                file.read_to_end(&mut text)?;
                return Ok(Some(text));
            }
            Err(TryLockError::Error(error)) => return Err(error),
            Ok(()) => match fs::metadata(path) {
                // The next heartbeat has replaced the file since it was opened. Read the new one.
                Ok(current) if current.ino() != file.metadata()?.ino() => {}
                _ => {
                    // If the file cannot be removed, it belongs to another user. It is ignored in any case.
                    let _ = fs::remove_file(path);
                    return Ok(None);
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vitals::{Target, Wait};

    impl Heartbeat {
        /// Beats as the same process at another time.
        fn beat_at(&mut self, connected: Connections, troubles: &[Trouble], now: Timestamp) -> Result<()> {
            let Beat { role, transport, .. } = serde_json::from_slice(&fs::read(&self.path).unwrap()).unwrap();
            self.beat(&Beat::of(role, transport, connected, troubles, Flow::default(), now))
        }
    }

    const BOTH: Connections = Connections { database: true, broker: true };
    const DATABASE: Connections = Connections { database: true, broker: false };
    const BROKER: Connections = Connections { database: false, broker: true };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn start(directory: &Path, role: Role, transport: Transport) -> Heartbeat {
        Heartbeat::start_in(directory, role, transport, at(0)).unwrap()
    }

    fn health_at(directory: &Path, second: i64) -> Health {
        Health::of(processes(directory, at(second)).unwrap())
    }

    fn files(directory: &Path) -> usize {
        fs::read_dir(directory).unwrap().count()
    }

    #[test]
    fn without_a_process_nothing_is_healthy() {
        let dir = directory();
        for path in [dir.path().to_owned(), dir.path().join("never made")] {
            let health = health_at(&path, 0);
            assert!(!health.healthy);
            assert_eq!(health.to_string(), "unhealthy: no `dataloader run` is alive in this working directory");
        }
    }

    #[test]
    fn a_process_is_healthy_once_it_is_connected_to_what_it_needs() {
        let cases = [
            (Role::All, Transport::Inproc, DATABASE, "is not connected to the database"),
            (Role::All, Transport::Amqp, BOTH, "is not connected to the database and the broker"),
            (Role::Producer, Transport::Amqp, BROKER, "is not connected to the broker"),
            (Role::Consumer, Transport::Amqp, BOTH, "is not connected to the database and the broker"),
        ];
        for (role, transport, needed, complaint) in cases {
            let dir = directory();
            let mut heartbeat = start(dir.path(), role, transport);
            let health = health_at(dir.path(), 1);
            assert_eq!((health.healthy, health.reason), (false, format!("process {} {complaint}", std::process::id())));
            heartbeat.beat_at(needed, &[], at(1)).unwrap();
            let health = health_at(dir.path(), 1);
            assert!(health.healthy, "{role:?} over {transport:?}: {health}");
            assert_eq!(health.processes[0].connected, needed);
        }
    }

    #[test]
    fn a_process_that_stops_beating_hangs_after_fifteen_seconds() {
        let dir = directory();
        let mut heartbeat = start(dir.path(), Role::All, Transport::Inproc);
        heartbeat.beat_at(DATABASE, &[], at(10)).unwrap();
        assert!(health_at(dir.path(), 25).healthy);
        let health = health_at(dir.path(), 26);
        assert!(!health.healthy && health.reason.ends_with("its last sign of life was 16 s ago"), "{health}");
        assert!(!health_at(dir.path(), -20).healthy, "the clock was set back");
        heartbeat.beat_at(DATABASE, &[], at(26)).unwrap();
        assert!(health_at(dir.path(), 26).healthy);
    }

    #[test]
    fn a_stage_that_waits_makes_its_process_unhealthy_with_the_reason() {
        let dir = directory();
        let mut heartbeat = start(dir.path(), Role::All, Transport::Inproc);
        let trouble = Trouble {
            stage: "writer",
            waits_for: Some(Wait::new(Target::Database, "sqlite://x.db: disk full")),
            since: std::time::Instant::now(),
        };
        heartbeat.beat_at(DATABASE, &[trouble], at(0)).unwrap();
        let expected = format!("process {}: the writer waits for sqlite://x.db: disk full (for 7 s)", std::process::id());
        let health = health_at(dir.path(), 7);
        assert_eq!((health.healthy, health.reason), (false, expected));
        let told = format!("process {}: the writer waits for the database (for 7 s)", std::process::id());
        assert_eq!(health.processes[0].problems_without_names(), [told], "strangers hear no name");
        heartbeat.beat_at(DATABASE, &[], at(8)).unwrap();
        assert!(health_at(dir.path(), 8).healthy);
    }

    #[test]
    fn one_process_that_is_not_connected_makes_all_unhealthy() {
        let dir = directory();
        let mut first = start(dir.path(), Role::Producer, Transport::Amqp);
        let mut second = start(dir.path(), Role::Consumer, Transport::Amqp);
        first.beat_at(BROKER, &[], at(0)).unwrap();
        second.beat_at(BROKER, &[], at(0)).unwrap();
        let health = health_at(dir.path(), 0);
        assert!(!health.healthy && health.reason.ends_with("is not connected to the database"), "{health}");
        assert_eq!(health.processes.iter().map(|process| process.role).collect::<Vec<_>>(), [Role::Producer, Role::Consumer]);
        drop(second);
        assert!(health_at(dir.path(), 0).healthy);
    }

    #[test]
    fn what_a_dead_process_left_counts_for_nothing_and_is_removed() {
        let dir = directory();
        let mut alive = start(dir.path(), Role::All, Transport::Inproc);
        alive.beat_at(DATABASE, &[], at(0)).unwrap();
        let left = dir.path().join("019b0000-0000-7000-8000-000000000000.json");
        fs::copy(&alive.path, &left).unwrap();
        let health = health_at(dir.path(), 0);
        assert!(health.healthy);
        assert_eq!((health.processes.len(), left.exists()), (1, false));
    }

    #[test]
    fn the_end_of_a_process_leaves_nothing() {
        let dir = directory();
        let mut heartbeat = start(dir.path(), Role::All, Transport::Inproc);
        for second in 0..3 {
            heartbeat.beat_at(DATABASE, &[], at(second)).unwrap();
            assert_eq!(files(dir.path()), 1);
        }
        drop(heartbeat);
        assert_eq!(files(dir.path()), 0);
    }

    #[test]
    fn whoever_asks_while_a_process_beats_always_finds_it_alive() {
        let dir = directory();
        let mut heartbeat = start(dir.path(), Role::All, Transport::Inproc);
        heartbeat.beat_at(DATABASE, &[], at(0)).unwrap();
        std::thread::scope(|scope| {
            let asking: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| {
                        for _ in 0..500 {
                            let health = health_at(dir.path(), 0);
                            assert!(health.healthy, "{health}");
                        }
                    })
                })
                .collect();
            while !asking.iter().all(std::thread::ScopedJoinHandle::is_finished) {
                heartbeat.beat_at(DATABASE, &[], at(0)).unwrap();
            }
        });
    }

    #[test]
    fn a_link_laid_in_the_way_is_not_followed() {
        let dir = directory();
        let mut heartbeat = start(dir.path(), Role::All, Transport::Inproc);
        let target = dir.path().join("target");
        fs::write(&target, "precious").unwrap();
        std::os::unix::fs::symlink(&target, heartbeat.path.with_extension("tmp")).unwrap();
        heartbeat.beat_at(DATABASE, &[], at(0)).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"precious");
    }

    #[test]
    fn an_unreadable_heartbeat_is_an_error_that_names_it() {
        let dir = directory();
        let path = dir.path().join("x.json");
        let file = File::create(&path).unwrap();
        file.lock().unwrap();
        let error = processes(dir.path(), at(0)).unwrap_err();
        assert!(error.message().contains("x.json makes no sense"), "{error}");
    }
}
