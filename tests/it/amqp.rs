//! RabbitMQ between reader and parsers: what is published arrives, and what cannot be loaded is set aside.

mod booking; // messages of other programs in the ledger
mod queues; // several of them for a dataset
mod faults; // a broker that stops, blocks, forgets or refuses
mod rig;

use std::collections::BTreeSet;
use std::time::Duration;

use dataloader::record::chunk::ChunkBody;
use dataloader::retry::RetryPolicy;
use dataloader::transport::amqp::consumer::Phase;
use dataloader::transport::amqp::dead_letters::{self, DeadLetterEntry};
use dataloader::transport::piece::{Content, Piece};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

use crate::support::wait_until;
use rig::{IN_FLIGHT, Rig, Shared, lines};

/// Settles a piece as the writer does after its commit.
fn commit(piece: Piece) {
    piece.receipt.settle();
}

fn text(piece: &Piece) -> String {
    let body = match &piece.content {
        Content::Chunk(chunk) => &chunk.body,
        Content::Foreign(message) => &message.chunk.body,
        Content::End(_) => return String::new(),
    };
    match body {
        ChunkBody::Records { text, .. } => String::from_utf8_lossy(text).into_owned(),
        ChunkBody::Rejects(_) => String::new(),
    }
}

/// A consumer's `settle` that commits everything and keeps the texts.
fn commit_and_note(texts: &Shared<String>) -> impl FnMut(Piece) + Send + 'static {
    let texts = texts.clone();
    move |piece| {
        texts.lock().push(text(&piece));
        commit(piece);
    }
}

#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn what_is_published_arrives_as_it_was_cut_and_is_reported_when_confirmed() {
    let rig = Rig::new();
    let texts = Shared::default();
    let consumer = rig.consumer(RetryPolicy::Limited, commit_and_note(&texts));
    let publisher = rig.publisher(RetryPolicy::Limited);
    let (events, event_parts) = publisher.publish(&rig.dataset("events"), &lines(2_500));
    let (orgs, org_parts) = publisher.publish(&rig.dataset("orgs"), b"[ {\"organization_key\": \"a\"} ]");
    assert_eq!((event_parts.len(), org_parts.len()), (4, 2));
    publisher.wait_finished(events);
    publisher.wait_finished(orgs);
    let finished = publisher.finished.lock().iter().find(|published| published.load.key == events).cloned().expect("just seen");
    assert_eq!((finished.end.records, finished.load.dataset.name.as_str(), finished.end.error), (2_500, "events", None));
    assert_eq!(publisher.budget.available_permits(), IN_FLIGHT);
    consumer.wait_for(&event_parts);
    consumer.wait_for(&org_parts);
    assert!(texts.lock().contains(&"{\"organization_key\": \"a\"}".to_owned()));
    publisher.end(&rig).expect("all was confirmed");
    consumer.end(&rig, Phase::Drain).expect("all was settled");
    assert_eq!((rig.queues.waiting("events"), rig.queues.waiting("orgs"), rig.queues.waiting("dead")), (0, 0, 0));
}

#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn what_was_not_settled_is_delivered_again() {
    let rig = Rig::new();
    let publisher = rig.publisher(RetryPolicy::Limited);
    let (key, parts) = publisher.publish(&rig.dataset("events"), &lines(3_000));
    publisher.wait_finished(key);
    publisher.end(&rig).expect("all was confirmed");
    // Killed before its commit, with everything in flight.
    let kept = Shared::default();
    let keep = kept.clone();
    let killed = rig.consumer(RetryPolicy::Limited, move |piece| keep.lock().push(piece));
    killed.wait_for(&parts);
    killed.kill(&rig);
    let next = rig.consumer(RetryPolicy::Limited, commit);
    next.wait_for(&parts);
    next.end(&rig, Phase::UntilEmpty).expect("the queues are empty");
    // A verdict for a consumer that is gone goes nowhere.
    kept.lock().drain(..).for_each(commit);
    assert_eq!(rig.queues.waiting("events"), 0);
}

#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn a_drained_consumer_settles_what_it_has_and_leaves_the_rest() {
    let rig = Rig::new();
    let publisher = rig.publisher(RetryPolicy::Limited);
    let texts: Vec<_> = (0..80).map(|_| publisher.publish(&rig.dataset("events"), &lines(1_000))).collect();
    texts.iter().for_each(|(key, _)| publisher.wait_finished(*key));
    publisher.end(&rig).expect("all was confirmed");
    let kept = Shared::default();
    let keep = kept.clone();
    let consumer = rig.consumer(RetryPolicy::Limited, move |piece| keep.lock().push(piece));
    wait_until("something is in flight", || !kept.lock().is_empty());
    consumer.set(Phase::Drain);
    // What arrived and was not handed on goes back.
    wait_until("the rest is in the queue again", || rig.queues.waiting("events") as usize + kept.lock().len() == 160);
    assert!(!consumer.has_ended(), "pieces are in flight");
    let settled = kept.lock().len();
    kept.lock().drain(..).for_each(commit);
    consumer.end(&rig, Phase::Drain).expect("all was settled");
    assert_eq!(rig.queues.waiting("events") as usize, 160 - settled);
}

#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn what_may_not_be_held_waits_with_the_broker_and_the_connection_lives() {
    let url = std::env::var("AMQP_URL").expect("AMQP_URL is not set: start the tests with ./run.sh test");
    // A broker that is not heard for two heartbeats is taken for dead.
    let rig = Rig::on(&format!("{url}?heartbeat=2"));
    let publisher = rig.publisher(RetryPolicy::Limited);
    let record = |id: usize| format!("{{\"id\":\"{id}\",\"user_email\":\"{}\"}}\n", "x".repeat(6 << 20));
    let text: String = (0..10).map(record).collect();
    let (key, parts) = publisher.publish(&rig.dataset("events"), text.as_bytes());
    publisher.wait_finished(key);
    publisher.end(&rig).expect("all was confirmed");
    let kept = Shared::default();
    let keep = kept.clone();
    let consumer = rig.consumer(RetryPolicy::Limited, move |piece| keep.lock().push(piece));
    wait_until("the budget is used up", || kept.lock().len() >= 3);
    std::thread::sleep(Duration::from_secs(10));
    assert!(kept.lock().len() <= 4, "{} messages of 6 MiB, with rows beside them, are more than 32 MiB", kept.lock().len());
    wait_until("the others come as those are settled", || {
        kept.lock().drain(..).for_each(commit);
        consumer.seen.lock().len() >= parts.len()
    });
    assert_eq!(consumer.seen.lock().len(), parts.len(), "none came twice, as they would on another connection");
    kept.lock().drain(..).for_each(commit);
    consumer.end(&rig, Phase::Drain).expect("all was settled");
    assert_eq!(rig.queues.waiting("events"), 0);
}

#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn until_empty_ends_when_everything_is_settled() {
    let rig = Rig::new();
    let publisher = rig.publisher(RetryPolicy::Limited);
    let (_, parts) = publisher.publish(&rig.dataset("events"), &lines(40_000));
    publisher.end(&rig).expect("all was confirmed");
    let consumer = rig.consumer(RetryPolicy::Limited, commit);
    let seen = consumer.seen.clone();
    consumer.end(&rig, Phase::UntilEmpty).expect("the queues are empty");
    assert_eq!(seen.lock().iter().copied().collect::<BTreeSet<_>>(), parts);
    assert_eq!(rig.queues.waiting("events"), 0);
}

#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn messages_of_other_programs_arrive_many_at_a_time() {
    let rig = Rig::new();
    let texts = Shared::default();
    let consumer = rig.consumer(RetryPolicy::Limited, commit_and_note(&texts));
    // The queues are there when something came through them.
    let publisher = rig.publisher(RetryPolicy::Limited);
    let (_, parts) = publisher.publish(&rig.dataset("events"), b"{}");
    consumer.wait_for(&parts);
    let sent: BTreeSet<String> = (0..2_000).map(|id| format!("{{\"id\":{id}}}")).collect();
    rig.queues.send("events", sent.iter().map(|body| (BasicProperties::default(), body.as_bytes())));
    wait_until("all have come", || sent.is_subset(&texts.lock().iter().cloned().collect()));
    consumer.end(&rig, Phase::Drain).expect("all was settled");
}

#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn dead_letters_have_a_reason_and_can_be_replayed() {
    let rig = Rig::new();
    let texts = Shared::default();
    let consumer = rig.consumer(RetryPolicy::Limited, commit_and_note(&texts));
    let publisher = rig.publisher(RetryPolicy::Limited);
    let (_, parts) = publisher.publish(&rig.dataset("events"), b"{\"id\":\"first\"}");
    consumer.wait_for(&parts);
    let mut headers = FieldTable::default();
    headers.insert("kind".into(), AMQPValue::LongString("chunks".into()));
    let shop = BasicProperties::default().with_app_id("shop".into()).with_message_id("7".into());
    rig.queues.send("events", [(shop.clone(), &b"hello"[..])]);
    wait_until("the first is set aside", || rig.queues.waiting("dead") == 1);
    rig.queues.send("orgs", [(BasicProperties::default().with_headers(headers.clone()), &b"{}"[..])]);
    wait_until("the second is set aside", || rig.queues.waiting("dead") == 2);

    let list = || rig.dead_letters().expect("listed");
    let entry = |dataset: &str, reason: &str, detail: &str, bytes| DeadLetterEntry {
        dataset: Some(dataset.to_owned()),
        reason: reason.to_owned(),
        detail: detail.to_owned(),
        app_id: None,
        message_id: None,
        source: None,
        bytes,
    };
    let not_json = "the body is not an array, an object or NDJSON: line 1, column 1 (byte 0): \
                    the text begins with no object or array but with `h`";
    let first = DeadLetterEntry {
        app_id: Some("shop".to_owned()),
        message_id: Some("7".to_owned()),
        ..entry("events", "malformed_body", not_json, 5)
    };
    let second = entry("orgs", "unknown_kind", "the header `kind` is `chunks`", 2);
    // Looking changes nothing, however often.
    for _ in 0..3 {
        assert_eq!(list(), [first.clone(), second.clone()]);
    }

    let replay = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        rig.runtime.block_on(dead_letters::replay(&rig.broker(), &rig.topology(), &names)).expect("replayed")
    };
    assert!(replay(&[]).is_empty());
    assert_eq!(replay(&["orgs"]).into_iter().collect::<Vec<_>>(), [("orgs".to_owned(), 1)]);
    // It can still not be decoded: with the headers that it first had, and one reason.
    wait_until("it is set aside again", || rig.queues.waiting("dead") == 2);
    assert_eq!(list(), [first, second]);
    consumer.end(&rig, Phase::Drain).expect("all was settled");

    // In the meantime somebody taught us to read it.
    assert_eq!(replay(&["events", "orgs"]).len(), 2);
    assert_eq!((rig.queues.waiting("dead"), rig.queues.waiting("events"), rig.queues.waiting("orgs")), (0, 1, 1));
    let hello = &rig.queues.take("events")[0];
    assert_eq!(hello.body, b"hello");
    assert_eq!((hello.properties.app_id(), hello.properties.message_id()), (shop.app_id(), shop.message_id()));
    assert_eq!(hello.headers(), FieldTable::default());
    assert_eq!(rig.queues.take("orgs")[0].headers(), headers);
}

#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn a_message_that_keeps_failing_becomes_a_dead_letter_and_holds_up_no_other() {
    let rig = Rig::new();
    let texts = Shared::default();
    let notes = texts.clone();
    let consumer = rig.consumer(RetryPolicy::Limited, move |piece| {
        let text = text(&piece);
        notes.lock().push(text.clone());
        if text.contains("failing") {
            drop(piece);
        } else if text.contains("forbidden") {
            piece.receipt.refuse("other_body", "seen with another body");
        } else {
            commit(piece);
        }
    });
    let publisher = rig.publisher(RetryPolicy::Limited);
    let events = rig.dataset("events");
    for id in ["failing", "forbidden"] {
        publisher.publish(&events, format!("{{\"id\":\"{id}\"}}").as_bytes());
    }
    let (_, parts) = publisher.publish(&events, &lines(50_000));
    consumer.wait_for(&parts);
    wait_until("the bad ones are set aside", || rig.queues.waiting("dead") == 2);
    let count = |id: &str| texts.lock().iter().filter(|text| text.contains(id)).count();
    assert_eq!((count("failing"), count("forbidden")), (5, 1));
    let letters = rig.dead_letters().expect("listed");
    let why: BTreeSet<_> = letters.iter().map(|letter| (letter.reason.as_str(), letter.detail.as_str())).collect();
    let expected = [("failed", "failed 5 times, at last: the pipeline dropped it"), ("other_body", "seen with another body")];
    assert_eq!(why, BTreeSet::from(expected));
    assert!(letters.iter().all(|letter| letter.source.as_deref() == Some("test.json")));
    publisher.end(&rig).expect("all was confirmed");
    consumer.end(&rig, Phase::UntilEmpty).expect("all was settled");
}
