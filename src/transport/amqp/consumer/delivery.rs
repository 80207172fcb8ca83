//! Delivery: a message on its way through the pipeline, and its outcome.

use lapin::Acker;
use tokio::sync::mpsc;

use super::held::Share;
use crate::transport::amqp::dead_letters::DeadLetter;
use crate::transport::amqp::wire::MessageKey;
use crate::transport::piece::Acknowledge;

/// A delivery on its way through the pipeline. If it is dropped without an outcome, it counts as failed.
#[derive(Debug)]
pub(super) struct Delivery {
    acker: Acker,
    key: MessageKey,
    outcomes: mpsc::UnboundedSender<Settled>,
    /// Taken when the delivery is settled.
    share: Option<Share>,
}

/// A delivery with its outcome.
#[derive(Debug)]
pub(super) struct Settled {
    pub acker: Acker,
    pub key: MessageKey,
    pub outcome: Outcome,
}

#[derive(Debug)]
pub(super) enum Outcome {
    /// The message is durable.
    Done,
    /// The message was not processed.
    Returned,
    /// The message could not be loaded this time.
    Failed(String),
    /// The message can never be loaded.
    Unloadable { reason: String, detail: String },
    /// A message that can never be loaded was redelivered, and has to be dead-lettered now. Its share is held until the broker
    /// has confirmed the dead letter.
    SetAside { letter: Box<DeadLetter>, share: Share },
}

impl Delivery {
    pub fn new(acker: Acker, key: MessageKey, outcomes: mpsc::UnboundedSender<Settled>, share: Share) -> Self {
        Self { acker, key, outcomes, share: Some(share) }
    }

    /// Corrects the memory that the delivery takes.
    pub fn resize(&mut self, bytes: usize) {
        if let Some(share) = &mut self.share {
            share.resize(bytes);
        }
    }

    pub fn give_back(mut self) {
        self.send(Outcome::Returned);
    }

    pub fn set_aside(mut self, letter: DeadLetter) {
        if let Some(share) = self.share.take() {
            self.tell(Outcome::SetAside { letter: Box::new(letter), share });
        }
    }

    fn send(&mut self, outcome: Outcome) {
        if self.share.take().is_some() {
            self.tell(outcome);
        }
    }

    fn tell(&self, outcome: Outcome) {
        // If the consumer is gone, so is its connection, and the broker delivers the message again.
        let _ = self.outcomes.send(Settled { acker: self.acker.clone(), key: self.key, outcome });
    }
}

impl Acknowledge for Delivery {
    fn settle(mut self: Box<Self>) {
        self.send(Outcome::Done);
    }

    fn refuse(mut self: Box<Self>, reason: &str, detail: &str) {
        self.send(Outcome::Unloadable { reason: reason.to_owned(), detail: detail.to_owned() });
    }

    fn give_back(mut self: Box<Self>) {
        self.send(Outcome::Returned);
    }

    fn redelivers(&self) -> bool {
        true
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.send(Outcome::Failed("the pipeline dropped it".to_owned()));
    }
}
