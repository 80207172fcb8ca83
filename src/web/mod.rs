//! The page, metrics and health over HTTP: what this process knows, and what its database holds.

mod access; // who may ask
mod answer; // answers, with the headers that none goes without
mod chart; // the model as SVG
mod form; // fields of queries and forms
mod letters; // the dead letters of RabbitMQ
mod live; // parts of the page that change while it is looked at
mod loads; // the loads, one by one
mod metrics; // for Prometheus
mod observer; // looks at the database, the inbox and the broker while somebody wants to know
mod page; // the first screen, and what all pages have
mod rejects; // the open rejects: listed, replayed, discarded
mod routes; // which path answers what
mod report; // the report as a file
mod server; // connections and their limits
mod text; // text of data, made harmless

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Semaphore;

use crate::config::{Config, Role};
use crate::error::{Error, Result};
use crate::heartbeat::{self, Process};
use crate::store::{Class, Connection, StoreError, StoreResult};
use crate::stream::Stats;
use access::Access;
use observer::{Observer, Seen};

pub use report::report_file;
pub use server::{Running, Server};

/// What the page shows, and to whom.
#[derive(Debug)]
pub struct Site {
    config: Config,
    access: Access,
    /// The pipeline of this process, if it has one.
    stats: Option<Arc<Stats>>,
    observer: Observer,
    /// Places for live pages.
    streams: Arc<Semaphore>,
    /// Places for questions to the database, so that many clients do not take its connections.
    queries: Semaphore,
}

/// How many questions the database is asked at a time, and how long an answer may take.
const MOST_QUERIES: usize = 4;
const READ_TIME: Duration = Duration::from_secs(10);
/// How many pages are live at a time.
const MOST_STREAMS: usize = 32;

impl Site {
    /// The page of a run.
    ///
    /// # Errors
    /// If the address needs a token and none is set.
    pub fn of_run(config: &Config, stats: &Arc<Stats>) -> Result<Self> {
        Self::new(config, Some(Arc::clone(stats)))
    }

    /// The page of a database, without a pipeline in this process.
    ///
    /// # Errors
    /// If the address needs a token and none is set.
    pub fn of_database(config: &Config) -> Result<Self> {
        Self::new(config, None)
    }

    fn new(config: &Config, stats: Option<Arc<Stats>>) -> Result<Self> {
        let token = config.http_token.as_ref();
        if let Some(address) = config.http.as_ref().filter(|address| !address.is_loopback() && token.is_none()) {
            return Err(Error::usage(format!("{address} can be reached from other machines, and no token is set"))
                .hint("set DATALOADER_HTTP_TOKEN to a long random text, or listen on 127.0.0.1"));
        }
        let access = Access::new(token.map(|token| token.expose()));
        // A producer may have no database at all.
        let has_database = stats.is_none() || config.role != Role::Producer;
        let observer = Observer::new(config, has_database, stats.clone())?;
        Ok(Self {
            config: config.clone(),
            access,
            stats,
            observer,
            streams: Arc::new(Semaphore::new(MOST_STREAMS)),
            queries: Semaphore::new(MOST_QUERIES),
        })
    }

    /// Looks at database and broker whenever somebody asks, for as long as it is polled.
    async fn observe(&self) -> Infallible {
        self.observer.run().await
    }

    /// What was last seen, at most about a second ago.
    async fn seen(&self) -> Arc<Seen> {
        self.observer.fresh().await
    }

    /// Reads from the database on a connection of its own; nothing if it has no tables. The error says why not.
    async fn read<T>(&self, read: impl AsyncFnOnce(&mut Connection) -> StoreResult<T>) -> Result<Option<T>, String> {
        let Some(database) = self.observer.database() else { return Err("this process has no database".to_owned()) };
        let Ok(_place) = self.queries.acquire().await else { return Err("the page ends".to_owned()) };
        let done = async {
            let Some(mut connection) = database.open_to_read_within(READ_TIME).await? else { return Ok(None) };
            let done = read(&mut connection).await?;
            connection.close().await;
            StoreResult::Ok(Some(done))
        };
        let done = tokio::time::timeout(READ_TIME, done).await;
        let done = done.unwrap_or_else(|_| Err(StoreError::no_answer(Class::Unavailable, READ_TIME)));
        done.map_err(|error| database.explain(error).to_string())
    }

    /// Whether rejects can be replayed and discarded.
    async fn may_write(&self, connection: &mut Connection) -> StoreResult<bool> {
        match self.observer.database() {
            Some(database) => database.may_write(connection).await,
            None => Ok(false),
        }
    }

    /// The processes of the pipeline: this one, or those of this working directory.
    fn processes(&self) -> Vec<Process> {
        match &self.stats {
            Some(stats) => stats.beat().map(|beat| beat.process(Timestamp::now())).into_iter().collect(),
            None => heartbeat::health().map(|health| health.processes).unwrap_or_default(),
        }
    }

    /// Why the process is not ready; empty if it is.
    async fn not_ready(&self) -> Vec<String> {
        match &self.stats {
            Some(stats) => match stats.beat() {
                Some(beat) => beat.process(Timestamp::now()).problems_without_names(),
                None => vec!["the pipeline has not started yet".to_owned()],
            },
            None => match &self.seen().await.error {
                Some(_) => vec!["the database does not answer".to_owned()],
                None => Vec::new(),
            },
        }
    }
}
