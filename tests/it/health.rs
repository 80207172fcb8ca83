//! `dataloader health`: whether a pipeline of the working directory is alive and connected.

use dataloader::config::{Role, Transport};
use dataloader::flow::Flow;
use dataloader::heartbeat::{Beat, Connections, Heartbeat};

use crate::support::{
    Invocation, Outcome, PrivatePostgres, PrivateRabbit, Sandbox, Signal, StopMode, Store, events_over_days, wait_until,
};

#[test]
fn without_a_pipeline_it_exits_1_and_says_so() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let outcome = sandbox.run(["health"]).code(1);
    assert_eq!(outcome.stdout, "unhealthy: no `dataloader run` is alive in this working directory\n");
    let json = sandbox.run(["health", "--format", "json"]).code(1).json();
    assert_eq!(json["healthy"], false);
    assert_eq!(json["reason"], "no `dataloader run` is alive in this working directory");
    assert_eq!(json["processes"], serde_json::json!([]));
    assert_eq!(std::fs::read_dir(sandbox.path()).expect("the sandbox exists").count(), 0, "asking leaves nothing behind");
}

#[test]
fn a_pipeline_is_healthy_as_long_as_it_lives_and_is_connected() {
    // The heartbeat is this process's own: its working directory is the one to ask about.
    let here = std::env::current_dir().expect("cargo starts tests in the package's directory");
    let ask = |args: &[&str]| -> Outcome { Invocation::dataloader(&here).args(args.iter().copied()).run() };
    let pid = std::process::id();

    let mut heartbeat = Heartbeat::start(Role::All, Transport::Inproc).expect("the temporary directory is writable");
    let outcome = ask(&["health"]).code(1);
    assert_eq!(outcome.stdout, format!("unhealthy: process {pid} is not connected to the database\n"));

    let connected = Connections { database: true, ..Connections::default() };
    let beat = Beat::now(Role::All, Transport::Inproc, connected, &[], Flow::default());
    heartbeat.beat(&beat).expect("the temporary directory is writable");
    let outcome = ask(&["health"]).ok();
    assert_eq!(outcome.stdout, format!("healthy: process {pid} is alive and connected\n"));
    let json = ask(&["health", "--format", "json"]).ok().json();
    assert_eq!(json["healthy"], true);
    let process = &json["processes"][0];
    assert_eq!((&process["pid"], &process["role"], &process["transport"]), (&pid.into(), &"all".into(), &"inproc".into()));
    let elsewhere = Sandbox::new(Store::Sqlite);
    elsewhere.run(["health"]).code(1);

    drop(heartbeat);
    ask(&["health"]).code(1);
}

#[test]
fn a_pipeline_is_seen_from_an_environment_without_a_runtime_directory_sqlite() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let runtime = sandbox.write("runtime/other", "").with_file_name("");
    let runtime = runtime.to_str().expect("a plain path");
    let mut pipeline = sandbox.pipeline([]).env("XDG_RUNTIME_DIR", runtime).spawn();
    pipeline.wait_for_stderr("watching ");
    wait_until("it is healthy", || sandbox.run(["health"]).code == Some(0));
    let seen = sandbox.command(["health", "--format", "json"]).env("XDG_RUNTIME_DIR", runtime).run().ok().json();
    assert_eq!(seen["processes"].as_array().map(Vec::len), Some(1), "in two places, and one process: {seen}");
    let places = std::fs::read_dir(runtime).expect("it was made").count();
    assert_eq!(places, 2, "the runtime directory is used");
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
}

/// Asserts that the pipeline, which works again, is healthy two seconds later. Measured in answers, of which there are some seventy
/// in that time: a busy machine gives them more slowly as well.
#[track_caller]
fn assert_soon_healthy(sandbox: &Sandbox) {
    let mut answers = 0;
    wait_until("it is healthy", || {
        answers += 1;
        sandbox.run(["health"]).code == Some(0)
    });
    assert!(answers <= 150, "{answers}");
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn health_follows_a_database_that_restarts_within_two_seconds() {
    let server = PrivatePostgres::start();
    let sandbox = Sandbox::on(&server);
    let pipeline = sandbox.start_pipeline();
    wait_until("it is healthy", || sandbox.run(["health"]).code == Some(0));
    server.stop(StopMode::Fast);
    sandbox.drop_in("events", "a.jsonl", events_over_days("a", 10));
    wait_until("it is unhealthy", || sandbox.run(["health"]).stdout.contains("is not connected to the database"));
    server.restart();
    sandbox.wait_until_finished("events", 1);
    assert_soon_healthy(&sandbox);
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
}

#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn health_follows_a_broker_that_restarts_within_two_seconds() {
    let broker = PrivateRabbit::start();
    let sandbox = Sandbox::new(Store::Sqlite);
    let mut pipeline = sandbox.pipeline(["--transport", "amqp"]).env("AMQP_URL", broker.url()).spawn();
    pipeline.wait_for_stderr("watching ");
    wait_until("it is healthy", || sandbox.run(["health"]).code == Some(0));
    broker.stop();
    wait_until("it is unhealthy", || sandbox.run(["health"]).stdout.contains("is not connected to the broker"));
    broker.restart();
    sandbox.drop_in("events", "a.jsonl", events_over_days("a", 10));
    wait_until("it is loaded", || sandbox.count("raw.events") == 10);
    assert_soon_healthy(&sandbox);
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
}
