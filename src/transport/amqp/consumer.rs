//! Consumer: passes messages to the parsers. Each delivery becomes a piece, and is acknowledged when the piece is durable.
//!
//! A message that cannot be loaded is dead-lettered, but only after several failures. The consumer counts them itself, because
//! the broker's delivery count also grows with each restart of a consumer. While a failed message waits, the others continue.
//!
//! A redelivered message may have crashed the process that had it before. It is processed after the others and alone: a crash
//! then affects no other message, and its cause is known.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use futures_util::StreamExt;
use futures_util::stream::{BoxStream, FuturesUnordered};
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Acker, Channel, Connection, Event};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};

use self::decode::{Arrival, Decoder};
use self::delivery::{Outcome, Settled};
use self::failures::{Failures, NextStep};
use self::held::Held;
use self::prefetch::Prefetch;
use self::subscription::{Arriving, Subscription};
use super::connection::{ANSWER, Connected, Connector, Fault, Route, answered, close, close_channel, text};
use super::dead_letters::DeadLetterQueue;
use super::tap::{TRICKLE_EVERY, Tap};
use crate::dataset::Dataset;
use crate::error::Result;
use crate::transport::piece::Piece;
use crate::vitals::Stage;

mod attempts; // how often a message was processed alone, counted across restarts
mod decode; // turns a delivery into a piece, on its own thread
mod delivery; // a delivery in the pipeline, and its outcome
mod failures; // how often a message failed
mod held; // bytes of all messages in memory
mod prefetch; // how many messages the broker may send ahead
mod subscription; // the broker's consumers on all queues

pub use attempts::{Attempt, Attempts};

/// `--once` checks this often whether the queues are empty. They must be empty several times in a row, because the broker's
/// counts do not include a message that it is just sending.
const EMPTY_CHECK_EVERY: Duration = Duration::from_millis(100);
const EMPTY_CHECKS: u32 = 3;
/// When no message has arrived for this long, the queues hold no new messages in front of the redelivered ones.
const QUIET: Duration = Duration::from_millis(50);
/// If new messages keep arriving, redelivered ones are processed after this time. They are processed for this time at most.
const REDELIVERED_TIME: Duration = Duration::from_secs(5);
/// For this long after the last redelivered message, the prefetch count stays as low as for large messages.
/// Messages that one consumer returns then stay in the queue, where it can fetch them, instead of being sent to the next
/// consumer.
const LOW_PREFETCH_TIME: Duration = Duration::from_secs(1);
/// A message that was processed alone this often without an answer is dead-lettered.
const MAX_ALONE: u64 = 20;

/// What a consumer is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Consume until the phase changes.
    Run,
    /// Consume until the queues are empty and all deliveries are settled (`run --once`).
    UntilEmpty,
    /// Take no more messages. End when all deliveries that were passed on are settled.
    Drain,
}

/// Consumes the queues of all datasets.
pub struct Consumer {
    route: Route,
    connector: Connector,
    stage: Stage,
    prefetch: Prefetch,
    held: Held,
    failures: Failures,
    attempts: Attempts,
    dead_letters: Arc<DeadLetterQueue>,
    outcomes: (mpsc::UnboundedSender<Settled>, mpsc::UnboundedReceiver<Settled>),
    /// Deliveries without an outcome.
    outstanding: usize,
}

/// A session with one connection has ended normally.
struct Done;

impl Consumer {
    /// A consumer that is not connected yet. `in_flight_bytes` limits what it holds in memory, apart from one message.
    pub fn new(route: Route, in_flight_bytes: usize, attempts: Attempts) -> Self {
        let connector = route.connector("dataloader consumer", "consumer");
        Self {
            stage: connector.stage(),
            connector,
            prefetch: Prefetch::new(in_flight_bytes, route.topology.datasets().len()),
            held: Held::new(in_flight_bytes),
            failures: Failures::default(),
            attempts,
            dead_letters: Arc::new(DeadLetterQueue::new(route.clone())),
            outcomes: mpsc::unbounded_channel(),
            outstanding: 0,
            route,
        }
    }

    /// Whether it is connected, for the heartbeat.
    pub fn connected(&self) -> Connected {
        self.connector.connected()
    }

    /// Passes every message to the parsers as a piece, until `phase` changes. Then waits until all these pieces are settled, so
    /// the later stages must run until this returns. A full `pieces` channel holds this up.
    ///
    /// # Errors
    /// If the broker refuses the connection, if it is unavailable or accepts no dead letters for longer than the retry policy
    /// allows, if it has queues of these names with other arguments, or if the parsers are gone. Nothing is lost then: the
    /// broker delivers unacknowledged messages again.
    pub async fn run(mut self, pieces: Sender<Piece>, mut phase: watch::Receiver<Phase>) -> Result<()> {
        let decoder = Decoder::start(pieces, self.failures.clone())?;
        loop {
            let tap = Tap::new();
            let alive = tap.end_on_drop();
            let connection = tokio::select! {
                biased;
                () = draining(&mut phase) => return Ok(()),
                connected = self.connector.connect(Some(&tap)) => connected?,
            };
            let ended = match Session::begin(&mut self, &connection, tap, &decoder, &phase).await {
                Ok(session) => session.run().await,
                Err(fault) => Err(fault),
            };
            match ended {
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
                    drop(alive);
                    self.connector.lost(&error)?;
                    // The broker delivers all these messages again. Waiting until the old ones are settled has two effects:
                    // most of the new ones are then known as loaded, and memory never holds a message twice.
                    while self.outstanding > 0 {
                        self.outcome().await;
                    }
                    self.stage.has_in_hand(0);
                }
            }
        }
    }

    /// Waits for the next outcome of a delivery.
    async fn outcome(&mut self) -> Settled {
        let settled = self.outcomes.1.recv().await.expect("this struct holds a sender");
        self.outstanding -= 1;
        settled
    }

    /// Carries out the outcome of a delivery. For a message that was processed `alone`, its count ends after that. For a
    /// delivery of an earlier connection it has no effect: the broker delivers the message again.
    fn settle(&self, settled: Settled, alone: bool) -> Settling {
        let Settled { acker, key, outcome } = settled;
        let failures = self.failures.clone();
        let dead_letters = Arc::clone(&self.dead_letters);
        let attempts = self.attempts.clone();
        let stage = self.stage.clone();
        Box::pin(async move {
            match outcome {
                Outcome::Done => {
                    failures.forget(&key);
                    acknowledge(&acker).await;
                    stage.progress();
                }
                Outcome::Returned => requeue(&acker).await,
                Outcome::Failed(detail) => match failures.count(key, detail) {
                    NextStep::TryAgainAfter(pause) => {
                        tokio::time::sleep(pause).await;
                        requeue(&acker).await;
                    }
                    NextStep::GiveUp => requeue(&acker).await,
                },
                Outcome::Unloadable { reason, detail } => {
                    failures.dead_letter(key, reason, detail);
                    requeue(&acker).await;
                }
                Outcome::SetAside { letter, share } if acker.usable() => {
                    if dead_letters.publish(&letter).await? {
                        failures.forget(&key);
                        acknowledge(&acker).await;
                        stage.progress();
                    } else {
                        requeue(&acker).await;
                    }
                    drop(share);
                }
                Outcome::SetAside { .. } => {}
            }
            if alone { attempts.end(key) } else { Ok(()) }
        })
    }
}

/// The work on a delivery whose outcome is known.
type Settling = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// A consumer while it works on one connection.
struct Session<'a> {
    consumer: &'a mut Consumer,
    decoder: &'a Decoder,
    phase: watch::Receiver<Phase>,
    tap: Tap,
    events: BoxStream<'static, Event>,
    channel: Channel,
    subscription: Subscription,
    /// The outcomes that are being carried out.
    settling: FuturesUnordered<Settling>,
    /// The redelivered messages that wait. `None` if there are none.
    redelivered: Option<Redelivered>,
    /// When the last redelivered message arrived. `None` if this connection has delivered none.
    last_redelivery: Option<Instant>,
    /// Whether the redelivered messages have to be processed now. Then nothing else is taken until all the others are settled.
    redelivered_due: bool,
    /// When the last message arrived, or when new consumers were started.
    last_arrival: Instant,
    /// The deadline for the broker's answers.
    answer_due: Instant,
    /// Ticks when the tap has to allow a trickle.
    trickle: Interval,
    /// How many checks in a row have found the queues empty.
    times_empty: u32,
}

/// Redelivered messages that wait until they are processed.
struct Redelivered {
    first: Arrival,
    /// Without their bodies, as the broker delivers these messages again.
    others: Vec<Other>,
    /// When the first one arrived.
    since: Instant,
    /// The subscription's round in which the first one arrived.
    round: u64,
}

struct Other {
    dataset: Arc<Dataset>,
    acker: Acker,
    round: u64,
}

impl Redelivered {
    /// The number of waiting messages of this round in the queue that has most of them.
    fn most_in_one_queue(&self, round: u64) -> usize {
        let mut counts: HashMap<&str, usize> = HashMap::new();
        if self.round == round {
            counts.insert(&self.first.dataset().name, 1);
        }
        for other in self.others.iter().filter(|other| other.round == round) {
            *counts.entry(&other.dataset.name).or_default() += 1;
        }
        counts.into_values().max().unwrap_or(0)
    }
}

impl<'a> Session<'a> {
    async fn begin(
        consumer: &'a mut Consumer,
        connection: &Connection,
        tap: Tap,
        decoder: &'a Decoder,
        phase: &watch::Receiver<Phase>,
    ) -> Result<Self, Fault> {
        let events = connection.events_listener().boxed();
        consumer.route.topology.declare(connection).await?;
        let channel = answered(connection.create_channel()).await?;
        let mut trickle = interval(TRICKLE_EVERY);
        trickle.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let now = Instant::now();
        Ok(Self {
            subscription: Subscription::new(&channel, &consumer.route.topology),
            consumer,
            decoder,
            phase: phase.clone(),
            tap,
            events,
            channel,
            settling: FuturesUnordered::new(),
            redelivered: None,
            last_redelivery: None,
            redelivered_due: false,
            last_arrival: now,
            answer_due: now + ANSWER,
            trickle,
            times_empty: 0,
        })
    }

    async fn run(mut self) -> Result<Done, Fault> {
        loop {
            let phase = *self.phase.borrow_and_update();
            self.update_subscription(phase);
            if self.is_settled() && self.subscription.is_silent() {
                if phase == Phase::Drain {
                    return self.end().await;
                }
                if let (true, Some(redelivered)) = (self.redelivered_due, self.redelivered.take()) {
                    self.take_alone(redelivered).await?;
                    self.redelivered_due = false;
                    continue;
                }
            }
            self.next_event(phase).await?;
            if self.times_empty == EMPTY_CHECKS {
                return self.end().await;
            }
        }
    }

    /// Sets how many messages the broker may send ahead now, and reports how many are in hand.
    fn update_subscription(&mut self, phase: Phase) {
        self.consumer.stage.has_in_hand(self.consumer.outstanding + self.settling.len());
        let is_draining = phase == Phase::Drain;
        if is_draining {
            self.decoder.drain();
        }
        self.redelivered_due = !is_draining && (self.redelivered_due || self.are_redelivered_due());
        if !self.redelivered_due && self.is_quiet() && self.is_prefetch_used_up() {
            self.subscription.renew();
            self.last_arrival = Instant::now();
        }
        self.subscription.want(if is_draining || self.redelivered_due { 0 } else { self.prefetch() });
    }

    /// Waits for the next event, and handles it.
    async fn next_event(&mut self, phase: Phase) -> Result<(), Fault> {
        let is_draining = phase == Phase::Drain;
        let has_room = is_draining || self.consumer.held.has_room();
        if !has_room {
            // While nothing is read, the broker's answers cannot arrive either.
            self.answer_due = Instant::now() + ANSWER;
        }
        let is_settled = self.is_settled();
        let awaits_quiet = is_settled && self.redelivered.is_some() && !self.redelivered_due && !self.subscription.is_changing();
        let is_idle = phase == Phase::UntilEmpty && is_settled && self.redelivered.is_none();
        tokio::select! {
            biased;
            Some(event) = self.events.next() => if let Event::Error(error) = event { return Err(Fault::Lost(error)) },
            Ok(()) = self.phase.changed() => {}
            settled = self.consumer.outcome() => {
                let settling = self.consumer.settle(settled, false);
                self.settling.push(settling);
            }
            Some(done) = self.settling.next() => done.map_err(Fault::Fatal)?,
            arriving = self.subscription.next(), if !self.subscription.is_silent() => self.arrived(arriving?, is_draining)?,
            () = self.tap.used_up(), if has_room => self.tap.allow_portion(),
            _ = self.trickle.tick() => self.tap.allow_trickle(),
            () = sleep_until(self.last_arrival + QUIET), if awaits_quiet => {}
            () = sleep_until(self.answer_due), if self.subscription.is_changing() => return Err(no_answer()),
            () = tokio::time::sleep(EMPTY_CHECK_EVERY), if is_idle => {
                self.times_empty = if self.queues_are_empty().await? { self.times_empty + 1 } else { 0 };
            }
        }
        Ok(())
    }

    /// Ends the session when everything is settled. Closing the channel returns to their queues the messages that have arrived
    /// since.
    async fn end(mut self) -> Result<Done, Fault> {
        let channel = self.channel.clone();
        let close = async move { close_channel(&channel).await.map_err(Fault::Lost) };
        self.while_connected(close).await?;
        Ok(Done)
    }

    fn is_settled(&self) -> bool {
        self.consumer.outstanding == 0 && self.settling.is_empty()
    }

    /// Whether the redelivered messages are to be processed now: when all others are settled and no more arrive, or when the
    /// redelivered ones have waited long enough.
    fn are_redelivered_due(&self) -> bool {
        let waited_long = self.redelivered.as_ref().is_some_and(|redelivered| redelivered.since.elapsed() >= REDELIVERED_TIME);
        waited_long || (self.is_quiet() && !self.is_prefetch_used_up())
    }

    /// Whether redelivered messages wait, everything else is settled, and nothing arrives.
    fn is_quiet(&self) -> bool {
        self.redelivered.is_some() && self.is_settled() && !self.subscription.is_changing() && self.last_arrival.elapsed() >= QUIET
    }

    /// Whether the redelivered messages use up the prefetch count of a queue. The broker then sends no more from it, although
    /// new messages may follow.
    fn is_prefetch_used_up(&self) -> bool {
        let most = self.redelivered.as_ref().map_or(0, |redelivered| redelivered.most_in_one_queue(self.subscription.round()));
        most >= usize::from(self.subscription.prefetch())
    }

    /// How many messages the broker may send ahead.
    fn prefetch(&self) -> u16 {
        let is_long_ago = self.last_redelivery.is_none_or(|at| at.elapsed() >= LOW_PREFETCH_TIME);
        if is_long_ago { self.consumer.prefetch.count() } else { self.consumer.prefetch.of_large() }
    }

    fn arrived(&mut self, (dataset, delivery): Arriving, is_draining: bool) -> Result<(), Fault> {
        self.times_empty = 0;
        self.last_arrival = Instant::now();
        self.answer_due = self.last_arrival + ANSWER;
        self.consumer.connector.progress();
        self.consumer.prefetch.note(delivery.data.len());
        if is_draining {
            self.settling.push(Box::pin(async move {
                requeue(&delivery.acker).await;
                Ok(())
            }));
            return Ok(());
        }
        let (is_new, acker) = (!delivery.redelivered, delivery.acker.clone());
        if let (false, Some(redelivered)) = (is_new, &mut self.redelivered) {
            self.last_redelivery = Some(self.last_arrival);
            redelivered.others.push(Other { dataset, acker, round: self.subscription.round() });
            return Ok(());
        }
        let arrival = self.arrival(dataset, delivery);
        if is_new {
            return self.hand_over(arrival);
        }
        self.last_redelivery = Some(self.last_arrival);
        let round = self.subscription.round();
        self.redelivered = Some(Redelivered { first: arrival, others: Vec::new(), since: self.last_arrival, round });
        Ok(())
    }

    fn arrival(&self, dataset: Arc<Dataset>, delivery: lapin::message::Delivery) -> Arrival {
        Arrival::new(dataset, delivery, self.consumer.outcomes.0.clone(), &self.consumer.held)
    }

    fn hand_over(&mut self, arrival: Arrival) -> Result<(), Fault> {
        self.consumer.outstanding += 1;
        self.consumer.stage.has_in_hand(self.consumer.outstanding);
        self.decoder.hand_over(arrival).map_err(Fault::Fatal)
    }

    /// Processes the redelivered messages one at a time, while this consumer holds no other message. It returns all but the
    /// first to their queues and then fetches them one by one. The broker puts returned messages before all others, so the
    /// first new message means that there are no more of them. A message that crashes the process comes after the others next
    /// time.
    async fn take_alone(&mut self, Redelivered { first, others, .. }: Redelivered) -> Result<(), Fault> {
        let ends = Instant::now() + REDELIVERED_TIME;
        let mut datasets = vec![Arc::clone(first.dataset())];
        for Other { dataset, acker, .. } in others {
            requeue(&acker).await;
            if !datasets.iter().any(|known| known.name == dataset.name) {
                datasets.push(dataset);
            }
        }
        if !self.take_one_alone(first).await? {
            return Ok(());
        }
        for dataset in datasets {
            let queue = self.consumer.route.topology.queue(&dataset.name);
            while *self.phase.borrow() != Phase::Drain && Instant::now() < ends {
                let (channel, queue) = (self.channel.clone(), queue.clone());
                let get = answered(async move { channel.basic_get(queue, BasicGetOptions::default()).await.map_err(Fault::Lost) });
                let Some(got) = self.while_connected(get).await? else { break };
                let is_new = !got.delivery.redelivered;
                let arrival = self.arrival(Arc::clone(&dataset), got.delivery);
                if is_new {
                    self.hand_over(arrival)?;
                    break;
                }
                if !self.take_one_alone(arrival).await? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Processes one message alone. Returns false if the others must not wait for its end: the message is being dead-lettered,
    /// or was returned because the consumer drains.
    async fn take_one_alone(&mut self, arrival: Arrival) -> Result<bool, Fault> {
        let key = arrival.key();
        let (attempts, mut phase) = (self.consumer.attempts.clone(), self.phase.clone());
        // The count is in the database. The message is not processed before the database answers.
        let begin = async move {
            tokio::select! {
                biased;
                count = attempts.begin(key) => count.map(Some).map_err(Fault::Fatal),
                () = draining(&mut phase) => Ok(None),
            }
        };
        let Some(count) = self.while_connected(begin).await? else {
            let acker = arrival.into_acker();
            requeue(&acker).await;
            return Ok(false);
        };
        if count > MAX_ALONE {
            let detail = format!("the process ended {MAX_ALONE} times while it had taken this message alone");
            self.consumer.failures.dead_letter(key, "crash".to_owned(), detail);
        }
        self.hand_over(arrival)?;
        let settled = loop {
            tokio::select! {
                biased;
                settled = self.consumer.outcome() => break settled,
                other = Self::serve_connection(&mut self.events, &self.tap, &mut self.trickle) => other?,
            }
        };
        let is_letter = matches!(settled.outcome, Outcome::SetAside { .. });
        let settling = self.consumer.settle(settled, true);
        self.settling.push(settling);
        while !is_letter && !self.settling.is_empty() {
            tokio::select! {
                biased;
                Some(done) = self.settling.next() => done.map_err(Fault::Fatal)?,
                other = Self::serve_connection(&mut self.events, &self.tap, &mut self.trickle) => other?,
            }
        }
        Ok(!is_letter)
    }

    /// Waits for `answer`, and serves the connection in the meantime.
    async fn while_connected<T>(&mut self, answer: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
        tokio::pin!(answer);
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return answer,
                other = Self::serve_connection(&mut self.events, &self.tap, &mut self.trickle) => other?,
            }
        }
    }

    /// Serves the connection while something else is awaited. A message that is processed alone may be of any size, so whatever
    /// arrives is read.
    async fn serve_connection(events: &mut BoxStream<'static, Event>, tap: &Tap, trickle: &mut Interval) -> Result<(), Fault> {
        tokio::select! {
            biased;
            Some(event) = events.next() => if let Event::Error(error) = event { return Err(Fault::Lost(error)) },
            () = tap.used_up() => tap.allow_portion(),
            _ = trickle.tick() => {}
        }
        Ok(())
    }

    async fn queues_are_empty(&mut self) -> Result<bool, Fault> {
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        for dataset in self.consumer.route.topology.datasets().to_vec() {
            let (channel, queue) = (self.channel.clone(), self.consumer.route.topology.queue(&dataset.name));
            let declared =
                answered(async move { channel.queue_declare(queue, passive, FieldTable::default()).await.map_err(Fault::Lost) });
            if self.while_connected(declared).await?.message_count() > 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

async fn draining(phase: &mut watch::Receiver<Phase>) {
    if phase.wait_for(|phase| *phase == Phase::Drain).await.is_err() {
        // The sender is gone, so the phase cannot change any more.
        std::future::pending().await
    }
}

fn no_answer() -> Fault {
    Fault::Lost(std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer").into())
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
