//! dataloader: loads JSON files into PostgreSQL or SQLite and models them per day, in batch or as they arrive.
//!
//! The modules in layers, the top one first. A module uses those below it and none above it; a test holds that.

pub mod commands; // one file per command
pub mod terminal; // what a person types and sees

pub mod web; // the page, metrics and health over HTTP

pub mod answers; // what commands and page say of the database

pub mod stream; // actors from the inbox to the modelled tables
pub mod batch; // files → delta → master → modelled tables, in one transaction
pub mod summary; // what a run of either loaded

pub mod transport; // from reader to parsers: in this process or through RabbitMQ
pub mod inbox; // the life of a dropped file: claimed, read, put where it belongs
pub mod store; // the seam to the databases
pub mod infer; // from records to the definition of a dataset that loads them
pub mod record; // pure: bytes → rows and rejects

pub mod heartbeat; // whether the pipeline of this working directory is alive
pub mod retry; // when to try again what needs a server that is away
pub mod hosts; // several hosts of a URL, tried in turn
pub mod flow; // what passes through the stages, and what limits it
pub mod vitals; // what the stages are doing, or wait for
pub mod config; // flags over environment over dataloader.toml over defaults
pub mod signals; // SIGINT and SIGTERM
pub mod steps; // where a process can die, for tests
pub mod host; // the name of this machine
pub mod counted; // numbers of things, as people read them
pub mod visible; // control characters of data and names: shown, never sent
pub mod dataset; // what is loaded: a directory of files, a raw table, a model
pub mod error; // the error that reaches the user; exit codes

#[cfg(test)]
mod fuzz; // inputs that nobody wrote by hand
