//! Reads records and keeps what their keys hold: one pass, in memory that does not grow with the input.

use std::collections::{HashMap, HashSet};
use std::io;

use super::Origin;
use super::evidence::Evidence;
use super::rows::Rows;
use crate::dataset::Place;
use crate::record::chunk::{Chunk, ChunkBody};
use crate::record::json;
use crate::record::kind::{Kind, Look, look};
use crate::record::parse;
use crate::record::row::RejectReason;
use crate::record::scan;

/// So many keys are looked at; nested ones count. The values of more stay in `_extra`.
pub const MAX_KEYS: usize = 4_096;
/// So many of the other keys are counted.
const MAX_OTHER_KEYS: usize = 100_000;

/// One key of the records, or of the objects that are the value of another key.
#[derive(Debug, Default)]
pub struct Key {
    pub name: String,
    pub evidence: Evidence,
    /// How many of its values are objects that `jsonb` takes.
    pub objects: u64,
    /// The first record without a value of it.
    pub missing: Option<Origin>,
    /// The keys of its objects, in the order of their first occurrence, where nested objects are looked into.
    pub children: Vec<usize>,
    by_name: HashMap<String, usize>,
    /// Whether the name has no backslash: such a name stands in a text as it is.
    is_plain: bool,
    /// Its column among the rows for the search of a key.
    pub row_column: Option<usize>,
    /// The first of its children, as a record had it last time.
    first: usize,
    /// The key that followed it last time.
    next: usize,
    /// The number of the last record with a value of it.
    last_record: u64,
    /// Where in the record that is read its value was found.
    found_at: usize,
}

/// Records that no definition could load.
#[derive(Debug, Clone)]
pub struct Unloadable {
    pub reason: RejectReason,
    pub count: u64,
    pub first: Origin,
    /// Of the first one.
    pub detail: String,
}

/// What all records hold.
#[derive(Debug)]
pub struct Profile {
    /// All keys; those of the records themselves are the children of the first one.
    pub keys: Vec<Key>,
    /// All that were read.
    pub records: u64,
    /// How many of them each file has.
    pub files: Vec<u64>,
    pub unloadable: Vec<Unloadable>,
    /// Keys that were not looked at. Counted up to a limit.
    pub other_keys: usize,
    /// The most members that a record had, with those of nested objects that were looked into.
    pub widest: usize,
    pub rows: Rows,
}

impl Profile {
    /// The records that can be loaded.
    pub fn loadable(&self) -> u64 {
        self.records - self.unloadable.iter().map(|fault| fault.count).sum::<u64>()
    }

    /// Where a record stands, by its number among all.
    pub fn origin(&self, number: u64) -> Origin {
        let mut ordinal = number;
        for (file, records) in self.files.iter().enumerate() {
            if ordinal <= *records {
                return Origin { file, ordinal };
            }
            ordinal -= records;
        }
        Origin { file: self.files.len(), ordinal }
    }

    /// The key whose values stand at a place; `None` if no record has it.
    pub fn key_at(&self, place: &Place) -> Option<&Key> {
        let child = |parent: usize, token: &String| self.keys[parent].by_name.get(token).copied();
        place.0.iter().try_fold(ROOT, child).map(|key| &self.keys[key])
    }

    /// The keys of the records themselves.
    pub fn top_keys(&self) -> &[usize] {
        &self.keys[ROOT].children
    }
}

/// The entry that stands for the record itself.
const ROOT: usize = 0;

/// Makes a [`Profile`].
#[derive(Debug)]
pub struct Profiler {
    profile: Profile,
    /// Whether nested objects are looked into.
    flattens: bool,
    other_keys: HashSet<u64>,
    seen: Vec<Seen>,
    /// The keys that no record was without.
    complete: Vec<usize>,
    /// The first record that can be loaded.
    first_loadable: Option<Origin>,
}

/// A value of the record that is read.
#[derive(Debug, Clone, Copy)]
struct Seen {
    key: usize,
    look: Look,
    start: usize,
    end: usize,
}

/// What a member's key is.
enum Found {
    Key(usize),
    /// One key too many.
    Other,
}

impl Profiler {
    /// `flattens`: nested objects are looked into.
    pub fn new(flattens: bool) -> Self {
        let profile = Profile {
            keys: vec![Key::default()],
            records: 0,
            files: Vec::new(),
            unloadable: Vec::new(),
            other_keys: 0,
            widest: 0,
            rows: Rows::default(),
        };
        Self { profile, flattens, other_keys: HashSet::new(), seen: Vec::new(), complete: Vec::new(), first_loadable: None }
    }

    /// The number of records so far.
    pub fn records(&self) -> u64 {
        self.profile.records
    }

    /// Adds the records of a chunk, at most `limit` of them.
    ///
    /// # Errors
    /// If the temporary file cannot be written.
    pub fn add(&mut self, file: usize, chunk: &Chunk, limit: u64) -> io::Result<()> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let before = self.profile.records;
        self.profile.files.resize(self.profile.files.len().max(file + 1), 0);
        match &chunk.body {
            ChunkBody::Rejects(rejects) => {
                for reject in rejects.iter().take(limit) {
                    self.profile.records += 1;
                    self.unloadable(reject.reason, Origin { file, ordinal: reject.ordinal }, reject.detail.clone());
                }
            }
            ChunkBody::Records { text, spans, .. } => {
                let whole = std::str::from_utf8(text).ok();
                for (ordinal, span) in (chunk.first_ordinal..).zip(spans).take(limit) {
                    let span = span.start as usize..span.end as usize;
                    let origin = Origin { file, ordinal };
                    self.profile.records += 1;
                    match whole.and_then(|whole| whole.get(span.clone())).or_else(|| std::str::from_utf8(&text[span.clone()]).ok())
                    {
                        Some(record) => self.record(record, origin)?,
                        None => self.malformed(&text[span], origin),
                    }
                }
            }
        }
        self.profile.files[file] += self.profile.records - before;
        Ok(())
    }

    /// All that was seen.
    ///
    /// # Errors
    /// If the temporary file cannot be written.
    pub fn finish(mut self) -> io::Result<Profile> {
        self.profile.rows.seal()?;
        self.profile.other_keys = self.other_keys.len();
        Ok(self.profile)
    }

    fn unloadable(&mut self, reason: RejectReason, first: Origin, detail: String) {
        match self.profile.unloadable.iter_mut().find(|fault| fault.reason == reason) {
            Some(fault) => fault.count += 1,
            None => self.profile.unloadable.push(Unloadable { reason, count: 1, first, detail }),
        }
    }

    fn malformed(&mut self, bytes: &[u8], origin: Origin) {
        let fault = parse::syntax_fault(bytes);
        let (reason, detail) = fault.unwrap_or_else(|| parse::not_an_object(&String::from_utf8_lossy(bytes)));
        self.unloadable(reason, origin, detail);
    }

    fn record(&mut self, record: &str, origin: Origin) -> io::Result<()> {
        self.seen.clear();
        match self.members(ROOT, record, 0) {
            Ok(()) => self.keep(record, origin),
            Err(None) => {
                self.malformed(record.as_bytes(), origin);
                Ok(())
            }
            Err(Some((reason, detail))) => {
                self.unloadable(reason, origin, detail);
                Ok(())
            }
        }
    }

    /// Looks at the members of an object; `offset` is where it stands in the record. A record that cannot be loaded is an error,
    /// with the reason unless it is that the text is no object.
    fn members(&mut self, parent: usize, object: &str, offset: usize) -> Result<(), Option<(RejectReason, String)>> {
        let (mut previous, mut fault) = (None, None);
        let first = self.seen.len();
        scan::members(object, |key, value| {
            if value.len() >= 2 * json::MAX_DEPTH && value.starts_with(['{', '[']) && json::nests_deeper(value, json::MAX_DEPTH - 1)
            {
                fault = fault.take().or(Some((RejectReason::TooDeep, format!("nests deeper than {} levels", json::MAX_DEPTH))));
                return;
            }
            let start = offset + (value.as_ptr().addr() - object.as_ptr().addr());
            let seen = |key| Seen {
                key,
                look: Look { kind: Kind::Null, is_quoted: false, identity: Look::NULL },
                start,
                end: start + value.len(),
            };
            match self.find(parent, previous, key) {
                Ok(Found::Key(slot)) => {
                    previous = Some(slot);
                    // The last of a key that comes twice wins.
                    let at = self.profile.keys[slot].found_at;
                    match self.seen.get_mut(at).filter(|found| at >= first && found.key == slot) {
                        Some(found) => *found = seen(slot),
                        None => {
                            self.profile.keys[slot].found_at = self.seen.len();
                            self.seen.push(seen(slot));
                        }
                    }
                }
                Ok(Found::Other) => {
                    let reason = json::escape_fault(key).into_iter().chain(json::jsonb_fault(value)).min();
                    fault = fault.take().or(reason.map(|reason| (reason, extra_fault(key, value))));
                }
                Err(reason) => fault = fault.take().or(Some((reason, extra_fault(key, value)))),
            }
        })
        .map_err(|scan::NotAnObject| None)?;
        match fault {
            Some(fault) => Err(Some(fault)),
            None => self.values(object, offset, first),
        }
    }

    /// Looks at the values that were found from `first` on.
    fn values(&mut self, object: &str, offset: usize, first: usize) -> Result<(), Option<(RejectReason, String)>> {
        for at in first..self.seen.len() {
            let Seen { key, start, end, .. } = self.seen[at];
            let value = &object[start - offset..end - offset];
            let found = look(value).map_err(|reason| Some((reason, value_fault(&self.profile.keys[key].name, value))))?;
            self.seen[at].look = found;
            if self.flattens && found.kind == Kind::Nested && value.starts_with('{') {
                self.members(key, value, start)?;
            }
        }
        Ok(())
    }

    /// Adds the values of a record that can be loaded.
    fn keep(&mut self, record: &str, origin: Origin) -> io::Result<()> {
        let first_loadable = *self.first_loadable.get_or_insert(origin);
        let profile = &mut self.profile;
        profile.widest = profile.widest.max(self.seen.len());
        let mut complete = 0;
        for seen in &self.seen {
            let key = &mut profile.keys[seen.key];
            let value = &record[seen.start..seen.end];
            key.evidence.add(value, seen.look, origin);
            if seen.look.kind == Kind::Null {
                continue;
            }
            key.objects += u64::from(seen.look.kind == Kind::Nested && value.starts_with('{'));
            if key.last_record == 0 {
                match first_loadable == origin {
                    true => self.complete.push(seen.key),
                    false => key.missing = Some(first_loadable),
                }
            }
            key.last_record = profile.records;
            complete += usize::from(key.missing.is_none());
            if seen.look.identity > Look::NULL {
                if key.row_column.is_none() {
                    key.row_column = profile.rows.new_column();
                }
                if let Some(column) = key.row_column {
                    profile.rows.set(column, seen.look.identity);
                }
            }
        }
        profile.rows.end_row(profile.records)?;
        if complete < self.complete.len() {
            self.note_missing(origin);
        }
        Ok(())
    }

    /// Notes which keys the record is the first one without.
    fn note_missing(&mut self, origin: Origin) {
        let (keys, record) = (&mut self.profile.keys, self.profile.records);
        self.complete.retain(|key| {
            let is_there = keys[*key].last_record == record;
            if !is_there {
                keys[*key].missing = Some(origin);
            }
            is_there
        });
    }

    /// The key of a member of `parent`, which followed `previous`; it is given as it stands in the text.
    fn find(&mut self, parent: usize, previous: Option<usize>, key: &str) -> Result<Found, RejectReason> {
        let keys = &mut self.profile.keys;
        let guess = previous.map_or(keys[parent].first, |previous| keys[previous].next);
        let is_guessed = |guess: &Key| guess.is_plain && guess.name.as_bytes() == &key.as_bytes()[1..key.len() - 1];
        if guess != ROOT && is_guessed(&keys[guess]) {
            return Ok(Found::Key(guess));
        }
        let name = json::unescape(key)?;
        let slot = match keys[parent].by_name.get(&*name).copied() {
            Some(slot) => slot,
            None if keys.len() > MAX_KEYS => {
                if self.other_keys.len() < MAX_OTHER_KEYS && parent == ROOT {
                    self.other_keys.insert(look(key).map_or(0, |look| look.identity));
                }
                return Ok(Found::Other);
            }
            None => {
                let slot = keys.len();
                let is_plain = !name.contains('\\');
                keys.push(Key { name: name.clone().into_owned(), is_plain, ..Key::default() });
                keys[parent].children.push(slot);
                keys[parent].by_name.insert(name.into_owned(), slot);
                slot
            }
        };
        match previous {
            Some(previous) => keys[previous].next = slot,
            None => keys[parent].first = slot,
        }
        Ok(Found::Key(slot))
    }
}

fn extra_fault(key: &str, value: &str) -> String {
    format!("a member that no column takes: {}", parse::shortened(&format!("{key}:{value}")))
}

fn value_fault(key: &str, value: &str) -> String {
    format!("{}: {}", parse::shortened(key), parse::shortened(value))
}
