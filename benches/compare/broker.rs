//! RabbitMQ: queues for one measurement, and messages of another program.

use std::collections::VecDeque;
use std::thread;
use std::time::{Duration, Instant};

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, PublisherConfirm};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::Result;

/// The prefix of all names that are declared on the broker.
pub const PREFIX: &str = "dataloader-bench";
const EVENTS_QUEUE: &str = "dataloader-bench.events";
/// The most messages that may wait for their confirmation.
const WINDOW: usize = 2_000;
const PERSISTENT: u8 = 2;
const START: Duration = Duration::from_secs(30);

/// The broker of `AMQP_URL`. Creating and dropping this deletes the queues of earlier measurements.
pub struct Broker<'r> {
    runtime: &'r Runtime,
    connection: Connection,
}

impl<'r> Broker<'r> {
    pub fn connect(runtime: &'r Runtime) -> Result<Self> {
        let url = std::env::var("AMQP_URL").map_err(|_| "AMQP_URL must name a private RabbitMQ server")?;
        let connection = runtime.block_on(Connection::connect(&url, ConnectionProperties::default()))?;
        let broker = Self { runtime, connection };
        broker.clear()?;
        Ok(broker)
    }

    /// Deletes the exchange and the queues. No process may use them.
    pub fn clear(&self) -> Result<()> {
        let cleared: lapin::Result<()> = self.runtime.block_on(async {
            let channel = self.connection.create_channel().await?;
            for dataset in ["events", "orgs", "dead"] {
                channel.queue_delete(format!("{PREFIX}.{dataset}").into(), QueueDeleteOptions::default()).await?;
            }
            channel.exchange_delete(PREFIX.into(), ExchangeDeleteOptions::default()).await?;
            channel.close(200, "cleared".into()).await
        });
        Ok(cleared?)
    }

    /// Waits until a consumer of the events is connected.
    pub fn wait_for_consumer(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            let consumers = self.runtime.block_on(async {
                let channel = self.connection.create_channel().await?;
                // Declaring a missing queue passively closes the channel.
                let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
                let queue = channel.queue_declare(EVENTS_QUEUE.into(), options, FieldTable::default()).await;
                Ok::<_, lapin::Error>(queue.map_or(0, |queue| queue.consumer_count()))
            })?;
            if consumers > 0 {
                return Ok(());
            }
            if start.elapsed() > START {
                return Err("no consumer came".into());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts to publish one message per record, with confirmations, as a program does that must not lose any.
    pub fn publish(&self, records: Vec<String>, with_id: bool) -> Result<JoinHandle<lapin::Result<bool>>> {
        let channel = self.runtime.block_on(async {
            let channel = self.connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok::<_, lapin::Error>(channel)
        })?;
        Ok(self.runtime.spawn(publish_on(channel, records, with_id)))
    }

    /// Waits until all messages are published.
    pub fn finish(&self, publishing: JoinHandle<lapin::Result<bool>>) -> Result<()> {
        if self.runtime.block_on(publishing)?? { Ok(()) } else { Err("the broker refused a message".into()) }
    }
}

impl Drop for Broker<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            eprintln!("bench: {error}");
        }
    }
}

/// Publishes the records; returns whether the broker confirmed all of them.
async fn publish_on(channel: Channel, records: Vec<String>, with_id: bool) -> lapin::Result<bool> {
    let mut unconfirmed: VecDeque<PublisherConfirm> = VecDeque::new();
    let mut taken = true;
    for (i, record) in records.iter().enumerate() {
        if unconfirmed.len() == WINDOW
            && let Some(confirm) = unconfirmed.pop_front()
        {
            taken &= matches!(confirm.await?, Confirmation::Ack(_));
        }
        let mut properties = BasicProperties::default().with_delivery_mode(PERSISTENT).with_app_id("bench".into());
        if with_id {
            properties = properties.with_message_id(format!("message-{i}").into());
        }
        let options = BasicPublishOptions::default();
        unconfirmed.push_back(channel.basic_publish(PREFIX.into(), "events".into(), options, record.as_bytes(), properties).await?);
    }
    for confirm in unconfirmed {
        taken &= matches!(confirm.await?, Confirmation::Ack(_));
    }
    Ok(taken)
}
