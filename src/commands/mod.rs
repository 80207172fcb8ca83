//! One file per command: what it does, in terms of the layers below, and what it prints. Each returns the exit code of its work.

pub mod load; // files into the database, with a progress bar and the totals after it
pub mod run; // the stream
pub mod menu; // numbered choices for people
pub mod drop; // files into the inbox
pub mod report; // the modelled tables
pub mod status; // the ledger
pub mod rejects; // what could not be loaded: listed, exported, replayed
pub mod model; // the modelled tables brought up to date and checked
pub mod migrate; // the tables made or upgraded
pub mod health; // whether the pipeline of this working directory is alive
pub mod generate; // synthetic events, the same bytes for the same arguments

/// Everything was done.
pub const DONE: u8 = 0;
/// A check found a difference.
pub const DIFFERENT: u8 = 1;
/// No pipeline is alive here, or one is not connected.
pub const UNHEALTHY: u8 = 1;
/// The work is done, but records were rejected or a file failed.
pub const REJECTED: u8 = 3;
/// A signal ended the work before it was done.
pub const INTERRUPTED: u8 = 130;
