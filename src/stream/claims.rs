//! Claims: the files that this process has, and those that it has released until another load of the same content is over.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use uuid::Uuid;

use crate::inbox::Claim;

/// The files that this process has claimed, by load key. Shared with the stages that record a crash on a claim.
#[derive(Debug, Clone, Default)]
pub struct Claims {
    held: Arc<Mutex<HashMap<Uuid, Claim>>>,
    /// The files that wait in `.loading/`, released, for a load with the same content. Any process may claim them again.
    waiting: Arc<Mutex<HashMap<Uuid, i64>>>,
    has_crashed: Arc<AtomicBool>,
}

impl Claims {
    pub(super) fn with<T>(&self, use_claims: impl FnOnce(&mut HashMap<Uuid, Claim>) -> T) -> T {
        use_claims(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many files are claimed.
    pub fn count(&self) -> usize {
        self.with(|claims| claims.len())
    }

    fn with_waiting<T>(&self, use_waiting: impl FnOnce(&mut HashMap<Uuid, i64>) -> T) -> T {
        use_waiting(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Releases a file until the load with this id is over.
    pub fn wait(&self, key: Uuid, load: i64) {
        self.with_waiting(|waiting| waiting.insert(key, load));
        self.with(|claims| claims.remove(&key));
    }

    /// How many files wait.
    pub fn waiting(&self) -> usize {
        self.with_waiting(|waiting| waiting.len())
    }

    /// The loads that files wait for.
    pub fn waited_for(&self) -> BTreeSet<i64> {
        self.with_waiting(|waiting| waiting.values().copied().collect())
    }

    /// Ends the wait for the loads that are over. Returns whether any file waited for one of them.
    pub fn resume(&self, is_over: impl Fn(i64) -> bool) -> bool {
        self.with_waiting(|waiting| {
            let before = waiting.len();
            waiting.retain(|_, load| !is_over(*load));
            waiting.len() < before
        })
    }

    /// Whether this process has the file, or has it wait.
    pub fn knows(&self, key: Uuid) -> bool {
        self.with(|claims| claims.contains_key(&key)) || self.with_waiting(|waiting| waiting.contains_key(&key))
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tempfile::TempDir;

    use super::*;
    use crate::dataset::Dataset;
    use crate::inbox::Inbox;
    use crate::vitals::Vitals;

    /// An inbox, and claims of two files.
    fn two_claims() -> (TempDir, Inbox, [Claim; 2]) {
        let root = tempfile::tempdir().unwrap();
        let dataset = Arc::new(Dataset::without_columns("events"));
        let inbox = Inbox::open(root.path(), &[dataset], Duration::ZERO, &Vitals::default().stage("intake")).unwrap();
        let claims = ["a", "b"].map(|name| {
            let path = root.path().join("events").join(name);
            std::fs::write(&path, "{}").unwrap();
            inbox.claim(&inbox.look(&path).unwrap()).unwrap().unwrap()
        });
        (root, inbox, claims)
    }

    #[test]
    fn a_crash_is_recorded_once_and_on_the_claim_that_caused_it() {
        let (_root, _inbox, [cause, later]) = two_claims();
        let claims = Claims::default();
        for claim in [&cause, &later] {
            claims.with(|held| held.insert(claim.key, claim.clone()));
        }
        for claim in [&cause, &cause, &later] {
            claims.clone().crashed(claim.key);
        }
        assert_eq!((cause.crashes().unwrap(), later.crashes().unwrap()), (1, 0));
        assert_eq!(claims.count(), 2);
    }

    #[test]
    fn a_file_that_waits_is_released_and_taken_up_when_the_load_is_over() {
        let (_root, inbox, [waits, other]) = two_claims();
        let (claims, keys) = (Claims::default(), [waits.key, other.key]);
        for claim in [waits, other] {
            claims.with(|held| held.insert(claim.key, claim));
        }
        claims.wait(keys[0], 7);
        assert_eq!((claims.count(), claims.waiting(), claims.waited_for()), (1, 1, BTreeSet::from([7])));
        assert!(keys.iter().all(|key| claims.knows(*key)), "the next listing leaves it where it is");
        let mut leftovers = inbox.leftovers().unwrap().into_iter();
        assert!(inbox.reclaim(&leftovers.next().unwrap()).unwrap().is_some(), "another process may have it");
        assert!(inbox.reclaim(&leftovers.next().unwrap()).unwrap().is_none());
        assert!(!claims.resume(|load| load != 7), "its load is not over");
        assert!(claims.resume(|load| load == 7));
        assert!(!claims.knows(keys[0]) && claims.knows(keys[1]));
    }
}
