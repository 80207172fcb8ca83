//! Whether all that is there agrees: rows, chunk lines, rejects and ledger, the processed files, and the model with a recompute.
//! Reads only, the database in one snapshot.

mod files; // what processed/ holds
mod ledger; // what the database holds

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;
use uuid::Uuid;

use crate::config::{Config, Transport};
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::inbox::{Processed, Symlinks, processed};
use crate::retry::GIVE_UP_AFTER;
use crate::store::model::{self, Stored};
use crate::store::{Connection, Database, StoreResult};

use files::Comparison;
use ledger::Booked;

/// What is verified.
#[derive(Debug, Clone)]
pub struct Scope {
    pub datasets: Vec<Arc<Dataset>>,
    /// Only these loads and their files, without the sums of the table and the model; empty for all.
    pub loads: BTreeSet<i64>,
}

/// What was compared, and what does not agree.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Verified {
    pub datasets: Vec<VerifiedDataset>,
    pub differences: Vec<Difference>,
    /// What was not compared, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// How much of a dataset was compared.
#[derive(Debug, Clone, Default, Serialize)]
pub struct VerifiedDataset {
    pub dataset: String,
    pub loads: u64,
    /// Rows of the raw table.
    pub rows: i64,
    pub open_rejects: i64,
    /// Files in `processed/` that were read again.
    pub files: u64,
    /// Modelled tables that were recomputed.
    pub modelled_tables: usize,
}

/// Something that does not agree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    pub dataset: String,
    /// The load, if it is about one.
    pub load: Option<i64>,
    /// The load's file, or one in `processed/`.
    pub file: Option<String>,
    pub difference: String,
}

/// Compares all that is there. Files are read after the snapshot of the database has ended.
///
/// # Errors
/// If the database or the inbox cannot be read, or if a load is not in the ledger.
pub async fn verify(config: &Config, scope: &Scope) -> Result<Verified> {
    let database = Database::new(&config.database, GIVE_UP_AFTER)?;
    let Some(mut connection) = database.open_to_read().await? else {
        return Ok(Verified { notes: vec![database.says_nothing_is_there()], ..Verified::default() });
    };
    // Listed before the snapshot: a file moves after the commit that books it.
    let links = Symlinks::followed(config.follow_links);
    let mut listed = BTreeMap::new();
    for dataset in &scope.datasets {
        listed.insert(dataset.name.clone(), processed(&config.inbox, &dataset.name, links)?);
    }
    let mut verified = Verified::default();
    let booked = in_snapshot(&mut connection, scope, &mut verified).await.map_err(|error| database.explain(error));
    connection.close().await;
    let booked = booked?;
    if let Some(unknown) = scope.loads.iter().find(|id| !booked.iter().any(|load| load.id == **id)) {
        let error = Error::failed(format!("load {unknown} is not in the ledger of these datasets"));
        return Err(error.hint("the loads and their ids are in raw.loads (SQLite: raw_loads)"));
    }
    let comparison = Comparison::new(config, listed, booked, scope.loads.is_empty());
    tokio::task::spawn_blocking(move || comparison.add_to(verified)).await.map_err(|_| Error::failed("reading the files panicked"))
}

/// Compares what the database holds. Returns the ledger.
async fn in_snapshot(connection: &mut Connection, scope: &Scope, verified: &mut Verified) -> StoreResult<Vec<Booked>> {
    connection.begin_read().await?;
    let mut booked = Vec::new();
    for dataset in &scope.datasets {
        let mut counts = VerifiedDataset { dataset: dataset.name.clone(), ..VerifiedDataset::default() };
        let Some(loads) = ledger::of_dataset(connection, dataset, &scope.loads).await? else {
            verified.notes.push(format!("{}: raw.{0} is not there: `dataloader migrate` makes it", dataset.name));
            continue;
        };
        loads.judge(&mut counts, verified);
        if scope.loads.is_empty() {
            ledger::totals(connection, dataset, &loads, &mut counts, verified).await?;
            compare_model(connection, dataset, &mut counts, verified).await?;
        }
        verified.datasets.push(counts);
        booked.extend(loads.into_booked());
    }
    if scope.loads.is_empty() {
        ledger::strays(connection, &scope.datasets, verified).await?;
    }
    connection.commit().await?;
    Ok(booked)
}

/// Compares the modelled tables of a dataset with a recompute.
async fn compare_model(
    connection: &mut Connection,
    dataset: &Dataset,
    counts: &mut VerifiedDataset,
    verified: &mut Verified,
) -> StoreResult<()> {
    if dataset.day.is_none() {
        return Ok(());
    }
    let name = &dataset.name;
    match model::compare_stored(connection, dataset).await? {
        Stored::OfAnotherDefinition => {
            verified.notes.push(format!("{name}: the modelled tables are of another definition: `dataloader model` makes them anew"));
        }
        Stored::Unreadable => verified.notes.push(format!(
            "{name}: this user may not read the schema dataloader, and so not tell which days are not modelled yet: the model is not compared"
        )),
        Stored::Compared { pending, differences } => {
            counts.modelled_tables = model::table_names(dataset).len();
            if !pending.is_empty() {
                verified.notes.push(format!("{name}: not modelled yet, and not compared: {}", shortened(&pending)));
            }
            verified.differences.extend(differences.into_iter().map(|found| {
                let (table, surplus, missing) = (found.table, found.surplus, found.missing);
                let difference = format!(
                    "modelled.{table} differs from a recompute: {surplus} rows too many, {missing} missing; `dataloader model --full` repairs it"
                );
                Difference { dataset: name.clone(), load: None, file: None, difference }
            }));
        }
    }
    Ok(())
}

/// The first of them, and how many more there are.
fn shortened(items: &[String]) -> String {
    const SHOWN: usize = 10;
    match items.len().saturating_sub(SHOWN) {
        0 => items.join(", "),
        more => format!("{} and {more} more", items[..SHOWN].join(", ")),
    }
}
