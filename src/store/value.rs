//! Values: the arguments of statements, and the fields of the rows that they return.

use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArguments, PgRow, PgTypeInfo};
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Arguments, Column as _, Row as _, TypeInfo, ValueRef};
use uuid::Uuid;

use super::error::StoreResult;
use super::sql::Day;

/// A statement's argument. `None` is null of the variant's type.
#[derive(Debug, Clone)]
pub enum Arg<'a> {
    Int(Option<i64>),
    Real(f64),
    Text(Option<&'a str>),
    Bytes(&'a [u8]),
    Uuid(Uuid),
    Day(Day),
    /// Stored with microseconds.
    Time(Option<jiff::Timestamp>),
}

/// A field of a fetched row.
#[derive(Debug, Clone, PartialEq)]
pub enum Field {
    Null,
    Int(i64),
    Real(f64),
    Text(String),
    Bytes(Vec<u8>),
}

impl Field {
    /// The integer. For columns that are never null.
    pub fn int(&self) -> i64 {
        match self {
            Self::Int(value) => *value,
            other => panic!("expected an integer, found {other:?}"),
        }
    }

    /// The integer; zero for null, which is the result of a sum over no rows.
    pub fn int_or_zero(&self) -> i64 {
        if *self == Self::Null { 0 } else { self.int() }
    }

    /// The text; `None` for null.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Null => None,
            Self::Text(value) => Some(value),
            other => panic!("expected a text, found {other:?}"),
        }
    }

    /// The bytes; empty for null.
    pub fn into_bytes(self) -> Vec<u8> {
        match self {
            Self::Null => Vec::new(),
            Self::Bytes(value) => value,
            Self::Text(value) => value.into_bytes(),
            other => panic!("expected bytes, found {other:?}"),
        }
    }
}

pub(super) fn postgres_arguments(args: &[Arg<'_>]) -> StoreResult<PgArguments> {
    let mut out = PgArguments::default();
    for arg in args {
        match arg {
            Arg::Int(value) => out.add(value),
            Arg::Real(value) => out.add(value),
            Arg::Text(value) => out.add(value),
            Arg::Bytes(value) => out.add(*value),
            Arg::Uuid(value) => out.add(value),
            Arg::Day(value) => out.add(PostgresDate(*value)),
            Arg::Time(value) => out.add(value.map(PostgresTime)),
        }
        .map_err(sqlx::Error::Encode)?;
    }
    Ok(out)
}

pub(super) fn sqlite_arguments(args: &[Arg<'_>]) -> StoreResult<SqliteArguments> {
    let mut out = SqliteArguments::default();
    for arg in args {
        match arg {
            Arg::Int(value) => out.add(value),
            Arg::Real(value) => out.add(value),
            Arg::Text(value) => out.add(value),
            Arg::Bytes(value) => out.add(*value),
            Arg::Uuid(value) => out.add(value.to_string()),
            Arg::Day(value) => out.add(value.to_string()),
            Arg::Time(value) => out.add(value.map(|time| time.strftime("%Y-%m-%d %H:%M:%S.%6f").to_string())),
        }
        .map_err(sqlx::Error::Encode)?;
    }
    Ok(out)
}

/// Days from 1970-01-01 to PostgreSQL's epoch, 2000-01-01.
pub(super) const POSTGRES_EPOCH_DAYS: i32 = 10_957;
/// Microseconds from 1970-01-01 to PostgreSQL's epoch.
pub(super) const POSTGRES_EPOCH_MICROS: i64 = POSTGRES_EPOCH_DAYS as i64 * 86_400_000_000;

struct PostgresDate(Day);

impl sqlx::Type<sqlx::Postgres> for PostgresDate {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(1082)) // fixed in pg_type.dat
    }
}

impl sqlx::Encode<'_, sqlx::Postgres> for PostgresDate {
    fn encode_by_ref(&self, buffer: &mut sqlx::postgres::PgArgumentBuffer) -> Encoded {
        buffer.extend_from_slice(&(self.0.0 - POSTGRES_EPOCH_DAYS).to_be_bytes());
        Ok(sqlx::encode::IsNull::No)
    }
}

struct PostgresTime(jiff::Timestamp);

impl sqlx::Type<sqlx::Postgres> for PostgresTime {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(1184)) // fixed in pg_type.dat
    }
}

impl sqlx::Encode<'_, sqlx::Postgres> for PostgresTime {
    fn encode_by_ref(&self, buffer: &mut sqlx::postgres::PgArgumentBuffer) -> Encoded {
        buffer.extend_from_slice(&(self.0.as_microsecond() - POSTGRES_EPOCH_MICROS).to_be_bytes());
        Ok(sqlx::encode::IsNull::No)
    }
}

type Encoded = Result<sqlx::encode::IsNull, sqlx::error::BoxDynError>;

pub(super) fn postgres_fields(row: &PgRow) -> StoreResult<Vec<Field>> {
    let mut fields = Vec::with_capacity(row.len());
    for (i, column) in row.columns().iter().enumerate() {
        let value = row.try_get_raw(i)?;
        fields.push(if value.is_null() {
            Field::Null
        } else {
            match column.type_info().name() {
                "INT8" => Field::Int(row.try_get(i)?),
                "INT4" => Field::Int(row.try_get::<i32, _>(i)?.into()),
                "BOOL" => Field::Int(row.try_get::<bool, _>(i)?.into()),
                "FLOAT8" => Field::Real(row.try_get(i)?),
                "BYTEA" => Field::Bytes(row.try_get(i)?),
                "UUID" => Field::Text(row.try_get::<Uuid, _>(i)?.to_string()),
                _ => Field::Text(row.try_get(i)?),
            }
        });
    }
    Ok(fields)
}

pub(super) fn sqlite_fields(row: &SqliteRow) -> StoreResult<Vec<Field>> {
    let mut fields = Vec::with_capacity(row.len());
    for i in 0..row.len() {
        let value = row.try_get_raw(i)?;
        fields.push(if value.is_null() {
            Field::Null
        } else {
            // The type is the value's storage class: the declared type of a computed column says little in SQLite.
            match value.type_info().name() {
                "INTEGER" => Field::Int(row.try_get_unchecked(i)?),
                "REAL" => Field::Real(row.try_get_unchecked(i)?),
                "BLOB" => Field::Bytes(row.try_get_unchecked(i)?),
                _ => Field::Text(row.try_get_unchecked(i)?),
            }
        });
    }
    Ok(fields)
}
