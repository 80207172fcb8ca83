//! The batch upsert: the master's rows whose keys are in the delta are deleted, then all rows of the delta are inserted.

use super::append::RawTable;
use super::connection::{Arg, Connection};
use super::error::StoreResult;
use super::schema::has_rows;
use super::sql::{Dialect, Schema, quote, raw_column_list};
use crate::dataset::Dataset;

/// Inside a transaction: empties the delta.
///
/// # Errors
/// If the database fails.
pub async fn clear_delta(connection: &mut Connection, dataset: &Dataset) -> StoreResult<()> {
    let dialect = connection.dialect();
    let delta = RawTable::Delta.of(dialect, dataset);
    let sql = match dialect {
        Dialect::Postgres => format!("truncate {delta}"),
        Dialect::Sqlite => format!("delete from {delta}"),
    };
    connection.run(sql).await.map(drop)
}

/// Inside a transaction: moves the delta's rows into the master and returns how many rows of the master they replace. If the
/// day is not part of the key, the days that lose rows are marked as changed.
///
/// # Errors
/// If the database fails or refuses a row.
pub async fn upsert(connection: &mut Connection, dataset: &Dataset) -> StoreResult<u64> {
    let dialect = connection.dialect();
    let (master, delta) = (RawTable::Master.of(dialect, dataset), RawTable::Delta.of(dialect, dataset));
    let mut replaced = 0;
    let has_rows = has_rows(connection, &master).await?;
    if has_rows && dataset.day.is_none() {
        replaced = connection.run(format!("delete from {master}")).await?;
    } else if has_rows {
        if dialect == Dialect::Postgres {
            // Statistics let the planner choose a hash join. A sample of 3,000 rows instead of 30,000 is enough to see that the
            // keys differ.
            connection.run("set local default_statistics_target = 10").await?;
            connection.run(format!("analyze {delta}")).await?;
        }
        for condition in same_key(connection, dataset, &delta).await? {
            let moves_days = dataset.day.is_some_and(|day| !dataset.key.contains(&day));
            if let (true, Some(day)) = (moves_days, dataset.day_column()) {
                let marks = dialect.table(Schema::Dataloader, "changed_days");
                let day = dialect.day(day);
                let args = [Arg::Text(Some(&dataset.name))];
                if dialect == Dialect::Postgres {
                    // The days come from the rows that are really deleted: a stream may have added rows meanwhile, and they may
                    // be modelled already.
                    let sql = format!(
                        "with gone as (delete from {master} where {condition} returning {day} as d), \
                         marked as (insert into {marks} (dataset, day) select distinct $1, d from gone where d is not null) \
                         select count(*) from gone"
                    );
                    replaced += connection.fetch_int(sql, &args).await?.unsigned_abs();
                    continue;
                }
                let sql = format!(
                    "insert into {marks} (dataset, day) select $1, d from (select distinct {day} as d from {master} where {condition}) m where d is not null"
                );
                connection.execute(sql, &args).await?;
            }
            replaced += connection.run(format!("delete from {master} where {condition}")).await?;
        }
    }
    let columns = raw_column_list(dataset);
    connection.run(format!("insert into {master} ({columns}) select {columns} from {delta}")).await?;
    Ok(replaced)
}

/// Conditions on a master row, one for each combination of nulls in the delta's keys. Together they match the rows whose key is
/// in the delta, where nulls are equal. Each compares the columns that are not null by plain equality, which both databases can
/// hash or index. `IS NOT DISTINCT FROM` would compare every row with every other row.
async fn same_key(connection: &mut Connection, dataset: &Dataset, delta: &str) -> StoreResult<Vec<String>> {
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
    Ok(patterns.iter().map(|pattern| condition(&keys, pattern, delta)).collect())
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
