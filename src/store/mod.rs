//! The seam to the databases: one set of statements for both, and what differs between them in `connection`, `sql`, `rows`
//! and `append`.

pub mod append; // rows into a raw table
pub mod connection; // one connection to either database
pub mod error; // what went wrong, by what can be done about it
pub mod ledger; // loads and chunks
pub mod lock; // what one process does at a time
pub mod messages; // of other programs: which are loaded
pub mod attempts; // messages that may end the process
pub mod model; // the modelled tables
pub mod rejects; // records that could not be loaded
pub mod rows; // rows as each store takes them
pub mod schema; // tables made and upgraded
pub mod sql; // the two dialects
pub mod upsert; // delta into master
mod watch; // over the answers of a server

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
use crate::retry::{RetryPolicy, short_pauses};

/// A database that can be connected to.
#[derive(Debug, Clone)]
pub struct Database {
    url: DatabaseUrl,
    options: ConnectionOptions,
}

impl Database {
    /// The database of that URL, not yet connected. `lock_wait`: how long a statement waits while another process holds
    /// SQLite's write lock.
    ///
    /// # Errors
    /// If the URL is wrong in more than its scheme.
    pub fn new(url: &DatabaseUrl, lock_wait: Duration) -> Result<Self> {
        let options = ConnectionOptions::new(url, lock_wait)
            .map_err(|error| Error::usage(format!("the database URL {url} is wrong: {error}")))?;
        Ok(Self { url: url.clone(), options })
    }

    /// Which SQL it speaks.
    pub fn dialect(&self) -> Dialect {
        match self.options {
            ConnectionOptions::Postgres(_) => Dialect::Postgres,
            ConnectionOptions::Sqlite(..) => Dialect::Sqlite,
        }
    }

    /// One attempt to connect.
    ///
    /// # Errors
    /// If it fails.
    pub async fn connect_once(&self) -> StoreResult<Connection> {
        self.options.connect().await
    }

    /// The same, and no longer than that.
    ///
    /// # Errors
    /// If it fails, or if there is no answer in time.
    pub async fn connect_within(&self, limit: Duration) -> StoreResult<Connection> {
        let connected = tokio::time::timeout(limit, self.connect_once()).await;
        connected.unwrap_or_else(|_| Err(StoreError::no_answer(Class::Unavailable, limit)))
    }

    /// Connects; while the database is away, tries again with jittered backoff for ten seconds.
    ///
    /// # Errors
    /// If the database refuses this user or stays away.
    pub async fn connect(&self) -> Result<Connection> {
        self.open_with(async |_| Ok(())).await
    }

    /// Connects and makes sure that the tables are there. Until then nothing is done that could not be repeated: states of the
    /// server that pass, as that it is read-only, are waited for like its absence.
    ///
    /// # Errors
    /// If the database refuses or stays away, or its tables do not fit the datasets.
    pub async fn open(&self, datasets: &[Arc<Dataset>], indexes: Indexes) -> Result<Connection> {
        self.open_with(async |connection| schema::ensure(connection, datasets, indexes).await).await
    }

    async fn open_with(&self, prepare: impl AsyncFn(&mut Connection) -> StoreResult<()>) -> Result<Connection> {
        let started = Instant::now();
        for pause in short_pauses() {
            let opened = async {
                let mut connection = self.connect_within(RetryPolicy::Limited.attempt_timeout(Some(started))).await?;
                prepare(&mut connection).await?;
                StoreResult::Ok(connection)
            };
            let error = match opened.await {
                Ok(connection) => return Ok(connection),
                Err(error) => error,
            };
            let pause = match RetryPolicy::Limited.pause(started, pause) {
                Some(pause) if error.class() == Class::Unavailable => pause,
                _ => return Err(self.explain(error)),
            };
            tracing::debug!("cannot connect to {}: {error}; trying again", self.url);
            tokio::time::sleep(pause).await;
        }
        unreachable!("the pauses never end")
    }

    /// Connects for a command that only reads: it makes nothing, changes nothing, and needs no more than the right to read.
    /// `None` where nothing was ever loaded: no file, or no tables of ours; [`Database::says_nothing_is_there`] says so.
    ///
    /// # Errors
    /// If the database refuses or stays away.
    pub async fn open_to_read(&self) -> Result<Option<Connection>> {
        if let DatabaseUrl::Sqlite(file) = &self.url
            && !file.exists()
        {
            return Ok(None);
        }
        let reading = Self { url: self.url.clone(), options: self.options.clone().read_only() };
        let mut connection = reading.connect().await?;
        let ledger = self.dialect().bare_table(Schema::Raw, "loads");
        let found = async {
            schema::refuse_newer(&mut connection).await?;
            Ok(schema::catalogue(&mut connection, Schema::Raw).await?.contains_key(&ledger))
        };
        if found.await.map_err(|error| self.explain(error))? {
            return Ok(Some(connection));
        }
        connection.close().await;
        Ok(None)
    }

    /// For people, when there is nothing to read.
    pub fn says_nothing_is_there(&self) -> String {
        format!("{self} has no tables of dataloader yet: `dataloader load`, `dataloader run` and `dataloader migrate` make them")
    }

    /// The error for the user, with the URL in front.
    pub fn explain(&self, error: StoreError) -> Error {
        Error::from(error).context(&self.url)
    }
}

impl std::fmt::Display for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.url.fmt(f)
    }
}
