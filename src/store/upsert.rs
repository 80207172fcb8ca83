//! The batch upsert: the master's rows whose keys are in the delta are deleted, then all rows of the delta are inserted.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::append::RawTable;
use super::connection::{Arg, Connection};
use super::error::{StoreError, StoreResult};
use super::indexes;
use super::model::{self, Noting};
use super::schema::has_rows;
use super::sql::{Day, Dialect, Schema, day_literals, quote};
use crate::dataset::{Dataset, StreamMode};

/// Inside a transaction: empties the delta.
///
/// # Errors
/// If the database fails.
pub async fn clear_delta(connection: &mut Connection, dataset: &Dataset) -> StoreResult<()> {
    /// A truncation creates a new file, which takes longer than to delete this many bytes of rows. It needs a right of its own.
    const SMALL: i64 = 1 << 20;
    let dialect = connection.dialect();
    let delta = RawTable::Delta.of(dialect, dataset);
    let size = "select case when has_table_privilege($1::regclass, 'truncate') then pg_relation_size($1::regclass) else 0 end";
    let truncates = dialect == Dialect::Postgres && connection.fetch_int(size, &[Arg::Text(Some(&delta))]).await? > SMALL;
    let sql = if truncates { format!("truncate {delta}") } else { format!("delete from {delta}") };
    connection.run(sql).await.map(drop)
}

/// What a run has brought into the delta.
#[derive(Debug, Clone, Copy)]
pub struct Brought<'a> {
    pub rows: u64,
    /// The days of the rows.
    pub days: &'a BTreeSet<Day>,
    /// The latest load key of its files.
    pub load_key: Uuid,
}

/// What an upsert has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upserted {
    /// How many rows of the master were replaced.
    pub replaced: u64,
    /// Whether the search for them read many rows for few keys, which the key index would spare.
    pub misses_key_index: bool,
}

/// Inside a transaction: moves the delta's rows into the master. The model is told what was removed and added.
///
/// # Errors
/// If the database fails or refuses a row.
pub async fn upsert(connection: &mut Connection, dataset: &Dataset, brought: Brought<'_>) -> StoreResult<Upserted> {
    let dialect = connection.dialect();
    let (master, delta) = (RawTable::Master.of(dialect, dataset), RawTable::Delta.of(dialect, dataset));
    if dialect == Dialect::Postgres {
        // The raw table is locked before the modelled tables, in the same order as when the modelled tables are replaced.
        connection.run(format!("lock table {master} in row exclusive mode")).await?;
    }
    let noting = Noting::of(dataset, brought.rows);
    let mut upserted = Upserted { replaced: 0, misses_key_index: false };
    match has_rows(connection, &master).await? {
        _ if dataset.day.is_none() => upserted.replaced = replace_all(connection, dataset, &master, brought.load_key).await?,
        false => {}
        true => upserted = delete_same_keys(connection, dataset, brought, noting).await?,
    }
    model::insert_from(connection, dataset, &delta, brought.days.iter().copied(), noting).await?;
    Ok(upserted)
}

/// Inside a transaction: of the delta's rows with the same key, keeps those of the latest load. The result of the upsert is then
/// that of loading the files one after the other. Returns how many rows were removed.
///
/// # Errors
/// If the database fails.
pub async fn keep_latest(connection: &mut Connection, dataset: &Dataset) -> StoreResult<u64> {
    let dialect = connection.dialect();
    let delta = RawTable::Delta.of(dialect, dataset);
    let keys = dataset.key.iter().map(|key| quote(&dataset.columns[*key].name)).collect::<Vec<_>>().join(", ");
    let row = match dialect {
        Dialect::Postgres => "ctid",
        Dialect::Sqlite => model::rowid(dataset)
            .ok_or_else(|| StoreError::other(format!("the columns of {} hide the numbers of SQLite's rows", dataset.name)))?,
    };
    // A window takes nulls as equal.
    let sql = format!(
        "delete from {delta} where {row} in (select r from (select {row} as r, _load_id, \
         max(_load_id) over (partition by {keys}) as latest from {delta}) as d where _load_id < latest)"
    );
    connection.run(sql).await
}

/// Deletes all rows of a dataset without a day. Returns their number.
async fn replace_all(connection: &mut Connection, dataset: &Dataset, master: &str, load_key: Uuid) -> StoreResult<u64> {
    if dataset.stream == StreamMode::Upsert {
        // Records of earlier drops that are still to come are outdated.
        let datasets = connection.dialect().table(Schema::Dataloader, "datasets");
        let args = [Arg::Text(Some(&dataset.name)), Arg::Uuid(load_key)];
        connection.execute(format!("update {datasets} set replaced_by = $2 where name = $1"), &args).await?;
    }
    connection.run(format!("delete from {master}")).await
}

/// How the master's rows of some keys are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Search {
    /// All rows of the master are read.
    Scan,
    /// The rows of the delta's days are read: a list of SQL literals.
    Days(String),
    /// Each key is looked up in the key index.
    Keys,
}

impl Search {
    /// A row by an index costs this many times as much as a row of a scan; a key that is looked up costs as much as so many rows.
    const PER_INDEXED_ROW: u64 = 2;
    const PER_KEY: u64 = 20;
    /// A search that costs less takes some hundredths of a second: it is not worth an index.
    const LARGE: u64 = 20_000;

    /// Chooses the cheapest search. The modelled totals say how many rows there are, also where the database has no statistics.
    /// Also returns whether the key index would be much cheaper, but is not there.
    async fn choose(connection: &mut Connection, dataset: &Dataset, brought: Brought<'_>) -> StoreResult<(Self, bool)> {
        let has_key_index = indexes::has_key_index(connection, dataset).await?;
        let by_days = dataset.day.is_some_and(|day| dataset.key.contains(&day));
        let days = day_literals(brought.days.iter().copied());
        let totals = model::table_names(dataset).into_iter().next().filter(|_| !days.is_empty());
        let Some(totals) = totals else { return Ok((Self::Scan, false)) };
        let total = quote(&format!("total_{}", dataset.name));
        let sum = |filter: &str| format!("cast(coalesce(sum(case when {filter} then {total} end), 0) as bigint)");
        let (all, of_days) = (sum("true"), sum(&format!("\"date\" in ({days})")));
        let totals = connection.dialect().table(Schema::Modelled, &totals);
        let rows = connection.fetch(format!("select {all}, {of_days} from {totals}"), &[]).await?;
        let [all, of_days] = [0, 1].map(|column: usize| rows[0][column].int().unsigned_abs());
        let by_keys = brought.rows * Self::PER_KEY;
        let (search, cost) = match of_days * Self::PER_INDEXED_ROW {
            cost if by_days && cost < all => (Self::Days(days), cost),
            _ => (Self::Scan, all),
        };
        Ok(match by_keys < cost {
            true if has_key_index => (Self::Keys, false),
            is_cheaper => (search, is_cheaper && cost > Self::LARGE),
        })
    }
}

/// Deletes the master's rows whose keys are in the delta.
async fn delete_same_keys(
    connection: &mut Connection,
    dataset: &Dataset,
    brought: Brought<'_>,
    noting: Noting,
) -> StoreResult<Upserted> {
    let dialect = connection.dialect();
    let (search, misses_key_index) = Search::choose(connection, dataset, brought).await?;
    tracing::debug!(dataset = dataset.name, ?search, "rows of the same keys are searched");
    let mut replaced = 0;
    let delta = RawTable::Delta.of(dialect, dataset);
    let patterns = same_key(connection, dataset, &search, &delta).await?;
    if dialect == Dialect::Postgres {
        let may_analyze = search != Search::Scan || is_owner(connection, &delta).await?;
        let planning = if may_analyze { planning(&search, &delta) } else { WITHOUT_STATISTICS.to_owned() };
        connection.run(planning).await?;
    }
    for condition in patterns {
        replaced += delete_where(connection, dataset, &search, &condition, noting).await?;
    }
    if dialect == Dialect::Postgres {
        connection.run(PLANNING_AS_USUAL).await?;
    }
    Ok(Upserted { replaced, misses_key_index })
}

/// PostgreSQL: the statements before the search. After a large load there may be no statistics of the master; then the planner
/// would not expect the indexes to be of use.
pub(super) fn planning(search: &Search, delta: &str) -> String {
    // With statistics of the keys the planner chooses a hash join for many, and looks few up instead of reading the whole index. A
    // sample of 3,000 rows instead of 30,000 is enough to see that the keys differ.
    let analyze = format!("set local default_statistics_target = 10; analyze {delta}");
    match search {
        Search::Scan => analyze,
        Search::Days(_) => "set local enable_seqscan = off; set local enable_nestloop = off".to_owned(),
        Search::Keys => format!("set local enable_seqscan = off; set local enable_mergejoin = off; {analyze}"),
    }
}

/// The same for a scan, by a user that may not analyze the delta.
const WITHOUT_STATISTICS: &str = "set local enable_nestloop = off";

/// PostgreSQL: whether this user counts as the owner of a table.
async fn is_owner(connection: &mut Connection, table: &str) -> StoreResult<bool> {
    let sql = "select pg_has_role(relowner, 'usage')::int::bigint from pg_class where oid = $1::regclass";
    Ok(connection.fetch_int(sql, &[Arg::Text(Some(table))]).await? > 0)
}

pub(super) const PLANNING_AS_USUAL: &str = "set local enable_seqscan to default; set local enable_nestloop to default; \
     set local enable_mergejoin to default; set local default_statistics_target to default";

/// Deletes the master's rows of a condition. Returns their number.
async fn delete_where(
    connection: &mut Connection,
    dataset: &Dataset,
    search: &Search,
    condition: &str,
    noting: Noting,
) -> StoreResult<u64> {
    let dialect = connection.dialect();
    let mut master = RawTable::Master.of(dialect, dataset);
    if (dialect, search) == (Dialect::Sqlite, &Search::Scan) {
        // SQLite would look up each key in the index, which takes longer for many keys.
        master.push_str(" not indexed");
    }
    if noting == Noting::Days && dataset.day.is_some_and(|day| dataset.key.contains(&day)) {
        // The rows that are removed are of the delta's days, which are marked when its rows are inserted.
        return connection.run(format!("delete from {master} where {condition}")).await;
    }
    model::delete(connection, dataset, &master, condition, noting).await
}

/// Conditions on a row, one for each combination of nulls in the keys of `delta`, which is a table or a query with the key's
/// columns. Together they match the rows whose key is in the delta, where nulls are equal. Each compares the columns that are not null by plain equality, which both databases can
/// hash or index. `IS NOT DISTINCT FROM` would compare every row with every other row.
pub(super) async fn same_key(
    connection: &mut Connection,
    dataset: &Dataset,
    search: &Search,
    delta: &str,
) -> StoreResult<Vec<String>> {
    let dialect = connection.dialect();
    let keys: Vec<String> = dataset.key.iter().map(|k| quote(&dataset.columns[*k].name)).collect();
    let nullable: Vec<usize> = (0..keys.len()).filter(|i| !dataset.columns[dataset.key[*i]].required).collect();
    let mut patterns = vec![vec![false; keys.len()]];
    if !nullable.is_empty() {
        let is_null: Vec<String> = nullable.iter().map(|i| format!("{} is null", keys[*i])).collect();
        let rows = connection.fetch(format!("select distinct {} from {delta}", is_null.join(", ")), &[]).await?;
        patterns = rows
            .iter()
            .map(|row| {
                let mut pattern = vec![false; keys.len()];
                for (field, i) in row.iter().zip(&nullable) {
                    pattern[*i] = field.int() != 0;
                }
                pattern
            })
            .collect();
    }
    let mut searched = Vec::new();
    match (search, dataset.day_column()) {
        (Search::Days(days), Some(day)) => searched.push(format!("{} in ({days})", dialect.day(day))),
        (Search::Keys, _) => {
            searched.extend(dialect.key_hash(dataset).map(|hash| format!("{hash} in (select {hash} from {delta})")))
        }
        _ => {}
    }
    let conditions = patterns.iter().map(|pattern| {
        let searched = searched.iter().cloned();
        searched.chain([condition(&keys, pattern, delta)]).collect::<Vec<_>>().join(" and ")
    });
    Ok(conditions.collect())
}

fn condition(keys: &[String], pattern: &[bool], delta: &str) -> String {
    let nulls: Vec<String> = keys.iter().zip(pattern).filter(|(_, null)| **null).map(|(key, _)| format!("{key} is null")).collect();
    let values: Vec<&str> = keys.iter().zip(pattern).filter(|(_, null)| !**null).map(|(key, _)| key.as_str()).collect();
    let filter = if nulls.is_empty() { String::new() } else { format!(" where {}", nulls.join(" and ")) };
    // If all columns of the pattern are null, the delta has such a row, because the pattern came from it. Asking for it again
    // would make SQLite search the whole delta for every row.
    let matching = (!values.is_empty()).then(|| {
        let values = values.join(", ");
        format!("({values}) in (select {values} from {delta}{filter})")
    });
    nulls.into_iter().chain(matching).collect::<Vec<_>>().join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_without_nulls_compare_by_equality() {
        let keys = ["\"a\"".to_owned(), "\"b\"".to_owned()];
        assert_eq!(condition(&keys, &[false, false], "d"), "(\"a\", \"b\") in (select \"a\", \"b\" from d)");
    }

    #[test]
    fn null_keys_match_null_keys_only() {
        let keys = ["\"a\"".to_owned(), "\"b\"".to_owned()];
        assert_eq!(condition(&keys, &[true, false], "d"), "\"a\" is null and (\"b\") in (select \"b\" from d where \"a\" is null)");
        assert_eq!(condition(&keys, &[true, true], "d"), "\"a\" is null and \"b\" is null");
    }
}
