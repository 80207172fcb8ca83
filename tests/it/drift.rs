//! What comes with the data and has no column yet: said once, with the record and the line that makes it a column.

use serde_json::{Value, json};

use crate::support::{Page, Sandbox, on_both_stores, on_every_pipeline};

on_both_stores!(
    a_new_key_is_said_once_with_its_first_record,
    only_what_is_loaded_is_noted,
    keys_that_are_data_are_bounded,
    rejects_are_counted_by_column,
    the_page_shows_the_keys_as_text,
);
on_every_pipeline!(a_new_key_of_the_stream_is_said_once, rejects_of_the_stream_are_counted_by_column);

const CONFIG: &str = "[datasets.visits]\nkey = [\"id\"]\nday = \"at\"\n[datasets.visits.columns]\nid = \"text\"\n\
    at = { type = \"timestamp\", required = true }\nlogin = { type = \"text\", from = \"/actor/login\" }\n";

fn record(id: u32, more: &str) -> String {
    format!("{{\"id\":\"{id}\",\"at\":\"2024-05-0{}\"{more}}}\n", 1 + id % 2)
}

/// The keys that `status` names, with the load and record that brought each first and the line for the configuration.
fn keys(sandbox: &Sandbox) -> Vec<String> {
    let status = sandbox.run(["status", "--format", "json"]).ok().json();
    let line = |key: &Value| format!("{}|{}|{}", key["key"].as_str().unwrap(), key["record"], key["line"].as_str().unwrap());
    status["unknown_keys"].as_array().expect("a list").iter().map(line).collect()
}

fn a_new_key_is_said_once_with_its_first_record(sandbox: &Sandbox) {
    sandbox.write("dataloader.toml", CONFIG);
    let records =
        record(1, "") + &record(2, ",\"plan\":\"pro\",\"Net Price\":1.50") + &record(3, ",\"actor\":{\"login\":\"a\",\"id\":7}");
    let file = sandbox.write("raw_data/visits/a.jsonl", &records).canonicalize().expect("just written");
    let told = sandbox.run(["load"]).ok().stdout;
    let first = format!("  plan, first in {}, record 2\n", "raw_data/visits/a.jsonl");
    assert!(told.contains("new keys of visits that no column takes") && told.contains(&first), "{told}");
    let lines = [
        "plan = \"text\"",
        "net_price = { type = \"numeric\", from = \"Net Price\" }",
        "actor_id = { type = \"bigint\", from = \"/actor/id\" }",
    ];
    let noted = ["plan|2|", "Net Price|2|", "/actor/id|3|"].iter().zip(lines).map(|(key, line)| format!("{key}{line}"));
    let mut noted: Vec<String> = noted.collect();
    noted.sort();
    let mut found = keys(sandbox);
    found.sort();
    assert_eq!(found, noted);
    let status = sandbox.run(["status", "--format", "json"]).ok().json();
    assert_eq!((&status["unknown_keys"][0]["load"], &status["unknown_keys"][0]["source"]), (&json!(1), &json!(file)));
    assert!(sandbox.run(["status"]).ok().stdout.contains("actor_id = { type = \"bigint\", from = \"/actor/id\" }"));

    // Another file with these keys, and one more.
    sandbox.write("raw_data/visits/b.jsonl", record(4, ",\"plan\":\"x\",\"more\":[1]"));
    let again = sandbox.run(["load", "--format", "json"]).ok().json();
    let new: Vec<&Value> = again["datasets"][0]["new_keys"].as_array().expect("a list").iter().map(|key| &key["line"]).collect();
    assert_eq!(new, [&json!("more = \"jsonb\"")]);
    assert!(again["datasets"][0]["new_keys"][0]["source"].as_str().is_some_and(|source| source.ends_with("b.jsonl")));
    assert!(!sandbox.run(["load"]).ok().stdout.contains("no column takes"));

    // The lines are put into the configuration as they stand.
    sandbox.write("dataloader.toml", format!("{CONFIG}{}\nmore = \"jsonb\"\n", lines.join("\n")));
    assert_eq!(keys(sandbox), Vec::<String>::new());
    sandbox.run(["migrate", "--backfill"]).ok();
    let rows = sandbox.lines("SELECT id, login, plan, net_price, actor_id, _extra FROM {raw.visits} ORDER BY id");
    assert_eq!(
        rows,
        ["1|NULL|NULL|NULL|NULL|NULL", "2|NULL|pro|1.50|NULL|NULL", "3|a|NULL|NULL|7|NULL", "4|NULL|x|NULL|NULL|NULL"]
    );
}

fn only_what_is_loaded_is_noted(sandbox: &Sandbox) {
    sandbox.write("dataloader.toml", CONFIG);
    // Rejected; of another day; of a run that fails.
    let records = record(2, ",\"of_a_reject\":1").replace("2024-05-01", "soon")
        + &record(1, ",\"of_another_day\":1")
        + &record(2, ",\"plan\":1");
    sandbox.write("raw_data/visits/a.jsonl", records);
    sandbox.run(["load", "--max-rejects", "0"]).code(1);
    assert_eq!(sandbox.lines("SELECT count(*) FROM {raw.visits}"), ["0"]);
    assert_eq!(keys(sandbox), Vec::<String>::new(), "nothing of the run is there");
    sandbox.run(["load", "--date", "2024-05-01"]).code(3);
    assert_eq!(keys(sandbox), ["plan|3|plan = \"bigint\""]);
    sandbox.run(["load"]).code(3);
    assert_eq!(keys(sandbox).len(), 2);
    // What a replay loads has keys, too.
    sandbox.write("dataloader.toml", OTHERS.replace("text", "bigint"));
    sandbox.write("raw_data/others/a.jsonl", "{\"nr\":1}\n{\"nr\":\"x\",\"late\":true}\n");
    sandbox.run(["load"]).code(3);
    assert_eq!(keys(sandbox), Vec::<String>::new());
    sandbox.execute(&format!("DROP TABLE {}", sandbox.table("raw.others")));
    sandbox.execute(&format!("DROP TABLE {}", sandbox.table("raw.others_delta")));
    sandbox.write("dataloader.toml", OTHERS);
    sandbox.run(["rejects", "replay"]).ok();
    assert_eq!(keys(sandbox), ["late|1|late = \"boolean\""]);
}

const OTHERS: &str = "[datasets.others]\nkey = [\"nr\"]\n[datasets.others.columns]\nnr = \"text\"\n";

fn keys_that_are_data_are_bounded(sandbox: &Sandbox) {
    sandbox.write("dataloader.toml", CONFIG);
    let records: String = (0..300).map(|i| record(i, &format!(",\"k{i}\":1,\"{}\":1", "long".repeat(60)))).collect();
    sandbox.write("raw_data/visits/a.jsonl", records);
    sandbox.run(["load"]).ok();
    let found = keys(sandbox);
    assert_eq!(found.len(), 100);
    assert!(found[0].starts_with("k0|1|") && !found.iter().any(|key| key.starts_with("long")), "{found:?}");
}

fn rejects_are_counted_by_column(sandbox: &Sandbox) {
    sandbox.write("dataloader.toml", CONFIG);
    let bad = |more: &str| format!("{{\"id\":\"1\"{more}}}\n");
    let records = bad("")
        + &bad(",\"at\":\"soon\"").repeat(7)
        + &bad(",\"at\":\"2024-05-01\",\"actor\":{\"login\":\"\\u0000\"}")
        + "7\n"
        + &record(1, "");
    sandbox.write("raw_data/visits/a.jsonl", records);
    let plan = sandbox.run(["load", "--dry-run", "--format", "json"]).code(3).json();
    let reasons = &plan["datasets"][0]["plan"]["rejects"];
    assert_eq!(reasons[0], json!({"reason": "type_mismatch", "column": "at", "records": 7}), "most first");
    let others: Vec<&Value> = reasons.as_array().expect("a list")[1..].iter().collect();
    for expected in [
        json!({"reason": "not_an_object", "records": 1}),
        json!({"reason": "missing_required", "column": "at", "records": 1}),
        json!({"reason": "nul_character", "column": "login", "records": 1}),
    ] {
        assert!(others.contains(&&expected), "{expected} in {reasons}");
    }
    let told = sandbox.run(["load"]).code(3).stdout;
    assert!(told.contains("by column and reason:") && told.contains("type_mismatch"), "{told}");
}

fn rejects_of_the_stream_are_counted_by_column(sandbox: &Sandbox) {
    sandbox.write("dataloader.toml", CONFIG);
    let bad = |more: &str| format!("{{\"id\":\"1\"{more}}}\n");
    sandbox.drop_in("visits", "a.jsonl", bad("") + &bad(",\"at\":\"soon\"").repeat(7) + &record(1, ""));
    sandbox.drop_in("visits", "b.jsonl", bad(",\"at\":\"2024-05-01\",\"actor\":{\"login\":\"\\u0000\"}") + "7\n" + &record(2, ""));
    let told = sandbox.pipeline(["--once"]).run().code(3).stdout;
    assert!(told.contains("10 records of visits were rejected:\nby column and reason:\n"), "{told}");
    let counted = |line: &&str| line.split_whitespace().count() == 3 && !line.starts_with('-');
    let mut rows: Vec<String> =
        told.lines().skip_while(|line| !line.contains("by column")).filter(counted).map(|line| words(line).join(" ")).collect();
    rows.sort();
    let expected =
        ["- not_an_object 1", "at missing_required 1", "at type_mismatch 7", "column reason records", "login nul_character 1"];
    assert_eq!(rows, expected, "{told}");
    sandbox.drop_in("visits", "c.jsonl", bad(""));
    let told = sandbox.pipeline(["--once"]).run().code(3).stdout;
    assert!(told.contains("1 record of visits was rejected:") && told.contains("missing_required"), "only of this run: {told}");
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

fn the_page_shows_the_keys_as_text(sandbox: &Sandbox) {
    sandbox.write("dataloader.toml", CONFIG);
    sandbox.write("raw_data/visits/a.jsonl", record(1, ",\"<b>plan</b>\":\"pro\""));
    sandbox.run(["load"]).ok();
    let mut process = sandbox.command(["serve", "--http", "0"]).spawn();
    let page = Page::of(&mut process);
    let body = page.wait_for("/", "keys of the records have no column").body;
    assert!(body.contains("&lt;b&gt;plan&lt;/b&gt;") && !body.contains("<b>plan"), "{body}");
    let api = page.get("/api/status").json();
    assert_eq!(api["unknown_keys"][0]["key"], "<b>plan</b>");
}

fn a_new_key_of_the_stream_is_said_once(sandbox: &Sandbox) {
    sandbox.write("dataloader.toml", CONFIG);
    sandbox.drop_in("visits", "a.jsonl", record(1, "") + &record(2, ",\"plan\":\"pro\""));
    let outcome = sandbox.pipeline(["--once", "--format", "json"]).run().ok();
    assert!(outcome.stderr.contains("no column takes the key plan of record 2"), "{}", outcome.stderr);
    assert_eq!(outcome.json()["datasets"][0]["new_keys"][0]["line"], "plan = \"text\"");
    assert_eq!(keys(sandbox), ["plan|2|plan = \"text\""]);
    sandbox.drop_in("visits", "b.jsonl", record(3, ",\"plan\":\"pro\""));
    let outcome = sandbox.pipeline(["--once"]).run().ok();
    assert!(!outcome.stderr.contains("no column takes") && !outcome.stdout.contains("no column takes"), "{}", outcome.stderr);
    sandbox.assert_booked();
}
