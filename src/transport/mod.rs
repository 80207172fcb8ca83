//! The seam between Reader and Parser: in this process, or through RabbitMQ. The stages on both sides do not know which.

pub mod piece; // what travels
pub mod budget; // how many bytes of it at a time
pub mod amqp; // through RabbitMQ

use piece::Piece;

/// Where the reader's pieces go.
#[derive(Debug, Clone)]
pub enum Outlet {
    /// To the parser threads of this process.
    Parsers(crossbeam_channel::Sender<Piece>),
    /// To the publisher.
    Publisher(tokio::sync::mpsc::Sender<Piece>),
}

/// Nobody takes pieces any more: the run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;

impl Outlet {
    /// Passes a piece on; waits while the next stage is full. For threads outside the runtime.
    ///
    /// # Errors
    /// If the next stage is gone.
    pub fn pass(&self, piece: Piece) -> Result<(), Closed> {
        match self {
            Self::Parsers(pieces) => pieces.send(piece).map_err(|_| Closed),
            Self::Publisher(pieces) => pieces.blocking_send(piece).map_err(|_| Closed),
        }
    }
}
