//! Rows encoded for a database by the parser threads. For PostgreSQL they are the bytes of binary `COPY`, from which the
//! argument of an `INSERT` is made too. For SQLite they are values ready to bind. The load id is filled in later, when the
//! ledger has assigned it.

use std::sync::Arc;

use jiff::SignedDuration;
use jiff::civil::{DateTime, datetime};
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgTypeInfo};

use super::sql::{Day, Dialect};
use super::value::{POSTGRES_EPOCH_DAYS, POSTGRES_EPOCH_MICROS};
use crate::record::row::{RowSink, Value};

/// Encoded rows of one dataset.
#[derive(Debug, Clone)]
pub enum Rows {
    Postgres(CopyRows),
    Sqlite(BoundRows),
}

impl Rows {
    /// An empty set of rows.
    pub fn new(dialect: Dialect) -> Self {
        match dialect {
            Dialect::Postgres => Self::Postgres(CopyRows::default()),
            Dialect::Sqlite => Self::Sqlite(BoundRows::default()),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Postgres(rows) => rows.ends.len(),
            Self::Sqlite(rows) => rows.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The approximate memory size.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Postgres(rows) => rows.bytes.len(),
            Self::Sqlite(rows) => rows.bytes(),
        }
    }

    /// Sets the load id of every row.
    pub fn set_load(&mut self, load_id: i64) {
        match self {
            Self::Postgres(rows) => rows.set_load(load_id),
            Self::Sqlite(rows) => rows.load_id = load_id,
        }
    }
}

impl RowSink for Rows {
    fn push(&mut self, values: &[Value<'_>]) {
        match self {
            Self::Postgres(rows) => rows.push(values),
            Self::Sqlite(rows) => rows.push(values),
        }
    }
}

/// Tuples of PostgreSQL's binary `COPY` format without its header and trailer
/// (<https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9.4>); `_load_id` is the last field of each.
#[derive(Debug, Clone, Default)]
pub struct CopyRows {
    bytes: Vec<u8>,
    /// Where each tuple ends in `bytes`.
    ends: Vec<usize>,
}

/// The length of a field that is null.
const NULL: i32 = -1;

/// The start of a binary `COPY`: signature, flags, no header extension.
pub const COPY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// The end of a binary `COPY`.
pub const COPY_TRAILER: &[u8] = &(-1i16).to_be_bytes();

impl CopyRows {
    /// All tuples.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The tuples of a range of rows.
    pub fn slice(&self, rows: std::ops::Range<usize>) -> &[u8] {
        let start = if rows.start == 0 { 0 } else { self.ends[rows.start - 1] };
        let end = if rows.is_empty() { start } else { self.ends[rows.end - 1] };
        &self.bytes[start..end]
    }

    fn set_load(&mut self, load_id: i64) {
        for &end in &self.ends {
            self.bytes[end - 8..end].copy_from_slice(&load_id.to_be_bytes());
        }
    }

    fn push(&mut self, values: &[Value<'_>]) {
        let fields = i16::try_from(values.len() + 1).expect("PostgreSQL has at most 1,600 columns");
        self.bytes.extend_from_slice(&fields.to_be_bytes());
        for value in values {
            match value {
                Value::Null => self.bytes.extend_from_slice(&NULL.to_be_bytes()),
                Value::Text(text) => self.field(text.as_bytes()),
                Value::BigInt(number) => self.field(&number.to_be_bytes()),
                Value::Double(number) => self.field(&number.to_be_bytes()),
                Value::Boolean(value) => self.field(&[u8::from(*value)]),
                Value::Date(days) => self.field(&(days - POSTGRES_EPOCH_DAYS).to_be_bytes()),
                Value::Timestamp(micros) | Value::TimestampTz(micros) => {
                    self.field(&(micros - POSTGRES_EPOCH_MICROS).to_be_bytes());
                }
                Value::Uuid(bytes) => self.field(bytes),
                Value::Numeric(digits) => self.numeric(digits),
                Value::Json(text) => {
                    self.length(text.len() + 1);
                    self.bytes.push(1); // version of the jsonb wire format
                    self.bytes.extend_from_slice(text.as_bytes());
                }
            }
        }
        self.field(&0i64.to_be_bytes());
        self.ends.push(self.bytes.len());
    }

    fn length(&mut self, bytes: usize) {
        let length = i32::try_from(bytes).expect("a record has at most 8 MiB");
        self.bytes.extend_from_slice(&length.to_be_bytes());
    }

    fn field(&mut self, bytes: &[u8]) {
        self.length(bytes.len());
        self.bytes.extend_from_slice(bytes);
    }

    /// PostgreSQL's wire format of `numeric`: digits to base 10,000, the weight of the first digit, the sign, and the number of
    /// decimals to display.
    fn numeric(&mut self, text: &str) {
        let (negative, digits) = match text.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, text),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let whole = whole.trim_start_matches('0').as_bytes();
        let fraction = fraction.as_bytes();
        // The digits are grouped by four on both sides of the decimal point, so the front and the end are padded.
        let mut groups: Vec<i16> = Vec::with_capacity((whole.len() + fraction.len()) / 4 + 2);
        let head = whole.len() % 4;
        if head > 0 {
            groups.push(group(&whole[..head]));
        }
        groups.extend(whole[head..].chunks(4).map(group));
        let whole_groups = groups.len();
        for chunk in fraction.chunks(4) {
            let scale = [1000, 100, 10, 1][chunk.len() - 1];
            groups.push(group(chunk) * scale);
        }
        let leading = groups.iter().take_while(|g| **g == 0).count();
        let trailing = groups[leading..].iter().rev().take_while(|g| **g == 0).count();
        let significant = &groups[leading..groups.len() - trailing];

        let small = |n: usize| u16::try_from(n).expect("the parser keeps numerics within PostgreSQL's limits");
        // The weight of the first group is the number of groups between it and the point: at least −4,096 and at most 32,767.
        let weight = if significant.is_empty() { 0 } else { i64::from(small(whole_groups)) - i64::from(small(leading)) - 1 };
        let weight = i16::try_from(weight).expect("the parser keeps numerics within PostgreSQL's limits");
        let sign: u16 = if negative && !significant.is_empty() { 0x4000 } else { 0 };
        self.length(8 + 2 * significant.len());
        self.bytes.extend_from_slice(&small(significant.len()).to_be_bytes());
        self.bytes.extend_from_slice(&weight.to_be_bytes());
        self.bytes.extend_from_slice(&sign.to_be_bytes());
        self.bytes.extend_from_slice(&small(fraction.len()).to_be_bytes());
        for group in significant {
            self.bytes.extend_from_slice(&group.to_be_bytes());
        }
    }
}

/// Rows as one argument of a statement: an array of a table's row type in PostgreSQL's binary format (`array_recv`,
/// `record_recv`). A field is encoded as in a `COPY` tuple.
pub struct RowArray(Vec<u8>);

impl RowArray {
    /// Makes an array of these tuples for a table with these columns. Each column has the index of its field in the tuples, if
    /// they have it, and the OID of its type.
    pub fn new(tuples: &[&[u8]], columns: &[(Option<usize>, u32)]) -> Self {
        const LEN: std::ops::Range<usize> = 12..16;
        let mut array = Vec::with_capacity(tuples.iter().map(|tuples| tuples.len()).sum::<usize>() * 3 / 2);
        array.extend_from_slice(&1i32.to_be_bytes()); // dimensions
        array.extend_from_slice(&0i32.to_be_bytes()); // no element is null
        array.extend_from_slice(&0i32.to_be_bytes()); // the elements' type: the statement's cast names it
        array.extend_from_slice(&0i32.to_be_bytes()); // the number of elements, filled in at the end
        array.extend_from_slice(&1i32.to_be_bytes()); // the index of the first element

        let width = i32::try_from(columns.len()).expect("PostgreSQL has at most 1,600 columns").to_be_bytes();
        let mut len = 0i32;
        let mut fields: Vec<&[u8]> = Vec::with_capacity(columns.len());
        for mut rest in tuples.iter().copied() {
            while let Some((count, mut tuple)) = rest.split_first_chunk() {
                fields.clear();
                for _ in 0..i16::from_be_bytes(*count) {
                    let length = tuple.first_chunk().map_or(NULL, |length| i32::from_be_bytes(*length));
                    let field;
                    (field, tuple) = tuple.split_at(4 + usize::try_from(length).unwrap_or(0));
                    fields.push(field);
                }
                rest = tuple;

                let start = array.len();
                array.extend_from_slice(&[0; 4]);
                array.extend_from_slice(&width);
                for (index, type_oid) in columns {
                    array.extend_from_slice(&type_oid.to_be_bytes());
                    match index {
                        Some(index) => array.extend_from_slice(fields[*index]),
                        None => array.extend_from_slice(&NULL.to_be_bytes()),
                    }
                }
                let size = i32::try_from(array.len() - start - 4).expect("a record has at most 8 MiB");
                array[start..start + 4].copy_from_slice(&size.to_be_bytes());
                len += 1;
            }
        }
        array[LEN].copy_from_slice(&len.to_be_bytes());
        Self(array)
    }
}

impl sqlx::Type<sqlx::Postgres> for RowArray {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(0)) // the statement's cast names the type
    }
}

impl sqlx::Encode<'_, sqlx::Postgres> for RowArray {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        buffer.extend_from_slice(&self.0);
        Ok(IsNull::No)
    }
}

/// The value of up to four decimal digits.
fn group(digits: &[u8]) -> i16 {
    digits.iter().fold(0, |value, digit| value * 10 + i16::from(digit - b'0'))
}

/// Values ready to bind, row by row. Texts are shared, so that binding them again after a refused row does not copy them.
#[derive(Debug, Clone, Default)]
pub struct BoundRows {
    values: Vec<SqliteValue>,
    width: usize,
    load_id: i64,
}

/// A value in one of SQLite's storage classes.
#[derive(Debug, Clone)]
pub enum SqliteValue {
    Null,
    Integer(i64),
    Real(f64),
    Text(Arc<str>),
}

impl BoundRows {
    /// How many rows there are.
    pub(super) fn len(&self) -> usize {
        self.values.len().checked_div(self.width).unwrap_or(0)
    }

    /// Values per row, without `_load_id`.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The values of a range of rows.
    pub fn slice(&self, rows: std::ops::Range<usize>) -> &[SqliteValue] {
        &self.values[rows.start * self.width..rows.end * self.width]
    }

    /// The approximate memory size of the values.
    pub(super) fn bytes(&self) -> usize {
        let text = |value: &SqliteValue| if let SqliteValue::Text(text) = value { text.len() } else { 0 };
        size_of_val(self.values.as_slice()) + self.values.iter().map(text).sum::<usize>()
    }

    /// The load that the rows belong to.
    pub fn load_id(&self) -> i64 {
        self.load_id
    }

    fn push(&mut self, values: &[Value<'_>]) {
        self.width = values.len();
        self.values.extend(values.iter().map(SqliteValue::from));
    }
}

impl From<&Value<'_>> for SqliteValue {
    fn from(value: &Value<'_>) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Text(text) | Value::Numeric(text) | Value::Json(text) => Self::Text(Arc::from(text.as_ref())),
            Value::BigInt(number) => Self::Integer(*number),
            Value::Double(number) => Self::Real(*number),
            Value::Boolean(value) => Self::Integer((*value).into()),
            Value::Date(days) => Self::Text(Day(*days).to_string().into()),
            Value::Timestamp(micros) | Value::TimestampTz(micros) => Self::Text(time_text(*micros)),
            Value::Uuid(bytes) => Self::Text(uuid::Uuid::from_bytes(*bytes).to_string().into()),
        }
    }
}

/// `YYYY-MM-DD HH:MM:SS.ffffff`, always 26 characters, so that texts sort like times.
fn time_text(micros: i64) -> Arc<str> {
    const EPOCH: DateTime = datetime(1970, 1, 1, 0, 0, 0, 0);
    // A civil time is used because `jiff::Timestamp` ends before the year 9999 does.
    let time = EPOCH.checked_add(SignedDuration::from_micros(micros)).expect("the parser keeps times within the years 1 to 9999");
    let mut text = *b"0000-00-00 00:00:00.000000";
    let mut put = |at: usize, width: usize, mut value: u32| {
        for digit in text[at..at + width].iter_mut().rev() {
            *digit = b'0' + u8::try_from(value % 10).expect("a digit");
            value /= 10;
        }
    };
    put(0, 4, time.year().unsigned_abs().into());
    put(5, 2, time.month().unsigned_abs().into());
    put(8, 2, time.day().unsigned_abs().into());
    put(11, 2, time.hour().unsigned_abs().into());
    put(14, 2, time.minute().unsigned_abs().into());
    put(17, 2, time.second().unsigned_abs().into());
    put(20, 6, time.subsec_nanosecond().unsigned_abs() / 1_000);
    std::str::from_utf8(&text).expect("digits and separators").into()
}
