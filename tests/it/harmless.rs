//! What data, names and errors contain reaches a terminal as text: no control character is sent, and no password is shown.

use crate::support::{Outcome, PrivatePostgres, Sandbox, Store, Transport, wait_until};

/// `ESC [ 2 J`, BEL, C1, DEL and a mark that turns the direction of the text.
const EVIL: &str = "a\u{1b}[2J\u{7}\u{9b}31m\u{7f}\u{202e}b";

/// Nothing that a terminal obeys, other than line breaks and tabs.
#[track_caller]
fn assert_harmless(what: &str, outcome: &Outcome) {
    for text in [&outcome.stdout, &outcome.stderr] {
        let is_obeyed = |c: char| (c.is_control() && c != '\n' && c != '\t') || c == '\u{202e}';
        assert!(!text.contains(is_obeyed), "{what}: {text:?}");
    }
}

/// An event whose texts are all `EVIL`; rejected where it has no time.
fn evil_event(has_time: bool) -> String {
    let mut event =
        serde_json::json!({ "id": EVIL, "event_type": EVIL, "username": EVIL, "organization_name": EVIL, "user_type": EVIL });
    event["received_at"] = if has_time { "2020-12-05T01:02:03".into() } else { EVIL.into() };
    event.to_string() + "\n"
}

#[test]
fn control_characters_of_data_and_names_are_shown_sqlite() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let name = format!("{EVIL}.jsonl");
    sandbox.write_events(&name, evil_event(true) + &evil_event(false));
    sandbox.write_orgs("o.jsonl", r#"{"organization_key":"k"}"#);
    let loaded = sandbox.run(["load"]).code(3);
    assert_harmless("load", &loaded);
    for command in ["report", "status", "rejects list", "load --date 2020-12-05"] {
        for format in ["text", "json"] {
            let outcome = sandbox.run(command.split(' ').chain(["--format", format]));
            assert_harmless(command, &outcome);
            let shown = if format == "json" { "\\u009b31m\\u007f\\u202eb" } else { "\\x9b31m\\x7f\\u202eb" };
            assert!(
                !matches!(command, "report" | "rejects list") || outcome.stdout.contains(shown),
                "{command}: {}",
                outcome.stdout
            );
        }
    }
    let report = sandbox.run(["report", "--format", "json"]).ok().json();
    let rows = &report["datasets"][0]["tables"][1]["rows"];
    assert_eq!(rows[0]["organization_name"], EVIL, "in JSON the value is the same: {report}");
    assert!(sandbox.run(["rejects", "export"]).ok().stdout.contains('\u{9b}'), "the bytes as they are");
}

#[test]
fn control_characters_of_names_in_logs_and_errors_are_shown_sqlite() {
    let sandbox = Sandbox::new(Store::Sqlite);
    for log_format in ["text", "json"] {
        sandbox.write(&format!("inbox/events/{EVIL}-{log_format}.jsonl"), "[{\"id\": 1");
        let run = sandbox.run(["run", "--once", "--log-format", log_format]).code(3);
        assert!(run.stderr.contains("31m"), "{}", run.stderr);
        assert_harmless(log_format, &run);
    }
    let failed = std::fs::read_dir(sandbox.file("inbox/events/failed")).expect("it was made");
    let reports: Vec<_> = failed
        .map(|entry| entry.expect("it can be listed").path())
        .filter(|path| path.to_string_lossy().ends_with(".error.json"))
        .collect();
    assert_eq!(reports.len(), 2);
    let report = std::fs::read_to_string(&reports[0]).expect("it is text");
    assert!(report.contains("\\u009b") && !report.contains('\u{9b}'), "{report}");
    for args in [
        &["run", "--queue-prefix", EVIL][..],
        &["run", "--queue-prefix", EVIL, "--format", "json"],
        &["load", "--dataset", EVIL],
        &["load", "--dataset", "events", EVIL],
        &["drop", EVIL],
        &[EVIL],
        &["--config", EVIL, "status"],
    ] {
        let outcome = sandbox.run(args.iter().copied());
        assert!(matches!(outcome.code, Some(1 | 2)), "{args:?}: {outcome:?}");
        assert_harmless("an error", &outcome);
    }
}

#[test]
fn no_spelling_of_a_password_is_shown() {
    let sandbox = Sandbox::new(Store::Sqlite);
    for url in [
        "host=127.0.0.1 password=s3cret user=u",
        "host=127.0.0.1 password='s3cret x' user=u",
        "postgres://u@127.0.0.1:1/db?passwd=s3cret",
        "postgres://u@127.0.0.1:1/db?sslpassword=s3cret",
        "postgres://u@127.0.0.1:port/db?pwd=s3cret",
        "mysql://u:a s3cret@h/db",
    ] {
        for format in ["text", "json"] {
            for log in ["text", "json"] {
                // Nobody listens on the port.
                let args = ["load", "--database", url, "--format", format, "--log-format", log];
                let mut run = sandbox.command(args).env("RUST_LOG", "trace").spawn();
                wait_until("it ends or has tried", || !run.is_running() || run.stderr().contains("trying again"));
                let all = run.stdout() + &run.stderr();
                assert!(!all.is_empty() && !all.contains("s3cret"), "{url}: {all}");
            }
        }
    }
    let unknown = sandbox.run(["lod", "password=s3cret"]).code(2);
    assert!(!unknown.stderr.contains("s3cret"), "{}", unknown.stderr);
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_private_servers_url_with_ignored_parameters_is_not_shown() {
    let server = PrivatePostgres::start();
    let sandbox = Sandbox::on(&server);
    let url = sandbox.database_url() + "?sslpassword=s3cret&passwd=s3cret";
    let outcome = sandbox.command(["status"]).env("DATABASE_URL", &url).run().ok();
    assert!(outcome.stderr.contains("`sslpassword` is ignored") && outcome.stderr.contains("`passwd` is ignored"), "{outcome:?}");
    assert!(!(outcome.stdout + &outcome.stderr).contains("s3cret"));
}

#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn at_no_level_does_a_log_contain_the_password_of_amqp() {
    let sandbox = Sandbox::over(Transport::Amqp, Store::Sqlite);
    let url = sandbox.queues().url().to_owned();
    let login = url.split_once("://").and_then(|(_, rest)| rest.split_once('@')).expect("the URL has a login").0;
    let password = login.split_once(':').expect("the login has a password").1;
    let bytes = password.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(", ");
    for level in ["trace", "lapin=trace", "lapin=debug,amq_protocol=trace"] {
        let outcome = sandbox.command(["run", "--once"]).env("RUST_LOG", level).run().ok();
        assert!(!outcome.stderr.contains(&bytes), "{level}");
        assert!(!outcome.stderr.contains("PLAIN"), "{level}");
    }
}
