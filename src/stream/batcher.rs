//! Batcher: gathers parsed pieces into batches that share a transaction. A batch is sent when it is full, or when its oldest
//! piece has waited long enough. While a batch is being written, another one gathers, and is sent when it is full. If the
//! database delays a write for long, the next batch is sent as well, so that it does not wait behind that write.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use actix::{Actor, ActorFutureExt, Addr, AsyncContext, Context, Handler, ResponseActFuture, SpawnHandle, WrapFuture};
use uuid::Uuid;

use super::drain::{Drain, Draining};
use super::faults::{Faults, StageWatch};
use super::protocol::{Batch, ParsedContent, ParsedPiece};
use super::writer::Writer;
use crate::config::StreamSettings;
use crate::error::Error;
use crate::vitals::Stage;

/// Gathers pieces. Pure: it does no input or output.
#[derive(Debug)]
struct Gatherer {
    max_rows: usize,
    max_bytes: usize,
    pieces: Vec<ParsedPiece>,
    rows: usize,
    bytes: usize,
    /// When the oldest piece arrived.
    since: Option<Instant>,
}

impl Gatherer {
    fn new(settings: &StreamSettings) -> Self {
        let (max_rows, max_bytes) = (settings.batch_rows, settings.batch_bytes);
        Self { max_rows, max_bytes, pieces: Vec::new(), rows: 0, bytes: 0, since: None }
    }

    fn add(&mut self, piece: ParsedPiece, now: Instant) {
        let (rows, bytes) = size(&piece);
        self.rows += rows;
        self.bytes += bytes;
        self.since.get_or_insert(now);
        self.pieces.push(piece);
    }

    fn is_full(&self) -> bool {
        self.rows >= self.max_rows || self.bytes >= self.max_bytes
    }

    /// Takes pieces for one batch, the oldest first, and the ends of their loads. The other pieces stay, and keep their age.
    fn take(&mut self) -> Vec<ParsedPiece> {
        let (mut rows, mut bytes) = (0, 0);
        let end = self
            .pieces
            .iter()
            .position(|piece| {
                let is_full = rows >= self.max_rows || bytes >= self.max_bytes;
                let (more_rows, more_bytes) = size(piece);
                rows += more_rows;
                bytes += more_bytes;
                is_full
            })
            .unwrap_or(self.pieces.len());
        let mut rest = self.pieces.split_off(end);
        let mut taken = std::mem::take(&mut self.pieces);
        // The end of a file goes into the batch of its chunks. In a batch of its own it would wait for their commit.
        let loads: HashSet<Uuid> = taken.iter().map(|piece| piece.load.key).collect();
        let is_end = |piece: &mut ParsedPiece| matches!(piece.content, ParsedContent::End(_)) && loads.contains(&piece.load.key);
        taken.extend(rest.extract_if(.., is_end));
        self.pieces = rest;
        let (rows, bytes) = taken.iter().map(size).fold((0, 0), |sum, piece| (sum.0 + piece.0, sum.1 + piece.1));
        self.rows -= rows;
        self.bytes -= bytes;
        if self.pieces.is_empty() {
            self.since = None;
        }
        taken
    }
}

/// Rows and bytes of a piece.
fn size(piece: &ParsedPiece) -> (usize, usize) {
    match &piece.content {
        ParsedContent::Chunk(chunk) | ParsedContent::Foreign { chunk, .. } => (chunk.rows.len(), chunk.bytes),
        ParsedContent::End(_) => (0, 0),
    }
}

/// The longest time that a batch waits for another one to be written.
const HELD_UP: Duration = Duration::from_secs(1);

/// Why a batch is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FlushTrigger {
    Full,
    Interval,
    Drain,
}

/// The actor around the gatherer.
pub struct Batcher {
    gatherer: Gatherer,
    interval: Duration,
    stage: Stage,
    /// How many writers there are.
    writers: usize,
    /// The writers without a batch.
    idle: Vec<Addr<Writer>>,
    /// Fires when the oldest piece has waited long enough.
    timer: Option<SpawnHandle>,
    draining: Draining,
    faults: Faults,
    _watch: StageWatch,
}

impl Batcher {
    /// A batcher that sends its batches to `writers`.
    pub fn new(settings: &StreamSettings, writers: Vec<Addr<Writer>>, stage: Stage, faults: &Faults) -> Self {
        Self {
            gatherer: Gatherer::new(settings),
            interval: settings.batch_interval,
            stage,
            writers: writers.len(),
            idle: writers,
            timer: None,
            draining: Draining::default(),
            faults: faults.clone(),
            _watch: faults.watch("batcher"),
        }
    }

    /// Sends a batch if one is due and a writer is idle. Otherwise sets a timer for the next check, if one is needed.
    fn advance(&mut self, ctx: &mut Context<Self>) {
        if let Some(timer) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        let is_writing = self.idle.len() < self.writers;
        let Some(since) = self.gatherer.since else {
            if !is_writing {
                self.draining.done();
            }
            return;
        };
        let trigger = if self.gatherer.is_full() {
            FlushTrigger::Full
        } else if self.draining.is_asked() && !is_writing {
            FlushTrigger::Drain
        } else {
            let longest = if is_writing { self.interval.max(HELD_UP) } else { self.interval };
            let left = longest.saturating_sub(since.elapsed());
            if !left.is_zero() {
                self.timer = Some(ctx.run_later(left, |batcher, ctx| batcher.advance(ctx)));
                return;
            }
            FlushTrigger::Interval
        };
        let Some(writer) = self.idle.pop() else { return };
        let pieces = self.gatherer.take();
        tracing::trace!(?trigger, pieces = pieces.len(), "batch");
        let written = writer.send(Batch { pieces }).into_actor(self).map(|answer, batcher, ctx| match answer {
            Ok(()) => {
                batcher.idle.push(writer);
                batcher.advance(ctx);
            }
            Err(_) => batcher.faults.report(Error::failed("a writer is gone")),
        });
        ctx.spawn(written);
    }
}

impl Actor for Batcher {
    type Context = Context<Self>;
}

impl Handler<ParsedPiece> for Batcher {
    type Result = ();

    fn handle(&mut self, piece: ParsedPiece, ctx: &mut Self::Context) {
        let (records, _) = size(&piece);
        let stage = self.stage.clone();
        let _work = stage.works_on(records as u64);
        self.gatherer.add(piece, Instant::now());
        self.advance(ctx);
    }
}

impl Handler<Drain> for Batcher {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) -> Self::Result {
        let drained = self.draining.begin();
        self.advance(ctx);
        drained
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;
    use crate::config::{Config, Settings};
    use crate::record::chunk::{Chunk, ChunkBody};
    use crate::record::parse::Parsed;
    use crate::store::Dialect;
    use crate::stream::protocol::ParsedChunk;
    use crate::transport::piece::{FileEnd, Load, Receipt};

    fn gatherer() -> Gatherer {
        Gatherer::new(&StreamSettings { batch_bytes: 100, ..StreamSettings::default() })
    }

    fn loads(count: u64) -> Vec<Arc<Load>> {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("dataloader.toml");
        let config = Config::load(Some(&file), Settings::default()).unwrap();
        let load = |key| Load { key, dataset: Arc::clone(&config.datasets[0]), source: key.to_string() };
        (1..=count).map(|i| Arc::new(load(Uuid::from_u64_pair(0, i)))).collect()
    }

    fn piece(load: &Arc<Load>, content: ParsedContent) -> ParsedPiece {
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        ParsedPiece { load: Arc::clone(load), content, receipt: Receipt::from(permit) }
    }

    fn chunk(load: &Arc<Load>, bytes: usize) -> ParsedPiece {
        let chunk = Chunk { seq: 0, first_ordinal: 1, first_byte_offset: 0, body: ChunkBody::Rejects(Vec::new()) };
        let parsed = ParsedChunk::new(chunk, Dialect::Postgres, |_, _| Parsed::default());
        piece(load, ParsedContent::Chunk(ParsedChunk { bytes, ..parsed }))
    }

    fn end(load: &Arc<Load>) -> ParsedPiece {
        piece(load, ParsedContent::End(FileEnd { records: 0, bytes: 0, error: None, sha256: None, host: None }))
    }

    /// The load keys of a batch's chunks, and those of its ends.
    fn taken(gatherer: &mut Gatherer) -> (Vec<u128>, Vec<u128>) {
        let pieces = gatherer.take();
        let (ends, chunks): (Vec<_>, Vec<_>) = pieces.iter().partition(|piece| matches!(piece.content, ParsedContent::End(_)));
        let keys = |pieces: Vec<&ParsedPiece>| pieces.iter().map(|piece| piece.load.key.as_u128()).collect();
        (keys(chunks), keys(ends))
    }

    #[test]
    fn a_batch_takes_what_fills_it_and_the_ends_of_its_files() {
        let loads = loads(3);
        let mut gatherer = gatherer();
        let start = Instant::now();
        for piece in [chunk(&loads[0], 60), chunk(&loads[1], 60), chunk(&loads[2], 60), end(&loads[0]), end(&loads[1])] {
            gatherer.add(piece, start);
        }
        assert!(gatherer.is_full());
        assert_eq!(taken(&mut gatherer), (vec![1, 2], vec![1, 2]));
        assert!(!gatherer.is_full());
        assert_eq!(gatherer.since, Some(start), "what is left is as old as it was");
        gatherer.add(end(&loads[2]), Instant::now());
        assert_eq!(taken(&mut gatherer), (vec![3], vec![3]));
        assert_eq!((gatherer.since, gatherer.rows, gatherer.bytes), (None, 0, 0));
    }

    #[test]
    fn a_piece_larger_than_a_batch_is_one() {
        let loads = loads(2);
        let mut gatherer = gatherer();
        gatherer.add(chunk(&loads[0], 1_000), Instant::now());
        gatherer.add(chunk(&loads[1], 1), Instant::now());
        assert_eq!(taken(&mut gatherer), (vec![1], vec![]));
        assert_eq!(taken(&mut gatherer), (vec![2], vec![]));
    }
}
