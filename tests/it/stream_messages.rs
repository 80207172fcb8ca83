//! Messages: what other programs send is loaded to the end of the pipeline, what cannot be loaded is set aside and can be sent
//! again, and what a producer sends says which part of which file it is.

use std::collections::BTreeMap;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

use crate::support::{Message, Page, Sandbox, Store, Transport, event, events_over_days, host_name, over_amqp, sha256};

over_amqp!(
    messages_of_other_programs_are_loaded_and_booked_by_sender,
    a_message_with_an_id_is_loaded_once_and_another_body_under_it_is_a_dead_letter,
    what_cannot_be_decoded_is_listed_and_sent_again_as_it_came,
    the_page_says_of_dead_letters_what_the_command_says_and_sends_them_again,
    a_file_is_loaded_once_in_whatever_order_and_however_often_its_messages_come,
    what_version_0_1_0_left_in_the_queues_is_loaded,
    very_many_dead_letters_are_listed_in_constant_memory,
);

/// Loads what is in the queues.
fn consume(sandbox: &Sandbox) {
    sandbox.pipeline(["--role", "consumer", "--once"]).run().ok();
}

fn from(app_id: &str, message_id: &str) -> BasicProperties {
    let mut properties = BasicProperties::default();
    if !app_id.is_empty() {
        properties = properties.with_app_id(app_id.into());
    }
    if !message_id.is_empty() {
        properties = properties.with_message_id(message_id.into());
    }
    properties
}

fn messages_of_other_programs_are_loaded_and_booked_by_sender(sandbox: &Sandbox) {
    consume(sandbox); // Now there are queues.
    let record = |id: &str| event(id, "ada", "2024-05-01 10:00:00");
    let [array, object] = [format!(" [{},\n{}]", record("1"), record("2")), record("3")];
    let lines = format!("{}\r\n{}\n", record("4"), record("5"));
    let unfit = format!("[{{\"id\":\"x\"}}, {}, 7]", record("6"));
    let bodies = [
        (from("shop", ""), array.as_bytes()),
        (from("shop", "1"), object.as_bytes()),
        (from("", ""), lines.as_bytes()),
        (from("shop", ""), unfit.as_bytes()),
        (from("shop", ""), b""),
        (from("shop", "2"), b" \n"),
    ];
    sandbox.queues().send("events", bodies);
    sandbox.queues().send("orgs", [(from("crm", "1"), &b"{\"organization_key\":\"a\"}"[..])]);
    // Between them a file.
    sandbox.drop_in("events", "a.jsonl", record("7"));
    let summary = sandbox.run_once().code(3).json();
    assert_eq!(summary["datasets"][0]["files"], 1, "messages are no files: {summary}");

    assert_eq!(sandbox.lines("SELECT id FROM {raw.events} ORDER BY id"), ["1", "2", "3", "4", "5", "6", "7"]);
    let ledger = "SELECT dataset, status, records_read, rows_loaded, rows_rejected, records_skipped, finished_at, sha256, host \
                  FROM {raw.loads} WHERE source = '{source}'";
    let booked = |source: &str| sandbox.lines(&ledger.replace("{source}", source));
    assert_eq!(booked("amqp:shop"), ["events|open|6|4|2|0|NULL|NULL|NULL"]);
    assert_eq!(booked("amqp"), ["events|open|2|2|0|0|NULL|NULL|NULL"]);
    assert_eq!(booked("amqp:crm"), ["orgs|open|1|1|0|0|NULL|NULL|NULL"]);
    assert_eq!(sandbox.count("raw.loads"), 4, "one row per sender, and one of the file");
    let reasons =
        "SELECT r.reason FROM {raw.rejects} r JOIN {raw.loads} l ON l.id = r.load_id WHERE l.source = 'amqp:shop' ORDER BY 1";
    assert_eq!(sandbox.lines(reasons), ["missing_required", "not_an_object"]);
    let mut exported: Vec<String> = sandbox.run(["rejects", "export"]).ok().stdout.lines().map(str::to_owned).collect();
    exported.sort();
    assert_eq!(exported, ["7", "{\"id\":\"x\"}"]);
    assert_eq!(sandbox.lines("SELECT date, total_events, unique_events FROM {modelled.events_by_date}"), ["2024-05-01|7|7"]);
    assert_eq!(sandbox.queues().waiting("dead"), 0);
    sandbox.assert_settled();
}

fn a_message_with_an_id_is_loaded_once_and_another_body_under_it_is_a_dead_letter(sandbox: &Sandbox) {
    consume(sandbox);
    let body = event("1", "ada", "2024-05-01 10:00:00");
    let other_body = event("2", "ada", "2024-05-01 10:00:00");
    // An id is its sender's own, and a message without one is another each time.
    let sent = [("shop", "1"), ("shop", "1"), ("crm", "1"), ("shop", "2"), ("", "1"), ("shop", ""), ("shop", "")];
    sandbox.queues().send("events", sent.map(|(app_id, message_id)| (from(app_id, message_id), body.as_bytes())));
    consume(sandbox);
    assert_eq!(sandbox.count("raw.events"), 6);
    // Another process, another day.
    sandbox.queues().send("events", [(from("shop", "1"), body.as_bytes()), (from("shop", "1"), other_body.as_bytes())]);
    consume(sandbox);
    assert_eq!(sandbox.lines("SELECT id, count(*) FROM {raw.events} GROUP BY id"), ["1|6"]);
    assert_eq!(sandbox.lines("SELECT rows_loaded FROM {raw.loads} WHERE source = 'amqp:shop'"), ["4"]);

    let letters = sandbox.queues().peek("dead");
    assert_eq!(letters.len(), 1);
    assert_eq!((&letters[0].body[..], letters[0].header("reason").as_deref()), (other_body.as_bytes(), Some("message_id")));
    let listed = sandbox.run(["rejects", "list", "--format", "json"]).ok().json();
    let letter = &listed["dead_letters"][0];
    assert_eq!((&letter["dataset"], &letter["app_id"], &letter["message_id"]), (&"events".into(), &"shop".into(), &"1".into()));
    assert_eq!(listed["rejects"], serde_json::json!([]));
    sandbox.assert_settled();
}

fn what_cannot_be_decoded_is_listed_and_sent_again_as_it_came(sandbox: &Sandbox) {
    consume(sandbox);
    let mut headers = FieldTable::default();
    headers.insert("kind".into(), AMQPValue::LongString("chunks".into()));
    headers.insert("colour".into(), AMQPValue::LongString("blue".into()));
    sandbox.queues().send("events", [(from("shop", "7"), &b"hello"[..])]);
    sandbox.queues().send("orgs", [(BasicProperties::default().with_headers(headers), &b"{}"[..])]);
    let good = event("1", "ada", "2024-05-01 10:00:00");
    sandbox.queues().send("events", [(from("shop", "8"), good.as_bytes())]);
    consume(sandbox);
    assert_eq!(sandbox.lines("SELECT id FROM {raw.events}"), ["1"], "it holds up no other");

    let letters = sandbox.queues().peek("dead");
    let reasons: BTreeMap<Option<String>, &Message> = letters.iter().map(|letter| (letter.header("reason"), letter)).collect();
    let [malformed, unknown] = ["malformed_body", "unknown_kind"].map(|reason| reasons[&Some(reason.to_owned())]);
    assert_eq!((&malformed.body[..], &unknown.body[..]), (&b"hello"[..], &b"{}"[..]));
    assert!(malformed.header("detail").is_some_and(|detail| detail.contains("line 1, column 1")), "{malformed:?}");
    assert!(unknown.header("detail").is_some_and(|detail| detail.contains("`chunks`")), "{unknown:?}");
    assert_eq!(malformed.properties.message_id().as_ref().map(|id| id.as_str()), Some("7"));

    let listed = sandbox.run(["rejects", "list", "--format", "json"]).ok().json();
    let mut listed: Vec<String> = listed["dead_letters"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|letter| format!("{} {} {} {}", letter["dataset"], letter["reason"], letter["app_id"], letter["bytes"]))
        .collect();
    listed.sort();
    assert_eq!(listed, [r#""events" "malformed_body" "shop" 5"#, r#""orgs" "unknown_kind" null 2"#]);
    let of_orgs = sandbox.run(["rejects", "list", "--dataset", "orgs"]).ok().stdout;
    assert!(of_orgs.contains("unknown_kind") && !of_orgs.contains("malformed_body"), "{of_orgs}");

    // Sent again, each to the queue that it came from, and as it came.
    let replayed = sandbox.run(["rejects", "replay", "--dataset", "orgs", "--format", "json"]).ok().json();
    assert_eq!((&replayed["datasets"][0]["republished"], &replayed["datasets"][0]["read"]), (&1.into(), &0.into()));
    assert_eq!((sandbox.queues().waiting("dead"), sandbox.queues().waiting("orgs")), (1, 1));
    let mut names = sandbox.queues().peek("orgs")[0].header_names();
    names.sort();
    assert_eq!(names, ["colour", "kind"]);
    // Nobody has taught us to read it in the meantime.
    consume(sandbox);
    assert_eq!((sandbox.queues().waiting("dead"), sandbox.queues().waiting("orgs")), (2, 0));
    sandbox.run(["rejects", "replay"]).ok();
    assert_eq!((sandbox.queues().waiting("dead"), sandbox.queues().waiting("events"), sandbox.queues().waiting("orgs")), (0, 1, 1));
    assert_eq!(sandbox.queues().peek("events")[0].body, b"hello");
}

fn the_page_says_of_dead_letters_what_the_command_says_and_sends_them_again(sandbox: &Sandbox) {
    consume(sandbox);
    for (dataset, id, body) in [("events", "<b>7", "hello"), ("events", "8", "{"), ("orgs", "9", "[1")] {
        sandbox.queues().send(dataset, [(from("shop", id), body.as_bytes())]);
    }
    sandbox.queues().send("events", [(from("shop", ""), &b"[7]"[..])]);
    sandbox.pipeline(["--role", "consumer", "--once"]).run().code(3);
    let mut process = sandbox.command(["serve", "--http", "0"]).spawn();
    let page = Page::of(&mut process);
    for (query, options, letters) in [
        ("", vec![], 3),
        ("?dataset=orgs", vec!["--dataset", "orgs"], 1),
        ("?reason=not_an_object", vec!["--reason", "not_an_object"], 0),
    ] {
        let said = sandbox.run(["rejects", "list", "--format", "json"].into_iter().chain(options)).ok().json();
        assert_eq!(said["dead_letters"].as_array().map(Vec::len), Some(letters), "{query}: {said}");
        assert_eq!(page.get(&format!("/api/rejects{query}")).json(), said, "{query}");
    }
    let body = page.get("/rejects").body;
    assert!(body.contains("3 messages could not be loaded") && body.contains("&lt;b&gt;7"), "{body}");
    assert!(!page.get("/rejects?reason=not_an_object").body.contains("Dead letters"));

    let token = body.split("name=\"token\" value=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("the page has forms");
    let asks = page.post("/rejects/replay", &format!("token={token}")).body;
    assert!(asks.contains("Replay 1 reject and 3 dead letters?"), "{asks}");
    assert_eq!(sandbox.queues().waiting("dead"), 3, "nothing happens before the confirmation");
    let done = page.post("/rejects/replay", &format!("token={token}&confirm=yes")).body;
    assert!(done.contains("1 still rejected. Dead letters in its queue again: 2."), "{done}");
    assert_eq!((sandbox.queues().waiting("dead"), sandbox.queues().waiting("events"), sandbox.queues().waiting("orgs")), (0, 2, 1));
}

fn a_file_is_loaded_once_in_whatever_order_and_however_often_its_messages_come(sandbox: &Sandbox) {
    let broken = format!("{}{{\"id\":", events_over_days("b", 1_100));
    sandbox.drop_in("events", "a.jsonl", events_over_days("a", 2_500));
    sandbox.drop_in("events", "b.jsonl", &broken);
    sandbox.pipeline(["--role", "producer", "--once"]).run().code(3);
    let messages = sandbox.queues().take("events");
    assert_eq!(messages.len(), 4 + 3, "chunks and ends");
    // The ends first, and all of it twice; then by another consumer the first parts once more.
    let send = |messages: &mut dyn Iterator<Item = &Message>| {
        sandbox.queues().send("events", messages.map(|message| (message.properties.clone(), &message.body[..])));
    };
    send(&mut messages.iter().rev().chain(messages.iter()));
    sandbox.pipeline(["--role", "consumer", "--once"]).run().code(3);
    send(&mut messages.iter().take(2));
    consume(sandbox);
    assert_eq!(sandbox.lines("SELECT count(*), count(DISTINCT id) FROM {raw.events}"), ["3600|3600"]);
    let ledger = "SELECT status, records_read, rows_loaded FROM {raw.loads} ORDER BY status";
    assert_eq!(sandbox.lines(ledger), ["failed|1100|1100", "loaded|2500|2500"]);
    sandbox.assert_settled();
}

fn what_version_0_1_0_left_in_the_queues_is_loaded(sandbox: &Sandbox) {
    const LOAD_KEY: &str = "0190f3f4-0000-7000-8000-000000000001";
    consume(sandbox);
    let message = |kind: &str, content_type: &str, place: Option<[i64; 3]>| {
        let mut headers = FieldTable::default();
        for (name, value) in [("kind", kind), ("dataset", "events"), ("load_key", LOAD_KEY), ("source", "/inbox/events/a.json")] {
            headers.insert(name.into(), AMQPValue::LongString(value.into()));
        }
        for (name, value) in ["seq", "first_ordinal", "first_byte_offset"].into_iter().zip(place.into_iter().flatten()) {
            headers.insert(name.into(), AMQPValue::LongLongInt(value));
        }
        let part = place.map_or_else(|| "end".to_owned(), |[seq, ..]| seq.to_string());
        from("dataloader", &format!("{LOAD_KEY}/{part}"))
            .with_content_type(content_type.into())
            .with_delivery_mode(2)
            .with_headers(headers)
    };
    let records = format!("[{},{{}}]", event("1", "ada", "2024-05-01 10:00:00"));
    let rejects = r#"[{"ordinal":3,"byte_offset":500,"reason":"too_large","detail":"more than 8 MiB","record":"eyJpZCI6"}]"#;
    let end = r#"{"chunks":2,"records":3,"bytes":9000000,"error":null}"#;
    sandbox.queues().send(
        "events",
        [
            (message("chunk", "application/json", Some([0, 1, 1])), records.as_bytes()),
            (message("rejects", "application/json", Some([1, 3, 500])), rejects.as_bytes()),
            (message("end", "application/json", None), end.as_bytes()),
        ],
    );
    sandbox.pipeline(["--role", "consumer", "--once"]).run().code(3);
    let ledger = "SELECT load_key, source, bytes, status, records_read, rows_loaded, rows_rejected, sha256, host FROM {raw.loads}";
    assert_eq!(sandbox.lines(ledger), [format!("{LOAD_KEY}|/inbox/events/a.json|9000000|loaded|3|1|2|NULL|NULL")]);
    let rejects = "SELECT ordinal, byte_offset, reason, record FROM {raw.rejects} ORDER BY ordinal";
    let second = records.find("{}").expect("it is in there");
    assert_eq!(
        sandbox.lines(rejects),
        [format!("2|{second}|missing_required|\\x7b7d"), "3|500|too_large|\\x7b226964223a".to_owned()]
    );
    assert_eq!(sandbox.queues().waiting("dead"), 0);
    sandbox.assert_settled();
}

/// What is asserted of every message of a file.
#[track_caller]
fn assert_is_part(message: &Message, kind: &str, load_key: &str, source: &str) {
    let header = |name: &str| message.header(name).unwrap_or_default();
    assert_eq!([header("kind"), header("dataset"), header("load_key")], [kind, "events", load_key]);
    assert!(header("source").ends_with(source), "{}", header("source"));
    assert_eq!(*message.properties.delivery_mode(), Some(2), "persistent");
}

#[track_caller]
fn assert_place(message: &Message, seq: u64, first_ordinal: u64, first_byte_offset: usize) {
    let place = ["seq", "first_ordinal", "first_byte_offset"].map(|name| message.header(name).unwrap_or_default());
    assert_eq!(place, [seq.to_string(), first_ordinal.to_string(), first_byte_offset.to_string()]);
}

/// Publishes one file; returns its load key and its messages in the order of their places, the end last.
fn publish(sandbox: &Sandbox, name: &str, contents: &str) -> (String, Vec<Message>) {
    sandbox.drop_in("events", name, contents);
    sandbox.pipeline(["--role", "producer", "--once"]).run().ok();
    let processed = sandbox.names_in("events/processed");
    let file = processed.iter().map(|name| String::from_utf8_lossy(name)).find(|file| file.ends_with(name)).expect("it was moved");
    let mut messages = sandbox.queues().peek("events");
    messages.sort_by_key(|message| message.header("seq").map_or(u64::MAX, |seq| seq.parse().expect("a number")));
    (file[..36].to_owned(), messages)
}

fn content_type(message: &Message) -> &str {
    message.properties.content_type().as_ref().map_or("", |text| text.as_str())
}

#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn a_file_of_lines_is_messages_that_hold_its_own_bytes() {
    let sandbox = Sandbox::over(Transport::Amqp, Store::Sqlite);
    let contents = "\n".to_owned() + &events_over_days("a", 1_200);
    let (load_key, messages) = publish(&sandbox, "a.jsonl", &contents);
    let [first, second, end] = &messages[..] else { panic!("{} messages", messages.len()) };
    let second_begins = contents.match_indices('\n').nth(1_000).map(|(at, _)| at + 1).expect("a line end");
    for (message, seq, ordinal, offset) in [(first, 0, 1, 1), (second, 1, 1_001, second_begins)] {
        assert_is_part(message, "chunk", &load_key, "/inbox/events/a.jsonl");
        assert_place(message, seq, ordinal, offset);
        assert_eq!(content_type(message), "application/x-ndjson");
        assert!(contents.as_bytes()[offset..].starts_with(&message.body), "the file's own bytes");
    }
    assert_eq!(
        [first, second].map(|message| message.body.split(|byte| *byte == b'\n').filter(|l| !l.is_empty()).count()),
        [1_000, 200]
    );
    assert_is_part(end, "end", &load_key, "/inbox/events/a.jsonl");
    let totals: serde_json::Value = serde_json::from_slice(&end.body).expect("JSON");
    let expected = serde_json::json!({"records": 1_200, "bytes": contents.len(), "error": null, "sha256": sha256(&contents), "host": host_name()});
    assert_eq!(totals, expected);
}

#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn an_array_is_messages_that_are_arrays_and_what_is_too_large_is_told() {
    let sandbox = Sandbox::over(Transport::Amqp, Store::Sqlite);
    let large = event(&"x".repeat(8 << 20), "ada", "2024-05-01 10:00:00");
    let [one, two] = ["1", "2"].map(|id| event(id, "ada", "2024-05-01 10:00:00"));
    let contents = format!("[{one} ,\n{large}, {two}]");
    let (load_key, messages) = publish(&sandbox, "a.json", &contents);
    let [first, rejects, last, end] = &messages[..] else { panic!("{} messages", messages.len()) };
    for (message, kind) in [(first, "chunk"), (rejects, "rejects"), (last, "chunk"), (end, "end")] {
        assert_is_part(message, kind, &load_key, "/inbox/events/a.json");
    }
    let offsets = [&one, &large, &two].map(|record| contents.find(record.as_str()).expect("it is in there"));
    for (seq, (message, offset)) in (0..).zip([first, rejects, last].into_iter().zip(offsets)) {
        assert_place(message, seq, seq + 1, offset);
    }
    for (message, record) in [(first, &one), (last, &two)] {
        assert_eq!(content_type(message), "application/json");
        assert_eq!(String::from_utf8_lossy(&message.body), format!("[{record}]"));
    }
    assert!(rejects.body.len() < 100_000, "64 KiB of it are kept: {}", rejects.body.len());

    sandbox.pipeline(["--role", "consumer", "--once"]).run().code(3);
    assert_eq!(sandbox.lines("SELECT id FROM {raw.events} ORDER BY id"), ["1", "2"]);
    let [_, offset, _] = offsets;
    let found = "SELECT ordinal, byte_offset, reason, length(record) FROM {raw.rejects}";
    assert_eq!(sandbox.lines(found), [format!("2|{offset}|too_large|{}", 64 << 10)]);
    sandbox.assert_settled();
}

#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn queues_are_declared_as_they_always_were() {
    let sandbox = Sandbox::over(Transport::Amqp, Store::Sqlite);
    consume(&sandbox);
    let queues = sandbox.queues();
    let arguments = |delivery_limit: i32, more: &[(&str, &str)]| {
        let mut arguments = FieldTable::default();
        arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(delivery_limit));
        for (name, value) in [("x-queue-type", "quorum")].iter().chain(more) {
            arguments.insert((*name).into(), AMQPValue::LongString((*value).into()));
        }
        arguments
    };
    let dead = queues.name("dead");
    let set_aside = [
        ("x-dead-letter-exchange", ""),
        ("x-dead-letter-routing-key", &dead),
        ("x-dead-letter-strategy", "at-least-once"),
        ("x-overflow", "reject-publish"),
    ];
    for dataset in ["events", "orgs"] {
        queues.declare(dataset, arguments(1_000_000, &set_aside)).expect("the arguments of version 0.1.0");
    }
    queues.declare("dead", arguments(1_000_000, &[])).expect("the arguments of version 0.1.0");
    let error = queues.declare("events", arguments(20, &set_aside)).expect_err("the broker compares them");
    assert!(error.to_string().contains("x-delivery-limit"), "{error}");
}

fn very_many_dead_letters_are_listed_in_constant_memory(sandbox: &Sandbox) {
    const LETTERS: usize = 1_000;
    /// What the program takes with a page of them is below, what it takes with all of them above.
    const MOST_KB: u64 = 64_000;
    consume(sandbox);
    let mut headers = FieldTable::default();
    headers.insert("kind".into(), AMQPValue::LongString("of another program".into()));
    headers.insert("source".into(), AMQPValue::LongString("x".repeat(100_000).into()));
    let poison = BasicProperties::default().with_headers(headers);
    sandbox.queues().send("events", (0..LETTERS).map(|_| (poison.clone(), b"{}".as_slice())));
    consume(sandbox);
    for format in ["text", "json"] {
        let (listed, peak) = Sandbox::wait_and_measure(sandbox.spawn(["rejects", "list", "--format", format]));
        let listed = listed.ok();
        println!("{format}: {peak} kB at most");
        assert!((1..MOST_KB).contains(&peak), "{format}: {peak} kB");
        if format == "json" {
            assert_eq!(listed.json()["dead_letters"].as_array().map(Vec::len), Some(LETTERS));
        } else {
            assert_eq!(listed.stdout.matches("unknown_kind").count(), LETTERS);
        }
    }
}
