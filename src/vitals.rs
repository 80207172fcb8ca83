//! The state of each stage of this process: idle, busy, or waiting for something outside, and since when. The stages report it
//! here; the heartbeat passes it to `dataloader health`, and the shutdown uses it to see whether there is still progress. How long
//! they have worked, and on how much, is counted here as well.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// A stage that waits for less than this is healthy: short pauses of servers and new connections are normal.
const MOMENT: Duration = Duration::from_secs(1);

/// The stages of a process. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Vitals(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    stages: Mutex<Vec<Weak<Part>>>,
    /// Units of work that all stages have finished.
    units: AtomicU64,
    /// What the stages of each name have done, those that have ended included.
    done: Mutex<BTreeMap<&'static str, Arc<Done>>>,
    /// Failed attempts to use each target.
    retries: [AtomicU64; Target::ALL.len()],
}

/// What the stages of one name have done.
#[derive(Debug, Default)]
struct Done {
    busy_micros: AtomicU64,
    handled: AtomicU64,
}

/// What the stages of one name have done since the process started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    pub stage: &'static str,
    /// How many stages have the name now.
    pub count: u64,
    /// The time that they were busy, added up.
    pub busy: Duration,
    /// How many records, files or messages they have handled.
    pub handled: u64,
}

impl Work {
    /// No work yet.
    pub fn none(stage: &'static str) -> Self {
        Self { stage, count: 0, busy: Duration::ZERO, handled: 0 }
    }
}

/// What a stage may wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Database,
    Broker,
    Disk,
}

impl Target {
    pub const ALL: [Self; 3] = [Self::Database, Self::Broker, Self::Disk];

    /// Its name, without any host or user.
    pub fn name(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Broker => "broker",
            Self::Disk => "disk",
        }
    }
}

/// What a stage waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    pub target: Target,
    /// For the user: what it waits for and why, with hosts and users.
    pub text: String,
}

impl Wait {
    pub fn new(target: Target, text: impl Into<String>) -> Self {
        Self { target, text: text.into() }
    }
}

/// One stage, or one of its threads or connections. Clones are the same stage. It is removed when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Stage(Arc<Part>);

#[derive(Debug)]
struct Part {
    name: &'static str,
    shared: Arc<Shared>,
    done: Arc<Done>,
    now: Mutex<Now>,
    in_hand: AtomicU64,
}

#[derive(Debug)]
struct Now {
    doing: Doing,
    /// When it began to work or last finished a unit of work, whichever was later.
    moved: Instant,
}

#[derive(Debug)]
enum Doing {
    Idle,
    Busy { since: Instant },
    Waiting { what: Wait, since: Instant },
}

/// Why a stage is not healthy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    pub stage: &'static str,
    /// What it waits for; `None` if it has work and makes no progress.
    pub waits_for: Option<Wait>,
    pub since: Instant,
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.waits_for {
            Some(what) => write!(f, "the {} waits for {}", self.stage, what.text),
            None => write!(f, "the {} makes no progress", self.stage),
        }
    }
}

impl Trouble {
    /// The same without any host, user or file.
    pub fn without_names(&self) -> String {
        match &self.waits_for {
            Some(what) => format!("the {} waits for the {}", self.stage, what.target.name()),
            None => self.to_string(),
        }
    }
}

impl Vitals {
    /// Adds an idle stage. Several stages may have the same name.
    pub fn stage(&self, name: &'static str) -> Stage {
        let now = Mutex::new(Now { doing: Doing::Idle, moved: Instant::now() });
        let done = Arc::clone(lock(&self.0.done).entry(name).or_default());
        let part = Arc::new(Part { name, shared: Arc::clone(&self.0), done, now, in_hand: AtomicU64::new(0) });
        let mut stages = lock(&self.0.stages);
        stages.retain(|stage| stage.strong_count() > 0);
        stages.push(Arc::downgrade(&part));
        Stage(part)
    }

    /// The stages that are not healthy: those that wait for longer than a moment, and those that have work and made no progress
    /// for the time `stall`.
    pub fn troubles(&self, stall: Duration) -> Vec<Trouble> {
        self.stages().iter().filter_map(|stage| stage.trouble(stall)).collect()
    }

    /// How many units of work all stages have finished. There is no progress while it stays the same.
    pub fn units(&self) -> u64 {
        self.0.units.load(Ordering::Relaxed)
    }

    /// How many files or messages the stages of that name have taken and not finished.
    pub fn in_hand(&self, name: &str) -> u64 {
        let stages = self.stages();
        stages.iter().filter(|stage| stage.name == name).map(|stage| stage.in_hand.load(Ordering::Relaxed)).sum()
    }

    /// What the stages have done, by their names.
    pub fn work(&self) -> Vec<Work> {
        let stages = self.stages();
        let done = lock(&self.0.done);
        let work = |(name, done): (&&'static str, &Arc<Done>)| {
            let mine = || stages.iter().filter(|stage| stage.name == *name);
            let busy_now: Duration = mine().map(|stage| lock(&stage.now).doing.busy_for()).sum();
            Work {
                stage: name,
                count: mine().count() as u64,
                busy: Duration::from_micros(done.busy_micros.load(Ordering::Relaxed)) + busy_now,
                handled: done.handled.load(Ordering::Relaxed),
            }
        };
        done.iter().map(work).collect()
    }

    /// How many attempts to use the target have failed.
    pub fn retries(&self, target: Target) -> u64 {
        self.0.retries[target as usize].load(Ordering::Relaxed)
    }

    fn stages(&self) -> Vec<Arc<Part>> {
        lock(&self.0.stages).iter().filter_map(Weak::upgrade).collect()
    }
}

impl Stage {
    /// The stage has work.
    pub fn busy(&self) {
        let mut now = lock(&self.0.now);
        if matches!(now.doing, Doing::Idle) {
            now.begins();
        }
    }

    /// The stage is busy with these records until the returned value is dropped; they are handled then.
    pub fn works_on(&self, records: u64) -> Working<'_> {
        self.busy();
        Working { stage: self, records }
    }

    /// The stage has no work, or must wait until another stage has room.
    pub fn idle(&self) {
        self.0.now_does(Doing::Idle);
    }

    /// The stage waits for something outside of the process, such as a server or a disk. A repeated call may change the reason;
    /// the start of the wait stays.
    pub fn waits_for(&self, what: Wait) {
        let since = match lock(&self.0.now).doing {
            Doing::Waiting { since, .. } => since,
            Doing::Idle | Doing::Busy { .. } => Instant::now(),
        };
        self.0.now_does(Doing::Waiting { what, since });
    }

    /// An attempt of the stage to use the target has failed, and is repeated.
    pub fn retries(&self, target: Target) {
        self.0.shared.retries[target as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The stage has handled this many records, files or messages.
    pub fn handled(&self, count: u64) {
        self.0.done.handled.fetch_add(count, Ordering::Relaxed);
    }

    /// The wait is over, and the stage works again.
    pub fn goes_on(&self) {
        let mut now = lock(&self.0.now);
        if matches!(now.doing, Doing::Waiting { .. }) {
            now.begins();
        }
    }

    /// The stage finished a unit of work of any size. Work during a wait is only an attempt and does not count.
    pub fn progress(&self) {
        let mut now = lock(&self.0.now);
        if !matches!(now.doing, Doing::Waiting { .. }) {
            now.moved = Instant::now();
            self.0.shared.units.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Sets how many files or messages the stage has taken and not finished. A run that ends now leaves them to the next run.
    pub fn has_in_hand(&self, count: usize) {
        self.0.in_hand.store(count as u64, Ordering::Relaxed);
    }
}

/// A stage at work on some records.
#[derive(Debug)]
pub struct Working<'a> {
    stage: &'a Stage,
    records: u64,
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.stage.handled(self.records);
        self.stage.progress();
        self.stage.idle();
    }
}

impl Doing {
    /// For how long the stage has been busy.
    fn busy_for(&self) -> Duration {
        match self {
            Self::Busy { since } => since.elapsed(),
            Self::Idle | Self::Waiting { .. } => Duration::ZERO,
        }
    }
}

impl Now {
    /// The stage begins to work.
    fn begins(&mut self) {
        let now = Instant::now();
        *self = Self { doing: Doing::Busy { since: now }, moved: now };
    }
}

impl Part {
    /// Ends what the stage was doing.
    fn now_does(&self, doing: Doing) {
        let mut now = lock(&self.now);
        let micros = u64::try_from(now.doing.busy_for().as_micros()).unwrap_or(u64::MAX);
        self.done.busy_micros.fetch_add(micros, Ordering::Relaxed);
        now.doing = doing;
    }

    fn trouble(&self, stall: Duration) -> Option<Trouble> {
        let now = lock(&self.now);
        let (waits_for, since, limit) = match &now.doing {
            Doing::Idle => return None,
            Doing::Busy { .. } => (None, now.moved, stall),
            Doing::Waiting { what, since } => (Some(what.clone()), *since, MOMENT),
        };
        (since.elapsed() >= limit).then_some(Trouble { stage: self.name, waits_for, since })
    }
}

/// The values are complete after every assignment, so a lock that a panic has poisoned is still usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Longer than any test.
    const LONG: Duration = Duration::from_secs(3_600);

    fn names(vitals: &Vitals, stall: Duration) -> Vec<&'static str> {
        vitals.troubles(stall).into_iter().map(|trouble| trouble.stage).collect()
    }

    /// Moves the times of the stage back by one minute.
    fn a_minute_passes(stage: &Stage) {
        let minute = Duration::from_secs(60);
        let mut now = lock(&stage.0.now);
        now.moved = now.moved.checked_sub(minute).expect("the machine has been up for a minute");
        if let Doing::Waiting { since, .. } = &mut now.doing {
            *since = since.checked_sub(minute).expect("the machine has been up for a minute");
        }
    }

    #[test]
    fn work_without_progress_is_trouble_after_the_stall_time_and_idleness_never() {
        let vitals = Vitals::default();
        let stage = vitals.stage("writer");
        a_minute_passes(&stage);
        assert!(names(&vitals, Duration::ZERO).is_empty(), "it has nothing to do");
        stage.busy();
        assert!(names(&vitals, LONG).is_empty());
        a_minute_passes(&stage);
        assert_eq!(names(&vitals, Duration::from_secs(30)), ["writer"]);
        stage.progress();
        assert!(names(&vitals, Duration::from_secs(30)).is_empty());
        a_minute_passes(&stage);
        stage.busy();
        assert_eq!(names(&vitals, Duration::from_secs(30)), ["writer"], "saying it again is no progress");
        stage.idle();
        assert!(names(&vitals, Duration::ZERO).is_empty());
    }

    #[test]
    fn a_wait_is_trouble_after_a_moment_and_lasts_until_the_stage_goes_on() {
        let vitals = Vitals::default();
        let stage = vitals.stage("writer");
        stage.waits_for(Wait::new(Target::Disk, "x.db: locked"));
        assert!(names(&vitals, LONG).is_empty());
        a_minute_passes(&stage);
        stage.waits_for(Wait::new(Target::Disk, "x.db: full"));
        stage.progress();
        let troubles = vitals.troubles(LONG);
        assert_eq!(troubles.len(), 1);
        assert_eq!(troubles[0].to_string(), "the writer waits for x.db: full");
        assert_eq!(troubles[0].without_names(), "the writer waits for the disk");
        assert!(troubles[0].since.elapsed() >= Duration::from_secs(60), "it has waited since the first time");
        assert_eq!(vitals.units(), 0, "an attempt is no progress");
        stage.goes_on();
        stage.progress();
        assert!(names(&vitals, LONG).is_empty());
        assert_eq!(vitals.units(), 1);
    }

    #[test]
    fn stages_are_forgotten_when_they_end_and_their_work_is_not() {
        let vitals = Vitals::default();
        let (first, second) = (vitals.stage("intake"), vitals.stage("intake"));
        first.has_in_hand(2);
        second.has_in_hand(3);
        assert_eq!((vitals.in_hand("intake"), vitals.in_hand("reader")), (5, 0));
        first.busy();
        first.progress();
        drop(first);
        assert_eq!((vitals.in_hand("intake"), vitals.units()), (3, 1));
        assert!(names(&vitals, Duration::ZERO).is_empty());
    }

    #[test]
    fn the_work_of_stages_of_one_name_is_added_up_and_outlives_them() {
        let vitals = Vitals::default();
        let (first, second) = (vitals.stage("writer"), vitals.stage("writer"));
        first.busy();
        first.handled(5);
        second.handled(7);
        let before = vitals.work();
        assert_eq!((before.len(), before[0].stage, before[0].count, before[0].handled), (1, "writer", 2, 12));
        assert!(vitals.work()[0].busy >= before[0].busy, "it is busy still");
        first.idle();
        let busy = vitals.work()[0].busy;
        assert!(busy > Duration::ZERO);
        drop(first);
        second.waits_for(Wait::new(Target::Database, "x"));
        second.retries(Target::Database);
        let after = vitals.work()[0];
        assert_eq!((after.count, after.busy, after.handled), (1, busy, 12), "a wait is no work");
        assert_eq!((vitals.retries(Target::Database), vitals.retries(Target::Broker)), (1, 0));
    }
}
