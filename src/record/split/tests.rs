//! Tests of the splitter with chosen texts; `properties.rs` has those with random texts.

mod properties;

use std::io::{self, Read};

use super::*;
use crate::record::decompress::decompress;

/// Limits so small that short texts reach each of them.
const SMALL: Limits = Limits { chunk_records: 3, chunk_bytes: 40, record_bytes: 32, kept_bytes: 8, window_bytes: 4 };

fn drain<R: Read>(splitter: &mut Splitter<R>) -> (Vec<Chunk>, Option<SplitError>) {
    let mut chunks = Vec::new();
    loop {
        match splitter.next_chunk() {
            Ok(Some(chunk)) => chunks.push(chunk),
            end => {
                assert!(matches!(splitter.next_chunk(), Ok(None)), "nothing comes after the end");
                return (chunks, end.err());
            }
        }
    }
}

fn split_with(text: &[u8], limits: Limits) -> (Vec<Chunk>, Option<String>) {
    let (chunks, error) = drain(&mut Splitter::with_limits(text, limits));
    (chunks, error.map(|e| e.to_string()))
}

/// Returns every record as text, rejects as `reason@offset`, and the error.
fn records_with(text: &[u8], limits: Limits) -> (Vec<String>, Option<String>) {
    let (chunks, error) = split_with(text, limits);
    let mut records = Vec::new();
    for chunk in &chunks {
        match &chunk.body {
            ChunkBody::Records { text, spans, .. } => records.extend(spans.iter().map(|s| shown(&text[bounds(s)]))),
            ChunkBody::Rejects(rejects) => {
                records.extend(rejects.iter().map(|r| format!("{}@{}", r.reason.as_str(), r.byte_offset)))
            }
        }
    }
    (records, error)
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn bounds(span: &Range<u32>) -> Range<usize> {
    span.start as usize..span.end as usize
}

/// The records of a text that is split to its end without an error.
#[track_caller]
fn records(text: &str) -> Vec<String> {
    let (records, error) = records_with(text.as_bytes(), Limits::DEFAULT);
    assert_eq!(error, None, "after {records:?}");
    records
}

/// The records before the error, and the error.
#[track_caller]
fn failure(text: &str) -> (Vec<String>, String) {
    let (records, error) = records_with(text.as_bytes(), Limits::DEFAULT);
    (records, error.expect("the file fails"))
}

#[test]
fn a_blank_text_holds_no_records() {
    for text in ["", " \r\n\t", "\u{feff}", "\u{feff}\n", "[]", " [ \n] \n"] {
        assert!(records(text).is_empty(), "{text:?}");
    }
}

#[test]
fn every_framing_gives_its_records() {
    assert_eq!(records("[{\"a\":1}, {\"b\":[2]}\n]\n"), ["{\"a\":1}", "{\"b\":[2]}"]);
    assert_eq!(records("{\"a\":1}"), ["{\"a\":1}"]);
    assert_eq!(records("{\n \"a\": 1\n}\n"), ["{\n \"a\": 1\n}"]);
    assert_eq!(records("{\"a\":1}\r\n\r\n{\"b\":2}"), ["{\"a\":1}", "{\"b\":2}"]);
    assert_eq!(records("{\"a\":1}{\"b\":2} {\"c\":3}"), ["{\"a\":1}", "{\"b\":2}", "{\"c\":3}"]);
}

#[test]
fn brackets_and_quotes_in_strings_are_text() {
    assert_eq!(records(r#"[{"a":"]},{\"\\"},"[",{"b":"\\\""}]"#), [r#"{"a":"]},{\"\\"}"#, r#""[""#, r#"{"b":"\\\""}"#]);
    assert_eq!(records(r#"{"a":"}{\""}{"b":"\\"}"#), [r#"{"a":"}{\""}"#, r#"{"b":"\\"}"#]);
}

#[test]
fn a_bom_counts_in_offsets() {
    let (chunks, error) = split_with("\u{feff} [{}]".as_bytes(), Limits::DEFAULT);
    assert_eq!(error, None);
    assert_eq!((chunks[0].first_byte_offset, chunks[0].first_ordinal, chunks[0].seq), (5, 1, 0));
}

#[test]
fn a_text_that_begins_with_no_object_or_array_fails() {
    assert_eq!(failure("\n x"), (vec![], "line 2, column 2 (byte 2): the text begins with no object or array but with `x`".into()));
    assert!(failure("\"a\"").1.contains("begins with no object or array"));
    let (_, error) = records_with(b"\xff\xfe[\0]\0", Limits::DEFAULT);
    assert_eq!(
        error.unwrap(),
        "line 1, column 1 (byte 0): the text begins with no object or array but with byte 0xFF: this is UTF-16; convert it to UTF-8"
    );
}

#[test]
fn elements_that_are_no_json_are_records_for_the_parser() {
    assert_eq!(records("[nope , {\"a\" 1}, [1}, 2 3 ,{},-]"), ["nope", "{\"a\" 1}", "[1}", "2 3", "{}", "-"]);
    assert_eq!(records("[} , a\"],\" b ,c[,]d,1]"), ["}", "a\"],\" b", "c[,]d", "1"]);
    assert_eq!(records("[{\"a\":\"line\nend\"},1]"), ["{\"a\":\"line\nend\"}", "1"]);
}

#[test]
fn a_stray_comma_is_a_rejected_record() {
    assert_eq!(records("[,{}]"), ["invalid_json@1", "{}"]);
    assert_eq!(records("[{},,{}]"), ["{}", "invalid_json@4", "{}"]);
    assert_eq!(records("[{}, ]"), ["{}", "invalid_json@5"]);
    let (chunks, _) = split_with(b"[{},]", Limits::DEFAULT);
    let ChunkBody::Rejects(rejects) = &chunks[1].body else { panic!("{chunks:?}") };
    assert_eq!(rejects[0].detail, "no value before `]`: a stray comma");
    assert_eq!((rejects[0].ordinal, rejects[0].record.as_slice()), (2, &b""[..]));
    assert_eq!((chunks[1].seq, chunks[1].first_ordinal, chunks[1].first_byte_offset), (1, 2, 4));
}

#[test]
fn lost_boundaries_in_an_array_fail_the_file_after_its_good_records() {
    let good = vec!["{\"a\":1}".to_string()];
    for (rest, position, message) in [
        ("\n {\"b\":2}]", "line 2, column 2 (byte 10)", "expected `,` or `]` after the element, found `{`"),
        ("}]", "line 1, column 9 (byte 8)", "expected `,` or `]` after the element, found `}`"),
        ("] x", "line 1, column 11 (byte 10)", "expected nothing but white space after the closing `]`, found `x`"),
        ("]]", "line 1, column 10 (byte 9)", "expected nothing but white space after the closing `]`, found `]`"),
        ("", "line 1, column 9 (byte 8)", "the text ends, but the array is not closed"),
        (",\n", "line 2, column 1 (byte 10)", "the text ends, but the array is not closed"),
        (",\n{\"b\"", "line 2, column 5 (byte 14)", "the text ends inside the record that begins at line 2, column 1"),
        (", 12", "line 1, column 13 (byte 12)", "the text ends inside the record that begins at line 1, column 11"),
    ] {
        assert_eq!(failure(&format!("[{{\"a\":1}}{rest}")), (good.clone(), format!("{position}: {message}")));
    }
    assert!(failure("[").1.ends_with("(byte 1): the text ends, but the array is not closed"));
}

#[test]
fn a_bad_record_in_a_stream_ends_with_its_line() {
    assert_eq!(records("{\"a\": 1\n{\"b\":2}\n"), ["{\"a\": 1", "{\"b\":2}"]);
    assert_eq!(records("{\"a\":\"x\r\n{\"b\":2}"), ["{\"a\":\"x", "{\"b\":2}"]);
    assert_eq!(records("{\"a\":1}garbage \n{\"b\":2}\nmore"), ["{\"a\":1}", "garbage", "{\"b\":2}", "more"]);
    assert_eq!(records("{}\n}\n]\n,{}\n{}"), ["{}", "}", "]", ",{}", "{}"]);
    assert_eq!(records("{\"a\":\n{\"b\":2}\n{\"c\":3}"), ["{\"a\":", "{\"b\":2}", "{\"c\":3}"]);
}

#[test]
fn scalars_in_a_stream_are_records() {
    assert_eq!(records("{} 42 [1]\"a\"true null -0.5e3\n1 2"), ["{}", "42", "[1]", "\"a\"", "true", "null", "-0.5e3", "1", "2"]);
    assert_eq!(records("{}\n12x 3\n4"), ["{}", "12x 3", "4"]);
}

#[test]
fn the_end_inside_a_record_of_a_stream_fails_the_file() {
    let good = vec!["{}".to_string()];
    for rest in ["{\"a\":1", "{\"a\":\"x", "[", "{\"a\":-", "{\"a\":1.", "{\"a\":1e+", "tru", "{\"a\":\n{\"b\":2}", "-", "\"\\u00"]
    {
        let (records, error) = failure(&format!("{{}}\n{rest}"));
        assert_eq!(records, good, "{rest}");
        assert!(error.ends_with("the text ends inside the record that begins at line 2, column 1"), "{rest}: {error}");
    }
    assert_eq!(records("{}\n{\"a\":--"), ["{}", "{\"a\":--"], "no digit mends this one");
}

#[test]
fn chunks_end_at_the_constants() {
    let text = "{\"a\":1}\n".repeat(CHUNK_RECORDS * 2 + 1);
    let (chunks, _) = split_with(text.as_bytes(), Limits::DEFAULT);
    assert_eq!(chunks.iter().map(|c| (c.seq, c.records())).collect::<Vec<_>>(), [(0, 1000), (1, 1000), (2, 1)]);
    assert_eq!(chunks[1].bytes(), 8 * CHUNK_RECORDS - 1, "separators within, none around");
    assert_eq!((chunks[2].first_ordinal, chunks[2].first_byte_offset), (2001, 16_000));

    let record = format!("\"{}\"", "x".repeat(CHUNK_BYTES / 2 - 2));
    let exact = format!("[{record},{},{record}]", &record[1..].replacen('x', "\"", 1));
    let (chunks, _) = split_with(exact.as_bytes(), Limits::DEFAULT);
    assert_eq!(chunks.iter().map(Chunk::records).collect::<Vec<_>>(), [2, 1], "the text may be as long as the constant");
    assert_eq!(chunks[0].bytes(), CHUNK_BYTES);
    let over = format!("[{record}, {}]", &record[1..].replacen('x', "\"", 1));
    assert_eq!(split_with(over.as_bytes(), Limits::DEFAULT).0.len(), 2, "separators count");
}

#[test]
fn rejects_are_chunks_of_their_own() {
    let (chunks, error) = split_with(b"[1,,,2,,,,,3]", SMALL);
    assert_eq!(error, None);
    assert_eq!(
        chunks.iter().map(|c| (c.first_ordinal, c.records())).collect::<Vec<_>>(),
        [(1, 1), (2, 2), (4, 1), (5, 3), (8, 1), (9, 1)]
    );
}

#[test]
fn the_largest_record_is_read_and_a_larger_one_rejected() {
    let sized = |bytes: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(bytes - 8));
    let largest = sized(MAX_RECORD_BYTES);
    let larger = sized(MAX_RECORD_BYTES + 1);
    for (text, starts) in [
        (format!("[{{}},{largest},{larger},{{}}]"), [1, 4, 8_388_613, 16_777_223]),
        (format!("{{}}\n{largest}\n{larger}{{}}"), [0, 3, 8_388_612, 16_777_221]),
    ] {
        let (chunks, error) = split_with(text.as_bytes(), Limits::DEFAULT);
        assert_eq!(error, None);
        assert_eq!(chunks.iter().map(|c| c.first_byte_offset).collect::<Vec<_>>(), starts);
        assert_eq!(chunks[1].bytes(), MAX_RECORD_BYTES);
        let ChunkBody::Rejects(rejects) = &chunks[2].body else { panic!() };
        assert_eq!(rejects[0].reason, RejectReason::TooLarge);
        assert_eq!(rejects[0].record, &larger.as_bytes()[..KEPT_RECORD_BYTES]);
        assert_eq!(
            rejects[0].detail,
            "the record has 8388609 bytes, more than the limit of 8388608; its first 65536 bytes are kept"
        );
    }
}

#[test]
fn a_too_large_record_ends_by_its_structure() {
    let x = "x".repeat(40);
    for (text, expected) in [
        // In an array: containers, strings and bare text.
        (format!("[[\"]\\\"{x}\"],1]"), vec!["too_large@1", "1"]),
        (format!("[\"{x}\",1]"), vec!["too_large@1", "1"]),
        (format!("[{x} \"],\" {x},1]"), vec!["too_large@1", "1"]),
        // In a stream, a line end ends a string, and ends a bad record.
        (format!("{{\"\\\"\":\"{x}\"}}{{}}"), vec!["too_large@0", "{}"]),
        (format!("{{\"a\":\"{x}\n{{}}"), vec!["too_large@0", "{}"]),
        (format!("{{\"a\":\"{x}\\\n{{}}"), vec!["too_large@0", "{}"]),
        (format!("{{}}\n\"{x}\n{{}}"), vec!["{}", "too_large@3", "{}"]),
        (format!("{{}}\nx{x}{{}}\n{{}}"), vec!["{}", "too_large@3", "{}"]),
        (format!("{{}}\nx{x}"), vec!["{}", "too_large@3"]),
        (format!("{{}}{} {{}}", "1".repeat(40)), vec!["{}", "too_large@2", "{}"]),
        (format!("{{}}{}", "1".repeat(40)), vec!["{}", "too_large@2"]),
        (format!("{{}}\n{}{}{{}}", "[".repeat(20), "]".repeat(20)), vec!["{}", "too_large@3", "{}"]),
    ] {
        let (records, error) = records_with(text.as_bytes(), SMALL);
        assert_eq!((records, error), (expected.into_iter().map(String::from).collect(), None), "{text}");
    }
    for text in [format!("[1,[\"{x}"), format!("{{}}[\"{x}"), format!("[1,{x}")] {
        let (records, error) = records_with(text.as_bytes(), SMALL);
        assert_eq!(records.len(), 1);
        assert!(error.unwrap().contains("the text ends inside the record that begins at line 1, column "));
    }
}

#[test]
fn nesting_of_any_depth_is_a_record() {
    let deep = "[".repeat(1_000_000) + &"]".repeat(1_000_000);
    assert_eq!(records(&format!("{{}}{deep}{{}}"))[1], deep);
    assert_eq!(records(&format!("[{deep},1]")), [deep, "1".into()]);
    let deeper = "[".repeat(10_000_000) + &"]".repeat(10_000_000);
    assert_eq!(records(&format!("{{}}{deeper}{{}}")), ["{}", "too_large@2", "{}"]);
}

#[test]
fn invalid_utf8_does_not_hide_boundaries() {
    for text in [&b"[{\"a\":\"\xff\xc3\"},{}]"[..], b"{\"a\":\"\xff\xc3\"}\n{}"] {
        assert_eq!(records_with(text, Limits::DEFAULT), (vec!["{\"a\":\"\u{fffd}\u{fffd}\"}".into(), "{}".into()], None));
    }
}

/// A text of any size that is generated while it is read.
fn huge(head: &'static [u8], body: u8, bytes: u64, tail: &'static [u8]) -> impl Read {
    head.chain(io::repeat(body).take(bytes)).chain(tail)
}

#[test]
fn memory_stays_bounded_whatever_the_text() {
    const HUGE: u64 = 64 << 20;
    let limit = 2 * (MAX_RECORD_BYTES + CHUNK_BYTES); // the buffer doubles
    for (head, body, tail, expected) in [
        (&b"[{},\""[..], b'x', &b"\",{}]"[..], 3),
        (b"[{},[\"", b'x', b"\"],{}]", 3),
        (b"[{},", b' ', b"{}]", 2),
        (b"[{}", b' ', b",{}]", 2),
        (b"[{},x", b'x', b",{}]", 3),
        (b"{}\n{\"a\":\"", b'x', b"\"}{}", 3),
        (b"{}\n{\"a\":x", b'x', b"\n{}", 3),
        (b"{}\n[", b' ', b"]{}", 3),
        (b"{}\n", b'\n', b"{}", 2),
        (b"{}\n", b'1', b" {}", 3),
    ] {
        let mut splitter = Splitter::new(huge(head, body, HUGE, tail));
        let (chunks, error) = drain(&mut splitter);
        let case = shown(head);
        assert!(error.is_none(), "{case}: {error:?}");
        assert_eq!(chunks.iter().map(Chunk::records).sum::<u64>(), expected, "{case}");
        assert_eq!(splitter.records(), expected);
        assert!(chunks.iter().map(|chunk| chunk.seq).eq(0..chunks.len() as u64), "{case}");
        assert_eq!(splitter.bytes(), HUGE + (head.len() + tail.len()) as u64);
        assert!(splitter.window.capacity() <= limit, "{case}: {}", splitter.window.capacity());
    }
}

#[test]
fn a_failed_read_cuts_no_chunk_short() {
    struct Fails;
    impl Read for Fails {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("the disk is gone"))
        }
    }
    let text = "{}\n".repeat(CHUNK_RECORDS + 1);
    let (chunks, error) = drain(&mut Splitter::new(text.as_bytes().chain(Fails)));
    assert_eq!(chunks.iter().map(Chunk::records).collect::<Vec<_>>(), [1000]);
    assert_eq!(error.unwrap().to_string(), "cannot read: the disk is gone");
}

#[test]
fn interrupted_reads_are_repeated() {
    struct Interrupted(bool);
    impl Read for Interrupted {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            self.0 = !self.0;
            if self.0 { Err(io::ErrorKind::Interrupted.into()) } else { Ok(0) }
        }
    }
    let (chunks, error) = drain(&mut Splitter::new(b"[{}]".chain(Interrupted(false))));
    assert_eq!((chunks.len(), error.is_none()), (1, true));
}

#[test]
fn broken_compression_fails_the_file_after_its_good_records() {
    let text = (0..50_000u32).map(|i| format!("{{\"a\":{}}}\n", i.wrapping_mul(2_654_435_761))).collect::<String>();
    let mut packed = zstd::encode_all(text.as_bytes(), 1).unwrap();
    packed.truncate(packed.len() / 2);
    let (chunks, error) = drain(&mut Splitter::new(decompress(io::Cursor::new(packed), 64).unwrap()));
    let records = chunks.iter().map(Chunk::records).sum::<u64>();
    assert!(records > 10_000);
    let Some(SplitError::Boundary { line, byte_offset, message, .. }) = error else { panic!("{error:?}") };
    assert_eq!(message, "broken zstd: the compressed data is cut off");
    assert_eq!(line, records + 1);
    assert!(text.as_bytes()[..usize::try_from(byte_offset).unwrap()].iter().filter(|b| **b == b'\n').count() as u64 == records);
}

#[test]
fn a_text_that_no_splitter_cut_is_refused() {
    for (text, framing) in [
        ("", Framing::Array),
        ("", Framing::Stream),
        (" {}", Framing::Stream),
        ("{}\n", Framing::Stream),
        ("{} {}", Framing::Array),
        ("{},", Framing::Array),
        (",{}", Framing::Array),
        ("{}]", Framing::Array),
        ("{\"a", Framing::Array),
        ("x\"", Framing::Array),
    ] {
        assert!(split_text(text.into(), framing, 0, 1, 0).is_err(), "{text}");
    }
    let error = split_text("{},\n {} 1".into(), Framing::Array, 0, 1, 0).unwrap_err();
    assert_eq!(error.to_string(), "line 2, column 5 (byte 8): expected `,` after the element");
}
