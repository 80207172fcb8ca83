//! Intake: watches the inbox, claims files, hands them to the reader, and puts them where they belong when they are done.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use actix::{
    Actor, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message, Recipient, ResponseActFuture, SpawnHandle, WrapFuture,
};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::faults::{Faults, StageWatch};
use super::protocol::{LoadFinished, ReadFile};
use super::reader::Reader;
use crate::config::Config;
use crate::error::{Error, Result, io_text};
use crate::inbox::{Candidate, Claim, Event, Inbox, Leftover, Placed, Settling, Watcher};
use crate::retry::GIVE_UP_AFTER;
use crate::vitals::Stage;

/// How many files are claimed at a time. More gain nothing, and each is open.
const MAX_CLAIMS: usize = 64;

/// How often a file that cannot be moved is mentioned in the log.
const MENTION_EVERY: Duration = Duration::from_secs(15);

/// When the run is over.
#[derive(Debug)]
pub enum Mode {
    /// Never by itself.
    Watch,
    /// When all is loaded that was there at the start; this is told then.
    Once(Option<oneshot::Sender<()>>),
}

/// The files that this process has claimed, by load key; shared with whoever must note that one crashed it.
#[derive(Debug, Clone, Default)]
pub struct Claims {
    held: Arc<Mutex<HashMap<Uuid, Claim>>>,
    has_crashed: Arc<AtomicBool>,
}

impl Claims {
    fn with<T>(&self, use_claims: impl FnOnce(&mut HashMap<Uuid, Claim>) -> T) -> T {
        use_claims(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.with(|claims| claims.len())
    }

    /// Notes, durably, that working on this load crashed the process: the first time only, as a process ends but once, even
    /// when several parsers meet what they cannot take.
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

/// What an intake works with.
pub struct IntakeParts {
    pub inbox: Inbox,
    /// Of this intake.
    pub stage: Stage,
    pub claims: Claims,
    /// Gets the files.
    pub reader: Addr<Reader>,
    /// See [`Intake::tally`].
    pub tally: Option<Recipient<LoadFinished>>,
}

/// The actor.
pub struct Intake {
    inbox: Arc<Inbox>,
    stage: Stage,
    watcher: Option<Watcher>,
    /// What the watcher saw and nobody has looked at yet.
    seen: Arc<Mutex<Vec<Event>>>,
    settling: Settling,
    /// Complete, but too many are claimed already.
    waiting: VecDeque<Candidate>,
    /// The paths of those.
    waiting_paths: HashSet<PathBuf>,
    leftovers: VecDeque<Leftover>,
    /// With `--once`: why a file could not be claimed.
    unclaimable: Option<Error>,
    claims: Claims,
    /// Loads that are over, whose files are on their way to their place.
    moving: HashSet<Uuid>,
    /// Those whose files could not be put there yet.
    unplaced: Vec<LoadFinished>,
    /// Why.
    obstacle: Option<Obstacle>,
    /// Told when no file is on its way any more.
    draining: Option<oneshot::Sender<()>>,
    reader: Addr<Reader>,
    /// Told of each load whose file is in its place, where nobody else tells.
    tally: Option<Recipient<LoadFinished>>,
    mode: Mode,
    is_stopped: bool,
    rescan_interval: Duration,
    look_timer: Option<SpawnHandle>,
    faults: Faults,
    _watch: StageWatch,
}

impl Intake {
    /// An intake that claims nothing yet.
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
            draining: None,
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

    /// Lists what is there: claims of dead processes, and files of which no event told.
    fn rescan(&mut self, ctx: &mut Context<Self>) {
        if let Err(error) = self.list() {
            tracing::warn!("{error}");
        }
        self.advance(ctx);
    }

    /// Tries again what could not be put in its place.
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

    /// Whether a file that the watcher tells of is to be loaded: with `--once` those alone that were there at the start.
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
            let untouched = SystemTime::now().duration_since(candidate.changed).unwrap_or_default();
            if !self.waiting_paths.contains(&candidate.path) {
                self.settling.found(&candidate, untouched, now);
            }
        }
        Ok(())
    }

    /// Claims what is complete, as far as there is room, and hands it to the reader.
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
                // Gone, or another process has it.
                Ok(None) => {}
                // It stays where it is and is found again.
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

    /// With `--once`: whether nothing is left to load.
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

    /// Puts the file of a load that is over where it belongs: on a thread of its own, as that can mean to copy it.
    fn place(&mut self, finished: LoadFinished, ctx: &mut Context<Self>) {
        // Another process's, which finishes with its own knowledge.
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
            // After the end of the run nobody listens.
            drop(moved_in.send((claim, finished, placed)));
        };
        // Not on the runtime, which would not end before a disk that does not answer.
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
            // Its records are safe; the next listing tries again.
            Err(error) => {
                self.unplaced.push(finished);
                self.mention_unplaced(&error);
            }
        }
        if self.unplaced.is_empty() && self.moving.is_empty() {
            self.obstacle = None;
            self.stage.idle();
        }
        if self.moving.is_empty()
            && let Some(drained) = self.draining.take()
        {
            let _ = drained.send(());
        }
        // There is room for other claims.
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

/// Why files cannot be put in their place.
struct Obstacle {
    since: Instant,
    /// When the log said so.
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
            // With --once only what was there at the start counts.
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

/// The watcher saw something: it is in [`Intake::seen`]. One message for all that gathers until it is handled, so that a
/// program that opens files in the inbox all the time does not fill the mailbox.
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

/// Nothing more is to come; the answer says that no file is on its way to its place any more.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Finish;

impl Handler<Finish> for Intake {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: Finish, _: &mut Self::Context) -> Self::Result {
        let (drained, is_drained) = oneshot::channel();
        if self.moving.is_empty() {
            let _ = drained.send(());
        } else {
            self.draining = Some(drained);
        }
        Box::pin(is_drained.into_actor(self).map(|_, _, _| ()))
    }
}

/// Claim no more files.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Stop;

impl Handler<Stop> for Intake {
    type Result = ();

    fn handle(&mut self, _: Stop, _: &mut Self::Context) {
        self.is_stopped = true;
        self.watcher = None;
    }
}
