//! Messages of other programs: which of them are loaded, and the ledger row that counts their records.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::connection::{Arg, Connection, Field};
use super::error::StoreResult;
use super::ledger::{Counts, int};
use super::sql::{Dialect, Schema};

/// A message with an id from its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageId<'a> {
    /// The sender's name; empty if the message has none.
    pub app_id: &'a str,
    pub message_id: &'a str,
    /// SHA-256 of the body.
    pub digest: &'a [u8; 32],
}

/// Whether a message was loaded before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageState {
    /// It was not loaded before. This transaction loads it.
    New,
    /// The same message was loaded before. It must not be loaded again.
    SeenSame,
    /// Another message with the same id was loaded before, which is an error of the sender.
    SeenOther,
}

/// Inside the transaction that writes the messages' records: marks new messages as loaded. Returns one state per message, in
/// the order of the messages. If two messages have the same id, the first one is the new one.
///
/// Waits for any other transaction that is loading one of the messages.
///
/// # Errors
/// If the database fails.
pub async fn claim_messages(
    connection: &mut Connection,
    dataset: &str,
    messages: &[MessageId<'_>],
) -> StoreResult<Vec<MessageState>> {
    /// The number of parameters per statement is limited; in SQLite to 32,766.
    const AT_ONCE: usize = 1_000;
    let table = connection.dialect().table(Schema::Dataloader, "messages");
    let mut states = Vec::with_capacity(messages.len());
    for messages in messages.chunks(AT_ONCE) {
        // Sorted, so that two transactions with the same messages wait for each other and do not deadlock.
        let mut sorted: Vec<&MessageId<'_>> = messages.iter().collect();
        sorted.sort_by_key(|message| (message.app_id, message.message_id));
        let args: Vec<Arg<'_>> = sorted
            .iter()
            .flat_map(|message| {
                [Arg::Text(Some(dataset)), text(message.app_id), text(message.message_id), Arg::Bytes(message.digest)]
            })
            .collect();
        let insert = format!(
            "insert into {table} (dataset, app_id, message_id, digest) values {} on conflict do nothing returning app_id, message_id",
            connection.dialect().tuples(sorted.len(), 4)
        );
        let mut new: HashSet<(String, String)> = connection.fetch(insert, &args).await?.into_iter().map(|row| key(&row)).collect();
        let digests =
            if new.len() < messages.len() { digests(connection, &table, dataset, &sorted).await? } else { HashMap::new() };
        states.extend(messages.iter().map(|message| {
            let key = (message.app_id.to_owned(), message.message_id.to_owned());
            // The sort is stable: of two messages with the same id, the first one was inserted.
            if new.remove(&key) {
                MessageState::New
            } else if digests.get(&key).is_some_and(|digest| digest == message.digest) {
                MessageState::SeenSame
            } else {
                MessageState::SeenOther
            }
        }));
    }
    Ok(states)
}

/// The stored digests of these message ids.
async fn digests(
    connection: &mut Connection,
    table: &str,
    dataset: &str,
    messages: &[&MessageId<'_>],
) -> StoreResult<HashMap<(String, String), Vec<u8>>> {
    let ids = messages.iter().flat_map(|message| [text(message.app_id), text(message.message_id)]);
    let args: Vec<Arg<'_>> = ids.chain([text(dataset)]).collect();
    let sql = format!(
        "select app_id, message_id, digest from {table} where (app_id, message_id) in (values {ids}) and dataset = ${dataset}",
        ids = connection.dialect().tuples(messages.len(), 2),
        dataset = args.len(),
    );
    let rows = connection.fetch(sql, &args).await?;
    Ok(rows
        .into_iter()
        .map(|mut row| {
            let digest = row.pop().unwrap_or(Field::Null).into_bytes();
            (key(&row), digest)
        })
        .collect())
}

fn key(row: &[Field]) -> (String, String) {
    let text = |i: usize| row[i].text().unwrap_or_default().to_owned();
    (text(0), text(1))
}

fn text(value: &str) -> Arg<'_> {
    Arg::Text(Some(value))
}

/// The ledger row of another program's messages, and the positions of its next message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForeignLoad {
    pub id: i64,
    /// The `seq` of its next line in `raw.batches`.
    pub next_seq: u64,
    /// The ordinal of its next record. Records are counted across all its messages.
    pub next_ordinal: u64,
}

/// Inside the transaction that writes the messages' records: returns the ledger row of that key and creates it if it is
/// missing. The row stays locked until the end of the transaction, so no other process uses the same `next_seq` and
/// `next_ordinal`.
///
/// # Errors
/// If the database fails.
pub async fn open_foreign(connection: &mut Connection, load_key: Uuid, dataset: &str, source: &str) -> StoreResult<ForeignLoad> {
    let dialect = connection.dialect();
    let loads = dialect.table(Schema::Raw, "loads");
    let lock = match dialect {
        Dialect::Postgres => " for update",
        // The transaction holds the only write lock.
        Dialect::Sqlite => "",
    };
    let find = format!("select id, records_read from {loads} where load_key = $1{lock}");
    let mut found = connection.fetch(find.as_str(), &[Arg::Uuid(load_key)]).await?;
    if found.is_empty() {
        let insert = format!(
            "insert into {loads} (load_key, dataset, source, status) values ($1, $2, $3, 'open') on conflict (load_key) do nothing"
        );
        connection.execute(insert, &[Arg::Uuid(load_key), text(dataset), text(source)]).await?;
        found = connection.fetch(find, &[Arg::Uuid(load_key)]).await?;
    }
    let (id, records_read) = (found[0][0].int(), found[0][1].int());
    let batches = dialect.table(Schema::Raw, "batches");
    let next_seq = format!("select coalesce(max(seq) + 1, 0) from {batches} where load_id = $1");
    let next_seq = connection.fetch_int(next_seq, &[Arg::Int(Some(id))]).await?;
    Ok(ForeignLoad { id, next_seq: next_seq.unsigned_abs(), next_ordinal: records_read.unsigned_abs() + 1 })
}

/// Adds the counts of more messages to the ledger row that [`open_foreign`] locked, and the number of rows that they removed.
///
/// # Errors
/// If the database fails.
pub async fn book(connection: &mut Connection, load: ForeignLoad, counts: Counts, removed: u64, bytes: u64) -> StoreResult<()> {
    let loads = connection.dialect().table(Schema::Raw, "loads");
    let update = format!(
        "update {loads} set bytes = coalesce(bytes, 0) + $2, records_read = records_read + $3, rows_loaded = rows_loaded + $4, \
         rows_rejected = rows_rejected + $5, records_skipped = records_skipped + $6, rows_removed = rows_removed + $7 where id = $1"
    );
    let Counts { read, loaded, rejected, skipped } = counts;
    let args = [Arg::Int(Some(load.id)), int(bytes), int(read), int(loaded), int(rejected), int(skipped), int(removed)];
    connection.execute(update, &args).await.map(drop)
}
