//! A publisher, a broker and a consumer without the rest of the pipeline, so that a test decides what becomes of each piece.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use dataloader::config::{Config, SecretUrl, Settings};
use dataloader::dataset::Dataset;
use dataloader::error::Result;
use dataloader::record::split::Splitter;
use dataloader::retry::RetryPolicy;
use dataloader::transport::amqp::connection::{Broker, Route};
use dataloader::transport::amqp::consumer::{Attempt, Attempts, Consumer, Phase};
use dataloader::transport::amqp::dead_letters::{self, DeadLetterEntry};
use dataloader::transport::amqp::publisher::{Published, Publisher};
use dataloader::transport::amqp::topology::Topology;
use dataloader::transport::piece::{Content, FileEnd, Load, Piece, Receipt};
use dataloader::vitals::Vitals;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle as Task;
use uuid::Uuid;

use crate::support::{PATIENCE, Queues, many_events, wait_until};

/// What the pieces of a rig may hold in memory.
pub const IN_FLIGHT: usize = 32 << 20;

/// Queues that no other test uses, which are deleted with it, and what runs publishers and consumers on them.
pub struct Rig {
    pub runtime: Runtime,
    pub queues: Queues,
    pub datasets: Vec<Arc<Dataset>>,
}

/// Who a piece was: its load, and its `seq` or `None` for the end of the file.
pub type Seen = (Uuid, Option<u64>);

impl Rig {
    /// On the broker of `AMQP_URL`.
    pub fn new() -> Self {
        Self::with(Queues::new())
    }

    /// On a broker of the test's own.
    pub fn on(url: &str) -> Self {
        Self::with(Queues::on(url))
    }

    fn with(queues: Queues) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        // The built-in configuration, whatever the directory of the tests holds.
        let config = Config::load(Some("dataloader.toml".as_ref()), Settings::default()).expect("the repository's own file");
        Self { runtime, queues, datasets: config.datasets }
    }

    pub fn broker(&self) -> Broker {
        broker(self.queues.url())
    }

    pub fn topology(&self) -> Topology {
        Topology::new(self.queues.prefix(), &self.datasets).expect("no dataset is called dead")
    }

    /// The dead letters as they are listed.
    pub fn dead_letters(&self) -> Result<Vec<DeadLetterEntry>> {
        self.dead_letters_of(&self.broker())
    }

    /// The same from another broker.
    pub fn dead_letters_of(&self, broker: &Broker) -> Result<Vec<DeadLetterEntry>> {
        let (topology, mut letters) = (self.topology(), Vec::new());
        let list = dead_letters::list(broker, &topology, |letter| {
            letters.push(letter);
            Ok(())
        });
        self.runtime.block_on(list)?;
        Ok(letters)
    }

    fn route(&self, retry_policy: RetryPolicy) -> Route {
        Route { broker: self.broker(), topology: self.topology(), retry_policy, vitals: Vitals::default() }
    }

    pub fn dataset(&self, name: &str) -> Arc<Dataset> {
        Arc::clone(self.datasets.iter().find(|dataset| dataset.name == name).expect("a dataset of the built-in configuration"))
    }

    pub fn publisher(&self, retry_policy: RetryPolicy) -> RunningPublisher {
        let (pieces, outlet) = mpsc::channel(8);
        let finished = Shared::default();
        let (report, publisher) = (finished.clone(), Publisher::new(self.route(retry_policy)));
        let task = self.runtime.spawn(publisher.run(outlet, move |load| report.lock().push(load)));
        RunningPublisher { pieces: Some(pieces), budget: Arc::new(Semaphore::new(IN_FLIGHT)), finished, task }
    }

    /// A consumer whose pieces `settle` decides on; those that it keeps stay in flight.
    pub fn consumer(&self, retry_policy: RetryPolicy, mut settle: impl FnMut(Piece) + Send + 'static) -> RunningConsumer {
        let (sender, pieces) = crossbeam_channel::bounded(2);
        let (phase, phases) = watch::channel(Phase::Run);
        let seen: Shared<Seen> = Shared::default();
        let (attempts, mut questions) = Attempts::new();
        let consumer = Consumer::new(self.route(retry_policy), IN_FLIGHT, attempts);
        let task = self.runtime.spawn(consumer.run(sender, phases));
        self.runtime.spawn(async move {
            while let Some(question) = questions.recv().await {
                match question {
                    Attempt::Begins(_, answer) => answer.send(1).unwrap_or_default(),
                    Attempt::Ends(_, answer) => answer.send(()).unwrap_or_default(),
                }
            }
        });
        let notes = seen.clone();
        let thread = std::thread::spawn(move || {
            for piece in pieces {
                notes.lock().push(seen_of(&piece));
                settle(piece);
            }
        });
        RunningConsumer { phase, seen, task: Some(task), _thread: thread }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.queues.delete(&self.datasets.iter().map(|dataset| dataset.name.clone()).collect::<Vec<_>>());
    }
}

pub fn broker(url: &str) -> Broker {
    Broker::new(&SecretUrl::parse_amqp(url).expect("an AMQP URL")).expect("a valid URL")
}

fn seen_of(piece: &Piece) -> Seen {
    let seq = match &piece.content {
        Content::Chunk(chunk) => Some(chunk.seq),
        Content::End(_) => None,
        Content::Foreign(message) => Some(message.chunk.records()),
    };
    (piece.load.key, seq)
}

/// A list that a test and a task share.
pub struct Shared<T>(Arc<Mutex<Vec<T>>>);

impl<T> Shared<T> {
    pub fn lock(&self) -> MutexGuard<'_, Vec<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

pub struct RunningPublisher {
    pieces: Option<mpsc::Sender<Piece>>,
    pub budget: Arc<Semaphore>,
    pub finished: Shared<Published>,
    task: Task<Result<()>>,
}

impl RunningPublisher {
    /// Publishes a text as a reader would; returns its load key and what it consists of.
    pub fn publish(&self, dataset: &Arc<Dataset>, text: &[u8]) -> (Uuid, BTreeSet<Seen>) {
        let key = Uuid::now_v7();
        (key, self.publish_as(key, dataset, text))
    }

    /// The same under a given key.
    pub fn publish_as(&self, key: Uuid, dataset: &Arc<Dataset>, text: &[u8]) -> BTreeSet<Seen> {
        let load = Arc::new(Load { key, dataset: Arc::clone(dataset), source: "test.json".to_owned() });
        let mut splitter = Splitter::new(text);
        let mut parts = BTreeSet::new();
        while let Some(chunk) = splitter.next_chunk().expect("a well-formed text") {
            self.pass(&load, Content::Chunk(chunk), &mut parts);
        }
        let end = FileEnd { records: splitter.records(), bytes: splitter.bytes(), error: None, sha256: None, host: None };
        self.pass(&load, Content::End(end), &mut parts);
        parts
    }

    fn pass(&self, load: &Arc<Load>, content: Content, parts: &mut BTreeSet<Seen>) {
        let bytes = match &content {
            Content::Chunk(chunk) => chunk.bytes(),
            _ => 1,
        };
        let bytes = u32::try_from(bytes).expect("a small text");
        let mut permit = None;
        wait_until("the budget has room", || {
            permit = Arc::clone(&self.budget).try_acquire_many_owned(bytes).ok();
            permit.is_some()
        });
        let receipt = Receipt::from(permit.expect("just taken"));
        let piece = Piece { load: Arc::clone(load), content, receipt };
        parts.insert(seen_of(&piece));
        let sender = self.pieces.as_ref().expect("not closed");
        sender.blocking_send(piece).expect("the publisher takes pieces");
    }

    /// Waits until that load is reported, and nothing of it is held any more.
    pub fn wait_finished(&self, key: Uuid) {
        wait_until("all is confirmed", || self.finished.lock().iter().any(|published| published.load.key == key));
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// Waits for its end while more pieces may come.
    pub fn end_by_itself(self, rig: &Rig) -> Result<()> {
        rig.runtime.block_on(async { tokio::time::timeout(PATIENCE, self.task).await }).expect("in time").expect("no panic")
    }

    /// No more pieces come; waits for its end.
    pub fn end(mut self, rig: &Rig) -> Result<()> {
        self.pieces = None;
        rig.runtime.block_on(async { tokio::time::timeout(PATIENCE, self.task).await }).expect("in time").expect("no panic")
    }
}

pub struct RunningConsumer {
    phase: watch::Sender<Phase>,
    pub seen: Shared<Seen>,
    task: Option<Task<Result<()>>>,
    _thread: JoinHandle<()>,
}

impl RunningConsumer {
    /// Waits until all these were seen, each at least once.
    pub fn wait_for(&self, parts: &BTreeSet<Seen>) {
        wait_until("all parts have come", || {
            let seen: BTreeSet<Seen> = self.seen.lock().iter().copied().collect();
            parts.is_subset(&seen)
        });
    }

    pub fn set(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    pub fn has_ended(&self) -> bool {
        self.task.as_ref().is_none_or(Task::is_finished)
    }

    /// Waits for its end.
    pub fn end(mut self, rig: &Rig, phase: Phase) -> Result<()> {
        self.set(phase);
        let task = self.task.take().expect("ended once");
        rig.runtime.block_on(async { tokio::time::timeout(PATIENCE, task).await }).expect("in time").expect("no panic")
    }

    /// Ends at once, as a killed process would.
    pub fn kill(mut self, rig: &Rig) {
        if let Some(task) = self.task.take() {
            task.abort();
            assert!(rig.runtime.block_on(task).is_err_and(|error| error.is_cancelled()));
        }
    }
}

/// NDJSON of so many events.
pub fn lines(events: usize) -> Vec<u8> {
    many_events(events, "user").into_bytes()
}
