//! Takes loads back: their rows and rejects go, and the ledger says so. Their chunk lines stay, so that a message of such a load
//! that comes late is known.

use std::collections::{BTreeSet, HashMap};

use super::append::RawTable;
use super::connection::{Arg, Connection};
use super::error::StoreResult;
use super::ledger::{LedgerLoad, id_list};
use super::model::{self, Noting};
use super::sql::{Day, Schema, day_literals};
use crate::dataset::Dataset;

/// What was removed of a load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// Rows of the raw table.
    pub rows: u64,
    /// Open rejects.
    pub rejects: u64,
}

/// Inside a transaction that [holds the dataset still](model::hold_still): takes back loads of the dataset, and returns what was
/// removed of each.
///
/// # Errors
/// If the database fails.
pub async fn take_back(connection: &mut Connection, dataset: &Dataset, loads: &[&LedgerLoad]) -> StoreResult<Vec<Removed>> {
    let dialect = connection.dialect();
    let rows = delete_rows(connection, dataset, loads).await?;
    let (rejects, ledger) = (dialect.table(Schema::Raw, "rejects"), dialect.table(Schema::Raw, "loads"));
    let mut removed = Vec::new();
    for load in loads {
        let rows = rows.get(&load.id).copied().unwrap_or_default();
        let id = Arg::Int(Some(load.id));
        let deleted = connection.execute(format!("delete from {rejects} where load_id = $1"), std::slice::from_ref(&id)).await?;
        // What the load has replaced stays in the count. Null stays null: what it has replaced is not known then.
        let update = format!("update {ledger} set status = 'unloaded', rows_removed = rows_removed + {rows} where id = $1");
        connection.execute(update, &[id]).await?;
        removed.push(Removed { rows, rejects: deleted });
    }
    Ok(removed)
}

/// Deletes the rows of the loads from the master and the delta. Returns how many rows of the master each load had.
async fn delete_rows(connection: &mut Connection, dataset: &Dataset, loads: &[&LedgerLoad]) -> StoreResult<HashMap<i64, u64>> {
    let with_rows: Vec<i64> = loads.iter().filter(|load| load.rows_loaded > 0).map(|load| load.id).collect();
    if with_rows.is_empty() {
        return Ok(HashMap::new());
    }
    let dialect = connection.dialect();
    let (master, delta) = (RawTable::Master.of(dialect, dataset), RawTable::Delta.of(dialect, dataset));
    let of_loads = format!("\"_load_id\" in ({})", id_list(with_rows.into_iter()));
    connection.run(format!("delete from {delta} where {of_loads}")).await?;

    // The ledger does not know the days of a load. This reads the whole table, the rest only the days that are found.
    let day = dataset.day_column().map_or_else(|| "null".to_owned(), |day| dialect.day(day));
    let sql = format!("select \"_load_id\", cast({day} as text), count(*) from {master} where {of_loads} group by 1, 2");
    let (mut rows, mut days) = (HashMap::new(), BTreeSet::new());
    let mut has_days = true;
    for found in connection.fetch(sql, &[]).await? {
        *rows.entry(found[0].int()).or_default() += found[2].int().unsigned_abs();
        match found[1].text().and_then(Day::parse) {
            Some(day) => drop(days.insert(day)),
            // From before the dataset had a day.
            None => has_days = false,
        }
    }
    let condition = match dataset.day_column().filter(|_| has_days && !days.is_empty()) {
        Some(day) => format!("{} in ({}) and {of_loads}", dialect.day(day), day_literals(days)),
        None => of_loads,
    };
    model::delete(connection, dataset, &master, &condition, Noting::of(dataset, rows.values().sum())).await?;
    Ok(rows)
}
