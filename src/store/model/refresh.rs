//! A refresh computes the changed days from one snapshot of the rows and stores the result. Of two refreshes, the later one has
//! seen all rows that the earlier one saw. So a reader always finds rows that were exact at some moment.
//!
//! PostgreSQL: only one refresh of a dataset runs at a time; its lock is taken before the snapshot. SQLite: the result is
//! computed from a snapshot while others write, and a short transaction stores it. If another refresh has stored its result
//! meanwhile, it is computed again.

use std::collections::BTreeSet;

use super::counts::DayCounts;
use super::{DayFilter, Days, definition, tables};
use crate::dataset::Dataset;
use crate::store::append::RawTable;
use crate::store::connection::{Arg, Connection};
use crate::store::error::{Class, StoreError, StoreResult};
use crate::store::lock::{self, Lock};
use crate::store::sql::{Day, Dialect, Schema, day_literals};

/// Refreshes the given days and all marked days in its own transaction. Returns the number of days, or `None` for all days. A
/// mark that is committed while this runs stays and is handled by the next refresh.
///
/// # Errors
/// If the modelled tables were made for another definition, or the database fails.
pub async fn refresh(connection: &mut Connection, dataset: &Dataset, days: Days) -> StoreResult<Option<usize>> {
    if dataset.day.is_none() {
        return Ok(Some(0));
    }
    alone(connection, dataset, async |connection| {
        begin(connection, dataset).await?;
        let computed = compute(connection, dataset, &days).await?;
        finish(connection, dataset, &days, computed).await
    })
    .await
}

/// Runs `work` while no other refresh of the dataset runs. On SQLite there is no lock; a refresh detects there that another one
/// has stored its result. The lock is taken before the transaction of `work`: inside a snapshot transaction, the wait would
/// come after the snapshot.
pub(super) async fn alone<T>(
    connection: &mut Connection,
    dataset: &Dataset,
    work: impl AsyncFnOnce(&mut Connection) -> StoreResult<T>,
) -> StoreResult<T> {
    let lock = Lock::Model(&dataset.name);
    lock::session(connection, lock).await?;
    let done = work(connection).await;
    if done.is_err() {
        // The transaction is rolled back first: unlocking would fail in an aborted transaction and hide the first error.
        drop(connection.rollback().await);
    }
    let released = lock::release(connection, lock).await;
    let done = done?;
    released.map(|()| done)
}

/// Inside a transaction: blocks other refreshes of the dataset and other changes of its rows until the transaction ends. A
/// caller takes several datasets in the order of their names, as the stream's writers do, so that no deadlock is possible.
///
/// # Errors
/// If the database fails.
pub async fn hold_still(connection: &mut Connection, dataset: &Dataset) -> StoreResult<()> {
    // On SQLite the transaction already holds the only write lock.
    if connection.dialect() == Dialect::Postgres && dataset.day.is_some() {
        // The lock against refreshes comes first: a running refresh may take long, and writers need not wait for it.
        lock::transaction(connection, Lock::Model(&dataset.name)).await?;
        let raw = RawTable::Master.of(Dialect::Postgres, dataset);
        connection.run(format!("lock table {raw} in share row exclusive mode")).await?;
    }
    Ok(())
}

/// Inside a transaction that [holds the dataset still](hold_still): refreshes the given days and all marked days. Its
/// statements need no common snapshot, because the rows do not change between them.
///
/// # Errors
/// As [`refresh`].
pub async fn refresh_within(connection: &mut Connection, dataset: &Dataset, days: BTreeSet<Day>) -> StoreResult<()> {
    if dataset.day.is_some()
        && let Some(computed) = compute(connection, dataset, &Days::These(days)).await?
    {
        store(connection, dataset, &computed).await?;
        drop_computed(connection, dataset).await?;
    }
    Ok(())
}

/// How often a refresh of all days on SQLite may find its result outdated by another refresh. After that it computes while it
/// holds the write lock. A refresh of the marked days has no such limit: the other refreshes have removed marks, so less is
/// left to do each time.
const MOST_ATTEMPTS: usize = 3;

/// Begins a transaction in which all statements see one snapshot.
pub(super) async fn begin(connection: &mut Connection, dataset: &Dataset) -> StoreResult<()> {
    connection.begin_snapshot().await?;
    if connection.dialect() == Dialect::Postgres {
        // The raw table is locked before the modelled tables, in the same order as when the modelled tables are replaced, so
        // that no deadlock is possible.
        let raw = RawTable::Master.of(Dialect::Postgres, dataset);
        connection.run(format!("lock table {raw} in access share mode")).await?;
    }
    Ok(())
}

/// Stores the computed rows and ends the transaction. Computes them again if another refresh has outdated them. Returns the
/// number of days.
pub(super) async fn finish(
    connection: &mut Connection,
    dataset: &Dataset,
    days: &Days,
    mut computed: Option<Computed>,
) -> StoreResult<Option<usize>> {
    if connection.dialect() == Dialect::Sqlite {
        let mut attempts = 1;
        while let Some(done) = &computed {
            // Nothing was written to the file so far. The computed rows are in temporary tables, which stay after the commit.
            connection.commit().await?;
            connection.begin().await?;
            if version(connection, dataset).await? == done.version {
                break;
            }
            if *days == Days::All && attempts == MOST_ATTEMPTS {
                drop_computed(connection, dataset).await?;
                computed = compute(connection, dataset, days).await?;
                break;
            }
            connection.rollback().await?;
            drop_computed(connection, dataset).await?;
            attempts += 1;
            begin(connection, dataset).await?;
            computed = compute(connection, dataset, days).await?;
        }
    }
    if let Some(done) = &computed {
        store(connection, dataset, done).await?;
        drop_computed(connection, dataset).await?;
    }
    connection.commit().await?;
    Ok(computed.map_or(Some(0), |done| done.count))
}

/// The computed rows of the days, in temporary tables, with the marks that were read.
pub(super) struct Computed {
    pub(super) filter: DayFilter,
    /// The number of days; `None` for all days.
    count: Option<usize>,
    version: Version,
}

/// The definition that the modelled tables of a dataset were made for, and (on SQLite) the number of refreshes so far.
#[derive(Debug, PartialEq, Eq)]
struct Version {
    definition: String,
    refreshes: i64,
}

/// The temporary table of the marks that a refresh has read.
const MARKS: &str = "model_marks";

impl Computed {
    /// The temporary table with the rows of a modelled table, by the table's index among those of the dataset.
    pub(super) fn rows_of(table: usize) -> String {
        format!("model_rows_{table}")
    }
}

/// Inside a transaction: computes the given days and all marked days. Returns `None` if there are none.
pub(super) async fn compute(connection: &mut Connection, dataset: &Dataset, days: &Days) -> StoreResult<Option<Computed>> {
    let dialect = connection.dialect();
    let version = version(connection, dataset).await?;
    if version.definition != definition(dataset) {
        return Err(StoreError::new(
            Class::Changed,
            format!("the modelled tables of {} were made for another definition", dataset.name),
        ));
    }
    let (marks, row) = marks(dialect);
    let mark =
        format!("create temporary table {MARKS} as select {row} as mark, day from {marks} where dataset = '{}'", dataset.name);
    connection.run(mark).await?;
    let cast = if dialect == Dialect::Postgres { "::text" } else { "" };
    let marked = connection.fetch(format!("select distinct day{cast} from {MARKS}"), &[]).await?;
    let (filter, count) = match days {
        Days::All => (DayFilter::All, None),
        Days::These(days) => {
            let mut days = days.clone();
            days.extend(marked.iter().filter_map(|row| row[0].text().and_then(Day::parse)));
            if days.is_empty() {
                connection.run(format!("drop table {MARKS}")).await?;
                return Ok(None);
            }
            let count = days.len();
            let list = day_literals(days);
            // A day with rows is in the tables or in the list. If the tables have no other day, the list has all days. A
            // computation of all days then spares the database a long list and an index.
            let by_date = dialect.table(Schema::Modelled, &tables(dataset)[0].name());
            let others =
                connection.fetch_int(format!("select count(*) from {by_date} where \"date\" not in ({list})"), &[]).await?;
            (if others > 0 { DayFilter::In(list) } else { DayFilter::All }, Some(count))
        }
    };
    let counts = DayCounts::new(dialect, dataset, &filter);
    for statement in counts.prepare() {
        connection.run(statement).await?;
    }
    for (i, table) in tables(dataset).iter().enumerate() {
        let rows = counts.rows_of(table);
        connection.run(format!("create temporary table {} as {rows}", Computed::rows_of(i))).await?;
    }
    for statement in counts.clean_up() {
        connection.run(statement).await?;
    }
    Ok(Some(Computed { filter, count, version }))
}

/// Inside a transaction that writes: replaces the rows of the computed days and deletes only the marks that were read.
async fn store(connection: &mut Connection, dataset: &Dataset, computed: &Computed) -> StoreResult<()> {
    let dialect = connection.dialect();
    let replaced = match &computed.filter {
        DayFilter::All => String::new(),
        DayFilter::In(list) => format!(" where \"date\" in ({list})"),
    };
    for (i, table) in tables(dataset).iter().enumerate() {
        let modelled = dialect.table(Schema::Modelled, &table.name());
        connection.run(format!("delete from {modelled}{replaced}")).await?;
        let (columns, rows) = (table.column_list(), Computed::rows_of(i));
        connection.run(format!("insert into {modelled} ({columns}) select * from {rows}")).await?;
    }
    let (marks, row) = marks(dialect);
    connection.run(format!("delete from {marks} where {row} in (select mark from {MARKS})")).await?;
    if dialect == Dialect::Sqlite {
        let datasets = dialect.table(Schema::Dataloader, "datasets");
        let sql = format!("update {datasets} set refreshes = refreshes + 1 where name = $1");
        connection.execute(sql, &[Arg::Text(Some(&dataset.name))]).await?;
    }
    Ok(())
}

async fn drop_computed(connection: &mut Connection, dataset: &Dataset) -> StoreResult<()> {
    let rows = (0..tables(dataset).len()).map(Computed::rows_of);
    for table in rows.chain([MARKS.to_owned()]) {
        connection.run(format!("drop table {table}")).await?;
    }
    Ok(())
}

async fn version(connection: &mut Connection, dataset: &Dataset) -> StoreResult<Version> {
    let dialect = connection.dialect();
    let datasets = dialect.table(Schema::Dataloader, "datasets");
    let refreshes = if dialect == Dialect::Sqlite { "refreshes" } else { "0::bigint" };
    let sql = format!("select definition, {refreshes} from {datasets} where name = $1");
    let rows = connection.fetch(sql, &[Arg::Text(Some(&dataset.name))]).await?;
    let row = rows.first();
    Ok(Version {
        definition: row.and_then(|row| row[0].text()).unwrap_or_default().to_owned(),
        refreshes: row.map_or(0, |row| row[1].int()),
    })
}

/// The table of the marks, and a column that identifies each mark while a refresh runs.
fn marks(dialect: Dialect) -> (String, &'static str) {
    let column = match dialect {
        Dialect::Postgres => "ctid",
        Dialect::Sqlite => "id",
    };
    (dialect.table(Schema::Dataloader, "changed_days"), column)
}
