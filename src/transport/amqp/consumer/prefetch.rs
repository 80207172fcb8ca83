//! Prefetch: decides how many messages the broker may send ahead.

use crate::record::chunk::CHUNK_BYTES;

/// How many small messages may be in flight for each large one.
const SMALL_MESSAGES: u16 = 16;

/// The prefetch count of each queue. The broker cannot count bytes, so the count follows the size of the messages: it is low
/// while chunks arrive, and high while only small messages arrive. The count bounds how many messages a killed consumer leaves
/// unacknowledged, and how many the broker holds while the tap is closed. The tap bounds what this process holds.
#[derive(Debug)]
pub(super) struct Prefetch {
    large: u16,
    small: u16,
    /// A message up to this size is small: the budget has room for the whole prefetch count of such messages.
    small_bytes: usize,
    /// How many small messages have arrived in a row.
    in_a_row: u16,
}

impl Prefetch {
    /// The bytes are divided among the queues, as each queue has its own prefetch count.
    pub fn new(in_flight_bytes: usize, queues: usize) -> Self {
        let large = u16::try_from((in_flight_bytes / CHUNK_BYTES / queues.max(1)).clamp(2, 1_000)).expect("at most 1,000");
        let small = large * SMALL_MESSAGES;
        Self { large, small, small_bytes: CHUNK_BYTES / usize::from(SMALL_MESSAGES), in_a_row: 0 }
    }

    pub fn note(&mut self, bytes: usize) {
        self.in_a_row = if bytes <= self.small_bytes { self.in_a_row.saturating_add(1) } else { 0 };
    }

    /// The count for large messages.
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
