//! The state of each stage of this process: idle, busy, or waiting for something outside, and since when. The stages report it
//! here; the heartbeat passes it to `dataloader health`, and the shutdown uses it to see whether there is still progress.

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
}

/// One stage, or one of its threads or connections. Clones are the same stage. It is removed when the last clone is dropped.
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
    /// When it began to work or last finished a unit of work, whichever was later.
    moved: Instant,
}

#[derive(Debug)]
enum Doing {
    Idle,
    Busy,
    Waiting { what: String, since: Instant },
}

/// Why a stage is not healthy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    pub stage: &'static str,
    /// What it waits for, as text for the user; `None` if it has work and makes no progress.
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
    /// Adds an idle stage. Several stages may have the same name.
    pub fn stage(&self, name: &'static str) -> Stage {
        let now = Mutex::new(Now { doing: Doing::Idle, moved: Instant::now() });
        let part = Arc::new(Part { name, shared: Arc::clone(&self.0), now, in_hand: AtomicU64::new(0) });
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

    fn stages(&self) -> Vec<Arc<Part>> {
        lock(&self.0.stages).iter().filter_map(Weak::upgrade).collect()
    }
}

impl Stage {
    /// The stage has work.
    pub fn busy(&self) {
        let mut now = lock(&self.0.now);
        if matches!(now.doing, Doing::Idle) {
            *now = Now { doing: Doing::Busy, moved: Instant::now() };
        }
    }

    /// The stage has no work, or must wait until another stage has room.
    pub fn idle(&self) {
        lock(&self.0.now).doing = Doing::Idle;
    }

    /// The stage waits for something outside of the process, such as a server or a disk. `what` is text for the user: what it
    /// waits for and why. A repeated call may change the reason; the start of the wait stays.
    pub fn waits_for(&self, what: impl Into<String>) {
        let mut now = lock(&self.0.now);
        let since = match now.doing {
            Doing::Waiting { since, .. } => since,
            Doing::Idle | Doing::Busy => Instant::now(),
        };
        now.doing = Doing::Waiting { what: what.into(), since };
    }

    /// The wait is over, and the stage works again.
    pub fn goes_on(&self) {
        let mut now = lock(&self.0.now);
        if matches!(now.doing, Doing::Waiting { .. }) {
            *now = Now { doing: Doing::Busy, moved: Instant::now() };
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
