//! Checks of JSON text beyond its syntax: nesting depth, escapes that no string can hold, numbers that no `numeric` can hold.
//!
//! serde_json accepts all of these when it skips a value, but PostgreSQL aborts a whole COPY for one of them.

use std::borrow::Cow;

use memchr::{memchr, memchr2};

use super::number;
use super::row::RejectReason;

/// The deepest nesting that a record may have; the record itself is level 1.
pub const MAX_DEPTH: usize = 128;

/// Whether brackets outside of strings nest deeper than `limit`. `text` may be invalid JSON.
pub fn nests_deeper(text: &str, limit: usize) -> bool {
    let bytes = text.as_bytes();
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'{' | b'[' => {
                depth += 1;
                if depth > limit {
                    return true;
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => at = string_end(bytes, at) - 1,
            _ => {}
        }
        at += 1;
    }
    false
}

/// The position after the string that begins at `start`; the end of the text if the string is not closed.
fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    loop {
        match bytes.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
            Some(found) if bytes[at + found] == b'"' => return at + found + 1,
            Some(found) => at += found + 2,
            None => return bytes.len(),
        }
    }
}

/// Decodes a valid JSON string, given with its quotes. The result may contain U+0000.
///
/// # Errors
/// `LoneSurrogate` if the string is not valid Unicode.
pub fn unescape(string: &str) -> Result<Cow<'_, str>, RejectReason> {
    let content = &string[1..string.len() - 1];
    match memchr(b'\\', content.as_bytes()) {
        None => Ok(Cow::Borrowed(content)),
        Some(_) => serde_json::from_str(string).map(Cow::Owned).map_err(|_| RejectReason::LoneSurrogate),
    }
}

/// The first reason why PostgreSQL's `jsonb` would reject a valid JSON text, in the order of [`RejectReason`].
pub fn jsonb_fault(json: &str) -> Option<RejectReason> {
    if may_hold_huge_number(json) && holds_huge_number(json) { Some(RejectReason::OutOfRange) } else { escape_fault(json) }
}

/// The first reason why a string of a valid JSON text cannot be stored: it escapes U+0000 or half of a surrogate pair. Keys are
/// checked too.
pub fn escape_fault(json: &str) -> Option<RejectReason> {
    let bytes = json.as_bytes();
    let (mut fault, mut at) = (None, 0);
    while let Some(found) = memchr(b'\\', &bytes[at..]) {
        at += found;
        at += match code_unit(bytes, at) {
            None => 2,
            Some(0) => return Some(RejectReason::NulCharacter),
            Some(0xD800..=0xDBFF) if matches!(code_unit(bytes, at + 6), Some(0xDC00..=0xDFFF)) => 12,
            Some(0xD800..=0xDFFF) => {
                fault = Some(RejectReason::LoneSurrogate);
                6
            }
            Some(_) => 6,
        };
    }
    fault
}

/// The value of the `\uXXXX` escape at `at`, if there is one.
fn code_unit(bytes: &[u8], at: usize) -> Option<u32> {
    let [b'\\', b'u', digits @ ..] = bytes.get(at..at + 6)? else { return None };
    digits.iter().try_fold(0, |unit, &digit| Some(unit * 16 + char::from(digit).to_digit(16)?))
}

/// A cheap check that rules out most values: a number is huge only with an exponent or with very many digits.
fn may_hold_huge_number(json: &str) -> bool {
    let exponent = |pair: &[u8]| pair[0].is_ascii_digit() && pair[1] | 0x20 == b'e';
    json.len() > number::MAX_SCALE || json.as_bytes().windows(2).any(exponent)
}

/// Whether a number outside of strings exceeds the range of `numeric`.
fn holds_huge_number(json: &str) -> bool {
    let bytes = json.as_bytes();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => at = string_end(bytes, at),
            b'-' | b'0'..=b'9' => {
                let end = at + number::extent(&bytes[at..]);
                if !number::fits_numeric(&json[at..end]) {
                    return true;
                }
                at = end;
            }
            _ => at += 1,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nesting_counts_brackets_outside_of_strings() {
        assert!(!nests_deeper(r#"{"a":[1,{"b":2}]}"#, 3));
        assert!(nests_deeper(r#"{"a":[1,{"b":2}]}"#, 2));
        assert!(!nests_deeper(r#"{"[[[\"[[[":"[[[\\"}"#, 1));
        assert!(!nests_deeper("[][][]{}", 1));
        assert!(!nests_deeper(r#"["[[["#, 1), "an unfinished string has no brackets");
        assert!(!nests_deeper(r#""\"#, 0));
    }

    #[test]
    fn unescaping_borrows_where_nothing_is_escaped() {
        assert!(matches!(unescape(r#""plain Ü""#), Ok(Cow::Borrowed("plain Ü"))));
        assert_eq!(unescape(r#""a\n\u00fc\ud83d\ude00\u0000""#).unwrap(), "a\nü😀\0");
        assert_eq!(unescape(r#""\ud83d""#), Err(RejectReason::LoneSurrogate));
    }

    #[test]
    fn jsonb_faults_are_found_wherever_they_stand() {
        use RejectReason::{LoneSurrogate, NulCharacter, OutOfRange};
        let long = format!("[{}]", "1".repeat(131_073));
        let cases = [
            (r#"{"k":"\\u0000 \\ud800","n":[1e5,-2.5E-7,"1e400000"]}"#, None),
            (r#""\ud83d\ude00\uD83D\uDE00""#, None),
            (r#"{"a":["x\u0000"]}"#, Some(NulCharacter)),
            (r#"{"a\u0000":1}"#, Some(NulCharacter)),
            (r#""\ud800\u0000""#, Some(NulCharacter)),
            (r#""\ud800""#, Some(LoneSurrogate)),
            (r#""\ud800\ud800\udc00""#, Some(LoneSurrogate)),
            (r#""\udc00\ud800""#, Some(LoneSurrogate)),
            (r#""\ud83d\\ude00""#, Some(LoneSurrogate)),
            (r#"{"\udfff":1}"#, Some(LoneSurrogate)),
            (r#"[1,{"a":-1e131072}]"#, Some(OutOfRange)),
            ("1E131071", None),
            (r#"["\u0000",1e-16384]"#, Some(OutOfRange)),
            ("0e1073741823", Some(OutOfRange)),
            (&long, Some(OutOfRange)),
        ];
        for (json, fault) in cases {
            assert_eq!(jsonb_fault(json), fault, "{:.60}", json);
        }
    }
}
