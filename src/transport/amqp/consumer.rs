//! Messages to the parsers: each delivery becomes a piece, and is acknowledged when the piece is durable.
//!
//! A message that cannot be loaded goes to the dead letters, but not the first time that it fails, and not by the broker's
//! count, which also counts each restart of a consumer. While a failed message waits, the others go on.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use futures_util::stream::{self, FuturesUnordered, SelectAll};
use futures_util::{Stream, StreamExt};
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions, QueueDeclareOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{Acker, Channel, Connection, Event};
use tokio::sync::{mpsc, watch};

use self::decode::{Arrival, Decoder};
use self::failures::{Failures, NextStep};
use super::connection::{Broker, Connected, Connector, Fault, answered, close, close_channel, text};
use super::dead_letters::{DeadLetter, DeadLetterQueue};
use super::topology::Topology;
use super::wire::MessageKey;
use crate::dataset::Dataset;
use crate::error::Result;
use crate::record::chunk::CHUNK_BYTES;
use crate::retry::Patience;
use crate::transport::piece::{Acknowledge, Piece};

mod decode; // a delivery as a piece, on a thread of its own
mod failures; // how often a message failed

/// How many more small messages may be under way than large ones.
const SMALL_MESSAGES: u16 = 32;
/// How often `--once` looks whether the queues are empty, and how often they must be so in a row: what the broker has just
/// sent off is in no count.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const LOOKS: u32 = 3;

/// What a consumer is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Consume until told otherwise.
    Run,
    /// Consume until the queues are empty and all that was delivered is settled: `run --once`.
    UntilEmpty,
    /// Take nothing more; end when all that was handed on is settled.
    Drain,
}

/// Consumes the queues of all datasets.
pub struct Consumer {
    topology: Topology,
    connector: Connector,
    prefetch: Prefetch,
    failures: Failures,
    dead_letters: Arc<DeadLetterQueue>,
    verdicts: (mpsc::UnboundedSender<Settled>, mpsc::UnboundedReceiver<Settled>),
    /// Deliveries without a verdict.
    outstanding: usize,
}

/// How a session with one connection ended well.
struct Done;

impl Consumer {
    /// A consumer that is not yet connected. `in_flight_bytes`: roughly how much it may hold in memory.
    pub fn new(broker: Broker, topology: Topology, patience: Patience, in_flight_bytes: usize) -> Self {
        Self {
            connector: Connector::new(broker.clone(), "dataloader consumer", patience),
            prefetch: Prefetch::new(in_flight_bytes, topology.datasets().len()),
            failures: Failures::default(),
            dead_letters: Arc::new(DeadLetterQueue::new(broker, topology.clone())),
            verdicts: mpsc::unbounded_channel(),
            outstanding: 0,
            topology,
        }
    }

    /// Whether it is connected, for those who watch over it.
    pub fn connected(&self) -> Connected {
        self.connector.connected()
    }

    /// Hands every message on to the parsers as a piece, until `phase` says that it is enough; then waits until all that was
    /// handed on is settled: whoever holds pieces must go on until this returns. A bounded `pieces` holds this back.
    ///
    /// # Errors
    /// If the broker refuses, stays away for longer than patience allows, or has other queues of these names; or if the
    /// parsers are gone. Nothing is lost then: what was not acknowledged is delivered again.
    pub async fn run(mut self, pieces: Sender<Piece>, mut phase: watch::Receiver<Phase>) -> Result<()> {
        let decoder = Decoder::start(pieces, self.failures.clone())?;
        loop {
            let connection = tokio::select! {
                biased;
                () = draining(&mut phase) => return Ok(()),
                connected = self.connector.connect() => connected?,
            };
            match self.session(&connection, &decoder, &mut phase).await {
                Ok(Done) => {
                    self.dead_letters.close().await;
                    close(&connection).await;
                    return Ok(());
                }
                Err(Fault::Fatal(error)) => {
                    close(&connection).await;
                    return Err(error);
                }
                Err(Fault::Lost(error)) => {
                    self.connector.lost(error)?;
                    // The broker delivers all of it again. Settled first, most of it is then known as loaded, and memory
                    // never holds it twice.
                    while self.outstanding > 0 {
                        self.verdict().await;
                    }
                }
            }
        }
    }

    /// The next verdict on a delivery.
    async fn verdict(&mut self) -> Settled {
        let settled = self.verdicts.1.recv().await.expect("this struct holds a sender");
        self.outstanding -= 1;
        settled
    }

    async fn session(
        &mut self,
        connection: &Connection,
        decoder: &Decoder,
        phase: &mut watch::Receiver<Phase>,
    ) -> Result<Done, Fault> {
        let mut events = Box::pin(connection.events_listener());
        self.topology.declare(connection).await?;
        let channel = answered(connection.create_channel()).await?;
        let mut subscription = Subscription::new(&channel, &self.topology, self.prefetch.count()).await?;
        let mut settling: FuturesUnordered<Pin<Box<dyn Future<Output = ()> + Send>>> = FuturesUnordered::new();
        let mut looks = 0;
        loop {
            let now = *phase.borrow_and_update();
            if now == Phase::Drain {
                if subscription.is_live() {
                    decoder.drain();
                    answered(subscription.cancel(&channel)).await?;
                }
                if self.outstanding == 0 && settling.is_empty() {
                    close_channel(&channel).await?;
                    return Ok(Done);
                }
            }
            let idle = now == Phase::UntilEmpty && self.outstanding == 0 && settling.is_empty();
            tokio::select! {
                biased;
                Some(event) = events.next() => if let Event::Error(error) = event { return Err(Fault::Lost(error)) },
                Ok(()) = phase.changed() => {}
                settled = self.verdicts.1.recv() => {
                    let settled = settled.expect("this struct holds a sender");
                    self.outstanding -= 1;
                    settling.push(self.settle(settled));
                }
                Some(()) = settling.next(), if !settling.is_empty() => {}
                arrival = subscription.next(), if subscription.is_live() => {
                    let (dataset, delivery) = arrival?;
                    looks = 0;
                    self.connector.progress();
                    self.prefetch.note(delivery.data.len());
                    self.outstanding += 1;
                    decoder.hand_over(Arrival::new(dataset, delivery, self.verdicts.0.clone())).map_err(Fault::Fatal)?;
                    if self.prefetch.count() != subscription.prefetch {
                        answered(subscription.renew(&channel, &self.topology, self.prefetch.count())).await?;
                    }
                }
                () = tokio::time::sleep(LOOK_EVERY), if idle => {
                    looks = if answered(self.queues_are_empty(&channel)).await? { looks + 1 } else { 0 };
                    if looks == LOOKS {
                        answered(subscription.cancel(&channel)).await?;
                        close_channel(&channel).await?;
                        return Ok(Done);
                    }
                }
            }
        }
    }

    async fn queues_are_empty(&self, channel: &Channel) -> Result<bool, Fault> {
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        for dataset in self.topology.datasets() {
            let queue = channel.queue_declare(self.topology.queue(&dataset.name), passive, FieldTable::default()).await?;
            if queue.message_count() > 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Does what the verdict says. On a delivery of an earlier connection that is nothing: the broker delivers it again.
    fn settle(&self, Settled { acker, key, verdict }: Settled) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let failures = self.failures.clone();
        let dead_letters = Arc::clone(&self.dead_letters);
        Box::pin(async move {
            match verdict {
                Verdict::Done => {
                    failures.forget(&key);
                    acknowledge(&acker).await;
                }
                Verdict::Returned => requeue(&acker).await,
                Verdict::Failed(detail) => match failures.count(key, detail) {
                    NextStep::TryAgainAfter(pause) => {
                        tokio::time::sleep(pause).await;
                        requeue(&acker).await;
                    }
                    NextStep::GiveUp => requeue(&acker).await,
                },
                Verdict::Condemned { reason, detail } => {
                    failures.condemn(key, reason, detail);
                    requeue(&acker).await;
                }
                Verdict::SetAside(letter) if acker.usable() => match dead_letters.publish(&letter).await {
                    Ok(()) => {
                        failures.forget(&key);
                        acknowledge(&acker).await;
                    }
                    // It keeps its place in the queue until that works.
                    Err(error) => {
                        tracing::warn!("cannot set a message aside: {error}");
                        requeue(&acker).await;
                    }
                },
                Verdict::SetAside(_) => {}
            }
        })
    }
}

async fn draining(phase: &mut watch::Receiver<Phase>) {
    if phase.wait_for(|phase| *phase == Phase::Drain).await.is_err() {
        // Nobody is there any more to say so.
        std::future::pending().await
    }
}

async fn acknowledge(acker: &Acker) {
    if let Err(error) = acker.ack(BasicAckOptions::default()).await {
        tracing::debug!("an acknowledgement did not reach RabbitMQ: {}", text(&error));
    }
}

async fn requeue(acker: &Acker) {
    if let Err(error) = acker.nack(BasicNackOptions { requeue: true, ..Default::default() }).await {
        tracing::debug!("a returned message did not reach RabbitMQ: {}", text(&error));
    }
}

/// How many messages the broker may send ahead: so many that their bytes stay within the budget. It cannot count bytes, so
/// this follows what comes: few while there are chunks, many while there are only small messages.
#[derive(Debug)]
struct Prefetch {
    large: u16,
    small: u16,
    /// A message up to this size is small: so many of them are within the budget.
    small_bytes: usize,
    /// How many small ones have come in a row.
    in_a_row: u16,
}

impl Prefetch {
    /// Each queue has a prefetch count of its own.
    fn new(in_flight_bytes: usize, queues: usize) -> Self {
        let large = u16::try_from((in_flight_bytes / CHUNK_BYTES / queues.max(1)).clamp(2, 1_000)).expect("at most 1,000");
        let small = large * SMALL_MESSAGES;
        Self { large, small, small_bytes: CHUNK_BYTES / usize::from(SMALL_MESSAGES), in_a_row: 0 }
    }

    fn note(&mut self, bytes: usize) {
        self.in_a_row = if bytes <= self.small_bytes { self.in_a_row.saturating_add(1) } else { 0 };
    }

    fn count(&self) -> u16 {
        if self.in_a_row >= self.large { self.small } else { self.large }
    }
}

/// A delivery with the dataset whose queue it was in.
type Arriving = (Arc<Dataset>, lapin::message::Delivery);

enum Item {
    Arrived(Box<Arriving>),
    Failed(lapin::Error),
    /// The end of a consumer that was begun in this round.
    Ended(u64),
}

/// The consumers of all queues, on one channel.
struct Subscription {
    deliveries: SelectAll<Pin<Box<dyn Stream<Item = Item> + Send>>>,
    tags: Vec<ShortString>,
    prefetch: u16,
    /// Each renewal begins a round; that consumers of earlier rounds end is no news.
    round: u64,
}

impl Subscription {
    async fn new(channel: &Channel, topology: &Topology, prefetch: u16) -> Result<Self, Fault> {
        let mut subscription = Self { deliveries: SelectAll::new(), tags: Vec::new(), prefetch, round: 0 };
        answered(subscription.consume(channel, topology)).await?;
        Ok(subscription)
    }

    async fn consume(&mut self, channel: &Channel, topology: &Topology) -> Result<(), Fault> {
        // For each consumer begun from here on: quorum queues know no limit for a whole channel.
        channel.basic_qos(self.prefetch, BasicQosOptions { global: false }).await?;
        let round = self.round;
        for dataset in topology.datasets() {
            let queue = topology.queue(&dataset.name);
            let consumer = channel.basic_consume(queue, "".into(), BasicConsumeOptions::default(), FieldTable::default()).await?;
            self.tags.push(consumer.tag());
            let dataset = Arc::clone(dataset);
            let arrivals = consumer.map(move |delivery| match delivery {
                Ok(delivery) => Item::Arrived(Box::new((Arc::clone(&dataset), delivery))),
                Err(error) => Item::Failed(error),
            });
            self.deliveries.push(Box::pin(arrivals.chain(stream::once(std::future::ready(Item::Ended(round))))));
        }
        Ok(())
    }

    /// Goes on with another prefetch count, which only a new consumer can have. What was already sent still arrives.
    async fn renew(&mut self, channel: &Channel, topology: &Topology, prefetch: u16) -> Result<(), Fault> {
        self.cancel(channel).await?;
        self.round += 1;
        self.prefetch = prefetch;
        self.consume(channel, topology).await
    }

    /// Lets the broker send nothing more.
    async fn cancel(&mut self, channel: &Channel) -> Result<(), Fault> {
        for tag in self.tags.drain(..) {
            channel.basic_cancel(tag, BasicCancelOptions::default()).await?;
        }
        Ok(())
    }

    /// Whether more is to come.
    fn is_live(&self) -> bool {
        !self.tags.is_empty()
    }

    async fn next(&mut self) -> Result<Arriving, Fault> {
        loop {
            match self.deliveries.next().await {
                Some(Item::Arrived(arriving)) => return Ok(*arriving),
                Some(Item::Failed(error)) => return Err(Fault::Lost(error)),
                Some(Item::Ended(round)) if round < self.round => {}
                // Its queue was deleted: declared again with the next connection.
                Some(Item::Ended(_)) | None => return Err(Fault::Lost(io::Error::other("the broker ended a consumer").into())),
            }
        }
    }
}

/// A delivery on its way through the pipeline. Dropped without a verdict, it counts as failed.
#[derive(Debug)]
struct Delivery {
    acker: Acker,
    key: MessageKey,
    verdicts: mpsc::UnboundedSender<Settled>,
    settled: bool,
}

/// A delivery with its verdict.
#[derive(Debug)]
struct Settled {
    acker: Acker,
    key: MessageKey,
    verdict: Verdict,
}

#[derive(Debug)]
enum Verdict {
    Done,
    Returned,
    Failed(String),
    Condemned { reason: String, detail: String },
    SetAside(Box<DeadLetter>),
}

impl Delivery {
    fn send(&mut self, verdict: Verdict) {
        if !std::mem::replace(&mut self.settled, true) {
            let settled = Settled { acker: self.acker.clone(), key: self.key, verdict };
            // Without a consumer there is no connection either: the broker delivers it again.
            let _ = self.verdicts.send(settled);
        }
    }
}

impl Acknowledge for Delivery {
    fn settle(mut self: Box<Self>) {
        self.send(Verdict::Done);
    }

    fn refuse(mut self: Box<Self>, reason: &str, detail: &str) {
        self.send(Verdict::Condemned { reason: reason.to_owned(), detail: detail.to_owned() });
    }

    fn give_back(mut self: Box<Self>) {
        self.send(Verdict::Returned);
    }

    fn redelivers(&self) -> bool {
        true
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.send(Verdict::Failed("the pipeline dropped it".to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefetch_follows_the_size_of_messages() {
        let mut prefetch = Prefetch::new(32 << 20, 2);
        assert_eq!(prefetch.count(), 16);
        for _ in 0..16 {
            prefetch.note(300);
        }
        assert_eq!(prefetch.count(), 512);
        prefetch.note(CHUNK_BYTES);
        assert_eq!(prefetch.count(), 16);
        assert_eq!(Prefetch::new(1, 100).count(), 2);
    }
}
