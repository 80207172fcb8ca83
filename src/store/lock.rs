//! Named locks between processes, by PostgreSQL's advisory locks. SQLite needs none: only one transaction can write at a time.

use super::connection::{Arg, Connection};
use super::error::StoreResult;
use super::sql::Dialect;

/// Work that only one process may do at a time.
#[derive(Debug, Clone, Copy)]
pub enum Lock<'a> {
    /// Creating and altering tables.
    Schema,
    /// A batch load.
    Load,
    /// Refreshing the modelled tables of a dataset. The lock is taken before the rows are read, so that a later refresh sees at
    /// least the rows that the earlier one saw.
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
