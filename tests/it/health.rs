//! `dataloader health`: whether a pipeline of the working directory is alive and connected.

use dataloader::config::{Role, Transport};
use dataloader::heartbeat::{Connections, Heartbeat};

use crate::support::{Invocation, Outcome, Sandbox, Store};

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

    heartbeat.beat(Connections { database: true, broker: false }, &[]).expect("the temporary directory is writable");
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
