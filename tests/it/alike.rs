//! Both databases hold the same rows after the same commands, whatever carries the records: every table is read and compared.

use serde_json::Value as Json;

use crate::support::{Sandbox, Store, Transport, write_samples};

const CONFIG: &str = r#"
[datasets.nasty]
dir = "nasty"
key = ["a", "b", "f"]
day = "h"
[datasets.nasty.columns]
a = "text"
b = "bigint"
c = "double"
d = "numeric"
e = "boolean"
f = "date"
g = "timestamp"
h = { type = "timestamptz", required = true }
i = "uuid"
j = "jsonb"
[datasets.nasty.model]
dimensions = ["a", "b", "c", "e", "f", "g", "i"]
distinct = { names = "a", numbers = "b", reals = "c", booleans = "e", dates = "f", times = "g", ids = "i" }
"#;

/// Values of each column's type, those at the limits and those that are refused among them.
const VALUES: [(&str, &[&str]); 10] = [
    (
        "a",
        &[
            r#""""#,
            r#""\t\"\\\u00fc|NULL""#,
            "1.50",
            "true",
            r#"{"k": [1, 2]}"#,
            r#""\ud83d\ude00""#,
            r#""é""#,
            r#""e\u0301""#,
            r#""A ""#,
            r#""a""#,
            r#""\u0000""#,
            r#""\ud800""#,
        ],
    ),
    (
        "b",
        &[
            "0",
            "-0",
            "9223372036854775807",
            "-9223372036854775808",
            r#""42""#,
            "1.0",
            "1e3",
            "9223372036854775808",
            "1.5",
            r#"" 1""#,
        ],
    ),
    (
        "c",
        &[
            "0",
            "0.1",
            "-0.0",
            "1e308",
            "4.9e-324",
            "2.2250738585072014e-308",
            "1e15",
            "123456789012345680000",
            r#""3""#,
            "1e400",
            r#""NaN""#,
        ],
    ),
    (
        "d",
        &[
            "0",
            "0.00",
            "-1.50",
            "1e5",
            "1.5e-7",
            "123456789012345678901234567890.123456789",
            "00",
            r#""0100""#,
            r#""1e2""#,
            "-0.0",
            "1e200000",
            "0.0001",
            "10000",
            "99999999",
        ],
    ),
    ("e", &["true", "false", r#""true""#, "1", r#""no""#]),
    ("f", &[r#""0001-01-01""#, r#""9999-12-31""#, r#""2000-02-29""#, r#""1900-02-29""#, r#""2024-5-1""#]),
    (
        "g",
        &[
            r#""0001-01-01 00:00:00""#,
            r#""9999-12-31T23:59:59.999999""#,
            r#""1969-12-31T23:59:59.999999Z""#,
            r#""2024-05-01T24:00:00""#,
            r#""2024-05-01T23:59:60""#,
            r#""2024-05-01""#,
        ],
    ),
    (
        "h",
        &[
            r#""0001-01-01T00:00:00Z""#,
            r#""9999-12-31T23:59:59.999999Z""#,
            r#""2024-05-01T01:00:00+02:00""#,
            r#""2024-05-01T01:00:00""#,
            r#""0001-01-01T00:00:00+01:00""#,
            "null",
        ],
    ),
    (
        "i",
        &[
            r#""0190163D-8694-739B-AEA5-966C26F8AD91""#,
            r#""0190163d8694739baea5966c26f8ad91""#,
            r#""00000000-0000-0000-0000-000000000000""#,
            r#""x""#,
        ],
    ),
    ("j", &["1", r#""x""#, "[]", r#"{"a": {"b": [null, true, "\u00e9"]}, "c": 1.5}"#, "null", r#"[1e400000]"#, r#""\u0000""#]),
];

/// One record for each value, the other columns plain or null.
fn nasty_file() -> String {
    let mut records = String::new();
    for (column, values) in VALUES {
        for (index, value) in values.iter().enumerate() {
            for others in [r#""a": "plain", "b": 7, "c": 0.5, "e": false, "#, r#""a": null, "b": null, "#] {
                let kept: Vec<&str> = others.split(", ").filter(|member| !member.starts_with(&format!("\"{column}\""))).collect();
                let day = if column == "h" { String::new() } else { format!("\"h\": \"2024-05-0{}T12:00:00Z\", ", index % 3 + 1) };
                records += &format!("{{{}{day}\"unknown\": [{index}, \"x\"], \"{column}\": {value}}}\n", kept.join(", "));
            }
        }
    }
    records
}

/// The rows of a table in an order of their own, without what differs between any two runs.
fn dump(sandbox: &Sandbox, table: &str, columns: &str, json: &[usize]) -> Vec<Vec<String>> {
    let mut rows: Vec<Vec<String>> = sandbox
        .query(&format!("SELECT {columns} FROM {{{table}}}"))
        .into_iter()
        .map(|row| {
            let text = |(index, cell): (usize, Option<String>)| match cell {
                // White space and the order of keys mean nothing in JSON.
                Some(text) if json.contains(&index) => serde_json::from_str::<Json>(&text).expect("stored as JSON").to_string(),
                Some(text) => text,
                None => "NULL".to_owned(),
            };
            row.into_iter().enumerate().map(text).collect()
        })
        .collect();
    rows.sort();
    rows
}

const DATA: &str = "a, b, c, d, e, f, g, h, i, j, _extra, _load_id";
const COUNTS: &str = "total_nasty, unique_nasty, names, numbers, reals, booleans, dates, times, ids";
const LOADS: &str = "id, dataset, bytes, status, records_read, rows_loaded, rows_rejected, records_skipped, error";

#[track_caller]
fn assert_alike(sandboxes: &[Sandbox; 2], table: &str, columns: &str, json: &[usize]) {
    let [sqlite, postgres] = sandboxes.each_ref().map(|sandbox| dump(sandbox, table, columns, json));
    for (left, right) in sqlite.iter().zip(&postgres) {
        assert_eq!(left, right, "{table}: {columns}");
    }
    assert_eq!(sqlite.len(), postgres.len(), "{table}");
    assert!(!sqlite.is_empty(), "{table}");
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn nasty_values_are_alike_in_every_table() {
    let sandboxes = [Sandbox::new(Store::Sqlite), Sandbox::new(Store::Postgres)];
    for sandbox in &sandboxes {
        sandbox.write("dataloader.toml", CONFIG);
        sandbox.write("raw_data/nasty/1.jsonl", nasty_file());
        sandbox.run(["load"]).code(3);
        sandbox.write("raw_data/nasty/2.jsonl", nasty_file().replace("2024-05-02", "2024-05-04"));
        sandbox.run(["load"]).code(3);
        sandbox.run(["load", "--date", "2024-05-03"]).code(3);
        sandbox.run(["rejects", "replay"]).ok();
        sandbox.run(["model", "--check"]).ok();
    }
    assert_alike(&sandboxes, "raw.nasty", DATA, &[9, 10]);
    assert_alike(&sandboxes, "raw.nasty_delta", DATA, &[9, 10]);
    assert_alike(&sandboxes, "raw.loads", LOADS, &[]);
    assert_alike(&sandboxes, "raw.batches", "load_id, seq, first_ordinal, records", &[]);
    assert_alike(&sandboxes, "raw.rejects", "load_id, dataset, ordinal, byte_offset, reason, detail, record", &[]);
    assert_alike(&sandboxes, "modelled.nasty_by_date", &format!("date, {COUNTS}"), &[]);
    for dimension in ["a", "b", "c", "e", "f", "g", "i"] {
        assert_alike(&sandboxes, &format!("modelled.nasty_by_date_{dimension}"), &format!("date, {dimension}, {COUNTS}"), &[]);
    }
}

/// Settings that only decide how chunks share transactions.
const ONE_BY_ONE: &str = "\n[stream]\nbatch_rows = 1\nbatch_interval_ms = 0\nmodel_delay_ms = 0\nparsers = 1\nwriters = 1\n";

/// Values of all kinds and their rejects; lines and an array of more than one chunk; nothing.
fn files() -> [(&'static str, String); 4] {
    let records = |count: usize| -> String {
        let record = |i: usize| format!("{{\"a\":\"{i}\",\"b\":{i},\"h\":\"2024-05-0{}T10:00:00Z\"}}\n", i % 9 + 1);
        (1..=count).map(record).collect()
    };
    let array = format!("\n[{}]", records(1_100).trim().replace('\n', " ,\n"));
    [("1.jsonl", nasty_file()), ("2.json", array), ("3.jsonl", records(2_345)), ("4.json", " \n".to_owned())]
}

/// Everything that is in the tables, each file's by its name: every way takes them in an order of its own.
fn everything(sandbox: &Sandbox) -> Vec<Vec<String>> {
    let mut all = dump(sandbox, "raw.nasty", "a, b, c, d, e, f, g, h, i, j, _extra", &[9, 10]);
    let by_file = [
        "SELECT l.source, 'load', l.bytes, l.status, l.records_read, l.rows_loaded, l.rows_rejected, l.records_skipped, l.error \
         FROM {raw.loads} l",
        "SELECT l.source, 'rows', count(*) FROM {raw.nasty} n JOIN {raw.loads} l ON l.id = n._load_id GROUP BY l.source",
        "SELECT l.source, 'chunk', b.seq, b.first_ordinal, b.records FROM {raw.batches} b JOIN {raw.loads} l ON l.id = b.load_id",
        "SELECT l.source, 'reject', r.dataset, r.ordinal, r.byte_offset, r.reason, r.detail, r.record \
         FROM {raw.rejects} r JOIN {raw.loads} l ON l.id = r.load_id",
    ];
    for row in by_file.iter().flat_map(|sql| sandbox.query(sql)) {
        let mut row: Vec<String> = row.into_iter().map(|cell| cell.unwrap_or_else(|| "NULL".to_owned())).collect();
        row[0] = row[0].rsplit('/').next().map(str::to_owned).expect("a path");
        all.push(row);
    }
    all.extend(dump(sandbox, "modelled.nasty_by_date", &format!("'model', date, {COUNTS}"), &[]));
    for dimension in ["a", "b", "c", "e", "f", "g", "i"] {
        let columns = format!("'model of {dimension}', date, {dimension}, {COUNTS}");
        all.extend(dump(sandbox, &format!("modelled.nasty_by_date_{dimension}"), &columns, &[]));
    }
    all.sort();
    all
}

#[test]
#[ignore = "needs PostgreSQL and RabbitMQ: ./run.sh test"]
fn batch_and_stream_over_any_transport_fill_the_tables_alike() {
    let mut first: Option<Vec<Vec<String>>> = None;
    for store in [Store::Sqlite, Store::Postgres] {
        let mut compare = |way: &str, sandbox: &Sandbox| {
            sandbox.run(["model", "--check"]).ok();
            let found = everything(sandbox);
            let expected = first.get_or_insert_with(|| found.clone());
            for (expected, found) in expected.iter().zip(&found) {
                assert_eq!(found, expected, "{way} on {store:?}");
            }
            assert_eq!(found.len(), expected.len(), "{way} on {store:?}");
        };
        let batch = Sandbox::new(store);
        batch.write("dataloader.toml", CONFIG);
        for (name, contents) in files() {
            batch.write(&format!("raw_data/nasty/{name}"), contents);
        }
        batch.run(["load"]).code(3);
        assert!(batch.count("raw.nasty") > 3_445, "the values that fit are there, too");
        compare("batch", &batch);
        for (transport, settings) in
            [(Transport::Inproc, ONE_BY_ONE), (Transport::Inproc, ""), (Transport::Amqp, ONE_BY_ONE), (Transport::Amqp, "")]
        {
            let stream = Sandbox::over(transport, store);
            stream.write("dataloader.toml", CONFIG.to_owned() + settings);
            for (name, contents) in files() {
                stream.drop_in("nasty", name, contents);
            }
            stream.run_once().code(3);
            compare(&format!("{transport:?}{settings}"), &stream);
        }
    }
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn commands_answer_alike() {
    let sandboxes = [Sandbox::new(Store::Sqlite), Sandbox::new(Store::Postgres)];
    for sandbox in &sandboxes {
        write_samples(sandbox);
        sandbox.write_events("bad.jsonl", "{}\n{\"id\": 1}\n");
        sandbox.run(["load"]).code(3);
    }
    for command in [&["report"][..], &["report", "--format", "json"], &["rejects", "export"], &["model", "--check"]] {
        let [sqlite, postgres] = sandboxes.each_ref().map(|sandbox| sandbox.run(command.iter().copied()).ok().stdout);
        // Each store sorts texts by its own rules.
        let sorted = |text: String| {
            let mut lines: Vec<String> = text.replace("},{", "},\n{").lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(sorted(sqlite), sorted(postgres), "{command:?}");
    }
}
