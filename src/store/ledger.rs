//! The ledger's rows: one per load of a file. Its lines, one per chunk, are in [`super::chunk_lines`].

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;
use uuid::Uuid;

use super::connection::{Arg, Connection, Field};
use super::error::StoreResult;
use super::sql::{Dialect, Schema};
use crate::record::content::ContentHash;

/// The counts of a load's records. For a finished load, `read == loaded + rejected + skipped`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    pub read: u64,
    pub loaded: u64,
    pub rejected: u64,
    /// Records outside the requested dates.
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

/// The result of a finished load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadStatus {
    Loaded,
    Failed,
}

/// A finished load, as it is written to the ledger.
#[derive(Debug, Clone)]
pub struct FinishedLoad<'a> {
    pub id: i64,
    pub load_key: Uuid,
    pub dataset: &'a str,
    /// The file, or `-` for standard input.
    pub source: &'a str,
    /// Length of the decompressed text, as far as it was read.
    pub bytes: u64,
    pub counts: Counts,
    pub started_at: Timestamp,
    pub status: LoadStatus,
    pub error: Option<&'a str>,
    /// Of the file's stored bytes, if they were read to their end.
    pub sha256: Option<ContentHash>,
    /// Where the file was read; `None` if there is no file.
    pub host: Option<&'a str>,
    /// How many rows of the table its run replaced. A run books all of them on the row of its first file.
    pub rows_removed: u64,
}

/// Inside a transaction that writes: reserves ids for loads. Their rows are written when the loads are finished.
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
        // The transaction holds the only write lock. AUTOINCREMENT does not use the ids of deleted rows again.
        Dialect::Sqlite => {
            let last = connection.fetch_int("select max(seq) from sqlite_sequence where name = 'raw_loads'", &[]).await?;
            Ok((last + 1..=last + count).collect())
        }
    }
}

/// Writes the rows of finished loads.
///
/// # Errors
/// If the database fails.
pub async fn insert_finished(connection: &mut Connection, loads: &[FinishedLoad<'_>]) -> StoreResult<()> {
    let finished_at = Timestamp::now();
    let hashes: Vec<Option<String>> = loads.iter().map(|load| load.sha256.map(|hash| hash.to_string())).collect();
    let rows: Vec<Vec<Arg<'_>>> = loads
        .iter()
        .zip(&hashes)
        .map(|(load, sha256)| {
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
                Arg::Text(sha256.as_deref()),
                Arg::Text(load.host),
                int(load.rows_removed),
            ]
        })
        .collect();
    let loads = connection.dialect().table(Schema::Raw, "loads");
    let into = format!(
        "{loads} (id, load_key, dataset, source, bytes, status, records_read, rows_loaded, rows_rejected, records_skipped, \
         started_at, finished_at, error, sha256, host, rows_removed)"
    );
    connection.insert(&into, "", &rows).await
}

/// A count as an argument. Counts of records and bytes stay far below 2⁶³.
pub(super) fn int(value: u64) -> Arg<'static> {
    Arg::Int(Some(i64::try_from(value).unwrap_or(i64::MAX)))
}

/// A load in progress, as the first transaction that writes a chunk of it adds it to the ledger.
#[derive(Debug, Clone, Copy)]
pub struct OpenLoad<'a> {
    pub load_key: Uuid,
    pub dataset: &'a str,
    pub source: &'a str,
}

/// A load in progress or void, as the ledger knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenedLoad {
    pub id: i64,
    /// Its file has changed, or it was taken back: no more of it is loaded.
    pub is_void: bool,
}

/// The condition that no more of a load is loaded: [`void`] has ended it, or it was taken back.
pub(super) const IS_VOID: &str = "(status = 'unloaded' or status = 'failed' and bytes is null)";

/// Inside a transaction: creates the rows of loads that have none yet. Returns all the loads, in the given order.
///
/// # Errors
/// If the database fails.
pub async fn open(connection: &mut Connection, open: &[OpenLoad<'_>]) -> StoreResult<Vec<OpenedLoad>> {
    if open.is_empty() {
        return Ok(Vec::new());
    }
    let loads = connection.dialect().table(Schema::Raw, "loads");
    // Sorted by key: two consumers that open the same loads wait for each other and do not deadlock.
    let mut sorted: Vec<&OpenLoad<'_>> = open.iter().collect();
    sorted.sort_by_key(|load| load.load_key);
    let rows: Vec<Vec<Arg<'_>>> = sorted
        .iter()
        .map(|load| {
            let (dataset, source) = (Arg::Text(Some(load.dataset)), Arg::Text(Some(load.source)));
            vec![Arg::Uuid(load.load_key), dataset, source, Arg::Text(Some("loading"))]
        })
        .collect();
    let into = format!("{loads} (load_key, dataset, source, status)");
    connection.insert(&into, "on conflict (load_key) do nothing", &rows).await?;
    let mut opened = HashMap::new();
    for keys in open.chunks(1_000) {
        let args: Vec<Arg<'_>> = keys.iter().map(|load| Arg::Uuid(load.load_key)).collect();
        let sql = format!(
            "select load_key, id, {IS_VOID} from {loads} where load_key in ({})",
            connection.dialect().placeholders(args.len())
        );
        for row in connection.fetch(sql, &args).await? {
            let load = OpenedLoad { id: row[1].int(), is_void: row[2].int() != 0 };
            opened.insert(row[0].text().unwrap_or_default().to_owned(), load);
        }
    }
    Ok(open.iter().map(|load| opened[&load.load_key.to_string()]).collect())
}

/// What a transaction adds to a load in progress.
#[derive(Debug, Clone, Copy)]
pub struct LoadProgress<'a> {
    pub id: i64,
    /// Only `loaded` and `rejected` are added.
    pub counts: Counts,
    /// Rows that were removed, see [`append`](super::append::append).
    pub removed: u64,
    pub end: Option<LoadEnd<'a>>,
}

/// The totals of a load. They are known when its file was read to the end or to the point where it failed. Until then, `bytes`
/// in the ledger is null.
#[derive(Debug, Clone, Copy)]
pub struct LoadEnd<'a> {
    pub records: u64,
    pub bytes: u64,
    /// Why the file failed, if it did.
    pub error: Option<&'a str>,
    /// Of the file's stored bytes, if it is known.
    pub sha256: Option<ContentHash>,
    /// Where the file was read, if it is known.
    pub host: Option<&'a str>,
}

/// A closed load, as the ledger has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClosedLoad {
    pub id: i64,
    pub counts: Counts,
    /// Rows that it has removed.
    pub removed: u64,
    pub error: Option<String>,
}

/// The columns of a [`ClosedLoad`].
const CLOSED_COLUMNS: &str = "id, records_read, rows_loaded, rows_rejected, records_skipped, error, coalesce(rows_removed, 0)";

/// How many of a load's records the ledger accounts for.
const ACCOUNTED: &str = "rows_loaded + rows_rejected + records_skipped";

/// Inside a transaction: adds to the counts of each load. A load is closed when its end is known and all its records are
/// counted, in any order of arrival. The latest end counts: a file that is read again may have grown, or may fail where it did
/// not fail before. If there are more records than the end names, the file was truncated. Returns the loads that this call
/// closed, and the loads with an end in this call that were closed before.
///
/// # Errors
/// If the database fails.
pub async fn advance(connection: &mut Connection, loads: &[LoadProgress<'_>]) -> StoreResult<Vec<ClosedLoad>> {
    // The list is empty when all pieces are messages of other programs. SQL does not allow an empty list.
    if loads.is_empty() {
        return Ok(Vec::new());
    }
    let dialect = connection.dialect();
    let table = dialect.table(Schema::Raw, "loads");
    let ids = id_list(loads.iter().map(|load| load.id));
    if dialect == Dialect::Postgres && loads.len() > 1 {
        // Sorted by id: transactions that add to the same loads wait for each other and do not deadlock.
        connection.run(format!("select id from {table} where id in ({ids}) order by id for update")).await?;
    }
    for loads in loads.chunks(1_000) {
        add(connection, &table, loads).await?;
    }
    let ended: Vec<i64> = loads.iter().filter(|load| load.end.is_some()).map(|load| load.id).collect();
    let mut closed = close(connection, &table, &ids, &ended).await?;
    let before: Vec<i64> = ended.into_iter().filter(|id| !closed.iter().any(|load| load.id == *id)).collect();
    if !before.is_empty() {
        let ids = id_list(before.into_iter());
        let sql = format!(
            "select {CLOSED_COLUMNS} from {table} where id in ({ids}) and status in ('loaded', 'failed') \
             union all select id, 0, 0, 0, 0, null, 0 from {table} where id in ({ids}) and status = 'unloaded'"
        );
        closed.extend(connection.fetch(sql, &[]).await?.iter().map(|row| ClosedLoad::of(row)));
    }
    Ok(closed)
}

/// Adds to the counts and stores the ends. A closed load is opened again when a different end arrives, or when records arrive
/// that its end does not include. The end that includes them will follow.
async fn add(connection: &mut Connection, table: &str, loads: &[LoadProgress<'_>]) -> StoreResult<()> {
    let hash_of = |load: &LoadProgress<'_>| load.end.and_then(|end| end.sha256).map(|hash| hash.to_string());
    let hashes: Vec<Option<String>> = loads.iter().map(hash_of).collect();
    let args: Vec<Arg<'_>> = loads
        .iter()
        .zip(&hashes)
        .flat_map(|(load, sha256)| {
            let (records, bytes) = load.end.map_or((Arg::Int(None), Arg::Int(None)), |end| (int(end.records), int(end.bytes)));
            let [error, host] = [load.end.and_then(|end| end.error), load.end.and_then(|end| end.host)].map(Arg::Text);
            let (id, sha256) = (Arg::Int(Some(load.id)), Arg::Text(sha256.as_deref()));
            let [loaded, rejected, removed] = [load.counts.loaded, load.counts.rejected, load.removed].map(int);
            [id, loaded, rejected, removed, records, bytes, error, sha256, host]
        })
        .collect();
    let adds = "(v.loaded > 0 or v.rejected > 0)";
    let is_same_end = "l.bytes = v.bytes and coalesce(l.error, '') = coalesce(v.error, '') \
                       and (v.error is not null or l.records_read = v.records_read)";
    let ends = format!("v.bytes is not null and (l.status = 'loading' or l.bytes is not null and ({adds} or not ({is_same_end})))");
    let outgrows = format!("l.status = 'loaded' and {adds}");
    let sql = format!(
        "with v (id, loaded, rejected, removed, records_read, bytes, error, sha256, host) as (values {values}) \
         update {table} as l set rows_loaded = l.rows_loaded + v.loaded, rows_rejected = l.rows_rejected + v.rejected, \
         rows_removed = l.rows_removed + v.removed, \
         records_read = case when {ends} then v.records_read when {outgrows} then 0 \
         when l.status = 'failed' then l.records_read + v.loaded + v.rejected else l.records_read end, \
         bytes = case when {ends} then v.bytes when {outgrows} then null else l.bytes end, \
         error = case when {ends} then v.error else l.error end, \
         sha256 = case when {ends} then v.sha256 else l.sha256 end, host = case when {ends} then v.host else l.host end, \
         finished_at = case when {ends} or {outgrows} then null else l.finished_at end, \
         status = case when {ends} or {outgrows} then 'loading' else l.status end \
         from v where l.id = v.id and l.status <> 'unloaded'",
        values = connection.dialect().tuples(loads.len(), 9),
    );
    connection.execute(sql, &args).await.map(drop)
}

/// Closes the loads that are complete. `ended` are the loads whose end is in this transaction.
async fn close(connection: &mut Connection, table: &str, ids: &str, ended: &[i64]) -> StoreResult<Vec<ClosedLoad>> {
    let now = connection.dialect().now();
    // Only the end of the file proves that no more records follow.
    let is_cut_off = match ended {
        [] => "1 = 0".to_owned(),
        ended => format!("error is null and {ACCOUNTED} > records_read and id in ({})", id_list(ended.iter().copied())),
    };
    let sql = format!(
        "update {table} set finished_at = {now}, \
         status = case when error is null and {ACCOUNTED} = records_read then 'loaded' else 'failed' end, \
         bytes = case when {is_cut_off} then null else bytes end, \
         error = case when {is_cut_off} then $1 else error end, \
         records_read = {ACCOUNTED} \
         where id in ({ids}) and status = 'loading' and bytes is not null \
         and ({ACCOUNTED} = records_read or error is not null and {ACCOUNTED} > records_read or {is_cut_off}) \
         returning {CLOSED_COLUMNS}",
    );
    let error = "the file has changed: it has fewer records than were loaded from it before";
    let rows = connection.fetch(sql, &[Arg::Text(Some(error))]).await?;
    Ok(rows.iter().map(|row| ClosedLoad::of(row)).collect())
}

/// Inside a transaction: ends a load whose file was replaced by another one. The loaded rows stay, and no more are added. Such
/// a load has status `failed` and null `bytes`. Returns `None` if the load was void before.
///
/// # Errors
/// If the database fails.
pub async fn void(connection: &mut Connection, id: i64, error: &str) -> StoreResult<Option<ClosedLoad>> {
    let dialect = connection.dialect();
    let table = dialect.table(Schema::Raw, "loads");
    let now = dialect.now();
    let sql = format!(
        "update {table} set status = 'failed', error = $2, bytes = null, finished_at = {now}, records_read = {ACCOUNTED} \
         where id = $1 and not {IS_VOID} returning {CLOSED_COLUMNS}"
    );
    let rows = connection.fetch(sql, &[Arg::Int(Some(id)), Arg::Text(Some(error))]).await?;
    Ok(rows.first().map(|row| ClosedLoad::of(row)))
}

impl ClosedLoad {
    /// Reads a row of [`CLOSED_COLUMNS`].
    fn of(row: &[Field]) -> Self {
        let count = |column: usize| row[column].int().unsigned_abs();
        let counts = Counts { read: count(1), loaded: count(2), rejected: count(3), skipped: count(4) };
        Self { id: row[0].int(), counts, removed: count(6), error: row[5].text().map(str::to_owned) }
    }
}

/// A row of the ledger, of any status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerLoad {
    pub id: i64,
    pub dataset: String,
    pub source: String,
    pub status: String,
    pub rows_loaded: u64,
    /// Rows of other loads that it has replaced; zero where that is not known.
    pub rows_removed: u64,
}

/// The rows of the ledger with these ids, in their order; without those that there are not.
///
/// # Errors
/// If the database fails.
pub async fn find(connection: &mut Connection, ids: &BTreeSet<i64>) -> StoreResult<Vec<LedgerLoad>> {
    let (loads, ids) = (connection.dialect().table(Schema::Raw, "loads"), id_list(ids.iter().copied()));
    let columns = "id, dataset, source, status, rows_loaded, coalesce(rows_removed, 0)";
    let rows = connection.fetch(format!("select {columns} from {loads} where id in ({ids}) order by id"), &[]).await?;
    let text = |field: &Field| field.text().unwrap_or_default().to_owned();
    let load = |row: &Vec<Field>| LedgerLoad {
        id: row[0].int(),
        dataset: text(&row[1]),
        source: text(&row[2]),
        status: text(&row[3]),
        rows_loaded: row[4].int().unsigned_abs(),
        rows_removed: row[5].int().unsigned_abs(),
    };
    Ok(rows.iter().map(load).collect())
}

pub(super) fn id_list(ids: impl Iterator<Item = i64>) -> String {
    ids.map(|id| id.to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
