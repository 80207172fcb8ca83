//! Producers and consumers as processes apart: who needs what, how the work is shared, and exactly once whoever ends in between.

use lapin::BasicProperties;

use crate::support::{
    Background, PrivateRabbit, Proxy, Sandbox, Signal, Store, Transport, events_over_days, many_events, over_amqp, wait_until,
};

over_amqp!(
    a_producer_needs_no_database_and_a_consumer_no_inbox,
    producer_and_consumer_are_processes_apart,
    two_consumers_share_the_queues,
    a_consumer_killed_between_commit_and_acknowledge_loads_each_record_once,
    a_producer_killed_before_the_broker_confirms_loads_each_record_once,
    a_consumer_that_is_told_to_end_leaves_the_rest_in_the_queue,
    connections_that_end_under_load_lose_and_double_nothing,
);

const PRODUCER: [&str; 3] = ["--role", "producer", "--once"];
const CONSUMER: [&str; 3] = ["--role", "consumer", "--once"];

/// Starts a consumer; it takes messages when this returns.
fn start_consumer(sandbox: &Sandbox, amqp_url: &str) -> Background {
    let before = sandbox.queues().consumers("orgs");
    let mut consumer = sandbox.pipeline(["--role", "consumer"]).env("AMQP_URL", amqp_url).spawn();
    wait_until("the consumer takes messages", || {
        assert!(consumer.is_running(), "it ended:\n{}", consumer.stderr());
        // The last queue of which it takes any.
        sandbox.queues().consumers("orgs") > before
    });
    consumer
}

/// Drops files with so many records each; returns what [`Sandbox::assert_each_loaded_once`] wants to know.
fn drop_files(sandbox: &Sandbox, sizes: impl IntoIterator<Item = usize>) -> Vec<(String, String, usize)> {
    let drop = |(number, records): (usize, usize)| {
        let (name, contents) = (format!("{number}.jsonl"), events_over_days(&number.to_string(), records));
        sandbox.drop_in("events", &name, &contents);
        (name, contents, records)
    };
    sizes.into_iter().enumerate().map(drop).collect()
}

fn a_producer_needs_no_database_and_a_consumer_no_inbox(sandbox: &Sandbox) {
    let dropped = drop_files(sandbox, [2_500, 3]);
    let flags = ["--transport", "amqp", "--queue-prefix", sandbox.queues().prefix(), "--format", "json"];
    let summary = sandbox
        .pipeline(PRODUCER.into_iter().chain(flags))
        .env_remove("DATALOADER_TRANSPORT")
        .env_remove("DATALOADER_QUEUE_PREFIX")
        .env("DATABASE_URL", "postgres://nobody:none@127.0.0.1:1/none")
        .run()
        .ok()
        .json();
    assert_eq!((&summary["datasets"][0]["files"], &summary["datasets"][0]["read"]), (&2.into(), &2_503.into()));
    assert!(!sandbox.file("dataloader.db").exists(), "a producer makes no database");
    assert_eq!(sandbox.dropped_names_in("events/processed"), ["0.jsonl", "1.jsonl"], "the broker has all of it");

    // Where no inbox can be.
    sandbox.write("a_file", "");
    sandbox.pipeline(CONSUMER).env("DATALOADER_INBOX", "a_file/inbox").run().ok();
    sandbox.assert_each_loaded_once(&dropped);
    sandbox.assert_settled();
}

fn producer_and_consumer_are_processes_apart(sandbox: &Sandbox) {
    let mut dropped = drop_files(sandbox, [1_500, 5, 1]);
    let mut producer = sandbox.pipeline(["--role", "producer"]).spawn();
    producer.wait_for_stderr("watching ");
    let consumer = start_consumer(sandbox, sandbox.queues().url());
    let (name, contents) = ("later.jsonl".to_owned(), events_over_days("later", 20));
    sandbox.drop_in("events", &name, &contents);
    dropped.push((name, contents, 20));
    sandbox.wait_until_finished("events", 4);
    wait_until("both are healthy", || sandbox.run(["health"]).code == Some(0));
    let health = sandbox.run(["health", "--format", "json"]).ok().json();
    let mut roles: Vec<&str> = health["processes"].as_array().expect("a list").iter().filter_map(|p| p["role"].as_str()).collect();
    roles.sort_unstable();
    assert_eq!(roles, ["consumer", "producer"]);
    for process in [producer, consumer] {
        process.signal(Signal::Terminate);
        process.wait().ok();
    }
    sandbox.assert_each_loaded_once(&dropped);
    sandbox.assert_settled();
}

fn two_consumers_share_the_queues(sandbox: &Sandbox) {
    let url = sandbox.queues().url();
    let consumers = [start_consumer(sandbox, url), start_consumer(sandbox, url)];
    // Neither can load before both have some.
    let lock = sandbox.hold_writers();
    let dropped = drop_files(sandbox, (0..40).map(|number| if number % 10 == 0 { 3_000 } else { 10 }));
    sandbox.pipeline(PRODUCER).run().ok();
    drop(lock);
    sandbox.wait_until_finished("events", dropped.len());
    let mut loaded = 0;
    for consumer in consumers {
        consumer.signal(Signal::Terminate);
        let log = consumer.wait().ok().stderr;
        let files = log.matches(" loaded ").count();
        assert!(files > 0, "one of them had nothing to do:\n{log}");
        loaded += files;
    }
    assert_eq!(loaded, dropped.len(), "one of them closes each load");
    sandbox.assert_each_loaded_once(&dropped);
    sandbox.assert_settled();
}

fn a_consumer_killed_between_commit_and_acknowledge_loads_each_record_once(sandbox: &Sandbox) {
    const MESSAGE: &str = "{\"id\":\"m\",\"username\":\"ada\",\"received_at\":\"2024-05-01 10:00:00\"}";
    let proxy = Proxy::to(sandbox.queues().url());
    let consumer = start_consumer(sandbox, proxy.url());
    // Messages come; what it says of them does not arrive.
    proxy.hold_requests();
    let dropped = drop_files(sandbox, [2_500, 3]);
    sandbox.pipeline(PRODUCER).run().ok();
    let shop = BasicProperties::default().with_app_id("shop".into()).with_message_id("1".into());
    sandbox.queues().send("events", [(shop, MESSAGE.as_bytes())]);
    wait_until("all is committed", || {
        sandbox.try_query("SELECT 1 FROM {raw.loads} WHERE status = 'loaded' OR rows_loaded = 1").is_ok_and(|rows| rows.len() == 3)
    });
    assert_eq!(sandbox.queues().waiting("events"), 0, "all is on its way");
    consumer.signal(Signal::Kill);
    consumer.wait();
    proxy.cut();
    // Three chunks, one chunk, the ends of two files, a message of another program.
    wait_until("the broker has everything again", || sandbox.queues().waiting("events") == 3 + 1 + 2 + 1);

    sandbox.pipeline(CONSUMER).run().ok();
    assert_eq!(sandbox.lines("SELECT status, records_read, rows_loaded FROM {raw.loads} WHERE source = 'amqp:shop'"), ["open|1|1"]);
    assert_eq!(sandbox.lines("SELECT count(*), count(DISTINCT id) FROM {raw.events}"), ["2504|2504"]);
    assert_eq!(
        sandbox.lines("SELECT status, rows_loaded FROM {raw.loads} ORDER BY rows_loaded"),
        ["open|1", "loaded|3", "loaded|2500"]
    );
    assert_eq!(sandbox.finished("events"), dropped.len());
    sandbox.assert_settled();
}

fn a_producer_killed_before_the_broker_confirms_loads_each_record_once(sandbox: &Sandbox) {
    let proxy = Proxy::to(sandbox.queues().url());
    let mut producer = sandbox.pipeline(["--role", "producer"]).env("AMQP_URL", proxy.url()).spawn();
    producer.wait_for_stderr("watching ");
    // All is declared when something came through.
    sandbox.drop_in("events", "first.jsonl", many_events(1, "ada"));
    wait_until("it publishes", || sandbox.finished("events") == 1);
    proxy.hold_answers();
    let dropped = drop_files(sandbox, [2_500, 3]);
    // Three chunks, one chunk, the ends of two files; and the two messages of the first file.
    wait_until("the broker has all of it", || sandbox.queues().waiting("events") == 3 + 1 + 2 + 2);
    assert_eq!(sandbox.names_in("events/.loading").len(), 2, "the producer has not heard of it");
    producer.signal(Signal::Kill);
    producer.wait();
    proxy.cut();

    sandbox.pipeline(PRODUCER).run().ok();
    assert_eq!(sandbox.queues().waiting("events"), 2 * (3 + 1 + 2) + 2, "all was published again");
    sandbox.pipeline(CONSUMER).run().ok();
    assert_eq!(sandbox.finished("events"), 1 + dropped.len());
    assert_eq!(sandbox.lines("SELECT count(*), count(DISTINCT id) FROM {raw.events}"), ["2504|2504"]);
    assert_eq!(sandbox.lines("SELECT status, count(*) FROM {raw.loads} GROUP BY status"), ["loaded|3"]);
    sandbox.assert_settled();
}

fn a_consumer_that_is_told_to_end_leaves_the_rest_in_the_queue(sandbox: &Sandbox) {
    // More chunks than a consumer holds at a time.
    const CHUNKS: u64 = 60;
    let mut consumer = start_consumer(sandbox, sandbox.queues().url());
    let lock = sandbox.hold_writers();
    let dropped = drop_files(sandbox, [60_000]);
    sandbox.pipeline(PRODUCER).run().ok();
    wait_until("it has some of them", || u64::from(sandbox.queues().waiting("events")) < CHUNKS);
    consumer.signal(Signal::Terminate);
    consumer.wait_for_stderr("finishing what is in flight");
    drop(lock);
    consumer.wait().ok();

    let loaded = sandbox.count("raw.batches");
    assert!((1..CHUNKS).contains(&loaded), "{loaded} chunks: what was in flight and no more");
    wait_until("the rest is in the queue", || u64::from(sandbox.queues().waiting("events")) == CHUNKS + 1 - loaded);
    let (rows, modelled) = (sandbox.count("raw.events"), sandbox.lines("SELECT sum(total_events) FROM {modelled.events_by_date}"));
    assert_eq!(modelled, [rows.to_string()], "draining includes the model");
    sandbox.assert_conserved();

    sandbox.pipeline(CONSUMER).run().ok();
    sandbox.assert_each_loaded_once(&dropped);
    sandbox.assert_settled();
}

/// Both servers' connections end again and again while files come; over SQLite there is but one server.
fn connections_that_end_under_load_lose_and_double_nothing(sandbox: &Sandbox) {
    let broker = Proxy::to(sandbox.queues().url());
    let mut pipeline = sandbox.pipeline([]).env("AMQP_URL", broker.url());
    let database = (!sandbox.is_sqlite()).then(|| Proxy::to(&sandbox.database_url()));
    if let Some(database) = &database {
        pipeline = pipeline.env("DATABASE_URL", database.url());
    }
    let mut pipeline = pipeline.spawn();
    pipeline.wait_for_stderr("watching ");
    let mut dropped = Vec::new();
    for round in 0..3 {
        for records in [10_000, 10] {
            let name = format!("{}.jsonl", dropped.len());
            let contents = events_over_days(&name, records);
            sandbox.drop_in("events", &name, &contents);
            dropped.push((name, contents, records));
        }
        let before = sandbox.try_query("SELECT load_id FROM {raw.batches}").map_or(0, |chunks| chunks.len());
        wait_until("more is loaded", || {
            sandbox.try_query("SELECT load_id FROM {raw.batches}").is_ok_and(|chunks| chunks.len() > before)
        });
        match &database {
            Some(database) if round % 2 == 1 => database.cut(),
            _ => broker.cut(),
        }
    }
    sandbox.wait_until_finished("events", dropped.len());
    assert!(pipeline.is_running(), "{}", pipeline.stderr());
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
    // What was loaded and could not be acknowledged comes again.
    sandbox.pipeline(CONSUMER).run().ok();
    sandbox.assert_each_loaded_once(&dropped);
    sandbox.assert_settled();
}

#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn a_consumer_without_its_database_takes_no_message() {
    let sandbox = Sandbox::over(Transport::Amqp, Store::Sqlite);
    drop_files(&sandbox, [3]);
    sandbox.pipeline(PRODUCER).run().ok();
    let mut consumer =
        sandbox.pipeline(["--role", "consumer"]).env("DATABASE_URL", "postgres://nobody:none@127.0.0.1:1/none").spawn();
    consumer.wait_for_stderr("waiting for postgres://");
    assert_eq!((sandbox.queues().waiting("events"), sandbox.queues().consumers("events")), (2, 0));
    consumer.signal(Signal::Terminate);
    consumer.wait().ok();
}

#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn a_broker_that_restarts_under_load_loses_and_doubles_nothing() {
    let node = PrivateRabbit::start();
    let sandbox = Sandbox::over_node(&node, Store::Sqlite);
    let mut producer = sandbox.pipeline(["--role", "producer"]).spawn();
    producer.wait_for_stderr("watching ");
    let consumer = start_consumer(&sandbox, node.url());
    let mut dropped = drop_files(&sandbox, [10_000, 10, 1]);
    wait_until("some of it is loaded", || sandbox.try_query("SELECT 1 FROM {raw.batches}").is_ok_and(|chunks| chunks.len() > 3));
    node.stop();
    for number in dropped.len()..6 {
        let (name, contents) = (format!("{number}.jsonl"), events_over_days(&number.to_string(), 2_000));
        sandbox.drop_in("events", &name, &contents);
        dropped.push((name, contents, 2_000));
    }
    node.restart();
    sandbox.wait_until_finished("events", dropped.len());
    for process in [producer, consumer] {
        process.signal(Signal::Terminate);
        process.wait().ok();
    }
    // What was loaded, but not acknowledged, may still wait to be passed over.
    sandbox.run_once().ok();
    sandbox.assert_each_loaded_once(&dropped);
    sandbox.assert_settled();
}
