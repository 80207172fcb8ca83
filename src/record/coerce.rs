//! Converts the JSON text of a value to its column's type, without loss. A value that cannot be converted is refused.

use std::borrow::Cow;

use memchr::memchr;

use super::json;
use super::number::{self, IntegerForm};
use super::row::{RejectReason, Value};
use super::time;
use crate::dataset::ColumnType;

/// Converts `source` to a value of type `column_type`. `source` is one valid JSON value without surrounding white space.
///
/// # Errors
/// The reason why it cannot be converted: `TypeMismatch`, `OutOfRange`, `NulCharacter` or `LoneSurrogate`.
pub fn coerce(column_type: ColumnType, source: &str) -> Result<Value<'_>, RejectReason> {
    if source == "null" {
        return Ok(Value::Null);
    }
    match column_type {
        ColumnType::Text => text(source).map(Value::Text),
        ColumnType::BigInt => {
            let form = if is_string(source) { IntegerForm::Exact } else { IntegerForm::ByValue };
            number::bigint(&string_or_number(source)?, form).map(Value::BigInt)
        }
        ColumnType::Double => number::double(&string_or_number(source)?).map(Value::Double),
        ColumnType::Numeric => number::numeric(string_or_number(source)?).map(Value::Numeric),
        ColumnType::Boolean => boolean(source).map(Value::Boolean),
        ColumnType::Date => time::date(&string(source)?).map(Value::Date),
        ColumnType::Timestamp => time::timestamp(&string(source)?).map(Value::Timestamp),
        ColumnType::TimestampTz => time::timestamp(&string(source)?).map(Value::TimestampTz),
        ColumnType::Uuid => uuid(&string(source)?).map(Value::Uuid),
        ColumnType::Jsonb => match json::jsonb_fault(source) {
            None => Ok(Value::Json(Cow::Borrowed(source))),
            Some(fault) => Err(fault),
        },
    }
}

/// Describes what is wrong with a value that [`coerce`] refused, and what is expected. The text continues a sentence that
/// begins with the value.
pub fn problem(column_type: ColumnType, reason: RejectReason) -> &'static str {
    let out_of_range = reason == RejectReason::OutOfRange;
    match (reason, column_type) {
        (RejectReason::NulCharacter, _) => "contains U+0000, which the databases do not take",
        (RejectReason::LoneSurrogate, _) => "contains half of a surrogate pair (expected e.g. \\ud83d\\ude00)",
        (_, ColumnType::BigInt) if out_of_range => "is out of range (expected -9223372036854775808 to 9223372036854775807)",
        (_, ColumnType::BigInt) => "is no integer (expected e.g. 42)",
        (_, ColumnType::Double) if out_of_range => "is out of range (expected 0 or a magnitude of 4.9e-324 to 1.7e308)",
        (_, ColumnType::Double) => "is no number (expected e.g. 1.5)",
        (_, ColumnType::Numeric) if out_of_range => {
            "is out of range (expected at most 131072 digits before the point, 16383 after it)"
        }
        (_, ColumnType::Numeric) => "is no number (expected e.g. 1500.00)",
        (_, ColumnType::Boolean) => "is no boolean (expected true or false)",
        (_, ColumnType::Date) if out_of_range => "is out of range (expected a day of the calendar, years 0001 to 9999)",
        (_, ColumnType::Date) => "is no date (expected e.g. 2020-12-08)",
        (_, ColumnType::Timestamp | ColumnType::TimestampTz) if out_of_range => {
            "is out of range (expected a time that exists, years 0001 to 9999, no finer than microseconds)"
        }
        (_, ColumnType::Timestamp | ColumnType::TimestampTz) => "is no timestamp (expected e.g. 2020-12-08T20:03:16.759617Z)",
        (_, ColumnType::Uuid) => "is no UUID (expected e.g. 0190163d-8694-739b-aea5-966c26f8ad91)",
        (_, ColumnType::Text | ColumnType::Jsonb) => {
            "contains a number out of range (expected at most 131072 digits before the point, 16383 after it)"
        }
    }
}

fn is_string(source: &str) -> bool {
    source.starts_with('"')
}

/// The content of a string, or the source text of any other value.
fn text(source: &str) -> Result<Cow<'_, str>, RejectReason> {
    if !is_string(source) {
        return Ok(Cow::Borrowed(source));
    }
    match json::unescape(source) {
        Ok(content @ Cow::Borrowed(_)) => Ok(content),
        // Only an escape can produce U+0000.
        Ok(content) if memchr(0, content.as_bytes()).is_none() => Ok(content),
        _ => Err(json::escape_fault(source).unwrap_or(RejectReason::LoneSurrogate)),
    }
}

/// The content of a string, for types whose values are always ASCII.
fn string(source: &str) -> Result<Cow<'_, str>, RejectReason> {
    if is_string(source) { json::unescape(source).map_err(|_| RejectReason::TypeMismatch) } else { Err(RejectReason::TypeMismatch) }
}

/// The text of a number, or the content of a string that may be a number.
fn string_or_number(source: &str) -> Result<Cow<'_, str>, RejectReason> {
    if source.starts_with(|first: char| first == '-' || first.is_ascii_digit()) {
        Ok(Cow::Borrowed(source))
    } else {
        string(source)
    }
}

fn boolean(source: &str) -> Result<bool, RejectReason> {
    let word = if is_string(source) { string(source)? } else { Cow::Borrowed(source) };
    match &*word {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(RejectReason::TypeMismatch),
    }
}

/// Accepts a UUID with or without hyphens, in upper or lower case.
fn uuid(text: &str) -> Result<[u8; 16], RejectReason> {
    let uuid = if matches!(text.len(), 32 | 36) { uuid::Uuid::try_parse(text).ok() } else { None };
    uuid.map(uuid::Uuid::into_bytes).ok_or(RejectReason::TypeMismatch)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use ColumnType::*;
    use RejectReason::{LoneSurrogate, NulCharacter, OutOfRange, TypeMismatch};

    fn accepts(column_type: ColumnType, cases: &[(&str, Value<'_>)]) {
        assert_eq!(coerce(column_type, "null"), Ok(Value::Null), "{column_type:?}");
        for (source, value) in cases {
            assert_eq!(coerce(column_type, source).as_ref(), Ok(value), "{column_type:?} {source}");
        }
    }

    fn refuses(column_type: ColumnType, reason: RejectReason, sources: &[&str]) {
        for source in sources {
            assert_eq!(coerce(column_type, source), Err(reason), "{column_type:?} {source}");
        }
    }

    #[test]
    fn text_takes_strings_and_the_source_of_anything_else() {
        let text = |content: &'static str| Value::Text(content.into());
        accepts(
            Text,
            &[
                (r#""""#, text("")),
                (r#""null""#, text("null")),
                (r#""tab\t \"quote\" \u00fc \ud83d\ude00 東""#, text("tab\t \"quote\" ü 😀 東")),
                ("1.50e1", text("1.50e1")),
                ("true", text("true")),
                (r#"{ "a": [1, "\u0000"] }"#, text(r#"{ "a": [1, "\u0000"] }"#)),
            ],
        );
        refuses(Text, NulCharacter, &[r#""a\u0000b""#, r#""\ud800\u0000""#]);
        refuses(Text, LoneSurrogate, &[r#""\ud800""#, r#""\udc00x""#]);
    }

    #[test]
    fn numbers_stand_alone_or_in_a_string() {
        accepts(
            BigInt,
            &[
                ("42", Value::BigInt(42)),
                ("1.0", Value::BigInt(1)),
                (r#""-42""#, Value::BigInt(-42)),
                (r#""\u0034\u0032""#, Value::BigInt(42)),
            ],
        );
        accepts(Double, &[("1.5", Value::Double(1.5)), (r#""1e3""#, Value::Double(1000.0))]);
        accepts(Numeric, &[("1.50", Value::Numeric("1.50".into())), (r#""1.5e3""#, Value::Numeric("1500".into()))]);
        refuses(BigInt, TypeMismatch, &["1.5", r#""1.0""#, r#""1e3""#, r#""""#, r#"" 1""#, r#""+1""#, r#""01""#, r#""\u0000""#]);
        refuses(BigInt, OutOfRange, &["9223372036854775808", r#""-9223372036854775809""#, "1e30"]);
        refuses(Double, OutOfRange, &["1e400", r#""-1e400""#]);
        refuses(Numeric, OutOfRange, &["1e200000", r#""1e-20000""#]);
        for column_type in [BigInt, Double, Numeric] {
            refuses(column_type, TypeMismatch, &["true", "{}", "[1]", r#""one""#, r#""NaN""#, r#""Infinity""#, r#""\ud800""#]);
        }
    }

    #[test]
    fn booleans_are_the_two_words() {
        let (yes, no) = (Value::Boolean(true), Value::Boolean(false));
        accepts(Boolean, &[("true", yes.clone()), (r#""true""#, yes), ("false", no.clone()), (r#""false""#, no)]);
        refuses(Boolean, TypeMismatch, &["0", "1", r#""TRUE""#, r#""t""#, r#""yes""#, r#""""#, "[true]"]);
    }

    #[test]
    fn times_are_strings() {
        accepts(Date, &[(r#""1970-01-02""#, Value::Date(1))]);
        accepts(
            Timestamp,
            &[(r#""1970-01-01T01:00:00+01:00""#, Value::Timestamp(0)), (r#""1970\u002d01-01""#, Value::Timestamp(0))],
        );
        accepts(TimestampTz, &[(r#""1970-01-01 00:00:01""#, Value::TimestampTz(1_000_000))]);
        for column_type in [Date, Timestamp, TimestampTz] {
            refuses(column_type, TypeMismatch, &["0", "20201208", "true", "{}", r#""yesterday""#, r#""""#]);
            refuses(column_type, OutOfRange, &[r#""2020-02-30""#, r#""0000-01-01""#]);
        }
    }

    #[test]
    fn uuids_are_hyphenated_or_simple() {
        let bytes = Value::Uuid([0x01, 0x90, 0x16, 0x3d, 0x86, 0x94, 0x73, 0x9b, 0xae, 0xa5, 0x96, 0x6c, 0x26, 0xf8, 0xad, 0x91]);
        accepts(
            Uuid,
            &[
                (r#""0190163d-8694-739b-aea5-966c26f8ad91""#, bytes.clone()),
                (r#""0190163D-8694-739B-AEA5-966C26F8AD91""#, bytes.clone()),
                (r#""0190163d8694739baea5966c26f8ad91""#, bytes),
            ],
        );
        refuses(
            Uuid,
            TypeMismatch,
            &[
                r#""{0190163d-8694-739b-aea5-966c26f8ad91}""#,
                r#""urn:uuid:0190163d-8694-739b-aea5-966c26f8ad91""#,
                r#""0190163d-8694-739b-aea5-966c26f8ad9""#,
                r#""0190163d-8694-739b-aea5-966c26f8ad9g""#,
                r#""0190163d86-94-739b-aea5-966c26f8ad91""#,
                "1",
            ],
        );
    }

    #[test]
    fn jsonb_takes_anything_that_postgresql_takes() {
        for source in [r#""x""#, "1e5", "false", r#"{ "a": [null, "\ud83d\ude00"] }"#] {
            accepts(Jsonb, &[(source, Value::Json(source.into()))]);
        }
        refuses(Jsonb, OutOfRange, &["1e400000", r#"{"a":[1e-16384]}"#]);
        refuses(Jsonb, NulCharacter, &[r#"["\u0000"]"#, r#"{"\u0000":1}"#]);
        refuses(Jsonb, LoneSurrogate, &[r#"{"a":"\ud800"}"#]);
    }

    /// The string as JSON, with every UTF-16 unit escaped.
    fn escaped(text: &str) -> String {
        let units: String = text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
        format!("\"{units}\"")
    }

    proptest! {
        #[test]
        fn any_text_round_trips_unless_it_holds_nul(text: String) {
            for source in [serde_json::to_string(&text).unwrap(), escaped(&text)] {
                let expected = if text.contains('\0') { Err(NulCharacter) } else { Ok(Value::Text(text.as_str().into())) };
                prop_assert_eq!(coerce(Text, &source), expected);
            }
        }

        #[test]
        fn any_uuid_round_trips(bytes: [u8; 16]) {
            let uuid = uuid::Uuid::from_bytes(bytes);
            for source in [format!("\"{}\"", uuid.hyphenated()), format!("\"{:X}\"", uuid.simple())] {
                prop_assert_eq!(coerce(Uuid, &source), Ok(Value::Uuid(bytes)));
            }
        }
    }
}
