//! `load --new`: only what is not loaded yet, by the contents of the files.

use serde_json::json;

use crate::support::{Fifo, Sandbox, Store, array, event, gzip, many_events, on_both_stores};

on_both_stores!(
    only_files_whose_content_is_not_loaded_are_loaded,
    a_content_is_loaded_once_however_many_files_hold_it,
    several_new_files_leave_what_loading_them_one_after_the_other_leaves,
    only_a_load_of_all_its_records_has_a_content,
    what_was_dropped_into_the_inbox_is_loaded,
    a_dataset_without_a_day_is_loaded_in_full_if_its_files_differ_and_else_not,
    a_table_that_was_changed_since_is_loaded_in_full,
    a_dry_run_says_what_is_new_and_leaves_no_trace,
    to_a_dry_run_all_is_new_of_a_dataset_that_has_no_table_yet,
    a_file_that_fails_and_too_many_rejects_leave_all_as_it_was,
    two_loads_at_once_load_a_file_once,
);

/// Loads what is new. Returns how many files were loaded, were unchanged, and how many rows were replaced.
#[track_caller]
fn load_new(sandbox: &Sandbox, dataset: &str) -> [u64; 3] {
    let summary = sandbox.run(["load", "--new", "--dataset", dataset, "--format", "json"]).ok().json();
    ["files", "unchanged", "replaced"].map(|key| summary["datasets"][0][key].as_u64().expect("a number"))
}

/// The records of all loads that are in the table: none is counted that is not there.
#[track_caller]
fn assert_accounted(sandbox: &Sandbox, dataset: &str) {
    let sum = format!("SELECT sum(rows_loaded) - sum(rows_removed) FROM {{raw.loads}} WHERE dataset = '{dataset}'");
    assert_eq!(sandbox.lines(&sum), [sandbox.count(&format!("raw.{dataset}")).to_string()]);
    let unaccounted = "SELECT id FROM {raw.loads} WHERE records_read <> rows_loaded + rows_rejected + records_skipped";
    assert_eq!(sandbox.lines(unaccounted), [""; 0]);
    sandbox.run(["model", "--check"]).ok();
}

fn only_files_whose_content_is_not_loaded_are_loaded(sandbox: &Sandbox) {
    let [one, two] = ["1", "2"].map(|id| event(id, "ada", "2024-05-01 10:00:00"));
    sandbox.write_events("a.json", &one);
    sandbox.write_events("b.json.gz", gzip(&two));
    sandbox.write_events("empty.json", "");
    assert_eq!(load_new(sandbox, "events"), [3, 0, 0]);
    assert_eq!(load_new(sandbox, "events"), [0, 3, 0]);
    // Its length is known, its content is not. The name does not matter, and neither does that of a file which is loaded.
    std::fs::rename(sandbox.file("raw_data/events/a.json"), sandbox.file("raw_data/events/z.json")).expect("just written");
    sandbox.write_events("a.json", one.replace("ada", "bea"));
    let outcome = sandbox.run(["load", "--new", "--dataset", "events"]).ok();
    assert!(outcome.stdout.contains("content is there already: 3\n"), "{}", outcome.stdout);
    assert_eq!(sandbox.lines("SELECT id, username FROM {raw.events} ORDER BY id"), ["1|bea", "2|ada"]);
    assert_eq!(sandbox.count("raw.loads"), 4, "what is unchanged gets no row");
    // The same records, stored in another way, are another content.
    sandbox.write_events("c.json.gz", gzip(&one));
    assert_eq!(load_new(sandbox, "events"), [1, 4, 1]);
    assert_eq!(sandbox.lines("SELECT id, username FROM {raw.events_delta}"), ["1|ada"]);
    // A load of all files does not ask.
    let summary = sandbox.run(["load", "--dataset", "events", "--format", "json"]).ok().json();
    assert_eq!((&summary["datasets"][0]["files"], &summary["datasets"][0]["unchanged"]), (&json!(5), &json!(0)));
    assert_accounted(sandbox, "events");
}

fn a_content_is_loaded_once_however_many_files_hold_it(sandbox: &Sandbox) {
    let packed = gzip(event("2", "ada", "2024-05-01 10:00:00"));
    for name in ["a.jsonl", "b.jsonl", "c.jsonl"] {
        sandbox.write_events(name, many_events(1, "ada"));
        sandbox.write_events(&format!("{name}.gz"), &packed);
    }
    assert_eq!(load_new(sandbox, "events"), [2, 4, 0]);
    assert_eq!(sandbox.count("raw.events"), 2);
    // Files that are named are compared in the same way.
    let named = sandbox.write("elsewhere.jsonl", many_events(1, "ada"));
    let load = ["load", "--new", "--dataset", "events", named.to_str().expect("a plain name"), "--format", "json"];
    assert_eq!(sandbox.run(load).ok().json()["datasets"][0]["unchanged"], 1);
    for (args, why) in [(["--new", "-"], "standard input"), (["--new", "--date=2024-05-01"], "cannot be used with")] {
        let outcome = sandbox.run(["load", "--dataset", "events"].into_iter().chain(args)).code(2);
        assert!(outcome.stderr.contains(why), "{}", outcome.stderr);
    }
}

fn several_new_files_leave_what_loading_them_one_after_the_other_leaves(sandbox: &Sandbox) {
    let at = |id: &str, user: &str, day: u32| event(id, user, &format!("2024-05-{day:02} 10:00:00"));
    let untyped = |user: &str| format!(r#"{{"id":"null","username":"{user}","received_at":"2024-05-01 10:00:00"}}"#);
    sandbox.write_events("0.json", array(&[at("old", "ada", 1), at("1", "ada", 1)]));
    assert_eq!(load_new(sandbox, "events"), [1, 0, 0]);
    let twice = at("2", "ada", 1);
    sandbox.write_events("1.json", array(&[at("1", "bea", 1), twice.clone(), untyped("bea"), at("3", "bea", 2)]));
    sandbox.write_events("2.json", array(&[at("1", "cy", 1), untyped("cy"), at("4", "cy", 3)]));
    sandbox.write_events("3.json", array(&[twice.clone(), twice, untyped("di")]));
    // Of the table 1 by ada; of what comes 1 and the untyped one by bea, 2 by ada, the untyped one by cy.
    assert_eq!(load_new(sandbox, "events"), [3, 1, 5]);
    let rows = "SELECT id, username, count(*) FROM {raw.events} GROUP BY id, username ORDER BY id";
    assert_eq!(sandbox.lines(rows), ["1|cy|1", "2|ada|2", "3|bea|1", "4|cy|1", "null|di|1", "old|ada|1"]);
    assert_eq!(sandbox.lines("SELECT rows_loaded, rows_removed FROM {raw.loads} ORDER BY id"), ["2|0", "4|5", "3|0", "3|0"]);
    assert_accounted(sandbox, "events");
}

fn only_a_load_of_all_its_records_has_a_content(sandbox: &Sandbox) {
    sandbox.write_events("a.jsonl", many_events(2, "ada") + "{}\n");
    sandbox.run(["load", "--dataset", "events", "--date", "2024-05-02"]).code(3);
    let summary = sandbox.run(["load", "--new", "--dataset", "events", "--format", "json"]).code(3).json();
    assert_eq!((&summary["datasets"][0]["files"], &summary["datasets"][0]["loaded"]), (&json!(1), &json!(2)));
    assert_eq!(load_new(sandbox, "events"), [0, 1, 0], "its rejects are accounted for");
    for not_there in ["status = 'failed'", "status = 'unloaded'", "sha256 = NULL"] {
        sandbox.execute(&format!("UPDATE {} SET {not_there}", sandbox.table("raw.loads")));
        let summary = sandbox.run(["load", "--new", "--dataset", "events", "--format", "json"]).code(3).json();
        assert_eq!(summary["datasets"][0]["files"], 1, "{not_there}");
    }
}

fn what_was_dropped_into_the_inbox_is_loaded(sandbox: &Sandbox) {
    sandbox.drop_in("events", "a.jsonl", many_events(3, "ada"));
    sandbox.run_once().ok();
    sandbox.write_events("b.jsonl", many_events(3, "ada"));
    assert_eq!(load_new(sandbox, "events"), [0, 1, 0]);
    // Another dataset has it not.
    sandbox.write_orgs("b.jsonl", r#"{"organization_key":"a"}"#);
    assert_eq!(load_new(sandbox, "orgs"), [1, 0, 0]);
}

fn a_dataset_without_a_day_is_loaded_in_full_if_its_files_differ_and_else_not(sandbox: &Sandbox) {
    let org = |key: &str| format!(r#"{{"organization_key":"{key}"}}"#);
    let keys = "SELECT organization_key FROM {raw.orgs} ORDER BY organization_key";
    sandbox.write_orgs("a.json", org("a"));
    sandbox.write_orgs("b.json", org("b"));
    assert_eq!(load_new(sandbox, "orgs"), [2, 0, 0]);
    assert_eq!(load_new(sandbox, "orgs"), [0, 2, 0]);
    sandbox.write_orgs("c.json", org("c"));
    assert_eq!(load_new(sandbox, "orgs"), [3, 0, 2]);
    assert_eq!(sandbox.lines(keys), ["a", "b", "c"]);
    sandbox.write_orgs("copy.json", org("c"));
    assert_eq!(load_new(sandbox, "orgs"), [0, 4, 0], "the set of contents is the same");
    std::fs::remove_file(sandbox.file("raw_data/orgs/a.json")).expect("just written");
    assert_eq!(load_new(sandbox, "orgs"), [2, 1, 3], "each content once");
    assert_eq!(sandbox.lines(keys), ["b", "c"]);
    // It had these contents before, but not in its latest load.
    sandbox.write_orgs("a.json", org("a"));
    assert_eq!(load_new(sandbox, "orgs"), [3, 1, 2]);
    assert_accounted(sandbox, "orgs");
}

fn a_table_that_was_changed_since_is_loaded_in_full(sandbox: &Sandbox) {
    let org = |key: &str| format!(r#"{{"organization_key":"{key}"}}"#);
    sandbox.write_orgs("a.json", org("a"));
    assert_eq!(load_new(sandbox, "orgs"), [1, 0, 0]);
    sandbox.drop_in("orgs", "b.json", org("b"));
    sandbox.run_once().ok();
    assert_eq!(load_new(sandbox, "orgs"), [1, 0, 2]);
    assert_eq!(sandbox.lines("SELECT organization_key FROM {raw.orgs}"), ["a"]);
    sandbox.execute(&format!("DELETE FROM {}", sandbox.table("raw.orgs")));
    assert_eq!(load_new(sandbox, "orgs"), [1, 0, 0]);
    assert_eq!(sandbox.lines("SELECT organization_key FROM {raw.orgs}"), ["a"]);
    assert_eq!(load_new(sandbox, "orgs"), [0, 1, 0]);
}

fn a_dry_run_says_what_is_new_and_leaves_no_trace(sandbox: &Sandbox) {
    let dry_run = || {
        let summary = sandbox.run(["load", "--new", "--dry-run", "--dataset", "events", "--format", "json"]).ok().json();
        ["files", "unchanged", "loaded"].map(|key| summary["datasets"][0][key].as_u64().expect("a number"))
    };
    sandbox.write_events("a.jsonl", many_events(2, "ada"));
    assert_eq!(dry_run(), [1, 0, 2], "nothing was ever loaded");
    sandbox.run(["load", "--dataset", "events"]).ok();
    sandbox.write_events("b.jsonl", many_events(3, "bea"));
    assert_eq!(dry_run(), [1, 1, 3]);
    assert_eq!((sandbox.count("raw.events"), sandbox.count("raw.loads")), (2, 1));
}

fn to_a_dry_run_all_is_new_of_a_dataset_that_has_no_table_yet(sandbox: &Sandbox) {
    sandbox.run(["migrate"]).ok();
    sandbox.write("dataloader.toml", "[datasets.plans]\nkey = [\"id\"]\n[datasets.plans.columns]\nid = \"text\"\n");
    // A compressed file is hashed and compared in any case.
    sandbox.write("raw_data/plans/a.jsonl.gz", gzip("{\"id\":\"a\"}\n"));
    let summary = sandbox.run(["load", "--new", "--dry-run", "--format", "json"]).ok().json();
    assert_eq!((&summary["datasets"][0]["files"], &summary["datasets"][0]["loaded"]), (&json!(1), &json!(1)));
}

fn a_file_that_fails_and_too_many_rejects_leave_all_as_it_was(sandbox: &Sandbox) {
    sandbox.write_events("a.jsonl", many_events(2, "ada"));
    assert_eq!(load_new(sandbox, "events"), [1, 0, 0]);
    sandbox.write_events("b.jsonl", many_events(3, "bea") + "{}\n");
    sandbox.run(["load", "--new", "--dataset", "events", "--max-rejects", "0"]).code(1);
    sandbox.write_events("c.jsonl", "[{");
    let outcome = sandbox.run(["load", "--new", "--dataset", "events"]).code(1);
    assert!(outcome.stderr.contains("c.jsonl: line 1"), "{}", outcome.stderr);
    assert_eq!(sandbox.lines("SELECT count(*) FROM {raw.events} WHERE username = 'bea'"), ["0"]);
    let missing = sandbox.run(["load", "--new", "--dataset", "events", "nowhere.json"]).code(1);
    assert!(missing.stderr.contains("cannot open nowhere.json"), "{}", missing.stderr);
    std::fs::remove_file(sandbox.file("raw_data/events/c.jsonl")).expect("just written");
    sandbox.run(["load", "--new", "--dataset", "events"]).code(3);
    assert_eq!(sandbox.lines("SELECT count(*) FROM {raw.events} WHERE username = 'bea'"), ["3"]);
}

fn two_loads_at_once_load_a_file_once(sandbox: &Sandbox) {
    sandbox.run(["migrate"]).ok();
    sandbox.write_events("a.jsonl", many_events(20, "ada"));
    let lock = sandbox.hold_writers();
    let loads = [(); 2].map(|()| {
        let mut load = sandbox.spawn(["load", "--new", "--dataset", "events", "--format", "json", "-v"]);
        load.wait_for_stderr("compared with the ledger");
        load
    });
    drop(lock);
    let mut files = loads.map(|load| {
        let summary = load.wait().ok().json();
        ["files", "unchanged"].map(|key| summary["datasets"][0][key].as_u64().expect("a number"))
    });
    files.sort_unstable();
    assert_eq!(files, [[0, 1], [1, 0]]);
    assert_eq!((sandbox.count("raw.events"), sandbox.count("raw.loads")), (20, 1));
}

/// It can be read only once.
#[test]
fn a_named_pipe_is_new() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let pipe = Fifo::new(sandbox.file("pipe"));
    let load = sandbox.spawn(["load", "--new", "--dataset", "events", "pipe", "--format", "json"]);
    let mut pipe = pipe.open();
    pipe.write(&many_events(3, "ada"));
    drop(pipe);
    assert_eq!(load.wait().ok().json()["datasets"][0]["loaded"], 3);
}
