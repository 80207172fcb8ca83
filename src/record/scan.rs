//! The members of a record, found in one pass that builds nothing.
//!
//! Records are mostly flat and plain; on such text parsing as a whole takes a quarter less time with this than with a
//! serde_json visitor. It accepts exactly what serde_json accepts (a property test compares them) and leaves nested values
//! and escapes to it.

use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::number;

/// The text is no JSON object; what it is instead is serde_json's to say.
#[derive(Debug, PartialEq, Eq)]
pub struct NoObject;

/// Calls `member` with key (in its quotes, escapes as they stand) and value of each member of the object that `record` is,
/// in source text without white space around it.
pub fn members<'a>(record: &'a str, mut member: impl FnMut(&'a str, &'a str)) -> Result<(), NoObject> {
    let mut cursor = Cursor { text: record, at: 0 };
    cursor.expect(b'{')?;
    if cursor.peek() != Some(b'}') {
        loop {
            cursor.skip_white_space();
            let key = cursor.string()?;
            cursor.expect(b':')?;
            cursor.skip_white_space();
            let value = cursor.value()?;
            member(key, value);
            if cursor.peek() != Some(b',') {
                break;
            }
            cursor.at += 1;
        }
    }
    cursor.expect(b'}')?;
    if cursor.peek().is_none() { Ok(()) } else { Err(NoObject) }
}

struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn skip_white_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\t' | b'\r') = self.text.as_bytes().get(self.at) {
            self.at += 1;
        }
    }

    /// The next byte that is no white space, not yet taken.
    fn peek(&mut self) -> Option<u8> {
        self.skip_white_space();
        self.text.as_bytes().get(self.at).copied()
    }

    fn expect(&mut self, byte: u8) -> Result<(), NoObject> {
        if self.peek() != Some(byte) {
            return Err(NoObject);
        }
        self.at += 1;
        Ok(())
    }

    /// Takes everything up to `end`, which is beside an ASCII character.
    fn take(&mut self, end: usize) -> &'a str {
        let taken = &self.text[self.at..end];
        self.at = end;
        taken
    }

    /// Takes the value that begins here.
    fn value(&mut self) -> Result<&'a str, NoObject> {
        match self.text.as_bytes().get(self.at) {
            Some(b'"') => self.string(),
            Some(b'n') => self.word("null"),
            Some(b't') => self.word("true"),
            Some(b'f') => self.word("false"),
            Some(b'{' | b'[') => self.nested(),
            _ => self.number(),
        }
    }

    fn word(&mut self, word: &str) -> Result<&'a str, NoObject> {
        if self.text.as_bytes()[self.at..].starts_with(word.as_bytes()) {
            Ok(self.take(self.at + word.len()))
        } else {
            Err(NoObject)
        }
    }

    fn number(&mut self) -> Result<&'a str, NoObject> {
        let length = number::extent(&self.text.as_bytes()[self.at..]);
        let number = self.take(self.at + length);
        if number::is_json_number(number) { Ok(number) } else { Err(NoObject) }
    }

    fn nested(&mut self) -> Result<&'a str, NoObject> {
        let mut values = serde_json::Deserializer::from_str(&self.text[self.at..]).into_iter::<&RawValue>();
        let Some(Ok(value)) = values.next() else { return Err(NoObject) };
        Ok(self.take(self.at + value.get().len()))
    }

    /// Takes the string that begins here, quotes included.
    fn string(&mut self) -> Result<&'a str, NoObject> {
        let bytes = self.text.as_bytes();
        if bytes.get(self.at) != Some(&b'"') {
            return Err(NoObject);
        }
        let mut end = self.at + 1;
        let mut escaped = false;
        loop {
            end = special(bytes, end);
            match bytes.get(end) {
                Some(b'"') => break,
                Some(b'\\') => {
                    escaped = true;
                    end += 2;
                }
                _ => return Err(NoObject),
            }
        }
        let string = self.take(end + 1);
        if escaped && serde_json::from_str::<IgnoredAny>(string).is_err() {
            return Err(NoObject);
        }
        Ok(string)
    }
}

/// The position from `at` of the first byte that is special in a string: quote, backslash or control character; the text's
/// end if there is none. Eight bytes at a time, since most strings are too short for a SIMD search to pay.
fn special(bytes: &[u8], mut at: usize) -> usize {
    const ONES: u64 = u64::MAX / 255;
    const HIGH_BITS: u64 = ONES << 7;
    while let Some(word) = bytes.get(at..).and_then(<[u8]>::first_chunk) {
        let word = u64::from_le_bytes(*word);
        // The high bit of each byte below a limit of at most 128; those above the first find may be wrong.
        let below = |word: u64, limit: u64| word.wrapping_sub(ONES * limit) & !word;
        let quote = below(word ^ (ONES * u64::from(b'"')), 1);
        let backslash = below(word ^ (ONES * u64::from(b'\\')), 1);
        let found = (below(word, 0x20) | quote | backslash) & HIGH_BITS;
        if found != 0 {
            return at + found.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    let rest = bytes.get(at..).unwrap_or_default();
    at + rest.iter().position(|b| matches!(b, b'"' | b'\\' | 0..0x20)).unwrap_or(rest.len())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    use super::*;

    fn listed(record: &str) -> Result<Vec<(&str, &str)>, NoObject> {
        let mut all = Vec::new();
        members(record, |key, value| all.push((key, value)))?;
        Ok(all)
    }

    #[test]
    fn members_are_given_as_they_stand() {
        let record =
            " {\"a\" :1.50e1 , \"\\u0062\":\"x\\\"y\",\n\t\"ü\": {\"n\": [1, {}]} ,\"a\":null,\"t\":true,\"f\":false,\"\":[]}\r\n";
        let expected = [
            ("\"a\"", "1.50e1"),
            ("\"\\u0062\"", "\"x\\\"y\""),
            ("\"ü\"", "{\"n\": [1, {}]}"),
            ("\"a\"", "null"),
            ("\"t\"", "true"),
            ("\"f\"", "false"),
            ("\"\"", "[]"),
        ];
        assert_eq!(listed(record), Ok(expected.to_vec()));
        assert_eq!(listed("{}"), Ok(vec![]));
        assert_eq!(listed(" { } "), Ok(vec![]));
    }

    #[test]
    fn special_bytes_are_found_at_every_position() {
        for special_byte in [b'"', b'\\', 0, 0x1f, b'\n'] {
            for length in 0..40 {
                for at in 0..length {
                    let mut bytes: Vec<u8> =
                        (0..length).map(|i| [b' ', b'!', b'#', b'[', b']', 0x7f, 0x80, 0xa2, 0xdc, 0xff][i % 10]).collect();
                    assert_eq!(special(&bytes, 0), length);
                    bytes[at] = special_byte;
                    assert_eq!(special(&bytes, 0), at);
                    assert_eq!(special(&bytes, at + 1), length);
                }
            }
        }
        assert_eq!(special(b"ab", 5), 5, "an escape may end after the text");
    }

    /// serde_json's own view of the members; the last of a key wins.
    fn oracle(record: &str) -> Option<BTreeMap<String, &str>> {
        let members: BTreeMap<String, &RawValue> = serde_json::from_str(record).ok()?;
        Some(members.into_iter().map(|(key, value)| (key, value.get())).collect())
    }

    fn agrees_with_serde_json(record: &str) -> Result<(), TestCaseError> {
        let is_object = serde_json::from_str::<IgnoredAny>(record).is_ok() && record.trim_start().starts_with('{');
        let found = listed(record);
        prop_assert_eq!(found.is_ok(), is_object, "{:?}", record);
        if let (Ok(found), Some(expected)) = (found, oracle(record)) {
            let found: BTreeMap<String, &str> =
                found.into_iter().map(|(key, value)| (serde_json::from_str(key).expect("a key is a string"), value)).collect();
            prop_assert_eq!(found, expected);
        }
        Ok(())
    }

    /// Text made of what JSON is made of, so that much of it nearly is JSON.
    fn nearly_json() -> impl Strategy<Value = String> {
        let tokens = [
            "{",
            "}",
            "[",
            "]",
            ":",
            ",",
            "\"",
            "\"k\":",
            "\"long enough key\":",
            "1",
            "-0.5e+3",
            "01",
            "true",
            "nul",
            "null",
            "\"s\"",
            "\\",
            "\\u00fc",
            "\\ud800",
            "\\x",
            " ",
            "\n",
            "\0",
            "ü",
            "\u{7f}",
            "{\"k\":[1,{}]}",
            "\"\\n\"",
        ];
        vec(proptest::sample::select(tokens.to_vec()), 0..12).prop_map(|tokens| tokens.concat())
    }

    proptest! {
        #[test]
        fn accepts_what_serde_json_accepts(inner in nearly_json(), text: String) {
            agrees_with_serde_json(&inner)?;
            agrees_with_serde_json(&format!("{{{inner}}}"))?;
            agrees_with_serde_json(&format!("{{\"k\":{inner}}}"))?;
            agrees_with_serde_json(&format!("{{\"k\":\"{text}\",\"{text}\":1}}"))?;
            agrees_with_serde_json(&text)?;
        }

        #[test]
        fn accepts_what_serde_json_writes(
            members in btree_map(any::<String>(), (any::<String>(), any::<f64>(), any::<Option<bool>>(), vec(any::<i32>(), 0..4)), 0..8)
        ) {
            agrees_with_serde_json(&serde_json::to_string(&members).unwrap())?;
            agrees_with_serde_json(&serde_json::to_string_pretty(&members).unwrap())?;
        }
    }
}
