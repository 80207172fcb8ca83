//! `dataloader migrate`: creates or upgrades the tables.

use super::DONE;
use crate::config::Config;
use crate::error::Result;
use crate::retry::GIVE_UP_AFTER;
use crate::store::{Database, Indexes};
use crate::terminal::output::Output;

/// Creates or upgrades the tables that this program and the datasets need.
///
/// # Errors
/// If the database fails, or its tables do not fit the datasets.
pub async fn run(config: &Config, output: Output) -> Result<u8> {
    Database::new(&config.database, GIVE_UP_AFTER)?.open(&config.datasets, Indexes::MakeOverRows).await?.close().await;
    output.result(&serde_json::json!({ "database": config.database.to_string() }), |out| {
        writeln!(out, "the tables in {} are up to date", config.database)
    })?;
    Ok(DONE)
}
