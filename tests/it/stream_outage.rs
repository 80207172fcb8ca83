//! The database goes away, refuses, is locked, and comes back: the pipeline waits, within its memory, and loses and doubles
//! nothing.

use std::time::{Duration, Instant};

use dataloader::retry::GIVE_UP_AFTER;

use crate::support::{
    Background, Choices, Invocation, PrivatePostgres, Sandbox, Signal, StopMode, Store, events_over_days, many_events, wait_until,
};

/// What a stream may hold in memory, whatever waits. The promise is 100 MB for the program as it is released; built for tests it
/// has larger code and no smaller data.
const MOST_MEMORY_KB: u64 = 100_000;

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_server_that_restarts_under_load_loses_and_doubles_nothing() {
    let server = PrivatePostgres::start();
    let sandbox = Sandbox::on(&server);
    let mut choices = Choices::seeded(7);
    let mut dropped = Vec::new();
    let mut pipeline = sandbox.start_pipeline();
    for mode in [StopMode::Fast, StopMode::Immediate, StopMode::Immediate, StopMode::Fast] {
        for records in [15_000, 10] {
            let name = format!("{}.jsonl", dropped.len());
            let contents = events_over_days(&dropped.len().to_string(), records);
            sandbox.drop_in("events", &name, &contents);
            dropped.push((name, contents, records));
        }
        std::thread::sleep(Duration::from_millis(50 + choices.below(300)));
        server.stop(mode);
        pipeline_waits(&pipeline);
        server.restart();
    }
    sandbox.wait_until_finished("events", dropped.len());
    pipeline.wait_for_stderr("is back");
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
    sandbox.assert_each_loaded_once(&dropped);
    sandbox.assert_settled();
}

/// It says so once for each outage; that an outage of an idle connection is not noticed is fine.
fn pipeline_waits(pipeline: &Background) {
    let id = pipeline.id();
    assert!(std::path::Path::new(&format!("/proc/{id}")).exists(), "it ended:\n{}", pipeline.stderr());
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_server_that_is_away_at_the_start_is_waited_for_or_given_up() {
    let server = PrivatePostgres::start();
    let sandbox = Sandbox::on(&server);
    sandbox.drop_in("events", "a.jsonl", many_events(100, "ada"));
    server.stop(StopMode::Fast);

    // `run` waits, says so, and can be ended meanwhile; --once gives up after ten seconds.
    let started = Instant::now();
    let once = sandbox.pipeline(["--once", "--format", "json"]).spawn();
    let mut interrupted = sandbox.pipeline([]).spawn();
    interrupted.wait_for_stderr("waiting for postgres://");
    assert!(!interrupted.stderr().contains(password(&sandbox)), "no password in the log");
    assert!(sandbox.run(["health"]).code(1).stdout.contains("not connected to the database"));
    interrupted.signal(Signal::Terminate);
    interrupted.wait().ok();
    let mut waiting = sandbox.pipeline([]).spawn();
    waiting.wait_for_stderr("waiting for postgres://");
    let error = once.wait().code(4).json();
    let took = started.elapsed();
    assert!(took >= GIVE_UP_AFTER, "gave up after {took:?}");
    let message = error["error"]["message"].as_str().unwrap_or_default().to_owned();
    assert!(message.contains("not available") && !message.contains(password(&sandbox)), "{message}");
    assert_eq!(sandbox.names_in("events"), [b"a.jsonl"], "nothing is claimed without a database");

    server.restart();
    sandbox.wait_until_finished("events", 1);
    waiting.signal(Signal::Terminate);
    waiting.wait().ok();
    assert_eq!(sandbox.count("raw.events"), 100);
    sandbox.assert_settled();
}

fn password(sandbox: &Sandbox) -> &'static str {
    let url = sandbox.database_url();
    let password = url.split('@').next().and_then(|user| user.rsplit(':').next()).unwrap_or_default();
    assert!(password.len() > 8, "the private servers have passwords");
    Box::leak(password.to_owned().into_boxed_str())
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn refused_credentials_and_unknown_databases_end_the_run_at_once() {
    let sandbox = Sandbox::new(Store::Postgres);
    let url = sandbox.database_url();
    let (address, _) = url.rsplit_once('/').expect("a database in the URL");
    let unknown = format!("{address}/no_such_database");
    let wrong_password = match url.split_once("://").and_then(|(_, rest)| rest.split_once('@')) {
        Some((user, _)) => url.replacen(user, "no_such_user:secret-word", 1),
        None => unknown.clone(),
    };
    for (url, once) in [(&unknown, false), (&unknown, true), (&wrong_password, false), (&wrong_password, true)] {
        let started = Instant::now();
        let flags: &[&str] = if once { &["--once"] } else { &[] };
        let outcome = sandbox.pipeline(flags.iter().copied()).env("DATABASE_URL", url).run().code(4);
        assert!(started.elapsed() < GIVE_UP_AFTER, "it is no use to wait");
        assert!(outcome.stderr.contains("error: ") && !outcome.stderr.contains("secret-word"), "{}", outcome.stderr);
    }
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_run_that_was_connected_waits_whatever_the_server_says() {
    let server = PrivatePostgres::start();
    let sandbox = Sandbox::on(&server);
    let mut pipeline = sandbox.start_pipeline();
    sandbox.drop_in("events", "a.jsonl", many_events(10, "ada"));
    sandbox.wait_until_finished("events", 1);
    wait_until("it is healthy", || sandbox.run(["health"]).code == Some(0));

    // Away with something to load: a signal cannot drain it, a second one ends the run at once, and nothing is lost.
    server.stop(StopMode::Immediate);
    sandbox.drop_in("events", "b.jsonl", many_events(20, "ben"));
    pipeline.wait_for_stderr("waiting for postgres://");
    wait_until("it is unhealthy", || sandbox.run(["health"]).code == Some(1));
    pipeline.signal(Signal::Terminate);
    pipeline.wait_for_stderr("a second signal ends at once");
    assert!(pipeline.is_running(), "what is in flight is not given up");
    let ended = Instant::now();
    pipeline.signal(Signal::Interrupt);
    pipeline.wait().code(130);
    assert!(ended.elapsed() < GIVE_UP_AFTER, "{:?}", ended.elapsed());
    assert!(sandbox.run(["health"]).code(1).stdout.contains("no `dataloader run`"));

    server.restart();
    sandbox.run_once().ok();
    assert_eq!(sandbox.count("raw.events"), 30);
    sandbox.assert_settled();
}

/// Waits until the pipeline reads no more although there is more to read.
fn wait_until_it_holds_back(pipeline: &mut Background, size: u64) {
    let mut before = 0;
    let mut since = Instant::now();
    wait_until("the pipeline holds back", || {
        assert!(pipeline.is_running(), "it ended:\n{}", pipeline.stderr());
        let read = Sandbox::bytes_read(pipeline).unwrap_or_default();
        // What other files give, the program's own among them, is little.
        if read > before + 16_384 {
            (before, since) = (read, Instant::now());
        }
        read > 1 << 20 && since.elapsed() > Duration::from_millis(1_500)
    });
    assert!(before < size, "all of the file was read although nothing could be written");
}

fn assert_memory_is_bounded(sandbox: &Sandbox, stop: impl FnOnce(), start: impl FnOnce()) {
    let size = {
        let many = sandbox.run(["generate", "--events", "250000"]).ok().stdout;
        sandbox.drop_in("events", "large.json", &many);
        many.len() as u64
    };
    let mut pipeline = sandbox.pipeline([]).spawn();
    wait_until("the first rows are there", || sandbox.try_query("SELECT 1 FROM {raw.batches}").is_ok_and(|rows| rows.len() > 2));
    stop();
    wait_until_it_holds_back(&mut pipeline, size);
    let peak = Sandbox::peak_memory(&pipeline).expect("it runs");
    println!("{peak} kB at most");
    assert!(peak < MOST_MEMORY_KB, "{peak} kB");
    pipeline.signal(Signal::Kill);
    pipeline.wait();
    start();
    sandbox.assert_conserved();
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_stopped_server_does_not_grow_the_memory() {
    let server = PrivatePostgres::start();
    let sandbox = Sandbox::on(&server);
    assert_memory_is_bounded(&sandbox, || server.stop(StopMode::Fast), || server.restart());
}

#[test]
fn a_locked_file_does_not_grow_the_memory() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let lock = std::cell::RefCell::new(None);
    assert_memory_is_bounded(&sandbox, || *lock.borrow_mut() = Some(Lock::take(&sandbox)), || drop(lock.take()));
}

/// SQLite's write lock, held by another process.
struct Lock(#[expect(dead_code, reason = "dropping it kills the holder")] Background);

impl Lock {
    fn take(sandbox: &Sandbox) -> Self {
        let this_program = std::env::current_exe().expect("the tests are a program");
        let holder = Invocation::new(this_program.to_str().expect("a plain path"), sandbox.path())
            .args(["stream_outage::holder_of_a_lock", "--exact", "--nocapture"])
            .env("DATALOADER_TEST_LOCK", "dataloader.db")
            .spawn();
        wait_until("the lock is held", || holder.stdout().contains("the lock is held"));
        Self(holder)
    }
}

/// Not a test: what [`Lock::take`] runs in a process of its own, until it is killed.
#[test]
fn holder_of_a_lock() {
    use sqlx::{Connection, SqliteConnection};
    let Ok(file) = std::env::var("DATALOADER_TEST_LOCK") else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime needs only descriptors");
    runtime.block_on(async {
        let mut connection = SqliteConnection::connect(&format!("sqlite://{file}")).await.expect("the file is there");
        // Not by SQLite's busy handler: it sleeps for longer and longer, and a busy writer leaves gaps of microseconds only.
        sqlx::raw_sql("PRAGMA busy_timeout = 0").execute(&mut connection).await.expect("a setting");
        while sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut connection).await.is_err() {}
        println!("the lock is held");
        std::future::pending::<()>().await;
    });
}

#[test]
fn a_locked_file_is_waited_for() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let mut pipeline = sandbox.start_pipeline();
    sandbox.drop_in("events", "a.jsonl", events_over_days("a", 10));
    sandbox.wait_until_finished("events", 1);
    let lock = Lock::take(&sandbox);
    sandbox.drop_in("events", "b.jsonl", events_over_days("b", 10));
    wait_until("the file is claimed", || sandbox.names_in("events").is_empty());
    // Longer than a statement waits: the pipeline says what it waits for.
    pipeline.wait_for_stderr("waiting for sqlite://");
    assert_eq!(sandbox.count("raw.events"), 10);
    drop(lock);
    sandbox.wait_until_finished("events", 2);
    // Perhaps a moment later: it may be the refresh of the first file's days that waited, and not the second file.
    pipeline.wait_for_stderr("is back");
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
    assert_eq!(sandbox.count("raw.events"), 20);
    sandbox.assert_settled();
}
