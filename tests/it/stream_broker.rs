//! What RabbitMQ can bring about: messages too large for the memory, messages that end the process, a broker that takes nothing.

use std::fs;
use std::time::{Duration, Instant};

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

use crate::support::{
    Background, PrivateRabbit, Queues, Sandbox, Signal, Store, Transport, event, many_events, over_amqp, wait_until,
};

over_amqp!(a_consumer_holds_no_more_than_its_budget_whatever_comes, killed_consumers_make_no_dead_letters);

fn start_consumer(sandbox: &Sandbox) -> Background {
    let consumer = sandbox.pipeline(["--role", "consumer"]).spawn();
    wait_until("it consumes", || sandbox.queues().consumers("events") > 0);
    consumer
}

/// Makes the queues; nobody consumes them.
fn declare(sandbox: &Sandbox) {
    sandbox.pipeline(["--role", "consumer", "--once"]).run().ok();
}

fn send(queues: &Queues, bodies: &[String]) {
    queues.send("events", bodies.iter().map(|body| (BasicProperties::default(), body.as_bytes())));
}

/// What cannot be decoded.
fn send_poison(queues: &Queues) {
    let mut headers = FieldTable::default();
    headers.insert("kind".into(), AMQPValue::LongString("chunks".into()));
    queues.send("events", [(BasicProperties::default().with_headers(headers), &b"{}"[..])]);
}

/// Large in a column that is not modelled.
fn large_event(id: &str, bytes: usize) -> String {
    let email = "x".repeat(bytes);
    format!(r#"{{"id":"{id}","username":"u","user_email":"{email}","received_at":"2024-05-01 10:00:00"}}"#)
}

fn rows(sandbox: &Sandbox) -> usize {
    let count = sandbox.try_query(&format!("SELECT count(*) FROM {}", sandbox.table("raw.events")));
    count.ok().and_then(|rows| rows[0][0].as_ref()?.parse().ok()).unwrap_or(0)
}

/// What a consumer may take: itself with its buffers, the budget of 32 MiB, what is being written, and a message.
const MAX_KILOBYTES: u64 = 250 << 10;

fn a_consumer_holds_no_more_than_its_budget_whatever_comes(sandbox: &Sandbox) {
    declare(sandbox);
    let queues = sandbox.queues();
    let small: Vec<String> = (0..2_000).map(|id| event(&format!("small-{id}"), "u", "2024-05-01 10:00:00")).collect();
    send(queues, &small);
    let large: Vec<String> = (0..40).map(|id| large_event(&format!("large-{id}"), 7 << 20)).collect();
    send(queues, &large);
    let medium: Vec<String> = (0..80).map(|id| large_event(&format!("medium-{id}"), 1 << 20)).collect();
    send(queues, &medium);
    let consumer = start_consumer(sandbox);
    for loaded in [2_000, 2_020, 2_040, 2_080, 2_120] {
        wait_until(&format!("{loaded} are loaded"), || rows(sandbox) >= loaded);
    }
    let peak = Sandbox::peak_memory(&consumer).expect("it runs");
    assert!(peak < MAX_KILOBYTES, "{peak} kB");
    wait_until("all is acknowledged", || queues.waiting("events") == 0);
    consumer.signal(Signal::Terminate);
    consumer.wait().ok();
}

fn killed_consumers_make_no_dead_letters(sandbox: &Sandbox) {
    declare(sandbox);
    let bodies: Vec<String> = (0..600).map(|id| event(&format!("e-{id}"), "u", "2024-05-01 10:00:00")).collect();
    let queues = sandbox.queues();
    let with_id = |id: usize| BasicProperties::default().with_message_id(format!("m-{id}").into());
    queues.send("events", bodies.iter().enumerate().map(|(id, body)| (with_id(id), body.as_bytes())));
    for kill in 1..=3 {
        let consumer = start_consumer(sandbox);
        wait_until("it has loaded some", || rows(sandbox) >= kill * 50);
        consumer.signal(Signal::Kill);
        consumer.wait();
    }
    let consumers = [start_consumer(sandbox), start_consumer(sandbox)];
    for loaded in [200, 400, bodies.len()] {
        wait_until(&format!("{loaded} are loaded"), || rows(sandbox) >= loaded);
    }
    for consumer in consumers {
        consumer.signal(Signal::Terminate);
        consumer.wait().ok();
    }
    assert_eq!((queues.waiting("events"), queues.waiting("dead")), (0, 0));
    assert_eq!(sandbox.lines(&format!("SELECT count(*) FROM {}", sandbox.table("dataloader.attempts"))), ["0"]);
    sandbox.assert_settled();
}

#[test]
#[ignore = "needs PostgreSQL and RabbitMQ: ./run.sh test"]
fn a_message_during_which_the_process_is_killed_holds_up_no_other_and_is_set_aside() {
    let sandbox = Sandbox::over(Transport::Amqp, Store::Postgres);
    declare(&sandbox);
    // Whoever writes it gets no further.
    sandbox.execute(
        "create function raw.stop() returns trigger language plpgsql as $$ begin perform pg_sleep(3600); return new; end $$; \
         create trigger stop before insert on raw.events for each row when (new.id = 'killer') execute function raw.stop()",
    );
    let queues = sandbox.queues();
    let id = |id: &str| event(id, "u", "2024-05-01 10:00:00");
    let mut bodies: Vec<String> = (0..25).map(|n| id(&format!("before-{n}"))).collect();
    bodies.push(id("killer"));
    bodies.extend((0..25).map(|n| id(&format!("after-{n}"))));
    send(queues, &bodies);

    let sleeping = "select pid from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'";
    let kill = || {
        let consumer = start_consumer(&sandbox);
        wait_until("it works on the message", || !sandbox.lines(sleeping).is_empty());
        consumer.signal(Signal::Kill);
        consumer.wait();
        sandbox.execute(&format!("select pg_terminate_backend(pid) from ({sleeping}) s"));
        wait_until("the transaction is gone", || sandbox.lines(sleeping).is_empty());
    };
    // Together with others, then once alone, perhaps before them, then behind them.
    (0..3).for_each(|_| kill());
    assert_eq!(rows(&sandbox), 50, "the others are loaded");
    let attempts = || sandbox.lines("select attempts from dataloader.attempts");
    assert_eq!(attempts(), ["2"], "the first time it was not alone");
    // As if that had gone on.
    sandbox.execute("update dataloader.attempts set attempts = 19");
    kill();
    assert_eq!((attempts(), queues.waiting("dead")), (vec!["20".to_owned()], 0));

    let consumer = start_consumer(&sandbox);
    wait_until("it is set aside", || queues.waiting("dead") == 1);
    let letter = &queues.peek("dead")[0];
    assert_eq!((letter.header("reason").as_deref(), &letter.body), (Some("crash"), &bodies[25].clone().into_bytes()));
    wait_until("its count is gone", || attempts().is_empty());
    consumer.signal(Signal::Terminate);
    consumer.wait().ok();
    assert_eq!((queues.waiting("events"), rows(&sandbox)), (0, 50));
}

/// A node of its own that takes no messages.
fn node_with_an_alarm(sandbox: impl FnOnce(&PrivateRabbit) -> Sandbox) -> (PrivateRabbit, Sandbox) {
    let node = PrivateRabbit::start();
    let sandbox = sandbox(&node);
    declare(&sandbox);
    send_poison(sandbox.queues());
    node.ctl(&["set_disk_free_limit", "100000GB"]);
    wait_until("the alarm is up", || node.ctl(&["status"]).contains("Free disk space alarm"));
    (node, sandbox)
}

/// Ends sooner than by default when nothing moves.
fn on_sqlite(node: &PrivateRabbit) -> Sandbox {
    let sandbox = Sandbox::over_node(node, Store::Sqlite);
    let settings = "[stream]\ndrain_timeout_ms = 2_000\n";
    sandbox.write("dataloader.toml", format!("{}{settings}", include_str!("../../dataloader.toml")));
    sandbox
}

#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn a_consumer_that_cannot_set_a_message_aside_says_so_ends_when_asked_and_goes_on_by_itself() {
    let (node, sandbox) = node_with_an_alarm(on_sqlite);
    let mut consumer = start_consumer(&sandbox);
    consumer.wait_for_stderr("takes no messages");
    wait_until("health says so", || {
        let health = sandbox.run(["health"]);
        health.code == Some(1) && health.stdout.contains("takes no messages")
    });
    consumer.signal(Signal::Terminate);
    let ended = consumer.wait().ok();
    assert!(ended.stderr.trim_end().ends_with("left for the next start: 1 message"), "{}", ended.stderr);
    assert_eq!((sandbox.queues().waiting("events"), sandbox.queues().waiting("dead")), (1, 0), "it is still in its queue");

    let once = sandbox.pipeline(["--role", "consumer", "--once"]).run().code(4);
    assert!(once.stderr.contains("has taken no messages") && once.stderr.contains("rabbitmqctl status"), "{}", once.stderr);

    let consumer = start_consumer(&sandbox);
    wait_until("it is stuck", || sandbox.run(["health"]).code == Some(1));
    node.ctl(&["set_disk_free_limit", "50MB"]);
    // RabbitMQ now also reads what the ended processes had sent: a dead letter comes at least once.
    wait_until("it is set aside", || sandbox.queues().waiting("dead") >= 1);
    wait_until("its queue is empty", || sandbox.queues().waiting("events") == 0);
    wait_until("health says so", || sandbox.run(["health"]).code == Some(0));
    consumer.signal(Signal::Terminate);
    consumer.wait().ok();
}

#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn commands_do_not_wait_for_a_broker_that_takes_no_messages() {
    let node = PrivateRabbit::start();
    let sandbox = on_sqlite(&node);
    declare(&sandbox);
    send_poison(sandbox.queues());
    sandbox.pipeline(["--role", "consumer", "--once"]).run().ok();
    assert_eq!(sandbox.queues().waiting("dead"), 1);
    node.ctl(&["set_disk_free_limit", "100000GB"]);
    wait_until("the alarm is up", || node.ctl(&["status"]).contains("Free disk space alarm"));
    // Looking needs no room.
    let list = sandbox.run(["rejects", "list"]).ok();
    assert!(list.stdout.contains("unknown_kind"), "{}", list.stdout);
    let started = Instant::now();
    let replay = sandbox.run(["rejects", "replay"]).code(4);
    assert!(started.elapsed() < Duration::from_secs(40), "{:?}", started.elapsed());
    assert!(replay.stderr.contains("has taken no messages") && replay.stderr.contains("rabbitmqctl status"), "{}", replay.stderr);
    node.ctl(&["set_disk_free_limit", "50MB"]);
    wait_until("the letter is there again", || sandbox.queues().waiting("dead") == 1);
    sandbox.run(["rejects", "replay"]).ok();
}

#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn a_producer_that_is_asked_to_end_while_the_broker_takes_no_messages_leaves_its_files_claimed() {
    let (node, sandbox) = node_with_an_alarm(on_sqlite);
    sandbox.drop_in("events", "a.json", many_events(3_000, "u"));
    let mut producer = sandbox.pipeline(["--role", "producer"]).spawn();
    producer.wait_for_stderr("takes no messages");
    wait_until("health says so", || {
        let health = sandbox.run(["health"]);
        health.code == Some(1) && health.stdout.contains("takes no messages")
    });
    producer.signal(Signal::Terminate);
    let ended = producer.wait().ok();
    assert!(ended.stderr.trim_end().ends_with("left for the next start: 1 file"), "{}", ended.stderr);
    let claimed = || fs::read_dir(sandbox.file("inbox/events/.loading")).map_or(0, |entries| entries.count());
    assert!(claimed() > 0, "the file is still claimed");

    sandbox.pipeline(["--role", "producer", "--once"]).run().code(4);
    assert!(claimed() > 0);
    node.ctl(&["set_disk_free_limit", "50MB"]);
    sandbox.pipeline(["--role", "producer", "--once"]).run().ok();
    assert_eq!(claimed(), 0);
}
