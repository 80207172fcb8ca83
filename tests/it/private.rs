//! What other users of the machine can read, and where they can make the program write: its files are for its user alone, and
//! a link in place of a directory is not followed unless the configuration allows it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::support::{Invocation, Sandbox, Signal, Store, many_events, wait_until, write_samples};

/// The permissions of a file or directory.
fn mode(path: &Path) -> String {
    let found = fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    format!("{:o}", found.permissions().mode() & 0o777)
}

/// The program as a user starts it who lets others do everything by default.
fn open_to_all(sandbox: &Sandbox, args: &str) -> Invocation {
    let script = format!("umask 0; exec \"$0\" {args}");
    Invocation::new("sh", sandbox.path()).args(["-c", &script, env!("CARGO_BIN_EXE_dataloader")])
}

/// A directory that is another's, with nothing in it.
fn elsewhere(sandbox: &Sandbox) -> std::path::PathBuf {
    let elsewhere = sandbox.file("elsewhere");
    fs::create_dir_all(&elsewhere).expect("the sandbox is writable");
    elsewhere
}

#[test]
fn what_is_made_with_data_in_it_is_for_its_user_alone() {
    let sandbox = Sandbox::new(Store::Sqlite);
    write_samples(&sandbox);
    open_to_all(&sandbox, "load").run().ok();
    fs::set_permissions(sandbox.write("bad.json", "[{"), PermissionsExt::from_mode(0o640)).expect("the file is ours");
    open_to_all(&sandbox, "drop bad.json").run().ok();
    let dropped = sandbox.names_in("events").remove(0);
    assert_eq!(
        mode(&sandbox.file("inbox/events").join(String::from_utf8_lossy(&dropped).as_ref())),
        "640",
        "a copy keeps its mode"
    );
    let mut pipeline = open_to_all(&sandbox, "run").spawn();
    pipeline.wait_for_stderr("watching ");
    sandbox.wait_until_finished("events", 1);
    for name in ["dataloader.db", "dataloader.db-wal", "dataloader.db-shm"] {
        assert_eq!(mode(&sandbox.file(name)), "600", "{name}");
    }
    pipeline.signal(Signal::Terminate);
    pipeline.wait().code(0);
    for directory in ["", "events", "events/.loading", "events/processed", "events/failed", "orgs"] {
        assert_eq!(mode(&sandbox.file("inbox").join(directory)), "700", "inbox/{directory}");
    }
    let report = sandbox.names_in("events/failed").into_iter().find(|name| name.ends_with(b".error.json")).expect("it failed");
    assert_eq!(mode(&sandbox.file("inbox/events/failed").join(String::from_utf8_lossy(&report).as_ref())), "600");
    open_to_all(&sandbox, "report --html report.html").run().ok();
    assert_eq!(mode(&sandbox.file("report.html")), "600");
}

#[test]
fn what_is_there_keeps_its_permissions() {
    let sandbox = Sandbox::new(Store::Sqlite);
    for file in ["dataloader.db", "report.html", "inbox/events/x"] {
        sandbox.write(file, "");
    }
    let (file, directory) = (PermissionsExt::from_mode(0o664), PermissionsExt::from_mode(0o2770));
    fs::set_permissions(sandbox.file("dataloader.db"), file).expect("the file is ours");
    fs::set_permissions(sandbox.file("inbox/events"), directory).expect("the directory is ours");
    sandbox.run_once().ok();
    sandbox.run(["report", "--html", "report.html"]).ok();
    assert_eq!(mode(&sandbox.file("dataloader.db")), "664");
    assert_eq!(mode(&sandbox.file("inbox/events")), "770");
    assert_eq!(mode(&sandbox.file("inbox/events/processed")), "700");
}

#[test]
fn a_directory_that_is_a_link_is_refused_unless_the_configuration_allows_it() {
    for place in ["events", "events/.loading", "events/processed", "events/failed"] {
        let sandbox = Sandbox::new(Store::Sqlite);
        let (elsewhere, link) = (elsewhere(&sandbox), sandbox.file("inbox").join(place));
        fs::create_dir_all(link.parent().expect("it has one")).expect("the sandbox is writable");
        symlink(&elsewhere, &link).expect("the sandbox is writable");
        let outcome = sandbox.run(["run", "--once"]).code(1);
        let message = format!("inbox/{place} is a symbolic link, which is not followed");
        assert!(outcome.stderr.contains(&message) && outcome.stderr.contains("`follow_links = true`"), "{}", outcome.stderr);
        assert_eq!(fs::read_dir(&elsewhere).expect("it is there").count(), 0);
        sandbox.follow_links();
        sandbox.run(["run", "--once"]).ok();
    }
}

#[test]
fn a_file_is_not_dropped_through_a_link() {
    let sandbox = Sandbox::new(Store::Sqlite);
    write_samples(&sandbox);
    let elsewhere = elsewhere(&sandbox);
    fs::create_dir(sandbox.file("inbox")).expect("the sandbox is writable");
    symlink(&elsewhere, sandbox.file("inbox/events")).expect("the sandbox is writable");
    let outcome = sandbox.run(["drop"]).code(1);
    assert!(outcome.stderr.contains("inbox/events is a symbolic link"), "{}", outcome.stderr);
    assert_eq!(fs::read_dir(&elsewhere).expect("it is there").count(), 0);
    sandbox.follow_links();
    sandbox.run(["drop"]).ok();
    assert_eq!(fs::read_dir(&elsewhere).expect("it is there").count(), 1);
}

#[test]
fn a_link_that_appears_while_it_runs_is_not_followed() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let elsewhere = elsewhere(&sandbox);
    let pipeline = sandbox.start_pipeline();
    for place in ["processed", "failed", ".loading"] {
        let link = sandbox.file("inbox/events").join(place);
        // The pipeline makes a directory anew that is gone when it lists the inbox.
        wait_until("the link is in its place", || fs::remove_dir(&link).is_ok() && symlink(&elsewhere, &link).is_ok());
        let bad = if place == "failed" { "[" } else { "" };
        sandbox.drop_in("events", format!("in-{place}.jsonl"), many_events(3, "ada") + bad);
        wait_until("the log says that it is a link", || {
            let says =
                |line: &str| line.contains(&format!("in-{place}.jsonl")) && line.contains("its directory is a symbolic link");
            pipeline.stderr().lines().any(says)
        });
        assert_eq!(fs::read_dir(&elsewhere).expect("it is there").count(), 0);
        fs::remove_file(link).expect("it is a link");
        wait_until("the file is in its place", || {
            sandbox.names_in("events/.loading").is_empty() && sandbox.names_in("events").is_empty()
        });
    }
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
    assert_eq!((sandbox.finished("events"), sandbox.count("raw.events")), (3, 9));
}
