//! Servers that belong to one test, which may stop, kill and restart them. `scripts/services.sh` does the work; it also
//! stops them when this process dies without having dropped them.

use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::database::ask;
use super::wait_until;

const SERVICES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/services.sh");

/// How PostgreSQL is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Connections are cut, then it shuts down in order.
    Fast,
    /// As in a crash: nothing is written any more, the next start recovers from the log.
    Immediate,
}

/// A PostgreSQL server of the test's own, started; its port and data survive a stop and a start.
#[derive(Debug)]
pub struct PrivatePostgres {
    url: String,
    directory: TempDir,
}

impl PrivatePostgres {
    #[track_caller]
    pub fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("dataloader-postgres-").tempdir().expect("a temporary directory");
        let url = services(&["postgres", "start"], directory.path(), &[]).trim().to_owned();
        Self { url, directory }
    }

    /// A copy of it that follows it, and that commits wait for from now on; `None`, with a message, where the server is in a container.
    #[track_caller]
    pub fn with_standby(&self) -> Option<Self> {
        if self.directory.path().join("container").exists() {
            eprintln!("SKIPPED: a standby needs the programs of PostgreSQL on this machine");
            return None;
        }
        let directory = tempfile::Builder::new().prefix("dataloader-standby-").tempdir().expect("a temporary directory");
        let primary = self.directory.path().to_str().expect("a plain path");
        let url = services(&["postgres", "standby"], directory.path(), &[primary]).trim().to_owned();
        let ask = |sql: &str| ask(&self.url, sql);
        ask("ALTER SYSTEM SET synchronous_standby_names = '*'");
        ask("SELECT pg_reload_conf()::text");
        wait_until("commits wait for the standby", || ask("SELECT sync_state FROM pg_stat_replication") == ["sync"]);
        Some(Self { url, directory })
    }

    /// A standby accepts writes from now on.
    #[track_caller]
    pub fn promote(&self) {
        services(&["postgres", "promote"], self.directory.path(), &[]);
    }

    /// As a superuser, on the database `postgres`.
    pub fn url(&self) -> &str {
        &self.url
    }

    #[track_caller]
    pub fn stop(&self, mode: StopMode) {
        let mode = match mode {
            StopMode::Fast => "fast",
            StopMode::Immediate => "immediate",
        };
        services(&["postgres", "stop"], self.directory.path(), &[mode]);
    }

    /// Starts it as a standby, which only reads; of no primary, so it has what it has now.
    #[track_caller]
    pub fn become_standby(&self) {
        self.stop(StopMode::Fast);
        let signal = self.directory.path().join("data/standby.signal");
        std::fs::write(signal, "").expect("the directory of the server is ours");
        self.restart();
    }

    /// Starts it again after [`stop`](Self::stop).
    #[track_caller]
    pub fn restart(&self) {
        let url = services(&["postgres", "start"], self.directory.path(), &[]);
        assert_eq!(url.trim(), self.url, "a restarted server keeps its address");
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        remove(&self.directory);
    }
}

/// A RabbitMQ node of the test's own, started; its port, queues and messages survive a stop, a kill and a start.
#[derive(Debug)]
pub struct PrivateRabbit {
    url: String,
    directory: TempDir,
}

impl PrivateRabbit {
    #[track_caller]
    pub fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("dataloader-rabbitmq-").tempdir().expect("a temporary directory");
        let url = services(&["rabbitmq", "start"], directory.path(), &[]).trim().to_owned();
        Self { url, directory }
    }

    /// Another node of its cluster; `None`, with a message, where it is in a container.
    #[track_caller]
    pub fn with_another(&self) -> Option<Self> {
        if self.directory.path().join("container").exists() {
            eprintln!("SKIPPED: a cluster needs the programs of RabbitMQ on this machine");
            return None;
        }
        let directory = tempfile::Builder::new().prefix("dataloader-rabbitmq-").tempdir().expect("a temporary directory");
        let first = self.directory.path().to_str().expect("a plain path");
        let url = services(&["rabbitmq", "join"], directory.path(), &[first]).trim().to_owned();
        Some(Self { url, directory })
    }

    /// With the user `guest`, who may do everything.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Shuts it down in order.
    #[track_caller]
    pub fn stop(&self) {
        services(&["rabbitmq", "stop"], self.directory.path(), &[]);
    }

    /// As a power failure would.
    #[track_caller]
    pub fn kill(&self) {
        services(&["rabbitmq", "kill"], self.directory.path(), &[]);
    }

    /// Starts it again after [`stop`](Self::stop) or [`kill`](Self::kill).
    #[track_caller]
    pub fn restart(&self) {
        let url = services(&["rabbitmq", "start"], self.directory.path(), &[]);
        assert_eq!(url.trim(), self.url, "a restarted node keeps its address");
    }

    /// Runs `rabbitmqctl` on it; returns what that prints.
    #[track_caller]
    pub fn ctl(&self, args: &[&str]) -> String {
        services(&["rabbitmq", "ctl"], self.directory.path(), args)
    }

    /// A directory that the node can read, gone with it.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for PrivateRabbit {
    fn drop(&mut self) {
        remove(&self.directory);
    }
}

fn remove(directory: &TempDir) {
    // A failure shows in the script's own message; a panic here would hide the test's.
    drop(Command::new(SERVICES).arg("remove").arg(directory.path()).status());
}

#[track_caller]
fn services(verb: &[&str], directory: &Path, rest: &[&str]) -> String {
    let output = Command::new(SERVICES)
        .args(verb)
        .arg(directory)
        .args(rest)
        .env("SERVICES_OWNER", std::process::id().to_string())
        .stdin(Stdio::null())
        .output()
        .expect("scripts/services.sh is part of the repository; it needs bash");
    assert!(output.status.success(), "services.sh {verb:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
