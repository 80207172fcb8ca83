//! Notes: what a transaction changed in the raw rows, for the next refresh. A transaction that changes few rows notes these
//! rows, so that a refresh can apply them. One that changes many rows only marks their days. Whoever changes raw rows goes
//! through this file: the notes come from the rows that the database really changed, in the same transaction.

use twox_hash::XxHash3_128;

use super::{counted, definition, mark};
use crate::dataset::Dataset;
use crate::store::append::RawTable;
use crate::store::connection::{Arg, Connection};
use crate::store::error::StoreResult;
use crate::store::sql::{Day, Dialect, Schema, quote, raw_column_list};

/// What a transaction leaves for the refresh of the days that it changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noting {
    /// Each changed row.
    Rows,
    /// A mark on each changed day.
    Days,
}

/// A transaction that changes more rows than this marks their days: to note all of them would slow it down, and a refresh of
/// so many rows is seldom cheaper than a recomputation.
const MOST_NOTED_ROWS: u64 = 1_000;

impl Noting {
    /// How a transaction notes its changes, by the number of rows that it adds to the dataset.
    pub fn of(dataset: &Dataset, rows: u64) -> Self {
        if dataset.day.is_some() && rows <= MOST_NOTED_ROWS && rowid(dataset).is_some() { Self::Rows } else { Self::Days }
    }
}

/// The table of the notes. `n` is 1 for a row that was added, and -1 for a row that was removed.
pub(super) fn table(dialect: Dialect, dataset: &Dataset) -> String {
    dialect.table(Schema::Dataloader, &format!("{}.notes", dataset.name))
}

/// The columns of a raw row that the modelled tables depend on besides the day, each once, by their indexes.
pub(super) fn columns(dataset: &Dataset) -> Vec<usize> {
    let mut columns = Vec::new();
    let values = counted(dataset).into_iter().flat_map(|values| values.columns);
    for column in dataset.model.dimensions.iter().copied().chain(values) {
        if !columns.contains(&column) {
            columns.push(column);
        }
    }
    columns
}

/// The name of a dataset's column in the notes. The dataset's own names could collide with the other columns.
pub(super) fn name_of(dataset: &Dataset, column: usize) -> String {
    let position = columns(dataset).iter().position(|c| *c == column).expect("the notes have all columns that are counted");
    format!("c{position}")
}

/// The statement that creates the table.
pub(super) fn create(dialect: Dialect, dataset: &Dataset) -> String {
    // A number that grows tells SQLite which notes a refresh has read. In PostgreSQL a snapshot does.
    let id = if dialect == Dialect::Sqlite { "id integer primary key, " } else { "" };
    let day = dialect.column_type(crate::dataset::ColumnType::Date);
    let values: String = columns(dataset)
        .iter()
        .map(|column| format!(", {} {}", name_of(dataset, *column), dialect.column_type(dataset.columns[*column].column_type)))
        .collect();
    format!(
        "create table {} ({id}definition bigint not null, day {day} not null, n bigint not null{values})",
        table(dialect, dataset)
    )
}

/// Identifies the definition that a note was written for: a program with another definition notes other columns.
pub(super) fn definition_id(dataset: &Dataset) -> i64 {
    let digest = XxHash3_128::oneshot(definition(dataset).as_bytes()).to_le_bytes();
    i64::from_le_bytes(*digest.first_chunk().expect("16 bytes"))
}

/// The name of the column that numbers the rows of a SQLite table: the first that no column of the dataset hides.
pub(in crate::store) fn rowid(dataset: &Dataset) -> Option<&'static str> {
    let is_free = |name: &&str| {
        let columns = dataset.columns.iter().map(|column| column.name.as_str());
        !columns.chain(dataset.model.distinct.iter().map(|(count, _)| count.as_str())).any(|other| other.eq_ignore_ascii_case(name))
    };
    ["rowid", "_rowid_", "oid"].into_iter().find(is_free)
}

/// `(definition, day, n, c0, …)`
fn column_list(dataset: &Dataset) -> String {
    let names: String = columns(dataset).iter().map(|column| format!(", {}", name_of(dataset, *column))).collect();
    format!("(definition, day, n{names})")
}

/// The values of a note from a raw row: the day as `d`, then the columns `c0, …`.
fn values(dialect: Dialect, dataset: &Dataset) -> String {
    let day = dialect.day(dataset.day_column().expect("only rows of a dataset with a day are noted"));
    let values: String = columns(dataset)
        .iter()
        .map(|column| format!(", {} as {}", quote(&dataset.columns[*column].name), name_of(dataset, *column)))
        .collect();
    format!("{day} as d{values}")
}

/// A statement of PostgreSQL that runs `change`, an `insert` or `delete` on a raw table, notes the rows that it changed, and
/// returns how many these are.
pub(in crate::store) fn noted(dataset: &Dataset, change: &str, n: i64) -> String {
    let (notes, columns, id) = (table(Dialect::Postgres, dataset), column_list(dataset), definition_id(dataset));
    let names: String = self::columns(dataset).iter().map(|column| format!(", {}", name_of(dataset, *column))).collect();
    format!(
        "with changed as ({change} returning {values}), \
         noted as (insert into {notes} {columns} select {id}, d, {n}, {names} from changed where d is not null) \
         select count(*) from changed",
        values = values(Dialect::Postgres, dataset),
        names = names.trim_start_matches(", "),
    )
}

/// The statements of SQLite that note rows of the master: those that fulfil a condition.
fn note_where(dataset: &Dataset, master: &str, condition: &str, n: i64) -> String {
    let (notes, columns, id) = (table(Dialect::Sqlite, dataset), column_list(dataset), definition_id(dataset));
    let names: String = self::columns(dataset).iter().map(|column| format!(", {}", name_of(dataset, *column))).collect();
    format!(
        "insert into {notes} {columns} select {id}, d, {n}{names} from (select {values} from {master} where {condition}) r \
         where d is not null",
        values = values(Dialect::Sqlite, dataset),
    )
}

/// The last row of SQLite's master: rows that are added in this transaction come after it.
pub(in crate::store) async fn last_row(connection: &mut Connection, dataset: &Dataset) -> StoreResult<i64> {
    let (master, rowid) = (RawTable::Master.of(Dialect::Sqlite, dataset), rowid(dataset).unwrap_or("rowid"));
    connection.fetch_int(format!("select max({rowid}) from {master}"), &[]).await
}

/// Notes the rows of SQLite's master that were added after this row.
pub(in crate::store) async fn note_rows_after(connection: &mut Connection, dataset: &Dataset, last: i64) -> StoreResult<()> {
    let rowid = rowid(dataset).unwrap_or("rowid");
    let master = RawTable::Master.of(Dialect::Sqlite, dataset);
    connection.run(note_where(dataset, &master, &format!("{rowid} > {last}"), 1)).await.map(drop)
}

/// Inside a transaction: deletes the rows of `master`, named as in a `from`, that fulfil a condition, notes or marks what it
/// deleted, and returns how many rows these are.
///
/// # Errors
/// If the database fails.
pub async fn delete(
    connection: &mut Connection,
    dataset: &Dataset,
    master: &str,
    condition: &str,
    noting: Noting,
) -> StoreResult<u64> {
    let dialect = connection.dialect();
    let delete = format!("delete from {master} where {condition}");
    let Some(day) = dataset.day_column() else { return connection.run(delete).await };
    let (day, marks) = (dialect.day(day), dialect.table(Schema::Dataloader, "changed_days"));
    let name = [Arg::Text(Some(&dataset.name))];
    match (dialect, noting) {
        (Dialect::Postgres, Noting::Rows) => Ok(connection.fetch_int(noted(dataset, &delete, -1), &[]).await?.unsigned_abs()),
        (Dialect::Postgres, Noting::Days) => {
            // The days come from the rows that are really deleted: a stream may have added rows meanwhile.
            let sql = format!(
                "with gone as ({delete} returning {day} as d), \
                 marked as (insert into {marks} (dataset, day) select distinct $1, d from gone where d is not null) \
                 select count(*) from gone"
            );
            Ok(connection.fetch_int(sql, &name).await?.unsigned_abs())
        }
        // No other transaction of SQLite writes between the two statements.
        (Dialect::Sqlite, Noting::Rows) => {
            connection.run(note_where(dataset, master, condition, -1)).await?;
            connection.run(delete).await
        }
        (Dialect::Sqlite, Noting::Days) => {
            let sql = format!(
                "insert into {marks} (dataset, day) \
                 select $1, d from (select distinct {day} as d from {master} where {condition}) m where d is not null"
            );
            connection.execute(sql, &name).await?;
            connection.run(delete).await
        }
    }
}

/// Inside a transaction that [holds the dataset still](super::hold_still): runs `update`, which changes these columns of rows of
/// the master. Marks the days of the rows, if the modelled tables depend on the columns. `condition` is what the rows fulfil
/// afterwards in SQLite. Returns how many rows it changed.
///
/// # Errors
/// If the database fails.
pub async fn update(
    connection: &mut Connection,
    dataset: &Dataset,
    update: String,
    changed: &[usize],
    condition: &str,
) -> StoreResult<u64> {
    let dialect = connection.dialect();
    let is_modelled = |column: &usize| dataset.day == Some(*column) || columns(dataset).contains(column);
    let Some(day) = dataset.day_column().filter(|_| changed.iter().any(is_modelled)) else {
        return connection.run(update).await;
    };
    let master = RawTable::Master.of(dialect, dataset);
    let (day, marks) = (dialect.day(day), dialect.table(Schema::Dataloader, "changed_days"));
    let name = [Arg::Text(Some(&dataset.name))];
    match dialect {
        Dialect::Postgres => {
            let sql = format!(
                "with changed as ({update} returning {day} as d), \
                 marked as (insert into {marks} (dataset, day) select distinct $1, d from changed where d is not null) \
                 select count(*) from changed"
            );
            Ok(connection.fetch_int(sql, &name).await?.unsigned_abs())
        }
        Dialect::Sqlite => {
            let changed = connection.run(update).await?;
            let sql = format!(
                "insert into {marks} (dataset, day) \
                 select $1, d from (select distinct {day} as d from {master} where {condition}) m where d is not null"
            );
            connection.execute(sql, &name).await?;
            Ok(changed)
        }
    }
}

/// Inside a transaction: adds all rows of another table with the same columns to the master, whose days these are, and notes
/// or marks them.
///
/// # Errors
/// If the database fails or refuses a row.
pub async fn insert_from(
    connection: &mut Connection,
    dataset: &Dataset,
    table: &str,
    days: impl IntoIterator<Item = Day>,
    noting: Noting,
) -> StoreResult<()> {
    let dialect = connection.dialect();
    let (master, columns) = (RawTable::Master.of(dialect, dataset), raw_column_list(dataset));
    let insert = format!("insert into {master} ({columns}) select {columns} from {table}");
    match (dialect, noting) {
        (Dialect::Postgres, Noting::Rows) => connection.fetch_int(noted(dataset, &insert, 1), &[]).await.map(drop),
        (Dialect::Sqlite, Noting::Rows) => {
            let last = last_row(connection, dataset).await?;
            connection.run(insert).await?;
            note_rows_after(connection, dataset, last).await
        }
        (_, Noting::Days) => {
            connection.run(insert).await?;
            mark(connection, dataset, days).await
        }
    }
}
