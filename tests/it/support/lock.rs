//! A lock that keeps the program from writing what it loads, for as long as the test holds it.

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};
use tokio::runtime::Runtime;

use super::PATIENCE;
use super::database::{Database, a_runtime};

/// Chunks cannot be booked until this is dropped. Reading goes on.
#[derive(Debug)]
pub struct WriteLock {
    runtime: Runtime,
    /// `None` once it is released.
    holder: Option<Holder>,
}

#[derive(Debug)]
enum Holder {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl WriteLock {
    /// Waits for whoever writes at the moment. The tables are there.
    ///
    /// # Errors
    /// If the database fails.
    pub fn take(database: &Database) -> Result<Self, sqlx::Error> {
        let runtime = a_runtime();
        let holder = runtime.block_on(async {
            Ok::<_, sqlx::Error>(match database {
                Database::Sqlite { file } => {
                    let options = SqliteConnectOptions::new().filename(file).busy_timeout(PATIENCE);
                    let mut connection = SqliteConnection::connect_with(&options).await?;
                    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut connection).await?;
                    Holder::Sqlite(connection)
                }
                Database::Postgres { url, .. } => {
                    let mut connection = PgConnection::connect(url).await?;
                    let lock = format!("BEGIN; LOCK TABLE {} IN SHARE MODE", database.table("raw.batches"));
                    sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut connection).await?;
                    Holder::Postgres(connection)
                }
            })
        })?;
        Ok(Self { runtime, holder: Some(holder) })
    }

    /// Keeps other processes from changing tables and indexes of a PostgreSQL database.
    ///
    /// # Errors
    /// If the database fails.
    pub fn take_schema(url: &str) -> Result<Self, sqlx::Error> {
        let runtime = a_runtime();
        let holder = runtime.block_on(async {
            let mut connection = PgConnection::connect(url).await?;
            let lock = "SELECT pg_advisory_lock(hashtextextended('dataloader schema', 0))";
            sqlx::raw_sql(lock).execute(&mut connection).await?;
            Ok::<_, sqlx::Error>(Holder::Postgres(connection))
        })?;
        Ok(Self { runtime, holder: Some(holder) })
    }
}

impl Drop for WriteLock {
    fn drop(&mut self) {
        // Its transaction ends with the connection, whatever becomes of the goodbye.
        drop(self.runtime.block_on(async {
            match self.holder.take() {
                Some(Holder::Sqlite(connection)) => connection.close().await,
                Some(Holder::Postgres(connection)) => connection.close().await,
                None => Ok(()),
            }
        }));
    }
}
