//! The indexes of the master tables. They only make work cheaper, so a user that may not make one goes on without it.

use std::collections::HashSet;

use super::connection::{Arg, Connection};
use super::error::StoreResult;
use super::lock::{self, Lock};
use super::sql::{Dialect, Schema, quote};
use crate::dataset::{Dataset, StreamMode};

/// Inside a transaction that wrote the dataset's rows: creates the indexes that are missing.
///
/// # Errors
/// If the database fails.
pub async fn index_rows(connection: &mut Connection, dataset: &Dataset) -> StoreResult<()> {
    let (dialect, found) = (connection.dialect(), found(connection).await?);
    let missing = [RawIndex::Day, RawIndex::Key].into_iter().filter(|index| !found.contains(&index.bare_name(dialect, dataset)));
    let missing: Vec<String> = missing.filter_map(|index| index.create(dialect, dataset)).collect();
    let may_make = missing.is_empty() || may_make(connection, dataset).await?;
    for statement in missing {
        match may_make {
            true => drop(connection.run(statement).await?),
            false => report_forbidden(&statement),
        }
    }
    Ok(())
}

/// An index of a master table. It is created after the first rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RawIndex {
    /// By the day: the refresh of a day, and a batch load whose keys contain the day, read only the rows of that day.
    Day,
    /// By the key: a small load finds the rows that it replaces. Datasets whose keys contain the day, and whose dropped records are
    /// appended, get it only if small loads into large days show that it pays. PostgreSQL indexes a hash, because keys may be
    /// longer than an entry of an index.
    Key,
}

impl RawIndex {
    /// The statement that creates the index, if the dataset needs it from the beginning.
    pub fn create(self, dialect: Dialect, dataset: &Dataset) -> Option<String> {
        let is_by_key = dataset.stream == StreamMode::Upsert || dataset.day.is_some_and(|day| !dataset.key.contains(&day));
        let is_needed = match self {
            Self::Day => dataset.day.is_some(),
            Self::Key => is_by_key,
        };
        is_needed.then(|| self.statement(dialect, dataset))
    }

    fn statement(self, dialect: Dialect, dataset: &Dataset) -> String {
        let expression = match self {
            Self::Day => dataset.day_column().map_or_else(String::new, |day| format!("({})", dialect.day(day))),
            Self::Key => dialect.key_index(dataset),
        };
        let name = quote(&self.bare_name(dialect, dataset));
        // Another process may have created it while this one waited for the table.
        format!("create index if not exists {name} on {} ({expression})", dialect.table(Schema::Raw, &dataset.name))
    }

    /// The index name without its schema. A dataset's name contains no dot, so no table has this name.
    pub fn bare_name(self, dialect: Dialect, dataset: &Dataset) -> String {
        let suffix = match self {
            Self::Day => "day",
            Self::Key => "key",
        };
        format!("{}.{suffix}", dialect.bare_table(Schema::Raw, &dataset.name))
    }

    /// The quoted name of the index, ready for SQL.
    pub fn name(self, dialect: Dialect, dataset: &Dataset) -> String {
        let name = quote(&self.bare_name(dialect, dataset));
        match dialect {
            Dialect::Postgres => format!("raw.{name}"),
            Dialect::Sqlite => name,
        }
    }
}

/// The names of the indexes of the raw tables, without their schema.
///
/// # Errors
/// If the database fails.
pub(super) async fn found(connection: &mut Connection) -> StoreResult<HashSet<String>> {
    let sql = match connection.dialect() {
        Dialect::Postgres => {
            "select c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace \
             where n.nspname = 'raw' and c.relkind in ('i', 'I')"
        }
        Dialect::Sqlite => "select name from sqlite_schema where type = 'index' and name like 'raw\\_%' escape '\\'",
    };
    let rows = connection.fetch(sql, &[]).await?;
    Ok(rows.iter().map(|row| row[0].text().unwrap_or_default().to_owned()).collect())
}

/// Whether the key index of a dataset is there.
///
/// # Errors
/// If the database fails.
pub(super) async fn has_key_index(connection: &mut Connection, dataset: &Dataset) -> StoreResult<bool> {
    Ok(found(connection).await?.contains(&RawIndex::Key.bare_name(connection.dialect(), dataset)))
}

/// Makes the key index of a dataset, in a transaction of its own. Writers of the table wait for it. Without that wait, as by
/// `create index concurrently`, it would wait for the transactions and snapshots of others, some of which wait for it.
///
/// # Errors
/// If the database fails.
pub async fn make_key_index(connection: &mut Connection, dataset: &Dataset) -> StoreResult<()> {
    connection.begin().await?;
    lock::transaction(connection, Lock::Schema).await?;
    connection.run(RawIndex::Key.statement(connection.dialect(), dataset)).await?;
    connection.commit().await
}

/// Whether this user may make indexes of the dataset's table.
///
/// # Errors
/// If the database fails.
pub(super) async fn may_make(connection: &mut Connection, dataset: &Dataset) -> StoreResult<bool> {
    if connection.dialect() == Dialect::Sqlite {
        return Ok(true);
    }
    // Whoever makes the table owns it.
    let sql = "select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = 'raw' \
               and c.relname = $1 and not (pg_has_role(c.relowner, 'usage') and has_schema_privilege(n.oid, 'create'))";
    Ok(connection.fetch_int(sql, &[Arg::Text(Some(&dataset.name))]).await? == 0)
}

/// Warns that an index is missing which this user may not make.
pub(super) fn report_forbidden(statement: &str) {
    tracing::warn!(
        "this user may not `{statement}`, without which some work takes longer: `dataloader migrate`, run by the owner of the tables, does it once they have rows"
    );
}
