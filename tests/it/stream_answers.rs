//! What a database can answer that is no "done": a record that it refuses, a state that passes, a full disk, an error that
//! only people can mend. The stream finds the record, waits, or ends with a line that says what to do.

use std::fs;
use std::path::Path;

use crate::support::{Background, Invocation, Outcome, Sandbox, Signal, Store, event, events_over_days, many_events, wait_until};

/// On PostgreSQL: runs `body` for each new row of `raw.events`; `{hold}` is true until [`release`].
fn on_insert(sandbox: &Sandbox, body: &str) {
    sandbox.run(["migrate"]).ok();
    let body = body.replace("{hold}", "exists (select from hold)");
    sandbox.execute(&format!(
        "CREATE TABLE hold(); INSERT INTO hold DEFAULT VALUES; \
         CREATE FUNCTION on_insert() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN new; END $$; \
         CREATE TRIGGER on_insert BEFORE INSERT ON raw.events FOR EACH ROW EXECUTE FUNCTION on_insert()"
    ));
}

fn release(sandbox: &Sandbox) {
    sandbox.execute("DELETE FROM hold");
}

/// Waits for as long as it is not released.
const WAIT: &str = "while {hold} loop perform pg_sleep(0.01); end loop;";

fn health(sandbox: &Sandbox) -> Outcome {
    sandbox.run(["health"])
}

/// Waits until the health of the sandbox's pipeline says all of that.
#[track_caller]
fn wait_until_unhealthy(sandbox: &Sandbox, words: &[&str]) {
    wait_until(&format!("health says {words:?}"), || {
        let said = health(sandbox);
        said.code == Some(1) && words.iter().all(|word| said.stdout.contains(word))
    });
}

fn end(pipeline: Background) {
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
}

/// Drops a file whose third record is Eve's and one without her, and asserts that she alone is rejected, in these words.
#[track_caller]
fn assert_only_eve_is_rejected(sandbox: &Sandbox, detail: &str) {
    let records: Vec<String> =
        (1..=5).map(|id| event(&format!("a-{id}"), if id == 3 { "eve" } else { "ada" }, "2024-05-01 10:00:00")).collect();
    sandbox.drop_in("events", "a.jsonl", records.join("\n"));
    sandbox.drop_in("events", "b.jsonl", events_over_days("b", 20));
    let mut pipeline = sandbox.start_pipeline();
    wait_until("both files are loaded", || {
        assert!(pipeline.is_running(), "it ended:\n{}", pipeline.stderr());
        sandbox.finished("events") == 2
    });
    end(pipeline);
    assert_eq!(sandbox.dropped_names_in("events/processed"), ["a.jsonl", "b.jsonl"]);
    assert_eq!(sandbox.count("raw.events"), 24);
    let rejects = sandbox.query("SELECT ordinal, reason, detail FROM {raw.rejects}");
    assert_eq!(rejects.len(), 1, "{rejects:?}");
    let [ordinal, reason, said] = [0, 1, 2].map(|i: usize| rejects[0][i].clone().unwrap_or_default());
    assert_eq!((ordinal.as_str(), reason.as_str()), ("3", "constraint"));
    assert!(said.contains(detail), "{said}");
    sandbox.assert_settled();
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_record_on_which_a_trigger_raises_is_a_reject() {
    let sandbox = Sandbox::new(Store::Postgres);
    on_insert(&sandbox, "if new.username = 'eve' then raise exception 'no Eve here'; end if;");
    assert_only_eve_is_rejected(&sandbox, "no Eve here");
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_record_on_which_a_trigger_raises_a_code_of_its_own_is_a_reject() {
    let sandbox = Sandbox::new(Store::Postgres);
    on_insert(&sandbox, "if new.username = 'eve' then raise 'no Eve here' using errcode = 'UE001'; end if;");
    assert_only_eve_is_rejected(&sandbox, "no Eve here");
}

/// So it looks when another process makes a table anew while the writer asks which rows the database refuses.
#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_failure_that_passes_while_the_refused_row_is_looked_for_is_no_fault_of_a_row() {
    let sandbox = Sandbox::new(Store::Postgres);
    // A sequence counts on when the statement is rolled back. The batch is refused, then all four rows, two, and the first one.
    on_insert(&sandbox, "if nextval('inserted') <= 4 then raise undefined_table; end if;");
    sandbox.execute("CREATE SEQUENCE inserted");
    let mut pipeline = sandbox.start_pipeline();
    sandbox.drop_in("events", "a.jsonl", events_over_days("a", 4));
    wait_until("the file is loaded", || {
        assert!(pipeline.is_running(), "it ended:\n{}", pipeline.stderr());
        sandbox.finished("events") == 1
    });
    end(pipeline);
    sandbox.assert_each_loaded_once(&[("a.jsonl".to_owned(), events_over_days("a", 4), 4)]);
    sandbox.assert_settled();
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_record_that_is_too_large_for_an_index_is_a_reject() {
    let sandbox = Sandbox::new(Store::Postgres);
    // What an index entry holds is compressed first: a text that cannot be.
    on_insert(
        &sandbox,
        "if new.username = 'eve' then select string_agg(md5(i::text), '') into new.plan_name from generate_series(1, 500) i; end if;",
    );
    sandbox.execute("CREATE INDEX plans ON raw.events (plan_name)");
    assert_only_eve_is_rejected(&sandbox, "index row");
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_statement_that_is_cancelled_is_repeated() {
    let sandbox = Sandbox::new(Store::Postgres);
    on_insert(&sandbox, WAIT);
    let mut pipeline = sandbox.start_pipeline();
    sandbox.drop_in("events", "a.jsonl", events_over_days("a", 20));
    let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND \
                  state = 'active' AND query ILIKE '%insert into raw.\"events\"%' AND pid <> pg_backend_pid()";
    for _ in 0..3 {
        wait_until("a statement was cancelled", || {
            assert!(pipeline.is_running(), "it ended:\n{}", pipeline.stderr());
            !sandbox.lines(cancel).is_empty()
        });
    }
    release(&sandbox);
    sandbox.wait_until_finished("events", 1);
    pipeline.wait_for_stderr("canceling statement due to user request");
    end(pipeline);
    sandbox.assert_each_loaded_once(&[("a.jsonl".to_owned(), events_over_days("a", 20), 20)]);
    sandbox.assert_settled();
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn statements_that_take_longer_than_the_server_allows_are_waited_for_and_said() {
    let sandbox = Sandbox::new(Store::Postgres);
    on_insert(&sandbox, WAIT);
    let database = sandbox.lines("SELECT current_database()").remove(0);
    sandbox.execute(&format!("ALTER DATABASE {database} SET statement_timeout = '500ms'"));
    let mut pipeline = sandbox.start_pipeline();
    sandbox.drop_in("events", "a.jsonl", events_over_days("a", 20));
    pipeline.wait_for_stderr("canceling statement due to statement timeout");
    wait_until_unhealthy(&sandbox, &["statement timeout"]);
    assert!(pipeline.is_running(), "it ended:\n{}", pipeline.stderr());
    release(&sandbox);
    sandbox.wait_until_finished("events", 1);
    wait_until("it is healthy again", || health(&sandbox).code == Some(0));
    end(pipeline);
    sandbox.assert_each_loaded_once(&[("a.jsonl".to_owned(), events_over_days("a", 20), 20)]);
    sandbox.execute(&format!("ALTER DATABASE {database} RESET statement_timeout"));
    sandbox.assert_settled();
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_server_that_ends_idle_sessions_does_not_end_the_run() {
    let sandbox = Sandbox::new(Store::Postgres);
    sandbox.run(["migrate"]).ok();
    let database = sandbox.lines("SELECT current_database()").remove(0);
    sandbox.execute(&format!("ALTER DATABASE {database} SET idle_session_timeout = '100ms'"));
    let mut pipeline = sandbox.start_pipeline();
    for file in 1..=3 {
        sandbox.drop_in("events", format!("{file}.jsonl"), events_over_days(&file.to_string(), 20));
        wait_until("the file is loaded", || {
            assert!(pipeline.is_running(), "it ended:\n{}", pipeline.stderr());
            sandbox.finished("events") == file
        });
        let sessions = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
        wait_until("the idle sessions are gone", || sandbox.lines(sessions).is_empty());
    }
    assert_eq!(health(&sandbox).code, Some(0), "a lost idle connection is no fault: {:?}", health(&sandbox));
    assert!(!pipeline.stderr().contains("waiting for"), "nor worth a line:\n{}", pipeline.stderr());
    end(pipeline);
    sandbox.assert_settled();
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_server_that_is_read_only_for_a_moment_is_waited_for_and_given_up_by_a_load() {
    let sandbox = Sandbox::new(Store::Postgres);
    let mut pipeline = sandbox.start_pipeline();
    let database = sandbox.lines("SELECT current_database()").remove(0);
    let end_sessions = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND \
                        pid <> pg_backend_pid()";
    sandbox.execute(&format!("ALTER DATABASE {database} SET default_transaction_read_only = on; {end_sessions}"));
    sandbox.drop_in("events", "a.jsonl", events_over_days("a", 20));
    pipeline.wait_for_stderr("read-only transaction");
    wait_until_unhealthy(&sandbox, &["read-only transaction"]);
    sandbox.write_events("x.json", event("b", "ada", "2024-05-01 10:00:00"));
    let load = sandbox.run(["load", "--dataset", "events"]).code(4);
    assert!(load.stderr.contains("read-only transaction"), "{}", load.stderr);
    assert!(pipeline.is_running(), "it ended:\n{}", pipeline.stderr());
    sandbox.execute(&format!(
        "SET default_transaction_read_only = off; BEGIN READ WRITE; ALTER DATABASE {database} RESET default_transaction_read_only; \
         COMMIT; {end_sessions}"
    ));
    sandbox.wait_until_finished("events", 1);
    wait_until("it is healthy again", || health(&sandbox).code == Some(0));
    end(pipeline);
    sandbox.assert_each_loaded_once(&[("a.jsonl".to_owned(), events_over_days("a", 20), 20)]);
    sandbox.assert_settled();
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_file_whose_rows_end_three_runs_is_set_aside_and_the_others_are_loaded() {
    let sandbox = Sandbox::new(Store::Postgres);
    // An error that could be anybody's, as of a table that is missing, but comes with Eve only.
    on_insert(&sandbox, "if new.username = 'eve' then perform 1 from no_such_table; end if;");
    let eve = many_events(3, "ada") + &event("4", "eve", "2024-05-01 10:00:00");
    sandbox.drop_in("events", "a.jsonl", eve);
    sandbox.drop_in("events", "b.jsonl", events_over_days("b", 20));
    for _ in 0..3 {
        let ended = sandbox.pipeline([]).run().code(1);
        assert!(ended.stderr.contains("no_such_table") && ended.stderr.contains("a.jsonl"), "{}", ended.stderr);
    }
    sandbox.run_once().code(3);
    assert_eq!(sandbox.dropped_names_in("events/failed"), ["a.jsonl", "a.jsonl.error.json"]);
    assert_eq!(sandbox.dropped_names_in("events/processed"), ["b.jsonl"]);
    sandbox.assert_settled();
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn an_error_that_every_file_meets_sets_none_aside() {
    let sandbox = Sandbox::new(Store::Postgres);
    on_insert(&sandbox, "perform 1 from no_such_table;");
    for name in ["a.jsonl", "b.jsonl"] {
        sandbox.drop_in("events", name, many_events(3, "ada"));
    }
    for _ in 0..4 {
        let ended = sandbox.pipeline([]).run().code(1);
        assert!(ended.stderr.contains("no_such_table"), "{}", ended.stderr);
    }
    sandbox.execute("DROP TRIGGER on_insert ON raw.events");
    sandbox.run_once().ok();
    assert_eq!(sandbox.dropped_names_in("events/processed"), ["a.jsonl", "b.jsonl"]);
    sandbox.assert_settled();
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_full_server_is_waited_for_and_said() {
    let sandbox = Sandbox::new(Store::Postgres);
    on_insert(&sandbox, "if {hold} then raise 'could not extend file' using errcode = 'disk_full'; end if;");
    let mut pipeline = sandbox.start_pipeline();
    sandbox.drop_in("events", "a.jsonl", events_over_days("a", 20));
    pipeline.wait_for_stderr("could not extend file");
    wait_until_unhealthy(&sandbox, &["full", "could not extend file"]);
    release(&sandbox);
    sandbox.wait_until_finished("events", 1);
    wait_until("it is healthy again", || health(&sandbox).code == Some(0));
    end(pipeline);
    sandbox.assert_settled();
}

#[test]
fn a_full_disk_below_a_sqlite_file_is_waited_for_and_said() {
    let sandbox = Sandbox::new(Store::Sqlite);
    // A small file system, in a mount namespace that goes with its processes.
    let script = "mkdir small; mount -t tmpfs -o size=16m tmpfs small || exit 77; exec \"$0\" run --database sqlite://small/x.db";
    let args = ["--mount", "--map-root-user", "sh", "-c", script, env!("CARGO_BIN_EXE_dataloader")];
    let mut pipeline = Invocation::new("unshare", sandbox.path()).args(args).spawn();
    wait_until("it watches, or cannot mount", || pipeline.stderr().contains("watching ") || !pipeline.is_running());
    if !pipeline.is_running() {
        eprintln!("skipped: no small file system can be mounted here: {}", pipeline.stderr());
        return;
    }
    let small = format!("/proc/{}/cwd/small", pipeline.id());
    let filler = Path::new(&small).join("filler");
    wait_until("the disk is full", || fs::write(&filler, vec![0; 16 << 20]).is_err());
    sandbox.drop_in("events", "a.jsonl", events_over_days("a", 5_000));
    pipeline.wait_for_stderr("is full");
    wait_until_unhealthy(&sandbox, &["full"]);
    fs::remove_file(&filler).expect("it is ours");
    sandbox.wait_until_finished("events", 1);
    wait_until("it is healthy again", || health(&sandbox).code == Some(0));
    let summary = sandbox.run(["health"]).ok();
    assert!(summary.stdout.contains("is alive and connected"), "{}", summary.stdout);
    end(pipeline);
    assert_eq!(sandbox.dropped_names_in("events/processed"), ["a.jsonl"]);
}
