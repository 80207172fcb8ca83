//! Keys that no column takes, with the first record that has each: noted by the transaction that brings the record.

use super::connection::{Arg, Connection};
use super::error::StoreResult;
use super::schema;
use super::sql::Schema;
use crate::dataset::ColumnType;
use crate::record::unknown::{MOST_KEYS, UnknownKey};

/// A key and the load that brought it first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotedKey {
    pub key: UnknownKey,
    pub load_id: i64,
}

/// Inside a transaction: notes those keys of a dataset that were never noted before, and returns them. `keys` may name a key
/// several times; the first one counts.
///
/// Writers of the same dataset wait here for each other, so this comes after the locks of the tables and before those of ledger
/// rows.
///
/// # Errors
/// If the database fails.
pub async fn note(connection: &mut Connection, dataset: &str, keys: impl Iterator<Item = NotedKey>) -> StoreResult<Vec<NotedKey>> {
    let mut keys = keys.peekable();
    if keys.peek().is_none() {
        return Ok(Vec::new());
    }
    let table = connection.dialect().table(Schema::Dataloader, "unknown_keys");
    let known = connection.fetch(format!("select place from {table} where dataset = $1"), &[Arg::Text(Some(dataset))]).await?;
    let is_known = |place: &str| known.iter().any(|row| row[0].text() == Some(place));
    let mut new: Vec<NotedKey> = Vec::new();
    for noted in keys {
        let is_new = !is_known(&noted.key.place) && new.iter().all(|other| other.key.place != noted.key.place);
        if is_new && known.len() + new.len() < MOST_KEYS {
            new.push(noted);
        }
    }
    // All writers take them in this order, so that no deadlock is possible.
    new.sort_by(|a, b| a.key.place.cmp(&b.key.place));
    let int = |value: u64| Arg::Int(i64::try_from(value).ok());
    let rows: Vec<Vec<Arg<'_>>> = new
        .iter()
        .map(|NotedKey { key, load_id }| {
            let text = |text| Arg::Text(Some(text));
            vec![text(dataset), text(&key.place), text(key.column_type.name()), Arg::Int(Some(*load_id)), int(key.ordinal)]
        })
        .collect();
    let into = format!("{table} (dataset, place, type, load_id, ordinal)");
    connection.insert(&into, "on conflict do nothing", &rows).await?;
    Ok(new)
}

/// A noted key as the database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirstSeen {
    pub dataset: String,
    pub key: UnknownKey,
    pub load_id: i64,
    /// The file, as the ledger names it.
    pub source: String,
}

/// All noted keys. Reads only, and finds nothing where the table was never made or may not be read.
///
/// # Errors
/// If the database fails.
pub async fn list(connection: &mut Connection) -> StoreResult<Vec<FirstSeen>> {
    if !schema::may_read(connection, "unknown_keys").await? {
        return Ok(Vec::new());
    }
    let dialect = connection.dialect();
    let (keys, loads) = (dialect.table(Schema::Dataloader, "unknown_keys"), dialect.table(Schema::Raw, "loads"));
    let sql = format!(
        "select k.dataset, k.place, k.type, k.load_id, k.ordinal, l.source from {keys} k left join {loads} l on l.id = k.load_id \
         order by k.dataset, k.load_id, k.ordinal, k.place"
    );
    let rows = connection.fetch(sql, &[]).await?;
    Ok(rows
        .iter()
        .map(|row| {
            let text = |i: usize| row[i].text().unwrap_or_default().to_owned();
            let column_type = ColumnType::from_name(&text(2)).unwrap_or(ColumnType::Text);
            let key = UnknownKey { place: text(1), column_type, ordinal: row[4].int().unsigned_abs() };
            FirstSeen { dataset: text(0), key, load_id: row[3].int(), source: text(5) }
        })
        .collect())
}
