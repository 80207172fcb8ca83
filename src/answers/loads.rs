//! Loads of the ledger, one by one: the latest, those that a search finds, and one with its chunks.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use crate::dataset::Dataset;
use crate::store::sql::Schema;
use crate::store::{Arg, Connection, Dialect, Field, StoreResult, model};

/// A row of the ledger.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoadRow {
    pub id: i64,
    pub dataset: String,
    pub source: String,
    pub status: String,
    /// Length of the decompressed text; none until the end of the file is known.
    pub bytes: Option<i64>,
    pub read: i64,
    pub loaded: i64,
    pub rejected: i64,
    pub skipped: i64,
    /// In UTC, as RFC 3339.
    pub started_at: String,
    pub finished_at: Option<String>,
    pub error: Option<String>,
}

/// Which loads are listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadFilter {
    pub dataset: Option<String>,
    pub status: Option<String>,
    /// A part of the source, in upper or lower case.
    pub name: Option<String>,
    /// Only those before this one: the next page of a list.
    pub before: Option<i64>,
}

/// A load with what belongs to it.
#[derive(Debug, Clone, Serialize)]
pub struct LoadDetail {
    #[serde(flatten)]
    pub load: LoadRow,
    /// When the stream claimed the file, in UTC, as RFC 3339. None for other loads.
    pub claimed_at: Option<String>,
    pub chunks: i64,
    pub open_rejects: i64,
    pub sha256: Option<String>,
    pub host: Option<String>,
    pub repeats: Option<i64>,
    pub rows_removed: Option<i64>,
    /// Whether some of its rows are not modelled yet. None if it has no rows in a model, or if that is not known.
    pub waits_for_refresh: Option<bool>,
}

const COLUMNS: &str = "id, dataset, source, status, bytes, records_read, rows_loaded, rows_rejected, records_skipped";

/// A time as RFC 3339, in UTC.
fn time(dialect: Dialect, column: &str) -> String {
    match dialect {
        Dialect::Postgres => format!("to_char({column} at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"),
        Dialect::Sqlite => format!("replace({column}, ' ', 'T') || 'Z'"),
    }
}

/// The columns of a [`LoadRow`].
fn selected(dialect: Dialect) -> String {
    format!("{COLUMNS}, {}, {}, error", time(dialect, "started_at"), time(dialect, "finished_at"))
}

fn load_row(row: &[Field]) -> LoadRow {
    let text = |i: usize| row[i].text().unwrap_or_default().to_owned();
    LoadRow {
        id: row[0].int(),
        dataset: text(1),
        source: text(2),
        status: text(3),
        bytes: (row[4] != Field::Null).then(|| row[4].int()),
        read: row[5].int(),
        loaded: row[6].int(),
        rejected: row[7].int(),
        skipped: row[8].int(),
        started_at: text(9),
        finished_at: row[10].text().map(str::to_owned),
        error: row[11].text().map(str::to_owned),
    }
}

/// The loads that the filter selects, the latest first.
///
/// # Errors
/// If the database fails.
pub async fn list(connection: &mut Connection, filter: &LoadFilter, limit: u32) -> StoreResult<Vec<LoadRow>> {
    let dialect = connection.dialect();
    let (mut conditions, mut args) = (vec!["1 = 1".to_owned()], Vec::new());
    let contains = match dialect {
        Dialect::Postgres => "strpos",
        Dialect::Sqlite => "instr",
    };
    let texts = [
        (&filter.dataset, "dataset = $".to_owned(), ""),
        (&filter.status, "status = $".to_owned(), ""),
        (&filter.name, format!("{contains}(lower(source), lower($"), ")) > 0"),
    ];
    for (value, before, after) in texts {
        if let Some(value) = value {
            args.push(Arg::Text(Some(value)));
            conditions.push(format!("{before}{}{after}", args.len()));
        }
    }
    if let Some(id) = filter.before {
        args.push(Arg::Int(Some(id)));
        conditions.push(format!("id < ${}", args.len()));
    }
    let (selected, loads) = (selected(dialect), dialect.table(Schema::Raw, "loads"));
    let sql = format!("select {selected} from {loads} where {} order by id desc limit {limit}", conditions.join(" and "));
    Ok(connection.fetch(sql, &args).await?.iter().map(|row| load_row(row)).collect())
}

/// The load with this id, if there is one.
///
/// # Errors
/// If the database fails.
pub async fn find(connection: &mut Connection, datasets: &[Arc<Dataset>], id: i64) -> StoreResult<Option<LoadDetail>> {
    let dialect = connection.dialect();
    let [loads, batches, rejects] = ["loads", "batches", "rejects"].map(|table| dialect.table(Schema::Raw, table));
    let sql = format!(
        "select {}, sha256, host, repeats, rows_removed, (select count(*) from {batches} b where b.load_id = l.id), \
         (select count(*) from {rejects} r where r.load_id = l.id), cast(load_key as text) from {loads} l where id = $1",
        selected(dialect)
    );
    let rows = connection.fetch(sql, &[Arg::Int(Some(id))]).await?;
    let int = |field: &Field| (*field != Field::Null).then(|| field.int());
    let Some(row) = rows.first() else { return Ok(None) };
    let mut found = LoadDetail {
        claimed_at: claimed_at(row[18].text().unwrap_or_default(), row[9].text().unwrap_or_default()),
        load: load_row(row),
        sha256: row[12].text().map(str::to_owned),
        host: row[13].text().map(str::to_owned),
        repeats: int(&row[14]),
        rows_removed: int(&row[15]),
        chunks: row[16].int(),
        open_rejects: row[17].int(),
        waits_for_refresh: None,
    };
    let dataset = datasets.iter().find(|dataset| dataset.name == found.load.dataset && dataset.day.is_some());
    if let Some(dataset) = dataset.filter(|_| found.load.loaded > 0 && found.load.status != "unloaded") {
        // After the counts: what is committed later may only add to what waits.
        found.waits_for_refresh = model::waits_for_refresh(connection, dataset, id).await?;
    }
    Ok(Some(found))
}

/// A load key of the stream was made when its file was claimed, and holds that time. Other loads have theirs made after the start.
fn claimed_at(load_key: &str, started_at: &str) -> Option<String> {
    let made = Uuid::parse_str(load_key).ok()?.get_timestamp()?.to_unix();
    let made = Timestamp::new(made.0.try_into().ok()?, made.1.try_into().ok()?).ok()?;
    (made <= started_at.parse().ok()?).then(|| made.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_claim_says_when_that_was() {
        let key = "01936a8d-7b2c-7000-8000-000000000000";
        let claimed = claimed_at(key, "2025-01-01T00:00:00.000000Z").expect("it is of version 7");
        assert!(claimed.starts_with("2024-11-26T"), "{claimed}");
        assert_eq!(claimed_at(key, "2024-01-01T00:00:00.000000Z"), None, "made after the start: no claim");
        for other in ["", "x", "6b1f3c52-0d3c-4c8e-9b7e-2f1d5a1c9e77"] {
            assert_eq!(claimed_at(other, "2025-01-01T00:00:00.000000Z"), None, "{other}");
        }
    }
}
