//! What `load` reads: the directories' files in every form, files by name, standard input, some of the days; and what it
//! answers.

use serde_json::json;

use crate::support::{Sandbox, Store, array, event, gzip, many_events, on_both_stores};

on_both_stores!(
    every_file_form_of_the_directory_is_loaded,
    files_by_name_and_standard_input,
    days_outside_the_range_are_skipped,
    the_summary_has_exactly_these_fields,
    rejects_of_a_load_exit_3,
    too_many_rejects_fail_the_run,
    a_dry_run_leaves_no_trace,
    a_dataset_without_files_is_left_alone,
    a_missing_directory_fails_before_anything_is_loaded,
    generated_events_load_through_a_pipe,
);

fn zstd(text: &str) -> Vec<u8> {
    zstd::encode_all(text.as_bytes(), 1).expect("memory takes everything")
}

fn every_file_form_of_the_directory_is_loaded(sandbox: &Sandbox) {
    let e = |id: &str| event(id, "ada", "2024-05-01 10:00:00");
    sandbox.write_events("1.json", array(&[e("array")]));
    sandbox.write_events("2.json", "\u{feff}".to_owned() + &e("one object after a BOM"));
    sandbox.write_events("3.jsonl", e("lines 1") + "\n" + &e("lines 2") + "\r\n");
    sandbox.write_events("4.ndjson", e("concatenated 1") + &e("concatenated 2"));
    sandbox.write_events("5.json.gz", gzip(array(&[e("gzip")])));
    sandbox.write_events("6.ndjson.zst", zstd(&e("zstd")));
    sandbox.write_events("7.json", gzip(e("gzip by another name")));
    sandbox.write_events("8.json", "");
    sandbox.write_events("9.json", " \n\t[ ]\n");
    sandbox.write_events("blank.jsonl", "\n \n");
    for other in ["x.csv", ".hidden.json", "x.json.bak", "x.json.tmp"] {
        sandbox.write_events(other, e(other));
    }
    sandbox.write_events("below/x.json", e("of a directory below"));
    sandbox.write_events("folder.json/x.json", e("of a directory with the name of a file"));
    let summary = sandbox.run(["load", "--dataset", "events", "--format", "json"]).ok().json();
    assert_eq!((&summary["datasets"][0]["files"], &summary["datasets"][0]["read"]), (&json!(10), &json!(9)));
    let mut ids = sandbox.lines("SELECT id FROM {raw.events}");
    ids.sort();
    let expected = [
        "array",
        "concatenated 1",
        "concatenated 2",
        "gzip",
        "gzip by another name",
        "lines 1",
        "lines 2",
        "one object after a BOM",
        "zstd",
    ];
    assert_eq!(ids, expected);
    let empty =
        "SELECT status, bytes, records_read FROM {raw.loads} WHERE source LIKE '%/8.json' OR source LIKE '%/9.json' ORDER BY id";
    assert_eq!(sandbox.lines(empty), ["loaded|0|0", "loaded|7|0"]);
}

fn files_by_name_and_standard_input(sandbox: &Sandbox) {
    let e = |id: &str| event(id, "ada", "2024-05-01 10:00:00");
    sandbox.write_events("not asked for.json", e("x"));
    sandbox.write("elsewhere/no ending", e("a"));
    sandbox.write("b.json", e("b"));
    let args = ["load", "--dataset", "events", "elsewhere/no ending", "-", "b.json", "--format", "json"];
    let summary = sandbox.command(args).stdin(zstd(&e("c"))).run().ok().json();
    assert_eq!((&summary["datasets"][0]["files"], &summary["datasets"][0]["loaded"]), (&json!(3), &json!(3)));
    assert_eq!(sandbox.lines("SELECT id FROM {raw.events} ORDER BY id"), ["a", "b", "c"]);
    let directory = sandbox.path().canonicalize().expect("the sandbox exists");
    let sources = sandbox.lines("SELECT source FROM {raw.loads} ORDER BY id");
    let expected = ["elsewhere/no ending", "-", "b.json"];
    for (source, expected) in sources.iter().zip(expected) {
        let expected = if expected == "-" { expected.to_owned() } else { directory.join(expected).display().to_string() };
        assert_eq!(*source, expected);
    }
    let outcome = sandbox.run(["load", "b.json"]).code(2);
    assert!(outcome.stderr.contains("--dataset"), "{}", outcome.stderr);
    let outcome = sandbox.run(["load", "--dataset", "events", "b.json", "./b.json"]).code(2);
    assert!(outcome.stderr.contains("./b.json is named twice"), "{}", outcome.stderr);
    assert_eq!(sandbox.count("raw.events"), 3);
}

fn days_outside_the_range_are_skipped(sandbox: &Sandbox) {
    let records = [
        event("a", "ada", "2024-04-30 23:59:59.999999"),
        event("b", "ada", "2024-05-01 00:00:00"),
        event("c", "ada", "2024-05-02T23:59:59.999999Z"),
        event("d", "ada", "2024-05-02T23:30:00-01:00"),
        event("e", "ada", "no time"),
    ];
    sandbox.write_events("x.json", array(&records));
    let load = ["load", "--dataset", "events", "--from", "2024-05-01", "--to", "2024-05-02", "--format", "json"];
    let summary = sandbox.run(load).code(3).json();
    let events = &summary["datasets"][0];
    let counts = ["read", "loaded", "rejected", "skipped"].map(|name| events[name].as_u64().expect("a count"));
    assert_eq!(counts, [5, 2, 1, 2], "a bad record is rejected whatever its day");
    assert_eq!(sandbox.lines("SELECT id FROM {raw.events} ORDER BY id"), ["b", "c"]);
    let ledger = "SELECT records_read, rows_loaded, rows_rejected, records_skipped FROM {raw.loads}";
    assert_eq!(sandbox.lines(ledger), ["5|2|1|2"]);
    for (from, to) in [("2024-05-02", "2024-05-01"), ("2024-02-30", "2024-03-01"), ("yesterday", "2024-05-01")] {
        sandbox.run(["load", "--from", from, "--to", to]).code(2);
    }
}

fn the_summary_has_exactly_these_fields(sandbox: &Sandbox) {
    sandbox.write_events("x.json", event("a", "ada", "2024-05-01 10:00:00") + &event("b", "ben", "2024-05-02 10:00:00") + "{}");
    sandbox.write_orgs("x.json", r#"{"organization_key":"a"}"#);
    let outcome = sandbox.run(["load", "--date", "2024-05-01", "--format", "json"]).code(3);
    assert_eq!(outcome.stdout.lines().count(), 1);
    let mut summary = outcome.json();
    assert!(summary["seconds"].take().is_f64());
    for dataset in summary["datasets"].as_array_mut().expect("a list") {
        assert!(dataset["seconds"].take().is_f64());
    }
    let events = json!({"dataset": "events", "files": 1, "unchanged": 0, "read": 3, "loaded": 1, "rejected": 1, "skipped": 1, "replaced": 0, "seconds": null});
    let orgs = json!({"dataset": "orgs", "files": 1, "unchanged": 0, "read": 1, "loaded": 1, "rejected": 0, "skipped": 0, "replaced": 0, "seconds": null});
    assert_eq!(summary, json!({"datasets": [events, orgs], "seconds": null}));
}

fn rejects_of_a_load_exit_3(sandbox: &Sandbox) {
    sandbox.write_events("x.json", event("a", "ada", "2024-05-01 10:00:00") + "\n" + r#"{"id":"b"}"#);
    let outcome = sandbox.run(["load", "--dataset", "events"]).code(3);
    let expected = "raw_data/events/x.json: record 2 at byte 134: missing_required: received_at: required, but absent";
    assert!(outcome.stdout.contains(expected), "{}", outcome.stdout);
    assert!(outcome.stdout.contains("rejects list"), "where to look next: {}", outcome.stdout);
    assert_eq!(sandbox.count("raw.events"), 1);
}

fn too_many_rejects_fail_the_run(sandbox: &Sandbox) {
    sandbox.write_events("x.json", many_events(98, "ada") + "{}\n{}\n");
    let load = |limit: &'static str| sandbox.run(["load", "--dataset", "events", "--max-rejects", limit]);
    for limit in ["0", "1", "1.9%", "0%"] {
        let outcome = load(limit).code(1);
        let expected = format!("2 of 100 records rejected, more than --max-rejects {limit} allows");
        assert!(outcome.stderr.contains(&expected), "{}", outcome.stderr);
        assert_eq!((sandbox.count("raw.events"), sandbox.count("raw.rejects"), sandbox.count("raw.loads")), (0, 0, 0));
    }
    sandbox.run(["load", "--dataset", "events", "--max-rejects", "1", "--dry-run"]).code(1);
    for limit in ["2", "2%", "100%"] {
        load(limit).code(3);
        assert_eq!((sandbox.count("raw.events"), sandbox.count("raw.rejects")), (98, 2));
    }
    for limit in ["101%", "-1", "few", ""] {
        load(limit).code(2);
    }
}

fn a_dry_run_leaves_no_trace(sandbox: &Sandbox) {
    sandbox.write_events("x.json", event("a", "ada", "2024-05-01 10:00:00") + "{}");
    sandbox.write_orgs("x.json", "");
    let summary = sandbox.run(["load", "--dry-run", "--format", "json"]).code(3).json();
    let events = &summary["datasets"][0];
    assert_eq!((&events["loaded"], &events["rejected"]), (&json!(1), &json!(1)));
    match sandbox.store() {
        Store::Sqlite => assert!(!sandbox.file("dataloader.db").exists()),
        Store::Postgres => {
            let schemas = "SELECT nspname FROM pg_namespace WHERE nspname IN ('raw', 'modelled', 'dataloader')";
            assert_eq!(sandbox.lines(schemas), [""; 0]);
        }
    }
    let nowhere = sandbox.command(["load", "--dry-run"]).env("DATABASE_URL", "postgres://nobody@127.0.0.1:1/none");
    nowhere.run().code(3);
}

fn a_dataset_without_files_is_left_alone(sandbox: &Sandbox) {
    sandbox.write_events("x.json", event("a", "ada", "2024-05-01 10:00:00"));
    sandbox.write_orgs("x.json", r#"{"organization_key":"a"}"#);
    sandbox.run(["load"]).ok();
    std::fs::remove_file(sandbox.file("raw_data/orgs/x.json")).expect("just written");
    let outcome = sandbox.run(["load", "--format", "json"]).ok();
    assert!(outcome.stderr.contains("no file for dataset orgs in raw_data/orgs"), "{}", outcome.stderr);
    assert_eq!(outcome.json()["datasets"][1]["files"], 0);
    assert_eq!(sandbox.lines("SELECT organization_key FROM {raw.orgs}"), ["a"]);
    assert_eq!(sandbox.count("raw.orgs_delta"), 1);
}

fn a_missing_directory_fails_before_anything_is_loaded(sandbox: &Sandbox) {
    sandbox.write_events("x.json", event("a", "ada", "2024-05-01 10:00:00"));
    let outcome = sandbox.run(["load"]).code(1);
    assert!(outcome.stderr.contains("raw_data/orgs"), "{}", outcome.stderr);
    let error = sandbox.run(["load", "--format", "json"]).code(1).json();
    let message = error["error"]["message"].as_str().expect("a message");
    assert!(message.contains("cannot read the directory raw_data/orgs of dataset orgs"), "{message}");
    assert!(error["error"]["hint"].as_str().is_some_and(|hint| hint.contains("--data-dir")), "{error}");
    assert_eq!(sandbox.run(["status", "--format", "json"]).ok().json()["datasets"][0]["files"], 0);
}

fn generated_events_load_through_a_pipe(sandbox: &Sandbox) {
    let generated = sandbox.run(["generate", "--events", "3000", "--seed", "7"]).ok().stdout;
    let load = ["load", "--dataset", "events", "-", "--format", "json"];
    let summary = sandbox.command(load).stdin(generated).run().ok().json();
    assert_eq!(summary["datasets"][0]["loaded"], 3000);
    sandbox.run(["model", "--check"]).ok();
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_staged_load_equals_a_streamed_one_and_removes_its_file() {
    let sandbox = Sandbox::new(Store::Postgres);
    sandbox.write_events("x.json", many_events(2500, "ada") + "{}");
    let stage = sandbox.file("stage");
    std::fs::create_dir(&stage).expect("the sandbox is writable");
    // Left by a process that was killed; and something that is not ours.
    sandbox.write("stage/dataloader-0190163d-8694-739b-aea5-966c26f8ad91.copy", "rest");
    sandbox.write("stage/notes.txt", "mine");
    let load = ["load", "--dataset", "events", "--stage-dir", "stage", "--format", "json"];
    let summary = sandbox.run(load).code(3).json();
    assert_eq!((&summary["datasets"][0]["loaded"], &summary["datasets"][0]["rejected"]), (&json!(2500), &json!(1)));
    assert_eq!((sandbox.count("raw.events"), sandbox.count("raw.events_delta")), (2500, 2500));
    let left: Vec<_> = std::fs::read_dir(&stage).expect("just made").map(|entry| entry.expect("readable").file_name()).collect();
    assert_eq!(left, ["notes.txt"]);
    let outcome = sandbox.run(["load", "--dataset", "events", "--stage-dir", "nowhere"]).code(1);
    assert!(outcome.stderr.contains("nowhere"), "{}", outcome.stderr);
}

#[test]
fn staging_is_refused_on_sqlite() {
    let sandbox = Sandbox::new(Store::Sqlite);
    sandbox.run(["load", "--stage-dir", "."]).code(2);
}
