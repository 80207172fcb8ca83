//! What a load's ledger row says, whatever comes in which order.

use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::config::DatabaseUrl;
use crate::store::{Database, Indexes};

/// A ledger in a SQLite file, with one load.
struct Ledger {
    connection: Connection,
    id: i64,
    _directory: TempDir,
}

impl Ledger {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let url = DatabaseUrl::Sqlite(directory.path().join("x.db"));
        let database = Database::new(&url, Duration::ZERO).unwrap();
        let mut connection = database.open(&[], Indexes::Leave).await.unwrap();
        let id = open(&mut connection, &[load(1)]).await.unwrap()[0].id;
        Self { connection, id, _directory: directory }
    }

    /// Adds this many loaded and rejected records, and an end. Returns the result of the load if it is told.
    async fn add(&mut self, loaded: u64, rejected: u64, end: Option<LoadEnd<'_>>) -> Option<Told> {
        let counts = Counts { read: loaded + rejected, loaded, rejected, skipped: 0 };
        let progress = LoadProgress { id: self.id, counts, removed: 0, end };
        let closed = advance(&mut self.connection, &[progress]).await.unwrap();
        assert!(closed.len() <= 1 && closed.iter().all(|closed| closed.id == self.id), "{closed:?}");
        closed.into_iter().next().map(told)
    }

    /// The load's status and its `bytes`, which are null until its end is known.
    async fn status(&mut self) -> (String, Option<i64>) {
        let row = self.connection.fetch("select status, bytes from raw_loads", &[]).await.unwrap().remove(0);
        let bytes = match &row[1] {
            Field::Null => None,
            bytes => Some(bytes.int()),
        };
        (row[0].text().unwrap().to_owned(), bytes)
    }
}

/// Read, loaded and rejected records of a closed load, and its error.
type Told = (u64, u64, u64, Option<String>);

fn told(ClosedLoad { counts, error, .. }: ClosedLoad) -> Told {
    (counts.read, counts.loaded, counts.rejected, error)
}

fn load(key: u128) -> OpenLoad<'static> {
    OpenLoad { load_key: Uuid::from_u128(key), dataset: "events", source: "x.json" }
}

fn end(records: u64) -> Option<LoadEnd<'static>> {
    Some(LoadEnd { records, bytes: 10 * records, error: None, sha256: None, host: None })
}

fn failed_end(records: u64) -> Option<LoadEnd<'static>> {
    Some(LoadEnd { records, bytes: 10 * records, error: Some("cut off"), sha256: None, host: None })
}

#[tokio::test]
async fn a_load_closes_when_its_end_and_all_its_records_are_there_in_any_order() {
    let orders: [&[(u64, u64, bool)]; 3] =
        [&[(3, 0, false), (1, 1, true)], &[(3, 0, true), (1, 1, false)], &[(0, 0, true), (1, 1, false), (3, 0, false)]];
    for order in orders {
        let mut ledger = Ledger::new().await;
        for (i, &(loaded, rejected, with_end)) in order.iter().enumerate() {
            let closed = ledger.add(loaded, rejected, with_end.then_some(end(5)).flatten()).await;
            let is_last = i + 1 == order.len();
            assert_eq!(closed, is_last.then_some((5, 4, 1, None)), "{order:?}");
        }
        assert_eq!(ledger.status().await, ("loaded".to_owned(), Some(50)));
    }
}

#[tokio::test]
async fn an_end_that_comes_again_tells_the_result_again_and_changes_nothing() {
    let mut ledger = Ledger::new().await;
    let result = Some((2, 2, 0, None));
    assert_eq!(ledger.add(2, 0, end(2)).await, result);
    assert_eq!(ledger.add(0, 0, end(2)).await, result);
    assert_eq!(ledger.add(0, 0, None).await, None, "chunks that were loaded before tell nothing");
    assert_eq!(ledger.status().await, ("loaded".to_owned(), Some(20)));
}

#[tokio::test]
async fn a_load_has_the_hash_and_the_host_of_its_latest_end() {
    let mut ledger = Ledger::new().await;
    let hash = |digit: &str| digit.repeat(64);
    for (records, sha256, host) in [(2, hash("a"), "one"), (3, hash("b"), "two")] {
        let parsed = sha256.parse().ok();
        let end = LoadEnd { records, bytes: 10 * records, error: None, sha256: parsed, host: Some(host) };
        ledger.add(0, 0, Some(end)).await;
        ledger.add(0, 0, None).await;
        let row = ledger.connection.fetch("select sha256, host from raw_loads", &[]).await.unwrap().remove(0);
        assert_eq!((row[0].text(), row[1].text()), (Some(sha256.as_str()), Some(host)));
    }
}

#[tokio::test]
async fn a_file_that_grew_opens_its_load_again_until_its_new_end() {
    let mut ledger = Ledger::new().await;
    ledger.add(2, 0, end(2)).await.unwrap();
    assert_eq!(ledger.add(3, 0, None).await, None);
    assert_eq!(ledger.status().await, ("loading".to_owned(), None));
    assert_eq!(ledger.add(0, 0, end(5)).await, Some((5, 5, 0, None)));
    // Here the new end is there before the new records.
    assert_eq!(ledger.add(0, 0, end(6)).await, None);
    assert_eq!(ledger.add(0, 1, None).await, Some((6, 5, 1, None)));
}

#[tokio::test]
async fn a_file_with_fewer_records_than_were_loaded_has_changed() {
    let mut ledger = Ledger::new().await;
    assert_eq!(ledger.add(5, 0, None).await, None);
    let (read, loaded, _, error) = ledger.add(0, 0, end(3)).await.unwrap();
    assert_eq!((read, loaded), (5, 5));
    assert!(error.unwrap().contains("fewer records"));
    assert_eq!(ledger.status().await, ("failed".to_owned(), None));
    assert!(open(&mut ledger.connection, &[load(1)]).await.unwrap()[0].is_void);
}

#[tokio::test]
async fn a_file_that_failed_is_booked_with_what_was_loaded_of_it() {
    let mut ledger = Ledger::new().await;
    assert_eq!(ledger.add(0, 0, failed_end(3)).await, None, "its records are not there yet");
    assert_eq!(ledger.add(2, 1, None).await, Some((3, 2, 1, Some("cut off".to_owned()))));
    let again = open(&mut ledger.connection, &[load(1)]).await.unwrap();
    assert_eq!(again, [OpenedLoad { id: ledger.id, is_void: false }]);
    // It is read again, to its end this time.
    assert_eq!(ledger.add(1, 0, end(4)).await, Some((4, 3, 1, None)));
}

#[tokio::test]
async fn a_void_load_stays_void_and_is_told_once() {
    let mut ledger = Ledger::new().await;
    ledger.add(2, 0, None).await;
    let id = ledger.id;
    let voided = void(&mut ledger.connection, id, "replaced").await.unwrap();
    assert_eq!(voided.map(told), Some((2, 2, 0, Some("replaced".to_owned()))));
    assert_eq!(void(&mut ledger.connection, id, "replaced again").await.unwrap(), None);
    assert_eq!(ledger.add(0, 0, end(2)).await, Some((2, 2, 0, Some("replaced".to_owned()))));
    assert_eq!(ledger.status().await, ("failed".to_owned(), None));
}

#[tokio::test]
async fn a_load_that_was_taken_back_stays_so_whatever_comes_of_it() {
    let mut ledger = Ledger::new().await;
    ledger.add(2, 0, end(2)).await.unwrap();
    ledger.connection.run("update raw_loads set status = 'unloaded'").await.unwrap();
    assert!(open(&mut ledger.connection, &[load(1)]).await.unwrap()[0].is_void);
    assert_eq!(ledger.add(0, 0, None).await, None);
    for end in [end(2), end(5), failed_end(5)] {
        assert_eq!(ledger.add(0, 0, end).await, Some((0, 0, 0, None)), "its file may go, and nothing of it is there");
    }
    let id = ledger.id;
    assert_eq!(void(&mut ledger.connection, id, "replaced").await.unwrap(), None);
    assert_eq!(ledger.status().await, ("unloaded".to_owned(), Some(20)));
}

#[tokio::test]
async fn loads_keep_their_ids_and_come_in_the_order_that_was_asked_for() {
    let mut ledger = Ledger::new().await;
    let opened = open(&mut ledger.connection, &[load(3), load(1), load(2)]).await.unwrap();
    let mut ids: Vec<i64> = opened.iter().map(|load| load.id).collect();
    assert_eq!(ids[1], ledger.id);
    let again = open(&mut ledger.connection, &[load(2), load(3)]).await.unwrap();
    assert_eq!(again, [opened[2], opened[0]]);
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 3);
}
