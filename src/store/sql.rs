//! The two SQL dialects: how each writes names, types and days. All SQL with names from outside is made from these pieces.
//! Identifiers are checked when the configuration is read, and they are always quoted.

use crate::dataset::{Column, ColumnType, Dataset};

/// The SQL dialect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Postgres,
    Sqlite,
}

/// The schema of a table in PostgreSQL; a prefix of its name in SQLite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schema {
    /// The raw rows and the ledger of loads.
    Raw,
    /// The totals per day.
    Modelled,
    /// The program's own data: applied migrations, known datasets, days to refresh.
    Dataloader,
}

impl Schema {
    /// The schema's name, or the prefix.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Modelled => "modelled",
            Self::Dataloader => "dataloader",
        }
    }
}

impl Dialect {
    /// The quoted name of a table, ready for SQL.
    pub fn table(self, schema: Schema, name: &str) -> String {
        match self {
            Self::Postgres => format!("{}.{}", schema.name(), quote(name)),
            Self::Sqlite => quote(&self.bare_table(schema, name)),
        }
    }

    /// The name of a table in the catalogue, unquoted and without its schema.
    pub fn bare_table(self, schema: Schema, name: &str) -> String {
        match self {
            Self::Postgres => name.to_owned(),
            Self::Sqlite => format!("{}_{name}", schema.name()),
        }
    }

    /// The type of a column in `CREATE TABLE`. SQLite accepts any type name and derives the storage from it. The second word
    /// keeps exact decimals and times as text. The first word lets [`super::schema`] detect a changed definition.
    pub fn column_type(self, column_type: ColumnType) -> &'static str {
        match (self, column_type) {
            (_, ColumnType::Text) => "text",
            (_, ColumnType::BigInt) => "bigint",
            (_, ColumnType::Double) => "double precision",
            (Self::Postgres, ColumnType::Numeric) => "numeric",
            (Self::Postgres, ColumnType::Boolean) => "boolean",
            (Self::Postgres, ColumnType::Date) => "date",
            (Self::Postgres, ColumnType::Timestamp) => "timestamp without time zone",
            (Self::Postgres, ColumnType::TimestampTz) => "timestamp with time zone",
            (Self::Postgres, ColumnType::Uuid) => "uuid",
            (Self::Postgres, ColumnType::Jsonb) => "jsonb",
            (Self::Sqlite, ColumnType::Numeric) => "numeric text",
            (Self::Sqlite, ColumnType::Boolean) => "boolean integer",
            (Self::Sqlite, ColumnType::Date) => "date text",
            (Self::Sqlite, ColumnType::Timestamp) => "timestamp text",
            (Self::Sqlite, ColumnType::TimestampTz) => "timestamptz text",
            (Self::Sqlite, ColumnType::Uuid) => "uuid text",
            (Self::Sqlite, ColumnType::Jsonb) => "jsonb text",
        }
    }

    /// The UTC date of a date or time column, as the modelled tables and the day index use it.
    pub fn day(self, column: &Column) -> String {
        self.day_of(&quote(&column.name), column.column_type)
    }

    /// The UTC date of an expression of that type.
    pub fn day_of(self, time: &str, column_type: ColumnType) -> String {
        match (self, column_type) {
            (_, ColumnType::Date) => time.to_owned(),
            (Self::Postgres, ColumnType::TimestampTz) => format!("({time} at time zone 'UTC')::date"),
            (Self::Postgres, _) => format!("{time}::date"),
            (Self::Sqlite, _) => format!("substr({time}, 1, 10)"),
        }
    }

    /// The hash of a row's key, for the key index; none in SQLite, which has no such function and indexes the key's columns. Rows
    /// of the same key have the same hash; rows of the same hash may have different keys.
    pub fn key_hash(self, dataset: &Dataset) -> Option<String> {
        let keys: Vec<String> = dataset.key.iter().map(|column| quote(&dataset.columns[*column].name)).collect();
        (self == Self::Postgres).then(|| format!("hash_record_extended(row({}), 0)", keys.join(", ")))
    }

    /// What the key index of a table has of a row: the hash of its key, or the key's columns.
    pub fn key_index(self, dataset: &Dataset) -> String {
        let keys = || dataset.key.iter().map(|column| quote(&dataset.columns[*column].name)).collect::<Vec<_>>().join(", ");
        self.key_hash(dataset).unwrap_or_else(keys)
    }

    /// A UUID as a value of its column's type.
    pub fn uuid_literal(self, uuid: uuid::Uuid) -> String {
        match self {
            Self::Postgres => format!("'{uuid}'::uuid"),
            Self::Sqlite => format!("'{uuid}'"),
        }
    }

    /// Compares two expressions; nulls are equal. PostgreSQL can neither hash this comparison nor use an index for it, so it is
    /// not for large joins.
    pub fn same(self, left: &str, right: &str) -> String {
        match self {
            Self::Postgres => format!("{left} is not distinct from {right}"),
            Self::Sqlite => format!("{left} is {right}"),
        }
    }

    /// The first `count` placeholders of a statement, separated by commas. In SQLite they are `?`, because SQLite searches a
    /// numbered one among the names of all: with thousands of them that takes longer than the statement.
    pub fn placeholders(self, count: usize) -> String {
        self.tuple(1..=count)
    }

    /// The first placeholders of a statement as `rows` tuples of `width`: `($1, $2), ($3, $4), …`.
    pub fn tuples(self, rows: usize, width: usize) -> String {
        let tuple = |row: usize| format!("({})", self.tuple(row * width + 1..=(row + 1) * width));
        (0..rows).map(tuple).collect::<Vec<_>>().join(", ")
    }

    fn tuple(self, numbers: std::ops::RangeInclusive<usize>) -> String {
        let placeholder = |number: usize| match self {
            Self::Postgres => format!("${number}"),
            Self::Sqlite => "?".to_owned(),
        };
        numbers.map(placeholder).collect::<Vec<_>>().join(", ")
    }

    /// The current time, in the precision of the database.
    pub fn now(self) -> &'static str {
        match self {
            Self::Postgres => "clock_timestamp()",
            Self::Sqlite => "strftime('%Y-%m-%d %H:%M:%f000', 'now')",
        }
    }
}

/// The columns that every raw table has after the dataset's own columns, in order.
pub const GENERATED_COLUMNS: [(&str, ColumnType); 2] = [("_extra", ColumnType::Jsonb), ("_load_id", ColumnType::BigInt)];

/// Every column of a dataset's raw tables with its type, in order.
pub fn raw_columns(dataset: &Dataset) -> impl Iterator<Item = (&str, ColumnType)> {
    dataset.columns.iter().map(|c| (c.name.as_str(), c.column_type)).chain(GENERATED_COLUMNS)
}

/// The quoted names of every column of a dataset's raw tables, separated by commas.
pub fn raw_column_list(dataset: &Dataset) -> String {
    raw_columns(dataset).map(|(name, _)| quote(name)).collect::<Vec<_>>().join(", ")
}

/// Quotes an identifier.
pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A list of days as SQL literals for `IN (…)`. Both dialects read them there as dates.
pub fn day_literals(days: impl IntoIterator<Item = Day>) -> String {
    days.into_iter().map(|day| format!("'{day}'")).collect::<Vec<_>>().join(", ")
}

/// A UTC date as days since 1970-01-01; shown as `YYYY-MM-DD`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(pub i32);

impl Day {
    /// The day of a `YYYY-MM-DD` text.
    pub fn parse(text: &str) -> Option<Self> {
        text.parse().ok().map(Self::of)
    }

    /// The day of a date.
    pub fn of(date: jiff::civil::Date) -> Self {
        Self(date.since(EPOCH).expect("two dates are always some days apart").get_days())
    }
}

impl std::fmt::Display for Day {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let date = EPOCH.checked_add(jiff::Span::new().days(self.0)).expect("days come from dates of the years 1 to 9999");
        write!(f, "{date}")
    }
}

const EPOCH: jiff::civil::Date = jiff::civil::date(1970, 1, 1);
