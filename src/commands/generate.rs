//! `dataloader generate`: synthetic events for trials and benchmarks. The same arguments give the same bytes on every machine.
//!
//! The events look like those in `raw_data/events/events_sample.json`. Users repeat (one user per five events), one event in a
//! hundred has no organisation, and one in four has no plan. The times are spread evenly over thirty days from 2020-12-01, in
//! no order.

use std::io::{self, Write};

use super::DONE;
use crate::error::Result;
use crate::terminal::cli::GenerateArgs;
use crate::terminal::output::{self, Format};

/// Names in several scripts. No name has a character that JSON would escape.
const ORGANIZATIONS: [&str; 20] = [
    "Harbour Lantern Co-op",
    "Käsmann & Töchter",
    "Północna Poczta",
    "月見そば製作所",
    "Brambleway Bakery",
    "Sal's Bicycle Repairs",
    "Fundação Maré Alta",
    "Ärtsoppa Torsdag",
    "Tidewrack Surveying",
    "Snowfinch Outfitters",
    "Οίκος Ελιάς",
    "Nine Acre Nursery",
    "Papierdrachen",
    "Lumen Loom",
    "Çınaraltı Kitabevi",
    "Owl & Anchor 24/7",
    "Ropewalk Theatre",
    "Quarry Pond 9",
    "Marram",
    "Half Past Noon",
];
const PLANS: [Option<&str>; 4] = [None, Some("Small"), Some("Medium"), Some("Enterprise")];
const EVENT_TYPES: [&str; 3] = ["User Created", "User Updated", "User Deleted"];
const USER_TYPES: [&str; 3] = ["Admin", "User", "Creator"];

const EVENTS_PER_USER: u64 = 5;
/// One event in this many has no organisation.
const WITHOUT_ORGANIZATION: u64 = 100;
/// Days from 2020-12-01. They are all in one month, so no calendar is needed.
const DAYS: u64 = 30;
const MICROS_PER_SECOND: u64 = 1_000_000;
const MICROS_PER_DAY: u64 = 86_400 * MICROS_PER_SECOND;

/// Text is written in pieces of about this many bytes.
const PIECE: usize = 64 << 10;

/// Writes synthetic events to standard output.
///
/// # Errors
/// If standard output cannot be written.
pub fn run(args: &GenerateArgs) -> Result<u8> {
    output::stream(Format::Text, |out| generate(args.events, args.seed, out))?;
    Ok(DONE)
}

/// Writes `events` synthetic events as a JSON array, one event per line, in constant memory. The same arguments give the same
/// bytes; a version that changes them says so in its changelog.
///
/// # Errors
/// If `out` cannot be written.
pub fn generate(events: u64, seed: u64, out: &mut (impl Write + ?Sized)) -> io::Result<()> {
    let mut random = SplitMix64::new(seed);
    let users = (events / EVENTS_PER_USER).max(1);
    // With room for the last line, which may exceed the piece.
    let mut piece = Vec::with_capacity(PIECE + 1024);
    piece.extend_from_slice(b"[\n");
    for i in 0..events {
        push_event(&mut piece, users, &mut random);
        piece.extend_from_slice(if i + 1 < events { b",\n" } else { b"\n" });
        if piece.len() >= PIECE {
            out.write_all(&piece)?;
            piece.clear();
        }
    }
    piece.extend_from_slice(b"]\n");
    out.write_all(&piece)?;
    out.flush()
}

/// Appends one event, without the separator after it.
fn push_event(out: &mut Vec<u8>, users: u64, random: &mut SplitMix64) {
    let user = random.below(users);
    let event_type = random.pick(&EVENT_TYPES);
    let user_type = random.pick(&USER_TYPES);
    let organization = (random.below(WITHOUT_ORGANIZATION) != 0).then(|| organization_of(user));
    let plan = *random.pick(&PLANS);
    let at = random.below(DAYS * MICROS_PER_DAY);

    out.extend_from_slice(b"  {\"id\": \"");
    push_id(out, user);
    out.extend_from_slice(b"\", \"event_type\": \"");
    out.extend_from_slice(event_type.as_bytes());
    out.extend_from_slice(b"\", \"username\": \"user ");
    push_number(out, user, 1);
    out.extend_from_slice(b"\", \"user_email\": \"user");
    push_number(out, user, 1);
    out.extend_from_slice(b"@example.com\", \"user_type\": \"");
    out.extend_from_slice(user_type.as_bytes());
    out.extend_from_slice(b"\", \"organization_name\": ");
    push_text_or_null(out, organization);
    out.extend_from_slice(b", \"plan_name\": ");
    push_text_or_null(out, plan);
    out.extend_from_slice(b", \"received_at\": \"2020-12-");
    push_time_in_month(out, at);
    out.extend_from_slice(b"\"}");
}

/// A user always belongs to the same organisation.
fn organization_of(user: u64) -> &'static str {
    let index = user % ORGANIZATIONS.len() as u64;
    ORGANIZATIONS[usize::try_from(index).expect("smaller than the array's length")]
}

/// The user's id: 32 hexadecimal digits that look random and are the same for every seed.
fn push_id(out: &mut Vec<u8>, user: u64) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut random = SplitMix64::new(user);
    for _ in 0..2 {
        for byte in random.next().to_be_bytes() {
            out.extend_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
    }
}

/// `DD HH:MM:SS.ffffff` of the time `micros` microseconds after the beginning of the month.
fn push_time_in_month(out: &mut Vec<u8>, micros: u64) {
    let seconds = micros / MICROS_PER_SECOND;
    push_number(out, micros / MICROS_PER_DAY + 1, 2);
    out.push(b' ');
    push_number(out, seconds / 3_600 % 24, 2);
    out.push(b':');
    push_number(out, seconds / 60 % 60, 2);
    out.push(b':');
    push_number(out, seconds % 60, 2);
    out.push(b'.');
    push_number(out, micros % MICROS_PER_SECOND, 6);
}

fn push_text_or_null(out: &mut Vec<u8>, text: Option<&str>) {
    match text {
        None => out.extend_from_slice(b"null"),
        Some(text) => {
            out.push(b'"');
            out.extend_from_slice(text.as_bytes());
            out.push(b'"');
        }
    }
}

/// The number in decimal, with leading zeros up to `width`. `write!` would take most of the run time.
fn push_number(out: &mut Vec<u8>, mut number: u64, width: usize) {
    let mut digits = [b'0'; 20];
    let mut start = digits.len();
    while number > 0 {
        start -= 1;
        digits[start] += u8::try_from(number % 10).expect("a digit");
        number /= 10;
    }
    out.extend_from_slice(&digits[start.min(digits.len() - width)..]);
}

/// Sebastiano Vigna's SplitMix64: small, fast, and good with any seed. It is not suitable for secrets.
pub(super) struct SplitMix64(u64);

impl SplitMix64 {
    /// Begins with this seed.
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to `bound - 1`: the high half of the product. Its bias is negligible for bounds below 2^40.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        let product = u128::from(self.next()) * u128::from(bound);
        u64::try_from(product >> 64).expect("the high half of 128 bits")
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        let index = self.below(of.len() as u64);
        &of[usize::try_from(index).expect("smaller than the slice's length")]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Event {
        id: String,
        event_type: String,
        username: String,
        user_email: String,
        user_type: String,
        organization_name: Option<String>,
        plan_name: Option<String>,
        received_at: String,
    }

    fn text(events: u64, seed: u64) -> String {
        let mut out = Vec::new();
        generate(events, seed, &mut out).expect("a Vec takes everything");
        String::from_utf8(out).expect("UTF-8")
    }

    fn events(count: u64, seed: u64) -> Vec<Event> {
        serde_json::from_str(&text(count, seed)).expect("a JSON array of events")
    }

    #[test]
    fn as_many_events_as_asked_for() {
        for count in [0, 1, 2, 4, 5, 1_000] {
            assert_eq!(events(count, 1).len() as u64, count);
        }
    }

    #[test]
    fn the_same_arguments_give_the_same_bytes() {
        assert_eq!(text(500, 7), text(500, 7));
        assert_ne!(text(500, 7), text(500, 8));
    }

    /// A change here changes the output for the same arguments: the changelog must say so.
    #[test]
    fn the_first_event_of_seed_1_stays_as_it_is() {
        let expected = "[\n  {\"id\": \"e220a8397b1dcdaf6e789e6aa1b965f4\", \"event_type\": \"User Deleted\", \"username\": \"user 0\", \
                        \"user_email\": \"user0@example.com\", \"user_type\": \"Creator\", \"organization_name\": \"Harbour Lantern Co-op\", \
                        \"plan_name\": \"Small\", \"received_at\": \"2020-12-23 21:17:02.263835\"}\n]\n";
        assert_eq!(text(1, 1), expected);
    }

    #[test]
    fn events_are_of_the_promised_kind() {
        let events = events(20_000, 1);
        assert!(events.iter().all(|e| e.id.len() == 32 && e.id.bytes().all(|b| b.is_ascii_hexdigit())));
        let users: BTreeSet<_> = events.iter().map(|e| (&e.id, &e.username, &e.user_email)).collect();
        assert!((3_800..=4_000).contains(&users.len()), "one user per five events, not {}", users.len());
        assert_eq!(users.iter().map(|u| u.0).collect::<BTreeSet<_>>().len(), users.len(), "an id belongs to one user");
        let orphans = events.iter().filter(|e| e.organization_name.is_none()).count();
        assert!((150..=250).contains(&orphans), "a hundredth without organisation, not {orphans}");
        assert!(events.iter().any(|e| e.organization_name.as_ref().is_some_and(|o| !o.is_ascii())));
        let (types, roles): (BTreeSet<_>, BTreeSet<_>) = events.iter().map(|e| (&*e.event_type, &*e.user_type)).unzip();
        assert_eq!((types, roles), (EVENT_TYPES.into(), USER_TYPES.into()));
        let plans: BTreeSet<_> = events.iter().map(|e| e.plan_name.as_deref()).collect();
        assert_eq!(plans, PLANS.into());
    }

    #[test]
    fn times_fall_on_thirty_days_in_no_order() {
        let events = events(3_000, 1);
        let days: BTreeSet<_> = events.iter().map(|e| &e.received_at[..10]).collect();
        assert_eq!((days.len(), *days.first().unwrap(), *days.last().unwrap()), (30, "2020-12-01", "2020-12-30"));
        assert!(!events.is_sorted_by(|a, b| a.received_at <= b.received_at));
        assert!(events.iter().all(|e| e.received_at.parse::<jiff::civil::DateTime>().is_ok() && e.received_at.len() == 26));
    }

    #[test]
    fn times_are_written_to_the_microsecond() {
        let at = |micros| {
            let mut out = Vec::new();
            push_time_in_month(&mut out, micros);
            String::from_utf8(out).expect("ASCII")
        };
        assert_eq!(at(0), "01 00:00:00.000000");
        assert_eq!(at(MICROS_PER_DAY - 1), "01 23:59:59.999999");
        assert_eq!(at(DAYS * MICROS_PER_DAY - 1), "30 23:59:59.999999");
        assert_eq!(at(9 * MICROS_PER_DAY + 3_661_000_042), "10 01:01:01.000042");
    }

    #[test]
    fn a_full_disk_is_an_error() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        assert_eq!(generate(1, 1, &mut Full).unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
