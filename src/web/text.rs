//! Text of data, made harmless: what a reader cannot see, or what would change the order of other text, is shown by its number.

use std::ops::Range;

use indicatif::{HumanBytes, HumanCount};
use jiff::Timestamp;

/// The text, at most `most` characters of it, with control and direction characters as `\x1b` or `\u{202e}`.
pub fn shown(text: &str, most: usize) -> String {
    let mut shown = String::with_capacity(text.len().min(most));
    for (i, c) in text.chars().enumerate() {
        if i == most {
            shown.push('…');
            break;
        }
        match c {
            c if c.is_control() && u32::from(c) < 0x100 => shown.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if is_invisible(c) => shown.push_str(&format!("\\u{{{:x}}}", u32::from(c))),
            c => shown.push(c),
        }
    }
    shown
}

/// Bytes of a record as text: what is not UTF-8 is shown by its number as well. Line ends and tabs stay.
pub fn shown_bytes(bytes: &[u8], most: usize) -> String {
    let mut text = String::new();
    for part in bytes.utf8_chunks() {
        text.push_str(part.valid());
        for byte in part.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
        if text.len() > 4 * most {
            break;
        }
    }
    let keeps = |line: &str| line.split('\t').map(|part| shown(part, usize::MAX)).collect::<Vec<_>>().join("\t");
    let lines: Vec<String> = text.split('\n').map(keeps).collect();
    let text = lines.join("\n");
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Bytes of a record in three parts: before a place, the place itself, and after it; at most `most` characters together. If the
/// place is far from the beginning, what stands long before it is left out.
pub fn shown_around(bytes: &[u8], place: Range<usize>, most: usize) -> [String; 3] {
    let is_inside = |at: usize| bytes.get(at).is_some_and(|byte| byte & 0xc0 == 0x80);
    let mut from = if place.start > most / 2 { place.start - most / 4 } else { 0 };
    while is_inside(from) {
        from += 1;
    }
    let from = from.min(place.start);
    let cut = if from > 0 { "…" } else { "" };
    let before = format!("{cut}{}", shown_bytes(&bytes[from..place.start], most / 2));
    let inside = shown_bytes(&bytes[place.clone()], most / 4);
    let after = shown_bytes(&bytes[place.end..], most / 4);
    [before, inside, after]
}

fn is_invisible(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// A count as people read it.
pub fn count(value: i64) -> String {
    let sign = if value < 0 { "−" } else { "" };
    format!("{sign}{}", HumanCount(value.unsigned_abs()))
}

/// A count of things: `1 file`, `2 files`.
pub fn counted(value: i64, name: &str) -> String {
    format!("{} {name}{}", count(value), if value == 1 { "" } else { "s" })
}

/// A size as people read it.
pub fn bytes(value: u64) -> String {
    HumanBytes(value).to_string()
}

/// A rate as people read it.
pub fn rate(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    if value < 10.0 {
        return format!("{value:.1}");
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate is far below 2⁶⁴ and not negative")]
    HumanCount(value.round() as u64).to_string()
}

/// How long ago something was: `3 s`, `12 min`, `5 h`, `9 days`.
pub fn age(seconds: i64) -> String {
    match seconds.max(0) {
        s @ 0..=119 => format!("{s} s"),
        s @ 120..=7_199 => format!("{} min", s / 60),
        s @ 7_200..=172_799 => format!("{} h", s / 3_600),
        s => format!("{} days", s / 86_400),
    }
}

/// A time of the ledger, with its zone, and its age.
pub fn time(text: &str, now: Timestamp) -> Option<(String, String)> {
    let at: Timestamp = text.parse().ok()?;
    Some((at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(), age(now.duration_since(at).as_secs())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_shown_by_its_number() {
        assert_eq!(shown("a\x1b[31m\0\u{202e}b\u{200b}é日", 99), "a\\x1b[31m\\x00\\u{202e}b\\u{200b}é日");
        assert_eq!(shown("abcdef", 3), "abc…");
        assert_eq!(shown("abc", 3), "abc");
        assert_eq!(shown_bytes(b"{\"a\":\xff\n\t1\r}", 99), "{\"a\":\\xff\n\t1\\x0d}");
        assert_eq!(shown_bytes(&[b'x'; 1000], 5), "xxxxx…");
    }

    #[test]
    fn a_place_is_shown_with_what_is_around_it() {
        assert_eq!(shown_around(b"{\"a\":\xff}", 5..6, 99), ["{\"a\":", "\\xff", "}"]);
        let long = format!("{}é!{}", "é".repeat(1_000), "x".repeat(1_000));
        let [before, inside, after] = shown_around(long.as_bytes(), 2_002..2_003, 40);
        assert_eq!((before.as_str(), inside.as_str(), after.as_str()), ("…ééééé", "!", "xxxxxxxxxx…"));
    }

    #[test]
    fn numbers_and_times_are_as_people_read_them() {
        assert_eq!((count(1_234_567), count(-3)), ("1,234,567".to_owned(), "−3".to_owned()));
        assert_eq!([counted(1, "file"), counted(0, "file")], ["1 file", "0 files"]);
        assert_eq!([0.0, 0.4, 9.96, 1_234.5].map(rate), ["0", "0.4", "10.0", "1,235"]);
        assert_eq!([5, 119, 600, 7_200, 200_000].map(age), ["5 s", "119 s", "10 min", "2 h", "2 days"]);
        let now: Timestamp = "2026-01-02T00:01:00Z".parse().unwrap();
        let shown = time("2026-01-02T00:00:00.5Z", now).unwrap();
        assert_eq!(shown, ("2026-01-02 00:00:00 UTC".to_owned(), "59 s".to_owned()));
    }
}
