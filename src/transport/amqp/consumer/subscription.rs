//! Subscription: the broker's consumers on all queues, on one channel.

use std::io;
use std::pin::Pin;

use futures_util::stream::{self, BoxStream, SelectAll};
use futures_util::{Stream, StreamExt};
use lapin::Channel;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};

use crate::transport::amqp::connection::Fault;
use crate::transport::amqp::topology::Lane;

/// A delivery, with the queue that it was in.
pub(super) type Arriving = (Lane, lapin::message::Delivery);

enum Item {
    Arrived(Box<Arriving>),
    Failed(lapin::Error),
    /// A consumer that was started in this round has ended.
    Ended(u64),
}

/// An answer of the broker while the subscription changes.
enum Step {
    Ready,
    Consuming(Lane, lapin::Consumer),
}

/// The consumers on all queues. A change needs one answer of the broker for each queue. Messages that were sent before may
/// arrive first, because the answers follow them.
pub(super) struct Subscription {
    channel: Channel,
    lanes: Vec<Lane>,
    /// Whether the running consumers are on other queues.
    are_outdated: bool,
    deliveries: SelectAll<Pin<Box<dyn Stream<Item = Item> + Send>>>,
    tags: Vec<ShortString>,
    /// Zero means that there are no consumers.
    prefetch: u16,
    change: Option<BoxStream<'static, lapin::Result<Step>>>,
    /// Each change starts a new round. The end of a consumer of an earlier round is expected.
    round: u64,
}

impl Subscription {
    /// A subscription without consumers.
    pub fn new(channel: &Channel, lanes: Vec<Lane>) -> Self {
        Self {
            channel: channel.clone(),
            lanes,
            are_outdated: false,
            deliveries: SelectAll::new(),
            tags: Vec::new(),
            prefetch: 0,
            change: None,
            round: 0,
        }
    }

    /// The queues.
    pub fn lanes(&self) -> &[Lane] {
        &self.lanes
    }

    /// Replaces the queues, with the next change at once if they differ.
    pub fn set_lanes(&mut self, lanes: Vec<Lane>) {
        self.are_outdated |= !self.lanes.iter().map(|lane| &lane.queue).eq(lanes.iter().map(|lane| &lane.queue));
        self.lanes = lanes;
    }

    /// Changes the prefetch count. This needs new consumers; zero means none. A change that is already running is completed
    /// first.
    pub fn want(&mut self, prefetch: u16) {
        if (prefetch != self.prefetch || self.are_outdated) && !self.is_changing() {
            self.change_to(prefetch);
        }
    }

    /// Starts new consumers. The broker sends them a full prefetch count of messages, whatever the old consumers still hold.
    pub fn renew(&mut self) {
        if !self.is_changing() {
            self.change_to(self.prefetch);
        }
    }

    /// The number of the current round. It grows with each change.
    pub fn round(&self) -> u64 {
        self.round
    }

    /// How many messages each consumer may hold.
    pub fn prefetch(&self) -> u16 {
        self.prefetch
    }

    fn change_to(&mut self, prefetch: u16) {
        self.prefetch = prefetch;
        self.are_outdated = false;
        self.round += 1;
        let channel = self.channel.clone();
        let cancel = stream::iter(std::mem::take(&mut self.tags)).then(move |tag| {
            let channel = channel.clone();
            async move { channel.basic_cancel(tag, BasicCancelOptions::default()).await.map(|()| Step::Ready) }
        });
        if prefetch == 0 {
            self.change = Some(cancel.boxed());
            return;
        }
        let channel = self.channel.clone();
        // Applies to each consumer that is started after it. Quorum queues support no limit for a whole channel.
        let qos =
            stream::once(async move { channel.basic_qos(prefetch, BasicQosOptions { global: false }).await.map(|()| Step::Ready) });
        let channel = self.channel.clone();
        let consume = stream::iter(self.lanes.clone()).then(move |lane| {
            let channel = channel.clone();
            async move {
                let queue = lane.queue.clone();
                let consumer = channel.basic_consume(queue, "".into(), BasicConsumeOptions::default(), FieldTable::default());
                Ok(Step::Consuming(lane, consumer.await?))
            }
        });
        self.change = Some(cancel.chain(qos).chain(consume).boxed());
    }

    /// Whether answers of the broker are still expected.
    pub fn is_changing(&self) -> bool {
        self.change.is_some()
    }

    /// Whether there are no consumers, and everything that was sent to them has arrived.
    pub fn is_silent(&self) -> bool {
        self.prefetch == 0 && self.change.is_none() && self.deliveries.is_empty()
    }

    /// Waits for the next delivery. It can be cancelled without losing anything.
    pub async fn next(&mut self) -> Result<Arriving, Fault> {
        loop {
            let item = tokio::select! {
                biased;
                step = next_step(&mut self.change) => {
                    self.step(step?);
                    continue;
                }
                Some(item) = self.deliveries.next() => item,
            };
            match item {
                Item::Arrived(arriving) => return Ok(*arriving),
                Item::Failed(error) => return Err(Fault::Lost(error)),
                Item::Ended(round) if round < self.round => {}
                // The queue was deleted. The next connection declares it again.
                Item::Ended(_) => return Err(Fault::Lost(io::Error::other("the broker ended a consumer").into())),
            }
        }
    }

    fn step(&mut self, step: Option<Step>) {
        match step {
            None => self.change = None,
            Some(Step::Ready) => {}
            Some(Step::Consuming(lane, consumer)) => {
                self.tags.push(consumer.tag());
                let round = self.round;
                let arrivals = consumer.map(move |delivery| match delivery {
                    Ok(delivery) => Item::Arrived(Box::new((lane.clone(), delivery))),
                    Err(error) => Item::Failed(error),
                });
                self.deliveries.push(Box::pin(arrivals.chain(stream::once(std::future::ready(Item::Ended(round))))));
            }
        }
    }
}

/// The next answer to the change, or `None` at its end. Never completes if there is no change.
async fn next_step(change: &mut Option<BoxStream<'static, lapin::Result<Step>>>) -> lapin::Result<Option<Step>> {
    match change {
        Some(change) => change.next().await.transpose(),
        None => std::future::pending().await,
    }
}
