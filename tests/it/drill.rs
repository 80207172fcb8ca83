//! `drill` tries the promises out on a database of its own, says what it did, and touches nothing that it did not make.

use serde_json::Value;

use crate::support::{Sandbox, on_both_stores, tests_in};

on_both_stores!(whatever_a_drill_kills_every_record_is_there_once, a_drill_refuses_what_it_did_not_make);
tests_in!(amqp_postgres, Amqp, Postgres, needs "needs PostgreSQL and RabbitMQ: ./run.sh test", [
    whatever_a_drill_kills_every_record_is_there_once
]);

fn whatever_a_drill_kills_every_record_is_there_once(sandbox: &Sandbox) {
    let (url, temporary) = (sandbox.database_url(), sandbox.file("temporary"));
    std::fs::create_dir(&temporary).expect("the sandbox is writable");
    let transport = if sandbox.is_over_amqp() { "amqp" } else { "inproc" };
    let restart = "echo restarted >> restarts";
    let args =
        ["drill", "--minutes", "0", "--seed", "11", "--database", &url, "--transport", transport, "--restart-database", restart];
    let drill = sandbox.command(args.into_iter().chain(["--format", "json"]));
    let drilled = drill.env("TMPDIR", temporary.to_str().expect("a plain name")).run().ok().json();
    assert_eq!(
        (&drilled["seed"], &drilled["findings"], &drilled["verified"]["differences"]),
        (&11.into(), &Value::Array(vec![]), &Value::Array(vec![]))
    );
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let events = &drilled["dropped"]["events"];
    assert!(number(&events["records"]) > number(&events["not_loadable"]) && number(&events["files"]) > 5, "{drilled}");
    assert!(number(&drilled["incidents"]["killed"]) > 2, "{drilled}");
    let restarts = std::fs::read_to_string(sandbox.file("restarts")).expect("the command was run");
    assert_eq!(restarts.lines().count() as u64, number(&drilled["incidents"]["database_restarts"]));

    // What is left are the tables.
    let left = std::fs::read_dir(&temporary).expect("it is ours").flatten().map(|entry| entry.file_name());
    assert_eq!(left.filter(|name| name.to_string_lossy().starts_with("dataloader-drill")).count(), 0);
    assert_eq!(sandbox.count("raw.events"), number(&events["records"]) - number(&events["not_loadable"]));
    let text = sandbox.run(["status"]).ok().stdout;
    assert!(text.contains("events"), "{text}");
    sandbox.run(["drill", "--database", &url]).code(2);
}

fn a_drill_refuses_what_it_did_not_make(sandbox: &Sandbox) {
    sandbox.run(["migrate"]).ok();
    let refused = sandbox.run(["drill", "--database", &sandbox.database_url()]).code(2);
    assert!(refused.stderr.contains("is in use: a drill touches nothing that it did not make"), "{}", refused.stderr);
    let refused = sandbox.run(["drill"]).code(2);
    assert!(refused.stderr.contains("a drill needs a database that was made for it"), "{}", refused.stderr);
    assert_eq!(sandbox.count("raw.loads"), 0);
    assert!(!sandbox.file("inbox").exists());
}
