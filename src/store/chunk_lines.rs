//! The chunk lines in `raw.batches`: which chunks of a load are in the database, and with which records.

use std::collections::{HashMap, HashSet};

use super::connection::{Arg, Connection, Field};
use super::error::StoreResult;
use super::ledger::int;
use super::sql::{Dialect, Schema};
use crate::record::chunk::Digest;

/// A chunk's line in `raw.batches`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkLine {
    pub load_id: i64,
    pub seq: u64,
    pub first_ordinal: u64,
    pub records: u64,
    pub digest: Digest,
}

impl ChunkLine {
    fn args(&self) -> [Arg<'_>; 5] {
        [Arg::Int(Some(self.load_id)), int(self.seq), int(self.first_ordinal), int(self.records), Arg::Bytes(&self.digest)]
    }
}

/// The columns of [`ChunkLine::args`].
const LINE_COLUMNS: &str = "load_id, seq, first_ordinal, records, digest";

/// The stored line of a chunk that was delivered before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownChunk {
    pub first_ordinal: u64,
    pub records: u64,
    /// `None` in lines from an earlier version of the program.
    pub digest: Option<Digest>,
}

/// Writes chunk lines.
///
/// # Errors
/// If the database fails.
pub async fn insert(connection: &mut Connection, lines: &[ChunkLine]) -> StoreResult<()> {
    let rows: Vec<Vec<Arg<'_>>> = lines.iter().map(|line| line.args().to_vec()).collect();
    let batches = connection.dialect().table(Schema::Raw, "batches");
    connection.insert(&format!("{batches} ({LINE_COLUMNS})"), "", &rows).await
}

/// Inside a transaction: writes the chunk lines that are not there yet. For each chunk that was delivered before, returns its
/// stored line. No other transaction can change these lines until this one ends.
///
/// # Errors
/// If the database fails.
pub async fn claim(connection: &mut Connection, lines: &[ChunkLine]) -> StoreResult<Vec<Option<KnownChunk>>> {
    let batches = connection.dialect().table(Schema::Raw, "batches");
    let key = |line: &ChunkLine| (line.load_id, i64::try_from(line.seq).unwrap_or(i64::MAX));
    let mut known = Vec::with_capacity(lines.len());
    for lines in lines.chunks(1_000) {
        let args: Vec<Arg<'_>> = lines.iter().flat_map(ChunkLine::args).collect();
        let sql = format!(
            "insert into {batches} ({LINE_COLUMNS}) values {} on conflict (load_id, seq) do nothing returning load_id, seq",
            connection.dialect().tuples(lines.len(), 5)
        );
        let rows = connection.fetch(sql, &args).await?;
        let mut new: HashSet<(i64, i64)> = rows.iter().map(|row| (row[0].int(), row[1].int())).collect();
        // A key is removed when it is found: of two equal chunks in one transaction, only the first is new.
        let again: Vec<bool> = lines.iter().map(|line| !new.remove(&key(line))).collect();
        let keys: Vec<(i64, i64)> = lines.iter().zip(&again).filter(|(_, again)| **again).map(|(line, _)| key(line)).collect();
        let found = known_lines(connection, &keys).await?;
        known.extend(lines.iter().zip(again).map(|(line, again)| again.then(|| found[&key(line)].clone())));
    }
    Ok(known)
}

/// The stored lines of chunks, by load and `seq`. They are locked until the transaction ends.
async fn known_lines(connection: &mut Connection, keys: &[(i64, i64)]) -> StoreResult<HashMap<(i64, i64), KnownChunk>> {
    if keys.is_empty() {
        return Ok(HashMap::new());
    }
    let dialect = connection.dialect();
    let lock = match dialect {
        Dialect::Postgres => "for update",
        Dialect::Sqlite => "",
    };
    let args: Vec<Arg<'_>> = keys.iter().flat_map(|(load_id, seq)| [Arg::Int(Some(*load_id)), Arg::Int(Some(*seq))]).collect();
    let sql = format!(
        "select {LINE_COLUMNS} from {} where (load_id, seq) in (values {}) order by load_id, seq {lock}",
        dialect.table(Schema::Raw, "batches"),
        connection.dialect().tuples(keys.len(), 2)
    );
    let rows = connection.fetch(sql, &args).await?;
    let known = rows.into_iter().map(|row| {
        let [load_id, seq, first_ordinal, records] = [0, 1, 2, 3].map(|column: usize| row[column].int());
        let digest = row.into_iter().nth(4).map(Field::into_bytes).and_then(|digest| digest.try_into().ok());
        let known = KnownChunk { first_ordinal: first_ordinal.unsigned_abs(), records: records.unsigned_abs(), digest };
        ((load_id, seq), known)
    });
    Ok(known.collect())
}

/// Inside the transaction of [`claim`]: updates the line of a chunk that now has more records.
///
/// # Errors
/// If the database fails.
pub async fn extend(connection: &mut Connection, line: &ChunkLine) -> StoreResult<()> {
    let batches = connection.dialect().table(Schema::Raw, "batches");
    let sql = format!("update {batches} set records = $4, digest = $5 where load_id = $1 and seq = $2 and first_ordinal = $3");
    connection.execute(sql, &line.args()).await.map(drop)
}

/// Inside the transaction of [`claim`]: deletes lines that it wrote.
///
/// # Errors
/// If the database fails.
pub async fn give_up(connection: &mut Connection, lines: &[ChunkLine]) -> StoreResult<()> {
    let batches = connection.dialect().table(Schema::Raw, "batches");
    for line in lines {
        let sql = format!("delete from {batches} where load_id = $1 and seq = $2");
        connection.execute(sql, &[Arg::Int(Some(line.load_id)), int(line.seq)]).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;
    use crate::config::DatabaseUrl;
    use crate::store::ledger::{self, OpenLoad};
    use crate::store::{Database, Indexes};

    #[tokio::test]
    async fn a_chunk_is_claimed_once_even_within_a_transaction() {
        let directory = tempfile::tempdir().unwrap();
        let url = DatabaseUrl::Sqlite(directory.path().join("x.db"));
        let database = Database::new(&url, Duration::ZERO).unwrap();
        let connection = &mut database.open(&[], Indexes::Leave).await.unwrap();
        let load = OpenLoad { load_key: Uuid::now_v7(), dataset: "events", source: "x.jsonl" };
        let load_id = ledger::open(connection, &[load]).await.unwrap()[0].id;
        let line = |seq, records| ChunkLine { load_id, seq, first_ordinal: 1 + 1_000 * seq, records, digest: [7; 16] };
        let known = |line: ChunkLine| {
            let ChunkLine { first_ordinal, records, digest, .. } = line;
            Some(KnownChunk { first_ordinal, records, digest: Some(digest) })
        };
        let lines = [line(0, 1_000), line(1, 5), line(1, 5)];
        assert_eq!(claim(connection, &lines).await.unwrap(), [None, None, known(lines[1])]);
        // More lines than fit in a statement, the known ones last.
        let mut many: Vec<ChunkLine> = (2..2_000).map(|seq| line(seq, 1_000)).collect();
        many.extend([line(1, 8), lines[0]]);
        let claimed = claim(connection, &many).await.unwrap();
        assert!(claimed[..1_998].iter().all(Option::is_none));
        assert_eq!(claimed[1_998..], [known(lines[1]), known(lines[0])], "what is stored, not what came");

        extend(connection, &line(1, 8)).await.unwrap();
        give_up(connection, &[line(0, 1_000)]).await.unwrap();
        assert_eq!(claim(connection, &[line(0, 1_000), line(1, 8)]).await.unwrap(), [None, known(line(1, 8))]);
    }
}
