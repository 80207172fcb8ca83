//! Intake: watches the inbox, claims files, passes them to the reader, and moves them to `processed/` or `failed/` when their
//! load is over.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix::{
    Actor, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message, Recipient, ResponseActFuture, SpawnHandle, WrapFuture,
};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::drain::{Close, Drain, Draining};
use super::faults::{Faults, StageWatch};
use super::protocol::{LoadFinished, ReadFile};
use super::reader::Reader;
use crate::config::Config;
use crate::error::{Error, Result, io_text};
use crate::inbox::{Candidate, Claim, Event, Inbox, Leftover, Placed, Settling, Watcher};
use crate::retry::{GIVE_UP_AFTER, MENTION_EVERY};
use crate::vitals::Stage;

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

/// The files that this process has claimed, by load key. Shared with the stages that record a crash on a claim.
#[derive(Debug, Clone, Default)]
pub struct Claims {
    held: Arc<Mutex<HashMap<Uuid, Claim>>>,
    has_crashed: Arc<AtomicBool>,
}

impl Claims {
    fn with<T>(&self, use_claims: impl FnOnce(&mut HashMap<Uuid, Claim>) -> T) -> T {
        use_claims(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many files are claimed.
    pub fn count(&self) -> usize {
        self.with(|claims| claims.len())
    }

    /// Records durably that this load crashed the process. Only the first call records anything: the process crashes once, even
    /// if several parsers panic.
    pub fn crashed(&self, key: Uuid) {
        if self.has_crashed.swap(true, Ordering::Relaxed) {
            return;
        }
        let claim = self.with(|claims| claims.get(&key).cloned());
        if let Some(Err(error)) = claim.map(|claim| claim.record_crash()) {
            tracing::warn!("{error}");
        }
    }
}

/// What an intake needs.
pub struct IntakeParts {
    pub inbox: Inbox,
    /// The intake's own stage.
    pub stage: Stage,
    pub claims: Claims,
    /// Receives the claimed files.
    pub reader: Addr<Reader>,
    /// See [`Intake::tally`].
    pub tally: Option<Recipient<LoadFinished>>,
}

/// The actor.
pub struct Intake {
    inbox: Arc<Inbox>,
    stage: Stage,
    watcher: Option<Watcher>,
    /// Events of the watcher that are not handled yet.
    seen: Arc<Mutex<Vec<Event>>>,
    settling: Settling,
    /// Complete files that wait because the limit of claims is reached.
    waiting: VecDeque<Candidate>,
    /// The paths of the waiting files.
    waiting_paths: HashSet<PathBuf>,
    leftovers: VecDeque<Leftover>,
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
    /// Receives each load after its file was moved, where no other stage reports it.
    tally: Option<Recipient<LoadFinished>>,
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
        let IntakeParts { inbox, stage, claims, reader, tally } = parts;
        Self {
            inbox: Arc::new(inbox),
            stage,
            watcher: None,
            seen: Arc::default(),
            settling: Settling::new(config.stream.settle),
            waiting: VecDeque::new(),
            waiting_paths: HashSet::new(),
            leftovers: VecDeque::new(),
            unclaimable: None,
            claims,
            moving: HashSet::new(),
            unplaced: Vec::new(),
            obstacle: None,
            draining: Draining::default(),
            reader,
            tally,
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

    fn wait_in_line(&mut self, candidate: Candidate) {
        if self.waiting_paths.insert(candidate.path.clone()) {
            self.waiting.push_back(candidate);
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
        let own = |claims: &mut HashMap<Uuid, Claim>, leftover: &Leftover| claims.contains_key(&leftover.key);
        let leftovers = self.inbox.leftovers()?;
        self.leftovers = self.claims.with(|claims| leftovers.into_iter().filter(|leftover| !own(claims, leftover)).collect());
        let now = Instant::now();
        for candidate in self.inbox.scan()? {
            if !self.waiting_paths.contains(&candidate.path) {
                self.settling.found(&candidate, candidate.untouched(), now);
            }
        }
        Ok(())
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
            self.wait_in_line(candidate);
        }
        let mut claimed = Vec::new();
        while self.claims.with(|claims| claims.len()) < MAX_CLAIMS {
            let claim = if let Some(leftover) = self.leftovers.pop_front() {
                self.inbox.reclaim(&leftover)
            } else if let Some(candidate) = self.waiting.pop_front() {
                self.waiting_paths.remove(&candidate.path);
                self.inbox.claim(&candidate)
            } else {
                break;
            };
            match claim {
                Ok(Some(claim)) => {
                    tracing::debug!(file = %claim.source, load_key = %claim.key, "claimed");
                    self.claims.with(|claims| claims.insert(claim.key, claim.clone()));
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
            self.reader.do_send(ReadFile(claim));
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
        let is_read = self.settling.is_empty() && self.waiting.is_empty() && self.leftovers.is_empty();
        let claimed = self.claims.with(|claims| claims.len());
        if is_read
            && claimed == 0
            && let Some(done) = done.take()
        {
            match self.unclaimable.take() {
                None => drop(done.send(())),
                Some(error) => {
                    self.faults.report(error.hint("the other files are loaded; make it readable and its directory writable"))
                }
            }
        }
        if let Some(obstacle) = &self.obstacle
            && is_read
            && claimed == self.unplaced.len()
            && obstacle.since.elapsed() > GIVE_UP_AFTER
        {
            let error = Error::failed(format!("{claimed} files cannot be moved out of .loading/: {}", obstacle.error));
            self.faults.report(error.hint("make room or give the right; the next start moves them and loads nothing twice"));
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

    fn placed(&mut self, claim: Claim, finished: LoadFinished, placed: Result<Option<Placed>>, ctx: &mut Context<Self>) {
        self.moving.remove(&finished.key);
        match placed {
            Ok(Some(placed)) => {
                self.stage.progress();
                self.claims.with(|claims| claims.remove(&finished.key));
                if placed.unread > 0 {
                    let path = placed.path.display();
                    tracing::warn!("{} bytes were written to {path} while it was moved there: they are not loaded", placed.unread);
                }
                if let Some(tally) = &self.tally {
                    tally.do_send(finished);
                }
            }
            Ok(None) => {
                tracing::info!(file = %claim.source, "written to since it was read: reading it again");
                claim.read_again();
                self.reader.do_send(ReadFile(claim));
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
        self.stage.waits_for(format!("a place for its files: {error}"));
        let now = Instant::now();
        let obstacle = self.obstacle.get_or_insert_with(|| Obstacle { since: now, mentioned: None, error: String::new() });
        obstacle.error = error.to_string();
        if obstacle.mentioned.is_none_or(|mentioned| mentioned.elapsed() > MENTION_EVERY) {
            obstacle.mentioned = Some(now);
            tracing::warn!("{error}; what it holds is loaded, and the move is tried again");
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
                        self.wait_in_line(candidate);
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
    }
}
