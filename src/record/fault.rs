//! Where in a rejected record its fault is, so that people see it among the other bytes.

use std::ops::Range;

use serde::de::IgnoredAny;

use super::parse::{Member, shortened};
use super::row::RejectReason;
use super::{json, scan};

/// The place of the fault in the bytes of the record, as the reason and the detail name it. `None` if the fault has no place there:
/// a key that is missing, a record that is too large or is no object, what the database refused.
pub fn place(reason: RejectReason, detail: &str, record: &[u8]) -> Option<Range<usize>> {
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
        ) => value_of(text, detail),
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

/// The value that the detail is about. The detail begins with its key; with `_extra` and the member, for a key that is no column.
fn value_of(text: &str, detail: &str) -> Option<Range<usize>> {
    let (mut named, mut longest) = (None, 0);
    let of_value = |value: &str| {
        let start = value.as_ptr().addr() - text.as_ptr().addr();
        start..start + value.len()
    };
    let scanned = scan::members(text, |key, value| {
        let Ok(name) = json::unescape(key) else { return };
        let is_named = detail.strip_prefix(&*name).is_some_and(|rest| rest.starts_with(": "));
        // Of a key that is there twice the last value counts; of two keys that fit, the longer one is meant.
        if is_named && name.len() >= longest {
            (named, longest) = (Some(of_value(value)), name.len());
        } else if named.is_none() && detail.starts_with("_extra: ") && (Member { key, value: value.into() }).fault().is_some() {
            let member = shortened(&format!("{key}:{value}"));
            if detail["_extra: ".len()..].starts_with(&member) {
                named = Some(of_value(value));
            }
        }
    });
    scanned.ok().and(named)
}

#[cfg(test)]
mod tests {
    use super::*;
    use RejectReason::{
        InvalidJson, InvalidUtf8, LoneSurrogate, MissingRequired, NotAnObject, NulCharacter, OutOfRange, TypeMismatch,
    };

    fn marked(reason: RejectReason, detail: &str, record: &[u8]) -> Option<String> {
        place(reason, detail, record).map(|place| String::from_utf8_lossy(&record[place]).into_owned())
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
    fn the_byte_at_which_text_or_json_ends_is_marked() {
        assert_eq!(place(InvalidUtf8, "", b"{\"a\":\"\xff\xfe\"}"), Some(6..7));
        assert_eq!(place(InvalidUtf8, "", b"\"\xe2\x82"), Some(1..3));
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
