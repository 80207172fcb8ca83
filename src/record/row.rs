//! The values of one row, and the records that could not become a row.

use std::borrow::Cow;

/// The value of one column, already checked against the column's type. Both databases accept every such value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    Null,
    /// Contains no U+0000.
    Text(Cow<'a, str>),
    BigInt(i64),
    /// Finite.
    Double(f64),
    /// Plain decimal notation as PostgreSQL prints it, such as `-1500.00`. It has no exponent and is within PostgreSQL's range.
    Numeric(Cow<'a, str>),
    Boolean(bool),
    /// Days since 1970-01-01; years 0001 to 9999.
    Date(i32),
    /// Microseconds since 1970-01-01 00:00:00, for a column without time zone; years 0001 to 9999.
    Timestamp(i64),
    /// Microseconds since 1970-01-01 00:00:00 UTC; years 0001 to 9999.
    TimestampTz(i64),
    Uuid([u8; 16]),
    /// JSON text that PostgreSQL's `jsonb` accepts: valid UTF-8, no U+0000, no lone surrogate, numbers in range.
    Json(Cow<'a, str>),
}

/// Why a record was rejected. Users see these names in `raw.rejects`, so they never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RejectReason {
    NotAnObject,
    MissingRequired,
    TypeMismatch,
    OutOfRange,
    NulCharacter,
    LoneSurrogate,
    InvalidUtf8,
    TooDeep,
    TooLarge,
    InvalidJson,
    /// The database rejected the row (stream only).
    Constraint,
}

impl RejectReason {
    /// All reasons.
    pub const ALL: [RejectReason; 11] = [
        Self::NotAnObject,
        Self::MissingRequired,
        Self::TypeMismatch,
        Self::OutOfRange,
        Self::NulCharacter,
        Self::LoneSurrogate,
        Self::InvalidUtf8,
        Self::TooDeep,
        Self::TooLarge,
        Self::InvalidJson,
        Self::Constraint,
    ];

    /// The name in `raw.rejects` and in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotAnObject => "not_an_object",
            Self::MissingRequired => "missing_required",
            Self::TypeMismatch => "type_mismatch",
            Self::OutOfRange => "out_of_range",
            Self::NulCharacter => "nul_character",
            Self::LoneSurrogate => "lone_surrogate",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::TooDeep => "too_deep",
            Self::TooLarge => "too_large",
            Self::InvalidJson => "invalid_json",
            Self::Constraint => "constraint",
        }
    }

    /// The reason with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.as_str() == name)
    }
}

/// A record that could not become a row, kept with its original bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// The record's position among the records of the file, from 1.
    pub ordinal: u64,
    /// The offset of the record's first byte in the decompressed text, from 0.
    pub byte_offset: u64,
    pub reason: RejectReason,
    /// An explanation for the user: which column, which value, what was expected.
    pub detail: String,
    /// The original bytes; of a record that is too large, the first 64 KiB.
    pub record: Vec<u8>,
}

/// Receives the rows of a parser. The encoders of the databases implement it.
pub trait RowSink {
    /// `values`: one per column of the dataset, then `_extra` (`Json` or `Null`).
    fn push(&mut self, values: &[Value<'_>]);
}
