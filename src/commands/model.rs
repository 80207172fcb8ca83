//! `dataloader model`: refreshes the modelled tables and checks them.

use std::io::{self, Write};

use serde::Serialize;

use super::{DIFFERENT, DONE};
use crate::config::Config;
use crate::error::Result;
use crate::retry::GIVE_UP_AFTER;
use crate::store::model::{self, Days, Difference};
use crate::store::{Connection, Database, Indexes, StoreResult};
use crate::terminal::cli::ModelArgs;
use crate::terminal::output::Output;

/// Refreshes the modelled tables as the arguments say and prints the result.
///
/// # Errors
/// As [`refresh`].
pub async fn run(config: &Config, args: &ModelArgs, output: Output) -> Result<u8> {
    let refreshed = refresh(config, args.full, args.check).await?;
    output.result(&refreshed, |out| refreshed.write(out))?;
    Ok(if refreshed.differences.is_empty() { DONE } else { DIFFERENT })
}

/// The result of a refresh.
#[derive(Debug, Clone, Serialize)]
pub struct Refreshed {
    pub datasets: Vec<RefreshedDataset>,
    /// Whether the modelled tables were compared with a recomputation.
    pub checked: bool,
    /// The tables that differ from the recomputation.
    pub differences: Vec<Difference>,
}

/// The result of a refresh for one dataset.
#[derive(Debug, Clone, Serialize)]
pub struct RefreshedDataset {
    pub dataset: String,
    /// How many days were refreshed; null if all were recomputed.
    pub days: Option<usize>,
}

/// Refreshes the changed days, or all days if `full`. With `check`, compares the result with a full recomputation.
///
/// # Errors
/// If the database fails.
pub async fn refresh(config: &Config, full: bool, check: bool) -> Result<Refreshed> {
    let database = Database::new(&config.database, GIVE_UP_AFTER)?;
    let mut connection = database.open(&config.datasets, Indexes::Make).await?;
    let refreshed = refresh_on(&mut connection, config, full, check).await.map_err(|error| database.explain(error));
    connection.close().await;
    refreshed
}

async fn refresh_on(connection: &mut Connection, config: &Config, full: bool, check: bool) -> StoreResult<Refreshed> {
    let mut refreshed = Refreshed { datasets: Vec::new(), checked: check, differences: Vec::new() };
    for dataset in config.datasets.iter().filter(|dataset| dataset.day.is_some()) {
        let days = if full { Days::All } else { Days::none() };
        let days = if check {
            let (days, differences) = model::refresh_and_check(connection, dataset, days).await?;
            refreshed.differences.extend(differences);
            days
        } else {
            model::refresh(connection, dataset, days).await?.days
        };
        refreshed.datasets.push(RefreshedDataset { dataset: dataset.name.clone(), days });
    }
    Ok(refreshed)
}

impl Refreshed {
    /// Writes the text output.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        for RefreshedDataset { dataset, days } in &self.datasets {
            match days {
                None => writeln!(out, "{dataset}: all days recomputed")?,
                Some(0) => writeln!(out, "{dataset}: up to date")?,
                Some(1) => writeln!(out, "{dataset}: 1 day refreshed")?,
                Some(days) => writeln!(out, "{dataset}: {days} days refreshed")?,
            }
        }
        for Difference { table, surplus, missing } in &self.differences {
            writeln!(out, "modelled.{table} differs from a full recompute: {surplus} rows too many, {missing} missing")?;
        }
        if !self.differences.is_empty() {
            writeln!(out, "repair it with `dataloader model --full`")?;
        } else if self.checked {
            writeln!(out, "the modelled tables equal a full recompute")?;
        }
        Ok(())
    }
}
