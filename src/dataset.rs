//! A dataset: a directory of JSON files, the raw table for their records, and the daily models made from it.

use std::fmt;
use std::path::PathBuf;

/// What becomes of a dropped file whose content the dataset has already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeats {
    /// It is loaded like any other.
    Load,
    /// It is filed away without being loaded.
    Skip,
}

impl Repeats {
    /// All values, in the order of error messages.
    pub const ALL: [Repeats; 2] = [Self::Load, Self::Skip];

    /// The name in `dataloader.toml`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Skip => "skip",
        }
    }
}

/// The type of a column. `dataloader.toml` uses PostgreSQL's names.
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
    /// All types, in the order of error messages.
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

    /// The name in `dataloader.toml`.
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

    /// The type with this name.
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
    /// A valid identifier.
    pub name: String,
    pub column_type: ColumnType,
    /// A record is rejected if this column is absent or null.
    pub required: bool,
    pub from: Place,
}

/// Where a value stands in a record: the reference tokens of a JSON Pointer (RFC 6901). Never empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place(pub Vec<String>);

impl Place {
    /// The value of a key of the record.
    pub fn key(key: &str) -> Self {
        Self(vec![key.to_owned()])
    }

    /// Reads a key, or a JSON Pointer if the text begins with `/`. `None` if a `~` is followed by neither `0` nor `1`.
    pub fn parse(text: &str) -> Option<Self> {
        let Some(pointer) = text.strip_prefix('/') else { return Some(Self::key(text)) };
        let token = |escaped: &str| {
            let valid = escaped.split('~').skip(1).all(|after| after.starts_with(['0', '1']));
            valid.then(|| escaped.replace("~1", "/").replace("~0", "~"))
        };
        pointer.split('/').map(token).collect::<Option<_>>().map(Self)
    }

    /// Whether one of the two values is the other, or contains it.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).all(|(own, other)| own == other)
    }
}

impl fmt::Display for Place {
    /// As it stands in `dataloader.toml`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            [key] if !key.starts_with('/') => f.write_str(key),
            tokens => tokens.iter().try_for_each(|token| write!(f, "/{}", token.replace('~', "~0").replace('/', "~1"))),
        }
    }
}

/// What the model computes per day in addition to the totals.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Model {
    /// Indexes into [`Dataset::columns`]. Each dimension has a table of its own, `<dataset>_by_date_<dimension>`.
    pub dimensions: Vec<usize>,
    /// The name of a generated column, and the index of the column whose distinct non-null values it counts.
    pub distinct: Vec<(String, usize)>,
    pub fact_view: FactView,
}

/// The view `fact_<dataset>`: one row per day and combination of dimensions, with the totals of each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum FactView {
    #[default]
    None,
    /// The view that version 0.1.0 created without a setting. It is not part of the recorded definition of the model.
    Implied(FactColumns),
    /// The view that the configuration defines.
    Named(FactColumns),
}

/// The columns of a [`FactView`] that the model does not determine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FactColumns {
    /// The name of the day column.
    pub day: String,
    /// Indexes into [`Dataset::columns`], each a dimension of the model, with the last word of the column of totals:
    /// `total_<dataset>_by_date_by_<word>`.
    pub dimensions: Vec<(usize, String)>,
}

impl FactView {
    /// The columns of the view, if there is a view.
    pub fn columns(&self) -> Option<&FactColumns> {
        match self {
            Self::None => None,
            Self::Implied(columns) | Self::Named(columns) => Some(columns),
        }
    }
}

/// What a dropped record does to the rows of its key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StreamMode {
    /// It is added to them.
    #[default]
    Append,
    /// It replaces those that earlier loads brought.
    Upsert,
}

impl StreamMode {
    /// All modes, in the order of error messages.
    pub const ALL: [Self; 2] = [Self::Append, Self::Upsert];

    /// The name in `dataloader.toml`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::Upsert => "upsert",
        }
    }
}

/// A dataset as `dataloader.toml` defines it, validated. All names are unique, quotable identifiers, at most 63 bytes long with
/// their generated suffixes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    pub name: String,
    /// The directory of the dataset's files. A relative path is relative to the data directory.
    pub dir: PathBuf,
    /// In the order of the definition, which is also the order in the table.
    pub columns: Vec<Column>,
    /// Indexes of the key columns: records with the same values in them are the same record. Never empty.
    pub key: Vec<usize>,
    /// The index of a required date or time column; its UTC date is the record's day. Without it, the dataset is always loaded
    /// in full and has no model.
    pub day: Option<usize>,
    /// Empty unless `day` is set.
    pub model: Model,
    pub stream: StreamMode,
    /// Whether `menu` and `drop` use this dataset by default.
    pub menu: bool,
    /// What becomes of a dropped file whose content the dataset has already.
    pub repeats: Repeats,
}

impl Dataset {
    /// The column whose UTC date is the record's day.
    pub fn day_column(&self) -> Option<&Column> {
        self.day.map(|i| &self.columns[i])
    }
}

#[cfg(test)]
impl Dataset {
    /// A dataset for tests of what does not depend on columns.
    pub fn without_columns(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            dir: name.into(),
            columns: Vec::new(),
            key: Vec::new(),
            day: None,
            model: Model::default(),
            stream: StreamMode::default(),
            menu: false,
            repeats: Repeats::Load,
        }
    }

    /// A dataset for tests of what does not depend on the column: its key, `id`.
    pub fn of_ids(name: &str, column_type: ColumnType) -> Self {
        let column = Column { name: "id".to_owned(), column_type, required: true, from: Place::key("id") };
        Self { columns: vec![column], key: vec![0], ..Self::without_columns(name) }
    }
}
