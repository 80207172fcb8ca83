//! Topology: the only file that knows all stages. It decides which of them a run has, connects them, and drains them in order.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use actix::{Actor, Addr, Arbiter, AsyncContext, Recipient};
use tokio::sync::{mpsc, oneshot, watch};

use super::admission::{ADMISSION, Admission, AdmissionParts};
use super::attempts::count_attempts;
use super::batcher::Batcher;
use super::claims::Claims;
use super::drain::{Close, Drain};
use super::faults::Faults;
use super::intake::{Intake, IntakeParts, Mode};
use super::link::{BrokerLink, Links};
use super::modeller::Modeller;
use super::options::RunOptions;
use super::parser::{self, OnCrash, ParserParts};
use super::protocol::LoadFinished;
use super::reader::{FileReader, Reader};
use super::stats::Stats;
use super::tally::{Summarize, Tally};
use super::writer::Writer;
use crate::config::{Config, Role, Transport};
use crate::dataset::Repeats;
use crate::error::{Error, Result, io_text};
use crate::inbox::{Inbox, Symlinks};
use crate::store::{Dialect, Indexes, schema};
use crate::summary::{Left, LoadSummary};
use crate::transport::Outlet;
use crate::transport::amqp::consumer::{Attempts, Consumer, Phase};
use crate::transport::amqp::publisher::Publisher;
use crate::transport::budget::Budget;
use crate::transport::piece::Piece;
use crate::vitals::Stage;

/// Which stages a run has. Role, transport and `--once` decide this, and only here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// Intake and reader: they turn files into pieces.
    pub files: bool,
    /// Parser, batcher, writer and modeller: they turn pieces into rows.
    pub records: bool,
    /// Whether the broker is between files and records. The process then has a publisher, a consumer or both, as its role
    /// needs.
    pub broker: bool,
    /// Which stage ends the run.
    pub end: End,
}

/// What ends a run without a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Nothing: it runs until a signal comes.
    Never,
    /// The intake, when everything that was in the inbox is loaded or published.
    InboxIsEmpty,
    /// The consumer, when its queues are empty.
    QueuesAreEmpty,
}

impl Topology {
    /// The stages of a run with this role and transport.
    pub fn new(role: Role, transport: Transport, once: bool) -> Self {
        let files = role != Role::Consumer;
        let end = match (once, files) {
            (false, _) => End::Never,
            (true, true) => End::InboxIsEmpty,
            (true, false) => End::QueuesAreEmpty,
        };
        Self { files, records: role != Role::Producer, broker: transport == Transport::Amqp, end }
    }

    /// Whether the run is over only when the queues of the broker are empty.
    fn empties_queues(&self) -> bool {
        self.end != End::Never && self.broker && self.records
    }
}

/// What all stages of a run share.
pub struct Context<'a> {
    pub config: &'a Config,
    pub options: RunOptions,
    pub links: &'a Links,
    pub stats: &'a Arc<Stats>,
    pub faults: &'a Faults,
}

/// The running stages, in the order of the data flow.
pub struct Stages {
    topology: Topology,
    files: Option<Files>,
    publisher: Option<Task>,
    consumer: Option<Consuming>,
    records: Option<Records>,
    tally: Addr<Tally>,
    claims: Claims,
    /// Answers when the run is over without a signal. Never answers if the run has no such end.
    pub idle: oneshot::Receiver<()>,
}

/// The stages that read files.
struct Files {
    intake: Addr<Intake>,
    reader: Addr<Reader>,
    /// Tells the reader to end after the current chunk.
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// The stages that load records.
struct Records {
    threads: Vec<JoinHandle<()>>,
    batcher: Addr<Batcher>,
    modeller: Addr<Modeller>,
}

/// A task that reports its fault before it ends.
type Task = tokio::task::JoinHandle<Result<()>>;

/// A running consumer. It ends when its phase says so.
struct Consuming {
    task: Task,
    phase: watch::Sender<Phase>,
}

/// The stage that holds unacknowledged messages.
pub const CONSUMER: &str = "consumer";

/// How many pieces may wait for the publisher. The budget bounds their bytes.
const PUBLISHER_QUEUE: usize = 16;

impl Stages {
    /// Waits for the database, then starts the stages of the topology.
    ///
    /// # Errors
    /// If the database refuses the connection, a thread cannot be started, or the inbox cannot be opened.
    pub async fn start(context: &Context<'_>, topology: Topology) -> Result<Self> {
        let config = context.config;
        let budget = Budget::new(config.stream.in_flight_bytes);
        let _ = context.stats.budget.set(budget.clone());
        let _ = context.stats.topology.set(topology);
        let claims = Claims::default();
        let tally = Tally::new(config, context.faults).start();
        let (idle_in, idle) = oneshot::channel();
        let mut idle_in = Some(idle_in);

        // Nothing is claimed before the database can be used.
        if topology.records {
            let mut first = context.links.database("start", context.options);
            first.repeat(async |connection| schema::ensure(connection, &config.datasets, Indexes::Make).await).await?;
            first.close().await;
        }
        let (parsers_in, parsers_out) = crossbeam_channel::bounded(config.stream.parsers);
        let (publisher_in, publisher_out) = mpsc::channel(PUBLISHER_QUEUE);
        // Intake and writer need each other's address. The intake is started first.
        let files = if topology.files {
            let outlet = if topology.broker { Outlet::Publisher(publisher_in) } else { Outlet::Parsers(parsers_in.clone()) };
            let mode = if topology.end == End::InboxIsEmpty { Mode::Once(idle_in.take()) } else { Mode::Watch };
            // If this process publishes and consumes, the writers report what is loaded. Otherwise the intake does.
            let reports_loads = !(topology.broker && topology.records);
            let tally = tally.clone().recipient();
            let stop = Arc::new(AtomicBool::new(false));
            let (stage, zstd_window_mib) = (context.links.vitals.stage("reader"), config.zstd_window_mib);
            let published = (!topology.records).then(|| Arc::clone(context.stats));
            let reader = FileReader { outlet, budget, stop, zstd_window_mib, stage, published };
            Some(Files::start(context, reader, claims.clone(), (tally, reports_loads), mode).await?)
        } else {
            None
        };
        let records = if topology.records {
            // With a broker, the intake moves a file as soon as it is published, so the writers report to the tally instead.
            let intake = files.as_ref().filter(|_| !topology.broker).map(|files| files.intake.clone().recipient());
            let finished = intake.unwrap_or_else(|| tally.clone().recipient());
            Some(Records::start(context, parsers_out, finished, claims.clone())?)
        } else {
            None
        };
        let (mut publisher, mut consumer) = (None, None);
        if let Some(broker) = context.links.broker.as_ref().filter(|_| topology.broker) {
            if let Some(files) = &files {
                publisher = Some(start_publisher(context, broker, publisher_out, files.intake.clone()));
            }
            if topology.records {
                consumer = Some(Consuming::start(context, broker, topology, parsers_in, idle_in.take()));
            }
        }
        Ok(Self { topology, files, publisher, consumer, records, tally, claims, idle })
    }

    /// Lets everything in flight reach the database or the broker, in the order of the data flow. With `--once` that includes
    /// the messages in the queues, unless the run is interrupted ([`Account::interrupt`]).
    ///
    /// # Errors
    /// If a stage fails while it drains.
    pub async fn drain(&mut self) -> Result<()> {
        let gone = |_| Error::failed("a stage stopped while the run ended");
        // Borrowed, because an actor without addresses stops, and a stage that stops before the summary counts as failed.
        if let Some(Files { intake, reader, stop, thread }) = &mut self.files {
            intake.send(Close).await.map_err(gone)?;
            stop.store(true, Ordering::Relaxed);
            reader.send(Close).await.map_err(gone)?;
            // While the broker is unavailable, the reader waits for the publisher. The drain timeout bounds this.
            join(thread.take().into_iter().collect()).await?;
        }
        if let Some(publisher) = self.publisher.take() {
            // Files that are not fully confirmed stay claimed. The next start publishes them again.
            publisher.await.unwrap_or(Ok(()))?;
        }
        if let Some(Consuming { task, phase }) = self.consumer.take() {
            enter(&phase, if self.topology.empties_queues() { Phase::UntilEmpty } else { Phase::Drain });
            task.await.map_err(|_| Error::failed("the consumer panicked"))??;
        }
        if let Some(Records { threads, batcher, modeller }) = &mut self.records {
            // The parser threads exit when all senders are gone. All their output is then in the batcher's mailbox.
            join(std::mem::take(threads)).await?;
            batcher.send(Drain).await.map_err(gone)?;
            modeller.send(Drain).await.map_err(gone)?;
        }
        if let Some(Files { intake, .. }) = &self.files {
            intake.send(Drain).await.map_err(gone)?;
        }
        Ok(())
    }

    /// A handle that can be asked while the stages drain, and after that.
    pub fn account(&self) -> Account {
        let phase = self.consumer.as_ref().map(|consumer| consumer.phase.clone());
        Account { topology: self.topology, tally: self.tally.clone(), claims: self.claims.clone(), phase }
    }
}

/// Tells what a run has done, and what it leaves to the next one.
pub struct Account {
    topology: Topology,
    tally: Addr<Tally>,
    claims: Claims,
    /// The phase of the consumer, if there is one.
    phase: Option<watch::Sender<Phase>>,
}

impl Account {
    /// Lets the consumer take no more messages. This comes before the drain: otherwise the consumer would take messages for as
    /// long as the publisher waits for the broker.
    pub fn interrupt(&self) {
        if let Some(phase) = &self.phase {
            enter(phase, Phase::Drain);
        }
    }

    /// The totals so far.
    ///
    /// # Errors
    /// If the tally has stopped.
    pub async fn summary(&self) -> Result<LoadSummary> {
        self.tally.send(Summarize).await.map_err(|_| Error::failed("a stage stopped while the run ended"))
    }

    /// What an interrupted run leaves to the next run. `drained` means that the stages have finished their work.
    pub fn left(&self, context: &Context<'_>, drained: bool) -> Option<Left> {
        let once = self.topology.end != End::Never;
        let unclaimed = if once && self.topology.files { unclaimed(context) } else { 0 };
        let left = Left {
            files: (self.claims.count() + self.claims.waiting() + unclaimed) as u64,
            messages: context.links.vitals.in_hand(CONSUMER),
        };
        // After a signal nobody has seen that the queues are empty, so a run that was to empty them reports what it leaves.
        let queues = self.topology.empties_queues();
        (left.files > 0 || left.messages > 0 || queues || !drained).then_some(left)
    }
}

fn open_inbox(config: &Config, stage: &Stage) -> Result<Inbox> {
    Inbox::open_with(&config.inbox, &config.datasets, config.stream.settle, stage, Symlinks::followed(config.follow_links))
}

/// How many files wait in the inbox.
fn unclaimed(context: &Context<'_>) -> usize {
    let Context { config, links, .. } = context;
    let inbox = open_inbox(config, &links.vitals.stage("intake"));
    inbox.and_then(|inbox| inbox.scan()).map_or(0, |files| files.len())
}

impl Files {
    async fn start(
        context: &Context<'_>,
        reader: FileReader,
        claims: Claims,
        (tally, reports_loads): (Recipient<LoadFinished>, bool),
        mode: Mode,
    ) -> Result<Self> {
        let Context { config, faults, links, stats, .. } = context;
        let stage = links.vitals.stage("intake");
        let inbox = open_inbox(config, &stage)?;
        let swept = tokio::task::spawn_blocking(move || inbox.sweep().map(|()| inbox)).await;
        let inbox = swept.map_err(|_| Error::failed("listing the inbox panicked"))??;
        let stop = Arc::clone(&reader.stop);
        let (reader, thread) = Reader::new(reader, faults).map_err(thread_error)?;
        let reader = reader.start();
        let skips_repeats = config.datasets.iter().any(|dataset| dataset.repeats == Repeats::Skip);
        let intake = Intake::create(|ctx| {
            let admission = skips_repeats.then(|| {
                let parts = AdmissionParts {
                    link: links.database(ADMISSION, context.options),
                    stage: links.vitals.stage(ADMISSION),
                    claims: claims.clone(),
                    reader: reader.clone(),
                    intake: ctx.address(),
                    stats: Arc::clone(context.stats),
                    stop: Arc::clone(&stop),
                    once: context.options.once,
                    patience: config.stream.drain_timeout,
                };
                Admission::new(parts, faults).start()
            });
            let stats = Arc::clone(stats);
            let parts = IntakeParts { inbox, stage, claims, reader: reader.clone(), admission, tally, reports_loads, stats };
            Intake::new(parts, config, mode, faults)
        });
        Ok(Self { intake, reader, stop, thread: Some(thread) })
    }
}

impl Records {
    /// Starts the stages. `finished` receives every load that is over.
    fn start(
        context: &Context<'_>,
        pieces: crossbeam_channel::Receiver<Piece>,
        finished: Recipient<LoadFinished>,
        claims: Claims,
    ) -> Result<Self> {
        let Context { config, options, links, stats, faults } = context;
        let modeller =
            Modeller::new(links.database("modeller", *options), config.stream.model_delay, &config.datasets, faults).start();
        let dialect = links.database.dialect();
        let writers = match dialect {
            Dialect::Postgres => config.stream.writers,
            // SQLite has one writer at a time.
            Dialect::Sqlite => 1,
        };
        let on_crash: OnCrash = Arc::new(move |load| claims.crashed(load.key));
        let start_writer = |_| {
            let (link, modeller, finished) = (links.database("writer", *options), modeller.clone(), finished.clone());
            let (stats, on_crash, faults) = (Arc::clone(stats), Arc::clone(&on_crash), Faults::clone(faults));
            Writer::start_in_arbiter(&Arbiter::new().handle(), move |_| {
                Writer::new(link, modeller, finished, stats, on_crash, &faults)
            })
        };
        let writers = (0..writers).map(start_writer).collect();
        let batcher = Batcher::new(&config.stream, writers, links.vitals.stage("batcher"), faults).start();
        let parts = ParserParts {
            pieces,
            dialect,
            parse: options.parse,
            batcher: batcher.clone(),
            on_crash,
            stats: Arc::clone(stats),
            faults: Faults::clone(faults),
        };
        let threads = parser::start(config.stream.parsers, &parts).map_err(thread_error)?;
        Ok(Self { threads, batcher, modeller })
    }
}

/// Starts the publisher. The intake receives every load that is published.
fn start_publisher(context: &Context<'_>, link: &BrokerLink, pieces: mpsc::Receiver<Piece>, intake: Addr<Intake>) -> Task {
    let publisher = Publisher::new(link.route(context.links, context.options));
    link.watch(publisher.connected());
    let work = publisher.run(pieces, move |published| intake.do_send(LoadFinished::from(published)));
    report_fault(work, context.faults)
}

impl Consuming {
    /// Starts the consumer. `done` is notified when the queues are empty, if that ends the run.
    fn start(
        context: &Context<'_>,
        link: &BrokerLink,
        topology: Topology,
        pieces: crossbeam_channel::Sender<Piece>,
        done: Option<oneshot::Sender<()>>,
    ) -> Self {
        let ends_by_itself = topology.end == End::QueuesAreEmpty;
        let (phase, is_phase) = watch::channel(if ends_by_itself { Phase::UntilEmpty } else { Phase::Run });
        let (attempts, questions) = Attempts::new();
        let counting = count_attempts(context.links.database("attempts", context.options), questions);
        let route = link.route(context.links, context.options);
        let consumer = Consumer::new(route, context.config.stream.in_flight_bytes, attempts);
        link.watch(consumer.connected());
        let work = consumer.run(pieces, is_phase);
        let work = async move {
            tokio::try_join!(work, counting)?;
            if let Some(done) = done.filter(|_| ends_by_itself) {
                let _ = done.send(());
            }
            Ok(())
        };
        Self { task: report_fault(work, context.faults), phase }
    }
}

/// Changes the phase of the consumer. A consumer that takes no more messages does not begin again.
fn enter(phase: &watch::Sender<Phase>, next: Phase) {
    phase.send_if_modified(|now| {
        let changes = *now != Phase::Drain && *now != next;
        if changes {
            *now = next;
        }
        changes
    });
}

fn thread_error(error: std::io::Error) -> Error {
    Error::failed(format!("cannot start a thread: {}", io_text(&error)))
}

/// Waits until the threads have ended.
async fn join(threads: Vec<JoinHandle<()>>) -> Result<()> {
    let joined = tokio::task::spawn_blocking(move || threads.into_iter().try_for_each(JoinHandle::join)).await;
    if joined.is_ok_and(|ended| ended.is_ok()) { Ok(()) } else { Err(Error::failed("a thread panicked")) }
}

/// Runs a task. If it fails, the fault ends the run.
fn report_fault(work: impl Future<Output = Result<()>> + 'static, faults: &Faults) -> Task {
    let faults = faults.clone();
    actix::spawn(async move {
        if let Err(error) = work.await {
            faults.report(error);
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn role_and_transport_decide_which_stages_run() {
        let inproc = Topology::new(Role::All, Transport::Inproc, false);
        assert_eq!(inproc, Topology { files: true, records: true, broker: false, end: End::Never });
        let all = Topology::new(Role::All, Transport::Amqp, false);
        assert_eq!(all, Topology { broker: true, ..inproc });
        let producer = Topology::new(Role::Producer, Transport::Amqp, false);
        assert_eq!(producer, Topology { records: false, ..all });
        let consumer = Topology::new(Role::Consumer, Transport::Amqp, false);
        assert_eq!(consumer, Topology { files: false, ..all });
    }

    #[test]
    fn once_ends_with_the_inbox_or_where_there_is_none_with_the_queues() {
        for (role, end) in
            [(Role::All, End::InboxIsEmpty), (Role::Producer, End::InboxIsEmpty), (Role::Consumer, End::QueuesAreEmpty)]
        {
            assert_eq!(Topology::new(role, Transport::Amqp, true).end, end, "{role:?}");
        }
    }

    #[test]
    fn once_empties_the_queues_where_it_consumes_them() {
        let empties = |role, transport, once| Topology::new(role, transport, once).empties_queues();
        assert!(empties(Role::All, Transport::Amqp, true));
        assert!(empties(Role::Consumer, Transport::Amqp, true));
        assert!(!empties(Role::Producer, Transport::Amqp, true), "the consumers are other processes");
        assert!(!empties(Role::All, Transport::Amqp, false));
        assert!(!empties(Role::All, Transport::Inproc, true), "there are no queues");
    }
}
