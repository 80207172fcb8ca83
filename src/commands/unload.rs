//! `dataloader unload`: takes loads back.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::sync::Arc;

use indicatif::HumanCount;
use serde::Serialize;

use super::DONE;
use crate::answers::replay::REPLAY_SOURCE;
use crate::config::Config;
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::retry::GIVE_UP_AFTER;
use crate::store::ledger::{self, LedgerLoad};
use crate::store::lock::{self, Lock};
use crate::store::unload::{Removed, take_back};
use crate::store::{Connection, Database, Indexes, model};
use crate::terminal::cli::UnloadArgs;
use crate::terminal::output::Output;
use crate::terminal::table::{Align, Table};

/// Takes the loads back that the arguments name and prints what went.
///
/// # Errors
/// As [`unload`].
pub async fn run(config: &Config, args: &UnloadArgs, output: Output) -> Result<u8> {
    let unloaded = unload(config, &args.ids.iter().copied().collect()).await?;
    output.result(&unloaded, |out| unloaded.write(out))?;
    Ok(DONE)
}

/// The result of the command.
#[derive(Debug, Clone, Serialize)]
pub struct Unloaded {
    /// In the order of their ids.
    pub loads: Vec<UnloadedLoad>,
}

/// What was removed of a load, and what does not come back.
#[derive(Debug, Clone, Serialize)]
pub struct UnloadedLoad {
    pub id: i64,
    pub dataset: String,
    pub source: String,
    /// Rows that were removed from the raw table.
    pub rows: u64,
    /// Open rejects that were removed.
    pub rejects: u64,
    /// Rows that were removed when it was loaded: rows of its keys, and of its own those that were outdated. The first file of a
    /// batch run has those of all its files. They do not come back.
    pub replaced: u64,
    /// Rejects that the load, a replay, had loaded. They do not come back.
    pub replayed: u64,
}

/// Takes loads back in one transaction: all of them or none.
///
/// # Errors
/// If a load is not in the ledger, is neither loaded nor failed, or belongs to a dataset that is not configured; or if the
/// database fails.
pub async fn unload(config: &Config, ids: &BTreeSet<i64>) -> Result<Unloaded> {
    let database = Database::new(&config.database, GIVE_UP_AFTER)?;
    let mut connection = database.open(&config.datasets, Indexes::Make).await?;
    let unloaded = in_transaction(&mut connection, &database, config, ids).await;
    if unloaded.is_err() {
        // If the connection is lost, the database rolls back by itself.
        drop(connection.rollback().await);
    }
    connection.close().await;
    unloaded.map(|loads| Unloaded { loads })
}

async fn in_transaction(
    connection: &mut Connection,
    database: &Database,
    config: &Config,
    ids: &BTreeSet<i64>,
) -> Result<Vec<UnloadedLoad>> {
    let explain = |error| database.explain(error);
    connection.begin_bulk().await.map_err(explain)?;
    // In the order of a batch load: its lock, then each dataset by name.
    lock::transaction(connection, Lock::Load).await.map_err(explain)?;
    let datasets = datasets_of(config, ids, &ledger::find(connection, ids).await.map_err(explain)?)?;
    for dataset in datasets.values() {
        model::hold_still(connection, dataset).await.map_err(explain)?;
    }
    // Until now more of a load may have come. From now on nobody writes rows of these datasets.
    let loads = ledger::find(connection, ids).await.map_err(explain)?;
    datasets_of(config, ids, &loads)?;
    let mut unloaded = Vec::new();
    for (name, dataset) in &datasets {
        let of_dataset: Vec<&LedgerLoad> = loads.iter().filter(|load| load.dataset == *name).collect();
        let removed = take_back(connection, dataset, &of_dataset).await.map_err(explain)?;
        model::refresh_within(connection, dataset).await.map_err(explain)?;
        unloaded.extend(of_dataset.into_iter().zip(removed).map(|(load, removed)| UnloadedLoad::of(load, removed)));
    }
    connection.commit().await.map_err(explain)?;
    unloaded.sort_by_key(|load| load.id);
    Ok(unloaded)
}

/// The datasets of the loads, by name.
fn datasets_of(config: &Config, ids: &BTreeSet<i64>, loads: &[LedgerLoad]) -> Result<BTreeMap<String, Arc<Dataset>>> {
    if let Some(unknown) = ids.iter().find(|id| !loads.iter().any(|load| load.id == **id)) {
        let error = Error::failed(format!("load {unknown} is not in the ledger; nothing was unloaded"));
        return Err(error.hint("the loads and their ids are in raw.loads (SQLite: raw_loads)"));
    }
    let mut datasets = BTreeMap::new();
    for LedgerLoad { id, dataset, source, status, .. } in loads {
        if !["loaded", "failed"].contains(&status.as_str()) {
            let error = Error::failed(format!("load {id} ({source}) is {status}; nothing was unloaded"));
            return Err(error.hint(match status.as_str() {
                "loading" => "wait until all of it is loaded, then unload it",
                "open" => {
                    "messages of other programs cannot be unloaded: delete their rows yourself, then `dataloader model --full`"
                }
                _ => "only loads that are loaded or failed can be unloaded: leave it out",
            }));
        }
        let Some(found) = config.datasets.iter().find(|configured| configured.name == *dataset) else {
            let error = Error::failed(format!("load {id} ({source}) is of the dataset {dataset}, which is not configured"));
            return Err(error.hint("name the configuration that defines it with --config; nothing was unloaded"));
        };
        datasets.insert(dataset.clone(), Arc::clone(found));
    }
    Ok(datasets)
}

impl UnloadedLoad {
    fn of(load: &LedgerLoad, Removed { rows, rejects }: Removed) -> Self {
        let LedgerLoad { id, dataset, source, rows_loaded, rows_removed, .. } = load.clone();
        let replayed = if source == REPLAY_SOURCE { rows_loaded } else { 0 };
        Self { id, dataset, source, rows, rejects, replaced: rows_removed, replayed }
    }
}

impl Unloaded {
    /// Writes the text output.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let count = |count: u64| HumanCount(count).to_string();
        let mut table = Table::new(&[
            ("unloaded", Align::Right),
            ("dataset", Align::Left),
            ("rows", Align::Right),
            ("rejects", Align::Right),
            ("source", Align::Left),
        ]);
        for load in &self.loads {
            table.row([load.id.to_string(), load.dataset.clone(), count(load.rows), count(load.rejects), load.source.clone()]);
        }
        writeln!(out, "{table}")?;
        let sum = |of: fn(&UnloadedLoad) -> u64| self.loads.iter().map(of).sum::<u64>();
        let (replaced, replayed) = (sum(|load| load.replaced), sum(|load| load.replayed));
        if replaced > 0 {
            writeln!(
                out,
                "{} rows that were removed when these were loaded do not come back: load their files again",
                count(replaced)
            )?;
        }
        if replayed > 0 {
            writeln!(out, "{} rejects that these loads had loaded do not come back: load their records again", count(replayed))?;
        }
        Ok(())
    }
}
