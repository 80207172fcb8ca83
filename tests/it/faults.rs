//! Databases that are away, refuse, die, are full, locked or read-only: the right exit code, a message that helps, no password
//! in it, and all or nothing in the tables.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use dataloader::retry::GIVE_UP_AFTER;

use crate::support::{
    Background, Fifo, Invocation, Outcome, PrivatePostgres, Sandbox, Signal, StopMode, Store, event, many_events, on_both_stores,
    wait_until,
};

on_both_stores!(
    a_signal_rolls_back_and_exits_130,
    a_second_load_waits_for_the_first,
    readers_do_not_wait_for_a_load,
    loads_that_begin_together_on_a_new_database_all_succeed,
    a_full_database_says_so,
);

/// Enough that the program is in the middle of its transaction once a pipe has taken it.
const HALF: usize = 20_000;

/// A load that has taken half of its input and waits for the rest.
fn load_halfway(sandbox: &Sandbox) -> (Background, Fifo) {
    let fifo = Fifo::new(sandbox.file("half.jsonl"));
    let load = sandbox.spawn(["load", "--dataset", "events", "half.jsonl"]);
    let mut writer = fifo.open();
    writer.write(&many_events(HALF, "half"));
    (load, writer)
}

fn a_signal_rolls_back_and_exits_130(sandbox: &Sandbox) {
    sandbox.write_events("x.json", event("a", "ada", "2024-05-01 10:00:00"));
    sandbox.run(["load", "--dataset", "events"]).ok();
    for signal in [Signal::Interrupt, Signal::Terminate] {
        let (load, _fifo) = load_halfway(sandbox);
        load.signal(signal);
        let outcome = load.wait().code(130);
        assert_eq!(outcome.stderr, "error: interrupted\n");
        assert_eq!(sandbox.lines("SELECT id FROM {raw.events}"), ["a"]);
        assert_eq!((sandbox.count("raw.loads"), sandbox.count("raw.events_delta")), (1, 1));
        std::fs::remove_file(sandbox.file("half.jsonl")).expect("the pipe is ours");
    }
    sandbox.run(["load", "--dataset", "events"]).ok();
}

fn a_second_load_waits_for_the_first(sandbox: &Sandbox) {
    let (first, fifo) = load_halfway(sandbox);
    sandbox.write("second.json", event("1", "second", "2024-05-01 10:00:00"));
    let second = sandbox.spawn(["load", "--dataset", "events", "second.json", "--format", "json"]);
    drop(fifo);
    first.wait().ok();
    let summary = second.wait().ok().json();
    assert_eq!(summary["datasets"][0]["replaced"], 1, "it saw what the first had committed");
    let users = "SELECT username, count(*) FROM {raw.events} GROUP BY username ORDER BY 2";
    assert_eq!(sandbox.lines(users), ["second|1".to_owned(), format!("half|{}", HALF - 1)]);
    assert_eq!(sandbox.count("raw.events_delta"), 1);
    sandbox.run(["model", "--check"]).ok();
}

fn readers_do_not_wait_for_a_load(sandbox: &Sandbox) {
    sandbox.write_events("x.json", event("a", "ada", "2024-05-01 10:00:00"));
    sandbox.run(["load", "--dataset", "events"]).ok();
    let (load, fifo) = load_halfway(sandbox);
    let report = sandbox.run(["report", "--format", "json"]).ok().json();
    assert_eq!(report["datasets"][0]["tables"][0]["rows"][0]["total_events"], 1);
    sandbox.run(["status"]).ok();
    sandbox.run(["rejects", "list"]).ok();
    drop(fifo);
    load.wait().ok();
}

fn loads_that_begin_together_on_a_new_database_all_succeed(sandbox: &Sandbox) {
    sandbox.write_events("x.json", many_events(500, "ada") + "{}");
    sandbox.write_orgs("x.json", r#"{"organization_key":"a"}"#);
    let loads: Vec<Background> = (0..4).map(|_| sandbox.spawn(["load"])).collect();
    for load in loads {
        load.wait().code(3);
    }
    assert_eq!((sandbox.count("raw.events"), sandbox.count("raw.orgs"), sandbox.count("raw.loads")), (500, 1, 8));
    assert_eq!(sandbox.count("raw.rejects"), 1);
    assert_eq!(sandbox.lines("SELECT total_events FROM {modelled.events_by_date}"), ["500"]);
    sandbox.run(["model", "--check"]).ok();
}

fn a_full_database_says_so(sandbox: &Sandbox) {
    sandbox.write_events("x.json", event("a", "ada", "2024-05-01 10:00:00"));
    match sandbox.store() {
        // What a server says whose disk is full.
        Store::Postgres => {
            sandbox.run(["load", "--dataset", "events"]).ok();
            sandbox.execute(
                "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS \
                 $$ BEGIN RAISE 'could not extend file' USING ERRCODE = 'disk_full'; END $$; \
                 CREATE TRIGGER full_disk BEFORE INSERT ON raw.events EXECUTE FUNCTION full_disk()",
            );
            let outcome = sandbox.run(["load", "--dataset", "events"]).code(1);
            assert!(outcome.stderr.contains("is full") && outcome.stderr.contains("make room"), "{}", outcome.stderr);
            assert_eq!(sandbox.count("raw.events"), 1);
        }
        // A file system of one megabyte, in a mount namespace that goes with its processes.
        Store::Sqlite => {
            sandbox.write("big.jsonl", many_events(20_000, "ada"));
            let load = "\"$0\" load --database sqlite://small/x.db --format json --dataset events";
            let script = format!(
                "mkdir small; mount -t tmpfs -o size=1m tmpfs small || exit 77; \
                 {load}; {load} big.jsonl; code=$?; {load} >after.json || exit; exit $code"
            );
            let args = ["--mount", "--map-root-user", "sh", "-c", &script, env!("CARGO_BIN_EXE_dataloader")];
            let outcome = Invocation::new("unshare", sandbox.path()).args(args).run();
            if outcome.code == Some(77) || outcome.stderr.contains("unshare: ") {
                eprintln!("skipped: no small file system can be mounted here: {}", outcome.stderr);
                return;
            }
            let outcome = outcome.code(1);
            assert!(outcome.stdout.contains("the database is full") && outcome.stdout.contains("make room"), "{}", outcome.stdout);
            let after = std::fs::read_to_string(sandbox.file("after.json")).expect("the last load wrote it");
            assert!(after.contains("\"replaced\":1"), "the row of before is there: {after}");
        }
    }
}

fn postgres_url(change: impl FnOnce(&str, &str, &str) -> String) -> String {
    let url = std::env::var("DATABASE_URL").expect("DATABASE_URL is not set: start the tests with ./run.sh test");
    let (user, rest) = url.trim_start_matches("postgres://").split_once('@').expect("a user in the URL");
    let (address, database) = rest.split_once('/').expect("a database in the URL");
    change(user.split(':').next().unwrap_or_default(), address, database)
}

/// How a load from that database ended, and after how long.
fn load_from(sandbox: &Sandbox, url: &str) -> (Outcome, Duration) {
    sandbox.write_events("x.json", event("a", "ada", "2024-05-01 10:00:00"));
    let started = Instant::now();
    let outcome = sandbox.command(["load", "--dataset", "events", "-v"]).env("DATABASE_URL", url).run();
    assert!(!outcome.stderr.contains("s3cret") && !outcome.stdout.contains("s3cret"), "{}", outcome.stderr);
    (outcome, started.elapsed())
}

#[test]
fn a_database_that_is_away_is_given_up_after_ten_seconds() {
    let sandbox = Sandbox::new(Store::Sqlite);
    // A privileged port: no server of another test can come to sit there.
    let (outcome, elapsed) = load_from(&sandbox, "postgres://u:s3cret@127.0.0.1:1/db");
    let outcome = outcome.code(4);
    assert!(outcome.stderr.contains("the database is not available: Connection refused"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("postgres://u:***@127.0.0.1"), "{}", outcome.stderr);
    assert!(elapsed >= GIVE_UP_AFTER, "{elapsed:?}");
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn refused_credentials_and_unknown_databases_exit_4_at_once() {
    let sandbox = Sandbox::new(Store::Postgres);
    let wrong_password = postgres_url(|user, address, database| format!("postgres://{user}:s3cret@{address}/{database}"));
    let (outcome, elapsed) = load_from(&sandbox, &wrong_password);
    assert!(outcome.code(4).stderr.contains("password authentication failed"));
    assert!(elapsed < GIVE_UP_AFTER, "{elapsed:?}");
    let (outcome, elapsed) = load_from(&sandbox, &(sandbox.database_url() + "_not"));
    assert!(outcome.code(4).stderr.contains("does not exist"));
    assert!(elapsed < GIVE_UP_AFTER, "{elapsed:?}");
}

#[test]
fn a_sqlite_file_that_cannot_be_made_exits_4_at_once() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let (outcome, elapsed) = load_from(&sandbox, "sqlite://no/such/directory/x.db");
    assert!(outcome.code(4).stderr.contains("unable to open database file"));
    assert!(elapsed < GIVE_UP_AFTER, "{elapsed:?}");
    sandbox.write("text.db", "This is no database, and long enough to see that it is none. ".repeat(20));
    let (outcome, _) = load_from(&sandbox, "sqlite://text.db");
    assert!(outcome.code(1).stderr.contains("file is not a database"));
}

#[test]
fn a_read_only_sqlite_file_says_so_and_stays_readable() {
    let sandbox = Sandbox::new(Store::Sqlite);
    sandbox.write_events("x.json", event("a", "ada", "2024-05-01 10:00:00"));
    sandbox.run(["load", "--dataset", "events"]).ok();
    std::fs::set_permissions(sandbox.file("dataloader.db"), PermissionsExt::from_mode(0o444)).expect("the file is ours");
    // SQLite keeps files of its own beside it, also for reading.
    std::fs::set_permissions(sandbox.path(), PermissionsExt::from_mode(0o777)).expect("the directory is ours");
    let run = |args: &str| sandbox.unprivileged(args).run();
    let outcome = run("load --dataset events").code(1);
    assert!(outcome.stderr.contains("the database cannot be written: "), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("permissions of the database file"), "{}", outcome.stderr);
    let report = run("report").ok();
    assert!(report.stdout.contains("2024-05-01"), "{}", report.stdout);
}

#[test]
fn a_locked_sqlite_database_is_given_up_after_ten_seconds_but_not_by_a_load() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let (load, fifo) = load_halfway(&sandbox);
    let outcome = sandbox.run(["rejects", "replay"]).code(4);
    assert!(outcome.stderr.contains("database is locked"), "{}", outcome.stderr);
    let second = sandbox.spawn(["load", "--dataset", "events", "-"]);
    drop(fifo);
    load.wait().ok();
    second.wait().ok();
    assert_eq!(sandbox.count("raw.events"), HALF as u64);
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_server_that_dies_during_a_load_leaves_the_state_before() {
    let server = PrivatePostgres::start();
    let sandbox = Sandbox::on(&server);
    sandbox.write_events("x.json", event("a", "ada", "2024-05-01 10:00:00"));
    sandbox.run(["load", "--dataset", "events"]).ok();
    for mode in [StopMode::Immediate, StopMode::Fast] {
        let (load, fifo) = load_halfway(&sandbox);
        wait_until("the COPY runs", || {
            let copies =
                "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND query ILIKE 'copy %' AND state = 'active'";
            !sandbox.lines(copies).is_empty()
        });
        server.stop(mode);
        drop(fifo);
        let outcome = load.wait().code(4);
        assert!(outcome.stderr.contains("the database is not available"), "{}", outcome.stderr);
        assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
        server.restart();
        assert_eq!(sandbox.lines("SELECT id FROM {raw.events}"), ["a"]);
        assert_eq!(sandbox.count("raw.loads"), 1);
        sandbox.run(["model", "--check"]).ok();
        std::fs::remove_file(sandbox.file("half.jsonl")).expect("the pipe is ours");
    }
    // A server that comes back in time is waited for.
    server.stop(StopMode::Fast);
    let mut load = sandbox.spawn(["load", "--dataset", "events", "-v"]);
    load.wait_for_stderr("trying again");
    server.restart();
    load.wait().ok();
    sandbox.run(["load", "--dataset", "events"]).ok();
}
