//! Publisher: sends pieces to the broker. Messages are persistent and mandatory, and are kept until the broker has confirmed
//! them. Messages that a lost connection left unconfirmed are published again. A consumer recognises a repeated chunk by its
//! load and `seq`.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, Stream, StreamExt};
use lapin::options::BasicPublishOptions;
use lapin::{Channel, Confirmation, Connection, Event, PublisherConfirm};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use super::connection::{Alarm, Connected, Connector, Fault, Route, close, close_channel, confirming_channel, reply_code, text};
use super::wire::{Message, encode_chunk, encode_end};
use crate::error::{Error, Result};
use crate::retry::{GIVE_UP_AFTER, RetryPolicy};
use crate::steps;
use crate::transport::piece::{Content, FileEnd, Load, Piece, Receipt};
use crate::vitals::Stage;

/// How many messages may wait for their confirmation: enough to keep the broker busy while it syncs its disk. The budget bounds
/// their bytes.
const WINDOW: usize = 512;
/// How long a connected broker may take without confirming anything.
const STALLED: Duration = Duration::from_secs(30);

const PRECONDITION_FAILED: u16 = 406;

/// Publishes the reader's pieces.
pub struct Publisher {
    route: Route,
    connector: Connector,
    stage: Stage,
    outbox: Outbox,
    alarm: Alarm,
}

/// A session with one connection has ended normally.
struct Done;

impl Publisher {
    /// A publisher that is not connected yet.
    pub fn new(route: Route) -> Self {
        let connector = route.connector("dataloader producer", "publisher");
        let stage = connector.stage();
        let alarm = Alarm::new(&route.broker, &stage);
        Self { route, connector, stage, outbox: Outbox::default(), alarm }
    }

    /// Whether it is connected, for the heartbeat.
    pub fn connected(&self) -> Connected {
        self.connector.connected()
    }

    /// Publishes every piece, until the channel is closed and everything is confirmed. `finished` receives each load when all
    /// its messages are confirmed. A piece's receipt is dropped when its message is confirmed.
    ///
    /// While the broker is unavailable or accepts no messages, no pieces are taken. If the retry policy has no limit, this can
    /// last for ever: the caller bounds the drain.
    ///
    /// # Errors
    /// If the broker refuses the connection, is unavailable or accepts no messages for longer than the retry policy allows, or
    /// has queues of these names with other arguments. Loads that were not fully confirmed are not reported as finished.
    pub async fn run(mut self, mut pieces: mpsc::Receiver<Piece>, mut finished: impl FnMut(Published)) -> Result<()> {
        loop {
            let Some(connection) = self.connect(&pieces).await? else { return Ok(()) };
            match self.session(&connection, &mut pieces, &mut finished).await {
                Ok(Done) => {
                    close(&connection).await;
                    return Ok(());
                }
                Err(Fault::Fatal(error)) => {
                    close(&connection).await;
                    return Err(error);
                }
                Err(Fault::Lost(error)) => self.connector.lost(&error)?,
            }
        }
    }

    /// Connects. Returns `None` if there is nothing left to connect for.
    async fn connect(&mut self, pieces: &mpsc::Receiver<Piece>) -> Result<Option<Connection>> {
        let nothing_left = self.outbox.unconfirmed.is_empty();
        let closed = async {
            // The channel does not notify when its last sender is gone, except by taking a piece from it. So it is checked
            // regularly.
            while !(pieces.is_closed() && pieces.is_empty()) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        // With a limited retry policy an unavailable broker is an error even if there was nothing to publish: the next run may
        // have something.
        let must_connect = self.route.retry_policy == RetryPolicy::Limited && !self.connector.was_connected();
        tokio::select! {
            connected = self.connector.connect(None) => connected.map(Some),
            () = closed, if nothing_left && !must_connect => Ok(None),
        }
    }

    async fn session(
        &mut self,
        connection: &Connection,
        pieces: &mut mpsc::Receiver<Piece>,
        finished: &mut impl FnMut(Published),
    ) -> Result<Done, Fault> {
        self.alarm = Alarm::new(&self.route.broker, &self.stage);
        let mut events = Box::pin(connection.events_listener());
        self.route.topology.declare(connection).await?;
        let channel = confirming_channel(connection).await?;
        let mut confirms = FuturesUnordered::new();
        let mut to_publish: VecDeque<u64> = self.outbox.serials();
        let mut last_progress = Instant::now();
        loop {
            if let Some(serial) = to_publish.pop_front() {
                let confirm = self.publish(&channel, serial, &mut events, last_progress).await?;
                confirms.push(confirmation(serial, confirm));
            }
            let ending = pieces.is_closed() && pieces.is_empty();
            if ending && self.outbox.unconfirmed.is_empty() {
                close_channel(&channel).await?;
                return Ok(Done);
            }
            let window_open = to_publish.is_empty() && confirms.len() < WINDOW && !ending;
            tokio::select! {
                biased;
                Some(first) = confirms.next(), if !confirms.is_empty() => {
                    let mut ready = vec![first];
                    while let Some(Some(next)) = confirms.next().now_or_never() {
                        ready.push(next);
                    }
                    for serial in taken(ready).map_err(|error| self.explain(error))? {
                        if steps::begins("a message is confirmed").is_some() || steps::done("a message is confirmed") {
                            return Err(Fault::of_test());
                        }
                        self.outbox.confirm(serial, finished);
                        self.stage.handled(1);
                    }
                    if self.outbox.unconfirmed.is_empty() {
                        self.stage.idle();
                    }
                    self.connector.progress();
                    self.stage.progress();
                    last_progress = Instant::now();
                }
                Some(event) = events.next() => self.alarm.heed(event)?,
                () = self.alarm.said_long_ago() => self.alarm.say(),
                piece = pieces.recv(), if window_open => {
                    if let Some(piece) = piece {
                        if self.outbox.unconfirmed.is_empty() {
                            last_progress = Instant::now();
                            self.stage.busy();
                        }
                        to_publish.push_back(self.outbox.take(piece));
                    }
                }
                () = std::future::ready(()), if !to_publish.is_empty() => {}
                () = self.stalled(last_progress) => return Err(self.stall()),
            }
        }
    }

    /// Passes a message to the connection. Waits while the broker blocks the connection.
    async fn publish(
        &mut self,
        channel: &Channel,
        serial: u64,
        events: &mut (impl Stream<Item = Event> + Unpin),
        last_progress: Instant,
    ) -> Result<PublisherConfirm, Fault> {
        const PUBLISHED: &str = "a message is published";
        if steps::begins(PUBLISHED).is_some() {
            return Err(Fault::of_test());
        }
        let Outgoing { message, load, .. } = &self.outbox.unconfirmed[&serial];
        let (message, routing_key) = (Arc::clone(message), self.route.topology.routing_key(&load.dataset.name, load.key));
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let properties = message.properties.clone();
        let publishing = channel.basic_publish(self.route.topology.exchange(), routing_key, options, &message.body, properties);
        tokio::pin!(publishing);
        loop {
            tokio::select! {
                biased;
                published = &mut publishing => {
                    let confirm = published.map_err(|error| self.explain(error))?;
                    return if steps::done(PUBLISHED) { Err(Fault::of_test()) } else { Ok(confirm) };
                }
                Some(event) = events.next() => self.alarm.heed(event)?,
                () = self.alarm.said_long_ago() => self.alarm.say(),
                () = self.stalled(last_progress) => return Err(self.stall()),
            }
        }
    }

    /// Completes when the broker has confirmed nothing for so long that there must be a fault. Without a limit in the retry
    /// policy, an alarm of the broker may last for ever.
    fn stalled(&self, last_progress: Instant) -> impl Future<Output = ()> + use<> {
        let is_waiting = !self.outbox.unconfirmed.is_empty();
        let limit = is_waiting.then(|| stall_limit(self.route.retry_policy, self.alarm.is_up())).flatten();
        async move {
            match limit {
                Some(limit) => sleep_until(last_progress + limit).await,
                None => std::future::pending().await,
            }
        }
    }

    fn stall(&self) -> Fault {
        if self.alarm.is_up() {
            return Fault::Fatal(self.route.broker.takes_nothing());
        }
        Fault::Lost(io::Error::new(io::ErrorKind::TimedOut, "it confirms no messages").into())
    }

    /// If a message caused the broker to close the channel, publishing it again would close the next one as well. Such an error
    /// is final.
    fn explain(&self, error: lapin::Error) -> Fault {
        if reply_code(&error) != Some(PRECONDITION_FAILED) {
            return Fault::Lost(error);
        }
        let largest = self.outbox.unconfirmed.values().map(|outgoing| outgoing.message.body.len()).max().unwrap_or(0);
        Fault::Fatal(
            Error::failed(format!("RabbitMQ refuses a message, of at most {largest} bytes: {}", text(&error)))
                .hint("raise the broker's `max_message_size` above that"),
        )
    }
}

/// How long the broker may confirm nothing while messages wait for it. `None` if it may take for ever.
fn stall_limit(retry_policy: RetryPolicy, is_alarm_up: bool) -> Option<Duration> {
    match retry_policy {
        RetryPolicy::Limited => Some(GIVE_UP_AFTER),
        RetryPolicy::Forever if is_alarm_up => None,
        RetryPolicy::Forever => Some(STALLED),
    }
}

async fn confirmation(serial: u64, confirm: PublisherConfirm) -> (u64, lapin::Result<Confirmation>) {
    (serial, confirm.await)
}

/// Returns the serial numbers of the messages that the broker accepted. `ready` has to contain all confirmations that are
/// ready.
///
/// The broker returns a message that no queue accepts before it confirms it. lapin attaches returned messages to the next
/// confirmations, even to those of other messages. So a returned message appears either in its own confirmation or in an
/// earlier one that was ready before. If any confirmation carries a returned message, none of them counts.
///
/// # Errors
/// If the broker did not accept a message. All unconfirmed messages are then published again through a new connection, after
/// the queues were declared. On the old connection the broker may still route to a queue that was deleted.
fn taken(ready: Vec<(u64, lapin::Result<Confirmation>)>) -> lapin::Result<Vec<u64>> {
    let mut taken = Vec::with_capacity(ready.len());
    for (serial, confirmation) in ready {
        match confirmation? {
            Confirmation::Ack(None) => taken.push(serial),
            other => {
                let why = match other.take_message() {
                    Some(_) => "a message came back: its queue is gone",
                    None => "a message was not taken",
                };
                return Err(io::Error::other(why).into());
            }
        }
    }
    Ok(taken)
}

/// Messages that are published and not confirmed yet, in the order of publishing.
#[derive(Default)]
struct Outbox {
    unconfirmed: BTreeMap<u64, Outgoing>,
    next_serial: u64,
    loads: HashMap<Uuid, Unconfirmed>,
}

struct Outgoing {
    message: Arc<Message>,
    load: Arc<Load>,
    end: Option<FileEnd>,
    /// Dropped together with the message.
    _receipt: Receipt,
}

/// A load whose messages are all confirmed.
#[derive(Debug, Clone)]
pub struct Published {
    pub load: Arc<Load>,
    pub end: FileEnd,
}

/// The unconfirmed messages of a load.
#[derive(Default)]
struct Unconfirmed {
    unconfirmed: usize,
    /// Set when the load's end was published.
    end: Option<FileEnd>,
}

impl Outbox {
    /// The unconfirmed messages. A new connection publishes all of them, in the order in which they were first published.
    fn serials(&self) -> VecDeque<u64> {
        self.unconfirmed.keys().copied().collect()
    }

    fn take(&mut self, Piece { load, content, receipt }: Piece) -> u64 {
        let serial = self.next_serial;
        self.next_serial += 1;
        self.loads.entry(load.key).or_default().unconfirmed += 1;
        let (message, end) = match content {
            Content::Chunk(chunk) => (encode_chunk(&load, chunk), None),
            Content::End(end) => (encode_end(&load, &end), Some(end)),
            Content::Foreign(_) => unreachable!("a reader makes no messages of other programs"),
        };
        self.unconfirmed.insert(serial, Outgoing { message: Arc::new(message), load, end, _receipt: receipt });
        serial
    }

    fn confirm(&mut self, serial: u64, finished: &mut impl FnMut(Published)) {
        let Some(Outgoing { load, end, .. }) = self.unconfirmed.remove(&serial) else { return };
        let progress = self.loads.entry(load.key).or_default();
        progress.unconfirmed = progress.unconfirmed.saturating_sub(1);
        if end.is_some() {
            progress.end = end;
        }
        if progress.unconfirmed > 0 {
            return;
        }
        if let Some(end) = progress.end.take() {
            self.loads.remove(&load.key);
            finished(Published { load, end });
        }
    }
}

#[cfg(test)]
mod tests {
    use lapin::message::{BasicReturnMessage, Delivery};
    use tokio::sync::Semaphore;

    use super::*;
    use crate::dataset::Dataset;
    use crate::record::chunk::Chunk;
    use crate::record::split::Splitter;

    fn load(key: u128) -> Arc<Load> {
        let dataset = Dataset::without_columns("events");
        Arc::new(Load { key: Uuid::from_u128(key), dataset: Arc::new(dataset), source: format!("{key}.json") })
    }

    fn chunk(seq: u64) -> Content {
        let chunk = Splitter::new(&b"{}"[..]).next_chunk().unwrap().unwrap();
        Content::Chunk(Chunk { seq, ..chunk })
    }

    fn end(records: u64) -> Content {
        Content::End(FileEnd { records, bytes: 2, error: None, sha256: None, host: None })
    }

    /// An outbox, a budget of 100 pieces, and the totals of the loads that were finished.
    struct Sender {
        outbox: Outbox,
        budget: Arc<Semaphore>,
        finished: Vec<(u128, u64)>,
    }

    impl Sender {
        fn new() -> Self {
            Self { outbox: Outbox::default(), budget: Arc::new(Semaphore::new(100)), finished: Vec::new() }
        }

        fn take(&mut self, load: &Arc<Load>, content: Content) -> u64 {
            let receipt = Receipt::from(Arc::clone(&self.budget).try_acquire_owned().unwrap());
            self.outbox.take(Piece { load: Arc::clone(load), content, receipt })
        }

        fn confirm(&mut self, serial: u64) {
            self.outbox.confirm(serial, &mut |Published { load, end }| self.finished.push((load.key.as_u128(), end.records)));
        }
    }

    #[test]
    fn a_new_connection_publishes_what_is_unconfirmed_in_the_first_order() {
        let (mut sender, load) = (Sender::new(), load(1));
        let serials: Vec<u64> = (0..20).map(|seq| sender.take(&load, chunk(seq))).collect();
        let bodies: Vec<Arc<Message>> =
            serials.iter().map(|serial| Arc::clone(&sender.outbox.unconfirmed[serial].message)).collect();
        for confirmed in [0, 7, 19] {
            sender.confirm(serials[confirmed]);
        }
        let later = sender.take(&load, end(20));
        let mut expected: Vec<u64> = (0..20).filter(|i| ![0, 7, 19].contains(i)).map(|i| serials[i]).collect();
        expected.push(later);
        assert_eq!(sender.outbox.serials(), expected);
        assert!(Arc::ptr_eq(&sender.outbox.unconfirmed[&serials[8]].message, &bodies[8]));
    }

    #[test]
    fn a_load_is_finished_when_its_last_message_is_confirmed_whichever_that_is() {
        let (mut sender, first, second) = (Sender::new(), load(1), load(2));
        let (a, other, b) = (sender.take(&first, chunk(0)), sender.take(&second, chunk(0)), sender.take(&first, chunk(1)));
        sender.confirm(a);
        sender.confirm(b);
        assert!(sender.finished.is_empty(), "its end is not published yet");
        let c = sender.take(&first, chunk(2));
        let (first_end, second_end) = (sender.take(&first, end(3)), sender.take(&second, end(1)));
        sender.confirm(first_end);
        assert!(sender.finished.is_empty(), "a chunk before its end is not confirmed yet");
        sender.confirm(c);
        assert_eq!(sender.finished, [(1, 3)]);
        sender.confirm(other);
        sender.confirm(second_end);
        assert_eq!(sender.finished, [(1, 3), (2, 1)]);
        assert!(sender.outbox.loads.is_empty(), "loads that are over take no memory");
    }

    #[test]
    fn a_message_frees_its_budget_once_when_it_is_confirmed() {
        let (mut sender, load) = (Sender::new(), load(1));
        let (a, b) = (sender.take(&load, chunk(0)), sender.take(&load, end(1)));
        assert_eq!(sender.budget.available_permits(), 98);
        // The old connection and the new one can confirm the same message.
        sender.confirm(a);
        sender.confirm(a);
        assert_eq!(sender.budget.available_permits(), 99);
        assert!(sender.finished.is_empty(), "its end is not confirmed");
        sender.confirm(b);
        assert_eq!((sender.budget.available_permits(), &sender.finished[..]), (100, &[(1, 1)][..]));
    }

    #[test]
    fn a_message_that_came_back_makes_none_of_the_confirmations_with_it_count() {
        let accepted = || Ok(Confirmation::Ack(None));
        assert_eq!(taken(vec![(3, accepted()), (4, accepted())]).unwrap(), [3, 4]);
        let came_back = BasicReturnMessage {
            delivery: Delivery::mock(0, "exchange".into(), "events".into(), false, Vec::new()),
            reply_code: 312,
            reply_text: "NO_ROUTE".into(),
        };
        let error = taken(vec![(3, accepted()), (4, Ok(Confirmation::Ack(Some(came_back)))), (5, accepted())]);
        assert!(text(&error.unwrap_err()).contains("its queue is gone"));
        let error = taken(vec![(3, accepted()), (4, Ok(Confirmation::Nack(None)))]);
        assert!(text(&error.unwrap_err()).contains("was not taken"));
    }

    #[test]
    fn only_an_alarm_of_the_broker_may_hold_up_an_endless_run_for_ever() {
        assert_eq!(stall_limit(RetryPolicy::Forever, false), Some(STALLED));
        assert_eq!(stall_limit(RetryPolicy::Forever, true), None);
        assert_eq!(stall_limit(RetryPolicy::Limited, true), Some(GIVE_UP_AFTER));
    }
}
