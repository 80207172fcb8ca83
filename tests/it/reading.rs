//! Commands that only read change nothing, need only the right to read, and show what is there; commands that write say when
//! they replace modelled tables, and a pipeline whose tables were changed goes on.

use crate::support::{Outcome, Sandbox, Signal, Store, event, events_over_days, on_both_stores, wait_until, write_samples};

on_both_stores!(
    reading_a_database_without_tables_says_so_and_makes_nothing,
    reading_under_another_configuration_changes_nothing,
    what_another_configuration_made_is_shown_and_what_is_missing_is_said,
    replacing_modelled_tables_is_said_by_the_command_that_does_it,
    a_pipeline_whose_model_was_replaced_says_so_and_makes_it_again,
    a_pipeline_whose_column_is_gone_says_so_and_adds_it_again,
    pipelines_of_two_configurations_do_not_fight_for_ever,
);

const READING: [&str; 5] = ["status", "report", "verify", "rejects list", "rejects export"]; // `doctor`, too: tests/it/doctor.rs

/// `events` with another model: a new dimension, and other distinct counts.
fn other_configuration() -> String {
    include_str!("../../dataloader.toml")
        .replace(r#"dimensions = ["organization_name", "user_type"]"#, r#"dimensions = ["plan_name", "user_type"]"#)
        .replace(r#"{ unique_users = "username" }"#, r#"{ unique_plans = "plan_name" }"#)
}

fn run(sandbox: &Sandbox, command: &str) -> Outcome {
    sandbox.run(command.split(' '))
}

/// Every table, view, index and column of the database.
fn catalogue(sandbox: &Sandbox) -> Vec<String> {
    match sandbox.store() {
        Store::Sqlite => sandbox.lines("SELECT type, name, rootpage, sql FROM sqlite_schema ORDER BY name"),
        Store::Postgres => sandbox.lines(
            "SELECT n.nspname, c.oid, c.relname, a.attname FROM pg_namespace n LEFT JOIN pg_class c ON c.relnamespace = n.oid \
             LEFT JOIN pg_attribute a ON a.attrelid = c.oid \
             WHERE n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema' ORDER BY 1, 2, 4",
        ),
    }
}

const MODELLED: &str = "SELECT * FROM {modelled.events_by_date} ORDER BY date";

fn reading_a_database_without_tables_says_so_and_makes_nothing(sandbox: &Sandbox) {
    let before = (sandbox.store() == Store::Postgres).then(|| catalogue(sandbox));
    for command in READING {
        let outcome = run(sandbox, command).ok();
        assert!(
            outcome.stdout.contains("has no tables of dataloader") || outcome.stderr.contains("has no tables of dataloader"),
            "{command}: {outcome:?}"
        );
        if command != "rejects export" {
            let json = run(sandbox, &format!("{command} --format json")).ok().json();
            assert!(json["notes"][0].as_str().is_some_and(|note| note.contains("has no tables of dataloader")), "{json}");
        }
    }
    match before {
        Some(before) => assert_eq!(catalogue(sandbox), before),
        None => assert!(!sandbox.file("dataloader.db").exists(), "reading makes no file"),
    }
}

fn reading_under_another_configuration_changes_nothing(sandbox: &Sandbox) {
    write_samples(sandbox);
    run(sandbox, "load").ok();
    let (tables, rows) = (catalogue(sandbox), sandbox.lines(MODELLED));
    sandbox.write("dataloader.toml", other_configuration());
    for command in READING {
        run(sandbox, command).ok();
    }
    run(sandbox, "load --dry-run").ok();
    assert_eq!(catalogue(sandbox), tables);
    assert_eq!(sandbox.lines(MODELLED), rows);
}

fn what_another_configuration_made_is_shown_and_what_is_missing_is_said(sandbox: &Sandbox) {
    write_samples(sandbox);
    run(sandbox, "load").ok();
    sandbox.write("dataloader.toml", other_configuration());
    let report = run(sandbox, "report").ok().stdout;
    assert!(report.contains("unique_users"), "what the table has is shown:\n{report}");
    assert!(report.contains("modelled.events_by_date_user_type"), "{report}");
    assert!(report.contains("modelled.events_by_date has no column unique_plans"), "{report}");
    assert!(report.contains("modelled.events_by_date_plan_name is not there"), "{report}");
    let json = run(sandbox, "report --format json").ok().json();
    let tables: Vec<&str> =
        json["datasets"][0]["tables"].as_array().into_iter().flatten().filter_map(|table| table["table"].as_str()).collect();
    assert_eq!(tables, ["events_by_date", "events_by_date_user_type"]);
    assert!(json["datasets"][0]["tables"][0]["rows"][0]["unique_users"].is_i64(), "{json}");
    assert_eq!(json["notes"].as_array().map(Vec::len), Some(3), "{json}");
}

fn replacing_modelled_tables_is_said_by_the_command_that_does_it(sandbox: &Sandbox) {
    write_samples(sandbox);
    let said = "modelled tables of events are replaced";
    let loaded = run(sandbox, "load").ok().stderr;
    assert!(!loaded.contains("replaced"), "new tables replace none: {loaded}");
    sandbox.write("dataloader.toml", other_configuration());
    let loaded = run(sandbox, "load").ok().stderr;
    assert_eq!(loaded.matches(said).count(), 1, "{loaded}");
    let loaded = run(sandbox, "load").ok().stderr;
    assert!(!loaded.contains(said), "{loaded}");
}

/// What the pipeline should have in the end: both files, modelled by the built-in definition.
fn assert_modelled_again(sandbox: &Sandbox) {
    let right = "SELECT count(*) FROM {modelled.events_by_date} WHERE total_events = 20 AND unique_users = 10";
    wait_until("every day is modelled", || sandbox.try_query(right).is_ok_and(|rows| rows[0][0].as_deref() == Some("10")));
}

fn a_pipeline_whose_model_was_replaced_says_so_and_makes_it_again(sandbox: &Sandbox) {
    let mut pipeline = sandbox.start_pipeline();
    sandbox.drop_in("events", "a.jsonl", events_over_days("a", 100));
    sandbox.wait_until_finished("events", 1);
    let other = sandbox.write("other/dataloader.toml", other_configuration());
    sandbox.run(["migrate", "--config", other.to_str().expect("a plain path")]).ok();
    sandbox.drop_in("events", "b.jsonl", events_over_days("b", 100));
    pipeline.wait_for_stderr("were changed");
    assert_modelled_again(sandbox);
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
    sandbox.assert_settled();
}

fn a_pipeline_whose_column_is_gone_says_so_and_adds_it_again(sandbox: &Sandbox) {
    let mut pipeline = sandbox.start_pipeline();
    sandbox.drop_in("events", "a.jsonl", events_over_days("a", 100));
    sandbox.wait_until_finished("events", 1);
    sandbox.execute("ALTER TABLE {raw.events} DROP COLUMN plan_name");
    sandbox.drop_in("events", "b.jsonl", events_over_days("b", 100));
    pipeline.wait_for_stderr("were changed");
    assert_modelled_again(sandbox);
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
    sandbox.assert_settled();
}

/// Each makes its own model; one of them ends with an error that says what to do, and the other goes on.
fn pipelines_of_two_configurations_do_not_fight_for_ever(sandbox: &Sandbox) {
    let other = sandbox.write("other/dataloader.toml", other_configuration());
    let first = sandbox.start_pipeline();
    let second = sandbox.pipeline(["--inbox", "other/inbox", "--config", other.to_str().expect("a plain path")]).spawn();
    let mut pipelines = [first, second];
    let mut dropped = 0;
    wait_until("one of them has ended", || {
        dropped += 1;
        sandbox.drop_in("events", format!("{dropped}.jsonl"), event(&dropped.to_string(), "ada", "2024-05-01 10:00:00"));
        let in_other = sandbox.write("other/inbox/events/.unfinished", event(&format!("o{dropped}"), "ada", "2024-05-01 10:00:00"));
        std::fs::rename(&in_other, in_other.with_file_name(format!("{dropped}.jsonl"))).expect("the inbox is writable");
        pipelines.iter_mut().any(|pipeline| !pipeline.is_running())
    });
    let [first, second] = pipelines;
    for mut pipeline in [first, second] {
        if pipeline.is_running() {
            pipeline.signal(Signal::Terminate);
            pipeline.wait();
        } else {
            let outcome = pipeline.wait().code(1);
            assert!(outcome.stderr.contains("another configuration"), "{}", outcome.stderr);
        }
    }
}

/// A role of its own for one test, dropped with what it was granted.
pub struct Reader<'s> {
    sandbox: &'s Sandbox,
    name: String,
}

impl<'s> Reader<'s> {
    pub fn new(sandbox: &'s Sandbox) -> Self {
        let reader = Self::without_rights(sandbox);
        let name = &reader.name;
        sandbox.execute(&format!(
            "GRANT USAGE ON SCHEMA raw, modelled TO {name}; GRANT SELECT ON ALL TABLES IN SCHEMA raw, modelled TO {name}"
        ));
        reader
    }

    pub fn without_rights(sandbox: &'s Sandbox) -> Self {
        let name = format!("dl_reader_{}", uuid::Uuid::now_v7().simple());
        sandbox.execute(&format!("CREATE ROLE {name} LOGIN PASSWORD 'reads-only'"));
        Self { sandbox, name }
    }

    pub fn url(&self) -> String {
        let url = self.sandbox.database_url();
        let (_, address) = url.split_once('@').expect("a user in the URL");
        format!("postgres://{}:reads-only@{address}", self.name)
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        self.sandbox.execute(&format!("DROP OWNED BY {name}; DROP ROLE {name}", name = self.name));
    }
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn reading_needs_no_more_than_the_right_to_read() {
    let sandbox = Sandbox::new(Store::Postgres);
    write_samples(&sandbox);
    sandbox.write_events("bad.json", "{}");
    run(&sandbox, "load").code(3);
    let reader = Reader::new(&sandbox);
    for configuration in [None, Some(other_configuration())] {
        if let Some(configuration) = configuration {
            sandbox.write("dataloader.toml", configuration);
        }
        let read = |command: &str| sandbox.command(command.split(' ')).env("DATABASE_URL", &reader.url()).run();
        for command in READING {
            read(command).ok();
        }
        assert!(read("report").ok().stdout.contains("2024-02-28"));
        assert!(read("rejects list").ok().stdout.contains("bad.json"));
        assert_eq!(read("status --format json").ok().json()["datasets"][0]["rejected"], 1);
        let refused = read("load").code(1);
        assert!(refused.stderr.contains("cannot be written"), "{}", refused.stderr);
    }
}
