//! Writer: commits batches. Rows, rejects, chunk lines, ledger and the marks of changed days share a transaction. After a crash
//! the work is repeated: nothing is lost, and a chunk that arrives twice is loaded once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use actix::{Actor, ActorFutureExt, Addr, AtomicResponse, Context, Handler, Recipient, WrapFuture};
use uuid::Uuid;

use super::chunks::{self, ClaimedChunks};
use super::faults::{Faults, StageWatch};
use super::foreign;
use super::link::Link;
use super::modeller::Modeller;
use super::parser::OnCrash;
use super::protocol::{Batch, LoadFinished, ModelChanged, ParsedChunk, ParsedContent, ParsedPiece};
use super::stats::Stats;
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::record::chunk::ChunkBody;
use crate::record::row::{Reject, RejectReason};
use crate::store::append::{self, Refused};
use crate::store::ledger::{self, Counts, LoadEnd, LoadProgress, OpenLoad, OpenedLoad};
use crate::store::model::{self, Noting};
use crate::store::{Class, Connection, Day, Rows, StoreError, StoreResult, open_rejects};
use crate::transport::piece::{FileEnd, Load};

/// The result of a committed transaction.
#[derive(Debug, Default)]
struct Committed {
    finished: Vec<LoadFinished>,
    /// Datasets that have new rows.
    changed: Vec<ModelChanged>,
    records: u64,
    rejected_in_messages: u64,
    /// Indexes of pieces whose message id was loaded before with another body.
    contradicting: Vec<usize>,
}

/// How a batch is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WriteMode {
    /// Writes all rows at once. One row that the database refuses fails the batch.
    Bulk,
    /// Writes chunk by chunk. A row that the database refuses becomes a reject.
    RowByRow,
}

/// A chunk that was not loaded before, with the ledger id of its load.
type FreshChunk<'a> = (i64, &'a mut ParsedChunk);

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

/// Writes a batch in one transaction.
async fn write(connection: &mut Connection, pieces: &mut [ParsedPiece], mode: WriteMode) -> Result<Committed, Failure> {
    connection.begin().await?;
    let mut committed = Committed::default();
    let loads = open_loads(connection, pieces).await?;
    let ClaimedChunks { mut is_new, mut grown, changed } = chunks::claim(connection, pieces, &loads).await?;
    let foreign = foreign::claim(connection, pieces, &mut is_new, &mut committed.contradicting).await?;

    let id_of = |load: &Load| loads.get(&load.key).map(|load| load.id).or_else(|| foreign.id(load.key)).unwrap_or_default();
    let mut fresh: BTreeMap<String, (Arc<Dataset>, Vec<FreshChunk<'_>>)> = BTreeMap::new();
    let mut add = |load: &Load, chunk| {
        let of_dataset = fresh.entry(load.dataset.name.clone()).or_insert_with(|| (Arc::clone(&load.dataset), Vec::new()));
        of_dataset.1.push((id_of(load), chunk));
    };
    let mut ended = HashMap::new();
    let mut keys = HashMap::new();
    for (piece, is_new) in pieces.iter_mut().zip(is_new) {
        keys.insert(id_of(&piece.load), Arc::clone(&piece.load));
        match &mut piece.content {
            ParsedContent::Chunk(chunk) | ParsedContent::Foreign { chunk, .. } if is_new => add(&piece.load, chunk),
            ParsedContent::Chunk(_) | ParsedContent::Foreign { .. } => {}
            ParsedContent::End(end) => {
                ended.insert(id_of(&piece.load), load_end(end));
            }
        }
    }
    for (load, chunk) in &mut grown {
        add(load, chunk);
    }

    let mut added: BTreeMap<i64, Counts> = BTreeMap::new();
    for (dataset, mut chunks) in fresh.into_values() {
        let noting = Noting::of(&dataset, chunks.iter().map(|(_, chunk)| chunk.rows.len() as u64).sum());
        let refused = append(connection, &dataset, &mut chunks, mode, noting)
            .await
            .map_err(|(load_id, error)| Failure { error, culprit: load_id.and_then(|id| keys.get(&id).cloned()) })?;
        let mut days = BTreeSet::new();
        let mut rows = 0;
        for ((load_id, chunk), refused) in chunks.iter().zip(refused) {
            let mut rejected = chunk.rejects.clone();
            rejected.extend(refused.into_iter().map(|refused| constraint_reject(chunk, refused)));
            open_rejects::insert(connection, *load_id, &dataset, &rejected).await?;
            let rejected = rejected.len() as u64;
            let counts = Counts { read: chunk.records, loaded: chunk.records - rejected, rejected, skipped: 0 };
            *added.entry(*load_id).or_default() += counts;
            committed.records += counts.read;
            rows += counts.loaded;
            days.extend(chunk.days.iter().map(|day| Day(*day)));
        }
        if !days.is_empty() {
            if noting == Noting::Days {
                model::mark(connection, &dataset, days).await?;
            }
            committed.changed.push(ModelChanged { dataset, rows, noting });
        }
    }
    // Ledger rows are updated last: other writers of the same file wait for them until the commit.
    committed.rejected_in_messages = foreign.book(connection, &added).await?;
    let mut closed = Vec::new();
    for (id, error) in &changed {
        closed.extend(ledger::void(connection, *id, error).await?);
    }
    let progress = loads.into_values().map(|load| {
        let counts = added.get(&load.id).copied().unwrap_or_default();
        LoadProgress { id: load.id, counts, end: ended.get(&load.id).copied() }
    });
    let progress = progress.filter(|load| !changed.contains_key(&load.id)).collect::<Vec<_>>();
    closed.extend(ledger::advance(connection, &progress).await?);
    for closed in closed {
        let load = &keys[&closed.id];
        committed.finished.push(LoadFinished {
            key: load.key,
            dataset: load.dataset.name.clone(),
            source: load.source.clone(),
            counts: closed.counts,
            error: closed.error,
            with_end: ended.contains_key(&closed.id),
        });
    }
    connection.commit().await?;
    Ok(committed)
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

fn load_end(end: &FileEnd) -> LoadEnd<'_> {
    LoadEnd { records: end.records, bytes: end.bytes, error: end.error.as_deref() }
}

/// Appends the rows of one dataset's chunks. Returns for each chunk the rows that the database refused.
///
/// # Errors
/// If the database fails. The load is given if only its rows cause the error, while the table accepts other rows.
async fn append(
    connection: &mut Connection,
    dataset: &Dataset,
    chunks: &mut [FreshChunk<'_>],
    mode: WriteMode,
    noting: Noting,
) -> Result<Vec<Vec<Refused>>, (Option<i64>, StoreError)> {
    for (load_id, chunk) in chunks.iter_mut() {
        chunk.rows.set_load(*load_id);
    }
    let mut refused = vec![Vec::new(); chunks.len()];
    match mode {
        WriteMode::Bulk => {
            let rows: Vec<&Rows> = chunks.iter().map(|(_, chunk)| &chunk.rows).collect();
            append::append(connection, dataset, &rows, noting).await.map_err(|error| (None, error))?;
        }
        WriteMode::RowByRow => {
            let (mut is_any_accepted, mut failure) = (false, None);
            for ((load_id, chunk), refused) in chunks.iter().zip(&mut refused) {
                match append::append_accepted(connection, dataset, &chunk.rows, noting).await {
                    Ok(rows) => {
                        is_any_accepted |= rows.len() < chunk.rows.len();
                        *refused = rows;
                    }
                    Err(error) if error.is_of_a_row() => return Err((Some(*load_id), error)),
                    // If the rows of other loads are accepted, this load is the cause. Otherwise the table is.
                    Err(error) if matches!(error.class(), Class::Changed | Class::Other) => {
                        failure.get_or_insert((*load_id, error));
                    }
                    Err(error) => return Err((None, error)),
                }
            }
            if let Some((load_id, error)) = failure {
                return Err((is_any_accepted.then_some(load_id), error));
            }
        }
    }
    Ok(refused)
}

/// The reject for a refused row. A chunk's rows are its records in order, without the records that were rejected before.
fn constraint_reject(chunk: &ParsedChunk, refused: Refused) -> Reject {
    let rejected: BTreeSet<u64> = chunk.rejects.iter().map(|reject| reject.ordinal).collect();
    let ordinal = (chunk.first_ordinal..)
        .filter(|ordinal| !rejected.contains(ordinal))
        .nth(refused.row)
        .expect("every row comes from a record of the chunk");
    let (record, byte_offset) = match &chunk.chunk.body {
        ChunkBody::Records { text, spans, .. } => {
            let index = usize::try_from(ordinal - chunk.first_ordinal).expect("an index into the chunk");
            let span = spans[index].start as usize..spans[index].end as usize;
            (text[span.clone()].to_vec(), chunk.chunk.first_byte_offset + span.start as u64)
        }
        ChunkBody::Rejects(_) => unreachable!("a chunk of rejects has no rows"),
    };
    Reject { ordinal, byte_offset, reason: RejectReason::Constraint, detail: refused.message, record }
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

impl Actor for Writer {
    type Context = Context<Self>;
}

impl Handler<Batch> for Writer {
    // The response is atomic: the next batch is handled only when this one is written.
    type Result = AtomicResponse<Self, ()>;

    fn handle(&mut self, Batch { mut pieces }: Batch, _: &mut Self::Context) -> Self::Result {
        let mut link = self.link.take().expect("an atomic response has ended before the next message");
        let work = async move {
            let written = write_batch(&mut link, &mut pieces).await;
            (link, pieces, written)
        };
        AtomicResponse::new(Box::pin(work.into_actor(self).map(|(link, pieces, written), writer, _| {
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
                    writer.stats.records.fetch_add(committed.records, Ordering::Relaxed);
                    writer.stats.rejected_in_messages.fetch_add(committed.rejected_in_messages, Ordering::Relaxed);
                    writer.stats.loads.fetch_add(committed.finished.len() as u64, Ordering::Relaxed);
                    for changed in committed.changed {
                        writer.modeller.do_send(changed);
                    }
                    for load in committed.finished {
                        writer.finished.do_send(load);
                    }
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
async fn write_batch(link: &mut Link, pieces: &mut [ParsedPiece]) -> Result<Committed, (Error, Option<Arc<Load>>)> {
    let mut mode = WriteMode::Bulk;
    loop {
        let written = link
            .repeat(async |connection| match write(connection, pieces, mode).await {
                // Repeating the same work would fail again, so this error leaves the loop that waits.
                Err(failure) if matches!(failure.error.class(), Class::BadRow | Class::Other) => Ok(Err(failure)),
                // A table that is missing may be missed by a trigger only, and for some rows.
                Err(failure)
                    if failure.error.class() == Class::Changed && (mode == WriteMode::Bulk || failure.culprit.is_some()) =>
                {
                    Ok(Err(failure))
                }
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
