//! What a run is connected to: the database, through connections that outlive its absences, and the broker.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::options::RunOptions;
use crate::config::{Config, Transport};
use crate::error::Result;
use crate::retry::{Patience, short_pauses};
use crate::store::{Class, Connection, Database, StoreError, StoreResult};
use crate::transport::amqp::connection::{Broker, Connected};
use crate::transport::amqp::topology::Topology;
use crate::vitals::{Stage, Vitals};

/// Where a run gets its connections.
pub struct Links {
    pub database: Database,
    /// With `--transport amqp`.
    pub broker: Option<BrokerLink>,
    /// What the stages do and wait for.
    pub vitals: Vitals,
    /// A database that once let this process in and now refuses is being restored or reconfigured: worth waiting for.
    was_connected: Arc<AtomicBool>,
}

/// How long a statement of the stream waits for SQLite's write lock before it is tried again from the start.
const LOCK_WAIT: Duration = Duration::from_secs(5);

impl Links {
    /// Nothing is connected yet.
    ///
    /// # Errors
    /// If a URL or the queue prefix is wrong.
    pub fn new(config: &Config) -> Result<Self> {
        let broker = match config.transport {
            Transport::Inproc => None,
            Transport::Amqp => Some(BrokerLink {
                broker: Broker::new(&config.amqp_url)?,
                topology: Topology::new(&config.queue_prefix, &config.datasets)?,
                connected: RefCell::default(),
            }),
        };
        let database = Database::new(&config.database, LOCK_WAIT)?;
        Ok(Self { database, broker, vitals: Vitals::default(), was_connected: Arc::default() })
    }

    /// A connection to the database for the stage of that name.
    pub fn database(&self, stage: &'static str, options: RunOptions) -> Link {
        Link {
            database: self.database.clone(),
            patience: options.patience(),
            connection: None,
            stage: self.vitals.stage(stage),
            was_connected: Arc::clone(&self.was_connected),
        }
    }

    /// Whether every connection to the broker that this run has is up; also where it has none.
    pub fn is_broker_connected(&self) -> bool {
        self.broker.as_ref().is_some_and(|broker| broker.connected.borrow().iter().all(Connected::get))
    }
}

/// The broker and what is declared on it.
pub struct BrokerLink {
    pub broker: Broker,
    pub topology: Topology,
    connected: RefCell<Vec<Connected>>,
}

impl BrokerLink {
    /// The heartbeat says whether this one is up, too.
    pub fn watch(&self, connected: Connected) {
        self.connected.borrow_mut().push(connected);
    }
}

/// A connection that is made anew when it is lost.
pub struct Link {
    database: Database,
    patience: Patience,
    connection: Option<Connection>,
    stage: Stage,
    /// Shared by all links of the process.
    was_connected: Arc<AtomicBool>,
}

/// How often waiting is mentioned in the log.
const MENTION_EVERY: Duration = Duration::from_secs(15);

impl Link {
    /// Runs a piece of work on the connection until it is done. When the database is away, busy or full, it is rolled back,
    /// and after a jittered pause repeated as a whole on a new connection.
    ///
    /// # Errors
    /// What waiting does not mend, or that patience has run out.
    pub async fn repeat<T>(&mut self, mut work: impl AsyncFnMut(&mut Connection) -> StoreResult<T>) -> Result<T> {
        let mut pauses = short_pauses();
        let mut away_since: Option<Instant> = None;
        let mut mentioned: Option<Instant> = None;
        self.stage.busy();
        loop {
            let error = match self.attempt(&mut work).await {
                Ok(done) => {
                    if let (Some(since), true) = (away_since, mentioned.is_some()) {
                        tracing::info!("{} is back after {:.0?}", self.database, since.elapsed());
                    }
                    self.stage.goes_on();
                    self.stage.progress();
                    self.stage.idle();
                    return Ok(done);
                }
                Err(error) => error,
            };
            let can_wait = match error.class() {
                Class::Unavailable | Class::Full => true,
                Class::Refused => self.was_connected.load(Ordering::Relaxed),
                Class::BadRow | Class::ReadOnly | Class::Other => false,
            };
            let since = *away_since.get_or_insert_with(Instant::now);
            let pause = pauses.next().expect("the pauses never end");
            let Some(pause) = self.patience.pause(since, pause).filter(|_| can_wait) else {
                return Err(self.database.explain(error));
            };
            self.stage.waits_for(format!("{}: {error}", self.database));
            if mentioned.is_none_or(|at| at.elapsed() > MENTION_EVERY) {
                mentioned = Some(Instant::now());
                tracing::warn!("waiting for {}: {error}", self.database);
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn attempt<T>(&mut self, work: &mut impl AsyncFnMut(&mut Connection) -> StoreResult<T>) -> StoreResult<T> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => {
                let connected = tokio::time::timeout(CONNECT_TIMEOUT, self.database.connect_once()).await;
                let connection = connected.unwrap_or_else(|_| Err(StoreError::new(Class::Unavailable, "no answer")))?;
                self.was_connected.store(true, Ordering::Relaxed);
                self.connection.insert(connection)
            }
        };
        let done = work(connection).await;
        if done.is_err() {
            // In whatever state it is: the database rolls back when it goes.
            self.connection = None;
        }
        done
    }

    /// Says goodbye.
    pub async fn close(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.close().await;
        }
    }
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
