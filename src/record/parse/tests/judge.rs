//! What must become of a record, said once more: with serde_json and the standard library, without the parser's own code.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::*;
use RejectReason::{
    InvalidJson, InvalidUtf8, LoneSurrogate, MissingRequired, NotAnObject, NulCharacter, OutOfRange, TooDeep, TypeMismatch,
};

/// The row of a record as its debug text, or why there is none. For columns that are keys of the record.
pub fn judge(dataset: &Dataset, record: &[u8]) -> Result<String, RejectReason> {
    let text = std::str::from_utf8(record).map_err(|_| InvalidUtf8)?;
    if depth(text) > 128 {
        return Err(TooDeep);
    }
    let value: &RawValue = serde_json::from_str(text).map_err(|_| InvalidJson)?;
    if !value.get().starts_with('{') {
        return Err(NotAnObject);
    }
    let all = members(value.get());
    let names: Vec<Result<String, &str>> = all.iter().map(|(key, _)| name(key)).collect();
    // Of a key that comes twice the last one wins.
    let last = |i: &usize| !names[i + 1..].contains(&names[*i]);
    let kept: Vec<usize> = (0..all.len()).filter(last).collect();
    let mut faults = BTreeSet::new();
    let mut row = Vec::new();
    for column in &dataset.columns {
        let found = kept.iter().find(|i| names[**i].as_ref().is_ok_and(|name| *name == column.from.0[0]));
        match found.map_or(Ok(Value::Null), |i| value_of(column.column_type, all[*i].1)) {
            Ok(Value::Null) if column.required => drop(faults.insert(MissingRequired)),
            Ok(value) => row.push(format!("{value:?}")),
            Err(reason) => drop(faults.insert(reason)),
        }
    }
    let is_column = |i: &usize| dataset.columns.iter().any(|column| names[*i].as_ref().is_ok_and(|name| *name == column.from.0[0]));
    let rest: Vec<(&str, &str)> = kept.into_iter().filter(|i| !is_column(i)).map(|i| all[i]).collect();
    faults.extend(rest.iter().flat_map(|(key, value)| [faults_of(key), faults_of(value)]).flatten());
    if let Some(reason) = faults.first() {
        return Err(*reason);
    }
    let extra: Vec<String> = rest.iter().map(|(key, value)| format!("{key}:{value}")).collect();
    let extra = if extra.is_empty() { Value::Null } else { Value::Json(format!("{{{}}}", extra.join(",")).into()) };
    row.push(format!("{extra:?}"));
    Ok(row.join(" "))
}

/// The deepest nesting of brackets that are not in strings.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// The members of an object as they stand there.
struct Members<'a>(Vec<(&'a str, &'a str)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some((key, value)) = map.next_entry::<&RawValue, &RawValue>()? {
                    all.push((key.get(), value.get()));
                }
                Ok(Members(all))
            }
        }
        deserializer.deserialize_map(All)
    }
}

fn members(object: &str) -> Vec<(&str, &str)> {
    serde_json::from_str::<Members<'_>>(object).expect("it was an object a moment ago").0
}

/// A key without escapes; as it stands if it is no valid Unicode.
fn name(key: &str) -> Result<String, &str> {
    serde_json::from_str(key).map_err(|_| key)
}

fn value_of(column_type: ColumnType, source: &str) -> Result<Value<'_>, RejectReason> {
    let string = || serde_json::from_str::<String>(source).map_err(|_| TypeMismatch);
    let is_string = source.starts_with('"');
    Ok(match (column_type, source) {
        (_, "null") => Value::Null,
        (ColumnType::Text, _) if !is_string => Value::Text(source.into()),
        (ColumnType::Text, _) => match faults_of(source) {
            Some(reason) => return Err(reason),
            None => Value::Text(string()?.into()),
        },
        (ColumnType::Jsonb, _) => match faults_of(source) {
            Some(reason) => return Err(reason),
            None => Value::Json(source.into()),
        },
        (ColumnType::BigInt, _) if is_string => Value::BigInt(exact_integer(&string()?)?),
        (ColumnType::BigInt, _) => Value::BigInt(whole(&Number::read(source)?)?),
        (ColumnType::Double, _) => Value::Double(double(&if is_string { string()? } else { source.to_owned() })?),
        (ColumnType::Numeric, _) => {
            let text = if is_string { string()? } else { source.to_owned() };
            Value::Numeric(Number::read(&text)?.plain().ok_or(OutOfRange)?.into())
        }
        (ColumnType::Boolean, "true" | r#""true""#) => Value::Boolean(true),
        (ColumnType::Boolean, "false" | r#""false""#) => Value::Boolean(false),
        (ColumnType::Boolean, _) => Value::Boolean(string()?.parse().map_err(|_| TypeMismatch)?),
        // The calendar has tests of its own, against jiff.
        (ColumnType::Date, _) => Value::Date(crate::record::time::date(&string()?)?),
        (ColumnType::Timestamp, _) => Value::Timestamp(crate::record::time::timestamp(&string()?)?),
        (ColumnType::TimestampTz, _) => Value::TimestampTz(crate::record::time::timestamp(&string()?)?),
        (ColumnType::Uuid, _) => {
            let text = string()?;
            let digits: String = if text.len() == 36 { text.replace('-', "") } else { text.clone() };
            let hyphens: Vec<usize> = text.match_indices('-').map(|(at, _)| at).collect();
            let is_uuid = digits.len() == 32 && (text.len() == 32 || hyphens == [8, 13, 18, 23]);
            let number = u128::from_str_radix(&digits, 16).ok().filter(|_| is_uuid && !digits.starts_with('+'));
            Value::Uuid(number.ok_or(TypeMismatch)?.to_be_bytes())
        }
    })
}

/// Why `jsonb` cannot hold a value, or a key.
fn faults_of(source: &str) -> Option<RejectReason> {
    match source.as_bytes()[0] {
        b'"' => string_fault(source),
        b'{' => members(source).iter().flat_map(|(key, value)| [string_fault(key), faults_of(value)]).flatten().min(),
        b'[' => {
            let elements: Vec<&RawValue> = serde_json::from_str(source).expect("it is a list");
            elements.iter().filter_map(|element| faults_of(element.get())).min()
        }
        b'-' | b'0'..=b'9' => Number::read(source).is_ok_and(|number| number.plain().is_none()).then_some(OutOfRange),
        _ => None,
    }
}

/// The UTF-16 of a string decides: what is escaped must be whole, and not U+0000.
fn string_fault(string: &str) -> Option<RejectReason> {
    let mut units = Vec::new();
    let mut rest = string[1..string.len() - 1].chars();
    while let Some(character) = rest.next() {
        match (character, if character == '\\' { rest.next() } else { None }) {
            (_, Some('u')) => {
                let digits: String = rest.by_ref().take(4).collect();
                units.push(u16::from_str_radix(&digits, 16).expect("serde_json has read them"));
            }
            (_, Some(escaped)) => units.push(u16::try_from(u32::from(escaped)).expect("it is ASCII")),
            (plain, None) => units.extend_from_slice(plain.encode_utf16(&mut [0; 2])),
        }
    }
    if units.contains(&0) {
        return Some(NulCharacter);
    }
    char::decode_utf16(units).any(|unit| unit.is_err()).then_some(LoneSurrogate)
}

fn exact_integer(text: &str) -> Result<i64, RejectReason> {
    let number = Number::read(text)?;
    if number.fraction.is_some() || number.exponent.is_some() {
        return Err(TypeMismatch);
    }
    text.parse().map_err(|_| OutOfRange)
}

fn whole(number: &Number<'_>) -> Result<i64, RejectReason> {
    if number.is_zero() {
        return Ok(0);
    }
    match number.exponent() {
        exponent if exponent > 1_000 => return Err(OutOfRange),
        exponent if exponent < -1_000 => return Err(TypeMismatch),
        _ => {}
    }
    let (integer, fraction) = number.moved();
    if fraction.bytes().any(|digit| digit != b'0') {
        return Err(TypeMismatch);
    }
    format!("{}{integer}", number.sign).parse().map_err(|_| OutOfRange)
}

fn double(text: &str) -> Result<f64, RejectReason> {
    let number = Number::read(text)?;
    let value: f64 = text.parse().map_err(|_| TypeMismatch)?;
    let is_lost = value == 0.0 && !number.is_zero();
    if value.is_infinite() || is_lost { Err(OutOfRange) } else { Ok(if value == 0.0 { 0.0 } else { value }) }
}

/// A number of JSON in its parts.
struct Number<'a> {
    sign: &'a str,
    integer: &'a str,
    fraction: Option<&'a str>,
    exponent: Option<&'a str>,
}

impl<'a> Number<'a> {
    fn read(text: &'a str) -> Result<Self, RejectReason> {
        let begins = text.starts_with(|first: char| first == '-' || first.is_ascii_digit());
        let ends = text.ends_with(|last: char| last.is_ascii_digit());
        if !begins || !ends || serde_json::from_str::<IgnoredAny>(text).is_err() {
            return Err(TypeMismatch);
        }
        let (sign, rest) = text.split_at(usize::from(text.starts_with('-')));
        let (mantissa, exponent) = rest.split_once(['e', 'E']).map_or((rest, None), |(mantissa, power)| (mantissa, Some(power)));
        let (integer, fraction) = mantissa.split_once('.').map_or((mantissa, None), |(whole, part)| (whole, Some(part)));
        Ok(Self { sign, integer, fraction, exponent })
    }

    fn exponent(&self) -> i128 {
        // What does not fit is as far beyond all limits as this.
        let beyond = |text: &str| if text.starts_with('-') { i128::from(i64::MIN) } else { i128::from(i64::MAX) };
        self.exponent.map_or(0, |text| text.parse().unwrap_or_else(|_| beyond(text)))
    }

    fn is_zero(&self) -> bool {
        self.integer.chars().chain(self.fraction.unwrap_or_default().chars()).all(|digit| digit == '0')
    }

    /// The digits before and after the point once the exponent has moved it; for a small exponent.
    fn moved(&self) -> (String, String) {
        let fraction = self.fraction.unwrap_or_default();
        let exponent = isize::try_from(self.exponent()).expect("the exponent is small");
        let (right, left) = (exponent.max(0).unsigned_abs(), exponent.min(0).unsigned_abs());
        let digits = format!("{}{}{fraction}{}", "0".repeat(left), self.integer, "0".repeat(right.saturating_sub(fraction.len())));
        let point = left + self.integer.len() + right - left;
        let (integer, fraction) = digits.split_at(point);
        let integer = integer.trim_start_matches('0');
        (if integer.is_empty() { "0" } else { integer }.to_owned(), fraction.to_owned())
    }

    /// As PostgreSQL prints it as `numeric`; none if it does not take it.
    fn plain(&self) -> Option<String> {
        let exponent = self.exponent();
        if exponent >= 200_000 {
            return (self.is_zero() && exponent < 1_073_741_823).then(|| "0".to_owned());
        }
        if exponent <= -200_000 {
            return None;
        }
        let (integer, fraction) = self.moved();
        if integer.len() > 131_072 || fraction.len() > 16_383 {
            return None;
        }
        let sign = if self.is_zero() { "" } else { self.sign };
        let point = if fraction.is_empty() { "" } else { "." };
        Some(format!("{sign}{integer}{point}{fraction}"))
    }
}
