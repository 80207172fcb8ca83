//! Measures the speed of the splitter, in bytes of text per second. The text is in memory.

use std::fmt::Write;
use std::io::{self, Read};

use dataloader::record::chunk::Framing;
use dataloader::record::split::{Splitter, split_text};
use divan::counter::BytesCount;
use divan::{Bencher, black_box};

fn main() {
    divan::main();
}

const EVENTS: usize = 100_000;

fn event(text: &mut String, i: usize) {
    let user = i.wrapping_mul(7_919) % 20_000;
    write!(
        text,
        r#"{{"id": "{:032x}", "event_type": "User Updated", "username": "user {user}", "user_email": "user{user}@example.com", "user_type": "Admin", "organization_name": "Müller & Söhne", "plan_name": null, "received_at": "2020-12-{:02} {:02}:03:16.{:06}"}}"#,
        user as u128 * 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835,
        i % 28 + 1,
        i % 24,
        i * 31 % 1_000_000,
    )
    .expect("a string takes everything");
}

fn array() -> String {
    let mut text = String::from("[\n");
    for i in 0..EVENTS {
        text.push_str(if i == 0 { "  " } else { ",\n  " });
        event(&mut text, i);
    }
    text.push_str("\n]\n");
    text
}

fn ndjson() -> String {
    let mut text = String::new();
    for i in 0..EVENTS {
        event(&mut text, i);
        text.push('\n');
    }
    text
}

/// The array with white space between all tokens, as an editor would indent it.
fn indented() -> String {
    array().replace("{\"", "{\n    \"").replace(", \"", ",\n    \"").replace("},", "\n  },")
}

fn split(bencher: Bencher, text: &str, records: u64) {
    bencher.counter(BytesCount::of_str(text)).bench(|| {
        let mut splitter = Splitter::new(black_box(text.as_bytes()));
        while let Some(chunk) = splitter.next_chunk().expect("the text is valid") {
            black_box(chunk);
        }
        assert_eq!(splitter.records(), records);
    });
}

#[divan::bench]
fn events_array(bencher: Bencher) {
    split(bencher, &array(), EVENTS as u64);
}

#[divan::bench]
fn events_array_indented(bencher: Bencher) {
    split(bencher, &indented(), EVENTS as u64);
}

#[divan::bench]
fn events_ndjson(bencher: Bencher) {
    split(bencher, &ndjson(), EVENTS as u64);
}

/// The text of a chunk, as a consumer receives it.
#[divan::bench(args = [Framing::Array, Framing::Stream])]
fn chunk_text(bencher: Bencher, framing: Framing) {
    let text = match framing {
        Framing::Array => array().trim_end().trim_matches(['[', ']']).trim().to_owned(),
        Framing::Stream => ndjson().trim_end().to_owned(),
    };
    bencher
        .counter(BytesCount::of_str(&text))
        .with_inputs(|| text.clone().into_bytes())
        .bench_values(|text| split_text(text, framing, 0, 1, 0).expect("the text is valid"));
}

/// One string of 256 MiB. It is too large, and is skipped in constant memory.
#[divan::bench(args = [Framing::Array, Framing::Stream], sample_count = 5)]
fn one_huge_line(bencher: Bencher, framing: Framing) {
    const BYTES: u64 = 256 << 20;
    let (head, tail) = match framing {
        Framing::Array => (&b"[\""[..], &b"\"]"[..]),
        Framing::Stream => (&b"{\"a\":\""[..], &b"\"}"[..]),
    };
    bencher.counter(BytesCount::new(BYTES)).bench(|| {
        let mut splitter = Splitter::new(head.chain(io::repeat(b'x').take(BYTES)).chain(tail));
        while let Some(chunk) = splitter.next_chunk().expect("the text is valid") {
            black_box(chunk);
        }
        assert_eq!(splitter.records(), 1);
    });
}
