//! Columns that are added to a definition later are filled from `_extra` of the rows that are there.

use std::time::Instant;

use serde_json::json;

use crate::support::{Sandbox, Signal, on_both_stores};

on_both_stores!(
    the_rows_are_those_of_a_fresh_load,
    a_new_dimension_is_modelled_within_the_command,
    what_does_not_fit_stays_and_is_counted,
    rows_of_any_number_are_filled_page_by_page,
    a_backfill_that_is_killed_happened_as_a_whole_or_not,
);

const OLD: &str = "[datasets.visits]\nkey = [\"id\"]\nday = \"at\"\n[datasets.visits.columns]\nid = \"text\"\n\
    at = { type = \"timestamp\", required = true }\nlogin = { type = \"text\", from = \"/actor/login\" }\n";
/// One column of each type, from keys and from inside of nested values.
const ADDED: &str = "a = \"text\"\nb = { type = \"bigint\", from = \"Big No.\" }\nc = { type = \"double\", from = \"/n/c\" }\n\
    d = { type = \"numeric\", from = \"/n/d\" }\ne = \"boolean\"\nf = \"date\"\ng = { type = \"timestamp\", from = \"/l/0\" }\n\
    h = { type = \"timestamptz\", from = \"/l/1\" }\ni = { type = \"uuid\", from = \"/actor/id\" }\nj = \"jsonb\"\n";
const RECORDS: &str = r#"{"id":"1","at":"2024-05-01T10:00:00","a":"ü\t\"'\\ ","Big No.":-9223372036854775808,"n":{"c":0.1,"d":123456789012345678901234567890.10},"e":true,"f":"0001-01-01","l":["9999-12-31T23:59:59.999999","2024-05-01T01:30:00.5+02:00"],"actor":{"login":"ann","id":"0190163D8694739BAEA5966C26F8AD91"},"j":[1,"x"],"z":1}
{"id":"2","at":"2024-05-01T11:00:00","a":42.50,"Big No.":"9223372036854775807","n":{"c":"-7.62939453125e-6","d":"-0.000001","w":1.50},"e":"false","f":"2024-02-29","l":["2024-05-01 10:00","2024-05-01 10:00:00",3],"actor":{"id":"0190163d-8694-739b-aea5-966c26f8ad91"},"j":"text"}
{"id":"3","at":"2024-05-02T11:00:00","a":null,"n":{"c":1e300,"d":1.50e3},"l":[null,null],"actor":{"login":null,"team":{"name":"x"}},"j":{"k":5e-324}}
{"id":"4","at":"2024-05-02T12:00:00","n":5,"l":{"0":"2024-05-01"},"actor":"none","other":{"a":1}}
{"id":"5","at":"2024-05-03T12:00:00"}
"#;
const ROWS: &str = "SELECT id, at, login, a, b, c, d, e, f, g, h, i, CAST(j AS text), CAST(_extra AS text), _load_id FROM {raw.visits} ORDER BY id";

/// Loads the records with the old definition, then gives the dataset the new one.
fn loaded_before(sandbox: &Sandbox, records: &str, added: &str) {
    sandbox.write("dataloader.toml", OLD);
    sandbox.write("raw_data/visits/x.jsonl", records);
    sandbox.run(["load"]).ok();
    sandbox.write("dataloader.toml", format!("{OLD}{added}"));
}

fn the_rows_are_those_of_a_fresh_load(sandbox: &Sandbox) {
    loaded_before(sandbox, RECORDS, ADDED);
    let filled = sandbox.run(["migrate", "--backfill", "--format", "json"]).ok().json();
    assert_eq!(filled["backfilled"][0]["rows"], 4, "{filled}");
    let rows = sandbox.lines(ROWS);
    assert!(rows[0].ends_with(r#"|[1, "x"]|{"z": 1}|1"#) || rows[0].ends_with(r#"|[1,"x"]|{"z":1}|1"#), "{}", rows[0]);
    let delta = sandbox.lines(&ROWS.replace("raw.visits", "raw.visits_delta"));
    assert_eq!(delta, rows, "the rows of the latest run, too");
    sandbox.assert_booked();
    let again = sandbox.run(["migrate", "--backfill", "--format", "json"]).ok().json();
    assert_eq!(again["backfilled"], json!([{"dataset": "visits", "rows": 0, "columns": [], "lacking": []}]));

    let fresh = Sandbox::new(sandbox.store());
    fresh.write("dataloader.toml", format!("{OLD}{ADDED}"));
    fresh.write("raw_data/visits/x.jsonl", RECORDS);
    fresh.run(["load"]).ok();
    assert_eq!(rows, fresh.lines(ROWS));
}

fn a_new_dimension_is_modelled_within_the_command(sandbox: &Sandbox) {
    let added = "a = \"text\"\n[datasets.visits.model]\ndimensions = [\"a\"]\ndistinct = { users = \"a\" }\n";
    loaded_before(sandbox, RECORDS, added);
    // Other commands have made the modelled tables anew before.
    sandbox.run(["model"]).ok();
    let by_a = "SELECT date, coalesce(a, '-'), total_visits, users FROM {modelled.visits_by_date_a} ORDER BY 1, 2";
    assert_eq!(sandbox.lines(by_a), ["2024-05-01|-|2|0", "2024-05-02|-|2|0", "2024-05-03|-|1|0"]);
    sandbox.run(["migrate", "--backfill"]).ok();
    assert_eq!(sandbox.lines(by_a), ["2024-05-01|42.50|1|1", "2024-05-01|ü\t\"'\\ |1|1", "2024-05-02|-|2|0", "2024-05-03|-|1|0"]);
    sandbox.assert_booked();
}

fn what_does_not_fit_stays_and_is_counted(sandbox: &Sandbox) {
    let records = "{\"id\":\"1\",\"at\":\"2024-05-01\",\"a\":1,\"b\":\"x\"}\n{\"id\":\"2\",\"at\":\"2024-05-01\",\"a\":\"none\"}\n\
        {\"id\":\"3\",\"at\":\"2024-05-01\",\"a\":1e30}\n";
    loaded_before(sandbox, records, "a = { type = \"bigint\", required = true }\nb = \"text\"\n");
    let told = sandbox.run(["migrate", "--backfill"]).ok().stdout;
    assert!(
        told.contains("2 values of visits.a stay in _extra, the first because \"none\" is no integer (expected e.g. 42)"),
        "{told}"
    );
    assert!(told.contains("2 rows of visits have no a, which is required now"), "{told}");
    let rows = sandbox.lines("SELECT id, a, b, _extra IS NULL FROM {raw.visits} ORDER BY id");
    assert_eq!(rows, ["1|1|x|1", "2|NULL|NULL|0", "3|NULL|NULL|0"]);
    let again = sandbox.run(["migrate", "--backfill", "--format", "json"]).ok().json();
    let column = json!({"column": "a", "filled": 0, "left": 2, "first_left": "\"none\" is no integer (expected e.g. 42)"});
    let expected = json!({"dataset": "visits", "rows": 0, "columns": [column], "lacking": [{"column": "a", "rows": 2}]});
    assert_eq!(again["backfilled"], json!([expected]));
}

fn many(records: usize) -> String {
    (0..records).map(|i| format!("{{\"id\":\"{i}\",\"at\":\"2024-05-01\",\"a\":\"a{}\",\"z\":{i}}}\n", i % 7)).collect()
}

fn rows_of_any_number_are_filled_page_by_page(sandbox: &Sandbox) {
    loaded_before(sandbox, &many(1_000), "a = \"text\"\n[datasets.visits.model]\ndimensions = [\"a\"]\n");
    let filled = sandbox.run(["migrate", "--backfill", "--format", "json"]).ok().json();
    assert_eq!(filled["backfilled"][0]["columns"], json!([{"column": "a", "filled": 1_000, "left": 0}]));
    assert_eq!(
        sandbox.lines("SELECT a, count(*), count(_extra) FROM {raw.visits} GROUP BY a ORDER BY a LIMIT 2"),
        ["a0|143|143", "a1|143|143"]
    );
    sandbox.assert_booked();
}

fn a_backfill_that_is_killed_happened_as_a_whole_or_not(sandbox: &Sandbox) {
    const ROWS: usize = 2_000;
    const KILLS: u32 = 8;
    loaded_before(sandbox, &many(ROWS), "a = \"text\"\n[datasets.visits.model]\ndimensions = [\"a\"]\n");
    sandbox.run(["model"]).ok();
    let state = "SELECT count(a), sum(CASE WHEN CAST(_extra AS text) LIKE '%\"a\"%' THEN 1 ELSE 0 END), \
                 (SELECT count(*) FROM {modelled.visits_by_date_a}) FROM {raw.visits}";
    let (before, after) = (format!("0|{ROWS}|1"), format!("{ROWS}|0|7"));
    let backfill = ["migrate", "--backfill"];
    let started = Instant::now();
    sandbox.run(["migrate"]).ok();
    let idle = started.elapsed();
    assert_eq!(sandbox.lines(state), [before.as_str()]);
    for kill in 0..KILLS {
        // A moment later each time, until it ends before it is killed.
        let mut background = sandbox.spawn(backfill);
        std::thread::sleep(idle.mul_f64(f64::from(kill + 1) / 3.0));
        if background.is_running() {
            background.signal(Signal::Kill);
        }
        background.wait();
        sandbox.wait_until_the_kill_is_noticed();
        let found = sandbox.lines(state);
        assert!(found == [before.as_str()] || found == [after.as_str()], "{found:?}");
    }
    sandbox.run(backfill).ok();
    assert_eq!(sandbox.lines(state), [after.as_str()]);
    sandbox.assert_booked();
}
