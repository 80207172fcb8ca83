//! The ledger: one row per load (a file, once), one line per chunk.

use jiff::Timestamp;
use uuid::Uuid;

use super::connection::{Arg, Connection};
use super::error::StoreResult;
use super::sql::{Dialect, Schema};

/// What became of a load's records. For a finished load `read == loaded + rejected + skipped`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    pub read: u64,
    pub loaded: u64,
    pub rejected: u64,
    /// Outside the requested dates.
    pub skipped: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.read += other.read;
        self.loaded += other.loaded;
        self.rejected += other.rejected;
        self.skipped += other.skipped;
    }
}

/// Where a load stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadStatus {
    Loaded,
    Failed,
}

/// A load that is over.
#[derive(Debug, Clone)]
pub struct FinishedLoad<'a> {
    pub id: i64,
    pub load_key: Uuid,
    pub dataset: &'a str,
    /// The file, or `-` for standard input.
    pub source: &'a str,
    /// Of the decompressed text, as far as it was read.
    pub bytes: u64,
    pub counts: Counts,
    pub started_at: Timestamp,
    pub status: LoadStatus,
    pub error: Option<&'a str>,
}

/// A chunk's line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkLine {
    pub load_id: i64,
    pub seq: u64,
    pub first_ordinal: u64,
    pub records: u64,
}

/// Inside a transaction that writes: numbers for loads that are written when they are over.
///
/// # Errors
/// If the database fails.
pub async fn reserve_ids(connection: &mut Connection, count: usize) -> StoreResult<Vec<i64>> {
    let count = i64::try_from(count).expect("a count of files");
    match connection.dialect() {
        Dialect::Postgres => {
            let sql = "select nextval(pg_get_serial_sequence('raw.loads', 'id')) from generate_series(1, $1)";
            let rows = connection.fetch(sql, &[Arg::Int(Some(count))]).await?;
            Ok(rows.iter().map(|row| row[0].int()).collect())
        }
        // The transaction holds the only write lock; AUTOINCREMENT remembers numbers that were deleted.
        Dialect::Sqlite => {
            let last = connection.fetch_int("select max(seq) from sqlite_sequence where name = 'raw_loads'", &[]).await?;
            Ok((last + 1..=last + count).collect())
        }
    }
}

/// Writes loads that are over.
///
/// # Errors
/// If the database fails.
pub async fn insert_finished(connection: &mut Connection, loads: &[FinishedLoad<'_>]) -> StoreResult<()> {
    let finished_at = Timestamp::now();
    let rows: Vec<Vec<Arg<'_>>> = loads
        .iter()
        .map(|load| {
            let status = match load.status {
                LoadStatus::Loaded => "loaded",
                LoadStatus::Failed => "failed",
            };
            vec![
                Arg::Int(Some(load.id)),
                Arg::Uuid(load.load_key),
                Arg::Text(Some(load.dataset)),
                Arg::Text(Some(load.source)),
                int(load.bytes),
                Arg::Text(Some(status)),
                int(load.counts.read),
                int(load.counts.loaded),
                int(load.counts.rejected),
                int(load.counts.skipped),
                Arg::Time(Some(load.started_at)),
                Arg::Time(Some(finished_at)),
                Arg::Text(load.error),
            ]
        })
        .collect();
    let loads = connection.dialect().table(Schema::Raw, "loads");
    let into = format!(
        "{loads} (id, load_key, dataset, source, bytes, status, records_read, rows_loaded, rows_rejected, records_skipped, \
         started_at, finished_at, error)"
    );
    connection.insert(&into, "", &rows).await
}

/// Writes chunk lines.
///
/// # Errors
/// If the database fails.
pub async fn insert_chunks(connection: &mut Connection, lines: &[ChunkLine]) -> StoreResult<()> {
    let rows: Vec<Vec<Arg<'_>>> = lines
        .iter()
        .map(|line| vec![Arg::Int(Some(line.load_id)), int(line.seq), int(line.first_ordinal), int(line.records)])
        .collect();
    let batches = connection.dialect().table(Schema::Raw, "batches");
    connection.insert(&format!("{batches} (load_id, seq, first_ordinal, records)"), "", &rows).await
}

/// A count as an argument; counts of records and bytes stay far below 2⁶³.
pub(super) fn int(value: u64) -> Arg<'static> {
    Arg::Int(Some(i64::try_from(value).unwrap_or(i64::MAX)))
}
