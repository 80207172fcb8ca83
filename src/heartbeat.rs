//! The heartbeat files of the pipeline. Every `run` writes one, and `dataloader health` reads those of its working directory.
//!
//! The files are in directories of this user below `XDG_RUNTIME_DIR` and the system's temporary directories: writable in a
//! container with a read-only root. Their name is derived from the working directory. Each process writes a file of its own into
//! each of them, because those who ask may have another environment, and holds a lock on it. The operating system releases the
//! lock when the process ends. A file without a lock belongs to a dead process.

mod place; // directories that only this user can change

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_128;
use uuid::Uuid;

use crate::config::{Role, Transport};
use crate::error::{Error, IoContext, Result, io_text};
use crate::flow::Flow;
use crate::vitals::{Target, Trouble};
use place::Place;

/// The interval of a process's heartbeats.
pub const BEAT_INTERVAL: Duration = Duration::from_secs(5);
/// A process hangs if its last heartbeat is older than this.
const STALE_AFTER: Duration = Duration::from_secs(15);

/// The current connections of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    pub database: bool,
    /// Always `false` without RabbitMQ, where no broker is needed.
    pub broker: bool,
    /// The server as `HOST:PORT`; none for SQLite, and while it is not connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database_host: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker_host: Option<String>,
}

impl Connections {
    /// The hosts, each with what it is.
    pub fn hosts(&self) -> impl Iterator<Item = (Target, &str)> {
        let hosts = [(Target::Database, &self.database_host), (Target::Broker, &self.broker_host)];
        hosts.into_iter().filter_map(|(target, host)| Some((target, host.as_deref()?)))
    }
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
    directories: Vec<PathBuf>,
    /// The name of its file in each of them.
    name: String,
    /// Where it was written last, and the locked files.
    written: Vec<(Place, File)>,
}

impl Heartbeat {
    /// Writes a first heartbeat, without any connection.
    ///
    /// # Errors
    /// If there is no safe place for it. The pipeline works without a heartbeat.
    pub fn start(role: Role, transport: Transport) -> Result<Self> {
        Self::start_in(directories()?, role, transport, Timestamp::now())
    }

    fn start_in(directories: Vec<PathBuf>, role: Role, transport: Transport, now: Timestamp) -> Result<Self> {
        // Not named after the process id: in containers, every start may have the same one.
        let mut heartbeat = Self { directories, name: format!("{}.json", Uuid::now_v7()), written: Vec::new() };
        heartbeat.beat(&Beat::of(role, transport, Connections::default(), &[], Flow::default(), now))?;
        Ok(heartbeat)
    }

    /// Reports that the process is alive, its connections, the problems of its stages, and what passes through them. Call it
    /// every [`BEAT_INTERVAL`], and whenever connections or problems change.
    ///
    /// # Errors
    /// If no file can be written. The next call may succeed.
    pub fn beat(&mut self, beat: &Beat) -> Result<()> {
        let content = serde_json::to_vec(beat).expect("a heartbeat can be written as JSON");
        let mut refused = Vec::new();
        let mut written = Vec::new();
        for directory in &self.directories {
            // Made again where it was removed, as at the end of a login.
            let write = Place::make(directory).and_then(|place| Ok((place.write_locked(&self.name, &content)?, place)));
            match write {
                Ok((file, place)) => written.push((place, file)),
                Err(error) => refused.push(unsafe_place(directory, &error)),
            }
        }
        if written.is_empty() {
            return Err(Error::failed(format!("no safe place for the heartbeat: {}", refused.join("; ")))
                .hint("set XDG_RUNTIME_DIR to a directory of this user"));
        }
        self.written = written;
        Ok(())
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        for (place, _) in &self.written {
            // If the file remains, it has no lock and is ignored.
            let _ = place.remove(&self.name);
        }
    }
}

/// Why a directory is not used, for the user.
fn unsafe_place(directory: &Path, error: &io::Error) -> String {
    format!("{}: {}", directory.display(), io_text(error))
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
    pub fn connected(&self) -> &Connections {
        &self.connected
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

/// The directories of the heartbeats of this working directory.
fn directories() -> Result<Vec<PathBuf>> {
    let working_directory = std::env::current_dir().cannot("find the working directory")?;
    // Every process that uses these directories must find them, so the hash has no random seed.
    let hash = XxHash3_128::oneshot(working_directory.as_os_str().as_bytes());
    Ok(place::candidates(&format!("{hash:032x}")))
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
    health_in(&directories()?, Timestamp::now())
}

fn health_in(directories: &[PathBuf], now: Timestamp) -> Result<Health> {
    let (processes, refused) = processes(directories, now)?;
    let is_alone = processes.is_empty();
    let mut health = Health::of(processes);
    if is_alone && !refused.is_empty() {
        health.reason = format!("{}, as far as can be seen; not safe to look into: {}", health.reason, refused.join("; "));
    }
    Ok(health)
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
    pub fn missing(&self) -> Option<&'static str> {
        let connected = &self.connected;
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

/// The live processes whose heartbeats are in these directories, the oldest first, and the directories that are not safe.
fn processes(directories: &[PathBuf], now: Timestamp) -> Result<(Vec<Process>, Vec<String>)> {
    let mut refused = Vec::new();
    // By the names of the files, which are time-ordered UUIDs. A process may have one in each directory.
    let mut beats: BTreeMap<String, Beat> = BTreeMap::new();
    for directory in directories {
        let place = match Place::open(directory) {
            Ok(Some(place)) => place,
            Ok(None) => continue,
            Err(error) => {
                refused.push(unsafe_place(directory, &error));
                continue;
            }
        };
        for name in place.names().cannot(format_args!("read {}", directory.display()))? {
            let path = directory.join(&name);
            let Some(text) = place.read_live(&name).cannot(format_args!("read the heartbeat {}", path.display()))? else {
                continue;
            };
            let beat: Beat = serde_json::from_slice(&text).map_err(|error| {
                Error::failed(format!("the heartbeat {} makes no sense: {error}", path.display()))
                    .hint("was it written by another version? restart `dataloader run`")
            })?;
            match beats.get(&name) {
                Some(other) if other.at >= beat.at => {}
                _ => drop(beats.insert(name, beat)),
            }
        }
    }
    Ok((beats.into_values().map(|beat| beat.process(now)).collect(), refused))
}

#[cfg(test)]
mod tests;
