//! The stream: the only file that knows all stages. It starts them, watches them, and drains them in the order of the data.

pub mod protocol; // what the stages tell each other
mod faults; // what ends a run
mod link; // connections that outlive absences
mod intake; // files: claimed, handed to the reader, put where they belong
mod reader; // files → chunks
mod parser; // chunks → rows and rejects
mod batcher; // rows → batches
mod writer; // batches → the database
mod foreign; // other programs' messages among them
mod modeller; // changed days → modelled tables
mod tally; // what was loaded
mod pulse; // signs of life
mod stats; // what the run has done so far

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use actix::{Actor, Addr, Arbiter, Recipient};
use tokio::sync::{mpsc, oneshot, watch};

use crate::config::{Config, Role, Transport};
use crate::error::{Error, Result, io_text};
use crate::inbox::Inbox;
use crate::retry::{GIVE_UP_AFTER, Patience};
use crate::signals::Signals;
use crate::store::{Dialect, Indexes, schema};
use crate::summary::LoadSummary;
use crate::transport::Outlet;
use crate::transport::amqp::consumer::{Consumer, Phase};
use crate::transport::amqp::publisher::Publisher;
use crate::transport::budget::Budget;
use crate::transport::piece::Piece;

use batcher::{Batcher, Drain};
use faults::Faults;
use intake::{Claims, Intake, Mode, Stop};
use link::Links;
use modeller::{Modeller, RefreshAll};
use protocol::LoadFinished;
use reader::{Close, Reader};
use tally::{Summarize, Tally};
use writer::Writer;

pub use parser::{ParseChunk, parse_chunk};
pub use stats::Stats;

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

    /// `run` waits for a database or broker that is away, `run --once` gives up.
    fn patience(self) -> Patience {
        if self.once { Patience::GiveUp } else { Patience::Wait }
    }
}

/// Runs the stream on a system of its own: until a signal, or until what the inbox holds is loaded. `stats` says meanwhile what
/// it has done.
///
/// # Errors
/// What a stage could not mend; that a second signal came.
pub fn run(config: &Config, options: RunOptions, stats: &Arc<Stats>) -> Result<LoadSummary> {
    actix::System::new().block_on(async {
        let links = Links::new(config)?;
        tokio::select! {
            never = pulse::beat(config, &links) => match never {},
            summary = supervise(config, options, &links, stats) => summary,
        }
    })
}

/// Starts the stages, waits for whatever ends the run, and drains them.
async fn supervise(config: &Config, options: RunOptions, links: &Links, stats: &Arc<Stats>) -> Result<LoadSummary> {
    let mut signals = Signals::listen()?;
    let (faults, mut reported) = Faults::new();
    let mut stages = tokio::select! {
        stages = Stages::start(config, options, links, stats, &faults) => stages?,
        () = signals.next() => return Ok(LoadSummary::empty(&config.datasets)),
    };
    let is_stopped = tokio::select! {
        Some(fault) = reported.recv() => return Err(fault),
        () = signals.next() => true,
        Ok(()) = &mut stages.idle => false,
    };
    if is_stopped {
        tracing::info!("finishing what is in flight; a second signal ends at once");
    }
    tokio::select! {
        summary = stages.drain(options.once && !is_stopped) => summary,
        Some(fault) = reported.recv() => Err(fault),
        () = signals.next() => Err(Error::interrupted()),
    }
}

/// The running stages, in the order of the data. A producer has no more than intake and reader, a consumer all the others.
struct Stages {
    files: Option<Files>,
    publisher: Option<Publishing>,
    consumer: Option<Consuming>,
    records: Option<Records>,
    tally: Addr<Tally>,
    /// With `--once`: answers when the inbox has nothing more to load, or never where there is none.
    idle: oneshot::Receiver<()>,
}

/// The stages that read files.
struct Files {
    intake: Addr<Intake>,
    reader: Addr<Reader>,
    /// The reader ends with the chunk in work when this is set.
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// The stages that load records.
struct Records {
    threads: Vec<JoinHandle<()>>,
    batcher: Addr<Batcher>,
    modeller: Addr<Modeller>,
}

/// The publisher at work; ends when the reader has.
type Publishing = tokio::task::JoinHandle<Result<()>>;

/// The consumer at work; ends when it is told to.
struct Consuming {
    task: tokio::task::JoinHandle<Result<()>>,
    phase: watch::Sender<Phase>,
}

impl Stages {
    /// Waits for the database, then starts every stage of this process, the last first.
    async fn start(config: &Config, options: RunOptions, links: &Links, stats: &Arc<Stats>, faults: &Faults) -> Result<Self> {
        let budget = Budget::new(config.stream.in_flight_bytes);
        let claims = Claims::default();
        let tally = Tally::new(config, faults).start();
        let _ = stats.budget.set(budget.clone());
        let (idle_in, idle) = oneshot::channel();
        let mut idle_in = Some(idle_in);

        // Without a database nothing is claimed.
        if config.role != Role::Producer {
            let mut first = links.database(options);
            first.repeat(async |connection| schema::ensure(connection, &config.datasets, Indexes::Make).await).await?;
            first.close().await;
        }
        // The intake and the writer stand at the two ends of a circle: the intake is there first.
        let (parsers_in, parsers_out) = crossbeam_channel::bounded(config.stream.parsers);
        let (publisher_in, publisher_out) = mpsc::channel(PUBLISHER_QUEUE);
        let files = match config.role {
            Role::Consumer => None,
            Role::All | Role::Producer => {
                let outlet = match config.transport {
                    Transport::Inproc => Outlet::Parsers(parsers_in.clone()),
                    Transport::Amqp => Outlet::Publisher(publisher_in),
                };
                let mode = if options.once { Mode::Once(idle_in.take()) } else { Mode::Watch };
                Some(Files::start(config, outlet, budget, claims.clone(), mode, faults)?)
            }
        };
        let records = match config.role {
            Role::Producer => None,
            Role::All | Role::Consumer => {
                let mut finished = vec![tally.clone().recipient()];
                if let (Transport::Inproc, Some(files)) = (config.transport, &files) {
                    finished.push(files.intake.clone().recipient());
                }
                Some(Records::start(config, options, links, parsers_out, finished, claims, Arc::clone(stats), faults)?)
            }
        };
        let (mut publisher, mut consumer) = (None, None);
        if let Some(broker) = &links.broker {
            let (topology, patience) = (broker.topology.clone(), options.patience());
            if let Some(files) = &files {
                let (intake, own_tally) = (files.intake.clone(), (config.role == Role::Producer).then(|| tally.clone()));
                let work = Publisher::new(broker.broker.clone(), topology.clone(), patience);
                broker.watch(work.connected());
                let work = work.run(publisher_out, move |published| {
                    let load = LoadFinished::from(published);
                    if let Some(tally) = &own_tally {
                        tally.do_send(load.clone());
                    }
                    intake.do_send(load);
                });
                publisher = Some(report_fault(work, faults));
            }
            if records.is_some() {
                let (phase, is_phase) =
                    watch::channel(if options.once && files.is_none() { Phase::UntilEmpty } else { Phase::Run });
                let work = Consumer::new(broker.broker.clone(), topology, patience, config.stream.in_flight_bytes);
                broker.watch(work.connected());
                let work = work.run(parsers_in, is_phase);
                // A consumer without files is done when its queues are empty; the supervisor waits for that.
                let done = if options.once && files.is_none() { idle_in.take() } else { None };
                let work = async move {
                    let ended = work.await;
                    if let (Ok(()), Some(done)) = (&ended, done) {
                        let _ = done.send(());
                    }
                    ended
                };
                consumer = Some(Consuming { task: report_fault(work, faults), phase });
            }
        }
        Ok(Self { files, publisher, consumer, records, tally, idle })
    }

    /// Lets everything in flight reach the database or the broker, in the order of the data; returns what was loaded.
    async fn drain(mut self, once: bool) -> Result<LoadSummary> {
        let gone = |_| Error::failed("a stage stopped while the run ended");
        // Borrowed: an actor without addresses stops, and whoever stops before the summary is there has failed.
        if let Some(Files { intake, reader, stop, threads }) = &mut self.files {
            intake.send(Stop).await.map_err(gone)?;
            stop.store(true, Ordering::Relaxed);
            reader.send(Close).await.map_err(gone)?;
            let ended = join(std::mem::take(threads));
            match &self.publisher {
                None => ended.await?,
                // With the broker away the reader waits for the publisher, which would wait for the reader's end.
                Some(publisher) => tokio::select! {
                    ended = ended => ended?,
                    () = tokio::time::sleep(GIVE_UP_AFTER) => publisher.abort(),
                },
            }
        }
        if let Some(publisher) = self.publisher {
            // What was not confirmed stays claimed and is published again at the next start.
            publisher.await.unwrap_or(Ok(()))?;
        }
        if let Some(Consuming { task, phase }) = self.consumer {
            let _ = phase.send(if once { Phase::UntilEmpty } else { Phase::Drain });
            task.await.map_err(|_| Error::failed("the consumer panicked"))??;
        }
        if let Some(Records { threads, batcher, modeller }) = &mut self.records {
            // The end of whoever gave them pieces is theirs; all they had is in the batcher's mailbox then.
            join(std::mem::take(threads)).await?;
            batcher.send(Drain).await.map_err(gone)?;
            modeller.send(RefreshAll).await.map_err(gone)?;
        }
        self.tally.send(Summarize).await.map_err(gone)
    }
}

impl Files {
    fn start(config: &Config, outlet: Outlet, budget: Budget, claims: Claims, mode: Mode, faults: &Faults) -> Result<Self> {
        let inbox = Inbox::open(&config.inbox, &config.datasets, config.stream.settle)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (reader, thread) = Reader::new(outlet, budget, Arc::clone(&stop), faults).map_err(thread_error)?;
        let reader = reader.start();
        let intake = Intake::new(inbox, claims, config, reader.clone(), mode, faults).start();
        Ok(Self { intake, reader, stop, threads: vec![thread] })
    }
}

impl Records {
    #[expect(clippy::too_many_arguments, reason = "what the stages of one half have in common with the other")]
    fn start(
        config: &Config,
        options: RunOptions,
        links: &Links,
        pieces: crossbeam_channel::Receiver<Piece>,
        finished: Vec<Recipient<LoadFinished>>,
        claims: Claims,
        stats: Arc<Stats>,
        faults: &Faults,
    ) -> Result<Self> {
        let modeller = Modeller::new(links.database(options), config.stream.model_delay, &config.datasets, faults).start();
        let dialect = links.database.dialect();
        let writers = match dialect {
            Dialect::Postgres => config.stream.writers,
            // It has one writer at a time.
            Dialect::Sqlite => 1,
        };
        let start_writer = |_| {
            let (link, modeller, finished) = (links.database(options), modeller.clone(), finished.clone());
            let (stats, faults) = (Arc::clone(&stats), faults.clone());
            Writer::start_in_arbiter(&Arbiter::new().handle(), move |_| Writer::new(link, modeller, finished, stats, &faults))
        };
        let batcher = Batcher::new(&config.stream, (0..writers).map(start_writer).collect(), faults).start();
        let on_crash: parser::OnCrash = Arc::new(move |load| claims.crashed(load.key));
        let threads = parser::start(config.stream.parsers, &pieces, dialect, options.parse, &batcher, &on_crash, faults)
            .map_err(thread_error)?;
        Ok(Self { threads, batcher, modeller })
    }
}

/// Pieces on their way to the publisher; the budget bounds their bytes.
const PUBLISHER_QUEUE: usize = 16;

fn thread_error(error: std::io::Error) -> Error {
    Error::failed(format!("cannot start a thread: {}", io_text(&error)))
}

/// Waits for threads to end.
async fn join(threads: Vec<JoinHandle<()>>) -> Result<()> {
    let joined = tokio::task::spawn_blocking(move || threads.into_iter().try_for_each(JoinHandle::join)).await;
    if joined.is_ok_and(|ended| ended.is_ok()) { Ok(()) } else { Err(Error::failed("a thread panicked")) }
}

/// Runs a task that ends the run if it fails.
fn report_fault(work: impl Future<Output = Result<()>> + 'static, faults: &Faults) -> tokio::task::JoinHandle<Result<()>> {
    let faults = faults.clone();
    actix::spawn(async move {
        if let Err(error) = work.await {
            faults.report(error);
        }
        Ok(())
    })
}
