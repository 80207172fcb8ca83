//! The promises to users, tested on the real binary: one module per promise, one test binary so that it links once.
//!
//! `cargo test` runs what needs no server; `./run.sh test` starts PostgreSQL and RabbitMQ and runs everything.

mod harness; // what the other tests rely on: sandboxes, queries, private servers
mod support;

mod command_line; // arguments, exit codes, errors
mod help; // the help texts
mod about; // codes, schema, completions, man pages
mod documents; // what README and docs/ name exists
mod layers; // modules use only those below them
mod private; // what other users can read, and where they can lead it
mod harmless; // no control characters, no passwords

// Batch, in the order in which a newcomer meets it.
mod sample; // the main job on the samples
mod inputs; // what is read, and the answer
mod datasets; // tables from the configuration
mod infer; // the definition of a dataset, from its files
mod backfill; // columns that are added later
mod plan; // what a load would change
mod drift; // keys that no column takes
mod upsert; // what replaces what
mod new_files; // only what is not loaded yet
mod model; // the modelled tables
mod verify; // all that is there agrees
mod exact; // at every moment
mod changes; // in the cost of the change
mod reading; // commands that only read
mod hosts; // several hosts in a URL, and a standby that takes over
mod pooler; // PgBouncer between it and PostgreSQL
mod rights; // roles with no right more than they need
mod durable; // power cuts
mod ledger; // loads and chunks
mod unload; // loads that are taken back
mod upgrade; // databases of earlier versions
mod rejects; // what could not be loaded
mod alike; // the same rows on both databases
mod bad_input; // what is broken
mod faults; // databases that are away, refuse, die, are full
mod crash; // kill -9

mod menu; // every choice, typed into a pipe
mod drop; // files into the inbox
mod browser; // the page in a real browser
mod http; // the page, asked without a browser
mod page_truth; // the page, asked all along while the database goes and comes
mod health; // alive and connected, or why not
mod doctor; // what a run would meet
mod drill; // processes are killed, and nothing is lost

mod amqp; // RabbitMQ between reader and parsers

// Stream, in the order in which a file meets it.
mod stream_once; // what the inbox holds, then an end
mod stream_watch; // files that arrive while it runs: which, when, and where they go
mod stream_upsert; // records that replace those of their keys
mod stream_files; // files that cannot be read, grow, change, or take long to move
mod stream_rejects; // records and files that cannot be loaded
mod stream_repeats; // contents that are there already
mod stream_model; // the modelled tables follow; other commands beside the pipeline
mod stream_killed; // exactly once, whoever dies
mod matrix; // killed after every step
mod stream_outage; // the database goes away and comes back
mod stream_answers; // what it can answer instead of "done"
mod stream_silence; // it answers nothing, and closes no connection
mod stream_drain; // how a run ends: signals, panics, health
mod stream_roles; // producers and consumers apart, over RabbitMQ
mod stream_messages; // what other programs send, what is set aside, what a producer sends
mod stream_broker; // messages too large for memory or that end the process; a broker that takes none
