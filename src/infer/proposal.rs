//! Proposes types, key, day, dimensions and distinct counts for what a profile holds.

use std::io;

use super::evidence::Evidence;
use super::profile::{Key, Profile};
use super::unique::{self, Uniqueness};
use crate::config::names::{self, Taken};
use crate::config::{MAX_COLUMNS, MAX_NAME_BYTES};
use crate::dataset::{ColumnType, Place};

/// A row of PostgreSQL stands on one page of 8 kB, and each value takes up to 24 bytes of it, however long it is. So many always fit.
const MAX_WIDE_COLUMNS: usize = 300;
/// A dimension has at most so many values, of so many bytes; each stands in `MIN_REPEATS` records on average.
pub const MAX_DIMENSION_VALUES: usize = 100;
const MAX_DIMENSION_BYTES: usize = 200;
const MIN_REPEATS: u64 = 2;
/// Each dimension is a table, and each distinct count takes time.
const MAX_DIMENSIONS: usize = 5;
const MAX_DISTINCT: usize = 3;
/// Longer text is prose.
const MAX_DISTINCT_BYTES: usize = 100;

/// A column, and where in the profile its evidence is.
#[derive(Debug)]
pub struct ProposedColumn {
    pub name: String,
    pub place: Place,
    pub column_type: ColumnType,
    /// Only the day is.
    pub required: bool,
    /// The index of its key in [`Profile::keys`].
    pub key: usize,
}

/// What makes two records the same.
#[derive(Debug)]
pub struct ProposedKey {
    /// Indexes of columns.
    pub columns: Vec<usize>,
    pub uniqueness: Uniqueness,
}

/// Keys that get no column.
#[derive(Debug, Default)]
pub struct Left {
    pub keys: usize,
    /// How many of their values `_extra` cannot store.
    pub unloadable_values: u64,
    pub limit: usize,
}

/// The definition of a dataset.
#[derive(Debug)]
pub struct Proposal {
    pub name: String,
    pub columns: Vec<ProposedColumn>,
    pub key: ProposedKey,
    /// The index of a column.
    pub day: Option<usize>,
    /// Dates and times that are in every record as well; without a day, those that are in some.
    pub other_days: Vec<usize>,
    pub dimensions: Vec<usize>,
    /// The name of the count, and the index of the column.
    pub distinct: Vec<(String, usize)>,
    pub left: Left,
}

/// Proposes a definition. `None` if no record that can be loaded has a key.
///
/// # Errors
/// If the temporary file of the rows cannot be read.
pub fn propose(profile: &Profile, name: &str, flattens: bool) -> io::Result<Option<Proposal>> {
    let mut places = Vec::new();
    leaves(profile, profile.top_keys(), &[], flattens, &mut places);
    let left = leave_out(profile, &mut places);
    if places.is_empty() {
        return Ok(None);
    }
    let column_names = names::column_names(&places.iter().map(|(place, _)| place).collect::<Vec<_>>());
    let columns = places.into_iter().zip(column_names).map(|((place, key), name)| {
        let column_type = profile.keys[key].evidence.narrowest();
        ProposedColumn { name, place, column_type, required: false, key }
    });
    let mut columns: Vec<ProposedColumn> = columns.collect();
    let (day, other_days) = choose_day(profile, &columns);
    if let Some(day) = day {
        columns[day].required = true;
    }
    let key = choose_key(profile, &columns)?;
    let mut proposal =
        Proposal { name: name.to_owned(), columns, key, day, other_days, dimensions: Vec::new(), distinct: Vec::new(), left };
    if day.is_some() {
        proposal.choose_dimensions(profile);
        proposal.choose_distinct(profile)?;
    }
    Ok(Some(proposal))
}

/// The places of the columns: of keys, or of the members of nested objects.
fn leaves(profile: &Profile, keys: &[usize], parents: &[String], flattens: bool, places: &mut Vec<(Place, usize)>) {
    for key in keys {
        let Key { name, evidence, objects, children, .. } = &profile.keys[*key];
        if evidence.values() + evidence.nulls == 0 {
            // Only records that cannot be loaded have it.
            continue;
        }
        let tokens = [parents, std::slice::from_ref(name)].concat();
        // A value that is no object would stay in `_extra`, so there it is one column.
        if flattens && *objects > 0 && *objects == evidence.values() && !children.is_empty() {
            leaves(profile, children, &tokens, flattens, places);
        } else {
            places.push((Place(tokens), *key));
        }
    }
}

/// Takes out the rarest keys if there are too many; those whose values `_extra` cannot store come last.
fn leave_out(profile: &Profile, places: &mut Vec<(Place, usize)>) -> Left {
    let limit = if profile.widest > MAX_WIDE_COLUMNS { MAX_WIDE_COLUMNS } else { MAX_COLUMNS };
    if places.len() <= limit {
        return Left { keys: profile.other_keys, unloadable_values: 0, limit };
    }
    let evidence = |key: usize| -> &Evidence { &profile.keys[key].evidence };
    let needs_a_column = |key: usize| match profile.keys[key].name.contains('\0') {
        true => evidence(key).values() + evidence(key).nulls,
        false => evidence(key).values_that_need_a_column(),
    };
    let mut order: Vec<usize> = (0..places.len()).collect();
    order.sort_by_key(|at| {
        let key = places[*at].1;
        std::cmp::Reverse((needs_a_column(key) > 0, evidence(key).values()))
    });
    let dropped = order.split_off(limit);
    let unloadable_values = dropped.iter().map(|at| needs_a_column(places[*at].1)).sum();
    order.sort_unstable();
    let mut all: Vec<Option<(Place, usize)>> = std::mem::take(places).into_iter().map(Some).collect();
    places.extend(order.into_iter().filter_map(|at| all[at].take()));
    Left { keys: profile.other_keys + dropped.len(), unloadable_values, limit }
}

/// The best date or time that is in every record, and the others.
fn choose_day(profile: &Profile, columns: &[ProposedColumn]) -> (Option<usize>, Vec<usize>) {
    let times: Vec<usize> = (0..columns.len()).filter(|at| columns[*at].column_type.is_date_or_time()).collect();
    let is_complete = |at: &usize| profile.keys[columns[*at].key].evidence.values() == profile.loadable();
    let mut complete: Vec<usize> = times.iter().copied().filter(is_complete).collect();
    // The sort is stable: of equally good ones the first column is the best.
    complete.sort_by_key(|at| day_rank(&columns[*at].name));
    match complete.first() {
        Some(day) => (Some(*day), complete[1..].to_vec()),
        None => (None, times),
    }
}

/// How well a name says that this is when the record happened; less is better.
fn day_rank(name: &str) -> u8 {
    const HAPPENED: [&str; 16] = [
        "received",
        "occurred",
        "happened",
        "event",
        "created",
        "creation",
        "published",
        "timestamp",
        "time",
        "ts",
        "date",
        "day",
        "ordered",
        "sent",
        "logged",
        "started",
    ];
    const OTHERWISE: [&str; 19] = [
        "birth",
        "birthday",
        "born",
        "dob",
        "expires",
        "expiry",
        "expiration",
        "until",
        "end",
        "ended",
        "due",
        "deleted",
        "updated",
        "modified",
        "changed",
        "last",
        "closed",
        "finished",
        "valid",
    ];
    let words = words(name);
    let any_of = |list: &[&str]| words.iter().any(|word| list.contains(&word.as_str()));
    if any_of(&OTHERWISE) { 2 } else { u8::from(!any_of(&HAPPENED)) }
}

/// The words of an identifier, in lower case: `createdAt` and `created_at` have the same.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut previous_is_lower = false;
    for character in name.chars() {
        if character == '_' || (character.is_ascii_uppercase() && previous_is_lower) {
            words.push(String::new());
        }
        if character != '_' {
            words.last_mut().expect("there is one").push(character.to_ascii_lowercase());
        }
        previous_is_lower = character.is_ascii_lowercase();
    }
    words
}

/// The smallest unique set; the whole record without one.
fn choose_key(profile: &Profile, columns: &[ProposedColumn]) -> io::Result<ProposedKey> {
    let row_column = |at: usize| {
        let Key { row_column, evidence, .. } = &profile.keys[columns[at].key];
        row_column.filter(|_| !evidence.has_nested())
    };
    let mut candidates: Vec<(usize, usize)> = (0..columns.len()).filter_map(|at| Some((at, row_column(at)?))).collect();
    candidates.sort_by_key(|(at, _)| {
        let column = &columns[*at];
        let is_complete = profile.keys[column.key].evidence.values() == profile.loadable();
        (!is_complete, key_rank(column), *at)
    });
    let searched: Vec<usize> = candidates.iter().map(|(_, row_column)| *row_column).collect();
    let uniqueness = if searched.is_empty() { Uniqueness::Unknown } else { unique::smallest(&profile.rows, &searched)? };
    let mut key: Vec<usize> = match &uniqueness {
        Uniqueness::Proven(set) => candidates.iter().filter(|(_, column)| set.contains(column)).map(|(at, _)| *at).collect(),
        Uniqueness::Repeated(..) | Uniqueness::Unknown => (0..columns.len()).collect(),
    };
    key.sort_unstable();
    Ok(ProposedKey { columns: key, uniqueness })
}

/// How well a column stands in a key; less is better.
fn key_rank(column: &ProposedColumn) -> u8 {
    const NAMES: [&str; 6] = ["id", "key", "uuid", "guid", "code", "number"];
    let words = words(&column.name);
    let is_named = |name: &str| words.last().is_some_and(|word| word == name);
    match column.column_type {
        _ if words.len() == 1 && NAMES.iter().any(|name| is_named(name)) => 0,
        ColumnType::Uuid => 0,
        _ if NAMES.iter().any(|name| is_named(name)) => 1,
        ColumnType::Text | ColumnType::Boolean => 2,
        ColumnType::Date | ColumnType::Timestamp | ColumnType::TimestampTz => 3,
        // Measured values are unique by chance.
        _ => 4,
    }
}

impl Proposal {
    fn evidence<'a>(&self, profile: &'a Profile, column: usize) -> &'a Evidence {
        &profile.keys[self.columns[column].key].evidence
    }

    /// The text and boolean columns with few values, the fewest first; those with the most values are left out if there are many.
    fn choose_dimensions(&mut self, profile: &Profile) {
        let mut taken = self.generated_names();
        let mut found: Vec<(usize, usize)> = Vec::new();
        for (at, column) in self.columns.iter().enumerate() {
            let evidence = self.evidence(profile, at);
            let Some(count) = evidence.distinct.count() else { continue };
            let is_dimension = matches!(column.column_type, ColumnType::Text | ColumnType::Boolean)
                && !names_somebody(&column.name)
                && (2..=MAX_DIMENSION_VALUES).contains(&count)
                && count as u64 * MIN_REPEATS <= evidence.values()
                && evidence.values() * 2 >= profile.loadable()
                && evidence.longest <= MAX_DIMENSION_BYTES
                && self.key.columns != [at];
            let table = format!("modelled_{}_by_date_{}", self.name, column.name);
            if is_dimension && table.len() <= MAX_NAME_BYTES && taken.is_free(&column.name) {
                found.push((count, at));
            }
        }
        found.sort_unstable();
        found.truncate(MAX_DIMENSIONS);
        self.dimensions = found.into_iter().map(|(_, at)| at).collect();
        self.dimensions.sort_unstable();
        for at in &self.dimensions {
            taken.claim(&self.columns[*at].name, |_| false);
        }
    }

    /// Columns whose values repeat, and are too many for a dimension or somebody's name.
    fn choose_distinct(&mut self, profile: &Profile) -> io::Result<()> {
        let mut taken = self.generated_names();
        for at in &self.dimensions {
            taken.claim(&self.columns[*at].name, |_| false);
        }
        for (at, column) in self.columns.iter().enumerate() {
            let evidence = self.evidence(profile, at);
            let is_many = evidence.distinct.count().is_none_or(|count| count > MAX_DIMENSION_VALUES);
            let is_candidate = match column.column_type {
                ColumnType::Text | ColumnType::Uuid => is_many || names_somebody(&column.name),
                ColumnType::BigInt => names_somebody(&column.name),
                _ => false,
            };
            let is_candidate = is_candidate
                && evidence.distinct.count().is_none_or(|count| count >= 2)
                && evidence.longest <= MAX_DISTINCT_BYTES
                && !self.dimensions.contains(&at)
                && self.key.columns != [at];
            let Some(row_column) = profile.keys[column.key].row_column.filter(|_| is_candidate && !evidence.has_nested()) else {
                continue;
            };
            if unique::repeats(&profile.rows, row_column)? {
                let wanted = format!("unique_{}", column.name);
                let wanted = wanted.get(..MAX_NAME_BYTES).unwrap_or(&wanted);
                self.distinct.push((taken.claim(wanted, |_| false), at));
            }
            if self.distinct.len() == MAX_DISTINCT {
                break;
            }
        }
        Ok(())
    }

    /// The names that every modelled table has.
    fn generated_names(&self) -> Taken {
        let mut taken = Taken::default();
        for name in ["date".to_owned(), format!("total_{}", self.name), format!("unique_{}", self.name)] {
            taken.claim(&name, |_| false);
        }
        taken
    }
}

/// Whether a name is that of somebody, or of something with a number: such columns are counted and not grouped by.
fn names_somebody(name: &str) -> bool {
    const SOMEBODY: [&str; 22] = [
        "user", "username", "login", "email", "customer", "client", "account", "member", "visitor", "session", "device", "author",
        "actor", "owner", "person", "patient", "seller", "buyer", "driver", "employee", "host", "ip",
    ];
    let words = words(name);
    let is_somebody = |word: &String| SOMEBODY.contains(&word.as_str());
    match words.last().map(String::as_str) {
        Some("id" | "uuid" | "key") => true,
        Some("name" | "address") => words.iter().any(is_somebody),
        _ => words.last().is_some_and(is_somebody),
    }
}
