//! The sums of the ledger, and the loads that are in progress or failed.

use std::sync::Arc;

use serde::Serialize;

use crate::config::{Config, Role};
use crate::dataset::Dataset;
use crate::error::Result;
use crate::flow::Flow;
use crate::heartbeat::{self, Connections, Process};
use crate::inbox;
use crate::retry::GIVE_UP_AFTER;
use crate::store::model::Pending;
use crate::store::sql::Schema;
use crate::store::unknown_keys::{self, FirstSeen};
use crate::store::{Connection, Database, Field, StoreResult, model};
use crate::summary::NewKey;

/// The summary of the ledger.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    pub datasets: Vec<DatasetStatus>,
    /// Loads that are in progress or failed, the latest first.
    pub loads: Vec<ListedLoad>,
    /// Keys of the records that no column takes, those of each dataset together.
    pub unknown_keys: Vec<UnknownKeyStatus>,
    /// The processes of the pipeline of this working directory.
    pub pipeline: Vec<ProcessStatus>,
    /// The server that answered, as `HOST:PORT`, if the URL names several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Additional messages for the user.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What a process of the pipeline does.
#[derive(Debug, Clone, Serialize)]
pub struct ProcessStatus {
    pub pid: u32,
    pub role: Role,
    pub connected: Connections,
    /// Why it is not healthy; empty if it is.
    pub problems: Vec<String>,
    #[serde(flatten)]
    pub flow: Flow,
}

/// The sums of a dataset's loads, without those that were taken back or that repeat another one.
#[derive(Debug, Clone, Serialize)]
pub struct DatasetStatus {
    pub dataset: String,
    /// Number of files (and replays) in the ledger.
    pub files: i64,
    pub read: i64,
    pub loaded: i64,
    pub rejected: i64,
    pub skipped: i64,
    /// Number of files whose records are not all loaded yet.
    pub in_flight: i64,
    /// Number of records that the ends of these files announce and that are not loaded yet.
    pub records_in_flight: i64,
    /// Number of records of loaded files that are neither loaded nor rejected nor skipped: 0, or something is wrong.
    pub missing: i64,
    /// Number of failed files.
    pub failed: i64,
    /// Number of files that were taken back. The other numbers do not include them.
    pub unloaded: i64,
    /// Number of files that were not loaded because their content was there already.
    pub repeated: i64,
    /// Number of records in `raw.rejects`.
    pub open_rejects: i64,
    /// Files in the inbox that are not loaded yet; none without an inbox.
    pub waiting_files: Option<u64>,
    /// The age of the oldest of them.
    pub oldest_waiting_seconds: Option<f64>,
    /// The earliest day whose modelled rows are behind the raw rows.
    pub oldest_unmodelled_day: Option<String>,
    /// What waits for a refresh of the model.
    #[serde(skip)]
    pub pending: Pending,
}

impl DatasetStatus {
    /// Of a dataset of which nothing was ever loaded.
    pub fn nothing(dataset: &str) -> Self {
        Self {
            dataset: dataset.to_owned(),
            files: 0,
            read: 0,
            loaded: 0,
            rejected: 0,
            skipped: 0,
            in_flight: 0,
            records_in_flight: 0,
            missing: 0,
            failed: 0,
            unloaded: 0,
            repeated: 0,
            open_rejects: 0,
            waiting_files: None,
            oldest_waiting_seconds: None,
            oldest_unmodelled_day: None,
            pending: Pending::default(),
        }
    }
}

/// A load that the command lists.
#[derive(Debug, Clone, Serialize)]
pub struct ListedLoad {
    pub id: i64,
    pub dataset: String,
    pub source: String,
    pub status: String,
    pub read: i64,
    pub loaded: i64,
    pub rejected: i64,
    pub error: Option<String>,
}

/// A key that no column takes; its values are kept in `_extra`.
#[derive(Debug, Clone, Serialize)]
pub struct UnknownKeyStatus {
    pub dataset: String,
    #[serde(flatten)]
    pub first: NewKey,
}

/// How many loads are listed.
const LISTED_LOADS: u32 = 20;

/// Reads the ledger.
///
/// # Errors
/// If the database fails.
pub async fn status(config: &Config) -> Result<Status> {
    let database = Database::new(&config.database, GIVE_UP_AFTER)?;
    let Some(mut connection) = database.open_to_read().await? else {
        let notes = vec![database.says_nothing_is_there()];
        let datasets = with_configured(&config.datasets, Vec::new());
        return Ok(Status { datasets, loads: Vec::new(), unknown_keys: Vec::new(), pipeline: Vec::new(), host: None, notes }
            .with_surroundings(config));
    };
    let status = read(&mut connection, &config.datasets).await.map_err(|error| database.explain(error));
    connection.close().await;
    let host = database.connected().filter(|_| database.has_several_hosts()).map(str::to_owned);
    status.map(|status| Status { host, ..status }.with_surroundings(config))
}

impl Status {
    /// Adds what inbox and heartbeats say. What cannot be read is left out: `dataloader health` says why.
    fn with_surroundings(mut self, config: &Config) -> Self {
        for waiting in inbox::waiting(&config.inbox, &config.datasets).unwrap_or_default() {
            if let Some(dataset) = self.datasets.iter_mut().find(|dataset| dataset.dataset == waiting.dataset) {
                dataset.waiting_files = Some(waiting.files);
                dataset.oldest_waiting_seconds = (waiting.files > 0).then_some(waiting.oldest.as_secs_f64());
            }
        }
        let processes = heartbeat::health().map(|health| health.processes).unwrap_or_default();
        let process = |process: Process| ProcessStatus {
            pid: process.pid,
            role: process.role,
            connected: process.connected.clone(),
            problems: process.problems(),
            flow: process.flow,
        };
        self.pipeline = processes.into_iter().map(process).collect();
        self
    }
}

async fn read(connection: &mut Connection, datasets: &[Arc<Dataset>]) -> StoreResult<Status> {
    connection.begin_read().await?;
    let status = read_within(connection, datasets).await?;
    connection.commit().await?;
    Ok(status)
}

/// Reads the ledger inside the caller's transaction.
///
/// # Errors
/// If the database fails.
pub async fn read_within(connection: &mut Connection, datasets: &[Arc<Dataset>]) -> StoreResult<Status> {
    let mut found = sums(connection).await?;
    let loads = listed_loads(connection).await?;
    for dataset in datasets.iter().filter(|dataset| dataset.day.is_some()) {
        if let Some(found) = found.iter_mut().find(|found| found.dataset == dataset.name) {
            found.pending = model::pending(connection, dataset).await?;
            found.oldest_unmodelled_day = found.pending.days.first().cloned();
        }
    }
    let unknown_keys = unknown_keys(connection, datasets).await?;
    Ok(Status {
        datasets: with_configured(datasets, found),
        loads,
        unknown_keys,
        pipeline: Vec::new(),
        host: None,
        notes: Vec::new(),
    })
}

/// The sums of the ledger for each dataset that it knows.
async fn sums(connection: &mut Connection) -> StoreResult<Vec<DatasetStatus>> {
    let dialect = connection.dialect();
    let (loads, rejects) = (dialect.table(Schema::Raw, "loads"), dialect.table(Schema::Raw, "rejects"));
    let counts = "status not in ('unloaded', 'repeated')";
    let accounted = "rows_loaded + rows_rejected + records_skipped";
    let announced = format!("status = 'loading' and records_read > {accounted}");
    // Of a file that is being loaded, what is committed was read.
    let read = format!("case when status = 'loading' and not ({announced}) then {accounted} else records_read end");
    let in_flight = format!("case when {announced} then records_read - ({accounted}) else 0 end");
    let missing = format!("case when status in ('loaded', 'open') then abs(records_read - ({accounted})) else 0 end");
    let sums: String = [&read, "rows_loaded", "rows_rejected", "records_skipped", &in_flight, &missing]
        .map(|value| format!(", cast(coalesce(sum(case when {counts} then {value} end), 0) as bigint)"))
        .concat();
    let with = |status: &str| format!("count(case when status = '{status}' then 1 end)");
    let [in_flight, failed, unloaded, repeated] = ["loading", "failed", "unloaded", "repeated"].map(with);
    let sql = format!(
        "select dataset, count(case when {counts} then 1 end){sums}, {in_flight}, {failed}, {unloaded}, {repeated}, \
         (select count(*) from {rejects} r where r.dataset = l.dataset) from {loads} l group by dataset order by dataset"
    );
    Ok(connection
        .fetch(sql, &[])
        .await?
        .iter()
        .map(|row| DatasetStatus {
            files: row[1].int(),
            read: row[2].int(),
            loaded: row[3].int(),
            rejected: row[4].int(),
            skipped: row[5].int(),
            records_in_flight: row[6].int(),
            missing: row[7].int(),
            in_flight: row[8].int(),
            failed: row[9].int(),
            unloaded: row[10].int(),
            repeated: row[11].int(),
            open_rejects: row[12].int(),
            ..DatasetStatus::nothing(row[0].text().unwrap_or_default())
        })
        .collect())
}

/// The loads that are not finished or have failed, the latest first.
async fn listed_loads(connection: &mut Connection) -> StoreResult<Vec<ListedLoad>> {
    let loads = connection.dialect().table(Schema::Raw, "loads");
    let sql = format!(
        "select id, dataset, source, status, records_read, rows_loaded, rows_rejected, error from {loads} \
         where status in ('loading', 'failed') order by id desc limit {LISTED_LOADS}"
    );
    let text = |field: &Field| field.text().unwrap_or_default().to_owned();
    Ok(connection
        .fetch(sql, &[])
        .await?
        .iter()
        .map(|row| ListedLoad {
            id: row[0].int(),
            dataset: text(&row[1]),
            source: text(&row[2]),
            status: text(&row[3]),
            read: row[4].int(),
            loaded: row[5].int(),
            rejected: row[6].int(),
            error: row[7].text().map(str::to_owned),
        })
        .collect())
}

/// The keys that were noted, without those that the configuration takes by now.
async fn unknown_keys(connection: &mut Connection, datasets: &[Arc<Dataset>]) -> StoreResult<Vec<UnknownKeyStatus>> {
    let noted = unknown_keys::list(connection).await?.into_iter();
    Ok(noted
        .filter_map(|FirstSeen { dataset, key, load_id, source }| {
            let configured = datasets.iter().find(|configured| configured.name == dataset)?;
            Some(UnknownKeyStatus { dataset, first: NewKey::new(configured, &key, Some(load_id), source)? })
        })
        .collect())
}

/// The configured datasets first, loaded or not, then those that are only in the ledger.
fn with_configured(datasets: &[Arc<Dataset>], found: Vec<DatasetStatus>) -> Vec<DatasetStatus> {
    let mut status: Vec<DatasetStatus> = datasets
        .iter()
        .map(|dataset| {
            found.iter().find(|f| f.dataset == dataset.name).cloned().unwrap_or_else(|| DatasetStatus::nothing(&dataset.name))
        })
        .collect();
    status.extend(found.into_iter().filter(|f| !datasets.iter().any(|dataset| dataset.name == f.dataset)));
    status
}

/// How many records the ledger and the chunk lines of closed loads disagree about, by dataset: 0, or something is wrong.
///
/// # Errors
/// If the database fails.
pub async fn unaccounted(connection: &mut Connection) -> StoreResult<Vec<(String, i64)>> {
    let [loads, batches] = ["loads", "batches"].map(|table| connection.dialect().table(Schema::Raw, table));
    let sql = format!(
        "select l.dataset, cast(coalesce(sum(abs(l.records_read - coalesce(b.records, 0))), 0) as bigint) from {loads} l \
         left join (select load_id, sum(records) as records from {batches} group by load_id) b on b.load_id = l.id \
         where l.status = 'loaded' group by l.dataset order by l.dataset"
    );
    let rows = connection.fetch(sql, &[]).await?;
    Ok(rows.iter().map(|row| (row[0].text().unwrap_or_default().to_owned(), row[1].int())).collect())
}
