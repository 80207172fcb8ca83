//! Intake: watches the inbox, claims files, passes them to the reader, and moves them to `processed/` or `failed/` when their
//! load is over.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use actix::{
    Actor, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message, Recipient, ResponseActFuture, SpawnHandle, WrapFuture,
};
use tokio::sync::oneshot;
use uuid::Uuid;

use self::queue::{Next, Queue};
use super::admission::Admission;
use super::claims::Claims;
use super::drain::{Close, Drain, Draining};
use super::faults::{Faults, StageWatch};
use super::protocol::{FileWaits, LoadFinished, ReadFile, WaitIsOver};
use super::reader::Reader;
use super::stats::Stats;
use crate::config::Config;
use crate::dataset::Repeats;
use crate::error::{Error, Result, io_text};
use crate::inbox::{Claim, Event, Inbox, Placed, Settling, Watcher};
use crate::retry::{GIVE_UP_AFTER, MENTION_EVERY};
use crate::vitals::{Stage, Target, Wait};

mod queue;

/// How many files are claimed at a time. A higher limit gains nothing, and each claimed file stays open.
const MAX_CLAIMS: usize = 64;

/// When the run is over.
#[derive(Debug)]
pub enum Mode {
    /// Only when it is stopped.
    Watch,
    /// When all files that were in the inbox at the start are loaded. The sender is notified then.
    Once(Option<oneshot::Sender<()>>),
}

/// What an intake needs.
pub struct IntakeParts {
    pub inbox: Inbox,
    /// The intake's own stage.
    pub stage: Stage,
    pub claims: Claims,
    /// Receives the claimed files.
    pub reader: Addr<Reader>,
    /// Receives those of datasets that skip repeats instead. `None` if there is no such dataset.
    pub admission: Option<Addr<Admission>>,
    pub tally: Recipient<LoadFinished>,
    /// See [`Intake::reports_loads`].
    pub reports_loads: bool,
    pub stats: Arc<Stats>,
}

/// The actor.
pub struct Intake {
    inbox: Arc<Inbox>,
    stage: Stage,
    watcher: Option<Watcher>,
    /// Events of the watcher that are not handled yet.
    seen: Arc<Mutex<Vec<Event>>>,
    settling: Settling,
    queue: Queue,
    /// With `--once`: the first error of a file that could not be claimed.
    unclaimable: Option<Error>,
    claims: Claims,
    /// Finished loads whose files are being moved.
    moving: HashSet<Uuid>,
    /// Finished loads whose files could not be moved yet.
    unplaced: Vec<LoadFinished>,
    /// Why they could not be moved.
    obstacle: Option<Obstacle>,
    draining: Draining,
    reader: Addr<Reader>,
    admission: Option<Addr<Admission>>,
    /// Receives each repeat after its file was moved, and each load where no other stage reports it.
    tally: Recipient<LoadFinished>,
    reports_loads: bool,
    stats: Arc<Stats>,
    /// When the claimed files were dropped. Those that an earlier process claimed are not in it.
    dropped: HashMap<Uuid, SystemTime>,
    mode: Mode,
    is_stopped: bool,
    rescan_interval: Duration,
    look_timer: Option<SpawnHandle>,
    faults: Faults,
    _watch: StageWatch,
}

impl Intake {
    /// An intake that has claimed nothing yet.
    pub fn new(parts: IntakeParts, config: &Config, mode: Mode, faults: &Faults) -> Self {
        let IntakeParts { inbox, stage, claims, reader, admission, tally, reports_loads, stats } = parts;
        Self {
            inbox: Arc::new(inbox),
            stage,
            watcher: None,
            seen: Arc::default(),
            settling: Settling::new(config.stream.settle),
            queue: Queue::default(),
            unclaimable: None,
            claims,
            moving: HashSet::new(),
            unplaced: Vec::new(),
            obstacle: None,
            draining: Draining::default(),
            reader,
            admission,
            tally,
            reports_loads,
            stats,
            dropped: HashMap::new(),
            mode,
            is_stopped: false,
            rescan_interval: config.stream.rescan_interval,
            look_timer: None,
            faults: faults.clone(),
            _watch: faults.watch("intake"),
        }
    }

    /// Lists the claims of dead processes, and the files for which no event arrived.
    fn rescan(&mut self, ctx: &mut Context<Self>) {
        if let Err(error) = self.list() {
            tracing::warn!("{error}");
        }
        self.advance(ctx);
    }

    /// Tries again to move the files that could not be moved.
    fn place_again(&mut self, ctx: &mut Context<Self>) {
        for finished in std::mem::take(&mut self.unplaced) {
            self.place(finished, ctx);
        }
    }

    /// Whether a file that the watcher reports is to be loaded. With `--once`, only the files that were there at the start are.
    fn is_wanted(&self, path: &Path) -> bool {
        match self.mode {
            Mode::Watch => true,
            Mode::Once(_) => self.settling.contains(path),
        }
    }

    fn list(&mut self) -> Result<()> {
        self.inbox.make_directories()?;
        if let Some(watcher) = &mut self.watcher {
            watcher.renew()?;
        }
        self.list_leftovers()?;
        let now = Instant::now();
        for candidate in self.inbox.scan()? {
            if !self.queue.contains(&candidate.path) {
                self.settling.found(&candidate, candidate.untouched(), now);
            }
        }
        Ok(())
    }

    fn list_leftovers(&mut self) -> Result<()> {
        let leftovers = self.inbox.leftovers()?;
        self.queue.resume(leftovers, |key| self.claims.knows(key));
        Ok(())
    }

    /// Lists the claims that nobody holds: those of dead processes, and files that waited.
    fn resume_leftovers(&mut self, ctx: &mut Context<Self>) {
        if let Err(error) = self.list_leftovers() {
            tracing::warn!("{error}");
        }
        self.advance(ctx);
    }

    /// Passes a claimed file to the stage that it goes to first.
    fn pass_on(&self, claim: Claim) {
        match &self.admission {
            Some(admission) if claim.dataset.repeats == Repeats::Skip => admission.do_send(ReadFile(claim)),
            _ => self.reader.do_send(ReadFile(claim)),
        }
    }

    /// Claims complete files up to the limit, and passes them to the reader.
    fn advance(&mut self, ctx: &mut Context<Self>) {
        if let Some(timer) = self.look_timer.take() {
            ctx.cancel_future(timer);
        }
        if self.is_stopped {
            return;
        }
        let inbox = &self.inbox;
        for candidate in self.settling.ready(Instant::now(), |path| inbox.look(path)) {
            self.queue.add(candidate);
        }
        let mut claimed = Vec::new();
        while self.claims.with(|claims| claims.len()) < MAX_CLAIMS {
            let (claim, dropped) = match self.queue.next() {
                Some(Next::Leftover(leftover)) => (self.inbox.reclaim(&leftover), None),
                Some(Next::Complete(candidate)) => (self.inbox.claim(&candidate), Some(candidate.changed)),
                None => break,
            };
            match claim {
                Ok(Some(claim)) => {
                    tracing::debug!(file = %claim.source, load_key = %claim.key, "claimed");
                    self.claims.with(|claims| claims.insert(claim.key, claim.clone()));
                    self.dropped.extend(dropped.map(|dropped| (claim.key, dropped)));
                    claimed.push(claim);
                }
                // The file is gone, or another process has claimed it.
                Ok(None) => {}
                // The file stays where it is. A later listing finds it again.
                Err(error) => {
                    tracing::warn!("{error}");
                    self.unclaimable.get_or_insert(error);
                }
            }
        }
        if !claimed.is_empty()
            && let Err(error) = self.inbox.sync_claims()
        {
            return self.faults.report(error);
        }
        for claim in claimed {
            self.pass_on(claim);
        }
        if let Some(at) = self.settling.next_look() {
            let wait = at.saturating_duration_since(Instant::now());
            self.look_timer = Some(ctx.run_later(wait, |intake, ctx| intake.advance(ctx)));
        }
        self.tell_if_done();
    }

    /// With `--once`: notifies the supervisor when nothing is left to load.
    fn tell_if_done(&mut self) {
        let Mode::Once(done) = &mut self.mode else { return };
        let is_all_claimed = self.settling.is_empty() && self.queue.is_empty() && self.claims.waiting() == 0;
        let claimed = self.claims.count();
        let obstructed = self.obstacle.as_ref().map(|obstacle| obstacle.since.elapsed());
        match Once::now(is_all_claimed, claimed, self.unplaced.len(), obstructed) {
            Once::GoesOn => {}
            Once::Done => match (done.take(), self.unclaimable.take()) {
                (None, _) => {}
                (Some(done), None) => drop(done.send(())),
                (Some(_), Some(error)) => {
                    self.faults.report(error.hint("the other files are loaded; make it readable and its directory writable"));
                }
            },
            Once::Stuck => {
                let error = self.obstacle.as_ref().map_or("", |obstacle| &obstacle.error);
                let error = Error::failed(format!("{claimed} files cannot be moved out of .loading/: {error}"));
                self.faults.report(error.hint("make room or give the right; the next start moves them and loads nothing twice"));
            }
        }
    }

    /// Moves the file of a finished load to its directory. A thread does this, because a move to another file system copies the
    /// file.
    fn place(&mut self, finished: LoadFinished, ctx: &mut Context<Self>) {
        // Another process has this claim, and moves the file itself.
        let Some(claim) = self.claims.with(|claims| claims.get(&finished.key).cloned()) else { return };
        let is_premature = claim.is_read_again() && !finished.with_end;
        if is_premature || !self.moving.insert(finished.key) {
            return;
        }
        self.stage.busy();
        self.observe_drop(&finished);
        let inbox = Arc::clone(&self.inbox);
        let (moved_in, moved) = oneshot::channel();
        let move_file = move || {
            let placed = match &finished.error {
                None => inbox.done(&claim),
                Some(error) => inbox.failed(&claim, error).map(Some),
            };
            // After the end of the run there is no receiver.
            drop(moved_in.send((claim, finished, placed)));
        };
        // Not a blocking task of the runtime: at shutdown the runtime would wait for a disk that does not respond.
        if let Err(error) = std::thread::Builder::new().name("mover".to_owned()).spawn(move_file) {
            self.faults.report(Error::failed(format!("cannot start a thread: {}", io_text(&error))));
        }
        let moved = moved.into_actor(self).map(|moved, intake, ctx| match moved {
            Ok((claim, finished, placed)) => intake.placed(claim, finished, placed, ctx),
            Err(_) => intake.faults.report(Error::failed("moving a file panicked")),
        });
        ctx.spawn(moved);
    }

    /// Notes how long it took from the drop of a file to the commit of its last record. A file that is only published is not
    /// committed yet.
    fn observe_drop(&mut self, finished: &LoadFinished) {
        let dropped = self.dropped.remove(&finished.key).and_then(|dropped| dropped.elapsed().ok());
        let is_committed = self.stats.topology().is_some_and(|topology| topology.records && !topology.broker);
        if let Some(took) = dropped.filter(|_| is_committed && finished.error.is_none() && finished.repeats.is_none()) {
            self.stats.drop_to_commit_seconds.observe(took);
        }
    }

    fn placed(&mut self, claim: Claim, finished: LoadFinished, placed: Result<Option<Placed>>, ctx: &mut Context<Self>) {
        self.moving.remove(&finished.key);
        match placed {
            Ok(Some(placed)) => {
                self.stage.handled(1);
                self.stage.progress();
                self.claims.with(|claims| claims.remove(&finished.key));
                if placed.unread > 0 {
                    let path = placed.path.display();
                    tracing::warn!("{} bytes were written to {path} while it was moved there: they are not loaded", placed.unread);
                }
                if finished.repeats.is_some()
                    && let Some(stats) = self.stats.of(&finished.dataset)
                {
                    stats.files_repeated.fetch_add(1, Ordering::Relaxed);
                }
                if self.reports_loads || finished.repeats.is_some() {
                    self.tally.do_send(finished);
                }
            }
            Ok(None) => {
                tracing::info!(file = %claim.source, "written to since it was read: reading it again");
                claim.read_again();
                self.pass_on(claim);
            }
            // The records are durable. The next rescan tries the move again.
            Err(error) => {
                self.unplaced.push(finished);
                self.mention_unplaced(&error);
            }
        }
        if self.unplaced.is_empty() && self.moving.is_empty() {
            self.obstacle = None;
            self.stage.idle();
        }
        if self.moving.is_empty() {
            self.draining.done();
        }
        // There is room for more claims now.
        self.advance(ctx);
    }

    fn mention_unplaced(&mut self, error: &Error) {
        self.stage.waits_for(Wait::new(Target::Disk, format!("a place for its files: {error}")));
        let now = Instant::now();
        let obstacle = self.obstacle.get_or_insert_with(|| Obstacle { since: now, mentioned: None, error: String::new() });
        obstacle.error = error.to_string();
        if obstacle.mentioned.is_none_or(|mentioned| mentioned.elapsed() > MENTION_EVERY) {
            obstacle.mentioned = Some(now);
            tracing::warn!("{error}; what it holds is loaded, and the move is tried again");
        }
    }
}

/// The state of a run with `--once`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Once {
    GoesOn,
    Done,
    /// All that is left is files that are loaded and cannot be moved.
    Stuck,
}

impl Once {
    /// `unplaced` of the `claimed` files could not be moved. `obstructed` is for how long that has been so.
    fn now(is_all_claimed: bool, claimed: usize, unplaced: usize, obstructed: Option<Duration>) -> Self {
        match obstructed {
            _ if !is_all_claimed => Self::GoesOn,
            _ if claimed == 0 => Self::Done,
            Some(time) if claimed == unplaced && time > GIVE_UP_AFTER => Self::Stuck,
            _ => Self::GoesOn,
        }
    }
}

/// Why files cannot be moved.
struct Obstacle {
    since: Instant,
    /// When the log last reported it.
    mentioned: Option<Instant>,
    error: String,
}

impl Actor for Intake {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let (intake, seen) = (ctx.address(), Arc::clone(&self.seen));
        let on_event = move |event| {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.push(event);
            if seen.len() == 1 {
                intake.do_send(Watched);
            }
        };
        match Watcher::start(&self.inbox, on_event) {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(error) => tracing::warn!("{error}; the inbox is listed every {:?} instead", self.rescan_interval),
        }
        ctx.run_interval(self.rescan_interval, |intake, ctx| {
            intake.place_again(ctx);
            // With --once only the files that were there at the start are loaded.
            if matches!(intake.mode, Mode::Watch) {
                intake.rescan(ctx);
            } else if intake.claims.waiting() > 0 {
                // The process that loads what files wait for may have died.
                intake.resume_leftovers(ctx);
            }
        });
        if matches!(self.mode, Mode::Watch) {
            tracing::info!("watching {}", self.inbox);
        }
        self.rescan(ctx);
    }
}

/// The watcher has put events into [`Intake::seen`]. One message stands for all events until it is handled. Otherwise a program
/// that constantly opens files in the inbox could fill the mailbox.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Watched;

impl Handler<Watched> for Intake {
    type Result = ();

    fn handle(&mut self, _: Watched, ctx: &mut Self::Context) {
        let now = Instant::now();
        let seen = std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner));
        let mut is_lost = false;
        for event in seen {
            match event {
                Event::Complete(path) if self.is_wanted(&path) => {
                    self.settling.forget(&path);
                    if let Some(mut candidate) = self.inbox.look(&path) {
                        candidate.complete = true;
                        self.queue.add(candidate);
                    }
                }
                Event::Touched { path, open } if self.is_wanted(&path) => self.settling.touched(path, open, now),
                Event::Complete(_) | Event::Touched { .. } => {}
                Event::Gone(path) => self.settling.forget(&path),
                Event::Rescan => is_lost = true,
            }
        }
        if is_lost {
            self.settling.events_lost(now);
        }
        if is_lost && matches!(self.mode, Mode::Watch) {
            self.rescan(ctx);
        } else {
            self.advance(ctx);
        }
    }
}

impl Handler<LoadFinished> for Intake {
    type Result = ();

    fn handle(&mut self, finished: LoadFinished, ctx: &mut Self::Context) {
        self.place(finished, ctx);
    }
}

impl Handler<FileWaits> for Intake {
    type Result = ();

    fn handle(&mut self, _: FileWaits, ctx: &mut Self::Context) {
        self.advance(ctx);
    }
}

impl Handler<WaitIsOver> for Intake {
    type Result = ();

    fn handle(&mut self, _: WaitIsOver, ctx: &mut Self::Context) {
        self.resume_leftovers(ctx);
    }
}

/// Asked when no more loads will finish. It is done when no file is being moved any more.
impl Handler<Drain> for Intake {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: Drain, _: &mut Self::Context) -> Self::Result {
        let drained = self.draining.begin();
        if self.moving.is_empty() {
            self.draining.done();
        }
        drained
    }
}

impl Handler<Close> for Intake {
    type Result = ();

    fn handle(&mut self, _: Close, _: &mut Self::Context) {
        self.is_stopped = true;
        self.watcher = None;
        if let Some(admission) = &self.admission {
            admission.do_send(Close);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_with_once_ends_when_nothing_is_left_or_nothing_can_be_moved() {
        let long = Some(GIVE_UP_AFTER + Duration::from_secs(1));
        assert_eq!(Once::now(true, 0, 0, None), Once::Done);
        assert_eq!(Once::now(false, 0, 0, None), Once::GoesOn, "a file settles or waits");
        assert_eq!(Once::now(true, 3, 0, None), Once::GoesOn, "files are being loaded");
        assert_eq!(Once::now(true, 3, 3, long), Once::Stuck);
        assert_eq!(Once::now(true, 3, 3, Some(GIVE_UP_AFTER)), Once::GoesOn);
        assert_eq!(Once::now(true, 3, 2, long), Once::GoesOn, "one is still being loaded or moved");
        assert_eq!(Once::now(false, 3, 3, long), Once::GoesOn);
    }
}
