//! `repeats = "skip"`: a dropped file whose content is there already is filed away without being loaded, and one whose content is
//! in flight waits.

use std::fs;
use std::path::PathBuf;

use crate::support::{
    Sandbox, Signal, Store, events_over_days, gzip, host_name, many_events, on_both_stores, on_every_pipeline, only_file, sha256,
    wait_until,
};

on_every_pipeline!(
    a_file_whose_content_is_loaded_is_filed_away,
    of_many_files_with_one_content_one_is_loaded,
    files_wait_for_a_load_in_flight_and_hold_up_no_other,
    a_load_that_fails_leaves_its_content_to_a_file_that_waits,
    processes_that_share_an_inbox_load_a_content_once,
    the_load_of_a_killed_process_goes_on_while_others_wait_for_it,
    a_load_that_stands_still_ends_a_run_with_once_and_is_named,
);

// Over RabbitMQ a file is in its place before anybody compares it.
on_both_stores!(
    a_file_that_is_found_again_keeps_what_was_decided,
    a_file_that_has_another_content_by_now_is_decided_anew,
    what_a_batch_load_brought_is_there,
);

/// Has the events skip repeats.
fn skip_repeats(sandbox: &Sandbox) {
    let defaults = include_str!("../../dataloader.toml").replace("[datasets.events]\n", "[datasets.events]\nrepeats = \"skip\"\n");
    sandbox.write("dataloader.toml", defaults + "\n[stream]\nrescan_interval_ms = 200\ndrain_timeout_ms = 1500\n");
}

/// How many loads of the events have each status.
fn statuses(sandbox: &Sandbox) -> Vec<String> {
    sandbox.lines("SELECT status, count(*) FROM {raw.loads} WHERE dataset = 'events' GROUP BY status ORDER BY status")
}

/// Runs until the inbox is empty. Returns how many files were loaded, and how many were not.
#[track_caller]
fn run_once(sandbox: &Sandbox) -> [u64; 2] {
    let summary = sandbox.run_once().ok().json();
    ["files", "unchanged"].map(|key| summary["datasets"][0][key].as_u64().expect("a number"))
}

/// A load of this content that another process, somewhere else, has begun. Returns the condition that selects it.
fn begin_elsewhere(sandbox: &Sandbox, content: &str) -> String {
    const KEY: &str = "0190f3f4-0000-7000-8000-000000000001";
    sandbox.run(["migrate"]).ok();
    let (loads, hash) = (sandbox.table("raw.loads"), sha256(content));
    sandbox.execute(&format!(
        "INSERT INTO {loads} (load_key, dataset, source, status, sha256, host) \
         VALUES ('{KEY}', 'events', '/elsewhere/x.jsonl', 'loading', '{hash}', 'other')"
    ));
    format!("load_key = '{KEY}'")
}

fn a_file_whose_content_is_loaded_is_filed_away(sandbox: &Sandbox) {
    skip_repeats(sandbox);
    let contents = events_over_days("a", 1_200);
    sandbox.drop_in("events", "a.jsonl", &contents);
    assert_eq!(run_once(sandbox), [1, 0]);
    // The name does not matter; stored in another way, it is another content.
    sandbox.drop_in("events", "b.jsonl", &contents);
    sandbox.drop_in("events", "a.jsonl", &contents);
    sandbox.drop_in("events", "c.jsonl.gz", gzip(&contents));
    // The other dataset does not skip them.
    for name in ["a.json", "b.json"] {
        sandbox.drop_in("orgs", name, r#"{"organization_key":"a"}"#);
    }
    assert_eq!(run_once(sandbox), [1, 2]);
    assert_eq!(sandbox.count("raw.events"), 2_400);
    assert_eq!(sandbox.lines("SELECT status FROM {raw.loads} WHERE dataset = 'orgs'"), ["loaded", "loaded"]);
    assert_eq!(sandbox.dropped_names_in("events/processed"), ["a.jsonl", "a.jsonl", "b.jsonl", "c.jsonl.gz"]);
    let repeated = "SELECT bytes, records_read, rows_loaded, rows_rejected, records_skipped, rows_removed, sha256, host, \
                    finished_at IS NULL, error, repeats = (SELECT min(id) FROM {raw.loads}) FROM {raw.loads} WHERE status = 'repeated'";
    let expected = format!("{}|0|0|0|0|0|{}|{}|0|NULL|1", contents.len(), sha256(&contents), host_name());
    assert_eq!(sandbox.lines(repeated), [expected.clone(), expected]);
    let status = sandbox.run(["status", "--format", "json"]).ok().json();
    assert_eq!((&status["datasets"][0]["files"], &status["datasets"][0]["repeated"]), (&2.into(), &2.into()));
    sandbox.assert_settled();
}

fn of_many_files_with_one_content_one_is_loaded(sandbox: &Sandbox) {
    skip_repeats(sandbox);
    // More than are claimed at a time.
    for i in 0..80 {
        sandbox.drop_in("events", format!("{i}.jsonl"), many_events(7, "ada"));
    }
    sandbox.drop_in("events", "other.jsonl", many_events(3, "bea"));
    assert_eq!(run_once(sandbox), [2, 79]);
    assert_eq!(sandbox.count("raw.events"), 10);
    assert_eq!(statuses(sandbox), ["loaded|2", "repeated|79"]);
    sandbox.assert_settled();
}

fn files_wait_for_a_load_in_flight_and_hold_up_no_other(sandbox: &Sandbox) {
    const FILES: usize = 70;
    skip_repeats(sandbox);
    let contents = many_events(5, "ada");
    let elsewhere = begin_elsewhere(sandbox, &contents);
    let mut pipeline = sandbox.start_pipeline();
    for i in 0..FILES {
        sandbox.drop_in("events", format!("{i}.jsonl"), &contents);
    }
    pipeline.wait_for_stderr("waits for load 1 of /elsewhere/x.jsonl on other, which has the same content");
    sandbox.drop_in("events", "other.jsonl", many_events(3, "bea"));
    sandbox.wait_until_finished("events", 1);
    wait_until("all of them are claimed", || sandbox.names_in("events/.loading").len() == FILES);
    assert_eq!(statuses(sandbox), ["loaded|1", "loading|1"]);
    // A run with --once beside it waits as well.
    let beside = sandbox.pipeline(["--once"]).spawn();
    let loaded = format!("UPDATE {} SET status = 'loaded', bytes = 7, finished_at = started_at", sandbox.table("raw.loads"));
    sandbox.execute(&format!("{loaded} WHERE {elsewhere}"));
    sandbox.wait_until_finished("events", FILES + 1);
    beside.wait().ok();
    assert_eq!(statuses(sandbox), ["loaded|2", format!("repeated|{FILES}").as_str()]);
    assert_eq!(sandbox.lines("SELECT DISTINCT repeats, bytes FROM {raw.loads} WHERE status = 'repeated'"), ["1|7"]);
    assert_eq!(sandbox.count("raw.events"), 3);
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
}

fn a_load_that_fails_leaves_its_content_to_a_file_that_waits(sandbox: &Sandbox) {
    skip_repeats(sandbox);
    let contents = many_events(5, "ada");
    let elsewhere = begin_elsewhere(sandbox, &contents);
    for name in ["a.jsonl", "b.jsonl"] {
        sandbox.drop_in("events", name, &contents);
    }
    let mut once = sandbox.pipeline(["--once", "--format", "json"]).spawn();
    once.wait_for_stderr("waits for load 1");
    sandbox.execute(&format!("UPDATE {} SET status = 'failed' WHERE {elsewhere}", sandbox.table("raw.loads")));
    let summary = once.wait().ok().json();
    assert_eq!((&summary["datasets"][0]["files"], &summary["datasets"][0]["unchanged"]), (&1.into(), &1.into()));
    assert_eq!(statuses(sandbox), ["failed|1", "loaded|1", "repeated|1"]);
    // A file that fails has no content that another could repeat.
    for name in ["c.json", "d.json"] {
        sandbox.drop_in("events", name, "[");
    }
    sandbox.run_once().code(3);
    assert_eq!(statuses(sandbox), ["failed|3", "loaded|1", "repeated|1"]);
    sandbox.assert_settled();
}

fn processes_that_share_an_inbox_load_a_content_once(sandbox: &Sandbox) {
    const CONTENTS: usize = 4;
    const FILES: usize = 32;
    skip_repeats(sandbox);
    let processes = [(); 2].map(|()| sandbox.start_pipeline());
    for i in 0..FILES {
        sandbox.drop_in("events", format!("{i}.jsonl"), events_over_days(&(i % CONTENTS).to_string(), 1_100));
    }
    sandbox.wait_until_finished("events", FILES);
    for process in processes {
        process.signal(Signal::Terminate);
        process.wait().ok();
    }
    assert_eq!(statuses(sandbox), [format!("loaded|{CONTENTS}"), format!("repeated|{}", FILES - CONTENTS)]);
    let records = CONTENTS * 1_100;
    assert_eq!(sandbox.lines("SELECT count(*), count(DISTINCT id) FROM {raw.events}"), [format!("{records}|{records}")]);
    sandbox.assert_settled();
}

fn the_load_of_a_killed_process_goes_on_while_others_wait_for_it(sandbox: &Sandbox) {
    skip_repeats(sandbox);
    sandbox.run(["migrate"]).ok();
    let contents = events_over_days("a", 30_000);
    sandbox.drop_in("events", "a.jsonl", &contents);
    let killed = sandbox.start_pipeline();
    wait_until("it is in flight", || statuses(sandbox) == ["loading|1"]);
    let lock = sandbox.hold_writers();
    let mut other = sandbox.start_pipeline();
    sandbox.drop_in("events", "b.jsonl", &contents);
    if !sandbox.is_sqlite() {
        other.wait_for_stderr("waits for load 1");
    }
    killed.signal(Signal::Kill);
    killed.wait();
    drop(lock);
    sandbox.wait_until_finished("events", 2);
    other.signal(Signal::Terminate);
    other.wait().ok();
    assert_eq!(statuses(sandbox), ["loaded|1", "repeated|1"]);
    assert_eq!(sandbox.lines("SELECT count(*), count(DISTINCT id) FROM {raw.events}"), ["30000|30000"]);
    sandbox.assert_settled();
}

/// Its file was removed by hand, or its process is gone for good.
fn a_load_that_stands_still_ends_a_run_with_once_and_is_named(sandbox: &Sandbox) {
    skip_repeats(sandbox);
    let contents = many_events(5, "ada");
    let elsewhere = begin_elsewhere(sandbox, &contents);
    sandbox.drop_in("events", "a.jsonl", &contents);
    sandbox.drop_in("events", "b.jsonl", many_events(3, "bea"));
    let outcome = sandbox.run_once().code(1);
    let message = outcome.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
    assert!(message.contains("1 files wait for load 1 of /elsewhere/x.jsonl on other"), "{message}");
    assert_eq!(sandbox.count("raw.events"), 3, "it holds up no other file");
    let status = sandbox.run(["status", "--format", "json"]).ok().json();
    assert_eq!((&status["loads"][0]["source"], &status["loads"][0]["status"]), (&"/elsewhere/x.jsonl".into(), &"loading".into()));
    // What the error says helps.
    sandbox.execute(&format!("UPDATE {} SET status = 'failed' WHERE {elsewhere}", sandbox.table("raw.loads")));
    assert_eq!(run_once(sandbox), [1, 0]);
    sandbox.assert_settled();
}

/// Puts the file back to where it was before its move, with these contents, as if the process had been killed then.
fn put_back(sandbox: &Sandbox, name: &str, contents: &str) -> PathBuf {
    let processed = only_file(&sandbox.file("inbox/events/processed"), name);
    let claimed = sandbox.file("inbox/events/.loading").join(processed.file_name().expect("it has a name"));
    fs::rename(&processed, &claimed).expect("the inbox is writable");
    fs::write(&claimed, contents).expect("the inbox is writable");
    claimed
}

fn a_file_that_is_found_again_keeps_what_was_decided(sandbox: &Sandbox) {
    skip_repeats(sandbox);
    let contents = events_over_days("a", 1_200);
    for name in ["a.jsonl", "b.jsonl"] {
        sandbox.drop_in("events", name, &contents);
        sandbox.run_once().ok();
    }
    let ledger = "SELECT status, repeats, records_read, rows_loaded FROM {raw.loads} ORDER BY id";
    let expected = ["loaded|NULL|1200|1200", "repeated|1|0|0"];
    for name in ["-a.jsonl", "-b.jsonl"] {
        assert_eq!(sandbox.lines(ledger), expected);
        put_back(sandbox, name, &contents);
        sandbox.run_once().ok();
    }
    assert_eq!(sandbox.lines(ledger), expected);
    assert_eq!(sandbox.count("raw.events"), 1_200);
    sandbox.assert_settled();
}

fn a_file_that_has_another_content_by_now_is_decided_anew(sandbox: &Sandbox) {
    skip_repeats(sandbox);
    let (short, more) = (events_over_days("a", 1_200), events_over_days("b", 900));
    let long = short.clone() + &more;
    for name in ["a.jsonl", "b.jsonl"] {
        sandbox.drop_in("events", name, &short);
        sandbox.run_once().ok();
    }
    // Both have grown: the one that was loaded is read to its end, the other has the same content then.
    put_back(sandbox, "-a.jsonl", &long);
    put_back(sandbox, "-b.jsonl", &long);
    assert_eq!(run_once(sandbox), [1, 1]);
    let ledger = "SELECT status, repeats, records_read, sha256 FROM {raw.loads} ORDER BY id";
    let hash = sha256(&long);
    assert_eq!(sandbox.lines(ledger), [format!("loaded|NULL|2100|{hash}"), format!("repeated|1|0|{hash}")]);
    // Nothing has the shorter content any more.
    sandbox.drop_in("events", "c.jsonl", &short);
    assert_eq!(run_once(sandbox), [1, 0]);
    put_back(sandbox, "-b.jsonl", &more);
    assert_eq!(run_once(sandbox), [1, 0]);
    assert_eq!(sandbox.lines(ledger)[1], format!("loaded|NULL|900|{}", sha256(&more)));
    sandbox.assert_settled();
}

fn what_a_batch_load_brought_is_there(sandbox: &Sandbox) {
    skip_repeats(sandbox);
    let (all, some) = (many_events(5, "ada"), many_events(4, "bea"));
    sandbox.write_events("a.jsonl", &all);
    sandbox.run(["load", "--dataset", "events"]).ok();
    sandbox.write_events("b.jsonl", &some);
    let named = sandbox.file("raw_data/events/b.jsonl");
    sandbox.run(["load", "--dataset", "events", "--date", "2020-01-01", named.to_str().expect("a plain name")]).ok();
    sandbox.drop_in("events", "a.jsonl", &all);
    sandbox.drop_in("events", "b.jsonl", &some);
    assert_eq!(run_once(sandbox), [1, 1], "a load that skipped records does not have the content");
    assert_eq!(sandbox.count("raw.events"), 9);
    sandbox.assert_settled();
}

/// On SQLite all of it is one writer after the other.
#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_file_waits_for_a_batch_load_of_its_dataset_and_that_is_no_outage() {
    let sandbox = Sandbox::new(Store::Postgres);
    skip_repeats(&sandbox);
    let config = std::fs::read_to_string(sandbox.file("dataloader.toml")).expect("just written");
    sandbox.write("dataloader.toml", config.replace("dir = \"orgs\"\n", "dir = \"orgs\"\nrepeats = \"skip\"\n"));
    sandbox.run_once().ok();
    sandbox.write_events("a.jsonl", many_events(5, "ada"));
    let lock = sandbox.hold_writers();
    let batch = sandbox.spawn(["load", "--dataset", "events"]);
    let has_lock = |mode: &str| {
        let sql = format!(
            "SELECT count(*) FROM pg_locks WHERE {mode} AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        );
        sandbox.lines(&sql) != ["0"]
    };
    wait_until("the batch load waits for the ledger", || has_lock("locktype = 'relation' AND NOT granted"));
    sandbox.drop_in("events", "a.jsonl", many_events(5, "ada"));
    sandbox.drop_in("orgs", "a.json", r#"{"organization_key":"a"}"#);
    let mut once = sandbox.pipeline(["--once"]).spawn();
    once.wait_for_stderr("files of events wait for a batch load");
    assert!(!has_lock("locktype = 'advisory' AND NOT granted"), "a statement that waits has a time limit");
    let of_orgs = "SELECT count(*) FROM {raw.loads} WHERE dataset = 'orgs'";
    wait_until("another dataset goes on", || sandbox.lines(of_orgs) == ["1"]);
    drop(lock);
    batch.wait().ok();
    once.wait().ok();
    assert_eq!((sandbox.count("raw.events"), statuses(&sandbox)), (5, vec!["loaded|1".to_owned(), "repeated|1".to_owned()]));
}

#[test]
fn a_producer_cannot_skip_repeats() {
    let sandbox = Sandbox::new(Store::Sqlite);
    skip_repeats(&sandbox);
    let outcome = sandbox.pipeline(["--transport", "amqp", "--role", "producer", "--once"]).run().code(2);
    assert!(outcome.stderr.contains("the dataset events has repeats = \"skip\""), "{}", outcome.stderr);
    // Other commands of such a machine are not concerned.
    sandbox.command(["status"]).env("DATALOADER_ROLE", "producer").run();
}
