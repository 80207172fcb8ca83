//! The processes of a drill: started, killed, ended, paused, and started again.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use crate::commands::generate::SplitMix64;
use crate::config::{Config, DatabaseUrl, Transport};
use crate::error::{Error, IoContext, Result};

/// What happened to the processes.
#[derive(Debug, Default, Clone, Copy, Serialize)]
pub struct Incidents {
    started: u64,
    killed: u64,
    ended: u64,
    paused: u64,
    database_restarts: u64,
}

impl fmt::Display for Incidents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { started, killed, ended, paused, database_restarts } = self;
        write!(
            f,
            "started {started} processes, killed {killed}, ended {ended}, paused {paused}; restarted the database {database_restarts} times"
        )
    }
}

/// A process that runs the pipeline, or a part of it. It is killed when it is dropped.
struct Process {
    child: Child,
    name: String,
    log: PathBuf,
    role: &'static str,
    /// It was told to end.
    is_ending: bool,
}

/// All processes of the drill.
pub struct Processes<'a> {
    config: &'a Config,
    directory: &'a Path,
    program: PathBuf,
    alive: Vec<Process>,
    incidents: Incidents,
    findings: Vec<String>,
}

/// How long a process may take to finish what it has begun; twice the time after which it gives up by itself.
const END: Duration = Duration::from_secs(60);
/// How long the last run may take to load what is left.
const LAST_RUN: Duration = Duration::from_secs(600);
/// How often processes are looked at.
const LOOK: Duration = Duration::from_millis(20);

impl<'a> Processes<'a> {
    /// None is started yet.
    ///
    /// # Errors
    /// If the program's own file is not known.
    pub fn new(config: &'a Config, directory: &'a Path) -> Result<Self> {
        let program = std::env::current_exe().cannot("find the program's own file")?;
        Ok(Self { config, directory, program, alive: Vec::new(), incidents: Incidents::default(), findings: Vec::new() })
    }

    /// The roles that are always filled: several processes share inbox, queues and database.
    fn roles(&self) -> &'static [&'static str] {
        match self.config.transport {
            Transport::Inproc => &["all", "all"],
            Transport::Amqp => &["producer", "consumer", "consumer"],
        }
    }

    /// Starts processes for those that have ended, and notes those that nobody has ended.
    ///
    /// # Errors
    /// If a process cannot be started.
    pub fn replace_the_dead(&mut self) -> Result<()> {
        self.note_the_dead()?;
        for role in ["all", "producer", "consumer"] {
            let wanted = self.roles().iter().filter(|wanted| **wanted == role).count();
            let there = self.alive.iter().filter(|process| process.role == role && !process.is_ending).count();
            for _ in there..wanted {
                let process = self.start(role, &[])?;
                self.alive.push(process);
            }
        }
        Ok(())
    }

    fn start(&mut self, role: &'static str, more: &[&str]) -> Result<Process> {
        self.incidents.started += 1;
        let name = format!("process {} ({role})", self.incidents.started);
        let log = self.directory.join(format!("{}.log", self.incidents.started));
        let file = File::create(&log).cannot(format_args!("write {}", log.display()))?;
        let mut command = Command::new(&self.program);
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("DATALOADER_") {
                command.env_remove(variable);
            }
        }
        let transport = if self.config.transport == Transport::Amqp { "amqp" } else { "inproc" };
        command.args(["run", "--transport", transport, "--role", role, "--queue-prefix", &self.config.queue_prefix, "--inbox"]);
        command.arg(&self.config.inbox).args(more).current_dir(self.directory);
        // In the environment, because arguments can be seen by all users.
        match &self.config.database {
            DatabaseUrl::Postgres(url) => command.env("DATABASE_URL", url.expose()),
            DatabaseUrl::Sqlite(file) => command.env("DATABASE_URL", sqlite_url(file)),
        };
        command.env("AMQP_URL", self.config.amqp_url.expose());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).spawn();
        let child = child.cannot(format_args!("start {}", self.program.display()))?;
        Ok(Process { child, name, log, role, is_ending: false })
    }

    fn note_the_dead(&mut self) -> Result<()> {
        let mut alive = Vec::new();
        for mut process in std::mem::take(&mut self.alive) {
            match process.child.try_wait().cannot("wait for a process")? {
                None => alive.push(process),
                // The signal itself ends one that has only just begun.
                Some(status) if process.is_ending && (status.success() || status.signal() == Some(Signal::TERM.as_raw())) => {}
                Some(status) => self.findings.push(process.ended(status)),
            }
        }
        self.alive = alive;
        Ok(())
    }

    /// Kills a process, ends it in order, or pauses it for a moment.
    ///
    /// # Errors
    /// If a process cannot be waited for.
    pub async fn strike(&mut self, random: &mut SplitMix64) -> Result<()> {
        self.note_the_dead()?;
        let chosen = random.below(self.roles().len() as u64);
        let (what, pause) = (random.below(10), Duration::from_millis(50 + random.below(1_500)));
        let Some(at) = usize::try_from(chosen).ok().filter(|at| *at < self.alive.len()) else { return Ok(()) };
        match what {
            0..=5 => {
                let mut process = self.alive.swap_remove(at);
                process.signal(Signal::KILL);
                process.child.wait().cannot("wait for a process")?;
                self.incidents.killed += 1;
            }
            6..=7 if !self.alive[at].is_ending => {
                self.alive[at].signal(Signal::TERM);
                self.alive[at].is_ending = true;
                self.incidents.ended += 1;
            }
            _ => {
                self.alive[at].signal(Signal::STOP);
                tokio::time::sleep(pause).await;
                self.alive[at].signal(Signal::CONT);
                self.incidents.paused += 1;
            }
        }
        Ok(())
    }

    /// Runs the user's command.
    ///
    /// # Errors
    /// If it cannot be run, or fails.
    pub async fn restart_database(&mut self, command: &str) -> Result<()> {
        let mut shell =
            Command::new("sh").args(["-c", command]).stdin(Stdio::null()).stdout(Stdio::null()).spawn().cannot("run sh")?;
        let status = loop {
            if let Some(status) = shell.try_wait().cannot("wait for the command")? {
                break status;
            }
            tokio::time::sleep(LOOK).await;
        };
        if !status.success() {
            return Err(Error::failed(format!("`{command}` failed: {status}"))
                .hint("give a command that restarts the database and exits 0"));
        }
        self.incidents.database_restarts += 1;
        Ok(())
    }

    /// Ends all processes in order, then runs one that loads what is left.
    ///
    /// # Errors
    /// If a process cannot be started or waited for.
    pub async fn finish(&mut self) -> Result<()> {
        for process in &mut self.alive {
            process.signal(Signal::TERM);
            process.is_ending = true;
        }
        let began = Instant::now();
        while !self.alive.is_empty() && began.elapsed() < END {
            tokio::time::sleep(LOOK).await;
            self.note_the_dead()?;
        }
        let stuck = self.alive.drain(..).map(|process| format!("{} did not end in {END:.0?}", process.name));
        self.findings.extend(stuck);
        self.load_what_is_left().await
    }

    async fn load_what_is_left(&mut self) -> Result<()> {
        let mut last = self.start("all", &["--once"])?;
        let began = Instant::now();
        loop {
            match last.child.try_wait().cannot("wait for a process")? {
                // Some records cannot be loaded.
                Some(status) if matches!(status.code(), Some(0 | 3)) => break,
                Some(status) => {
                    self.findings.push(last.ended(status));
                    break;
                }
                None if began.elapsed() > LAST_RUN => {
                    self.findings.push(format!("{} did not end in {LAST_RUN:.0?}", last.name));
                    break;
                }
                None => tokio::time::sleep(LOOK).await,
            }
        }
        Ok(())
    }

    pub fn into_report(self) -> (Incidents, Vec<String>) {
        (self.incidents, self.findings)
    }
}

impl Process {
    /// Sends a signal; nothing happens if it has ended by itself, which is noticed later.
    fn signal(&self, signal: Signal) {
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// How it ended, with the last line of its log.
    fn ended(&self, status: ExitStatus) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let last = log.lines().rev().find(|line| line.contains("error")).or(log.lines().next_back()).unwrap_or("it said nothing");
        format!("{} ended by itself, {status}: {last}", self.name)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Errors mean that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The URL of an absolute path. Every byte that has a meaning in a URL is escaped.
fn sqlite_url(file: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let escaped = percent_encoding::percent_encode(file.as_os_str().as_bytes(), percent_encoding::NON_ALPHANUMERIC);
    format!("sqlite://{}", escaped.to_string().replace("%2F", "/"))
}
