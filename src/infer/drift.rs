//! Compares records with the definition of a dataset: what a load would leave out or reject, and what could be narrower.

use std::sync::Arc;

use super::Origin;
use super::profile::Profile;
use crate::dataset::{Column, ColumnType, Dataset, Place};
use crate::record::chunk::Chunk;
use crate::record::parse::{DayRange, Parser, column_of};
use crate::record::row::{RejectReason, RowSink, Value};

/// A key that no column takes.
#[derive(Debug)]
pub struct UnknownKey {
    pub place: Place,
    pub records: u64,
    /// The first record that has it.
    pub first: Option<Origin>,
}

/// Records that a load would reject, for the same reason and the same column.
#[derive(Debug)]
pub struct Rejected {
    pub reason: RejectReason,
    /// The column whose value is the reason; none if it is the record.
    pub column: Option<String>,
    pub records: u64,
    pub first: Origin,
    /// Of the first one.
    pub detail: String,
}

/// A column that takes more than there is.
#[derive(Debug)]
pub struct Wider {
    pub column: String,
    pub column_type: ColumnType,
    /// The type that all values fit.
    pub narrowest: ColumnType,
    pub values: u64,
    pub first: Option<Origin>,
}

/// How records differ from a definition.
#[derive(Debug)]
pub struct Drift {
    pub unknown: Vec<UnknownKey>,
    pub rejected: Vec<Rejected>,
    pub wider: Vec<Wider>,
}

impl Drift {
    /// `rejected` are those of a [`Judge`] that saw the same records.
    pub fn of(profile: &Profile, dataset: &Dataset, rejected: Vec<Rejected>) -> Self {
        let mut unknown = Vec::new();
        unknown_keys(profile, dataset, profile.top_keys(), &[], &mut unknown);
        let wider = dataset.columns.iter().filter_map(|column| {
            let evidence = &profile.key_at(&column.from)?.evidence;
            let (column_type, narrowest, values) = (column.column_type, evidence.narrowest(), evidence.values());
            let is_wider = values > 0 && is_wider(column_type, narrowest);
            is_wider.then(|| Wider { column: column.name.clone(), column_type, narrowest, values, first: evidence.first })
        });
        Self { unknown, rejected, wider: wider.collect() }
    }

    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.unknown.is_empty() && self.rejected.is_empty() && self.wider.is_empty()
    }
}

/// The keys that no column takes, nor a part of; of nested objects that columns take parts of, the members.
fn unknown_keys(profile: &Profile, dataset: &Dataset, keys: &[usize], parents: &[String], unknown: &mut Vec<UnknownKey>) {
    for key in keys {
        let key = &profile.keys[*key];
        let place = Place([parents, std::slice::from_ref(&key.name)].concat());
        let records = key.evidence.values() + key.evidence.nulls;
        let taking = |column: &&Column| column.from.overlaps(&place);
        match dataset.columns.iter().find(taking) {
            Some(column) if column.from.0.len() > place.0.len() => {
                unknown_keys(profile, dataset, &key.children, &place.0, unknown);
            }
            Some(_) => {}
            None if records == 0 => {}
            None => unknown.push(UnknownKey { place, records, first: key.evidence.first }),
        }
    }
}

/// Whether a type takes values that the narrower one does not.
fn is_wider(column_type: ColumnType, narrower: ColumnType) -> bool {
    use ColumnType as T;
    match column_type {
        T::Text => narrower != T::Text,
        T::Jsonb => !matches!(narrower, T::Jsonb | T::Text),
        T::Numeric => matches!(narrower, T::BigInt | T::Double),
        T::Double => narrower == T::BigInt,
        T::Timestamp | T::TimestampTz => narrower == T::Date,
        T::BigInt | T::Boolean | T::Date | T::Uuid => false,
    }
}

/// Parses records as a load does.
#[derive(Debug)]
pub struct Judge {
    dataset: Arc<Dataset>,
    parser: Parser,
    rejected: Vec<Rejected>,
}

impl Judge {
    /// For records of that dataset.
    pub fn new(dataset: &Arc<Dataset>) -> Self {
        Self { dataset: Arc::clone(dataset), parser: Parser::new(Arc::clone(dataset)), rejected: Vec::new() }
    }

    /// Parses the first `limit` records of a chunk.
    pub fn add(&mut self, file: usize, chunk: &Chunk, limit: u64) {
        let parsed = self.parser.parse(chunk, &DayRange::ALL, &mut Nowhere);
        for reject in parsed.rejects.into_iter().take_while(|reject| reject.ordinal - chunk.first_ordinal < limit) {
            let column = column_of(&self.dataset, &reject);
            match self.rejected.iter().position(|other| other.reason == reject.reason && other.column == column) {
                Some(at) => self.rejected[at].records += 1,
                None => self.rejected.push(Rejected {
                    reason: reject.reason,
                    column,
                    records: 1,
                    first: Origin { file, ordinal: reject.ordinal },
                    detail: reject.detail,
                }),
            }
        }
    }

    /// What would be rejected.
    pub fn rejected(self) -> Vec<Rejected> {
        self.rejected
    }
}

struct Nowhere;

impl RowSink for Nowhere {
    fn push(&mut self, _: &[Value<'_>]) {}
}
