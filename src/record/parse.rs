//! Parses the records of a chunk into rows, or into rejects with a reason.
//!
//! Good records take the fast path: one pass finds the members, then each column is coerced once. A record that fails there
//! goes through `classify`. It is slower and alone decides the reason and the detail.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use serde::de::IgnoredAny;

use super::chunk::{Chunk, ChunkBody};
use super::coerce::{self, coerce};
use super::json;
use super::nested::{Columns, Found, Parts, push_member};
use super::row::{Reject, RejectReason, RowSink, Value};
use super::scan;
use super::time::MICROS_PER_DAY;
use super::unknown::{UnknownKey, UnknownKeys};
use crate::dataset::{Column, ColumnType, Dataset, Place};

/// The days that a load includes; records of other days are skipped. Days since 1970-01-01, inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DayRange {
    pub from: Option<i32>,
    pub to: Option<i32>,
}

impl DayRange {
    /// Includes every day.
    pub const ALL: Self = Self { from: None, to: None };

    /// Whether the range includes that day.
    pub fn contains(&self, day: i32) -> bool {
        self.from.is_none_or(|from| from <= day) && self.to.is_none_or(|to| day <= to)
    }
}

/// The result of parsing a chunk; `chunk.records() == rows + skipped + rejects.len()`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parsed {
    /// Rows passed to the sink.
    pub rows: u64,
    /// Good records of days outside the range.
    pub skipped: u64,
    /// UTC days of the rows, since 1970-01-01, with the number of rows; empty for a dataset without a day column.
    pub days: BTreeMap<i32, u64>,
    /// In record order.
    pub rejects: Vec<Reject>,
    /// Keys of the rows that no column takes, each once.
    pub unknown: Vec<UnknownKey>,
}

/// Parses chunks of one dataset. It learns the usual order of the keys, so each thread keeps one parser for all its chunks.
#[derive(Debug)]
pub struct Parser {
    dataset: Arc<Dataset>,
    keys: KeyMap,
}

impl Parser {
    pub fn new(dataset: Arc<Dataset>) -> Self {
        let keys = KeyMap::new(&dataset);
        Self { dataset, keys }
    }

    /// Parses every record of the chunk and passes the good ones within `days` to `rows`, in order.
    ///
    /// A bad record is rejected whatever its day is. For a dataset without a day column, `days` has no effect.
    pub fn parse(&mut self, chunk: &Chunk, days: &DayRange, rows: &mut impl RowSink) -> Parsed {
        let (text, spans) = match &chunk.body {
            ChunkBody::Records { text, spans, .. } => (text, spans),
            ChunkBody::Rejects(rejects) => return Parsed { rejects: rejects.clone(), ..Parsed::default() },
        };
        let mut parsed = Parsed::default();
        let mut seen_days = DayCounts::default();
        let mut unknown = UnknownKeys::default();
        let mut fields = Fields::new(self.dataset.columns.len());
        let mut values = Vec::with_capacity(self.dataset.columns.len() + 1);
        // One UTF-8 check of the whole text is much cheaper than one per record. Only if it fails is each record checked.
        let whole = std::str::from_utf8(text).ok();
        for (ordinal, span) in (chunk.first_ordinal..).zip(spans) {
            let span = span.start as usize..span.end as usize;
            let bytes = &text[span.clone()];
            let record = whole.and_then(|whole| whole.get(span.clone())).or_else(|| std::str::from_utf8(bytes).ok());
            values.clear();
            if !record.is_some_and(|record| self.row(record, &mut fields, &mut values)) {
                let (reason, detail) = classify(&self.dataset, bytes);
                let byte_offset = chunk.first_byte_offset + span.start as u64;
                parsed.rejects.push(Reject { ordinal, byte_offset, reason, detail, record: bytes.to_vec() });
                continue;
            }
            if let Some(day) = self.dataset.day.and_then(|column| utc_day(&values[column])) {
                if !days.contains(day) {
                    parsed.skipped += 1;
                    continue;
                }
                seen_days.add(day);
            }
            rows.push(&values);
            parsed.rows += 1;
            if fields.has_unknown() {
                fields.note_unknown(&mut unknown, &self.keys, ordinal);
            }
        }
        (parsed.days, parsed.unknown) = (seen_days.finish(), unknown.found);
        parsed
    }

    /// Fills `values` from the record; returns false if anything in the record is wrong.
    fn row<'a>(&mut self, record: &'a str, fields: &mut Fields<'a>, values: &mut Vec<Value<'a>>) -> bool {
        if !fields.fill(record, &mut self.keys) {
            return false;
        }
        for (column, source) in self.dataset.columns.iter().zip(&fields.columns) {
            match coerce(column.column_type, source.unwrap_or("null")) {
                Ok(Value::Null) if column.required => return false,
                Ok(value) => values.push(value),
                Err(_) => return false,
            }
        }
        if fields.extra.iter().any(|member| member.fault().is_some()) {
            return false;
        }
        values.push(fields.extra_value());
        true
    }
}

/// The UTC day of a date or time, in days since 1970-01-01.
fn utc_day(value: &Value<'_>) -> Option<i32> {
    match value {
        Value::Date(day) => Some(*day),
        Value::Timestamp(micros) | Value::TimestampTz(micros) => i32::try_from(micros.div_euclid(MICROS_PER_DAY)).ok(),
        _ => None,
    }
}

/// Counts rows by day, fast for the common case: nearly every day was counted a moment ago.
struct DayCounts {
    days: BTreeMap<i32, u64>,
    /// Days and what was counted since they came here, each stored at `day` modulo the length.
    recent: [Option<(i32, u64)>; 64],
}

impl Default for DayCounts {
    fn default() -> Self {
        Self { days: BTreeMap::new(), recent: [None; 64] }
    }
}

impl DayCounts {
    fn add(&mut self, day: i32) {
        match &mut self.recent[day.rem_euclid(64) as usize] {
            Some((recent, rows)) if *recent == day => *rows += 1,
            other => {
                if let Some((recent, rows)) = other.replace((day, 1)) {
                    *self.days.entry(recent).or_default() += rows;
                }
            }
        }
    }

    fn finish(mut self) -> BTreeMap<i32, u64> {
        for (day, rows) in self.recent.into_iter().flatten() {
            *self.days.entry(day).or_default() += rows;
        }
        self.days
    }
}

/// Maps keys to slots: one for each column, then one for each key of which columns take parts only. It first guesses that keys come
/// in the same order as in the previous record.
#[derive(Debug)]
pub(super) struct KeyMap {
    slots: HashMap<String, usize>,
    /// For each slot, its key if that stands in records without escapes.
    plain: Vec<Option<String>>,
    /// For each slot, the slot that followed it last time. The last element is for the start of a record.
    next: Vec<usize>,
    /// What is taken from inside of the values of the slots after those of the columns.
    parts: Vec<Parts>,
    /// The reference tokens of the values that parts are taken of, by their numbers. The first one is the record.
    places: Vec<Vec<String>>,
}

impl KeyMap {
    fn new(dataset: &Dataset) -> Self {
        Self::without(dataset, &BTreeSet::new())
    }

    /// As if the definition did not have the columns with these indexes.
    pub(super) fn without(dataset: &Dataset, columns: &BTreeSet<usize>) -> Self {
        let count = dataset.columns.len();
        let (mut slots, mut plain, mut parts) = (HashMap::new(), vec![None; count], Vec::<Parts>::new());
        let places = dataset.columns.iter().map(|column| &column.from).enumerate();
        for (column, place) in places.filter(|(column, _)| !columns.contains(column)) {
            let (key, inside) = place.0.split_first().expect("a place is never empty");
            let slot = match inside {
                [] => column,
                inside => {
                    let slot = *slots.entry(key.clone()).or_insert(count + parts.len());
                    parts.resize_with(parts.len().max(slot - count + 1), Parts::default);
                    parts[slot - count].add(inside, column);
                    slot
                }
            };
            plain.resize(plain.len().max(slot + 1), None);
            // A key with a backslash never stands in a record as it is.
            plain[slot] = (!key.contains('\\')).then(|| key.clone());
            slots.insert(key.clone(), slot);
        }
        let mut next: Vec<usize> = (1..=plain.len()).collect();
        next.push(0);
        let mut places = vec![Vec::new()];
        for (key, slot) in &slots {
            if let Some(parts) = slot.checked_sub(count).and_then(|part| parts.get_mut(part)) {
                parts.locate(vec![key.clone()], &mut places);
            }
        }
        Self { slots, plain, next, parts, places }
    }

    /// The slot of `key`, which is given as it stands in the text, with quotes. `previous` is the slot of the preceding key.
    fn find(&mut self, key: &str, previous: Option<usize>) -> Option<usize> {
        let previous = previous.unwrap_or(self.plain.len());
        let guess = self.next[previous];
        let guessed = self.plain.get(guess).and_then(Option::as_ref);
        if guessed.is_some_and(|guessed| guessed.as_bytes() == &key.as_bytes()[1..key.len() - 1]) {
            return Some(guess);
        }
        let found = self.slots.get(&*json::unescape(key).ok()?).copied()?;
        self.next[previous] = found;
        Some(found)
    }
}

/// In place of the value of a column that was taken before. No JSON text is empty.
pub(super) const THERE: &str = "";

/// The values of a record as slices of its text.
pub(super) struct Fields<'a> {
    /// For each column, the source text of its value; `None` if the record lacks the key.
    pub(super) columns: Vec<Option<&'a str>>,
    /// The members that match no column: each key once, in the order of their last occurrence.
    extra: Vec<Member<'a>>,
    /// How many of these no column takes any part of.
    whole: usize,
    /// Members of nested objects that no column takes, see [`Columns`].
    unknown: Vec<(usize, &'a str, &'a str)>,
    /// For each key of which columns take parts, its member.
    nested: Vec<Option<(&'a str, &'a str)>>,
    found: Found<'a>,
}

/// One member of an object, as source text.
pub(super) struct Member<'a> {
    /// With quotes and escapes.
    pub(super) key: &'a str,
    pub(super) value: Cow<'a, str>,
}

impl Member<'_> {
    /// The reason why `_extra` cannot store this member.
    pub(super) fn fault(&self) -> Option<RejectReason> {
        // The order of the reasons decides: the first one is reported.
        json::escape_fault(self.key).into_iter().chain(json::jsonb_fault(&self.value)).min()
    }
}

impl<'a> Fields<'a> {
    pub(super) fn new(columns: usize) -> Self {
        Self {
            columns: vec![None; columns],
            extra: Vec::new(),
            whole: 0,
            unknown: Vec::new(),
            nested: Vec::new(),
            found: Found::new(),
        }
    }

    /// Finds the members of the record. Returns false unless the record is one JSON object that does not nest too deep.
    fn fill(&mut self, record: &'a str, keys: &mut KeyMap) -> bool {
        self.columns.fill(None);
        self.fill_more(record, keys)
    }

    /// The same for what is left of a record: `is_there` says which columns have been taken from it before. They are
    /// [`THERE`] unless the rest has another value for them.
    pub(super) fn fill_rest(&mut self, rest: &'a str, keys: &mut KeyMap, is_there: impl Fn(usize) -> bool) -> bool {
        for (column, value) in self.columns.iter_mut().enumerate() {
            *value = is_there(column).then_some(THERE);
        }
        self.fill_more(rest, keys)
    }

    fn fill_more(&mut self, record: &'a str, keys: &mut KeyMap) -> bool {
        self.nested.clear();
        self.nested.resize(keys.parts.len(), None);
        self.extra.clear();
        self.unknown.clear();
        let mut previous = None;
        let mut too_deep = false;
        let scanned = scan::members(record, |key, value| {
            too_deep |= may_nest_too_deep(value) && json::nests_deeper(value, json::MAX_DEPTH - 1);
            let Some(slot) = keys.find(key, previous) else {
                return self.extra.push(Member { key, value: Cow::Borrowed(value) });
            };
            match self.columns.get_mut(slot) {
                Some(column) => *column = Some(value),
                None => self.nested[slot - self.columns.len()] = Some((key, value)),
            }
            previous = Some(slot);
        });
        if self.extra.len() > 1 {
            self.keep_last_of_each_key();
        }
        self.whole = self.extra.len();
        let complete = scanned.is_ok() && !too_deep;
        if complete {
            self.take_nested(keys);
        }
        complete
    }

    /// Fills the columns that stand inside of other values. What no column takes of these stays.
    fn take_nested(&mut self, keys: &KeyMap) {
        for (parts, member) in keys.parts.iter().zip(&self.nested) {
            let Some((key, value)) = *member else { continue };
            let rest =
                parts.take(value, &mut Columns { values: &mut self.columns, unknown: &mut self.unknown, found: &mut self.found });
            self.extra.extend(rest.map(|value| Member { key, value }));
        }
    }

    fn has_unknown(&self) -> bool {
        self.whole > 0 || !self.unknown.is_empty()
    }

    /// Notes the keys of the record that no column takes.
    fn note_unknown(&self, into: &mut UnknownKeys<'a>, keys: &KeyMap, ordinal: u64) {
        into.begin();
        for member in &self.extra[..self.whole] {
            into.add(0, member.key, &member.value, ordinal, Vec::new);
        }
        for (within, key, value) in &self.unknown {
            into.add(*within, key, value, ordinal, || keys.places[*within].clone());
        }
    }

    fn keep_last_of_each_key(&mut self) {
        // Usually there are few extra keys, unescaped and distinct. Comparing those is cheaper than hashing them.
        let plain = |member: &Member<'a>| memchr::memchr(b'\\', member.key.as_bytes()).is_none();
        let repeated = |(i, member): (usize, &Member<'a>)| self.extra[..i].iter().any(|earlier| earlier.key == member.key);
        if self.extra.len() <= 8 && self.extra.iter().all(plain) && !self.extra.iter().enumerate().any(repeated) {
            return;
        }
        let mut seen = HashSet::with_capacity(self.extra.len());
        let last = |member: &Member<'a>| seen.insert(json::unescape(member.key).map_err(|_| member.key));
        let mut last: Vec<bool> = self.extra.iter().rev().map(last).collect();
        self.extra.retain(|_| last.pop().unwrap_or(true));
    }

    /// The value of the column `_extra`.
    pub(super) fn extra_value(&self) -> Value<'a> {
        if self.extra.is_empty() {
            return Value::Null;
        }
        let length: usize = self.extra.iter().map(|m| m.key.len() + m.value.len() + 2).sum();
        let mut object = String::with_capacity(length + 1);
        for member in &self.extra {
            push_member(&mut object, member.key, &member.value);
        }
        object.push('}');
        Value::Json(Cow::Owned(object))
    }
}

/// A cheap check that rules out most values: each level needs two brackets.
fn may_nest_too_deep(value: &str) -> bool {
    value.len() >= 2 * json::MAX_DEPTH && value.starts_with(['{', '['])
}

/// Why a record cannot become a row whatever the columns are: it is no JSON, or nests too deep.
pub fn syntax_fault(bytes: &[u8]) -> Option<(RejectReason, String)> {
    let record = match std::str::from_utf8(bytes) {
        Ok(record) => record,
        Err(e) => {
            return Some((RejectReason::InvalidUtf8, format!("no valid UTF-8 at byte {} of the record, from 0", e.valid_up_to())));
        }
    };
    if json::nests_deeper(record, json::MAX_DEPTH) {
        return Some((RejectReason::TooDeep, format!("nests deeper than {} levels", json::MAX_DEPTH)));
    }
    serde_json::from_str::<IgnoredAny>(record).err().map(|e| (RejectReason::InvalidJson, e.to_string()))
}

/// Why a valid JSON value is no record.
pub fn not_an_object(record: &str) -> (RejectReason, String) {
    let value = record.trim();
    (RejectReason::NotAnObject, format!("{} is {}, no object", shortened(value), kind(value)))
}

/// Why a record cannot become a row: the first reason in the order of the checks, and for that reason the first column.
fn classify(dataset: &Dataset, bytes: &[u8]) -> (RejectReason, String) {
    if let Some(fault) = syntax_fault(bytes) {
        return fault;
    }
    let record = std::str::from_utf8(bytes).expect("the syntax was checked");
    let mut fields = Fields::new(dataset.columns.len());
    if !fields.fill(record, &mut KeyMap::new(dataset)) {
        return not_an_object(record);
    }
    let columns = dataset.columns.iter().zip(&fields.columns).filter_map(|(column, source)| {
        let (name, column_type) = (described(column), column.column_type);
        match *source {
            None | Some("null") if !column.required => None,
            None => Some((RejectReason::MissingRequired, format!("{name}: required, but absent"))),
            Some("null") => Some((RejectReason::MissingRequired, format!("{name}: required, but null"))),
            Some(source) => {
                let reason = coerce(column_type, source).err()?;
                Some((reason, format!("{name}: {} {}", shortened(source), coerce::problem(column_type, reason))))
            }
        }
    });
    let extra = fields.extra.iter().filter_map(|member| {
        let reason = member.fault()?;
        let member = format!("{}:{}", member.key, member.value);
        Some((reason, format!("_extra: {} {}", shortened(&member), coerce::problem(ColumnType::Jsonb, reason))))
    });
    // `min_by_key` returns the first of equal elements.
    columns.chain(extra).min_by_key(|(reason, _)| *reason).expect("the short way fails only for what is checked again here")
}

/// The name of the column, with the place of its value if that is not the key of the same name.
pub(super) fn described(column: &Column) -> String {
    let Column { name, from, .. } = column;
    if *from == Place::key(name) { name.clone() } else { format!("{name} (from {})", shortened(&from.to_string())) }
}

/// The kind of a valid JSON value, for messages.
fn kind(value: &str) -> &'static str {
    match value.as_bytes().first() {
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

/// A detail shows at most this many characters of a value.
const SHOWN_CHARACTERS: usize = 60;

/// Makes a value readable in a message: its source text, printable, on one line and truncated.
pub fn shortened(source: &str) -> String {
    let mut shown = String::new();
    // Each character is shown as at least one, so one more than the limit is enough to decide about truncation.
    for character in source.chars().take(SHOWN_CHARACTERS + 1) {
        match character {
            '\n' | '\r' | '\t' => shown.push(' '),
            '"' | '\'' | '\\' => shown.push(character),
            _ if character.is_alphanumeric() => shown.push(character),
            _ => shown.extend(character.escape_debug()),
        }
    }
    if shown.chars().count() > SHOWN_CHARACTERS {
        shown = shown.chars().take(SHOWN_CHARACTERS - 1).chain(['…']).collect();
    }
    shown
}

/// The column whose value is the reason of a reject: its detail begins with the column as messages name it, or names `_extra`.
pub fn column_of(dataset: &Dataset, reject: &Reject) -> Option<String> {
    let names = dataset.columns.iter().map(|column| column.name.as_str()).chain(["_extra"]);
    let begins =
        |name: &str| reject.detail.strip_prefix(name).is_some_and(|rest| rest.starts_with(": ") || rest.starts_with(" (from "));
    names.into_iter().find(|name| begins(name)).map(str::to_owned)
}

#[cfg(test)]
mod tests;
