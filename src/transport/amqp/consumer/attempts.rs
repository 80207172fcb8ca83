//! Attempts: asks how often a message was processed alone without an answer. The count is kept outside this process, because
//! such a message may crash the process.

use tokio::sync::{mpsc, oneshot};

use crate::error::{Error, Result};
use crate::transport::amqp::wire::MessageKey;

/// A request of the consumer to the keeper of the count.
#[derive(Debug)]
pub enum Attempt {
    /// The message is about to be processed. The keeper increases the count durably, and answers with the new count.
    Begins(MessageKey, oneshot::Sender<u64>),
    /// The message is about to be answered. The keeper deletes its count, then answers.
    Ends(MessageKey, oneshot::Sender<()>),
}

/// The asking end.
#[derive(Debug, Clone)]
pub struct Attempts(mpsc::UnboundedSender<Attempt>);

impl Attempts {
    /// Returns both ends. The owner of the second one answers the requests in order.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Attempt>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), receiver)
    }

    pub(super) async fn begin(&self, key: MessageKey) -> Result<u64> {
        let (sender, answer) = oneshot::channel();
        self.tell(Attempt::Begins(key, sender))?;
        answer.await.map_err(|_| gone())
    }

    pub(super) async fn end(&self, key: MessageKey) -> Result<()> {
        let (sender, answer) = oneshot::channel();
        self.tell(Attempt::Ends(key, sender))?;
        answer.await.map_err(|_| gone())
    }

    fn tell(&self, attempt: Attempt) -> Result<()> {
        self.0.send(attempt).map_err(|_| gone())
    }
}

/// The keeper has reported why it ended.
fn gone() -> Error {
    Error::failed("nobody counts the deliveries of messages any more; messages stay in the queue")
}
