//! A test's exchange and queues on a RabbitMQ node: looked at, filled and deleted from the outside, never through the
//! program's own code.

use std::collections::BTreeMap;

use lapin::message::BasicGetMessage;
use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeleteOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Queue};

use super::database::a_runtime;

/// What carries records from the reader to the parsers of the pipeline under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Inproc,
    Amqp,
}

/// The names that begin with one prefix, which no other test has.
#[derive(Debug)]
pub struct Queues {
    url: String,
    prefix: String,
}

/// A message as its sender published it.
#[derive(Debug, Clone)]
pub struct Message {
    pub properties: BasicProperties,
    pub body: Vec<u8>,
}

impl Message {
    /// The text of a header, or the digits of one that is a number.
    pub fn header(&self, name: &str) -> Option<String> {
        match self.properties.headers().as_ref()?.inner().get(name)? {
            AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
            AMQPValue::ShortString(text) => Some(text.to_string()),
            AMQPValue::LongLongInt(number) => Some(number.to_string()),
            AMQPValue::LongInt(number) => Some(number.to_string()),
            other => Some(format!("{other:?}")),
        }
    }

    /// Its headers, but for those that the broker adds.
    pub fn headers(&self) -> FieldTable {
        let headers = self.properties.headers().iter().flat_map(FieldTable::inner);
        let by_sender = headers.filter(|(name, _)| !name.as_str().starts_with("x-"));
        by_sender.map(|(name, value)| (name.clone(), value.clone())).collect::<BTreeMap<_, _>>().into()
    }

    /// The names of these.
    pub fn header_names(&self) -> Vec<String> {
        self.headers().inner().keys().map(ToString::to_string).collect()
    }
}

impl Queues {
    /// On the node of `AMQP_URL`. Nothing is declared yet.
    #[track_caller]
    pub fn new() -> Self {
        Self::on(&std::env::var("AMQP_URL").expect("AMQP_URL is not set: start the tests with ./run.sh test"))
    }

    /// On another node.
    pub fn on(url: &str) -> Self {
        Self { url: url.to_owned(), prefix: format!("dl_test_{}", uuid::Uuid::now_v7().simple()) }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// What `DATALOADER_QUEUE_PREFIX` has to be.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    pub fn name(&self, dataset: &str) -> String {
        format!("{}.{dataset}", self.prefix)
    }

    /// Messages that wait in the queue of a dataset, or in `dead`; none when there is no such queue.
    pub fn waiting(&self, dataset: &str) -> u32 {
        self.look(dataset).map_or(0, |queue| queue.message_count())
    }

    /// How many consumers the queue has.
    pub fn consumers(&self, dataset: &str) -> u32 {
        self.look(dataset).map_or(0, |queue| queue.consumer_count())
    }

    fn look(&self, dataset: &str) -> Option<Queue> {
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        self.with_channel(async |channel| {
            channel.queue_declare(self.name(dataset).into(), passive, FieldTable::default()).await.ok()
        })
    }

    /// Declares the queue with these arguments, which the broker refuses when it has others.
    ///
    /// # Errors
    /// What the broker says then.
    pub fn declare(&self, dataset: &str, arguments: FieldTable) -> Result<(), lapin::Error> {
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        self.with_channel(async |channel| channel.queue_declare(self.name(dataset).into(), durable, arguments).await.map(|_| ()))
    }

    /// Publishes messages as another program would; the broker has them when this returns.
    #[track_caller]
    pub fn send<'a>(&self, dataset: &str, messages: impl IntoIterator<Item = (BasicProperties, &'a [u8])>) {
        self.with_channel(async |channel| {
            channel.confirm_select(ConfirmSelectOptions::default()).await.expect("a broker with confirms");
            let options = BasicPublishOptions { mandatory: true, ..Default::default() };
            let mut sent = Vec::new();
            for (properties, body) in messages {
                let exchange = self.prefix.as_str().into();
                sent.push(channel.basic_publish(exchange, dataset.into(), options, body, properties).await.expect("sent"));
            }
            for confirm in sent {
                assert_eq!(confirm.await.expect("answered"), Confirmation::Ack(None), "no queue for {dataset}");
            }
        });
    }

    /// Takes all messages out of a queue, the first first.
    pub fn take(&self, dataset: &str) -> Vec<Message> {
        self.get_all(dataset, true)
    }

    /// Looks at all messages of a queue, which stay there.
    pub fn peek(&self, dataset: &str) -> Vec<Message> {
        self.get_all(dataset, false)
    }

    fn get_all(&self, dataset: &str, remove: bool) -> Vec<Message> {
        self.with_channel(async |channel| {
            let mut messages = Vec::new();
            while let Some(BasicGetMessage { delivery, .. }) =
                channel.basic_get(self.name(dataset).into(), BasicGetOptions::default()).await.expect("a queue")
            {
                if remove {
                    delivery.acker.ack(BasicAckOptions::default()).await.expect("taken");
                }
                messages.push(Message { properties: delivery.properties, body: delivery.data });
            }
            messages
        })
    }

    pub fn delete_queue(&self, dataset: &str) {
        self.with_channel(async |channel| {
            channel.queue_delete(self.name(dataset).into(), QueueDeleteOptions::default()).await.expect("deleted");
        });
    }

    /// Runs something with a channel on a connection of its own.
    fn with_channel<T>(&self, work: impl AsyncFnOnce(Channel) -> T) -> T {
        a_runtime().block_on(async {
            let connection = Connection::connect(&self.url, ConnectionProperties::default()).await.expect("the broker is running");
            let channel = connection.create_channel().await.expect("a channel");
            let done = work(channel.clone()).await;
            // First, and in order: lapin closes a channel that is only dropped beside the connection's own goodbye.
            drop(channel.close(200, "done".into()).await);
            drop(connection.close(200, "done".into()).await);
            done
        })
    }

    /// Deletes the exchange, the dead letters and the queues of these datasets.
    pub fn delete(&self, datasets: &[String]) {
        a_runtime().block_on(async {
            // The test may have ended with its broker stopped: then there is nothing to tidy.
            let Ok(connection) = Connection::connect(&self.url, ConnectionProperties::default()).await else { return };
            let Ok(channel) = connection.create_channel().await else { return };
            // The datasets' first: the broker moves nothing from them to a queue that is gone.
            for queue in datasets.iter().map(String::as_str).chain(["dead"]) {
                drop(channel.queue_delete(self.name(queue).into(), QueueDeleteOptions::default()).await);
            }
            drop(channel.exchange_delete(self.prefix.as_str().into(), ExchangeDeleteOptions::default()).await);
            drop(channel.close(200, "done".into()).await);
            drop(connection.close(200, "done".into()).await);
        });
    }
}
