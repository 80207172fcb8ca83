//! What can be done with rejected records: to parse them again and load those that fit now, or to discard them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use crate::config::Config;
use crate::dataset::{Dataset, StreamMode};
use crate::error::Result;
use crate::record::chunk::{Chunk, ChunkBody, Framing};
use crate::record::parse::{DayRange, Parser};
use crate::record::row::RejectReason;
use crate::retry::GIVE_UP_AFTER;
use crate::store::append::{Way, append_accepted};
use crate::store::chunk_lines::{self, ChunkLine};
use crate::store::ledger::{self, Counts, FinishedLoad, LoadStatus};
use crate::store::lock::{self, Lock};
use crate::store::model::{self, Days, Noting};
use crate::store::open_rejects::{self, Cursor, OpenReject, Records, RejectFilter, delete, page};
use crate::store::stream_upsert::{Order, Writing};
use crate::store::unknown_keys::{self, NotedKey};
use crate::store::{Connection, Database, Day, Indexes, Rows, StoreResult};
use crate::transport::amqp::dead_letters;

/// The source of a replay in the ledger.
pub const REPLAY_SOURCE: &str = "rejects replay";

/// How many rejects are in memory at a time. One has at most 8 MiB, and nearly all have far less.
const PAGE: u32 = 100;

/// The result of a replay.
#[derive(Debug, Clone, Serialize)]
pub struct Replay {
    pub datasets: Vec<DatasetReplay>,
}

/// The result of a replay for one dataset: `read == loaded + rejected`.
#[derive(Debug, Clone, Serialize)]
pub struct DatasetReplay {
    pub dataset: String,
    /// Number of replayed rejects.
    pub read: u64,
    pub loaded: u64,
    /// Rejects that still cannot be loaded.
    pub rejected: u64,
    /// Dead letters that are in the dataset's queue again; absent without RabbitMQ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub republished: Option<u64>,
}

/// Parses the open rejects again and appends those that can now be loaded. The same transaction deletes them from
/// `raw.rejects`.
///
/// # Errors
/// If the database or the broker fails. Datasets that were finished before the error stay replayed.
pub async fn replay(config: &Config, filter: &RejectFilter) -> Result<Replay> {
    let datasets = config.datasets_named(&filter.datasets)?;
    let database = Database::new(&config.database, GIVE_UP_AFTER)?;
    let mut connection = database.open(&config.datasets, Indexes::Make).await?;
    let names: Vec<String> = datasets.iter().map(|dataset| dataset.name.clone()).collect();
    // Dead letters have no load and none of these reasons.
    let republished = match super::dead_letters::queue(config)?.filter(|_| !filter.is_partial()) {
        Some((broker, topology)) => Some(dead_letters::replay(&broker, &topology, &names).await?),
        None => None,
    };
    let mut replay = Replay { datasets: Vec::new() };
    for dataset in &datasets {
        let done = async {
            connection.begin().await?;
            let counts = replay_dataset(&mut connection, dataset, filter).await?;
            connection.commit().await?;
            // The refresh has its own transaction: a few records are not worth blocking the writers for its whole duration.
            model::refresh(&mut connection, dataset, Days::none()).await?;
            Ok(counts)
        };
        let counts = done.await.map_err(|error| database.explain(error))?;
        replay.datasets.push(DatasetReplay {
            dataset: dataset.name.clone(),
            read: counts.read,
            loaded: counts.loaded,
            rejected: counts.rejected,
            republished: republished.as_ref().map(|letters| letters.get(&dataset.name).copied().unwrap_or(0)),
        });
    }
    connection.close().await;
    Ok(replay)
}

async fn replay_dataset(connection: &mut Connection, dataset: &Arc<Dataset>, filter: &RejectFilter) -> StoreResult<Counts> {
    // A batch load deletes rejects too, so only one of the two may run at a time.
    lock::transaction(connection, Lock::Load).await?;
    lock::tables(connection, &BTreeMap::from([(dataset.name.as_str(), &**dataset)])).await?;
    let filter = RejectFilter { datasets: vec![dataset.name.clone()], ..filter.clone() };
    let mut after: Cursor = (0, 0);
    let mut replay: Option<ReplayLoad> = None;
    loop {
        let mut rejects = page(connection, &filter, Records::With, after, PAGE).await?;
        let Some(last) = rejects.last() else { break };
        after = (last.load_id, last.ordinal);
        // Only the beginning of a too large record was stored.
        rejects.retain(|reject| RejectReason::from_name(&reject.reason) != Some(RejectReason::TooLarge));
        let load = match &mut replay {
            Some(load) => load,
            None => replay.insert(ReplayLoad::new(dataset, ledger::reserve_ids(connection, 1).await?[0])),
        };
        load.append(connection, &rejects).await?;
    }
    match replay {
        Some(load) => load.finish(connection).await,
        None => Ok(Counts::default()),
    }
}

/// The load of a replay.
struct ReplayLoad {
    dataset: Arc<Dataset>,
    id: i64,
    /// It comes now, whenever its records came first.
    key: Uuid,
    started_at: Timestamp,
    parser: Parser,
    counts: Counts,
    /// Rows that its rows have replaced.
    removed: u64,
    /// The days to mark.
    days: BTreeSet<Day>,
    lines: Vec<ChunkLine>,
    unknown: Vec<NotedKey>,
}

impl ReplayLoad {
    fn new(dataset: &Arc<Dataset>, id: i64) -> Self {
        Self {
            dataset: Arc::clone(dataset),
            id,
            key: Uuid::now_v7(),
            started_at: Timestamp::now(),
            parser: Parser::new(Arc::clone(dataset)),
            counts: Counts::default(),
            removed: 0,
            days: BTreeSet::new(),
            lines: Vec::new(),
            unknown: Vec::new(),
        }
    }

    /// Parses rejects again, appends those that fit now, and deletes these from the rejects.
    async fn append(&mut self, connection: &mut Connection, rejects: &[OpenReject]) -> StoreResult<()> {
        let (dataset, load_id) = (&self.dataset, self.id);
        let chunk = chunk_of(rejects, self.counts.read + 1);
        let mut rows = Rows::new(connection.dialect());
        let parsed = self.parser.parse(&chunk, &DayRange::ALL, &mut rows);
        rows.set_load(load_id);

        let still_rejected: BTreeSet<u64> = parsed.rejects.iter().map(|reject| reject.ordinal - chunk.first_ordinal).collect();
        let mut good: Vec<&OpenReject> =
            rejects.iter().zip(0..).filter(|(_, i)| !still_rejected.contains(i)).map(|(reject, _)| reject).collect();
        // Small as a page is, all of them can be many.
        let noting = Noting::of(dataset, self.counts.read + parsed.rows);
        let way = match dataset.stream {
            StreamMode::Append => Way::Append,
            StreamMode::Upsert => Way::Upsert(Writing { load_id, order: Order::Load(self.key) }),
        };
        let accepted = append_accepted(connection, dataset, &rows, noting, way).await?;
        self.removed += accepted.removed;
        for refused in accepted.refused.iter().rev() {
            good.remove(refused.row);
        }
        delete(connection, &good).await?;

        self.unknown.extend(parsed.unknown.into_iter().map(|key| NotedKey { key, load_id }));
        let (first_ordinal, records) = (chunk.first_ordinal, chunk.records());
        self.lines.push(ChunkLine { load_id, seq: self.lines.len() as u64, first_ordinal, records, digest: chunk.digest() });
        let (read, loaded) = (rejects.len() as u64, good.len() as u64);
        self.counts += Counts { read, loaded, rejected: read - loaded, skipped: 0 };
        if noting == Noting::Days {
            self.days.extend(parsed.days.keys().map(|day| Day(*day)));
        }
        Ok(())
    }

    /// Writes the load into the ledger.
    async fn finish(self, connection: &mut Connection) -> StoreResult<Counts> {
        let name = &self.dataset.name;
        let load = FinishedLoad {
            id: self.id,
            load_key: self.key,
            dataset: name,
            source: REPLAY_SOURCE,
            bytes: 0,
            counts: self.counts,
            started_at: self.started_at,
            status: LoadStatus::Loaded,
            error: None,
            sha256: None,
            host: None,
            rows_removed: self.removed,
        };
        ledger::insert_finished(connection, &[load]).await?;
        chunk_lines::insert(connection, &self.lines).await?;
        unknown_keys::note(connection, name, self.unknown.into_iter()).await?;
        model::mark(connection, &self.dataset, self.days).await?;
        Ok(self.counts)
    }
}

/// The rejected records as one chunk.
fn chunk_of(rejects: &[OpenReject], first_ordinal: u64) -> Chunk {
    let mut text = Vec::new();
    let mut spans = Vec::with_capacity(rejects.len());
    let at = |text: &Vec<u8>| u32::try_from(text.len()).expect("a page of records of at most 8 MiB");
    for reject in rejects {
        let start = at(&text);
        text.extend_from_slice(&reject.record);
        spans.push(start..at(&text));
    }
    Chunk { seq: 0, first_ordinal, first_byte_offset: 0, body: ChunkBody::Records { framing: Framing::Stream, text, spans } }
}

/// The result of discarding rejects.
#[derive(Debug, Clone, Serialize)]
pub struct Discard {
    pub datasets: Vec<DatasetDiscard>,
}

/// How many rejects of a dataset were discarded.
#[derive(Debug, Clone, Serialize)]
pub struct DatasetDiscard {
    pub dataset: String,
    pub discarded: u64,
}

/// Deletes open rejects for good, all in one transaction. The ledger still counts them.
///
/// # Errors
/// If the database fails.
pub async fn discard(config: &Config, filter: &RejectFilter) -> Result<Discard> {
    let datasets = config.datasets_named(&filter.datasets)?;
    let database = Database::new(&config.database, GIVE_UP_AFTER)?;
    let mut connection = database.open(&config.datasets, Indexes::Make).await?;
    let done = async {
        let mut done = Discard { datasets: Vec::new() };
        connection.begin().await?;
        // A replay that is at work on the same rejects loads them, or comes afterwards.
        lock::transaction(&mut connection, Lock::Load).await?;
        for dataset in &datasets {
            let filter = RejectFilter { datasets: vec![dataset.name.clone()], ..filter.clone() };
            let discarded = open_rejects::discard(&mut connection, &filter).await?;
            done.datasets.push(DatasetDiscard { dataset: dataset.name.clone(), discarded });
        }
        connection.commit().await?;
        Ok(done)
    };
    let done = done.await.map_err(|error| database.explain(error))?;
    connection.close().await;
    Ok(done)
}
