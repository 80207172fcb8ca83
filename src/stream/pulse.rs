//! Signs of life: the heartbeat that `dataloader health` reads.

use std::convert::Infallible;

use super::link::Links;
use crate::config::{Config, Role};
use crate::heartbeat::{BEAT_INTERVAL, Connections, Heartbeat};
use crate::store::{Connection, Database};

/// Beats for as long as it is polled. Asks the database itself: a connection that is not used does not know that it is lost.
pub async fn beat(config: &Config, links: &Links) -> Infallible {
    let mut heartbeat = match Heartbeat::start(config.role, config.transport) {
        Ok(heartbeat) => heartbeat,
        Err(error) => {
            tracing::warn!("`dataloader health` will not see this process: {error}");
            return std::future::pending().await;
        }
    };
    let mut connection = None;
    loop {
        // A producer needs no database, and may not be allowed to have one.
        let database = config.role != Role::Producer
            && tokio::time::timeout(BEAT_INTERVAL, ask(&links.database, &mut connection)).await.unwrap_or(false);
        if let Err(error) = heartbeat.beat(Connections { database, broker: links.is_broker_connected() }) {
            tracing::warn!("{error}");
        }
        tokio::time::sleep(BEAT_INTERVAL).await;
    }
}

async fn ask(database: &Database, connection: &mut Option<Connection>) -> bool {
    let mut asked = match connection.take() {
        Some(connection) => connection,
        None => match database.connect_once().await {
            Ok(connection) => connection,
            Err(_) => return false,
        },
    };
    let answered = asked.answers().await;
    if answered {
        *connection = Some(asked);
    }
    answered
}
