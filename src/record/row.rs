//! The values of one row, and the records that could not become one.

use std::borrow::Cow;

/// A value of one column, already checked against the column's type; both stores take every value as it is.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    Null,
    /// Free of U+0000.
    Text(Cow<'a, str>),
    BigInt(i64),
    /// Finite.
    Double(f64),
    /// Plain decimal notation as PostgreSQL prints it: `-1500.00`, never an exponent; within PostgreSQL's range.
    Numeric(Cow<'a, str>),
    Boolean(bool),
    /// Days since 1970-01-01; years 0001 to 9999.
    Date(i32),
    /// Microseconds since 1970-01-01 00:00:00 of a column without time zone; years 0001 to 9999.
    Timestamp(i64),
    /// Microseconds since 1970-01-01 00:00:00 UTC; years 0001 to 9999.
    TimestampTz(i64),
    Uuid([u8; 16]),
    /// JSON text that PostgreSQL's `jsonb` takes: valid UTF-8, no U+0000, no lone surrogate, numbers in range.
    Json(Cow<'a, str>),
}

/// Why a record was rejected; the text is part of the contract.
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
    /// The database refused the row (stream only).
    Constraint,
}

impl RejectReason {
    /// Every reason.
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

    /// The reason of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.as_str() == name)
    }
}

/// A record that could not become a row, kept with its original bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// Position among the file's records, from 1.
    pub ordinal: u64,
    /// Where the record begins in the decompressed text, from 0.
    pub byte_offset: u64,
    pub reason: RejectReason,
    /// For people: which column, which value, what was expected.
    pub detail: String,
    /// The original bytes; of a record that is too large the first 64 KiB.
    pub record: Vec<u8>,
}

/// Takes the rows that a parser makes; a store's encoder is one.
pub trait RowSink {
    /// `values`: one per column of the dataset, then `_extra` (`Json` or `Null`).
    fn push(&mut self, values: &[Value<'_>]);
}
