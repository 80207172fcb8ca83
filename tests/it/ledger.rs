//! The ledger: one row per file, nothing unaccounted for, a row that says why a file failed.

use crate::support::{Sandbox, event, gzip, host_name, many_events, on_both_stores, sha256};

on_both_stores!(
    every_file_has_a_row_and_every_record_a_fate,
    chunks_tell_where_their_records_begin,
    a_failed_file_is_on_record_and_nothing_else_is,
    status_sums_the_ledger_up,
    a_load_has_the_hash_of_its_file_as_it_is_stored_and_the_host_that_read_it,
    load_numbers_are_never_used_again,
    the_rows_of_a_table_are_those_loaded_less_those_removed,
);

fn every_file_has_a_row_and_every_record_a_fate(sandbox: &Sandbox) {
    sandbox.write_events("a.jsonl", many_events(10, "ada") + "{}\n" + &event("x", "ben", "2024-05-02 10:00:00"));
    sandbox.write_events("b.json", "[]");
    sandbox.write_orgs("c.json", r#"{"organization_key":"a"}"#);
    sandbox.run(["load", "--date", "2024-05-01"]).code(3);
    let rows = "SELECT id, dataset, status, bytes, records_read, rows_loaded, rows_rejected, records_skipped, error FROM {raw.loads} \
                ORDER BY id";
    let bytes = std::fs::metadata(sandbox.file("raw_data/events/a.jsonl")).expect("just written").len();
    let expected = [
        format!("1|events|loaded|{bytes}|12|10|1|1|NULL"),
        "2|events|loaded|2|0|0|0|0|NULL".to_owned(),
        "3|orgs|loaded|24|1|1|0|0|NULL".to_owned(),
    ];
    assert_eq!(sandbox.lines(rows), expected);
    let unaccounted = "SELECT id FROM {raw.loads} WHERE records_read <> rows_loaded + rows_rejected + records_skipped \
                       OR started_at > finished_at OR finished_at IS NULL";
    assert_eq!(sandbox.lines(unaccounted), [""; 0]);
    assert_eq!(sandbox.lines("SELECT count(*) FROM {raw.events} WHERE _load_id = 1"), ["10"]);
    assert_eq!(sandbox.lines("SELECT count(*) FROM {raw.rejects} WHERE load_id = 1"), ["1"]);
    assert_eq!(sandbox.lines("SELECT count(DISTINCT load_key) FROM {raw.loads}"), ["3"]);
}

fn chunks_tell_where_their_records_begin(sandbox: &Sandbox) {
    sandbox.write_events("x.jsonl", many_events(2_500, "ada"));
    sandbox.run(["load", "--dataset", "events"]).ok();
    let chunks = "SELECT load_id, seq, first_ordinal, records FROM {raw.batches} ORDER BY seq";
    assert_eq!(sandbox.lines(chunks), ["1|0|1|1000", "1|1|1001|1000", "1|2|2001|500"]);
}

fn a_failed_file_is_on_record_and_nothing_else_is(sandbox: &Sandbox) {
    sandbox.write_events("a.jsonl", many_events(10, "ada"));
    sandbox.write_events("b.json", format!("[{}, {{\"id\":", event("x", "ben", "2024-05-01 10:00:00")));
    let outcome = sandbox.run(["load", "--dataset", "events"]).code(1);
    assert!(outcome.stderr.contains("raw_data/events/b.json: line 1, column "), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("nothing of this run was loaded"), "{}", outcome.stderr);
    let rows = "SELECT dataset, source LIKE '%/b.json', status, rows_loaded, error LIKE '%line 1, column %' FROM {raw.loads}";
    assert_eq!(sandbox.lines(rows), ["events|1|failed|0|1"]);
    assert_eq!((sandbox.count("raw.events"), sandbox.count("raw.batches"), sandbox.count("raw.rejects")), (0, 0, 0));
    let status = sandbox.run(["status", "--format", "json"]).ok().json();
    assert_eq!((&status["datasets"][0]["failed"], &status["loads"][0]["status"]), (&1.into(), &"failed".into()));
    std::fs::remove_file(sandbox.file("raw_data/events/b.json")).expect("just written");
    sandbox.run(["load", "--dataset", "events"]).ok();
    assert_eq!(sandbox.count("raw.events"), 10);
}

fn status_sums_the_ledger_up(sandbox: &Sandbox) {
    sandbox.write_events("a.jsonl", many_events(10, "ada") + "{}\n");
    sandbox.run(["load", "--dataset", "events"]).code(3);
    sandbox.run(["load", "--dataset", "events", "--date", "2020-01-01"]).code(3);
    let status = sandbox.run(["status", "--format", "json"]).ok().json();
    let expected = serde_json::json!({"dataset": "events", "files": 2, "read": 22, "loaded": 10, "rejected": 2, "skipped": 10,
        "in_flight": 0, "failed": 0, "unloaded": 0, "repeated": 0, "open_rejects": 1});
    for (name, value) in expected.as_object().expect("an object") {
        assert_eq!(status["datasets"][0][name], *value, "{name}");
    }
    assert!(sandbox.run(["status"]).ok().stdout.contains("open rejects"));
}

fn a_load_has_the_hash_of_its_file_as_it_is_stored_and_the_host_that_read_it(sandbox: &Sandbox) {
    let text = many_events(1_200, "ada");
    let packed = gzip(&text);
    let zstd = zstd::encode_all(text.as_bytes(), 1).expect("memory takes everything");
    let files = [("a.jsonl", text.clone().into_bytes()), ("b.jsonl.gz", packed), ("c.jsonl.zst", zstd), ("d.json", Vec::new())];
    for (name, stored) in &files {
        sandbox.write_events(name, stored);
    }
    sandbox.run(["load", "--dataset", "events"]).ok();
    let ledger = "SELECT status, sha256, host FROM {raw.loads} ORDER BY id";
    let expected = files.map(|(_, stored)| format!("loaded|{}|{}", sha256(stored), host_name()));
    assert_eq!(sandbox.lines(ledger), expected);

    // A pipe is no file of a host.
    sandbox.command(["load", "--dataset", "events", "-"]).stdin(text).run().ok();
    assert_eq!(sandbox.lines(ledger)[4..], ["loaded|NULL|NULL"]);
    // It was read to its end before that was wrong; of the other only the beginning was read.
    for (name, contents, known) in [("e.json", "[{}".to_owned(), true), ("f.json", "[] x".to_owned() + &" ".repeat(1 << 20), false)]
    {
        sandbox.write_events(name, &contents);
        sandbox
            .run(["load", "--dataset", "events", sandbox.file("raw_data/events").join(name).to_str().expect("a plain name")])
            .code(1);
        let hash = if known { sha256(&contents) } else { "NULL".to_owned() };
        assert_eq!(sandbox.lines(ledger).last(), Some(&format!("failed|{hash}|{}", host_name())), "{name}");
    }
}

fn load_numbers_are_never_used_again(sandbox: &Sandbox) {
    sandbox.write_events("a.jsonl", many_events(2, "ada"));
    sandbox.run(["load", "--dataset", "events"]).ok();
    sandbox.execute("DELETE FROM {raw.loads}");
    sandbox.run(["load", "--dataset", "events"]).ok();
    assert_eq!(sandbox.lines("SELECT id FROM {raw.loads}"), ["2"]);
}

fn the_rows_of_a_table_are_those_loaded_less_those_removed(sandbox: &Sandbox) {
    let removed = "SELECT id, dataset, rows_loaded, rows_removed FROM {raw.loads} ORDER BY id";
    sandbox.write_events("a.jsonl", many_events(3, "ada"));
    sandbox.write_events("b.jsonl", event("x", "ben", "2024-05-02 10:00:00"));
    sandbox.write_orgs("c.json", r#"[{"organization_key":"a"},{"organization_key":"b"}]"#);
    sandbox.run(["load"]).ok();
    sandbox.write_events("a.jsonl", many_events(5, "ada"));
    // This dataset has no day: its table is replaced as a whole.
    sandbox.write_orgs("c.json", r#"{"organization_key":"c"}"#);
    sandbox.run(["load"]).ok();
    let expected = ["1|events|3|0", "2|events|1|0", "3|orgs|2|0", "4|events|5|4", "5|events|1|0", "6|orgs|1|2"];
    assert_eq!(sandbox.lines(removed), expected);
    // What is dropped into the inbox removes nothing.
    sandbox.drop_in("events", "d.jsonl", many_events(2, "ada"));
    sandbox.run_once().ok();
    for dataset in ["events", "orgs"] {
        let sum = format!("SELECT sum(rows_loaded) - sum(rows_removed) FROM {{raw.loads}} WHERE dataset = '{dataset}'");
        assert_eq!(sandbox.lines(&sum), [sandbox.count(&format!("raw.{dataset}")).to_string()]);
    }
}
