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
    pub fact_view: FactView,
}

/// The view `fact_<dataset>`: a row per day and combination of dimensions, with the totals of each beside it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum FactView {
    #[default]
    None,
    /// As version 0.1.0 made it without being asked. It is no part of what the modelled tables were made for.
    Implied(FactColumns),
    /// As the configuration names it.
    Named(FactColumns),
}

/// The columns of a [`FactView`] that do not follow from the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FactColumns {
    /// The name of the day's column.
    pub day: String,
    /// Indexes into [`Dataset::columns`], each a dimension of the model, and the last word of the column with its totals:
    /// `total_<dataset>_by_date_by_<word>`.
    pub dimensions: Vec<(usize, String)>,
}

impl FactView {
    /// The columns of the view, if there is one.
    pub fn columns(&self) -> Option<&FactColumns> {
        match self {
            Self::None => None,
            Self::Implied(columns) | Self::Named(columns) => Some(columns),
        }
    }
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
    /// Whether `menu` and `drop` are about this dataset, unless they are told otherwise.
    pub menu: bool,
}

impl Dataset {
    /// The column whose UTC date is the record's day.
    pub fn day_column(&self) -> Option<&Column> {
        self.day.map(|i| &self.columns[i])
    }
}
