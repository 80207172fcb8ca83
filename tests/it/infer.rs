//! `dataloader infer`: the section that it prints loads the files that it was made from, and the values come back as they were.

use crate::support::{Sandbox, Store, gzip, on_both_stores};

on_both_stores!(
    the_printed_section_loads_its_own_files,
    values_come_back_as_they_were,
    ugly_keys_become_columns,
    a_record_of_very_many_members_loads,
);

/// Infers from the files into the configuration, then loads them.
#[track_caller]
fn infer_and_load(sandbox: &Sandbox, dataset: &str, flags: &[&str], files: &[&str]) {
    let section = sandbox.run([&["infer", "--dataset", dataset], flags, files].concat()).ok().stdout;
    sandbox.write("dataloader.toml", section);
    sandbox.run([&["load", "--dataset", dataset], files].concat()).ok();
}

fn the_printed_section_loads_its_own_files(sandbox: &Sandbox) {
    let order = |i: u32| {
        format!(
            r#"{{"Order No":{i},"placed at":"2024-05-{:02}T10:00:00+02:00","state":"{}","total":"{}.50","lines":[{{"sku":"a"}}],"customer":{{"id":{},"vip":true}}}}"#,
            i % 3 + 1,
            ["new", "sent"][i as usize % 2],
            i * 3,
            i % 4
        )
    };
    let array = format!("[{}]", (1..=20).map(order).collect::<Vec<_>>().join(",\n"));
    sandbox.write("a.json", array);
    sandbox.write("b.ndjson.gz", gzip((21..=40).map(order).collect::<Vec<_>>().join("\n").as_bytes()));
    infer_and_load(sandbox, "orders", &["--flatten"], &["a.json", "b.ndjson.gz"]);
    assert_eq!(sandbox.count("raw.orders"), 40);
    let row = "SELECT order_no, placed_at, state, total, customer_id, customer_vip FROM {raw.orders} ORDER BY order_no LIMIT 1";
    assert_eq!(sandbox.lines(row), ["1|2024-05-02 08:00:00.000000|sent|3.50|1|1"]);
    let totals = "SELECT date, total_orders, unique_customer_id FROM {modelled.orders_by_date} ORDER BY date";
    assert_eq!(sandbox.lines(totals), ["2024-05-01|13|4", "2024-05-02|14|4", "2024-05-03|13|4"]);
    assert_eq!(sandbox.lines("SELECT DISTINCT state FROM {modelled.orders_by_date_state} ORDER BY 1"), ["new", "sent"]);
    sandbox.run(["load", "--dataset", "orders", "a.json", "b.ndjson.gz"]).ok();
    assert_eq!(sandbox.count("raw.orders"), 40, "the key is right: the same records replace themselves");
    sandbox.run(["model", "--check"]).ok();
}

fn values_come_back_as_they_were(sandbox: &Sandbox) {
    let values = [
        ("big", "9223372036854775807"),
        ("huge", &"9".repeat(400)),
        ("fine", "0.1234567890123456789"),
        ("money", "19.90"),
        ("ratio", "-0.25"),
        ("zip", "\"01234\""),
        ("hash", "\"d41d8cd98f00b204e9800998ecf8427e\""),
        ("mail", "\"Zoë <z@x>\\n\\\"quoted\\\"\""),
        ("mixed", "[1.50, {\"a\": null}]"),
        ("monster", "1e400000"),
    ];
    let members: Vec<String> = values.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
    sandbox.write("x.json", format!("{{{}}}", members.join(",")));
    infer_and_load(sandbox, "things", &[], &["x.json"]);
    let row = &sandbox.query("SELECT big, huge, fine, money, ratio, zip, hash, mail, mixed, monster FROM {raw.things}")[0];
    for ((key, value), cell) in values.iter().zip(row) {
        let cell = cell.as_deref().expect("not null");
        let expected = serde_json::from_str::<String>(value).unwrap_or_else(|_| (*value).to_owned());
        assert_eq!(cell.replace(' ', ""), expected.replace(' ', ""), "{key}");
    }
}

fn ugly_keys_become_columns(sandbox: &Sandbox) {
    let keys = [
        "",
        "a",
        "A",
        "a b",
        "a-b",
        "\"q\"",
        "new\nline",
        "🎉",
        "/slash",
        "~",
        "_extra",
        "ctid",
        "key\u{0}nul",
        "\u{1b}[2J",
        &"x".repeat(300),
    ];
    let members: Vec<String> =
        keys.iter().enumerate().map(|(i, key)| format!("{}:{i}", serde_json::to_string(key).unwrap())).collect();
    sandbox.write("x.json", format!("{{{}}}", members.join(",")));
    infer_and_load(sandbox, "things", &[], &["x.json"]);
    let columns = "\"column\", a, \"A_2\", a_b, a_b_2, q, new_line, column_3, slash, column_2, _extra_2, ctid_2, key_nul, _2j";
    let expected = (0..14).map(|i| i.to_string()).collect::<Vec<_>>().join("|");
    assert_eq!(sandbox.lines(&format!("SELECT {columns} FROM {{raw.things}}")), [expected]);
    assert_eq!(sandbox.lines("SELECT count(*) FROM {raw.things} WHERE _extra IS NOT NULL"), ["0"]);
}

/// A row must fit on a page of PostgreSQL.
fn a_record_of_very_many_members_loads(sandbox: &Sandbox) {
    let members: Vec<String> = (0..1_500).map(|i| format!("\"k{i}\":\"some text of twenty\"")).collect();
    sandbox.write("x.json", format!("{{{}}}", members.join(",")));
    infer_and_load(sandbox, "things", &[], &["x.json"]);
    assert_eq!(sandbox.count("raw.things"), 1);
}

#[test]
fn sqlite_files_without_a_record_are_an_error_that_says_so() {
    let sandbox = Sandbox::new(Store::Sqlite);
    for (text, said) in [
        ("", "no records in x.json"),
        ("[]", "no records in x.json"),
        ("{}", "no record of x.json has a key"),
        ("[1, 2]", "none of the 2 records of x.json could be loaded: not_an_object, first record 1"),
    ] {
        sandbox.write("x.json", text);
        let failed = sandbox.run(["infer", "x.json"]).code(1);
        assert!(failed.stderr.contains(said) && failed.stdout.is_empty(), "{text}: {}", failed.stderr);
    }
}

#[test]
fn sqlite_a_file_that_ends_inside_a_record_is_said_with_what_was_read() {
    let sandbox = Sandbox::new(Store::Sqlite);
    sandbox.write("x.json", "[{\"a\":1},{\"a\":2},{\"a\":");
    let failed = sandbox.run(["infer", "x.json"]).code(1);
    assert!(
        failed.stderr.contains("ends inside the record") && failed.stderr.contains("read before it: 2 records"),
        "{}",
        failed.stderr
    );
    assert!(failed.stdout.contains("# INCOMPLETE: ") && failed.stdout.contains("a = \"bigint\""), "{}", failed.stdout);
}

#[test]
fn sqlite_the_emptied_configuration_is_not_read() {
    let sandbox = Sandbox::new(Store::Sqlite);
    sandbox.write("dataloader.toml", "");
    sandbox.write("raw_data/visits/1.json", "{\"a\":1}");
    sandbox.write("raw_data/visits/2.json", "{\"a\":2}\n");
    let section = sandbox.run(["infer", "raw_data/visits/1.json", "raw_data/visits/2.json"]).ok().stdout;
    assert!(section.contains("[datasets.visits]"), "several files are named after their directory: {section}");
    let sample = sandbox.run(["infer", "--sample", "1", "raw_data/visits/1.json", "raw_data/visits/2.json"]).ok().stdout;
    assert!(sample.contains("1 record (a sample: later records may not fit)"), "{sample}");
}

#[test]
fn sqlite_programs_get_all_that_was_found() {
    let sandbox = Sandbox::new(Store::Sqlite);
    sandbox.write("x.json", "[{\"id\":1,\"The Day\":\"2024-05-01\"},{\"id\":2,\"The Day\":\"2024-05-02\",\"n\":\"x\"}]");
    let found = sandbox.run(["infer", "x.json", "--format", "json"]).ok().json();
    assert_eq!(found["key"], serde_json::json!({ "columns": ["id"], "proven": true, "repeated": null }));
    assert_eq!((&found["day"], &found["records"], &found["dataset"]), (&"the_day".into(), &2.into(), &"x".into()));
    let day = &found["columns"][1];
    assert_eq!((&day["from"], &day["type"], &day["required"]), (&"The Day".into(), &"date".into(), &true.into()));
    assert_eq!(found["columns"][2]["missing"], serde_json::json!({ "file": "x.json", "record": 1 }));
    let section = found["section"].as_str().expect("the section");
    assert_eq!(sandbox.run(["infer", "x.json"]).ok().stdout, section);
    sandbox.write("broken.json", "[{\"id\":1}");
    let broken = sandbox.run(["infer", "broken.json", "--format", "json"]).code(1).json();
    assert!(broken["error"]["message"].as_str().is_some_and(|message| message.contains("read before it: 1 record")), "{broken}");
}

#[test]
fn sqlite_a_drift_from_the_configuration_is_named_and_exits_3() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let old = "{\"id\":1,\"who\":{\"login\":\"ann\"},\"at\":\"2024-05-01T10:00:00Z\",\"v\":1.5}\n";
    let path = sandbox.write("raw_data/visits/1.json", old).display().to_string();
    let section = sandbox.run(["infer", "--dataset", "visits", "--flatten", &path]).ok().stdout;
    sandbox.write("dataloader.toml", section);
    let same = sandbox.run(["infer", "--check", "--dataset", "visits", &path]).ok();
    assert_eq!(same.stdout, "1 record fits the dataset visits\n");
    let new = "{\"id\":\"x\",\"who\":{\"login\":\"bob\",\"age\":3},\"v\":2,\"new\":true}\n";
    let later = sandbox.write("raw_data/visits/2.json", format!("{new}{new}")).display().to_string();
    let drift = sandbox.run(["infer", "--check", "--dataset", "visits", &later]).code(3).stdout;
    for line in [
        "unknown key  \"/who/age\": in 2 records, first in {FILE}, record 1; it stays in `_extra`",
        "unknown key  \"new\": in 2 records, first in {FILE}, record 1; it stays in `_extra`",
        "missing_required: 2 records, first {FILE}, record 1: at: required, but absent",
        "wider type   v: double, but bigint fits all 2 values, first in {FILE}, record 1",
        "2 records differ from the dataset visits",
    ] {
        let line = line.replace("{FILE}", &later);
        assert!(drift.contains(&line), "{line}: {drift}");
    }
    let json = sandbox.run(["infer", "--check", "--dataset", "visits", &later, "--format", "json"]).code(3).json();
    assert_eq!(json["drift"], true);
    assert_eq!(
        json["unknown_keys"][1],
        serde_json::json!({ "from": "new", "records": 2, "first": { "file": later, "record": 1 } })
    );
    assert_eq!(json["wider_types"][0]["narrowest"], "bigint");
    assert!(sandbox.try_query("SELECT * FROM raw_visits").is_err(), "nothing was written");
    // A type that is wider than the values is drift, too, and said to be no more than that.
    let narrow = sandbox.write("narrow.json", old.replace("1.5", "2")).display().to_string();
    let drift = sandbox.run(["infer", "--check", "--dataset", "visits", &narrow]).code(3).stdout;
    assert_eq!(drift.lines().count(), 3, "{drift}");
    assert!(drift.starts_with("wider type   v: double") && drift.contains("every record loads whole"), "{drift}");
}
