//! `dataloader status`: the sums of the ledger, and the loads that are in progress or failed.

use std::io::{self, Write};
use std::sync::Arc;

use indicatif::HumanCount;
use serde::Serialize;

use super::DONE;
use crate::config::Config;
use crate::dataset::Dataset;
use crate::error::Result;
use crate::retry::GIVE_UP_AFTER;
use crate::store::sql::Schema;
use crate::store::{Connection, Database, Field, StoreResult};
use crate::terminal::output::Output;
use crate::terminal::table::{Align, Table};

/// Prints the ledger.
///
/// # Errors
/// As [`status`].
pub async fn run(config: &Config, output: Output) -> Result<u8> {
    let status = status(config).await?;
    output.result(&status, |out| status.write(out))?;
    Ok(DONE)
}

/// The summary of the ledger.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    pub datasets: Vec<DatasetStatus>,
    /// Loads that are in progress or failed, the latest first.
    pub loads: Vec<ListedLoad>,
    /// Additional messages for the user.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
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
    /// Number of failed files.
    pub failed: i64,
    /// Number of files that were taken back. The other numbers do not include them.
    pub unloaded: i64,
    /// Number of files that were not loaded because their content was there already.
    pub repeated: i64,
    /// Number of records in `raw.rejects`.
    pub open_rejects: i64,
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
        return Ok(Status { datasets: with_configured(&config.datasets, Vec::new()), loads: Vec::new(), notes });
    };
    let status = read(&mut connection, &config.datasets).await.map_err(|error| database.explain(error));
    connection.close().await;
    status
}

async fn read(connection: &mut Connection, datasets: &[Arc<Dataset>]) -> StoreResult<Status> {
    connection.begin_read().await?;
    let dialect = connection.dialect();
    let (loads, rejects) = (dialect.table(Schema::Raw, "loads"), dialect.table(Schema::Raw, "rejects"));
    let counts = "status not in ('unloaded', 'repeated')";
    let sums: String = ["records_read", "rows_loaded", "rows_rejected", "records_skipped"]
        .map(|column| format!(", cast(coalesce(sum(case when {counts} then {column} end), 0) as bigint)"))
        .concat();
    let with = |status: &str| format!("count(case when status = '{status}' then 1 end)");
    let [in_flight, failed, unloaded, repeated] = ["loading", "failed", "unloaded", "repeated"].map(with);
    let sql = format!(
        "select dataset, count(case when {counts} then 1 end){sums}, {in_flight}, {failed}, {unloaded}, {repeated}, \
         (select count(*) from {rejects} r where r.dataset = l.dataset) from {loads} l group by dataset order by dataset"
    );
    let found: Vec<DatasetStatus> = connection
        .fetch(sql, &[])
        .await?
        .iter()
        .map(|row| DatasetStatus {
            dataset: row[0].text().unwrap_or_default().to_owned(),
            files: row[1].int(),
            read: row[2].int(),
            loaded: row[3].int(),
            rejected: row[4].int(),
            skipped: row[5].int(),
            in_flight: row[6].int(),
            failed: row[7].int(),
            unloaded: row[8].int(),
            repeated: row[9].int(),
            open_rejects: row[10].int(),
        })
        .collect();
    let sql = format!(
        "select id, dataset, source, status, records_read, rows_loaded, rows_rejected, error from {loads} \
         where status in ('loading', 'failed') order by id desc limit {LISTED_LOADS}"
    );
    let text = |field: &Field| field.text().unwrap_or_default().to_owned();
    let loads = connection
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
        .collect();
    connection.commit().await?;
    Ok(Status { datasets: with_configured(datasets, found), loads, notes: Vec::new() })
}

/// The configured datasets first, loaded or not, then those that are only in the ledger.
fn with_configured(datasets: &[Arc<Dataset>], found: Vec<DatasetStatus>) -> Vec<DatasetStatus> {
    let nothing = |dataset: &str| DatasetStatus {
        dataset: dataset.to_owned(),
        files: 0,
        read: 0,
        loaded: 0,
        rejected: 0,
        skipped: 0,
        in_flight: 0,
        failed: 0,
        unloaded: 0,
        repeated: 0,
        open_rejects: 0,
    };
    let mut status: Vec<DatasetStatus> = datasets
        .iter()
        .map(|dataset| found.iter().find(|f| f.dataset == dataset.name).cloned().unwrap_or_else(|| nothing(&dataset.name)))
        .collect();
    status.extend(found.into_iter().filter(|f| !datasets.iter().any(|dataset| dataset.name == f.dataset)));
    status
}

impl Status {
    /// Writes the text output.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        if let Some(nothing_is_there) = self.notes.first() {
            return writeln!(out, "{nothing_is_there}");
        }
        let count = |value: i64| HumanCount(value.unsigned_abs()).to_string();
        let numbers =
            ["files", "read", "loaded", "rejected", "skipped", "in flight", "failed", "unloaded", "repeated", "open rejects"];
        let columns: Vec<(&str, Align)> =
            std::iter::once(("dataset", Align::Left)).chain(numbers.map(|name| (name, Align::Right))).collect();
        let mut table = Table::new(&columns);
        for d in &self.datasets {
            let counts =
                [d.files, d.read, d.loaded, d.rejected, d.skipped, d.in_flight, d.failed, d.unloaded, d.repeated, d.open_rejects]
                    .map(count);
            table.row(std::iter::once(d.dataset.clone()).chain(counts));
        }
        writeln!(out, "{table}")?;
        if self.loads.is_empty() {
            return Ok(());
        }
        let text = ["id", "dataset", "status", "loaded", "rejected", "source", "error"]
            .map(|name| (name, if matches!(name, "id" | "loaded" | "rejected") { Align::Right } else { Align::Left }));
        let mut table = Table::new(&text);
        for load in &self.loads {
            table.row([
                load.id.to_string(),
                load.dataset.clone(),
                load.status.clone(),
                count(load.loaded),
                count(load.rejected),
                load.source.clone(),
                load.error.clone().unwrap_or_default(),
            ]);
        }
        writeln!(out, "\n{table}")
    }
}
