//! The stream: the only file that knows all stages. It starts them, watches them, and drains them in the order of the data.

pub mod messages; // the whole protocol
mod faults; // what ends a run
mod link; // a connection that outlives the database's absences
mod intake; // files: claimed, handed to the reader, put where they belong
mod reader; // files → chunks
mod parser; // chunks → rows and rejects
mod batcher; // rows → batches
mod writer; // batches → the database
mod modeller; // changed days → modelled tables
mod pulse; // signs of life

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use actix::{Actor, Addr, Arbiter};
use tokio::sync::oneshot;

use crate::batch::summary::LoadSummary;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::inbox::Inbox;
use crate::signals::Signals;
use crate::store::{Database, GIVE_UP_AFTER, schema};
use crate::transport::Outlet;

use batcher::{Batcher, Drain};
use faults::Faults;
use intake::{Claims, Intake, Mode, Stop, Summarize};
use link::{Link, Patience};
use modeller::{Modeller, RefreshAll};
use reader::{Budget, Close, Reader};
use writer::{Stats, Writer};

pub use parser::{ParseChunk, parse_chunk};

/// What a run is to do.
#[derive(Debug, Clone, Copy)]
pub struct RunOptions {
    /// Load what the inbox holds now, then end.
    pub once: bool,
    /// How chunks are parsed.
    pub parse: ParseChunk,
}

impl RunOptions {
    /// Until a signal, or once.
    pub fn new(once: bool) -> Self {
        Self { once, parse: parse_chunk }
    }
}

/// How long a statement of the stream waits for SQLite's write lock before it is tried again from the start.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// Runs the stream on a system of its own: until a signal, or until what the inbox holds is loaded.
///
/// # Errors
/// What a stage could not mend; that a second signal came.
pub fn run(config: &Config, options: RunOptions) -> Result<LoadSummary> {
    actix::System::new().block_on(run_in_process(config, options))
}

async fn run_in_process(config: &Config, options: RunOptions) -> Result<LoadSummary> {
    let database = Database::new(&config.database, LOCK_WAIT)?;
    tokio::select! {
        never = pulse::beat(config, database.clone()) => match never {},
        summary = supervise(config, options, database) => summary,
    }
}

/// Starts the stages, waits for whatever ends the run, and drains them.
async fn supervise(config: &Config, options: RunOptions, database: Database) -> Result<LoadSummary> {
    let mut signals = Signals::listen()?;
    let (faults, mut reported) = Faults::new();
    let mut stages = tokio::select! {
        stages = Stages::start(config, options, &database, &faults) => stages?,
        () = signals.next() => return Ok(LoadSummary::empty(&config.datasets)),
    };
    tokio::select! {
        Some(fault) = reported.recv() => return Err(fault),
        () = signals.next() => tracing::info!("finishing what is in flight; a second signal ends at once"),
        Ok(()) = &mut stages.idle => {}
    }
    tokio::select! {
        summary = stages.drain() => summary,
        Some(fault) = reported.recv() => Err(fault),
        () = signals.next() => Err(Error::interrupted()),
    }
}

/// The running stages, in the order of the data.
struct Stages {
    intake: Addr<Intake>,
    reader: Addr<Reader>,
    batcher: Addr<Batcher>,
    modeller: Addr<Modeller>,
    /// The reader ends with the chunk in work when this is set.
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    /// With `--once`: answers when everything is loaded.
    idle: oneshot::Receiver<()>,
    /// The live line.
    live: tokio::task::JoinHandle<()>,
}

impl Stages {
    /// Waits for the database, then starts every stage, the last first.
    async fn start(config: &Config, options: RunOptions, database: &Database, faults: &Faults) -> Result<Self> {
        let patience = if options.once { Patience::Limited(GIVE_UP_AFTER) } else { Patience::Endless };
        let link = || Link::new(database.clone(), patience);
        let mut first = link();
        first.repeat(async |connection| schema::ensure(connection, &config.datasets).await).await?;
        first.close().await;

        let inbox = Inbox::open(&config.inbox, &config.datasets, config.stream.settle)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stats = Arc::new(Stats::default());
        let budget = Budget::new(config.stream.in_flight_bytes);
        let thread_error = |error| Error::failed(format!("cannot start a thread: {error}"));

        let modeller = Modeller::new(link(), config.stream.model_delay, &config.datasets, faults).start();
        // The intake is made before its reader, which stands at the other end of the circle.
        let (pieces, parsed) = crossbeam_channel::bounded(config.stream.parsers);
        let (reader, reader_thread) =
            Reader::new(Outlet::Parsers(pieces), budget.clone(), Arc::clone(&stop), faults).map_err(thread_error)?;
        let reader = reader.start();
        let (idle_in, idle) = oneshot::channel();
        let mode = if options.once { Mode::Once(Some(idle_in)) } else { Mode::Watch };
        let claims = Claims::default();
        let intake = Intake::new(inbox, claims.clone(), config, reader.clone(), mode, faults).start();

        let (writer_link, writer_modeller, finished) = (link(), modeller.clone(), intake.clone().recipient());
        let (writer_stats, writer_faults) = (Arc::clone(&stats), faults.clone());
        let writer = Writer::start_in_arbiter(&Arbiter::new().handle(), move |_| {
            Writer::new(writer_link, writer_modeller, finished, writer_stats, &writer_faults)
        });
        let batcher = Batcher::new(&config.stream, writer, faults).start();
        let on_crash: parser::OnCrash = Arc::new(move |load| claims.crashed(load.key));
        let mut threads =
            parser::start(config.stream.parsers, &parsed, database.dialect(), options.parse, &batcher, &on_crash, faults)
                .map_err(thread_error)?;
        threads.push(reader_thread);
        let live = actix::spawn(pulse::show(stats, budget));
        Ok(Self { intake, reader, batcher, modeller, stop, threads, idle, live })
    }

    /// Lets everything in flight reach the database, in the order of the data; returns what was loaded.
    async fn drain(self) -> Result<LoadSummary> {
        let gone = |_| Error::failed("a stage stopped while the run ended");
        self.intake.send(Stop).await.map_err(gone)?;
        self.stop.store(true, Ordering::Relaxed);
        self.reader.send(Close).await.map_err(gone)?;
        // The reader's end closes the channel to the parsers; theirs leaves all they had in the batcher's mailbox.
        let joined = tokio::task::spawn_blocking(move || self.threads.into_iter().try_for_each(JoinHandle::join));
        joined.await.is_ok_and(|ended| ended.is_ok()).then_some(()).ok_or_else(|| Error::failed("a thread panicked"))?;
        self.batcher.send(Drain).await.map_err(gone)?;
        self.modeller.send(RefreshAll).await.map_err(gone)?;
        self.live.abort();
        self.intake.send(Summarize).await.map_err(gone)
    }
}
