//! Topology: the exchange, the queues and their arguments. Every process declares the same ones when it connects.

use std::sync::Arc;

use lapin::options::{ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection, ExchangeKind};

use super::connection::{Broker, Fault, answered, close, close_channel, reply_code, text};
use crate::dataset::Dataset;
use crate::error::{Error, Result};

/// The broker's delivery limit, so high that it is practically never reached. The consumers count failures themselves, while
/// the broker also counts each restart of a consumer. Not all versions of RabbitMQ accept the same value for "unlimited".
const DELIVERY_LIMIT: i32 = 1_000_000;

const PRECONDITION_FAILED: u16 = 406;
const ACCESS_REFUSED: u16 = 403;

/// The names of exchange and queues, and the datasets that they are for.
#[derive(Debug, Clone)]
pub struct Topology {
    prefix: String,
    datasets: Vec<Arc<Dataset>>,
}

impl Topology {
    /// The topology for these datasets. The names of the exchange and of all queues begin with `prefix`.
    ///
    /// # Errors
    /// If the queue of a dataset would have the name of the dead-letter queue.
    pub fn new(prefix: &str, datasets: &[Arc<Dataset>]) -> Result<Self> {
        let topology = Self { prefix: prefix.to_owned(), datasets: datasets.to_vec() };
        if datasets.iter().any(|dataset| topology.queue(&dataset.name) == topology.dead_letters()) {
            return Err(Error::usage("a dataset `dead` would share its queue with the dead letters").hint("rename the dataset"));
        }
        Ok(topology)
    }

    /// The datasets that have a queue.
    pub fn datasets(&self) -> &[Arc<Dataset>] {
        &self.datasets
    }

    /// The exchange for messages. Their routing key is the dataset's name.
    pub fn exchange(&self) -> ShortString {
        self.prefix.as_str().into()
    }

    /// The queue of a dataset.
    pub fn queue(&self, dataset: &str) -> ShortString {
        format!("{}.{dataset}", self.prefix).into()
    }

    /// The queue of the dead letters.
    pub fn dead_letters(&self) -> ShortString {
        self.queue("dead")
    }

    /// The dataset that this queue belongs to.
    pub fn dataset_of<'a>(&self, queue: &'a str) -> Option<&'a str> {
        queue.strip_prefix(&self.prefix)?.strip_prefix('.')
    }

    /// Declares everything. Changes nothing that is declared already.
    pub(super) async fn declare(&self, connection: &Connection) -> Result<(), Fault> {
        // Uses its own channel, because a refused declaration closes the channel.
        let channel = answered(connection.create_channel()).await?;
        let declared = answered(self.declare_on(&channel)).await;
        if declared.is_ok() {
            close_channel(&channel).await?;
        }
        declared
    }

    async fn declare_on(&self, channel: &Channel) -> Result<(), Fault> {
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        channel
            .exchange_declare(self.exchange(), ExchangeKind::Direct, options, FieldTable::default())
            .await
            .map_err(|error| refused(error, &format!("exchange {}", self.prefix), &self.prefix))?;
        // Declared before the queues that refer to it.
        self.declare_queue(channel, self.dead_letters(), quorum()).await?;
        for dataset in &self.datasets {
            let queue = self.queue(&dataset.name);
            self.declare_queue(channel, queue.clone(), self.arguments()).await?;
            let routing_key = dataset.name.as_str().into();
            channel.queue_bind(queue, self.exchange(), routing_key, QueueBindOptions::default(), FieldTable::default()).await?;
        }
        Ok(())
    }

    /// Deletes all that it declares, messages included.
    ///
    /// # Errors
    /// If the broker cannot be reached, or refuses.
    pub async fn delete(&self, broker: &Broker) -> Result<()> {
        let connection = broker.connect("dataloader").await?;
        let deleted = answered(self.delete_on(&connection)).await;
        close(&connection).await;
        deleted.map_err(|fault| broker.explain(fault))
    }

    async fn delete_on(&self, connection: &Connection) -> Result<(), Fault> {
        let channel = connection.create_channel().await?;
        // That of the dead letters last: the broker moves nothing to a queue that is gone.
        for (queue, _) in self.queues() {
            channel.queue_delete(queue, QueueDeleteOptions::default()).await?;
        }
        channel.exchange_delete(self.exchange(), ExchangeDeleteOptions::default()).await?;
        Ok(close_channel(&channel).await?)
    }

    /// The arguments of a dataset's queue.
    fn arguments(&self) -> FieldTable {
        let mut arguments = quorum();
        let mut set = |name: &str, value: &str| {
            arguments.insert(name.into(), AMQPValue::LongString(value.into()));
        };
        // The default exchange routes to every queue by its name.
        set("x-dead-letter-exchange", "");
        set("x-dead-letter-routing-key", self.dead_letters().as_str());
        set("x-dead-letter-strategy", "at-least-once");
        // The at-least-once strategy needs it. Without it a full queue would drop messages.
        set("x-overflow", "reject-publish");
        arguments
    }

    /// The queues with their arguments, that of the dead letters last.
    pub(super) fn queues(&self) -> Vec<(ShortString, FieldTable)> {
        let queues = self.datasets.iter().map(|dataset| (self.queue(&dataset.name), self.arguments()));
        queues.chain([(self.dead_letters(), quorum())]).collect()
    }

    async fn declare_queue(&self, channel: &Channel, name: ShortString, arguments: FieldTable) -> Result<(), Fault> {
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        match channel.queue_declare(name.clone(), options, arguments).await {
            Ok(_) => Ok(()),
            Err(error) => Err(refused(error, &format!("queue {name}"), &self.prefix)),
        }
    }
}

fn quorum() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(DELIVERY_LIMIT));
    arguments
}

/// Turns a refusal that retrying does not fix into an error for the user.
fn refused(error: lapin::Error, what: &str, prefix: &str) -> Fault {
    match reply_code(&error) {
        Some(PRECONDITION_FAILED) => Fault::Fatal(
            Error::failed(format!("the {what} exists on the broker with other properties: {}", text(&error)))
                .hint(format!("delete it there once it is empty, or choose another --queue-prefix than `{prefix}`")),
        ),
        Some(ACCESS_REFUSED) => Fault::Fatal(
            Error::failed(format!("cannot declare the {what}: {}", text(&error)))
                .hint(format!("give the user of AMQP_URL the permissions configure, write and read on `{prefix}.*`")),
        ),
        _ => Fault::Lost(error),
    }
}
