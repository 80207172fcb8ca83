//! Chunks: decides which chunks of a batch are loaded. These are the chunks that are new, and the records by which a known
//! chunk has grown. If a known chunk arrives with other records, its file has changed, and the load is given up.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use uuid::Uuid;

use super::protocol::{ParsedChunk, ParsedContent, ParsedPiece};
use crate::record::parse::{DayRange, Parser};
use crate::store::chunk_lines::{self, ChunkLine, KnownChunk};
use crate::store::ledger::OpenedLoad;
use crate::store::{Connection, Dialect, StoreResult};
use crate::transport::piece::Load;

/// What a transaction has to do with its chunks.
#[derive(Debug, Default)]
pub struct ClaimedChunks {
    /// For each piece, whether it is a chunk of which nothing was loaded before.
    pub is_new: Vec<bool>,
    /// For known chunks that have grown, the records that were not loaded before.
    pub grown: Vec<(Arc<Load>, ParsedChunk)>,
    /// The loads that are given up, by ledger id, with the reason.
    pub changed: BTreeMap<i64, String>,
}

/// The state of a chunk according to the ledger.
enum State {
    New,
    /// All of it was loaded before.
    Loaded,
    /// This many of its records were loaded before.
    Grown(u64),
    /// Other records were loaded in its place.
    Changed,
}

impl State {
    fn of(chunk: &ParsedChunk, known: Option<KnownChunk>) -> Self {
        let Some(known) = known else { return Self::New };
        // Chunk lines of earlier versions have no digest.
        let is_digest = |digest| known.digest.is_none_or(|known| known == digest);
        let before = usize::try_from(known.records).unwrap_or(usize::MAX);
        if known.first_ordinal != chunk.first_ordinal {
            Self::Changed
        } else if known.records == chunk.records && is_digest(chunk.digest) {
            Self::Loaded
        } else if known.records < chunk.records && is_digest(chunk.chunk.digest_of_first(before)) {
            Self::Grown(known.records)
        } else {
            Self::Changed
        }
    }
}

/// Decides which chunks are to be loaded, and writes their chunk lines.
///
/// # Errors
/// If the database fails.
pub async fn claim(
    connection: &mut Connection,
    pieces: &[ParsedPiece],
    loads: &HashMap<Uuid, OpenedLoad>,
) -> StoreResult<ClaimedChunks> {
    let chunks: Vec<Candidate<'_>> = pieces.iter().enumerate().filter_map(|(i, piece)| Candidate::of(i, piece, loads)).collect();
    let lines: Vec<ChunkLine> = chunks.iter().map(|chunk| chunk.line).collect();
    let known = chunk_lines::claim(connection, &lines).await?;
    let states: Vec<State> = chunks.iter().zip(known).map(|(candidate, known)| State::of(candidate.chunk, known)).collect();

    let mut claimed = ClaimedChunks { is_new: vec![false; pieces.len()], ..ClaimedChunks::default() };
    for (Candidate { chunk, line, .. }, state) in chunks.iter().zip(&states) {
        if let State::Changed = state {
            claimed.changed.entry(line.load_id).or_insert_with(|| {
                let last = chunk.first_ordinal + chunk.records.saturating_sub(1);
                format!(
                    "the file has changed: its records {} to {last} are not those that were loaded from it before",
                    chunk.first_ordinal
                )
            });
        }
    }
    let mut given_up = Vec::new();
    for (Candidate { piece, chunk, line }, state) in chunks.iter().zip(states) {
        let is_changed = claimed.changed.contains_key(&line.load_id);
        match state {
            State::New if is_changed => given_up.push(*line),
            State::New => claimed.is_new[*piece] = true,
            State::Grown(before) if !is_changed => {
                chunk_lines::extend(connection, line).await?;
                let load = &pieces[*piece].load;
                claimed.grown.push((Arc::clone(load), tail(load, chunk, before, connection.dialect())));
            }
            State::Grown(_) | State::Loaded | State::Changed => {}
        }
    }
    chunk_lines::give_up(connection, &given_up).await?;
    Ok(claimed)
}

/// A chunk of a load that still accepts chunks.
struct Candidate<'a> {
    /// Its index in the list of pieces.
    piece: usize,
    chunk: &'a ParsedChunk,
    line: ChunkLine,
}

impl<'a> Candidate<'a> {
    fn of(i: usize, piece: &'a ParsedPiece, loads: &HashMap<Uuid, OpenedLoad>) -> Option<Self> {
        let ParsedContent::Chunk(chunk) = &piece.content else { return None };
        let load = loads[&piece.load.key];
        let &ParsedChunk { seq, first_ordinal, records, digest, .. } = chunk;
        let line = ChunkLine { load_id: load.id, seq, first_ordinal, records, digest };
        (!load.is_void).then_some(Self { piece: i, chunk, line })
    }
}

/// The records of a chunk after the first `before` ones, parsed again. This is needed only when a file has grown.
fn tail(load: &Load, chunk: &ParsedChunk, before: u64, dialect: Dialect) -> ParsedChunk {
    let rest = chunk.chunk.behind(usize::try_from(before).expect("an index into the chunk"));
    let mut parser = Parser::new(Arc::clone(&load.dataset));
    ParsedChunk::new(rest, dialect, |chunk, rows| parser.parse(chunk, &DayRange::ALL, rows))
}
