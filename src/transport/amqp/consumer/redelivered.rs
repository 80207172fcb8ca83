//! Redelivered: messages that the broker delivers again. Such a message may have crashed the process that had it before. It is
//! processed after the others and alone: a crash then affects no other message, and its cause is known.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::Acker;
use lapin::message::Delivery;
use lapin::options::BasicGetOptions;
use tokio::time::Instant;

use super::decode::Arrival;
use super::delivery::Outcome;
use super::session::Session;
use super::{Phase, draining, requeue};
use crate::error::Result;
use crate::transport::amqp::connection::{Fault, answered};
use crate::transport::amqp::topology::Lane;

/// When no message has arrived for this long, the queues hold no new messages in front of the redelivered ones.
pub(super) const QUIET: Duration = Duration::from_millis(50);
/// If new messages keep arriving, redelivered ones are processed after this time. They are processed for this time at most.
const REDELIVERED_TIME: Duration = Duration::from_secs(5);
/// For this long after the last redelivered message, the prefetch count stays as low as for large messages.
/// Messages that one consumer returns then stay in the queue, where it can fetch them, instead of being sent to the next
/// consumer.
const LOW_PREFETCH_TIME: Duration = Duration::from_secs(1);
/// A message that was processed alone this often without an answer is dead-lettered.
const MAX_ALONE: u64 = 20;

/// The redelivered messages of a session.
#[derive(Default)]
pub(super) struct Redelivered {
    /// Those that wait until they are processed. `None` if there are none.
    waiting: Option<Waiting>,
    /// When the last one arrived. `None` if this connection has delivered none.
    last_arrival: Option<Instant>,
    /// Whether those that wait have to be processed now. Then nothing else is taken until all the others are settled.
    due: bool,
}

struct Waiting {
    first: Arrival,
    /// Where the first one came from.
    lane: Lane,
    /// Those that came after it, without their bodies, as the broker delivers these messages again.
    others: Vec<Other>,
    /// When the first one arrived.
    since: Instant,
    /// The subscription's round in which the first one arrived.
    round: u64,
}

struct Other {
    lane: Lane,
    acker: Acker,
    round: u64,
}

impl Redelivered {
    /// Whether any of them wait.
    pub fn are_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Whether those that wait have to be processed as soon as all the others are settled.
    pub fn are_due(&self) -> bool {
        self.due
    }

    /// Whether the last one arrived so recently that the prefetch count has to stay low.
    pub fn arrived_lately(&self) -> bool {
        self.last_arrival.is_some_and(|at| at.elapsed() < LOW_PREFETCH_TIME)
    }
}

impl Waiting {
    /// The number of waiting messages of this round in the queue that has most of them.
    fn most_in_one_queue(&self, round: u64) -> usize {
        let mut counts: HashMap<&str, usize> = HashMap::new();
        if self.round == round {
            counts.insert(self.lane.queue.as_str(), 1);
        }
        for other in self.others.iter().filter(|other| other.round == round) {
            *counts.entry(other.lane.queue.as_str()).or_default() += 1;
        }
        counts.into_values().max().unwrap_or(0)
    }
}

impl Session<'_> {
    /// Decides whether the redelivered messages have to be processed now. If they use up the prefetch count, new consumers are
    /// started first, which show whether new messages follow.
    pub(super) fn update_redelivered(&mut self, is_draining: bool) {
        self.redelivered.due = !is_draining && (self.redelivered.due || self.have_waited());
        if !self.redelivered.due && self.is_quiet() && self.is_prefetch_used_up() {
            self.subscription.renew();
            self.last_arrival = Instant::now();
        }
    }

    /// Whether all others are settled and no more arrive, or the redelivered messages have waited long enough.
    fn have_waited(&self) -> bool {
        let waited_long = self.redelivered.waiting.as_ref().is_some_and(|waiting| waiting.since.elapsed() >= REDELIVERED_TIME);
        waited_long || (self.is_quiet() && !self.is_prefetch_used_up())
    }

    /// Whether redelivered messages wait, everything else is settled, and nothing arrives.
    fn is_quiet(&self) -> bool {
        self.redelivered.are_waiting()
            && self.is_settled()
            && !self.subscription.is_changing()
            && self.last_arrival.elapsed() >= QUIET
    }

    /// Whether the redelivered messages use up the prefetch count of a queue. The broker then sends no more from it, although
    /// new messages may follow.
    fn is_prefetch_used_up(&self) -> bool {
        let round = self.subscription.round();
        let most = self.redelivered.waiting.as_ref().map_or(0, |waiting| waiting.most_in_one_queue(round));
        most >= usize::from(self.subscription.prefetch())
    }

    /// Keeps a redelivered message that has just arrived, until it is due.
    pub(super) fn defer(&mut self, lane: Lane, delivery: Delivery) {
        self.redelivered.last_arrival = Some(self.last_arrival);
        let round = self.subscription.round();
        if let Some(waiting) = &mut self.redelivered.waiting {
            waiting.others.push(Other { lane, acker: delivery.acker, round });
            return;
        }
        let first = self.arrival(Arc::clone(&lane.dataset), delivery);
        self.redelivered.waiting = Some(Waiting { first, lane, others: Vec::new(), since: self.last_arrival, round });
    }

    /// Processes the redelivered messages that are due.
    pub(super) async fn take_redelivered(&mut self) -> Result<(), Fault> {
        if let Some(waiting) = self.redelivered.waiting.take() {
            self.take_all(waiting).await?;
        }
        self.redelivered.due = false;
        Ok(())
    }

    /// Processes the redelivered messages one at a time, while this consumer holds no other message. It returns all but the
    /// first to their queues and then fetches them one by one. The broker puts returned messages before all others, so the
    /// first new message means that there are no more of them. A message that crashes the process comes after the others next
    /// time.
    async fn take_all(&mut self, Waiting { first, lane, others, .. }: Waiting) -> Result<(), Fault> {
        let ends = Instant::now() + REDELIVERED_TIME;
        let mut lanes = vec![lane];
        for Other { lane, acker, .. } in others {
            requeue(&acker).await;
            if !lanes.iter().any(|known| known.queue == lane.queue) {
                lanes.push(lane);
            }
        }
        if !self.take_alone(first).await? {
            return Ok(());
        }
        for Lane { dataset, queue } in lanes {
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
                if !self.take_alone(arrival).await? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Processes one message alone. Returns false if the others must not wait for its end: the message is being dead-lettered,
    /// or was returned because the consumer drains.
    async fn take_alone(&mut self, arrival: Arrival) -> Result<bool, Fault> {
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
}
