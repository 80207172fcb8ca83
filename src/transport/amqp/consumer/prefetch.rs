//! How many messages the broker may send ahead.

use crate::record::chunk::CHUNK_BYTES;

/// How many more small messages may be under way than large ones.
const SMALL_MESSAGES: u16 = 16;

/// How many messages the broker may send ahead of each queue. It cannot count bytes, so this follows what comes: few while there
/// are chunks, many while there are only small messages. It bounds what a killed consumer leaves behind, and what the broker
/// has to hold while the tap is closed; what this process holds is bounded by the tap.
#[derive(Debug)]
pub(super) struct Prefetch {
    large: u16,
    small: u16,
    /// A message up to this size is small: so many of them are within the budget.
    small_bytes: usize,
    /// How many small ones have come in a row.
    in_a_row: u16,
}

impl Prefetch {
    /// Each queue has a prefetch count of its own.
    pub fn new(in_flight_bytes: usize, queues: usize) -> Self {
        let large = u16::try_from((in_flight_bytes / CHUNK_BYTES / queues.max(1)).clamp(2, 1_000)).expect("at most 1,000");
        let small = large * SMALL_MESSAGES;
        Self { large, small, small_bytes: CHUNK_BYTES / usize::from(SMALL_MESSAGES), in_a_row: 0 }
    }

    pub fn note(&mut self, bytes: usize) {
        self.in_a_row = if bytes <= self.small_bytes { self.in_a_row.saturating_add(1) } else { 0 };
    }

    /// If they were large.
    pub fn of_large(&self) -> u16 {
        self.large
    }

    pub fn count(&self) -> u16 {
        if self.in_a_row >= self.large { self.small } else { self.large }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefetch_follows_the_size_of_messages() {
        let mut prefetch = Prefetch::new(32 << 20, 2);
        assert_eq!(prefetch.count(), 16);
        for _ in 0..16 {
            prefetch.note(300);
        }
        assert_eq!(prefetch.count(), 256);
        prefetch.note(CHUNK_BYTES);
        assert_eq!(prefetch.count(), 16);
        assert_eq!(Prefetch::new(1, 100).count(), 2);
    }
}
