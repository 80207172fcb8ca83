//! Writer: commits batches. Rows, rejects, chunk lines, ledger and the marks of changed days share a transaction. After a crash
//! the work is repeated: nothing is lost, and a chunk that arrives twice is loaded once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use actix::{Actor, ActorFutureExt, Addr, AtomicResponse, Context, Handler, Recipient, WrapFuture};
use uuid::Uuid;

use super::chunks::{self, ClaimedChunks};
use super::faults::{Faults, StageWatch};
use super::foreign;
use super::fresh_chunks::{self, Added, FreshChunk, WriteMode};
use super::link::Link;
use super::modeller::Modeller;
use super::parser::OnCrash;
use super::protocol::{Batch, LoadFinished, ModelChanged, ParsedChunk, ParsedContent, ParsedPiece};
use super::stats::{Committing, Stats};
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::store::ledger::{self, ClosedLoad, Counts, LoadEnd, LoadProgress, OpenLoad, OpenedLoad};
use crate::store::lock;
use crate::store::stream_upsert::{Order, Writing};
use crate::store::unknown_keys::{self, NotedKey};
use crate::store::{Class, Connection, StoreError, StoreResult};
use crate::summary::{NewKey, RejectReasons};
use crate::transport::piece::{FileEnd, Load};

/// The result of a committed transaction.
#[derive(Debug, Default)]
struct Committed {
    finished: Vec<LoadFinished>,
    /// Datasets that have new rows.
    changed: Vec<ModelChanged>,
    /// What was added to each dataset: counts, and bytes of text.
    added: BTreeMap<String, (Counts, u64)>,
    /// Why records of files were rejected, by dataset.
    reasons: BTreeMap<String, RejectReasons>,
    rejected_in_messages: u64,
    /// Keys that no column takes and that no load had before, by dataset.
    new_keys: Vec<(Arc<Dataset>, NewKey)>,
    /// Indexes of pieces whose message id was loaded before with another body.
    contradicting: Vec<usize>,
    /// Until its records do not count as in flight any more.
    commit: Option<Committing>,
}

/// What a transaction has to write, by the ledger ids of the loads.
#[derive(Debug, Default)]
struct Work<'a> {
    /// The chunks that were not loaded before, by dataset name.
    fresh: BTreeMap<String, (Arc<Dataset>, Vec<FreshChunk<'a>>)>,
    ends: HashMap<i64, LoadEnd<'a>>,
    /// All loads of the batch.
    loads: HashMap<i64, Arc<Load>>,
}

/// Why a batch was not written.
struct Failure {
    error: StoreError,
    /// The load whose rows are the only cause.
    culprit: Option<Arc<Load>>,
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self { error, culprit: None }
    }
}

impl Failure {
    /// Whether the same work would fail again, so that waiting does not help.
    fn lasts(&self, mode: WriteMode) -> bool {
        match self.error.class() {
            Class::BadRow | Class::Other => true,
            // A table that is missing may be missed by a trigger only, and for some rows.
            Class::Changed => mode == WriteMode::Bulk || self.culprit.is_some(),
            Class::Unavailable | Class::TimedOut | Class::Refused | Class::Full | Class::ReadOnly => false,
        }
    }
}

/// Writes a batch in one transaction.
async fn write(
    connection: &mut Connection,
    pieces: &mut [ParsedPiece],
    mode: WriteMode,
    stats: &Arc<Stats>,
) -> Result<Committed, Failure> {
    connection.begin().await?;
    let datasets = pieces.iter().map(|piece| (piece.load.dataset.name.as_str(), &*piece.load.dataset)).collect();
    lock::tables(connection, &datasets).await?;
    let mut committed = Committed::default();
    let opened = open_loads(connection, pieces).await?;
    let ClaimedChunks { mut is_new, mut grown, changed } = chunks::claim(connection, pieces, &opened).await?;
    let foreign = foreign::claim(connection, pieces, &mut is_new, &mut committed.contradicting).await?;
    let id_of = |load: &Load| opened.get(&load.key).map(|load| load.id).or_else(|| foreign.id(load.key)).unwrap_or_default();
    let Work { fresh, ends, loads } = Work::of(pieces, &is_new, &mut grown, id_of);

    let mut added: BTreeMap<i64, Added> = BTreeMap::new();
    let unknown: Vec<(Arc<Dataset>, Vec<NotedKey>)> =
        fresh.values().map(|(dataset, chunks)| (Arc::clone(dataset), keys_of(chunks))).collect();
    for (dataset, chunks) in fresh.into_values() {
        let (name, bytes) = (dataset.name.clone(), chunks.iter().map(|fresh| fresh.chunk.bytes as u64).sum());
        let ids: BTreeSet<i64> = chunks.iter().map(|fresh| fresh.writing.load_id).collect();
        let written = fresh_chunks::write(connection, dataset, chunks, mode, &mut added).await;
        let changed = written.map_err(|(id, error)| Failure { error, culprit: id.and_then(|id| loads.get(&id).cloned()) })?;
        committed.changed.extend(changed);
        let mut counts = Counts::default();
        ids.iter().filter_map(|id| added.get(id)).for_each(|of_load| counts += of_load.counts);
        let reasons = committed.reasons.entry(name.clone()).or_default();
        let of_files = ids.iter().filter(|id| !foreign.has(**id)).filter_map(|id| added.get(id));
        of_files.for_each(|of_load| reasons.merge(&of_load.reasons));
        committed.added.insert(name, (counts, bytes));
    }
    for (dataset, keys) in unknown {
        for noted in unknown_keys::note(connection, &dataset.name, keys.into_iter()).await? {
            let source = loads.get(&noted.load_id).map_or_else(String::new, |load| load.source.clone());
            committed
                .new_keys
                .extend(NewKey::new(&dataset, &noted.key, Some(noted.load_id), source).map(|key| (Arc::clone(&dataset), key)));
        }
    }
    // Ledger rows are updated last: other writers of the same file wait for them until the commit.
    committed.rejected_in_messages = foreign.book(connection, &added).await?;
    let mut closed = Vec::new();
    for (id, error) in &changed {
        closed.extend(ledger::void(connection, *id, error).await?);
    }
    let going_on = opened.into_values().map(|load| load.id).filter(|id| !changed.contains_key(id));
    closed.extend(ledger::advance(connection, &progress(going_on, &added, &ends)).await?);
    committed.finished = closed.into_iter().map(|closed| finished(closed, &loads, &ends)).collect();
    committed.commit = Some(stats.begin_commit());
    connection.commit().await?;
    Ok(committed)
}

/// The keys of chunks that no column takes, with their loads.
fn keys_of(chunks: &[FreshChunk<'_>]) -> Vec<NotedKey> {
    let of_chunk = |fresh: &FreshChunk<'_>| {
        let load_id = fresh.writing.load_id;
        fresh.chunk.unknown.iter().map(|key| NotedKey { key: key.clone(), load_id }).collect::<Vec<_>>()
    };
    chunks.iter().flat_map(of_chunk).collect()
}

impl<'a> Work<'a> {
    /// Sorts the pieces of a batch. `is_new` says which of them are loaded, and `id_of` returns the ledger id of a load.
    fn of(
        pieces: &'a mut [ParsedPiece],
        is_new: &[bool],
        grown: &'a mut [(Arc<Load>, ParsedChunk)],
        id_of: impl Fn(&Load) -> i64,
    ) -> Self {
        let mut work = Self::default();
        for (piece, is_new) in pieces.iter_mut().zip(is_new) {
            let id = id_of(&piece.load);
            work.loads.insert(id, Arc::clone(&piece.load));
            match &mut piece.content {
                ParsedContent::Chunk(chunk) if *is_new => work.add(id, Order::Load(piece.load.key), &piece.load, chunk),
                ParsedContent::Foreign { chunk, .. } if *is_new => work.add(id, Order::Message(Uuid::now_v7()), &piece.load, chunk),
                ParsedContent::Chunk(_) | ParsedContent::Foreign { .. } => {}
                ParsedContent::End(end) => {
                    let &FileEnd { records, bytes, ref error, sha256, ref host } = &*end;
                    let (error, host) = (error.as_deref(), host.as_deref());
                    work.ends.insert(id, LoadEnd { records, bytes, error, sha256, host });
                }
            }
        }
        for (load, chunk) in grown {
            work.add(id_of(load), Order::Load(load.key), load, chunk);
        }
        for (_, chunks) in work.fresh.values_mut() {
            // In the order of the loads, the chunks of each together.
            chunks.sort_by_key(|fresh| fresh.writing.order);
        }
        work
    }

    fn add(&mut self, load_id: i64, order: Order, load: &Load, chunk: &'a mut ParsedChunk) {
        let of_dataset = self.fresh.entry(load.dataset.name.clone());
        let fresh = FreshChunk { writing: Writing { load_id, order }, chunk };
        of_dataset.or_insert_with(|| (Arc::clone(&load.dataset), Vec::new())).1.push(fresh);
    }
}

/// What the transaction adds to the ledger rows of these loads. A load without new records is included: its end may be new, or
/// its last records may have been added by another writer.
fn progress<'a>(
    ids: impl Iterator<Item = i64>,
    added: &BTreeMap<i64, Added>,
    ends: &HashMap<i64, LoadEnd<'a>>,
) -> Vec<LoadProgress<'a>> {
    ids.map(|id| {
        let (counts, removed) = added.get(&id).map(|added| (added.counts, added.removed)).unwrap_or_default();
        LoadProgress { id, counts, removed, end: ends.get(&id).copied() }
    })
    .collect()
}

fn finished(closed: ClosedLoad, loads: &HashMap<i64, Arc<Load>>, ends: &HashMap<i64, LoadEnd<'_>>) -> LoadFinished {
    let load = &loads[&closed.id];
    LoadFinished {
        key: load.key,
        dataset: load.dataset.name.clone(),
        source: load.source.clone(),
        counts: closed.counts,
        removed: closed.removed,
        error: closed.error,
        with_end: ends.contains_key(&closed.id),
        repeats: None,
    }
}

/// Opens the loads of the batch's files. Loads that have no ledger row get one. Returns them by load key.
async fn open_loads(connection: &mut Connection, pieces: &[ParsedPiece]) -> StoreResult<HashMap<Uuid, OpenedLoad>> {
    let mut loads: BTreeMap<Uuid, OpenLoad<'_>> = BTreeMap::new();
    for piece in pieces.iter().filter(|piece| !matches!(piece.content, ParsedContent::Foreign { .. })) {
        let load = &piece.load;
        loads.insert(load.key, OpenLoad { load_key: load.key, dataset: &load.dataset.name, source: &load.source });
    }
    let open: Vec<OpenLoad<'_>> = loads.values().copied().collect();
    let opened = ledger::open(connection, &open).await?;
    Ok(loads.into_keys().zip(opened).collect())
}

/// The actor.
pub struct Writer {
    /// `None` while a batch is written.
    link: Option<Link>,
    modeller: Addr<Modeller>,
    finished: Recipient<LoadFinished>,
    stats: Arc<Stats>,
    on_crash: OnCrash,
    faults: Faults,
    _watch: StageWatch,
}

impl Writer {
    /// A writer on this link. It tells `finished` of every load that is over, and `on_crash` of a load that ends the run.
    pub fn new(
        link: Link,
        modeller: Addr<Modeller>,
        finished: Recipient<LoadFinished>,
        stats: Arc<Stats>,
        on_crash: OnCrash,
        faults: &Faults,
    ) -> Self {
        Self { link: Some(link), modeller, finished, stats, on_crash, faults: faults.clone(), _watch: faults.watch("writer") }
    }
}

impl Writer {
    /// Counts what was committed.
    fn count(&self, committed: &Committed, took: Duration) {
        let stats = &self.stats;
        for (dataset, (counts, bytes)) in &committed.added {
            if let Some(stats) = stats.of(dataset) {
                stats.add(*counts, *bytes);
            }
            if let Some(link) = &self.link {
                link.stage().handled(counts.read);
            }
        }
        for (dataset, reasons) in &committed.reasons {
            if let Some(stats) = stats.of(dataset) {
                stats.add_reasons(reasons);
            }
        }
        for (dataset, key) in &committed.new_keys {
            tracing::warn!(
                "{}: no column takes the key {} of record {} of {}; its values are kept in _extra. To make it a column: {}",
                dataset.name,
                key.key,
                key.record,
                key.source,
                key.line
            );
            if let Some(stats) = stats.of(&dataset.name) {
                stats.add_new_key(key.clone());
            }
        }
        stats.rejected_in_messages.fetch_add(committed.rejected_in_messages, Ordering::Relaxed);
        stats.committed(took);
        let over_broker = stats.topology().is_some_and(|topology| topology.broker);
        for load in &committed.finished {
            let Some(of_dataset) = stats.of(&load.dataset) else { continue };
            let counter = if load.error.is_some() { &of_dataset.files_failed } else { &of_dataset.files_loaded };
            counter.fetch_add(1, Ordering::Relaxed);
            if let Some(took) = age(load.key).filter(|_| over_broker && load.error.is_none()) {
                stats.drop_to_commit_seconds.observe(took);
            }
        }
    }
}

/// The time since the file of this load was claimed. Its key tells.
fn age(key: Uuid) -> Option<Duration> {
    let (seconds, nanos) = key.get_timestamp()?.to_unix();
    (SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos)).elapsed().ok()
}

impl Actor for Writer {
    type Context = Context<Self>;
}

impl Handler<Batch> for Writer {
    // The response is atomic: the next batch is handled only when this one is written.
    type Result = AtomicResponse<Self, ()>;

    fn handle(&mut self, Batch { mut pieces }: Batch, _: &mut Self::Context) -> Self::Result {
        let began = Instant::now();
        let mut link = self.link.take().expect("an atomic response has ended before the next message");
        let stats = Arc::clone(&self.stats);
        let work = async move {
            let written = write_batch(&mut link, &mut pieces, &stats).await;
            (link, pieces, written)
        };
        AtomicResponse::new(Box::pin(work.into_actor(self).map(move |(link, pieces, written), writer, _| {
            writer.link = Some(link);
            match written {
                Ok(committed) => {
                    for (i, piece) in pieces.into_iter().enumerate() {
                        if committed.contradicting.contains(&i) {
                            piece
                                .receipt
                                .refuse("message_id", "another message with this message_id, and another body, was loaded before");
                        } else {
                            piece.receipt.settle();
                        }
                    }
                    writer.count(&committed, began.elapsed());
                    for changed in committed.changed {
                        writer.modeller.do_send(changed);
                    }
                    for load in committed.finished {
                        writer.finished.do_send(load);
                    }
                    drop(committed.commit);
                }
                Err((error, culprit)) => {
                    if let Some(load) = culprit {
                        (writer.on_crash)(&load);
                    }
                    writer.faults.report(error);
                }
            }
        })))
    }
}

/// Writes a batch. Waits while the database is unavailable.
///
/// # Errors
/// Errors that waiting does not fix, with the load whose rows are the only cause.
async fn write_batch(
    link: &mut Link,
    pieces: &mut [ParsedPiece],
    stats: &Arc<Stats>,
) -> Result<Committed, (Error, Option<Arc<Load>>)> {
    let mut mode = WriteMode::Bulk;
    loop {
        let written = link
            .repeat(async |connection| match write(connection, pieces, mode, stats).await {
                Err(failure) if failure.lasts(mode) => Ok(Err(failure)),
                Err(failure) => Err(failure.error),
                Ok(committed) => Ok(Ok(committed)),
            })
            .await;
        let failure = match written {
            Ok(Ok(committed)) => return Ok(committed),
            Ok(Err(failure)) => failure,
            Err(error) => return Err((error, None)),
        };
        link.close().await;
        if mode == WriteMode::RowByRow {
            return Err(explain(link, failure));
        }
        tracing::debug!("the database refuses the batch, and what of it is now looked for: {}", failure.error);
        mode = WriteMode::RowByRow;
    }
}

fn explain(link: &Link, Failure { error, culprit }: Failure) -> (Error, Option<Arc<Load>>) {
    let error = link.explain(error);
    match culprit {
        Some(load) => {
            let error = error
                .context(format_args!("loading {}", load.source))
                .hint("start again; a file that does this three times goes to failed/");
            (error, Some(load))
        }
        None => (error, None),
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;
    use crate::record::chunk::ChunkBody;
    use crate::stream::testing::{load, parsed};
    use crate::transport::piece::Receipt;

    /// The id of a load in the ledger of these tests.
    fn id_of(load: &Load) -> i64 {
        i64::try_from(load.key.as_u128()).unwrap() * 10
    }

    fn piece(load: &Arc<Load>, content: ParsedContent) -> ParsedPiece {
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        ParsedPiece { load: Arc::clone(load), content, receipt: Receipt::from(permit) }
    }

    fn chunk(load: &Arc<Load>, text: &str) -> ParsedPiece {
        piece(load, ParsedContent::Chunk(parsed(load, text)))
    }

    fn message(load: &Arc<Load>, text: &str) -> ParsedPiece {
        let chunk = parsed(load, text);
        piece(load, ParsedContent::Foreign { app_id: "app".to_owned(), message_id: None, digest: [0; 32], chunk })
    }

    fn end(load: &Arc<Load>, records: u64, error: Option<&str>) -> ParsedPiece {
        piece(load, ParsedContent::End(FileEnd { records, bytes: 2, error: error.map(str::to_owned), sha256: None, host: None }))
    }

    #[test]
    fn a_batch_is_sorted_into_the_new_chunks_of_each_dataset_and_the_ends() {
        let (events, more_events, orgs, app) = (load(1, "events"), load(2, "events"), load(3, "orgs"), load(4, "orgs"));
        let mut pieces = [
            chunk(&orgs, "{\"id\":1}"),
            chunk(&events, "{\"id\":2}"),
            chunk(&events, "{\"id\":3}"),
            end(&events, 2, None),
            message(&app, "{\"id\":4}"),
            message(&app, "{\"id\":5}"),
            end(&more_events, 7, Some("cut off")),
        ];
        let is_new = [true, true, false, false, true, false, false];
        let mut grown = [(Arc::clone(&more_events), parsed(&more_events, "{\"id\":6}"))];
        let work = Work::of(&mut pieces, &is_new, &mut grown, id_of);

        let text = |chunk: &ParsedChunk| match &chunk.chunk.body {
            ChunkBody::Records { text, .. } => String::from_utf8(text.clone()).unwrap(),
            ChunkBody::Rejects(_) => panic!("these are records"),
        };
        let fresh: Vec<(&str, i64, String)> = work
            .fresh
            .iter()
            .flat_map(|(name, (_, chunks))| {
                chunks.iter().map(move |fresh| (name.as_str(), fresh.writing.load_id, text(fresh.chunk)))
            })
            .collect();
        let expected = [("events", 10, 2), ("events", 20, 6), ("orgs", 30, 1), ("orgs", 40, 4)];
        assert_eq!(fresh, expected.map(|(dataset, load, id)| (dataset, load, format!("{{\"id\":{id}}}"))));
        assert_eq!(work.ends.len(), 2);
        assert_eq!((work.ends[&10].records, work.ends[&10].error), (2, None));
        assert_eq!((work.ends[&20].records, work.ends[&20].error), (7, Some("cut off")));
        let mut loads: Vec<i64> = work.loads.into_keys().collect();
        loads.sort_unstable();
        assert_eq!(loads, [10, 20, 30, 40]);
    }

    #[test]
    fn a_load_that_gets_no_records_goes_on_too_and_only_its_own_end_is_told() {
        let counts = Counts { read: 3, loaded: 2, rejected: 1, skipped: 0 };
        let added = BTreeMap::from([(10, Added { counts, removed: 7, ..Added::default() })]);
        let ends = HashMap::from([(20, LoadEnd { records: 5, bytes: 9, error: None, sha256: None, host: None })]);
        let progress = progress([10, 20].into_iter(), &added, &ends);
        assert_eq!((progress[0].id, progress[0].counts.loaded, progress[0].end.is_none()), (10, 2, true));
        assert_eq!((progress[0].removed, progress[1].removed), (7, 0));
        assert_eq!((progress[1].id, progress[1].counts), (20, Counts::default()));
        assert_eq!(progress[1].end.map(|end| end.records), Some(5));

        let loads = HashMap::from([(10, load(1, "events")), (20, load(2, "orgs"))]);
        let closed = |id| ClosedLoad { id, counts: Counts::default(), removed: 0, error: None };
        let (without, with) = (finished(closed(10), &loads, &ends), finished(closed(20), &loads, &ends));
        assert_eq!((without.source.as_str(), without.with_end), ("1.json", false));
        assert_eq!((with.source.as_str(), with.dataset.as_str(), with.with_end), ("2.json", "orgs", true));
    }

    #[test]
    fn what_a_row_or_a_fault_causes_is_looked_for_and_what_passes_is_waited_for() {
        let lasts = |class, mode, culprit: Option<&Arc<Load>>| {
            Failure { error: StoreError::new(class, "x"), culprit: culprit.cloned() }.lasts(mode)
        };
        for mode in [WriteMode::Bulk, WriteMode::RowByRow] {
            for class in [Class::BadRow, Class::Other] {
                assert!(lasts(class, mode, None), "{class:?}");
            }
            for class in [Class::Unavailable, Class::TimedOut, Class::Refused, Class::Full, Class::ReadOnly] {
                assert!(!lasts(class, mode, None), "{class:?}");
            }
        }
        assert!(lasts(Class::Changed, WriteMode::Bulk, None), "a trigger may miss a table, for some rows");
        assert!(lasts(Class::Changed, WriteMode::RowByRow, Some(&load(1, "events"))));
        assert!(!lasts(Class::Changed, WriteMode::RowByRow, None), "no row was accepted: the tables are made again");
    }
}
