//! Pieces to the broker: published persistent and mandatory, held until the broker has confirmed them. What a lost connection
//! left unconfirmed is published again; a consumer knows a chunk that it has seen by its load and `seq`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, Stream, StreamExt};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation, Connection, Event, PublisherConfirm};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use super::connection::{Broker, Connected, Connector, Fault, Patience, Pauses, close, reply_code, slow_pauses, text};
use super::topology::Topology;
use super::wire::{Message, encode};
use crate::error::{Error, Result};
use crate::pipeline::messages::{Content, FileEnd, Load, LoadFinished, Piece, Receipt};
use crate::store::GIVE_UP_AFTER;
use crate::store::ledger::Counts;

/// How many messages may wait for their confirmation: enough to keep the broker busy while it syncs its disk. Their bytes are
/// bounded by the budget that every piece holds a part of.
const WINDOW: usize = 512;
/// How long a publisher that is to end waits for a broker that is connected but confirms nothing.
const STALLED: Duration = Duration::from_secs(30);

const PRECONDITION_FAILED: u16 = 406;

/// Publishes what the reader cuts.
pub struct Publisher {
    topology: Topology,
    connector: Connector,
    patience: Patience,
    outbox: Outbox,
}

/// How a session with one connection ended well.
struct Done;

impl Publisher {
    /// A publisher that is not yet connected.
    pub fn new(broker: Broker, topology: Topology, patience: Patience) -> Self {
        let connector = Connector::new(broker, "dataloader producer", patience);
        Self { topology, connector, patience, outbox: Outbox::default() }
    }

    /// Whether it is connected, for those who watch over it.
    pub fn connected(&self) -> Connected {
        self.connector.connected()
    }

    /// Publishes every piece until the channel is closed and all is confirmed. `finished` hears of each load when all of it
    /// is confirmed. A piece's receipt is dropped when the piece is confirmed.
    ///
    /// While the broker is away or takes no messages, no pieces are taken either. Once the channel is closed, that lasts no
    /// longer than ten seconds without a connection, or thirty with one.
    ///
    /// # Errors
    /// If the broker refuses, stays away for longer than patience or the end allow, or has other queues of these names. What
    /// was not confirmed then was not reported as finished.
    pub async fn run(mut self, mut pieces: mpsc::Receiver<Piece>, mut finished: impl FnMut(LoadFinished)) -> Result<()> {
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

    /// `None` when there is nothing left to connect for.
    async fn connect(&mut self, pieces: &mpsc::Receiver<Piece>) -> Result<Option<Connection>> {
        let stayed_away = Error::unreachable(format!("RabbitMQ at {} stayed away", self.connector))
            .hint("files that are not published stay claimed; the next start publishes them");
        let nothing_left = self.outbox.unconfirmed.is_empty();
        let closed = async {
            // Nothing else tells when the last sender is gone without taking what is in the channel.
            while !pieces.is_closed() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            connected = self.connector.connect() => return connected.map(Some),
            () = closed => {}
        }
        if nothing_left && pieces.is_empty() {
            return Ok(None);
        }
        tokio::select! {
            connected = self.connector.connect() => connected.map(Some),
            () = tokio::time::sleep(GIVE_UP_AFTER) => Err(stayed_away),
        }
    }

    async fn session(
        &mut self,
        connection: &Connection,
        pieces: &mut mpsc::Receiver<Piece>,
        finished: &mut impl FnMut(LoadFinished),
    ) -> Result<Done, Fault> {
        // Before anything that the broker may answer with silence.
        let mut events = Box::pin(connection.events_listener());
        self.topology.declare(connection).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let mut confirms = FuturesUnordered::new();
        let mut refused = Refused::default();
        let mut again: BTreeSet<u64> = self.outbox.unconfirmed.keys().copied().collect();
        let mut last_progress = Instant::now();
        loop {
            if let Some(serial) = again.pop_first() {
                let confirm = self.publish(&channel, serial, &mut events, last_progress).await?;
                confirms.push(confirmation(serial, confirm));
            }
            let ending = pieces.is_closed() && pieces.is_empty();
            if ending && self.outbox.unconfirmed.is_empty() {
                return Ok(Done);
            }
            let window_open = again.is_empty() && confirms.len() < WINDOW && !ending;
            tokio::select! {
                biased;
                Some(first) = confirms.next(), if !confirms.is_empty() => {
                    // All that is ready, before any of it counts: see `Refused`.
                    let mut ready = vec![first];
                    while let Some(Some(next)) = confirms.next().now_or_never() {
                        ready.push(next);
                    }
                    let confirmed = refused.sort(ready, &self.outbox).map_err(|error| self.explain(error))?;
                    if !confirmed.is_empty() {
                        self.connector.progress();
                        last_progress = Instant::now();
                        refused.pauses = None;
                    }
                    for serial in confirmed {
                        self.outbox.confirm(serial, finished);
                    }
                    if !refused.again.is_empty() {
                        refused.pause().await;
                        self.topology.declare(connection).await?;
                        again.append(&mut refused.again);
                    }
                }
                Some(event) = events.next() => heed(event)?,
                piece = pieces.recv(), if window_open => {
                    if let Some(piece) = piece {
                        if self.outbox.unconfirmed.is_empty() {
                            last_progress = Instant::now();
                        }
                        again.insert(self.outbox.take(piece));
                    }
                }
                () = std::future::ready(()), if !again.is_empty() => {}
                () = self.stalled(ending, last_progress) => return Err(Fault::Fatal(self.blocked())),
            }
        }
    }

    /// Hands a message to the connection. While the broker blocks it, this waits.
    async fn publish(
        &self,
        channel: &Channel,
        serial: u64,
        events: &mut (impl Stream<Item = Event> + Unpin),
        last_progress: Instant,
    ) -> Result<PublisherConfirm, Fault> {
        let message = &self.outbox.unconfirmed[&serial].message;
        let publishing = channel.basic_publish(
            self.topology.exchange(),
            message.routing_key.clone(),
            BasicPublishOptions { mandatory: true, ..Default::default() },
            &message.body,
            message.properties.clone(),
        );
        tokio::pin!(publishing);
        loop {
            tokio::select! {
                biased;
                published = &mut publishing => return published.map_err(|error| self.explain(error)),
                Some(event) = events.next() => heed(event)?,
                () = self.stalled(false, last_progress) => return Err(Fault::Fatal(self.blocked())),
            }
        }
    }

    /// Comes when one who is to end has waited long enough for a confirmation.
    fn stalled(&self, ending: bool, last_progress: Instant) -> impl Future<Output = ()> + use<> {
        let limit = (ending || self.patience == Patience::GiveUp) && !self.outbox.unconfirmed.is_empty();
        async move {
            match limit {
                true => sleep_until(last_progress + STALLED).await,
                false => std::future::pending().await,
            }
        }
    }

    fn blocked(&self) -> Error {
        Error::unreachable(format!("RabbitMQ at {} has taken no message for {} seconds", self.connector, STALLED.as_secs()))
            .hint("look for alarms of disk or memory with `rabbitmqctl status`")
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

/// # Errors
/// If the event is the end of the connection.
fn heed(event: Event) -> Result<(), Fault> {
    match event {
        Event::ConnectionBlocked(reason) => tracing::warn!("RabbitMQ takes no messages for now: {reason}; waiting"),
        Event::ConnectionUnblocked => tracing::info!("RabbitMQ takes messages again"),
        Event::Error(error) => return Err(Fault::Lost(error)),
        _ => {}
    }
    Ok(())
}

/// What is published and not yet confirmed, in the order it came.
#[derive(Default)]
struct Outbox {
    unconfirmed: BTreeMap<u64, Outgoing>,
    next_serial: u64,
    loads: HashMap<Uuid, Progress>,
}

struct Outgoing {
    message: Message,
    load: Arc<Load>,
    end: Option<FileEnd>,
    /// Dropped with the message.
    _receipt: Receipt,
}

/// How far a load is.
#[derive(Default)]
struct Progress {
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
        let message = encode(&load, content);
        self.unconfirmed.insert(serial, Outgoing { message, load, end, _receipt: receipt });
        serial
    }

    fn confirm(&mut self, serial: u64, finished: &mut impl FnMut(LoadFinished)) {
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
            let counts = Counts { read: end.records, ..Counts::default() };
            finished(LoadFinished {
                key: load.key,
                dataset: load.dataset.name.clone(),
                source: load.source.clone(),
                counts,
                error: end.error,
            });
        }
    }

    fn with_id(&self, message_id: &str) -> Option<u64> {
        let is_it =
            |outgoing: &Outgoing| outgoing.message.properties.message_id().as_ref().is_some_and(|id| id.as_str() == message_id);
        self.unconfirmed.iter().find(|(_, outgoing)| is_it(outgoing)).map(|(serial, _)| *serial)
    }
}

/// Messages that the broker could not route or did not take.
///
/// An unroutable message comes back before it is confirmed, and lapin hands it over with the next confirmation, whosever that
/// is: with several under way often another message's. So a return is told by its own id; and since the confirmation that
/// carries it is ready no later than the message's own, no confirmation counts before all that are ready were looked at.
#[derive(Default)]
struct Refused {
    /// Returned, with their own confirmation still to come.
    returned: BTreeSet<u64>,
    /// To be published again.
    again: BTreeSet<u64>,
    pauses: Option<Pauses>,
}

impl Refused {
    /// The messages that are confirmed.
    fn sort(&mut self, ready: Vec<(u64, lapin::Result<Confirmation>)>, outbox: &Outbox) -> Result<Vec<u64>, lapin::Error> {
        let mut acknowledged = Vec::with_capacity(ready.len());
        for (serial, confirmation) in ready {
            let confirmation = confirmation?;
            if confirmation.is_ack() {
                acknowledged.push(serial);
            } else {
                self.again.insert(serial);
            }
            if let Some(message) = confirmation.take_message() {
                let id = message.properties.message_id().as_ref().map_or("", |id| id.as_str());
                self.returned.extend(outbox.with_id(id));
            }
        }
        acknowledged.retain(|serial| {
            let returned = self.returned.remove(serial);
            if returned {
                self.again.insert(*serial);
            }
            !returned
        });
        Ok(acknowledged)
    }

    /// None before the first attempt to put things right.
    async fn pause(&mut self) {
        let messages = self.again.len();
        match &mut self.pauses {
            None => {
                tracing::warn!("RabbitMQ did not take {messages} message(s), perhaps for want of a queue; declaring all again");
                self.pauses = Some(Box::new(slow_pauses()));
            }
            Some(pauses) => tokio::time::sleep(pauses.next().unwrap_or_default()).await,
        }
    }
}
