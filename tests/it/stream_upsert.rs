//! Datasets with `stream = "upsert"`: a dropped record replaces the rows of its key that earlier loads brought, in whatever order
//! chunks and messages are written.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use lapin::BasicProperties;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use crate::support::{Background, Message, Sandbox, Signal, Store, Transport, on_both_stores, over_amqp, wait_until};

on_both_stores!(
    a_file_that_is_dropped_again_doubles_nothing,
    rows_of_one_file_never_replace_each_other,
    keys_compare_nulls_as_equal,
    a_row_that_moves_to_another_day_leaves_the_old_one,
    a_row_that_the_database_refuses_replaces_nothing,
    a_unique_index_on_the_key_is_kept,
    a_replay_comes_when_it_runs,
    a_batch_load_replaces_what_was_dropped_and_is_replaced,
    a_dataset_that_becomes_one_is_searched_by_an_index,
    drops_give_what_they_give_one_after_the_other,
);

over_amqp!(
    chunks_that_come_late_are_outdated,
    a_message_replaces_what_is_there_when_it_comes,
    a_file_that_was_claimed_before_a_message_came_is_outdated,
    a_file_that_was_claimed_before_a_message_came_is_outdated_when_the_model_has_changed,
    records_of_a_message_never_replace_each_other,
    chunks_that_come_after_a_batch_load_are_outdated,
    drops_give_what_they_give_one_after_the_other,
);

/// A dataset without a day, and one with a day that its key does not contain.
const DATASETS: &str = r#"
[stream]
batch_rows = 500
writers = 3
[datasets.orgs]
key = ["id", "part"]
stream = "upsert"
[datasets.orgs.columns]
id = "text"
part = "bigint"
value = "text"
[datasets.visits]
key = ["id", "part"]
day = "at"
stream = "upsert"
[datasets.visits.columns]
id = "text"
part = "bigint"
value = "text"
at = { type = "date", required = true }
[datasets.visits.model]
dimensions = ["part"]
distinct = { values = "value" }
"#;

fn define(sandbox: &Sandbox) {
    sandbox.write("dataloader.toml", DATASETS);
    for dataset in ["orgs", "visits"] {
        std::fs::create_dir_all(sandbox.file("raw_data").join(dataset)).expect("the sandbox is writable");
    }
}

fn org(id: &str, value: &str) -> String {
    format!("{{\"id\":\"{id}\",\"part\":1,\"value\":\"{value}\"}}\n")
}

const ORGS: &str = "SELECT id, value FROM {raw.orgs} ORDER BY id, value";
const LEDGER: &str = "SELECT status, rows_loaded, rows_rejected, rows_removed FROM {raw.loads} ORDER BY id";

#[track_caller]
fn replaced(sandbox: &Sandbox, dataset: usize) -> u64 {
    sandbox.run_once().ok().json()["datasets"][dataset]["replaced"].as_u64().expect("a count")
}

/// With the built-in configuration: what a newcomer does.
fn a_file_that_is_dropped_again_doubles_nothing(sandbox: &Sandbox) {
    let orgs = |name: &str| -> String {
        (0..20).map(|i| format!("{{\"organization_key\":\"{i}\",\"organization_name\":\"{name}\"}}\n")).collect()
    };
    for (name, expected) in [("a", 0), ("b", 20), ("b", 20)] {
        sandbox.drop_in("orgs", "x.jsonl", orgs(name));
        assert_eq!(replaced(sandbox, 1), expected);
        let names = "SELECT organization_name, count(*) FROM {raw.orgs} GROUP BY 1";
        assert_eq!(sandbox.lines(names), [format!("{name}|20")]);
    }
    // Files that wait are claimed in the order in which they came. The file system's clock may be too coarse to tell.
    let now = SystemTime::now();
    for (age, file, name) in [(3, "z", "first"), (2, "a", "second"), (1, "m", "third")] {
        let path = sandbox.drop_in("orgs", format!("{file}.jsonl"), orgs(name));
        let file = std::fs::File::options().write(true).open(path).expect("just dropped");
        file.set_modified(now - Duration::from_secs(age)).expect("the file is ours");
    }
    sandbox.run_once().ok();
    assert_eq!(sandbox.lines("SELECT organization_name, count(*) FROM {raw.orgs} GROUP BY 1"), ["third|20"]);
    sandbox.assert_booked();
}

fn rows_of_one_file_never_replace_each_other(sandbox: &Sandbox) {
    define(sandbox);
    // In two chunks, and in two transactions.
    let file = |value: &str| -> String { (0..1_500).map(|i| org(&(i % 700).to_string(), value)).collect() };
    for (value, removed) in [("a", 0), ("b", 1_500)] {
        sandbox.drop_in("orgs", "x.jsonl", file(value));
        assert_eq!(replaced(sandbox, 0), removed);
        assert_eq!(sandbox.lines("SELECT value, count(*) FROM {raw.orgs} GROUP BY value"), [format!("{value}|1500")]);
    }
    sandbox.assert_booked();
}

fn keys_compare_nulls_as_equal(sandbox: &Sandbox) {
    define(sandbox);
    let records = |value: u32| {
        ["\"id\":\"n\",\"part\":1,", "\"id\":null,\"part\":1,", "\"id\":\"n\",", ""]
            .map(|key| format!("{{{key}\"value\":\"{value}\",\"at\":\"2024-05-01\"}}\n"))
    };
    for dataset in ["orgs", "visits"] {
        let rows = format!("SELECT value, count(*) FROM {{raw.{dataset}}} GROUP BY value ORDER BY value");
        sandbox.drop_in(dataset, "x.jsonl", records(1).concat());
        sandbox.run_once().ok();
        sandbox.drop_in(dataset, "x.jsonl", records(2).concat());
        sandbox.run_once().ok();
        assert_eq!(sandbox.lines(&rows), ["2|4"], "all patterns of nulls at once");
        for (number, record) in records(3).iter().enumerate() {
            sandbox.drop_in(dataset, "x.jsonl", record);
            sandbox.run_once().ok();
            let expected = [format!("2|{}", 3 - number), format!("3|{}", number + 1)];
            assert_eq!(sandbox.lines(&rows), expected.into_iter().filter(|line| line != "2|0").collect::<Vec<_>>(), "{record}");
        }
    }
    sandbox.assert_booked();
}

fn visit(id: &str, value: &str, day: u32) -> String {
    format!("{{\"id\":\"{id}\",\"part\":1,\"value\":\"{value}\",\"at\":\"2024-05-{day:02}\"}}\n")
}

fn a_row_that_moves_to_another_day_leaves_the_old_one(sandbox: &Sandbox) {
    define(sandbox);
    let by_date = "SELECT date, total_visits, unique_visits, \"values\" FROM {modelled.visits_by_date} ORDER BY date";
    sandbox.drop_in("visits", "x.jsonl", visit("a", "x", 1) + &visit("b", "x", 1));
    sandbox.run_once().ok();
    sandbox.drop_in("visits", "x.jsonl", visit("a", "y", 2));
    sandbox.run_once().ok();
    assert_eq!(sandbox.lines(by_date), ["2024-05-01|1|1|1", "2024-05-02|1|1|1"]);
    // Many at once mark their days.
    let many: String = (0..1_200).map(|i| visit(&i.to_string(), "z", 1 + i % 2)).collect();
    for _ in 0..2 {
        sandbox.drop_in("visits", "x.jsonl", many.clone() + &visit("b", "x", 3));
        sandbox.run_once().ok();
        assert_eq!(sandbox.lines(by_date), ["2024-05-01|600|600|1", "2024-05-02|601|601|2", "2024-05-03|1|1|1"]);
    }
    sandbox.assert_booked();
}

fn a_row_that_the_database_refuses_replaces_nothing(sandbox: &Sandbox) {
    define(sandbox);
    sandbox.drop_in("orgs", "x.jsonl", ["a", "b", "c"].map(|id| org(id, "old")).concat());
    sandbox.run_once().ok();
    let table = sandbox.table("raw.orgs");
    match sandbox.store() {
        Store::Postgres => sandbox.execute(&format!("ALTER TABLE {table} ADD CHECK (value <> 'bad')")),
        Store::Sqlite => sandbox.execute(&format!(
            "CREATE TRIGGER no_bad BEFORE INSERT ON {table} WHEN new.value = 'bad' BEGIN SELECT raise(abort, 'bad'); END"
        )),
    }
    let mixed = [org("a", "new"), org("b", "bad"), org("c", "new"), org("c", "new 2"), org("d", "new")].concat();
    sandbox.drop_in("orgs", "x.jsonl", mixed);
    sandbox.run_once().code(3);
    assert_eq!(sandbox.lines(ORGS), ["a|new", "b|old", "c|new", "c|new 2", "d|new"]);
    assert_eq!(sandbox.lines(LEDGER), ["loaded|3|0|0", "loaded|4|1|2"]);
    sandbox.assert_booked();
}

fn a_unique_index_on_the_key_is_kept(sandbox: &Sandbox) {
    define(sandbox);
    sandbox.run(["migrate"]).ok();
    sandbox.execute(&format!("CREATE UNIQUE INDEX own ON {} (id, part)", sandbox.table("raw.orgs")));
    for value in ["1", "2", "3"] {
        sandbox.drop_in("orgs", "x.jsonl", ["a", "b"].map(|id| org(id, value)).concat());
        sandbox.run_once().ok();
        assert_eq!(sandbox.lines(ORGS), [format!("a|{value}"), format!("b|{value}")]);
    }
    sandbox.drop_in("orgs", "x.jsonl", org("a", "4") + &org("a", "5"));
    sandbox.run_once().code(3);
    assert_eq!(sandbox.lines(ORGS), ["a|4", "b|3"]);
    sandbox.assert_booked();
}

fn a_replay_comes_when_it_runs(sandbox: &Sandbox) {
    define(sandbox);
    let narrow = DATASETS.replacen("value = \"text\"", "value = { type = \"text\", required = true }", 1);
    sandbox.write("dataloader.toml", narrow);
    sandbox.drop_in("orgs", "x.jsonl", "{\"id\":\"a\",\"part\":1}\n".to_owned() + &org("b", "1"));
    sandbox.run_once().code(3);
    sandbox.drop_in("orgs", "x.jsonl", org("a", "2") + &org("b", "2"));
    sandbox.run_once().ok();
    sandbox.write("dataloader.toml", DATASETS);
    sandbox.run(["rejects", "replay", "--dataset", "orgs"]).ok();
    assert_eq!(sandbox.lines("SELECT id, coalesce(value, '-') FROM {raw.orgs} ORDER BY id"), ["a|-", "b|2"]);
    assert_eq!(sandbox.lines(LEDGER), ["loaded|1|1|0", "loaded|2|0|1", "loaded|1|0|1"]);
    sandbox.drop_in("orgs", "x.jsonl", org("a", "3"));
    sandbox.run_once().ok();
    assert_eq!(sandbox.lines(ORGS), ["a|3", "b|2"]);
    sandbox.assert_booked();
}

fn a_batch_load_replaces_what_was_dropped_and_is_replaced(sandbox: &Sandbox) {
    define(sandbox);
    for dataset in ["orgs", "visits"] {
        let record =
            if dataset == "orgs" { |id: &str, value: &str| org(id, value) } else { |id: &str, value: &str| visit(id, value, 1) };
        let rows = format!("SELECT id, value FROM {{raw.{dataset}}} ORDER BY id, value");
        sandbox.drop_in(dataset, "x.jsonl", record("a", "1") + &record("b", "1"));
        sandbox.run_once().ok();
        sandbox.write(&format!("raw_data/{dataset}/x.jsonl"), record("a", "2") + &record("a", "3"));
        sandbox.run(["load", "--dataset", dataset]).ok();
        // A dataset without a day is loaded in full.
        let expected = if dataset == "orgs" { &["a|2", "a|3"][..] } else { &["a|2", "a|3", "b|1"] };
        assert_eq!(sandbox.lines(&rows), expected);
        sandbox.drop_in(dataset, "x.jsonl", record("a", "4"));
        sandbox.run_once().ok();
        let expected = if dataset == "orgs" { &["a|4"][..] } else { &["a|4", "b|1"] };
        assert_eq!(sandbox.lines(&rows), expected);
    }
    sandbox.assert_booked();
}

/// Rows of the time before stay until their keys are dropped again.
fn a_dataset_that_becomes_one_is_searched_by_an_index(sandbox: &Sandbox) {
    define(sandbox);
    sandbox.write("dataloader.toml", DATASETS.replace("stream = \"upsert\"\n", ""));
    for _ in 0..2 {
        sandbox.drop_in("orgs", "x.jsonl", (0..500).map(|i| org(&i.to_string(), "old")).collect::<String>());
        sandbox.run_once().ok();
    }
    assert_eq!(sandbox.count("raw.orgs"), 1_000, "they are appended without the setting");
    define(sandbox);
    sandbox.drop_in("orgs", "x.jsonl", org("7", "new") + &org("new", "new"));
    assert_eq!(replaced(sandbox, 0), 2);
    assert_eq!(sandbox.lines("SELECT value, count(*) FROM {raw.orgs} GROUP BY value ORDER BY value"), ["new|2", "old|998"]);
    match sandbox.store() {
        Store::Postgres => {
            let looked_up = "SELECT count(*) FROM pg_stat_user_indexes WHERE indexrelname = 'orgs.key' AND idx_scan > 0";
            wait_until("the keys were looked up in the index", || sandbox.lines(looked_up) == ["1"]);
        }
        Store::Sqlite => {
            let index = "SELECT count(*) FROM sqlite_schema WHERE type = 'index' AND name = 'raw_orgs.key'";
            assert_eq!(sandbox.lines(index), ["1"]);
        }
    }
    // Another key, another index.
    sandbox.write("dataloader.toml", DATASETS.replacen("key = [\"id\", \"part\"]", "key = [\"id\"]", 1));
    sandbox.drop_in("orgs", "x.jsonl", "{\"id\":\"7\",\"value\":\"newer\"}");
    assert_eq!(replaced(sandbox, 0), 1);
    sandbox.assert_booked();
}

/// Loads what is in the queues.
fn consume(sandbox: &Sandbox) {
    sandbox.pipeline(["--role", "consumer", "--once"]).run().ok();
}

/// Publishes a file and takes its messages out of the queue, the end last.
fn publish(sandbox: &Sandbox, contents: &str) -> Vec<Message> {
    sandbox.drop_in("orgs", "x.jsonl", contents);
    sandbox.pipeline(["--role", "producer", "--once"]).run().ok();
    sandbox.queues().take("orgs")
}

/// Sends messages and loads them.
fn send(sandbox: &Sandbox, messages: &[Message]) {
    sandbox.queues().send("orgs", messages.iter().map(|message| (message.properties.clone(), &message.body[..])));
    consume(sandbox);
}

/// Sends messages of other programs and loads them.
fn tell(sandbox: &Sandbox, bodies: &[String]) {
    let from_crm = || BasicProperties::default().with_app_id("crm".into());
    sandbox.queues().send("orgs", bodies.iter().map(|body| (from_crm(), body.as_bytes())));
    sandbox.pipeline(["--role", "consumer", "--once"]).run();
}

fn chunks_that_come_late_are_outdated(sandbox: &Sandbox) {
    define(sandbox);
    let file = |keys: std::ops::Range<u32>, value: &str| keys.map(|i| org(&i.to_string(), value)).collect::<String>();
    let first = publish(sandbox, &file(0..1_500, "first"));
    let second = publish(sandbox, &file(900..2_100, "second"));
    assert_eq!((first.len(), second.len()), (3, 3));
    let values = || sandbox.lines("SELECT value, count(*) FROM {raw.orgs} GROUP BY value ORDER BY value");
    // The first chunk of the first file, then the second file backwards, then the rest, and all once more.
    send(sandbox, &first[..1]);
    assert_eq!(values(), ["first|1000"]);
    send(sandbox, &second.iter().rev().cloned().collect::<Vec<_>>());
    assert_eq!(values(), ["first|900", "second|1200"]);
    send(sandbox, &first[1..]);
    for messages in [&first, &second, &first] {
        send(sandbox, messages);
        assert_eq!(values(), ["first|900", "second|1200"]);
    }
    assert_eq!(sandbox.lines(LEDGER), ["loaded|1500|0|500", "loaded|1200|0|100"]);
    sandbox.assert_booked();
}

fn a_message_replaces_what_is_there_when_it_comes(sandbox: &Sandbox) {
    define(sandbox);
    consume(sandbox);
    send(sandbox, &[]);
    tell(sandbox, &[org("a", "1") + &org("b", "1")]);
    tell(sandbox, &[org("a", "2"), org("b", "2") + &org("c", "2"), org("c", "3")]);
    assert_eq!(sandbox.lines(ORGS), ["a|2", "b|2", "c|3"], "of one sender, which has one row in the ledger");
    assert_eq!(sandbox.lines(LEDGER), ["open|6|0|3"]);
    let file = publish(sandbox, &(org("a", "4") + &org("c", "4")));
    send(sandbox, &file);
    assert_eq!(sandbox.lines(ORGS), ["a|4", "b|2", "c|4"]);
    tell(sandbox, &[org("c", "5")]);
    send(sandbox, &file);
    assert_eq!(sandbox.lines(ORGS), ["a|4", "b|2", "c|5"]);
    sandbox.assert_booked();
}

fn a_file_that_was_claimed_before_a_message_came_is_outdated(sandbox: &Sandbox) {
    define(sandbox);
    consume(sandbox);
    let before = publish(sandbox, &["a", "b", "c", "d"].map(|id| org(id, "before")).concat());
    tell(sandbox, &[org("a", "first"), org("a", "message") + &org("b", "message")]);
    let after = publish(sandbox, &org("b", "after"));
    send(sandbox, &after);
    send(sandbox, &before);
    assert_eq!(sandbox.lines(ORGS), ["a|message", "b|after", "c|before", "d|before"]);
    assert_eq!(sandbox.lines(LEDGER), ["open|3|0|1", "loaded|1|0|1", "loaded|4|0|2"]);
    sandbox.assert_booked();
}

fn a_file_that_was_claimed_before_a_message_came_is_outdated_when_the_model_has_changed(sandbox: &Sandbox) {
    define(sandbox);
    let with = |key: &str, model: &str| {
        let head = format!("[datasets.orgs]\nday = \"at\"\nkey = [{key}]\n");
        let at = format!("value = \"text\"\nat = {{ type = \"date\", required = true }}\n{model}");
        DATASETS.replacen("[datasets.orgs]\nkey = [\"id\", \"part\"]\n", &head, 1).replacen("value = \"text\"\n", &at, 1)
    };
    let dimension = "[datasets.orgs.model]\ndimensions = [\"part\"]\n";
    sandbox.write("dataloader.toml", with("\"id\", \"part\"", ""));
    consume(sandbox);
    let before = publish(sandbox, &(visit("a", "before", 1) + &visit("b", "before", 1)));
    tell(sandbox, &[visit("a", "message", 1)]);
    sandbox.write("dataloader.toml", with("\"id\", \"part\"", dimension));
    send(sandbox, &before);
    assert_eq!(sandbox.lines(ORGS), ["a|message", "b|before"]);
    assert_eq!(sandbox.lines("SELECT total_orgs FROM {modelled.orgs_by_date_part}"), ["2"]);
    // Another key: from now on that is what messages are known by.
    sandbox.write("dataloader.toml", with("\"value\"", dimension));
    let before = publish(sandbox, &visit("c", "message", 1));
    tell(sandbox, &[visit("d", "message", 1)]);
    send(sandbox, &before);
    assert_eq!(sandbox.lines(ORGS), ["b|before", "d|message"]);
    sandbox.assert_booked();
}

fn records_of_a_message_never_replace_each_other(sandbox: &Sandbox) {
    define(sandbox);
    consume(sandbox);
    tell(sandbox, &[org("a", "1")]);
    tell(sandbox, &[org("a", "2") + &org("a", "3")]);
    assert_eq!(sandbox.lines(ORGS), ["a|2", "a|3"]);
    let table = sandbox.table("raw.orgs");
    match sandbox.store() {
        Store::Postgres => sandbox.execute(&format!("ALTER TABLE {table} ADD CHECK (value <> 'bad')")),
        Store::Sqlite => sandbox.execute(&format!(
            "CREATE TRIGGER no_bad BEFORE INSERT ON {table} WHEN new.value = 'bad' BEGIN SELECT raise(abort, 'bad'); END"
        )),
    }
    // The rows around the refused one are written in several steps.
    let body: String = ["4", "5", "bad", "6", "7"].map(|value| org("a", value)).concat() + &org("b", "bad") + &org("a", "8");
    tell(sandbox, &[org("b", "1"), body]);
    assert_eq!(sandbox.lines(ORGS), ["a|4", "a|5", "a|6", "a|7", "a|8", "b|1"]);
    assert_eq!(sandbox.lines(LEDGER), ["open|9|2|3"]);
    sandbox.assert_booked();
}

fn chunks_that_come_after_a_batch_load_are_outdated(sandbox: &Sandbox) {
    define(sandbox);
    let first = publish(sandbox, &(0..1_500).map(|i| org(&i.to_string(), "dropped")).collect::<String>());
    send(sandbox, &first[..1]);
    // It replaces the whole table: nothing of what was claimed before comes back, not even of keys that it does not have.
    sandbox.write("raw_data/orgs/x.jsonl", org("7", "loaded") + &org("1400", "loaded"));
    sandbox.run(["load", "--dataset", "orgs"]).ok();
    send(sandbox, &first[1..]);
    assert_eq!(sandbox.lines(ORGS), ["1400|loaded", "7|loaded"]);
    let after = publish(sandbox, &(org("7", "dropped") + &org("8", "dropped")));
    send(sandbox, &after);
    assert_eq!(sandbox.lines(ORGS), ["1400|loaded", "7|dropped", "8|dropped"]);
    sandbox.assert_booked();
}

/// What a file holds: the number of its records and the keys that they are of.
#[derive(Debug, Clone)]
struct File {
    records: usize,
    first_key: usize,
    keys: usize,
}

/// What happens at the same time, until all of it is loaded.
#[derive(Debug, Clone)]
struct Burst {
    files: Vec<File>,
    /// Pipelines, each with the milliseconds after which it is killed; 0: not.
    pipelines: Vec<u64>,
    /// Files that are loaded in batch beside them, one after the other.
    batch: Vec<File>,
    /// Which of the loads is taken back afterwards, if any.
    unload: Option<usize>,
}

fn bursts() -> impl Strategy<Value = Vec<Burst>> {
    let file = (prop_oneof![4 => 1..8_usize, 1 => 1_100..2_300_usize], 0..10_usize, 1..8_usize)
        .prop_map(|(records, first_key, keys)| File { records, first_key, keys });
    let pipeline = prop_oneof![Just(0), 20..400_u64];
    let burst = (
        prop::collection::vec(file.clone(), 1..8),
        prop::collection::vec(pipeline, 1..4),
        prop::collection::vec(file, 0..3),
        prop::option::of(0..20_usize),
    );
    prop::collection::vec(burst.prop_map(|(files, pipelines, batch, unload)| Burst { files, pipelines, batch, unload }), 3..6)
}

/// The records of a file, each with a value that no other has; null is a key, too.
fn records(dataset: &str, name: &str, file: &File) -> Vec<(usize, String, String)> {
    let record = |number: usize| {
        let key = file.first_key + number % file.keys;
        let part = if key.is_multiple_of(5) { "null".to_owned() } else { (key % 2).to_string() };
        let (value, day) = (format!("{name} {number}"), 1 + number % 3);
        let at = if dataset == "visits" { format!(",\"at\":\"2024-05-{day:02}\"") } else { String::new() };
        (key, value.clone(), format!("{{\"id\":\"{key}\",\"part\":{part},\"value\":\"{value}\"{at}}}\n"))
    };
    (0..file.records).map(record).collect()
}

/// What a table has to hold: the values of each key.
#[derive(Default)]
struct Expected {
    rows: BTreeMap<usize, Vec<String>>,
    /// The loads that are in it.
    seen: Vec<String>,
}

impl Expected {
    /// Applies the loads that came since the last time, one after the other.
    fn follow(&mut self, sandbox: &Sandbox, dataset: &str, files: &BTreeMap<String, File>) {
        let sql = format!("SELECT id, source FROM {{raw.loads}} WHERE dataset = '{dataset}' ORDER BY load_key");
        for row in sandbox.query(&sql) {
            let [Some(id), Some(source)] = &row[..] else { panic!("{row:?}") };
            if self.seen.contains(id) {
                continue;
            }
            self.seen.push(id.clone());
            let name = source.rsplit('/').next().expect("a path");
            let is_batch = source.contains("/raw_data/");
            let records = records(dataset, name, &files[name]);
            if is_batch && dataset == "orgs" {
                self.rows.clear();
            }
            for (key, ..) in &records {
                self.rows.remove(key);
            }
            for (key, value, _) in records {
                self.rows.entry(key).or_default().push(value);
            }
        }
    }

    #[track_caller]
    fn assert(&self, sandbox: &Sandbox, dataset: &str) {
        let rows = sandbox.lines(&format!("SELECT id, value FROM {{raw.{dataset}}}"));
        let mut expected: Vec<String> =
            self.rows.iter().flat_map(|(key, values)| values.iter().map(move |value| format!("{key}|{value}"))).collect();
        let mut found = rows;
        expected.sort();
        found.sort();
        assert!(found == expected, "{dataset}: {} rows, expected {}:\n{found:?}\n{expected:?}", found.len(), expected.len());
    }
}

/// Drops, batch loads and kills side by side.
fn burst(sandbox: &Sandbox, dataset: &str, number: usize, burst: &Burst, files: &mut BTreeMap<String, File>) {
    let mut pipelines: Vec<(Background, u64)> = burst.pipelines.iter().map(|kill| (sandbox.pipeline([]).spawn(), *kill)).collect();
    let contents =
        |name: &str, file: &File| records(dataset, name, file).into_iter().map(|(.., record)| record).collect::<String>();
    let mut drops = Vec::new();
    for (i, file) in burst.files.iter().enumerate() {
        let name = format!("{number}-{i}.jsonl");
        files.insert(name.clone(), file.clone());
        drops.push((name.clone(), contents(&name, file)));
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for (name, contents) in &drops {
                sandbox.drop_in(dataset, name, contents);
                std::thread::sleep(Duration::from_millis(15));
            }
        });
        scope.spawn(|| {
            for (i, file) in burst.batch.iter().enumerate() {
                let name = format!("batch-{number}-{i}.jsonl");
                let path = format!("raw_data/{dataset}/{name}");
                sandbox.write(&path, contents(&name, file));
                sandbox.run(["load", "--dataset", dataset, &path]).ok();
            }
        });
        for (pipeline, kill) in &mut pipelines {
            std::thread::sleep(Duration::from_millis(*kill));
            if *kill > 0 && pipeline.is_running() {
                pipeline.signal(Signal::Kill);
            }
        }
    });
    for (i, file) in burst.batch.iter().enumerate() {
        files.insert(format!("batch-{number}-{i}.jsonl"), file.clone());
    }
    for (mut pipeline, kill) in pipelines {
        if kill == 0 && pipeline.is_running() {
            pipeline.signal(Signal::Terminate);
        }
        pipeline.wait();
    }
    sandbox.run_once().ok();
    // Messages that were loaded and not acknowledged may be left.
    sandbox.run_once().ok();
}

fn drops_give_what_they_give_one_after_the_other(sandbox: &Sandbox) {
    let (store, is_over_amqp) = (sandbox.store(), sandbox.is_over_amqp());
    let config = Config { cases: 4, max_shrink_iters: 4, failure_persistence: None, ..Config::default() };
    let run = TestRunner::new(config).run(&(bursts(), prop::sample::select(&["orgs", "visits"][..])), |(bursts, dataset)| {
        let sandbox = Sandbox::over(if is_over_amqp { Transport::Amqp } else { Transport::Inproc }, store);
        define(&sandbox);
        sandbox.run(["migrate"]).ok();
        let (mut expected, mut files) = (Expected::default(), BTreeMap::new());
        for (number, one) in bursts.iter().enumerate() {
            burst(&sandbox, dataset, number, one, &mut files);
            expected.follow(&sandbox, dataset, &files);
            expected.assert(&sandbox, dataset);
            sandbox.assert_booked();
            if let Some(unload) = one.unload {
                let ids = sandbox.query("SELECT id, source FROM {raw.loads} WHERE status = 'loaded' ORDER BY id");
                let [Some(id), Some(source)] = &ids[unload % ids.len()][..] else { panic!("{ids:?}") };
                sandbox.run(["unload", id]).ok();
                let prefix = format!("{} ", source.rsplit('/').next().expect("a path"));
                for values in expected.rows.values_mut() {
                    values.retain(|value| !value.starts_with(&prefix));
                }
                expected.assert(&sandbox, dataset);
                sandbox.assert_booked();
            }
        }
        Ok::<(), TestCaseError>(())
    });
    run.unwrap_or_else(|failure| panic!("{failure}"));
}
