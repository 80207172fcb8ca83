//! Lossless numbers: converts the text of a JSON number to `bigint`, `double` or `numeric`.
//!
//! Each function accepts any text. Text that does not follow JSON's number grammar is a `TypeMismatch`.

use std::borrow::Cow;

use super::row::RejectReason;

/// PostgreSQL's `numeric` has at most this many digits before the decimal point.
const MAX_INTEGER_DIGITS: i64 = 131_072;
/// PostgreSQL's `numeric` has at most this many digits after the decimal point.
pub const MAX_SCALE: usize = 16_383;
/// PostgreSQL rejects an exponent from this value on, even for zero.
const EXPONENT_LIMIT: i64 = (i32::MAX / 2) as i64;

/// The parts of a JSON number. Example: `-12.50e3` is negative, `12`, `50`, 3.
struct Decimal<'a> {
    negative: bool,
    /// At least one digit, without leading zeros.
    integer: &'a [u8],
    fraction: &'a [u8],
    has_exponent: bool,
    /// Clamped to ±`EXPONENT_LIMIT`.
    exponent: i64,
}

impl<'a> Decimal<'a> {
    /// `None` if the text does not follow JSON's number grammar exactly.
    fn parse(text: &'a str) -> Option<Self> {
        let text = text.as_bytes();
        let (negative, rest) = text.strip_prefix(b"-").map_or((false, text), |rest| (true, rest));
        let (integer, rest) = digits(rest)?;
        if integer.len() > 1 && integer[0] == b'0' {
            return None;
        }
        let (fraction, rest) = match rest {
            [b'.', rest @ ..] => digits(rest)?,
            _ => (&rest[..0], rest),
        };
        let mut decimal = Self { negative, integer, fraction, has_exponent: !rest.is_empty(), exponent: 0 };
        if let [first, rest @ ..] = rest {
            if !matches!(first, b'e' | b'E') {
                return None;
            }
            let (sign, rest) = match rest {
                [b'-', rest @ ..] => (-1, rest),
                [b'+', rest @ ..] => (1, rest),
                _ => (1, rest),
            };
            let (exponent, rest) = digits(rest)?;
            if !rest.is_empty() {
                return None;
            }
            let exponent = exponent.iter().fold(0, |sum: i64, d| (sum * 10 + i64::from(d - b'0')).min(EXPONENT_LIMIT));
            decimal.exponent = sign * exponent;
        }
        Some(decimal)
    }

    /// The digit at a position, counted from the first digit of the integer part; 0 outside of the text.
    fn digit(&self, position: i64) -> u8 {
        let digit = usize::try_from(position)
            .ok()
            .and_then(|at| self.integer.get(at).or_else(|| self.fraction.get(at - self.integer.len())));
        digit.copied().unwrap_or(b'0')
    }

    fn digits(&self) -> impl DoubleEndedIterator<Item = &'a u8> + use<'a> {
        self.integer.iter().chain(self.fraction)
    }

    fn is_zero(&self) -> bool {
        self.digits().all(|&d| d == b'0')
    }

    /// The position of the decimal point among the digits after the exponent is applied.
    fn point(&self) -> i64 {
        length(self.integer) + self.exponent
    }

    /// The position of the first nonzero digit; the number of digits if all are zero.
    fn first_significant(&self) -> i64 {
        let all = length(self.integer) + length(self.fraction);
        self.digits().position(|&d| d != b'0').map_or(all, |at| at as i64)
    }

    /// The number of digits that PostgreSQL keeps after the decimal point.
    fn scale(&self) -> i64 {
        (length(self.fraction) - self.exponent).max(0)
    }

    fn fits_numeric(&self) -> bool {
        self.exponent.abs() < EXPONENT_LIMIT
            && self.scale() <= MAX_SCALE as i64
            && (self.point() - self.first_significant() <= MAX_INTEGER_DIGITS || self.is_zero())
    }
}

/// Splits the leading digits (at least one) from the rest.
fn digits(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = text.iter().position(|b| !b.is_ascii_digit()).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

fn length(digits: &[u8]) -> i64 {
    digits.len() as i64
}

/// The number of leading bytes that can belong to a JSON number.
pub fn extent(text: &[u8]) -> usize {
    text.iter().position(|b| !matches!(b, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')).unwrap_or(text.len())
}

/// Whether the text follows JSON's number grammar exactly.
pub fn is_json_number(text: &str) -> bool {
    Decimal::parse(text).is_some()
}

/// Which notations of an integer are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntegerForm {
    /// Digits only.
    Exact,
    /// Any number whose value is an integer, such as `1.0` or `1e3`.
    ByValue,
}

/// Converts the text to an integer.
pub fn bigint(text: &str, form: IntegerForm) -> Result<i64, RejectReason> {
    let decimal = Decimal::parse(text).ok_or(RejectReason::TypeMismatch)?;
    if decimal.fraction.is_empty() && !decimal.has_exponent {
        // The grammar is already checked, so only the range can be wrong.
        return text.parse().map_err(|_| RejectReason::OutOfRange);
    }
    if form == IntegerForm::Exact {
        return Err(RejectReason::TypeMismatch);
    }
    if decimal.is_zero() {
        return Ok(0);
    }
    let trailing_zeros = decimal.digits().rev().take_while(|&&d| d == b'0').count() as i64;
    let (first, end) = (decimal.first_significant(), decimal.point());
    if end < length(decimal.integer) + length(decimal.fraction) - trailing_zeros {
        return Err(RejectReason::TypeMismatch);
    }
    // A number of at most 19 digits cannot overflow an i128.
    if end - first > 19 {
        return Err(RejectReason::OutOfRange);
    }
    let value = (first..end).fold(0_i128, |sum, at| sum * 10 + i128::from(decimal.digit(at) - b'0'));
    i64::try_from(if decimal.negative { -value } else { value }).map_err(|_| RejectReason::OutOfRange)
}

/// Converts the text to the nearest double. A value is out of range if it would become infinite, or if it is not zero but would
/// become zero.
pub fn double(text: &str) -> Result<f64, RejectReason> {
    let decimal = Decimal::parse(text).ok_or(RejectReason::TypeMismatch)?;
    let value: f64 = text.parse().map_err(|_| RejectReason::TypeMismatch)?;
    if value.is_infinite() || (value == 0.0 && !decimal.is_zero()) {
        return Err(RejectReason::OutOfRange);
    }
    // SQLite cannot store a negative zero. Adding zero removes the sign, so both databases store the same value.
    Ok(value + 0.0)
}

/// Formats the number as PostgreSQL prints the same literal: the exponent is expanded, the scale is kept, zero is never
/// negative.
pub fn numeric(text: Cow<'_, str>) -> Result<Cow<'_, str>, RejectReason> {
    let decimal = Decimal::parse(&text).ok_or(RejectReason::TypeMismatch)?;
    if !decimal.fits_numeric() {
        return Err(RejectReason::OutOfRange);
    }
    let zero = decimal.is_zero();
    let prints_alike = !(decimal.negative && zero);
    if prints_alike && !decimal.has_exponent {
        return Ok(text);
    }
    let (first, point, scale) = (decimal.first_significant(), decimal.point(), decimal.scale());
    let mut plain = String::new();
    if decimal.negative && !zero {
        plain.push('-');
    }
    if zero || first >= point {
        plain.push('0');
    } else {
        plain.extend((first..point).map(|at| char::from(decimal.digit(at))));
    }
    if scale > 0 {
        plain.push('.');
        plain.extend((point..point + scale).map(|at| char::from(decimal.digit(at))));
    }
    Ok(Cow::Owned(plain))
}

/// Whether PostgreSQL's `numeric` accepts a JSON number.
pub fn fits_numeric(text: &str) -> bool {
    Decimal::parse(text).is_some_and(|decimal| decimal.fits_numeric())
}

/// The narrowest types that take a number without losing a digit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// A `bigint`; a `double` has all its digits, too.
    Integer,
    /// A `bigint` with more digits than a `double` has.
    LongInteger,
    /// A `double`, whose shortest text has the same digits; `.0` at the end is not counted as one.
    Double,
    /// A `numeric`: a `double` would lose digits, zeros at the end among them.
    Numeric,
    /// None: beyond the range of `numeric`.
    Beyond,
}

/// The precision of a number; `None` if the text does not follow JSON's number grammar.
pub fn precision(text: &str) -> Option<Precision> {
    /// A `double` has all decimals of so many digits.
    const DOUBLE_DIGITS: usize = 15;
    let decimal = Decimal::parse(text)?;
    if !decimal.fits_numeric() {
        return Some(Precision::Beyond);
    }
    let is_short = decimal.integer.len() + decimal.fraction.len() <= DOUBLE_DIGITS;
    if decimal.fraction.is_empty() && !decimal.has_exponent {
        return Some(match text.parse::<i64>() {
            Ok(_) if is_short => Precision::Integer,
            Ok(_) => Precision::LongInteger,
            Err(_) => Precision::Numeric,
        });
    }
    if decimal.fraction.ends_with(b"0") && decimal.fraction != b"0" {
        return Some(Precision::Numeric);
    }
    let is_whole = || double(text).is_ok_and(|value| normalized(&format!("{value:e}")) == normalized(text));
    Some(if (is_short && decimal.exponent.abs() <= 250) || is_whole() { Precision::Double } else { Precision::Numeric })
}

/// The same text for all notations of a number: an integer of up to 18 digits as it is written, all others as their digits and the
/// position of the point. `None` if the text does not follow JSON's number grammar.
pub fn normalized(text: &str) -> Option<String> {
    /// Zeros are written out up to here only: `1e131071` is short.
    const WRITTEN_OUT: i64 = 18;
    let decimal = Decimal::parse(text)?;
    if decimal.is_zero() {
        return Some("0".to_owned());
    }
    let (first, point) = (decimal.first_significant(), decimal.point());
    let trailing_zeros = decimal.digits().rev().take_while(|&&d| d == b'0').count() as i64;
    let end = length(decimal.integer) + length(decimal.fraction) - trailing_zeros;
    let is_short_integer = end <= point && point - first <= WRITTEN_OUT;
    let mut plain = String::from(if decimal.negative { "-" } else { "" });
    plain.extend((first..if is_short_integer { point } else { end }).map(|at| char::from(decimal.digit(at))));
    if !is_short_integer {
        plain.push_str(&format!("e{}", point - first));
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use RejectReason::{OutOfRange, TypeMismatch};

    /// Texts that some parsers accept as numbers but JSON's grammar does not.
    const NO_NUMBERS: [&str; 20] = [
        "", "-", "+1", " 1", "1 ", "01", "-01", ".5", "5.", "1e", "1e+", "e5", "1.e5", "0x10", "1_000", "1,5", "NaN", "Infinity",
        "1e5x", "١",
    ];

    #[test]
    fn integers_are_exact_or_rejected() {
        let cases = [
            ("0", Ok(0)),
            ("-0", Ok(0)),
            ("9223372036854775807", Ok(i64::MAX)),
            ("-9223372036854775808", Ok(i64::MIN)),
            ("9223372036854775808", Err(OutOfRange)),
            ("1.0", Ok(1)),
            ("1e3", Ok(1000)),
            ("-1.50e1", Ok(-15)),
            ("100e-2", Ok(1)),
            ("0.001e3", Ok(1)),
            ("0e99999999999999999999", Ok(0)),
            ("-0.0e-5", Ok(0)),
            ("9223372036854775807.000", Ok(i64::MAX)),
            ("-9.223372036854775808E18", Ok(i64::MIN)),
            ("9.223372036854775808e18", Err(OutOfRange)),
            ("1e19", Err(OutOfRange)),
            ("1e999999999999999999999", Err(OutOfRange)),
            ("1.5", Err(TypeMismatch)),
            ("9007199254740992.5", Err(TypeMismatch)),
            ("1e-400", Err(TypeMismatch)),
            ("1e-99999999999999999999", Err(TypeMismatch)),
        ];
        for (text, expected) in cases {
            assert_eq!(bigint(text, IntegerForm::ByValue), expected, "{text}");
        }
        assert_eq!(bigint("-42", IntegerForm::Exact), Ok(-42));
        assert_eq!(bigint("1.0", IntegerForm::Exact), Err(TypeMismatch));
        assert_eq!(bigint("1e3", IntegerForm::Exact), Err(TypeMismatch));
        for text in NO_NUMBERS {
            assert_eq!(bigint(text, IntegerForm::ByValue), Err(TypeMismatch), "{text}");
        }
    }

    #[test]
    fn doubles_are_finite_and_nearest() {
        let cases = [
            ("0.1", Ok(0.1)),
            ("1e3", Ok(1000.0)),
            ("1.7976931348623157e308", Ok(f64::MAX)),
            ("5e-324", Ok(5e-324)),
            ("9007199254740993", Ok(9_007_199_254_740_992.0)),
            ("0e-999", Ok(0.0)),
            ("1e400", Err(OutOfRange)),
            ("-1e400", Err(OutOfRange)),
            ("1e-400", Err(OutOfRange)),
        ];
        for (text, expected) in cases {
            assert_eq!(double(text), expected, "{text}");
        }
        assert!(double("-0.0").unwrap().is_sign_positive(), "there is one zero");
        for text in NO_NUMBERS {
            assert_eq!(double(text), Err(TypeMismatch), "{text}");
        }
    }

    /// Each right side is the output of `select '<left>'::numeric` in PostgreSQL 15.
    #[test]
    fn numerics_are_printed_as_postgresql_does() {
        let cases = [
            ("1.50", "1.50"),
            ("1.5e3", "1500"),
            ("1e-3", "0.001"),
            ("1.50e1", "15.0"),
            ("1.50e-1", "0.150"),
            ("1e2", "100"),
            ("1E+2", "100"),
            ("-1.5e3", "-1500"),
            ("-12.5e-4", "-0.00125"),
            ("0", "0"),
            ("-0", "0"),
            ("-0.00", "0.00"),
            ("0e5", "0"),
            ("0e-5", "0.00000"),
            ("0.00e1", "0.0"),
            ("-0.0e-2", "0.000"),
            ("0.00123e5", "123"),
            ("0.00123e4", "12.3"),
            ("0.00123e2", "0.123"),
            ("100e-2", "1.00"),
            ("123456789012345678901234567890.123", "123456789012345678901234567890.123"),
        ];
        for (text, printed) in cases {
            assert_eq!(numeric(text.into()), Ok(printed.into()), "{text}");
        }
        for text in NO_NUMBERS {
            assert_eq!(numeric(text.into()), Err(TypeMismatch), "{text}");
        }
    }

    /// The limits are those of `select '<text>'::numeric` in PostgreSQL 15.
    #[test]
    fn numerics_have_postgresqls_limits() {
        let nines = "9".repeat(131_072);
        let long_fraction = format!("0.{}", "1".repeat(16_383));
        for fits in ["1e131071", "0.1e131072", "0.0001e131075", "1e-16383", "0e200000", &nines, &long_fraction, "-0e1073741822"] {
            assert!(fits_numeric(fits), "{fits:.40}");
            assert!(numeric(fits.into()).is_ok(), "{fits:.40}");
        }
        let too_long = format!("{nines}9");
        let too_fine = format!("{long_fraction}1");
        for beyond in
            ["1e131072", "10e131071", "1e-16384", "0e-16384", "1e99999999999999999999", "0e1073741823", &too_long, &too_fine]
        {
            assert!(!fits_numeric(beyond), "{beyond:.40}");
            assert_eq!(numeric(beyond.into()), Err(OutOfRange), "{beyond:.40}");
        }
        assert_eq!(numeric("1e131071".into()).unwrap().len(), 131_072);
    }

    #[test]
    fn plain_numerics_are_not_copied() {
        assert!(matches!(numeric("-12.50".into()), Ok(Cow::Borrowed("-12.50"))));
    }

    /// Moves the decimal point one digit at a time.
    fn expanded(mut integer: Vec<char>, mut fraction: Vec<char>, exponent: i32) -> String {
        for _ in 0..exponent {
            integer.push(if fraction.is_empty() { '0' } else { fraction.remove(0) });
        }
        for _ in exponent..0 {
            fraction.insert(0, integer.pop().unwrap_or('0'));
        }
        let integer: String = integer.into_iter().skip_while(|&d| d == '0').collect();
        let integer = if integer.is_empty() { "0".to_owned() } else { integer };
        if fraction.is_empty() { integer } else { format!("{integer}.{}", fraction.into_iter().collect::<String>()) }
    }

    #[test]
    fn the_precision_is_that_of_the_narrowest_lossless_type() {
        use Precision::{Beyond, Double, Integer, LongInteger, Numeric};
        let cases = [
            ("0", Integer),
            ("-42", Integer),
            ("999999999999999", Integer),
            ("9007199254740993", LongInteger),
            ("-9223372036854775808", LongInteger),
            ("9223372036854775808", Numeric),
            ("1.0", Double),
            ("1.5", Double),
            ("1.50", Numeric),
            ("19.90", Numeric),
            ("1e5", Double),
            ("0.30000000000000004", Double),
            ("0.3000000000000000444", Numeric),
            ("1.7976931348623157e308", Double),
            ("1e400", Numeric),
            ("5e-324", Double),
            ("1e-400", Numeric),
            ("1e200000", Beyond),
            ("0e-99999", Beyond),
        ];
        for (text, expected) in cases {
            assert_eq!(precision(text), Some(expected), "{text}");
        }
        for text in NO_NUMBERS {
            assert_eq!((precision(text), normalized(text)), (None, None), "{text}");
        }
    }

    #[test]
    fn equal_numbers_have_one_normal_form() {
        for same in [
            &["1000", "1e3", "1000.0", "0.1E+4"][..],
            &["0", "-0", "0.00", "0e9"],
            &["-1.5", "-15e-1", "-1.50"],
            &["1e30", "1000000000000000000000000000000"],
        ] {
            for text in same {
                assert_eq!(normalized(text), normalized(same[0]), "{text}");
            }
        }
        assert_eq!(normalized("1000").as_deref(), Some("1000"));
        assert_eq!(normalized("1e131071").as_deref(), Some("1e131072"));
        assert_ne!(normalized("1e30"), normalized("1e31"));
        assert_ne!(normalized("0.15"), normalized("0.015"));
    }

    proptest! {
        #[test]
        fn any_bigint_round_trips(value: i64) {
            prop_assert_eq!(bigint(&value.to_string(), IntegerForm::Exact), Ok(value));
            prop_assert_eq!(bigint(&format!("{value}.000"), IntegerForm::ByValue), Ok(value));
            prop_assert_eq!(bigint(&format!("{value}00e-2"), IntegerForm::ByValue), Ok(value));
        }

        #[test]
        fn any_finite_double_round_trips(bits: u64) {
            let value = f64::from_bits(bits);
            prop_assume!(value.is_finite());
            for text in [format!("{value}"), format!("{value:e}")] {
                prop_assert_eq!(double(&text).map(f64::to_bits), Ok(bits));
            }
        }

        #[test]
        fn numerics_are_expanded_as_on_paper(sign in "-?", integer in "0|[1-9][0-9]{0,20}", fraction in "[0-9]{0,20}", exponent in -40..40) {
            let point = if fraction.is_empty() { "" } else { "." };
            let paper = expanded(integer.chars().collect(), fraction.chars().collect(), exponent);
            let nonzero = paper.contains(|c: char| ('1'..='9').contains(&c));
            let paper = format!("{}{paper}", if nonzero { &sign } else { "" });
            prop_assert_eq!(numeric(format!("{sign}{integer}{point}{fraction}e{exponent}").into()).unwrap(), paper);
        }

        #[test]
        fn the_grammar_is_serde_jsons(text in "[-+]?[0-9.eE]{0,8}") {
            prop_assert_eq!(is_json_number(&text), serde_json::from_str::<&serde_json::value::RawValue>(&text).is_ok());
        }
    }
}
