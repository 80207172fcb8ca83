//! Creates and upgrades the tables: the fixed tables by migrations, the tables of the datasets from their definitions. If a
//! table differs from its definition, new columns are added; any other difference is an error that names it.

mod plan;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, SqlSafeStr as _};

use super::connection::{Arg, Connection, Kind};
use super::error::{Class, StoreError, StoreResult};
use super::lock::{self, Lock};
use super::sql::{Dialect, Schema};
use crate::dataset::Dataset;

pub use plan::first_statements;
use plan::{Plan, missing_columns, plan};

static POSTGRES: LazyLock<Migrator> =
    LazyLock::new(|| without_schemas(own_table(sqlx::migrate!("migrations/postgres"), "dataloader.migrations")));
static SQLITE: LazyLock<Migrator> = LazyLock::new(|| own_table(sqlx::migrate!("migrations/sqlite"), "dataloader_migrations"));

/// The migrations table has its own schema and name: PostgreSQL 15 lets ordinary users create nothing in `public`, and other
/// programs use sqlx's default name.
fn own_table(mut migrator: Migrator, name: &'static str) -> Migrator {
    migrator.dangerous_set_table_name(name);
    // This program holds its own lock.
    migrator.set_locking(false);
    migrator
}

/// Leaves out the statements that make schemas: they need a right that the owner of the schemas may not have, also where nothing
/// is to be made. [`make_schemas`] makes those that are missing. The files and their checksums stay as databases know them.
fn without_schemas(mut migrator: Migrator) -> Migrator {
    for migration in migrator.migrations.to_mut() {
        let sql: Vec<&str> = migration.sql.as_str().lines().filter(|line| !line.starts_with("create schema ")).collect();
        migration.sql = AssertSqlSafe(sql.join("\n")).into_sql_str();
    }
    migrator
}

/// What to do about a missing day index. A batch load creates it by [`index_rows`](super::indexes::index_rows) after the rows are
/// inserted, which takes half as long as updating it row by row. Other commands that write or refresh need it at once. The key
/// index is treated alike where dropped records replace older ones; otherwise only batch loads need it and create it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Indexes {
    Make,
    /// Create it if the table has rows. `migrate` leaves the index of an empty table to the first load.
    MakeOverRows,
    Leave,
}

/// Whether a table has any row.
///
/// # Errors
/// If the database fails.
pub async fn has_rows(connection: &mut Connection, table: &str) -> StoreResult<bool> {
    Ok(connection.fetch_int(format!("select count(*) from (select 1 from {table} limit 1) t"), &[]).await? > 0)
}

/// Creates and upgrades the tables that this program and these datasets need. If nothing is missing, it changes nothing and
/// takes no lock.
///
/// # Errors
/// If a table differs from its definition in more than missing columns, if a newer version of the program made the database, or
/// if the database fails.
pub async fn ensure(connection: &mut Connection, datasets: &[Arc<Dataset>], indexes: Indexes) -> StoreResult<()> {
    if is_migrated(connection).await? {
        let plan = plan(connection, datasets, indexes).await?;
        if plan.statements.is_empty() {
            plan.report();
            return Ok(());
        }
    }
    match connection.dialect() {
        // Concurrent DDL of two sessions fails even with IF NOT EXISTS, so only one session at a time runs it.
        Dialect::Postgres => {
            lock::session(connection, Lock::Schema).await?;
            let done = migrate_and_apply(connection, datasets, indexes).await;
            if done.is_err() {
                // The transaction is rolled back first: unlocking would fail in an aborted transaction and hide the first
                // error.
                drop(connection.rollback().await);
            }
            let released = lock::release(connection, Lock::Schema).await;
            done.and(released).map_err(needs_owner)
        }
        Dialect::Sqlite => migrate_and_apply(connection, datasets, indexes).await,
    }
}

/// Says what to do if this user may not change the tables.
fn needs_owner(error: StoreError) -> StoreError {
    if error.class() != Class::ReadOnly {
        return error;
    }
    error.context("its tables must be made or changed first").hint(
        "run `dataloader migrate` as the owner of the schemas raw, modelled and dataloader; `dataloader doctor` names the statements",
    )
}

/// Makes the schemas that are missing.
async fn make_schemas(connection: &mut PgConnection) -> StoreResult<()> {
    for schema in [Schema::Dataloader, Schema::Raw, Schema::Modelled].map(Schema::name) {
        let is_there: bool =
            sqlx::query_scalar("select to_regnamespace($1) is not null").bind(schema).fetch_one(&mut *connection).await?;
        if !is_there {
            sqlx::raw_sql(AssertSqlSafe(format!("create schema {schema}"))).execute(&mut *connection).await?;
        }
    }
    Ok(())
}

async fn migrate_and_apply(connection: &mut Connection, datasets: &[Arc<Dataset>], indexes: Indexes) -> StoreResult<()> {
    let Connection { kind, watch, .. } = &mut *connection;
    let migrated = async {
        match kind {
            Kind::Postgres(connection) => {
                make_schemas(connection).await?;
                POSTGRES.run_direct(None, connection, false).await.map_err(migration_error)
            }
            Kind::Sqlite(connection) => {
                let mut transaction = connection.begin_with("begin immediate").await?;
                SQLITE.run_direct(None, &mut *transaction, false).await.map_err(migration_error)?;
                transaction.commit().await.map_err(StoreError::from)
            }
        }
    };
    watch.answer(migrated).await?;
    connection.begin().await?;
    let plan = plan(connection, datasets, indexes).await?;
    for statement in &plan.statements {
        connection.run(statement.as_str()).await?;
    }
    connection.commit().await?;
    plan.report();
    for dataset in plan.replaced {
        tracing::warn!(
            "the modelled tables of {dataset} are replaced: its definition has changed; all its days are modelled again"
        );
    }
    Ok(())
}

fn migration_error(error: MigrateError) -> StoreError {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => StoreError::from(error),
        MigrateError::VersionMissing(version) => {
            StoreError::other(format!("the database has migration {version}, which this version of dataloader does not know"))
                .hint("use the newer version of dataloader that made it")
        }
        other => StoreError::other(format!("cannot bring the database's tables up to date: {other}")),
    }
}

/// Whether a table of the program's own is there, and this user may read it. Who may only read the data does not need to.
pub(super) async fn may_read(connection: &mut Connection, table: &str) -> StoreResult<bool> {
    let sql = match connection.dialect() {
        Dialect::Postgres => {
            "select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace \
             where n.nspname = 'dataloader' and c.relname = $1 \
             and has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select')"
        }
        Dialect::Sqlite => "select count(*) from sqlite_schema where name = 'dataloader_' || $1",
    };
    Ok(connection.fetch_int(sql, &[Arg::Text(Some(table))]).await? > 0)
}

/// Fails if a newer version of the program made the tables, because their content may have another meaning. Skips the check if
/// this user may not read the migrations table.
///
/// # Errors
/// If a newer version made the tables, or the database fails.
pub async fn refuse_newer(connection: &mut Connection) -> StoreResult<()> {
    let dialect = connection.dialect();
    if !may_read(connection, "migrations").await? {
        return Ok(());
    }
    let table = dialect.table(Schema::Dataloader, "migrations");
    let newest = connection.fetch_int(format!("select max(version) from {table} where success"), &[]).await?;
    if newest > newest_known(dialect) { Err(migration_error(MigrateError::VersionMissing(newest))) } else { Ok(()) }
}

/// Whether the database has our tables.
///
/// # Errors
/// If the database fails.
pub async fn are_there(connection: &mut Connection) -> StoreResult<bool> {
    let ledger = connection.dialect().bare_table(Schema::Raw, "loads");
    Ok(catalogue(connection, Schema::Raw).await?.contains_key(&ledger))
}

/// What [`ensure`] would do to tables that are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Migration {
    /// This user may not read what tells.
    Unreadable,
    /// Upgrade tables of an earlier version.
    OlderVersion,
    /// Run these statements; none if the tables fit.
    Statements(Vec<String>),
}

/// What [`ensure`] would do. Reads only.
///
/// # Errors
/// As [`ensure`].
pub async fn migration(connection: &mut Connection, datasets: &[Arc<Dataset>]) -> StoreResult<Migration> {
    if connection.dialect() == Dialect::Postgres {
        let readable = "select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace \
                        where n.nspname = 'dataloader' and c.relname in ('migrations', 'datasets') \
                        and has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select')";
        if connection.fetch_int(readable, &[]).await? < 2 {
            return Ok(Migration::Unreadable);
        }
    }
    refuse_newer(connection).await?;
    if !is_migrated(connection).await? {
        return Ok(Migration::OlderVersion);
    }
    let Plan { mut statements, forbidden, .. } = plan(connection, datasets, Indexes::MakeOverRows).await?;
    statements.extend(forbidden);
    Ok(Migration::Statements(statements))
}

/// Rows that a table has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowsThere {
    /// Of the days that were asked for; of a dataset without a day, all.
    pub rows: u64,
    pub of_days: HashMap<String, u64>,
}

/// Counts the rows of these days, or all of a dataset without a day. A table or day column that is not there yet has none.
///
/// # Errors
/// If the database fails.
pub async fn rows_there(connection: &mut Connection, dataset: &Dataset, days: &[&str]) -> StoreResult<RowsThere> {
    let dialect = connection.dialect();
    let raw = catalogue(connection, Schema::Raw).await?;
    let Some(columns) = raw.get(&dialect.bare_table(Schema::Raw, &dataset.name)) else { return Ok(RowsThere::default()) };
    let master = dialect.table(Schema::Raw, &dataset.name);
    let Some(day) = dataset.day_column() else {
        let rows = connection.fetch_int(format!("select count(*) from {master}"), &[]).await?.unsigned_abs();
        return Ok(RowsThere { rows, of_days: HashMap::new() });
    };
    let mut there = RowsThere::default();
    if !columns.iter().any(|(name, _)| *name == day.name) {
        return Ok(there);
    }
    let day = dialect.day(day);
    for days in days.chunks(1_000) {
        let list = days.iter().map(|day| format!("'{day}'")).collect::<Vec<_>>().join(", ");
        let sql = format!("select cast({day} as text), count(*) from {master} where {day} in ({list}) group by 1");
        for row in connection.fetch(sql, &[]).await? {
            let rows = row[1].int().unsigned_abs();
            there.rows += rows;
            there.of_days.insert(row[0].text().unwrap_or_default().to_owned(), rows);
        }
    }
    Ok(there)
}

fn newest_known(dialect: Dialect) -> i64 {
    let known = match dialect {
        Dialect::Postgres => &POSTGRES,
        Dialect::Sqlite => &SQLITE,
    };
    known.iter().map(|migration| migration.version).max().unwrap_or(0)
}

async fn is_migrated(connection: &mut Connection) -> StoreResult<bool> {
    let dialect = connection.dialect();
    let exists = match dialect {
        Dialect::Postgres => "select (to_regclass('dataloader.migrations') is not null)::int::bigint",
        Dialect::Sqlite => "select count(*) from sqlite_schema where name = 'dataloader_migrations'",
    };
    if connection.fetch_int(exists, &[]).await? == 0 {
        return Ok(false);
    }
    let table = dialect.table(Schema::Dataloader, "migrations");
    let newest = connection.fetch_int(format!("select max(version) from {table} where success"), &[]).await?;
    Ok(newest == newest_known(dialect))
}

/// Tables, each with its columns and their types in order.
pub type Catalogue = HashMap<String, Vec<(String, String)>>;

/// The tables of a schema, by their bare names. Reading the catalogue needs no permission on the tables.
///
/// # Errors
/// If the database fails.
pub async fn catalogue(connection: &mut Connection, schema: Schema) -> StoreResult<Catalogue> {
    let name = schema.name();
    let sql = match connection.dialect() {
        Dialect::Postgres => format!(
            "select c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod) \
             from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace \
             where n.nspname = '{name}' and c.relkind in ('r', 'p') and a.attnum > 0 and not a.attisdropped order by c.oid, a.attnum"
        ),
        Dialect::Sqlite => format!(
            "select t.name, c.name, lower(c.type) from sqlite_schema t join pragma_table_info(t.name) c \
             where t.type = 'table' and t.name like '{name}\\_%' escape '\\' order by t.name, c.cid"
        ),
    };
    let mut catalogue = Catalogue::new();
    for row in connection.fetch(sql, &[]).await? {
        let text = |i: usize| row[i].text().unwrap_or_default().to_owned();
        catalogue.entry(text(0)).or_default().push((text(1), text(2)));
    }
    Ok(catalogue)
}

/// Checks that the raw table of a dataset, if it exists, can be brought to the dataset's definition.
///
/// # Errors
/// If it cannot, with the differences; or if the database fails.
pub async fn check_fit(connection: &mut Connection, dataset: &Dataset) -> StoreResult<()> {
    let dialect = connection.dialect();
    let raw = catalogue(connection, Schema::Raw).await?;
    match raw.get(&dialect.bare_table(Schema::Raw, &dataset.name)) {
        Some(columns) => missing_columns(dialect, dataset, &dataset.name, columns).map(drop),
        None => Ok(()),
    }
}
