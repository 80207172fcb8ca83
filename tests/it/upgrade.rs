//! Databases of earlier versions are upgraded in place, with all that is in them.

use sqlx::migrate::Migrator;

use crate::support::{Sandbox, Store, many_events, on_both_stores};

on_both_stores!(
    the_ledger_of_version_0_1_0_is_upgraded_in_place,
    the_ledger_says_how_long_a_load_took_and_what_was_rejected_first,
    the_ledger_refuses_a_status_that_there_is_not,
);

static POSTGRES: Migrator = sqlx::migrate!("migrations/postgres");
static SQLITE: Migrator = sqlx::migrate!("migrations/sqlite");

/// Makes the fixed tables as they were after the migration `last`.
fn make_tables_until(sandbox: &Sandbox, last: i64) {
    let (migrator, table, blob) = match sandbox.store() {
        Store::Sqlite => (&SQLITE, "dataloader_migrations", ("x'", "'")),
        Store::Postgres => (&POSTGRES, "dataloader.migrations", ("'\\x", "'::bytea")),
    };
    let bytes = if sandbox.is_sqlite() { "blob" } else { "bytea" };
    if !sandbox.is_sqlite() {
        sandbox.execute("create schema dataloader");
    }
    sandbox.execute(&format!(
        "create table {table} (version bigint primary key, description text not null, installed_on timestamp not null default \
         current_timestamp, success boolean not null, checksum {bytes} not null, execution_time bigint not null)"
    ));
    for migration in migrator.iter().filter(|migration| migration.version <= last) {
        sandbox.execute(migration.sql.as_str());
        let checksum: String = migration.checksum.iter().map(|byte| format!("{byte:02x}")).collect();
        sandbox.execute(&format!(
            "insert into {table} (version, description, success, checksum, execution_time) values ({}, '{}', true, {}{checksum}{}, 0)",
            migration.version, migration.description, blob.0, blob.1
        ));
    }
}

fn the_ledger_of_version_0_1_0_is_upgraded_in_place(sandbox: &Sandbox) {
    make_tables_until(sandbox, 2);
    let key = |last: u8| format!("0190f3f4-0000-7000-8000-0000000000{last:02x}");
    for (id, status) in [(1, "loaded"), (2, "failed"), (3, "open"), (4, "loading"), (5, "loaded")] {
        sandbox.execute(&format!(
            "insert into {} (load_key, dataset, source, bytes, status, records_read) values ('{}', 'events', '/old/{id}.json', \
             {id}0, '{status}', 0)",
            sandbox.table("raw.loads"),
            key(id)
        ));
    }
    sandbox.execute(&format!("delete from {} where id = 5", sandbox.table("raw.loads")));
    // A view that a user has made of it.
    let mine = if sandbox.is_sqlite() { "mine" } else { "public.mine" };
    sandbox.execute(&format!("create view {mine} as select id, source from {}", sandbox.table("raw.loads")));
    let columns = "id, load_key, dataset, source, bytes, status, started_at";
    let before = sandbox.lines(&format!("select {columns} from {{raw.loads}} order by id"));

    sandbox.write_events("a.jsonl", many_events(2, "ada"));
    let dry_run = sandbox.run(["load", "--new", "--dry-run", "--dataset", "events", "--format", "json"]).ok().json();
    assert_eq!(dry_run["datasets"][0]["loaded"], 2, "what is there is not known before the upgrade");
    sandbox.run(["migrate"]).ok();
    assert_eq!(sandbox.lines(&format!("select {columns} from {{raw.loads}} order by id")), before);
    let unknown =
        "select count(*) from {raw.loads} where sha256 is null and host is null and repeats is null and rows_removed is null";
    assert_eq!(sandbox.lines(unknown), ["4"], "what was loaded before has none of it");
    sandbox.run(["load", "--dataset", "events"]).ok();
    assert_eq!(sandbox.lines("select id, rows_removed from {raw.loads} where id > 4"), ["6|0"], "a number is never used again");
    assert_eq!(sandbox.lines(&format!("select id, source from {mine} where id = 4")), ["4|/old/4.json"]);
    let indexes = match sandbox.store() {
        Store::Sqlite => "select name from sqlite_schema where type = 'index' and name like 'loads_by_%' order by name",
        Store::Postgres => "select indexname from pg_indexes where indexname like 'loads_by_%' order by indexname",
    };
    assert_eq!(sandbox.lines(indexes), ["loads_by_content", "loads_by_source"]);
}

fn the_ledger_says_how_long_a_load_took_and_what_was_rejected_first(sandbox: &Sandbox) {
    sandbox.write_events("a.jsonl", many_events(2, "ada") + "{}\n[]\n");
    sandbox.run(["load", "--dataset", "events"]).code(3);
    let columns = "id, status, rows_loaded, rows_removed, first_reject_ordinal, first_reject_reason, first_reject_detail <> ''";
    let sql = format!("select {columns} from {{raw.load_history}}");
    assert_eq!(sandbox.lines(&sql), ["1|loaded|2|0|3|missing_required|1"]);
    let open = format!(
        "insert into {} (load_key, dataset, source, status, records_read, started_at, finished_at) values \
         ('0190f3f4-0000-7000-8000-000000000001', 'events', 'x', 'loaded', 10, '2024-05-01 10:00:00.000000', \
         '2024-05-01 10:00:02.500000')",
        sandbox.table("raw.loads")
    );
    sandbox.execute(&open);
    let sql = "select seconds, records_per_second, first_reject_ordinal from {raw.load_history} where source = 'x'";
    assert_eq!(sandbox.lines(sql), ["2.5|4|NULL"]);
}

fn the_ledger_refuses_a_status_that_there_is_not(sandbox: &Sandbox) {
    sandbox.run(["migrate"]).ok();
    let insert = |n: usize, status: &str| {
        let table = sandbox.table("raw.loads");
        let key = format!("0190f3f4-0000-7000-8000-{n:012}");
        sandbox.try_query(&format!(
            "insert into {table} (load_key, dataset, source, status) values ('{key}', 'events', 'x', '{status}')"
        ))
    };
    for (n, status) in ["loading", "loaded", "failed", "unloaded", "repeated", "open"].into_iter().enumerate() {
        insert(n, status).unwrap_or_else(|error| panic!("{status}: {error}"));
    }
    assert!(insert(10, "done").is_err());
}
