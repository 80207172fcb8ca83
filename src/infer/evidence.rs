//! What was seen of one key, in little memory.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};

use super::Origin;
use crate::dataset::ColumnType;
use crate::record::kind::{Kind, Look};
use crate::record::parse::shortened;

/// The types that are proposed, the narrowest first. `jsonb` stands before `text` for keys with nested values.
const NARROWEST_FIRST: [ColumnType; 10] = [
    ColumnType::Boolean,
    ColumnType::BigInt,
    ColumnType::Double,
    ColumnType::Numeric,
    ColumnType::Date,
    ColumnType::Timestamp,
    ColumnType::TimestampTz,
    ColumnType::Uuid,
    ColumnType::Jsonb,
    ColumnType::Text,
];

/// The values of one kind.
#[derive(Debug, Clone)]
pub struct Sighting {
    pub kind: Kind,
    pub count: u64,
    pub first: Origin,
    /// The first value, shortened.
    pub sample: String,
}

/// The values of one key, in all records that can be loaded.
#[derive(Debug, Default)]
pub struct Evidence {
    /// By the order in which the kinds came; without null.
    pub kinds: Vec<Sighting>,
    /// The first record that has the key, with null or without.
    pub first: Option<Origin>,
    /// Records that have the key with null.
    pub nulls: u64,
    /// Numbers and booleans in strings.
    pub quoted: u64,
    /// The length of the longest value as it is written.
    pub longest: usize,
    pub distinct: Distinct,
}

impl Evidence {
    /// Adds a value.
    pub fn add(&mut self, source: &str, look: Look, origin: Origin) {
        self.first.get_or_insert(origin);
        if look.kind == Kind::Null {
            self.nulls += 1;
            return;
        }
        self.quoted += u64::from(look.is_quoted);
        self.longest = self.longest.max(source.len());
        if !look.kind.is_nested() {
            self.distinct.insert(look.identity);
        }
        match self.kinds.iter_mut().find(|sighting| sighting.kind == look.kind) {
            Some(sighting) => sighting.count += 1,
            None => self.kinds.push(Sighting { kind: look.kind, count: 1, first: origin, sample: shortened(source) }),
        }
    }

    /// The number of values that are not null.
    pub fn values(&self) -> u64 {
        self.kinds.iter().map(|sighting| sighting.count).sum()
    }

    /// Whether any value is an object or a list.
    pub fn has_nested(&self) -> bool {
        self.kinds.iter().any(|sighting| sighting.kind.is_nested())
    }

    /// How many values `_extra` could not store.
    pub fn values_that_need_a_column(&self) -> u64 {
        self.kinds.iter().filter(|sighting| sighting.kind.needs_a_column()).map(|sighting| sighting.count).sum()
    }

    /// How many values a column of that type takes without losing a digit.
    pub fn fitting(&self, column_type: ColumnType) -> u64 {
        self.kinds.iter().filter(|sighting| sighting.kind.fits(column_type)).map(|sighting| sighting.count).sum()
    }

    /// The narrowest type that all values fit; `text` if there is no value.
    pub fn narrowest(&self) -> ColumnType {
        let all = self.values();
        let fits_all = |column_type: &ColumnType| match column_type {
            ColumnType::Jsonb if !self.has_nested() => false,
            column_type => self.fitting(*column_type) == all,
        };
        NARROWEST_FIRST.into_iter().find(fits_all).filter(|_| all > 0).unwrap_or(ColumnType::Text)
    }

    /// The narrower type that nearly all values fit, and the first value that does not fit it.
    pub fn nearly(&self) -> Option<(ColumnType, &Sighting)> {
        /// So many of ten values.
        const NEARLY: u64 = 9;
        let (all, narrowest) = (self.values(), self.narrowest());
        let nearly_all = |column_type: &ColumnType| self.fitting(*column_type) * 10 >= all * NEARLY;
        let candidates = NARROWEST_FIRST.into_iter().take_while(|column_type| *column_type != narrowest);
        let column_type = candidates.filter(|column_type| *column_type != ColumnType::Jsonb).find(nearly_all)?;
        let exceptions = self.kinds.iter().filter(|sighting| !sighting.kind.fits(column_type));
        exceptions.min_by_key(|sighting| sighting.first).map(|first| (column_type, first))
    }
}

/// The distinct values, up to a limit.
#[derive(Debug, Default)]
pub struct Distinct {
    values: HashSet<u64, BuildHasherDefault<AsItIs>>,
    is_over: bool,
}

impl Distinct {
    /// More values are not counted.
    pub const LIMIT: usize = 256;

    fn insert(&mut self, identity: u64) {
        if self.is_over {
            return;
        }
        self.values.insert(identity);
        if self.values.len() > Self::LIMIT {
            self.is_over = true;
            self.values = HashSet::default();
        }
    }

    /// How many distinct values there are; `None` if there are more than the limit.
    pub fn count(&self) -> Option<usize> {
        (!self.is_over).then_some(self.values.len())
    }
}

/// The values are hashes already.
#[derive(Debug, Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only whole numbers are hashed");
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}
