//! Files that arrive while the pipeline runs: when they are taken, which are not, and where they go.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

use crate::support::{Sandbox, Signal, Store, event, events_over_days, many_events, on_every_pipeline, wait_until, write_samples};

on_every_pipeline!(
    files_dropped_and_renamed_in_are_loaded_as_they_come,
    the_menu_and_drop_feed_a_pipeline_in_another_process,
    a_thousand_small_files_are_all_loaded,
);

fn files_dropped_and_renamed_in_are_loaded_as_they_come(sandbox: &Sandbox) {
    sandbox.drop_in("events", "before.jsonl", events_over_days("before", 10));
    let pipeline = sandbox.start_pipeline();
    sandbox.wait_until_finished("events", 1);
    sandbox.write("inbox/events/written.jsonl", events_over_days("written", 10));
    sandbox.wait_until_finished("events", 2);
    sandbox.drop_in("events", "renamed.jsonl", events_over_days("renamed", 10));
    sandbox.wait_until_finished("events", 3);
    sandbox.drop_in("orgs", "orgs.json", r#"[{"organization_key": "a"}, {"organization_key": "b"}]"#);
    sandbox.wait_until_finished("orgs", 1);
    // The same name again is another file.
    sandbox.drop_in("events", "written.jsonl", many_events(5, "ada"));
    sandbox.wait_until_finished("events", 4);
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
    let processed = ["before.jsonl", "renamed.jsonl", "written.jsonl", "written.jsonl"];
    assert_eq!(sandbox.dropped_names_in("events/processed"), processed);
    assert_eq!((sandbox.count("raw.events"), sandbox.count("raw.orgs")), (35, 2));
    sandbox.assert_settled();
}

fn the_menu_and_drop_feed_a_pipeline_in_another_process(sandbox: &Sandbox) {
    write_samples(sandbox);
    let pipeline = sandbox.start_pipeline();
    sandbox.write_events("custom_sample.json", many_events(4, "ada"));
    sandbox.command(["menu", "--mode", "stream"]).stdin("1\n2\n1\n3\n").run().ok();
    sandbox.run(["drop", "--times", "2"]).ok();
    sandbox.run(["drop", "--dataset", "orgs"]).ok();
    sandbox.wait_until_finished("events", 5);
    sandbox.wait_until_finished("orgs", 1);
    pipeline.signal(Signal::Interrupt);
    pipeline.wait().ok();
    assert_eq!(sandbox.count("raw.events"), 4 * 50 + 4);
    sandbox.assert_settled();
}

fn a_thousand_small_files_are_all_loaded(sandbox: &Sandbox) {
    let put = |numbers: std::ops::Range<usize>| {
        let drop = |number: usize| {
            let (name, contents) = (format!("{number}.jsonl"), events_over_days(&number.to_string(), 2));
            sandbox.drop_in("events", &name, &contents);
            (name, contents, 2)
        };
        numbers.map(drop).collect::<Vec<_>>()
    };
    let mut dropped = put(0..500);
    let pipeline = sandbox.start_pipeline();
    dropped.extend(put(500..1_000));
    sandbox.wait_until_finished("events", 1_000);
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
    sandbox.assert_each_loaded_once(&dropped);
    sandbox.assert_settled();
}

#[test]
fn a_file_is_taken_when_its_writer_has_closed_it() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let pipeline = sandbox.start_pipeline();
    let path = sandbox.file("inbox/events/slow.json");
    let mut slow = fs::File::create(&path).expect("the inbox is writable");
    write!(slow, "[{}", event("1", "ada", "2024-05-01 10:00:00")).expect("it is open");
    // Pauses as long as the settle time: what is dropped meanwhile shows that they are noticed.
    for number in 1..=3 {
        std::thread::sleep(std::time::Duration::from_millis(250));
        sandbox.drop_in("events", format!("{number}.jsonl"), events_over_days(&number.to_string(), 1));
        sandbox.wait_until_finished("events", number);
        assert!(path.exists(), "it is still being written");
        write!(slow, " ").expect("it is open");
    }
    write!(slow, ",{}]", event("2", "ada", "2024-05-01 10:00:00")).expect("it is open");
    drop(slow);
    sandbox.wait_until_finished("events", 4);
    assert_eq!(sandbox.dropped_names_in("events/failed"), [""; 0], "{}", pipeline.stderr());
    assert_eq!(sandbox.count("raw.events"), 5);
}

#[test]
fn a_file_that_grows_after_it_was_claimed_is_read_to_its_real_end() {
    let sandbox = Sandbox::new(Store::Sqlite);
    // Its writer has it open since before the pipeline started, so no event tells that it is not complete.
    let path = sandbox.write("inbox/events/growing.json", format!("[{}", event("1", "ada", "2024-05-01 10:00:00")));
    let mut writer = OpenOptions::new().append(true).open(&path).expect("just written");
    let defaults = include_str!("../../dataloader.toml");
    sandbox.write("dataloader.toml", format!("{defaults}\n[stream]\nsettle_ms = 1000\n"));
    let _pipeline = sandbox.start_pipeline();
    wait_until("the file is claimed", || !path.exists());
    write!(writer, ",{}", event("2", "ada", "2024-05-01 10:00:00")).expect("it is open");
    writer.flush().expect("it is open");
    std::thread::sleep(std::time::Duration::from_millis(300));
    write!(writer, "]").expect("it is open");
    drop(writer);
    sandbox.wait_until_finished("events", 1);
    assert_eq!(sandbox.dropped_names_in("events/failed"), [""; 0]);
    assert_eq!(sandbox.lines("SELECT id FROM {raw.events} ORDER BY id"), ["1", "2"]);
}

#[test]
fn any_name_is_loaded_and_kept() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let mut names: Vec<Vec<u8>> = [
        "with space.json",
        "it's \"quoted\".json",
        "-dash",
        "umläut.jsonl",
        "back\\slash",
        "new\nline.json",
        "$(true).json",
        "%2f.json",
        "x",
    ]
    .map(|name| name.as_bytes().to_vec())
    .to_vec();
    names.push(b"latin-\xe9\xff.json".to_vec());
    names.push([b"long-".as_slice(), &[b'x'; 245], b".json"].concat());
    for (number, name) in names.iter().enumerate() {
        if number % 2 == 0 {
            sandbox.drop_in("events", OsStr::from_bytes(name), many_events(1, "before"));
        }
    }
    let pipeline = sandbox.start_pipeline();
    for (number, name) in names.iter().enumerate() {
        if number % 2 == 1 {
            sandbox.drop_in("events", OsStr::from_bytes(name), many_events(1, "after"));
        }
    }
    sandbox.wait_until_finished("events", names.len());
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
    let mut kept: Vec<Vec<u8>> = sandbox.names_in("events/processed").iter().map(|name| name[37..].to_vec()).collect();
    kept.sort();
    let mut expected = names;
    for name in &mut expected {
        if name.len() > 255 - 37 {
            name.drain(255 - 37 - 5..250);
        }
    }
    expected.sort();
    assert_eq!(kept, expected);
    let sources = sandbox.lines("SELECT source FROM {raw.loads}");
    for name in
        [r"/inbox/events/latin-\xe9\xff.json", "/inbox/events/it's \"quoted\".json", &format!("/long-{}.json", "x".repeat(245))]
    {
        assert!(sources.iter().any(|source| source.ends_with(name)), "{name}: {sources:?}");
    }
    sandbox.assert_settled();
}

#[test]
fn what_is_not_a_finished_file_of_a_dataset_is_left_alone() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let elsewhere = sandbox.write("elsewhere.json", many_events(1, "ada"));
    let ignored = ["inbox/events/.hidden.json", "inbox/events/x.json.tmp", "inbox/events/x.json.part", "inbox/events/below/x.json"];
    let others = ["inbox/x.json", "inbox/unknown/x.json"];
    let put_all = || {
        for path in ignored.iter().chain(&others) {
            sandbox.write(path, many_events(1, "ada"));
        }
    };
    put_all();
    std::os::unix::fs::symlink(&elsewhere, sandbox.file("inbox/events/before.json")).expect("the inbox is writable");
    let pipeline = sandbox.start_pipeline();
    put_all();
    std::os::unix::fs::symlink(&elsewhere, sandbox.file("inbox/events/link.json")).expect("the inbox is writable");
    // Loaded after all of the above were seen.
    sandbox.drop_in("events", "last.jsonl", many_events(1, "ada"));
    sandbox.wait_until_finished("events", 1);
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
    sandbox.run_once().ok();
    assert_eq!(sandbox.count("raw.events"), 1);
    for path in ignored.iter().chain(&others).chain(&["inbox/events/before.json", "inbox/events/link.json", "elsewhere.json"]) {
        assert!(fs::symlink_metadata(sandbox.file(path)).is_ok(), "{path}");
    }
    sandbox.assert_conserved();
}

#[test]
fn an_inbox_that_is_removed_is_made_again_and_watched() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let pipeline = sandbox.start_pipeline();
    fs::rename(sandbox.file("inbox"), sandbox.file("away")).expect("the inbox is there");
    wait_until("the inbox is made again", || sandbox.file("inbox/orgs/failed").is_dir());
    sandbox.drop_in("events", "a.jsonl", many_events(3, "ada"));
    sandbox.wait_until_finished("events", 1);
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
    assert_eq!(sandbox.count("raw.events"), 3);
    sandbox.assert_settled();
}

#[test]
fn a_file_whose_place_cannot_be_reached_waits_for_it() {
    let sandbox = Sandbox::new(Store::Sqlite);
    sandbox.follow_links();
    let pipeline = sandbox.start_pipeline();
    let processed = sandbox.file("inbox/events/processed");
    fs::remove_dir(&processed).expect("it is empty");
    std::os::unix::fs::symlink(sandbox.file("not/mounted/yet"), &processed).expect("the inbox is writable");
    sandbox.drop_in("events", "a.jsonl", many_events(3, "ada"));
    wait_until("the log says so", || pipeline.stderr().contains("to processed/"));
    assert_eq!(sandbox.count("raw.events"), 3, "its records are safe");
    fs::create_dir_all(sandbox.file("not/mounted/yet")).expect("the sandbox is writable");
    sandbox.wait_until_finished("events", 1);
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
    assert_eq!(sandbox.count("raw.events"), 3);
    sandbox.assert_settled();
}

#[test]
fn the_inbox_may_be_elsewhere() {
    let sandbox = Sandbox::new(Store::Sqlite);
    write_samples(&sandbox);
    sandbox.run(["drop", "--inbox", "in/box"]).ok();
    sandbox.pipeline(["--once", "--inbox", "in/box"]).run().ok();
    assert_eq!(sandbox.count("raw.events"), 50);
    assert!(!sandbox.file("inbox").exists());
    assert_eq!(fs::read_dir(sandbox.file("in/box/events/processed")).expect("it was made").count(), 1);
}
