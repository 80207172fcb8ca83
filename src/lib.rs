//! dataloader: loads JSON files into PostgreSQL or SQLite and models them per day, in batch or as they arrive.

pub mod dataset; // what is loaded: a directory of files, a raw table, a model
pub mod error; // the error that reaches the user; exit codes
pub mod record; // pure: bytes → rows and rejects

pub mod config; // flags over environment over dataloader.toml over defaults
pub mod generate;
pub mod record; // pure: bytes → rows and rejects // synthetic events, the same bytes for the same arguments
