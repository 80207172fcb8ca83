//! Locks between processes: named ones, by PostgreSQL's advisory locks, and those of tables. SQLite needs none: only one
//! transaction can write at a time.

use std::collections::BTreeMap;

use super::append::RawTable;
use super::connection::{Arg, Connection};
use super::error::StoreResult;
use super::sql::Dialect;
use crate::dataset::{Dataset, StreamMode};

/// Work that only one process may do at a time.
#[derive(Debug, Clone, Copy)]
pub enum Lock<'a> {
    /// Creating and altering tables.
    Schema,
    /// A batch load.
    Load,
    /// Bringing contents that no row in progress tells of, which takes as long as a batch load. Whoever decides on a dropped file
    /// shares it.
    Contents(&'a str),
    /// Deciding whether a dropped file is a repeat.
    Admission(&'a str),
    /// Refreshing the modelled tables of a dataset. The lock is taken before the rows are read, so that a later refresh sees at
    /// least the rows that the earlier one saw.
    Model(&'a str),
    /// Writing rows of a dataset whose dropped records replace older ones.
    Upsert(&'a str),
}

impl Lock<'_> {
    fn name(self) -> String {
        match self {
            Self::Schema => "dataloader schema".to_owned(),
            Self::Load => "dataloader load".to_owned(),
            Self::Contents(dataset) => format!("dataloader contents {dataset}"),
            Self::Admission(dataset) => format!("dataloader admission {dataset}"),
            Self::Model(dataset) => format!("dataloader model {dataset}"),
            Self::Upsert(dataset) => format!("dataloader upsert {dataset}"),
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

/// Shares a lock until the transaction ends, unless somebody has it alone. Does not wait. Returns whether it is shared.
///
/// # Errors
/// If the database fails.
pub async fn try_share(connection: &mut Connection, lock: Lock<'_>) -> StoreResult<bool> {
    if connection.dialect() == Dialect::Sqlite {
        return Ok(true);
    }
    let sql = "select pg_try_advisory_xact_lock_shared(hashtextextended($1, 0))::int::bigint";
    Ok(connection.fetch_int(sql, &[Arg::Text(Some(&lock.name()))]).await? > 0)
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

/// Inside a transaction of the stream, first of all: locks the tables of the datasets that it writes to, by name. What the
/// transaction then reads in the ledger holds until its end: whoever [holds a dataset still](super::model::hold_still) waits.
/// Of the writers of a dataset whose records replace older ones, one goes on at a time.
///
/// # Errors
/// If the database fails.
pub async fn tables(connection: &mut Connection, datasets: &BTreeMap<&str, &Dataset>) -> StoreResult<()> {
    if connection.dialect() == Dialect::Postgres {
        let tables: Vec<String> = datasets.values().map(|dataset| RawTable::Master.of(Dialect::Postgres, dataset)).collect();
        connection.run(format!("lock table {} in row exclusive mode", tables.join(", "))).await?;
        // Not by a stronger lock of the table: a vacuum would wait for it, and it for a vacuum.
        for (name, _) in datasets.iter().filter(|(_, dataset)| dataset.stream == StreamMode::Upsert) {
            transaction(connection, Lock::Upsert(name)).await?;
        }
    }
    Ok(())
}

async fn call(connection: &mut Connection, function: &str, lock: Lock<'_>) -> StoreResult<()> {
    if connection.dialect() == Dialect::Postgres {
        let sql = format!("select {function}(hashtextextended($1, 0))::text");
        connection.fetch(sql, &[Arg::Text(Some(&lock.name()))]).await?;
    }
    Ok(())
}
