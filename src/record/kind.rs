//! What a JSON value is, and which column types take it without losing a digit.
//!
//! That is narrower than what a column accepts: `"1.0"` can be stored as a `double`, which forgets its zero, and a
//! hash of 32 hexadecimal digits as a `uuid`, which would be shown with hyphens.

use std::borrow::Cow;

use twox_hash::XxHash3_128;

use super::json;
use super::number::{self, Precision};
use super::row::RejectReason;
use super::time;
use crate::dataset::ColumnType;

/// What a value is. Numbers, booleans and times may stand in strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Null,
    Boolean,
    /// An integer that a `double` holds exactly.
    Integer,
    /// Another integer of a `bigint`.
    LongInteger,
    /// A number that a `double` gives back as it was written.
    Double,
    /// A number that only `numeric` holds to the digit.
    Numeric,
    /// A number beyond `numeric`.
    HugeNumber,
    Date,
    /// Without an offset from UTC.
    Timestamp,
    /// With an offset.
    TimestampTz,
    /// With hyphens.
    Uuid,
    /// Any other string.
    String,
    /// An object or a list.
    Nested,
    /// An object or a list that `jsonb` does not take, for a number or an escape in it.
    OddNested,
}

impl Kind {
    /// Whether a column of that type takes such values without losing a digit.
    pub fn fits(self, column_type: ColumnType) -> bool {
        use ColumnType as T;
        match self {
            Self::Null => true,
            Self::Boolean => matches!(column_type, T::Boolean | T::Jsonb | T::Text),
            Self::Integer => matches!(column_type, T::BigInt | T::Double | T::Numeric | T::Jsonb | T::Text),
            Self::LongInteger => matches!(column_type, T::BigInt | T::Numeric | T::Jsonb | T::Text),
            Self::Double => matches!(column_type, T::Double | T::Numeric | T::Jsonb | T::Text),
            Self::Numeric => matches!(column_type, T::Numeric | T::Jsonb | T::Text),
            Self::Date => matches!(column_type, T::Date | T::Timestamp | T::TimestampTz | T::Jsonb | T::Text),
            Self::Timestamp => matches!(column_type, T::Timestamp | T::TimestampTz | T::Jsonb | T::Text),
            Self::TimestampTz => matches!(column_type, T::TimestampTz | T::Jsonb | T::Text),
            Self::Uuid => matches!(column_type, T::Uuid | T::Jsonb | T::Text),
            Self::String | Self::Nested => matches!(column_type, T::Jsonb | T::Text),
            Self::HugeNumber | Self::OddNested => column_type == T::Text,
        }
    }

    /// The name for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Boolean => "boolean",
            Self::Integer => "integer",
            Self::LongInteger => "long_integer",
            Self::Double => "double",
            Self::Numeric => "numeric",
            Self::HugeNumber => "huge_number",
            Self::Date => "date",
            Self::Timestamp => "timestamp",
            Self::TimestampTz => "timestamptz",
            Self::Uuid => "uuid",
            Self::String => "string",
            Self::Nested => "nested",
            Self::OddNested => "odd_nested",
        }
    }

    /// Whether `_extra` cannot store such a value.
    pub fn needs_a_column(self) -> bool {
        !self.fits(ColumnType::Jsonb)
    }

    /// Whether it is an object or a list.
    pub fn is_nested(self) -> bool {
        matches!(self, Self::Nested | Self::OddNested)
    }
}

/// A value at first sight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    pub kind: Kind,
    /// A string that is a number or a boolean.
    pub is_quoted: bool,
    /// The hash of the value. Values that are equal in a column of any type have the same one; it is never 0, and [`Look::NULL`] for
    /// null. Nested values have none.
    pub identity: u64,
}

impl Look {
    /// The identity of null.
    pub const NULL: u64 = 1;
}

/// Looks at one valid JSON value without surrounding white space.
///
/// # Errors
/// If no column can take it: the string contains U+0000 or half of a surrogate pair.
pub fn look(source: &str) -> Result<Look, RejectReason> {
    let of = |kind, text: &str| Look { kind, is_quoted: false, identity: identity(text.as_bytes()) };
    Ok(match source.as_bytes()[0] {
        b'n' => Look { kind: Kind::Null, is_quoted: false, identity: Look::NULL },
        b't' | b'f' => of(Kind::Boolean, source),
        b'{' | b'[' => {
            let kind = if json::jsonb_fault(source).is_none() { Kind::Nested } else { Kind::OddNested };
            Look { kind, is_quoted: false, identity: 0 }
        }
        b'"' => return string(source),
        _ if is_short_integer(source) => of(Kind::Integer, source),
        _ => of(number_kind(number::precision(source)), &number::normalized(source).unwrap_or_default()),
    })
}

fn identity(bytes: &[u8]) -> u64 {
    // The lower half of the hash. 0 and 1 have meanings of their own.
    let [low, _] = halves(XxHash3_128::oneshot(bytes));
    low.max(2)
}

/// The identity of a moment. No text begins with this byte.
fn identity_of_moment(micros: i64) -> u64 {
    let mut bytes = [0xff; 9];
    bytes[1..].copy_from_slice(&micros.to_le_bytes());
    identity(&bytes)
}

/// The lower and the upper half.
pub fn halves(hash: u128) -> [u64; 2] {
    let bytes = hash.to_le_bytes();
    let half = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
    [half(0), half(8)]
}

/// A cheap test for most numbers: digits that are their own normal form.
fn is_short_integer(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text).as_bytes();
    (1..=15).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit) && (digits[0] != b'0' || text == "0")
}

fn number_kind(precision: Option<Precision>) -> Kind {
    match precision {
        Some(Precision::Integer) => Kind::Integer,
        Some(Precision::LongInteger) => Kind::LongInteger,
        Some(Precision::Double) => Kind::Double,
        Some(Precision::Numeric) => Kind::Numeric,
        Some(Precision::Beyond) | None => Kind::HugeNumber,
    }
}

fn string(source: &str) -> Result<Look, RejectReason> {
    let content = json::unescape(source)?;
    if matches!(content, Cow::Owned(_)) && content.contains('\0') {
        return Err(RejectReason::NulCharacter);
    }
    let text = &*content;
    let quoted = |kind, text: &str| Look { kind, is_quoted: true, identity: identity(text.as_bytes()) };
    let bytes = text.as_bytes();
    if let [first, ..] = bytes
        && (first.is_ascii_digit() || *first == b'-')
    {
        if is_short_integer(text) {
            return Ok(quoted(Kind::Integer, text));
        }
        if bytes.get(4) == Some(&b'-')
            && let Ok(micros) = time::timestamp(text)
        {
            return Ok(Look { kind: time_kind(text), is_quoted: false, identity: identity_of_moment(micros) });
        }
        if let Some(kind) = quoted_number(text) {
            return Ok(quoted(kind, &number::normalized(text).unwrap_or_default()));
        }
    }
    if matches!(text, "true" | "false") {
        return Ok(quoted(Kind::Boolean, text));
    }
    if bytes.len() == 36 && bytes[8] == b'-' && uuid::Uuid::try_parse(text).is_ok() {
        return Ok(Look { kind: Kind::Uuid, is_quoted: false, identity: identity(text.to_ascii_lowercase().as_bytes()) });
    }
    Ok(Look { kind: Kind::String, is_quoted: false, identity: identity(bytes) })
}

/// The kind of a number in a string, if the column gives back exactly this text.
fn quoted_number(text: &str) -> Option<Kind> {
    match number::precision(text)? {
        Precision::Integer | Precision::LongInteger if text == "-0" => None,
        // A `double` forgets the zeros at the end.
        Precision::Double if text.ends_with('0') => quoted_numeric(text),
        Precision::Double | Precision::Numeric if quoted_numeric(text).is_none() => None,
        Precision::Beyond => None,
        precision => Some(number_kind(Some(precision))),
    }
}

fn quoted_numeric(text: &str) -> Option<Kind> {
    number::numeric(Cow::Borrowed(text)).is_ok_and(|printed| printed == text).then_some(Kind::Numeric)
}

/// The kind of a valid timestamp.
fn time_kind(text: &str) -> Kind {
    /// `YYYY-MM-DD`
    const DATE: usize = 10;
    match &text[DATE..] {
        "" => Kind::Date,
        time if time.contains(['Z', 'z', '+', '-']) => Kind::TimestampTz,
        _ => Kind::Timestamp,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::coerce::coerce;

    fn kind(source: &str) -> Kind {
        look(source).unwrap().kind
    }

    #[test]
    fn values_are_told_by_what_they_are() {
        for (source, expected) in [
            ("null", Kind::Null),
            ("true", Kind::Boolean),
            (r#""false""#, Kind::Boolean),
            ("12", Kind::Integer),
            (r#""12""#, Kind::Integer),
            (r#""-0""#, Kind::String),
            (r#""012""#, Kind::String),
            ("9007199254740993", Kind::LongInteger),
            (r#""9007199254740993""#, Kind::LongInteger),
            ("1.5", Kind::Double),
            ("1.0", Kind::Double),
            (r#""1.5""#, Kind::Double),
            (r#""1.0""#, Kind::Numeric),
            (r#""1e5""#, Kind::String),
            (r#""123e4567""#, Kind::String),
            ("0.12345678901234567890", Kind::Numeric),
            ("1e400000", Kind::HugeNumber),
            (r#""1e400000""#, Kind::String),
            (r#""2020-12-08""#, Kind::Date),
            (r#""2020\u002d12-08""#, Kind::Date),
            (r#""2020-02-30""#, Kind::String),
            (r#""2020-12-08 10:00""#, Kind::Timestamp),
            (r#""2020-12-08T10:00:00Z""#, Kind::TimestampTz),
            (r#""2020-12-08T10:00:00.5-05:00""#, Kind::TimestampTz),
            (r#""2020-12-08T10:00:00.1234567Z""#, Kind::String),
            (r#""0190163D-8694-739b-aea5-966c26f8ad91""#, Kind::Uuid),
            (r#""0190163d8694739baea5966c26f8ad91""#, Kind::String),
            (r#""""#, Kind::String),
            ("[]", Kind::Nested),
            (r#"{"a":"\u0000"}"#, Kind::OddNested),
            ("[1e400000]", Kind::OddNested),
        ] {
            assert_eq!(kind(source), expected, "{source}");
        }
        assert_eq!(look(r#""a\u0000""#), Err(RejectReason::NulCharacter));
        assert_eq!(look(r#""\ud800""#), Err(RejectReason::LoneSurrogate));
    }

    #[test]
    fn equal_values_have_one_identity() {
        let identity = |source| look(source).unwrap().identity;
        for (left, right) in [
            ("1", r#""1""#),
            ("1000", "1e3"),
            ("true", r#""true""#),
            (r#""2020-12-08""#, r#""2020-12-08T01:00:00+01:00""#),
            (r#""\u0061""#, r#""a""#),
            (r#""0190163D-8694-739B-AEA5-966C26F8AD91""#, r#""0190163d-8694-739b-aea5-966c26f8ad91""#),
        ] {
            assert_eq!(identity(left), identity(right), "{left} {right}");
        }
        for (left, right) in [("1", "2"), ("null", r#""null""#), ("null", "0"), (r#""a""#, r#""A""#), ("1.5", "15")] {
            assert_ne!(identity(left), identity(right), "{left} {right}");
        }
    }

    /// JSON values of all kinds, many of them at a border.
    fn source() -> impl Strategy<Value = String> {
        prop_oneof![
            "-?(0|[1-9][0-9]{0,25})(\\.[0-9]{1,20})?([eE][-+]?[0-9]{1,6})?",
            "\"-?[0-9]{0,20}(\\.[0-9]{1,20})?(e[0-9]{1,3})?\"",
            "\"[0-9]{4}-[01][0-9]-[0-3][0-9]([T ][0-2][0-9]:[0-5][0-9](:[0-6][0-9](\\.[0-9]{1,9})?)?(Z|[+-][01][0-9]:?[0-5][0-9])?)?\"",
            "\"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}\"",
            "true|false|null|\"true\"|\"\"|\\[\\]|\\[\"\\\\\\\\u0000\"\\]|\\{\"a\":1e[0-9]{1,7}\\}",
            any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
        ]
    }

    proptest! {
        #[test]
        fn a_type_that_fits_takes_the_value(source in source()) {
            if let Ok(look) = look(&source) {
                for column_type in ColumnType::ALL.into_iter().filter(|t| look.kind.fits(*t)) {
                    prop_assert!(coerce(column_type, &source).is_ok(), "{} is {:?}, no {}", source, look.kind, column_type.name());
                }
            } else {
                prop_assert!(coerce(ColumnType::Text, &source).is_err(), "{}", source);
            }
        }
    }
}
