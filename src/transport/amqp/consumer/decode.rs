//! Decode: turns deliveries into pieces, on its own thread. Computing digests and finding record boundaries takes time, and the
//! channel to the parsers blocks when it is full.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crossbeam_channel::Sender;
use lapin::{Acker, BasicProperties};
use tokio::sync::mpsc;

use super::delivery::{Delivery, Settled};
use super::failures::{DeadLetterReason, Failures};
use super::held::{Held, Share};
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::transport::amqp::dead_letters::DeadLetter;
use crate::transport::amqp::wire::{Envelope, MessageKey, Undecodable};
use crate::transport::budget::footprint;
use crate::transport::piece::{Content, Load, Piece, Receipt};

/// Approximate memory that a message takes in addition to its body.
const MESSAGE_BYTES: usize = 1 << 10;

/// A message that the broker delivered from a dataset's queue.
pub(super) struct Arrival {
    dataset: Arc<Dataset>,
    properties: BasicProperties,
    body: Vec<u8>,
    acker: Acker,
    outcomes: mpsc::UnboundedSender<Settled>,
    share: Share,
}

impl Arrival {
    pub fn new(
        dataset: Arc<Dataset>,
        delivery: lapin::message::Delivery,
        outcomes: mpsc::UnboundedSender<Settled>,
        held: &Held,
    ) -> Self {
        let lapin::message::Delivery { properties, data, acker, .. } = delivery;
        // Twice the body: the piece has a copy of it, and later has rows beside its text.
        let share = held.take(MESSAGE_BYTES + 2 * data.len());
        Self { dataset, properties, body: data, acker, outcomes, share }
    }

    /// The key that identifies the message.
    pub fn key(&self) -> MessageKey {
        self.open().1
    }

    /// Gives up the message without processing it.
    pub fn into_acker(self) -> Acker {
        self.acker
    }

    fn open(&self) -> (Result<Envelope, Undecodable>, MessageKey) {
        let opened = Envelope::open(&self.properties, &self.body, &self.dataset);
        let key = opened.as_ref().map_or_else(|_| MessageKey::of_undecodable(&self.body), Envelope::key);
        (opened, key)
    }
}

/// The handle of the thread that makes pieces.
pub(super) struct Decoder {
    arrivals: mpsc::UnboundedSender<Arrival>,
    draining: Arc<AtomicBool>,
}

impl Decoder {
    /// Starts the thread. It ends when the decoder is dropped or the parsers are gone.
    pub fn start(pieces: Sender<Piece>, failures: Failures) -> Result<Self> {
        // Unbounded: the tap limits what arrives.
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

    /// From now on arriving messages are returned to their queue.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }
}

/// Makes a piece of a message and passes it on. Returns false if the parsers are gone.
fn decode(arrival: Arrival, draining: &AtomicBool, failures: &Failures, pieces: &Sender<Piece>) -> bool {
    let (opened, key) = arrival.open();
    let Arrival { dataset, properties, body, acker, outcomes, share } = arrival;
    // The connection is lost, or the consumer drains.
    let is_unwanted = !acker.usable() || draining.load(Ordering::Relaxed);
    let mut delivery = Delivery::new(acker, key, outcomes, share);
    if is_unwanted {
        delivery.give_back();
        return true;
    }
    let why = match failures.dead_letter_reason(&key) {
        Some(why) => why,
        None => match opened.and_then(|envelope| envelope.decode(&body)) {
            Ok((load, content)) => {
                drop((properties, body));
                delivery.resize(MESSAGE_BYTES + bytes_of(&load, &content));
                let refused = pieces.send(Piece { load, content, receipt: Receipt::new(delivery) });
                return match refused {
                    Ok(()) => true,
                    Err(refused) => {
                        refused.into_inner().receipt.give_back();
                        false
                    }
                };
            }
            Err(Undecodable { reason, detail }) => DeadLetterReason { reason: reason.to_owned(), detail },
        },
    };
    let DeadLetterReason { reason, detail } = why;
    delivery.set_aside(DeadLetter { dataset: dataset.name.clone(), reason, detail, properties, body });
    true
}

fn bytes_of(load: &Load, content: &Content) -> usize {
    match content {
        Content::Chunk(chunk) => footprint(chunk, &load.dataset),
        Content::Foreign(message) => footprint(&message.chunk, &load.dataset),
        Content::End(_) => 0,
    }
}
