//! Reader: reads claimed files one after the other, and splits them into chunks of whole records. Reading blocks, so it has its
//! own thread. The actor only passes the files to this thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use actix::{Actor, Context, Handler};

use super::drain::Close;
use super::faults::{Faults, StageWatch};
use super::protocol::ReadFile;
use super::stats::Stats;
use crate::error::io_text;
use crate::host;
use crate::inbox::{CannotRead, Claim};
use crate::record::chunk::Chunk;
use crate::record::content::{ContentHash, Hashing};
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
    /// Counts the bytes that are passed on, in a process that does not see them committed.
    pub published: Option<Arc<Stats>>,
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
            return self.end(claim, &load, end_of(0, 0, Some(error), None));
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
        let (stored, seen) = Hashing::new(claim.open());
        let mut splitter = match decompress(stored, self.zstd_window_mib) {
            Ok(text) => Splitter::new(text),
            Err(error) => return Ok((end_of(0, 0, Some(cannot_read(&error)), None), None)),
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
        Ok((end_of(splitter.records(), splitter.bytes(), error, seen.hash()), last))
    }

    fn pass_chunk(&self, load: &Arc<Load>, chunk: Chunk) -> Result<(), Stopped> {
        let bytes = footprint(&chunk, &load.dataset);
        let (records, text) = (chunk.records(), chunk.bytes());
        self.pass(load, Content::Chunk(chunk), bytes)?;
        self.stage.handled(records);
        if let Some(stats) = self.published.as_ref().and_then(|stats| stats.of(&load.dataset.name)) {
            stats.bytes.fetch_add(text as u64, Ordering::Relaxed);
        }
        Ok(())
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

/// The end of a file that was read here.
fn end_of(records: u64, bytes: u64, error: Option<String>, sha256: Option<ContentHash>) -> FileEnd {
    FileEnd { records, bytes, error, sha256, host: Some(host::name().to_owned()) }
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

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write;
    use std::time::Duration;

    use tempfile::TempDir;
    use tokio::runtime::{Builder, Runtime};

    use super::*;
    use crate::dataset::Dataset;
    use crate::inbox::Inbox;
    use crate::record::chunk::CHUNK_RECORDS;
    use crate::record::content::hash_to_end;
    use crate::vitals::Vitals;

    const BUDGET: usize = 64 << 20;

    /// A reader of the files of an inbox, and the pieces that it passes on.
    struct Sandbox {
        root: TempDir,
        inbox: Inbox,
        reader: FileReader,
        pieces: crossbeam_channel::Receiver<Piece>,
        _runtime: Runtime,
    }

    impl Sandbox {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let dataset = Dataset::without_columns("events");
            let stage = Vitals::default().stage("reader");
            let inbox = Inbox::open(root.path(), &[Arc::new(dataset)], Duration::from_millis(1), &stage).unwrap();
            let runtime = Builder::new_current_thread().build().unwrap();
            let budget = {
                let _entered = runtime.enter();
                Budget::new(BUDGET)
            };
            let (outlet, pieces) = crossbeam_channel::unbounded();
            let outlet = Outlet::Parsers(outlet);
            let reader = FileReader { outlet, budget, stop: Arc::default(), zstd_window_mib: 8, stage, published: None };
            Self { root, inbox, reader, pieces, _runtime: runtime }
        }

        /// Claims a file that its writer has closed.
        fn claim(&self, text: &str) -> Claim {
            let path = self.root.path().join("events/x.json");
            std::fs::write(&path, text).unwrap();
            let mut candidate = self.inbox.look(&path).unwrap();
            candidate.complete = true;
            self.inbox.claim(&candidate).unwrap().unwrap()
        }

        /// Appends to a claimed file.
        fn append(&self, claim: &Claim, text: &str) {
            let path = self.root.path().join(format!("events/.loading/{}-x.json", claim.key));
            OpenOptions::new().append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
        }

        /// The numbers and records of the chunks that were passed on and are now durable, and the end if there is one.
        fn passed(&self) -> (Vec<(u64, u64)>, Option<FileEnd>) {
            let (mut chunks, mut end) = (Vec::new(), None);
            for piece in self.pieces.try_iter() {
                assert!(end.is_none(), "nothing follows the end");
                match piece.content {
                    Content::Chunk(chunk) => chunks.push((chunk.seq, chunk.records())),
                    Content::End(found) => end = Some(found),
                    Content::Foreign(_) => panic!("a file holds no messages"),
                }
            }
            (chunks, end)
        }
    }

    fn hash_of(text: &str) -> ContentHash {
        hash_to_end(text.as_bytes(), |_| true).unwrap().unwrap()
    }

    /// The text of this many records. The last one has no line end.
    fn records(count: usize) -> String {
        vec!["{}"; count].join("\n")
    }

    #[test]
    fn a_file_is_passed_on_in_its_chunks_and_then_its_end() {
        let sandbox = Sandbox::new();
        let text = records(2 * CHUNK_RECORDS + 1);
        assert!(sandbox.reader.read(&sandbox.claim(&text)).is_ok());
        let end = end_of(2_001, text.len() as u64, None, Some(hash_of(&text)));
        assert_eq!(sandbox.passed(), (vec![(0, 1_000), (1, 1_000), (2, 1)], Some(end)));
        assert_eq!(sandbox.reader.budget.taken(), 0);
    }

    #[test]
    fn a_file_without_records_is_only_an_end() {
        let sandbox = Sandbox::new();
        assert!(sandbox.reader.read(&sandbox.claim("[]")).is_ok());
        assert_eq!(sandbox.passed(), (vec![], Some(end_of(0, 2, None, Some(hash_of("[]"))))));
    }

    #[test]
    fn what_a_cut_off_file_holds_is_passed_on_and_its_end_says_why_it_failed() {
        let sandbox = Sandbox::new();
        let claim = sandbox.claim(&(records(CHUNK_RECORDS + 5) + "\n{\"a\":"));
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| sandbox.reader.read(&claim));
            // An end with an error waits until these chunks are durable.
            let (first, last) = (sandbox.pieces.recv().unwrap(), sandbox.pieces.recv().unwrap());
            let early = sandbox.pieces.recv_timeout(Duration::from_millis(50));
            assert!(early.is_err(), "chunks are in flight: {early:?}");
            let seq = |piece: &Piece| match &piece.content {
                Content::Chunk(chunk) => (chunk.seq, chunk.records()),
                other => panic!("{other:?}"),
            };
            assert_eq!((seq(&first), seq(&last)), ((0, 1_000), (1, 5)));
            drop((first, last));
            assert!(reading.join().unwrap().is_ok());
        });
        let end = sandbox.passed().1.unwrap();
        assert_eq!(end.records, 1_005);
        assert!(end.error.is_some() && end.sha256.is_some(), "its end was seen: {end:?}");
    }

    #[test]
    fn a_file_that_grew_while_it_was_read_is_passed_on_once() {
        let sandbox = Sandbox::new();
        let before = records(CHUNK_RECORDS + 5) + "\n{\"a\":";
        let claim = sandbox.claim(&before);
        let load = Arc::new(Load { key: claim.key, dataset: Arc::clone(&claim.dataset), source: claim.source.clone() });
        let mut passed = 0;
        let Ok((end, last)) = sandbox.reader.cut(&claim, &load, &mut passed) else { panic!("the run does not end") };
        assert!(end.error.is_some());
        assert_eq!(last.map(|last| (last.seq, last.records())), Some((1, 5)), "it may go on: it is held back");
        assert_eq!((passed, sandbox.passed().0), (1, vec![(0, 1_000)]));

        let more = format!("1}}\n{}", records(CHUNK_RECORDS));
        sandbox.append(&claim, &more);
        let Ok((end, last)) = sandbox.reader.cut(&claim, &load, &mut passed) else { panic!("the run does not end") };
        assert_eq!((end.records, end.error), (2_006, None));
        assert_eq!(end.sha256, Some(hash_of(&(before + &more))), "of all of it");
        assert_eq!(last.map(|last| (last.seq, last.records())), Some((2, 6)));
        assert_eq!((passed, sandbox.passed().0), (2, vec![(1, 1_000)]), "the first chunk was passed on before");
    }

    #[test]
    fn nothing_is_passed_on_after_the_stop() {
        let sandbox = Sandbox::new();
        sandbox.reader.stop.store(true, Ordering::Relaxed);
        assert!(sandbox.reader.read(&sandbox.claim(&records(1))).is_err());
        assert_eq!(sandbox.passed(), (vec![], None));
    }

    #[test]
    fn a_file_that_has_crashed_the_program_three_times_is_not_read() {
        let sandbox = Sandbox::new();
        let claim = sandbox.claim("{}");
        for _ in 0..2 {
            claim.record_crash().unwrap();
        }
        assert_eq!(cannot_start(&claim), None);
        claim.record_crash().unwrap();
        assert!(sandbox.reader.read(&claim).is_ok());
        let (chunks, end) = sandbox.passed();
        assert_eq!((chunks, claim.bytes_read()), (vec![], 0));
        assert!(end.unwrap().error.unwrap().contains("crashed 3 times"));
    }
}
