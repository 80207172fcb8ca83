//! Fills columns that were added to a definition later from `_extra` of the rows that are there, and takes the values out of it.
//!
//! What the rows get is collected in a temporary table, page by page, and applied by one statement: the memory does not grow with
//! the table, and the rows change once.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::append::RawTable;
use super::connection::{Arg, Connection, Field};
use super::error::{StoreError, StoreResult};
use super::model;
use super::rows::SqliteValue;
use super::sql::{Dialect, quote};
use crate::dataset::{Column, ColumnType, Dataset};
use crate::record::backfill::{Backfill, Filled, Kept};

/// What a backfill did to the rows of a dataset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backfilled {
    /// Rows of the master that changed.
    pub rows: u64,
    /// By the index of the column, those that took or refused something.
    pub columns: BTreeMap<usize, ColumnFill>,
    /// Required columns that are null in some rows, by index, with the number of rows.
    pub lacking: Vec<(usize, u64)>,
}

/// What happened to a column of the master.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ColumnFill {
    /// Values that were taken out of `_extra`.
    pub filled: u64,
    /// Values that stay in `_extra`.
    pub left: u64,
    /// Why the first of them stays.
    pub first_left: Option<String>,
}

/// Rows that are in memory at a time. A row has at most 8 MiB, and nearly all have far less.
const PAGE: usize = 200;
/// No column of a dataset has a dot in its name, so none is mistaken for one of these.
const ROWS: &str = "\"backfill.rows\"";
const ROW: &str = "\"backfill.row\"";
const EXTRA: &str = "\"backfill.extra\"";

/// Inside a transaction that [holds the dataset still](model::hold_still): fills the columns of the master and the delta, and
/// brings the model up to date.
///
/// # Errors
/// If the database fails.
pub async fn backfill(connection: &mut Connection, dataset: &Arc<Dataset>) -> StoreResult<Backfilled> {
    fill(connection, dataset, RawTable::Delta).await?;
    let mut filled = fill(connection, dataset, RawTable::Master).await?;
    filled.lacking = lacking(connection, dataset).await?;
    model::refresh_within(connection, dataset).await?;
    Ok(filled)
}

async fn fill(connection: &mut Connection, dataset: &Arc<Dataset>, table: RawTable) -> StoreResult<Backfilled> {
    let dialect = connection.dialect();
    let columns: Vec<String> = [ROW.to_owned(), EXTRA.to_owned()].into_iter().chain(value_names(dataset)).collect();
    // SQLite keeps a value of a column without a type as it is.
    let typed = if dialect == Dialect::Postgres { " text" } else { "" };
    let definitions: Vec<String> = columns.iter().map(|column| format!("{column}{typed}")).collect();
    connection.run(format!("create temporary table {ROWS} ({})", definitions.join(", "))).await?;
    let mut pages = Pages::open(connection, dataset, &table.of(dialect, dataset)).await?;
    let mut taker = Backfill::new(dataset, if dialect == Dialect::Postgres { Kept::ByValue } else { Kept::AsWritten });
    let mut filled = Backfilled::default();
    let into = format!("{ROWS} ({})", columns.join(", "));
    loop {
        let page = pages.next(connection).await?;
        let mut rows: Vec<Vec<SqliteValue>> = Vec::new();
        for Row { id, nulls, extra } in &page {
            let Some(taken) = taker.fill(extra, |column| nulls.as_bytes()[column] == b'1') else { continue };
            filled.count(&taken);
            rows.push(row(dialect, dataset, id, &taken));
        }
        let args: Vec<Vec<Arg<'_>>> = rows.iter().map(|row| row.iter().map(arg).collect()).collect();
        connection.insert(&into, "", &args).await?;
        if page.len() < PAGE {
            break;
        }
    }
    pages.close(connection).await?;
    filled.rows = apply(connection, dataset, table, &filled).await?;
    connection.run(format!("drop table {ROWS}")).await?;
    Ok(filled)
}

impl Backfilled {
    fn count(&mut self, taken: &Filled<'_>) {
        for (column, _) in &taken.values {
            self.columns.entry(*column).or_default().filled += 1;
        }
        for (column, reason) in &taken.left {
            let fill = self.columns.entry(*column).or_default();
            fill.left += 1;
            fill.first_left.get_or_insert_with(|| reason.clone());
        }
    }
}

/// The columns of the temporary table that hold the values.
fn value_names(dataset: &Dataset) -> impl Iterator<Item = String> {
    (0..dataset.columns.len()).map(value_name)
}

fn value_name(column: usize) -> String {
    quote(&format!("backfill.{column}"))
}

/// A row of the temporary table.
fn row(dialect: Dialect, dataset: &Dataset, id: &SqliteValue, taken: &Filled<'_>) -> Vec<SqliteValue> {
    let mut row = vec![SqliteValue::Null; dataset.columns.len() + 2];
    (row[0], row[1]) = (id.clone(), SqliteValue::from(&taken.extra));
    for (column, value) in &taken.values {
        row[column + 2] = match (dialect, SqliteValue::from(value)) {
            (Dialect::Postgres, SqliteValue::Integer(number)) => SqliteValue::Text(number.to_string().into()),
            // Scientific notation is the shortest one that reads as the same number.
            (Dialect::Postgres, SqliteValue::Real(number)) => SqliteValue::Text(format!("{number:e}").into()),
            (_, value) => value,
        };
    }
    row
}

fn arg(value: &SqliteValue) -> Arg<'_> {
    match value {
        SqliteValue::Null => Arg::Text(None),
        SqliteValue::Integer(number) => Arg::Int(Some(*number)),
        SqliteValue::Real(number) => Arg::Real(*number),
        SqliteValue::Text(text) => Arg::Text(Some(text)),
    }
}

/// A row of a raw table that has something in `_extra`.
struct Row {
    /// What the table calls it, until it changes.
    id: SqliteValue,
    /// For each column `1` if it is null, else `0`.
    nulls: String,
    extra: String,
}

/// The rows of a raw table, page by page.
enum Pages {
    /// PostgreSQL's cursor shows the rows as they were when it was opened.
    Cursor,
    /// SQLite reads on behind the last row.
    After { last: i64, select: String },
}

impl Pages {
    async fn open(connection: &mut Connection, dataset: &Dataset, table: &str) -> StoreResult<Self> {
        let is_null = |column: &Column| format!("case when {} is null then '1' else '0' end", quote(&column.name));
        let nulls = dataset.columns.iter().map(is_null).collect::<Vec<_>>().join(" || ");
        let row = row_name(connection.dialect(), dataset, table)?;
        match connection.dialect() {
            Dialect::Postgres => {
                // Rows in which no column finds its key need not be sent.
                let key = |column: &Column| column.from.0.first().map(|key| format!("'{}'", key.replace('\'', "''")));
                let keys = dataset.columns.iter().filter_map(key).collect::<Vec<_>>().join(", ");
                let sql = format!(
                    "declare backfill no scroll cursor for select {row}, {nulls}, \"_extra\"::text from {table} \
                     where \"_extra\" ?| array[{keys}]"
                );
                connection.run(sql).await.map(|_| Self::Cursor)
            }
            Dialect::Sqlite => {
                let select = format!(
                    "select {row}, {nulls}, \"_extra\" from {table} where {row} > $1 and \"_extra\" is not null \
                     order by {row} limit {PAGE}"
                );
                Ok(Self::After { last: i64::MIN, select })
            }
        }
    }

    async fn next(&mut self, connection: &mut Connection) -> StoreResult<Vec<Row>> {
        let fields = match self {
            Self::Cursor => connection.fetch(format!("fetch {PAGE} from backfill"), &[]).await?,
            Self::After { last, select } => {
                let rows = connection.fetch(select.as_str(), &[Arg::Int(Some(*last))]).await?;
                *last = rows.last().map_or(*last, |row| row[0].int());
                rows
            }
        };
        let text = |field: &Field| field.text().unwrap_or_default().to_owned();
        let id = |field: &Field| match field {
            Field::Int(rowid) => SqliteValue::Integer(*rowid),
            other => SqliteValue::Text(text(other).into()),
        };
        Ok(fields.iter().map(|row| Row { id: id(&row[0]), nulls: text(&row[1]), extra: text(&row[2]) }).collect())
    }

    async fn close(self, connection: &mut Connection) -> StoreResult<()> {
        match self {
            Self::Cursor => connection.run("close backfill").await.map(drop),
            Self::After { .. } => Ok(()),
        }
    }
}

/// The name of a row of a raw table.
fn row_name(dialect: Dialect, dataset: &Dataset, table: &str) -> StoreResult<String> {
    match dialect {
        // Among those of all partitions. Every version can hash a text.
        Dialect::Postgres => Ok(format!("{table}.tableoid::text || {table}.ctid::text")),
        Dialect::Sqlite => model::rowid(dataset)
            .map(|rowid| format!("{table}.{rowid}"))
            .ok_or_else(|| StoreError::other(format!("the columns of {} hide the numbers of SQLite's rows", dataset.name))),
    }
}

/// Gives the rows of a raw table what was collected for them. Returns how many changed.
async fn apply(connection: &mut Connection, dataset: &Dataset, table: RawTable, filled: &Backfilled) -> StoreResult<u64> {
    let dialect = connection.dialect();
    let raw = table.of(dialect, dataset);
    let taking: Vec<usize> = filled.columns.iter().filter(|(_, fill)| fill.filled > 0).map(|(column, _)| *column).collect();
    let row = row_name(dialect, dataset, &raw)?;
    let json = if dialect == Dialect::Postgres { "::jsonb" } else { "" };
    let mut set = vec![format!("\"_extra\" = {EXTRA}{json}")];
    set.extend(taking.iter().map(|column| {
        let name = quote(&dataset.columns[*column].name);
        format!("{name} = coalesce({name}, {})", value(dialect, dataset.columns[*column].column_type, *column))
    }));
    // What takes the null of a list from a list is there and changes nothing.
    let changes = match dialect {
        Dialect::Postgres => format!("\"_extra\" is distinct from {EXTRA}::jsonb"),
        Dialect::Sqlite => format!("\"_extra\" is not {EXTRA}"),
    };
    let any_value: String = taking.iter().map(|column| format!(" or {} is not null", value_name(*column))).collect();
    if dialect == Dialect::Postgres {
        // Statistics let the planner choose a hash join.
        connection.run(format!("set local default_statistics_target = 10; analyze {ROWS}")).await?;
        connection.run("set local default_statistics_target to default").await?;
    }
    let update = format!("update {raw} set {} from {ROWS} where {row} = {ROW} and ({changes}{any_value})", set.join(", "));
    match table {
        RawTable::Delta => connection.run(update).await,
        RawTable::Master => {
            let changed = format!("{row} in (select {ROW} from {ROWS})");
            model::update(connection, dataset, update, &taking, &changed).await
        }
    }
}

/// The value of a column in the temporary table, in the type of the column.
fn value(dialect: Dialect, column_type: ColumnType, column: usize) -> String {
    let name = value_name(column);
    match (dialect, column_type) {
        (Dialect::Sqlite, _) => name,
        // It is in UTC, whatever the session's time zone is.
        (Dialect::Postgres, ColumnType::TimestampTz) => format!("({name} || '+00')::timestamptz"),
        (Dialect::Postgres, other) => format!("{name}::{}", dialect.column_type(other)),
    }
}

/// Counts the rows that lack a required column.
async fn lacking(connection: &mut Connection, dataset: &Dataset) -> StoreResult<Vec<(usize, u64)>> {
    let required: Vec<usize> = (0..dataset.columns.len()).filter(|column| dataset.columns[*column].required).collect();
    if required.is_empty() {
        return Ok(Vec::new());
    }
    let count = |column: &usize| format!("count(case when {} is null then 1 end)", quote(&dataset.columns[*column].name));
    let counts = required.iter().map(count).collect::<Vec<_>>().join(", ");
    let master = RawTable::Master.of(connection.dialect(), dataset);
    let rows = connection.fetch(format!("select {counts} from {master}"), &[]).await?;
    let found = required.into_iter().zip(&rows[0]).map(|(column, count)| (column, count.int().unsigned_abs()));
    Ok(found.filter(|(_, count)| *count > 0).collect())
}
