//! Watches over the answers of a database server, which can stay away for ever without a word: the network drops packets, the
//! machine is gone, the server's process hangs. sqlx knows no deadline.

use std::future::Future;
use std::time::Duration;

use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;
use tokio::time::Instant;

use super::error::{Class, StoreError, StoreResult};
use crate::retry::GIVE_UP_AFTER;
use crate::vitals::Stage;

/// A server that has said nothing for this long is asked on a second connection whether it is still there.
const ASK_AFTER: Duration = Duration::from_secs(3);
/// How long it may take to answer that.
const ASK_FOR: Duration = GIVE_UP_AFTER.saturating_sub(ASK_AFTER);
/// While a statement takes long, the server is asked again this often.
const ASK_EVERY: Duration = Duration::from_secs(10);

/// A command that waits for so long says so, and again now and then.
const SAY_AFTER: Duration = Duration::from_secs(10);
const SAY_EVERY: Duration = Duration::from_secs(60);

/// Watches over one connection.
#[derive(Debug)]
pub(super) struct Watch {
    /// How to ask the server on a second connection; `None` for SQLite, which has none.
    server: Option<Box<PgConnectOptions>>,
    /// Longer than this no statement may take, whether the server answers others or not.
    deadline: Option<Duration>,
    /// Makes progress with each answer.
    stage: Option<Stage>,
    is_lost: bool,
}

impl Watch {
    /// Over a connection to that server.
    pub fn new(server: Option<Box<PgConnectOptions>>) -> Self {
        Self { server, deadline: None, stage: None, is_lost: false }
    }

    /// Sets whose work the statements are, and how long one may take.
    pub fn attend(&mut self, stage: Stage, deadline: Duration) {
        self.stage = Some(stage);
        self.deadline = Some(deadline);
    }

    /// Whether an answer stayed away: the connection is of no use any more, not even for a goodbye.
    pub fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Waits for an answer, for as long as the server answers on another connection, and no longer than the deadline.
    ///
    /// # Errors
    /// The answer's own, or that there is none.
    pub async fn answer<T, E: Into<StoreError>>(&mut self, answer: impl Future<Output = Result<T, E>>) -> StoreResult<T> {
        if self.is_lost {
            return Err(StoreError::new(Class::Unavailable, "the connection is lost"));
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

    /// The answer, or that it does not come.
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
                return Err(StoreError::no_answer(Class::Silent, began.elapsed()));
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
            // A stage says by itself what it waits for.
            if self.stage.is_none() && say_at <= now {
                let took = now - began;
                tracing::info!("a statement has taken {took:.0?} so far: the database is at work, or another program holds a lock");
                say_at = now + SAY_EVERY;
            }
        }
    }
}

/// Whether the server answers. One that refuses a connection in so many words does.
async fn is_there(server: &PgConnectOptions) -> bool {
    match tokio::time::timeout(ASK_FOR, server.connect()).await {
        Ok(Ok(_)) | Ok(Err(sqlx::Error::Database(_))) => true,
        Ok(Err(_)) | Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that takes connections and says nothing.
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
        assert_eq!(silence.unwrap_err().class(), Class::Silent);
        assert!(watch.is_lost());
        let after = watch.answer(async { Ok::<_, StoreError>(7) }).await;
        assert_eq!(after.unwrap_err().class(), Class::Unavailable);
    }
}
