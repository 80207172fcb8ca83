//! Measures the speed of the parser on one core, in bytes and records per second.
//!
//! `cargo bench --bench parse`

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use dataloader::dataset::{Column, ColumnType, Dataset, Model, Place, Repeats, StreamMode};
use dataloader::record::chunk::{CHUNK_RECORDS, Chunk, ChunkBody, Framing};
use dataloader::record::parse::{DayRange, Parser};
use dataloader::record::row::{RowSink, Value};
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};

const CHUNKS: usize = 50;

fn main() {
    divan::main();
}

/// Accepts rows and discards them, so that only the parser's own time is measured.
struct Discard;

impl RowSink for Discard {
    fn push(&mut self, values: &[Value<'_>]) {
        divan::black_box(values);
    }
}

/// Pseudorandom numbers that are the same in each run (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((mixed ^ (mixed >> 31)) % limit as u64).expect("below a usize")
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

/// One event like those of the sample; `organization` and `extra` are JSON.
fn event(random: &mut Random, organization: &str, extra: &str) -> String {
    let user = random.below(200_000);
    let id = (user as u128 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C834);
    let event_type = random.of(&["User Created", "User Updated", "User Deleted"]);
    let user_type = random.of(&["Admin", "User", "Creator"]);
    let plan = random.of(&["null", "\"Small\"", "\"Medium\"", "\"Enterprise\""]);
    let (day, hour, minute) = (random.below(30) + 1, random.below(24), random.below(60));
    let (second, micros) = (random.below(60), random.below(1_000_000));
    format!(
        r#"{{"id": "{id:032x}", "event_type": "{event_type}", "username": "user {user}", "user_email": "user{user}@example.com", "user_type": "{user_type}", "organization_name": {organization}, "plan_name": {plan}, "received_at": "2020-12-{day:02} {hour:02}:{minute:02}:{second:02}.{micros:06}"{extra}}}"#
    )
}

/// The chunks of an array file of events.
fn chunks(mut event: impl FnMut(&mut Random) -> String) -> Vec<Chunk> {
    let mut random = Random(1);
    let chunk = |number: usize| {
        let (mut text, mut spans) = (String::new(), Vec::with_capacity(CHUNK_RECORDS));
        for _ in 0..CHUNK_RECORDS {
            if !text.is_empty() {
                text.push_str(",\n  ");
            }
            let start = u32::try_from(text.len()).expect("a chunk is small");
            write!(text, "{}", event(&mut random)).expect("a string takes everything");
            spans.push(start..u32::try_from(text.len()).expect("a chunk is small"));
        }
        Chunk {
            seq: number as u64,
            first_ordinal: (number * CHUNK_RECORDS) as u64 + 1,
            first_byte_offset: 0,
            body: ChunkBody::Records { framing: Framing::Array, text: text.into_bytes(), spans },
        }
    };
    (0..CHUNKS).map(chunk).collect()
}

/// Where a value stands in the records of `nested`.
const NESTED: [(&str, &str); 3] =
    [("username", "/actor/name"), ("user_email", "/actor/contact/mail"), ("user_type", "/actor/type")];

fn events() -> Arc<Dataset> {
    dataset(Place::key)
}

/// Three columns take their values from inside of an object.
fn nested_events() -> Arc<Dataset> {
    let place = |name: &str| NESTED.iter().find(|(column, _)| *column == name).and_then(|(_, pointer)| Place::parse(pointer));
    dataset(|name| place(name).unwrap_or_else(|| Place::key(name)))
}

fn dataset(from: impl Fn(&str) -> Place) -> Arc<Dataset> {
    let column = |name: &str, column_type, required| Column { name: name.to_owned(), column_type, required, from: from(name) };
    Arc::new(Dataset {
        stream: StreamMode::default(),
        menu: false,
        repeats: Repeats::Load,
        name: "events".to_owned(),
        dir: PathBuf::from("events"),
        columns: vec![
            column("id", ColumnType::Text, true),
            column("event_type", ColumnType::Text, false),
            column("username", ColumnType::Text, false),
            column("user_email", ColumnType::Text, false),
            column("user_type", ColumnType::Text, false),
            column("organization_name", ColumnType::Text, false),
            column("plan_name", ColumnType::Text, false),
            column("received_at", ColumnType::Timestamp, true),
        ],
        key: vec![0, 1, 7],
        day: Some(7),
        model: Model::default(),
    })
}

fn parse(bencher: Bencher, chunks: &[Chunk]) {
    parse_into(bencher, chunks, events());
}

fn parse_into(bencher: Bencher, chunks: &[Chunk], dataset: Arc<Dataset>) {
    let mut parser = Parser::new(dataset);
    bencher
        .counter(ItemsCount::new(CHUNKS * CHUNK_RECORDS))
        .counter(BytesCount::new(chunks.iter().map(Chunk::bytes).sum::<usize>()))
        .bench_local(|| {
            for chunk in chunks {
                let parsed = parser.parse(chunk, &DayRange::ALL, &mut Discard);
                assert!(parsed.rejects.is_empty());
            }
        });
}

/// Typical events.
#[divan::bench]
fn plain(bencher: Bencher) {
    let organizations = ["\"Super Mario\"", "\"Metal Gear Solid\"", "\"Müller & Söhne\"", "\"東京ゲーム\"", "null"];
    parse(
        bencher,
        &chunks(|random| {
            let organization = random.of(&organizations);
            event(random, organization, "")
        }),
    );
}

/// Each event has one string with escapes, as writers produce that output ASCII only.
#[divan::bench]
fn escaped(bencher: Bencher) {
    parse(bencher, &chunks(|random| event(random, r#""M\u00fcller & S\u00f6hne""#, "")));
}

/// Three keys of each event match no column; one of them holds an object.
#[divan::bench]
fn extra_keys(bencher: Bencher) {
    let extra = r#", "device": {"os": "linux", "version": 5.1}, "session": 123456, "referrer": null"#;
    parse(bencher, &chunks(|random| event(random, "\"Super Mario\"", extra)));
}

/// The records of `pointers`: three values stand in an object.
fn nested_chunks() -> Vec<Chunk> {
    chunks(|random| {
        let text = event(random, "\"Super Mario\"", "");
        let [name, mail, user_type] = ["username", "user_email", "user_type"].map(|key| member(&text, key));
        let actor = format!(r#""actor": {{"name": {name}, "contact": {{"mail": {mail}}}, "type": {user_type}}}, "#);
        let keys = ["username", "user_email", "user_type"].map(|key| format!("\"{key}\": {}, ", member(&text, key)));
        text.replace(&keys.concat(), &actor)
    })
}

/// The string of a key, with its quotes.
fn member<'t>(event: &'t str, key: &str) -> &'t str {
    let start = event.find(&format!("\"{key}\": ")).expect("an event has the key") + key.len() + 4;
    let end = event[start + 1..].find('"').expect("it is a string") + start + 2;
    &event[start..end]
}

/// Three columns take their values by JSON Pointers from inside of objects.
#[divan::bench]
fn pointers(bencher: Bencher) {
    parse_into(bencher, &nested_chunks(), nested_events());
}

/// The same records without pointers: the object stays in `_extra`.
#[divan::bench]
fn pointers_without(bencher: Bencher) {
    parse(bencher, &nested_chunks());
}
