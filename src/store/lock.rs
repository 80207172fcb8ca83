//! Locks between processes, by name. PostgreSQL's advisory locks; SQLite needs none: its transactions that write exclude each
//! other anyway.

use super::connection::{Arg, Connection};
use super::error::StoreResult;
use super::sql::Dialect;

/// What only one process does at a time.
#[derive(Debug, Clone, Copy)]
pub enum Lock<'a> {
    /// Creating and altering tables.
    Schema,
    /// A batch load.
    Load,
    /// Refreshing the modelled tables of a dataset. Taken before the rows are read, so that the later of two refreshes sees
    /// what the earlier saw.
    Model(&'a str),
}

impl Lock<'_> {
    fn name(self) -> String {
        match self {
            Self::Schema => "dataloader schema".to_owned(),
            Self::Load => "dataloader load".to_owned(),
            Self::Model(dataset) => format!("dataloader model {dataset}"),
        }
    }
}

/// Waits for a lock and holds it until the transaction ends.
///
/// # Errors
/// If the database fails.
pub async fn transaction(connection: &mut Connection, lock: Lock<'_>) -> StoreResult<()> {
    call(connection, "pg_advisory_xact_lock", lock).await
}

/// Waits for a lock and holds it until it is released or the connection ends.
///
/// # Errors
/// If the database fails.
pub async fn session(connection: &mut Connection, lock: Lock<'_>) -> StoreResult<()> {
    call(connection, "pg_advisory_lock", lock).await
}

/// Releases a lock that the session holds.
///
/// # Errors
/// If the database fails.
pub async fn release(connection: &mut Connection, lock: Lock<'_>) -> StoreResult<()> {
    call(connection, "pg_advisory_unlock", lock).await
}

async fn call(connection: &mut Connection, function: &str, lock: Lock<'_>) -> StoreResult<()> {
    if connection.dialect() == Dialect::Postgres {
        let sql = format!("select {function}(hashtextextended($1, 0))::text");
        connection.fetch(sql, &[Arg::Text(Some(&lock.name()))]).await?;
    }
    Ok(())
}
