//! Parser: turns pieces into rows and rejects, on its own threads behind a bounded channel. It is not a `SyncArbiter`, because
//! the queue of a `SyncArbiter` has no bound.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use actix::Addr;

use super::batcher::Batcher;
use super::faults::Faults;
use super::protocol::{ParsedChunk, ParsedContent, ParsedPiece};
use super::stats::Stats;
use crate::error::Error;
use crate::record::chunk::Chunk;
use crate::record::parse::{DayRange, Parsed, Parser};
use crate::store::{Dialect, Rows};
use crate::transport::piece::{Content, ForeignMessage, Load, Piece};

/// How a chunk is parsed. Tests can replace it.
pub type ParseChunk = fn(&mut Parser, &Chunk, &mut Rows) -> Parsed;

/// The default: parses every record of the chunk.
pub fn parse_chunk(parser: &mut Parser, chunk: &Chunk, rows: &mut Rows) -> Parsed {
    parser.parse(chunk, &DayRange::ALL, rows)
}

/// What to do when parsing panics, apart from reporting it: record that this load crashed the process.
pub type OnCrash = Arc<dyn Fn(&Load) + Send + Sync>;

/// What the threads share.
#[derive(Clone)]
pub struct ParserParts {
    pub pieces: crossbeam_channel::Receiver<Piece>,
    pub dialect: Dialect,
    pub parse: ParseChunk,
    pub batcher: Addr<Batcher>,
    pub on_crash: OnCrash,
    pub stats: Arc<Stats>,
    pub faults: Faults,
}

/// Starts the threads. Each one exits when the channel is closed and empty.
///
/// # Errors
/// If the operating system cannot start a thread.
pub fn start(threads: usize, parts: &ParserParts) -> std::io::Result<Vec<JoinHandle<()>>> {
    (0..threads)
        .map(|_| {
            let ParserParts { pieces, dialect, parse, batcher, on_crash, stats, faults } = parts.clone();
            std::thread::Builder::new().name("parser".to_owned()).spawn(move || {
                let mut pool = ParserThread { dialect, parse, parsers: HashMap::new() };
                let stage = stats.vitals.stage("parser");
                for mut piece in pieces {
                    let load = Arc::clone(&piece.load);
                    let redelivers = piece.receipt.redelivers();
                    let records = piece.records();
                    piece.receipt.carry(stats.carry(&load.dataset.name, records));
                    let _work = stage.works_on(records);
                    match catch_unwind(AssertUnwindSafe(|| pool.parse(piece))) {
                        // The budget bounds the mailbox. If the batcher has ended, it has already reported why.
                        Ok(parsed) => batcher.do_send(parsed),
                        // The panic has dropped the message, which counts as a failure: it is delivered again, and is
                        // dead-lettered in the end. If this process ended instead, the next consumer would receive the message
                        // and end as well.
                        Err(_) if redelivers => {
                            tracing::error!("parsing a message of {} panicked: please report the panic above", load.dataset.name);
                            pool.parsers.clear();
                        }
                        Err(_) => {
                            on_crash(&load);
                            faults.report(
                                Error::failed(format!("parsing {} of dataset {} panicked", load.source, load.dataset.name)).hint(
                                    "start again; a file that does this three times goes to failed/; please report the panic above",
                                ),
                            );
                            return;
                        }
                    }
                }
            })
        })
        .collect()
}

struct ParserThread {
    dialect: Dialect,
    parse: ParseChunk,
    /// By dataset.
    parsers: HashMap<String, Parser>,
}

impl ParserThread {
    fn parse(&mut self, Piece { load, content, receipt }: Piece) -> ParsedPiece {
        let content = match content {
            Content::Chunk(chunk) => ParsedContent::Chunk(self.parse_chunk(&load, chunk)),
            Content::End(end) => ParsedContent::End(end),
            Content::Foreign(ForeignMessage { app_id, message_id, digest, chunk }) => {
                ParsedContent::Foreign { app_id, message_id, digest, chunk: self.parse_chunk(&load, chunk) }
            }
        };
        ParsedPiece { load, content, receipt }
    }

    fn parse_chunk(&mut self, load: &Load, chunk: Chunk) -> ParsedChunk {
        let parser = self.parsers.entry(load.dataset.name.clone()).or_insert_with(|| Parser::new(Arc::clone(&load.dataset)));
        ParsedChunk::new(chunk, self.dialect, |chunk, rows| (self.parse)(parser, chunk, rows))
    }
}
