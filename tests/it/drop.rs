//! `dataloader drop`: copies of a file appear in the inbox, whole at once and under fresh names.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::support::{Sandbox, Store};

/// The visible files of a directory, by name.
fn visible(directory: &Path) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(directory) else { return BTreeSet::new() };
    let names = entries.map(|entry| entry.expect("the directory is readable").file_name().into_string().expect("a plain name"));
    names.filter(|name| !name.starts_with('.') && !name.ends_with(".tmp") && !name.ends_with(".part")).collect()
}

fn sandbox() -> Sandbox {
    Sandbox::new(Store::Sqlite)
}

#[test]
fn the_sample_of_the_events_is_dropped_unless_told_otherwise() {
    let sandbox = sandbox();
    sandbox.write_events("events_sample.json", "[1]");
    let outcome = sandbox.run(["drop"]).ok();
    let names = visible(&sandbox.file("inbox/events"));
    let name = names.first().expect("one file");
    assert!(name.starts_with("events_sample-") && name.ends_with(".json"), "{name}");
    assert_eq!(outcome.stdout, format!("dropped inbox/events/{name}\n"));
    assert_eq!(fs::read(sandbox.file("inbox/events").join(name)).expect("it is there"), b"[1]");
    assert!(sandbox.file("raw_data/events/events_sample.json").exists(), "it is a copy");
}

#[test]
fn every_copy_has_a_name_of_its_own() {
    let sandbox = sandbox();
    sandbox.write_orgs("orgs_sample.json", "[2]");
    let outcome = sandbox.run(["drop", "--dataset", "orgs", "--times", "25"]).ok();
    let names = visible(&sandbox.file("inbox/orgs"));
    assert_eq!(names.len(), 25);
    let printed: BTreeSet<String> = outcome.stdout.lines().map(str::to_owned).collect();
    assert_eq!(printed, names.iter().map(|name| format!("dropped inbox/orgs/{name}")).collect());
}

#[test]
fn a_file_goes_to_the_inbox_of_the_dataset_and_of_the_flag() {
    let sandbox = sandbox();
    let file = sandbox.write("my own, \"file\".ndjson", "{}");
    let outcome = sandbox.run(["drop", "my own, \"file\".ndjson", "--dataset", "orgs", "--inbox", "a/b", "--format", "json"]).ok();
    let names = visible(&sandbox.file("a/b/orgs"));
    assert_eq!(names.len(), 1);
    let name = names.first().expect("one file");
    assert!(name.starts_with("my own, \"file\"-") && name.ends_with(".ndjson"), "{name}");
    assert_eq!(outcome.json(), serde_json::json!({ "dropped": [format!("a/b/orgs/{name}")] }));
    assert!(file.exists());
    sandbox.command(["drop", "my own, \"file\".ndjson"]).env("DATALOADER_INBOX", "c").run().ok();
    assert_eq!(visible(&sandbox.file("c/events")).len(), 1);
}

#[test]
fn no_part_of_a_file_is_ever_seen() {
    const SIZE: usize = 2_000_000;
    let sandbox = sandbox();
    sandbox.write_events("events_sample.json", vec![b' '; SIZE]);
    let inbox = sandbox.file("inbox/events");
    let mut dropping = sandbox.spawn(["drop", "--times", "50"]);
    let mut seen = BTreeSet::new();
    while dropping.is_running() {
        for name in visible(&inbox) {
            if !seen.contains(&name) {
                let size = fs::metadata(inbox.join(&name)).expect("nobody takes it away").len();
                assert_eq!(size, SIZE as u64, "{name}");
                seen.insert(name);
            }
        }
    }
    dropping.wait().ok();
    assert_eq!(fs::read_dir(&inbox).expect("it was made").count(), 50, "nothing else stays, hidden or not");
}

#[test]
fn what_cannot_be_dropped_says_why_and_leaves_nothing() {
    let sandbox = sandbox();
    let error = sandbox.run(["drop"]).code(1).stderr;
    assert!(error.starts_with("error: cannot open raw_data/events/events_sample.json: "), "{error}");
    assert!(error.contains("\nhint: name a file to drop"), "{error}");
    let error = sandbox.run(["drop", "none.json", "--format", "json"]).code(1).json();
    assert!(error["error"]["message"].as_str().is_some_and(|message| message.contains("none.json")), "{error}");

    let error = sandbox.run(["drop", "--dataset", "evnts"]).code(2).stderr;
    assert!(error.contains("no dataset `evnts`") && error.contains("did you mean `events`?"), "{error}");
    sandbox.run(["drop", "--times", "0"]).code(2);

    sandbox.write_events("events_sample.json", "[]");
    sandbox.write("inbox", "a file in the way");
    let error = sandbox.run(["drop"]).code(1).stderr;
    assert!(error.starts_with("error: cannot make inbox/events: "), "{error}");
    assert_eq!(visible(&sandbox.file("inbox/events")), BTreeSet::new());
}
