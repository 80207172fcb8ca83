//! Dead letters: messages that cannot be loaded are set aside with the reason, listed for people, and published again.

use std::collections::BTreeMap;

use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use serde::Serialize;
use tokio::sync::Mutex;

use super::connection::{Broker, Fault, close, close_channel, confirming_channel};
use super::topology::Topology;
use super::wire::text_of;
use crate::error::{Error, Result};

const NAME: &str = "dataloader dead letters";
/// Headers have to fit into one frame.
const MAX_DETAIL: usize = 2_000;

const REASON: &str = "reason";
const DETAIL: &str = "detail";
/// The queue that the message was in.
const QUEUE: &str = "queue";

/// A message to set aside.
#[derive(Debug)]
pub(super) struct DeadLetter {
    pub dataset: String,
    pub reason: String,
    pub detail: String,
    pub properties: BasicProperties,
    pub body: Vec<u8>,
}

/// Sets messages aside. On a connection of its own, made when the first message needs it: the broker may stop reading from
/// connections that publish, and the consumer's acknowledgements must not wait behind that.
pub(super) struct DeadLetterQueue {
    broker: Broker,
    topology: Topology,
    open: Mutex<Option<(Connection, Channel)>>,
}

impl DeadLetterQueue {
    pub fn new(broker: Broker, topology: Topology) -> Self {
        Self { broker, topology, open: Mutex::new(None) }
    }

    /// Returns when the broker has confirmed it.
    ///
    /// # Errors
    /// If the broker does not take it now.
    pub async fn publish(&self, letter: &DeadLetter) -> Result<()> {
        let mut open = self.open.lock().await;
        let (connection, channel) = match open.take() {
            Some(open) if open.1.status().connected() => open,
            _ => {
                let connection = self.broker.connect(NAME).await?;
                let channel = confirming_channel(&connection).await.map_err(|error| self.broker.unreachable(&error))?;
                (connection, channel)
            }
        };
        let mut headers = letter.properties.headers().clone().unwrap_or_default();
        let mut set = |name: &str, value: &str| {
            headers.insert(name.into(), AMQPValue::LongString(value.into()));
        };
        let detail = letter.detail.floor_char_boundary(MAX_DETAIL);
        set(REASON, &letter.reason);
        set(DETAIL, &letter.detail[..detail]);
        set(QUEUE, self.topology.queue(&letter.dataset).as_str());
        let properties = letter.properties.clone().with_headers(headers).with_delivery_mode(2);
        let queue = self.topology.dead_letters();
        publish(&channel, "".into(), queue, properties, &letter.body).await.map_err(|error| self.broker.explain(error))?;
        tracing::warn!("a message for {} is a dead letter: {}: {}", letter.dataset, letter.reason, &letter.detail[..detail]);
        *open = Some((connection, channel));
        Ok(())
    }

    pub async fn close(&self) {
        if let Some((connection, channel)) = self.open.lock().await.take() {
            // Whatever it carried is confirmed.
            let _ = close_channel(&channel).await;
            close(&connection).await;
        }
    }
}

/// Publishes one message and waits for its confirmation.
async fn publish(
    channel: &Channel,
    exchange: ShortString,
    routing_key: ShortString,
    properties: BasicProperties,
    body: &[u8],
) -> Result<(), Fault> {
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let confirm = channel.basic_publish(exchange, routing_key.clone(), options, body, properties).await?;
    // With one message under way, a returned one can be no other.
    match confirm.await? {
        Confirmation::Ack(None) => Ok(()),
        Confirmation::Ack(Some(_)) => Err(Fault::Fatal(Error::failed(format!("RabbitMQ has no queue for `{routing_key}`")))),
        _ => Err(Fault::Fatal(Error::failed("RabbitMQ did not take a message"))),
    }
}

/// A message that was set aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeadLetterEntry {
    /// Of its queue, as far as known.
    pub dataset: Option<String>,
    pub reason: String,
    pub detail: String,
    pub app_id: Option<String>,
    pub message_id: Option<String>,
    /// The file, of one of our own messages.
    pub source: Option<String>,
    /// Length of the body.
    pub bytes: usize,
}

/// Lists the dead letters, which stay where they are.
///
/// # Errors
/// If the broker refuses or cannot be reached.
pub async fn list(broker: &Broker, topology: &Topology) -> Result<Vec<DeadLetterEntry>> {
    let mut entries = Vec::new();
    for_each(broker, topology, async |_, delivery| {
        entries.push(entry(topology, &delivery.properties, delivery.data.len()));
        Ok(Fate::Stays)
    })
    .await?;
    Ok(entries)
}

/// Publishes the dead letters of these datasets again, each to the queue it came from; returns how many of each dataset. A
/// letter leaves its queue when the broker has confirmed the new message.
///
/// # Errors
/// If the broker refuses or cannot be reached; what was published until then may be published once more by the next replay.
pub async fn replay(broker: &Broker, topology: &Topology, datasets: &[String]) -> Result<BTreeMap<String, u64>> {
    let mut replayed = BTreeMap::new();
    for_each(broker, topology, async |channel, delivery| {
        let Some(dataset) = entry(topology, &delivery.properties, 0).dataset.filter(|name| datasets.contains(name)) else {
            return Ok(Fate::Stays);
        };
        let properties = original(&delivery.properties);
        publish(channel, topology.exchange(), dataset.as_str().into(), properties, &delivery.data).await?;
        *replayed.entry(dataset).or_insert(0) += 1;
        Ok(Fate::Leaves)
    })
    .await?;
    Ok(replayed)
}

/// What becomes of a letter that was looked at.
enum Fate {
    Stays,
    Leaves,
}

/// Looks at each letter that is there now. Those that stay are taken out until all are seen, else the first would come again
/// and again; then they return to their places.
async fn for_each(
    broker: &Broker,
    topology: &Topology,
    mut look: impl AsyncFnMut(&Channel, &lapin::message::Delivery) -> Result<Fate, Fault>,
) -> Result<()> {
    let connection = broker.connect(NAME).await?;
    let looked = async {
        topology.declare(&connection).await?;
        let channel = confirming_channel(&connection).await?;
        let queue = topology.dead_letters();
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let count = channel.queue_declare(queue.clone(), passive, FieldTable::default()).await?.message_count();
        let mut last_that_stays = None;
        // No more than there were: what is replayed may come back at once.
        for _ in 0..count {
            let Some(letter) = channel.basic_get(queue.clone(), BasicGetOptions::default()).await? else { break };
            match look(&channel, &letter.delivery).await? {
                Fate::Stays => last_that_stays = Some(letter.delivery.delivery_tag),
                Fate::Leaves => {
                    letter.delivery.acker.ack(BasicAckOptions::default()).await?;
                }
            }
        }
        if let Some(tag) = last_that_stays {
            channel.basic_nack(tag, BasicNackOptions { multiple: true, requeue: true }).await?;
        }
        close_channel(&channel).await?;
        Ok(())
    };
    let looked = looked.await.map_err(|fault| broker.explain(fault));
    close(&connection).await;
    looked
}

fn entry(topology: &Topology, properties: &BasicProperties, bytes: usize) -> DeadLetterEntry {
    let header = |name: &str| text_of(properties.headers().as_ref().and_then(|headers| headers.inner().get(name)));
    // The broker's own headers tell of what it set aside by itself, beyond its delivery limit.
    let queue = header(QUEUE).or_else(|| header("x-first-death-queue")).unwrap_or_default();
    DeadLetterEntry {
        dataset: topology.dataset_of(&queue).map(str::to_owned),
        reason: header(REASON).or_else(|| header("x-first-death-reason")).unwrap_or_default(),
        detail: header(DETAIL).unwrap_or_default(),
        app_id: properties.app_id().as_ref().map(ToString::to_string),
        message_id: properties.message_id().as_ref().map(ToString::to_string),
        source: header("source"),
        bytes,
    }
}

/// The properties without what setting aside has added.
fn original(properties: &BasicProperties) -> BasicProperties {
    let mut headers = BTreeMap::new();
    for (name, value) in properties.headers().iter().flatten() {
        let added = [REASON, DETAIL, QUEUE].contains(&name.as_str()) || name.as_str().starts_with("x-");
        if !added {
            headers.insert(name.clone(), value.clone());
        }
    }
    properties.clone().with_headers(headers.into())
}
