//! Tests of whole records through the parser. The tests of single types are in `coerce.rs`.

mod fuzz;
mod judge;

use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::dataset::{Column, Model, Place, Repeats, StreamMode};
use crate::record::chunk::Framing;

/// A dataset with the columns `name:type` or `name=from:type`; `!` after the type means required. The day column is `at`.
fn dataset(columns: &str) -> Arc<Dataset> {
    let columns: Vec<Column> = columns
        .split_whitespace()
        .map(|column| {
            let (name, column_type) = column.split_once(':').unwrap();
            let required = column_type.ends_with('!');
            let column_type = ColumnType::from_name(column_type.trim_end_matches('!')).unwrap();
            // `name=place:type` takes the value from that place.
            let (name, place) = name.split_once('=').unwrap_or((name, name));
            Column { name: name.to_owned(), column_type, required, from: Place::parse(place).unwrap() }
        })
        .collect();
    let day = columns.iter().position(|column| column.name == "at");
    Arc::new(Dataset {
        name: "things".into(),
        dir: PathBuf::from("things"),
        columns,
        key: vec![0],
        day,
        model: Model::default(),
        stream: StreamMode::default(),
        menu: false,
        repeats: Repeats::Load,
    })
}

/// A chunk whose first record is number 11 at byte 1,000, with one record per line.
fn chunk<R: AsRef<[u8]>>(records: &[R]) -> Chunk {
    let (mut text, mut spans) = (Vec::new(), Vec::new());
    for record in records {
        if !text.is_empty() {
            text.push(b'\n');
        }
        let start = u32::try_from(text.len()).unwrap();
        text.extend_from_slice(record.as_ref());
        spans.push(start..u32::try_from(text.len()).unwrap());
    }
    let body = ChunkBody::Records { framing: Framing::Stream, text, spans };
    Chunk { seq: 0, first_ordinal: 11, first_byte_offset: 1_000, body }
}

/// Stores rows as their debug text, which is easy to compare.
#[derive(Default)]
struct Rows(Vec<String>);

impl RowSink for Rows {
    fn push(&mut self, values: &[Value<'_>]) {
        self.0.push(values.iter().map(|v| format!("{v:?}")).collect::<Vec<_>>().join(" "));
    }
}

fn parse_with<R: AsRef<[u8]>>(parser: &mut Parser, records: &[R], days: &DayRange) -> (Vec<String>, Parsed) {
    let mut rows = Rows::default();
    let parsed = parser.parse(&chunk(records), days, &mut rows);
    assert_eq!(parsed.rows + parsed.skipped + parsed.rejects.len() as u64, records.len() as u64);
    assert_eq!(parsed.rows, rows.0.len() as u64);
    (rows.0, parsed)
}

fn parse<R: AsRef<[u8]>>(columns: &str, records: &[R]) -> (Vec<String>, Parsed) {
    parse_with(&mut Parser::new(dataset(columns)), records, &DayRange::ALL)
}

/// The single row of a good record.
fn row(columns: &str, record: &str) -> String {
    let (mut rows, parsed) = parse(columns, &[record]);
    assert_eq!(parsed.rejects, [], "{record}");
    rows.remove(0)
}

/// The reason and the detail of a bad record.
fn reject(columns: &str, record: impl AsRef<[u8]>) -> (RejectReason, String) {
    let (rows, mut parsed) = parse(columns, &[record.as_ref()]);
    assert_eq!(rows, [""; 0], "{}", String::from_utf8_lossy(record.as_ref()));
    let reject = parsed.rejects.remove(0);
    assert_eq!((reject.ordinal, reject.byte_offset, &*reject.record), (11, 1_000, record.as_ref()));
    (reject.reason, reject.detail)
}

#[test]
fn every_type_takes_its_place_in_the_row() {
    let columns = "t:text i:bigint d:double n:numeric b:boolean date:date at:timestamp z:timestamptz u:uuid j:jsonb";
    let record = r#"{"t":"x","i":1,"d":1.5,"n":1e2,"b":true,"date":"1970-01-02","at":"1970-01-01T00:00:01","z":"1970-01-01T01:00:00+01:00","u":"00000000-0000-0000-0000-000000000001","j":{"a": [1]},"more":[1, 2]}"#;
    assert_eq!(
        row(columns, record),
        r#"Text("x") BigInt(1) Double(1.5) Numeric("100") Boolean(true) Date(1) Timestamp(1000000) TimestampTz(0) Uuid([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]) Json("{\"a\": [1]}") Json("{\"more\":[1, 2]}")"#
    );
    assert_eq!(row(columns, "{}"), "Null Null Null Null Null Null Null Null Null Null Null");
}

#[test]
fn a_missing_key_is_null_and_of_a_repeated_key_the_last_wins() {
    assert_eq!(row("a:text b:bigint", r#"{"b":null}"#), "Null Null Null");
    assert_eq!(row("a:text b:bigint", r#"{"b":"bad","a":"x","b":2}"#), r#"Text("x") BigInt(2) Null"#);
    assert_eq!(row("a:text b:bigint", r#"{"b":2,"\u0062":3}"#), "Null BigInt(3) Null");
    assert_eq!(row("a:text b:bigint", r#"{"b":2,"b":null}"#), "Null Null Null");
}

#[test]
fn keys_that_no_column_names_are_kept_in_order_of_appearance() {
    let cases = [
        (r#"{"z": 1.50 ,"a":"x","y" : {"k": 1}}"#, r#"{"z":1.50,"y":{"k": 1}}"#),
        (r#"{"A":1,"a ":null,"_extra":{}}"#, r#"{"A":1,"a ":null,"_extra":{}}"#),
        (r#"{"k":1,"l":2,"k":3}"#, r#"{"l":2,"k":3}"#),
        (r#"{"\u006b":1,"k":"\ud800","l":2,"\u006B":3}"#, r#"{"l":2,"\u006B":3}"#),
    ];
    for (record, extra) in cases {
        let row = row("a:text", record);
        assert!(row.ends_with(&format!(" Json({extra:?})")), "{row}");
    }
    let many: Vec<String> = (0..1000).map(|i| format!("\"k{}\":{i}", i % 500)).collect();
    assert!(row("a:text", &format!("{{{}}}", many.join(","))).ends_with(r#"\"k499\":999}")"#));
}

#[test]
fn keys_may_come_in_any_order_and_change_it_from_record_to_record() {
    let mut parser = Parser::new(dataset("a:bigint b:bigint c:bigint"));
    let records = [
        r#"{"a":1,"b":2,"c":3}"#,
        r#"{"c":3,"a":1,"b":2}"#,
        r#"{"c":3,"b":2}"#,
        r#"{"x":0,"b":2,"y":0,"a":1}"#,
        r#"{"a":1,"b":2,"c":3}"#,
        r#"{"\u0061":1}"#,
    ];
    let expected = [
        "BigInt(1) BigInt(2) BigInt(3) Null",
        "BigInt(1) BigInt(2) BigInt(3) Null",
        "Null BigInt(2) BigInt(3) Null",
        r#"BigInt(1) BigInt(2) Null Json("{\"x\":0,\"y\":0}")"#,
        "BigInt(1) BigInt(2) BigInt(3) Null",
        "BigInt(1) Null Null Null",
    ];
    for _ in 0..2 {
        assert_eq!(parse_with(&mut parser, &records, &DayRange::ALL).0, expected);
    }
}

#[test]
fn every_reason_has_its_detail() {
    use RejectReason::*;
    let columns = "id:text! n:bigint j:jsonb at:timestamp!";
    let with = |members: &str| format!(r#"{{"id":"1","at":"2020-12-08",{members}}}"#);
    let cases = [
        ("42".to_owned(), NotAnObject, "42 is a number, no object"),
        (r#" "x" "#.to_owned(), NotAnObject, r#""x" is a string, no object"#),
        ("[{}]".to_owned(), NotAnObject, "[{}] is an array, no object"),
        ("null".to_owned(), NotAnObject, "null is null, no object"),
        ("false".to_owned(), NotAnObject, "false is a boolean, no object"),
        (r#"{"id":"1"}"#.to_owned(), MissingRequired, "at: required, but absent"),
        (r#"{"id":null,"at":"2020-12-08"}"#.to_owned(), MissingRequired, "id: required, but null"),
        (with(r#""n":"x""#), TypeMismatch, r#"n: "x" is no integer (expected e.g. 42)"#),
        (
            r#"{"id":"1","at":"yesterday"}"#.to_owned(),
            TypeMismatch,
            r#"at: "yesterday" is no timestamp (expected e.g. 2020-12-08T20:03:16.759617Z)"#,
        ),
        (with(r#""n":1e30"#), OutOfRange, "n: 1e30 is out of range (expected -9223372036854775808 to 9223372036854775807)"),
        (
            with(r#""x":1e200000"#),
            OutOfRange,
            r#"_extra: "x":1e200000 contains a number out of range (expected at most 131072 digits before the point, 16383 after it)"#,
        ),
        (with(r#""id":"\u0000""#), NulCharacter, r#"id: "\u0000" contains U+0000, which the databases do not take"#),
        (with(r#""\u0000":1"#), NulCharacter, r#"_extra: "\u0000":1 contains U+0000, which the databases do not take"#),
        (
            with(r#""j":["\udc00"]"#),
            LoneSurrogate,
            r#"j: ["\udc00"] contains half of a surrogate pair (expected e.g. \ud83d\ude00)"#,
        ),
        (with(r#""n":1,}"#), InvalidJson, "key must be a string at line 1 column 35"),
        ("{\"id\":\n tru}".to_owned(), InvalidJson, "expected ident at line 2 column 5"),
        (String::new(), InvalidJson, "EOF while parsing a value at line 1 column 0"),
        ("{} {}".to_owned(), InvalidJson, "trailing characters at line 1 column 4"),
        ("[".repeat(100_000), TooDeep, "nests deeper than 128 levels"),
    ];
    for (record, reason, detail) in cases {
        assert_eq!(reject(columns, record), (reason, detail.to_owned()));
    }
    let (reason, detail) = reject(columns, b"{\"id\":\"\xff\"}");
    assert_eq!((reason, &*detail), (InvalidUtf8, "no valid UTF-8 at byte 7 of the record, from 0"));
}

#[test]
fn of_several_faults_the_first_reason_counts_then_the_first_column() {
    use RejectReason::*;
    let columns = "s:text n:bigint m:bigint id:text!";
    let deep = "[".repeat(200);
    let cases: [(&[u8], RejectReason, &str); 8] = [
        (&[deep.as_bytes(), b"\xff"].concat(), InvalidUtf8, "no valid"),
        (deep.as_bytes(), TooDeep, "nests"),
        (br#"{"s":"\ud800","n":"x","n":}"#, InvalidJson, "expected value"),
        (br#"{"s":"\ud800","n":"x"}"#, MissingRequired, "id:"),
        (br#"{"id":"1","s":"\ud800","n":1e30,"m":"x"}"#, TypeMismatch, "m:"),
        (br#"{"id":"1","s":"\u0000","m":1e30,"n":1e31}"#, OutOfRange, "n:"),
        (br#"{"id":"1","x":"\u0000","s":"\ud800"}"#, NulCharacter, "_extra:"),
        (br#"{"id":"1","x":"\ud800","s":"\ud800"}"#, LoneSurrogate, "s:"),
    ];
    for (record, reason, detail) in cases {
        let (found, text) = reject(columns, record);
        assert_eq!(found, reason, "{text}");
        assert!(text.starts_with(detail), "{text}");
    }
}

#[test]
fn a_record_may_nest_128_levels() {
    let nested = |levels: usize| format!("{{\"x\":{}{}}}", "[".repeat(levels - 1), "]".repeat(levels - 1));
    assert!(row("a:text", &nested(128)).starts_with("Null Json("));
    assert_eq!(reject("a:text", nested(129)).0, RejectReason::TooDeep);
    assert_eq!(reject("x:text", nested(129)).0, RejectReason::TooDeep);
    assert_eq!(reject("x:text", nested(1_000_000)).0, RejectReason::TooDeep);
    let overwritten = nested(129).replace("{\"x\":", "{\"x\":1,\"x\":").replace("]}", "],\"x\":2}");
    assert_eq!(reject("x:text", overwritten).0, RejectReason::TooDeep, "though the value is not kept");
}

#[test]
fn values_in_details_are_short_and_printable() {
    let long = format!("{{\"n\":\"{}\"}}", "x".repeat(1_000));
    assert_eq!(reject("n:bigint", long).1, format!("n: \"{}… is no integer (expected e.g. 42)", "x".repeat(58)));
    let exact = "x".repeat(58);
    assert!(reject("n:bigint", format!("{{\"n\":\"{exact}\"}}")).1.starts_with(&format!("n: \"{exact}\" is")));
    assert!(reject("n:bigint", "{\"n\":{\n\t\"é'\u{202e}\u{7f}\": 1}}").1.starts_with(r#"n: {  "é'\u{202e}\u{7f}": 1} is"#));
}

#[test]
fn one_bad_record_leaves_the_others_alone() {
    let records: [&[u8]; 5] = ["{\"a\":\"Müller\"}".as_bytes(), b"\xff", b"{", b"7", b"{\"a\":\"b\"}"];
    let (rows, parsed) = parse("a:text", &records);
    assert_eq!(rows, [r#"Text("Müller") Null"#, r#"Text("b") Null"#]);
    let rejects: Vec<_> = parsed.rejects.iter().map(|r| (r.ordinal, r.byte_offset, r.reason, &*r.record)).collect();
    assert_eq!(
        rejects,
        [
            (12, 1_016, RejectReason::InvalidUtf8, b"\xff".as_slice()),
            (13, 1_018, RejectReason::InvalidJson, b"{".as_slice()),
            (14, 1_020, RejectReason::NotAnObject, b"7".as_slice()),
        ]
    );
}

#[test]
fn rejects_of_the_splitter_pass_through() {
    let reject =
        Reject { ordinal: 5, byte_offset: 9, reason: RejectReason::TooLarge, detail: "20 MiB".into(), record: b"{".to_vec() };
    let chunk = Chunk { seq: 1, first_ordinal: 5, first_byte_offset: 9, body: ChunkBody::Rejects(vec![reject.clone()]) };
    let parsed = Parser::new(dataset("a:text")).parse(&chunk, &DayRange::ALL, &mut Rows::default());
    assert_eq!(parsed, Parsed { rejects: vec![reject], ..Parsed::default() });
}

#[test]
fn good_records_of_other_days_are_skipped_and_bad_ones_rejected() {
    let records = [
        r#"{"at":"1970-01-01T23:59:59.999999Z"}"#,
        r#"{"at":"1970-01-02T00:00:00Z"}"#,
        r#"{"at":"1970-01-03T00:30:00+01:00"}"#,
        r#"{"at":"1970-01-03T00:00:00Z"}"#,
        r#"{"at":"1970-01-05T00:00:00Z","n":"bad"}"#,
        r#"{"at":"1970-01-04"}"#,
    ];
    let mut parser = Parser::new(dataset("at:timestamptz! n:bigint"));
    let mut counts = |from, to| {
        let (_, parsed) = parse_with(&mut parser, &records, &DayRange { from, to });
        (parsed.rows, parsed.skipped, parsed.rejects.len(), parsed.days.into_keys().collect::<Vec<_>>())
    };
    assert_eq!(counts(None, None), (5, 0, 1, vec![0, 1, 2, 3]));
    assert_eq!(counts(Some(1), Some(1)), (2, 3, 1, vec![1]));
    assert_eq!(counts(Some(1), None), (4, 1, 1, vec![1, 2, 3]));
    assert_eq!(counts(None, Some(0)), (1, 4, 1, vec![0]));
    assert_eq!(counts(Some(9), Some(3)), (0, 5, 1, vec![]));
}

#[test]
fn days_before_1970_are_whole_days_too() {
    for column_type in ["date", "timestamp", "timestamptz"] {
        let (_, parsed) = parse(&format!("at:{column_type}!"), &[r#"{"at":"1969-12-31"}"#, r#"{"at":"0001-01-01"}"#]);
        assert_eq!(parsed.days.into_keys().collect::<Vec<_>>(), [-719_162, -1]);
    }
    assert_eq!(parse("at:timestamp!", &[r#"{"at":"1969-12-31 23:59:59.999999"}"#]).1.days, BTreeMap::from([(-1, 1)]));
}

#[test]
fn a_dataset_without_day_takes_every_record() {
    let mut parser = Parser::new(dataset("a:date"));
    let (rows, parsed) = parse_with(&mut parser, &[r#"{"a":"1970-01-09"}"#], &DayRange { from: Some(1), to: Some(1) });
    assert_eq!((rows.len(), parsed.days.len()), (1, 0));
}

#[test]
fn days_that_share_a_slot_are_counted_apart() {
    let mut days = DayCounts::default();
    for day in [0, 64, 0, 0, -64, 64, 1] {
        days.add(day);
    }
    assert_eq!(days.finish(), BTreeMap::from([(-64, 1), (0, 3), (1, 1), (64, 2)]));
}

const ALL_TYPES: &str = "t:text! i:bigint d:double n:numeric b:boolean date:date at:timestamp! z:timestamptz u:uuid j:jsonb";

/// Values that fit some columns, and values that fit none.
fn any_value() -> impl Strategy<Value = String> {
    let fixed = [
        "null",
        "true",
        "1",
        "-1.5e300",
        "1e999999",
        "1e-5",
        "{}",
        r#"[1,{"a":"\ud800"}]"#,
        r#"{"\u0000":1}"#,
        r#""2020-12-08""#,
        r#""2020-12-08 20:03:16.759617""#,
        r#""2020-02-30T10:00Z""#,
        r#""\u0000""#,
        r#""\ud800""#,
        r#""\ud83d\ude00""#,
        r#""1""#,
        r#""true""#,
        r#""0190163d-8694-739b-aea5-966c26f8ad91""#,
        "01",
        "tru",
        "\"",
    ];
    prop_oneof![
        proptest::sample::select(fixed.to_vec()).prop_map(str::to_owned),
        any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
        any::<f64>().prop_map(|number| serde_json::to_string(&number).unwrap()),
    ]
}

/// Members with distinct keys.
fn any_members() -> impl Strategy<Value = Vec<(&'static str, String)>> {
    let keys = ["t", "i", "d", "n", "b", "date", "at", "z", "u", "j", "k", "\\u006c", "\\u0000"];
    proptest::sample::subsequence(keys.to_vec(), 0..=keys.len())
        .prop_flat_map(|keys| keys.into_iter().map(|key| any_value().prop_map(move |value| (key, value))).collect::<Vec<_>>())
}

fn object(members: &[(&str, String)]) -> String {
    format!("{{{}}}", members.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect::<Vec<_>>().join(","))
}

proptest! {
    #[test]
    fn arbitrary_bytes_become_rows_or_rejects(records: Vec<Vec<u8>>, text: String) {
        parse(ALL_TYPES, &records);
        parse(ALL_TYPES, &[&text, &format!("{{{text}}}"), &format!("{{\"{text}\":{text}}}")]);
    }

    #[test]
    fn any_object_becomes_a_row_or_a_reject(members in any_members()) {
        let record = object(&members);
        let (_, parsed) = parse(ALL_TYPES, &[&record]);
        for reject in parsed.rejects {
            prop_assert_eq!(reject.reason == RejectReason::InvalidJson, serde_json::from_str::<IgnoredAny>(&record).is_err());
            prop_assert!(!reject.detail.contains(char::is_control), "{}", reject.detail);
        }
    }

    #[test]
    fn the_order_of_keys_does_not_matter((members, shuffled) in any_members().prop_flat_map(|m| (Just(m.clone()), Just(m).prop_shuffle()))) {
        // The order matters in two places: `_extra` keeps it, and the position of a syntax error depends on it.
        let of_columns = |members: &[(&'static str, String)]| {
            let valid = |value: &String| serde_json::from_str::<IgnoredAny>(value).is_ok();
            object(&members.iter().filter(|(key, value)| key.len() < 6 && *key != "k" && valid(value)).cloned().collect::<Vec<_>>())
        };
        let mut parser = Parser::new(dataset(ALL_TYPES));
        let (rows, first) = parse_with(&mut parser, &[of_columns(&members)], &DayRange::ALL);
        let (shuffled_rows, second) = parse_with(&mut parser, &[of_columns(&shuffled)], &DayRange::ALL);
        prop_assert_eq!(rows, shuffled_rows);
        let why = |parsed: &Parsed| parsed.rejects.first().map(|r| (r.reason, r.detail.clone()));
        prop_assert_eq!(why(&first), why(&second));
    }
}

#[test]
fn columns_take_other_keys_and_nested_values() {
    let dataset = dataset("id=Id_No.:bigint! login=/actor/login:text first=/tags/0:text at=a\\b:date note:text");
    let records = [
        r#"{"Id_No.":1,"actor":{"login":"ann","id":1.50},"tags":["x","y"],"a\\b":"1970-01-02","id":7}"#,
        r#"{"id":8,"tags":[],"Id_No.":2,"actor":{"login":"bob"},"note":"n"}"#,
        r#"{"a\b":1,"Id_No.":3,"actor":null,"tags":{"0":"z"}}"#,
    ];
    let mut rows = Rows::default();
    let parsed = Parser::new(dataset).parse(&chunk(&records), &DayRange::ALL, &mut rows);
    assert_eq!(parsed.rejects, []);
    let text = |text: &str| format!("Text({text:?})");
    let expected = [
        format!(
            "BigInt(1) {} {} Date(1) Null Json({:?})",
            text("ann"),
            text("x"),
            r#"{"id":7,"actor":{"id":1.50},"tags":[null,"y"]}"#
        ),
        format!("BigInt(2) {} Null Null {} Json({:?})", text("bob"), text("n"), r#"{"id":8,"tags":[]}"#),
        format!("BigInt(3) Null {} Null Null Json({:?})", text("z"), r#"{"a\b":1,"actor":null}"#),
    ];
    assert_eq!(rows.0, expected);
}

#[test]
fn rejects_name_the_column_and_where_it_came_from() {
    let dataset = dataset("id:bigint count=/n/c:bigint! x=a\u{1}b:uuid");
    let detail = |record: &str| {
        let parsed = Parser::new(dataset.clone()).parse(&chunk(&[record]), &DayRange::ALL, &mut Rows::default());
        parsed.rejects[0].detail.clone()
    };
    assert_eq!(detail(r#"{"id":1,"n":{"c":"one"}}"#), "count (from /n/c): \"one\" is no integer (expected e.g. 42)");
    assert_eq!(detail(r#"{"id":1,"n":[]}"#), "count (from /n/c): required, but absent");
    assert!(detail(r#"{"n":{"c":1},"a\u0001b":1}"#).starts_with("x (from a\\u{1}b): 1 is no UUID"));
    assert!(detail(r#"{"n":{"c":1,"d":"\u0000"}}"#).starts_with("_extra: \"n\":{\"d\":\"\\u0000\"} contains U+0000"));
}
