//! Records that could not be loaded: kept whole, listed, exported, tried again, superseded.

use crate::support::{Invocation, Sandbox, Store, array, event, on_both_stores};

on_both_stores!(
    every_reason_is_told_and_every_byte_kept,
    exported_records_can_be_repaired_and_loaded,
    a_replay_loads_what_fits_by_now,
    a_replay_is_a_load_of_its_own,
    a_new_load_of_a_file_supersedes_its_rejects,
    standard_input_supersedes_nothing,
    a_failed_run_keeps_earlier_rejects,
    very_many_rejects_are_kept,
    very_many_rejects_are_listed_in_constant_memory,
);

const TYPED: &str = r#"
[datasets.t]
dir = "t"
key = ["id"]
[datasets.t.columns]
id = { type = "bigint", required = true }
day = "date"
note = "text"
"#;

fn every_reason_is_told_and_every_byte_kept(sandbox: &Sandbox) {
    sandbox.write("dataloader.toml", TYPED);
    let deep = format!(r#"{{"id":1,"x":{}1{}}}"#, "[".repeat(200), "]".repeat(200));
    let large = format!(r#"{{"id":1,"note":"{}"}}"#, "x".repeat(9 << 20));
    let cases: [(&[u8], &str); 12] = [
        (b"[1]", "not_an_object"),
        (b"{}", "missing_required"),
        (br#"{"id":null}"#, "missing_required"),
        (br#"{"id":"one"}"#, "type_mismatch"),
        (br#"{"id":1,"day":"2020-02-30"}"#, "out_of_range"),
        (br#"{"id":9223372036854775808}"#, "out_of_range"),
        (br#"{"id":1,"note":"a\u0000"}"#, "nul_character"),
        (br#"{"id":1,"more":"\ud800"}"#, "lone_surrogate"),
        (b"{\"id\":1,\"note\":\"\xff\"}", "invalid_utf8"),
        (deep.as_bytes(), "too_deep"),
        (large.as_bytes(), "too_large"),
        (br#"{"id":1,,}"#, "invalid_json"),
    ];
    let mut text = b"[".to_vec();
    let mut offsets = Vec::new();
    for (record, _) in &cases {
        offsets.push(text.len());
        text.extend_from_slice(record);
        text.push(b',');
    }
    text.extend_from_slice(b"{\"id\":42}]");
    sandbox.write("raw_data/t/x.json", text);
    sandbox.run(["load"]).code(3);
    assert_eq!(sandbox.lines("SELECT id FROM {raw.t}"), ["42"]);
    let rows =
        sandbox.query("SELECT load_id, dataset, ordinal, byte_offset, reason, detail, record FROM {raw.rejects} ORDER BY ordinal");
    assert_eq!(rows.len(), cases.len());
    for (index, ((record, reason), row)) in cases.iter().zip(rows).enumerate() {
        let row: Vec<String> = row.into_iter().map(|cell| cell.expect("nothing of a reject is null")).collect();
        assert_eq!(row[..5], ["1", "t", &(index + 1).to_string(), &offsets[index].to_string(), reason]);
        assert!(!row[5].is_empty(), "{reason}");
        let kept = if *reason == "too_large" { &record[..64 << 10] } else { record };
        let bytes: String = kept.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(row[6] == format!("\\x{bytes}"), "{reason}: {:.100}", row[6]);
    }
    let list = sandbox.run(["rejects", "list", "--format", "json"]).ok().json();
    assert_eq!(list["rejects"].as_array().map(Vec::len), Some(cases.len()));
    assert_eq!(list["rejects"][0]["reason"], "not_an_object");
    assert_eq!(sandbox.run(["status", "--format", "json"]).ok().json()["datasets"][0]["open_rejects"], cases.len());
}

fn exported_records_can_be_repaired_and_loaded(sandbox: &Sandbox) {
    sandbox.write("dataloader.toml", TYPED);
    sandbox.write("raw_data/t/x.json", "[{\"id\":\n\t\"one\",\r\n\"note\":\"ä\"},\n{\"id\":2},{\"id\":\"three\"}]");
    sandbox.run(["load"]).code(3);
    let exported = sandbox.run(["rejects", "export", "--dataset", "t"]).ok().stdout;
    assert_eq!(exported, "{\"id\": \t\"one\",  \"note\":\"ä\"}\n{\"id\":\"three\"}\n");
    // A definition may gain a day; only then does a load leave the other rows where they are.
    sandbox.write("dataloader.toml", TYPED.replace("key", "day = \"at\"\nkey") + "at = { type = \"date\", required = true }\n");
    let repaired = exported.replace("\"id\"", "\"at\":\"2024-05-01\",\"id\"").replace("one", "1").replace("three", "3");
    sandbox.write("repaired.ndjson", repaired);
    sandbox.run(["load", "--dataset", "t", "repaired.ndjson"]).ok();
    assert_eq!(sandbox.lines("SELECT id, note FROM {raw.t} ORDER BY id"), ["1|ä", "2|NULL", "3|NULL"]);
    assert_eq!(sandbox.lines("SELECT date, total_t FROM {modelled.t_by_date}"), ["2024-05-01|2"], "a row without a day is in none");
    sandbox.run(["model", "--full", "--check"]).ok();
}

fn a_replay_loads_what_fits_by_now(sandbox: &Sandbox) {
    let required = "[datasets.t]\ndir = \"t\"\nkey = [\"id\"]\nday = \"at\"\n[datasets.t.columns]\nid = \"text\"\n\
                    at = { type = \"date\", required = true }\nnote = { type = \"text\", required = true }\n";
    sandbox.write("dataloader.toml", required);
    let records = [
        r#"{"id":"a","at":"2024-05-01"}"#,
        r#"{"id":"b","at":"2024-05-02","note":"n"}"#,
        r#"{"id":"c","at":"2024-05-02"}"#,
        r#"{"id":"d","at":"never"}"#,
    ];
    sandbox.write("raw_data/t/x.json", array(&records));
    sandbox.run(["load"]).code(3);
    assert_eq!(sandbox.run(["rejects", "replay", "--format", "json"]).ok().json()["datasets"][0]["loaded"], 0);
    assert_eq!(sandbox.count("raw.rejects"), 3);

    sandbox.write("dataloader.toml", required.replace("note = { type = \"text\", required = true }", "note = \"text\""));
    let replay = sandbox.run(["rejects", "replay", "--format", "json"]).ok().json();
    assert_eq!(replay["datasets"][0], serde_json::json!({"dataset": "t", "read": 3, "loaded": 2, "rejected": 1}));
    assert_eq!(sandbox.lines("SELECT id FROM {raw.t} ORDER BY id"), ["a", "b", "c"]);
    assert_eq!(sandbox.lines("SELECT ordinal FROM {raw.rejects}"), ["4"]);
    let by_date = "SELECT date, total_t FROM {modelled.t_by_date} ORDER BY date";
    assert_eq!(sandbox.lines(by_date), ["2024-05-01|1", "2024-05-02|2"]);
    sandbox.run(["model", "--check"]).ok();
    // The file itself, loaded again, replaces what the replay brought.
    let summary = sandbox.run(["load", "--format", "json"]).code(3).json();
    assert_eq!(summary["datasets"][0]["replaced"], 3);
    assert_eq!(sandbox.lines(by_date), ["2024-05-01|1", "2024-05-02|2"]);
}

fn a_replay_is_a_load_of_its_own(sandbox: &Sandbox) {
    sandbox.write("dataloader.toml", TYPED);
    sandbox.write("raw_data/t/x.json", r#"{"id":1,"note":"\u0000"} {"id":2}"#);
    sandbox.run(["load"]).code(3);
    sandbox.run(["rejects", "replay"]).ok();
    let ledger = "SELECT id, source, status, records_read, rows_loaded, rows_rejected FROM {raw.loads} WHERE id > 1";
    assert_eq!(sandbox.lines(ledger), ["2|rejects replay|loaded|1|0|1"]);
    assert_eq!(sandbox.lines("SELECT load_id, seq, first_ordinal, records FROM {raw.batches} ORDER BY 1"), ["1|0|1|2", "2|0|1|1"]);
    sandbox.execute("DELETE FROM {raw.rejects}");
    sandbox.run(["rejects", "replay"]).ok();
    assert_eq!(sandbox.count("raw.loads"), 2, "nothing to replay is no load");
}

fn a_new_load_of_a_file_supersedes_its_rejects(sandbox: &Sandbox) {
    sandbox.write_events("x.json", "{}{}");
    sandbox.write_events("y.json", "{}");
    sandbox.run(["load", "--dataset", "events"]).code(3);
    sandbox.run(["load", "--dataset", "events"]).code(3);
    let open =
        "SELECT l.source LIKE '%/x.json', r.load_id FROM {raw.rejects} r JOIN {raw.loads} l ON l.id = r.load_id ORDER BY 2, 1";
    assert_eq!(sandbox.lines(open), ["1|3", "1|3", "0|4"]);
    sandbox.write_events("x.json", event("a", "ada", "2024-05-01 10:00:00"));
    // The same file, however it is named.
    sandbox.run(["load", "--dataset", "events", "raw_data/../raw_data/events/x.json"]).ok();
    assert_eq!(sandbox.lines(open), ["0|4"]);
}

fn standard_input_supersedes_nothing(sandbox: &Sandbox) {
    let load = ["load", "--dataset", "events", "-"];
    sandbox.command(load).stdin(r#"{"id":"of one pipe"}"#).run().code(3);
    sandbox.command(load).stdin(r#"{"id":"of another pipe"}"#).run().code(3);
    let exported = sandbox.run(["rejects", "export"]).ok().stdout;
    assert_eq!(exported, "{\"id\":\"of one pipe\"}\n{\"id\":\"of another pipe\"}\n");
}

fn a_failed_run_keeps_earlier_rejects(sandbox: &Sandbox) {
    sandbox.write_events("x.json", "{}");
    sandbox.run(["load", "--dataset", "events"]).code(3);
    sandbox.write_events("x.json", "{}{");
    sandbox.run(["load", "--dataset", "events"]).code(1);
    assert_eq!(sandbox.lines("SELECT load_id, reason FROM {raw.rejects}"), ["1|missing_required"]);
}

/// More than are kept in memory at a time: the load writes them in between.
fn very_many_rejects_are_kept(sandbox: &Sandbox) {
    let bad = format!("{{\"id\":\"{}\"}}\n", "x".repeat(2_000)).repeat(6_000);
    sandbox.write_events("x.jsonl", bad + &event("a", "ada", "2024-05-01 10:00:00"));
    sandbox.run(["load", "--dataset", "events"]).code(3);
    assert_eq!(sandbox.lines("SELECT count(*), min(ordinal), max(ordinal) FROM {raw.rejects}"), ["6000|1|6000"]);
    assert_eq!((sandbox.count("raw.events"), sandbox.count("raw.events_delta")), (1, 1));
    let replay = sandbox.run(["rejects", "replay", "--format", "json"]).ok().json();
    assert_eq!(replay["datasets"][0]["rejected"], 6000);
}

/// A table with so many rejects, all of one load.
fn with_rejects(sandbox: &Sandbox, count: u64) {
    sandbox.write_events("x.json", "{}");
    sandbox.run(["load", "--dataset", "events"]).code(3);
    let numbers = match sandbox.store() {
        Store::Postgres => format!("SELECT n FROM generate_series(2, {count}) n"),
        Store::Sqlite => {
            format!("WITH RECURSIVE s(n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM s WHERE n < {count}) SELECT n FROM s")
        }
    };
    let (detail, rejects) = ("x".repeat(200), sandbox.table("raw.rejects"));
    sandbox.execute(&format!(
        "INSERT INTO {rejects} (load_id, dataset, ordinal, byte_offset, reason, detail, record) \
         SELECT r.load_id, r.dataset, n, n * 3, 'type_mismatch', '{detail}', r.record FROM {rejects} r, ({numbers}) s"
    ));
}

fn very_many_rejects_are_listed_in_constant_memory(sandbox: &Sandbox) {
    const REJECTS: u64 = 50_000;
    /// What the program takes with a page of them is far below, what it takes with all of them far above.
    const MOST_KB: u64 = 64_000;
    with_rejects(sandbox, REJECTS);
    for format in ["text", "json"] {
        let (listed, peak) = Sandbox::wait_and_measure(sandbox.spawn(["rejects", "list", "--format", format]));
        let listed = listed.ok();
        println!("{format}: {peak} kB at most");
        assert!((1..MOST_KB).contains(&peak), "{format}: {peak} kB");
        if format == "json" {
            assert_eq!(listed.json()["rejects"].as_array().map(|rejects| rejects.len() as u64), Some(REJECTS));
        } else {
            assert_eq!(listed.stdout.lines().count() as u64, REJECTS + 2, "a header, a rule, and a line each");
            let widths: std::collections::BTreeSet<usize> = listed.stdout.lines().skip(3).map(str::len).collect();
            assert_eq!(widths.len(), 1, "the columns of all parts are aligned: {widths:?}");
        }
    }
}

#[test]
fn a_terminal_shows_the_first_rejects_and_how_many_more_there_are() {
    let sandbox = Sandbox::new(Store::Sqlite);
    with_rejects(&sandbox, 1_234);
    let list = format!("{} rejects list", env!("CARGO_BIN_EXE_dataloader"));
    let shown = Invocation::new("script", sandbox.path()).args(["-qec", &list, "/dev/null"]).run().ok().stdout;
    assert_eq!(shown.matches("type_mismatch").count(), 99, "{shown}");
    assert!(shown.contains("and 1,134 more"), "{shown}");
}
