//! Settling: decides which files have been still for long enough. Pure: it gets the time and the state of the files from
//! outside.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Candidate, OPEN_FILE_FACTOR, Stamp};

/// The files that no event has reported as complete yet.
#[derive(Debug)]
pub struct Settling {
    settle: Duration,
    files: HashMap<PathBuf, Still>,
}

/// A file that may be complete.
#[derive(Debug)]
struct Still {
    since: Instant,
    /// `None` if the file was not looked at since the last event.
    stamp: Option<Stamp>,
    /// A program has opened it or written to it. An event will report its closing.
    open: bool,
}

impl Settling {
    /// Starts with no files. `settle` is how long a file must be still.
    pub fn new(settle: Duration) -> Self {
        Self { settle, files: HashMap::new() }
    }

    /// Handles an event: the file was created or changed. `open` means that a program may be writing to it.
    pub fn touched(&mut self, path: PathBuf, open: bool, now: Instant) {
        let file = self.files.entry(path).or_insert(Still { since: now, stamp: None, open });
        *file = Still { since: now, stamp: None, open: open || file.open };
    }

    /// Adds a file found by listing the directory. `untouched` is how long it is known not to have changed:
    /// [`Candidate::untouched`] at the start, and zero later, because clocks may differ and this process can watch the file
    /// itself. A file that is already known is updated only if it has changed.
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

    /// Removes a file that was claimed or is gone.
    pub fn forget(&mut self, path: &Path) {
        self.files.remove(path);
    }

    /// Handles lost events: a file that seems open may have been closed.
    pub fn events_lost(&mut self, now: Instant) {
        for file in self.files.values_mut() {
            *file = Still { since: now, stamp: file.stamp, open: false };
        }
    }

    /// Returns the files that are complete now, and removes them. `look` returns the current state of a file, like
    /// [`super::Inbox::look`]. A file that has changed without an event waits again, and a file that is gone is removed.
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
            // Only now it is known that the file is empty, and an empty file waits longer.
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

    /// When to call [`Settling::ready`] again if no event arrives before.
    pub fn next_look(&self) -> Option<Instant> {
        self.files.values().filter_map(|file| file.deadline(self.settle)).min()
    }

    /// Whether no file is settling. With `--once` this means that everything in the inbox is claimed.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
}

impl Still {
    /// When the file counts as complete if it does not change. `None` if only its closing can show that.
    fn deadline(&self, settle: Duration) -> Option<Instant> {
        let empty = self.stamp.is_some_and(|stamp| stamp.size == 0);
        match (self.open, empty) {
            // `program > inbox/events/x.json`: the shell creates the file, and the program writes to it much later.
            (true, true) => None,
            // The writer is slow or forgot to close the file. It is taken in the end.
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

    use super::super::{Place, Symlinks};
    use super::*;
    use crate::dataset::Dataset;
    use crate::vitals::Vitals;

    const SETTLE: Duration = Duration::from_millis(250);

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// A file as it looks when it has `size` bytes.
    fn file(name: &str, size: u64) -> Candidate {
        let dataset = Arc::new(Dataset::without_columns("events"));
        let dir = || PathBuf::from("/inbox/events");
        let (stage, unsynced) = (Vitals::default().stage("intake"), AtomicBool::new(false));
        let links = Symlinks::Refused;
        let place = Place { dataset, dir: dir(), loading: dir(), processed: dir(), failed: dir(), links, stage, unsynced };
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
        // If the event of its closing was lost, it is treated like any other empty file.
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
