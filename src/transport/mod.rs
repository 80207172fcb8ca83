//! Transport: how pieces get from the reader to the parsers, in this process or through RabbitMQ. The stages on both sides do
//! not know which of the two is used.

pub mod piece; // what is transported
pub mod budget; // limits the bytes in flight
pub mod amqp; // through RabbitMQ

use piece::Piece;

/// Where the reader sends its pieces.
#[derive(Debug, Clone)]
pub enum Outlet {
    /// To the parser threads of this process.
    Parsers(crossbeam_channel::Sender<Piece>),
    /// To the publisher.
    Publisher(tokio::sync::mpsc::Sender<Piece>),
}

/// The receiver of the pieces is gone, because the run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;

impl Outlet {
    /// Passes a piece on. Waits while the next stage is full. For threads outside the runtime.
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
