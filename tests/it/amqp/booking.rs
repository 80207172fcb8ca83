//! Messages of other programs in the ledger: each loaded once, all of a sender booked on one row.

use std::time::Duration;

use dataloader::config::DatabaseUrl;
use dataloader::store::chunk_lines::{self, ChunkLine};
use dataloader::store::ledger::Counts;
use dataloader::store::messages::{ForeignLoad, MessageId, MessageState, book, claim_messages, open_foreign};
use dataloader::store::{Connection, Database, Indexes};
use uuid::Uuid;

use crate::support::{Sandbox, on_both_stores};

on_both_stores!(
    a_message_is_new_once_and_another_body_under_its_id_is_told,
    of_two_transactions_with_the_same_message_one_loads_it,
    messages_are_booked_one_after_the_other_on_one_row,
);

async fn connect(sandbox: &Sandbox) -> Connection {
    let url = DatabaseUrl::parse(&sandbox.database_url()).expect("the sandbox's own");
    let database = Database::new(&url, Duration::from_secs(10)).expect("a valid URL");
    database.open(&[], Indexes::Leave).await.expect("the database is there")
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(test);
}

const ONE: [u8; 32] = [1; 32];
const TWO: [u8; 32] = [2; 32];

fn message<'a>(message_id: &'a str, digest: &'a [u8; 32]) -> MessageId<'a> {
    MessageId { app_id: "shop", message_id, digest }
}

async fn claim(connection: &mut Connection, dataset: &str, messages: &[MessageId<'_>]) -> Vec<MessageState> {
    claim_messages(connection, dataset, messages).await.expect("claimed")
}

fn a_message_is_new_once_and_another_body_under_its_id_is_told(sandbox: &Sandbox) {
    use MessageState::{New, SeenOther, SeenSame};
    run(async {
        let mut connection = connect(sandbox).await;
        connection.begin().await.expect("begun");
        let first = [message("b", &ONE), message("a", &ONE), message("b", &ONE)];
        assert_eq!(claim(&mut connection, "events", &first).await, [New, New, SeenSame]);
        connection.commit().await.expect("committed");
        let again = [message("a", &TWO), message("c", &ONE), message("c", &TWO), message("b", &ONE)];
        assert_eq!(claim(&mut connection, "events", &again).await, [SeenOther, New, SeenOther, SeenSame]);
        // Ids are unique within a dataset and a sender.
        assert_eq!(claim(&mut connection, "orgs", &[message("a", &TWO)]).await, [New]);
        let other_sender = MessageId { app_id: "", ..message("a", &TWO) };
        assert_eq!(claim(&mut connection, "events", &[other_sender]).await, [New]);
        let ids: Vec<String> = (0..2_500).map(|id| format!("many {id}")).collect();
        let many: Vec<_> = ids.iter().map(|id| message(id, &ONE)).collect();
        assert!(claim(&mut connection, "events", &many).await.iter().all(|state| *state == New));
        assert!(claim(&mut connection, "events", &many).await.iter().all(|state| *state == SeenSame));
        assert_eq!(claim(&mut connection, "events", &[]).await, []);
    });
}

fn of_two_transactions_with_the_same_message_one_loads_it(sandbox: &Sandbox) {
    run(async {
        let (mut one, mut two) = (connect(sandbox).await, connect(sandbox).await);
        one.begin().await.expect("begun");
        assert_eq!(claim(&mut one, "events", &[message("a", &ONE)]).await, [MessageState::New]);
        let other = async {
            two.begin().await.expect("begun");
            claim(&mut two, "events", &[message("a", &ONE)]).await
        };
        let commit = async { one.commit().await.expect("committed") };
        let (states, ()) = tokio::join!(other, commit);
        assert_eq!(states, [MessageState::SeenSame]);
    });
}

fn messages_are_booked_one_after_the_other_on_one_row(sandbox: &Sandbox) {
    let key = Uuid::now_v7();
    run(async {
        let mut connection = connect(sandbox).await;
        let mut id = None;
        for i in 0..3u64 {
            connection.begin().await.expect("begun");
            let load = open_foreign(&mut connection, key, "events", "amqp:shop").await.expect("opened");
            assert_eq!(load, ForeignLoad { id: *id.get_or_insert(load.id), next_seq: i, next_ordinal: 5 * i + 1 });
            let line =
                ChunkLine { load_id: load.id, seq: load.next_seq, first_ordinal: load.next_ordinal, records: 5, digest: [0; 16] };
            chunk_lines::insert(&mut connection, &[line]).await.expect("written");
            let counts = Counts { read: 5, loaded: 3, rejected: 2, skipped: 0 };
            book(&mut connection, load, counts, 0, 100).await.expect("booked");
            connection.commit().await.expect("committed");
        }
    });
    let row = "SELECT status, source, bytes, records_read, rows_loaded, rows_rejected, finished_at FROM {raw.loads}";
    assert_eq!(sandbox.lines(row), ["open|amqp:shop|300|15|9|6|NULL"]);
}
