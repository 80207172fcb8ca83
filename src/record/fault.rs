//! Where in a rejected record its fault is, so that people see it among the other bytes.

use std::ops::Range;

use serde::de::IgnoredAny;

use super::parse::{Member, described, shortened};
use super::row::RejectReason;
use super::{json, nested, scan};
use crate::dataset::Column;

/// The place of the fault in the bytes of the record, as the reason and the detail name it. `None` if the fault has no place there:
/// a key that is missing, a record that is too large or is no object, what the database refused. The columns are those of the
/// record's dataset; none if it is not configured any more.
pub fn place(reason: RejectReason, detail: &str, record: &[u8], columns: &[Column]) -> Option<Range<usize>> {
    let found = match (reason, std::str::from_utf8(record)) {
        (RejectReason::InvalidUtf8, Err(error)) => {
            let start = error.valid_up_to();
            Some(start..error.error_len().map_or(record.len(), |length| start + length))
        }
        (RejectReason::InvalidJson, Ok(text)) => syntax_fault(text),
        (
            RejectReason::MissingRequired
            | RejectReason::TypeMismatch
            | RejectReason::OutOfRange
            | RejectReason::NulCharacter
            | RejectReason::LoneSurrogate,
            Ok(text),
        ) => value_of(text, detail, columns),
        _ => None,
    };
    found.filter(|place| !place.is_empty())
}

/// The character at which the text stops being JSON; at its end, the last one.
fn syntax_fault(text: &str) -> Option<Range<usize>> {
    let error = serde_json::from_str::<IgnoredAny>(text).err()?;
    let line_start: usize = text.split_inclusive('\n').take(error.line().checked_sub(1)?).map(str::len).sum();
    // Columns count bytes from 1; 0 is the line's end before.
    let at = (line_start + error.column()).saturating_sub(1).min(text.len().checked_sub(1)?);
    let start = (0..=at).rev().find(|at| text.is_char_boundary(*at))?;
    let length = text[start..].chars().next()?.len_utf8();
    Some(start..start + length)
}

/// The value that the detail is about. The detail begins with its column; with `_extra` and the member, for a key that is no column.
fn value_of(text: &str, detail: &str, columns: &[Column]) -> Option<Range<usize>> {
    let value = match detail.strip_prefix("_extra: ") {
        Some(member) => extra_member(text, member),
        None => match columns.iter().filter(|column| is_about(detail, &described(column))).max_by_key(|column| column.name.len()) {
            Some(column) => nested::find(text.trim_start(), &column.from.0),
            // The definition has changed since.
            None => named_member(text, detail),
        },
    }?;
    let start = value.as_ptr().addr() - text.as_ptr().addr();
    Some(start..start + value.len())
}

fn is_about(detail: &str, name: &str) -> bool {
    detail.strip_prefix(name).is_some_and(|rest| rest.starts_with(": "))
}

/// The member with the key that the detail begins with: of two that fit the longer one, of a key that is there twice the last value.
fn named_member<'a>(text: &'a str, detail: &str) -> Option<&'a str> {
    let (mut named, mut longest) = (None, 0);
    let scanned = scan::members(text, |key, value| {
        let Ok(name) = json::unescape(key) else { return };
        if is_about(detail, &name) && name.len() >= longest {
            (named, longest) = (Some(value), name.len());
        }
    });
    scanned.ok().and(named)
}

/// The member of this key that `_extra` cannot store. Columns may have taken parts of its value, so the detail shows the rest.
fn extra_member<'a>(text: &'a str, detail: &str) -> Option<&'a str> {
    let mut found = None;
    let scanned = scan::members(text, |key, value| {
        if detail.starts_with(&shortened(&format!("{key}:"))) && (Member { key, value: value.into() }).fault().is_some() {
            found = Some(value);
        }
    });
    scanned.ok().and(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{ColumnType, Place};
    use RejectReason::{
        InvalidJson, InvalidUtf8, LoneSurrogate, MissingRequired, NotAnObject, NulCharacter, OutOfRange, TypeMismatch,
    };

    fn marked(reason: RejectReason, detail: &str, record: &[u8]) -> Option<String> {
        place(reason, detail, record, &[]).map(|place| String::from_utf8_lossy(&record[place]).into_owned())
    }

    #[test]
    fn the_value_that_does_not_fit_is_marked() {
        let record = br#"{"a": 1, "at" : "2024-13-01", "a: b":[2], "at":"32", "n":null}"#;
        for (reason, detail, expected) in [
            (OutOfRange, "at: \"32\" is out of range", Some("\"32\"")),
            (TypeMismatch, "a: 1 is no boolean", Some("1")),
            (TypeMismatch, "a: b: [2] is no number", Some("[2]")),
            (MissingRequired, "n: required, but null", Some("null")),
            (MissingRequired, "id: required, but absent", None),
            (NotAnObject, "a: 1 is no object", None),
        ] {
            assert_eq!(marked(reason, detail, record).as_deref(), expected, "{detail}");
        }
    }

    #[test]
    fn a_member_that_no_column_takes_is_marked_as_well() {
        let record = br#"{"x":"good", "y": "\u0000", "z":"\ud800"}"#;
        assert_eq!(marked(NulCharacter, r#"_extra: "y":"\u0000" contains U+0000"#, record).as_deref(), Some(r#""\u0000""#));
        assert_eq!(marked(LoneSurrogate, r#"_extra: "z":"\ud800" contains half"#, record).as_deref(), Some(r#""\ud800""#));
    }

    #[test]
    fn a_value_that_a_column_takes_from_elsewhere_is_marked_there() {
        let column = |name: &str, from: &str| Column {
            name: name.to_owned(),
            column_type: ColumnType::BigInt,
            required: false,
            from: Place::parse(from).expect("a place"),
        };
        let columns = [column("age", "/actor/years/1"), column("no", "Order No"), column("plain", "plain")];
        let record = r#"{"age":1, "actor":{"years":[8]}, "Order No":"x", "actor":{"years":[7, "old"]}, "plain":{}, "no":2}"#;
        let marked = |detail: &str| place(TypeMismatch, detail, record.as_bytes(), &columns).map(|place| &record[place]);
        assert_eq!(marked("age (from /actor/years/1): \"old\" is no integer"), Some("\"old\""));
        assert_eq!(marked("no (from Order No): \"x\" is no integer"), Some("\"x\""));
        assert_eq!(marked("plain: {} is no integer"), Some("{}"));
        let left = r#"{"actor":{"login":"ada", "note":"\u0000"}}"#;
        let of_rest = r#"_extra: "actor":{"note":"\u0000"} contains U+0000"#;
        let columns = [column("login", "/actor/login")];
        assert_eq!(place(NulCharacter, of_rest, left.as_bytes(), &columns), Some(9..left.len() - 1));
    }

    #[test]
    fn the_byte_at_which_text_or_json_ends_is_marked() {
        assert_eq!(place(InvalidUtf8, "", b"{\"a\":\"\xff\xfe\"}", &[]), Some(6..7));
        assert_eq!(place(InvalidUtf8, "", b"\"\xe2\x82", &[]), Some(1..3));
        for (record, expected) in [
            ("{\"a\":1,}", Some("}")),
            ("{\"a\":é}", Some("é")),
            ("{\n \"a\": nul\n}", Some("\n")),
            ("{\"a\":1", Some("1")),
            ("{\"a\" 1}", Some("1")),
            ("{\"a\":01}", Some("1")),
            ("", None),
            ("{}", None),
        ] {
            assert_eq!(marked(InvalidJson, "", record.as_bytes()).as_deref(), expected, "{record}");
        }
    }
}
