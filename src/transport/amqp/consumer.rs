//! Consumer: passes messages to the parsers. Each delivery becomes a piece, and is acknowledged when the piece is durable.
//!
//! A message that cannot be loaded is dead-lettered, but only after several failures. The consumer counts them itself, because
//! the broker's delivery count also grows with each restart of a consumer. While a failed message waits, the others continue.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crossbeam_channel::Sender;
use lapin::Acker;
use lapin::options::{BasicAckOptions, BasicNackOptions};
use tokio::sync::{mpsc, watch};

use self::decode::Decoder;
use self::delivery::{Outcome, Settled};
use self::failures::{Failures, NextStep};
use self::held::Held;
use self::prefetch::Prefetch;
use self::session::{Done, Session};
use super::connection::{Connected, Connector, Fault, Route, close, text};
use super::dead_letters::DeadLetterQueue;
use super::tap::Tap;
use crate::error::Result;
use crate::steps;
use crate::transport::piece::Piece;
use crate::vitals::Stage;

mod attempts; // how often a message was processed alone, counted across restarts
mod decode; // turns a delivery into a piece, on its own thread
mod delivery; // a delivery in the pipeline, and its outcome
mod failures; // how often a message failed
mod held; // bytes of all messages in memory
mod prefetch; // how many messages the broker may send ahead
mod redelivered; // messages that the broker delivers again: processed after the others, one at a time
mod session; // the work on one connection
mod subscription; // the broker's consumers on all queues

pub use attempts::{Attempt, Attempts};

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

impl Consumer {
    /// A consumer that is not connected yet. `in_flight_bytes` limits what it holds in memory, apart from one message.
    pub fn new(route: Route, in_flight_bytes: usize, attempts: Attempts) -> Self {
        let connector = route.connector("dataloader consumer", "consumer");
        Self {
            stage: connector.stage(),
            connector,
            prefetch: Prefetch::new(in_flight_bytes, route.topology.lanes().len()),
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
            let answer = async || {
                failures.forget(&key);
                // The count ends first. A process that is killed in between leaves no count of a message that is gone.
                if alone {
                    attempts.end(key).await?;
                }
                acknowledge(&acker).await;
                stage.handled(1);
                stage.progress();
                Ok(())
            };
            match outcome {
                Outcome::Done => return answer().await,
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
                        return answer().await;
                    }
                    requeue(&acker).await;
                    drop(share);
                }
                Outcome::SetAside { .. } => {}
            }
            if alone { attempts.end(key).await } else { Ok(()) }
        })
    }
}

/// The work on a delivery whose outcome is known.
type Settling = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

async fn draining(phase: &mut watch::Receiver<Phase>) {
    if phase.wait_for(|phase| *phase == Phase::Drain).await.is_err() {
        // The sender is gone, so the phase cannot change any more.
        std::future::pending().await
    }
}

async fn acknowledge(acker: &Acker) {
    const STEP: &str = "a message is acknowledged";
    if steps::begins(STEP).is_some() {
        return;
    }
    if let Err(error) = acker.ack(BasicAckOptions::default()).await {
        tracing::debug!("an acknowledgement did not reach RabbitMQ: {}", text(&error));
    }
    steps::done(STEP);
}

async fn requeue(acker: &Acker) {
    if let Err(error) = acker.nack(BasicNackOptions { requeue: true, ..Default::default() }).await {
        tracing::debug!("a returned message did not reach RabbitMQ: {}", text(&error));
    }
}
