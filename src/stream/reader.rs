//! Reader: reads claimed files one after the other, and splits them into chunks of whole records. Reading blocks, so it has its
//! own thread. The actor only passes the files to this thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use actix::{Actor, Context, Handler};

use super::drain::Close;
use super::faults::{Faults, StageWatch};
use super::protocol::ReadFile;
use crate::error::io_text;
use crate::inbox::{CannotRead, Claim};
use crate::record::chunk::Chunk;
use crate::record::decompress::decompress;
use crate::record::split::{SplitError, Splitter};
use crate::transport::Outlet;
use crate::transport::budget::{Budget, footprint};
use crate::transport::piece::{Content, FileEnd, Load, Piece};
use crate::vitals::Stage;

/// The actor: receives files from the intake.
pub struct Reader {
    /// `None` when no more files will come.
    files: Option<crossbeam_channel::Sender<Claim>>,
    _watch: StageWatch,
}

/// What the reader's thread needs.
pub struct FileReader {
    pub outlet: Outlet,
    pub budget: Budget,
    /// Set when the run ends: the current chunk is the last one.
    pub stop: Arc<AtomicBool>,
    /// The limit for [`decompress`].
    pub zstd_window_mib: u32,
    pub stage: Stage,
}

impl Reader {
    /// Starts the thread. It ends after a [`Close`]; if `stop` is set, it ends after the current chunk.
    ///
    /// # Errors
    /// If the operating system cannot start a thread.
    pub fn new(reader: FileReader, faults: &Faults) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (files, claimed) = crossbeam_channel::unbounded::<Claim>();
        let watch = faults.watch("reader's thread");
        let thread = std::thread::Builder::new().name("reader".to_owned()).spawn(move || {
            for claim in claimed {
                reader.stage.busy();
                let read = reader.read(&claim);
                reader.stage.idle();
                if let Err(Stopped) = read {
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
            // The thread ends before the actor only if the run ends.
            drop(files.send(claim));
        }
    }
}

impl Handler<Close> for Reader {
    type Result = ();

    fn handle(&mut self, _: Close, _: &mut Self::Context) {
        self.files = None;
    }
}

/// The run ends. The current file stays claimed.
struct Stopped;

/// A file that has crashed the process this often is failed, to avoid an endless loop of crashes.
const MAX_CRASHES: u64 = 3;

impl FileReader {
    fn read(&self, claim: &Claim) -> Result<(), Stopped> {
        let load = Arc::new(Load { key: claim.key, dataset: Arc::clone(&claim.dataset), source: claim.source.clone() });
        if let Some(error) = cannot_start(claim) {
            return self.end(claim, &load, FileEnd { records: 0, bytes: 0, error: Some(error) });
        }
        let mut passed = 0;
        loop {
            let (end, last) = self.cut(claim, &load, &mut passed)?;
            // Where the text ends inside a record, its writer may still be writing. The file is then read again from the
            // beginning, and the chunks that were passed on are skipped. The last chunk was not passed on, as it may be
            // incomplete.
            if end.error.is_some() && !self.stop.load(Ordering::Relaxed) && claim.more_coming().unwrap_or(false) {
                continue;
            }
            if let Some(chunk) = last.filter(|last| last.seq >= passed) {
                self.pass_chunk(&load, chunk)?;
            }
            return self.end(claim, &load, end);
        }
    }

    /// Reads the file to its end, and passes on all chunks from number `passed` on, except the last one. Returns the totals and
    /// this last chunk. `passed` counts the chunks passed on.
    fn cut(&self, claim: &Claim, load: &Arc<Load>, passed: &mut u64) -> Result<(FileEnd, Option<Chunk>), Stopped> {
        let failed = |error: String| FileEnd { records: 0, bytes: 0, error: Some(error) };
        let mut splitter = match decompress(claim.open(), self.zstd_window_mib) {
            Ok(text) => Splitter::new(text),
            Err(error) => return Ok((failed(cannot_read(&error)), None)),
        };
        let mut last: Option<Chunk> = None;
        let error = loop {
            match splitter.next_chunk() {
                Ok(Some(chunk)) => {
                    let Some(chunk) = last.replace(chunk).filter(|before| before.seq >= *passed) else { continue };
                    *passed = chunk.seq + 1;
                    self.pass_chunk(load, chunk)?;
                }
                Ok(None) => break None,
                Err(SplitError::Io(error)) => break Some(cannot_read(&error)),
                Err(boundary) => break Some(boundary.to_string()),
            }
        };
        Ok((FileEnd { records: splitter.records(), bytes: splitter.bytes(), error }, last))
    }

    fn pass_chunk(&self, load: &Arc<Load>, chunk: Chunk) -> Result<(), Stopped> {
        let bytes = footprint(&chunk, &load.dataset);
        self.pass(load, Content::Chunk(chunk), bytes)
    }

    fn end(&self, claim: &Claim, load: &Arc<Load>, end: FileEnd) -> Result<(), Stopped> {
        // This end decides the result of the file at once, so everything in flight must be durable first. What an earlier
        // reading left in the ledger must not count.
        if end.error.is_some() || claim.is_read_again() {
            self.stage.idle();
            self.budget.wait_until_all_is_free();
        }
        if self.stop.load(Ordering::Relaxed) {
            return Err(Stopped);
        }
        self.pass(load, Content::End(end), END_BYTES)
    }

    fn pass(&self, load: &Arc<Load>, content: Content, bytes: usize) -> Result<(), Stopped> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Stopped);
        }
        // While there is no room, the stages after this one are at work.
        self.stage.idle();
        let receipt = self.budget.take(bytes);
        let passed = self.outlet.pass(Piece { load: Arc::clone(load), content, receipt });
        self.stage.busy();
        self.stage.progress();
        passed.map_err(|_| Stopped)
    }
}

/// Why the file cannot even be opened.
fn cannot_start(claim: &Claim) -> Option<String> {
    match claim.crashes() {
        Ok(crashes) if crashes >= MAX_CRASHES => {
            Some(format!("the program crashed {MAX_CRASHES} times while it worked on this file"))
        }
        Ok(_) => None,
        Err(error) => Some(error.to_string()),
    }
}

fn cannot_read(error: &std::io::Error) -> String {
    match error.get_ref() {
        Some(place) if place.is::<CannotRead>() => format!("cannot read the file {place}"),
        _ => format!("cannot read the file: {}", io_text(error)),
    }
}

/// The budget that an end takes. It is small, but there can be many of them.
const END_BYTES: usize = 256;
