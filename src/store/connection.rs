//! One connection to either database: statements with arguments, rows as plain fields, and transactions. All SQL is made in
//! this directory from checked and quoted names, so only this directory asserts that SQL is safe.

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection as _};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::error::{Class, StoreError, StoreResult};
use super::servers::Servers;
use super::sql::Dialect;
pub use super::value::{Arg, Field};
use super::value::{postgres_arguments, postgres_fields, sqlite_arguments, sqlite_fields};
use super::watch::Watch;
use crate::config::DatabaseUrl;
use crate::vitals::Stage;

/// A connection to PostgreSQL or SQLite. Dropping it in the middle of a transaction rolls the transaction back.
#[derive(Debug)]
pub struct Connection {
    pub(super) kind: Kind,
    pub(super) watch: Watch,
    /// The place among this process's writers; only for SQLite.
    turn: Option<Turn>,
}

/// The connection of either database.
#[derive(Debug)]
pub(super) enum Kind {
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
}

/// The queue of a process's connections that want to write to a SQLite file, in the order of their requests. Without it, a busy
/// connection would hardly ever leave the file's lock to the others. They would report a locked database, although this process
/// itself holds the lock.
#[derive(Debug, Clone, Default)]
pub struct Turns(Arc<Mutex<()>>);

/// A connection's place in the queue. It holds the mutex from the beginning to the end of a transaction that writes.
#[derive(Debug)]
struct Turn {
    turns: Turns,
    held: Option<OwnedMutexGuard<()>>,
}

/// The options of a connection, parsed once from the database's URL.
#[derive(Debug, Clone)]
pub enum ConnectionOptions {
    Postgres(Servers),
    Sqlite(Box<SqliteFile>),
}

/// The options of a SQLite file.
#[derive(Debug, Clone)]
pub struct SqliteFile {
    options: SqliteConnectOptions,
    turns: Turns,
    /// The file to make if it is missing; none if it must be there.
    missing: Option<PathBuf>,
}

/// How long closing a connection may take.
const GOODBYE: Duration = Duration::from_secs(5);

impl ConnectionOptions {
    /// The options for a URL. `lock_wait` says how long a statement waits for the SQLite lock of another process.
    ///
    /// # Errors
    /// If the URL is not valid for its scheme.
    pub fn new(url: &DatabaseUrl, lock_wait: Duration) -> StoreResult<Self> {
        match url {
            // FULL: a commit survives a power cut. It must, because after the commit the loaded file is moved or its message is
            // acknowledged. With NORMAL the move could survive while the rows are lost.
            DatabaseUrl::Sqlite(path) => {
                let options = SqliteConnectOptions::new()
                    .filename(path)
                    .create_if_missing(true)
                    .busy_timeout(lock_wait)
                    .synchronous(SqliteSynchronous::Full)
                    .pragma("cache_size", "-16384")
                    .pragma("temp_store", "file")
                    .disable_statement_logging();
                Ok(Self::Sqlite(Box::new(SqliteFile { options, turns: Turns::default(), missing: Some(path.clone()) })))
            }
            DatabaseUrl::Postgres(url) => Servers::new(url).map(Self::Postgres),
        }
    }

    /// The same options for connections that change nothing: they do not create the database file and do not change an existing
    /// one, and a server that accepts no writes will do.
    #[must_use]
    pub fn read_only(self) -> Self {
        match self {
            // On PostgreSQL each transaction is declared read-only instead.
            Self::Postgres(servers) => Self::Postgres(servers.read_only()),
            // The file is not opened as read-only: SQLite could then not remove the auxiliary files that it needs for reading.
            Self::Sqlite(mut file) => {
                file.options = file.options.create_if_missing(false).pragma("query_only", "on");
                file.missing = None;
                Self::Sqlite(file)
            }
        }
    }

    /// Opens a connection in one attempt.
    ///
    /// # Errors
    /// If the database is not reachable, refuses the connection, or does not exist.
    pub async fn connect(&self) -> StoreResult<Connection> {
        match self {
            Self::Postgres(servers) => {
                let (connection, options) = servers.connect().await?;
                Ok(Connection { kind: Kind::Postgres(connection), watch: Watch::new(Some(Box::new(options))), turn: None })
            }
            Self::Sqlite(file) => {
                if let Some(path) = &file.missing {
                    make_private(path);
                }
                let mut connection = SqliteConnection::connect_with(&file.options).await?;
                set_write_ahead_log(&mut connection).await?;
                let turn = Some(Turn { turns: file.turns.clone(), held: None });
                Ok(Connection { kind: Kind::Sqlite(connection), watch: Watch::new(None), turn })
            }
        }
    }
}

/// Makes a missing database file, readable by this user alone: SQLite itself would let all users read it. Its other files get the
/// same permissions from SQLite. If the file cannot be made, SQLite says why.
fn make_private(file: &Path) {
    if !file.exists() {
        drop(std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(file));
    }
}

/// Switches a database file to WAL mode, in which readers do not wait for the writer. The file keeps the mode. The connect
/// options are not used for this: they would write to files that are already in WAL mode, read-only, or locked.
async fn set_write_ahead_log(connection: &mut SqliteConnection) -> StoreResult<()> {
    let mode: String = sqlx::query_scalar("pragma journal_mode").fetch_one(&mut *connection).await?;
    if mode != "wal" {
        // A read-only file, or one that is opened only to read, stays readable. The first write reports that it is read-only.
        if let Err(error) = sqlx::raw_sql("pragma journal_mode = wal").execute(connection).await.map_err(StoreError::from)
            && error.class() != Class::ReadOnly
        {
            return Err(error);
        }
    }
    Ok(())
}

impl Connection {
    /// The SQL dialect of the database.
    pub fn dialect(&self) -> Dialect {
        match self.kind {
            Kind::Postgres(_) => Dialect::Postgres,
            Kind::Sqlite(_) => Dialect::Sqlite,
        }
    }

    /// Sets the stage that the following statements belong to, and the time limit of each. Without a limit, a statement may
    /// take as long as the server answers on other connections. SQLite has no server and ignores the limit.
    pub fn attend(&mut self, stage: &Stage, deadline: Duration) {
        self.watch.attend(stage.clone(), deadline);
    }

    /// Runs a statement with arguments `$1`, `$2`, … and returns the number of changed rows.
    ///
    /// # Errors
    /// The database's error.
    pub async fn execute(&mut self, sql: impl Into<String>, args: &[Arg<'_>]) -> StoreResult<u64> {
        let sql = sql.into();
        self.watch.begins(&sql)?;
        let safe = AssertSqlSafe(sql.as_str());
        let changed = match &mut self.kind {
            Kind::Postgres(connection) => {
                let arguments = postgres_arguments(args)?;
                self.watch.answer(sqlx::query_with(safe, arguments).execute(connection)).await?.rows_affected()
            }
            Kind::Sqlite(connection) => {
                let arguments = sqlite_arguments(args)?;
                self.watch.answer(sqlx::query_with(safe, arguments).execute(connection)).await?.rows_affected()
            }
        };
        self.watch.is_done(&sql)?;
        Ok(changed)
    }

    /// Runs statements without arguments, separated by semicolons. The database plans each of them anew.
    ///
    /// # Errors
    /// The database's error for the first statement that fails.
    pub async fn run(&mut self, sql: impl Into<String>) -> StoreResult<u64> {
        let sql = sql.into();
        self.watch.begins(&sql)?;
        let safe = AssertSqlSafe(sql.as_str());
        let changed = match &mut self.kind {
            Kind::Postgres(connection) => self.watch.answer(sqlx::raw_sql(safe).execute(connection)).await?.rows_affected(),
            Kind::Sqlite(connection) => self.watch.answer(sqlx::raw_sql(safe).execute(connection)).await?.rows_affected(),
        };
        self.watch.is_done(&sql)?;
        Ok(changed)
    }

    /// Runs a query with arguments and returns its rows. Columns must be integers, floats, texts, bytes or UUIDs; the query
    /// casts other types to text.
    ///
    /// # Errors
    /// The database's error.
    pub async fn fetch(&mut self, sql: impl Into<String>, args: &[Arg<'_>]) -> StoreResult<Vec<Vec<Field>>> {
        let sql = sql.into();
        self.watch.begins(&sql)?;
        let safe = AssertSqlSafe(sql.as_str());
        let rows = match &mut self.kind {
            Kind::Postgres(connection) => {
                let arguments = postgres_arguments(args)?;
                let rows = self.watch.answer(sqlx::query_with(safe, arguments).fetch_all(connection)).await?;
                rows.iter().map(postgres_fields).collect()
            }
            Kind::Sqlite(connection) => {
                let arguments = sqlite_arguments(args)?;
                let rows = self.watch.answer(sqlx::query_with(safe, arguments).fetch_all(connection)).await?;
                rows.iter().map(sqlite_fields).collect()
            }
        };
        self.watch.is_done(&sql)?;
        rows
    }

    /// Runs a query whose result is one integer.
    ///
    /// # Errors
    /// The database's error.
    pub async fn fetch_int(&mut self, sql: impl Into<String>, args: &[Arg<'_>]) -> StoreResult<i64> {
        let rows = self.fetch(sql, args).await?;
        Ok(rows.first().and_then(|row| row.first()).map_or(0, Field::int_or_zero))
    }

    /// Inserts many rows per statement. `into` is the table with its columns, for example `raw.loads (id, source)`.
    /// `on_conflict` is appended to each statement.
    ///
    /// # Errors
    /// The database's error.
    pub async fn insert(&mut self, into: &str, on_conflict: &str, rows: &[Vec<Arg<'_>>]) -> StoreResult<()> {
        /// SQLite's limit of parameters per statement; PostgreSQL's limit is twice as high.
        const MAX_PARAMETERS: usize = 32_766;
        let Some(width) = rows.first().map(Vec::len) else { return Ok(()) };
        for rows in rows.chunks(MAX_PARAMETERS / width) {
            let args: Vec<Arg<'_>> = rows.iter().flatten().cloned().collect();
            let tuples = self.dialect().tuples(rows.len(), width);
            self.execute(format!("insert into {into} values {tuples} {on_conflict}"), &args).await?;
        }
        Ok(())
    }

    /// Begins a transaction that will write. SQLite takes its write lock at once: a transaction that takes it later fails
    /// instead of waiting.
    ///
    /// # Errors
    /// The database's error. On SQLite also if another process did not release the lock in time.
    pub async fn begin(&mut self) -> StoreResult<()> {
        let begin = match &mut self.turn {
            None => "begin",
            Some(turn) => {
                turn.held = Some(Arc::clone(&turn.turns.0).lock_owned().await);
                "begin immediate"
            }
        };
        let begun = self.run(begin).await;
        if begun.is_err() {
            self.end_turn();
        }
        begun.map(drop)
    }

    /// Gives the write turn to the next connection of this process.
    fn end_turn(&mut self) {
        if let Some(turn) = &mut self.turn {
            turn.held = None;
        }
    }

    /// Begins a transaction that moves or groups many rows. PostgreSQL may use more memory for its hash tables in this
    /// transaction.
    ///
    /// # Errors
    /// As [`Connection::begin`].
    pub async fn begin_bulk(&mut self) -> StoreResult<()> {
        self.begin().await?;
        match self.dialect() {
            Dialect::Postgres => self.run("set local work_mem = '256MB'").await.map(drop),
            Dialect::Sqlite => Ok(()),
        }
    }

    /// Begins a bulk transaction in which all statements see one snapshot of the rows. On SQLite it does not write to the file,
    /// so other connections can write meanwhile.
    ///
    /// # Errors
    /// As [`Connection::begin`].
    pub async fn begin_snapshot(&mut self) -> StoreResult<()> {
        match self.dialect() {
            Dialect::Postgres => {
                self.begin_bulk().await?;
                self.run("set transaction isolation level repeatable read").await.map(drop)
            }
            Dialect::Sqlite => self.run("begin").await.map(drop),
        }
    }

    /// Begins a transaction that only reads. All its statements see one snapshot of the rows.
    ///
    /// # Errors
    /// As [`Connection::begin`].
    pub async fn begin_read(&mut self) -> StoreResult<()> {
        let begin = match self.dialect() {
            Dialect::Postgres => "begin isolation level repeatable read read only",
            Dialect::Sqlite => "begin",
        };
        self.run(begin).await.map(drop)
    }

    /// Whether the database answers.
    pub async fn answers(&mut self) -> bool {
        self.run("select 1").await.is_ok()
    }

    /// Commits the transaction.
    ///
    /// # Errors
    /// The database's error. After a lost connection the outcome is unknown: a caller that repeats the work must be able to
    /// find out whether it was committed.
    pub async fn commit(&mut self) -> StoreResult<()> {
        self.run("commit").await?;
        self.end_turn();
        Ok(())
    }

    /// Rolls the transaction back.
    ///
    /// # Errors
    /// If the connection is lost. The database then rolls back by itself.
    pub async fn rollback(&mut self) -> StoreResult<()> {
        let rolled_back = self.run("rollback").await;
        self.end_turn();
        rolled_back.map(drop)
    }

    /// Closes the connection. If it is only dropped, PostgreSQL logs an error and SQLite does not merge its WAL into the
    /// database file.
    pub async fn close(self) {
        if self.watch.is_lost() {
            return;
        }
        let closed = match self.kind {
            Kind::Postgres(connection) => tokio::time::timeout(GOODBYE, connection.close()).await.unwrap_or(Ok(())),
            Kind::Sqlite(connection) => connection.close().await,
        };
        if let Err(error) = closed {
            tracing::debug!("closing the database connection: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// Inserts `rows` rows of ten columns, `at_once` rows per statement, and returns the time that this took.
    async fn insert_rows(connection: &mut Connection, rows: usize, at_once: usize) -> Duration {
        let row = vec![Arg::Int(Some(7)); 10];
        let started = Instant::now();
        for _ in 0..rows / at_once {
            connection.insert("t", "", &vec![row.clone(); at_once]).await.unwrap();
        }
        started.elapsed()
    }

    #[tokio::test]
    async fn a_row_of_a_long_statement_costs_no_more_than_one_of_a_short_statement() {
        let directory = tempfile::tempdir().unwrap();
        let url = DatabaseUrl::Sqlite(directory.path().join("x.db"));
        let mut connection = ConnectionOptions::new(&url, Duration::ZERO).unwrap().connect().await.unwrap();
        connection.run("create table t (a, b, c, d, e, f, g, h, i, j)").await.unwrap();
        connection.begin().await.unwrap();
        insert_rows(&mut connection, 3_000, 3_000).await;
        let (short, long) = (insert_rows(&mut connection, 3_000, 100).await, insert_rows(&mut connection, 3_000, 3_000).await);
        assert!(long < 5 * short, "{long:?} in one statement, {short:?} in thirty");
    }
}
