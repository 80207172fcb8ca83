//! The only file that knows all stages: which of them a run has, how they are joined, and in which order they drain.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use actix::{Actor, Addr, Arbiter, Recipient};
use tokio::sync::{mpsc, oneshot, watch};

use super::attempts::count_attempts;
use super::batcher::{Batcher, Drain};
use super::faults::Faults;
use super::intake::{Claims, Finish, Intake, IntakeParts, Mode, Stop};
use super::link::{BrokerLink, Links};
use super::modeller::{Modeller, RefreshAll};
use super::options::RunOptions;
use super::parser::{self, OnCrash};
use super::protocol::LoadFinished;
use super::reader::{Close, FileReader, Reader};
use super::stats::Stats;
use super::tally::{Summarize, Tally};
use super::writer::Writer;
use crate::config::{Config, Role, Transport};
use crate::error::{Error, Result, io_text};
use crate::inbox::Inbox;
use crate::store::{Dialect, Indexes, schema};
use crate::summary::{Left, LoadSummary};
use crate::transport::Outlet;
use crate::transport::amqp::consumer::{Attempts, Consumer, Phase};
use crate::transport::amqp::publisher::Publisher;
use crate::transport::budget::Budget;
use crate::transport::piece::Piece;

/// Which stages a run has. Everything that role, transport and `--once` decide is decided here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// Intake and reader: files become pieces.
    pub files: bool,
    /// Parser, batcher, writer and modeller: pieces become rows.
    pub records: bool,
    /// Publisher and consumer, as far as this process has the halves on either side: the broker is between them.
    pub broker: bool,
    /// Who says that nothing is left to do.
    pub end: End,
}

/// What ends a run by itself.
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
    /// What a run of that role over that transport consists of.
    pub fn new(role: Role, transport: Transport, once: bool) -> Self {
        let files = role != Role::Consumer;
        let end = match (once, files) {
            (false, _) => End::Never,
            (true, true) => End::InboxIsEmpty,
            (true, false) => End::QueuesAreEmpty,
        };
        Self { files, records: role != Role::Producer, broker: transport == Transport::Amqp, end }
    }
}

/// What the stages of a run have in common.
pub struct Context<'a> {
    pub config: &'a Config,
    pub options: RunOptions,
    pub links: &'a Links,
    pub stats: &'a Arc<Stats>,
    pub faults: &'a Faults,
}

/// The running stages, in the order of the data.
pub struct Stages {
    topology: Topology,
    files: Option<Files>,
    publisher: Option<Task>,
    consumer: Option<Consuming>,
    records: Option<Records>,
    tally: Addr<Tally>,
    claims: Claims,
    /// Answers when the run is over by itself; never where it is not.
    pub idle: oneshot::Receiver<()>,
}

/// The stages that read files.
struct Files {
    intake: Addr<Intake>,
    reader: Addr<Reader>,
    /// The reader ends with the chunk in work when this is set.
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

/// The consumer at work; it ends when it is told to.
struct Consuming {
    task: Task,
    phase: watch::Sender<Phase>,
}

/// The stage that has messages in hand.
pub const CONSUMER: &str = "consumer";

/// Pieces on their way to the publisher; the budget bounds their bytes.
const PUBLISHER_QUEUE: usize = 16;

impl Stages {
    /// Waits for the database, then starts the stages of the topology.
    ///
    /// # Errors
    /// If the database refuses, or a thread or the inbox cannot be had.
    pub async fn start(context: &Context<'_>, topology: Topology) -> Result<Self> {
        let config = context.config;
        let budget = Budget::new(config.stream.in_flight_bytes);
        let _ = context.stats.budget.set(budget.clone());
        let claims = Claims::default();
        let tally = Tally::new(config, context.faults).start();
        let (idle_in, idle) = oneshot::channel();
        let mut idle_in = Some(idle_in);

        // Without a database nothing is claimed.
        if topology.records {
            let mut first = context.links.database("start", context.options);
            first.repeat(async |connection| schema::ensure(connection, &config.datasets, Indexes::Make).await).await?;
            first.close().await;
        }
        let (parsers_in, parsers_out) = crossbeam_channel::bounded(config.stream.parsers);
        let (publisher_in, publisher_out) = mpsc::channel(PUBLISHER_QUEUE);
        // The intake and the writer stand at the two ends of a circle: the intake is there first.
        let files = if topology.files {
            let outlet = if topology.broker { Outlet::Publisher(publisher_in) } else { Outlet::Parsers(parsers_in.clone()) };
            let mode = if topology.end == End::InboxIsEmpty { Mode::Once(idle_in.take()) } else { Mode::Watch };
            // With both halves in this process and the broker in between, the writers count what is loaded.
            let tally = (!(topology.broker && topology.records)).then(|| tally.clone().recipient());
            let stop = Arc::new(AtomicBool::new(false));
            let (stage, zstd_window_mib) = (context.links.vitals.stage("reader"), config.zstd_window_mib);
            let reader = FileReader { outlet, budget, stop, zstd_window_mib, stage };
            Some(Files::start(context, reader, claims.clone(), tally, mode).await?)
        } else {
            None
        };
        let records = if topology.records {
            // Over the broker a file goes where it belongs as soon as it is published.
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

    /// Lets everything in flight reach the database or the broker, in the order of the data.
    /// `interrupted`: a signal asks for the end, so that nothing more is taken.
    ///
    /// # Errors
    /// If a stage fails meanwhile.
    pub async fn drain(&mut self, interrupted: bool) -> Result<()> {
        let gone = |_| Error::failed("a stage stopped while the run ended");
        if let (true, Some(Consuming { phase, .. })) = (interrupted, &self.consumer) {
            // At once: while the publisher waits for the broker, nothing more is taken from it.
            let _ = phase.send(Phase::Drain);
        }
        // Borrowed: an actor without addresses stops, and whoever stops before the summary is there has failed.
        if let Some(Files { intake, reader, stop, thread }) = &mut self.files {
            intake.send(Stop).await.map_err(gone)?;
            stop.store(true, Ordering::Relaxed);
            reader.send(Close).await.map_err(gone)?;
            // With the broker away the reader waits for the publisher, for as long as the drain may last.
            join(thread.take().into_iter().collect()).await?;
        }
        if let Some(publisher) = self.publisher.take() {
            // What was not confirmed stays claimed and is published again at the next start.
            publisher.await.unwrap_or(Ok(()))?;
        }
        if let Some(Consuming { task, phase }) = self.consumer.take() {
            let empties = self.topology.end != End::Never && !interrupted;
            let _ = phase.send(if empties { Phase::UntilEmpty } else { Phase::Drain });
            task.await.map_err(|_| Error::failed("the consumer panicked"))??;
        }
        if let Some(Records { threads, batcher, modeller }) = &mut self.records {
            // The parser threads exit when all senders are gone; everything they had is in the batcher's mailbox then.
            join(std::mem::take(threads)).await?;
            batcher.send(Drain).await.map_err(gone)?;
            modeller.send(RefreshAll).await.map_err(gone)?;
        }
        if let Some(Files { intake, .. }) = &self.files {
            intake.send(Finish).await.map_err(gone)?;
        }
        Ok(())
    }

    /// For questions while the stages drain, and after.
    pub fn account(&self) -> Account {
        Account { topology: self.topology, tally: self.tally.clone(), claims: self.claims.clone() }
    }
}

/// What a run has done, and what it leaves.
pub struct Account {
    topology: Topology,
    tally: Addr<Tally>,
    claims: Claims,
}

impl Account {
    /// What was loaded so far.
    ///
    /// # Errors
    /// If the tally is gone.
    pub async fn summary(&self) -> Result<LoadSummary> {
        self.tally.send(Summarize).await.map_err(|_| Error::failed("a stage stopped while the run ended"))
    }

    /// What an interrupted run leaves to the next; `drained`: its stages have finished what they had.
    pub fn left(&self, context: &Context<'_>, drained: bool) -> Option<Left> {
        let once = self.topology.end != End::Never;
        let unclaimed = if once && self.topology.files { unclaimed(context) } else { 0 };
        let left = Left { files: (self.claims.count() + unclaimed) as u64, messages: context.links.vitals.in_hand(CONSUMER) };
        // Whether the queues are empty only the consumer finds out, by itself.
        let queues = self.topology.end == End::QueuesAreEmpty;
        (left.files > 0 || left.messages > 0 || queues || !drained).then_some(left)
    }
}

/// How many files wait in the inbox.
fn unclaimed(context: &Context<'_>) -> usize {
    let Context { config, links, .. } = context;
    let inbox = Inbox::open(&config.inbox, &config.datasets, config.stream.settle, &links.vitals.stage("intake"));
    inbox.and_then(|inbox| inbox.scan()).map_or(0, |files| files.len())
}

impl Files {
    async fn start(
        context: &Context<'_>,
        reader: FileReader,
        claims: Claims,
        tally: Option<Recipient<LoadFinished>>,
        mode: Mode,
    ) -> Result<Self> {
        let Context { config, faults, links, .. } = context;
        let stage = links.vitals.stage("intake");
        let inbox = Inbox::open(&config.inbox, &config.datasets, config.stream.settle, &stage)?;
        let swept = tokio::task::spawn_blocking(move || inbox.sweep().map(|()| inbox)).await;
        let inbox = swept.map_err(|_| Error::failed("listing the inbox panicked"))??;
        let stop = Arc::clone(&reader.stop);
        let (reader, thread) = Reader::new(reader, faults).map_err(thread_error)?;
        let reader = reader.start();
        let intake = Intake::new(IntakeParts { inbox, stage, claims, reader: reader.clone(), tally }, config, mode, faults).start();
        Ok(Self { intake, reader, stop, thread: Some(thread) })
    }
}

impl Records {
    /// `finished` hears of every load that is over.
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
            // It has one writer at a time.
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
        let batcher = Batcher::new(&config.stream, (0..writers).map(start_writer).collect(), faults).start();
        let threads = parser::start(config.stream.parsers, &pieces, dialect, options.parse, &batcher, &on_crash, faults)
            .map_err(thread_error)?;
        Ok(Self { threads, batcher, modeller })
    }
}

/// Starts the publisher. The intake hears of every load that is published.
fn start_publisher(context: &Context<'_>, link: &BrokerLink, pieces: mpsc::Receiver<Piece>, intake: Addr<Intake>) -> Task {
    let publisher = Publisher::new(link.route(context.links, context.options));
    link.watch(publisher.connected());
    let work = publisher.run(pieces, move |published| intake.do_send(LoadFinished::from(published)));
    report_fault(work, context.faults)
}

impl Consuming {
    /// `done` hears when the queues are empty, if that ends the run.
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

fn thread_error(error: std::io::Error) -> Error {
    Error::failed(format!("cannot start a thread: {}", io_text(&error)))
}

/// Waits for threads to end.
async fn join(threads: Vec<JoinHandle<()>>) -> Result<()> {
    let joined = tokio::task::spawn_blocking(move || threads.into_iter().try_for_each(JoinHandle::join)).await;
    if joined.is_ok_and(|ended| ended.is_ok()) { Ok(()) } else { Err(Error::failed("a thread panicked")) }
}

/// Runs a task that ends the run if it fails.
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
}
