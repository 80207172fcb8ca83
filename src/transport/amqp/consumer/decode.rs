//! A delivery as a piece. On a thread of its own: digests and record boundaries are work, and the channel to the parsers
//! blocks when they have enough to do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crossbeam_channel::Sender;
use lapin::{Acker, BasicProperties};
use tokio::sync::mpsc;

use super::failures::{Failures, Sentence};
use super::{Delivery, Settled, Verdict};
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::transport::amqp::dead_letters::DeadLetter;
use crate::transport::amqp::wire::{Envelope, MessageKey, Undecodable};
use crate::transport::piece::{Piece, Receipt};

/// What the broker delivered, from a dataset's queue.
pub(super) struct Arrival {
    dataset: Arc<Dataset>,
    properties: BasicProperties,
    body: Vec<u8>,
    acker: Acker,
    verdicts: mpsc::UnboundedSender<Settled>,
}

impl Arrival {
    pub fn new(dataset: Arc<Dataset>, delivery: lapin::message::Delivery, verdicts: mpsc::UnboundedSender<Settled>) -> Self {
        let lapin::message::Delivery { properties, data, acker, .. } = delivery;
        Self { dataset, properties, body: data, acker, verdicts }
    }

    fn receipt(&self, key: MessageKey) -> Delivery {
        Delivery { acker: self.acker.clone(), key, verdicts: self.verdicts.clone(), settled: false }
    }
}

/// The thread that makes pieces.
pub(super) struct Decoder {
    arrivals: mpsc::UnboundedSender<Arrival>,
    draining: Arc<AtomicBool>,
}

impl Decoder {
    /// Starts the thread; it ends when the decoder is dropped or the parsers are gone.
    pub fn start(pieces: Sender<Piece>, failures: Failures) -> Result<Self> {
        // No bound of its own: no more arrives than the broker sends ahead.
        let (sender, mut arrivals) = mpsc::unbounded_channel();
        let draining = Arc::new(AtomicBool::new(false));
        let drained = Arc::clone(&draining);
        let run = move || {
            while let Some(arrival) = arrivals.blocking_recv() {
                if !decode(arrival, &drained, &failures, &pieces) {
                    return;
                }
            }
        };
        thread::Builder::new()
            .name("amqp-decoder".to_owned())
            .spawn(run)
            .map_err(|error| Error::failed(format!("cannot start the decoder's thread: {error}")))?;
        Ok(Self { arrivals: sender, draining })
    }

    /// # Errors
    /// If the parsers are gone.
    pub fn hand_over(&self, arrival: Arrival) -> Result<()> {
        self.arrivals.send(arrival).map_err(|_| Error::failed("the parsers are gone; messages stay in the queue"))
    }

    /// From now on what arrived is given back.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }
}

/// False when the parsers are gone.
fn decode(arrival: Arrival, draining: &AtomicBool, failures: &Failures, pieces: &Sender<Piece>) -> bool {
    let opened = Envelope::open(&arrival.properties, &arrival.body, &arrival.dataset);
    let key = opened.as_ref().map_or_else(|_| MessageKey::of_undecodable(&arrival.body), Envelope::key);
    let mut receipt = arrival.receipt(key);
    // Of a lost connection, or no longer wanted.
    if !arrival.acker.usable() || draining.load(Ordering::Relaxed) {
        receipt.send(Verdict::Returned);
        return true;
    }
    let sentence = match failures.sentence(&key) {
        Some(sentence) => sentence,
        None => match opened.and_then(|envelope| envelope.decode(&arrival.body)) {
            Ok((load, content)) => {
                drop(arrival);
                let piece = Piece { load, content, receipt: Receipt::new(receipt) };
                return match pieces.send(piece) {
                    Ok(()) => true,
                    Err(refused) => {
                        refused.into_inner().receipt.give_back();
                        false
                    }
                };
            }
            Err(Undecodable { reason, detail }) => Sentence { reason: reason.to_owned(), detail },
        },
    };
    let Arrival { dataset, properties, body, .. } = arrival;
    let Sentence { reason, detail } = sentence;
    receipt.send(Verdict::SetAside(Box::new(DeadLetter { dataset: dataset.name.clone(), reason, detail, properties, body })));
    true
}
