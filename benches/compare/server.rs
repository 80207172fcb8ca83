//! PostgreSQL servers: makes databases, runs psql, and polls what other processes have committed.

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use dataloader::config::DatabaseUrl;
use dataloader::retry::GIVE_UP_AFTER;
use dataloader::store::{Connection, Database};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::Result;
use crate::process::{Measured, Running};

/// The program's database.
pub const OURS: &str = "bench_ours";
/// The peers' database.
pub const PEER: &str = "bench_peer";

/// A PostgreSQL server, named by the URL of one of its databases. That database is not changed.
pub struct Server(pub String);

impl Server {
    /// The URL of another database of the server.
    pub fn url(&self, database: &str) -> String {
        let (url, query) = self.0.split_once('?').map_or((&*self.0, String::new()), |(url, query)| (url, format!("?{query}")));
        let authority = url.find("://").map_or(0, |i| i + 3);
        let end = url[authority..].find('/').map_or(url.len(), |i| authority + i);
        format!("{}/{database}{query}", &url[..end])
    }

    /// A psql command on that database that stops at the first error.
    pub fn psql(&self, database: &str) -> Command {
        let mut command = Command::new("psql");
        command.arg(self.url(database)).args(["-X", "-q", "-v", "ON_ERROR_STOP=1"]);
        command
    }

    fn execute(&self, statement: &str) -> Result<()> {
        Command::new("psql").arg(&self.0).args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", statement]).timed()?;
        Ok(())
    }

    pub fn recreate(&self, database: &str) -> Result<()> {
        self.execute(&format!("drop database if exists {database} with (force)"))?;
        self.execute(&format!("create database {database}"))
    }

    /// Runs a checkpoint, so that no measurement pays for writes of the previous one.
    pub fn checkpoint(&self) -> Result<()> {
        self.execute("checkpoint")
    }

    /// Checks the number of events: a fast program that loads nothing must not win.
    pub fn expect_events(&self, database: &str, table: &str, events: u64) -> Result<()> {
        let output = self.psql(database).args(["-A", "-t", "-c", &format!("select count(*) from {table}")]).output()?;
        let found = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if found == events.to_string() {
            Ok(())
        } else {
            Err(format!("{database}: {table} holds {found} of {events} events").into())
        }
    }
}

/// A wait that takes longer than this fails.
const WAIT_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// Polls committed data over a connection that stays open.
pub struct Observer<'r> {
    runtime: &'r Runtime,
    connection: Connection,
    /// The interval between two queries.
    pause: Duration,
}

impl<'r> Observer<'r> {
    /// Polls every `pause`. Latencies need a short one; throughput needs a longer one, because polling slows the measured
    /// process down.
    pub fn new(runtime: &'r Runtime, url: &str, pause: Duration) -> Result<Self> {
        let database = Database::new(&DatabaseUrl::parse(url)?, GIVE_UP_AFTER)?;
        Ok(Self { runtime, connection: runtime.block_on(database.connect())?, pause })
    }

    /// The integer result of a query.
    pub fn int(&mut self, query: &str) -> Result<i64> {
        Ok(self.runtime.block_on(self.connection.fetch_int(query, &[]))?)
    }

    /// Waits until the result of a query is at least `least`, and returns the time when it was seen. Fails if one of the
    /// `workers` fails.
    pub fn wait_for(&mut self, query: &str, least: i64, workers: &mut [Running]) -> Result<Instant> {
        let start = Instant::now();
        loop {
            let mut ended = true;
            for worker in &mut *workers {
                ended &= worker.has_ended()?;
            }
            let found = self.int(query)?;
            if found >= least {
                return Ok(Instant::now());
            }
            if ended || start.elapsed() > WAIT_TIMEOUT {
                let why = if ended { "its processes have ended" } else { "it takes too long" };
                return Err(format!("{query}: {found} of {least}, and {why}").into());
            }
            thread::sleep(self.pause);
        }
    }
}

const SERVICES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/services.sh");

/// A PostgreSQL server that one measurement may stop and start. Dropping removes it.
pub struct PrivateServer {
    directory: TempDir,
    pub server: Server,
}

impl PrivateServer {
    pub fn start() -> Result<Self> {
        // In TMPDIR like the other servers of the benches, because the servers' own users must be able to access the directory.
        let directory = tempfile::Builder::new().prefix("bench-postgres-").tempdir()?;
        let url = services(&["postgres", "start"], &directory, &[])?;
        Ok(Self { directory, server: Server(url.trim().to_owned()) })
    }

    /// Shuts the server down and closes all connections.
    pub fn stop(&self) -> Result<()> {
        services(&["postgres", "stop"], &self.directory, &["fast"]).map(drop)
    }

    /// Starts the server again, with the same data and address.
    pub fn restart(&self) -> Result<()> {
        services(&["postgres", "start"], &self.directory, &[]).map(drop)
    }
}

impl Drop for PrivateServer {
    fn drop(&mut self) {
        if let Err(error) = services(&["remove"], &self.directory, &[]) {
            eprintln!("bench: {error}");
        }
    }
}

fn services(verb: &[&str], directory: &TempDir, rest: &[&str]) -> Result<String> {
    let mut command = Command::new(SERVICES);
    // The server stops if this process dies.
    command.args(verb).arg(directory.path()).args(rest).env("SERVICES_OWNER", std::process::id().to_string());
    let output = command.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        return Err(format!("services.sh {}: {}", verb.join(" "), String::from_utf8_lossy(&output.stderr).trim()).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}
