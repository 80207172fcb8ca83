//! One file per command: what it does with the layers below, and what it prints. Each command returns its exit code.

pub mod load; // loads files, with a progress bar and the totals afterwards
pub mod run; // runs the stream
pub mod serve; // serves the page without a pipeline
pub mod menu; // numbered choices for the user
pub mod drop; // puts copies of a file into the inbox
pub mod report; // shows the modelled tables
pub mod status; // shows the ledger
pub mod rejects; // lists, exports and replays rejects
pub mod unload; // takes loads back
pub mod model; // refreshes and checks the modelled tables
pub mod verify; // whether all that is there agrees
pub mod drill; // tries out that nothing is lost, whatever is killed
pub mod migrate; // creates or upgrades the tables
pub mod health; // whether the stream of this working directory is healthy
pub mod doctor; // checks what a run would meet
pub mod infer; // describes files that nobody has described yet
pub mod generate; // writes synthetic events
pub mod explain; // says what a reject reason or an exit code means
pub mod about; // the schema of the configuration, completions, man pages

/// Everything was done.
pub const DONE: u8 = 0;
/// A check found a difference.
pub const DIFFERENT: u8 = 1;
/// No stream runs in this working directory, or one is not healthy.
pub const UNHEALTHY: u8 = 1;
/// The work is done, but records were rejected or a file failed.
pub const REJECTED: u8 = 3;
/// The records are not as the configuration says.
pub const DRIFTED: u8 = 3;
/// A signal ended the work before it was done.
pub const INTERRUPTED: u8 = 130;
