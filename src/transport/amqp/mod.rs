//! RabbitMQ between the reader and the parsers. The publisher sends the reader's pieces as messages. The consumer turns them
//! back into pieces for the parsers, in the same or in another process.
//!
//! Publisher and consumer each have their own connection. When the broker is short of disk or memory, it stops reading from
//! connections that publish, and this must not delay acknowledgements.

pub mod wire; // encodes a piece as a message, and decodes it
pub mod topology; // exchange and queues, with their arguments
mod tap; // limits how much is read from a connection
pub mod connection; // connecting and reconnecting
pub mod publisher; // sends pieces to the broker
pub mod consumer; // passes messages to the parsers
pub mod depth; // how many messages wait
pub mod checkup; // what a run would meet
pub mod dead_letters; // messages that cannot be loaded: set aside, listed, replayed
