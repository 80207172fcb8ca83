//! `dataloader run --once`: loads what the inbox holds, answers like `load`, ends.

use std::fs;

use crate::support::{
    Sandbox, Signal, Store, array, event, events_over_days, many_events, on_every_pipeline, only_file, wait_until, write_samples,
};

on_every_pipeline!(
    what_is_there_at_the_start_is_loaded,
    the_sample_dropped_ten_times_is_ten_times_the_rows_and_the_same_events,
    a_batch_load_replaces_what_was_dropped,
    an_empty_inbox_is_no_work,
    rejects_and_failed_files_are_exit_code_3,
    a_file_is_the_same_chunks_whatever_the_settings,
    a_run_resumes_what_an_earlier_one_left,
    an_interrupted_run_says_what_is_left_and_the_next_one_loads_it,
);

fn what_is_there_at_the_start_is_loaded(sandbox: &Sandbox) {
    sandbox.drop_in("events", "a.jsonl", events_over_days("a", 2_500));
    sandbox.drop_in("events", "b.json", array(&[event("b", "ben", "2024-05-02 10:00:00")]));
    sandbox.drop_in("events", "blank.json", " \n");
    sandbox.drop_in("events", "nothing.json", "");
    sandbox.drop_in("orgs", "c.json", r#"{"organization_key":"a","organization_name":"Acme"}"#);
    let summary = sandbox.run_once().ok().json();
    let mut datasets = summary["datasets"].clone();
    for dataset in datasets.as_array_mut().expect("an entry per dataset") {
        let seconds = dataset.as_object_mut().and_then(|dataset| dataset.remove("seconds"));
        assert!(seconds.and_then(|seconds| seconds.as_f64()).is_some_and(|seconds| seconds > 0.0), "{summary}");
    }
    let expected = serde_json::json!([
        {"dataset": "events", "files": 4, "unchanged": 0, "read": 2501, "loaded": 2501, "rejected": 0, "skipped": 0, "replaced": 0},
        {"dataset": "orgs", "files": 1, "unchanged": 0, "read": 1, "loaded": 1, "rejected": 0, "skipped": 0, "replaced": 0},
    ]);
    assert_eq!(datasets, expected);
    assert!(summary["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{summary}");
    assert_eq!((sandbox.count("raw.events"), sandbox.count("raw.orgs")), (2_501, 1));
    assert_eq!(sandbox.dropped_names_in("events/processed"), ["a.jsonl", "b.json", "blank.json", "nothing.json"]);
    assert_eq!(sandbox.dropped_names_in("orgs/processed"), ["c.json"]);
    let modelled = "SELECT sum(total_events), sum(unique_events) FROM {modelled.events_by_date}";
    assert_eq!(sandbox.lines(modelled), ["2501|2501"], "what was loaded is modelled when the run ends");
    let bytes = format!("SELECT bytes FROM {} WHERE source LIKE '%/inbox/events/a.jsonl'", sandbox.table("raw.loads"));
    assert_eq!(sandbox.lines(&bytes), [events_over_days("a", 2_500).len().to_string()]);
    sandbox.assert_settled();
}

fn the_sample_dropped_ten_times_is_ten_times_the_rows_and_the_same_events(sandbox: &Sandbox) {
    const TOTALS: &str = "SELECT sum(total_events), sum(unique_events) FROM {modelled.events_by_date}";
    write_samples(sandbox);
    sandbox.run(["drop"]).ok();
    sandbox.run_once().ok();
    let once = sandbox.lines(TOTALS);
    assert_eq!(once, ["50|49"], "two records of the sample are the same event");
    let users = "SELECT date, unique_users FROM {modelled.events_by_date} ORDER BY date";
    let users_once = sandbox.lines(users);

    sandbox.run(["drop", "--times", "9"]).ok();
    let summary = sandbox.run_once().ok().json();
    assert_eq!((&summary["datasets"][0]["files"], &summary["datasets"][0]["loaded"]), (&9.into(), &450.into()));
    assert_eq!(sandbox.count("raw.events"), 500);
    assert_eq!(sandbox.lines(TOTALS), ["500|49"]);
    assert_eq!(sandbox.lines(users), users_once);
    sandbox.assert_settled();
}

fn a_batch_load_replaces_what_was_dropped(sandbox: &Sandbox) {
    write_samples(sandbox);
    sandbox.run(["drop", "--times", "3"]).ok();
    sandbox.run_once().ok();
    let summary = sandbox.run(["load", "--dataset", "events", "--format", "json"]).ok().json();
    assert_eq!((&summary["datasets"][0]["loaded"], &summary["datasets"][0]["replaced"]), (&50.into(), &150.into()));
    assert_eq!(sandbox.count("raw.events"), 50);
    assert_eq!(sandbox.lines("SELECT sum(total_events) FROM {modelled.events_by_date}"), ["50"]);
    sandbox.run(["model", "--check"]).ok();
}

fn an_empty_inbox_is_no_work(sandbox: &Sandbox) {
    let summary = sandbox.run_once().ok().json();
    assert_eq!((&summary["datasets"][0]["files"], &summary["datasets"][0]["read"]), (&0.into(), &0.into()));
    assert!(sandbox.file("inbox/events/processed").is_dir(), "the inbox is made when missing");
    sandbox.assert_settled();
}

fn rejects_and_failed_files_are_exit_code_3(sandbox: &Sandbox) {
    sandbox.drop_in("events", "a.jsonl", format!("{}{{}}\n", many_events(3, "ada")));
    let summary = sandbox.run_once().code(3).json();
    assert_eq!((&summary["datasets"][0]["loaded"], &summary["datasets"][0]["rejected"]), (&3.into(), &1.into()));
    sandbox.run_once().ok();
    sandbox.drop_in("events", "b.json", "[");
    let summary = sandbox.run_once().code(3).json();
    assert_eq!((&summary["datasets"][0]["files"], &summary["datasets"][0]["read"]), (&1.into(), &0.into()));
    sandbox.assert_settled();
}

fn a_file_is_the_same_chunks_whatever_the_settings(sandbox: &Sandbox) {
    const CHUNKS: &str = "SELECT seq, first_ordinal, records FROM {raw.batches} ORDER BY load_id, seq";
    let expected = ["0|1|1000", "1|1001|1000", "2|2001|1000", "3|3001|210"];
    let contents = events_over_days("a", 3_210);
    sandbox.drop_in("events", "a.jsonl", &contents);
    sandbox.run_once().ok();
    assert_eq!(sandbox.lines(CHUNKS), expected);
    let defaults = include_str!("../../dataloader.toml");
    let settings = "[stream]\nparsers = 3\nbatch_rows = 1\nbatch_interval_ms = 0\nmodel_delay_ms = 0\nsettle_ms = 0\n";
    sandbox.write("dataloader.toml", format!("{defaults}\n{settings}"));
    sandbox.drop_in("events", "a.jsonl", &contents);
    sandbox.run_once().ok();
    assert_eq!(sandbox.lines(CHUNKS), [expected, expected].concat());
    sandbox.assert_settled();
}

fn a_run_resumes_what_an_earlier_one_left(sandbox: &Sandbox) {
    // As a killed process would leave them: one claimed, one that failed and was not moved yet.
    let key = |last: u8| format!("0190f3f4-0000-7000-8000-0000000000{last:02x}");
    let (claimed, failed) = (format!("{}-a.jsonl", key(1)), format!("{}-b.jsonl", key(2)));
    sandbox.write(&format!("inbox/events/.loading/{claimed}"), many_events(5, "ada"));
    sandbox.write(&format!("inbox/events/.loading/{failed}"), "[");
    sandbox.write(&format!("inbox/events/failed/{failed}.error.json"), "{}");
    let summary = sandbox.run_once().ok().json();
    assert_eq!((&summary["datasets"][0]["files"], &summary["datasets"][0]["loaded"]), (&1.into(), &5.into()));
    assert_eq!(sandbox.lines("SELECT load_key FROM {raw.loads}"), [key(1)]);
    assert_eq!(sandbox.names_in("events/processed"), [claimed.as_bytes()]);
    assert_eq!(fs::read(sandbox.file("inbox/events/failed").join(failed)).expect("it was moved"), b"[");
    sandbox.assert_settled();
}

fn an_interrupted_run_says_what_is_left_and_the_next_one_loads_it(sandbox: &Sandbox) {
    sandbox.run_once().ok(); // The tables are there.
    let defaults = include_str!("../../dataloader.toml");
    sandbox.write("dataloader.toml", format!("{defaults}\n[stream]\nin_flight_bytes = 16_777_216\n"));
    // More than may be in flight.
    let padding = format!("{{\"padding\":\"{}\",", "x".repeat(700));
    let contents = events_over_days("a", 50_000).replace('{', &padding);
    sandbox.drop_in("events", "a.jsonl", &contents);
    let lock = sandbox.hold_writers();
    let mut interrupted = sandbox.pipeline(["--once", "--format", "json"]).spawn();
    // Over RabbitMQ all of it is published then, and only the queue has the rest.
    let claimed_or_published = || match sandbox.is_over_amqp() {
        true => !sandbox.names_in("events/processed").is_empty(),
        false => sandbox.names_in("events").is_empty(),
    };
    wait_until("it has begun", claimed_or_published);
    interrupted.signal(Signal::Terminate);
    interrupted.wait_for_stderr("finishing what is in flight");
    drop(lock);
    let summary = interrupted.wait().code(130).json();
    assert!(summary["left"].is_object(), "{summary}");
    let loaded = sandbox.count("raw.events");
    assert!(loaded < 50_000, "there is work left");
    sandbox.assert_conserved();

    sandbox.run_once().ok();
    sandbox.assert_each_loaded_once(&[("a.jsonl".to_owned(), contents, 50_000)]);
    sandbox.assert_settled();
}

#[test]
fn an_error_of_the_run_is_one_json_object() {
    let sandbox = Sandbox::new(Store::Sqlite);
    sandbox.write("inbox", "a file where the directory should be");
    let error = sandbox.run_once().code(1).json();
    assert!(error["error"]["message"].as_str().is_some_and(|message| message.contains("inbox")), "{error}");
}

#[test]
fn the_summary_for_people_is_a_table() {
    let sandbox = Sandbox::new(Store::Sqlite);
    sandbox.drop_in("events", "a.jsonl", many_events(3, "ada") + "{}");
    let outcome = sandbox.pipeline(["--once"]).run().code(3);
    let row: Vec<&str> =
        outcome.stdout.lines().find(|line| line.contains("events")).unwrap_or_default().split_whitespace().collect();
    assert_eq!(row, ["events", "1", "4", "3", "1", "0", "0"], "{}", outcome.stdout);
}

#[test]
fn a_compressed_file_is_loaded_by_what_it_is_and_kept_as_it_was() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let packed = zstd::encode_all(events_over_days("a", 1_500).as_bytes(), 1).expect("memory suffices");
    sandbox.drop_in("events", "a.json", &packed);
    sandbox.run_once().ok();
    assert_eq!(sandbox.count("raw.events"), 1_500);
    let processed = only_file(&sandbox.file("inbox/events/processed"), "-a.json");
    assert_eq!(fs::read(processed).expect("it was moved"), packed);
}

#[test]
fn a_producer_with_nothing_to_publish_still_says_that_the_broker_is_away() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let run = ["--once", "--transport", "amqp", "--role", "producer", "--format", "json"];
    // A privileged port: no server of another test can come to sit there.
    let outcome = sandbox.pipeline(run).env("AMQP_URL", "amqp://guest:guest@127.0.0.1:1/%2f").run().code(4);
    let message = outcome.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
    assert!(message.contains("RabbitMQ"), "{message}");
}
