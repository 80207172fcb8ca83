//! Input that is broken: a clear message, the right exit code, and nothing else is lost.

use std::os::unix::fs::{PermissionsExt, symlink};

use crate::support::{Invocation, Outcome, Sandbox, Store, array, event, gzip, on_both_stores};

on_both_stores!(
    files_whose_boundaries_are_lost_fail_the_run,
    stray_commas_cost_only_themselves,
    a_bad_line_costs_only_itself,
    huge_and_deep_records_are_rejected_alone,
    what_is_no_file_is_named,
);

fn good(id: &str) -> String {
    event(id, "ada", "2024-05-01 10:00:00")
}

fn load(sandbox: &Sandbox) -> Outcome {
    sandbox.run(["load", "--dataset", "events"])
}

fn files_whose_boundaries_are_lost_fail_the_run(sandbox: &Sandbox) {
    sandbox.write_events("a.json", good("before"));
    load(sandbox).ok();
    sandbox.write_events("a.json", good("not loaded"));
    let array_of_one = array(&[good("x")]);
    let cut = array_of_one.len() - 1;
    let many = array(&vec![good("x"); 2_000]);
    let mut broken_gzip = gzip(many.as_bytes());
    let middle = broken_gzip.len() / 2;
    broken_gzip.truncate(middle);
    let mut broken_zstd = zstd::encode_all(many.as_bytes(), 1).expect("memory takes everything");
    broken_zstd.truncate(broken_zstd.len() / 2);
    let cases: [(&str, Vec<u8>, &str); 13] = [
        ("truncated array", array_of_one[..cut].into(), "the array is not closed"),
        ("truncated in a record", array_of_one.as_bytes()[..cut - 5].into(), "inside the record that begins at line 1, column 2"),
        ("truncated object", b"{\"id\": \"a".to_vec(), "inside the record that begins at line 1, column 1"),
        ("no comma", format!("[{}\n {}]", good("x"), good("y")).into(), "line 2, column 2"),
        ("after the end", (array_of_one.clone() + "\nx").into(), "line 2, column 1"),
        ("two arrays", array_of_one.repeat(2).into(), "after the closing `]`"),
        ("text", b"id,event_type\n1,created\n".to_vec(), "begins with no object or array"),
        ("a number", b"42".to_vec(), "begins with no object or array"),
        ("binary", vec![0, 159, 146, 150], "begins with no object or array"),
        ("UTF-16", b"\xff\xfe[\0]\0".to_vec(), "UTF-16"),
        ("truncated gzip", broken_gzip, "broken gzip"),
        ("truncated zstd", broken_zstd, "broken zstd"),
        ("only brackets", b"[[[[".to_vec(), "line 1, column 2"),
    ];
    for (name, contents, said) in cases {
        sandbox.write_events("b.json", contents);
        let outcome = load(sandbox).code(1);
        assert!(outcome.stderr.contains("raw_data/events/b.json: ") && outcome.stderr.contains(said), "{name}: {}", outcome.stderr);
        assert!(!outcome.stderr.contains("panicked"), "{name}: {}", outcome.stderr);
        let dry = sandbox.run(["load", "--dataset", "events", "--dry-run"]).code(1);
        assert!(dry.stderr.contains(said), "{name}: {}", dry.stderr);
    }
    assert_eq!(sandbox.lines("SELECT id FROM {raw.events}"), ["before"]);
    assert_eq!(sandbox.lines("SELECT count(*) FROM {raw.loads} WHERE status = 'failed' AND error IS NOT NULL"), ["13"]);
}

fn stray_commas_cost_only_themselves(sandbox: &Sandbox) {
    sandbox.write_events("x.json", format!("[, {},, {},]", good("a"), good("b")));
    load(sandbox).code(3);
    assert_eq!(sandbox.lines("SELECT id FROM {raw.events} ORDER BY id"), ["a", "b"]);
    assert_eq!(
        sandbox.lines("SELECT ordinal, reason FROM {raw.rejects} ORDER BY ordinal"),
        ["1|invalid_json", "3|invalid_json", "5|invalid_json"]
    );
}

fn a_bad_line_costs_only_itself(sandbox: &Sandbox) {
    let lines = [
        good("a"),
        "{\"id\":".to_owned() + &good("lost"),
        "nonsense".to_owned(),
        good("b"),
        "{\"id\" \"c\"}".to_owned(),
        good("d"),
    ];
    sandbox.write_events("x.jsonl", lines.join("\n"));
    load(sandbox).code(3);
    assert_eq!(sandbox.lines("SELECT id FROM {raw.events} ORDER BY id"), ["a", "b", "d"]);
    let rejects = sandbox.run(["rejects", "export"]).ok().stdout;
    assert_eq!(rejects.lines().collect::<Vec<_>>(), [&lines[1], &lines[2], &lines[4]]);
}

fn huge_and_deep_records_are_rejected_alone(sandbox: &Sandbox) {
    let large = good("large").replace("ada", &"x".repeat(20 << 20));
    let deep = good("deep").replace("\"ada\"", &("[".repeat(10_000) + &"]".repeat(10_000)));
    let within = good("within").replace("ada", &"x".repeat(8 * 1000 * 1000));
    let records = [good("a"), large, deep, within, good("b")];
    sandbox.write_events("1.json", array(&records));
    sandbox
        .write_events("2.jsonl", records.join("\n").replace("\"a\"", "\"c\"").replace("\"b\"", "\"d\"").replace("within", "too"));
    load(sandbox).code(3);
    assert_eq!(sandbox.lines("SELECT id FROM {raw.events} ORDER BY id"), ["a", "b", "c", "d", "too", "within"]);
    let rejects = "SELECT load_id, ordinal, reason, length(record) FROM {raw.rejects} ORDER BY 1, 2";
    let kept_deep = records[2].len();
    let expected = |load: u8| [format!("{load}|2|too_large|65536"), format!("{load}|3|too_deep|{kept_deep}")];
    assert_eq!(sandbox.lines(rejects), [expected(1), expected(2)].concat());
}

fn what_is_no_file_is_named(sandbox: &Sandbox) {
    sandbox.write_events("a.json", good("a"));
    for (argument, said) in
        [("raw_data/events", "raw_data/events: it is a directory"), ("nowhere.json", "nowhere.json: No such file or directory")]
    {
        let outcome = sandbox.run(["load", "--dataset", "events", "raw_data/events/a.json", argument]).code(1);
        assert!(outcome.stderr.contains(said), "{}", outcome.stderr);
    }
    // It was listed, and is gone when it is opened.
    symlink("gone", sandbox.file("raw_data/events/vanished.json")).expect("the sandbox is writable");
    let outcome = load(sandbox).code(1);
    assert!(outcome.stderr.contains("raw_data/events/vanished.json: No such file or directory"), "{}", outcome.stderr);
    assert_eq!(sandbox.count("raw.events"), 0);
}

#[test]
fn an_unreadable_file_fails_the_run() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let path = sandbox.write_events("secret.json", good("a"));
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o000)).expect("the file is ours");
    if std::fs::read(&path).is_ok() {
        eprintln!("skipped: this user reads everything");
        return;
    }
    let outcome = load(&sandbox).code(1);
    assert!(outcome.stderr.contains("cannot open raw_data/events/secret.json: Permission denied"), "{}", outcome.stderr);
}

/// Through a pipe, as nothing else makes so much so quickly; in an array and in a stream.
#[test]
fn a_line_of_a_gigabyte_is_rejected_in_little_memory() {
    let sandbox = Sandbox::new(Store::Sqlite);
    for (bytes, open, between, close) in [(1_000_000_000, "[", ",", "]"), (100_000_000, "", "", "")] {
        let script = format!(
            "{{ printf '{open}{{\"id\":\"'; head -c {bytes} /dev/zero | tr '\\0' a; printf '\"}}{between}{}{close}'; }} \
             | (ulimit -v 1000000; exec \"$0\" load --dataset events --format json -)",
            good("after it")
        );
        let outcome = Invocation::new("sh", sandbox.path()).args(["-c", &script, env!("CARGO_BIN_EXE_dataloader")]).run().code(3);
        assert_eq!(outcome.json()["datasets"][0]["rejected"], 1);
    }
    assert_eq!(sandbox.lines("SELECT id FROM {raw.events}"), ["after it"]);
    assert_eq!(sandbox.lines("SELECT reason, length(record) FROM {raw.rejects}"), ["too_large|65536", "too_large|65536"]);
}
