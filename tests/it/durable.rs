//! What the program says is loaded survives a power cut: SQLite's log is on the disk before a file moves to `processed/`, and
//! before a load says that it is done. PostgreSQL sees to that by itself.

use std::fs;
use std::process::Command;

use crate::support::{Sandbox, Signal, Store};

/// Runs the program to its end; returns in which order SQLite's log was written (`write`) and synced (`sync`) and files moved
/// (`move`). `None`, with the reason printed, where no C compiler can make the library that looks on.
fn order_of_events(sandbox: &Sandbox, args: &[&str]) -> Option<Vec<String>> {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/support/durable.c");
    let (library, log) = (sandbox.file("durable.so"), sandbox.file("durable.log"));
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).args([source, "-ldl"]).status();
    if !compiled.as_ref().is_ok_and(|status| status.success()) {
        eprintln!("skipped: the library that looks on cannot be compiled: {compiled:?}");
        return None;
    }
    let path = |path: &std::path::Path| path.to_str().expect("a plain path").to_owned();
    sandbox.command(args.iter().copied()).env("LD_PRELOAD", &path(&library)).env("DURABLE_LOG", &path(&log)).run().ok();
    let events = fs::read_to_string(log).expect("something was written");
    Some(events.lines().map(str::to_owned).collect())
}

/// Whatever was written to the log was synced before the event with this index.
fn is_synced_before(events: &[String], index: usize) -> bool {
    events[..index].iter().rfind(|event| *event == "write" || *event == "sync").is_some_and(|event| event == "sync")
}

const ORG: &str = r#"{"organization_key":"a"}"#;

#[test]
fn a_file_moves_after_its_rows_are_on_the_disk() {
    let sandbox = Sandbox::new(Store::Sqlite);
    // Of a dataset without a model, and one: nothing but its commit is written before it moves.
    sandbox.drop_in("orgs", "x.json", ORG);
    let Some(events) = order_of_events(&sandbox, &["run", "--once"]) else { return };
    let moves: Vec<usize> = (0..events.len()).filter(|i| events[*i] == "move").collect();
    assert_eq!(moves.len(), 1, "{events:?}");
    assert!(is_synced_before(&events, moves[0]), "{events:?}");
}

#[test]
fn a_load_is_done_when_its_rows_are_on_the_disk() {
    let sandbox = Sandbox::new(Store::Sqlite);
    sandbox.run(["migrate"]).ok();
    // The last connection that closes would sync by itself: this one stays.
    let pipeline = sandbox.start_pipeline();
    sandbox.write_orgs("x.json", ORG);
    let Some(events) = order_of_events(&sandbox, &["load", "--dataset", "orgs"]) else { return };
    assert!(events.iter().any(|event| event == "write"), "{events:?}");
    assert!(is_synced_before(&events, events.len()), "{events:?}");
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
}
