//! What cannot be loaded as it arrives: records that do not fit, records that the database refuses, files that are broken.

use std::fs;

use crate::support::{Sandbox, Signal, event, events_over_days, many_events, on_every_pipeline, only_file};

on_every_pipeline!(
    a_record_that_does_not_fit_is_kept_and_the_rest_is_loaded,
    a_record_that_the_database_refuses_is_a_reject_of_its_own,
    only_the_later_of_two_equal_records_is_refused_by_a_unique_index,
    refused_records_are_loaded_when_the_constraint_is_gone,
    a_file_that_breaks_off_keeps_what_was_committed,
    broken_files_do_not_stop_the_others,
);

const REJECTS: &str = "SELECT ordinal, byte_offset, reason FROM {raw.rejects} ORDER BY load_id, ordinal";

/// Adds a rule that the program does not know: no user is called Eve. It has to be made before there are rows.
fn forbid_eve(sandbox: &Sandbox) {
    sandbox.run(["migrate"]).ok();
    if sandbox.is_sqlite() {
        // SQLite adds no constraint to a table; a trigger refuses with the same code.
        sandbox.execute(
            "CREATE TRIGGER no_eve BEFORE INSERT ON {raw.events} WHEN new.username = 'eve' \
             BEGIN SELECT raise(abort, 'CHECK constraint failed: no_eve'); END",
        );
    } else {
        sandbox.execute("ALTER TABLE {raw.events} ADD CONSTRAINT no_eve CHECK (username <> 'eve')");
    }
}

fn allow_eve(sandbox: &Sandbox) {
    let table = sandbox.table("raw.events");
    sandbox.execute(&match sandbox.is_sqlite() {
        true => "DROP TRIGGER no_eve".to_owned(),
        false => format!("ALTER TABLE {table} DROP CONSTRAINT no_eve"),
    });
}

fn a_record_that_does_not_fit_is_kept_and_the_rest_is_loaded(sandbox: &Sandbox) {
    let pipeline = sandbox.start_pipeline();
    let good = event("1", "ada", "2024-05-01 10:00:00");
    sandbox.drop_in("events", "a.jsonl", format!("{good}\n{{\"id\":\"x\"}}\nnonsense\n{good}\n"));
    sandbox.wait_until_finished("events", 1);
    sandbox.drop_in("events", "b.json", format!("[{good}, 7, {good}]"));
    sandbox.wait_until_finished("events", 2);
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
    assert_eq!(sandbox.count("raw.events"), 4);
    let expected = [
        format!("2|{}|missing_required", good.len() + 1),
        format!("3|{}|invalid_json", good.len() + 1 + 10 + 1),
        format!("2|{}|not_an_object", 1 + good.len() + 2),
    ];
    assert_eq!(sandbox.lines(REJECTS), expected);
    assert_eq!(sandbox.run(["rejects", "export"]).ok().stdout, "{\"id\":\"x\"}\nnonsense\n7\n");
    assert_eq!(sandbox.dropped_names_in("events/processed"), ["a.jsonl", "b.json"]);
    sandbox.assert_settled();
}

/// Records of which those with a number in `eves` are Eve's, and where those begin.
fn with_eves(count: usize, eves: &[usize]) -> (String, Vec<usize>) {
    let (mut text, mut offsets) = (String::new(), Vec::new());
    for ordinal in 1..=count {
        let is_eve = eves.contains(&ordinal);
        if is_eve {
            offsets.push(text.len());
        }
        let name = if is_eve { "eve" } else { "ada" };
        text += &(event(&ordinal.to_string(), name, "2024-05-01 10:00:00") + "\n");
    }
    (text, offsets)
}

fn a_record_that_the_database_refuses_is_a_reject_of_its_own(sandbox: &Sandbox) {
    forbid_eve(sandbox);
    // The first and the last of a file that goes by COPY, two neighbours, one of another chunk; and one that does not parse.
    let eves = [1, 500, 501, 1_700, 6_499];
    let (mut text, mut offsets) = with_eves(6_499, &eves);
    let fourth = offsets[3];
    text.insert_str(fourth, "{}\n");
    offsets[3] += 3;
    offsets[4] += 3;
    sandbox.drop_in("events", "a.jsonl", &text);
    sandbox.drop_in("events", "b.jsonl", many_events(10, "ben"));
    let summary = sandbox.run_once().code(3).json();
    assert_eq!((&summary["datasets"][0]["loaded"], &summary["datasets"][0]["rejected"]), (&(6_494 + 10).into(), &6.into()));
    assert_eq!(sandbox.lines("SELECT count(*) FROM {raw.events} WHERE username = 'eve'"), ["0"]);
    let expected = [
        format!("1|{}|constraint", offsets[0]),
        format!("500|{}|constraint", offsets[1]),
        format!("501|{}|constraint", offsets[2]),
        format!("1700|{fourth}|missing_required"),
        format!("1701|{}|constraint", offsets[3]),
        format!("6500|{}|constraint", offsets[4]),
    ];
    assert_eq!(sandbox.lines(REJECTS), expected);
    let details = sandbox.lines("SELECT DISTINCT detail FROM {raw.rejects} WHERE reason = 'constraint'");
    assert!(details.len() == 1 && details[0].contains("no_eve"), "{details:?}");
    let exported = sandbox.run(["rejects", "export"]).ok().stdout;
    let line = |offset: usize| text[offset..].lines().next().unwrap_or_default().to_owned() + "\n";
    let [a, b, c, d, e] = [0, 1, 2, 3, 4].map(|eve: usize| line(offsets[eve]));
    assert_eq!(exported, format!("{a}{b}{c}{{}}\n{d}{e}"));
    sandbox.assert_settled();
}

fn only_the_later_of_two_equal_records_is_refused_by_a_unique_index(sandbox: &Sandbox) {
    sandbox.run(["migrate"]).ok();
    let table = sandbox.table("raw.events");
    sandbox.execute(&format!("CREATE UNIQUE INDEX one_of_each ON {table} (id)"));
    // In one chunk: of different chunks either may be the first to be written.
    let text = many_events(900, "ada");
    let again = event("7", "ben", "2024-05-02 10:00:00") + "\n";
    sandbox.drop_in("events", "a.jsonl", text.clone() + &again);
    sandbox.run_once().code(3);
    sandbox.drop_in("events", "b.jsonl", &again);
    sandbox.run_once().code(3);
    let rejects = "SELECT ordinal, byte_offset, reason FROM {raw.rejects} ORDER BY load_id";
    assert_eq!(sandbox.lines(rejects), [format!("901|{}|constraint", text.len()), "1|0|constraint".to_owned()]);
    assert_eq!(sandbox.lines("SELECT username FROM {raw.events} WHERE id = '7'"), ["ada"]);
    assert_eq!(sandbox.count("raw.events"), 900);
    sandbox.assert_settled();
}

fn refused_records_are_loaded_when_the_constraint_is_gone(sandbox: &Sandbox) {
    forbid_eve(sandbox);
    let (text, _) = with_eves(1_200, &[3, 1_100]);
    let pipeline = sandbox.start_pipeline();
    sandbox.drop_in("events", "a.jsonl", text + "{}\n");
    sandbox.wait_until_finished("events", 1);
    let replay = |loaded: u64, rejected: u64| {
        let summary = sandbox.run(["rejects", "replay", "--dataset", "events", "--format", "json"]).ok().json();
        let events = &summary["datasets"][0];
        let counts = (events["read"].as_u64(), events["loaded"].as_u64(), events["rejected"].as_u64());
        assert_eq!(counts, (Some(3), Some(loaded), Some(rejected)));
    };
    // Beside the running pipeline, first without and then with success.
    replay(0, 3);
    assert_eq!(sandbox.count("raw.rejects"), 3);
    allow_eve(sandbox);
    replay(2, 1);
    assert_eq!(sandbox.lines("SELECT ordinal, reason FROM {raw.rejects}"), ["1201|missing_required"]);
    assert_eq!(
        sandbox.lines(
            "SELECT e.id, l.source FROM {raw.events} e JOIN {raw.loads} l ON l.id = e._load_id \
                              WHERE e.username = 'eve' ORDER BY e.id"
        ),
        ["1100|rejects replay", "3|rejects replay"]
    );
    let loads = "SELECT status, records_read, rows_loaded, rows_rejected FROM {raw.loads} ORDER BY id";
    assert_eq!(sandbox.lines(loads), ["loaded|1201|1198|3", "loaded|3|0|3", "loaded|3|2|1"]);
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
    sandbox.assert_settled();
}

fn a_file_that_breaks_off_keeps_what_was_committed(sandbox: &Sandbox) {
    let records = events_over_days("a", 1_500);
    let text = format!("[{}, {{\"id\":", records.trim().replace('\n', ","));
    sandbox.drop_in("events", "broken.json", &text);
    let pipeline = sandbox.start_pipeline();
    sandbox.wait_until_finished("events", 1);
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
    assert_eq!(sandbox.count("raw.events"), 1_500, "what was committed stays");
    let ledger = "SELECT status, records_read, rows_loaded, rows_rejected, finished_at IS NULL FROM {raw.loads}";
    assert_eq!(sandbox.lines(ledger), ["failed|1500|1500|0|0"].map(str::to_owned));
    let error = &sandbox.lines("SELECT error FROM {raw.loads}")[0];
    let place = format!("line 1, column {}", text.len() + 1);
    assert!(error.contains(&place) && error.contains(&format!("byte {}", text.len())), "{error}");

    let failed = sandbox.file("inbox/events/failed");
    let file = only_file(&failed, "-broken.json");
    assert_eq!(fs::read_to_string(&file).expect("it was moved"), text);
    let report = only_file(&failed, "-broken.json.error.json");
    let report: serde_json::Value = serde_json::from_slice(&fs::read(report).expect("it is there")).expect("the report is JSON");
    let key = &sandbox.lines("SELECT load_key FROM {raw.loads}")[0];
    assert_eq!((&report["error"], &report["load_key"]), (&error.as_str().into(), &key.as_str().into()), "{report}");
    assert_eq!(report["dataset"], "events");
    assert!(report["file"].as_str().is_some_and(|file| file.ends_with("/inbox/events/broken.json")), "{report}");
    assert!(file.to_string_lossy().contains(key.as_str()));
    let status = sandbox.run(["status"]).ok().stdout;
    assert!(status.contains("failed") && status.contains(&place), "{status}");
    sandbox.assert_settled();
}

fn broken_files_do_not_stop_the_others(sandbox: &Sandbox) {
    let broken: [(&str, &[u8]); 6] = [
        ("text.json", b"hello"),
        ("unclosed.json", b"[{}"),
        ("after.json", b"[] []"),
        ("gzip.json", b"\x1f\x8b\x08\x00rubbish"),
        ("zstd.json", b"\x28\xb5\x2f\xfdrubbish"),
        ("utf16.json", b"\xff\xfe[\x00]\x00"),
    ];
    for (name, contents) in broken {
        sandbox.drop_in("events", name, contents);
    }
    sandbox.drop_in("events", "good.jsonl", events_over_days("good", 20));
    sandbox.run_once().code(3);
    let mut names: Vec<String> = broken.iter().flat_map(|(name, _)| [(*name).to_owned(), format!("{name}.error.json")]).collect();
    names.sort();
    assert_eq!(sandbox.dropped_names_in("events/failed"), names);
    assert_eq!(sandbox.lines("SELECT count(*) FROM {raw.loads} WHERE status = 'failed' AND error <> ''"), ["6"]);
    assert_eq!(sandbox.count("raw.events"), 20);
    sandbox.assert_settled();
}
