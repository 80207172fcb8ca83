//! Pieces to the broker: published persistent and mandatory, held until the broker has confirmed them. What a lost connection
//! left unconfirmed is published again; a consumer knows a chunk that it has seen by its load and `seq`.

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
use super::wire::{Message, encode};
use crate::error::{Error, Result};
use crate::retry::{GIVE_UP_AFTER, RetryPolicy};
use crate::transport::piece::{Content, FileEnd, Load, Piece, Receipt};
use crate::vitals::Stage;

/// How many messages may wait for their confirmation: enough to keep the broker busy while it syncs its disk. Their bytes are
/// bounded by the budget that every piece holds a part of.
const WINDOW: usize = 512;
/// How long a broker that is connected may confirm nothing.
const STALLED: Duration = Duration::from_secs(30);

const PRECONDITION_FAILED: u16 = 406;

/// Publishes what the reader cuts.
pub struct Publisher {
    route: Route,
    connector: Connector,
    stage: Stage,
    outbox: Outbox,
    alarm: Alarm,
}

/// How a session with one connection ended well.
struct Done;

impl Publisher {
    /// A publisher that is not yet connected.
    pub fn new(route: Route) -> Self {
        let connector = route.connector("dataloader producer", "publisher");
        let stage = connector.stage();
        let alarm = Alarm::new(&route.broker, &stage);
        Self { route, connector, stage, outbox: Outbox::default(), alarm }
    }

    /// Whether it is connected, for those who watch over it.
    pub fn connected(&self) -> Connected {
        self.connector.connected()
    }

    /// Publishes every piece until the channel is closed and all is confirmed. `finished` hears of each load when all of it
    /// is confirmed. A piece's receipt is dropped when the piece is confirmed.
    ///
    /// While the broker is away or takes no messages, no pieces are taken either, and a publisher that is patient does not end:
    /// whoever drains it decides for how long.
    ///
    /// # Errors
    /// If the broker refuses, stays away or takes no messages for longer than the retry policy allows, or has other queues of these
    /// names. What was not confirmed then was not reported as finished.
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
                Err(Fault::Lost(error)) => self.connector.lost(error)?,
            }
        }
    }

    /// `None` when there is nothing left to connect for.
    async fn connect(&mut self, pieces: &mpsc::Receiver<Piece>) -> Result<Option<Connection>> {
        let nothing_left = self.outbox.unconfirmed.is_empty();
        let closed = async {
            // Nothing else tells when the last sender is gone without taking what is in the channel.
            while !(pieces.is_closed() && pieces.is_empty()) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        // Who gives up says that the broker is away even if there was nothing for it: the next time there may be.
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
        let mut to_publish: VecDeque<u64> = self.outbox.unconfirmed.keys().copied().collect();
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
                        self.outbox.confirm(serial, finished);
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
                        }
                        to_publish.push_back(self.outbox.take(piece));
                    }
                }
                () = std::future::ready(()), if !to_publish.is_empty() => {}
                () = self.stalled(last_progress) => return Err(self.stall()),
            }
        }
    }

    /// Hands a message to the connection. While the broker blocks it, this waits.
    async fn publish(
        &mut self,
        channel: &Channel,
        serial: u64,
        events: &mut (impl Stream<Item = Event> + Unpin),
        last_progress: Instant,
    ) -> Result<PublisherConfirm, Fault> {
        let message = Arc::clone(&self.outbox.unconfirmed[&serial].message);
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let (routing_key, properties) = (message.routing_key.clone(), message.properties.clone());
        let publishing = channel.basic_publish(self.route.topology.exchange(), routing_key, options, &message.body, properties);
        tokio::pin!(publishing);
        loop {
            tokio::select! {
                biased;
                published = &mut publishing => return published.map_err(|error| self.explain(error)),
                Some(event) = events.next() => self.alarm.heed(event)?,
                () = self.alarm.said_long_ago() => self.alarm.say(),
                () = self.stalled(last_progress) => return Err(self.stall()),
            }
        }
    }

    /// Comes when the broker has confirmed nothing for so long that something must be wrong. An alarm may last for those who are
    /// patient.
    fn stalled(&self, last_progress: Instant) -> impl Future<Output = ()> + use<> {
        let limit = match self.route.retry_policy {
            _ if self.outbox.unconfirmed.is_empty() => None,
            RetryPolicy::Limited => Some(GIVE_UP_AFTER),
            RetryPolicy::Forever if self.alarm.is_up() => None,
            RetryPolicy::Forever => Some(STALLED),
        };
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

    /// A channel that was closed because of one message would be closed by it again and again.
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

async fn confirmation(serial: u64, confirm: PublisherConfirm) -> (u64, lapin::Result<Confirmation>) {
    (serial, confirm.await)
}

/// The messages that these confirmations, all that are ready, are for.
///
/// A message that no queue takes comes back before it is confirmed, and lapin hands what came back to the next confirmations,
/// whosever they are. So of a message that came back, either its own confirmation carries something, or one that was ready
/// before does: when one does, none of them counts.
///
/// # Errors
/// If the broker did not take a message. All is then published again through another connection, after the queues are declared:
/// in this one the broker may remember a queue that was deleted, and send to it what is meant for its successor.
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

/// What is published and not yet confirmed, in the order it came.
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
    /// Dropped with the message.
    _receipt: Receipt,
}

/// A load of which everything is confirmed.
#[derive(Debug, Clone)]
pub struct Published {
    pub load: Arc<Load>,
    pub end: FileEnd,
}

/// What of a load is not confirmed yet.
#[derive(Default)]
struct Unconfirmed {
    unconfirmed: usize,
    /// Set when its last message is confirmed.
    end: Option<FileEnd>,
}

impl Outbox {
    fn take(&mut self, Piece { load, content, receipt }: Piece) -> u64 {
        let serial = self.next_serial;
        self.next_serial += 1;
        self.loads.entry(load.key).or_default().unconfirmed += 1;
        let end = match &content {
            Content::End(end) => Some(end.clone()),
            Content::Chunk(_) | Content::Foreign(_) => None,
        };
        let message = Arc::new(encode(&load, content));
        self.unconfirmed.insert(serial, Outgoing { message, load, end, _receipt: receipt });
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
