//! `dataloader migrate`: creates or upgrades the tables, and fills columns that were added later.

use std::io::{self, Write};
use std::sync::Arc;

use indicatif::HumanCount;
use serde::Serialize;

use super::DONE;
use crate::config::Config;
use crate::counted::counted;
use crate::dataset::Dataset;
use crate::error::Result;
use crate::retry::GIVE_UP_AFTER;
use crate::store::backfill::{Backfilled, backfill};
use crate::store::lock::{self, Lock};
use crate::store::{Connection, Database, Indexes, StoreResult, model};
use crate::terminal::cli::MigrateArgs;
use crate::terminal::output::Output;
use crate::terminal::table::{Align, Table};

/// Creates or upgrades the tables that this program and the datasets need. With `--backfill`, fills columns from `_extra`.
///
/// # Errors
/// If the database fails, or its tables do not fit the datasets.
pub async fn run(config: &Config, args: &MigrateArgs, output: Output) -> Result<u8> {
    let database = Database::new(&config.database, GIVE_UP_AFTER)?;
    let mut connection = database.open(&config.datasets, Indexes::MakeOverRows).await?;
    let mut migrated = Migrated { database: config.database.to_string(), backfilled: args.backfill.then(Vec::new) };
    if let Some(backfilled) = &mut migrated.backfilled {
        for dataset in &config.datasets {
            let done = fill(&mut connection, dataset).await;
            backfilled.push(DatasetFill::new(dataset, done.map_err(|error| database.explain(error))?));
        }
    }
    connection.close().await;
    output.result(&migrated, |out| migrated.write(out))?;
    Ok(DONE)
}

/// Fills the columns of a dataset in a transaction of its own.
async fn fill(connection: &mut Connection, dataset: &Arc<Dataset>) -> StoreResult<Backfilled> {
    tracing::debug!("{}: looking for values of its columns in _extra", dataset.name);
    connection.begin_bulk().await?;
    // In the order of a batch load: its lock, then the dataset.
    lock::transaction(connection, Lock::Load).await?;
    model::hold_still(connection, dataset).await?;
    let filled = backfill(connection, dataset).await?;
    connection.commit().await?;
    Ok(filled)
}

/// The result of the command.
#[derive(Debug, Serialize)]
struct Migrated {
    database: String,
    /// Absent without `--backfill`.
    #[serde(skip_serializing_if = "Option::is_none")]
    backfilled: Option<Vec<DatasetFill>>,
}

/// What was filled in a dataset.
#[derive(Debug, Serialize)]
struct DatasetFill {
    dataset: String,
    /// Rows that changed.
    rows: u64,
    /// The columns that took a value, or could not.
    columns: Vec<ColumnFill>,
    /// Required columns that some rows lack.
    lacking: Vec<Lacking>,
}

#[derive(Debug, Serialize)]
struct ColumnFill {
    column: String,
    /// Values that it took.
    filled: u64,
    /// Values that stay in `_extra`.
    left: u64,
    /// Why the first of these stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_left: Option<String>,
}

#[derive(Debug, Serialize)]
struct Lacking {
    column: String,
    rows: u64,
}

impl DatasetFill {
    fn new(dataset: &Dataset, filled: Backfilled) -> Self {
        let name = |column: usize| dataset.columns[column].name.clone();
        let fill = |(column, fill): (usize, crate::store::backfill::ColumnFill)| ColumnFill {
            column: name(column),
            filled: fill.filled,
            left: fill.left,
            first_left: fill.first_left,
        };
        Self {
            dataset: dataset.name.clone(),
            rows: filled.rows,
            columns: filled.columns.into_iter().map(fill).collect(),
            lacking: filled.lacking.into_iter().map(|(column, rows)| Lacking { column: name(column), rows }).collect(),
        }
    }
}

impl Migrated {
    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "the tables in {} are up to date", self.database)?;
        let Some(datasets) = &self.backfilled else { return Ok(()) };
        if datasets.iter().all(|dataset| dataset.columns.is_empty()) {
            writeln!(out, "nothing to fill: _extra holds no value that a column takes")?;
        } else {
            write_columns(datasets, out)?;
        }
        for dataset in datasets {
            for Lacking { column, rows } in &dataset.lacking {
                let (have, rows, name) = (if *rows == 1 { "has" } else { "have" }, counted(*rows, "row"), &dataset.dataset);
                writeln!(out, "{rows} of {name} {have} no {column}, which is required now: a load would reject their records")?;
            }
        }
        Ok(())
    }
}

fn write_columns(datasets: &[DatasetFill], out: &mut dyn Write) -> io::Result<()> {
    let mut table = Table::new(&[
        ("dataset", Align::Left),
        ("column", Align::Left),
        ("filled", Align::Right),
        ("left in _extra", Align::Right),
    ]);
    let columns = || datasets.iter().flat_map(|dataset| dataset.columns.iter().map(move |column| (&dataset.dataset, column)));
    for (dataset, ColumnFill { column, filled, left, .. }) in columns() {
        let [filled, left] = [*filled, *left].map(|count| HumanCount(count).to_string());
        table.row([dataset.clone(), column.clone(), filled, left]);
    }
    writeln!(out, "{table}")?;
    for (dataset, column) in columns() {
        if let Some(reason) = &column.first_left {
            let (values, name) = (counted(column.left, "value"), &column.column);
            let stay = if column.left == 1 { "stays" } else { "stay" };
            writeln!(out, "{values} of {dataset}.{name} {stay} in _extra, the first because {reason}")?;
        }
    }
    Ok(())
}
