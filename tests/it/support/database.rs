//! A test's database: made, asked and dropped from the outside, never through the program's own code.

use std::path::PathBuf;

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Column, Connection, Row, TypeInfo, ValueRef};
use tokio::runtime::Runtime;

use super::PATIENCE;

/// The kind of database under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    Sqlite,
    Postgres,
}

/// A value as text, `None` when null. The same value has the same text on both stores: times as
/// `YYYY-MM-DD HH:MM:SS.ffffff` (in UTC), booleans as `0` and `1`, bytes as `\x` and hexadecimal digits.
pub type Cell = Option<String>;

/// Where a sandbox's database is.
#[derive(Debug)]
pub enum Database {
    Sqlite {
        file: PathBuf,
    },
    Postgres {
        url: String,
        /// Where to drop it from; `None` when its server is the test's own and goes as a whole.
        admin_url: Option<String>,
    },
}

impl Database {
    /// A fresh, empty database on the server at `admin_url`.
    pub fn create_postgres(admin_url: &str, drop_afterwards: bool) -> Self {
        let name = format!("dl_test_{}", uuid::Uuid::now_v7().simple());
        let create = format!("CREATE DATABASE {name} TEMPLATE template0");
        block_on(async {
            let mut admin = PgConnection::connect(admin_url).await?;
            sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut admin).await?;
            admin.close().await
        })
        .expect("DATABASE_URL must name a running PostgreSQL server and a user that may create databases");
        let admin = drop_afterwards.then(|| admin_url.to_owned());
        Self::Postgres { url: with_database(admin_url, &name), admin_url: admin }
    }

    /// The same database on another server.
    pub fn on_server(&self, server: &str) -> Self {
        let Self::Postgres { url, .. } = self else { panic!("a file has no server") };
        Self::Postgres { url: with_database(server, database_of(url)), admin_url: None }
    }

    pub fn store(&self) -> Store {
        match self {
            Self::Sqlite { .. } => Store::Sqlite,
            Self::Postgres { .. } => Store::Postgres,
        }
    }

    /// The rows that `sql` returns; no SQLite file is made for it.
    pub fn query(&self, sql: &str) -> Result<Vec<Vec<Cell>>, sqlx::Error> {
        self.run(sql, false)
    }

    /// Runs statements; makes the SQLite file when it is missing.
    pub fn execute(&self, sql: &str) -> Result<(), sqlx::Error> {
        self.run(sql, true).map(|_| ())
    }

    fn run(&self, sql: &str, create_if_missing: bool) -> Result<Vec<Vec<Cell>>, sqlx::Error> {
        let sql = sqlx::raw_sql(AssertSqlSafe(self.with_tables(sql)));
        // A connection per question: the servers come and go under these tests.
        block_on(async {
            match self {
                Self::Sqlite { file } => {
                    let options =
                        SqliteConnectOptions::new().filename(file).create_if_missing(create_if_missing).busy_timeout(PATIENCE);
                    let mut connection = SqliteConnection::connect_with(&options).await?;
                    let rows = sql.fetch_all(&mut connection).await?.iter().map(sqlite_cells).collect();
                    connection.close().await?;
                    rows
                }
                Self::Postgres { url, .. } => {
                    let mut connection = PgConnection::connect(url).await?;
                    sqlx::raw_sql("SET TIME ZONE 'UTC'; SET datestyle = 'ISO'").execute(&mut connection).await?;
                    let rows = sql.fetch_all(&mut connection).await?.iter().map(postgres_cells).collect();
                    connection.close().await?;
                    rows
                }
            }
        })
    }

    /// `schema.table` as this store names it, quoted.
    pub fn table(&self, name: &str) -> String {
        let (schema, table) = name.split_once('.').expect("a table's name here is schema.table");
        match self {
            Self::Sqlite { .. } => format!("\"{schema}_{table}\""),
            Self::Postgres { .. } => format!("\"{schema}\".\"{table}\""),
        }
    }

    /// `{raw.events}` and `{modelled.…}` in `sql` become the store's table names.
    fn with_tables(&self, sql: &str) -> String {
        let mut parts = sql.split('{');
        let mut out = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            match part.split_once('}') {
                Some((name, rest)) if name.starts_with("raw.") || name.starts_with("modelled.") => {
                    out.push_str(&self.table(name));
                    out.push_str(rest);
                }
                _ => {
                    out.push('{');
                    out.push_str(part);
                }
            }
        }
        out
    }
}

/// The first value of each row, asked on a server of PostgreSQL.
pub fn ask(url: &str, sql: &str) -> Vec<String> {
    let database = Database::Postgres { url: url.to_owned(), admin_url: None };
    let rows = database.query(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    rows.into_iter().filter_map(|row| row.into_iter().next()?).collect()
}

impl Drop for Database {
    fn drop(&mut self) {
        let Self::Postgres { url, admin_url: Some(admin_url) } = self else { return };
        let name = database_of(url);
        let drop = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
        let dropped = block_on(async {
            let mut admin = PgConnection::connect(admin_url).await?;
            sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut admin).await?;
            admin.close().await
        });
        if let Err(error) = dropped {
            eprintln!("database {name} is left behind: {error}"); // A panic here would hide the test's own.
        }
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    a_runtime().block_on(future)
}

pub fn a_runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime needs only file descriptors")
}

/// `postgres://user@host/other?options` with `name` in place of `other`.
fn with_database(url: &str, name: &str) -> String {
    let (address, options) = match url.split_once('?') {
        Some((address, options)) => (address, format!("?{options}")),
        None => (url, String::new()),
    };
    let authority = address.find("://").map_or(0, |scheme| scheme + 3);
    let end = address[authority..].find('/').map_or(address.len(), |slash| authority + slash);
    format!("{}/{name}{options}", &address[..end])
}

fn database_of(url: &str) -> &str {
    let address = url.split_once('?').map_or(url, |(address, _)| address);
    address.rsplit_once('/').map_or("", |(_, name)| name)
}

fn sqlite_cells(row: &SqliteRow) -> Result<Vec<Cell>, sqlx::Error> {
    (0..row.len())
        .map(|index| {
            let value = row.try_get_raw(index)?;
            if value.is_null() {
                return Ok(None);
            }
            let storage_class = value.type_info().name().to_owned();
            Ok(Some(match storage_class.as_str() {
                "INTEGER" => row.try_get_unchecked::<i64, _>(index)?.to_string(),
                "REAL" => row.try_get_unchecked::<f64, _>(index)?.to_string(),
                "BLOB" => hexadecimal(&row.try_get_unchecked::<Vec<u8>, _>(index)?),
                _ => row.try_get_unchecked::<String, _>(index)?,
            }))
        })
        .collect()
}

/// Statements without parameters take the simple protocol, in which every type arrives as text.
fn postgres_cells(row: &PgRow) -> Result<Vec<Cell>, sqlx::Error> {
    (0..row.len())
        .map(|index| {
            let value = row.try_get_raw(index)?;
            if value.is_null() {
                return Ok(None);
            }
            let text = value.as_str().map_err(sqlx::Error::Decode)?;
            Ok(Some(match row.column(index).type_info().name() {
                "BOOL" => (if text == "t" { "1" } else { "0" }).to_owned(),
                "FLOAT4" | "FLOAT8" => text.parse::<f64>().map_or_else(|_| text.to_owned(), |number| number.to_string()),
                "TIMESTAMP" | "TIMESTAMPTZ" => to_the_microsecond(text.strip_suffix("+00").unwrap_or(text)),
                _ => text.to_owned(),
            }))
        })
        .collect()
}

/// PostgreSQL leaves trailing zeros off.
fn to_the_microsecond(time: &str) -> String {
    let (seconds, fraction) = time.split_once('.').unwrap_or((time, ""));
    format!("{seconds}.{fraction:0<6}")
}

fn hexadecimal(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("\\x{digits}")
}
