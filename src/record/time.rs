//! Converts dates and timestamps in ISO 8601 / RFC 3339 format, to the microsecond, in the years 0001 to 9999.
//!
//! This file checks the format byte by byte, more strictly than a general parser. jiff checks the calendar. Text in another
//! format is a `TypeMismatch`. A date or time that does not exist or does not fit is `OutOfRange`.

use jiff::civil::Date;

use super::row::RejectReason;

pub const MICROS_PER_DAY: i64 = 86_400_000_000;
const MICROS_PER_MINUTE: i64 = 60_000_000;
/// The days 0001-01-01 to 9999-12-31, since 1970-01-01.
const DAYS: std::ops::RangeInclusive<i64> = -719_162..=2_932_896;
const EPOCH: Date = jiff::civil::date(1970, 1, 1);

/// Converts `YYYY-MM-DD` to days since 1970-01-01.
pub fn date(text: &str) -> Result<i32, RejectReason> {
    let (date, rest) = split_date(text.as_bytes()).ok_or(RejectReason::TypeMismatch)?;
    if !rest.is_empty() {
        return Err(RejectReason::TypeMismatch);
    }
    let days = date.days().filter(|days| DAYS.contains(days)).ok_or(RejectReason::OutOfRange)?;
    i32::try_from(days).map_err(|_| RejectReason::OutOfRange)
}

/// Converts a timestamp to microseconds since 1970-01-01 00:00:00. With an offset it is converted to UTC; without one it is
/// kept unchanged. A date without time means midnight. Digits beyond the microsecond must be zeros, so that nothing is lost.
pub fn timestamp(text: &str) -> Result<i64, RejectReason> {
    let (date, rest) = split_date(text.as_bytes()).ok_or(RejectReason::TypeMismatch)?;
    let (time, offset) = if rest.is_empty() {
        (Time::MIDNIGHT, Offset::UTC)
    } else {
        let (time, rest) = split_time(rest).ok_or(RejectReason::TypeMismatch)?;
        (time, Offset::parse(rest).ok_or(RejectReason::TypeMismatch)?)
    };
    let micros = || {
        let micros = date.days()? * MICROS_PER_DAY + time.micros()? - offset.micros()?;
        DAYS.contains(&micros.div_euclid(MICROS_PER_DAY)).then_some(micros)
    };
    micros().ok_or(RejectReason::OutOfRange)
}

/// A date in the right format; it may not exist.
struct CivilDate {
    year: i16,
    month: i8,
    day: i8,
}

impl CivilDate {
    /// Days since 1970-01-01, if the date exists.
    fn days(&self) -> Option<i64> {
        let date = Date::new(self.year, self.month, self.day).ok()?;
        Some(date.duration_since(EPOCH).as_secs() / 86_400)
    }
}

/// Splits a leading `YYYY-MM-DD` from the rest.
fn split_date(text: &[u8]) -> Option<(CivilDate, &[u8])> {
    let [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2, rest @ ..] = text else { return None };
    let year = i16::from(two(*y1, *y2)?) * 100 + i16::from(two(*y3, *y4)?);
    Some((CivilDate { year, month: two(*m1, *m2)?, day: two(*d1, *d2)? }, rest))
}

/// A time in the right format; it may not exist.
struct Time {
    hour: i8,
    minute: i8,
    second: i8,
    /// `None` if it is finer than microseconds.
    fraction_micros: Option<i64>,
}

impl Time {
    const MIDNIGHT: Self = Self { hour: 0, minute: 0, second: 0, fraction_micros: Some(0) };

    /// Microseconds since midnight, if the time exists.
    fn micros(&self) -> Option<i64> {
        if self.hour > 23 || self.minute > 59 || self.second > 59 {
            return None;
        }
        let minutes = i64::from(self.hour) * 60 + i64::from(self.minute);
        Some(minutes * MICROS_PER_MINUTE + i64::from(self.second) * 1_000_000 + self.fraction_micros?)
    }
}

/// Splits a leading separator and `HH:MM[:SS[.ffffff]]` from the rest.
fn split_time(text: &[u8]) -> Option<(Time, &[u8])> {
    let [b' ' | b'T' | b't', h1, h2, b':', m1, m2, rest @ ..] = text else { return None };
    let mut time = Time { hour: two(*h1, *h2)?, minute: two(*m1, *m2)?, ..Time::MIDNIGHT };
    let [b':', s1, s2, rest @ ..] = rest else { return Some((time, rest)) };
    time.second = two(*s1, *s2)?;
    let [b'.' | b',', rest @ ..] = rest else { return Some((time, rest)) };
    let (digits, rest) = rest.split_at(rest.iter().position(|b| !b.is_ascii_digit()).unwrap_or(rest.len()));
    if digits.is_empty() {
        return None;
    }
    let (micros, beyond) = digits.split_at(digits.len().min(6));
    time.fraction_micros = beyond.iter().all(|&d| d == b'0').then(|| {
        let written = micros.iter().fold(0, |sum, d| sum * 10 + i64::from(d - b'0'));
        (micros.len()..6).fold(written, |sum, _| sum * 10)
    });
    Some((time, rest))
}

/// How far a local time is ahead of UTC.
struct Offset {
    /// 1 east of Greenwich, -1 west of it.
    sign: i64,
    hours: i8,
    minutes: i8,
}

impl Offset {
    const UTC: Self = Self { sign: 1, hours: 0, minutes: 0 };

    /// Accepts the empty text, `Z`, `±HH`, `±HHMM` and `±HH:MM`.
    fn parse(text: &[u8]) -> Option<Self> {
        let (sign, h1, h2, minutes) = match text {
            [] | [b'Z' | b'z'] => return Some(Self::UTC),
            [sign @ (b'+' | b'-'), h1, h2, minutes @ ..] => (*sign, *h1, *h2, minutes),
            _ => return None,
        };
        let minutes = match minutes {
            [] => 0,
            [m1, m2] | [b':', m1, m2] => two(*m1, *m2)?,
            _ => return None,
        };
        Some(Self { sign: if sign == b'-' { -1 } else { 1 }, hours: two(h1, h2)?, minutes })
    }

    fn micros(&self) -> Option<i64> {
        if self.hours > 23 || self.minutes > 59 {
            return None;
        }
        Some(self.sign * (i64::from(self.hours) * 60 + i64::from(self.minutes)) * MICROS_PER_MINUTE)
    }
}

/// The number that two ASCII digits form.
fn two(tens: u8, ones: u8) -> Option<i8> {
    // A digit is 0 to 9, so the number is at most 99.
    let digit = |byte: u8| byte.is_ascii_digit().then(|| (byte - b'0').cast_signed());
    Some(digit(tens)? * 10 + digit(ones)?)
}

#[cfg(test)]
mod tests {
    use jiff::civil::{self, DateTime};
    use proptest::prelude::*;

    use super::*;
    use RejectReason::{OutOfRange, TypeMismatch};

    /// The microseconds of a civil time, computed with jiff only.
    fn micros(text: &str) -> i64 {
        let datetime: DateTime = text.parse().unwrap();
        i64::try_from(datetime.duration_since(EPOCH.at(0, 0, 0, 0)).as_micros()).unwrap()
    }

    #[test]
    fn dates_have_one_form() {
        assert_eq!(date("1970-01-01"), Ok(0));
        assert_eq!(date("1969-12-31"), Ok(-1));
        assert_eq!(date("2020-02-29"), Ok(18_321));
        assert_eq!(date("0001-01-01"), Ok(-719_162));
        assert_eq!(date("9999-12-31"), Ok(2_932_896));
        for impossible in ["2020-02-30", "2019-02-29", "2020-13-01", "2020-00-10", "2020-01-00", "0000-12-31"] {
            assert_eq!(date(impossible), Err(OutOfRange), "{impossible}");
        }
        let others = [
            "",
            "20201208",
            "2020-12-8",
            "2020-12-08 ",
            " 2020-12-08",
            "2020-12-08T00:00:00",
            "2020-W50-2",
            "+2020-12-08",
            "-2020-12-08",
            "12020-12-08",
            "08.12.2020",
            "2020/12/08",
            "2020-12-0x",
            "２020-12-08",
            "yesterday",
        ];
        for other in others {
            assert_eq!(date(other), Err(TypeMismatch), "{other}");
        }
    }

    #[test]
    fn timestamps_are_taken_in_every_form_of_the_contract() {
        let expected = micros("2020-12-08 20:03:16.759617");
        for text in [
            "2020-12-08 20:03:16.759617",
            "2020-12-08T20:03:16.759617",
            "2020-12-08t20:03:16,759617",
            "2020-12-08T20:03:16.759617Z",
            "2020-12-08 20:03:16.759617z",
            "2020-12-08T20:03:16.759617000+00:00",
            "2020-12-08T22:03:16.759617+02",
            "2020-12-08T22:33:16.759617+0230",
            "2020-12-08T22:33:16.759617+02:30",
            "2020-12-08T15:03:16.759617-05:00",
            "2020-12-09T08:03:16.759617+12:00",
        ] {
            assert_eq!(timestamp(text), Ok(expected), "{text}");
        }
        assert_eq!(timestamp("2020-12-08"), Ok(micros("2020-12-08 00:00:00")));
        assert_eq!(timestamp("2020-12-08T20:03"), Ok(micros("2020-12-08 20:03:00")));
        assert_eq!(timestamp("2020-12-08T20:03Z"), Ok(micros("2020-12-08 20:03:00")));
        assert_eq!(timestamp("2020-12-08T20:03:16.5"), Ok(micros("2020-12-08 20:03:16.5")));
        assert_eq!(timestamp("1969-12-31T23:59:59.999999"), Ok(-1));
        assert_eq!(timestamp("0001-01-01"), Ok(micros("0001-01-01 00:00:00")));
        assert_eq!(timestamp("0000-12-31T23:00:00-01:00"), Ok(micros("0001-01-01 00:00:00")), "the year counts in UTC");
        assert_eq!(timestamp("9999-12-31T23:59:59.999999"), Ok(micros("9999-12-31 23:59:59.999999")));
    }

    #[test]
    fn times_that_do_not_exist_or_do_not_fit_are_out_of_range() {
        for text in [
            "2020-12-08T24:00:00",
            "2020-12-08T20:60:00",
            "2020-12-31T23:59:60Z",
            "2020-02-30T12:00:00",
            "2020-12-08T20:03:16.7596171",
            "2020-12-08T20:03:16+24:00",
            "2020-12-08T20:03:16+01:60",
            "0000-12-31T23:59:59",
            "0001-01-01T00:00:00+00:01",
            "9999-12-31T23:59:59-00:01",
        ] {
            assert_eq!(timestamp(text), Err(OutOfRange), "{text}");
        }
    }

    #[test]
    fn other_forms_are_no_timestamps() {
        for text in [
            "",
            "yesterday",
            "20201208T200316Z",
            "2020-12-08T",
            "2020-12-08T20",
            "2020-12-08T20:3",
            "2020-12-08T20:03:",
            "2020-12-08T20:03:16.",
            "2020-12-08T20:03.5",
            "2020-12-08Z",
            "2020-12-08  20:03:16",
            "2020-12-08_20:03:16",
            "2020-12-08T20:03:16 Z",
            "2020-12-08T20:03:16+2",
            "2020-12-08T20:03:16+02:",
            "2020-12-08T20:03:16+02:3",
            "2020-12-08T20:03:16+02:30:00",
            "2020-12-08T20:03:16Z ",
            "2020-12-08T20:03:16[Europe/Berlin]",
            "2020-12-08T20:03:16+01:00[Europe/Berlin]",
            "2020-12-08T20:03:16 UTC",
            "2020-W50-2T20:03:16",
            "+002020-12-08T20:03:16",
            "-2020-12-08T20:03:16",
            "1607457796",
        ] {
            assert_eq!(timestamp(text), Err(TypeMismatch), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_timestamp_agrees_with_jiff(day in DAYS, micros_of_day in 0..MICROS_PER_DAY, digits in 6_usize..12) {
            let value = day * MICROS_PER_DAY + micros_of_day;
            let datetime = EPOCH.at(0, 0, 0, 0).checked_add(jiff::SignedDuration::from_micros(value)).unwrap();
            let text = format!("{} {}", datetime.date(), datetime.strftime("%H:%M:%S%.6f"));
            prop_assert_eq!(timestamp(&format!("{text:0<width$}", width = 20 + digits)), Ok(value));
            prop_assert_eq!(date(&text[..10]).map(i64::from), Ok(day));
        }

        #[test]
        fn any_offset_agrees_with_jiff(seconds in -60_000_000_000_i64..250_000_000_000, minutes in -23 * 60..=23 * 60) {
            let instant = jiff::Timestamp::from_second(seconds).unwrap();
            let offset = jiff::tz::Offset::from_seconds(minutes * 60).unwrap();
            let text = instant.display_with_offset(offset).to_string();
            prop_assert_eq!(timestamp(&text), Ok(seconds * 1_000_000), "{}", text);
        }

        #[test]
        fn what_is_taken_is_what_jiff_reads(text in "[0-2][0-9]{3}-[01][0-9]-[0-3][0-9]([ T][0-2][0-9]:[0-6][0-9](:[0-6][0-9]([.,][0-9]{1,6})?)?)?") {
            // jiff accepts second 60 as 59; this module rejects it.
            let jiff = text.parse::<civil::DateTime>().ok().filter(|t| t.year() > 0 && text.get(17..19) != Some("60"));
            prop_assert_eq!(timestamp(&text).ok(), jiff.map(|_| micros(&text)));
        }
    }
}
