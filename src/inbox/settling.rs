//! Which files have been still for long enough: pure, it gets the time and what the files look like from outside.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Candidate, OPEN_FILE_FACTOR, Stamp};

/// The files of which no event has said yet that they are complete.
#[derive(Debug)]
pub struct Settling {
    settle: Duration,
    files: HashMap<PathBuf, Still>,
}

/// A file that may be complete.
#[derive(Debug)]
struct Still {
    since: Instant,
    /// None if it was not looked at since.
    stamp: Option<Stamp>,
    /// Somebody has opened it or written to it, and its closing will be an event.
    open: bool,
}

impl Settling {
    /// Nothing settles yet; `settle` is how long a file must be still.
    pub fn new(settle: Duration) -> Self {
        Self { settle, files: HashMap::new() }
    }

    /// An event: the file was created or changed, or, when `open`, somebody may be writing to it.
    pub fn touched(&mut self, path: PathBuf, open: bool, now: Instant) {
        let file = self.files.entry(path).or_insert(Still { since: now, stamp: None, open });
        *file = Still { since: now, stamp: None, open: open || file.open };
    }

    /// A file found by listing the directory. `untouched` is for how long it is known to be as it is: at the start
    /// [`Candidate::untouched`], later zero, as clocks may differ and this process has time to watch. Of a file that is known
    /// already only what changed counts.
    pub fn found(&mut self, candidate: &Candidate, untouched: Duration, now: Instant) {
        let stamp = Some(candidate.stamp);
        match self.files.get_mut(&candidate.path) {
            None => {
                let since = now.checked_sub(untouched).unwrap_or(now);
                self.files.insert(candidate.path.clone(), Still { since, stamp, open: false });
            }
            Some(known) if known.stamp.is_some() && known.stamp != stamp => (known.since, known.stamp) = (now, stamp),
            Some(known) => known.stamp = stamp,
        }
    }

    /// Whether the file is known.
    pub fn contains(&self, path: &Path) -> bool {
        self.files.contains_key(path)
    }

    /// The file was claimed, or is gone.
    pub fn forget(&mut self, path: &Path) {
        self.files.remove(path);
    }

    /// Events were lost: what seems to be open may have been closed since.
    pub fn events_lost(&mut self, now: Instant) {
        for file in self.files.values_mut() {
            *file = Still { since: now, stamp: file.stamp, open: false };
        }
    }

    /// The files that are complete now; they are forgotten. `look` says what a file looks like, as [`super::Inbox::look`]: one
    /// that has changed without an event waits again, one that is gone is forgotten.
    pub fn ready(&mut self, now: Instant, mut look: impl FnMut(&Path) -> Option<Candidate>) -> Vec<Candidate> {
        let mut ready = Vec::new();
        let settle = self.settle;
        self.files.retain(|path, file| {
            if file.deadline(settle).is_none_or(|deadline| deadline > now) {
                return true;
            }
            let Some(mut candidate) = look(path) else { return false };
            let stamp = Some(candidate.stamp);
            if file.stamp.is_some() && file.stamp != stamp {
                (file.since, file.stamp) = (now, stamp);
                return true;
            }
            file.stamp = stamp;
            // Of an empty file that waits longer this is known only now.
            if file.deadline(settle).is_none_or(|deadline| deadline > now) {
                return true;
            }
            candidate.open = file.open;
            ready.push(candidate);
            false
        });
        ready.sort_by(|a, b| (a.changed, &a.path).cmp(&(b.changed, &b.path)));
        ready
    }

    /// When to ask for [`Settling::ready`] again, if no event comes before.
    pub fn next_look(&self) -> Option<Instant> {
        self.files.values().filter_map(|file| file.deadline(self.settle)).min()
    }

    /// Whether nothing settles: with `--once`, whether all that the inbox holds is claimed.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
}

impl Still {
    /// When the file is complete if it stays as it is; none if only its closing can tell.
    fn deadline(&self, settle: Duration) -> Option<Instant> {
        let empty = self.stamp.is_some_and(|stamp| stamp.size == 0);
        match (self.open, empty) {
            // `program > inbox/events/x.json`: the shell makes the file, the program writes when it has something to say.
            (true, true) => None,
            // A slow writer, or one that forgot to close: in the end the file is taken.
            (true, false) | (false, true) => Some(self.since + settle * OPEN_FILE_FACTOR),
            (false, false) => Some(self.since + settle),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::time::SystemTime;

    use super::super::Place;
    use super::*;
    use crate::dataset::{Dataset, Model};
    use crate::vitals::Vitals;

    const SETTLE: Duration = Duration::from_millis(250);

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// A file that looks as it did when it had `size` bytes.
    fn file(name: &str, size: u64) -> Candidate {
        let dataset = Arc::new(Dataset {
            name: "events".into(),
            dir: "events".into(),
            columns: Vec::new(),
            key: Vec::new(),
            day: None,
            model: Model::default(),
            menu: false,
        });
        let dir = || PathBuf::from("/inbox/events");
        let (stage, unsynced) = (Vitals::default().stage("intake"), AtomicBool::new(false));
        let place = Place { dataset, dir: dir(), loading: dir(), processed: dir(), failed: dir(), stage, unsynced };
        let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(size);
        Candidate {
            path: dir().join(name),
            stamp: Stamp { size, modified: changed },
            changed,
            complete: false,
            open: false,
            place: Arc::new(place),
        }
    }

    fn names(ready: &[Candidate]) -> Vec<&str> {
        ready.iter().map(|c| c.path.file_name().unwrap().to_str().unwrap()).collect()
    }

    #[test]
    fn a_file_that_was_untouched_for_the_settle_time_is_ready_at_once() {
        let now = Instant::now() + ms(10_000);
        let mut settling = Settling::new(SETTLE);
        settling.found(&file("old", 1), SETTLE, now);
        settling.found(&file("new", 2), ms(100), now);
        assert_eq!(names(&settling.ready(now, |path| (path == file("old", 1).path).then(|| file("old", 1)))), ["old"]);
        assert_eq!(settling.next_look(), Some(now + ms(150)));
        assert_eq!(names(&settling.ready(now + ms(149), |_| unreachable!())), [""; 0]);
        assert_eq!(names(&settling.ready(now + ms(150), |_| Some(file("new", 2)))), ["new"]);
        assert!(settling.is_empty() && settling.next_look().is_none());
    }

    #[test]
    fn a_file_that_grows_waits_until_it_is_still() {
        let now = Instant::now();
        let mut settling = Settling::new(SETTLE);
        settling.found(&file("x", 1), ms(0), now);
        settling.found(&file("x", 2), ms(0), now + ms(200)); // the next listing
        assert_eq!(settling.next_look(), Some(now + ms(450)));
        assert_eq!(settling.ready(now + ms(450), |_| Some(file("x", 3))).len(), 0); // no event, but it changed
        assert_eq!(settling.next_look(), Some(now + ms(700)));
        settling.touched(file("x", 3).path, false, now + ms(600));
        settling.found(&file("x", 3), ms(0), now + ms(800)); // still the same
        assert_eq!(settling.next_look(), Some(now + ms(850)));
        assert_eq!(names(&settling.ready(now + ms(850), |_| Some(file("x", 3)))), ["x"]);
    }

    #[test]
    fn a_file_that_somebody_has_open_is_waited_for_longer() {
        let now = Instant::now();
        let mut settling = Settling::new(SETTLE);
        settling.touched(file("x", 1).path, false, now);
        settling.touched(file("x", 1).path, true, now);
        assert_eq!(settling.ready(now + ms(4_999), |_| unreachable!()).len(), 0);
        let ready = settling.ready(now + ms(5_000), |_| Some(file("x", 1)));
        assert!(names(&ready) == ["x"] && ready[0].open);
    }

    #[test]
    fn an_empty_file_that_somebody_has_open_waits_for_its_writer() {
        let now = Instant::now();
        let mut settling = Settling::new(SETTLE);
        settling.touched(file("x", 0).path, true, now);
        assert_eq!(settling.ready(now + ms(5_000), |_| Some(file("x", 0))).len(), 0);
        assert_eq!(settling.next_look(), None);
        // If the event of its closing was lost, it is an empty file like any other.
        settling.events_lost(now + ms(6_000));
        assert_eq!(settling.next_look(), Some(now + ms(11_000)));
        assert_eq!(names(&settling.ready(now + ms(11_000), |_| Some(file("x", 0)))), ["x"]);
    }

    #[test]
    fn a_file_that_is_gone_or_was_claimed_is_forgotten() {
        let now = Instant::now();
        let mut settling = Settling::new(SETTLE);
        settling.touched(file("gone", 1).path, false, now);
        settling.touched(file("claimed", 1).path, false, now);
        settling.forget(&file("claimed", 1).path);
        assert_eq!(settling.ready(now + SETTLE, |_| None).len(), 0);
        assert!(settling.is_empty());
    }
}
