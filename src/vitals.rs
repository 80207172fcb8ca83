//! What the stages of this process are doing: nothing, working, or waiting for something outside, and for how long. The stages
//! say so here; the heartbeat tells `dataloader health`, and a drain sees whether anything still moves.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// A stage that waits for no longer than this is well: servers pause, connections are made anew.
const MOMENT: Duration = Duration::from_secs(1);

/// The stages of a process. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Vitals(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    stages: Mutex<Vec<Weak<Part>>>,
    /// Units of work that were finished, of all stages.
    units: AtomicU64,
}

/// One stage, or one of its threads or connections. Clones are the same stage; it is forgotten with the last of them.
#[derive(Debug, Clone)]
pub struct Stage(Arc<Part>);

#[derive(Debug)]
struct Part {
    name: &'static str,
    shared: Arc<Shared>,
    now: Mutex<Now>,
    in_hand: AtomicU64,
}

#[derive(Debug)]
struct Now {
    doing: Doing,
    /// When it began to work or finished a unit of work, whichever was later.
    moved: Instant,
}

#[derive(Debug)]
enum Doing {
    Idle,
    Busy,
    Waiting { what: String, since: Instant },
}

/// Why a stage is not well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    pub stage: &'static str,
    /// What it waits for, in words for people; `None` if it should work and makes no progress.
    pub waits_for: Option<String>,
    pub since: Instant,
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.waits_for {
            Some(what) => write!(f, "the {} waits for {what}", self.stage),
            None => write!(f, "the {} makes no progress", self.stage),
        }
    }
}

impl Vitals {
    /// Adds a stage that has nothing to do yet. Several may have the same name.
    pub fn stage(&self, name: &'static str) -> Stage {
        let now = Mutex::new(Now { doing: Doing::Idle, moved: Instant::now() });
        let part = Arc::new(Part { name, shared: Arc::clone(&self.0), now, in_hand: AtomicU64::new(0) });
        let mut stages = lock(&self.0.stages);
        stages.retain(|stage| stage.strong_count() > 0);
        stages.push(Arc::downgrade(&part));
        Stage(part)
    }

    /// What is wrong: stages that wait for more than a moment, and stages that have work and made no progress for as long as
    /// `stall`.
    pub fn troubles(&self, stall: Duration) -> Vec<Trouble> {
        self.stages().iter().filter_map(|stage| stage.trouble(stall)).collect()
    }

    /// How many units of work all stages have finished so far: while it stays the same, nothing moves.
    pub fn units(&self) -> u64 {
        self.0.units.load(Ordering::Relaxed)
    }

    /// How many things the stages of that name have in hand.
    pub fn in_hand(&self, name: &str) -> u64 {
        let stages = self.stages();
        stages.iter().filter(|stage| stage.name == name).map(|stage| stage.in_hand.load(Ordering::Relaxed)).sum()
    }

    fn stages(&self) -> Vec<Arc<Part>> {
        lock(&self.0.stages).iter().filter_map(Weak::upgrade).collect()
    }
}

impl Stage {
    /// It has work.
    pub fn busy(&self) {
        let mut now = lock(&self.0.now);
        if matches!(now.doing, Doing::Idle) {
            *now = Now { doing: Doing::Busy, moved: Instant::now() };
        }
    }

    /// It has nothing to do, or can do nothing until another stage has made room.
    pub fn idle(&self) {
        lock(&self.0.now).doing = Doing::Idle;
    }

    /// It waits for something outside of the process: a server, a disk. `what` is for people: what it waits for and why. Said
    /// again, it still waits, perhaps for another reason.
    pub fn waits_for(&self, what: impl Into<String>) {
        let mut now = lock(&self.0.now);
        let since = match now.doing {
            Doing::Waiting { since, .. } => since,
            Doing::Idle | Doing::Busy => Instant::now(),
        };
        now.doing = Doing::Waiting { what: what.into(), since };
    }

    /// What it waited for is there: it goes on working.
    pub fn goes_on(&self) {
        let mut now = lock(&self.0.now);
        if matches!(now.doing, Doing::Waiting { .. }) {
            *now = Now { doing: Doing::Busy, moved: Instant::now() };
        }
    }

    /// It finished a unit of work, however small. What a stage does while it waits is an attempt and does not count.
    pub fn progress(&self) {
        let mut now = lock(&self.0.now);
        if !matches!(now.doing, Doing::Waiting { .. }) {
            now.moved = Instant::now();
            self.0.shared.units.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many files or messages it has taken and not finished: what a run that ends now leaves to the next.
    pub fn has_in_hand(&self, count: usize) {
        self.0.in_hand.store(count as u64, Ordering::Relaxed);
    }
}

impl Part {
    fn trouble(&self, stall: Duration) -> Option<Trouble> {
        let now = lock(&self.now);
        let (waits_for, since, limit) = match &now.doing {
            Doing::Idle => return None,
            Doing::Busy => (None, now.moved, stall),
            Doing::Waiting { what, since } => (Some(what.clone()), *since, MOMENT),
        };
        (since.elapsed() >= limit).then_some(Trouble { stage: self.name, waits_for, since })
    }
}

/// A panic elsewhere leaves the few values behind such a lock whole.
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

    /// As if the stage had been doing what it does for a minute.
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
        stage.waits_for("x.db: locked");
        assert!(names(&vitals, LONG).is_empty());
        a_minute_passes(&stage);
        stage.waits_for("x.db: full");
        stage.progress();
        let troubles = vitals.troubles(LONG);
        assert_eq!(troubles.len(), 1);
        assert_eq!(troubles[0].waits_for.as_deref(), Some("x.db: full"));
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
}
