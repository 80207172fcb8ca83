//! What is proposed loads the records that it was made from; the program's own parser is the judge.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::profile::{Profile, Profiler};
use super::proposal::propose;
use super::section::{Reading, section};
use crate::config::datasets_of;
use crate::dataset::Dataset;
use crate::record::chunk::Chunk;
use crate::record::parse::{DayRange, Parser};
use crate::record::row::{Reject, RowSink, Value};
use crate::record::split::Splitter;

/// Counts rows.
#[derive(Default)]
struct Rows(u64);

impl RowSink for Rows {
    fn push(&mut self, _: &[Value<'_>]) {
        self.0 += 1;
    }
}

fn chunks(text: &str) -> Vec<Chunk> {
    let mut splitter = Splitter::new(text.as_bytes());
    std::iter::from_fn(|| splitter.next_chunk().unwrap()).collect()
}

fn profile(chunks: &[Chunk], flattens: bool) -> Profile {
    let mut profiler = Profiler::new(flattens);
    chunks.iter().for_each(|chunk| profiler.add(0, chunk, u64::MAX).unwrap());
    profiler.finish().unwrap()
}

/// The section for a text; `None` if there is nothing to propose.
fn infer(text: &str, flattens: bool) -> Option<String> {
    section_of(&profile(&chunks(text), flattens), flattens)
}

fn section_of(profile: &Profile, flattens: bool) -> Option<String> {
    let sources = ["x.json".to_owned()];
    let proposal = propose(profile, "things", flattens).unwrap()?;
    Some(section(profile, &proposal, Reading { sources: &sources, is_sample: false, broken: None }))
}

fn dataset(section: &str) -> Arc<Dataset> {
    let mut datasets = datasets_of("x.toml", section.to_owned()).unwrap_or_else(|error| panic!("{error}\n{section}"));
    assert_eq!(datasets.len(), 1, "{section}");
    datasets.remove(0)
}

fn load(dataset: Arc<Dataset>, text: &str) -> (u64, Vec<Reject>) {
    load_chunks(dataset, &chunks(text))
}

fn load_chunks(dataset: Arc<Dataset>, chunks: &[Chunk]) -> (u64, Vec<Reject>) {
    let (mut parser, mut rows, mut rejects) = (Parser::new(dataset), Rows::default(), Vec::new());
    for chunk in chunks {
        rejects.extend(parser.parse(chunk, &DayRange::ALL, &mut rows).rejects);
    }
    (rows.0, rejects)
}

/// The type of each column, as `name:type`, from the section that all records load with.
fn columns(records: &[&str]) -> Vec<String> {
    let text = records.join("\n");
    let dataset = dataset(&infer(&text, false).unwrap());
    assert_eq!(load(Arc::clone(&dataset), &text).1, [], "{text}");
    dataset.columns.iter().map(|column| format!("{}:{}", column.name, column.column_type.name())).collect()
}

#[test]
fn the_narrowest_type_that_all_values_fit_is_taken() {
    for (values, expected) in [
        (&["1", "null", "-5"][..], "bigint"),
        (&["1", "\"2\""], "bigint"),
        (&["1", "2.5"], "double"),
        (&["1", "1e400"], "numeric"),
        (&["9007199254740993", "0.5"], "numeric"),
        (&["19.90"], "numeric"),
        (&["1", "\"n/a\""], "text"),
        (&["\"007\"", "\"12\""], "text"),
        (&["true", "\"false\""], "boolean"),
        (&["true", "1"], "text"),
        (&["\"2024-02-29\""], "date"),
        (&["\"2024-02-29\"", "\"2024-02-29 10:00\""], "timestamp"),
        (&["\"2024-02-29 10:00\"", "\"2024-02-29T10:00:00+02:00\""], "timestamptz"),
        (&["\"2024-02-30\""], "text"),
        (&["\"0190163d-8694-739b-aea5-966c26f8ad91\""], "uuid"),
        (&["[1]", "{}"], "jsonb"),
        (&["[1]", "5", "\"x\"", "true", "null"], "jsonb"),
        (&["[\"\\u0000\"]", "5"], "text"),
        (&["null"], "text"),
        (&["1e999999", "5"], "text"),
    ] {
        let records: Vec<String> = values.iter().map(|value| format!("{{\"v\":{value},\"n\":null}}")).collect();
        let records: Vec<&str> = records.iter().map(String::as_str).collect();
        assert_eq!(columns(&records), [&format!("v:{expected}"), "n:text"], "{values:?}");
    }
    let long = format!("{{\"v\":{}}}", "9".repeat(400));
    assert_eq!(columns(&[&long]), ["v:numeric"]);
}

#[test]
fn the_first_exception_is_named() {
    let mut records: Vec<String> = (1..=20).map(|i| format!("{{\"v\":{i}}}")).collect();
    records.insert(16, "{\"v\":\"n/a\"}".to_owned());
    let section = infer(&records.join("\n"), false).unwrap();
    assert!(section.contains("bigint but for 1: \"n/a\" (record 17)"), "{section}");
}

#[test]
fn the_last_value_of_a_repeated_key_counts() {
    assert_eq!(columns(&[r#"{"a":"x","a":1,"b":2,"\u0061":3}"#]), ["a:bigint", "b:bigint"]);
}

#[test]
fn the_day_is_the_best_of_those_in_every_record() {
    let record = |i: u32| {
        format!(
            r#"{{"id":{i},"birthday":"2001-01-01","updatedAt":"2024-01-02","createdAt":"2024-01-01T0{i}:00Z","seen":"2024-01-01"}}"#
        )
    };
    let text = (1..=3).map(record).collect::<Vec<_>>().join("\n");
    let all = dataset(&infer(&text, false).unwrap());
    assert_eq!(all.day_column().unwrap().name, "createdAt");
    assert_eq!(all.key, [0]);
    let some = infer(&format!("{text}\n{{\"id\":4}}"), false).unwrap();
    assert!(dataset(&some).day.is_none() && some.contains("birthday is missing first in record 4"), "{some}");
}

#[test]
fn members_of_nested_objects_become_columns_where_all_values_are_objects() {
    let text = r#"{"a":{"b":{"c":1},"l":[1]},"m":{"x":1}}
                  {"a":{"b":{"c":2,"Ä b":"x"}},"m":5}
                  {"a":null,"e":{}}"#;
    let dataset = dataset(&infer(text, true).unwrap());
    let columns: Vec<String> =
        dataset.columns.iter().map(|column| format!("{} {} {}", column.name, column.from, column.column_type.name())).collect();
    assert_eq!(columns, ["a_b_c /a/b/c bigint", "a_b_a_b /a/b/Ä b text", "a_l /a/l jsonb", "m m jsonb", "e e jsonb"]);
    assert_eq!(load(dataset, text), (3, vec![]));
}

#[test]
fn too_many_keys_are_left_in_extra_and_said() {
    let wide: String = (0..10_000).map(|i| format!("\"k{i}\":{i},")).collect();
    let text = format!("{{{wide}\"id\":1}}\n{{\"id\":2}}\n{{\"k9999\":1e999999}}");
    let section = infer(&text, false).unwrap();
    assert!(section.contains("without a column, which stay in `_extra`: at most 300 columns fit"), "{section}");
    let dataset = dataset(&section);
    assert_eq!(dataset.columns.len(), 300);
    let many: String = (0..10_000).map(|i| format!("{{\"k{i}\":{i}}}\n")).collect();
    let section = infer(&many, false).unwrap();
    assert!(section.contains("at least") && section.contains("at most 1,000 columns fit"), "{section}");
    assert_eq!(load(super::tests::dataset(&section), &many).1, []);
}

#[test]
fn records_that_nothing_could_load_are_counted_and_change_no_type() {
    let text = "[{\"a\":1},5,{\"a\":\"\\u0000\"},{\"a\":\"\\ud800\",\"b\":1},,{\"\\ud800\":1},{\"a\":2}]";
    let section = infer(text, false).unwrap();
    for said in ["not_an_object, first record 2", "nul_character, first record 3", "2 records", "invalid_json, first record 5"] {
        assert!(section.contains(said), "{said}: {section}");
    }
    let dataset = dataset(&section);
    assert_eq!(dataset.columns.len(), 1);
    assert_eq!(dataset.columns[0].column_type.name(), "bigint");
    let (rows, rejects) = load(dataset, text);
    assert_eq!((rows, rejects.len()), (2, 5));
}

#[test]
fn nothing_is_proposed_where_there_is_nothing() {
    for text in ["", " \n", "[]", "[1,2]", "{}", "[{},{}]"] {
        assert_eq!(infer(text, false), None, "{text}");
    }
}

#[test]
fn the_records_inside_of_an_only_record_are_pointed_to() {
    let object = |value: &str, count: usize| {
        let members: Vec<String> = (0..count).map(|i| format!("\"k{i}\":{value}")).collect();
        format!("{{{}}}", members.join(","))
    };
    for (text, path) in [
        (r#"{"type":"F","it's":[{"id":1},{"id":2}],"l":[1,2,3,4,5,6,7,8,9,10,11]}"#, Some(r#".["it'\''s"][]"#)),
        (&object("{\"a\":1}", 10), Some("to_entries[] | {key} + .value")),
        (&object("1", 100), Some("to_entries[]")),
        (&object("1", 10), None),
        (r#"{"arcs":[[1,2],[3]]}"#, None),
        ("{\"a\":[{}]}\n{}", None),
    ] {
        let section = infer(text, false).unwrap();
        let said = section.lines().find_map(|line| line.split_once("jq -c '")?.1.strip_suffix("' FILE | dataloader infer -"));
        assert_eq!(said, path, "{section}");
    }
}

/// A key: often the same, sometimes odd.
fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => "[a-e]",
        1 => "[A-E]",
        1 => "[a-c ._/~\"\n-]{0,3}",
        1 => Just("_extra".to_owned()),
        1 => any::<String>(),
    ]
}

/// A value of any kind, as source text.
fn value() -> impl Strategy<Value = String> {
    let scalar = prop_oneof![
        3 => "-?(0|[1-9][0-9]{0,3})",
        1 => "-?(0|[1-9][0-9]{0,25})(\\.[0-9]{1,20})?([eE][-+]?[0-9]{1,6})?",
        1 => "\"-?[0-9]{0,20}(\\.[0-9]{1,3})?\"",
        2 => "true|false|null|\"\"|\"true\"",
        2 => "\"20[0-9]{2}-0[1-9]-[0-3][0-9]([T ][0-2][0-9]:[0-5][0-9](:[0-5][0-9](\\.[0-9]{1,9})?)?(Z|[+-]0[0-9]:?[0-5][0-9])?)?\"",
        1 => "\"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\"",
        1 => "\"\\\\u(0000|d800|0041)\"",
        2 => any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
    ];
    scalar.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(|elements| format!("[{}]", elements.join(","))),
            object(vec((key(), inner), 0..4)),
        ]
    })
}

fn object(members: impl Strategy<Value = Vec<(String, String)>>) -> impl Strategy<Value = String> {
    members.prop_map(|members| {
        let member = |(key, value): &(String, String)| format!("{}: {value}", serde_json::to_string(key).unwrap());
        format!("{{{}}}", members.iter().map(member).collect::<Vec<_>>().join(", "))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn any_records_load_with_the_section_that_they_gave(records in vec(object(vec((key(), value()), 0..6)), 1..12), flattens: bool) {
        let text = records.join("\n");
        // Split once: in a build for tests, a splitter's buffer takes longer than all else.
        let chunks = chunks(&text);
        let profile = profile(&chunks, flattens);
        if let Some(section) = section_of(&profile, flattens) {
            let (rows, rejects) = load_chunks(dataset(&section), &chunks);
            prop_assert_eq!(rows, profile.loadable(), "{:?}\n{}\n{}", rejects, section, text);
        } else {
            prop_assert!(profile.top_keys().iter().all(|key| profile.keys[*key].evidence.values() == 0));
        }
    }
}
