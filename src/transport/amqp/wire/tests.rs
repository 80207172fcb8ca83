//! What is encoded comes back the same. Messages of other programs are understood, and what is no message says why.

mod fuzz;

use proptest::prelude::*;

use super::*;
use crate::dataset::ColumnType;
use crate::record::chunk::CHUNK_RECORDS;

fn dataset(name: &str) -> Arc<Dataset> {
    Arc::new(Dataset::of_ids(name, ColumnType::Text))
}

fn load() -> Load {
    Load { key: Uuid::now_v7(), dataset: dataset("events"), source: "inbox/events/day 1 'ß'.json".to_owned() }
}

fn chunks(text: &[u8]) -> Vec<Chunk> {
    let mut splitter = Splitter::new(text);
    let mut chunks = Vec::new();
    while let Ok(Some(chunk)) = splitter.next_chunk() {
        chunks.push(chunk);
    }
    chunks
}

fn encode(load: &Load, content: Content) -> Message {
    match content {
        Content::Chunk(chunk) => encode_chunk(load, chunk),
        Content::End(end) => encode_end(load, &end),
        Content::Foreign(_) => unreachable!("this program publishes no messages of others"),
    }
}

/// Encodes and decodes. Also returns the key of the message.
fn round_trip(load: &Load, content: Content) -> (Arc<Load>, Content, MessageKey) {
    let message = encode(load, content);
    assert_eq!(*message.properties.delivery_mode(), Some(PERSISTENT));
    let envelope = Envelope::open(&message.properties, &message.body, &load.dataset).unwrap();
    let key = envelope.key();
    let (load, content) = envelope.decode(&message.body).unwrap();
    (load, content, key)
}

fn assert_chunk_survives(load: &Load, chunk: Chunk) {
    let (decoded_load, content, _) = round_trip(load, Content::Chunk(chunk.clone()));
    let Content::Chunk(decoded) = content else { panic!("not a chunk: {content:?}") };
    assert_eq!(decoded, chunk);
    assert_eq!((decoded_load.key, &decoded_load.source), (load.key, &load.source));
}

fn headers(message: &Message) -> Vec<(&str, String)> {
    let table = message.properties.headers().as_ref().unwrap();
    let text = |value: &AMQPValue| match value {
        AMQPValue::LongLongInt(number) => number.to_string(),
        other => text_of(Some(other)).unwrap(),
    };
    table.into_iter().map(|(name, value)| (name.as_str(), text(value))).collect()
}

#[test]
fn a_chunk_of_an_array_travels_in_brackets() {
    let load = load();
    let chunk = chunks(b" [ {\"id\":1},\n{\"id\":2} ]").remove(0);
    let message = encode(&load, Content::Chunk(chunk));
    assert_eq!(message.body, b"[{\"id\":1},\n{\"id\":2}]");
    assert_eq!(message.properties.content_type().as_ref().unwrap().as_str(), "application/json");
    let expected = [
        ("dataset", "events".to_owned()),
        ("first_byte_offset", "3".to_owned()),
        ("first_ordinal", "1".to_owned()),
        ("kind", "chunk".to_owned()),
        ("load_key", load.key.to_string()),
        ("seq", "0".to_owned()),
        ("source", load.source),
    ];
    assert_eq!(headers(&message), expected);
}

#[test]
fn a_chunk_of_lines_travels_as_it_stands() {
    let chunk = chunks(b"\xef\xbb\xbf{\"id\":1}\r\nnonsense {\n{\"id\":2}\n").remove(0);
    let message = encode(&load(), Content::Chunk(chunk));
    assert_eq!(message.body, b"{\"id\":1}\r\nnonsense {\n{\"id\":2}");
    assert_eq!(message.properties.content_type().as_ref().unwrap().as_str(), "application/x-ndjson");
}

#[test]
fn every_chunk_of_a_file_survives_the_wire() {
    let load = load();
    let lines: String = (0..2 * CHUNK_RECORDS + 7).map(|i| format!("{{\"id\":{i},\"x\":\"}}{{\\\"\"}}\n")).collect();
    let array = format!("[{}]", lines.trim_end().replace('\n', " ,\n"));
    for text in [lines, array] {
        let chunks = chunks(text.as_bytes());
        assert_eq!(chunks.len(), 3);
        for chunk in chunks {
            assert_chunk_survives(&load, chunk);
        }
    }
}

#[test]
fn rejects_and_totals_survive_the_wire() {
    let load = load();
    let reject = Reject {
        ordinal: 7,
        byte_offset: 1 << 40,
        reason: RejectReason::TooLarge,
        detail: "9 MiB".to_owned(),
        record: (0..=255).cycle().take(64 << 10).collect(),
    };
    let body = ChunkBody::Rejects(vec![reject; 16]);
    assert_chunk_survives(&load, Chunk { seq: 3, first_ordinal: 7, first_byte_offset: 1 << 40, body });
    let failed = Some("line 3, column 1: the text ends inside a record".to_owned());
    for (error, sha256) in [(None, Some(HASH.parse().unwrap())), (failed, None)] {
        let end = FileEnd { records: 3_007, bytes: 1 << 41, error, sha256, host: Some("host".to_owned()) };
        let (_, content, _) = round_trip(&load, Content::End(end.clone()));
        assert!(matches!(content, Content::End(decoded) if decoded == end));
    }
}

/// A SHA-256.
const HASH: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

#[test]
fn an_end_of_version_0_1_0_has_neither_hash_nor_host() {
    let load = load();
    let message = encode(&load, Content::End(FileEnd { records: 3, bytes: 9, error: None, sha256: None, host: None }));
    let decode = |body: &str| {
        Envelope::open(&message.properties, body.as_bytes(), &load.dataset).and_then(|envelope| envelope.decode(body.as_bytes()))
    };
    let Content::End(end) = decode(r#"{"chunks":2,"records":3,"bytes":9,"error":null}"#).unwrap().1 else { panic!("an end") };
    assert_eq!(end, FileEnd { records: 3, bytes: 9, error: None, sha256: None, host: None });
    for wrong in ["", "xyz", &HASH[1..]] {
        let body = format!(r#"{{"records":3,"bytes":9,"error":null,"sha256":"{wrong}","host":"x"}}"#);
        assert_eq!(decode(&body).unwrap_err().reason, "malformed_body", "the ledger could not store it: {wrong}");
    }
}

#[test]
fn a_message_has_the_same_key_whenever_it_is_published_and_no_other_has_it() {
    let load = load();
    let end = || Content::End(FileEnd { records: 2_000, bytes: 1, error: None, sha256: None, host: None });
    let [first, second]: [Chunk; 2] = chunks("{}\n".repeat(2 * CHUNK_RECORDS).as_bytes()).try_into().expect("two chunks");
    let key = |content| round_trip(&load, content).2;
    let keys = [key(Content::Chunk(first.clone())), key(Content::Chunk(second)), key(end())];
    assert_eq!(key(Content::Chunk(first)), keys[0]);
    assert_eq!(keys.iter().collect::<std::collections::HashSet<_>>().len(), 3);
}

#[test]
fn what_is_no_message_of_ours_is_told_why() {
    let load = load();
    let good = || encode(&load, Content::Chunk(chunks(b"[{\"id\":1}]").remove(0)));
    let with = |name: &str, value: AMQPValue| {
        let mut message = good();
        let mut table = message.properties.headers().clone().unwrap();
        table.insert(name.into(), value);
        message.properties = message.properties.with_headers(table);
        message
    };
    let text = |value: &str| AMQPValue::LongString(value.into());
    let cases = [
        (with("kind", text("chunks")), "unknown_kind"),
        (with("kind", AMQPValue::Boolean(true)), "malformed_header"),
        (with("dataset", text("orgs")), "wrong_dataset"),
        (with("load_key", text("7")), "malformed_header"),
        (with("seq", AMQPValue::LongLongInt(-1)), "malformed_header"),
        (with("seq", text("1")), "malformed_header"),
        (Message { body: b"{\"id\":1}".to_vec(), ..good() }, "malformed_body"),
        (Message { body: b"[{\"id\":1]".to_vec(), ..good() }, "malformed_body"),
        (Message { body: Vec::new(), ..good() }, "malformed_body"),
        (with("kind", text("end")), "malformed_body"),
        (with("kind", text("rejects")), "malformed_body"),
    ];
    for (message, reason) in cases {
        let decoded = Envelope::open(&message.properties, &message.body, &load.dataset)
            .and_then(|envelope| envelope.decode(&message.body))
            .unwrap_err();
        assert_eq!(decoded.reason, reason, "{message:?}");
    }
    // Any integer type will do.
    let message = with("seq", AMQPValue::ShortUInt(9));
    let (_, content) = Envelope::open(&message.properties, &message.body, &load.dataset).unwrap().decode(&message.body).unwrap();
    assert!(matches!(content, Content::Chunk(chunk) if chunk.seq == 9));
}

// ---- messages of other programs --------------------------------------------------------------------------------------

fn foreign(properties: &BasicProperties, body: &[u8]) -> Result<(Arc<Load>, ForeignMessage), Undecodable> {
    let (load, content) = Envelope::open(properties, body, &dataset("events"))?.decode(body)?;
    let Content::Foreign(message) = content else { panic!("not foreign: {content:?}") };
    Ok((load, message))
}

fn records(chunk: &Chunk) -> Vec<&[u8]> {
    let ChunkBody::Records { text, spans, .. } = &chunk.body else { panic!("rejects") };
    spans.iter().map(|span| &text[span.start as usize..span.end as usize]).collect()
}

#[test]
fn an_array_an_object_and_lines_are_welcome() {
    let properties = BasicProperties::default();
    for (body, expected) in [
        (&b"[{\"id\":1}, 2]"[..], &[&b"{\"id\":1}"[..], b"2"][..]),
        (b"\xef\xbb\xbf {\"id\":1}\n", &[b"{\"id\":1}"]),
        (b"{\"id\":1}\n{\"id\":x\n{\"id\":3}", &[b"{\"id\":1}", b"{\"id\":x", b"{\"id\":3}"]),
        (b"[]", &[]),
        (b" ", &[]),
        (b"", &[]),
    ] {
        let (_, message) = foreign(&properties, body).unwrap();
        assert_eq!(records(&message.chunk), expected, "{}", String::from_utf8_lossy(body));
        assert_eq!((message.app_id.as_str(), message.message_id), ("", None));
    }
}

#[test]
fn a_message_of_any_size_is_one_chunk() {
    let lines: String = (0..3 * CHUNK_RECORDS).map(|i| format!("{{\"id\":{i}}}\n")).collect();
    for text in [lines.clone(), format!("[{}]", lines.trim_end().replace('\n', ",\n"))] {
        let (_, message) = foreign(&BasicProperties::default(), text.as_bytes()).unwrap();
        assert_eq!(message.chunk.records(), 3 * CHUNK_RECORDS as u64);
        let last = format!("{{\"id\":{}}}", 3 * CHUNK_RECORDS - 1);
        assert_eq!(records(&message.chunk).last(), Some(&last.as_bytes()));
    }
}

#[test]
fn what_is_no_json_is_no_message() {
    for body in [&b"hello"[..], b"[1, 2", b"[{\"id\":1},,{\"id\":2}]", b"[1] 2", b"\xff\xfe{", b"{\"id\":"] {
        assert_eq!(foreign(&BasicProperties::default(), body).unwrap_err().reason, "malformed_body");
    }
    let properties = BasicProperties::default().with_message_id("a\0b".into());
    assert_eq!(foreign(&properties, b"{}").unwrap_err().reason, "malformed_header");
}

#[test]
fn messages_of_a_sender_are_booked_together() {
    let shop = |id: &str| BasicProperties::default().with_app_id("shop".into()).with_message_id(id.into());
    let (one, first) = foreign(&shop("1"), b"{}").unwrap();
    let (two, second) = foreign(&shop("2"), b"[]").unwrap();
    let (other, _) = foreign(&BasicProperties::default(), b"{}").unwrap();
    assert_eq!((one.key, one.source.as_str()), (two.key, "amqp:shop"));
    assert_ne!((one.key, one.source.as_str()), (other.key, other.source.as_str()));
    assert_eq!((first.app_id.as_str(), first.message_id.as_deref()), ("shop", Some("1")));
    assert_ne!(first.digest, second.digest);
    assert_ne!(open_load_key("events", "shop"), open_load_key("orgs", "shop"));
    assert_ne!(open_load_key("events", "shop"), open_load_key("event", "sshop"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_text_that_was_split_survives_the_wire(
        pieces in prop::collection::vec(
            prop::sample::select(vec!["{", "}", "[", "]", ",", " ", "\n", "\"", "\\", "{\"a\":1}", "1", "x", "ß", "\u{feff}"]),
            0..40,
        ),
        in_array in any::<bool>(),
    ) {
        let text = if in_array { format!("[{}]", pieces.concat()) } else { format!("{{}}{}", pieces.concat()) };
        let load = load();
        for chunk in chunks(text.as_bytes()) {
            assert_chunk_survives(&load, chunk);
        }
    }

    #[test]
    fn any_reject_survives_the_wire(record in prop::collection::vec(any::<u8>(), 0..300), detail in "[^\0]*", ordinal in 1u64..1 << 62) {
        let reject = Reject { ordinal, byte_offset: ordinal, reason: RejectReason::InvalidJson, detail, record };
        let body = ChunkBody::Rejects(vec![reject]);
        assert_chunk_survives(&load(), Chunk { seq: ordinal, first_ordinal: ordinal, first_byte_offset: ordinal, body });
    }

    #[test]
    fn no_body_is_too_much(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = foreign(&BasicProperties::default(), &body);
        let message = encode(&load(), Content::Chunk(chunks(b"[1]").remove(0)));
        let _ = Envelope::open(&message.properties, &body, &dataset("events")).unwrap().decode(&body);
    }
}
