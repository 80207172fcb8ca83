//! A refresh computes the changed days from one snapshot of the rows and stores the result. Of two refreshes, the later one has
//! seen all rows that the earlier one saw. So a reader always finds rows that were exact at some moment.
//!
//! PostgreSQL: only one refresh of a dataset runs at a time; its lock is taken before the snapshot. SQLite: the result is
//! computed from a snapshot while others write, and a short transaction stores it. If another refresh has stored its result
//! meanwhile, it is computed again. Small changes are applied by a short transaction of their own.

use std::collections::BTreeSet;

use super::apply::apply;
use super::check::{Difference, compare};
use super::counts::DayCounts;
use super::plan::{Plan, Version, now, plan, version};
use super::{DayFilter, Days, notes, occurrences, tables};
use crate::dataset::Dataset;
use crate::store::append::RawTable;
use crate::store::connection::{Arg, Connection};
use crate::store::error::StoreResult;
use crate::store::lock::{self, Lock};
use crate::store::sql::{Day, Dialect, Schema, day_literals};

/// What a refresh did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refreshed {
    /// The number of days; `None` for all days.
    pub days: Option<usize>,
    /// Whether a large day was recomputed for a small change. The time that this took says nothing about the next small change:
    /// it builds the day's occurrences, or is applied.
    pub prepares: bool,
}

/// Refreshes the given days, which are recomputed, and all days with marks or notes, in its own transaction. A mark or note that
/// is committed while this runs stays and is handled by the next refresh.
///
/// # Errors
/// If the modelled tables were made for another definition, or the database fails.
pub async fn refresh(connection: &mut Connection, dataset: &Dataset, days: Days) -> StoreResult<Refreshed> {
    Ok(refresh_alone(connection, dataset, days, Check::No).await?.0)
}

/// Whether a refresh compares the modelled tables with a full recomputation from the same snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    Yes,
    No,
}

pub(super) async fn refresh_alone(
    connection: &mut Connection,
    dataset: &Dataset,
    days: Days,
    check: Check,
) -> StoreResult<(Refreshed, Vec<Difference>)> {
    if dataset.day.is_none() {
        return Ok((Refreshed { days: Some(0), prepares: false }, Vec::new()));
    }
    alone(connection, dataset, async |connection| match connection.dialect() {
        Dialect::Postgres => {
            begin(connection, dataset).await?;
            let (plan, applied) = apply_planned(connection, dataset, &days, true).await?;
            let computed = compute(connection, dataset, plan).await?;
            let differences = compare_if(connection, dataset, &computed, check).await?;
            Ok((finish(connection, dataset, &days, computed, applied, check).await?, differences))
        }
        Dialect::Sqlite => {
            let mut applied = 0;
            if days != Days::All {
                // Small changes are applied while this connection holds the write lock.
                connection.begin().await?;
                let plan;
                (plan, applied) = apply_planned(connection, dataset, &days, true).await?;
                connection.commit().await?;
                if plan.is_empty() && check == Check::No {
                    return Ok((Refreshed { days: Some(applied), prepares: false }, Vec::new()));
                }
            }
            begin(connection, dataset).await?;
            let computed = compute_pending(connection, dataset, &days, check).await?;
            let differences = compare_if(connection, dataset, &computed, check).await?;
            Ok((finish(connection, dataset, &days, computed, applied, check).await?, differences))
        }
    })
    .await
}

async fn compare_if(
    connection: &mut Connection,
    dataset: &Dataset,
    computed: &Computed,
    check: Check,
) -> StoreResult<Vec<Difference>> {
    match check {
        Check::Yes => compare(connection, dataset, computed).await,
        Check::No => Ok(Vec::new()),
    }
}

/// Inside a transaction that writes: plans, applies what is planned to be applied, and returns what is left of the plan with the
/// number of days that it applied.
async fn apply_planned(connection: &mut Connection, dataset: &Dataset, days: &Days, may_build: bool) -> StoreResult<(Plan, usize)> {
    let (mut plan, busy) = plan(connection, dataset, days, may_build).await?;
    if !apply(connection, dataset, &plan).await? {
        tracing::warn!("{}: the occurrences of a day do not fit its rows; it is recomputed", dataset.name);
        plan.recompute_all_pending(&busy);
    }
    recompute_few(connection, dataset, &plan).await?;
    plan.has_applied = !plan.apply.is_empty();
    let applied = std::mem::take(&mut plan.apply).len() + std::mem::take(&mut plan.few).len();
    if applied > 0 {
        plan.version = count_refresh(connection, dataset, plan.version).await?;
    }
    Ok((plan, applied))
}

/// Inside a transaction that writes: recomputes the days that have few rows.
async fn recompute_few(connection: &mut Connection, dataset: &Dataset, plan: &Plan) -> StoreResult<()> {
    if plan.few.is_empty() {
        return Ok(());
    }
    let (dialect, list) = (connection.dialect(), day_literals(plan.few.iter().copied()));
    let tables = tables(dataset);
    let mut statements: Vec<String> = tables
        .iter()
        .map(|table| format!("delete from {} where \"date\" in ({list})", dialect.table(Schema::Modelled, &table.name())))
        .collect();
    statements.extend(delete_read(dialect, dataset, Some(&plan.few), plan.last));
    statements.extend(DayCounts::new(dialect, dataset, &DayFilter::In(list)).insert_few(&tables));
    for statement in statements {
        connection.run(statement).await?;
    }
    Ok(())
}

/// Inside a snapshot of SQLite: plans, and computes what is planned to be recomputed. Changes that could be applied wait for the
/// next refresh. A check needs all days as they are in the snapshot, so these days are recomputed too.
async fn compute_pending(connection: &mut Connection, dataset: &Dataset, days: &Days, check: Check) -> StoreResult<Computed> {
    let (mut plan, busy) = plan(connection, dataset, days, true).await?;
    match check {
        Check::Yes => plan.recompute_all_pending(&busy),
        Check::No => {
            plan.apply.clear();
            // Without the days that were recomputed before, what is left may be few.
            plan.recompute.append(&mut plan.few);
        }
    }
    compute(connection, dataset, plan).await
}

/// Runs `work` while no other refresh of the dataset runs. On SQLite there is no lock; a refresh detects there that another one
/// has stored its result. The lock is taken before the transaction of `work`: inside a snapshot transaction, the wait would
/// come after the snapshot.
async fn alone<T>(
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
    if connection.dialect() == Dialect::Postgres {
        // The lock against refreshes comes first: a running refresh may take long, and writers need not wait for it.
        if dataset.day.is_some() {
            lock::transaction(connection, Lock::Model(&dataset.name)).await?;
        }
        let raw = RawTable::Master.of(Dialect::Postgres, dataset);
        connection.run(format!("lock table {raw} in share row exclusive mode")).await?;
    }
    Ok(())
}

/// How the days of a dataset changed in a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// In large steps, or in a small step for the first time.
    Once,
    /// In a small step, as before. A [`refresh`] after the commit would build occurrences, so that the next one is cheap.
    AgainUnprepared,
    /// In a small step, as before, which was applied.
    Again,
}

/// Inside a transaction that [holds the dataset still](hold_still): refreshes all days with marks or notes. Its statements need
/// no common snapshot, because the rows do not change between them. It builds no occurrences: others wait for this transaction.
///
/// # Errors
/// As [`refresh`].
pub async fn refresh_within(connection: &mut Connection, dataset: &Dataset) -> StoreResult<Change> {
    if dataset.day.is_none() {
        return Ok(Change::Once);
    }
    let (plan, _) = apply_planned(connection, dataset, &Days::none(), false).await?;
    let computed = compute(connection, dataset, plan).await?;
    store(connection, dataset, &computed).await?;
    drop_computed(connection, dataset, &computed).await?;
    Ok(match (computed.plan.is_ready, computed.plan.has_applied) {
        (true, _) => Change::AgainUnprepared,
        (false, true) => Change::Again,
        (false, false) => Change::Once,
    })
}

/// How often a refresh of all days on SQLite may find its result outdated by another refresh. After that it computes while it
/// holds the write lock. A refresh of the marked days has no such limit: the other refreshes have removed marks, so less is
/// left to do each time.
const MOST_ATTEMPTS: usize = 3;

/// Begins a transaction in which all statements see one snapshot.
async fn begin(connection: &mut Connection, dataset: &Dataset) -> StoreResult<()> {
    connection.begin_snapshot().await?;
    if connection.dialect() == Dialect::Postgres {
        // The raw table is locked before the modelled tables, in the same order as when the modelled tables are replaced, so
        // that no deadlock is possible.
        let raw = RawTable::Master.of(Dialect::Postgres, dataset);
        connection.run(format!("lock table {raw} in access share mode")).await?;
    }
    Ok(())
}

/// Stores the computed rows and ends the transaction. Computes them again if another refresh has outdated them.
async fn finish(
    connection: &mut Connection,
    dataset: &Dataset,
    days: &Days,
    mut computed: Computed,
    applied: usize,
    check: Check,
) -> StoreResult<Refreshed> {
    if connection.dialect() == Dialect::Sqlite {
        let mut attempts = 1;
        while !computed.plan.is_empty() {
            // Nothing was written to the file so far. The computed rows are in temporary tables, which stay after the commit.
            connection.commit().await?;
            connection.begin().await?;
            if version(connection, dataset).await? == computed.plan.version {
                break;
            }
            if *days == Days::All && attempts == MOST_ATTEMPTS {
                drop_computed(connection, dataset, &computed).await?;
                computed = compute_pending(connection, dataset, days, check).await?;
                break;
            }
            connection.rollback().await?;
            drop_computed(connection, dataset, &computed).await?;
            attempts += 1;
            begin(connection, dataset).await?;
            computed = compute_pending(connection, dataset, days, check).await?;
        }
    }
    store(connection, dataset, &computed).await?;
    drop_computed(connection, dataset, &computed).await?;
    connection.commit().await?;
    let plan = computed.plan;
    let prepares = !plan.remember.is_empty() || !plan.build.is_empty();
    Ok(Refreshed { days: (!plan.all).then(|| applied + plan.recompute.len()), prepares })
}

/// The computed rows of the planned days, in temporary tables.
pub(super) struct Computed {
    /// The computed days; `None` if there are none.
    pub(super) filter: Option<DayFilter>,
    plan: Plan,
}

impl Computed {
    /// The temporary table with the rows of a modelled table, by the table's index among those of the dataset.
    pub(super) fn rows_of(table: usize) -> String {
        format!("model_rows_{table}")
    }
}

/// Inside a transaction: computes the rows and occurrences of the days that the plan recomputes.
async fn compute(connection: &mut Connection, dataset: &Dataset, plan: Plan) -> StoreResult<Computed> {
    let dialect = connection.dialect();
    if plan.recompute.is_empty() && !plan.all {
        return Ok(Computed { filter: None, plan });
    }
    let filter = filter(connection, dataset, &plan).await?;
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
    if !plan.build.is_empty() {
        for table in occurrences::tables(dialect, dataset) {
            let days: Vec<String> = plan.build.iter().map(|(day, build)| table.of_day(&day.to_string(), *build)).collect();
            connection.run(format!("create temporary table {} as {}", table.built(), days.join(" union all "))).await?;
        }
    }
    Ok(Computed { filter: Some(filter), plan })
}

async fn filter(connection: &mut Connection, dataset: &Dataset, plan: &Plan) -> StoreResult<DayFilter> {
    if plan.all {
        return Ok(DayFilter::All);
    }
    let list = day_literals(plan.recompute.iter().copied());
    // A day with rows is in the tables or in the list. If the tables have no other day, the list has all days. A computation of
    // all days then spares the database a long list and an index.
    let by_date = connection.dialect().table(Schema::Modelled, &tables(dataset)[0].name());
    let others = connection.fetch_int(format!("select count(*) from {by_date} where \"date\" not in ({list})"), &[]).await?;
    Ok(if others > 0 { DayFilter::In(list) } else { DayFilter::All })
}

/// Inside a transaction that writes: replaces the rows of the computed days, and deletes only the marks and notes that were read.
async fn store(connection: &mut Connection, dataset: &Dataset, computed: &Computed) -> StoreResult<()> {
    let dialect = connection.dialect();
    if computed.plan.is_empty() {
        return Ok(());
    }
    let mut statements = Vec::new();
    if let Some(filter) = &computed.filter {
        let replaced = match filter {
            DayFilter::All => String::new(),
            DayFilter::In(list) => format!(" where \"date\" in ({list})"),
        };
        for (i, table) in tables(dataset).iter().enumerate() {
            let modelled = dialect.table(Schema::Modelled, &table.name());
            let (columns, rows) = (table.column_list(), Computed::rows_of(i));
            statements.push(format!("delete from {modelled}{replaced}"));
            statements.push(format!("insert into {modelled} ({columns}) select * from {rows}"));
        }
        let plan = &computed.plan;
        statements.extend(delete_read(dialect, dataset, (!plan.all).then_some(&plan.recompute), plan.last));
    }
    statements.extend(store_occurrences(dialect, dataset, &computed.plan));
    for statement in statements {
        connection.run(statement).await?;
    }
    count_refresh(connection, dataset, computed.plan.version.clone()).await.map(drop)
}

/// The statements that delete the marks and notes that a recomputation of these days, or of all, contains: in PostgreSQL those that
/// the snapshot shows, in SQLite those up to the last mark and note that were read.
fn delete_read(dialect: Dialect, dataset: &Dataset, days: Option<&BTreeSet<Day>>, last: (i64, i64)) -> Vec<String> {
    let (marks, notes) = (dialect.table(Schema::Dataloader, "changed_days"), notes::table(dialect, dataset));
    let days = days.map_or_else(String::new, |days| format!(" and day in ({})", day_literals(days.iter().copied())));
    let until = |last: i64| if dialect == Dialect::Sqlite { format!(" and id <= {last}") } else { String::new() };
    vec![
        format!("delete from {marks} where dataset = '{}'{days}{}", dataset.name, until(last.0)),
        format!("delete from {notes} where n <> 0{days}{}", until(last.1)),
    ]
}

/// The statements that drop and store occurrences, and remember the days that have changed in small steps.
fn store_occurrences(dialect: Dialect, dataset: &Dataset, plan: &Plan) -> Vec<String> {
    let busy = occurrences::busy(dialect, dataset);
    let tables = occurrences::tables(dialect, dataset);
    let mut statements = Vec::new();
    for build in plan.drop.iter().filter_map(|(_, build)| *build) {
        statements.extend(tables.iter().map(|table| format!("delete from {} where build = {build}", table.name())));
    }
    if !plan.drop.is_empty() {
        let days = day_literals(plan.drop.iter().map(|(day, _)| *day));
        statements.push(format!("delete from {busy} where day in ({days})"));
    }
    let now = now();
    for day in &plan.remember {
        statements.push(format!(
            "insert into {busy} as u (day, changes, touched) values ('{day}', 1, {now}) \
             on conflict (day) do update set changes = u.changes + 1, touched = excluded.touched"
        ));
    }
    for (day, build) in &plan.build {
        statements.push(format!("insert into {busy} (day, changes, build, touched) values ('{day}', 0, {build}, {now})"));
    }
    if !plan.build.is_empty() {
        for table in &tables {
            let (name, columns, built) = (table.name(), table.columns(), table.built());
            statements.push(format!("insert into {name} (build, {columns}, n) select build, {columns}, n from {built}"));
        }
    }
    statements
}

/// Counts a refresh that has stored something. SQLite's other refreshes then know that their result is outdated.
async fn count_refresh(connection: &mut Connection, dataset: &Dataset, version: Version) -> StoreResult<Version> {
    if connection.dialect() == Dialect::Postgres {
        return Ok(version);
    }
    let datasets = Dialect::Sqlite.table(Schema::Dataloader, "datasets");
    let sql = format!("update {datasets} set refreshes = refreshes + 1 where name = $1");
    connection.execute(sql, &[Arg::Text(Some(&dataset.name))]).await?;
    super::plan::version(connection, dataset).await
}

async fn drop_computed(connection: &mut Connection, dataset: &Dataset, computed: &Computed) -> StoreResult<()> {
    if computed.filter.is_none() {
        return Ok(());
    }
    let mut temporary: Vec<String> = (0..tables(dataset).len()).map(Computed::rows_of).collect();
    if !computed.plan.build.is_empty() {
        temporary.extend(occurrences::tables(connection.dialect(), dataset).iter().map(occurrences::Occurrences::built));
    }
    for table in temporary {
        connection.run(format!("drop table {table}")).await?;
    }
    Ok(())
}
