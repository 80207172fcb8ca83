//! How many messages wait in the queues, for the page. A connection of its own asks, and never delays the pipeline.

use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection};

use super::connection::{Broker, close, within};
use super::topology::Topology;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(2);

/// The messages of a dataset's queues that no consumer has taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Depth {
    /// The dataset, or `dead` for the dead letters.
    pub dataset: String,
    pub messages: u32,
}

/// Asks for the depths of the queues, on a connection that it keeps.
pub struct DepthReader {
    broker: Broker,
    topology: Topology,
    open: Option<(Connection, Channel)>,
}

impl DepthReader {
    /// A reader that is not connected yet.
    pub fn new(broker: Broker, topology: Topology) -> Self {
        Self { broker, topology, open: None }
    }

    /// The depths of all queues, the dead letters last; `None` if the broker does not answer. A queue that is not there yet is
    /// left out.
    pub async fn read(&mut self) -> Option<Vec<Depth>> {
        if self.open.as_ref().is_none_or(|(_, channel)| !channel.status().connected()) {
            let connected = tokio::time::timeout(ANSWER, self.broker.connect_once("dataloader page", None));
            let connection = connected.await.ok()?.ok()?;
            let channel = within::<_, lapin::Error>(ANSWER, connection.create_channel()).await.ok()?;
            self.open = Some((connection, channel));
        }
        let queues: Vec<(String, ShortString)> =
            self.topology.lanes().into_iter().map(|lane| (lane.dataset.name.clone(), lane.queue)).collect();
        let mut depths: Vec<Depth> = Vec::new();
        for (dataset, queue) in queues.into_iter().chain([("dead".to_owned(), self.topology.dead_letters())]) {
            let (connection, channel) = self.open.as_ref()?;
            let options = QueueDeclareOptions { passive: true, ..Default::default() };
            let declared = channel.queue_declare(queue, options, FieldTable::default());
            match within(ANSWER, declared).await {
                Ok(queue) => match depths.last_mut().filter(|depth| depth.dataset == dataset) {
                    Some(depth) => depth.messages += queue.message_count(),
                    None => depths.push(Depth { dataset, messages: queue.message_count() }),
                },
                // The broker has closed the channel: there is no such queue yet.
                Err(_) if connection.status().connected() => {
                    let channel = within(ANSWER, connection.create_channel()).await.ok()?;
                    self.open.as_mut()?.1 = channel;
                }
                Err(_) => {
                    close(connection).await;
                    self.open = None;
                    return None;
                }
            }
        }
        Some(depths)
    }
}
