//! Appends encoded rows to a raw table. PostgreSQL takes many rows by one binary `COPY`; few rows, and the stream's batches, by
//! one `INSERT`. SQLite has only `INSERT`.

use std::path::Path;

use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArguments, PgConnection, PgCopyIn};
use sqlx::sqlite::{SqliteArguments, SqliteConnection};
use sqlx::{Arguments, AssertSqlSafe};

use super::connection::{Connection, Kind};
use super::error::{Class, StoreResult};
use super::model::{self, Noting};
use super::rows::{BoundRows, COPY_HEADER, COPY_TRAILER, CopyRows, RowArray, Rows, SqliteValue};
use super::sql::{Dialect, Schema, raw_column_list, raw_columns};
use super::stage_file::StageFile;
use super::stream_upsert::{self, Writing};
use super::watch::Watch;
use crate::dataset::Dataset;

/// One of a dataset's two raw tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RawTable {
    /// All rows.
    Master,
    /// The rows of the latest batch load.
    Delta,
}

impl RawTable {
    /// The quoted name of the table.
    pub fn of(self, dialect: Dialect, dataset: &Dataset) -> String {
        match self {
            Self::Master => dialect.table(Schema::Raw, &dataset.name),
            Self::Delta => dialect.table(Schema::Raw, &format!("{}_delta", dataset.name)),
        }
    }
}

/// An append of many rows in progress. No row is visible before [`Appender::finish`]. If it is dropped before that, the
/// statement fails.
pub struct Appender<'c> {
    dataset: &'c Dataset,
    table: String,
    target: Target<'c>,
    watch: &'c mut Watch,
}

enum Target<'c> {
    /// PostgreSQL, until there are enough rows for a COPY. The connection is there until then.
    Few {
        connection: Option<&'c mut PgConnection>,
        waiting: WaitingRows,
    },
    Copy(PgCopyIn<&'c mut PgConnection>),
    Staged {
        connection: &'c mut PgConnection,
        file: StageFile,
    },
    Insert {
        connection: &'c mut SqliteConnection,
        waiting: WaitingRows,
    },
}

/// Rows that are collected until they fill a statement. Without this, every file of a few records would cost a statement of its
/// own.
#[derive(Default)]
struct WaitingRows {
    rows: Vec<Rows>,
    count: usize,
    bytes: usize,
}

impl WaitingRows {
    /// The limit in bytes, because records can be large.
    const MOST_BYTES: usize = 1 << 20;

    fn push(&mut self, rows: Rows) {
        self.count += rows.len();
        self.bytes += rows.bytes();
        self.rows.push(rows);
    }

    fn are_at_least(&self, count: usize) -> bool {
        self.count >= count || self.bytes >= Self::MOST_BYTES
    }

    fn parts(&self) -> Vec<Part<'_>> {
        self.rows.iter().map(|rows| (rows, 0..rows.len())).collect()
    }

    fn bound_parts(&self) -> Vec<BoundPart<'_>> {
        self.rows.iter().map(|rows| (sqlite(rows), 0..rows.len())).collect()
    }
}

/// From this many rows on, a COPY is faster than an INSERT. Its end follows its data in a separate packet, which TCP holds back
/// until the server has acknowledged the data, by default 40 ms later.
const COPY_ROWS: usize = 10_000;
/// The same for a stream, whose other writer works during that wait: a COPY costs the server a third less time than an INSERT.
const SHARED_COPY_ROWS: usize = 4_000;

impl<'c> Appender<'c> {
    /// Begins the append. With `stage_dir`, the rows are written to a file in that directory, and a PostgreSQL server that
    /// shares the directory reads the file at the end.
    ///
    /// # Errors
    /// If the database refuses the statement or the file cannot be created.
    pub async fn begin(
        connection: &'c mut Connection,
        dataset: &'c Dataset,
        table: RawTable,
        stage_dir: Option<&Path>,
    ) -> StoreResult<Self> {
        let table = table.of(connection.dialect(), dataset);
        let Connection { kind, watch, .. } = connection;
        let target = match (kind, stage_dir) {
            (Kind::Postgres(connection), None) => Target::Few { connection: Some(connection), waiting: WaitingRows::default() },
            (Kind::Postgres(connection), Some(dir)) => {
                let mut file = StageFile::create(dir)?;
                file.write(COPY_HEADER)?;
                Target::Staged { connection, file }
            }
            (Kind::Sqlite(connection), _) => Target::Insert { connection, waiting: WaitingRows::default() },
        };
        Ok(Self { dataset, table, target, watch })
    }

    /// Appends rows. Their load id must be set.
    ///
    /// # Errors
    /// If the database fails. PostgreSQL reports a refused row only in [`Appender::finish`].
    pub async fn push(&mut self, rows: Rows) -> StoreResult<()> {
        match &mut self.target {
            Target::Few { connection, waiting } => {
                waiting.push(rows);
                if waiting.are_at_least(COPY_ROWS)
                    && let Some(connection) = connection.take()
                {
                    let waiting = std::mem::take(waiting);
                    let copy = self.watch.answer(copy(connection, self.dataset, &self.table, &waiting.rows)).await?;
                    self.target = Target::Copy(copy);
                }
            }
            Target::Copy(copy) => drop(self.watch.answer(copy.send(postgres(&rows).bytes())).await?),
            Target::Staged { file, .. } => file.write(postgres(&rows).bytes())?,
            Target::Insert { connection, waiting } => {
                waiting.push(rows);
                if waiting.are_at_least(INSERT_ROWS) {
                    self.watch.answer(insert_bound(connection, self.dataset, &self.table, &waiting.bound_parts())).await?;
                    *waiting = WaitingRows::default();
                }
            }
        }
        Ok(())
    }

    /// Cancels the append. The connection can then roll back.
    pub async fn abort(self) {
        if let Target::Copy(copy) = self.target
            && let Err(error) = self.watch.answer(copy.abort("the load was given up")).await
        {
            tracing::debug!("ending the COPY: {error}");
        }
    }

    /// Completes the append.
    ///
    /// # Errors
    /// If the database refuses a row or fails.
    pub async fn finish(self) -> StoreResult<()> {
        const STEP: &str = "rows of the delta";
        self.watch.begins(STEP)?;
        match self.target {
            Target::Few { connection: Some(connection), waiting } if waiting.count > 0 => {
                self.watch.answer(insert_array(connection, self.dataset, &self.table, &waiting.parts(), Noting::Days)).await?;
            }
            Target::Few { .. } => {}
            Target::Copy(mut copy) => {
                self.watch.answer(copy.send(COPY_TRAILER)).await?;
                self.watch.answer(copy.finish()).await?;
            }
            Target::Staged { connection, mut file } => {
                file.write(COPY_TRAILER)?;
                file.complete()?;
                let (table, columns, path) = (self.table, raw_column_list(self.dataset), file.path_literal()?);
                let sql = format!("copy {table} ({columns}) from {path} (format binary)");
                self.watch.answer(sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection)).await?;
            }
            Target::Insert { connection, waiting } => {
                self.watch.answer(insert_bound(connection, self.dataset, &self.table, &waiting.bound_parts())).await?;
            }
        }
        self.watch.is_done(STEP)
    }
}

/// Begins a COPY with these rows.
async fn copy<'c>(
    connection: &'c mut PgConnection,
    dataset: &Dataset,
    table: &str,
    first: &[Rows],
) -> StoreResult<PgCopyIn<&'c mut PgConnection>> {
    let sql = format!("copy {table} ({}) from stdin (format binary)", raw_column_list(dataset));
    let mut copy = connection.copy_in_raw(&sql).await?;
    copy.send(COPY_HEADER).await?;
    for rows in first {
        copy.send(postgres(rows).bytes()).await?;
    }
    Ok(copy)
}

/// What becomes of the rows of the same keys.
#[derive(Debug, Clone, Copy)]
pub enum Way {
    /// They stay.
    Append,
    /// Those of earlier loads are replaced.
    Upsert(Writing),
}

/// What was appended row by row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accepted {
    /// The rows that the database refused.
    pub refused: Vec<Refused>,
    /// How many rows were removed, as [`append`] returns it.
    pub removed: u64,
}

/// A row that the database refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Index among the rows.
    pub row: usize,
    /// The database's error message.
    pub message: String,
}

/// How many rows may fail with [`Class::Other`] before the search for a row that is accepted ends.
const MOST_FAILURES: usize = 16;

/// Inside a transaction: appends rows to a master table, except those that the database refuses. The database does not say
/// which row it refused, so a refused range is split in halves until the row is alone.
///
/// # Errors
/// If the database fails in any other way. After an error of [`Class::Other`] or [`Class::Changed`] the transaction is still
/// usable; [`is_of_a_row`](super::StoreError::is_of_a_row) says whether other rows were accepted. After any other error the transaction is lost.
pub async fn append_accepted(
    connection: &mut Connection,
    dataset: &Dataset,
    rows: &Rows,
    noting: Noting,
    way: Way,
) -> StoreResult<Accepted> {
    let (mut refused, mut removed) = (Vec::new(), 0);
    let mut ranges: Vec<std::ops::Range<usize>> = std::iter::once(0..rows.len()).collect();
    let (mut is_any_accepted, mut failed) = (false, Vec::new());
    while let Some(range) = ranges.pop() {
        if range.is_empty() {
            continue;
        }
        connection.run("savepoint rows").await?;
        match append_parts(connection, dataset, &[(rows, range.clone())], noting, way).await {
            Ok(gone) => {
                is_any_accepted = true;
                removed += gone;
                // What failed before may have passed meanwhile: another process makes tables anew. Only a row that fails while
                // the table accepts others is the cause.
                ranges.extend(failed.drain(..).map(|(range, _)| range));
            }
            Err(error) if matches!(error.class(), Class::BadRow | Class::Changed | Class::Other) => {
                connection.run("rollback to savepoint rows").await?;
                if range.len() > 1 {
                    let middle = range.start + range.len() / 2;
                    ranges.push(middle..range.end);
                    ranges.push(range.start..middle);
                } else if error.class() == Class::BadRow {
                    refused.push(Refused { row: range.start, message: error.to_string() });
                } else if is_any_accepted {
                    connection.run("release savepoint rows").await?;
                    return Err(error.of_a_row());
                } else {
                    failed.push((range, error));
                }
            }
            Err(error) => return Err(error),
        }
        connection.run("release savepoint rows").await?;
        if failed.len() == MOST_FAILURES {
            break;
        }
    }
    match failed.into_iter().next() {
        Some((_, error)) => Err(error),
        None => Ok(Accepted { refused, removed }),
    }
}

/// Inside a transaction: appends rows to a master table. Their load id must be set. The rows are noted for the model; a caller
/// that notes days marks them itself. Returns how many rows were removed: rows that were replaced, and rows among these that are
/// outdated.
///
/// # Errors
/// If the database refuses a row or fails.
pub async fn append(connection: &mut Connection, dataset: &Dataset, rows: &[&Rows], noting: Noting, way: Way) -> StoreResult<u64> {
    let parts: Vec<Part<'_>> = rows.iter().map(|rows| (*rows, 0..rows.len())).collect();
    append_parts(connection, dataset, &parts, noting, way).await
}

/// A range of encoded rows.
pub(super) type Part<'r> = (&'r Rows, std::ops::Range<usize>);

async fn append_parts(
    connection: &mut Connection,
    dataset: &Dataset,
    parts: &[Part<'_>],
    noting: Noting,
    way: Way,
) -> StoreResult<u64> {
    if parts.iter().all(|(_, range)| range.is_empty()) {
        return Ok(0);
    }
    match way {
        Way::Append => insert_noted(connection, dataset, parts, noting).await.map(|()| 0),
        Way::Upsert(writing) => stream_upsert::write(connection, dataset, parts, noting, writing).await,
    }
}

/// Inserts rows into the master and notes them.
async fn insert_noted(connection: &mut Connection, dataset: &Dataset, parts: &[Part<'_>], noting: Noting) -> StoreResult<()> {
    let table = RawTable::Master.of(connection.dialect(), dataset);
    let last = match (connection.dialect(), noting) {
        (Dialect::Sqlite, Noting::Rows) => Some(model::last_row(connection, dataset).await?),
        _ => None,
    };
    insert_into(connection, dataset, &table, parts, noting).await?;
    match last {
        Some(last) => model::note_rows_after(connection, dataset, last).await,
        None => Ok(()),
    }
}

/// Inserts rows into another table that has the master's columns.
///
/// # Errors
/// If the database fails.
pub(super) async fn insert_parts(
    connection: &mut Connection,
    dataset: &Dataset,
    table: &str,
    parts: &[Part<'_>],
) -> StoreResult<()> {
    insert_into(connection, dataset, table, parts, Noting::Days).await
}

async fn insert_into(
    connection: &mut Connection,
    dataset: &Dataset,
    table: &str,
    parts: &[Part<'_>],
    noting: Noting,
) -> StoreResult<()> {
    const STEP: &str = "rows";
    let Connection { kind, watch, .. } = &mut *connection;
    watch.begins(STEP)?;
    match kind {
        Kind::Postgres(connection) if noting == Noting::Days && row_count(parts) >= SHARED_COPY_ROWS => {
            watch.answer(copy_parts(connection, dataset, table, parts)).await?;
        }
        Kind::Postgres(connection) => watch.answer(insert_array(connection, dataset, table, parts, noting)).await?,
        Kind::Sqlite(connection) => {
            let parts: Vec<BoundPart<'_>> = parts.iter().map(|(rows, range)| (sqlite(rows), range.clone())).collect();
            watch.answer(insert_bound(connection, dataset, table, &parts)).await?;
        }
    }
    watch.is_done(STEP)
}

fn row_count(parts: &[Part<'_>]) -> usize {
    parts.iter().map(|(_, range)| range.len()).sum()
}

/// Appends rows by one COPY.
async fn copy_parts(connection: &mut PgConnection, dataset: &Dataset, table: &str, parts: &[Part<'_>]) -> StoreResult<()> {
    let mut copy = copy(connection, dataset, table, &[]).await?;
    for (rows, range) in parts {
        copy.send(postgres(rows).slice(range.clone())).await?;
    }
    copy.send(COPY_TRAILER).await?;
    copy.finish().await?;
    Ok(())
}

/// Inserts rows by one statement with one argument, which is [faster than a COPY](COPY_ROWS) of few rows.
async fn insert_array(
    connection: &mut PgConnection,
    dataset: &Dataset,
    table: &str,
    parts: &[Part<'_>],
    noting: Noting,
) -> StoreResult<()> {
    // Of the master, also for rows of another table: a statement that is prepared stays valid when a temporary table goes.
    let master = RawTable::Master.of(Dialect::Postgres, dataset);
    let row_type = row_type(connection, dataset, &master).await?;
    let tuples: Vec<&[u8]> = parts.iter().map(|(rows, range)| postgres(rows).slice(range.clone())).collect();
    let mut arguments = PgArguments::default();
    arguments.add(RowArray::new(&tuples, &row_type)).map_err(sqlx::Error::Encode)?;
    let columns = raw_column_list(dataset);
    let insert = format!("insert into {table} ({columns}) select {columns} from unnest($1::{master}[])");
    let sql = match noting {
        Noting::Rows => model::noted(dataset, &insert, 1),
        Noting::Days => insert,
    };
    sqlx::query_with(AssertSqlSafe(sql), arguments).execute(connection).await?;
    Ok(())
}

/// The columns of a table in the table's order, which differs from the definition's order after columns were added. Each has
/// its index among the dataset's columns and the OID of its type. The lock keeps them unchanged until the transaction ends.
async fn row_type(connection: &mut PgConnection, dataset: &Dataset, table: &str) -> StoreResult<Vec<(Option<usize>, u32)>> {
    sqlx::raw_sql(AssertSqlSafe(format!("lock table {table} in row exclusive mode"))).execute(&mut *connection).await?;
    let attributes: Vec<(String, Oid)> = sqlx::query_as(
        "select attname::text, atttypid from pg_attribute \
         where attrelid = $1::regclass and attnum > 0 and not attisdropped order by attnum",
    )
    .bind(table)
    .fetch_all(connection)
    .await?;
    let index = |name: &str| raw_columns(dataset).position(|(column, _)| column == name);
    Ok(attributes.into_iter().map(|(name, type_oid)| (index(&name), type_oid.0)).collect())
}

fn postgres(rows: &Rows) -> &CopyRows {
    match rows {
        Rows::Postgres(rows) => rows,
        Rows::Sqlite(_) => unreachable!("rows are encoded for the store that they go to"),
    }
}

fn sqlite(rows: &Rows) -> &BoundRows {
    match rows {
        Rows::Sqlite(rows) => rows,
        Rows::Postgres(_) => unreachable!("rows are encoded for the store that they go to"),
    }
}

/// How many rows one INSERT of SQLite holds. More rows gain nothing; fewer rows cost more thread switches.
const INSERT_ROWS: usize = 500;
/// SQLite's limit of parameters per statement.
const MAX_PARAMETERS: usize = 32_766;

/// A range of rows that are encoded for SQLite.
type BoundPart<'r> = (&'r BoundRows, std::ops::Range<usize>);

async fn insert_bound(
    connection: &mut SqliteConnection,
    dataset: &Dataset,
    table: &str,
    parts: &[BoundPart<'_>],
) -> StoreResult<()> {
    let columns = raw_column_list(dataset);
    let mut parts = parts.iter().filter(|(_, range)| !range.is_empty()).peekable();
    let Some(width) = parts.peek().map(|(rows, _)| rows.width() + 1) else { return Ok(()) };
    let tuple = format!("({})", vec!["?"; width].join(", "));
    let most = INSERT_ROWS.min(MAX_PARAMETERS / width);
    let mut rows =
        parts.flat_map(|(rows, range)| rows.slice(range.clone()).chunks(rows.width()).map(|row| (row, rows.load_id()))).peekable();
    while rows.peek().is_some() {
        let mut arguments = SqliteArguments::default();
        arguments.reserve(most * width, 0);
        let mut count = 0;
        for (row, load_id) in rows.by_ref().take(most) {
            count += 1;
            for value in row {
                match value {
                    SqliteValue::Null => arguments.add(None::<i64>),
                    SqliteValue::Integer(number) => arguments.add(*number),
                    SqliteValue::Real(number) => arguments.add(*number),
                    SqliteValue::Text(text) => arguments.add(std::sync::Arc::clone(text)),
                }
                .map_err(sqlx::Error::Encode)?;
            }
            arguments.add(load_id).map_err(sqlx::Error::Encode)?;
        }
        let tuples = vec![tuple.as_str(); count].join(", ");
        let sql = AssertSqlSafe(format!("insert into {table} ({columns}) values {tuples}"));
        // Only the full-sized statement is used again, so only that one is cached.
        sqlx::query_with(sql, arguments).persistent(count == most).execute(&mut *connection).await?;
    }
    Ok(())
}
