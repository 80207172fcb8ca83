//! Inputs that nobody wrote by hand: made of the corpus in `tests/corpus/` by damage, or of the tokens of a format.
//!
//! `./run.sh test` tries some, `./run.sh fuzz MINUTES` as many as the time allows. A failure names its seed, which repeats it. Its
//! input, made as small as possible, is written into the corpus, and every later run tries it first.

pub mod records; // texts of records

use std::path::PathBuf;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{RngAlgorithm, TestCaseResult, TestError, TestRng, TestRunner};
use twox_hash::XxHash3_128;

/// How many inputs a seed makes.
const INPUTS: u32 = 500;

/// What inputs are made for.
pub struct Target {
    /// The name of the directory of its corpus.
    pub corpus: &'static str,
    /// What inputs of this format consist of, odd ones included.
    pub tokens: &'static [&'static [u8]],
}

impl Target {
    /// Tries the property with the corpus, and with inputs that are made of it, of the tokens, and by `made`.
    ///
    /// # Panics
    /// If the property does not hold for an input, or panics.
    pub fn hold(&self, made: BoxedStrategy<Vec<u8>>, property: impl Fn(&[u8]) -> TestCaseResult) {
        let mut corpus = Vec::new();
        for path in self.files() {
            let input = std::fs::read(&path).expect("the corpus is readable");
            println!("{}", path.display());
            property(&input).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            corpus.push(input);
        }
        let inputs = self.inputs(corpus, made);
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let minutes = number("FUZZ_MINUTES");
        let until = Instant::now() + Duration::from_secs(60 * minutes.unwrap_or(0));
        loop {
            // The suite tries the same inputs each time: what it says is about the change, not about luck.
            let any = || if minutes.is_some() { uuid::Uuid::new_v4().as_u64_pair().0 } else { 1 };
            let seed = number("FUZZ_SEED").unwrap_or_else(any);
            self.try_seed(seed, &inputs, &property);
            if Instant::now() >= until {
                return;
            }
        }
    }

    fn try_seed(&self, seed: u64, inputs: &BoxedStrategy<Vec<u8>>, property: &impl Fn(&[u8]) -> TestCaseResult) {
        let config = ProptestConfig { cases: INPUTS, failure_persistence: None, max_shrink_iters: 20_000, ..Default::default() };
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
        let found = runner.run(inputs, |input| property(&input));
        if let Err(TestError::Fail(reason, input)) = found {
            let file = self.directory().join(format!("found-{:032x}", XxHash3_128::oneshot(&input)));
            std::fs::write(&file, &input).expect("the corpus is writable");
            let shown = input.escape_ascii();
            panic!("FUZZ_SEED={seed}: {reason}\nthe input is now {}: {shown:.2000}", file.display());
        }
        found.expect("no input is refused");
    }

    fn directory(&self) -> PathBuf {
        [env!("CARGO_MANIFEST_DIR"), "tests", "corpus", self.corpus].iter().collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.directory()).expect("every target has a corpus");
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.sort();
        files
    }

    fn inputs(&self, corpus: Vec<Vec<u8>>, made: BoxedStrategy<Vec<u8>>) -> BoxedStrategy<Vec<u8>> {
        let known = select(self.tokens.to_vec()).prop_map(<[u8]>::to_vec);
        let token = prop_oneof![8 => known, 1 => vec(any::<u8>(), 1..4)].boxed();
        let edits = vec((any::<Index>(), any::<Index>(), 0..5_u8, token.clone()), 0..6);
        let sound = prop_oneof![2 => select(corpus), 3 => made];
        let damaged = (sound.clone(), edits).prop_map(|(mut input, edits)| {
            edits.iter().for_each(|edit| damage(&mut input, edit));
            input
        });
        let spliced = (sound.clone(), sound.clone(), any::<Index>(), any::<Index>()).prop_map(|(one, other, end, start)| {
            [&one[..end.index(one.len() + 1)], &other[start.index(other.len() + 1)..]].concat()
        });
        let tokens = vec(token, 0..60).prop_map(|tokens| tokens.concat());
        prop_oneof![3 => sound, 5 => damaged, 1 => spliced, 2 => tokens, 1 => vec(any::<u8>(), 0..60)].boxed()
    }
}

fn damage(input: &mut Vec<u8>, (at, end, kind, token): &(Index, Index, u8, Vec<u8>)) {
    const LONGEST: usize = 64;
    let at = at.index(input.len() + 1);
    let end = at + end.index(LONGEST.min(input.len() - at) + 1);
    match kind {
        0 => drop(input.splice(at..at, token.iter().copied())),
        1 => drop(input.splice(at..end, token.iter().copied())),
        2 => drop(input.drain(at..end)),
        3 => drop(input.splice(at..at, input[at..end].to_vec())),
        _ => {
            let token_end = input.len().min(at + token.len());
            drop(input.splice(at..token_end, token.iter().copied()));
        }
    }
}
