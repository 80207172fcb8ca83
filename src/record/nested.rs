//! Takes the values of columns from inside of nested values, and keeps the rest as it stands.
//!
//! Nothing is built per record: the values are slices of its text. Only the rest of a value that something was taken from is
//! written anew, from such slices.

use std::borrow::Cow;
use std::collections::HashMap;

use super::json;
use super::scan;

/// What is taken of a record.
pub struct Columns<'a, 'f> {
    /// The values of the columns.
    pub values: &'f mut [Option<&'a str>],
    /// Members of nested objects that no column takes: the number of the object, the key with its quotes, and the value.
    pub unknown: &'f mut Vec<(usize, &'a str, &'a str)>,
    pub found: &'f mut Found<'a>,
}

/// The members of the objects that are being read, the outermost first: for each part its key and its value. Kept from record to
/// record, so that nothing is allocated for each.
pub type Found<'a> = Vec<Option<(&'a str, &'a str)>>;

/// What columns take of one value.
#[derive(Debug)]
pub enum Taken {
    /// All of it; the index of the column.
    Whole(usize),
    /// Some of its members or elements.
    Parts(Parts),
}

/// The members or elements that columns take something of.
#[derive(Debug, Default)]
pub struct Parts {
    /// Which nested value of the dataset it is, from 1; the record itself is 0.
    number: usize,
    parts: Vec<Part>,
    by_token: HashMap<String, usize>,
}

/// A member or element that columns take something of.
#[derive(Debug)]
struct Part {
    token: String,
    /// What the token is, should the value be a list.
    index: Option<usize>,
    taken: Taken,
}

impl Part {
    fn new(token: &str, taken: Taken) -> Self {
        Self { token: token.to_owned(), index: list_index(token), taken }
    }
}

impl Parts {
    /// Adds the place that `tokens` lead to. It must not overlap with one that was added before.
    pub fn add(&mut self, tokens: &[String], column: usize) {
        let [first, rest @ ..] = tokens else { return };
        let next = self.parts.len();
        let at = *self.by_token.entry(first.clone()).or_insert(next);
        if rest.is_empty() {
            self.parts.push(Part::new(first, Taken::Whole(column)));
            return;
        }
        if at == next {
            self.parts.push(Part::new(first, Taken::Parts(Self::default())));
        }
        if let Taken::Parts(parts) = &mut self.parts[at].taken {
            parts.add(rest, column);
        }
    }

    /// Numbers this value and those inside of it. Appends for each the reference tokens that lead to it; `at` leads to this one.
    pub fn locate(&mut self, at: Vec<String>, places: &mut Vec<Vec<String>>) {
        self.number = places.len();
        places.push(at);
        for part in &mut self.parts {
            if let Taken::Parts(parts) = &mut part.taken {
                let inside = places[self.number].iter().chain([&part.token]).cloned().collect();
                parts.locate(inside, places);
            }
        }
    }

    /// Fills the columns from the valid JSON value `value`. Returns what no column took: `None` if that is nothing. A value of
    /// which nothing was taken stays as it is.
    pub fn take<'a>(&self, value: &'a str, taken: &mut Columns<'a, '_>) -> Option<Cow<'a, str>> {
        match value.as_bytes().first() {
            Some(b'{') => self.take_members(value, taken),
            Some(b'[') => self.take_elements(value, taken),
            _ => Some(Cow::Borrowed(value)),
        }
    }

    fn take_members<'a>(&self, object: &'a str, into: &mut Columns<'a, '_>) -> Option<Cow<'a, str>> {
        // The last of a key that comes twice wins, so nothing is taken before all members are known.
        let (first_found, first_unknown) = (into.found.len(), into.unknown.len());
        into.found.resize(first_found + self.parts.len(), None);
        let (mut expected, mut is_any_found) = (0, false);
        let scanned = scan::members(object, |key, value| match self.part(key, expected) {
            Some(part) => {
                (expected, is_any_found) = (part + 1, true);
                into.found[first_found + part] = Some((key, value));
            }
            None => into.unknown.push((self.number, key, value)),
        });
        if scanned.is_err() || !is_any_found {
            into.found.truncate(first_found);
            return Some(Cow::Borrowed(object));
        }
        let mut rest = String::new();
        for at in first_unknown..into.unknown.len() {
            let (_, key, value) = into.unknown[at];
            push_member(&mut rest, key, value);
        }
        for (at, part) in self.parts.iter().enumerate() {
            let Some((key, value)) = into.found[first_found + at] else { continue };
            if let Some(left) = part.taken.take(value, into) {
                push_member(&mut rest, key, &left);
            }
        }
        into.found.truncate(first_found);
        if rest.is_empty() {
            return None;
        }
        rest.push('}');
        Some(Cow::Owned(rest))
    }

    /// The part that a key with its quotes names. Members mostly come in the order of the columns: `expected` is tried first.
    fn part(&self, key: &str, expected: usize) -> Option<usize> {
        let token = json::unescape(key).ok()?;
        match self.parts.get(expected) {
            Some(part) if part.token == *token => Some(expected),
            _ => self.by_token.get(&*token).copied(),
        }
    }

    /// Whether any of the columns has a value.
    fn have_any(&self, columns: &[Option<&str>]) -> bool {
        self.parts.iter().any(|part| match &part.taken {
            Taken::Whole(column) => columns[*column].is_some(),
            Taken::Parts(parts) => parts.have_any(columns),
        })
    }

    /// In the place of an element that was taken stays null, so that the others keep their positions.
    fn take_elements<'a>(&self, list: &'a str, into: &mut Columns<'a, '_>) -> Option<Cow<'a, str>> {
        let mut rest: Vec<Option<Cow<'a, str>>> = Vec::new();
        let mut found = false;
        let scanned = scan::elements(list, |element| {
            let part = self.parts.iter().find(|part| part.index == Some(rest.len()));
            found |= part.is_some();
            rest.push(match part {
                // It stands for an element of which every member was taken before.
                Some(Part { taken: Taken::Parts(parts), .. }) if element == "null" && parts.have_any(into.values) => None,
                Some(part) => part.taken.take(element, into),
                None => Some(Cow::Borrowed(element)),
            });
        });
        if scanned.is_err() || !found {
            return Some(Cow::Borrowed(list));
        }
        if rest.iter().all(Option::is_none) {
            return None;
        }
        let elements: Vec<&str> = rest.iter().map(|element| element.as_deref().unwrap_or("null")).collect();
        Some(Cow::Owned(format!("[{}]", elements.join(","))))
    }
}

impl Taken {
    fn take<'a>(&self, value: &'a str, into: &mut Columns<'a, '_>) -> Option<Cow<'a, str>> {
        match self {
            Self::Whole(column) => {
                into.values[*column] = Some(value);
                None
            }
            Self::Parts(parts) => parts.take(value, into),
        }
    }
}

/// Adds a member to the text of an object whose end is open.
pub(super) fn push_member(object: &mut String, key: &str, value: &str) {
    object.push(if object.is_empty() { '{' } else { ',' });
    object.push_str(key);
    object.push(':');
    object.push_str(value);
}

/// The value to which the reference tokens lead from the valid JSON value `value`.
pub fn find<'a>(value: &'a str, tokens: &[String]) -> Option<&'a str> {
    let [token, rest @ ..] = tokens else { return Some(value) };
    let mut found = None;
    if value.starts_with('{') {
        let take = |key: &str, member| {
            if json::unescape(key).is_ok_and(|key| key == *token) {
                found = Some(member);
            }
        };
        scan::members(value, take).ok()?;
    } else {
        let (mut at, wanted) = (0, list_index(token));
        let take = |element| {
            if wanted == Some(at) {
                found = Some(element);
            }
            at += 1;
        };
        scan::elements(value, take).ok()?;
    }
    find(found?, rest)
}

/// The position that a reference token means in a list: digits without a leading zero.
fn list_index(token: &str) -> Option<usize> {
    let digits = token.bytes().all(|b| b.is_ascii_digit()) && (token == "0" || !token.starts_with('0'));
    if digits { token.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Place;

    /// What the pointers take of the value, and what is left.
    fn taken<'a>(pointers: &[&str], value: &'a str) -> (Vec<Option<&'a str>>, Option<String>) {
        let mut parts = Parts::default();
        for (column, pointer) in pointers.iter().enumerate() {
            parts.add(&Place::parse(pointer).unwrap().0, column);
        }
        let mut columns = vec![None; pointers.len()];
        let (unknown, found) = (&mut Vec::new(), &mut Found::new());
        let rest = parts.take(value, &mut Columns { values: &mut columns, unknown, found });
        assert!(found.is_empty());
        (columns, rest.map(Cow::into_owned))
    }

    #[test]
    fn members_are_taken_and_the_rest_stays_as_it_stands() {
        let pointers = ["/a/b", "/a/c/d", "/e"];
        let value = r#"{"a": {"b": 1.50e1, "x": [ 1 ], "c": {"d": "\u0062", "y": 1e400}}, "e": null, "z": 0.10}"#;
        let rest = r#"{"z":0.10,"a":{"x":[ 1 ],"c":{"y":1e400}}}"#;
        assert_eq!(taken(&pointers, value), (vec![Some("1.50e1"), Some("\"\\u0062\""), Some("null")], Some(rest.to_owned())));
    }

    #[test]
    fn an_object_whose_every_member_was_taken_leaves_no_trace() {
        assert_eq!(taken(&["/a/b", "/c"], r#"{"a":{"b":1},"c":[]}"#), (vec![Some("1"), Some("[]")], None));
        assert_eq!(taken(&["/a/b", "/c"], r#"{"a":{},"c":1}"#), (vec![None, Some("1")], Some(r#"{"a":{}}"#.to_owned())));
    }

    #[test]
    fn what_is_not_there_is_not_taken_and_nothing_is_lost() {
        for value in ["1", "null", "\"a\"", "{}", "[]", r#"{ "b" : 1 }"#, "[ [ 1 ] ]", r#"{"a":{ "c": 1}}"#] {
            let kept = taken(&["/a/b", "/00", "/-", "/7"], value);
            let expected = if value.starts_with("{\"a") { r#"{"a":{ "c": 1}}"# } else { value };
            assert_eq!(kept, (vec![None; 4], Some(expected.to_owned())), "{value}");
        }
    }

    #[test]
    fn elements_leave_null_in_their_place() {
        assert_eq!(taken(&["/1"], "[1, 2, 3]"), (vec![Some("2")], Some("[1,null,3]".to_owned())));
        assert_eq!(taken(&["/0/a", "/1"], r#"[{"a":1}, 2]"#), (vec![Some("1"), Some("2")], None));
        assert_eq!(taken(&["/0/a"], r#"[{"a":1,"b":2},{"a":3}]"#), (vec![Some("1")], Some(r#"[{"b":2},{"a":3}]"#.to_owned())));
        assert_eq!(taken(&["/1", "/10"], r#"{"1":"a","10":"b"}"#), (vec![Some("\"a\""), Some("\"b\"")], None));
    }

    #[test]
    fn the_last_of_a_key_wins() {
        assert_eq!(taken(&["/a/b"], r#"{"a":{"b":1,"c":2},"\u0061":5}"#), (vec![None], Some(r#"{"\u0061":5}"#.to_owned())));
        assert_eq!(taken(&["/a/b"], r#"{"a":5,"a":{"b":1,"b":2}}"#), (vec![Some("2")], None));
    }

    #[test]
    fn tokens_are_escaped_as_rfc_6901_says() {
        let value = r#"{"":1,"a/b":2,"m~n":3,"~1":4,"c\"d":5}"#;
        let found = taken(&["/", "/a~1b", "/m~0n", "/~01", "/c\"d"], value);
        assert_eq!(found, (vec![Some("1"), Some("2"), Some("3"), Some("4"), Some("5")], None));
        assert_eq!((Place::parse("/a~"), Place::parse("/a~2")), (None, None));
        for text in ["a/b", "", "~", "/~1a", "/a/b~0c", "/a~1b/0"] {
            assert_eq!(Place::parse(text).unwrap().to_string(), text);
        }
    }
}
