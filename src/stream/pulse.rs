//! Pulse: computes the heartbeat of this process, several times a second for the page and the terminal, and writes it for
//! `dataloader health` and `dataloader status`.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::link::Links;
use super::stats::Stats;
use crate::config::{Config, Role};
use crate::flow::FlowMeter;
use crate::heartbeat::{BEAT_INTERVAL, Beat, Connections, Heartbeat};
use crate::store::{Connection, Database};

/// How often to check whether the heartbeat's content has changed.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long to wait before a database that did not answer is asked again.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// How often to write it while something passes through the stages.
const WRITE_EVERY: Duration = Duration::from_secs(1);

/// Computes heartbeats for as long as it is polled.
pub async fn beat(config: &Config, links: &Links, stats: &Stats) -> Infallible {
    let heartbeat = Heartbeat::start(config.role, config.transport)
        .inspect_err(|error| tracing::warn!("`dataloader health` will not see this process: {error}"));
    let database = watch::Sender::new(false);
    tokio::select! {
        never = say(heartbeat.ok(), config, links, stats, database.subscribe()) => never,
        // A producer needs no database, and may have no access to one.
        never = ask_now_and_then(&links.database, &database), if config.role != Role::Producer => never,
    }
}

/// Computes the heartbeat, and writes it at regular intervals, and at once when connections or troubles change.
async fn say(
    mut heartbeat: Option<Heartbeat>,
    config: &Config,
    links: &Links,
    stats: &Stats,
    mut database: watch::Receiver<bool>,
) -> Infallible {
    let mut meter = FlowMeter::default();
    let mut said = None;
    let mut at = Instant::now();
    loop {
        let connected = connections(links, *database.borrow_and_update());
        let troubles = links.vitals.troubles(config.stream.stall);
        let in_flight = (stats.in_flight_bytes(), stats.in_flight_limit_bytes());
        let flow = meter.read(Instant::now(), links.vitals.work(), &troubles, in_flight);
        let interval = if flow.is_moving() { WRITE_EVERY } else { BEAT_INTERVAL };
        let beat = Beat::now(config.role, config.transport, connected.clone(), &troubles, flow);
        stats.set_beat(beat.clone());
        let says = Some((connected, troubles));
        if says != said || at.elapsed() >= interval {
            if let Some(Err(error)) = heartbeat.as_mut().map(|heartbeat| heartbeat.beat(&beat)) {
                tracing::warn!("{error}");
            }
            (said, at) = (says, Instant::now());
        }
        // A database that answers, or no longer does, is told at once.
        drop(tokio::time::timeout(LOOK_EVERY, database.changed()).await);
    }
}

/// The connections now. The broker's are known to the links.
fn connections(links: &Links, database: bool) -> Connections {
    let broker = links.is_broker_connected();
    let database_host = links.database.connected().filter(|_| database).map(str::to_owned);
    let node = links.broker.as_ref().and_then(|link| link.broker.connected());
    Connections { database, broker, database_host, broker_host: node.filter(|_| broker).map(str::to_owned) }
}

/// Asks the database on a connection of its own, because an idle connection does not notice that it is lost.
async fn ask_now_and_then(database: &Database, is_connected: &watch::Sender<bool>) -> Infallible {
    let mut connection = None;
    loop {
        let answered = tokio::time::timeout(BEAT_INTERVAL, ask(database, &mut connection)).await.unwrap_or(false);
        is_connected.send_if_modified(|before| std::mem::replace(before, answered) != answered);
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
