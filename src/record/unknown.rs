//! Keys that no column takes: their values land in `_extra`. Each is noted once per chunk, with its first record.

use std::collections::HashMap;

use super::json;
use crate::dataset::{ColumnType, Place};

/// A key, or a member of a nested object, that no column takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownKey {
    /// As `from` names it in `dataloader.toml`.
    pub place: String,
    /// A type that takes the first value.
    pub column_type: ColumnType,
    /// The first record that has it, by its number in the file.
    pub ordinal: u64,
}

/// At most so many keys of a dataset are noted. Where there are more, they are data themselves.
pub const MOST_KEYS: usize = 100;
/// A longer name is none that somebody gave to a column.
const LONGEST: usize = 200;

/// Where a member stands: the record, or one of the nested values that columns take parts of.
pub(super) type Within = usize;

/// The keys of the chunk so far.
#[derive(Debug, Default)]
pub(super) struct UnknownKeys<'a> {
    /// In the order in which they came.
    order: Vec<(Within, &'a str)>,
    positions: HashMap<(Within, &'a str), usize>,
    pub(super) found: Vec<UnknownKey>,
    /// Where the next key is expected: records mostly have the same keys in the same order.
    expected: usize,
}

impl<'a> UnknownKeys<'a> {
    /// Begins a record.
    pub(super) fn begin(&mut self) {
        self.expected = 0;
    }

    /// Notes a key of the record with this number. `place` makes the reference tokens of the value that it stands in.
    pub(super) fn add(&mut self, within: Within, key: &'a str, value: &str, ordinal: u64, place: impl FnOnce() -> Vec<String>) {
        let member = (within, key);
        if self.order.get(self.expected) == Some(&member) {
            self.expected += 1;
            return;
        }
        if let Some(position) = self.positions.get(&member) {
            self.expected = position + 1;
            return;
        }
        if self.found.len() == MOST_KEYS || key.len() > LONGEST {
            return;
        }
        let Ok(name) = json::unescape(key) else { return };
        self.positions.insert(member, self.order.len());
        self.order.push(member);
        self.expected = self.order.len();
        let mut tokens = place();
        tokens.push(name.into_owned());
        let place = Place(tokens).to_string();
        // The same key may stand there with and without escapes.
        if self.found.iter().all(|found| found.place != place) {
            self.found.push(UnknownKey { place, column_type: type_of(value), ordinal });
        }
    }
}

/// The type for a column that takes this value and others like it. A single text does not tell whether all are times.
fn type_of(value: &str) -> ColumnType {
    match value.as_bytes().first() {
        Some(b't' | b'f') => ColumnType::Boolean,
        Some(b'{' | b'[') => ColumnType::Jsonb,
        Some(b'-' | b'0'..=b'9') if value.parse::<i64>().is_ok() => ColumnType::BigInt,
        Some(b'-' | b'0'..=b'9') => ColumnType::Numeric,
        _ => ColumnType::Text,
    }
}
