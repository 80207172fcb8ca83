//! A delivery on its way through the pipeline, and what is said of it at the end.

use lapin::Acker;
use tokio::sync::mpsc;

use super::held::Share;
use crate::transport::amqp::dead_letters::DeadLetter;
use crate::transport::amqp::wire::MessageKey;
use crate::transport::piece::Acknowledge;

/// A delivery on its way through the pipeline. Dropped without an outcome, it counts as failed.
#[derive(Debug)]
pub(super) struct Delivery {
    acker: Acker,
    key: MessageKey,
    outcomes: mpsc::UnboundedSender<Settled>,
    /// Taken when it is settled.
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
    /// It is durable.
    Done,
    /// Nothing was done with it.
    Returned,
    /// It could not be loaded this time.
    Failed(String),
    /// It can never be loaded.
    Unloadable { reason: String, detail: String },
    /// What can never be loaded has come again. The share is held until the broker has the dead letter.
    SetAside { letter: Box<DeadLetter>, share: Share },
}

impl Delivery {
    pub fn new(acker: Acker, key: MessageKey, outcomes: mpsc::UnboundedSender<Settled>, share: Share) -> Self {
        Self { acker, key, outcomes, share: Some(share) }
    }

    /// It turns out to take so many bytes.
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
        // Without a consumer there is no connection either: the broker delivers it again.
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
