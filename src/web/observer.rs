//! The observer: looks at the database, the inbox and the broker while somebody wants to know, at most once a second, however many
//! look at the page. While nobody does, it asks nothing.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{Notify, watch};

use crate::answers::overview::{self, Overview};
use crate::answers::status;
use crate::config::{Config, Transport};
use crate::error::Result;
use crate::inbox::{self, Waiting};
use crate::store::{Class, Connection, Database, StoreError, StoreResult};
use crate::stream::Stats;
use crate::transport::amqp::connection::Broker;
use crate::transport::amqp::depth::{Depth, DepthReader};
use crate::transport::amqp::topology::Topology;

/// What was seen is fresh for this long.
const FRESH: Duration = Duration::from_millis(900);
/// Who asks waits no longer than this for something fresher.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long connecting may take, and reading.
const CONNECT_TIME: Duration = Duration::from_secs(2);
const READ_TIME: Duration = Duration::from_secs(20);
/// Looking takes at most one part in this many of the time.
const SHARE: u32 = 5;
/// The comparison of ledger and chunk lines reads all of them, so it is made seldom.
const COMPARE_EVERY: Duration = Duration::from_secs(15);

/// How many snapshots are tried until no commit is under way, and the pause in between: two seconds, because on a busy machine a
/// commit waits for its disk.
const SNAPSHOTS: u32 = 1_000;
const BETWEEN: Duration = Duration::from_millis(2);

/// What was seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// When it was seen; `None` before the first time.
    at: Option<Instant>,
    /// Whether the database has our tables.
    pub has_tables: bool,
    /// What the database held when it last answered.
    pub overview: Option<Arc<Overview>>,
    pub overview_at: Option<Timestamp>,
    /// How many records this process had read and not committed at that moment, by dataset.
    pub held: Vec<(String, i64)>,
    /// By dataset; of the last comparison.
    pub unaccounted: Vec<(String, i64)>,
    /// For how many seconds the oldest change of each dataset has waited for the model.
    pub model_lag: Vec<(String, f64)>,
    /// Why the database could not be read, and since when that is so.
    pub error: Option<(String, Timestamp)>,
    /// Whether rejects can be replayed and discarded.
    pub may_write: bool,
    pub waiting: Vec<Waiting>,
    /// Messages in the queues; none without RabbitMQ or while it is away.
    pub depths: Option<Vec<Depth>>,
}

/// Looks on behalf of all who ask.
#[derive(Debug)]
pub struct Observer {
    config: Config,
    database: Option<Database>,
    /// The pipeline of this process, if it has one.
    stats: Option<Arc<Stats>>,
    seen: watch::Sender<Arc<Seen>>,
    asked: Notify,
    /// Which unmodelled days were first seen when, by dataset.
    pending_since: Mutex<Vec<(String, String, Instant)>>,
}

/// What the observer keeps open.
#[derive(Default)]
struct Open {
    connection: Option<Connection>,
    depths: Option<DepthReader>,
    compared: Option<Instant>,
}

impl Observer {
    /// An observer that has seen nothing yet.
    ///
    /// # Errors
    /// If the URL of the database or of the broker is wrong.
    pub fn new(config: &Config, has_database: bool, stats: Option<Arc<Stats>>) -> Result<Self> {
        let database = has_database.then(|| Database::new(&config.database, CONNECT_TIME)).transpose()?;
        let (config, seen) = (config.clone(), watch::Sender::new(Arc::new(Seen::default())));
        Ok(Self { config, database, stats, seen, asked: Notify::new(), pending_since: Mutex::default() })
    }

    /// The database, for what changes it; none of a producer.
    pub fn database(&self) -> Option<&Database> {
        self.database.as_ref()
    }

    /// What is seen now, or was seen within the last second. If looking takes long, what was seen before.
    pub async fn fresh(&self) -> Arc<Seen> {
        let mut seen = self.seen.subscribe();
        let is_fresh = |seen: &Arc<Seen>| seen.at.is_some_and(|at| at.elapsed() < FRESH);
        if !is_fresh(&seen.borrow_and_update()) {
            self.asked.notify_one();
            let _ = tokio::time::timeout(PATIENCE, seen.changed()).await;
        }
        seen.borrow().clone()
    }

    /// Looks whenever somebody asks.
    pub async fn run(&self) -> Infallible {
        let mut open = Open { depths: self.depth_reader(), ..Open::default() };
        loop {
            self.asked.notified().await;
            let began = Instant::now();
            let seen = self.look(&mut open).await;
            self.seen.send_replace(Arc::new(seen));
            tokio::time::sleep((began.elapsed() * SHARE).max(FRESH / 2).min(READ_TIME)).await;
        }
    }

    fn depth_reader(&self) -> Option<DepthReader> {
        if self.config.transport != Transport::Amqp {
            return None;
        }
        let topology = Topology::new(&self.config.queue_prefix, &self.config.datasets).ok()?.with_queues(self.config.queues);
        Some(DepthReader::new(Broker::new(&self.config.amqp_url).ok()?, topology))
    }

    async fn look(&self, open: &mut Open) -> Seen {
        let before = Arc::clone(&self.seen.borrow());
        let mut seen = Seen { error: None, ..(*before).clone() };
        // A disk that does not answer must not hold the page.
        let (root, datasets) = (self.config.inbox.clone(), self.config.datasets.clone());
        let listing = tokio::task::spawn_blocking(move || inbox::waiting(&root, &datasets));
        let waiting = tokio::time::timeout(CONNECT_TIME, listing).await;
        seen.waiting = waiting.ok().and_then(|listed| listed.ok()?.ok()).unwrap_or_default();
        if let Some(depths) = &mut open.depths {
            seen.depths = depths.read().await;
        }
        if let Some(database) = &self.database {
            let read = tokio::time::timeout(READ_TIME, self.read(database, open, &mut seen)).await;
            let read = read.unwrap_or_else(|_| Err(StoreError::no_answer(Class::Unavailable, READ_TIME)));
            if let Err(error) = read {
                open.connection = None;
                let since = before.error.as_ref().map_or_else(Timestamp::now, |(_, since)| *since);
                seen.error = Some((database.explain(error).to_string(), since));
            }
        }
        seen.at = Some(Instant::now());
        seen
    }

    async fn read(&self, database: &Database, open: &mut Open, seen: &mut Seen) -> StoreResult<()> {
        if open.connection.is_none() {
            open.connection = database.open_to_read_within(CONNECT_TIME).await?;
            if let Some(connection) = &mut open.connection {
                seen.may_write = database.may_write(connection).await?;
            }
        }
        seen.has_tables = open.connection.is_some();
        let Some(connection) = &mut open.connection else {
            (seen.overview, seen.overview_at) = (None, None);
            return Ok(());
        };
        seen.held = self.begin(connection).await?;
        let overview = overview::read(connection, &self.config.datasets).await?;
        seen.model_lag = self.model_lag(&overview);
        if open.compared.is_none_or(|at| at.elapsed() > COMPARE_EVERY) {
            seen.unaccounted = status::unaccounted(connection).await?;
            open.compared = Some(Instant::now());
        }
        (seen.overview, seen.overview_at) = (Some(Arc::new(overview)), Some(Timestamp::now()));
        Ok(())
    }

    /// Begins a snapshot of the database and returns what this process holds at that moment. A record is in one of the two: if a
    /// commit was under way, both are taken again.
    async fn begin(&self, connection: &mut Connection) -> StoreResult<Vec<(String, i64)>> {
        let Some(stats) = &self.stats else { return overview::begin(connection).await.map(|()| Vec::new()) };
        for left in (0..SNAPSHOTS).rev() {
            let before = stats.settled_commits();
            if before.is_some() || left == 0 {
                overview::begin(connection).await?;
                let count = |held: u64| i64::try_from(held).unwrap_or(i64::MAX);
                let held = stats.datasets().map(|(name, of_dataset)| (name.to_owned(), count(of_dataset.in_flight()))).collect();
                if stats.settled_commits() == before || left == 0 {
                    return Ok(held);
                }
                connection.rollback().await?;
            }
            tokio::time::sleep(BETWEEN).await;
        }
        unreachable!("the last snapshot is taken as it is")
    }

    /// The database does not say when a day changed. So this notes when a day was first seen waiting: the lag is that of the day
    /// which has waited longest without a refresh in between.
    fn model_lag(&self, overview: &Overview) -> Vec<(String, f64)> {
        let mut pending = self.pending_since.lock().unwrap_or_else(PoisonError::into_inner);
        let of_datasets = || overview.status.datasets.iter();
        pending.retain(|(dataset, day, _)| {
            of_datasets().any(|status| status.dataset == *dataset && status.pending.changes.contains(day))
        });
        for status in of_datasets() {
            for mark in &status.pending.changes {
                if !pending.iter().any(|(dataset, known, _)| *dataset == status.dataset && known == mark) {
                    pending.push((status.dataset.clone(), mark.clone(), Instant::now()));
                }
            }
        }
        let has_model = |name: &str| self.config.datasets.iter().any(|dataset| dataset.name == name && dataset.day.is_some());
        let lag = |name: &str| {
            let of_dataset = pending.iter().filter(|(dataset, _, _)| dataset == name);
            of_dataset.map(|(_, _, since)| since.elapsed().as_secs_f64()).fold(0.0, f64::max)
        };
        of_datasets().filter(|d| has_model(&d.dataset)).map(|d| (d.dataset.clone(), lag(&d.dataset))).collect()
    }
}
