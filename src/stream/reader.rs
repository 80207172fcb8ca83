//! Reader: reads claimed files, one after the other, and cuts chunks of whole records. The work is blocking, so it has a
//! thread of its own; the actor only hands it the files.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use actix::{Actor, Context, Handler, Message};

use super::faults::{Faults, StageWatch};
use super::protocol::ReadFile;
use crate::dataset::Dataset;
use crate::error::io_text;
use crate::inbox::Claim;
use crate::record::chunk::Chunk;
use crate::record::decompress::decompress;
use crate::record::split::{SplitError, Splitter};
use crate::transport::Outlet;
use crate::transport::budget::Budget;
use crate::transport::piece::{Content, FileEnd, Load, Piece};

/// The actor: takes files from the inbox.
pub struct Reader {
    /// `None` once no more files come.
    files: Option<crossbeam_channel::Sender<Claim>>,
    _watch: StageWatch,
}

impl Reader {
    /// Starts the thread; it ends after a [`Close`], with the chunk in work when `stop` is set.
    ///
    /// # Errors
    /// If the operating system gives no thread.
    pub fn new(outlet: Outlet, budget: Budget, stop: Arc<AtomicBool>, faults: &Faults) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (files, claimed) = crossbeam_channel::unbounded::<Claim>();
        let watch = faults.watch("reader's thread");
        let thread = std::thread::Builder::new().name("reader".to_owned()).spawn(move || {
            for claim in claimed {
                if read(&claim, &outlet, &budget, &stop) == Reading::Stopped {
                    break;
                }
            }
            watch.end();
        })?;
        Ok((Self { files: Some(files), _watch: faults.watch("reader") }, thread))
    }
}

impl Actor for Reader {
    type Context = Context<Self>;
}

impl Handler<ReadFile> for Reader {
    type Result = ();

    fn handle(&mut self, ReadFile(claim): ReadFile, _: &mut Self::Context) {
        if let Some(files) = &self.files {
            // The thread ends before the actor only when the run does.
            drop(files.send(claim));
        }
    }
}

/// No more files come.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Close;

impl Handler<Close> for Reader {
    type Result = ();

    fn handle(&mut self, _: Close, _: &mut Self::Context) {
        self.files = None;
    }
}

/// What became of a file in the reader.
#[derive(Debug, PartialEq, Eq)]
enum Reading {
    Ended,
    /// The run ends; the file stays claimed.
    Stopped,
}

/// A file that made the process crash this often fails: trying on would never end.
const MAX_CRASHES: u64 = 3;

fn read(claim: &Claim, outlet: &Outlet, budget: &Budget, stop: &AtomicBool) -> Reading {
    let load = Arc::new(Load { key: claim.key, dataset: Arc::clone(&claim.dataset), source: claim.source.clone() });
    let pass = |content: Content, bytes: usize| {
        if stop.load(Ordering::Relaxed) {
            return Reading::Stopped;
        }
        let receipt = budget.take(bytes);
        match outlet.pass(Piece { load: Arc::clone(&load), content, receipt }) {
            Ok(()) => Reading::Ended,
            Err(_) => Reading::Stopped,
        }
    };
    let failed = |error: String, bytes: u64, records: u64, chunks: u64| FileEnd { chunks, records, bytes, error: Some(error) };
    let cannot_start = match claim.crashes() {
        Ok(crashes) if crashes >= MAX_CRASHES => {
            Some(format!("the program crashed {MAX_CRASHES} times while it worked on this file"))
        }
        Ok(_) => None,
        Err(error) => Some(error.to_string()),
    };
    if let Some(error) = cannot_start {
        return pass(Content::End(failed(error, 0, 0, 0)), END_BYTES);
    }
    let mut passed = 0;
    loop {
        let mut last: Option<Chunk> = None;
        let mut splitter = match decompress(claim.open()) {
            Ok(text) => Ok(Splitter::new(text)),
            Err(error) => Err(failed(cannot_read(&error), 0, 0, 0)),
        };
        let end = loop {
            let splitter = match &mut splitter {
                Ok(splitter) => splitter,
                Err(failed) => break failed.clone(),
            };
            let next = splitter.next_chunk();
            let (bytes, records, chunks) = (splitter.bytes(), splitter.records(), splitter.chunks());
            match next {
                Ok(Some(chunk)) => {
                    let Some(chunk) = last.replace(chunk).filter(|before| before.seq >= passed) else { continue };
                    passed = chunk.seq + 1;
                    let bytes = footprint(&chunk, &claim.dataset);
                    if pass(Content::Chunk(chunk), bytes) == Reading::Stopped {
                        return Reading::Stopped;
                    }
                }
                Ok(None) => break FileEnd { chunks, records, bytes, error: None },
                Err(SplitError::Io(error)) => break failed(cannot_read(&error), bytes, records, chunks),
                Err(boundary) => break failed(boundary.to_string(), bytes, records, chunks),
            }
        };
        // Where the text breaks off its writer may go on. It is then read again from the beginning, without what was passed;
        // the last chunk was not, as it may have been cut short.
        if end.error.is_some() && !stop.load(Ordering::Relaxed) && claim.more_coming().unwrap_or(false) {
            continue;
        }
        if let Some(chunk) = last.filter(|last| last.seq >= passed) {
            let bytes = footprint(&chunk, &claim.dataset);
            if pass(Content::Chunk(chunk), bytes) == Reading::Stopped {
                return Reading::Stopped;
            }
        }
        return pass(Content::End(end), END_BYTES);
    }
}

fn cannot_read(error: &std::io::Error) -> String {
    format!("cannot read the file: {}", io_text(error))
}

/// What a chunk takes in memory until it is durable: its text, and its rows beside it. Small records become rows of many times
/// their size.
fn footprint(chunk: &Chunk, dataset: &Dataset) -> usize {
    /// What a value of a row takes beside its text, at most.
    const VALUE_BYTES: usize = 64;
    let values = chunk.records() * (dataset.columns.len() as u64 + 1);
    2 * chunk.bytes() + usize::try_from(values).unwrap_or(usize::MAX / 2 / VALUE_BYTES) * VALUE_BYTES
}

/// What an end takes of the budget: it is small, and there can be many.
const END_BYTES: usize = 256;
