//! A database connection that outlives the database's absences.

use std::time::{Duration, Instant};

use crate::error::Result;
use crate::store::{Class, Connection, Database, StoreError, StoreResult, retry_pauses};

/// How long a stage waits for a database (or broker) that is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// For `run`: as long as it takes.
    Endless,
    /// For `run --once`: then the run fails.
    Limited(Duration),
}

/// A connection that is made anew when it is lost.
pub struct Link {
    database: Database,
    patience: Patience,
    connection: Option<Connection>,
    /// A database that once let us in and now refuses is being restored or reconfigured: worth waiting for.
    was_connected: bool,
}

/// How often waiting is mentioned in the log.
const MENTION_EVERY: Duration = Duration::from_secs(15);

impl Link {
    /// A link that is not connected yet.
    pub fn new(database: Database, patience: Patience) -> Self {
        Self { database, patience, connection: None, was_connected: false }
    }

    /// Runs a piece of work on the connection until it is done. When the database is away, busy or full, it is rolled back,
    /// and after a jittered pause repeated as a whole on a new connection.
    ///
    /// # Errors
    /// What waiting does not mend, or that patience has run out.
    pub async fn repeat<T>(&mut self, mut work: impl AsyncFnMut(&mut Connection) -> StoreResult<T>) -> Result<T> {
        let mut pauses = retry_pauses();
        let mut away_since: Option<Instant> = None;
        let mut mentioned: Option<Instant> = None;
        loop {
            let error = match self.attempt(&mut work).await {
                Ok(done) => {
                    if let (Some(since), true) = (away_since, mentioned.is_some()) {
                        tracing::info!("{} is back after {:.0?}", self.database, since.elapsed());
                    }
                    return Ok(done);
                }
                Err(error) => error,
            };
            let can_wait = match error.class() {
                Class::Unavailable | Class::Full => true,
                Class::Refused => self.was_connected,
                Class::BadRow | Class::ReadOnly | Class::Other => false,
            };
            let since = *away_since.get_or_insert_with(Instant::now);
            let pause = pauses.next().expect("the pauses never end");
            let is_too_long = matches!(self.patience, Patience::Limited(most) if since.elapsed() + pause > most);
            if !can_wait || is_too_long {
                return Err(self.database.explain(error));
            }
            if mentioned.is_none_or(|at| at.elapsed() > MENTION_EVERY) {
                mentioned = Some(Instant::now());
                tracing::warn!("waiting for {}: {error}", self.database);
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn attempt<T>(&mut self, work: &mut impl AsyncFnMut(&mut Connection) -> StoreResult<T>) -> StoreResult<T> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => {
                let connected = tokio::time::timeout(CONNECT_TIMEOUT, self.database.connect_once()).await;
                let connection = connected.unwrap_or_else(|_| Err(StoreError::new(Class::Unavailable, "no answer")))?;
                self.was_connected = true;
                self.connection.insert(connection)
            }
        };
        let done = work(connection).await;
        if done.is_err() {
            // In whatever state it is: the database rolls back when it goes.
            self.connection = None;
        }
        done
    }

    /// Says goodbye.
    pub async fn close(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.close().await;
        }
    }
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
