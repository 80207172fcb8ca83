//! Links: the connections of a run to the database and to the broker. A link reconnects when the database was unavailable.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::options::RunOptions;
use crate::config::{Config, Transport};
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::retry::{Retry, RetryPolicy};
use crate::store::{Class, Connection, Database, Indexes, StoreError, StoreResult, schema};
use crate::transport::amqp::connection::{Broker, Connected, Route};
use crate::transport::amqp::topology::Topology;
use crate::vitals::{Stage, Target, Vitals, Wait};

/// Creates the connections of a run.
pub struct Links {
    pub database: Database,
    /// With `--transport amqp`.
    pub broker: Option<BrokerLink>,
    /// What each stage does and waits for.
    pub vitals: Vitals,
    /// The initial time limit of a statement.
    database_timeout: Duration,
    /// Whether this process was ever connected. A database that accepted it once and refuses it now is probably being restored
    /// or reconfigured, so waiting makes sense.
    was_connected: Arc<AtomicBool>,
    datasets: Vec<Arc<Dataset>>,
}

/// How long a statement of the stream waits for SQLite's write lock before the whole transaction is repeated.
const LOCK_WAIT: Duration = Duration::from_secs(5);

impl Links {
    /// Prepares the links. Connects to nothing yet.
    ///
    /// # Errors
    /// If a URL or the queue prefix is wrong.
    pub fn new(config: &Config, vitals: &Vitals) -> Result<Self> {
        let broker = match config.transport {
            Transport::Inproc => None,
            Transport::Amqp => Some(BrokerLink {
                broker: Broker::new(&config.amqp_url)?,
                topology: Topology::new(&config.queue_prefix, &config.datasets)?.with_queues(config.queues),
                connected: RefCell::default(),
            }),
        };
        let database = Database::new(&config.database, LOCK_WAIT)?;
        let (database_timeout, datasets) = (config.stream.database_timeout, config.datasets.clone());
        Ok(Self { database, broker, vitals: vitals.clone(), database_timeout, was_connected: Arc::default(), datasets })
    }

    /// A link to the database for the stage of this name.
    pub fn database(&self, stage: &'static str, options: RunOptions) -> Link {
        Link {
            database: self.database.clone(),
            retry_policy: options.retry_policy(),
            connection: None,
            stage: self.vitals.stage(stage),
            deadline: Deadline::new(self.database_timeout),
            was_connected: Arc::clone(&self.was_connected),
            datasets: self.datasets.clone(),
            found_changed: None,
            makes_tables: false,
        }
    }

    /// Whether the run uses a broker and all its connections to it are up.
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
    /// What publisher and consumer need to connect to the broker.
    pub fn route(&self, links: &Links, options: RunOptions) -> Route {
        Route {
            broker: self.broker.clone(),
            topology: self.topology.clone(),
            retry_policy: options.retry_policy(),
            vitals: links.vitals.clone(),
        }
    }

    /// Includes this connection in the heartbeat's broker status.
    pub fn watch(&self, connected: Connected) {
        self.connected.borrow_mut().push(connected);
    }
}

/// A database connection that is re-established when it is lost.
pub struct Link {
    database: Database,
    retry_policy: RetryPolicy,
    connection: Option<Connection>,
    stage: Stage,
    deadline: Deadline,
    /// Shared by all links of the process.
    was_connected: Arc<AtomicBool>,
    datasets: Vec<Arc<Dataset>>,
    /// When this link last found that the tables were changed.
    found_changed: Option<Instant>,
    /// Whether the tables have to be created again before the next attempt.
    makes_tables: bool,
}

/// A process that finds the tables changed creates them again. If they change again within this time, two configurations
/// compete for the database, and each would undo the other's changes for ever.
const CONFLICT_WINDOW: Duration = Duration::from_secs(600);

/// The time limit of a statement. When it expires, the connection counts as dead. Each time it expires it is doubled, so that a
/// statement which is merely slow can finish in the end.
#[derive(Debug, Clone, Copy)]
struct Deadline {
    shortest: Duration,
    now: Duration,
}

impl Deadline {
    /// The upper limit. A connection that is dead is always noticed within this time.
    const LONGEST: Duration = Duration::from_secs(3_600);

    fn new(shortest: Duration) -> Self {
        Self { shortest, now: shortest }
    }

    fn passed(&mut self) {
        self.now = (self.now * 2).min(Self::LONGEST);
    }

    /// Adjusts the limit after a success: the next statement probably takes about as long.
    fn done(&mut self, took: Duration) {
        self.now = (took * 2).clamp(self.shortest, Self::LONGEST.max(self.shortest));
    }
}

/// What a link does after an attempt has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NextStep {
    /// Creates the tables again, then repeats the work.
    MakeTables,
    /// Repeats the work at once on a new connection, which shows whether the server is available: servers end idle sessions,
    /// and restart.
    ConnectAnew,
    /// Repeats the work after a pause, for as long as the retry policy allows.
    Wait,
    /// The same without a time limit. A statement that only takes long, a refresh of many rows for one, is no outage: with more
    /// time it succeeds. If the server is away, the next connection shows it.
    WaitForever,
    GiveUp,
}

impl NextStep {
    /// `may_be_stale` means that the connection was idle before, `was_connected` that the database has ever accepted one.
    fn after(error: &StoreError, may_be_stale: bool, was_connected: bool) -> Self {
        match error.class() {
            Class::Changed => Self::MakeTables,
            Class::Unavailable if may_be_stale && error.waited().is_zero() => Self::ConnectAnew,
            Class::Unavailable | Class::Full => Self::Wait,
            Class::Refused if was_connected => Self::Wait,
            Class::TimedOut => Self::WaitForever,
            Class::Refused | Class::BadRow | Class::ReadOnly | Class::Other => Self::GiveUp,
        }
    }
}

impl Link {
    /// Runs `work` on the connection until it succeeds. When the database is unavailable, busy, full or silent, the transaction
    /// is rolled back. After a jittered pause the whole work is repeated on a new connection.
    ///
    /// # Errors
    /// Errors that waiting does not fix, and errors of a database for which the retry policy stops waiting.
    pub async fn repeat<T>(&mut self, mut work: impl AsyncFnMut(&mut Connection) -> StoreResult<T>) -> Result<T> {
        let mut retry = Retry::new(self.retry_policy);
        self.stage.busy();
        loop {
            let may_be_stale = !retry.has_failed() && self.connection.is_some();
            let error = match self.attempt(retry.attempt_timeout(), &mut work).await {
                Ok(done) => {
                    if let Some(lasted) = retry.succeeded() {
                        tracing::info!("{} is back after {lasted:.0?}", self.database);
                    }
                    self.stage.goes_on();
                    self.stage.progress();
                    self.stage.idle();
                    return Ok(done);
                }
                Err(error) => error,
            };
            let next = NextStep::after(&error, may_be_stale, self.was_connected.load(Ordering::Relaxed));
            if next == NextStep::MakeTables {
                self.make_tables_again(error)?;
                continue;
            }
            retry.failed(error.waited());
            let goes_on = match next {
                NextStep::ConnectAnew => {
                    self.stage.retries(Target::Database);
                    tracing::debug!("connecting anew to {}: {error}", self.database);
                    continue;
                }
                NextStep::Wait => retry.goes_on(),
                NextStep::WaitForever => retry.goes_on_as(RetryPolicy::Forever),
                NextStep::MakeTables | NextStep::GiveUp => false,
            };
            if !goes_on {
                return Err(self.database.explain(error));
            }
            let waits_for = match error.class() {
                Class::Full => format!("{}, which is full: {error}", self.database),
                _ => format!("{}: {error}", self.database),
            };
            let waits_for = Wait::new(Target::Database, waits_for);
            retry.report(&self.stage, waits_for, |waits_for| tracing::warn!("waiting for {waits_for}"));
            retry.pause().await;
        }
    }

    /// Has the next attempt create this run's tables again.
    fn make_tables_again(&mut self, error: StoreError) -> Result<()> {
        if self.found_changed.is_some_and(|before| before.elapsed() < CONFLICT_WINDOW) {
            let error = StoreError::other(format!("the tables were changed while this ran, and again: {error}"))
                .hint("another configuration is at work on this database: give both programs the same dataloader.toml");
            return Err(self.database.explain(error));
        }
        tracing::warn!("the tables in {} were changed while this ran; they are made again: {error}", self.database);
        self.found_changed = Some(Instant::now());
        self.makes_tables = true;
        Ok(())
    }

    async fn attempt<T>(
        &mut self,
        timeout: Duration,
        work: &mut impl AsyncFnMut(&mut Connection) -> StoreResult<T>,
    ) -> StoreResult<T> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => {
                let connection = self.database.connect_within(timeout).await?;
                self.was_connected.store(true, Ordering::Relaxed);
                self.connection.insert(connection)
            }
        };
        connection.attend(&self.stage, self.deadline.now);
        let began = Instant::now();
        let ready = match self.makes_tables {
            true => schema::ensure(connection, &self.datasets, Indexes::Make).await,
            false => Ok(()),
        };
        let done = match ready {
            Ok(()) => {
                self.makes_tables = false;
                work(connection).await
            }
            Err(error) => Err(error),
        };
        match &done {
            Ok(_) => self.deadline.done(began.elapsed()),
            Err(error) => {
                if error.class() == Class::TimedOut {
                    self.deadline.passed();
                }
                // The connection may be in any state. When it closes, the database rolls back.
                self.connection = None;
            }
        }
        done
    }

    /// The stage that uses the link.
    pub fn stage(&self) -> &Stage {
        &self.stage
    }

    /// Adds to the error what the user should know.
    pub fn explain(&self, error: StoreError) -> Error {
        self.database.explain(error)
    }

    /// Closes the connection.
    pub async fn close(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.close().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_grows_until_the_work_fits_and_then_falls_back() {
        let seconds = Duration::from_secs;
        let mut deadline = Deadline::new(seconds(30));
        deadline.done(seconds(1));
        assert_eq!(deadline.now, seconds(30));
        deadline.passed();
        deadline.passed();
        assert_eq!(deadline.now, seconds(120));
        deadline.done(seconds(70));
        assert_eq!(deadline.now, seconds(140), "the next refresh of that day has the time it needs");
        deadline.done(seconds(1));
        assert_eq!(deadline.now, seconds(30));
    }

    #[test]
    fn the_class_of_an_error_decides_what_follows() {
        let after = |class, may_be_stale, was_connected| NextStep::after(&StoreError::new(class, "x"), may_be_stale, was_connected);
        assert_eq!(after(Class::Changed, false, true), NextStep::MakeTables);
        assert_eq!(after(Class::TimedOut, false, true), NextStep::WaitForever);
        for class in [Class::Unavailable, Class::Full] {
            assert_eq!(after(class, false, false), NextStep::Wait);
        }
        for class in [Class::BadRow, Class::ReadOnly, Class::Other] {
            assert_eq!(after(class, true, true), NextStep::GiveUp);
        }
        assert_eq!(after(Class::Refused, false, true), NextStep::Wait, "it accepted this process before");
        assert_eq!(after(Class::Refused, false, false), NextStep::GiveUp);
    }

    #[test]
    fn a_session_that_was_idle_is_replaced_at_once_unless_nothing_answered() {
        let ended = StoreError::new(Class::Unavailable, "the session was idle");
        assert_eq!(NextStep::after(&ended, true, true), NextStep::ConnectAnew);
        let silent = StoreError::no_answer(Class::Unavailable, Duration::from_secs(10));
        assert_eq!(NextStep::after(&silent, true, true), NextStep::Wait);
    }
}
