//! The exchange, the queues and their arguments: declared by whoever connects first, the same by all.

use std::sync::Arc;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection, ExchangeKind};

use super::connection::{Fault, answered, close_channel, reply_code, text};
use crate::dataset::Dataset;
use crate::error::{Error, Result};

/// How often the broker may deliver a message again before it gives up on it. Practically never: the consumers count their
/// own failures, while the broker also counts each of their restarts. Unlimited cannot be said alike to all its versions.
const DELIVERY_LIMIT: i32 = 1_000_000;

const PRECONDITION_FAILED: u16 = 406;
const ACCESS_REFUSED: u16 = 403;

/// The names of what is declared, and for which datasets.
#[derive(Debug, Clone)]
pub struct Topology {
    prefix: String,
    datasets: Vec<Arc<Dataset>>,
}

impl Topology {
    /// For these datasets; the exchange and all queues have names that begin with `prefix`.
    ///
    /// # Errors
    /// If a dataset's queue would be the one of the dead letters.
    pub fn new(prefix: &str, datasets: &[Arc<Dataset>]) -> Result<Self> {
        let topology = Self { prefix: prefix.to_owned(), datasets: datasets.to_vec() };
        if datasets.iter().any(|dataset| topology.queue(&dataset.name) == topology.dead_letters()) {
            return Err(Error::usage("a dataset `dead` would share its queue with the dead letters").hint("rename the dataset"));
        }
        Ok(topology)
    }

    /// The datasets that have queues.
    pub fn datasets(&self) -> &[Arc<Dataset>] {
        &self.datasets
    }

    /// The exchange that messages are published to, by the dataset's name.
    pub fn exchange(&self) -> ShortString {
        self.prefix.as_str().into()
    }

    /// The queue of a dataset.
    pub fn queue(&self, dataset: &str) -> ShortString {
        format!("{}.{dataset}", self.prefix).into()
    }

    /// The queue of the messages that cannot be loaded.
    pub fn dead_letters(&self) -> ShortString {
        self.queue("dead")
    }

    /// The name of the dataset whose queue this is.
    pub fn dataset_of<'a>(&self, queue: &'a str) -> Option<&'a str> {
        queue.strip_prefix(&self.prefix)?.strip_prefix('.')
    }

    /// Declares everything; changes nothing where it is so already.
    pub(super) async fn declare(&self, connection: &Connection) -> Result<(), Fault> {
        // A refused declaration closes its channel: not one that others need.
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
        // Before the queues that refer to it.
        self.declare_queue(channel, self.dead_letters(), quorum()).await?;
        for dataset in &self.datasets {
            let queue = self.queue(&dataset.name);
            let mut arguments = quorum();
            let mut set = |name: &str, value: &str| {
                arguments.insert(name.into(), AMQPValue::LongString(value.into()));
            };
            // The default exchange knows every queue by its name.
            set("x-dead-letter-exchange", "");
            set("x-dead-letter-routing-key", self.dead_letters().as_str());
            set("x-dead-letter-strategy", "at-least-once");
            // That strategy needs it; without it a full queue would drop messages.
            set("x-overflow", "reject-publish");
            self.declare_queue(channel, queue.clone(), arguments).await?;
            let routing_key = dataset.name.as_str().into();
            channel.queue_bind(queue, self.exchange(), routing_key, QueueBindOptions::default(), FieldTable::default()).await?;
        }
        Ok(())
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

/// What trying again does not help against is an error for the user.
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
