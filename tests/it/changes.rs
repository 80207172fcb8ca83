//! The model in the cost of the change: small changes are applied, large ones recomputed, and either gives the rows of a plain
//! recomputation, whatever was appended, replaced, redefined or killed before.

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use crate::support::{Sandbox, Signal, Store, event, many_events, on_both_stores, wait_until};

on_both_stores!(
    random_changes_give_what_a_recomputation_gives,
    small_changes_of_a_large_day_are_applied,
    small_batch_loads_into_a_large_day_are_applied,
    small_batch_loads_into_a_large_table_find_their_rows_by_an_index,
    occurrences_that_do_not_fit_are_built_again,
);

/// Two definitions of the same raw table. The key does not hold the day, so a batch load can move a row to another day.
const DEFINITIONS: [&str; 2] = [
    "dimensions = [\"site\"]\ndistinct = { sensors = \"sensor\", kinds = \"kind\" }",
    "dimensions = [\"kind\", \"site\"]\ndistinct = { sensors = \"sensor\" }",
];

fn define(sandbox: &Sandbox, definition: usize) {
    let columns = "site = \"text\"\nsensor = \"bigint\"\nkind = \"text\"\nat = { type = \"timestamptz\", required = true }";
    let model = DEFINITIONS[definition];
    sandbox.write(
        "dataloader.toml",
        format!(
            "[datasets.readings]\ndir = \"readings\"\nkey = [\"site\", \"sensor\"]\nday = \"at\"\n\
             [datasets.readings.columns]\n{columns}\n[datasets.readings.model]\n{model}\n"
        ),
    );
}

/// Readings with few different values, null among them, on three days.
fn readings() -> impl Strategy<Value = String> {
    let value = |values: &'static [&'static str]| prop::sample::select(values);
    let reading = (value(&["null", "\"a\"", "\"b\""]), value(&["null", "1", "2"]), value(&["null", "\"x\"", "\"y\""]), 1..4);
    prop::collection::vec(reading, 1..6).prop_map(|readings| {
        let line = |(site, sensor, kind, day): (&str, &str, &str, i32)| {
            format!("{{\"site\":{site},\"sensor\":{sensor},\"kind\":{kind},\"at\":\"2024-05-0{day}T23:30:00Z\"}}\n")
        };
        readings.into_iter().map(line).collect()
    })
}

#[derive(Debug, Clone)]
enum Step {
    /// The stream appends these readings.
    Drop(String),
    /// A batch load replaces those of the same key.
    Load(String),
    /// A pipeline, or else a load, is killed after so many milliseconds.
    Kill(String, bool, u64),
    /// The model gets another definition.
    Define(usize),
}

fn steps() -> impl Strategy<Value = Vec<(Step, &'static str)>> {
    let step = prop_oneof![
        4 => readings().prop_map(Step::Drop),
        4 => readings().prop_map(Step::Load),
        1 => (readings(), any::<bool>(), 5..120_u64).prop_map(|(readings, is_stream, after)| Step::Kill(readings, is_stream, after)),
        1 => (0..DEFINITIONS.len()).prop_map(Step::Define),
    ];
    prop::collection::vec((step, prop::sample::select(&["apply", "apply", "apply", "recompute"][..])), 8..14)
}

/// Takes a step. The commands of the step, and the check after it, are forced to model in this way.
fn take(sandbox: &Sandbox, number: usize, step: &Step, way: &str) {
    let command = |args: &[&'static str]| sandbox.command(args.iter().copied()).env("DATALOADER_MODEL", way);
    match step {
        Step::Drop(readings) => {
            sandbox.drop_in("readings", format!("{number}.jsonl"), readings);
            command(&["run", "--once"]).run().ok();
        }
        Step::Load(readings) => {
            sandbox.write("raw_data/readings/x.jsonl", readings);
            command(&["load"]).run().ok();
        }
        Step::Kill(readings, is_stream, after) => {
            sandbox.write("raw_data/readings/x.jsonl", readings);
            if *is_stream {
                sandbox.drop_in("readings", format!("{number}.jsonl"), readings);
            }
            let mut background = command(if *is_stream { &["run"] } else { &["load"] }).spawn();
            std::thread::sleep(Duration::from_millis(*after));
            if background.is_running() {
                background.signal(Signal::Kill);
            }
            background.wait();
            sandbox.wait_until_the_kill_is_noticed();
        }
        Step::Define(definition) => define(sandbox, *definition),
    }
    command(&["model", "--check"]).run().ok();
}

fn random_changes_give_what_a_recomputation_gives(sandbox: &Sandbox) {
    let store = sandbox.store();
    let config = Config { cases: 6, max_shrink_iters: 8, failure_persistence: None, ..Config::default() };
    let run = TestRunner::new(config).run(&steps(), |steps| {
        let sandbox = Sandbox::new(store);
        define(&sandbox, 0);
        for (number, (step, way)) in steps.iter().enumerate() {
            take(&sandbox, number, step, way);
        }
        sandbox.run(["model", "--full", "--check"]).ok();
        Ok::<(), TestCaseError>(())
    });
    run.unwrap_or_else(|failure| panic!("{failure}"));
}

const TOTALS: &str = "SELECT total_events, unique_events, unique_users FROM {modelled.events_by_date}";
const LARGE: usize = 2_500;

fn large_day(sandbox: &Sandbox) {
    sandbox.write_events("x.jsonl", many_events(LARGE, "ada"));
    sandbox.run(["load", "--dataset", "events"]).ok();
}

fn built(sandbox: &Sandbox) -> Vec<String> {
    let busy = if sandbox.is_sqlite() { "\"dataloader_events.busy\"" } else { "dataloader.\"events.busy\"" };
    sandbox.lines(&format!("SELECT count(build) FROM {busy}"))
}

fn drop_one(sandbox: &Sandbox, id: &str, user: &str) {
    sandbox.drop_in("events", format!("{id}.jsonl"), event(id, user, "2024-05-01 11:00:00"));
    sandbox.run_once().ok();
}

/// Wrong totals show which way a refresh goes: a recomputation would repair them.
fn small_changes_of_a_large_day_are_applied(sandbox: &Sandbox) {
    large_day(sandbox);
    drop_one(sandbox, "a", "ada");
    assert_eq!(built(sandbox), ["0"], "one small change says nothing about the next");
    drop_one(sandbox, "b", "ben");
    assert_eq!(built(sandbox), ["1"]);
    assert_eq!(sandbox.lines(TOTALS), ["2502|2502|2"]);
    sandbox.execute("UPDATE {modelled.events_by_date} SET total_events = total_events + 1000");
    drop_one(sandbox, "b", "cy");
    assert_eq!(sandbox.lines(TOTALS), ["3503|2502|3"], "the same event again, of another user");
    sandbox.run(["model", "--check"]).code(1);
    // Many rows at once mark the day: it is recomputed, and has no occurrences any more.
    sandbox.drop_in("events", "many.jsonl", many_events(1_500, "ada"));
    sandbox.run_once().ok();
    assert_eq!(sandbox.lines(TOTALS), ["4003|2502|3"]);
    assert_eq!(built(sandbox), ["0"]);
    sandbox.run(["model", "--check"]).ok();
}

/// A load prepares a day that it changes for the second time, after it has shown its result.
fn small_batch_loads_into_a_large_day_are_applied(sandbox: &Sandbox) {
    large_day(sandbox);
    for (id, builds) in [("a", "0"), ("b", "1")] {
        sandbox.write_events("x.jsonl", event(id, "ben", "2024-05-01 11:00:00"));
        sandbox.run(["load", "--dataset", "events"]).ok();
        assert_eq!(built(sandbox), [builds], "after {id}");
    }
    sandbox.execute("UPDATE {modelled.events_by_date} SET total_events = total_events + 1000");
    sandbox.write_events("x.jsonl", event("a", "cy", "2024-05-01 11:00:00") + &event("b", "cy", "2024-05-01 11:00:00"));
    let summary = sandbox.run(["load", "--dataset", "events", "--format", "json"]).ok().json();
    assert_eq!(summary["datasets"][0]["replaced"], 2);
    assert_eq!(sandbox.lines(TOTALS), ["3502|2502|2"], "cy has replaced ben");
    sandbox.execute("UPDATE {modelled.events_by_date} SET total_events = total_events - 1000");
    sandbox.run(["model", "--check"]).ok();
}

/// More rows than a search without an index may read.
fn large_table(sandbox: &Sandbox) {
    sandbox.run(["migrate"]).ok();
    let at = if sandbox.is_sqlite() { "'2024-05-01 10:00:00.000000'" } else { "timestamp '2024-05-01 10:00:00'" };
    sandbox.execute(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 21000) \
         INSERT INTO {{raw.events}} (id, event_type, username, received_at) \
         SELECT cast(i AS text), CASE WHEN i % 2 = 0 THEN 'even' END, 'ada', {at} FROM n"
    ));
    sandbox.run(["model", "--full"]).ok();
}

/// Two records of that table, keys with and without a null, and a new one.
fn few(sandbox: &Sandbox, user: &str) {
    let rows = [("1", "null"), ("2", "\"even\""), ("new", "null")].map(|(id, kind)| {
        format!("{{\"id\":\"{id}\",\"event_type\":{kind},\"username\":\"{user}\",\"received_at\":\"2024-05-01 10:00:00\"}}\n")
    });
    sandbox.write_events("x.jsonl", rows.concat());
}

fn has_key_index(sandbox: &Sandbox) -> bool {
    let indexes = match sandbox.is_sqlite() {
        true => "SELECT count(*) FROM sqlite_schema WHERE name = 'raw_events.key'",
        false => "SELECT count(*) FROM pg_indexes WHERE indexname = 'events.key'",
    };
    sandbox.lines(indexes) == ["1"]
}

fn small_batch_loads_into_a_large_table_find_their_rows_by_an_index(sandbox: &Sandbox) {
    large_table(sandbox);
    for (number, has) in [(1, false), (2, true), (3, true)] {
        few(sandbox, &format!("b{number}"));
        let summary = sandbox.run(["load", "--dataset", "events", "--format", "json"]).ok().json();
        assert_eq!(summary["datasets"][0]["replaced"], if number == 1 { 2 } else { 3 });
        assert_eq!(has_key_index(sandbox), has, "after load {number}");
    }
    assert_eq!(sandbox.lines(TOTALS), ["21001|21001|2"]);
    sandbox.run(["model", "--check"]).ok();
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_load_that_is_interrupted_after_its_commit_is_done() {
    let sandbox = Sandbox::new(Store::Postgres);
    large_table(&sandbox);
    few(&sandbox, "b1");
    sandbox.run(["load", "--dataset", "events"]).ok();
    let held = sandbox.hold_schema();
    few(&sandbox, "b2");
    let load = sandbox.spawn(["load", "--dataset", "events", "--format", "json"]);
    wait_until("the result is shown", || load.stdout().contains("\"replaced\":3"));
    load.signal(Signal::Terminate);
    load.wait().ok();
    drop(held);
    assert!(!has_key_index(&sandbox));
    assert_eq!(sandbox.lines("SELECT count(*) FROM {raw.events} WHERE username = 'b2'"), ["3"]);
}

fn occurrences_that_do_not_fit_are_built_again(sandbox: &Sandbox) {
    large_day(sandbox);
    for id in ["a", "b"] {
        drop_one(sandbox, id, "ben");
    }
    let users = if sandbox.is_sqlite() { "\"dataloader_events.occ1\"" } else { "dataloader.\"events.occ1\"" };
    sandbox.execute(&format!("DELETE FROM {users} WHERE x0 = 'ben'"));
    sandbox.write_events("x.jsonl", event("a", "ada", "2024-05-01 11:00:00") + &event("b", "ada", "2024-05-01 11:00:00"));
    sandbox.run(["load", "--dataset", "events"]).ok();
    assert_eq!(sandbox.lines(TOTALS), ["2502|2502|1"]);
    sandbox.run(["model", "--check"]).ok();
}
