//! What a person at a terminal types and sees.

pub mod cli; // the command line: commands, flags, help texts
pub mod output; // results and errors, as text or as JSON
pub mod summary; // what a run loaded
pub mod table; // aligned columns
pub mod progress; // bars and the live line
pub mod logging; // to standard error, for people or for programs
