//! The files that wait to be claimed, in their order.

use std::collections::{HashSet, VecDeque};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::inbox::{Candidate, Leftover};

/// The files that can be claimed and are not claimed yet. They wait because the limit of claims is reached.
#[derive(Debug, Default)]
pub(super) struct Queue {
    leftovers: VecDeque<Leftover>,
    complete: VecDeque<Candidate>,
    /// The paths of the complete files.
    paths: HashSet<PathBuf>,
}

/// The file to claim next.
#[derive(Debug)]
pub(super) enum Next {
    Leftover(Leftover),
    Complete(Candidate),
}

impl Queue {
    /// Adds a complete file, unless it waits already.
    pub(super) fn add(&mut self, candidate: Candidate) {
        if self.paths.insert(candidate.path.clone()) {
            self.complete.push_back(candidate);
        }
    }

    /// Takes over a new listing of the leftovers, without those that this process has claimed.
    pub(super) fn resume(&mut self, leftovers: Vec<Leftover>, is_own: impl Fn(Uuid) -> bool) {
        self.leftovers = leftovers.into_iter().filter(|leftover| !is_own(leftover.key)).collect();
    }

    /// Removes the file to claim next. Leftovers come first, because they are the oldest.
    pub(super) fn next(&mut self) -> Option<Next> {
        if let Some(leftover) = self.leftovers.pop_front() {
            return Some(Next::Leftover(leftover));
        }
        let candidate = self.complete.pop_front()?;
        self.paths.remove(&candidate.path);
        Some(Next::Complete(candidate))
    }

    /// Whether a complete file with this path waits.
    pub(super) fn contains(&self, path: &Path) -> bool {
        self.paths.contains(path)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.leftovers.is_empty() && self.complete.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tempfile::TempDir;

    use super::*;
    use crate::dataset::Dataset;
    use crate::inbox::Inbox;
    use crate::vitals::Vitals;

    fn inbox() -> (TempDir, Inbox) {
        let root = tempfile::tempdir().unwrap();
        let dataset = Dataset::without_columns("events");
        let stage = Vitals::default().stage("intake");
        let inbox = Inbox::open(root.path(), &[Arc::new(dataset)], Duration::ZERO, &stage).unwrap();
        (root, inbox)
    }

    fn candidate((root, inbox): &(TempDir, Inbox), name: &str) -> Candidate {
        let path = root.path().join("events").join(name);
        std::fs::write(&path, "[]").unwrap();
        inbox.look(&path).unwrap()
    }

    /// Takes all files of the queue: the keys of the leftovers, and the names of the others.
    fn rest(queue: &mut Queue) -> Vec<String> {
        let next = std::iter::from_fn(|| queue.next());
        next.map(|next| match next {
            Next::Leftover(leftover) => leftover.key.to_string(),
            Next::Complete(candidate) => candidate.path.file_name().unwrap().to_str().unwrap().to_owned(),
        })
        .collect()
    }

    #[test]
    fn the_files_of_dead_processes_are_claimed_first_and_the_others_in_their_order() {
        let inbox = inbox();
        let [old, older] = ["b", "a"].map(|name| inbox.1.claim(&candidate(&inbox, name)).unwrap().unwrap().key);
        let mut queue = Queue::default();
        queue.add(candidate(&inbox, "z"));
        queue.add(candidate(&inbox, "y"));
        // Each rescan lists the leftovers again.
        for _ in 0..2 {
            queue.resume(inbox.1.leftovers().unwrap(), |_| false);
        }
        assert_eq!(rest(&mut queue), [old.to_string(), older.to_string(), "z".to_owned(), "y".to_owned()]);
        assert!(queue.is_empty());
    }

    #[test]
    fn what_this_process_has_claimed_is_not_resumed() {
        let inbox = inbox();
        let [own, other] = ["a", "b"].map(|name| inbox.1.claim(&candidate(&inbox, name)).unwrap().unwrap());
        let mut queue = Queue::default();
        queue.resume(inbox.1.leftovers().unwrap(), |key| key == own.key);
        assert_eq!(rest(&mut queue), [other.key.to_string()]);
    }

    #[test]
    fn a_file_waits_once_and_may_come_back_after_it_was_taken() {
        let inbox = inbox();
        let mut queue = Queue::default();
        let file = candidate(&inbox, "x");
        for _ in 0..3 {
            queue.add(file.clone());
        }
        assert!(queue.contains(&file.path));
        assert_eq!(rest(&mut queue), ["x"]);
        assert!(!queue.contains(&file.path), "a new file of this name is another file");
        queue.add(file);
        assert_eq!(rest(&mut queue), ["x"]);
    }
}
