//! What `load --dry-run` says of a load: it reads, compares, and writes nothing.

use serde_json::{Value, json};

use crate::support::{Sandbox, event, many_events, on_both_stores};

on_both_stores!(
    a_plan_says_what_a_load_would_change,
    a_plan_needs_no_tables,
    a_plan_names_the_statements_that_change_tables,
    with_new_what_is_left_out_is_named,
);

fn plan(sandbox: &Sandbox, args: &[&str]) -> Value {
    sandbox.run([&["load", "--dry-run", "--format", "json"], args].concat()).ok().json()
}

/// Each file's name, state, load and rows.
fn files(plan: &Value) -> Vec<String> {
    let name = |file: &Value| file["source"].as_str().and_then(|path| path.rsplit('/').next()).unwrap_or_default().to_owned();
    let files = plan["plan"]["files"].as_array().expect("a list");
    files
        .iter()
        .map(|file| format!("{}|{}|{}|{}", name(file), file["state"].as_str().unwrap(), file["load"], file["rows"]))
        .collect()
}

fn everything(sandbox: &Sandbox) -> Vec<String> {
    ["raw.events", "raw.orgs", "raw.loads", "raw.rejects", "modelled.events_by_date"]
        .map(|table| sandbox.count(table).to_string())
        .to_vec()
}

fn a_plan_says_what_a_load_would_change(sandbox: &Sandbox) {
    sandbox.write_events("a.jsonl", many_events(3, "ada"));
    sandbox.write_events("b.jsonl", many_events(2, "bob") + "{}\n");
    sandbox.write_orgs("o.json", r#"[{"organization_key":"a"},{"organization_key":"b"}]"#);
    sandbox.run(["load"]).code(3);
    sandbox.write_events("b.jsonl", event("x", "bob", "2024-05-02 10:00:00"));
    sandbox.write_events("c.jsonl", event("y", "cy", "2024-05-01 10:00:00").replace('{', "{\"colour\":\"red\","));
    sandbox.write_events("d.jsonl", many_events(3, "ada"));
    sandbox.write_orgs("o.json", r#"{"organization_key":"c"}"#);
    let before = everything(sandbox);
    let plan = plan(sandbox, &[]);
    assert_eq!(plan["plan"], json!({"statements": []}));
    let events = &plan["datasets"][0];
    assert_eq!(files(events), ["a.jsonl|there|1|3", "b.jsonl|changed|2|1", "c.jsonl|new|null|1", "d.jsonl|there|1|3"]);
    let days = json!([{"day": "2024-05-01", "rows": 7, "there": 5}, {"day": "2024-05-02", "rows": 1, "there": 0}]);
    assert_eq!((&events["plan"]["days"], &events["plan"]["rows_there"]), (&days, &json!(5)));
    assert_eq!(events["new_keys"][0]["line"], "colour = \"text\"");
    let orgs = &plan["datasets"][1];
    assert_eq!((files(orgs), &orgs["plan"]["rows_there"]), (vec!["o.json|changed|3|1".to_owned()], &json!(2)));
    assert_eq!(everything(sandbox), before);
    let told = sandbox.run(["load", "--dry-run"]).ok().stdout;
    assert!(told.contains("nothing was written") && told.contains("2 days of events, from 2024-05-01 to 2024-05-02"), "{told}");
    // A load does what the plan says, and notes the key that the plan did not.
    sandbox.run(["load"]).ok();
    assert_eq!(sandbox.lines("SELECT count(*) FROM {raw.events} WHERE received_at >= '2024-05-02'"), ["1"]);
    let after = sandbox.run(["load", "--dry-run", "--format", "json"]).ok().json();
    assert_eq!(after["datasets"][0].get("new_keys"), None);
}

fn a_plan_needs_no_tables(sandbox: &Sandbox) {
    sandbox.write_events("a.jsonl", many_events(3, "ada"));
    sandbox.write_orgs("o.json", r#"{"organization_key":"a"}"#);
    let plan = plan(sandbox, &[]);
    assert!(plan["plan"]["note"].as_str().is_some_and(|note| note.contains("has no tables of dataloader yet")), "{plan}");
    let statements = plan["plan"]["statements"].as_array().expect("a list");
    let table = sandbox.table("raw.events").replace("\"raw\"", "raw");
    let creates = format!("create table {table} (");
    assert!(statements.iter().any(|statement| statement.as_str().is_some_and(|sql| sql.starts_with(&creates))), "{statements:?}");
    let is_create = |statement: &Value| statement.as_str().is_some_and(|sql| sql.starts_with("create "));
    assert!(statements.iter().all(is_create), "there is nothing to drop: {statements:?}");
    assert_eq!(files(&plan["datasets"][0]), ["a.jsonl|new|null|3"]);
    assert!(sandbox.try_query("SELECT 1 FROM {raw.loads}").is_err(), "nothing was made");
    let nowhere =
        sandbox.command(["load", "--dry-run"]).env("DATABASE_URL", "postgres://nobody:secret@127.0.0.1:1/none").run().ok();
    assert!(
        nowhere.stdout.contains("what the database has is not known") && !nowhere.stdout.contains("secret"),
        "{}",
        nowhere.stdout
    );
}

fn a_plan_names_the_statements_that_change_tables(sandbox: &Sandbox) {
    let config = "[datasets.visits]\nkey = [\"id\"]\n[datasets.visits.columns]\nid = \"bigint\"\n";
    sandbox.write("dataloader.toml", config);
    sandbox.write("raw_data/visits/a.jsonl", "{\"id\":1}");
    sandbox.run(["load"]).ok();
    sandbox.write("dataloader.toml", format!("{config}plan = \"text\"\n"));
    let statements = plan(sandbox, &[])["plan"]["statements"].to_string();
    assert!(statements.contains("add column \\\"plan\\\" text"), "{statements}");
    assert!(sandbox.try_query("SELECT plan FROM {raw.visits}").is_err(), "nothing was changed");
    // It fails where a load would.
    sandbox.write("dataloader.toml", config.replace("bigint", "text"));
    assert!(sandbox.run(["load", "--dry-run"]).code(1).stderr.contains("does not fit dataset visits"));
}

fn with_new_what_is_left_out_is_named(sandbox: &Sandbox) {
    sandbox.write_events("a.jsonl", many_events(3, "ada"));
    sandbox.run(["load", "--dataset", "events"]).ok();
    sandbox.write_events("b.jsonl", many_events(4, "ada"));
    let plan = plan(sandbox, &["--new", "--dataset", "events"]);
    assert_eq!(files(&plan["datasets"][0]), ["b.jsonl|new|null|4", "a.jsonl|there|null|0"]);
    assert_eq!(plan["datasets"][0]["unchanged"], 1);
}
