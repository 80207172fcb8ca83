//! Failures: counts in this consumer how often each message failed, and keeps which messages are to be dead-lettered when they
//! are redelivered.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::transport::amqp::wire::MessageKey;

/// A message that failed this often is dead-lettered.
const ATTEMPTS: u32 = 5;
/// The pause after the first failure. Each further pause is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The most messages to remember. A message that failed here may succeed in another consumer, which does not report it, so some
/// must be forgotten.
const REMEMBERED: usize = 10_000;

/// Shared by the consumer's task and the decoder's thread.
#[derive(Debug, Clone, Default)]
pub(super) struct Failures(Arc<Mutex<HashMap<MessageKey, Record>>>);

#[derive(Debug, Default)]
struct Record {
    failed: u32,
    dead_lettered: Option<DeadLetterReason>,
}

/// Why a message is dead-lettered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DeadLetterReason {
    pub reason: String,
    pub detail: String,
}

/// What to do with a message that failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NextStep {
    TryAgainAfter(Duration),
    /// It is dead-lettered when it is redelivered.
    GiveUp,
}

impl Failures {
    pub fn count(&self, key: MessageKey, detail: String) -> NextStep {
        self.with(key, |record| {
            record.failed += 1;
            if record.failed < ATTEMPTS {
                return NextStep::TryAgainAfter(FIRST_PAUSE * 2u32.pow(record.failed - 1));
            }
            let detail = format!("failed {ATTEMPTS} times, at last: {detail}");
            record.dead_lettered = Some(DeadLetterReason { reason: "failed".to_owned(), detail });
            NextStep::GiveUp
        })
    }

    pub fn dead_letter(&self, key: MessageKey, reason: String, detail: String) {
        self.with(key, |record| record.dead_lettered = Some(DeadLetterReason { reason, detail }));
    }

    /// Why the message is to be dead-lettered, if it is.
    pub fn dead_letter_reason(&self, key: &MessageKey) -> Option<DeadLetterReason> {
        self.lock().get(key).and_then(|record| record.dead_lettered.clone())
    }

    pub fn forget(&self, key: &MessageKey) {
        self.lock().remove(key);
    }

    fn with<T>(&self, key: MessageKey, change: impl FnOnce(&mut Record) -> T) -> T {
        let mut records = self.lock();
        if records.len() >= REMEMBERED {
            records.clear();
        }
        change(records.entry(key).or_default())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<MessageKey, Record>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_given_up_after_some_failures_and_others_are_not() {
        let failures = Failures::default();
        let (bad, good) = (MessageKey::example(1), MessageKey::example(2));
        for attempt in 1..ATTEMPTS {
            let pause = FIRST_PAUSE * 2u32.pow(attempt - 1);
            assert_eq!(failures.count(bad, "x".to_owned()), NextStep::TryAgainAfter(pause));
            assert_eq!(failures.dead_letter_reason(&bad), None);
        }
        assert_eq!(failures.count(bad, "disk on fire".to_owned()), NextStep::GiveUp);
        let expected = DeadLetterReason { reason: "failed".to_owned(), detail: "failed 5 times, at last: disk on fire".to_owned() };
        assert_eq!(failures.dead_letter_reason(&bad), Some(expected));
        assert_eq!(failures.dead_letter_reason(&good), None);
        failures.forget(&bad);
        assert_eq!(failures.dead_letter_reason(&bad), None);
    }
}
