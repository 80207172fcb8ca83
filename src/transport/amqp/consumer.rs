//! Messages to the parsers: each delivery becomes a piece, and is acknowledged when the piece is durable.
//!
//! A message that cannot be loaded goes to the dead letters, but not the first time that it fails, and not by the broker's
//! count, which also counts each restart of a consumer. While a failed message waits, the others go on.
//!
//! A message that comes again may have ended the process that had it before. It is taken after the others, alone: then nothing
//! else suffers from it, and it is known who ended the process.

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
use super::tap::{DRIP_EVERY, Tap};
use crate::dataset::Dataset;
use crate::error::Result;
use crate::transport::piece::Piece;
use crate::vitals::Stage;

mod attempts; // how often a message was taken alone, beyond the end of the process
mod decode; // a delivery as a piece, on a thread of its own
mod delivery; // a delivery on its way through the pipeline
mod failures; // how often a message failed
mod held; // the bytes of all of them
mod prefetch; // how many the broker may send ahead
mod subscription; // the consumers of all queues

pub use attempts::{Attempt, Attempts};

/// How often `--once` looks whether the queues are empty, and how often they must be so in a row: what the broker has just
/// sent off is in no count.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const LOOKS: u32 = 3;
/// When no message has come for so long, there are no others before those that came again.
const QUIET: Duration = Duration::from_millis(50);
/// While others keep coming, those that came again have their turn after so long; it lasts no longer either.
const TURN: Duration = Duration::from_secs(5);
/// While messages come again no more are taken ahead than if they were large, and for so long after that: those that one consumer
/// returns stay in the queue then, where it finds them, and are not all sent to the next.
const CALM: Duration = Duration::from_secs(1);
/// A message that was taken alone so often and never answered is a dead letter.
const MAX_ALONE: u64 = 20;

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

/// How a session with one connection ended well.
struct Done;

impl Consumer {
    /// A consumer that is not yet connected. `in_flight_bytes`: how much it may hold in memory, beside one message.
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

    /// Whether it is connected, for those who watch over it.
    pub fn connected(&self) -> Connected {
        self.connector.connected()
    }

    /// Hands every message on to the parsers as a piece, until `phase` says that it is enough; then waits until all that was
    /// handed on is settled: whoever holds pieces must go on until this returns. A bounded `pieces` holds this back.
    ///
    /// # Errors
    /// If the broker refuses, stays away or takes no dead letters for longer than the retry policy allows, or has other queues of these
    /// names; or if the parsers are gone. Nothing is lost then: what was not acknowledged is delivered again.
    pub async fn run(mut self, pieces: Sender<Piece>, mut phase: watch::Receiver<Phase>) -> Result<()> {
        let decoder = Decoder::start(pieces, self.failures.clone())?;
        loop {
            let tap = Tap::new();
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
                    self.connector.lost(error)?;
                    // The broker delivers all of it again. Settled first, most of it is then known as loaded, and memory
                    // never holds it twice.
                    while self.outstanding > 0 {
                        self.outcome().await;
                    }
                    self.stage.has_in_hand(0);
                }
            }
        }
    }

    /// The next outcome on a delivery.
    async fn outcome(&mut self) -> Settled {
        let settled = self.outcomes.1.recv().await.expect("this struct holds a sender");
        self.outstanding -= 1;
        settled
    }

    /// Does what the outcome says; of a message that was `alone` the count then ends. On a delivery of an earlier connection that
    /// is nothing: the broker delivers it again.
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

/// What is being done with deliveries that have their outcome.
type Settling = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// A consumer at work on one connection.
struct Session<'a> {
    consumer: &'a mut Consumer,
    decoder: &'a Decoder,
    phase: watch::Receiver<Phase>,
    tap: Tap,
    events: BoxStream<'static, Event>,
    channel: Channel,
    subscription: Subscription,
    settling: FuturesUnordered<Settling>,
    again: Option<Again>,
    /// When the last message came that had come before.
    last_again: Option<Instant>,
    /// The turn of those that came again has come: nothing is taken until everything else is settled.
    their_turn: bool,
    last_arrival: Instant,
    /// When answers of the broker are overdue.
    answer_due: Instant,
    drips: Interval,
    /// How often in a row the queues were found empty.
    looks: u32,
}

/// Deliveries that came again and wait for their turn.
struct Again {
    first: Arrival,
    /// Their bodies are not kept: they come once more.
    others: Vec<Other>,
    /// When the first one came.
    since: Instant,
    /// In which round of consumers.
    round: u64,
}

struct Other {
    dataset: Arc<Dataset>,
    acker: Acker,
    round: u64,
}

impl Again {
    /// How many of them the consumer of the queue holds that holds most, of those of that round.
    fn most_in(&self, round: u64) -> usize {
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
        let mut drips = interval(DRIP_EVERY);
        drips.set_missed_tick_behavior(MissedTickBehavior::Delay);
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
            again: None,
            last_again: None,
            their_turn: false,
            last_arrival: now,
            answer_due: now + ANSWER,
            drips,
            looks: 0,
        })
    }

    async fn run(mut self) -> Result<Done, Fault> {
        loop {
            let phase = *self.phase.borrow_and_update();
            self.ask_for_what_is_wanted(phase);
            if self.is_settled() && self.subscription.is_silent() {
                if phase == Phase::Drain {
                    return self.end().await;
                }
                if let (true, Some(again)) = (self.their_turn, self.again.take()) {
                    self.take_alone(again).await?;
                    self.their_turn = false;
                    continue;
                }
            }
            self.next_event(phase).await?;
            if self.looks == LOOKS {
                return self.end().await;
            }
        }
    }

    /// Lets the broker send as many messages as are wanted now.
    fn ask_for_what_is_wanted(&mut self, phase: Phase) {
        self.consumer.stage.has_in_hand(self.consumer.outstanding + self.settling.len());
        let is_draining = phase == Phase::Drain;
        if is_draining {
            self.decoder.drain();
        }
        self.their_turn = !is_draining && (self.their_turn || self.is_their_turn());
        if !self.their_turn && self.is_quiet() && self.hide_others() {
            self.subscription.renew();
            self.last_arrival = Instant::now();
        }
        self.subscription.want(if is_draining || self.their_turn { 0 } else { self.prefetch() });
    }

    /// Waits until something happens, and does what it asks for.
    async fn next_event(&mut self, phase: Phase) -> Result<(), Fault> {
        let is_draining = phase == Phase::Drain;
        let has_room = is_draining || self.consumer.held.has_room();
        if !has_room {
            // Answers wait behind messages that are not read.
            self.answer_due = Instant::now() + ANSWER;
        }
        let is_settled = self.is_settled();
        let awaits_quiet = is_settled && self.again.is_some() && !self.their_turn && !self.subscription.is_changing();
        let is_idle = phase == Phase::UntilEmpty && is_settled && self.again.is_none();
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
            () = self.tap.ran_dry(), if has_room => self.tap.sip(),
            _ = self.drips.tick() => self.tap.drip(),
            () = sleep_until(self.last_arrival + QUIET), if awaits_quiet => {}
            () = sleep_until(self.answer_due), if self.subscription.is_changing() => return Err(no_answer()),
            () = tokio::time::sleep(LOOK_EVERY), if is_idle => {
                self.looks = if self.queues_are_empty().await? { self.looks + 1 } else { 0 };
            }
        }
        Ok(())
    }

    /// Everything is settled: what has arrived since goes back to its queue with the channel.
    async fn end(mut self) -> Result<Done, Fault> {
        let channel = self.channel.clone();
        let close = async move { close_channel(&channel).await.map_err(Fault::Lost) };
        self.alongside(close).await?;
        Ok(Done)
    }

    fn is_settled(&self) -> bool {
        self.consumer.outstanding == 0 && self.settling.is_empty()
    }

    /// Whether the messages that came again are to be taken now: when the others are settled and no more come, or when they have
    /// waited long enough.
    fn is_their_turn(&self) -> bool {
        let waited_long = self.again.as_ref().is_some_and(|again| again.since.elapsed() >= TURN);
        waited_long || (self.is_quiet() && !self.hide_others())
    }

    /// Whether messages that came again wait, everything else is settled, and nothing comes.
    fn is_quiet(&self) -> bool {
        self.again.is_some() && self.is_settled() && !self.subscription.is_changing() && self.last_arrival.elapsed() >= QUIET
    }

    /// Whether those that came again are so many that the broker sends nothing more, while others may wait behind them.
    fn hide_others(&self) -> bool {
        let most = self.again.as_ref().map_or(0, |again| again.most_in(self.subscription.round()));
        most >= usize::from(self.subscription.prefetch())
    }

    /// How many messages the broker may send ahead.
    fn prefetch(&self) -> u16 {
        let are_calm = self.last_again.is_none_or(|at| at.elapsed() >= CALM);
        if are_calm { self.consumer.prefetch.count() } else { self.consumer.prefetch.of_large() }
    }

    fn arrived(&mut self, (dataset, delivery): Arriving, is_draining: bool) -> Result<(), Fault> {
        self.looks = 0;
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
        if let (false, Some(again)) = (is_new, &mut self.again) {
            self.last_again = Some(self.last_arrival);
            again.others.push(Other { dataset, acker, round: self.subscription.round() });
            return Ok(());
        }
        let arrival = self.arrival(dataset, delivery);
        if is_new {
            return self.hand_over(arrival);
        }
        self.last_again = Some(self.last_arrival);
        let round = self.subscription.round();
        self.again = Some(Again { first: arrival, others: Vec::new(), since: self.last_arrival, round });
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

    /// Takes those that came again, one at a time, while this consumer holds no other message. All but the first are returned, then
    /// fetched one by one: the broker keeps returned messages before all others, so that the first that is new tells that there are
    /// no more. Whoever ends the process is behind the others the next time.
    async fn take_alone(&mut self, Again { first, others, .. }: Again) -> Result<(), Fault> {
        let ends = Instant::now() + TURN;
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
                let Some(got) = self.alongside(get).await? else { break };
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

    /// False if others must not wait for the end of this one: it is to be set aside, or not to be taken any more.
    async fn take_one_alone(&mut self, arrival: Arrival) -> Result<bool, Fault> {
        let key = arrival.key();
        let (attempts, mut phase) = (self.consumer.attempts.clone(), self.phase.clone());
        // The count waits for the database: no message is taken before that answers.
        let begin = async move {
            tokio::select! {
                biased;
                count = attempts.begin(key) => count.map(Some).map_err(Fault::Fatal),
                () = draining(&mut phase) => Ok(None),
            }
        };
        let Some(count) = self.alongside(begin).await? else {
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
                other = Self::meanwhile(&mut self.events, &self.tap, &mut self.drips) => other?,
            }
        };
        let is_letter = matches!(settled.outcome, Outcome::SetAside { .. });
        let settling = self.consumer.settle(settled, true);
        self.settling.push(settling);
        while !is_letter && !self.settling.is_empty() {
            tokio::select! {
                biased;
                Some(done) = self.settling.next() => done.map_err(Fault::Fatal)?,
                other = Self::meanwhile(&mut self.events, &self.tap, &mut self.drips) => other?,
            }
        }
        Ok(!is_letter)
    }

    /// Waits for an answer while the connection is kept alive.
    async fn alongside<T>(&mut self, answer: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
        tokio::pin!(answer);
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return answer,
                other = Self::meanwhile(&mut self.events, &self.tap, &mut self.drips) => other?,
            }
        }
    }

    /// What a connection needs while one message is taken alone, which may be as large as it likes.
    async fn meanwhile(events: &mut BoxStream<'static, Event>, tap: &Tap, drips: &mut Interval) -> Result<(), Fault> {
        tokio::select! {
            biased;
            Some(event) = events.next() => if let Event::Error(error) = event { return Err(Fault::Lost(error)) },
            () = tap.ran_dry() => tap.sip(),
            _ = drips.tick() => {}
        }
        Ok(())
    }

    async fn queues_are_empty(&mut self) -> Result<bool, Fault> {
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        for dataset in self.consumer.route.topology.datasets().to_vec() {
            let (channel, queue) = (self.channel.clone(), self.consumer.route.topology.queue(&dataset.name));
            let look =
                answered(async move { channel.queue_declare(queue, passive, FieldTable::default()).await.map_err(Fault::Lost) });
            if self.alongside(look).await?.message_count() > 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

async fn draining(phase: &mut watch::Receiver<Phase>) {
    if phase.wait_for(|phase| *phase == Phase::Drain).await.is_err() {
        // Nobody is there any more to say so.
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
