//! Loads that are taken back: what goes, what stays, what does not come back, whatever runs beside it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{
    Background, Fifo, Message, Sandbox, Signal, Store, event, events_over_days, many_events, on_both_stores, only_file, over_amqp,
    wait_until,
};

on_both_stores!(
    a_load_goes_with_its_rejects_and_its_days_are_modelled,
    a_small_load_of_a_large_day_goes,
    rows_that_are_replaced_count_once_and_do_not_come_back,
    rejects_that_a_replay_had_loaded_do_not_come_back,
    a_dataset_without_a_day_loses_the_rows_of_the_load_alone,
    a_failed_load_goes,
    what_cannot_be_taken_back_is_named_and_nothing_is_changed,
    a_file_that_is_dropped_again_is_loaded_again,
    a_claim_that_is_resumed_brings_nothing_back,
    a_signal_changes_nothing,
    loads_are_taken_back_while_others_load,
);

over_amqp!(messages_that_come_late_bring_nothing_back,);

#[track_caller]
fn unload(sandbox: &Sandbox, ids: &[&str]) -> serde_json::Value {
    sandbox.run([&["unload", "--format", "json"], ids].concat()).ok().json()
}

const LEDGER: &str = "SELECT id, status, records_read, rows_loaded, rows_removed FROM {raw.loads} ORDER BY id";

fn a_load_goes_with_its_rejects_and_its_days_are_modelled(sandbox: &Sandbox) {
    sandbox.write_events("a.jsonl", many_events(3, "ada") + &event("x", "ben", "2024-05-02 10:00:00") + "{}\n");
    sandbox.write_events("b.jsonl", event("y", "cy", "2024-05-02 11:00:00") + &event("z", "cy", "2024-05-03 11:00:00") + "[]\n");
    sandbox.run(["load", "--dataset", "events"]).code(3);
    let source = sandbox.file("raw_data/events/b.jsonl").canonicalize().expect("just written");
    // Named twice, it is one load.
    let unloaded = unload(sandbox, &["2", "2"]);
    let expected = json!({"id": 2, "dataset": "events", "source": source, "rows": 2, "rejects": 1, "replaced": 0, "replayed": 0});
    assert_eq!(unloaded, json!({"loads": [expected]}));
    assert_eq!(sandbox.lines(LEDGER), ["1|loaded|5|4|0", "2|unloaded|3|2|2"]);
    assert_eq!(sandbox.lines("SELECT DISTINCT _load_id FROM {raw.events}"), ["1"]);
    assert_eq!(sandbox.lines("SELECT DISTINCT _load_id FROM {raw.events_delta}"), ["1"], "its rows in the delta go, too");
    assert_eq!(sandbox.lines("SELECT load_id FROM {raw.rejects}"), ["1"]);
    assert_eq!(sandbox.lines("SELECT load_id FROM {raw.batches} ORDER BY 1"), ["1", "2"], "its chunk lines stay");
    let by_date = "SELECT date, total_events, unique_users FROM {modelled.events_by_date} ORDER BY date";
    assert_eq!(sandbox.lines(by_date), ["2024-05-01|3|1", "2024-05-02|1|1"], "modelled within the command");
    let status = sandbox.run(["status", "--format", "json"]).ok().json();
    let expected = json!({"dataset": "events", "files": 1, "read": 5, "loaded": 4, "rejected": 1, "skipped": 0, "in_flight": 0,
        "failed": 0, "unloaded": 1, "open_rejects": 1});
    for (name, value) in expected.as_object().expect("an object") {
        assert_eq!(status["datasets"][0][name], *value, "{name}");
    }
    sandbox.assert_booked();
    // The file itself can be loaded again.
    sandbox.run(["load", "--dataset", "events", "raw_data/events/b.jsonl"]).code(3);
    assert_eq!(sandbox.count("raw.events"), 6);
    sandbox.assert_booked();
}

fn a_small_load_of_a_large_day_goes(sandbox: &Sandbox) {
    sandbox.write_events("x.jsonl", many_events(12_000, "ada"));
    sandbox.run(["load", "--dataset", "events"]).ok();
    for id in ["a", "b", "c"] {
        sandbox.drop_in("events", format!("{id}.jsonl"), event(id, id, "2024-05-01 11:00:00"));
        sandbox.run_once().ok();
    }
    let totals = "SELECT total_events, unique_events, unique_users FROM {modelled.events_by_date}";
    assert_eq!(sandbox.lines(totals), ["12003|12003|4"]);
    // Ids grow, and may leave some out.
    let ids = sandbox.lines("SELECT id FROM {raw.loads} ORDER BY id");
    unload(sandbox, &[&ids[2]]);
    assert_eq!(sandbox.lines(totals), ["12002|12002|3"], "a change that is applied");
    unload(sandbox, &[&ids[0], &ids[1]]);
    assert_eq!(sandbox.lines(totals), ["1|1|1"], "one that marks the day");
    sandbox.assert_booked();
}

fn rows_that_are_replaced_count_once_and_do_not_come_back(sandbox: &Sandbox) {
    let [a, b, c] = ["a", "b", "c"].map(|id| event(id, "ada", "2024-05-01 10:00:00"));
    sandbox.write_events("x.jsonl", format!("{a}\n{b}\n{c}\n"));
    sandbox.run(["load", "--dataset", "events"]).ok();
    sandbox.write_events("x.jsonl", format!("{b}\n{c}\n"));
    sandbox.run(["load", "--dataset", "events"]).ok();
    assert_eq!(sandbox.lines(LEDGER), ["1|loaded|3|3|0", "2|loaded|2|2|2"]);
    let unloaded = unload(sandbox, &["1"]);
    assert_eq!((&unloaded["loads"][0]["rows"], &unloaded["loads"][0]["replaced"]), (&1.into(), &0.into()));
    assert_eq!(sandbox.lines(LEDGER), ["1|unloaded|3|3|1", "2|loaded|2|2|2"], "two of its rows were removed before");
    sandbox.assert_booked();
    let told = sandbox.run(["unload", "2"]).ok().stdout;
    assert!(told.contains("2 rows that were removed when these were loaded do not come back"), "{told}");
    assert_eq!(sandbox.lines(LEDGER), ["1|unloaded|3|3|1", "2|unloaded|2|2|4"]);
    assert_eq!(sandbox.count("raw.events"), 0);
    sandbox.assert_booked();
    // Where it is not known what a load has removed, from before the column, it stays so.
    sandbox.run(["load", "--dataset", "events"]).ok();
    sandbox.execute(&format!("UPDATE {} SET rows_removed = NULL WHERE id = 3", sandbox.table("raw.loads")));
    assert_eq!(unload(sandbox, &["3"])["loads"][0]["rows"], 2);
    assert_eq!(sandbox.lines("SELECT status, rows_removed FROM {raw.loads} WHERE id = 3"), ["unloaded|NULL"]);
}

fn rejects_that_a_replay_had_loaded_do_not_come_back(sandbox: &Sandbox) {
    let required =
        "[datasets.t]\nkey = [\"id\"]\n[datasets.t.columns]\nid = \"text\"\nnote = { type = \"text\", required = true }\n";
    sandbox.write("dataloader.toml", required);
    sandbox.write("raw_data/t/x.jsonl", "{\"id\":\"a\",\"note\":\"n\"}\n{\"id\":\"b\"}\n{\"id\":\"c\"}\n[]\n");
    sandbox.run(["load"]).code(3);
    sandbox.write("dataloader.toml", required.replace("{ type = \"text\", required = true }", "\"text\""));
    sandbox.run(["rejects", "replay"]).ok();
    assert_eq!(sandbox.lines("SELECT _load_id, count(*) FROM {raw.t} GROUP BY 1 ORDER BY 1"), ["1|1", "2|2"]);
    let unloaded = unload(sandbox, &["2"]);
    let expected =
        json!({"id": 2, "dataset": "t", "source": "rejects replay", "rows": 2, "rejects": 0, "replaced": 0, "replayed": 2});
    assert_eq!(unloaded["loads"][0], expected);
    assert_eq!(sandbox.lines("SELECT id FROM {raw.t}"), ["a"]);
    assert_eq!(sandbox.count("raw.rejects"), 1, "the one that is still open");
    sandbox.assert_booked();
    assert_eq!(unload(sandbox, &["1"])["loads"][0]["rejects"], 1);
    assert_eq!((sandbox.count("raw.t"), sandbox.count("raw.rejects")), (0, 0));
}

fn a_dataset_without_a_day_loses_the_rows_of_the_load_alone(sandbox: &Sandbox) {
    sandbox.write_orgs("a.json", r#"{"organization_key":"a"}"#);
    sandbox.write_orgs("b.json", r#"{"organization_key":"b"}"#);
    sandbox.write_events("a.jsonl", many_events(2, "ada"));
    sandbox.run(["load"]).ok();
    // Of several datasets together.
    let rows: Vec<u64> = unload(sandbox, &["3", "1"])["loads"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|load| load["rows"].as_u64().expect("a count"))
        .collect();
    assert_eq!(rows, [2, 1], "in the order of the ids");
    assert_eq!(sandbox.lines("SELECT organization_key FROM {raw.orgs}"), ["a"]);
    sandbox.assert_booked();
}

fn a_failed_load_goes(sandbox: &Sandbox) {
    sandbox.drop_in("events", "a.jsonl", many_events(1_500, "ada") + "{\"id\":");
    sandbox.run_once().code(3);
    assert_eq!(sandbox.lines(LEDGER), ["1|failed|1500|1500|0"]);
    assert_eq!(unload(sandbox, &["1"])["loads"][0]["rows"], 1_500);
    assert_eq!(sandbox.lines("SELECT status, rows_removed, error IS NULL FROM {raw.loads}"), ["unloaded|1500|0"]);
    sandbox.assert_booked();
}

fn what_cannot_be_taken_back_is_named_and_nothing_is_changed(sandbox: &Sandbox) {
    sandbox.write_events("a.jsonl", many_events(3, "ada"));
    sandbox.run(["load", "--dataset", "events"]).ok();
    let insert = |id: u32, dataset: &str, status: &str| {
        sandbox.execute(&format!(
            "INSERT INTO {} (id, load_key, dataset, source, status) VALUES ({id}, '0190f3f4-0000-7000-8000-{id:012}', '{dataset}', \
             '/inbox/x.json', '{status}')",
            sandbox.table("raw.loads")
        ));
    };
    for (id, status) in [(11, "loading"), (12, "open"), (13, "unloaded"), (14, "repeated")] {
        insert(id, "events", status);
    }
    insert(15, "visits", "loaded");
    let before = sandbox.lines(LEDGER);
    for (id, says) in [
        ("11", "load 11 (/inbox/x.json) is loading"),
        ("12", "load 12 (/inbox/x.json) is open"),
        ("13", "load 13 (/inbox/x.json) is unloaded"),
        ("14", "load 14 (/inbox/x.json) is repeated"),
        ("15", "the dataset visits, which is not configured"),
        ("99", "load 99 is not in the ledger"),
    ] {
        let stderr = sandbox.run(["unload", "1", id]).code(1).stderr;
        assert!(stderr.contains(says) && stderr.contains("\nhint: "), "{stderr}");
        assert_eq!(sandbox.lines(LEDGER), before);
        assert_eq!(sandbox.count("raw.events"), 3);
    }
    for args in [&["unload"][..], &["unload", "x"], &["unload", "0"]] {
        sandbox.run(args.iter().copied()).code(2);
    }
}

fn a_file_that_is_dropped_again_is_loaded_again(sandbox: &Sandbox) {
    for _ in 1..=3 {
        sandbox.drop_in("events", "a.jsonl", many_events(3, "ada"));
        sandbox.run_once().ok();
        assert_eq!(sandbox.count("raw.events"), 3);
        // Ids grow, and may leave some out.
        unload(sandbox, &[&sandbox.lines("SELECT max(id) FROM {raw.loads}")[0]]);
        assert_eq!(sandbox.count("raw.events"), 0);
    }
    sandbox.assert_booked();
}

/// The process died after the commit, before the file was moved; then its load was taken back.
fn a_claim_that_is_resumed_brings_nothing_back(sandbox: &Sandbox) {
    sandbox.drop_in("events", "a.jsonl", many_events(1_500, "ada") + "{}\n");
    sandbox.run_once().code(3);
    unload(sandbox, &["1"]);
    let processed = only_file(&sandbox.file("inbox/events/processed"), ".jsonl");
    let name = processed.file_name().expect("a file has a name");
    std::fs::rename(&processed, sandbox.file("inbox/events/.loading").join(name)).expect("both are there");
    let resumed = sandbox.run_once().ok().json();
    assert_eq!((&resumed["datasets"][0]["files"], &resumed["datasets"][0]["loaded"]), (&1.into(), &0.into()));
    assert!(processed.exists(), "it is where it belongs");
    assert_eq!(sandbox.lines(LEDGER), ["1|unloaded|1501|1500|1500"]);
    assert_eq!((sandbox.count("raw.events"), sandbox.count("raw.rejects")), (0, 0));
    sandbox.assert_booked();
}

/// How many sessions of this database wait for a lock of the program. The view has those of all databases.
const WAITING: &str = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted \
     AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// Waits until the command cannot go on, because another one has what it needs.
fn wait_until_it_waits(sandbox: &Sandbox, unload: &Background) {
    wait_until("it waits", || match sandbox.store() {
        Store::Postgres => sandbox.lines(WAITING) == ["1"],
        Store::Sqlite => {
            let files = std::fs::read_dir(format!("/proc/{}/fd", unload.id())).into_iter().flatten().flatten();
            files.filter_map(|file| std::fs::read_link(file.path()).ok()).any(|file| file.ends_with("dataloader.db"))
        }
    });
}

/// PostgreSQL's process for a command that has ended may wait a moment longer than the command.
fn wait_until_nothing_waits(sandbox: &Sandbox) {
    if sandbox.store() == Store::Postgres {
        wait_until("its session has ended", || sandbox.lines(WAITING) == ["0"]);
    }
}

fn a_signal_changes_nothing(sandbox: &Sandbox) {
    sandbox.write_events("a.jsonl", many_events(3, "ada"));
    sandbox.run(["load", "--dataset", "events"]).ok();
    let fifo = Fifo::new(sandbox.file("half.jsonl"));
    let load = sandbox.spawn(["load", "--dataset", "events", "half.jsonl"]);
    let mut writer = fifo.open();
    writer.write(&many_events(20_000, "half"));
    for signal in [Signal::Interrupt, Signal::Terminate] {
        let unload = sandbox.spawn(["unload", "1"]);
        wait_until_it_waits(sandbox, &unload);
        unload.signal(signal);
        unload.wait().code(130);
        wait_until_nothing_waits(sandbox);
    }
    load.signal(Signal::Interrupt);
    load.wait().code(130);
    assert_eq!(sandbox.lines(LEDGER), ["1|loaded|3|3|0"]);
    sandbox.assert_booked();
}

/// Pipelines, batch loads, refreshes and other unloads run beside it: none of them ends, and all is right in the end.
fn loads_are_taken_back_while_others_load(sandbox: &Sandbox) {
    const DURATION: Duration = Duration::from_secs(8);
    sandbox.write_events("x.jsonl", events_over_days("batch", 300));
    sandbox.write_orgs("x.jsonl", "{\"organization_key\":\"a\"}\n{\"organization_key\":\"b\"}\n");
    sandbox.run(["load"]).ok();
    let pipelines = [sandbox.start_pipeline(), sandbox.start_pipeline()];
    let is_over = AtomicBool::new(false);
    let goes_on = || !is_over.load(Ordering::Relaxed);
    let mut taken = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in (0..).take_while(|_| goes_on()) {
                let events = events_over_days(&format!("{}", number % 7), 40);
                sandbox.drop_in("events", format!("{number}.jsonl"), &events);
                sandbox.drop_in("orgs", format!("{number}.jsonl"), format!("{{\"organization_key\":\"{}\"}}", number % 5));
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        scope.spawn(|| {
            while goes_on() {
                sandbox.run(["load"]).ok();
            }
        });
        let unloads = [1, 0].map(|rest| {
            scope.spawn(move || {
                let mut taken = 0;
                let started = Instant::now();
                while started.elapsed() < DURATION {
                    let loaded = "SELECT id FROM {raw.loads} WHERE status = 'loaded' ORDER BY id DESC LIMIT 9";
                    let ids = sandbox.lines(loaded);
                    let own: Vec<&str> =
                        ids.iter().filter(|id| id.parse::<u64>().is_ok_and(|id| id % 2 == rest)).map(String::as_str).collect();
                    if let [first, second, ..] = own[..] {
                        sandbox.run(["unload", first, second]).ok();
                        taken += 2;
                    }
                }
                taken
            })
        });
        taken = unloads.into_iter().map(|unload| unload.join().expect("every unload succeeds")).sum();
        is_over.store(true, Ordering::Relaxed);
    });
    for pipeline in pipelines {
        pipeline.signal(Signal::Terminate);
        pipeline.wait().ok();
    }
    println!("{taken} loads were taken back");
    assert!(taken > 0);
    sandbox.assert_booked();
    let rows = "SELECT count(*) FROM {raw.events} e JOIN {raw.loads} l ON l.id = e._load_id WHERE l.status = 'unloaded'";
    assert_eq!(sandbox.lines(rows), ["0"]);
}

fn messages_that_come_late_bring_nothing_back(sandbox: &Sandbox) {
    sandbox.drop_in("events", "a.jsonl", events_over_days("a", 2_500));
    sandbox.pipeline(["--role", "producer", "--once"]).run().ok();
    let messages = sandbox.queues().take("events");
    let is_first = |message: &&Message| message.header("seq").as_deref() == Some("0");
    let send = |messages: &mut dyn Iterator<Item = &Message>| {
        sandbox.queues().send("events", messages.map(|message| (message.properties.clone(), &message.body[..])));
        sandbox.pipeline(["--role", "consumer", "--once"]).run().ok();
    };
    // Of a load that failed a chunk is still on its way, which no consumer has had.
    send(&mut messages.iter().filter(|message| !is_first(message)));
    sandbox.execute(&format!("UPDATE {} SET status = 'failed', error = 'x'", sandbox.table("raw.loads")));
    assert_eq!(unload(sandbox, &["1"])["loads"][0]["rows"], 1_500);
    let ledger = sandbox.lines(LEDGER);
    assert_eq!(ledger, ["1|unloaded|2500|1500|1500"]);
    for messages in [&messages[..1], &messages[1..], &messages[..]] {
        send(&mut messages.iter());
        assert_eq!((sandbox.count("raw.events"), sandbox.lines(LEDGER)), (0, ledger.clone()));
    }
    assert_eq!(sandbox.queues().waiting("dead"), 0);
    sandbox.assert_booked();
}

/// A consumer has begun to write a chunk when its load is taken back: the one waits for the other.
#[test]
#[ignore = "needs PostgreSQL and RabbitMQ: ./run.sh test"]
fn over_amqp_a_chunk_that_is_being_written_goes_with_its_load() {
    let sandbox = Sandbox::over(crate::support::Transport::Amqp, Store::Postgres);
    sandbox.drop_in("events", "a.jsonl", events_over_days("a", 2_500));
    sandbox.pipeline(["--role", "producer", "--once"]).run().ok();
    let messages = sandbox.queues().take("events");
    let (first, rest): (Vec<_>, Vec<_>) = messages.iter().partition(|message| message.header("seq").as_deref() == Some("0"));
    let send =
        |messages: &[&Message]| sandbox.queues().send("events", messages.iter().map(|m| (m.properties.clone(), &m.body[..])));
    send(&rest);
    sandbox.pipeline(["--role", "consumer", "--once"]).run().ok();
    sandbox.execute("UPDATE raw.loads SET status = 'failed', error = 'x', records_read = rows_loaded");
    send(&first);
    let held = sandbox.hold_writers();
    let consumer = sandbox.pipeline(["--role", "consumer", "--once"]).spawn();
    let waiting = |relation: &str| format!("SELECT count(*) FROM pg_locks WHERE relation = '{relation}'::regclass AND NOT granted");
    wait_until("the chunk is about to be written", || sandbox.lines(&waiting("raw.batches")) == ["1"]);
    let unload = sandbox.spawn(["unload", "1"]);
    wait_until("the unload waits for it", || sandbox.lines(&waiting("raw.events")) == ["1"]);
    drop(held);
    // The chunk completes its load, which can be taken back all the same.
    let told = unload.wait().ok().stdout;
    assert!(told.contains("2,500"), "{told}");
    consumer.wait().ok();
    assert_eq!(sandbox.lines("SELECT status, rows_loaded, rows_removed FROM {raw.loads}"), ["unloaded|2500|2500"]);
    sandbox.assert_booked();
}
