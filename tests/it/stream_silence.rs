//! A database that stops answering and closes no connection: a network that drops packets, a server process that hangs. Nothing
//! waits without an end, health says so, and all goes on by itself.

use std::time::{Duration, Instant};

use crate::support::{
    Background, Fifo, Invocation, Proxy, Sandbox, Signal, Stopped, Store, events_over_days, many_events, wait_until,
};

/// Deadlines that a test can wait for.
const SHORT: &str = "[stream]\ndatabase_timeout_ms = 1_500\nstall_ms = 1_000\ndrain_timeout_ms = 2_000\n";
/// What a run may take beyond its deadlines on a busy machine.
const SLACK: Duration = Duration::from_secs(20);

/// A sandbox with short deadlines, and the way to its server.
fn sandbox_behind_a_proxy() -> (Sandbox, Proxy) {
    let sandbox = Sandbox::new(Store::Postgres);
    sandbox.write("dataloader.toml", format!("{}\n{SHORT}", include_str!("../../dataloader.toml")));
    let proxy = Proxy::to(&sandbox.database_url());
    (sandbox, proxy)
}

fn run_through<'a>(sandbox: &Sandbox, proxy: &Proxy, args: impl IntoIterator<Item = &'a str>) -> Invocation {
    sandbox.command(args).env("DATABASE_URL", proxy.url())
}

fn start_through(sandbox: &Sandbox, proxy: &Proxy) -> Background {
    let mut pipeline = run_through(sandbox, proxy, ["run"]).spawn();
    pipeline.wait_for_stderr("watching ");
    pipeline
}

#[track_caller]
fn wait_until_healthy(sandbox: &Sandbox) {
    wait_until("it is healthy", || sandbox.run(["health"]).code == Some(0));
}

#[track_caller]
fn wait_until_health_says(sandbox: &Sandbox, words: &str) {
    wait_until(&format!("health says `{words}`"), || {
        let said = sandbox.run(["health"]);
        said.code == Some(1) && said.stdout.contains(words)
    });
}

/// The server processes of the sandbox's connections.
fn backends(sandbox: &Sandbox, which: &str) -> Vec<String> {
    sandbox.lines(&format!(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'dataloader' AND {which}"
    ))
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_network_that_drops_everything_is_waited_for_and_said() {
    let (sandbox, proxy) = sandbox_behind_a_proxy();
    let mut pipeline = start_through(&sandbox, &proxy);
    wait_until_healthy(&sandbox);
    let mut dropped = Vec::new();
    for round in 0..2 {
        let (name, contents) = (format!("{round}.jsonl"), events_over_days(&round.to_string(), 30_000));
        sandbox.drop_in("events", &name, &contents);
        dropped.push((name, contents, 30_000));
        if round == 1 {
            // In the middle of the file.
            wait_until("rows are there", || sandbox.lines("SELECT count(DISTINCT load_id) FROM {raw.batches}") == ["2"]);
        }
        proxy.hold();
        wait_until_health_says(&sandbox, "no answer");
        pipeline.wait_for_stderr("waiting for postgres://");
        assert!(pipeline.is_running());
        proxy.release();
        sandbox.wait_until_finished("events", dropped.len());
        wait_until_healthy(&sandbox);
    }
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
    sandbox.assert_each_loaded_once(&dropped);
    sandbox.assert_settled();
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn idle_connections_whose_server_process_hangs_are_replaced() {
    let (sandbox, proxy) = sandbox_behind_a_proxy();
    let mut pipeline = start_through(&sandbox, &proxy);
    sandbox.drop_in("events", "a.jsonl", events_over_days("a", 10));
    sandbox.wait_until_finished("events", 1);
    wait_until_healthy(&sandbox);
    let stopped = Stopped::servers(backends(&sandbox, "state = 'idle'"));
    sandbox.drop_in("events", "b.jsonl", events_over_days("b", 10));
    wait_until_health_says(&sandbox, "writer");
    // They still hang, and the work goes on.
    sandbox.wait_until_finished("events", 2);
    wait_until_healthy(&sandbox);
    assert!(pipeline.is_running());
    drop(stopped);
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
    sandbox.assert_settled();
}

/// Rows for the user Eve are held up until [`release`].
fn hold_eve(sandbox: &Sandbox) {
    sandbox.run(["migrate"]).ok();
    sandbox.execute(
        "CREATE TABLE hold(); INSERT INTO hold DEFAULT VALUES; \
         CREATE FUNCTION hold_eve() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN WHILE new.username = 'eve' AND EXISTS (SELECT FROM hold) LOOP PERFORM pg_sleep(0.01); END LOOP; RETURN new; END $$; \
         CREATE TRIGGER hold_eve BEFORE INSERT ON raw.events FOR EACH ROW EXECUTE FUNCTION hold_eve()",
    );
}

fn release(sandbox: &Sandbox) {
    sandbox.execute("DELETE FROM hold");
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_server_process_that_hangs_in_a_transaction_does_not_double_or_lose_it() {
    let (sandbox, proxy) = sandbox_behind_a_proxy();
    hold_eve(&sandbox);
    let mut pipeline = start_through(&sandbox, &proxy);
    sandbox.drop_in("events", "a.jsonl", many_events(10, "eve"));
    let inserting = "state = 'active' AND query ILIKE '%insert into raw.\"events\"%'";
    wait_until("the transaction is in its middle", || !backends(&sandbox, inserting).is_empty());
    let stopped = Stopped::servers(backends(&sandbox, inserting));
    release(&sandbox);
    // Its locks keep every other connection from this file's rows: that is said, and tried again.
    wait_until_health_says(&sandbox, "writer");
    pipeline.wait_for_stderr("no answer");
    // Of other files it holds nothing.
    sandbox.drop_in("events", "b.jsonl", events_over_days("b", 10));
    sandbox.wait_until_finished("events", 1);
    drop(stopped);
    sandbox.wait_until_finished("events", 2);
    wait_until_healthy(&sandbox);
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
    assert_eq!(sandbox.count("raw.events"), 20);
    sandbox.assert_settled();
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_signal_ends_a_run_whose_database_does_not_answer_and_the_next_start_goes_on() {
    let (sandbox, proxy) = sandbox_behind_a_proxy();
    let pipeline = start_through(&sandbox, &proxy);
    wait_until_healthy(&sandbox);
    proxy.hold();
    for name in ["a.jsonl", "b.jsonl"] {
        sandbox.drop_in("events", name, events_over_days(name, 10));
    }
    wait_until("the files are claimed", || sandbox.names_in("events").is_empty());
    let started = Instant::now();
    pipeline.signal(Signal::Terminate);
    let outcome = pipeline.wait().ok();
    assert!(started.elapsed() < Duration::from_secs(2) + SLACK, "{:?}", started.elapsed());
    let last = outcome.stderr.lines().last().unwrap_or_default();
    assert!(last.contains("nothing has moved") && last.contains("2 files"), "the last line says what is left:\n{}", outcome.stderr);

    let once = run_through(&sandbox, &proxy, ["run", "--once"]).spawn();
    let outcome = once.wait().code(4);
    assert!(outcome.stderr.contains("no answer"), "{}", outcome.stderr);
    proxy.release();
    run_through(&sandbox, &proxy, ["run", "--once"]).run().ok();
    assert_eq!((sandbox.count("raw.events"), sandbox.finished("events")), (20, 2));
    sandbox.assert_settled();
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_second_signal_ends_at_once_whatever_does_not_answer() {
    let (sandbox, proxy) = sandbox_behind_a_proxy();
    // A drain that would last.
    sandbox.write("dataloader.toml", include_str!("../../dataloader.toml"));
    let mut pipeline = start_through(&sandbox, &proxy);
    proxy.hold();
    sandbox.drop_in("events", "a.jsonl", events_over_days("a", 60_000));
    wait_until("the file is claimed", || sandbox.names_in("events").is_empty());
    pipeline.signal(Signal::Terminate);
    pipeline.wait_for_stderr("a second signal ends at once");
    let started = Instant::now();
    pipeline.signal(Signal::Interrupt);
    pipeline.wait().code(130);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    drop(proxy);
    sandbox.run_once().ok();
    assert_eq!(sandbox.count("raw.events"), 60_000);
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn commands_give_up_when_the_server_no_longer_answers() {
    let (sandbox, proxy) = sandbox_behind_a_proxy();
    sandbox.run(["migrate"]).ok();
    let fifo = Fifo::new(sandbox.file("half.jsonl"));
    let load = run_through(&sandbox, &proxy, ["load", "--dataset", "events", "half.jsonl"]).spawn();
    let mut fifo = fifo.open();
    fifo.write(&many_events(20_000, "ada"));
    wait_until("the COPY runs", || !backends(&sandbox, "query ILIKE 'copy %' AND state = 'active'").is_empty());
    proxy.hold();
    fifo.write(&many_events(100, "ben"));
    drop(fifo);
    let report = run_through(&sandbox, &proxy, ["report"]).spawn();
    let started = Instant::now();
    for command in [load, report] {
        let outcome = command.wait().code(4);
        assert!(outcome.stderr.contains("no answer"), "{}", outcome.stderr);
    }
    assert!(started.elapsed() < Duration::from_secs(15) + SLACK, "{:?}", started.elapsed());
    proxy.release();
    sandbox.run(["migrate"]).ok();
    assert_eq!((sandbox.count("raw.events"), sandbox.count("raw.loads")), (0, 0));
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_statement_that_takes_long_is_not_given_up_while_the_server_answers_others() {
    let (sandbox, proxy) = sandbox_behind_a_proxy();
    hold_eve(&sandbox);
    sandbox.write_events("x.json", many_events(10, "eve"));
    let load = run_through(&sandbox, &proxy, ["load", "--dataset", "events"]).spawn();
    let upserting = "state = 'active' AND query ILIKE '%insert into raw.\"events\"%' AND clock_timestamp() > query_start + '12 s'";
    wait_until("the statement has taken longer than a server may stay silent", || !backends(&sandbox, upserting).is_empty());
    release(&sandbox);
    load.wait().ok();
    assert_eq!(sandbox.count("raw.events"), 10);
}
