//! Properties that hold for any text: valid, damaged or random.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use super::*;

/// The default limits with a small window, which makes tests of many short texts faster.
const DEFAULT: Limits = Limits { window_bytes: 64, ..Limits::DEFAULT };

#[track_caller]
fn records(text: &str) -> Vec<String> {
    let (records, error) = records_with(text.as_bytes(), DEFAULT);
    assert_eq!(error, None, "after {records:?}");
    records
}

/// Returns the text in pieces of these sizes, repeated.
struct Sliced<'a> {
    text: &'a [u8],
    sizes: Vec<usize>,
    turn: usize,
}

impl Read for Sliced<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let size = self.sizes[self.turn % self.sizes.len()];
        self.turn += 1;
        let n = size.min(buf.len()).min(self.text.len());
        buf[..n].copy_from_slice(&self.text[..n]);
        self.text = &self.text[n..];
        Ok(n)
    }
}

/// JSON values of all kinds as text; some exceed the small limits.
fn value() -> impl Strategy<Value = String> {
    let string = prop_oneof!["\"([a-z]|[,:\\[\\]{} ]|\\\\\"|\\\\\\\\|\\\\n|\\\\u00e9|é){0,12}\"", "\"[a-z]{20,50}\"",];
    let leaf = prop_oneof![
        3 => string,
        1 => Just("null".to_string()),
        1 => Just("true".to_string()),
        1 => any::<i32>().prop_map(|n| n.to_string()),
        1 => (any::<i16>(), 0..100u8, -9..9i8).prop_map(|(a, b, c)| format!("{a}.{b}e{c}")),
    ];
    leaf.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            (vec(inner.clone(), 0..3), space()).prop_map(|(v, s)| format!("[{s}{}{s}]", v.join(","))),
            (vec(("[a-z]{0,3}", inner), 0..3), space()).prop_map(|(v, s)| format!(
                "{{{s}{}}}",
                v.iter().map(|(k, v)| format!("\"{k}\":{s}{v}")).collect::<Vec<_>>().join(",")
            )),
        ]
    })
}

fn space() -> impl Strategy<Value = String> {
    prop_oneof![3 => Just(String::new()), 2 => Just(" ".to_string()), 1 => "[ \t\r\n]{1,4}", 1 => Just(" ".repeat(60))]
}

fn array_of(values: &[String], spaces: &[String]) -> String {
    let s = |i: usize| spaces[i % spaces.len()].as_str();
    let elements: Vec<String> = values.iter().enumerate().map(|(i, v)| format!("{}{v}{}", s(i), s(i + 1))).collect();
    format!("{}[{}]{}", s(0), elements.join(","), s(1))
}

/// `{}` followed by the values, separated by white space where necessary.
fn stream_of(values: &[String], spaces: &[String]) -> String {
    let mut text = String::from("{}");
    for (i, value) in values.iter().enumerate() {
        let space = &spaces[i % spaces.len()];
        text.push_str(if space.is_empty() && !value.starts_with(['{', '[']) { "\n" } else { space });
        text.push_str(value);
        if !value.ends_with(['}', ']', '"']) {
            text.push(' ');
        }
    }
    text
}

/// Valid texts, texts with a few bytes changed, and texts made of JSON's punctuation.
fn text() -> impl Strategy<Value = Vec<u8>> {
    let valid = (vec(value(), 0..12), vec(space(), 1..4), any::<bool>(), any::<bool>()).prop_map(|(values, spaces, array, bom)| {
        let text = if array { array_of(&values, &spaces) } else { stream_of(&values, &spaces) };
        if bom { format!("\u{feff}{text}").into_bytes() } else { text.into_bytes() }
    });
    let valid = valid.boxed();
    let damage = (any::<prop::sample::Index>(), 0..3u8, prop::sample::select(&b"{}[]\",:\\ \n1e.-x\0\xff"[..]));
    let damaged = (valid.clone(), vec(damage, 1..4)).prop_map(|(mut text, damages)| {
        for (index, kind, byte) in damages {
            let at = index.index(text.len() + 1);
            match kind {
                0 => text.insert(at, byte),
                1 if at < text.len() => text[at] = byte,
                2 if at < text.len() => _ = text.remove(at),
                _ => text.truncate(at),
            }
        }
        text
    });
    let punctuation = (prop::sample::select(&["[", "{}"][..]), vec(prop::sample::select(&b"{}[]\",:\\ \n1e.-"[..]), 0..80))
        .prop_map(|(start, rest)| [start.as_bytes(), &rest].concat());
    prop_oneof![2 => valid, 4 => damaged, 4 => punctuation, 1 => vec(any::<u8>(), 0..60)]
}

/// Reads of any sizes, and a window of any size, give the same chunks.
fn any_cut_is_alike(text: &[u8], sizes: Vec<usize>, window_bytes: usize) -> TestCaseResult {
    let whole = split_with(text, Limits { window_bytes: 1 << 16, ..SMALL });
    let (chunks, error) = drain(&mut Splitter::with_limits(Sliced { text, sizes, turn: 0 }, Limits { window_bytes, ..SMALL }));
    prop_assert_eq!((chunks, error.map(|e| e.to_string())), whole);
    Ok(())
}

/// Every byte is in a record, in a reject, between two of them, or behind the error.
fn accounts_for_every_byte(text: &[u8]) -> TestCaseResult {
    let (chunks, error) = drain(&mut Splitter::with_limits(text, SMALL));
    let mut passed = 0;
    let mut ordinal = 1;
    let between = |to: usize, passed: &mut usize| {
        let gap = &text[*passed..to];
        *passed = to;
        gap.iter().all(|b| is_white_space(*b) || b",[]".contains(b)) || gap.starts_with(BOM)
    };
    for (seq, chunk) in chunks.iter().enumerate() {
        prop_assert_eq!((chunk.seq, chunk.first_ordinal), (seq as u64, ordinal));
        ordinal += chunk.records();
        let start = usize::try_from(chunk.first_byte_offset).unwrap();
        match &chunk.body {
            ChunkBody::Records { text: part, spans, .. } => {
                prop_assert!(part.len() <= SMALL.chunk_bytes && spans.len() <= SMALL.chunk_records);
                prop_assert_eq!((spans[0].start, spans.last().unwrap().end as usize), (0, part.len()));
                prop_assert_eq!(&text[start..start + part.len()], &part[..]);
                for span in spans {
                    prop_assert!(!span.is_empty());
                    prop_assert!(between(start + span.start as usize, &mut passed));
                    passed = start + span.end as usize;
                }
            }
            ChunkBody::Rejects(rejects) => {
                for (i, reject) in rejects.iter().enumerate() {
                    let start = usize::try_from(reject.byte_offset).unwrap();
                    prop_assert_eq!(reject.ordinal, chunk.first_ordinal + i as u64);
                    prop_assert!(between(start, &mut passed));
                    prop_assert_eq!(&text[start..start + reject.record.len()], &reject.record[..]);
                    if reject.reason == RejectReason::TooLarge {
                        prop_assert_eq!(reject.record.len(), SMALL.kept_bytes);
                        let size = reject.detail.split(' ').nth(3).unwrap().parse::<usize>().unwrap();
                        prop_assert!(size > SMALL.record_bytes);
                        passed = start + size;
                    }
                }
            }
        }
    }
    match error {
        None => prop_assert!(between(text.len(), &mut passed)),
        Some(SplitError::Boundary { line, column, byte_offset, .. }) => {
            let at = usize::try_from(byte_offset).unwrap();
            prop_assert!((passed..=text.len()).contains(&at));
            let lines: Vec<&[u8]> = text[..at].split(|b| *b == b'\n').collect();
            prop_assert_eq!((line, column), (lines.len() as u64, lines.last().unwrap().len() as u64 + 1));
        }
        Some(e) => prop_assert!(false, "{}", e),
    }
    Ok(())
}

/// The text of a chunk is enough to find its records.
fn each_chunk_is_found_again(text: &[u8], limits: Limits) -> TestCaseResult {
    for chunk in split_with(text, limits).0 {
        if let ChunkBody::Records { framing, text, .. } = &chunk.body {
            let again = split_text(text.clone(), *framing, chunk.seq, chunk.first_ordinal, chunk.first_byte_offset);
            prop_assert_eq!(again.unwrap(), chunk);
        }
    }
    Ok(())
}

/// All of this for texts that nobody wrote by hand.
mod fuzz {
    use twox_hash::XxHash3_128;

    use super::*;
    use crate::fuzz::records::{RECORDS, records};

    #[test]
    fn any_text_is_cut_alike_and_loses_no_byte() {
        RECORDS.hold(records(), |text| {
            // The input alone decides how it is read, so it repeats a failure.
            let [window, sizes @ ..] = XxHash3_128::oneshot(text).to_le_bytes();
            any_cut_is_alike(text, sizes[..4].iter().map(|size| usize::from(size % 19) + 1).collect(), usize::from(window) + 1)?;
            accounts_for_every_byte(text)?;
            each_chunk_is_found_again(text, SMALL)
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn slicing_and_memory_have_no_influence(text in text(), sizes in vec(1..20usize, 1..5), window_bytes in 1..300usize) {
        any_cut_is_alike(&text, sizes, window_bytes)?;
    }

    #[test]
    fn every_byte_is_accounted_for(text in text()) {
        accounts_for_every_byte(&text)?;
    }

    #[test]
    fn valid_texts_give_back_their_records(values in vec(value(), 0..12), spaces in vec(space(), 1..4)) {
        prop_assert_eq!(records(&array_of(&values, &spaces)), values.clone());
        prop_assert_eq!(records(&stream_of(&values, &spaces))[1..].to_vec(), values.clone());
        // With one value per line, damage in the first line loses only that line.
        let lines = values.iter().map(|v| v.replace(['\r', '\n'], " ") + "\n").collect::<String>();
        let lines_alone = values.iter().map(|v| v.replace(['\r', '\n'], " ")).collect::<Vec<_>>();
        prop_assert_eq!(records(&format!("{{\"cut\": tru\n{lines}{{}}"))[1..lines_alone.len() + 1].to_vec(), lines_alone);
    }

    #[test]
    fn records_before_the_damage_are_kept(values in vec(value(), 1..8), spaces in vec(space(), 1..4), rest in vec(any::<u8>(), 0..20)) {
        let array = array_of(&values, &spaces);
        let closed = array.rfind(']').unwrap();
        for (intact, records) in [(format!("{},", &array[..closed]), values.clone()), (stream_of(&values, &spaces) + "\n", values)] {
            let (found, _) = records_with(&[intact.as_bytes(), &rest].concat(), DEFAULT);
            let skip = usize::from(intact.starts_with("{}"));
            prop_assert!(found.len() >= records.len() + skip);
            prop_assert_eq!(&found[skip..][..records.len()], &records[..]);
        }
    }

    #[test]
    fn a_chunk_is_found_again_in_its_text(text in text(), small in any::<bool>()) {
        each_chunk_is_found_again(&text, if small { SMALL } else { DEFAULT })?;
    }

    #[test]
    fn any_text_of_a_message_is_survived(text in text(), array in any::<bool>()) {
        let framing = if array { Framing::Array } else { Framing::Stream };
        if let Ok(chunk) = split_text(text.clone(), framing, 0, 1, 0) {
            let ChunkBody::Records { text: kept, spans, .. } = chunk.body else { panic!() };
            prop_assert_eq!(kept, text);
            prop_assert!(spans.windows(2).all(|w| w[0].end <= w[1].start));
        }
    }
}
