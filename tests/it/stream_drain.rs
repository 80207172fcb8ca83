//! How a run ends: by a signal, by two, by a panic; and what `dataloader health` says of it.

use std::fs;

use dataloader::config::{Config, Settings};
use dataloader::record::chunk::{Chunk, ChunkBody};
use dataloader::record::parse::{Parsed, Parser};
use dataloader::store::Rows;
use dataloader::stream::{self, RunOptions, Stats, parse_chunk};

use crate::support::{
    Background, Invocation, Outcome, Sandbox, Signal, Store, WriteLock, events_over_days, many_events, on_both_stores,
    on_every_pipeline, only_file, wait_until,
};

on_every_pipeline!(an_idle_run_ends_by_either_signal, it_is_healthy_while_it_runs_and_not_after);

// Over RabbitMQ what is left stays in the queues: `stream_roles`.
on_both_stores!(
    a_signal_finishes_what_is_in_flight_and_keeps_the_rest_claimed,
    a_parser_that_panics_ends_the_run_and_the_third_time_fails_the_file,
);

fn a_signal_finishes_what_is_in_flight_and_keeps_the_rest_claimed(sandbox: &Sandbox) {
    // Much more than may be read ahead of what is committed.
    let padding = format!("{{\"padding\":\"{}\",", "x".repeat(400));
    let contents = events_over_days("a", 60_000).replace('{', &padding);
    let defaults = include_str!("../../dataloader.toml");
    sandbox.write("dataloader.toml", format!("{defaults}\n[stream]\nin_flight_bytes = 16_777_216\n"));
    let mut pipeline = sandbox.start_pipeline();
    sandbox.drop_in("events", "a.jsonl", &contents);
    wait_until("rows are there", || {
        sandbox.try_query("SELECT 1 FROM {raw.batches} WHERE seq = 0").is_ok_and(|rows| !rows.is_empty())
    });
    pipeline.signal(Signal::Terminate);
    pipeline.wait_for_stderr("finishing what is in flight");
    let stopped = pipeline.wait().ok();
    assert_eq!(stopped.stdout, "", "`run` answers nothing");

    let loaded = sandbox.count("raw.events");
    assert!((1..60_000).contains(&loaded), "{loaded} rows: the signal came during the file");
    assert_eq!(sandbox.lines("SELECT status, rows_loaded FROM {raw.loads}"), [format!("loading|{loaded}")]);
    let claimed = only_file(&sandbox.file("inbox/events/.loading"), "-a.jsonl");
    assert_eq!(fs::read_to_string(claimed).expect("it is claimed"), contents);
    let modelled = sandbox.lines("SELECT sum(total_events) FROM {modelled.events_by_date}");
    assert_eq!(modelled, [loaded.to_string()], "draining includes the model");
    sandbox.assert_conserved();

    sandbox.run_once().ok();
    sandbox.assert_each_loaded_once(&[("a.jsonl".to_owned(), contents, 60_000)]);
    assert_eq!(sandbox.count("raw.loads"), 1, "it is the same load");
    sandbox.assert_settled();
}

/// `--once` on PostgreSQL, with one file that it has in work and cannot write, and the signal that interrupts it.
fn once_in_work(sandbox: &Sandbox, contents: &str) -> (Background, WriteLock) {
    sandbox.run(["migrate"]).ok();
    sandbox.drop_in("events", "a.jsonl", contents);
    let lock = sandbox.hold_writers();
    let mut once = sandbox.pipeline(["--once", "--format", "json"]).spawn();
    let waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'dataloader' AND \
                   wait_event_type = 'Lock'";
    wait_until("it writes", || !sandbox.lines(waiting).is_empty());
    once.signal(Signal::Terminate);
    once.wait_for_stderr("finishing what is in flight");
    (once, lock)
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn an_interrupted_once_says_what_is_left_and_exits_130() {
    let sandbox = Sandbox::new(Store::Postgres);
    // More than is read ahead.
    let contents = events_over_days("a", 60_000);
    let defaults = include_str!("../../dataloader.toml");
    sandbox.write("dataloader.toml", format!("{defaults}\n[stream]\nin_flight_bytes = 16_777_216\n"));
    let (once, lock) = once_in_work(&sandbox, &contents);
    sandbox.drop_in("events", "b.jsonl", many_events(3, "ada"));
    drop(lock);
    let summary = once.wait().code(130).json();
    assert_eq!(summary["left"], serde_json::json!({"files": 2, "messages": 0}), "{summary}");
    sandbox.assert_conserved();
    let summary = sandbox.run_once().ok().json();
    assert_eq!(summary.get("left"), None, "{summary}");
    assert_eq!(sandbox.count("raw.events"), 60_003);
    sandbox.assert_settled();
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn an_interrupted_once_that_finishes_everything_ends_as_usual() {
    let sandbox = Sandbox::new(Store::Postgres);
    let (once, lock) = once_in_work(&sandbox, &(many_events(3, "ada") + "{}"));
    drop(lock);
    let summary = once.wait().code(3).json();
    assert_eq!((&summary["datasets"][0]["loaded"], summary.get("left")), (&3.into(), None), "{summary}");
    sandbox.assert_settled();
}

fn an_idle_run_ends_by_either_signal(sandbox: &Sandbox) {
    for signal in [Signal::Terminate, Signal::Interrupt] {
        let pipeline = sandbox.start_pipeline();
        sandbox.drop_in("events", "a.jsonl", many_events(3, "ada"));
        let before = sandbox.finished("events");
        sandbox.wait_until_finished("events", before + 1);
        pipeline.signal(signal);
        pipeline.wait().ok();
    }
    assert_eq!(sandbox.count("raw.events"), 6);
    sandbox.assert_settled();
}

fn it_is_healthy_while_it_runs_and_not_after(sandbox: &Sandbox) {
    let pipeline = sandbox.start_pipeline();
    wait_until("it is healthy", || sandbox.run(["health"]).code == Some(0));
    let other = sandbox.start_pipeline();
    let processes = || sandbox.run(["health", "--format", "json"]).json()["processes"].as_array().map_or(0, Vec::len);
    wait_until("both are healthy", || processes() == 2 && sandbox.run(["health"]).code == Some(0));
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
    assert_eq!(processes(), 1);
    other.signal(Signal::Kill);
    other.wait();
    let outcome = sandbox.run(["health"]).code(1);
    assert_eq!(outcome.stdout, "unhealthy: no `dataloader run` is alive in this working directory\n");
}

/// Runs this test program as a pipeline whose parser panics.
fn run_with_a_parser_that_panics(sandbox: &Sandbox) -> Outcome {
    let this_program = std::env::current_exe().expect("the tests are a program");
    Invocation::new(this_program.to_str().expect("a plain path"), sandbox.path())
        .args(["stream_drain::pipeline_with_a_parser_that_panics", "--exact", "--nocapture"])
        .env("DATALOADER_TEST_PANIC", "1")
        .env("DATABASE_URL", &sandbox.database_url())
        .run()
}

/// Not a test: what [`run_with_a_parser_that_panics`] runs in a process of its own.
#[test]
fn pipeline_with_a_parser_that_panics() {
    fn parse(parser: &mut Parser, chunk: &Chunk, rows: &mut Rows) -> Parsed {
        if let ChunkBody::Records { text, .. } = &chunk.body
            && text.windows(6).any(|word| word == b"poison")
        {
            panic!("the parser met poison");
        }
        parse_chunk(parser, chunk, rows)
    }
    if std::env::var_os("DATALOADER_TEST_PANIC").is_none() {
        return;
    }
    let config = Config::load(None, Settings::default()).expect("the configuration is built in");
    let code = match stream::run(&config, RunOptions { once: true, parse }, &Stats::new(&config.datasets)) {
        Ok(summary) if summary.has_failures() => 3,
        Ok(_) => 0,
        Err(error) => {
            eprintln!("error: {error}");
            error.exit_code().into()
        }
    };
    std::process::exit(code);
}

fn a_parser_that_panics_ends_the_run_and_the_third_time_fails_the_file(sandbox: &Sandbox) {
    // Poison in many chunks: however many parsers meet it, one run is one crash.
    let poisoned: String =
        (0..6).map(|part| events_over_days("poison", 1_000) + &events_over_days(&part.to_string(), 10)).collect();
    sandbox.drop_in("events", "a.jsonl", &poisoned);
    for crash in 1..=3 {
        let crashed = run_with_a_parser_that_panics(sandbox).code(1);
        assert!(crashed.stderr.contains("the parser met poison") && crashed.stderr.contains("a.jsonl"), "{}", crashed.stderr);
        assert_eq!(sandbox.names_in("events/.loading").len(), 2, "the file and a note of {crash} crashes");
        sandbox.assert_conserved();
    }
    sandbox.drop_in("events", "b.jsonl", events_over_days("b", 10));
    run_with_a_parser_that_panics(sandbox).code(3);
    assert_eq!(sandbox.dropped_names_in("events/failed"), ["a.jsonl", "a.jsonl.error.json"]);
    assert_eq!(sandbox.dropped_names_in("events/processed"), ["b.jsonl"]);
    let error = sandbox.lines("SELECT error FROM {raw.loads} WHERE status = 'failed'");
    assert!(error.len() == 1 && error[0].contains("crashed 3 times"), "{error:?}");
    sandbox.assert_settled();
}

#[test]
fn a_signal_while_nothing_is_claimed_leaves_the_inbox_as_it_is() {
    let sandbox = Sandbox::new(Store::Sqlite);
    // Not yet complete when the signal comes: it is still being written.
    let pipeline = sandbox.start_pipeline();
    let open = fs::File::create(sandbox.file("inbox/events/open.json")).expect("the inbox is writable");
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
    drop(open);
    assert_eq!(sandbox.names_in("events"), [b"open.json"]);
}
