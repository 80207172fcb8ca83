//! Any message is understood or told why not, and what is understood can be stored. Any text that was split survives the wire.

use proptest::sample::select;

use super::*;
use crate::fuzz::Target;
use crate::fuzz::records::{RECORDS, records};

/// Messages as text: a line `name: value` for each header and property, an empty line, the body. A value that begins with `#` is a
/// number, with `+` an unsigned one, with `!` no text at all.
const MESSAGES: Target = Target {
    corpus: "messages",
    tokens: &[
        b"kind: chunk\n",
        b"kind: rejects\n",
        b"kind: end\n",
        b"kind: ",
        b"dataset: events\n",
        b"dataset: orgs\n",
        b"\n",
        b"\n\n",
        b": ",
        b"#",
        b"+",
        b"!",
        b"load_key: 0190163d-8694-739b-aea5-966c26f8ad91\n",
        b"source: x\n",
        b"seq: #0\n",
        b"seq: #9223372036854775807\n",
        b"first_ordinal: #1\n",
        b"first_ordinal: #9223372036854775807\n",
        b"first_byte_offset: #9223372036854775807\n",
        b"content_type: application/json\n",
        b"content_type: application/x-ndjson\n",
        b"app_id: shop\n",
        b"message_id: 1\n",
        b"-1",
        b"0",
        b"18446744073709551615",
        b"\0",
        b"\\u0000",
        b"\\ud800",
        b"\xff",
        b"[",
        b"]",
        b"{}",
        b"{",
        b"}",
        b",",
        b"\"",
        b"[]",
        b"null",
        b" ",
        b"{\"records\":",
        b"\"bytes\":",
        b"\"error\":",
        b"\"sha256\":",
        b"\"host\":",
        b"\"ordinal\":",
        b"\"detail\":",
        b"\"record\":",
        b"\"reason\":",
        b"\"too_large\"",
        b"\"AAEC\"",
        b"1e3",
        b"\xef\xbb\xbf",
    ],
};

fn message(text: &[u8]) -> (BasicProperties, Vec<u8>) {
    let mut properties = BasicProperties::default();
    let mut headers = FieldTable::default();
    let mut rest = text;
    while let Some(end) = memchr::memchr(b'\n', rest) {
        let line;
        (line, rest) = (&rest[..end], &rest[end + 1..]);
        if line.is_empty() {
            break;
        }
        let at = line.windows(2).position(|pair| pair == b": ").unwrap_or(line.len());
        let (name, value) = (String::from_utf8_lossy(&line[..at]).into_owned(), line.get(at + 2..).unwrap_or_default());
        let text = String::from_utf8_lossy(value).into_owned();
        // The wire has no longer names, and no longer properties.
        if name.len() > 255 || text.len() > 255 {
            continue;
        }
        properties = match name.as_str() {
            "content_type" => properties.with_content_type(text.into()),
            "app_id" => properties.with_app_id(text.into()),
            "message_id" => properties.with_message_id(text.into()),
            _ => {
                headers.insert(name.into(), header(value));
                properties
            }
        };
    }
    (properties.with_headers(headers), rest.to_vec())
}

fn header(value: &[u8]) -> AMQPValue {
    let number = |text: &[u8]| std::str::from_utf8(text).ok().and_then(|text| text.parse::<i64>().ok());
    match value {
        [b'#', digits @ ..] => AMQPValue::LongLongInt(number(digits).unwrap_or(i64::MIN)),
        [b'+', digits @ ..] => {
            AMQPValue::LongUInt(number(digits).and_then(|number| u32::try_from(number).ok()).unwrap_or(u32::MAX))
        }
        [b'!', ..] => AMQPValue::Void,
        text => AMQPValue::LongString(text.to_vec().into()),
    }
}

/// Messages of this program, with a body that may fit.
fn messages() -> BoxedStrategy<Vec<u8>> {
    let number = || select(vec!["#0", "#1", "#7", "#9223372036854775807", "#-1", "+5", "x"]);
    let bodies = select(vec![
        r#"{"records":1,"bytes":9,"error":null,"sha256":null,"host":"h"}"#,
        r#"{"records":9223372036854775808,"bytes":9,"error":"a\u0000"}"#,
        r#"[{"ordinal":1,"byte_offset":0,"reason":"too_large","detail":"9 MiB","record":"e30="}]"#,
        r#"[{"ordinal":18446744073709551615,"byte_offset":0,"reason":"too_large","detail":"\u0000","record":""}]"#,
        "[]",
    ]);
    let body = prop_oneof![2 => records(), 1 => bodies.prop_map(|body| body.as_bytes().to_vec())];
    let kind = select(vec!["kind: chunk\n", "kind: rejects\n", "kind: end\n", ""]);
    let content_type = select(vec!["content_type: application/json\n", "content_type: application/x-ndjson\n", ""]);
    let source = select(vec!["x", "a\0b", "inbox/events/ß.json"]);
    (kind, content_type, source, [number(), number(), number()], body).prop_map(|(kind, content_type, source, [seq, ordinal, offset], body)| {
        let headers = format!(
            "{kind}{content_type}dataset: events\nload_key: 0190163d-8694-739b-aea5-966c26f8ad91\nsource: {source}\nseq: {seq}\nfirst_ordinal: {ordinal}\nfirst_byte_offset: {offset}\n\n"
        );
        [headers.as_bytes(), &body].concat()
    }).boxed()
}

#[test]
fn any_message_is_understood_or_told_why_not() {
    MESSAGES.hold(messages(), |input| {
        let (properties, body) = message(input);
        let opened = Envelope::open(&properties, &body, &dataset("events"));
        match opened.and_then(|envelope| envelope.decode(&body)) {
            Err(Undecodable { reason, detail }) => {
                prop_assert!(reason.starts_with("malformed_") || ["unknown_kind", "wrong_dataset"].contains(&reason), "{}", reason);
                prop_assert!(!detail.is_empty());
            }
            Ok((load, content)) => {
                is_storable(&load, &content)?;
                is_whole(&content, &body)?;
                if let Content::Chunk(chunk) = content {
                    assert_chunk_survives(&load, chunk);
                }
            }
        }
        Ok(())
    });
}

/// The databases take signed numbers, and no U+0000 in texts.
fn is_storable(load: &Load, content: &Content) -> Result<(), TestCaseError> {
    let fits = |number: Option<u64>| number.is_some_and(|number| i64::try_from(number).is_ok());
    let mut texts = vec![load.source.clone()];
    match content {
        Content::Chunk(chunk) => {
            prop_assert!(fits(Some(chunk.seq)) && fits(chunk.first_ordinal.checked_add(chunk.records())));
            match &chunk.body {
                ChunkBody::Records { text, .. } => prop_assert!(fits(chunk.first_byte_offset.checked_add(text.len() as u64))),
                ChunkBody::Rejects(rejects) => {
                    prop_assert!(rejects.iter().all(|reject| fits(Some(reject.ordinal)) && fits(Some(reject.byte_offset))));
                    texts.extend(rejects.iter().map(|reject| reject.detail.clone()));
                }
            }
        }
        Content::End(FileEnd { records, bytes, error, host, .. }) => {
            prop_assert!(fits(Some(*records)) && fits(Some(*bytes)));
            texts.extend(error.iter().chain(host).cloned());
        }
        Content::Foreign(message) => texts.extend(message.message_id.iter().chain([&message.app_id]).cloned()),
    }
    prop_assert!(texts.iter().all(|text| !text.contains('\0')), "{:?}", texts);
    Ok(())
}

/// Nothing of the body is lost: what is no record is what separates and encloses them.
fn is_whole(content: &Content, body: &[u8]) -> Result<(), TestCaseError> {
    let (Content::Chunk(chunk) | Content::Foreign(ForeignMessage { chunk, .. })) = content else { return Ok(()) };
    let ChunkBody::Records { text, spans, .. } = &chunk.body else { return Ok(()) };
    let mut between = text.clone();
    spans.iter().rev().for_each(|span| drop(between.drain(span.start as usize..span.end as usize)));
    let at = if matches!(content, Content::Foreign(_)) {
        usize::try_from(chunk.first_byte_offset).expect("a body is in memory")
    } else {
        body.len() - text.len() - usize::from(body.len() > text.len())
    };
    prop_assert_eq!(&body[at..at + text.len()], &text[..]);
    let left = [&body[..at], &between, &body[at + text.len()..]].concat();
    let left = left.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&left);
    prop_assert!(left.iter().all(|byte| b" \t\r\n,[]".contains(byte)), "{}", left.escape_ascii());
    Ok(())
}

#[test]
fn any_text_survives_the_wire() {
    let load = load();
    RECORDS.hold(records(), |text| {
        for chunk in chunks(text) {
            assert_chunk_survives(&load, chunk);
        }
        Ok(())
    });
}
