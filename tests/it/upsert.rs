//! The batch upsert: rows of the same key are replaced, nulls are equal, and every day that lost or gained rows is modelled.

use crate::support::{Sandbox, Store, array, event, on_both_stores, wait_until};

on_both_stores!(
    changed_records_replace_those_of_the_same_key,
    identical_records_of_one_file_stay_as_many,
    keys_compare_nulls_as_equal,
    many_null_keys_take_no_longer_than_others,
    small_and_large_loads_replace_the_rows_of_their_keys,
    small_and_large_loads_of_some_days_replace_the_rows_of_their_keys,
    a_row_that_moves_to_another_day_leaves_the_old_one,
    the_delta_holds_the_latest_run,
    a_dataset_without_a_day_is_replaced_in_full,
    a_dataset_without_a_day_stays_when_nothing_can_be_loaded,
    files_without_a_record_empty_a_table_only_when_told_to,
    a_table_with_rows_of_other_hands_keeps_them,
    several_datasets_are_loaded_together_or_not_at_all,
    a_row_that_the_database_refuses_fails_the_run,
);

const READINGS: &str = r#"
[datasets.readings]
dir = "readings"
key = ["site", "sensor"]
day = "at"
[datasets.readings.columns]
site = "text"
sensor = "bigint"
at = { type = "timestamptz", required = true }
value = "numeric"
[datasets.readings.model]
dimensions = ["site"]
distinct = { sensors = "sensor" }
"#;

fn replaced(sandbox: &Sandbox, args: &[&str]) -> u64 {
    let summary = sandbox.run([&["load", "--format", "json"], args].concat()).ok().json();
    summary["datasets"][0]["replaced"].as_u64().expect("a count")
}

fn changed_records_replace_those_of_the_same_key(sandbox: &Sandbox) {
    let (first, second) = (event("a", "ada", "2024-05-01 10:00:00"), event("b", "ben", "2024-05-01 11:00:00"));
    sandbox.write_events("x.json", array(&[&first, &second]));
    assert_eq!(replaced(sandbox, &["--dataset", "events"]), 0);
    sandbox.write_events("x.json", array(&[second.replace("ben", "bea"), event("c", "cy", "2024-05-02 00:00:00")]));
    assert_eq!(replaced(sandbox, &["--dataset", "events"]), 1);
    let users = "SELECT id, username FROM {raw.events} ORDER BY id";
    assert_eq!(sandbox.lines(users), ["a|ada", "b|bea", "c|cy"], "what the files no longer hold stays");
    let by_date = "SELECT date, total_events, unique_users FROM {modelled.events_by_date} ORDER BY date";
    assert_eq!(sandbox.lines(by_date), ["2024-05-01|2|2", "2024-05-02|1|1"]);
}

fn identical_records_of_one_file_stay_as_many(sandbox: &Sandbox) {
    let twice = event("a", "ada", "2024-05-01 10:00:00");
    sandbox.write_events("x.json", array(&[&twice, &twice]));
    for expected_replaced in [0, 2, 2] {
        assert_eq!(replaced(sandbox, &["--dataset", "events"]), expected_replaced);
        assert_eq!(sandbox.count("raw.events"), 2);
        let totals = "SELECT total_events, unique_events, unique_users FROM {modelled.events_by_date}";
        assert_eq!(sandbox.lines(totals), ["2|1|1"]);
    }
}

fn keys_compare_nulls_as_equal(sandbox: &Sandbox) {
    sandbox.write("dataloader.toml", READINGS);
    let records = |value: &str| {
        [
            format!(r#"{{"site":"n","sensor":1,"at":"2024-05-01T10:00:00Z","value":{value}}}"#),
            format!(r#"{{"site":null,"sensor":1,"at":"2024-05-01T10:00:00Z","value":{value}}}"#),
            format!(r#"{{"site":"n","at":"2024-05-01T10:00:00Z","value":{value}}}"#),
            format!(r#"{{"at":"2024-05-01T10:00:00Z","value":{value}}}"#),
        ]
    };
    sandbox.write("raw_data/readings/x.json", array(&records("1.50")));
    assert_eq!(replaced(sandbox, &[]), 0);
    let rows = "SELECT coalesce(site, '-'), coalesce(sensor, 0), value FROM {raw.readings} ORDER BY 1, 2";
    assert_eq!(sandbox.lines(rows), ["-|0|1.50", "-|1|1.50", "n|0|1.50", "n|1|1.50"]);
    // All patterns of nulls at once, then each alone.
    sandbox.write("raw_data/readings/x.json", array(&records("2")));
    assert_eq!(replaced(sandbox, &[]), 4);
    assert_eq!(sandbox.lines(rows), ["-|0|2", "-|1|2", "n|0|2", "n|1|2"]);
    for record in records("3") {
        sandbox.write("raw_data/readings/x.json", &record);
        assert_eq!(replaced(sandbox, &[]), 1, "{record}");
    }
    assert_eq!(sandbox.lines(rows), ["-|0|3", "-|1|3", "n|0|3", "n|1|3"]);
    let totals = "SELECT total_readings, unique_readings, sensors FROM {modelled.readings_by_date}";
    assert_eq!(sandbox.lines(totals), ["4|4|1"], "a null is a key of its own but no sensor");
    let by_site =
        "SELECT coalesce(site, '-'), total_readings, unique_readings, sensors FROM {modelled.readings_by_date_site} ORDER BY 1";
    assert_eq!(sandbox.lines(by_site), ["-|2|2|1", "n|2|2|1"]);
}

/// Were every row compared with every other, this would outlast all patience.
fn many_null_keys_take_no_longer_than_others(sandbox: &Sandbox) {
    const HALF: usize = 20_000;
    sandbox.write("dataloader.toml", READINGS);
    let with_key: String = (0..HALF).map(|sensor| format!("{{\"sensor\":{sensor},\"at\":\"2024-05-01\"}}\n")).collect();
    sandbox.write("raw_data/readings/x.jsonl", with_key + &"{\"at\":\"2024-05-01\"}\n".repeat(HALF));
    assert_eq!(replaced(sandbox, &[]), 0);
    assert_eq!(replaced(sandbox, &[]), 2 * HALF as u64);
    let totals = "SELECT total_readings, unique_readings, sensors FROM {modelled.readings_by_date}";
    assert_eq!(sandbox.lines(totals), [format!("{}|{}|{HALF}", 2 * HALF, HALF + 1)]);
}

/// The key does not contain the day: a small load finds the rows that it replaces by an index, a large one reads all.
fn small_and_large_loads_replace_the_rows_of_their_keys(sandbox: &Sandbox) {
    const SENSORS: usize = 1_000;
    sandbox.write("dataloader.toml", READINGS);
    let reading = |site: &str, sensor: &str, value: u32| {
        format!("{{\"site\":{site},\"sensor\":{sensor},\"at\":\"2024-05-01\",\"value\":{value}}}\n")
    };
    let nulls = |value| reading("null", "1", value) + &reading("\"n\"", "null", value) + &reading("null", "null", value);
    let all = |value| (0..SENSORS).map(|i| reading("\"n\"", &i.to_string(), value)).collect::<String>() + &nulls(value);
    let values = || sandbox.lines("SELECT value, count(*) FROM {raw.readings} GROUP BY value ORDER BY value");
    sandbox.write("raw_data/readings/x.jsonl", all(1));
    assert_eq!(replaced(sandbox, &[]), 0);
    // A known key, a new key, and all combinations of nulls.
    let few = reading("\"n\"", "7", 2) + &reading("\"new\"", "7", 2) + &nulls(2);
    sandbox.write("raw_data/readings/x.jsonl", few);
    assert_eq!(replaced(sandbox, &[]), 4);
    assert_eq!(values(), [format!("1|{}", SENSORS - 1), "2|5".to_owned()]);
    if sandbox.store() == Store::Postgres {
        let looked_up = "SELECT count(*) FROM pg_stat_user_indexes WHERE indexrelname = 'readings.key' AND idx_scan > 0";
        wait_until("the keys were looked up in the index", || sandbox.lines(looked_up) == ["1"]);
    }
    sandbox.write("raw_data/readings/x.jsonl", all(3));
    assert_eq!(replaced(sandbox, &[]), SENSORS as u64 + 3);
    assert_eq!(values(), ["2|1".to_owned(), format!("3|{}", SENSORS + 3)]);
    let totals = "SELECT total_readings, unique_readings FROM {modelled.readings_by_date}";
    assert_eq!(sandbox.lines(totals), [format!("{0}|{0}", SENSORS + 4)]);
    sandbox.run(["model", "--check"]).ok();
}

/// The key contains the day: a load of some days reads the rows of those days, a load of all days reads all.
fn small_and_large_loads_of_some_days_replace_the_rows_of_their_keys(sandbox: &Sandbox) {
    let day = |day: u32, user: &str| {
        let event = |id: u32| event(&format!("e{id}"), user, &format!("2024-05-{day:02} 10:00:00"));
        // A null in the key.
        let untyped = format!(r#"{{"id":"untyped","username":"{user}","received_at":"2024-05-{day:02} 10:00:00"}}"#);
        (0..10).map(event).chain([untyped]).collect::<Vec<_>>()
    };
    let days = |days: std::ops::RangeInclusive<u32>, user: &str| array(&days.flat_map(|d| day(d, user)).collect::<Vec<_>>());
    let users = || sandbox.lines("SELECT username, count(*) FROM {raw.events} GROUP BY username ORDER BY username");
    for (range, user, expected_replaced, expected_users) in [
        (1..=20, "ada", 0, vec!["ada|220"]),
        (3..=4, "ben", 22, vec!["ada|198", "ben|22"]),
        (20..=21, "cy", 11, vec!["ada|187", "ben|22", "cy|22"]),
        (1..=21, "di", 231, vec!["di|231"]),
    ] {
        sandbox.write_events("x.json", days(range, user));
        assert_eq!(replaced(sandbox, &["--dataset", "events"]), expected_replaced, "{user}");
        assert_eq!(users(), expected_users);
    }
    sandbox.run(["model", "--check"]).ok();
}

fn a_row_that_moves_to_another_day_leaves_the_old_one(sandbox: &Sandbox) {
    sandbox.write("dataloader.toml", READINGS);
    let reading = |site: &str, at: &str| format!(r#"{{"site":{site},"sensor":1,"at":"{at}"}}"#);
    sandbox.write("raw_data/readings/x.json", reading("\"n\"", "2024-05-01T10:00:00Z") + &reading("null", "2024-05-01T11:00:00Z"));
    sandbox.run(["load"]).ok();
    // 01:00 in Berlin is the evening of the second in UTC.
    sandbox.write("raw_data/readings/x.json", reading("\"n\"", "2024-05-03T01:00:00+02:00"));
    sandbox.run(["load"]).ok();
    let by_date = "SELECT date, total_readings FROM {modelled.readings_by_date} ORDER BY date";
    assert_eq!(sandbox.lines(by_date), ["2024-05-01|1", "2024-05-02|1"]);
    sandbox.write("raw_data/readings/x.json", reading("null", "2024-05-02T12:00:00Z"));
    sandbox.run(["load", "--date", "2024-05-02"]).ok();
    assert_eq!(sandbox.lines(by_date), ["2024-05-02|2"], "a day without rows has no line");
    assert_eq!(sandbox.lines("SELECT date FROM {modelled.readings_by_date_site} WHERE date < '2024-05-02'"), [""; 0]);
    sandbox.run(["model", "--check"]).ok();
}

fn the_delta_holds_the_latest_run(sandbox: &Sandbox) {
    let records = [event("a", "ada", "2024-05-01 10:00:00"), event("b", "ben", "2024-05-02 10:00:00")];
    sandbox.write_events("x.json", array(&records));
    sandbox.run(["load", "--dataset", "events"]).ok();
    sandbox.run(["load", "--dataset", "events", "--date", "2024-05-02"]).ok();
    assert_eq!(sandbox.lines("SELECT id, _load_id FROM {raw.events_delta}"), ["b|2"]);
    assert_eq!(sandbox.lines("SELECT id, _load_id FROM {raw.events} ORDER BY id"), ["a|1", "b|2"]);
    sandbox.run(["load", "--dataset", "events", "--date", "2024-05-03"]).ok();
    assert_eq!(sandbox.count("raw.events_delta"), 0);
    assert_eq!(sandbox.count("raw.events"), 2);
}

fn a_dataset_without_a_day_is_replaced_in_full(sandbox: &Sandbox) {
    let org = |key: &str| format!(r#"{{"organization_key":"{key}","organization_name":"{key}"}}"#);
    sandbox.write_orgs("x.json", array(&[org("a"), org("b"), org("a")]));
    assert_eq!(replaced(sandbox, &["--dataset", "orgs"]), 0);
    sandbox.write_orgs("x.json", array(&[org("c")]));
    // The dates are for datasets that have a day.
    assert_eq!(replaced(sandbox, &["--dataset", "orgs", "--date", "1999-01-01"]), 3);
    assert_eq!(sandbox.lines("SELECT organization_key FROM {raw.orgs}"), ["c"]);
}

fn a_dataset_without_a_day_stays_when_nothing_can_be_loaded(sandbox: &Sandbox) {
    sandbox.write_orgs("x.json", r#"{"organization_key":"a"}"#);
    sandbox.run(["load", "--dataset", "orgs"]).ok();
    sandbox.write_orgs("x.json", r#"{"name":"a"} {"name":"b"}"#);
    let outcome = sandbox.run(["load", "--dataset", "orgs"]).code(1);
    assert!(outcome.stderr.contains("none of the 2 records of dataset orgs can be loaded"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("missing_required"), "{}", outcome.stderr);
    assert_eq!(sandbox.lines("SELECT organization_key FROM {raw.orgs}"), ["a"]);
    let dry = sandbox.run(["load", "--dataset", "orgs", "--dry-run"]).code(1);
    assert!(dry.stderr.contains("none of the 2 records"), "a dry run fails where the load would: {}", dry.stderr);
}

/// A file that was cut off before its first record, or that somebody is about to write, must not empty the table.
fn files_without_a_record_empty_a_table_only_when_told_to(sandbox: &Sandbox) {
    sandbox.write_orgs("x.json", r#"[{"organization_key":"a"},{"organization_key":"b"}]"#);
    sandbox.write_events("x.json", event("a", "ada", "2024-05-01 10:00:00"));
    sandbox.run(["load"]).ok();
    for nothing in ["", " \n\t", "\u{feff}", "\u{feff} \n", "[]", "[ ]"] {
        sandbox.write_orgs("x.json", nothing);
        for (args, code) in [(&["load"][..], 1), (&["load", "--dry-run"], 0)] {
            let outcome = sandbox.run(args.iter().copied()).code(code);
            assert!(outcome.stderr.contains("orgs") && outcome.stderr.contains("--allow-empty"), "{nothing:?}: {}", outcome.stderr);
        }
        assert_eq!((sandbox.count("raw.orgs"), sandbox.count("raw.events")), (2, 1));
        assert_eq!(sandbox.count("raw.loads"), 2, "nothing of the run is booked");
    }
    // Of a dataset with a day nothing is replaced by no record.
    sandbox.write_events("x.json", "");
    sandbox.run(["load", "--dataset", "events"]).ok();
    assert_eq!(sandbox.count("raw.events"), 1);

    let summary = sandbox.run(["load", "--dataset", "orgs", "--allow-empty", "--format", "json"]).ok().json();
    assert_eq!((&summary["datasets"][0]["read"], &summary["datasets"][0]["replaced"]), (&0.into(), &2.into()));
    assert_eq!(sandbox.count("raw.orgs"), 0);
    // Records of which none can be loaded are another matter.
    sandbox.write_orgs("x.json", r#"[{"organization_key":"a"}]"#);
    sandbox.run(["load", "--dataset", "orgs"]).ok();
    sandbox.write_orgs("x.json", "[{}]");
    sandbox.run(["load", "--dataset", "orgs", "--allow-empty"]).code(1);
    assert_eq!(sandbox.count("raw.orgs"), 1);
}

fn a_table_with_rows_of_other_hands_keeps_them(sandbox: &Sandbox) {
    sandbox.run(["migrate"]).ok();
    sandbox.execute("INSERT INTO {raw.events} (id, received_at) VALUES ('by hand', '2024-05-01 10:00:00.000000')");
    sandbox.write_events("x.json", event("a", "ada", "2024-05-01 10:00:00"));
    assert_eq!(replaced(sandbox, &["--dataset", "events"]), 0);
    assert_eq!(sandbox.lines("SELECT total_events, unique_users FROM {modelled.events_by_date}"), ["2|1"]);
}

fn several_datasets_are_loaded_together_or_not_at_all(sandbox: &Sandbox) {
    sandbox.write_events("x.json", event("a", "ada", "2024-05-01 10:00:00"));
    sandbox.write_orgs("x.json", "[{");
    let outcome = sandbox.run(["load"]).code(1);
    assert!(outcome.stderr.contains("x.json: line 1, column "), "{}", outcome.stderr);
    assert_eq!((sandbox.count("raw.events"), sandbox.count("raw.events_delta")), (0, 0));
    assert_eq!(sandbox.count("modelled.events_by_date"), 0);
    let ledger = "SELECT dataset, status, rows_loaded FROM {raw.loads}";
    assert_eq!(sandbox.lines(ledger), ["orgs|failed|0"]);
    sandbox.run(["load", "--dataset", "events"]).ok();
    assert_eq!(sandbox.count("raw.events"), 1);
}

fn a_row_that_the_database_refuses_fails_the_run(sandbox: &Sandbox) {
    sandbox.run(["migrate"]).ok();
    sandbox.execute("CREATE UNIQUE INDEX one_user ON {raw.events} (username)");
    let records = [event("a", "ada", "2024-05-01 10:00:00"), event("b", "ada", "2024-05-01 10:00:00")];
    sandbox.write_events("x.json", array(&records));
    let outcome = sandbox.run(["load", "--dataset", "events"]).code(1);
    assert!(outcome.stderr.contains("the database refuses a row"), "{}", outcome.stderr);
    assert_eq!((sandbox.count("raw.events"), sandbox.count("raw.loads")), (0, 0));
}
