//! Decides per day whether a refresh applies the noted changes or recomputes the day.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use super::{Days, definition, notes, occurrences, tables};
use crate::dataset::Dataset;
use crate::store::connection::{Arg, Connection};
use crate::store::error::{Class, StoreError, StoreResult};
use crate::store::sql::{Day, Dialect, Schema, day_literals, quote};

/// A day with fewer rows is recomputed: that takes some ten milliseconds. So does a recomputation of several days that have fewer
/// rows together; it needs no temporary tables.
const BUSY_ROWS: i64 = 2_000;
/// Applying one noted row takes as long as recomputing this many rows.
const ROWS_PER_NOTE: i64 = 25;
/// A larger day of SQLite gets no occurrences: storing them would hold the write lock for too long.
const MOST_ROWS_ON_SQLITE: i64 = 2_000_000;
/// The occurrences of a day that has not changed for so many seconds are dropped.
const QUIET_SECONDS: i64 = 2 * 24 * 60 * 60;

/// `DATALOADER_MODEL` forces one of the two ways. It is for tests of their results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Whichever is cheaper.
    Estimate,
    /// All changes are applied, whatever the size of the day; the first one builds the occurrences.
    Apply,
    Recompute,
}

static WAY: LazyLock<Way> = LazyLock::new(|| match std::env::var("DATALOADER_MODEL").as_deref() {
    Ok("apply") => Way::Apply,
    Ok("recompute") => Way::Recompute,
    _ => Way::Estimate,
});

/// What a refresh does.
#[derive(Debug, Clone, Default)]
pub(super) struct Plan {
    pub(super) version: Version,
    /// Days whose noted changes are applied.
    pub(super) apply: BTreeSet<Day>,
    /// Days that are recomputed.
    pub(super) recompute: BTreeSet<Day>,
    /// The recomputed days that have few rows together. They are stored at once, where the refresh applies changes.
    pub(super) few: BTreeSet<Day>,
    /// Whether every day is recomputed.
    pub(super) all: bool,
    /// The recomputed days whose occurrences are built, each with the number of its new occurrences.
    pub(super) build: Vec<(Day, i64)>,
    /// Large days that are recomputed for a small change. After the next one their occurrences are built.
    pub(super) remember: BTreeSet<Day>,
    /// Whether the noted changes of a day were applied.
    pub(super) has_applied: bool,
    /// Whether a remembered day has changed in small steps before, so that the next refresh that may build builds its
    /// occurrences.
    pub(super) is_ready: bool,
    /// The occurrences that are dropped, with their days.
    pub(super) drop: Vec<(Day, Option<i64>)>,
    /// The last mark and the last note that were read. SQLite deletes no later ones.
    pub(super) last: (i64, i64),
}

/// The definition that the modelled tables of a dataset were made for, and (on SQLite) the number of refreshes so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Version {
    definition: String,
    refreshes: i64,
}

impl Plan {
    /// Whether there is nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        let days = [&self.apply, &self.recompute, &self.few];
        days.into_iter().all(BTreeSet::is_empty) && self.drop.is_empty() && !self.all
    }

    /// Plans to build the occurrences of a day.
    fn build(&mut self, day: Day) {
        // A random number, which no other occurrences have.
        let (_, number) = uuid::Uuid::now_v7().as_u64_pair();
        self.build.push((day, number.cast_signed()));
    }

    /// Recomputes the days that would be applied, and drops their occurrences.
    pub(super) fn recompute_all_pending(&mut self, busy: &[BusyDay]) {
        self.recompute.append(&mut self.few);
        for day in std::mem::take(&mut self.apply) {
            self.drop.extend(busy.iter().filter(|busy| busy.day == day).map(|busy| (day, busy.build)));
            self.recompute.insert(day);
        }
    }
}

/// A row of the table of busy days.
#[derive(Debug, Clone)]
pub(super) struct BusyDay {
    pub(super) day: Day,
    changes: i64,
    build: Option<i64>,
    is_quiet: bool,
}

/// A day that has changed since the last refresh.
struct Pending {
    day: Day,
    is_marked: bool,
    notes: i64,
}

/// Inside a transaction: reads what has changed and decides. `may_build` says whether occurrences may be built.
pub(super) async fn plan(
    connection: &mut Connection,
    dataset: &Dataset,
    days: &Days,
    may_build: bool,
) -> StoreResult<(Plan, Vec<BusyDay>)> {
    let mut plan = Plan { version: version(connection, dataset).await?, ..Plan::default() };
    if plan.version.definition != definition(dataset) {
        let message = format!("the modelled tables of {} were made for another definition", dataset.name);
        return Err(StoreError::new(Class::Changed, message));
    }
    plan.last = last(connection, dataset).await?;
    let busy = busy_days(connection, dataset).await?;
    let pending = pending(connection, dataset).await?;
    let Days::These(days) = days else {
        plan.all = true;
        plan.drop = busy.iter().map(|busy| (busy.day, busy.build)).collect();
        return Ok((plan, busy));
    };
    // The days that a transaction which may not build has left.
    let is_left = |busy: &&BusyDay| may_build && busy.build.is_none() && busy.changes > 1 && !busy.is_quiet;
    let left: Vec<Day> = busy.iter().filter(is_left).map(|busy| busy.day).collect();
    let sizes = sizes(connection, dataset, &pending, &left).await?;
    let size_of = |day| sizes.iter().find(|(sized, _)| *sized == day).map_or(0, |(_, rows)| *rows);
    plan.recompute.extend(days);
    // Tests that force a recomputation mean that of large days.
    let mut room = if *WAY == Way::Estimate { BUSY_ROWS } else { 0 };
    for Pending { day, is_marked, notes } in pending {
        let of_day = busy.iter().find(|busy| busy.day == day);
        let build = of_day.and_then(|busy| busy.build);
        let rows = size_of(day);
        let is_noted = !is_marked && !days.contains(&day);
        match (is_noted && is_cheap(notes, rows), build) {
            (true, Some(_)) => {
                plan.apply.insert(day);
                continue;
            }
            (true, None) => {
                let is_ready = has_paid(of_day) && has_room(connection.dialect(), rows);
                match may_build && is_ready {
                    true => plan.build(day),
                    false => drop(plan.remember.insert(day)),
                }
                plan.is_ready |= is_ready;
            }
            (false, None) if is_noted && of_day.is_none() && rows + notes < room => {
                room -= rows + notes;
                plan.few.insert(day);
                continue;
            }
            (false, _) => {}
        }
        plan.recompute.insert(day);
    }
    for day in left {
        if has_room(connection.dialect(), size_of(day)) && !plan.apply.contains(&day) && plan.recompute.insert(day) {
            plan.build(day);
        }
    }
    let is_stale = |busy: &&BusyDay| {
        let is_replaced = plan.recompute.contains(&busy.day) && !plan.remember.contains(&busy.day);
        is_replaced || (busy.is_quiet && !plan.apply.contains(&busy.day))
    };
    plan.drop = busy.iter().filter(is_stale).map(|busy| (busy.day, busy.build)).collect();
    Ok((plan, busy))
}

fn is_cheap(notes: i64, rows: i64) -> bool {
    match *WAY {
        Way::Estimate => rows >= BUSY_ROWS && notes.saturating_mul(ROWS_PER_NOTE) < rows,
        Way::Apply => true,
        Way::Recompute => false,
    }
}

/// Occurrences take longer to build than a recomputation. A day that has changed in small steps before will probably do so
/// again.
fn has_paid(busy: Option<&BusyDay>) -> bool {
    *WAY == Way::Apply || busy.is_some_and(|busy| busy.changes > 0)
}

fn has_room(dialect: Dialect, rows: i64) -> bool {
    dialect == Dialect::Postgres || rows <= MOST_ROWS_ON_SQLITE
}

pub(super) async fn version(connection: &mut Connection, dataset: &Dataset) -> StoreResult<Version> {
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

async fn last(connection: &mut Connection, dataset: &Dataset) -> StoreResult<(i64, i64)> {
    let dialect = connection.dialect();
    if dialect == Dialect::Postgres {
        return Ok((0, 0));
    }
    let (marks, notes) = (dialect.table(Schema::Dataloader, "changed_days"), notes::table(dialect, dataset));
    let mark = connection.fetch_int(format!("select max(id) from {marks}"), &[]).await?;
    let note = connection.fetch_int(format!("select max(id) from {notes}"), &[]).await?;
    Ok((mark, note))
}

/// The expression of a day as text.
fn text(dialect: Dialect, day: &str) -> String {
    if dialect == Dialect::Postgres { format!("{day}::text") } else { day.to_owned() }
}

async fn busy_days(connection: &mut Connection, dataset: &Dataset) -> StoreResult<Vec<BusyDay>> {
    let dialect = connection.dialect();
    let busy = occurrences::busy(dialect, dataset);
    let sql = format!("select {}, changes, build, touched from {busy}", text(dialect, "day"));
    let quiet_since = now() - QUIET_SECONDS;
    let rows = connection.fetch(sql, &[]).await?;
    Ok(rows
        .iter()
        .filter_map(|row| {
            let day = row[0].text().and_then(Day::parse)?;
            let build = (row[2] != crate::store::Field::Null).then(|| row[2].int());
            Some(BusyDay { day, changes: row[1].int(), build, is_quiet: row[3].int() < quiet_since })
        })
        .collect())
}

/// The current time in seconds.
pub(super) fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

async fn pending(connection: &mut Connection, dataset: &Dataset) -> StoreResult<Vec<Pending>> {
    let dialect = connection.dialect();
    let (marks, notes) = (dialect.table(Schema::Dataloader, "changed_days"), notes::table(dialect, dataset));
    // A note that was written for another definition says only that the day has changed.
    let sql = format!(
        "select {day}, sum(m), sum(n) from (\
         select day, 1 as m, 0 as n from {marks} where dataset = '{name}' \
         union all select day, case when definition = {definition} then 0 else 1 end, 1 from {notes}) p group by day",
        day = text(dialect, "day"),
        name = dataset.name,
        definition = notes::definition_id(dataset),
    );
    let rows = connection.fetch(sql, &[]).await?;
    Ok(rows
        .iter()
        .filter_map(|row| {
            let day = row[0].text().and_then(Day::parse)?;
            Some(Pending { day, is_marked: row[1].int() > 0, notes: row[2].int() })
        })
        .collect())
}

/// How many rows the noted days and these had when they were modelled last.
async fn sizes(connection: &mut Connection, dataset: &Dataset, pending: &[Pending], days: &[Day]) -> StoreResult<Vec<(Day, i64)>> {
    let dialect = connection.dialect();
    let noted = pending.iter().filter(|day| !day.is_marked).map(|day| day.day);
    let noted: Vec<Day> = noted.chain(days.iter().copied()).collect();
    if noted.is_empty() {
        return Ok(Vec::new());
    }
    let by_date = dialect.table(Schema::Modelled, &tables(dataset)[0].name());
    let sql = format!(
        "select {}, {} from {by_date} where \"date\" in ({})",
        text(dialect, "\"date\""),
        quote(&format!("total_{}", dataset.name)),
        day_literals(noted),
    );
    let rows = connection.fetch(sql, &[]).await?;
    Ok(rows.iter().filter_map(|row| Some((row[0].text().and_then(Day::parse)?, row[1].int()))).collect())
}
