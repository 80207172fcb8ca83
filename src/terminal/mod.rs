//! The user interface on a terminal: command line, results, progress, logs.

pub mod cli; // the command line: commands, flags, help texts
pub mod output; // results and errors, as text or as JSON
pub mod summary; // what a load has done
pub mod table; // aligned columns
pub mod progress; // progress bar and live line
pub mod logging; // logs on standard error, as text or as JSON
