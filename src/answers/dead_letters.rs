//! The dead letters of RabbitMQ, which are listed with the open rejects.

use std::sync::Arc;

use crate::config::{Config, Transport};
use crate::dataset::Dataset;
use crate::error::Result;
use crate::store::open_rejects::RejectFilter;
use crate::transport::amqp::connection::Broker;
use crate::transport::amqp::dead_letters::{self, DeadLetterEntry};
use crate::transport::amqp::topology::Topology;

/// The broker and the queues with the dead letters; none without RabbitMQ.
pub fn queue(config: &Config) -> Result<Option<(Broker, Topology)>> {
    Ok(match config.transport {
        Transport::Inproc => None,
        Transport::Amqp => Some((
            Broker::new(&config.amqp_url)?,
            Topology::new(&config.queue_prefix, &config.datasets)?.with_queues(config.queues),
        )),
    })
}

/// Passes each dead letter of these datasets to `take`; none without RabbitMQ, or if the filter means only some rejects.
///
/// # Errors
/// If the broker fails; an error of `take`.
pub async fn for_each(
    config: &Config,
    datasets: &[Arc<Dataset>],
    filter: &RejectFilter,
    mut take: impl FnMut(DeadLetterEntry) -> Result<()>,
) -> Result<()> {
    // Dead letters have no load and none of these reasons.
    let queue = queue(config)?.filter(|_| !filter.is_partial());
    let Some((broker, topology)) = queue else { return Ok(()) };
    let is_wanted = |letter: &DeadLetterEntry| match &letter.dataset {
        Some(name) => datasets.iter().any(|dataset| dataset.name == *name),
        None => datasets.len() == config.datasets.len(),
    };
    dead_letters::list(&broker, &topology, |letter| if is_wanted(&letter) { take(letter) } else { Ok(()) }).await
}
