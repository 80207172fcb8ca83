//! Pulse: writes the heartbeat that `dataloader health` reads.

use std::cell::Cell;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use super::link::Links;
use crate::config::{Config, Role};
use crate::heartbeat::{BEAT_INTERVAL, Connections, Heartbeat};
use crate::store::{Connection, Database};

/// How often to check whether the heartbeat's content has changed.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long to wait before a database that did not answer is asked again.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Writes heartbeats for as long as it is polled.
pub async fn beat(config: &Config, links: &Links) -> Infallible {
    let heartbeat = match Heartbeat::start(config.role, config.transport) {
        Ok(heartbeat) => heartbeat,
        Err(error) => {
            tracing::warn!("`dataloader health` will not see this process: {error}");
            return std::future::pending().await;
        }
    };
    let database = Cell::new(false);
    tokio::select! {
        never = say(heartbeat, config, links, &database) => never,
        // A producer needs no database, and may have no access to one.
        never = ask_now_and_then(&links.database, &database), if config.role != Role::Producer => never,
    }
}

/// Writes the heartbeat at regular intervals, and at once when its content changes.
async fn say(mut heartbeat: Heartbeat, config: &Config, links: &Links, database: &Cell<bool>) -> Infallible {
    let mut said = None;
    let mut at = Instant::now();
    loop {
        let connected = Connections { database: database.get(), broker: links.is_broker_connected() };
        let says = Some((connected, links.vitals.troubles(config.stream.stall)));
        if says != said || at.elapsed() >= BEAT_INTERVAL {
            let (connected, troubles) = says.as_ref().expect("it was just made");
            if let Err(error) = heartbeat.beat(*connected, troubles) {
                tracing::warn!("{error}");
            }
            (said, at) = (says, Instant::now());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Asks the database on a connection of its own, because an idle connection does not notice that it is lost.
async fn ask_now_and_then(database: &Database, is_connected: &Cell<bool>) -> Infallible {
    let mut connection = None;
    loop {
        let answered = tokio::time::timeout(BEAT_INTERVAL, ask(database, &mut connection)).await.unwrap_or(false);
        is_connected.set(answered);
        tokio::time::sleep(if answered { BEAT_INTERVAL } else { ASK_AGAIN_AFTER }).await;
    }
}

async fn ask(database: &Database, connection: &mut Option<Connection>) -> bool {
    if let Some(mut asked) = connection.take()
        && asked.answers().await
    {
        *connection = Some(asked);
        return true;
    }
    // The server may have ended an idle session. That does not mean that it is unavailable.
    let Ok(mut asked) = database.connect_once().await else { return false };
    let answered = asked.answers().await;
    if answered {
        *connection = Some(asked);
    }
    answered
}
