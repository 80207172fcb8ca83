//! Dead letters: messages that cannot be loaded. They are set aside in a queue with the reason, can be listed, and can be
//! published again.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, Event};
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

use super::connection::{ANSWER, Alarm, Broker, Connector, Fault, GOODBYE, Route, close, confirming_channel, within};
use super::topology::Topology;
use super::wire::text_of;
use crate::error::{Error, ErrorKind, Result};
use crate::retry::{GIVE_UP_AFTER, RetryPolicy};
use crate::vitals::{Stage, Vitals};

const NAME: &str = "dataloader dead letters";
/// Limits the detail, because all headers have to fit into one frame.
const MAX_DETAIL: usize = 2_000;

const REASON: &str = "reason";
const DETAIL: &str = "detail";
/// The header with the queue that the message was in.
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

/// Publishes dead letters, one after the other. It has its own connection, made when the first message needs it. The broker may
/// stop reading from connections that publish, and this must not delay the consumer's acknowledgements.
pub(super) struct DeadLetterQueue {
    route: Route,
    open: Mutex<Sender>,
}

struct Sender {
    connector: Connector,
    post: Option<Post>,
}

impl DeadLetterQueue {
    pub fn new(route: Route) -> Self {
        let sender = Sender { connector: route.connector(NAME, "dead letter publisher"), post: None };
        Self { route, open: Mutex::new(sender) }
    }

    /// Publishes the letter and waits until the broker has confirmed it, for as long as the retry policy allows. Returns false
    /// if the broker refuses it: then the message has to stay in its queue.
    ///
    /// # Errors
    /// If the retry policy gives up.
    pub async fn publish(&self, letter: &DeadLetter) -> Result<bool> {
        let retry_policy = self.route.retry_policy;
        let too_late = async {
            match retry_policy {
                RetryPolicy::Forever => std::future::pending().await,
                RetryPolicy::Limited => sleep(GIVE_UP_AFTER).await,
            }
        };
        let published = tokio::select! {
            published = self.publish_at_last(letter) => published,
            () = too_late => Err(self.route.broker.takes_nothing()),
        };
        match published {
            Ok(()) => Ok(true),
            Err(error) if retry_policy == RetryPolicy::Limited && error.kind() == ErrorKind::Unreachable => Err(error),
            Err(error) => {
                tracing::warn!("cannot set a message aside, which stays in its queue: {error}");
                Ok(false)
            }
        }
    }

    async fn publish_at_last(&self, letter: &DeadLetter) -> Result<()> {
        let mut headers = letter.properties.headers().clone().unwrap_or_default();
        let mut set = |name: &str, value: &str| {
            headers.insert(name.into(), AMQPValue::LongString(value.into()));
        };
        let detail = letter.detail.floor_char_boundary(MAX_DETAIL);
        set(REASON, &letter.reason);
        set(DETAIL, &letter.detail[..detail]);
        set(QUEUE, self.route.topology.queue(&letter.dataset).as_str());
        let properties = letter.properties.clone().with_headers(headers).with_delivery_mode(2);
        let queue = self.route.topology.dead_letters();
        let mut sender = self.open.lock().await;
        loop {
            let Sender { connector, post } = &mut *sender;
            // The connection is taken out while it is in use. If this future is dropped half-way, the state of the connection
            // is unknown, and it is not used again.
            let posted = async {
                let mut post = match post.take() {
                    Some(post) if post.channel.status().connected() => post,
                    _ => {
                        let connection = connector.connect(None).await.map_err(Fault::Fatal)?;
                        Post::new(&self.route.broker, connection, connector.stage()).await?
                    }
                };
                post.publish("".into(), queue.clone(), properties.clone(), &letter.body).await?;
                Ok(post)
            };
            match posted.await {
                Ok(posted) => {
                    connector.progress();
                    *post = Some(posted);
                    tracing::warn!(
                        "a message for {} is a dead letter: {}: {}",
                        letter.dataset,
                        letter.reason,
                        &letter.detail[..detail]
                    );
                    return Ok(());
                }
                Err(Fault::Fatal(error)) => return Err(error),
                Err(Fault::Lost(error)) => connector.lost(&error)?,
            }
        }
    }

    pub async fn close(&self) {
        if let Some(post) = self.open.lock().await.post.take() {
            post.close().await;
        }
    }
}

/// A connection that publishes one message at a time.
struct Post {
    connection: Connection,
    channel: Channel,
    events: BoxStream<'static, Event>,
    alarm: Alarm,
}

impl Post {
    /// Uses this connection. `stage` is reported as waiting while the broker accepts no messages.
    async fn new(broker: &Broker, connection: Connection, stage: Stage) -> Result<Self, Fault> {
        let events = connection.events_listener().boxed();
        let channel = confirming_channel(&connection).await?;
        Ok(Self { connection, channel, events, alarm: Alarm::new(broker, &stage) })
    }

    /// Publishes a message and waits for its confirmation. During an alarm of the broker this can take long.
    async fn publish(
        &mut self,
        exchange: ShortString,
        routing_key: ShortString,
        properties: BasicProperties,
        body: &[u8],
    ) -> Result<(), Fault> {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let publishing =
            async { self.channel.basic_publish(exchange, routing_key.clone(), options, body, properties).await?.await };
        tokio::pin!(publishing);
        let confirmation = loop {
            let no_answer = sleep(ANSWER);
            tokio::select! {
                biased;
                confirmation = &mut publishing => break confirmation?,
                Some(event) = self.events.next() => self.alarm.heed(event)?,
                () = self.alarm.said_long_ago() => self.alarm.say(),
                () = no_answer, if !self.alarm.is_up() => {
                    return Err(Fault::Lost(io::Error::new(io::ErrorKind::TimedOut, "it confirms no messages").into()));
                }
            }
        };
        self.alarm.is_over();
        // Only one message is in flight, so a returned message must be this one.
        match confirmation {
            Confirmation::Ack(None) => Ok(()),
            Confirmation::Ack(Some(_)) => Err(Fault::Fatal(Error::failed(format!("RabbitMQ has no queue for `{routing_key}`")))),
            _ => Err(Fault::Fatal(Error::failed("RabbitMQ did not take a message"))),
        }
    }

    async fn close(self) {
        // All messages on this channel are confirmed.
        let _ = within(GOODBYE, self.channel.close(200, "done".into())).await;
        close(&self.connection).await;
    }
}

/// A dead letter, as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeadLetterEntry {
    /// The dataset of its queue, if known.
    pub dataset: Option<String>,
    pub reason: String,
    pub detail: String,
    pub app_id: Option<String>,
    pub message_id: Option<String>,
    /// The file that it comes from, if this program published it.
    pub source: Option<String>,
    /// Length of the body.
    pub bytes: usize,
}

/// Passes each dead letter to `take`. They stay in their queue.
///
/// # Errors
/// If the broker refuses, cannot be reached or does not answer; an error of `take`.
pub async fn list(broker: &Broker, topology: &Topology, mut take: impl FnMut(DeadLetterEntry) -> Result<()>) -> Result<()> {
    for_each(broker, topology, async |_, delivery| {
        take(entry(topology, &delivery.properties, delivery.data.len())).map_err(Fault::Fatal)?;
        Ok(Disposition::Stays)
    })
    .await
}

/// Publishes the dead letters of these datasets again, each to the queue that it came from. Returns their number for each
/// dataset. A letter leaves its queue when the broker has confirmed the new message.
///
/// # Errors
/// If the broker refuses, cannot be reached, does not answer or accepts no messages. The next replay may then publish some
/// messages a second time.
pub async fn replay(broker: &Broker, topology: &Topology, datasets: &[String]) -> Result<BTreeMap<String, u64>> {
    let mut replayed = BTreeMap::new();
    for_each(broker, topology, async |post, delivery| {
        let Some(dataset) = entry(topology, &delivery.properties, 0).dataset.filter(|name| datasets.contains(name)) else {
            return Ok(Disposition::Stays);
        };
        let properties = original(&delivery.properties);
        let publish = post.publish(topology.exchange(), dataset.as_str().into(), properties, &delivery.data);
        match timeout(GIVE_UP_AFTER, publish).await {
            Ok(published) => published?,
            Err(_) => return Err(Fault::Fatal(broker.takes_nothing())),
        }
        *replayed.entry(dataset).or_insert(0) += 1;
        Ok(Disposition::Leaves)
    })
    .await?;
    Ok(replayed)
}

/// What happens to a letter after it was looked at.
enum Disposition {
    Stays,
    Leaves,
}

/// Calls `look` for each letter that is in the queue now. Letters that stay are held until all were seen, because the broker
/// would deliver them again otherwise. Then they return to their places. Reading and publishing use separate connections,
/// because the broker may stop reading from a connection that publishes.
async fn for_each(
    broker: &Broker,
    topology: &Topology,
    mut look: impl AsyncFnMut(&mut Post, &lapin::message::Delivery) -> Result<Disposition, Fault>,
) -> Result<()> {
    let connection = broker.connect(NAME).await?;
    let posting = broker.connect(NAME).await?;
    let looked = async {
        topology.declare(&connection).await?;
        let channel = soon(connection.create_channel()).await?;
        let mut post = Post::new(broker, posting, Vitals::default().stage(NAME)).await?;
        let queue = topology.dead_letters();
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let count = soon(channel.queue_declare(queue.clone(), passive, FieldTable::default())).await?.message_count();
        let mut last_that_stays = None;
        // No more than there were at the start, because a replayed message may become a dead letter again at once.
        for _ in 0..count {
            let Some(letter) = soon(channel.basic_get(queue.clone(), BasicGetOptions::default())).await? else { break };
            match look(&mut post, &letter.delivery).await? {
                Disposition::Stays => last_that_stays = Some(letter.delivery.delivery_tag),
                Disposition::Leaves => {
                    soon(letter.delivery.acker.ack(BasicAckOptions::default())).await?;
                }
            }
        }
        if let Some(tag) = last_that_stays {
            soon(channel.basic_nack(tag, BasicNackOptions { multiple: true, requeue: true })).await?;
        }
        soon(channel.close(200, "done".into())).await?;
        post.close().await;
        Ok(())
    };
    let looked = looked.await.map_err(|fault| broker.explain(fault));
    close(&connection).await;
    looked
}

/// Waits for an answer, but only for a short time: a command must not hang.
async fn soon<T>(answer: impl Future<Output = lapin::Result<T>>) -> Result<T, Fault> {
    within(GIVE_UP_AFTER, async { answer.await.map_err(Fault::Lost) }).await
}

fn entry(topology: &Topology, properties: &BasicProperties, bytes: usize) -> DeadLetterEntry {
    let header = |name: &str| text_of(properties.headers().as_ref().and_then(|headers| headers.inner().get(name)));
    // For messages that the broker dead-lettered itself, after its delivery limit, its own headers name the queue.
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

/// The properties without the headers that dead-lettering has added.
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
