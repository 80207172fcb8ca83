//! `dataloader doctor`: every line as a user meets it, and nothing changed by it.

use std::os::unix::fs::{PermissionsExt, symlink};

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::Value;

use crate::reading::Reader;
use crate::support::{
    Invocation, PrivatePostgres, PrivateRabbit, Sandbox, Store, Transport, many_events, on_both_stores, wait_until, write_samples,
};

on_both_stores!(
    a_database_without_tables_is_no_fault,
    after_a_load_all_is_well,
    a_missing_column_is_named_with_the_statement,
    a_column_too_much_is_a_fault,
    days_that_wait_are_said,
    tables_of_another_version_are_said,
);

const DOCTOR: [&str; 3] = ["doctor", "--format", "json"];

/// The lines of `doctor`, which ends with this exit code.
fn checks(sandbox: &Sandbox, code: i32) -> Vec<Value> {
    checks_of(sandbox.command(DOCTOR), code)
}

#[track_caller]
fn checks_of(doctor: Invocation, code: i32) -> Vec<Value> {
    doctor.run().code(code).json()["checks"].as_array().expect("a list").clone()
}

#[track_caller]
fn line<'c>(checks: &'c [Value], name: &str) -> &'c Value {
    checks.iter().find(|check| check["check"] == name).unwrap_or_else(|| panic!("no line {name}: {checks:#?}"))
}

/// Checks status, a part of the reason, and a part of what mends it.
#[track_caller]
fn assert_line(checks: &[Value], name: &str, status: &str, why: &str, mend: &str) {
    let line = line(checks, name);
    let holds = |key: &str, part: &str| part.is_empty() || line[key].as_str().is_some_and(|text| text.contains(part));
    assert!(line["status"] == status && holds("why", why) && holds("mend", mend), "{line:#}");
    assert!(status == "ok" || line["mend"].is_string(), "what is wrong can be mended: {line:#}");
}

fn a_database_without_tables_is_no_fault(sandbox: &Sandbox) {
    write_samples(sandbox);
    let checks = checks(sandbox, 0);
    assert!(checks.iter().any(|check| check["mend"] == "dataloader migrate"), "{checks:#?}");
    assert_line(&checks, "files of events", "ok", "to read", "");
    assert_line(&checks, "inbox of events", "ok", "not there yet", "");
    assert!(!sandbox.file("inbox").exists() && (sandbox.store() == Store::Postgres || !sandbox.file("dataloader.db").exists()));
}

fn after_a_load_all_is_well(sandbox: &Sandbox) {
    write_samples(sandbox);
    sandbox.run(["load"]).ok();
    sandbox.run(["drop", "--dataset", "events"]).ok();
    sandbox.run(["run", "--once"]).ok();
    let checks = checks(sandbox, 0);
    assert!(checks.iter().all(|check| check["status"] == "ok"), "{checks:#?}");
    assert_line(&checks, "inbox of events", "ok", "on one file system, with locks", "");
    assert_line(&checks, "database tables", "ok", "they fit", "");
    let text = sandbox.run(["doctor"]).ok().stdout;
    assert_eq!(text.lines().count(), checks.len(), "a line for each:\n{text}");
}

fn a_missing_column_is_named_with_the_statement(sandbox: &Sandbox) {
    write_samples(sandbox);
    sandbox.run(["load"]).ok();
    sandbox.execute("ALTER TABLE {raw.events} DROP COLUMN plan_name");
    assert_line(&checks(sandbox, 0), "database tables", "warn", "add column \"plan_name\"", "dataloader migrate");
}

fn a_column_too_much_is_a_fault(sandbox: &Sandbox) {
    write_samples(sandbox);
    sandbox.run(["load"]).ok();
    sandbox.execute("ALTER TABLE {raw.events} ADD COLUMN other text");
    assert_line(&checks(sandbox, 1), "database tables", "fail", "has a column other", "dataloader.toml");
}

fn days_that_wait_are_said(sandbox: &Sandbox) {
    write_samples(sandbox);
    sandbox.run(["load"]).ok();
    let table = if sandbox.store() == Store::Sqlite { "dataloader_changed_days" } else { "dataloader.changed_days" };
    sandbox.execute(&format!("INSERT INTO {table} (dataset, day) VALUES ('events', '2020-12-05')"));
    assert_line(&checks(sandbox, 0), "model of events", "warn", "2020-12-05", "dataloader model");
}

#[test]
fn a_configuration_that_does_not_parse_is_a_line() {
    let sandbox = Sandbox::new(Store::Sqlite);
    sandbox.write("dataloader.toml", "[dataset.events]\n");
    assert_line(&checks(&sandbox, 1), "configuration", "fail", "dataloader.toml:1", "did you mean `datasets`");
}

#[test]
fn a_server_that_is_away_is_a_fault_without_its_password() {
    let sandbox = Sandbox::new(Store::Sqlite);
    write_samples(&sandbox);
    let doctor = ["doctor", "--database", "postgres://u:s3cret@127.0.0.1:1/d"];
    let outcome = sandbox.run(doctor).code(1);
    assert!(outcome.stdout.contains("fail  database: postgres://u:***@127.0.0.1:1/d: "), "{}", outcome.stdout);
    let amqp = sandbox.command(["doctor", "--transport", "amqp"]).env("AMQP_URL", "amqp://u:s3cret@127.0.0.1:1/%2f").run().code(1);
    assert!(amqp.stdout.contains("fail  broker: cannot reach RabbitMQ at amqp://u:***@127.0.0.1:1/"), "{}", amqp.stdout);
    assert!(![outcome, amqp].iter().any(|outcome| outcome.stdout.contains("s3cret") || outcome.stderr.contains("s3cret")));
}

#[test]
fn files_and_directories_that_are_missing_or_in_the_way_are_faults() {
    let sandbox = Sandbox::new(Store::Sqlite);
    sandbox.write("inbox", "a file");
    let found = checks(&sandbox, 1);
    assert_line(&found, "files of events", "fail", "there is no directory raw_data/events", "mkdir -p raw_data/events");
    assert_line(&found, "inbox of events", "fail", "inbox is no directory", "mv inbox inbox.old");
    let outcome = sandbox.run(["doctor", "--database", "sqlite://none/x.db"]).code(1);
    assert!(outcome.stdout.contains("mend: mkdir -p none"), "{}", outcome.stdout);
    sandbox.write("raw_data/orgs/readme.txt", "");
    symlink("nowhere", sandbox.write_events("a.json", "").with_file_name("b.json")).expect("the sandbox is writable");
    let found = checks(&sandbox, 1);
    assert_line(&found, "files of orgs", "warn", "holds no *.json", "cp ");
    assert_line(&found, "files of events", "fail", "cannot open raw_data/events/b.json", "chmod u+r");
}

#[test]
fn directories_on_another_file_system_are_found() {
    let sandbox = Sandbox::new(Store::Sqlite);
    write_samples(&sandbox);
    let other = tempfile::tempdir_in("/dev/shm").expect("a file system in memory");
    std::fs::create_dir_all(sandbox.file("inbox/events")).expect("the sandbox is writable");
    std::fs::create_dir_all(sandbox.file("inbox/orgs")).expect("the sandbox is writable");
    symlink(other.path(), sandbox.file("inbox/events/.loading")).expect("the sandbox is writable");
    symlink(other.path(), sandbox.file("inbox/orgs/processed")).expect("the sandbox is writable");
    let found = checks(&sandbox, 1);
    assert_line(&found, "inbox of events", "fail", ".loading is a symbolic link", "follow_links = true");
    sandbox.follow_links();
    let found = checks(&sandbox, 1);
    assert_line(&found, "inbox of events", "fail", "no file can be claimed", "umount");
    assert_line(&found, "inbox of orgs", "warn", "files are copied", "mkdir");
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_role_that_may_only_read_gets_its_answer() {
    let sandbox = Sandbox::new(Store::Postgres);
    write_samples(&sandbox);
    sandbox.run(["load"]).ok();
    let reader = Reader::new(&sandbox);
    let outcome = sandbox.command(["doctor", "--format", "json"]).env("DATABASE_URL", &reader.url()).run().code(1);
    let found = outcome.json()["checks"].as_array().expect("a list").clone();
    assert_line(&found, "database rights", "fail", "may not write", "GRANT SELECT, INSERT, UPDATE, DELETE");
    assert_line(&found, "database tables", "warn", "may not read the schema dataloader", "GRANT USAGE ON SCHEMA dataloader");
    assert!(!outcome.stdout.contains("reads-only"), "{}", outcome.stdout);
    mended(&sandbox, &reader, &found, &["database tables", "database rights"]);
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_role_that_may_not_make_the_tables_is_told_what_lets_it() {
    let sandbox = Sandbox::new(Store::Postgres);
    write_samples(&sandbox);
    let reader = Reader::without_rights(&sandbox);
    let found = checks_of(sandbox.command(DOCTOR).env("DATABASE_URL", &reader.url()), 1);
    assert_line(&found, "database rights", "fail", "may not create schemas in", "GRANT CREATE ON DATABASE");
    mended(&sandbox, &reader, &found, &["database rights"]);
}

/// What mends these lines is run as it stands; then the role can do everything.
#[track_caller]
fn mended(sandbox: &Sandbox, role: &Reader<'_>, found: &[Value], lines: &[&str]) {
    let run = |args: &str| sandbox.command(args.split(' ')).env("DATABASE_URL", &role.url()).run();
    run("load").code(1);
    for name in lines {
        sandbox.execute(line(found, name)["mend"].as_str().expect("statements"));
    }
    run("load").ok();
    sandbox.drop_in("events", "a.jsonl", many_events(3, "ada"));
    run("run --once").ok();
    run("model --full").ok();
    let found = checks_of(sandbox.command(DOCTOR).env("DATABASE_URL", &role.url()), 0);
    lines.iter().for_each(|name| assert_line(&found, name, "ok", "", ""));
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_private_server_that_is_a_standby_is_a_fault() {
    let server = PrivatePostgres::start();
    let sandbox = Sandbox::on(&server);
    write_samples(&sandbox);
    sandbox.run(["load"]).ok();
    server.become_standby();
    assert_line(&checks(&sandbox, 1), "database rights", "fail", "is a standby", "name the primary");
}

#[test]
fn a_sqlite_file_that_may_not_be_written_is_one_line() {
    let sandbox = Sandbox::new(Store::Sqlite);
    write_samples(&sandbox);
    sandbox.run(["load"]).ok();
    let modes = [("dataloader.db", 0o444), ("raw_data/events", 0o755), ("raw_data/orgs", 0o755), ("", 0o777)];
    for (path, mode) in modes {
        std::fs::set_permissions(sandbox.file(path), PermissionsExt::from_mode(mode)).expect("the file is ours");
    }
    // Root may write everywhere: as somebody else then.
    let doctor = || checks_of(sandbox.unprivileged("doctor --format json"), 1);
    assert_line(&doctor(), "database rights", "fail", "dataloader.db may not be written by this user", "chown ");
    assert_line(&doctor(), "database", "ok", "answers: SQLite", "");
    std::fs::create_dir_all(sandbox.file("inbox/events")).expect("the sandbox is writable");
    assert_line(&doctor(), "inbox of events", "fail", "this user may not write inbox/events", "chown ");
    std::fs::set_permissions(sandbox.file("raw_data/orgs"), PermissionsExt::from_mode(0o700)).expect("it is ours");
    assert_line(&doctor(), "files of orgs", "fail", "cannot read the directory", "chmod u+rx");
}

fn tables_of_another_version_are_said(sandbox: &Sandbox) {
    write_samples(sandbox);
    sandbox.run(["load"]).ok();
    let table = if sandbox.store() == Store::Sqlite { "dataloader_migrations" } else { "dataloader.migrations" };
    sandbox.execute(&format!("UPDATE {table} SET version = version + 1000 WHERE version = (SELECT max(version) FROM {table})"));
    assert_line(&checks(sandbox, 1), "database tables", "fail", "does not know", "newer version of dataloader");
    sandbox.execute(&format!("DELETE FROM {table} WHERE version > 1000"));
    assert_line(&checks(sandbox, 0), "database tables", "warn", "an earlier version", "dataloader migrate");
}

#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn amqp_queues_are_looked_at_and_not_declared() {
    let sandbox = Sandbox::over(Transport::Amqp, Store::Sqlite);
    write_samples(&sandbox);
    let names = ["events", "orgs", "dead"].map(|name| format!("queue {}", sandbox.queues().name(name)));
    for _ in 0..2 {
        let found = checks(&sandbox, 0);
        assert_line(&found, "broker", "ok", "RabbitMQ ", "");
        assert_line(&found, "broker alarms", "ok", "it takes messages", "");
        names.iter().for_each(|name| assert_line(&found, name, "ok", "not there yet", ""));
    }
    sandbox.run(["run", "--once"]).ok();
    sandbox.queues().send("events", [(BasicProperties::default(), &b"not json"[..])]);
    sandbox.run(["run", "--once"]);
    let found = checks(&sandbox, 0);
    assert_line(&found, &names[0], "ok", "its arguments fit", "");
    assert_line(&found, &names[2], "warn", "waiting: 1 dead letter", "dataloader rejects list");
}

#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn amqp_a_queue_with_other_arguments_is_a_fault() {
    let sandbox = Sandbox::over(Transport::Amqp, Store::Sqlite);
    write_samples(&sandbox);
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    sandbox.queues().declare("events", arguments).expect("the broker takes it");
    let name = format!("queue {}", sandbox.queues().name("events"));
    assert_line(&checks(&sandbox, 1), &name, "fail", "other arguments", "rabbitmqctl delete_queue");
}

#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn amqp_a_private_broker_with_an_alarm_and_a_user_without_rights_are_faults() {
    let node = PrivateRabbit::start();
    let sandbox = Sandbox::over_node(&node, Store::Sqlite);
    write_samples(&sandbox);
    sandbox.run(["run", "--once"]).ok();
    let name = format!("queue {}", sandbox.queues().name("events"));
    node.ctl(&["add_user", "guest2", "secret2"]);
    let address = node.url().split_once('@').expect("a user in the URL").1;
    let as_other = || sandbox.command(DOCTOR).env("AMQP_URL", &format!("amqp://guest2:secret2@{address}"));
    node.ctl(&["set_permissions", "guest2", "^$", ".*", ".*"]);
    assert_line(&checks_of(as_other(), 1), &name, "fail", "this user may not declare it", "rabbitmqctl set_permissions");
    node.ctl(&["set_permissions", "guest2", ".*", ".*", ".*"]);
    assert_line(&checks_of(as_other(), 0), &name, "ok", "its arguments fit", "");
    node.ctl(&["set_disk_free_limit", "100000GB"]);
    wait_until("the alarm is up", || node.ctl(&["status"]).contains("Free disk space alarm"));
    let found = checks(&sandbox, 1);
    assert_line(&found, "broker", "ok", "RabbitMQ ", "");
    assert_line(&found, "broker alarms", "fail", "it takes no messages", "rabbitmqctl status");
}
