//! Admission: decides whether a claimed file is loaded, for datasets with `repeats = "skip"`. A file whose content the dataset has
//! already is a repeat. While another load of the same content is in flight, in whatever process, the file waits in `.loading/`: it
//! is released, and claimed again when that load is over. While a batch load of the dataset is in progress, its files wait here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use actix::{Actor, ActorFutureExt, Addr, AsyncContext, Context, Handler, WrapFuture};
use tokio::sync::oneshot;

use super::claims::Claims;
use super::drain::Close;
use super::faults::{Faults, StageWatch};
use super::intake::Intake;
use super::link::Link;
use super::protocol::{FileWaits, LoadFinished, ReadFile, WaitIsOver};
use super::reader::Reader;
use super::stats::Stats;
use crate::error::{Error, Result, io_text};
use crate::host;
use crate::inbox::Claim;
use crate::record::content::{ContentHash, hash_to_end};
use crate::retry::MENTION_EVERY;
use crate::store::Connection;
use crate::store::contents::{self, Verdict};
use crate::store::ledger::{Counts, OpenLoad};
use crate::vitals::Stage;

/// The name of the stage.
pub const ADMISSION: &str = "admission";
/// How often the loads that files wait for are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What an admission needs.
pub struct AdmissionParts {
    pub link: Link,
    /// Reports progress while a file is hashed.
    pub stage: Stage,
    pub claims: Claims,
    pub reader: Addr<Reader>,
    pub intake: Addr<Intake>,
    pub stats: Arc<Stats>,
    /// Set when the run ends.
    pub stop: Arc<AtomicBool>,
    /// With `--once`, the run ends when the loads that files wait for have stood still for `patience`. Otherwise the log says so.
    pub once: bool,
    pub patience: Duration,
}

/// The actor.
pub struct Admission {
    /// The files to decide on, in the order in which they were claimed.
    files: VecDeque<Claim>,
    /// `None` while it is in use.
    link: Option<Link>,
    /// Whether the loads that files wait for are looked at next.
    looks: bool,
    waits: Waits,
    /// The datasets of which a batch load is in progress. Their files wait.
    held: BTreeSet<String>,
    stage: Stage,
    claims: Claims,
    reader: Addr<Reader>,
    intake: Addr<Intake>,
    stats: Arc<Stats>,
    stop: Arc<AtomicBool>,
    once: bool,
    patience: Duration,
    faults: Faults,
    _watch: StageWatch,
}

/// The loads that files wait for.
#[derive(Default)]
struct Waits {
    /// By id, as the user is told of them.
    names: BTreeMap<i64, String>,
    seen: Seen,
    /// For how long nothing of that has changed. Only the time in which the database answered counts.
    still: Duration,
    /// When the log last said so.
    mentioned: Option<Instant>,
}

/// What moves while a load is in flight.
#[derive(Default, PartialEq, Eq)]
struct Seen {
    /// The loads that are not finished, with the records that are counted on them.
    loads: Vec<(i64, i64)>,
    /// The records that this process has loaded, and its bytes in flight.
    records: u64,
    in_flight_bytes: u64,
}

impl Admission {
    /// An admission that has no file yet.
    pub fn new(parts: AdmissionParts, faults: &Faults) -> Self {
        let AdmissionParts { link, stage, claims, reader, intake, stats, stop, once, patience } = parts;
        let (files, looks, waits, held) = (VecDeque::new(), false, Waits::default(), BTreeSet::new());
        let (link, faults, watch) = (Some(link), faults.clone(), faults.watch(ADMISSION));
        Self { files, link, looks, waits, held, stage, claims, reader, intake, stats, stop, once, patience, faults, _watch: watch }
    }

    /// Goes on with the next work, unless some is in progress.
    fn advance(&mut self, ctx: &mut Context<Self>) {
        let Some(mut link) = self.link.take() else { return };
        if std::mem::take(&mut self.looks) {
            let (waited_for, held) = (self.claims.waited_for(), self.held.clone());
            let look = async move {
                let look = async |connection: &mut Connection| {
                    let held = contents::held(connection, &held).await?;
                    Ok((contents::in_flight(connection, &waited_for).await?, held))
                };
                let seen = link.repeat(look).await;
                (link, seen)
            };
            ctx.spawn(look.into_actor(self).map(|(link, seen), admission, ctx| {
                admission.link = Some(link);
                match seen {
                    Ok((seen, held)) => {
                        admission.held = held;
                        admission.looked(seen);
                    }
                    Err(error) => return admission.faults.report(error),
                }
                admission.advance(ctx);
            }));
        } else if let Some(claim) = self.next_file() {
            let (stage, stop) = (self.stage.clone(), Arc::clone(&self.stop));
            let decide = async move {
                let verdict = decide(&mut link, &claim, stage, stop).await;
                (link, claim, verdict)
            };
            ctx.spawn(decide.into_actor(self).map(|(link, claim, verdict), admission, ctx| {
                admission.link = Some(link);
                match verdict {
                    Ok(verdict) => admission.decided(claim, verdict),
                    Err(error) => return admission.faults.report(error),
                }
                admission.advance(ctx);
            }));
        } else {
            self.link = Some(link);
        }
    }

    fn next_file(&mut self) -> Option<Claim> {
        let next = self.files.iter().position(|claim| !self.held.contains(&claim.dataset.name))?;
        self.files.remove(next)
    }

    fn decided(&mut self, claim: Claim, verdict: Option<Verdict>) {
        match verdict {
            // What cannot be read fails in the reader, which says why.
            None | Some(Verdict::Load) => self.reader.do_send(ReadFile(claim)),
            Some(Verdict::Repeats(load)) => self.intake.do_send(LoadFinished {
                key: claim.key,
                dataset: claim.dataset.name.clone(),
                source: claim.source.clone(),
                counts: Counts::default(),
                removed: 0,
                error: None,
                with_end: true,
                repeats: Some(load),
            }),
            Some(Verdict::Held) => {
                let dataset = &claim.dataset.name;
                if self.held.insert(dataset.clone()) {
                    tracing::info!("files of {dataset} wait for a batch load, which may have the same content");
                }
                // It is hashed again then: it may have grown.
                self.files.push_front(claim);
            }
            Some(Verdict::Waits(load)) => {
                tracing::info!(file = %claim.source, "waits for {load}, which has the same content and is not finished");
                self.waits.names.insert(load.id, load.to_string());
                self.claims.wait(claim.key, load.id);
                // Whoever claims it when the other load is over decides anew.
                drop(claim);
                self.intake.do_send(FileWaits);
            }
        }
    }

    /// `seen` are those of the loads that are not finished, with the records that are counted on them.
    fn looked(&mut self, seen: Vec<(i64, i64)>) {
        let in_flight: BTreeSet<i64> = seen.iter().map(|(id, _)| *id).collect();
        if self.claims.resume(|load| !in_flight.contains(&load)) {
            self.intake.do_send(WaitIsOver);
        }
        self.waits.names.retain(|load, _| in_flight.contains(load));
        let (records, in_flight_bytes) = (self.stats.records(), self.stats.in_flight_bytes());
        let seen = Seen { loads: seen, records, in_flight_bytes };
        if in_flight.is_empty() || self.waits.seen != seen {
            (self.waits.seen, self.waits.still) = (seen, Duration::ZERO);
            return;
        }
        self.waits.still += LOOK_EVERY;
        if self.waits.still > self.patience {
            self.complain();
        }
    }

    /// The loads that files wait for stand still: perhaps nobody loads them any more.
    fn complain(&mut self) {
        let names = self.waits.names.values().cloned().collect::<Vec<_>>().join(", ");
        let message = format!("{} files wait for {names}, which has the same content and stands still", self.claims.waiting());
        let hint = "start the program that loads it; if its file or its messages are gone, set its status in raw.loads to failed";
        if self.once {
            // Otherwise this process itself may load it.
            if self.claims.count() == 0 {
                self.faults.report(Error::failed(message).hint(hint));
            }
        } else if self.waits.mentioned.is_none_or(|mentioned| mentioned.elapsed() > MENTION_EVERY) {
            self.waits.mentioned = Some(Instant::now());
            tracing::warn!("{message}; {hint}");
        }
    }
}

/// Hashes the file, and asks the ledger. `None` if it cannot be read, or the run ends.
async fn decide(link: &mut Link, claim: &Claim, stage: Stage, stop: Arc<AtomicBool>) -> Result<Option<Verdict>> {
    let (hashed_in, hashed) = oneshot::channel();
    let file = claim.clone();
    let hash = move || {
        let content = hash(&file, &stage, &stop);
        // It is unlocked when the last clone is gone.
        drop(file);
        // After the end of the run there is no receiver.
        let _ = hashed_in.send(content);
    };
    let thread = std::thread::Builder::new().name("hasher".to_owned()).spawn(hash);
    thread.map_err(|error| Error::failed(format!("cannot start a thread: {}", io_text(&error))))?;
    let content = hashed.await.map_err(|_| Error::failed(format!("hashing {} panicked", claim.source)))?;
    let Some(content) = content else { return Ok(None) };
    let load = OpenLoad { load_key: claim.key, dataset: &claim.dataset.name, source: &claim.source };
    link.repeat(async |connection| contents::admit(connection, load, content, host::name()).await).await.map(Some)
}

/// Reads the file to its real end, on a thread of its own.
fn hash(claim: &Claim, stage: &Stage, stop: &AtomicBool) -> Option<ContentHash> {
    stage.busy();
    let content = hash_to_end(claim.open(), |_| {
        stage.progress();
        !stop.load(Ordering::Relaxed)
    });
    stage.idle();
    content.unwrap_or_default()
}

impl Actor for Admission {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(LOOK_EVERY, |admission, ctx| {
            let waits = admission.claims.waiting() > 0 || !admission.held.is_empty();
            admission.looks = waits && !admission.stop.load(Ordering::Relaxed);
            admission.advance(ctx);
        });
    }
}

impl Handler<ReadFile> for Admission {
    type Result = ();

    fn handle(&mut self, ReadFile(claim): ReadFile, ctx: &mut Self::Context) {
        self.files.push_back(claim);
        self.advance(ctx);
    }
}

/// The files that are not decided on stay claimed.
impl Handler<Close> for Admission {
    type Result = ();

    fn handle(&mut self, _: Close, _: &mut Self::Context) {
        self.files.clear();
    }
}
