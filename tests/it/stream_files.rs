//! Files as a real disk has them: some cannot be read, some grow or change while they are loaded, some take long to move.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::support::{
    Background, FaultyDisk, Invocation, Outcome, Sandbox, Signal, Store, Transport, event, events_over_days, gzip, host_name,
    many_events, on_both_stores, on_every_pipeline, only_file, sha256, wait_until,
};

on_every_pipeline!(
    a_file_that_cannot_be_read_on_fails_with_its_place_and_says_what_is_loaded,
    a_read_error_that_passes_costs_nothing,
    a_read_error_and_a_kill_lose_no_record,
    a_file_that_grew_between_its_commit_and_its_move_is_read_to_its_end,
    a_file_that_grew_by_whole_chunks_is_read_to_its_end,
    a_dropped_file_has_the_hash_of_its_stored_bytes_and_the_host_that_read_it,
);

// Over RabbitMQ a file is in its place before anybody compares it.
on_both_stores!(
    an_end_that_an_earlier_reading_left_does_not_close_the_load,
    a_file_that_was_changed_after_it_was_read_fails_and_keeps_the_ledger_right,
    a_file_that_was_replaced_after_a_part_of_it_was_loaded_adds_nothing,
    a_chunk_line_without_a_digest_is_compared_by_its_place_and_count,
    a_file_that_grows_while_its_rows_wait_for_their_commit_is_read_to_its_end,
);

const LEDGER: &str = "SELECT status, records_read, rows_loaded FROM {raw.loads} ORDER BY id";

/// More than is read at a time, and several chunks.
const MANY: usize = 60_000;

fn once_on(disk: &FaultyDisk, sandbox: &Sandbox, fails_from: usize) -> Background {
    disk.under(sandbox.pipeline(["--once", "--format", "json"]), "-a.jsonl", fails_from as u64).spawn()
}

fn a_file_that_cannot_be_read_on_fails_with_its_place_and_says_what_is_loaded(sandbox: &Sandbox) {
    let Some(disk) = FaultyDisk::new() else { return };
    let contents = events_over_days("a", MANY);
    let broken_at = contents.len() / 2;
    sandbox.drop_in("events", "a.jsonl", &contents);
    sandbox.drop_in("events", "b.jsonl", events_over_days("b", 10));
    disk.fail();
    let outcome = once_on(&disk, sandbox, broken_at).wait().code(3);

    assert_eq!(sandbox.dropped_names_in("events/failed"), ["a.jsonl", "a.jsonl.error.json"]);
    assert_eq!(sandbox.dropped_names_in("events/processed"), ["b.jsonl"]);
    let error = sandbox.lines("SELECT error FROM {raw.loads} WHERE status = 'failed'");
    let place = format!("byte {broken_at}");
    assert!(error.len() == 1 && error[0].contains(&place) && error[0].contains("Input/output error"), "{error:?}");
    assert!(outcome.stderr.contains("trying again"), "the log says that it waits: {}", outcome.stderr);
    let loaded = sandbox.lines("SELECT count(*) FROM {raw.events} WHERE id LIKE 'a-%'")[0].clone();
    assert!((20_000..MANY).contains(&loaded.parse().expect("a number")), "what was read before stays: {loaded}");
    assert!(sandbox.lines(LEDGER).contains(&format!("failed|{loaded}|{loaded}")), "{:?}", sandbox.lines(LEDGER));
    sandbox.assert_settled();
}

fn a_read_error_that_passes_costs_nothing(sandbox: &Sandbox) {
    let Some(disk) = FaultyDisk::new() else { return };
    let contents = events_over_days("a", MANY);
    sandbox.drop_in("events", "a.jsonl", &contents);
    disk.fail();
    let mut pipeline = once_on(&disk, sandbox, contents.len() / 2);
    pipeline.wait_for_stderr("trying again");
    disk.recover();
    pipeline.wait().ok();
    sandbox.assert_each_loaded_once(&[("a.jsonl".to_owned(), contents, MANY)]);
    sandbox.assert_settled();
}

fn a_read_error_and_a_kill_lose_no_record(sandbox: &Sandbox) {
    let Some(disk) = FaultyDisk::new() else { return };
    let contents = events_over_days("a", MANY);
    sandbox.drop_in("events", "a.jsonl", &contents);
    disk.fail();
    let mut killed = once_on(&disk, sandbox, contents.len() / 2);
    // As far as it can be read it is committed.
    wait_until("what can be read is loaded", || {
        let many = "SELECT 1 FROM (SELECT count(*) AS n FROM {raw.events}) AS counted WHERE n > 20000";
        !killed.is_running() || sandbox.try_query(many).is_ok_and(|rows| !rows.is_empty())
    });
    if killed.is_running() {
        killed.signal(Signal::Kill);
    }
    killed.wait();
    disk.recover();
    sandbox.run_once().ok();
    sandbox.assert_each_loaded_once(&[("a.jsonl".to_owned(), contents, MANY)]);
    sandbox.assert_settled();
}

/// Loads the file, then leaves no more of it than its first chunks, as a killed process would.
fn load_in_part(sandbox: &Sandbox, contents: &str, chunks: usize) -> PathBuf {
    sandbox.drop_in("events", "a.jsonl", contents);
    sandbox.run_once().ok();
    let (batches, events, records) = (sandbox.table("raw.batches"), sandbox.table("raw.events"), chunks * 1_000);
    sandbox.execute(&format!("DELETE FROM {batches} WHERE seq >= {chunks}"));
    sandbox.execute(&format!("DELETE FROM {events} WHERE cast(substr(id, 3) AS bigint) > {records}"));
    sandbox.execute(&format!(
        "UPDATE {} SET status = 'loading', records_read = 0, rows_loaded = {records}, bytes = NULL, finished_at = NULL",
        sandbox.table("raw.loads")
    ));
    let processed = only_file(&sandbox.file("inbox/events/processed"), "-a.jsonl");
    let claimed = sandbox.file("inbox/events/.loading").join(processed.file_name().expect("it has a name"));
    fs::rename(&processed, &claimed).expect("the inbox is writable");
    sandbox.run(["model", "--full"]).ok();
    claimed
}

/// As an earlier version left it behind after a read error: an end that counts records which nobody had passed on.
fn an_end_that_an_earlier_reading_left_does_not_close_the_load(sandbox: &Sandbox) {
    let contents = events_over_days("a", 10_000);
    load_in_part(sandbox, &contents, 3);
    sandbox.execute("UPDATE {raw.loads} SET records_read = 3456, bytes = 1, error = 'cannot read the file'");
    sandbox.run_once().ok();
    sandbox.assert_each_loaded_once(&[("a.jsonl".to_owned(), contents, 10_000)]);
    sandbox.assert_settled();
}

/// Though much of it comes after the chunks by which that is seen, and two batches are written at a time.
fn a_file_that_was_replaced_after_a_part_of_it_was_loaded_adds_nothing(sandbox: &Sandbox) {
    let claimed = load_in_part(sandbox, &events_over_days("a", MANY), 10);
    fs::write(claimed, events_over_days("b", MANY)).expect("the inbox is writable");
    sandbox.run_once().code(3);
    assert_eq!(sandbox.lines(LEDGER), ["failed|10000|10000"]);
    assert_eq!(sandbox.dropped_names_in("events/failed"), ["a.jsonl", "a.jsonl.error.json"]);
    assert_eq!(sandbox.lines("SELECT count(*) FROM {raw.events} WHERE id LIKE 'b-%'"), ["0"], "nothing is mixed");
    sandbox.assert_settled();
}

/// Loads a file, then puts it back with other contents, as if the process had been killed before the move and somebody had
/// written to the file since.
fn load_then_find_changed(sandbox: &Sandbox, before: &str, after: &str) -> Outcome {
    sandbox.drop_in("events", "a.jsonl", before);
    sandbox.run_once().ok();
    let processed = only_file(&sandbox.file("inbox/events/processed"), "-a.jsonl");
    let claimed = sandbox.file("inbox/events/.loading").join(processed.file_name().expect("it has a name"));
    fs::rename(&processed, &claimed).expect("the inbox is writable");
    fs::write(&claimed, after).expect("the inbox is writable");
    sandbox.run_once()
}

fn a_file_that_grew_between_its_commit_and_its_move_is_read_to_its_end(sandbox: &Sandbox) {
    let contents = events_over_days("a", 3_000);
    let before: String = contents.split_inclusive('\n').take(2_300).collect();
    let summary = load_then_find_changed(sandbox, &before, &contents).ok().json();
    assert_eq!(summary["datasets"][0]["read"], 3_000, "{summary}");
    sandbox.assert_each_loaded_once(&[("a.jsonl".to_owned(), contents.clone(), 3_000)]);
    let chunks = "SELECT seq, first_ordinal, records FROM {raw.batches} ORDER BY seq";
    assert_eq!(sandbox.lines(chunks), ["0|1|1000", "1|1001|1000", "2|2001|1000"]);
    assert_eq!(sandbox.lines("SELECT sha256 FROM {raw.loads}"), [sha256(contents)], "of all of it");
    sandbox.assert_settled();
}

fn a_dropped_file_has_the_hash_of_its_stored_bytes_and_the_host_that_read_it(sandbox: &Sandbox) {
    let plain = events_over_days("a", 2_500);
    let packed = gzip(events_over_days("b", 1_500));
    sandbox.drop_in("events", "a.jsonl", &plain);
    sandbox.drop_in("events", "b.jsonl.gz", &packed);
    sandbox.drop_in("events", "c.json", "");
    sandbox.drop_in("events", "d.json", "[");
    sandbox.run_once().code(3);
    let mut expected = [("loaded", sha256(plain)), ("loaded", sha256(packed)), ("loaded", sha256("")), ("failed", sha256("["))]
        .map(|(status, hash)| format!("{status}|{hash}|{}", host_name()));
    expected.sort();
    let mut ledger = sandbox.lines("SELECT status, sha256, host FROM {raw.loads}");
    ledger.sort();
    assert_eq!(ledger, expected);
    sandbox.assert_settled();
}

/// With a reject among the records that were added, whose place counts from the beginning of the file.
fn a_file_that_grew_by_whole_chunks_is_read_to_its_end(sandbox: &Sandbox) {
    let before = events_over_days("a", 2_000);
    let contents = format!("{before}{}{{}}\n{}", events_over_days("b", 1_200), events_over_days("c", 3));
    load_then_find_changed(sandbox, &before, &contents).code(3);
    assert_eq!(sandbox.lines(LEDGER), ["loaded|3204|3203"]);
    assert_eq!(sandbox.lines("SELECT count(*), count(DISTINCT id) FROM {raw.events}"), ["3203|3203"]);
    let offset = contents.find("{}").expect("it is there");
    let rejects = "SELECT ordinal, byte_offset, reason FROM {raw.rejects}";
    assert_eq!(sandbox.lines(rejects), [format!("3201|{offset}|missing_required")]);
    sandbox.assert_settled();
}

fn a_file_that_was_changed_after_it_was_read_fails_and_keeps_the_ledger_right(sandbox: &Sandbox) {
    let before = events_over_days("a", 2_300);
    let lines: Vec<&str> = before.split_inclusive('\n').collect();
    let changed = [
        // Other records, as many.
        events_over_days("b", 2_300),
        // One record of a chunk in the middle.
        before.replace("\"a-1500\"", "\"x-1500\""),
        // Cut off, within a chunk and between two.
        lines[..2_299].concat(),
        lines[..2_000].concat(),
        // Grown at its front.
        event("0", "ada", "2024-05-01 10:00:00") + "\n" + &before,
        // Grown, but not only.
        before.replace("\"a-2300\"", "\"x-2300\"") + &events_over_days("c", 100),
        String::new(),
    ];
    for (i, after) in changed.iter().enumerate() {
        let outcome = load_then_find_changed(sandbox, &before, after).code(3);
        assert!(outcome.stderr.contains("has changed"), "{i}: {}", outcome.stderr);
        let load = sandbox.lines("SELECT status, records_read, rows_loaded, error FROM {raw.loads} ORDER BY id DESC LIMIT 1");
        assert!(load[0].starts_with("failed|2300|2300|") && load[0].contains("has changed"), "{i}: {load:?}");
        assert_eq!(sandbox.dropped_names_in("events/failed").len(), 2 * (i + 1));
        assert_eq!(sandbox.dropped_names_in("events/processed"), [""; 0]);
        assert_eq!(sandbox.lines("SELECT count(*) FROM {raw.events} WHERE id NOT LIKE 'a-%'"), ["0"], "{i}: nothing is mixed");
        sandbox.assert_settled();
    }
}

/// The consumer finds out, when the file has gone already.
#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn a_published_file_that_was_changed_is_a_failed_load() {
    let sandbox = Sandbox::over(Transport::Amqp, Store::Sqlite);
    let before = events_over_days("a", 5_300);
    let summary = load_then_find_changed(&sandbox, &before, &events_over_days("b", 5_300)).code(3);
    assert!(summary.stderr.contains("has changed"), "{}", summary.stderr);
    assert_eq!(summary.json()["datasets"][0]["files"], 1, "{}", summary.stdout);
    let load = sandbox.lines("SELECT status, records_read, rows_loaded, error FROM {raw.loads}");
    assert!(load.len() == 1 && load[0].starts_with("failed|5300|5300|the file has changed"), "{load:?}");
    assert_eq!(sandbox.lines("SELECT count(*) FROM {raw.events} WHERE id NOT LIKE 'a-%'"), ["0"], "nothing is mixed");
    assert_eq!(sandbox.dropped_names_in("events/processed"), ["a.jsonl"]);
    sandbox.assert_settled();
}

/// As an earlier version wrote it.
fn a_chunk_line_without_a_digest_is_compared_by_its_place_and_count(sandbox: &Sandbox) {
    let contents = events_over_days("a", 3_000);
    sandbox.drop_in("events", "a.jsonl", &contents);
    sandbox.run_once().ok();
    let digests = "SELECT count(*) FROM {raw.batches} WHERE digest IS NULL";
    assert_eq!(sandbox.lines(digests), ["0"]);
    sandbox.execute("UPDATE {raw.batches} SET digest = NULL");
    let processed = only_file(&sandbox.file("inbox/events/processed"), "-a.jsonl");
    let claimed = sandbox.file("inbox/events/.loading").join(processed.file_name().expect("it has a name"));
    fs::rename(&processed, &claimed).expect("the inbox is writable");
    sandbox.run_once().ok();
    sandbox.assert_each_loaded_once(&[("a.jsonl".to_owned(), contents, 3_000)]);
    sandbox.assert_settled();
}

/// The settings with some of the stream's replaced.
fn configure(sandbox: &Sandbox, stream: &str) {
    let defaults = include_str!("../../dataloader.toml");
    sandbox.write("dataloader.toml", format!("{defaults}\n[stream]\n{stream}\n"));
}

fn a_file_that_grows_while_its_rows_wait_for_their_commit_is_read_to_its_end(sandbox: &Sandbox) {
    let Some(disk) = FaultyDisk::new() else { return };
    configure(sandbox, "batch_interval_ms = 3000");
    let mut pipeline = disk.under(sandbox.pipeline([]), "-a.jsonl", 0).spawn();
    pipeline.wait_for_stderr("watching ");
    let (first, second) = (events_over_days("a", 10), events_over_days("b", 5));
    sandbox.drop_in("events", "a.jsonl", &first);
    disk.wait_until_read();
    let claimed = only_file(&sandbox.file("inbox/events/.loading"), "-a.jsonl");
    let mut file = OpenOptions::new().append(true).open(claimed).expect("it is claimed");
    file.write_all(second.as_bytes()).expect("it is open");
    sandbox.wait_until_finished("events", 1);
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
    sandbox.assert_each_loaded_once(&[("a.jsonl".to_owned(), first + &second, 15)]);
    sandbox.assert_settled();
}

/// `processed/` on another file system; false, with the reason printed, where there is none.
fn processed_elsewhere(sandbox: &Sandbox) -> Option<tempfile::TempDir> {
    use std::os::unix::fs::{MetadataExt, symlink};
    let elsewhere = tempfile::tempdir_in("/dev/shm").ok().filter(|elsewhere| {
        let device = |path: &Path| fs::metadata(path).expect("it is there").dev();
        device(elsewhere.path()) != device(sandbox.path())
    });
    let Some(elsewhere) = elsewhere else {
        eprintln!("skipped: /dev/shm is no other file system that this user can write");
        return None;
    };
    let processed: PathBuf = sandbox.file("inbox/events/processed");
    fs::create_dir_all(processed.parent().expect("it has one")).expect("the sandbox is writable");
    symlink(elsewhere.path(), processed).expect("the sandbox is writable");
    sandbox.follow_links();
    Some(elsewhere)
}

#[test]
fn a_file_that_takes_long_to_move_holds_nobody_up_and_is_waited_for() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let (Some(disk), Some(_elsewhere)) = (FaultyDisk::new(), processed_elsewhere(&sandbox)) else { return };
    let (slow, quick) = (events_over_days("a", 10), events_over_days("b", 10));
    disk.hold_copies();
    let mut pipeline = disk.under(sandbox.pipeline([]), "-a.jsonl", 0).spawn();
    pipeline.wait_for_stderr("watching ");
    sandbox.drop_in("events", "a.jsonl", &slow);
    wait_until("the slow move has begun", || sandbox.names_in("events/processed").iter().any(|name| name.ends_with(b".part")));
    sandbox.drop_in("events", "b.jsonl", &quick);
    wait_until("the other file is loaded and in its place", || {
        sandbox.names_in("events/processed").iter().any(|name| name.ends_with(b"-b.jsonl"))
    });
    pipeline.signal(Signal::Terminate);
    pipeline.wait_for_stderr("finishing what is in flight");
    // Longer than a drain takes that waits for nothing.
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert!(pipeline.is_running(), "the file is still on its way:\n{}", pipeline.stderr());
    disk.release_copies();
    pipeline.wait().ok();
    sandbox.assert_each_loaded_once(&[("a.jsonl".to_owned(), slow, 10), ("b.jsonl".to_owned(), quick, 10)]);
    sandbox.assert_settled();
}

#[test]
fn a_zstd_window_over_64_mib_is_refused_unless_a_setting_allows_it() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let packed = |window_log: u32| {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("a level");
        encoder.window_log(window_log).expect("zstd allows 10 to 31");
        encoder.write_all(many_events(1_500, "ada").as_bytes()).expect("memory suffices");
        encoder.finish().expect("memory suffices")
    };
    sandbox.drop_in("events", "64.zst", packed(26));
    sandbox.drop_in("events", "128.zst", packed(27));
    sandbox.run_once().code(3);
    assert_eq!(sandbox.dropped_names_in("events/processed"), ["64.zst"]);
    let error = &sandbox.lines("SELECT error FROM {raw.loads} WHERE status = 'failed'")[0];
    for part in ["64 MiB", "zstd_window_mib", "compress"] {
        assert!(error.contains(part), "{error}");
    }
    sandbox.write("raw_data/events/128.json.zst", packed(27));
    let outcome = sandbox.run(["load", "--dataset", "events"]).code(1);
    assert!(outcome.stderr.contains("128.json.zst") && outcome.stderr.contains("zstd_window_mib"), "{}", outcome.stderr);

    let defaults = include_str!("../../dataloader.toml");
    sandbox.write("dataloader.toml", format!("zstd_window_mib = 128\n{defaults}"));
    sandbox.drop_in("events", "128.zst", packed(27));
    sandbox.run_once().ok();
    sandbox.run(["load", "--dataset", "events"]).ok();
}

#[test]
fn what_a_killed_process_left_unfinished_is_removed() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let key = "0190f3f4-0000-7000-8000-00000000000";
    for place in [".loading", "processed", "failed"] {
        sandbox.write(&format!("inbox/events/{place}/.{key}1.part"), "half of a file");
    }
    // Somebody else's.
    sandbox.write("inbox/events/processed/.mine.part", "half of a file");
    sandbox.drop_in("events", "a.jsonl", many_events(3, "ada"));
    sandbox.run_once().ok();
    for (place, left) in [(".loading", 0), ("processed", 2), ("failed", 0)] {
        assert_eq!(sandbox.names_in(&format!("events/{place}")).len(), left, "in {place}");
    }
}

/// The inbox on a file system of one megabyte, in a mount namespace that goes with its processes.
#[test]
fn a_full_disk_leaves_nothing_unfinished_and_the_file_finds_its_place_when_there_is_room() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let script = "mkdir inbox && mount -t tmpfs -o size=1m tmpfs inbox || exit 77
        mkdir -p inbox/events/.loading inbox/events/failed inbox/events/processed inbox/orgs/.loading inbox/orgs/failed inbox/orgs/processed
        echo '[' > inbox/events/a.json
        head -c 2m /dev/zero > inbox/full 2>full.txt
        \"$0\" run --once > first.json; echo $? > first.code
        ls -A inbox/events/.loading inbox/events/failed > first.files
        rm inbox/full
        \"$0\" run --once > second.json; echo $? > second.code
        ls -A inbox/events/.loading inbox/events/failed > second.files";
    let args = ["--mount", "--map-root-user", "sh", "-c", script, env!("CARGO_BIN_EXE_dataloader")];
    let outcome = Invocation::new("unshare", sandbox.path()).args(args).run();
    if outcome.code == Some(77) || outcome.stderr.contains("unshare: ") {
        eprintln!("skipped: no small file system can be mounted here: {}", outcome.stderr);
        return;
    }
    let read = |name: &str| fs::read_to_string(sandbox.file(name)).expect("the script wrote it");
    assert_eq!(read("first.code"), "1\n", "{}", outcome.stderr);
    assert!(outcome.stderr.contains("No space left on device") && outcome.stderr.contains("cannot be moved"), "{}", outcome.stderr);
    assert!(!read("first.files").contains(".part"), "{}", read("first.files"));
    assert_eq!(read("second.code"), "3\n", "{}", outcome.stderr);
    let files = read("second.files");
    assert!(files.contains("-a.json\n") && files.contains("-a.json.error.json\n") && !files.contains(".part"), "{files}");
}

/// `.loading/` on a file system of its own, in a mount namespace that goes with its processes.
#[test]
fn once_does_not_end_well_when_a_file_cannot_be_claimed() {
    let sandbox = Sandbox::new(Store::Sqlite);
    sandbox.drop_in("events", "a.jsonl", many_events(3, "ada"));
    sandbox.drop_in("orgs", "b.json", r#"{"organization_key":"a"}"#);
    let script = "mkdir inbox/events/.loading && mount -t tmpfs tmpfs inbox/events/.loading || exit 77
        \"$0\" run --once --format json";
    let args = ["--mount", "--map-root-user", "sh", "-c", script, env!("CARGO_BIN_EXE_dataloader")];
    let outcome = Invocation::new("unshare", sandbox.path()).args(args).run();
    if outcome.code == Some(77) || outcome.stderr.contains("unshare: ") {
        eprintln!("skipped: no file system can be mounted here: {}", outcome.stderr);
        return;
    }
    let error = outcome.code(1).json()["error"]["message"].to_string();
    assert!(error.contains("cannot claim") && error.contains("a.jsonl"), "{error}");
    assert_eq!(sandbox.names_in("events"), [b"a.jsonl"]);
    assert_eq!((sandbox.count("raw.orgs"), sandbox.count("raw.events")), (1, 0), "the other file is loaded");
}
