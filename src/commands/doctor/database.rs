//! The database: reachable, recent enough, this user's rights, its tables against the definitions, its clock.

use std::path::Path;
use std::time::{Duration, SystemTime};

use indicatif::HumanBytes;

use super::inbox::free_bytes;
use super::{Check, quoted};
use crate::config::{Config, DatabaseUrl};
use crate::counted::counted;
use crate::inbox::waiting_bytes;
use crate::retry::GIVE_UP_AFTER;
use crate::store::schema::{self, Migration};
use crate::store::sql::quote;
use crate::store::{Connection, Database, Dialect, Schema, StoreResult, model};

const OLDEST_POSTGRES: i64 = 140_000;
/// What this user may do.
const RIGHTS: &str = "database rights";
/// Clocks that differ by more show times in the ledger that nobody understands.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(5);
/// More statements than this are counted, not listed.
const LISTED_STATEMENTS: usize = 5;

pub(super) async fn examine(config: &Config) -> Vec<Check> {
    let mut checks = Vec::new();
    if let DatabaseUrl::Sqlite(file) = &config.database {
        let found = of_file(config, file);
        let goes_on = file.exists();
        checks.extend(found);
        if !goes_on {
            return checks;
        }
    }
    let database = match Database::new(&config.database, GIVE_UP_AFTER) {
        Ok(database) => database,
        Err(error) => return vec![Check::failed("database", &error)],
    };
    let mut connection = match database.connect_to_read_within(GIVE_UP_AFTER).await {
        Ok(connection) => connection,
        Err(error) => {
            let error = database.explain(error);
            let mend = error.hint_text().unwrap_or("start it, or name the right one with --database or DATABASE_URL").to_owned();
            checks.push(Check::fail("database", error.message(), mend));
            return checks;
        }
    };
    checks.extend(of_server(&mut connection, &database, config).await);
    connection.close().await;
    checks
}

/// What can be said of a database file before it is opened.
fn of_file(config: &Config, file: &Path) -> Vec<Check> {
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !dir.is_dir() {
        let why = format!("there is no directory {} for the file", dir.display());
        return vec![Check::fail("database", why, format!("mkdir -p {}", quoted(dir)))];
    }
    let target = if file.exists() { file } else { dir };
    let is_writable = |path: &Path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok();
    let mut checks = Vec::new();
    if !is_writable(target) || !is_writable(dir) {
        let unwritable = if is_writable(target) { dir } else { target };
        let why = format!("{} may not be written by this user", unwritable.display());
        let mend = format!("chown {} {}", rustix::process::geteuid().as_raw(), quoted(unwritable));
        checks.push(Check::fail(RIGHTS, why, mend));
    } else if !file.exists() {
        let why = format!("{} is not there yet; the first load makes it", file.display());
        checks.push(Check::new(super::Level::Ok, "database", why, Some("dataloader migrate".to_owned())));
    }
    let waiting = waiting_bytes(&config.inbox, &config.datasets);
    checks.extend(free_bytes(dir).map(|free| room(dir, free, waiting)));
    checks
}

/// Rows take about as much as their records; with the write-ahead log, twice that for a while.
fn room(dir: &Path, free: u64, waiting: u64) -> Check {
    let needed = (2 * waiting).max(16 << 20);
    let why = format!("{} free in {}, {} wait in the inbox", HumanBytes(free), dir.display(), HumanBytes(waiting));
    if free < needed {
        return Check::fail("database space", why, format!("df -h {}, then make room", quoted(dir)));
    }
    Check::ok("database space", why)
}

async fn of_server(connection: &mut Connection, database: &Database, config: &Config) -> Vec<Check> {
    let mut checks = Vec::new();
    let failed = |check: &str, error| Check::failed(check, &database.explain(error));
    match version(connection).await {
        Ok((version, is_recent)) if is_recent => checks.push(Check::ok("database", format!("{database} answers: {version}"))),
        Ok((version, _)) => {
            checks.push(Check::fail(
                "database",
                format!("{database} is {version}"),
                "upgrade the server to PostgreSQL 14 or later",
            ));
        }
        Err(error) => return vec![failed("database", error)],
    }
    let are_there = match schema::are_there(connection).await {
        Ok(are_there) => are_there,
        Err(error) => {
            checks.push(failed("database tables", error));
            return checks;
        }
    };
    checks.extend(rights(connection, are_there).await.unwrap_or_else(|error| Some(failed(RIGHTS, error))));
    if are_there {
        checks.push(tables(connection, database, config).await);
        for dataset in config.datasets.iter().filter(|dataset| dataset.day.is_some()) {
            match model::pending(connection, dataset).await {
                Ok(pending) => checks.push(days(&dataset.name, &pending.days)),
                Err(error) => checks.push(failed(&format!("model of {}", dataset.name), error)),
            }
        }
    } else {
        let why = format!("{database} has no tables of dataloader yet; the first load makes them");
        checks.push(Check::warn("database tables", why, "dataloader migrate"));
    }
    match clock_difference(connection).await {
        Ok(Some(difference)) => checks.push(clock(difference)),
        Ok(None) => {}
        Err(error) => checks.push(failed("clock", error)),
    }
    checks
}

/// The version in words, and whether it is recent enough.
async fn version(connection: &mut Connection) -> StoreResult<(String, bool)> {
    match connection.dialect() {
        Dialect::Sqlite => {
            let rows = connection.fetch("select sqlite_version()", &[]).await?;
            Ok((format!("SQLite {}", rows[0][0].text().unwrap_or_default()), true))
        }
        Dialect::Postgres => {
            let sql = "select current_setting('server_version'), current_setting('server_version_num')::bigint";
            let rows = connection.fetch(sql, &[]).await?;
            Ok((format!("PostgreSQL {}", rows[0][0].text().unwrap_or_default()), rows[0][1].int() >= OLDEST_POSTGRES))
        }
    }
}

/// What this user may do. A SQLite file is checked before it is opened.
async fn rights(connection: &mut Connection, are_there: bool) -> StoreResult<Option<Check>> {
    if connection.dialect() == Dialect::Sqlite {
        return Ok(None);
    }
    let user = "select current_user::text, current_database()::text, pg_is_in_recovery()::int::bigint, \
                (has_database_privilege(current_database(), 'create') or not exists (\
                     select 1 from unnest(array['raw', 'modelled', 'dataloader']) s \
                     where not coalesce(has_schema_privilege(to_regnamespace(s), 'create'), false)))::int::bigint, \
                has_database_privilege(current_database(), 'temporary')::int::bigint";
    let rows = connection.fetch(user, &[]).await?;
    let [user, name] = [0, 1].map(|i| rows[0][i].text().unwrap_or_default().to_owned());
    if rows[0][2].int() != 0 {
        let why = "the server is a standby, which accepts no writes";
        return Ok(Some(Check::fail(RIGHTS, why, "name the primary in DATABASE_URL")));
    }
    if rows[0][4].int() == 0 {
        let why = format!("{user} may not make temporary tables in {name}");
        return Ok(Some(Check::fail(RIGHTS, why, format!("GRANT TEMPORARY ON DATABASE {} TO {}", quote(&name), quote(&user)))));
    }
    if !are_there {
        return Ok(Some(if rows[0][3].int() != 0 {
            Check::ok(RIGHTS, format!("{user} may create the tables"))
        } else {
            let why = format!("{user} may not create schemas in {name}");
            Check::fail(RIGHTS, why, format!("GRANT CREATE ON DATABASE {} TO {}", quote(&name), quote(&user)))
        }));
    }
    let forbidden = "select n.nspname || '.' || c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace \
                     where n.nspname in ('raw', 'modelled', 'dataloader') and c.relkind in ('r', 'p') \
                     and not (has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select') \
                     and has_table_privilege(c.oid, 'insert') and has_table_privilege(c.oid, 'update') \
                     and has_table_privilege(c.oid, 'delete')) order by 1";
    let forbidden = connection.fetch(forbidden, &[]).await?;
    Ok(Some(match forbidden.first() {
        None => Check::ok(RIGHTS, format!("{user} may read and write the tables")),
        Some(first) => {
            let (first, count) = (first[0].text().unwrap_or_default(), forbidden.len());
            let why = format!("{user} may not write {first}, one of {count} such tables");
            Check::fail(RIGHTS, why, grants(&user))
        }
    }))
}

/// The statements that let a user write tables that another role owns.
fn grants(user: &str) -> String {
    const SCHEMAS: &str = "raw, modelled, dataloader";
    let user = quote(user);
    [
        format!("GRANT USAGE ON SCHEMA {SCHEMAS} TO {user}"),
        format!("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {SCHEMAS} TO {user}"),
        format!("GRANT USAGE ON ALL SEQUENCES IN SCHEMA {SCHEMAS} TO {user}"),
    ]
    .join("; ")
}

/// The tables against the definitions.
async fn tables(connection: &mut Connection, database: &Database, config: &Config) -> Check {
    let check = "database tables";
    match schema::migration(connection, &config.datasets).await {
        Err(error) => Check::failed(check, &database.explain(error)),
        Ok(Migration::Unreadable) => {
            let why = "this user may not read the schema dataloader, so the tables are not compared with their definitions";
            let user = "select current_user::text";
            let user = connection.fetch(user, &[]).await.ok().and_then(|rows| rows[0][0].text().map(quote)).unwrap_or_default();
            let schema = Schema::Dataloader.name();
            let mend = format!("GRANT USAGE ON SCHEMA {schema} TO {user}; GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {user}");
            Check::warn(check, why, mend)
        }
        Ok(Migration::OlderVersion) => {
            Check::warn(check, "an earlier version of dataloader made them; the next command that writes upgrades them", MIGRATE)
        }
        Ok(Migration::Statements(statements)) if statements.is_empty() => Check::ok(check, "they fit the definitions"),
        Ok(Migration::Statements(statements)) => {
            let mut listed = statements.iter().take(LISTED_STATEMENTS).cloned().collect::<Vec<_>>().join("; ");
            if statements.len() > LISTED_STATEMENTS {
                listed += &format!("; and {} more", statements.len() - LISTED_STATEMENTS);
            }
            Check::warn(check, format!("the next command that writes would run: {listed}"), MIGRATE)
        }
    }
}

const MIGRATE: &str = "dataloader migrate";

fn days(dataset: &str, days: &[String]) -> Check {
    let check = format!("model of {dataset}");
    match days.first() {
        None => Check::ok(check, "no day waits to be modelled"),
        Some(first) => {
            let waiting = counted(days.len() as u64, "day");
            let why = format!("waiting to be modelled: {waiting}, the first is {first}; a running pipeline does it");
            Check::warn(check, why, "dataloader model")
        }
    }
}

/// How far the server's clock is ahead of this one's, in seconds. SQLite has none.
async fn clock_difference(connection: &mut Connection) -> StoreResult<Option<f64>> {
    if connection.dialect() == Dialect::Sqlite {
        return Ok(None);
    }
    let before = SystemTime::now();
    let sql = "select (extract(epoch from clock_timestamp()) * 1000000)::bigint";
    let theirs = connection.fetch_int(sql, &[]).await?;
    let now = before + before.elapsed().unwrap_or_default() / 2;
    let ours = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(Some(Duration::from_micros(theirs.unsigned_abs()).as_secs_f64() - ours.as_secs_f64()))
}

fn clock(difference: f64) -> Check {
    let why = format!("the server's clock is {difference:+.1} s from this machine's");
    if difference.abs() > CLOCK_TOLERANCE.as_secs_f64() {
        return Check::warn("clock", why, "timedatectl set-ntp true, on both machines");
    }
    Check::ok("clock", why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::Level;

    #[test]
    fn clocks_that_differ_are_a_warning_either_way() {
        assert_eq!([0.2, 60.0, -60.0].map(|seconds| clock(seconds).status), [Level::Ok, Level::Warn, Level::Warn]);
    }

    #[test]
    fn what_waits_needs_twice_its_size_in_the_database() {
        let status = |free, waiting| room(Path::new("."), free, waiting).status;
        assert_eq!([status(1 << 30, 1 << 20), status(1 << 30, 1 << 30), status(1, 0)], [Level::Ok, Level::Fail, Level::Fail]);
    }
}
