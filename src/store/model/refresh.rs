//! A refresh: the days that changed are computed from one snapshot of the rows, and stored so that of two refreshes the later
//! has seen all that the earlier saw. So a reader finds, at every moment, rows that were exact at some moment.
//!
//! PostgreSQL: one refresh of a dataset at a time, by a lock that comes before the snapshot. SQLite: the snapshot is taken and
//! all is computed while others write; what was computed is stored by a short transaction, unless another refresh has stored
//! meanwhile: then it is computed again.

use std::collections::BTreeSet;

use super::counts::DayCounts;
use super::{DayFilter, Days, definition, tables};
use crate::dataset::Dataset;
use crate::store::append::RawTable;
use crate::store::connection::{Arg, Connection};
use crate::store::error::{Class, StoreError, StoreResult};
use crate::store::lock::{self, Lock};
use crate::store::sql::{Day, Dialect, Schema, day_literals};

/// Refreshes the given days and all marked ones, in a transaction of its own; returns how many, `None` for all there are. A
/// mark that is committed while this runs stays, and is refreshed next time.
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

/// Does work while no other refresh of the dataset runs, or on SQLite none that stores unseen. The lock comes before the work's
/// transaction: within one that sees one snapshot it would wait after the snapshot is taken.
pub(super) async fn alone<T>(
    connection: &mut Connection,
    dataset: &Dataset,
    work: impl AsyncFnOnce(&mut Connection) -> StoreResult<T>,
) -> StoreResult<T> {
    let lock = Lock::Model(&dataset.name);
    lock::session(connection, lock).await?;
    let done = work(connection).await;
    if done.is_err() {
        // Unlocking would fail in the aborted transaction, and hide why it was.
        drop(connection.rollback().await);
    }
    let released = lock::release(connection, lock).await;
    let done = done?;
    released.map(|()| done)
}

/// Inside a transaction: nobody else refreshes the dataset or changes rows of it until the transaction ends. Of several
/// datasets in the order of their names, as the stream's writers go: whoever waits for one then never holds a later one.
///
/// # Errors
/// If the database fails.
pub async fn hold_still(connection: &mut Connection, dataset: &Dataset) -> StoreResult<()> {
    // On SQLite nobody else writes anyway.
    if connection.dialect() == Dialect::Postgres && dataset.day.is_some() {
        // Refreshes first: one that runs takes its time, and writers need not wait for it.
        lock::transaction(connection, Lock::Model(&dataset.name)).await?;
        let raw = RawTable::Master.of(Dialect::Postgres, dataset);
        connection.run(format!("lock table {raw} in share row exclusive mode")).await?;
    }
    Ok(())
}

/// Inside a transaction that [holds the dataset still](hold_still): refreshes the given days and all marked ones. Its
/// statements need not see one snapshot: nothing happens between them.
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

/// How often what was computed may be outdated by other refreshes. One of the marked days is made again as often as that
/// happens: the others have refreshed what was marked, so less and less is left to do. One of all days then holds the lock.
const MOST_ATTEMPTS: usize = 3;

/// Begins a transaction in which all statements see one snapshot.
pub(super) async fn begin(connection: &mut Connection, dataset: &Dataset) -> StoreResult<()> {
    connection.begin_snapshot().await?;
    if connection.dialect() == Dialect::Postgres {
        // Whoever replaces modelled tables also goes from the raw table to the modelled ones: none waits in a circle.
        let raw = RawTable::Master.of(Dialect::Postgres, dataset);
        connection.run(format!("lock table {raw} in access share mode")).await?;
    }
    Ok(())
}

/// Stores what was computed and ends the transaction; computes again what others have outdated. Returns how many days that
/// were.
pub(super) async fn finish(
    connection: &mut Connection,
    dataset: &Dataset,
    days: &Days,
    mut computed: Option<Computed>,
) -> StoreResult<Option<usize>> {
    if connection.dialect() == Dialect::Sqlite {
        let mut attempts = 1;
        while let Some(done) = &computed {
            // So far nothing was written. What was computed is in temporary tables, which stay.
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

/// The rows that days should have, in temporary tables, with the marks that led to them.
pub(super) struct Computed {
    pub(super) filter: DayFilter,
    /// How many days; `None` for all.
    count: Option<usize>,
    version: Version,
}

/// What the modelled tables of a dataset were made for, and how often they were refreshed (on SQLite).
#[derive(Debug, PartialEq, Eq)]
struct Version {
    definition: String,
    refreshes: i64,
}

/// The temporary table of the marks that a refresh has read.
const MARKS: &str = "model_marks";

impl Computed {
    /// The temporary table of the rows of a modelled table, by its place among those of the dataset.
    pub(super) fn rows_of(table: usize) -> String {
        format!("model_rows_{table}")
    }
}

/// Inside a transaction: computes the given days and all marked ones; `None` if there is none.
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
            // A day with rows is in the tables, or marked and so in the list: where no other is in the tables, these are all
            // there are. The database need not find that out from a long list and an index.
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

/// Inside a transaction that writes: replaces the rows of the computed days and deletes exactly the marks that were read.
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

/// The table of the marks, and the column that tells one of its rows from all others for as long as a refresh runs.
fn marks(dialect: Dialect) -> (String, &'static str) {
    let column = match dialect {
        Dialect::Postgres => "ctid",
        Dialect::Sqlite => "id",
    };
    (dialect.table(Schema::Dataloader, "changed_days"), column)
}
