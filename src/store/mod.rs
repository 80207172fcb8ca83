//! The database layer. Both databases share the same statements; their differences are in `connection`, `sql`, `rows` and
//! `append`.

pub mod append; // rows into a raw table
pub mod backfill; // fills columns that were added later
pub mod connection; // one connection to either database
pub mod error; // errors, classified by what the caller can do
pub mod ledger; // one row per load
pub mod chunk_lines; // its lines, one per chunk
pub mod contents; // which files a dataset has already
pub mod indexes; // of the raw tables
pub mod lock; // named locks between processes
pub mod messages; // messages of other programs: which are loaded
pub mod attempts; // how often processing of a message was started
pub mod model; // the modelled tables
pub mod open_rejects; // records that could not be loaded
pub mod rows; // rows encoded for each database
pub mod schema; // creates and upgrades the tables
mod servers; // the servers of a URL, tried in turn
mod session; // settings of a PostgreSQL session, and whether it is one
pub mod sql; // the two dialects
mod stage_file; // rows that the server reads from a shared directory
pub mod stream_upsert; // the stream's records replace older ones
pub mod unknown_keys; // keys that no column takes
pub mod unload; // takes loads back
pub mod upsert; // moves the delta into the master
mod value; // arguments of statements, fields of rows
mod watch; // detects a server that no longer answers

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use append::{Appender, RawTable};
pub use connection::{Arg, Connection, ConnectionOptions, Field};
pub use error::{Class, StoreError, StoreResult};
pub use rows::Rows;
pub use schema::Indexes;
pub use sql::{Day, Dialect, Schema};

use crate::config::DatabaseUrl;
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::retry::{Retry, RetryPolicy};

/// A database that connections can be opened to.
#[derive(Debug, Clone)]
pub struct Database {
    url: DatabaseUrl,
    options: ConnectionOptions,
}

impl Database {
    /// The database of a URL, not yet connected. `lock_wait` says how long a statement waits while another process holds
    /// SQLite's write lock.
    ///
    /// # Errors
    /// If the URL is not valid for its scheme.
    pub fn new(url: &DatabaseUrl, lock_wait: Duration) -> Result<Self> {
        let options = ConnectionOptions::new(url, lock_wait)
            .map_err(|error| Error::usage(format!("the database URL {url} is wrong: {error}")))?;
        Ok(Self { url: url.clone(), options })
    }

    /// The SQL dialect of the database.
    pub fn dialect(&self) -> Dialect {
        match self.options {
            ConnectionOptions::Postgres(_) => Dialect::Postgres,
            ConnectionOptions::Sqlite(..) => Dialect::Sqlite,
        }
    }

    /// The server that was connected last, as `HOST:PORT`; none for SQLite.
    pub fn connected(&self) -> Option<&str> {
        match &self.options {
            ConnectionOptions::Postgres(servers) => servers.connected(),
            ConnectionOptions::Sqlite(_) => None,
        }
    }

    /// Whether the URL names several servers.
    pub fn has_several_hosts(&self) -> bool {
        matches!(&self.options, ConnectionOptions::Postgres(servers) if servers.are_several())
    }

    /// Opens a connection in one attempt.
    ///
    /// # Errors
    /// If it fails.
    pub async fn connect_once(&self) -> StoreResult<Connection> {
        self.options.connect().await
    }

    /// Opens a connection in one attempt that takes no longer than `limit`.
    ///
    /// # Errors
    /// If it fails, or if there is no answer in time.
    pub async fn connect_within(&self, limit: Duration) -> StoreResult<Connection> {
        let connected = tokio::time::timeout(limit, self.connect_once()).await;
        connected.unwrap_or_else(|_| Err(StoreError::no_answer(Class::Unavailable, limit)))
    }

    /// Connects. While the database is unavailable, it tries again for ten seconds with jittered backoff.
    ///
    /// # Errors
    /// If the database refuses this user or stays unavailable.
    pub async fn connect(&self) -> Result<Connection> {
        self.open_with(async |_| Ok(())).await
    }

    /// Connects and ensures that the tables exist and fit the datasets. All of this can be repeated, so a temporary state of
    /// the server (for example, it is read-only) is retried like an unreachable server.
    ///
    /// # Errors
    /// If the database refuses the connection or stays unavailable, or if its tables do not fit the datasets.
    pub async fn open(&self, datasets: &[Arc<Dataset>], indexes: Indexes) -> Result<Connection> {
        self.open_with(async |connection| schema::ensure(connection, datasets, indexes).await).await
    }

    async fn open_with(&self, prepare: impl AsyncFn(&mut Connection) -> StoreResult<()>) -> Result<Connection> {
        let mut retry = Retry::new(RetryPolicy::Limited);
        loop {
            let started = Instant::now();
            let opened = async {
                let mut connection = self.connect_within(retry.attempt_timeout()).await?;
                prepare(&mut connection).await?;
                StoreResult::Ok(connection)
            };
            let error = match opened.await {
                Ok(connection) => return Ok(connection),
                Err(error) => error,
            };
            retry.failed(started.elapsed());
            if error.class() != Class::Unavailable || !retry.goes_on() {
                return Err(self.explain(error));
            }
            tracing::debug!("cannot connect to {}: {error}; trying again", self.url);
            retry.pause().await;
        }
    }

    /// Connects for a command that only reads. It creates nothing, changes nothing, and needs only the right to read. Returns
    /// `None` if nothing was ever loaded: the file or the tables do not exist. [`Database::says_nothing_is_there`] is the
    /// message for that case.
    ///
    /// # Errors
    /// If the database refuses the connection or stays unavailable.
    pub async fn open_to_read(&self) -> Result<Option<Connection>> {
        if let DatabaseUrl::Sqlite(file) = &self.url
            && !file.exists()
        {
            return Ok(None);
        }
        let reading = Self { url: self.url.clone(), options: self.options.clone().read_only() };
        let connection = reading.connect().await?;
        self.with_tables(connection).await.map_err(|error| self.explain(error))
    }

    /// The same in one attempt that takes no longer than `limit`.
    ///
    /// # Errors
    /// If the database refuses the connection, or if there is no answer in time.
    pub async fn open_to_read_within(&self, limit: Duration) -> StoreResult<Option<Connection>> {
        if let DatabaseUrl::Sqlite(file) = &self.url
            && !file.exists()
        {
            return Ok(None);
        }
        let reading = Self { url: self.url.clone(), options: self.options.clone().read_only() };
        let opened = tokio::time::timeout(limit, async { self.with_tables(reading.connect_once().await?).await });
        opened.await.unwrap_or_else(|_| Err(StoreError::no_answer(Class::Unavailable, limit)))
    }

    /// Connects for reading alone, whether or not the tables are there, in one attempt that takes no longer than `limit`.
    ///
    /// # Errors
    /// If it fails, or if there is no answer in time.
    pub async fn connect_to_read_within(&self, limit: Duration) -> StoreResult<Connection> {
        let reading = Self { url: self.url.clone(), options: self.options.clone().read_only() };
        reading.connect_within(limit).await
    }

    /// The connection, if the database has our tables.
    async fn with_tables(&self, mut connection: Connection) -> StoreResult<Option<Connection>> {
        schema::refuse_newer(&mut connection).await?;
        if schema::are_there(&mut connection).await? {
            return Ok(Some(connection));
        }
        connection.close().await;
        Ok(None)
    }

    /// Whether this user may change what the ledger says and replay rejects, as far as the database tells without a change.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn may_write(&self, connection: &mut Connection) -> StoreResult<bool> {
        match &self.url {
            DatabaseUrl::Sqlite(file) => Ok(std::fs::OpenOptions::new().append(true).open(file).is_ok()),
            DatabaseUrl::Postgres(_) => {
                let may = "not pg_is_in_recovery() and has_table_privilege('raw.rejects', 'delete') \
                           and has_table_privilege('raw.loads', 'insert')";
                Ok(connection.fetch_int(format!("select ({may})::int"), &[]).await? != 0)
            }
        }
    }

    /// Whether nobody has loaded anything into it: SQLite's file is not there, PostgreSQL has none of the program's schemas.
    ///
    /// # Errors
    /// If the database refuses the connection or stays unavailable.
    pub async fn is_untouched(&self) -> Result<bool> {
        if let DatabaseUrl::Sqlite(file) = &self.url {
            return Ok(!file.exists());
        }
        let mut connection = self.connect().await?;
        let schemas = "select count(*) from pg_namespace where nspname in ('raw', 'modelled', 'dataloader')";
        let found = connection.fetch_int(schemas, &[]).await;
        connection.close().await;
        found.map(|found| found == 0).map_err(|error| self.explain(error))
    }

    /// The message for the user when the database has no tables to read.
    pub fn says_nothing_is_there(&self) -> String {
        format!("{self} has no tables of dataloader yet: `dataloader load`, `dataloader run` and `dataloader migrate` make them")
    }

    /// The error for the user, prefixed with the URL.
    pub fn explain(&self, error: StoreError) -> Error {
        Error::from(error).context(&self.url)
    }
}

impl std::fmt::Display for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.url.fmt(f)
    }
}
