//! The promises to users, tested on the real binary: one module per promise, one test binary so that it links once.
//!
//! `cargo test` runs what needs no server; `./run.sh test` starts PostgreSQL and runs everything.

mod harness; // what the other tests rely on: sandboxes, queries, private servers
mod support;

mod command_line; // arguments, exit codes, errors
mod help; // the help texts

// Batch, in the order in which a newcomer meets it.
mod sample; // the main job on the samples
mod inputs; // what is read, and the answer
mod datasets; // tables from the configuration
mod upsert; // what replaces what
mod model; // the modelled tables
mod ledger; // loads and chunks
mod rejects; // what could not be loaded

mod amqp; // RabbitMQ between reader and parsers
