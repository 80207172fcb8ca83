//! RabbitMQ between the reader and the parsers: the publisher takes the reader's pieces, the consumer makes them again for the
//! parsers, in another process or in the same one.
//!
//! Publisher and consumer each own a connection: when the broker runs out of disk or memory it stops reading from those that
//! publish, and acknowledgements must not wait behind that.

pub mod wire; // a piece as a message
pub mod topology; // exchange, queues and their arguments
mod tap; // how much is read from a connection
pub mod connection; // connecting, waiting, connecting again
pub mod publisher; // pieces to the broker
pub mod consumer; // messages to the parsers
pub mod dead_letters; // what could not be decoded: set aside, listed, replayed
