//! Signs of life: the heartbeat that `dataloader health` reads, and the live line on a terminal.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount};

use super::link::Links;
use super::reader::Budget;
use super::writer::Stats;
use crate::config::{Config, Role};
use crate::health::{BEAT_INTERVAL, Connections, Heartbeat};
use crate::progress::LiveLine;
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

/// Shows files, records, rate and bytes in flight on one line for as long as it is polled; nothing without a terminal.
pub async fn show(stats: Arc<Stats>, budget: Budget) {
    const REFRESH: Duration = Duration::from_millis(250);
    let Some(line) = LiveLine::start() else { return std::future::pending().await };
    let (mut before, mut since, mut rate) = (0, Instant::now(), 0);
    loop {
        let (files, records) = (stats.loads.load(Ordering::Relaxed), stats.records.load(Ordering::Relaxed));
        let elapsed = since.elapsed();
        if elapsed >= Duration::from_secs(1) {
            rate = (records - before) * 1_000 / u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
            (before, since) = (records, Instant::now());
        }
        line.set(format!(
            "{} files, {} records, {}/s, {} in flight",
            HumanCount(files),
            HumanCount(records),
            HumanCount(rate),
            HumanBytes(budget.taken() as u64)
        ));
        tokio::time::sleep(REFRESH).await;
    }
}
