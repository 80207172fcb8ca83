//! Drain: what the supervisor asks of the stages when the run ends. First they get no more input, then each finishes what it
//! has.

use actix::{Actor, Message, ResponseActFuture, fut};
use tokio::sync::oneshot;

/// Asks an intake or a reader to take no more files.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Close;

/// Asks a stage to finish everything that arrived before. The answer means that it is done, and that the result is durable.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Drain;

/// A stage's answer to [`Drain`], until it can be given.
#[derive(Debug, Default)]
pub struct Draining(Option<oneshot::Sender<()>>);

impl Draining {
    /// Notes the request. The returned future answers it after [`Draining::done`]. A stage that stops before gives no answer.
    pub fn begin<A: Actor>(&mut self) -> ResponseActFuture<A, ()> {
        let (done_in, done) = oneshot::channel();
        self.0 = Some(done_in);
        Box::pin(fut::wrap_future(async move { done.await.unwrap_or_default() }))
    }

    /// Whether the stage was asked and has not answered.
    pub fn is_asked(&self) -> bool {
        self.0.is_some()
    }

    /// Answers, if the stage was asked: nothing is left.
    pub fn done(&mut self) {
        if let Some(done) = self.0.take() {
            // After the end of the run there is no receiver.
            let _ = done.send(());
        }
    }
}
