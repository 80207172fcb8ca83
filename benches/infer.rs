//! Measures how fast `dataloader infer` looks at records, on one thread, in bytes of text per second. The text is in memory.

use dataloader::commands::generate::generate;
use dataloader::infer::profile::Profiler;
use dataloader::infer::proposal::propose;
use dataloader::record::split::Splitter;
use divan::counter::BytesCount;
use divan::{Bencher, black_box};

fn main() {
    divan::main();
}

const EVENTS: u64 = 200_000;

/// An array, as `dataloader generate` writes it.
fn array() -> String {
    let mut text = Vec::new();
    generate(EVENTS, 1, &mut text).expect("memory takes everything");
    String::from_utf8(text).expect("the events are UTF-8")
}

fn infer(bencher: Bencher, text: &str, flattens: bool) {
    bencher.counter(BytesCount::of_str(text)).bench(|| {
        let mut profiler = Profiler::new(flattens);
        let mut splitter = Splitter::new(black_box(text.as_bytes()));
        while let Some(chunk) = splitter.next_chunk().expect("the text is valid") {
            profiler.add(0, &chunk, u64::MAX).expect("it fits into memory");
        }
        let profile = profiler.finish().expect("it fits into memory");
        assert_eq!(profile.loadable(), EVENTS);
        black_box(propose(&profile, "events", flattens).expect("it fits into memory"))
    });
}

#[divan::bench]
fn events_array(bencher: Bencher) {
    infer(bencher, &array(), false);
}

#[divan::bench]
fn events_ndjson(bencher: Bencher) {
    infer(bencher, &array().replace("},\n", "}\n").replace(['[', ']'], ""), false);
}

/// Each event in an object of its own, whose members become columns.
#[divan::bench]
fn nested_events_flattened(bencher: Bencher) {
    infer(bencher, &array().replace("{\"", "{\"event\":{\"").replace('}', "}}"), true);
}
