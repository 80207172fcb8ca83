//! Progress: what waits for a refresh, of a dataset and of one load.

use super::super::schema;
use super::super::sql::{Dialect, Schema, quote};
use crate::dataset::Dataset;
use crate::store::connection::{Arg, Connection};
use crate::store::error::StoreResult;

/// What waits for a refresh of a dataset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pending {
    /// The days, in order.
    pub days: Vec<String>,
    /// Names of the changes. A name that is still there later means that no refresh has taken it in between.
    pub changes: Vec<String>,
}

/// What waits for a refresh. Reads only, and finds nothing where the tables were never made or may not be read.
///
/// # Errors
/// If the database fails.
pub async fn pending(connection: &mut Connection, dataset: &Dataset) -> StoreResult<Pending> {
    let dialect = connection.dialect();
    let there = schema::catalogue(connection, Schema::Dataloader).await?;
    let (notes, name) = (format!("{}.notes", dataset.name), &dataset.name);
    let change = match dialect {
        Dialect::Postgres => "day::text as day, xmin::text as change".to_owned(),
        // SQLite uses the numbers of deleted rows again, but counts the refreshes.
        Dialect::Sqlite => {
            let refreshes = dialect.table(Schema::Dataloader, "datasets");
            format!("day, (select refreshes from {refreshes} where name = '{name}') || '.' || id as change")
        }
    };
    let sources: Vec<String> = [("changed_days", format!("where dataset = '{name}'")), (&notes, String::new())]
        .into_iter()
        .filter(|(table, _)| there.contains_key(&dialect.bare_table(Schema::Dataloader, table)))
        .map(|(table, condition)| format!("select {change} from {} {condition}", dialect.table(Schema::Dataloader, table)))
        .collect();
    if sources.is_empty() || !schema::may_read(connection, "changed_days").await? {
        return Ok(Pending::default());
    }
    let sql = format!("select day, min(change) from ({}) d group by day order by day", sources.join(" union all "));
    let rows = connection.fetch(sql, &[]).await?;
    let column = |i: usize| rows.iter().map(|row| row[i].text().unwrap_or_default().to_owned()).collect();
    Ok(Pending { days: column(0), changes: column(1) })
}

/// How many rows of the days that wait are looked at for those of one load.
const LOOKED_AT: u32 = 100_000;

/// Whether rows of the load are on days that wait for a refresh. `None` if that cannot be said: this user may not read what waits,
/// or these days have too many rows to look at all of them.
///
/// # Errors
/// If the database fails.
pub async fn waits_for_refresh(connection: &mut Connection, dataset: &Dataset, load: i64) -> StoreResult<Option<bool>> {
    let dialect = connection.dialect();
    let Some(day) = dataset.day_column() else { return Ok(None) };
    let there = schema::catalogue(connection, Schema::Dataloader).await?;
    let is_there = there.contains_key(&dialect.bare_table(Schema::Dataloader, "changed_days"));
    if !is_there || !schema::may_read(connection, "changed_days").await? {
        return Ok(None);
    }
    let waiting = pending(connection, dataset).await?.days;
    if waiting.is_empty() {
        return Ok(Some(false));
    }
    let days: Vec<String> = waiting.iter().map(|day| format!("'{day}'")).collect();
    let (raw, of_row) = (dialect.table(Schema::Raw, &dataset.name), dialect.day_of(&quote(&day.name), day.column_type));
    let some = format!("select _load_id from {raw} where {of_row} in ({}) limit {LOOKED_AT}", days.join(", "));
    let sql = format!("select count(*), count(case when _load_id = $1 then 1 end) from ({some}) s");
    let rows = connection.fetch(sql, &[Arg::Int(Some(load))]).await?;
    let [looked_at, found] = [0, 1].map(|i: usize| rows[0][i].int());
    Ok(match found {
        0 if looked_at >= i64::from(LOOKED_AT) => None,
        found => Some(found > 0),
    })
}
