//! The proposal as a section of `dataloader.toml`, with the evidence as comments.

use std::fmt::Write;

use indicatif::HumanCount;

use super::Origin;
use super::evidence::Sighting;
use super::profile::{Key, MAX_KEYS, Profile};
use super::proposal::{MAX_DIMENSION_VALUES, Proposal, ProposedColumn};
use super::unique::Uniqueness;
use crate::config::suggest::{basic_string, definition};
use crate::counted::counted;
use crate::record::kind::Kind;
use crate::visible::{Form, visible};

/// What was read.
#[derive(Debug, Clone, Copy)]
pub struct Reading<'a> {
    /// The names of the files, in the order in which they were read.
    pub sources: &'a [String],
    /// Whether there may be more records than were read.
    pub is_sample: bool,
    /// Why a file could not be read to its end.
    pub broken: Option<&'a str>,
}

impl Reading<'_> {
    /// The place of a record, such as `record 7`, with its file if there are several.
    pub fn place(&self, origin: Origin) -> String {
        if self.sources.len() > 1 { self.file_and_record(origin) } else { record_number(origin) }
    }

    /// The place of a record, such as `x.json, record 7`.
    pub fn file_and_record(&self, origin: Origin) -> String {
        let source = self.sources.get(origin.file).map(|source| in_comment(source)).unwrap_or_default();
        format!("{source}, {}", record_number(origin))
    }
}

fn record_number(origin: Origin) -> String {
    format!("record {}", HumanCount(origin.ordinal))
}

/// The text of the section. The program reads it as a configuration.
pub fn section(profile: &Profile, proposal: &Proposal, reading: Reading<'_>) -> String {
    let writer = Writer { profile, proposal, reading, text: String::new() };
    writer.write()
}

struct Writer<'a> {
    profile: &'a Profile,
    proposal: &'a Proposal,
    reading: Reading<'a>,
    text: String,
}

impl Writer<'_> {
    fn write(mut self) -> String {
        self.header();
        let name = &self.proposal.name;
        self.line(format!("[datasets.{name}]"), "");
        self.key();
        self.day();
        self.line(String::new(), "");
        self.line(format!("[datasets.{}.columns]", self.proposal.name), "");
        self.columns();
        self.model();
        self.text
    }

    /// A line with a comment, if there is something to say.
    fn line(&mut self, line: String, comment: impl AsRef<str>) {
        self.text.push_str(&line);
        if !comment.as_ref().is_empty() {
            let space = if line.is_empty() { "" } else { "  " };
            write!(self.text, "{space}# {}", comment.as_ref()).expect("a string can always be written to");
        }
        self.text.push('\n');
    }

    fn comment(&mut self, comment: impl AsRef<str>) {
        self.line(String::new(), comment);
    }

    fn header(&mut self) {
        self.text.push_str("#:schema ./dataloader.schema.json\n");
        self.comment("The line above is for editors: dataloader schema > dataloader.schema.json");
        let (sources, records) = (self.reading.sources, counted(self.profile.records, "record"));
        let from = match sources {
            [source] => in_comment(source),
            [first, .., last] => format!("{} files, {} to {}", sources.len(), in_comment(first), in_comment(last)),
            [] => String::new(),
        };
        let extent = match (self.reading.broken, self.reading.is_sample) {
            (Some(_), _) => "all records before the fault",
            (None, true) => "a sample: later records may not fit",
            (None, false) => "all records",
        };
        self.comment(format!("Made by `dataloader infer` from {from}: {records} ({extent})."));
        if let Some(broken) = self.reading.broken {
            self.comment(format!("INCOMPLETE: {}", in_comment(broken)));
        }
        for fault in &self.profile.unloadable {
            let (count, reason, place) = (counted(fault.count, "record"), fault.reason.as_str(), self.reading.place(fault.first));
            let detail = in_comment(&fault.detail);
            self.text
                .push_str(&format!("# {count} cannot be loaded whatever the columns are: {reason}, first {place}: {detail}\n"));
        }
        self.left();
        self.only_record();
        self.text.push('\n');
    }

    /// One record is often an object around the records.
    fn only_record(&mut self) {
        if self.profile.loadable() != 1 {
            return;
        }
        if let Some(path) = self.path_to_records() {
            let path = path.replace('\'', r"'\''");
            self.comment(format!(
                "There is only one record. If the records are inside of it: jq -c '{path}' FILE | dataloader infer -"
            ));
        }
    }

    /// Where the records may be inside of the only one, for `jq`.
    fn path_to_records(&self) -> Option<String> {
        /// An object of so many objects, and of nothing else, holds records by their keys.
        const MANY_OBJECTS: usize = 10;
        /// Nobody gives a table so many columns: such keys are data.
        const MANY_KEYS: usize = 100;
        let keys: Vec<&Key> = self.profile.top_keys().iter().map(|key| &self.profile.keys[*key]).collect();
        if keys.len() >= MANY_OBJECTS && keys.iter().all(|key| key.objects > 0) {
            return Some("to_entries[] | {key} + .value".to_owned());
        }
        let is_of_objects = |sample: &str| sample.strip_prefix('[').is_some_and(|first| first.trim_start().starts_with('{'));
        let holds_objects = |key: &&&Key| key.evidence.kinds.iter().any(|sighting| is_of_objects(&sighting.sample));
        if let Some(list) = keys.iter().filter(holds_objects).max_by_key(|key| key.evidence.longest) {
            return Some(format!(".[{}][]", basic_string(&list.name)));
        }
        (keys.len() >= MANY_KEYS).then(|| "to_entries[]".to_owned())
    }

    /// What gets no column.
    fn left(&mut self) {
        let left = &self.proposal.left;
        if left.keys == 0 {
            return;
        }
        let (keys, limit) = (counted(left.keys as u64, "key"), HumanCount(left.limit as u64));
        let at_least = if self.profile.other_keys > 0 && self.profile.keys.len() > MAX_KEYS { "at least " } else { "" };
        self.comment(format!(
            "{at_least}{keys} without a column, which stay in `_extra`: at most {limit} columns fit, those with the most values."
        ));
        if left.unloadable_values > 0 {
            let values = counted(left.unloadable_values, "value");
            self.comment(format!("{values} of these keys cannot be stored in `_extra`: their records would be rejected."));
        }
    }

    fn key(&mut self) {
        let ProposedKeyText { list, comment } = self.key_text();
        self.line(format!("key = [{list}]"), comment);
    }

    fn key_text(&self) -> ProposedKeyText {
        let key = &self.proposal.key;
        let list = key.columns.iter().map(|at| format!("\"{}\"", self.proposal.columns[*at].name)).collect::<Vec<_>>().join(", ");
        let loadable = self.profile.loadable();
        let comment = match &key.uniqueness {
            Uniqueness::Proven(_) if loadable == 1 => "there is only one record: name what makes two records the same".to_owned(),
            Uniqueness::Proven(set) if set.len() == 1 => format!("no value repeats in {} records", HumanCount(loadable)),
            Uniqueness::Proven(_) => {
                format!("the smallest set of columns whose values do not repeat in {} records", HumanCount(loadable))
            }
            Uniqueness::Repeated(first, second) => {
                let places = [*first, *second].map(|number| self.reading.place(self.profile.origin(number)));
                let has_nested = self.proposal.columns.iter().any(|column| self.profile.keys[column.key].evidence.has_nested());
                let nested = if has_nested { ", but for nested values" } else { "" };
                format!(
                    "none proven: {} and {} are the same{nested}, so it is the whole record; name what makes two the same",
                    places[0], places[1]
                )
            }
            Uniqueness::Unknown => "none proven, so it is the whole record; name what makes two records the same".to_owned(),
        };
        ProposedKeyText { list, comment }
    }

    fn day(&mut self) {
        let named = |columns: &[usize]| {
            let names: Vec<&str> = columns.iter().take(5).map(|at| self.proposal.columns[*at].name.as_str()).collect();
            names.join(", ")
        };
        let others = &self.proposal.other_days;
        match self.proposal.day {
            Some(day) => {
                let also = if others.is_empty() { String::new() } else { format!("; so could be {}", named(others)) };
                let line = format!("day = \"{}\"", self.proposal.columns[day].name);
                self.line(line, format!("a date or time in every record{also}"));
            }
            None if others.is_empty() => self.comment("no day: no key is a date or time in all its records, so there is no model"),
            None => {
                let first = &self.proposal.columns[others[0]];
                let missing = self.profile.keys[first.key].missing.map(|origin| self.reading.place(origin)).unwrap_or_default();
                let comment = format!(
                    "no day, so no model: no date or time is in every record; {} is missing first in {missing}",
                    first.name
                );
                self.comment(comment);
            }
        }
    }

    fn columns(&mut self) {
        let lines: Vec<(String, String)> = self
            .proposal
            .columns
            .iter()
            .map(|column| (definition(&column.name, &column.place, column.column_type, column.required), self.evidence(column)))
            .collect();
        let widest_name = self.proposal.columns.iter().map(|column| column.name.len()).max().unwrap_or(0).min(24);
        let lines: Vec<(String, String)> = self
            .proposal
            .columns
            .iter()
            .zip(lines)
            .map(|(column, (definition, evidence))| (format!("{:<widest_name$} = {definition}", column.name), evidence))
            .collect();
        let width = lines.iter().map(|(line, _)| line.chars().count()).filter(|width| *width <= 72).max().unwrap_or(0);
        for (line, evidence) in lines {
            self.line(format!("{line:<width$}"), evidence);
        }
    }

    /// What speaks for the column.
    fn evidence(&self, column: &ProposedColumn) -> String {
        let Key { evidence, missing, .. } = &self.profile.keys[column.key];
        let (loadable, values) = (self.profile.loadable(), evidence.values());
        let mut said = Vec::new();
        match missing {
            _ if values == 0 => said.push("always null, so the type is a guess".to_owned()),
            Some(origin) if values < loadable => {
                let place = self.reading.place(*origin);
                said.push(format!("{} of {}, null or missing first in {place}", HumanCount(values), HumanCount(loadable)));
            }
            _ => said.push(format!("{} of {}, never null", HumanCount(values), HumanCount(loadable))),
        }
        if let Some((column_type, exception)) = evidence.nearly() {
            let others = values - evidence.fitting(column_type);
            said.push(format!("{} but for {}: {}", column_type.name(), HumanCount(others), self.sighting(exception)));
        } else if evidence.kinds.len() > 1 {
            let kinds =
                evidence.kinds.iter().map(|sighting| format!("{} {}", HumanCount(sighting.count), kind_name(sighting.kind)));
            said.push(kinds.collect::<Vec<_>>().join(", "));
        }
        if evidence.quoted > 0 && column.column_type.name() != "text" {
            said.push(format!("{} in quotes", HumanCount(evidence.quoted)));
        }
        match evidence.distinct.count() {
            Some(count) if values > 1 && !evidence.has_nested() => said.push(format!("{} distinct", HumanCount(count as u64))),
            _ => {}
        }
        said.join("; ")
    }

    fn sighting(&self, sighting: &Sighting) -> String {
        format!("{} ({})", in_comment(&sighting.sample), self.reading.place(sighting.first))
    }

    fn model(&mut self) {
        let proposal = self.proposal;
        if proposal.dimensions.is_empty() && proposal.distinct.is_empty() {
            return;
        }
        self.line(String::new(), "");
        self.line(format!("[datasets.{}.model]", proposal.name), "");
        if !proposal.dimensions.is_empty() {
            let names: Vec<String> = proposal.dimensions.iter().map(|at| format!("\"{}\"", proposal.columns[*at].name)).collect();
            let comment =
                format!("text or boolean with 2 to {MAX_DIMENSION_VALUES} distinct values, each in two records or more on average");
            self.line(format!("dimensions = [{}]", names.join(", ")), comment);
        }
        if !proposal.distinct.is_empty() {
            let counts: Vec<String> =
                proposal.distinct.iter().map(|(name, at)| format!("{name} = \"{}\"", proposal.columns[*at].name)).collect();
            let comment = format!("values that repeat; over {MAX_DIMENSION_VALUES} of them, or a name as of users or numbers");
            self.line(format!("distinct = {{ {} }}", counts.join(", ")), comment);
        }
    }
}

struct ProposedKeyText {
    list: String,
    comment: String,
}

/// A text on one line, without control characters.
fn in_comment(text: &str) -> String {
    visible(text, Form::Line).into_owned()
}

/// The kind of many values.
fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Null => "null",
        Kind::Boolean => "booleans",
        Kind::Integer => "integers",
        Kind::LongInteger => "long integers",
        Kind::Double | Kind::Numeric => "decimals",
        Kind::HugeNumber => "numbers out of range",
        Kind::Date => "dates",
        Kind::Timestamp => "times",
        Kind::TimestampTz => "times with an offset",
        Kind::Uuid => "UUIDs",
        Kind::String => "strings",
        Kind::Nested => "objects or lists",
        Kind::OddNested => "objects or lists with what jsonb cannot hold",
    }
}
