//! The consumers of all queues, on one channel.

use std::io;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream::{self, BoxStream, SelectAll};
use futures_util::{Stream, StreamExt};
use lapin::Channel;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};

use crate::dataset::Dataset;
use crate::transport::amqp::connection::Fault;
use crate::transport::amqp::topology::Topology;

/// A delivery with the dataset whose queue it was in.
pub(super) type Arriving = (Arc<Dataset>, lapin::message::Delivery);

enum Item {
    Arrived(Box<Arriving>),
    Failed(lapin::Error),
    /// The end of a consumer that was begun in this round.
    Ended(u64),
}

/// What the broker answered while the subscription changes.
enum Step {
    Ready,
    Consuming(Arc<Dataset>, lapin::Consumer),
}

/// The consumers of all queues. While they change, which takes as many answers of the broker as there are queues, what was sent
/// already still arrives: the answers come behind it.
pub(super) struct Subscription {
    channel: Channel,
    topology: Topology,
    deliveries: SelectAll<Pin<Box<dyn Stream<Item = Item> + Send>>>,
    tags: Vec<ShortString>,
    /// None are there when this is 0.
    prefetch: u16,
    change: Option<BoxStream<'static, lapin::Result<Step>>>,
    /// Each change begins a round; that consumers of earlier rounds end is no news.
    round: u64,
}

impl Subscription {
    /// Without consumers.
    pub fn new(channel: &Channel, topology: &Topology) -> Self {
        Self {
            channel: channel.clone(),
            topology: topology.clone(),
            deliveries: SelectAll::new(),
            tags: Vec::new(),
            prefetch: 0,
            change: None,
            round: 0,
        }
    }

    /// Goes on with another prefetch count, which only a new consumer can have; with 0, without consumers. A change that is under
    /// way ends first.
    pub fn want(&mut self, prefetch: u16) {
        if prefetch != self.prefetch && !self.is_changing() {
            self.change_to(prefetch);
        }
    }

    /// Goes on with new consumers, to which the broker sends as many messages again, whatever their predecessors hold.
    pub fn renew(&mut self) {
        if !self.is_changing() {
            self.change_to(self.prefetch);
        }
    }

    /// Which consumers these are: a later number after each change.
    pub fn round(&self) -> u64 {
        self.round
    }

    /// How many messages each of them may hold.
    pub fn prefetch(&self) -> u16 {
        self.prefetch
    }

    fn change_to(&mut self, prefetch: u16) {
        self.prefetch = prefetch;
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
        // For each consumer begun from here on: quorum queues know no limit for a whole channel.
        let qos =
            stream::once(async move { channel.basic_qos(prefetch, BasicQosOptions { global: false }).await.map(|()| Step::Ready) });
        let queues: Vec<_> =
            self.topology.datasets().iter().map(|dataset| (Arc::clone(dataset), self.topology.queue(&dataset.name))).collect();
        let channel = self.channel.clone();
        let consume = stream::iter(queues).then(move |(dataset, queue)| {
            let channel = channel.clone();
            async move {
                let consumer = channel.basic_consume(queue, "".into(), BasicConsumeOptions::default(), FieldTable::default());
                Ok(Step::Consuming(dataset, consumer.await?))
            }
        });
        self.change = Some(cancel.chain(qos).chain(consume).boxed());
    }

    /// Whether answers of the broker are awaited.
    pub fn is_changing(&self) -> bool {
        self.change.is_some()
    }

    /// Whether there are no consumers and everything has arrived that was sent to them.
    pub fn is_silent(&self) -> bool {
        self.prefetch == 0 && self.change.is_none() && self.deliveries.is_empty()
    }

    /// The next delivery. Nothing is lost when this is not awaited to the end.
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
                // Its queue was deleted: declared again with the next connection.
                Item::Ended(_) => return Err(Fault::Lost(io::Error::other("the broker ended a consumer").into())),
            }
        }
    }

    fn step(&mut self, step: Option<Step>) {
        match step {
            None => self.change = None,
            Some(Step::Ready) => {}
            Some(Step::Consuming(dataset, consumer)) => {
                self.tags.push(consumer.tag());
                let round = self.round;
                let arrivals = consumer.map(move |delivery| match delivery {
                    Ok(delivery) => Item::Arrived(Box::new((Arc::clone(&dataset), delivery))),
                    Err(error) => Item::Failed(error),
                });
                self.deliveries.push(Box::pin(arrivals.chain(stream::once(std::future::ready(Item::Ended(round))))));
            }
        }
    }
}

/// The next answer to a change, `None` at its end; never without one.
async fn next_step(change: &mut Option<BoxStream<'static, lapin::Result<Step>>>) -> lapin::Result<Option<Step>> {
    match change {
        Some(change) => change.next().await.transpose(),
        None => std::future::pending().await,
    }
}
