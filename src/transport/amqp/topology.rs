//! Topology: the exchange, the queues and their arguments. Every process declares the same ones when it connects. A dataset may have
//! several queues, numbered from 1. All parts of a load go to one of them.

use std::sync::Arc;

use lapin::options::{ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection, ExchangeKind};
use twox_hash::XxHash3_128;
use uuid::Uuid;

use super::connection::{Broker, Fault, NOT_FOUND, answered, close, close_channel, reply_code, text};
use crate::config::MAX_QUEUES;
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
    /// How many queues each dataset has.
    queues: u16,
}

/// A queue of a dataset.
#[derive(Debug, Clone)]
pub struct Lane {
    pub dataset: Arc<Dataset>,
    pub queue: ShortString,
}

impl Topology {
    /// The topology for these datasets, with a queue for each. The names of the exchange and of all queues begin with `prefix`.
    ///
    /// # Errors
    /// If the queue of a dataset would have the name of the dead-letter queue.
    pub fn new(prefix: &str, datasets: &[Arc<Dataset>]) -> Result<Self> {
        let topology = Self { prefix: prefix.to_owned(), datasets: datasets.to_vec(), queues: 1 };
        if datasets.iter().any(|dataset| topology.queue(&dataset.name) == topology.dead_letters()) {
            return Err(Error::usage("a dataset `dead` would share its queue with the dead letters").hint("rename the dataset"));
        }
        Ok(topology)
    }

    /// The same with so many queues for each dataset.
    #[must_use]
    pub fn with_queues(self, queues: u16) -> Self {
        Self { queues, ..self }
    }

    /// The exchange for messages. Their routing key is the dataset's name, followed by the number of the queue unless it is the first.
    /// So other programs, which know only the name, reach one queue.
    pub fn exchange(&self) -> ShortString {
        self.prefix.as_str().into()
    }

    /// The routing key of all messages of a load.
    pub fn routing_key(&self, dataset: &str, load_key: Uuid) -> ShortString {
        let number = XxHash3_128::oneshot(load_key.as_bytes()) % u128::from(self.queues);
        numbered(dataset, u16::try_from(number).expect("less than 64") + 1).into()
    }

    /// All queues of the datasets.
    pub fn lanes(&self) -> Vec<Lane> {
        self.datasets.iter().flat_map(|dataset| (1..=self.queues).map(move |number| self.lane(dataset, number))).collect()
    }

    fn lane(&self, dataset: &Arc<Dataset>, number: u16) -> Lane {
        Lane { dataset: Arc::clone(dataset), queue: self.queue(&numbered(&dataset.name, number)) }
    }

    /// The first queue of a dataset.
    pub fn queue(&self, dataset: &str) -> ShortString {
        format!("{}.{dataset}", self.prefix).into()
    }

    /// The queue of the dead letters.
    pub fn dead_letters(&self) -> ShortString {
        self.queue("dead")
    }

    /// The dataset that this queue belongs to.
    pub fn dataset_of<'a>(&self, queue: &'a str) -> Option<&'a str> {
        // A dataset's name has no dots.
        queue.strip_prefix(&self.prefix)?.strip_prefix('.')?.split('.').next()
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
        for (dataset, number) in self.datasets.iter().flat_map(|dataset| (1..=self.queues).map(move |number| (dataset, number))) {
            let queue = self.lane(dataset, number).queue;
            self.declare_queue(channel, queue.clone(), self.arguments(number)).await?;
            let routing_key = numbered(&dataset.name, number).into();
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

    /// The queues that are there beyond those that this process declares: processes with a larger number of queues have made them,
    /// and messages may wait in them. Numbers have no gaps, so the first that is missing is the end. RabbitMQ logs an error for a
    /// queue that is asked for and missing, so no more are asked for.
    pub(super) async fn lanes_beyond(&self, connection: &Connection) -> Result<Vec<Lane>, Fault> {
        let mut found = Vec::new();
        for dataset in &self.datasets {
            for number in self.queues + 1..=MAX_QUEUES {
                let lane = self.lane(dataset, number);
                if !is_there(connection, lane.queue.clone()).await? {
                    break;
                }
                found.push(lane);
            }
        }
        Ok(found)
    }

    /// The arguments of a dataset's queue.
    fn arguments(&self, number: u16) -> FieldTable {
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
        if number > 1 {
            // On a node with few leaders. The first queue has the arguments of earlier versions, which the broker compares.
            set("x-queue-leader-locator", "balanced");
        }
        arguments
    }

    /// The queues with their arguments, that of the dead letters last.
    pub(super) fn queues(&self) -> Vec<(ShortString, FieldTable)> {
        let of_datasets = self
            .datasets
            .iter()
            .flat_map(|dataset| (1..=self.queues).map(move |number| (self.lane(dataset, number).queue, self.arguments(number))));
        of_datasets.chain([(self.dead_letters(), quorum())]).collect()
    }

    async fn declare_queue(&self, channel: &Channel, name: ShortString, arguments: FieldTable) -> Result<(), Fault> {
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        match channel.queue_declare(name.clone(), options, arguments).await {
            Ok(_) => Ok(()),
            Err(error) => Err(refused(error, &format!("queue {name}"), &self.prefix)),
        }
    }
}

/// The name of a dataset's queue without the prefix, and its routing key.
fn numbered(dataset: &str, number: u16) -> String {
    if number == 1 { dataset.to_owned() } else { format!("{dataset}.{number}") }
}

/// Whether the broker has this queue.
async fn is_there(connection: &Connection, queue: ShortString) -> Result<bool, Fault> {
    // Uses its own channel, because the answer that there is none closes the channel.
    let channel = answered(connection.create_channel()).await?;
    let passive = QueueDeclareOptions { passive: true, ..Default::default() };
    match answered(channel.queue_declare(queue, passive, FieldTable::default())).await {
        Ok(_) => {
            close_channel(&channel).await?;
            Ok(true)
        }
        Err(error) if reply_code(&error) == Some(NOT_FOUND) => Ok(false),
        Err(error) => Err(Fault::Lost(error)),
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::datasets_of;

    fn topology(queues: u16) -> Topology {
        let text = "[datasets.events]\nkey = [\"id\"]\n[datasets.events.columns]\nid = \"text\"\n".to_owned();
        Topology::new("my.prefix", &datasets_of("x.toml", text).unwrap()).unwrap().with_queues(queues)
    }

    #[test]
    fn each_load_goes_to_one_queue_and_loads_go_to_all() {
        let (one, four) = (topology(1), topology(4));
        let keys: Vec<Uuid> = (0..100).map(|_| Uuid::now_v7()).collect();
        assert!(keys.iter().all(|key| one.routing_key("events", *key).as_str() == "events"));
        let used: BTreeSet<String> = keys.iter().map(|key| four.routing_key("events", *key).to_string()).collect();
        assert_eq!(used.into_iter().collect::<Vec<_>>(), ["events", "events.2", "events.3", "events.4"]);
        assert!(keys.iter().all(|key| four.routing_key("events", *key) == four.routing_key("events", *key)));
    }

    #[test]
    fn every_queue_of_a_dataset_is_told_from_its_name() {
        let topology = topology(2);
        let queues: Vec<String> = topology.lanes().into_iter().map(|lane| lane.queue.to_string()).collect();
        assert_eq!(queues, ["my.prefix.events", "my.prefix.events.2"]);
        for queue in &queues {
            assert_eq!(topology.dataset_of(queue), Some("events"));
        }
        assert_eq!(topology.queues().len(), 3, "and the dead letters");
    }
}
