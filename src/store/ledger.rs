//! The ledger: one row per load (a file, once), one line per chunk.

use jiff::Timestamp;
use uuid::Uuid;

use super::connection::{Arg, Connection};
use super::error::StoreResult;
use super::sql::{Dialect, Schema, placeholders, tuples};

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

/// A load that is in flight, as whoever writes its first chunk books it.
#[derive(Debug, Clone, Copy)]
pub struct OpenLoad<'a> {
    pub load_key: Uuid,
    pub dataset: &'a str,
    pub source: &'a str,
}

/// Inside a transaction: makes the rows of loads that have none yet; returns the numbers of all, in their order.
///
/// # Errors
/// If the database fails.
pub async fn open(connection: &mut Connection, open: &[OpenLoad<'_>]) -> StoreResult<Vec<i64>> {
    if open.is_empty() {
        return Ok(Vec::new());
    }
    let loads = connection.dialect().table(Schema::Raw, "loads");
    // In the order of their keys: two consumers that open the same loads wait for each other, and never in a circle.
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
    let mut ids = std::collections::HashMap::new();
    for keys in open.chunks(1_000) {
        let args: Vec<Arg<'_>> = keys.iter().map(|load| Arg::Uuid(load.load_key)).collect();
        let sql = format!("select load_key, id from {loads} where load_key in ({})", placeholders(args.len()));
        for row in connection.fetch(sql, &args).await? {
            ids.insert(row[0].text().unwrap_or_default().to_owned(), row[1].int());
        }
    }
    Ok(open.iter().map(|load| ids[&load.load_key.to_string()]).collect())
}

/// Inside a transaction: writes chunk lines that are not there yet; returns which of them are new. A chunk that is not was
/// loaded before.
///
/// # Errors
/// If the database fails.
pub async fn claim_chunks(connection: &mut Connection, lines: &[ChunkLine]) -> StoreResult<Vec<bool>> {
    let batches = connection.dialect().table(Schema::Raw, "batches");
    let mut new = std::collections::HashSet::new();
    for lines in lines.chunks(1_000) {
        let args: Vec<Arg<'_>> = lines
            .iter()
            .flat_map(|line| [Arg::Int(Some(line.load_id)), int(line.seq), int(line.first_ordinal), int(line.records)])
            .collect();
        let sql = format!(
            "insert into {batches} (load_id, seq, first_ordinal, records) values {} on conflict (load_id, seq) do nothing returning load_id, seq",
            tuples(lines.len(), 4)
        );
        for row in connection.fetch(sql, &args).await? {
            new.insert((row[0].int(), row[1].int()));
        }
    }
    // Taken out when found: of two equal chunks in one transaction only the first is new.
    Ok(lines.iter().map(|line| new.remove(&(line.load_id, i64::try_from(line.seq).unwrap_or(i64::MAX)))).collect())
}

/// What a transaction adds to a load that is in flight.
#[derive(Debug, Clone, Copy)]
pub struct LoadProgress<'a> {
    pub id: i64,
    /// Of these `loaded` and `rejected` are added.
    pub counts: Counts,
    pub end: Option<LoadEnd<'a>>,
}

/// The totals of a load whose file was read to its end, or as far as it goes. Until they are known its `bytes` are null.
#[derive(Debug, Clone, Copy)]
pub struct LoadEnd<'a> {
    pub records: u64,
    pub bytes: u64,
    /// Why the file failed, if it did.
    pub error: Option<&'a str>,
}

/// A load that is over, as the ledger has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClosedLoad {
    pub id: i64,
    pub counts: Counts,
    pub error: Option<String>,
}

/// Inside a transaction: books what it adds to each load, and closes those whose end is known and whose records are all in, in
/// whatever order they came. Returns those that this closed, and of those that end here also those that were closed before.
///
/// # Errors
/// If the database fails.
pub async fn advance(connection: &mut Connection, loads: &[LoadProgress<'_>]) -> StoreResult<Vec<ClosedLoad>> {
    // Where all pieces are other programs' messages; no database has an empty list.
    if loads.is_empty() {
        return Ok(Vec::new());
    }
    let dialect = connection.dialect();
    let table = dialect.table(Schema::Raw, "loads");
    let list = |ids: &[i64]| ids.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
    let ids = list(&loads.iter().map(|load| load.id).collect::<Vec<_>>());
    if dialect == Dialect::Postgres && loads.len() > 1 {
        // In the order of their numbers: whoever adds to the same loads waits, and never in a circle.
        connection.run(format!("select id from {table} where id in ({ids}) order by id for update")).await?;
    }
    for loads in loads.chunks(1_000) {
        let args: Vec<Arg<'_>> = loads
            .iter()
            .flat_map(|load| {
                let (records, bytes) = load.end.map_or((Arg::Int(None), Arg::Int(None)), |end| (int(end.records), int(end.bytes)));
                let error = Arg::Text(load.end.and_then(|end| end.error));
                [Arg::Int(Some(load.id)), int(load.counts.loaded), int(load.counts.rejected), records, bytes, error]
            })
            .collect();
        let if_open = |column: &str| {
            format!("{column} = case when l.status = 'loading' and v.bytes is not null then v.{column} else l.{column} end")
        };
        let sql = format!(
            "with v (id, loaded, rejected, records_read, bytes, error) as (values {values}) \
             update {table} as l set rows_loaded = l.rows_loaded + v.loaded, rows_rejected = l.rows_rejected + v.rejected, \
             {records}, {bytes}, {error} from v where l.id = v.id",
            values = tuples(loads.len(), 6),
            records = if_open("records_read"),
            bytes = if_open("bytes"),
            error = if_open("error"),
        );
        connection.execute(sql, &args).await?;
    }
    let columns = "id, records_read, rows_loaded, rows_rejected, records_skipped, error";
    let now = dialect.now();
    let sql = format!(
        "update {table} set finished_at = {now}, \
         status = case when error is null then 'loaded' else 'failed' end, \
         records_read = case when error is null then records_read else rows_loaded + rows_rejected + records_skipped end \
         where id in ({ids}) and status = 'loading' and bytes is not null \
         and rows_loaded + rows_rejected + records_skipped >= records_read returning {columns}",
    );
    let mut rows = connection.fetch(sql, &[]).await?;
    let ended = loads.iter().filter(|load| load.end.is_some()).map(|load| load.id);
    let before: Vec<i64> = ended.filter(|id| !rows.iter().any(|row| row[0].int() == *id)).collect();
    if !before.is_empty() {
        let sql = format!("select {columns} from {table} where id in ({}) and status <> 'loading'", list(&before));
        rows.extend(connection.fetch(sql, &[]).await?);
    }
    let count = |field: &super::Field| field.int().unsigned_abs();
    Ok(rows
        .iter()
        .map(|row| ClosedLoad {
            id: row[0].int(),
            counts: Counts { read: count(&row[1]), loaded: count(&row[2]), rejected: count(&row[3]), skipped: count(&row[4]) },
            error: row[5].text().map(str::to_owned),
        })
        .collect())
}
