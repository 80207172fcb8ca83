//! `verify` proves that all that is there agrees, names what does not, and changes nothing.

use std::fs;

use serde_json::Value;

use crate::support::{Sandbox, Store, event, gzip, many_events, on_both_stores, only_file, write_samples};

on_both_stores!(
    all_that_a_user_does_agrees,
    each_difference_is_named,
    what_is_in_flight_or_not_modelled_yet_is_named_and_not_compared,
    processed_files_are_compared_with_the_ledger,
    a_load_is_verified_alone,
);

/// What differs, one line for each.
#[track_caller]
fn differences(sandbox: &Sandbox) -> Vec<String> {
    let outcome = sandbox.run(["verify", "--format", "json"]);
    let found: Vec<String> = list(&outcome.json()["differences"], "difference");
    assert_eq!(outcome.code, Some(i32::from(!found.is_empty())), "{outcome:?}");
    found
}

fn list(found: &Value, key: &str) -> Vec<String> {
    let text = |found: &Value| found.as_str().unwrap_or_default().to_owned();
    let found = found.as_array().into_iter().flatten();
    found.map(|found| if key.is_empty() { text(found) } else { text(&found[key]) }).collect()
}

/// The notes about what was not compared.
fn notes(sandbox: &Sandbox) -> Vec<String> {
    list(&sandbox.run(["verify", "--format", "json"]).json()["notes"], "")
}

/// Two files of the stream and one of batch, one of them with a reject.
fn load_some(sandbox: &Sandbox) {
    sandbox.drop_in("events", "a.jsonl", many_events(1_500, "ada"));
    sandbox.drop_in("events", "b.jsonl.gz", gzip(many_events(3, "ben") + "{}\n"));
    sandbox.run_once().code(3);
    sandbox.write_orgs("c.json", r#"[{"organization_key":"a"},{"organization_key":"b"}]"#);
    sandbox.run(["load", "--dataset", "orgs"]).ok();
}

fn all_that_a_user_does_agrees(sandbox: &Sandbox) {
    write_samples(sandbox);
    load_some(sandbox);
    sandbox.run(["load"]).ok();
    sandbox.run(["load", "--date", "2024-02-28"]).ok();
    sandbox.write_events("broken.json", "[{}, {");
    sandbox.run(["load"]).code(1);
    sandbox.drop_in("events", "cut.json", format!("[{},{{", event("x", "ada", "2024-05-01 10:00:00")));
    sandbox.drop_in("events", "again.jsonl", many_events(1_500, "ada"));
    sandbox.drop_in("orgs", "d.json", r#"[{"organization_key":"a"}]"#);
    sandbox.run_once().code(3);
    let of_again = "SELECT id FROM {raw.loads} WHERE source LIKE '%again.jsonl'";
    sandbox.run(["unload", &sandbox.lines(of_again)[0]]).ok();
    sandbox.run(["rejects", "replay"]).ok();
    sandbox.run(["rejects", "discard"]).ok();
    let before = sandbox.lines("SELECT * FROM {raw.loads} ORDER BY id");
    assert_eq!(differences(sandbox), [""; 0]);
    let text = sandbox.run(["verify"]).ok().stdout;
    assert!(
        text.starts_with("events: ") && text.contains(" rows, 0 open rejects, 3 processed files, 3 modelled tables\n"),
        "{text}"
    );
    assert!(text.ends_with("all that was compared agrees\n"), "{text}");
    assert_eq!(sandbox.lines("SELECT * FROM {raw.loads} ORDER BY id"), before, "it changes nothing");
}

/// What somebody does to the tables, and what is said of it.
const DAMAGES: [(&str, &str); 11] = [
    ("DELETE FROM {raw.events} WHERE _load_id = 1 AND id = '7'", "1499 rows are in the table, 1500 were loaded"),
    (
        "INSERT INTO {raw.events} SELECT * FROM {raw.events} WHERE _load_id = 1 AND id = '8'",
        "1501 rows are in the table, 1500 were",
    ),
    ("UPDATE {raw.events} SET _load_id = 99 WHERE _load_id = 2", "3 rows are of no load in the ledger"),
    ("DELETE FROM {raw.orgs} WHERE organization_key = 'a'", "1 rows are in the table, 2 were loaded"),
    ("UPDATE {raw.loads} SET records_read = 1501 WHERE id = 1", "1501 records were read, but 1500 loaded + 0 rejected + 0 skipped"),
    ("DELETE FROM {raw.batches} WHERE load_id = 1 AND seq = 1", "its chunk lines hold 1000 records, the ledger accounts for 1500"),
    ("UPDATE {raw.batches} SET first_ordinal = 1002 WHERE load_id = 1 AND seq = 1", "1 of its chunk lines do not begin where"),
    ("INSERT INTO {raw.rejects} SELECT * FROM {raw.rejects}", "2 rejects are open, 1 records were rejected"),
    ("UPDATE {raw.rejects} SET load_id = 98", "1 open rejects are of this load, which is not in the ledger"),
    (
        "UPDATE {modelled.events_by_date} SET total_events = total_events + 1",
        "modelled.events_by_date differs from a recompute: 1 rows too many, 1 missing",
    ),
    ("UPDATE {raw.loads} SET status = 'unloaded' WHERE id = 2", "3 rows are in the table, 0 were loaded"),
];

fn each_difference_is_named(sandbox: &Sandbox) {
    sandbox.write_orgs("c.json", "[]");
    load_some(sandbox);
    assert_eq!(differences(sandbox), [""; 0]);
    let tables = ["raw.events", "raw.orgs", "raw.loads", "raw.batches", "raw.rejects", "modelled.events_by_date"];
    for table in tables {
        let copy = format!("saved_{}", table.split('.').nth(1).expect("schema.table"));
        sandbox.execute(&format!("CREATE TABLE {copy} AS SELECT * FROM {}", sandbox.table(table)));
    }
    for (damage, said) in DAMAGES {
        sandbox.execute(damage);
        let found = differences(sandbox);
        assert!(found.iter().any(|line| line.contains(said)), "{damage}: {found:#?}");
        assert!(found.iter().filter(|line| !line.contains(said)).all(|line| is_a_consequence(line)), "{damage}: {found:#?}");
        for table in tables {
            let (table, copy) = (sandbox.table(table), format!("saved_{}", table.split('.').nth(1).expect("schema.table")));
            sandbox.execute(&format!("DELETE FROM {table}; INSERT INTO {table} SELECT * FROM {copy}"));
        }
        assert_eq!(differences(sandbox), [""; 0], "after {damage}");
    }
    let text = sandbox.run(["verify"]).ok().stdout;
    assert!(text.contains("all that was compared agrees"), "{text}");
}

/// Rows that somebody takes away are missing in the model's recompute as well, and those of another load in their own.
fn is_a_consequence(line: &str) -> bool {
    [
        "differs from a recompute",
        "has 1500 records, the ledger has 1501",
        "0 rows are in the table, 3 were loaded",
        "1 rejects are open, 0 records",
    ]
    .iter()
    .any(|known| line.contains(known))
}

fn what_is_in_flight_or_not_modelled_yet_is_named_and_not_compared(sandbox: &Sandbox) {
    load_some(sandbox);
    let mark = match sandbox.store() {
        Store::Sqlite => "INSERT INTO dataloader_changed_days (dataset, day) VALUES ('events', '2024-05-01')",
        Store::Postgres => "INSERT INTO dataloader.changed_days (dataset, day) VALUES ('events', '2024-05-01')",
    };
    sandbox.execute(mark);
    sandbox.execute("UPDATE {modelled.events_by_date} SET total_events = 0");
    sandbox.execute("UPDATE {raw.loads} SET status = 'loading', records_read = 0 WHERE id = 1");
    assert_eq!(differences(sandbox), [""; 0]);
    let notes = notes(sandbox);
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes[0].starts_with("events: in flight, and not compared: 1 (") && notes[0].contains("a.jsonl"), "{notes:?}");
    assert_eq!(notes[1], "events: not modelled yet, and not compared: 2024-05-01");
}

fn processed_files_are_compared_with_the_ledger(sandbox: &Sandbox) {
    load_some(sandbox);
    let processed = sandbox.file("inbox/events/processed");
    let file = only_file(&processed, "-a.jsonl");
    let contents = fs::read_to_string(&file).expect("it is there");
    fs::write(&file, contents.clone() + &event("x", "ada", "2024-05-01 10:00:00") + "\n").expect("it is ours");
    let found = differences(sandbox);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("has the sha256 ") && found[0].ends_with("it was changed after it was loaded"), "{found:?}");
    assert_eq!(found[1], "has 1501 records, the ledger has 1500");
    let text = sandbox.run(["verify"]).code(1).stdout;
    assert!(
        text.contains("DIFFERENT events, load ")
            && text.contains("-a.jsonl: has 1501 records")
            && text.ends_with("2 differences\n"),
        "{text}"
    );

    fs::write(&file, contents + "[").expect("it is ours");
    assert!(differences(sandbox).iter().any(|line| line.starts_with("cannot be read: line 1501, column 2")));

    // Cleared away, which is the user's right.
    fs::remove_file(&file).expect("it is ours");
    assert_eq!(differences(sandbox), [""; 0]);

    // As after a restore of an older database.
    fs::rename(only_file(&processed, "-b.jsonl.gz"), processed.join("0190163d-8694-739b-aea5-966c26f8ad91-b.jsonl.gz"))
        .expect("it is ours");
    assert!(differences(sandbox)[0].starts_with("is in processed/, but its load is not in the ledger"));
    let over_amqp = sandbox.command(["verify", "--format", "json"]).env("DATALOADER_TRANSPORT", "amqp").run().ok().json();
    assert!(list(&over_amqp["notes"], "")[0].contains("not in the ledger yet, and not compared"), "{over_amqp}");

    fs::remove_dir_all(processed).expect("it is ours");
    sandbox.execute("UPDATE {raw.loads} SET host = 'elsewhere' WHERE dataset = 'events'");
    assert_eq!(notes(sandbox), ["files of other hosts, not compared: elsewhere (2)"]);
}

fn a_load_is_verified_alone(sandbox: &Sandbox) {
    load_some(sandbox);
    sandbox.execute("UPDATE {raw.loads} SET records_read = 7 WHERE id = 1");
    // Ids have gaps: an id that two writers wanted for the same load is used once.
    let other = &sandbox.lines("SELECT id FROM {raw.loads} WHERE id <> 1 ORDER BY id")[0];
    sandbox.run(["verify", "--load", other]).ok();
    sandbox.run(["verify", "--load", other, "--load", "1"]).code(1);
    sandbox.run(["verify", "--dataset", "orgs"]).ok();
    let outcome = sandbox.run(["verify", "--load", "77"]).code(1);
    assert!(outcome.stderr.contains("load 77 is not in the ledger"), "{}", outcome.stderr);
    sandbox.run(["verify", "--dataset", "none"]).code(2);
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn who_may_read_only_the_data_is_told_what_is_not_compared() {
    let sandbox = Sandbox::new(Store::Postgres);
    load_some(&sandbox);
    let reader = crate::reading::Reader::new(&sandbox);
    let outcome = sandbox.command(["verify"]).env("DATABASE_URL", &reader.url()).run().ok();
    assert!(outcome.stdout.contains("may not read the schema dataloader"), "{}", outcome.stdout);
    assert!(outcome.stdout.ends_with("all that was compared agrees\n"), "{}", outcome.stdout);
}
