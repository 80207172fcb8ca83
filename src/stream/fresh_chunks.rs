//! The chunks of a batch that were not loaded before: appends their rows, keeps their rejects and marks the days that they change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::protocol::{ModelChanged, ParsedChunk};
use crate::dataset::{Dataset, StreamMode};
use crate::record::chunk::ChunkBody;
use crate::record::row::{Reject, RejectReason};
use crate::store::append::{self, Accepted, Refused, Way};
use crate::store::ledger::Counts;
use crate::store::model::{self, Noting};
use crate::store::stream_upsert::Writing;
use crate::store::{Class, Connection, Day, Rows, StoreError, open_rejects};
use crate::summary::RejectReasons;

/// How a batch is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteMode {
    /// Writes all rows at once. One row that the database refuses fails the batch.
    Bulk,
    /// Writes chunk by chunk. A row that the database refuses becomes a reject.
    RowByRow,
}

/// A chunk that was not loaded before.
#[derive(Debug)]
pub struct FreshChunk<'a> {
    /// The ledger id of its load, and the load's place among the others.
    pub writing: Writing,
    pub chunk: &'a mut ParsedChunk,
}

impl FreshChunk<'_> {
    fn way(&self, dataset: &Dataset) -> Way {
        match dataset.stream {
            StreamMode::Append => Way::Append,
            StreamMode::Upsert => Way::Upsert(self.writing),
        }
    }
}

/// What a transaction adds to a ledger row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Added {
    pub counts: Counts,
    pub reasons: RejectReasons,
    /// Rows that were removed, see [`append::append`].
    pub removed: u64,
}

/// Writes the rows and rejects of one dataset's chunks, and marks the days that they change. Adds to the counts of the loads.
/// Returns what changed for the model, if anything did.
///
/// # Errors
/// See [`append`].
pub async fn write(
    connection: &mut Connection,
    dataset: Arc<Dataset>,
    mut chunks: Vec<FreshChunk<'_>>,
    mode: WriteMode,
    added: &mut BTreeMap<i64, Added>,
) -> Result<Option<ModelChanged>, (Option<i64>, StoreError)> {
    let of_database = |error| (None, error);
    let noting = Noting::of(&dataset, chunks.iter().map(|fresh| fresh.chunk.rows.len() as u64).sum());
    let accepted = append(connection, &dataset, &mut chunks, mode, noting).await?;
    let mut days = BTreeSet::new();
    let mut rows = 0;
    for (FreshChunk { writing, chunk }, Accepted { refused, removed }) in chunks.iter().zip(accepted) {
        let rejects = all_rejects(chunk, refused);
        open_rejects::insert(connection, writing.load_id, &dataset, &rejects).await.map_err(of_database)?;
        let counts = counts(chunk, &rejects);
        let added = added.entry(writing.load_id).or_default();
        added.counts += counts;
        added.reasons.add(&dataset, &rejects);
        added.removed += removed;
        rows += counts.loaded;
        days.extend(chunk.days.iter().map(|day| Day(*day)));
    }
    if days.is_empty() {
        return Ok(None);
    }
    if noting == Noting::Days {
        model::mark(connection, &dataset, days).await.map_err(of_database)?;
    }
    Ok(Some(ModelChanged { dataset, rows, noting }))
}

/// The rejects of a chunk's parser, and those of the rows that the database refused.
fn all_rejects(chunk: &ParsedChunk, refused: Vec<Refused>) -> Vec<Reject> {
    let constraints = refused.into_iter().map(|refused| constraint_reject(chunk, refused));
    chunk.rejects.iter().cloned().chain(constraints).collect()
}

/// What a written chunk adds to the counts of its load.
fn counts(chunk: &ParsedChunk, rejects: &[Reject]) -> Counts {
    let rejected = rejects.len() as u64;
    Counts { read: chunk.records, loaded: chunk.records - rejected, rejected, skipped: 0 }
}

/// Appends the rows of one dataset's chunks. Returns for each chunk the rows that the database refused, and how many it removed.
///
/// # Errors
/// If the database fails. The load is given if only its rows cause the error, while the table accepts other rows.
async fn append(
    connection: &mut Connection,
    dataset: &Dataset,
    chunks: &mut [FreshChunk<'_>],
    mode: WriteMode,
    noting: Noting,
) -> Result<Vec<Accepted>, (Option<i64>, StoreError)> {
    for FreshChunk { writing, chunk } in chunks.iter_mut() {
        chunk.rows.set_load(writing.load_id);
    }
    let mut accepted = vec![Accepted::default(); chunks.len()];
    match mode {
        WriteMode::Bulk => {
            let mut first = 0;
            // All loads together, or one load after the other.
            let together =
                |a: &FreshChunk<'_>, b: &FreshChunk<'_>| dataset.stream == StreamMode::Append || a.writing.order == b.writing.order;
            for chunks in chunks.chunk_by(together) {
                let rows: Vec<&Rows> = chunks.iter().map(|fresh| &fresh.chunk.rows).collect();
                let removed = append::append(connection, dataset, &rows, noting, chunks[0].way(dataset)).await;
                accepted[first].removed = removed.map_err(|error| (None, error))?;
                first += chunks.len();
            }
        }
        WriteMode::RowByRow => {
            let (mut remaining, mut is_any_accepted): (Vec<usize>, _) = ((0..chunks.len()).collect(), false);
            while !remaining.is_empty() {
                let (may_blame, mut failed) = (is_any_accepted, Vec::new());
                for i in remaining {
                    let FreshChunk { writing: Writing { load_id, .. }, chunk } = &chunks[i];
                    match append::append_accepted(connection, dataset, &chunk.rows, noting, chunks[i].way(dataset)).await {
                        Ok(rows) => {
                            is_any_accepted |= rows.refused.len() < chunk.rows.len();
                            accepted[i] = rows;
                        }
                        Err(error) if error.is_of_a_row() => return Err((Some(*load_id), error)),
                        Err(error) if matches!(error.class(), Class::Changed | Class::Other) => match may_blame {
                            true => return Err((Some(*load_id), error)),
                            false => failed.push((i, error)),
                        },
                        Err(error) => return Err((None, error)),
                    }
                }
                // If the table accepts the rows of others, those that failed are tried again: the failure may have passed.
                if !is_any_accepted && let Some((_, error)) = failed.pop() {
                    return Err((None, error));
                }
                remaining = failed.into_iter().map(|(i, _)| i).collect();
            }
        }
    }
    Ok(accepted)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::testing::{load, parsed};

    #[test]
    fn a_refused_row_is_the_record_that_it_was_made_from() {
        let load = load(1, "events");
        let mut chunk = parsed(&load, "{\"id\":1}\n{\"id\":\"x\"}\n{\"id\":33}\n[]\n{\"id\":555}\n");
        chunk.renumber(1_001);
        chunk.chunk.first_byte_offset = 5_000;
        let refused = |row| Refused { row, message: "a trigger".to_owned() };
        let reject = |ordinal, byte_offset, record: &str| Reject {
            ordinal,
            byte_offset,
            reason: RejectReason::Constraint,
            detail: "a trigger".to_owned(),
            record: record.as_bytes().to_vec(),
        };
        assert_eq!(constraint_reject(&chunk, refused(0)), reject(1_001, 5_000, "{\"id\":1}"));
        assert_eq!(constraint_reject(&chunk, refused(1)), reject(1_003, 5_020, "{\"id\":33}"));
        assert_eq!(constraint_reject(&chunk, refused(2)), reject(1_005, 5_033, "{\"id\":555}"));

        let rejects = all_rejects(&chunk, vec![refused(1)]);
        assert_eq!(rejects.iter().map(|reject| reject.ordinal).collect::<Vec<_>>(), [1_002, 1_004, 1_003]);
        assert_eq!(counts(&chunk, &rejects), Counts { read: 5, loaded: 2, rejected: 3, skipped: 0 });
    }
}
