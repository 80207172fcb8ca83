//! `dataloader model`: what is pending is refreshed, all is recomputed on demand, and a difference is found.

use crate::support::{Sandbox, on_both_stores, write_samples};

on_both_stores!(
    a_check_finds_rows_that_differ_and_full_repairs_them,
    a_check_finds_rows_that_are_there_twice,
    a_check_of_nothing_passes,
    changed_days_are_refreshed_and_no_others,
    the_rows_of_a_day_have_an_index,
);

const BY_DATE: &str = "SELECT date, total_events, unique_events, unique_users FROM {modelled.events_by_date} ORDER BY date";

fn loaded(sandbox: &Sandbox) -> Vec<String> {
    write_samples(sandbox);
    sandbox.run(["load"]).ok();
    sandbox.lines(BY_DATE)
}

fn a_check_finds_rows_that_differ_and_full_repairs_them(sandbox: &Sandbox) {
    let before = loaded(sandbox);
    sandbox.execute("UPDATE {modelled.events_by_date} SET total_events = 99 WHERE date = '2024-02-28'");
    sandbox.execute("DELETE FROM {modelled.events_by_date_user_type} WHERE user_type = ''");
    let outcome = sandbox.run(["model", "--check"]).code(1);
    let expected = [
        "modelled.events_by_date differs from a full recompute: 1 rows too many, 1 missing",
        "modelled.events_by_date_user_type differs from a full recompute: 0 rows too many, 2 missing",
    ];
    assert!(expected.iter().all(|line| outcome.stdout.contains(line)), "{}", outcome.stdout);
    assert!(outcome.stdout.contains("dataloader model --full"), "{}", outcome.stdout);
    let json = sandbox.run(["model", "--check", "--format", "json"]).code(1).json();
    assert_eq!(json["differences"][0], serde_json::json!({"table": "events_by_date", "surplus": 1, "missing": 1}));
    sandbox.run(["model", "--full"]).ok();
    assert_eq!(sandbox.lines(BY_DATE), before);
    sandbox.run(["model", "--check"]).ok();
}

fn a_check_finds_rows_that_are_there_twice(sandbox: &Sandbox) {
    loaded(sandbox);
    sandbox.execute("INSERT INTO {modelled.events_by_date} SELECT * FROM {modelled.events_by_date} WHERE date = '2024-03-01'");
    sandbox.run(["model", "--check"]).code(1);
    sandbox.run(["model", "--full", "--check"]).ok();
}

fn a_check_of_nothing_passes(sandbox: &Sandbox) {
    sandbox.run(["model", "--check"]).ok();
    let report = sandbox.run(["report", "--format", "json"]).ok().json();
    assert_eq!(report["datasets"][0]["tables"][0]["rows"], serde_json::json!([]));
}

fn changed_days_are_refreshed_and_no_others(sandbox: &Sandbox) {
    loaded(sandbox);
    sandbox.execute("UPDATE {modelled.events_by_date} SET total_events = 99");
    sandbox.run(["load", "--date", "2024-02-28"]).ok();
    let right = "SELECT date FROM {modelled.events_by_date} WHERE total_events <> 99";
    assert_eq!(sandbox.lines(right), ["2024-02-28"]);
    sandbox.run(["model"]).ok();
    assert_eq!(sandbox.lines(right), ["2024-02-28"], "nothing was pending");
}

/// A load makes it after the rows, and what is missing comes back: without it every refresh reads the whole table.
fn the_rows_of_a_day_have_an_index(sandbox: &Sandbox) {
    let (find, index) = if sandbox.is_sqlite() {
        ("SELECT count(*) FROM sqlite_schema WHERE type = 'index' AND tbl_name = 'raw_events'", "\"raw_events.day\"")
    } else {
        ("SELECT count(*) FROM pg_indexes WHERE schemaname = 'raw' AND tablename = 'events'", "raw.\"events.day\"")
    };
    sandbox.run(["migrate"]).ok();
    assert_eq!(sandbox.lines(find), ["0"], "over no rows it would only slow the first load");
    write_samples(sandbox);
    for command in ["load", "migrate", "load", "model", "run --once"] {
        sandbox.run(command.split(' ')).ok();
        assert_eq!(sandbox.lines(find), ["1"], "after `{command}`");
        sandbox.execute(&format!("DROP INDEX {index}"));
    }
}
