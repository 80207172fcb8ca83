//! dataloader: loads JSON files into PostgreSQL or SQLite and models them per day, in batch or as they arrive.

pub mod cli; // the command line: commands, flags, help texts
pub mod config; // flags over environment over dataloader.toml over defaults
pub mod logging; // to standard error, for people or for programs
pub mod output; // results and errors, as text or as JSON

pub mod batch; // files → delta → master → modelled tables, in one transaction
pub mod inbox; // the life of a dropped file: claimed, read, put where it belongs
pub mod pipeline; // the stream: actors from the inbox to the modelled tables
pub mod transport; // the seam between reader and parser
pub mod record; // pure: bytes → rows and rejects
pub mod store; // the seam to the databases

pub mod menu; // numbered choices for people
pub mod load; // a batch load with its progress bar and totals
pub mod drop; // files into the inbox
pub mod health; // whether the pipeline of this working directory is alive
pub mod report; // the modelled tables for people
pub mod model; // brings them up to date, checks them
pub mod rejects; // what could not be loaded: listed, exported, replayed
pub mod status; // the ledger for people
pub mod progress; // bars on a terminal
pub mod table; // aligned columns
pub mod patience; // with a database or a broker that is away
pub mod signals; // SIGINT and SIGTERM
pub mod generate; // synthetic events, the same bytes for the same arguments
pub mod dataset; // what is loaded: a directory of files, a raw table, a model
pub mod error; // the error that reaches the user; exit codes
