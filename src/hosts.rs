//! Several hosts that a URL names: they are tried in turn, beginning with the one that was connected last.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// How long each of several hosts may take to connect. One that is down must not use up the time of the others.
pub const HOST_TIME: Duration = Duration::from_secs(5);

/// Before the first connection.
const NONE: usize = usize::MAX;

/// The hosts of a server, with what each is connected with. Clones share what is known of them.
#[derive(Debug)]
pub struct Hosts<T>(Arc<Shared<T>>);

impl<T> Clone for Hosts<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Shared<T> {
    /// What they are hosts of, for the log.
    of: &'static str,
    hosts: Vec<Host<T>>,
    /// The host to begin with: the one that was connected last, or the one after a failure.
    next: AtomicUsize,
    connected: AtomicUsize,
}

#[derive(Debug)]
struct Host<T> {
    /// `HOST:PORT`.
    name: String,
    options: T,
}

impl<T> Hosts<T> {
    /// Hosts with their names, at least one.
    pub fn new(of: &'static str, hosts: impl IntoIterator<Item = (String, T)>) -> Self {
        let hosts = hosts.into_iter().map(|(name, options)| Host { name, options }).collect();
        Self(Arc::new(Shared { of, hosts, next: AtomicUsize::new(0), connected: AtomicUsize::new(NONE) }))
    }

    /// Whether there is more than one.
    pub fn are_several(&self) -> bool {
        self.0.hosts.len() > 1
    }

    /// The name of the host that was connected last.
    pub fn connected(&self) -> Option<&str> {
        self.name(self.0.connected.load(Ordering::Relaxed))
    }

    /// What the host that was connected last, or is the first, is connected with.
    pub fn last(&self) -> Option<&T> {
        let at = self.0.connected.load(Ordering::Relaxed);
        self.0.hosts.get(at).or(self.0.hosts.first()).map(|host| &host.options)
    }

    /// Each host once.
    pub fn attempts(&self) -> impl Iterator<Item = Attempt<'_, T>> {
        let count = self.0.hosts.len();
        let first = self.0.next.load(Ordering::Relaxed);
        (0..count).map(move |i| {
            let at = (first + i) % count;
            Attempt { hosts: self, at, has_succeeded: false }
        })
    }

    fn name(&self, at: usize) -> Option<&str> {
        self.0.hosts.get(at).map(|host| host.name.as_str())
    }
}

/// An attempt to connect to one of the hosts.
pub struct Attempt<'h, T> {
    hosts: &'h Hosts<T>,
    at: usize,
    has_succeeded: bool,
}

impl<'h, T> Attempt<'h, T> {
    pub fn name(&self) -> &'h str {
        &self.hosts.0.hosts[self.at].name
    }

    pub fn options(&self) -> &'h T {
        &self.hosts.0.hosts[self.at].options
    }

    /// Notes that it is connected, and says so if there are several hosts.
    pub fn succeeded(mut self) {
        self.has_succeeded = true;
        let Shared { of, next, connected, .. } = &*self.hosts.0;
        next.store(self.at, Ordering::Relaxed);
        let before = connected.swap(self.at, Ordering::Relaxed);
        if before == self.at || !self.hosts.are_several() {
            return;
        }
        match self.hosts.name(before) {
            None => tracing::info!("connected to {of} at {}", self.name()),
            Some(before) => tracing::info!("connected to {of} at {}, no longer at {before}", self.name()),
        }
    }
}

impl<T> Drop for Attempt<'_, T> {
    /// After a failure the next connection begins with the next host, also if the caller's patience has ended before this one
    /// answered. Of attempts at the same time, the first that fails decides.
    fn drop(&mut self) {
        if !self.has_succeeded {
            let Shared { hosts, next, .. } = &*self.hosts.0;
            let _ = next.compare_exchange(self.at, (self.at + 1) % hosts.len(), Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(hosts: &Hosts<()>) -> Vec<&str> {
        hosts.attempts().map(|attempt| attempt.name()).collect()
    }

    #[test]
    fn the_host_that_was_connected_last_comes_first() {
        let hosts = Hosts::new("the database", ["a", "b", "c"].map(|name| (name.to_owned(), ())));
        assert_eq!(order(&hosts), ["a", "b", "c"]);
        assert_eq!(hosts.connected(), None);
        let second = hosts.attempts().nth(1).expect("there are three");
        second.succeeded();
        assert_eq!(hosts.connected(), Some("b"));
        assert_eq!(order(&hosts.clone()), ["b", "c", "a"]);
    }

    #[test]
    fn attempts_at_the_same_time_begin_with_the_same_host() {
        let hosts = Hosts::new("the database", ["a", "b", "c"].map(|name| (name.to_owned(), ())));
        let both = [hosts.attempts().next(), hosts.attempts().next()].map(|attempt| attempt.expect("there are three"));
        assert_eq!(both.each_ref().map(Attempt::name), ["a", "a"]);
        drop(both);
        assert_eq!(order(&hosts), ["b", "c", "a"], "both have found that one is away");
    }

    #[test]
    fn an_attempt_that_never_ends_leaves_the_next_host_to_the_next_one() {
        let hosts = Hosts::new("the database", ["a", "b"].map(|name| (name.to_owned(), ())));
        assert_eq!(hosts.attempts().next().map(|attempt| attempt.name()), Some("a"));
        assert_eq!(order(&hosts), ["b", "a"]);
    }
}
