//! Time limits for the answers of a database server, because sqlx has none. A server may never answer: the network drops
//! packets, the machine has failed, or the server process hangs.

use std::future::Future;
use std::time::Duration;

use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;
use tokio::time::Instant;

use super::error::{Class, StoreError, StoreResult};
use crate::retry::GIVE_UP_AFTER;
use crate::steps::{self, Failure};
use crate::vitals::Stage;

/// After this time without an answer, a second connection checks whether the server still answers.
const ASK_AFTER: Duration = Duration::from_secs(3);
/// How long that check may take.
const ASK_FOR: Duration = GIVE_UP_AFTER.saturating_sub(ASK_AFTER);
/// How often the check is repeated while a statement runs.
const ASK_EVERY: Duration = Duration::from_secs(10);

/// When a command reports that a statement takes long, and how often it repeats the report.
const SAY_AFTER: Duration = Duration::from_secs(10);
const SAY_EVERY: Duration = Duration::from_secs(60);

/// The time limits of one connection.
#[derive(Debug)]
pub(super) struct Watch {
    /// The options of the second connection; `None` for SQLite, which has no server.
    server: Option<Box<PgConnectOptions>>,
    /// The longest time that a statement may take, whether or not the server answers on other connections.
    deadline: Option<Duration>,
    /// The stage that makes progress with each answer.
    stage: Option<Stage>,
    is_lost: bool,
}

impl Watch {
    /// Watches a connection to that server.
    pub fn new(server: Option<Box<PgConnectOptions>>) -> Self {
        Self { server, deadline: None, stage: None, is_lost: false }
    }

    /// Sets the stage that the statements belong to, and the time limit of each.
    pub fn attend(&mut self, stage: Stage, deadline: Duration) {
        self.stage = Some(stage);
        self.deadline = Some(deadline);
    }

    /// Whether an answer did not come. The connection can then not be used again, not even to close it.
    pub fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Gives the connection up, as if the server had gone away.
    fn lose(&mut self) -> StoreError {
        self.is_lost = true;
        StoreError::new(Class::Unavailable, "the connection is lost")
    }

    /// Counts a statement that begins, if it is a step.
    ///
    /// # Errors
    /// If a test has it fail.
    pub fn begins(&self, sql: &str) -> StoreResult<()> {
        match steps::is_step(sql).then(|| steps::begins(sql)).flatten() {
            None => Ok(()),
            Some(Failure::Refused) => Err(StoreError::other("a test has this statement refused")),
            Some(Failure::Full) => Err(StoreError::new(Class::Full, "a test leaves no room")),
        }
    }

    /// Counts a statement that is done, if it is a step.
    ///
    /// # Errors
    /// If a test has the connection lost.
    pub fn is_done(&mut self, sql: &str) -> StoreResult<()> {
        if steps::is_step(sql) && steps::done(sql) { Err(self.lose()) } else { Ok(()) }
    }

    /// Waits for an answer for as long as the server answers on another connection, but no longer than the time limit.
    ///
    /// # Errors
    /// The error of the answer, or that there is no answer.
    pub async fn answer<T, E: Into<StoreError>>(&mut self, answer: impl Future<Output = Result<T, E>>) -> StoreResult<T> {
        if self.is_lost {
            return Err(self.lose());
        }
        let answered = self.within(answer).await;
        if let (Some(stage), Ok(Ok(_))) = (&self.stage, &answered) {
            stage.progress();
        }
        match answered {
            Ok(answered) => answered.map_err(Into::into),
            Err(no_answer) => {
                self.is_lost = true;
                Err(no_answer)
            }
        }
    }

    /// Waits for the answer; fails if it does not come.
    async fn within<T>(&self, answer: impl Future<Output = T>) -> StoreResult<T> {
        tokio::pin!(answer);
        let began = Instant::now();
        let deadline = self.deadline.filter(|_| self.server.is_some()).map(|deadline| began + deadline);
        let (mut ask_at, mut say_at) = (began + ASK_AFTER, began + SAY_AFTER);
        loop {
            let until = deadline.map_or(ask_at, |deadline| deadline.min(ask_at));
            if let Ok(answer) = tokio::time::timeout_at(until, answer.as_mut()).await {
                return Ok(answer);
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Err(StoreError::no_answer(Class::TimedOut, began.elapsed()));
            }
            if let Some(server) = &self.server {
                tokio::select! {
                    biased;
                    answer = answer.as_mut() => return Ok(answer),
                    is_there = Box::pin(is_there(server)) => if !is_there {
                        return Err(StoreError::no_answer(Class::Unavailable, began.elapsed()));
                    },
                }
            }
            let now = Instant::now();
            ask_at = now + ASK_EVERY;
            // A stage reports by itself what it waits for.
            if self.stage.is_none() && say_at <= now {
                let took = now - began;
                tracing::info!("a statement has taken {took:.0?} so far: the database is at work, or another program holds a lock");
                say_at = now + SAY_EVERY;
            }
        }
    }
}

/// Whether the server answers. A refusal that the server sends is an answer too.
async fn is_there(server: &PgConnectOptions) -> bool {
    match tokio::time::timeout(ASK_FOR, server.connect()).await {
        Ok(Ok(_)) | Ok(Err(sqlx::Error::Database(_))) => true,
        Ok(Err(_)) | Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that accepts connections and never answers.
    fn silent_server() -> (std::net::TcpListener, Box<PgConnectOptions>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, Box::new(PgConnectOptions::new().host("127.0.0.1").port(port).username("u")))
    }

    #[tokio::test]
    async fn what_answers_in_time_is_answered_and_what_does_not_is_lost() {
        let (_listener, server) = silent_server();
        let mut watch = Watch::new(Some(server));
        let stage = crate::vitals::Vitals::default().stage("writer");
        watch.attend(stage, Duration::from_millis(50));
        let answer = watch.answer(async { Ok::<_, StoreError>(7) }).await;
        assert_eq!(answer.unwrap(), 7);
        let silence = watch.answer(std::future::pending::<StoreResult<()>>()).await;
        assert_eq!(silence.unwrap_err().class(), Class::TimedOut);
        assert!(watch.is_lost());
        let after = watch.answer(async { Ok::<_, StoreError>(7) }).await;
        assert_eq!(after.unwrap_err().class(), Class::Unavailable);
    }
}
