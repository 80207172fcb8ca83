//! Several hosts in `DATABASE_URL` and `AMQP_URL`: a lost one costs a reconnect to the next, nothing else; and a PostgreSQL primary that
//! dies while files are loaded, in place of which its standby goes on.

use std::time::{Duration, Instant};

use crate::support::{
    Background, Page, PrivatePostgres, PrivateRabbit, Proxy, Sandbox, Signal, StopMode, Store, Transport, host_of, many_events,
    several_hosts, wait_until, write_samples,
};

/// A pipeline whose database or broker is behind two hosts, of which the first goes down while it runs.
fn loads_on_over_the_next_host(sandbox: &Sandbox, variable: &str, url: &str, target: &str) {
    let (first, second) = (Proxy::to(url), Proxy::to(url));
    let url = several_hosts(&[first.url(), second.url()]);
    let mut pipeline = sandbox.pipeline(["--http", "0"]).env(variable, &url).spawn();
    let page = Page::of(&mut pipeline);
    sandbox.drop_in("events", "a.jsonl", many_events(3_000, "ada"));
    sandbox.wait_until_finished("events", 1);
    assert_connected(sandbox, page, target, host_of(first.url()));
    first.go_down();
    sandbox.drop_in("events", "b.jsonl", many_events(3_000, "ben"));
    sandbox.wait_until_finished("events", 2);
    assert_connected(sandbox, page, target, host_of(second.url()));
    let said = format!("at {}, no longer at {}", host_of(second.url()), host_of(first.url()));
    assert!(pipeline.stderr().contains(&said), "{}", pipeline.stderr());
    first.come_up();
    second.go_down();
    sandbox.drop_in("events", "c.jsonl", many_events(10, "cy"));
    sandbox.wait_until_finished("events", 3);
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
    assert_eq!(sandbox.count("raw.events"), 6_010);
    sandbox.assert_settled();
}

/// `status`, `health` and the metrics name the host.
fn assert_connected(sandbox: &Sandbox, page: Page, target: &str, host: &str) {
    let metric = format!("dataloader_connected{{target=\"{target}\",host=\"{host}\"}}");
    wait_until("the metrics name the host", || page.metric(&metric) == Some(1.0));
    let key = format!("{target}_host");
    let status = || sandbox.run(["status", "--format", "json"]).ok().json()["pipeline"][0]["connected"][&key].clone();
    wait_until("status names the host", || status() == host);
    assert!(sandbox.run(["status"]).ok().stdout.contains(&format!("connected to the {target} at {host}")));
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_private_host_of_the_database_that_is_lost_costs_a_reconnect_to_the_next() {
    let sandbox = Sandbox::new(Store::Postgres);
    loads_on_over_the_next_host(&sandbox, "DATABASE_URL", &sandbox.database_url(), "database");
}

#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn amqp_a_private_host_of_the_broker_that_is_lost_costs_a_reconnect_to_the_next() {
    let sandbox = Sandbox::over(Transport::Amqp, Store::Sqlite);
    let url = sandbox.queues().url().to_owned();
    loads_on_over_the_next_host(&sandbox, "AMQP_URL", &url, "broker");
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_private_host_that_says_nothing_is_passed_over_and_reasons_name_their_hosts() {
    let sandbox = Sandbox::new(Store::Postgres);
    write_samples(&sandbox);
    let (first, second) = (Proxy::to(&sandbox.database_url()), Proxy::to(&sandbox.database_url()));
    let url = several_hosts(&[first.url(), second.url()]);
    let run = |command: &str| sandbox.command([command]).env("DATABASE_URL", &url).run();
    first.hold();
    let loaded = run("load").ok();
    assert!(loaded.stderr.contains(&format!("connected to the database at {}", host_of(second.url()))), "{}", loaded.stderr);
    first.go_down();
    second.go_down();
    let began = Instant::now();
    let refused = run("load").code(4);
    assert!(began.elapsed() < Duration::from_secs(20));
    for proxy in [&first, &second] {
        assert!(refused.stderr.contains(&format!("{}: ", host_of(proxy.url()))), "{}", refused.stderr);
    }
}

#[test]
fn a_list_of_hosts_with_a_mistake_shows_no_password() {
    let sandbox = Sandbox::new(Store::Sqlite);
    for (variable, url) in [
        ("DATABASE_URL", "postgres://u:s3cret@db1:5432,:5433/db"),
        ("DATABASE_URL", "postgres://u:s3cret@db1:port,db2/db"),
        ("DATABASE_URL", "postgres://u:s3cret@db1,u:s3cret@db2:x/db"),
        ("AMQP_URL", "amqp://u:s3cret@mq1,,mq2/%2f"),
        ("AMQP_URL", "amqp://u:s3cret@mq1,mq2:port/%2f"),
    ] {
        let command = sandbox.command(["run", "--once", "--transport", "amqp"]).env(variable, url);
        let refused = command.run().code(2);
        assert!(!refused.stderr.contains("s3cret") && refused.stderr.contains("u:***@"), "{}", refused.stderr);
    }
}

/// Files of so many events each.
const EVENTS: usize = 500;

/// Drops the files of these numbers, faster than they are loaded.
fn drop_files(sandbox: &Sandbox, numbers: std::ops::Range<usize>) {
    for number in numbers {
        sandbox.drop_in("events", format!("{number}.jsonl"), many_events(EVENTS, &format!("user-{number}")));
    }
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_private_standby_goes_on_for_a_primary_that_dies_and_nothing_is_lost_or_doubled() {
    let primary = PrivatePostgres::start();
    let Some(standby) = primary.with_standby() else { return };
    let mut sandbox = Sandbox::on(&primary);
    let before = sandbox.database_url();
    sandbox.run(["migrate"]).ok();
    sandbox.move_to(&standby);
    let (after, url) = (sandbox.database_url(), several_hosts(&[&before, &sandbox.database_url()]));

    let pipeline = sandbox.pipeline([]).env("DATABASE_URL", &url).spawn();
    let said = format!("at {}, no longer at {}", host_of(&after), host_of(&before));
    goes_on_after(&sandbox, pipeline, &said, || {
        primary.stop(StopMode::Immediate);
        standby.promote();
    });
}

/// Files are dropped before, while and after the connected host is lost. The pipeline says what it is connected to instead, and
/// loads all of them once.
fn goes_on_after(sandbox: &Sandbox, mut pipeline: Background, said: &str, lose: impl FnOnce()) {
    const FILES: usize = 80;
    pipeline.wait_for_stderr("watching ");
    drop_files(sandbox, 0..20);
    wait_until("some of the files are loaded", || sandbox.finished("events") >= 5);
    drop_files(sandbox, 20..60);
    lose();
    let lost = Instant::now();
    let finished = sandbox.finished("events");
    wait_until("it goes on", || sandbox.finished("events") > finished);
    eprintln!("the first file after it was loaded after {:.1?}", lost.elapsed());
    drop_files(sandbox, 60..FILES);
    sandbox.wait_until_finished("events", FILES);
    assert!(pipeline.stderr().contains(said), "{}", pipeline.stderr());
    end(pipeline);
    assert_eq!(sandbox.count("raw.events"), (FILES * EVENTS) as u64);
    sandbox.assert_settled();
}

fn end(pipeline: Background) {
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_private_standby_answers_what_only_reads_and_is_passed_over_by_what_writes() {
    let primary = PrivatePostgres::start();
    let Some(standby) = primary.with_standby() else { return };
    let mut sandbox = Sandbox::on(&primary);
    let on_primary = sandbox.database_url();
    write_samples(&sandbox);
    sandbox.write_events("bad.json", "{}");
    sandbox.move_to(&standby);
    let on_standby = sandbox.database_url();
    let url = several_hosts(&[&on_standby, &on_primary]);
    let run = |command: &str| sandbox.command(command.split(' ')).env("DATABASE_URL", &url).run();
    let loaded = run("load").code(3);
    assert!(loaded.stderr.contains(&format!("connected to the database at {}", host_of(&on_primary))), "{}", loaded.stderr);
    // Commits wait until the standby has them, not until it shows them.
    wait_until("the standby shows the load", || sandbox.try_query("SELECT 1 FROM {raw.rejects}").is_ok_and(|rows| rows.len() == 1));
    let status = run("status").ok();
    assert!(status.stdout.contains(&format!("read from the database at {}", host_of(&on_standby))), "{}", status.stdout);
    for command in ["report", "verify", "rejects list", "rejects export"] {
        run(command).ok();
    }
    run("load --dry-run").code(3);
    let mut page = sandbox.command(["serve", "--http", "0"]).env("DATABASE_URL", &url).spawn();
    let served = Page::of(&mut page);
    assert_eq!(served.get("/api/report").status, 200);
    let metric = format!("dataloader_connected{{target=\"database\",host=\"{}\"}}", host_of(&on_standby));
    assert_eq!(served.metric(&metric), Some(1.0));
    end(page);
}

/// The node that dies is the one that is connected. Each dataset has a queue for each node.
#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn amqp_a_private_cluster_loses_a_node_and_nothing_is_lost_or_doubled() {
    let first = PrivateRabbit::start();
    let (Some(second), Some(third)) = (first.with_another(), first.with_another()) else { return };
    let sandbox = Sandbox::over_node(&first, Store::Sqlite);
    sandbox.write("dataloader.toml", format!("{}\n[amqp]\nqueues = 3\n", include_str!("../../dataloader.toml")));
    let url = several_hosts(&[second.url(), first.url(), third.url()]);
    let pipeline = sandbox.pipeline([]).env("AMQP_URL", &url).spawn();
    goes_on_after(&sandbox, pipeline, &format!("no longer at {}", host_of(second.url())), || second.kill());
}
