//! The support itself: what every other test takes for granted.

use crate::support::{
    Background, Cell, Invocation, Outcome, PrivatePostgres, Sandbox, Signal, StopMode, Store, on_both_stores, wait_until,
};

on_both_stores!(
    values_read_alike_on_both_stores,
    a_table_is_named_by_schema_and_name,
    a_sandbox_shares_nothing,
    files_land_below_the_working_directory,
);

fn values_read_alike_on_both_stores(sandbox: &Sandbox) {
    let (timestamp, timestamptz, boolean, bytes) = match sandbox.store() {
        Store::Sqlite => ("'2020-12-09 10:00:00.120000'", "'2020-12-09 08:00:00.000000'", "1", "x'00ff'"),
        Store::Postgres => ("timestamp '2020-12-09 10:00:00.12'", "timestamptz '2020-12-09 10:00+02'", "true", "'\\x00ff'::bytea"),
    };
    let sql = format!(
        "SELECT 'ß', CAST(NULL AS text), '', 42, CAST(0.1 AS double precision), CAST(2 AS double precision), \
         {timestamp}, {timestamptz}, {boolean}, {bytes}"
    );
    sandbox.execute("SELECT 1"); // A query does not make the SQLite file.
    let expected = [
        Some("ß"),
        None,
        Some(""),
        Some("42"),
        Some("0.1"),
        Some("2"),
        Some("2020-12-09 10:00:00.120000"),
        Some("2020-12-09 08:00:00.000000"),
        Some("1"),
        Some("\\x00ff"),
    ];
    let row: Vec<Cell> = expected.map(|text| text.map(str::to_owned)).to_vec();
    assert_eq!(sandbox.query(&sql), [row]);
}

fn a_table_is_named_by_schema_and_name(sandbox: &Sandbox) {
    if sandbox.store() == Store::Postgres {
        sandbox.execute("CREATE SCHEMA raw");
    }
    sandbox.execute(
        "CREATE TABLE {raw.events} (id text, day date); INSERT INTO {raw.events} VALUES ('{a}', '2020-12-09'), ('b', null)",
    );
    assert_eq!(sandbox.lines("SELECT id, day FROM {raw.events} ORDER BY id DESC"), ["{a}|2020-12-09", "b|NULL"]);
    assert_eq!(sandbox.count("raw.events"), 2);
}

fn a_sandbox_shares_nothing(sandbox: &Sandbox) {
    let other = Sandbox::new(sandbox.store());
    sandbox.execute("CREATE TABLE seen (a bigint)");
    assert!(other.try_query("SELECT a FROM seen").is_err());
    assert_ne!(sandbox.path(), other.path());
    assert_ne!(sandbox.database_url(), other.database_url());
}

fn files_land_below_the_working_directory(sandbox: &Sandbox) {
    let path = sandbox.write_events("x.json", b"[]");
    assert_eq!(path, sandbox.file("raw_data/events/x.json"));
    assert_eq!(std::fs::read(path).expect("just written"), b"[]");
}

#[test]
fn a_condition_that_comes_true_ends_the_wait() {
    let mut asked = 0;
    wait_until("the third question", || {
        asked += 1;
        asked == 3
    });
    assert_eq!(asked, 3);
}

fn shell(sandbox: &Sandbox, script: &str) -> Invocation {
    Invocation::new("sh", sandbox.path()).args(["-c", script])
}

#[test]
fn a_run_reports_how_it_ended() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let outcome = shell(&sandbox, r#"cat; echo "{\"who\": \"$WHO\"}"; echo oops >&2; exit 3"#).env("WHO", "me").stdin(" ").run();
    assert_eq!(outcome.json()["who"], "me");
    let expected = Outcome { code: Some(3), stdout: " {\"who\": \"me\"}\n".to_owned(), stderr: "oops\n".to_owned() };
    assert_eq!(outcome.code(3), expected);
}

#[test]
fn nothing_of_the_callers_environment_reaches_the_program() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let names = shell(&sandbox, "env | cut -d= -f1 | grep -vxE 'PATH|HOME|TMPDIR|PWD|OLDPWD|SHLVL|_'; pwd").run().ok();
    assert_eq!(names.stdout.trim(), sandbox.path().to_str().expect("a temporary directory has a plain name"));
}

#[test]
fn a_background_program_is_heard_signalled_and_killed_when_dropped() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let waiting = "trap 'echo bye; exit 7' TERM; echo ready >&2; while :; do sleep 0.01; done";
    let mut background: Background = shell(&sandbox, waiting).spawn();
    background.wait_for_stderr("ready");
    assert!(background.is_running());
    background.signal(Signal::Terminate);
    assert_eq!(background.wait().code(7).stdout, "bye\n");

    let mut background = shell(&sandbox, waiting).spawn();
    background.wait_for_stderr("ready");
    let id = background.id().to_string();
    drop(background);
    let probe = Invocation::new("kill", sandbox.path()).args(["-0", &id]).run();
    assert_ne!(probe.code, Some(0), "process {id} outlived its guard");
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_private_server_keeps_address_and_data_over_a_crash() {
    let server = PrivatePostgres::start();
    let sandbox = Sandbox::on(&server);
    sandbox.execute("CREATE TABLE kept AS SELECT 1 AS a");
    for mode in [StopMode::Immediate, StopMode::Fast] {
        server.stop(mode);
        assert!(sandbox.try_query("SELECT a FROM kept").is_err(), "nothing answers while it is stopped");
        server.restart();
        assert_eq!(sandbox.lines("SELECT a FROM kept"), ["1"]);
    }
}
