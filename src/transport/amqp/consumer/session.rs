//! Session: a consumer while it works on one connection. It waits for what happens next, and handles it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{BoxStream, FuturesUnordered};
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Channel, Connection, Event};
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, interval_at, sleep_until};

use super::decode::{Arrival, Decoder};
use super::redelivered::{QUIET, Redelivered};
use super::subscription::{Arriving, Subscription};
use super::{Consumer, Phase, Settling, requeue};
use crate::dataset::Dataset;
use crate::error::Result;
use crate::steps;
use crate::transport::amqp::connection::{ANSWER, Fault, NOT_FOUND, answered, close_channel, reply_code};
use crate::transport::amqp::tap::{TRICKLE_EVERY, Tap};
use crate::transport::amqp::topology::{Lane, Topology};

/// `--once` checks this often whether the queues are empty. They must be empty several times in a row, because the broker's
/// counts do not include a message that it is just sending.
const EMPTY_CHECK_EVERY: Duration = Duration::from_millis(100);
const EMPTY_CHECKS: u32 = 3;
/// How often to look for queues that processes with a larger number of queues have made.
const LOOK_AROUND_EVERY: Duration = Duration::from_secs(60);

/// A session has ended normally.
pub(super) struct Done;

/// A consumer while it works on one connection.
pub(super) struct Session<'a> {
    connection: &'a Connection,
    pub(super) consumer: &'a mut Consumer,
    decoder: &'a Decoder,
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) tap: Tap,
    pub(super) events: BoxStream<'static, Event>,
    pub(super) channel: Channel,
    pub(super) subscription: Subscription,
    /// The outcomes that are being carried out.
    pub(super) settling: FuturesUnordered<Settling>,
    pub(super) redelivered: Redelivered,
    /// When the last message arrived, or when new consumers were started.
    pub(super) last_arrival: Instant,
    /// The deadline for the broker's answers.
    answer_due: Instant,
    /// Ticks when the tap has to allow a trickle.
    pub(super) trickle: Interval,
    /// Ticks when other processes may have made more queues.
    look_around: Interval,
    /// How many checks in a row have found the queues empty.
    times_empty: u32,
}

impl<'a> Session<'a> {
    /// Declares the queues, and opens a channel.
    pub async fn begin(
        consumer: &'a mut Consumer,
        connection: &'a Connection,
        tap: Tap,
        decoder: &'a Decoder,
        phase: &watch::Receiver<Phase>,
    ) -> Result<Self, Fault> {
        let events = connection.events_listener().boxed();
        consumer.route.topology.declare(connection).await?;
        let channel = answered(connection.create_channel()).await?;
        let lanes = lanes(&consumer.route.topology, connection).await?;
        let mut look_around = interval_at(Instant::now() + LOOK_AROUND_EVERY, LOOK_AROUND_EVERY);
        look_around.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut trickle = interval(TRICKLE_EVERY);
        trickle.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let now = Instant::now();
        Ok(Self {
            connection,
            subscription: Subscription::new(&channel, lanes),
            consumer,
            decoder,
            phase: phase.clone(),
            tap,
            events,
            channel,
            settling: FuturesUnordered::new(),
            redelivered: Redelivered::default(),
            last_arrival: now,
            answer_due: now + ANSWER,
            trickle,
            look_around,
            times_empty: 0,
        })
    }

    /// Works until the phase ends it, or until the connection is lost.
    pub async fn run(mut self) -> Result<Done, Fault> {
        loop {
            let phase = *self.phase.borrow_and_update();
            self.update_subscription(phase);
            if self.is_settled() && self.subscription.is_silent() {
                if phase == Phase::Drain {
                    return self.end().await;
                }
                if self.redelivered.are_due() {
                    self.take_redelivered().await?;
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
        self.update_redelivered(is_draining);
        self.subscription.want(if is_draining || self.redelivered.are_due() { 0 } else { self.prefetch() });
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
        let awaits_quiet =
            is_settled && self.redelivered.are_waiting() && !self.redelivered.are_due() && !self.subscription.is_changing();
        let is_idle = phase == Phase::UntilEmpty && is_settled && !self.redelivered.are_waiting();
        tokio::select! {
            biased;
            Some(event) = self.events.next() => still_connected(event)?,
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
            _ = self.look_around.tick() => {
                let (topology, connection) = (self.consumer.route.topology.clone(), self.connection);
                let found = self.while_connected(async move { lanes(&topology, connection).await }).await?;
                self.subscription.set_lanes(found);
            }
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

    /// Whether no message is being processed.
    pub(super) fn is_settled(&self) -> bool {
        self.consumer.outstanding == 0 && self.settling.is_empty()
    }

    /// How many messages the broker may send ahead.
    fn prefetch(&self) -> u16 {
        let prefetch = &self.consumer.prefetch;
        if self.redelivered.arrived_lately() { prefetch.of_large() } else { prefetch.count() }
    }

    /// Decides what becomes of a message that has arrived.
    fn arrived(&mut self, (lane, delivery): Arriving, is_draining: bool) -> Result<(), Fault> {
        if steps::begins("a message has arrived").is_some() || steps::done("a message has arrived") {
            return Err(Fault::of_test());
        }
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
        } else if delivery.redelivered {
            self.defer(lane, delivery);
        } else {
            self.hand_over(self.arrival(lane.dataset, delivery))?;
        }
        Ok(())
    }

    pub(super) fn arrival(&self, dataset: Arc<Dataset>, delivery: lapin::message::Delivery) -> Arrival {
        Arrival::new(dataset, delivery, self.consumer.outcomes.0.clone(), &self.consumer.held)
    }

    /// Passes a message to the decoder.
    pub(super) fn hand_over(&mut self, arrival: Arrival) -> Result<(), Fault> {
        self.consumer.outstanding += 1;
        self.consumer.stage.has_in_hand(self.consumer.outstanding);
        self.decoder.hand_over(arrival).map_err(Fault::Fatal)
    }

    /// Waits for `answer`, and serves the connection in the meantime.
    pub(super) async fn while_connected<T>(&mut self, answer: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
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
    pub(super) async fn serve_connection(
        events: &mut BoxStream<'static, Event>,
        tap: &Tap,
        trickle: &mut Interval,
    ) -> Result<(), Fault> {
        tokio::select! {
            biased;
            Some(event) = events.next() => still_connected(event)?,
            () = tap.used_up() => tap.allow_portion(),
            _ = trickle.tick() => {}
        }
        Ok(())
    }

    /// Whether the broker counts no messages in any queue.
    async fn queues_are_empty(&mut self) -> Result<bool, Fault> {
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        for Lane { queue, .. } in self.subscription.lanes().to_vec() {
            let channel = self.channel.clone();
            let declared =
                answered(async move { channel.queue_declare(queue, passive, FieldTable::default()).await.map_err(Fault::Lost) });
            if self.while_connected(declared).await?.message_count() > 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// All queues that may hold messages: those that every process of this configuration declares, and those that others made.
async fn lanes(topology: &Topology, connection: &Connection) -> Result<Vec<Lane>, Fault> {
    let mut lanes = topology.lanes();
    lanes.extend(topology.lanes_beyond(connection).await?);
    Ok(lanes)
}

/// Whether the connection goes on after an event. That a queue is missing ends only the channel that asked for it, which gets that
/// answer, too.
fn still_connected(event: Event) -> Result<(), Fault> {
    match event {
        Event::Error(error) if reply_code(&error) != Some(NOT_FOUND) => Err(Fault::Lost(error)),
        _ => Ok(()),
    }
}

fn no_answer() -> Fault {
    Fault::Lost(std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer").into())
}
