//! How often a message was taken alone and not answered: counted where it outlives this process, which such a message may end.

use tokio::sync::{mpsc, oneshot};

use crate::error::{Error, Result};
use crate::transport::amqp::wire::MessageKey;

/// What a consumer asks whoever keeps the count.
#[derive(Debug)]
pub enum Attempt {
    /// The message is about to be taken: counts that, durably, then answers how often that has been by now.
    Begins(MessageKey, oneshot::Sender<u64>),
    /// The message has got an answer: forgets it, now or with the next question.
    Ends(MessageKey),
}

/// The asking end.
#[derive(Debug, Clone)]
pub struct Attempts(mpsc::UnboundedSender<Attempt>);

impl Attempts {
    /// The two ends. Whoever has the second one answers one question after the other.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Attempt>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), receiver)
    }

    pub(super) async fn begin(&self, key: MessageKey) -> Result<u64> {
        let (sender, answer) = oneshot::channel();
        self.tell(Attempt::Begins(key, sender))?;
        answer.await.map_err(|_| gone())
    }

    pub(super) fn end(&self, key: MessageKey) -> Result<()> {
        self.tell(Attempt::Ends(key))
    }

    fn tell(&self, attempt: Attempt) -> Result<()> {
        self.0.send(attempt).map_err(|_| gone())
    }
}

/// Whoever has ended without an answer has reported why.
fn gone() -> Error {
    Error::failed("nobody counts the deliveries of messages any more; messages stay in the queue")
}
