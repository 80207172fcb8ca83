//! Foreign messages: decides which messages of other programs in a batch are loaded, and on which ledger row they are counted.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::fresh_chunks::Added;
use super::protocol::{ParsedContent, ParsedPiece};
use crate::store::chunk_lines::{self, ChunkLine};
use crate::store::messages::{ForeignLoad, MessageId, MessageState, book, claim_messages, open_foreign};
use crate::store::{Connection, StoreResult};

/// The open ledger rows of a batch's foreign messages. They stay locked until the transaction ends.
#[derive(Debug, Default)]
pub struct ForeignLoads(BTreeMap<Uuid, (ForeignLoad, u64)>);

/// Decides which of the foreign pieces are loaded. Numbers their records after those that their ledger row already has, and
/// writes their chunk lines. `is_fresh` receives the decision for each piece. `contradicting` receives the indexes of pieces
/// whose message id is already known with another body.
///
/// # Errors
/// If the database fails.
pub async fn claim(
    connection: &mut Connection,
    pieces: &mut [ParsedPiece],
    is_fresh: &mut [bool],
    contradicting: &mut Vec<usize>,
) -> StoreResult<ForeignLoads> {
    let mut identified: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (i, piece) in pieces.iter().enumerate() {
        if let ParsedContent::Foreign { message_id, .. } = &piece.content {
            is_fresh[i] = true;
            if message_id.is_some() {
                identified.entry(piece.load.dataset.name.clone()).or_default().push(i);
            }
        }
    }
    for (dataset, indexes) in &identified {
        let messages: Vec<MessageId<'_>> = indexes
            .iter()
            .filter_map(|i| match &pieces[*i].content {
                ParsedContent::Foreign { app_id, message_id: Some(message_id), digest, .. } => {
                    Some(MessageId { app_id, message_id, digest })
                }
                _ => None,
            })
            .collect();
        for (i, state) in indexes.iter().zip(claim_messages(connection, dataset, &messages).await?) {
            is_fresh[*i] = state == MessageState::New;
            if state == MessageState::SeenOther {
                contradicting.push(*i);
            }
        }
    }

    // In the order of the load keys: all consumers lock ledger rows in the same order, which prevents deadlocks.
    let mut loads = ForeignLoads::default();
    let mut of_load: BTreeMap<Uuid, Vec<usize>> = BTreeMap::new();
    for (i, piece) in pieces.iter().enumerate() {
        if is_fresh[i] && matches!(piece.content, ParsedContent::Foreign { .. }) {
            of_load.entry(piece.load.key).or_default().push(i);
        }
    }
    let mut lines = Vec::new();
    for (key, indexes) in of_load {
        let load = &pieces[indexes[0]].load;
        let open = open_foreign(connection, key, &load.dataset.name, &load.source).await?;
        let (mut seq, mut ordinal, mut bytes) = (open.next_seq, open.next_ordinal, 0);
        for i in indexes {
            let ParsedContent::Foreign { chunk, .. } = &mut pieces[i].content else { continue };
            chunk.renumber(ordinal);
            let (records, digest) = (chunk.records, chunk.digest);
            lines.push(ChunkLine { load_id: open.id, seq, first_ordinal: ordinal, records, digest });
            seq += 1;
            ordinal += chunk.records;
            bytes += chunk.bytes as u64;
        }
        loads.0.insert(key, (open, bytes));
    }
    chunk_lines::insert(connection, &lines).await?;
    Ok(loads)
}

impl ForeignLoads {
    /// The ledger id of the load with this key.
    pub fn id(&self, key: Uuid) -> Option<i64> {
        self.0.get(&key).map(|(load, _)| load.id)
    }

    /// Whether that is the ledger id of one of them.
    pub fn has(&self, id: i64) -> bool {
        self.0.values().any(|(load, _)| load.id == id)
    }

    /// Adds the records' counts to the ledger rows. Returns how many records were rejected.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn book(&self, connection: &mut Connection, added: &BTreeMap<i64, Added>) -> StoreResult<u64> {
        let mut rejected = 0;
        for (load, bytes) in self.0.values() {
            let (counts, removed) = added.get(&load.id).map(|added| (added.counts, added.removed)).unwrap_or_default();
            book(connection, *load, counts, removed, *bytes).await?;
            rejected += counts.rejected;
        }
        Ok(rejected)
    }
}
