//! Held: counts the bytes that a consumer holds, from the arrival of a message until it is settled.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The memory that all messages of a consumer take. While it is more than the budget, nothing more is read.
#[derive(Debug, Clone)]
pub(super) struct Held {
    bytes: Arc<AtomicUsize>,
    budget: usize,
}

impl Held {
    pub fn new(budget: usize) -> Self {
        Self { bytes: Arc::default(), budget }
    }

    /// Takes bytes even if there is no room, because they are in memory already.
    pub fn take(&self, bytes: usize) -> Share {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Share { held: self.clone(), bytes }
    }

    /// Whether more messages may be read.
    pub fn has_room(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) < self.budget
    }
}

/// The bytes of one message. They are given back when this is dropped.
#[derive(Debug)]
pub(super) struct Share {
    held: Held,
    bytes: usize,
}

impl Share {
    /// Corrects the bytes of the message.
    pub fn resize(&mut self, bytes: usize) {
        self.held.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.held.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = bytes;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.held.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_until_what_is_held_reaches_the_budget() {
        let held = Held::new(100);
        let mut first = held.take(60);
        assert!(held.has_room());
        let second = held.take(60);
        assert!(!held.has_room());
        first.resize(20);
        assert!(held.has_room());
        first.resize(100);
        drop(second);
        assert!(!held.has_room());
        drop(first);
        assert!(held.has_room());
    }
}
