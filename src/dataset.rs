//! A dataset: a directory of JSON files, the raw table they go to, and what to model of it per day.

use std::path::PathBuf;

/// The type of a column, by its name in `dataloader.toml` (PostgreSQL's names).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ColumnType {
    Text,
    BigInt,
    Double,
    Numeric,
    Boolean,
    Date,
    Timestamp,
    TimestampTz,
    Uuid,
    Jsonb,
}

impl ColumnType {
    /// Every type, in the order in which messages list them.
    pub const ALL: [ColumnType; 10] = [
        Self::Text,
        Self::BigInt,
        Self::Double,
        Self::Numeric,
        Self::Boolean,
        Self::Date,
        Self::Timestamp,
        Self::TimestampTz,
        Self::Uuid,
        Self::Jsonb,
    ];

    /// The name that `dataloader.toml` uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::BigInt => "bigint",
            Self::Double => "double",
            Self::Numeric => "numeric",
            Self::Boolean => "boolean",
            Self::Date => "date",
            Self::Timestamp => "timestamp",
            Self::TimestampTz => "timestamptz",
            Self::Uuid => "uuid",
            Self::Jsonb => "jsonb",
        }
    }

    /// The type of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name() == name)
    }

    /// Whether a column of this type can be a dataset's `day`.
    pub fn is_date_or_time(self) -> bool {
        matches!(self, Self::Date | Self::Timestamp | Self::TimestampTz)
    }
}

/// One column of a raw table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// An identifier, also the key in the JSON records.
    pub name: String,
    pub column_type: ColumnType,
    /// A record in which this column is absent or null is rejected.
    pub required: bool,
}

/// What is modelled per day besides the totals.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Model {
    /// Indexes into [`Dataset::columns`]: one more table per dimension, `<dataset>_by_date_<dimension>`.
    pub dimensions: Vec<usize>,
    /// Name of the generated column and the index of the column whose distinct non-null values it counts.
    pub distinct: Vec<(String, usize)>,
}

/// A dataset as `dataloader.toml` defines it, validated. Names are unique, quotable identifiers of at most 63 bytes with their
/// generated suffixes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    pub name: String,
    /// The directory of its files; relative to the data directory unless absolute.
    pub dir: PathBuf,
    /// In the order of the definition, which is the order of the table's columns.
    pub columns: Vec<Column>,
    /// Indexes of the columns that make two records the same; never empty.
    pub key: Vec<usize>,
    /// Index of the required date or time column whose UTC date is the record's day. Without one the dataset is always
    /// loaded in full and has no model.
    pub day: Option<usize>,
    /// Empty unless `day` is set.
    pub model: Model,
}

impl Dataset {
    /// The column whose UTC date is the record's day.
    pub fn day_column(&self) -> Option<&Column> {
        self.day.map(|i| &self.columns[i])
    }
}
