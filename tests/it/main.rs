//! The promises to users, tested on the real binary: one module per promise, one test binary so that it links once.
//!
//! `cargo test` runs what needs no server; `./run.sh test` starts PostgreSQL and runs everything.

mod harness; // what the other tests rely on: sandboxes, queries, private servers
mod support;

mod command_line; // arguments, exit codes, errors
mod help; // the help texts
mod sample; // the main job on the samples
mod upsert; // what replaces what
mod inputs; // what is read, and the answer
mod rejects; // what could not be loaded
