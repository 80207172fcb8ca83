//! The retry policy and the pauses between attempts, for a database or broker that is unavailable.

use std::time::{Duration, Instant};

use backon::BackoffBuilder;

/// One-shot commands retry for this long.
pub const GIVE_UP_AFTER: Duration = Duration::from_secs(10);

/// The last attempt, made after that time, waits no longer than this.
const LAST_ATTEMPT: Duration = Duration::from_secs(1);

/// How long to retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryPolicy {
    /// Without end, with a log line from time to time: `run`.
    Forever,
    /// [`GIVE_UP_AFTER`] without any progress: `run --once` and all other commands.
    Limited,
}

impl RetryPolicy {
    /// The pause before the next attempt; `None` if there is no further attempt. With a time limit, the last attempt is made
    /// when the time is over, so the pause before it is shortened.
    pub fn pause(self, since: Instant, pause: Duration) -> Option<Duration> {
        match self {
            Self::Forever => Some(pause),
            Self::Limited => {
                let left = GIVE_UP_AFTER.saturating_sub(since.elapsed());
                (!left.is_zero()).then(|| pause.min(left))
            }
        }
    }

    /// The timeout of one attempt. `since` is the time of the first failure.
    pub fn attempt_timeout(self, since: Option<Instant>) -> Duration {
        match (self, since) {
            (Self::Limited, Some(since)) => GIVE_UP_AFTER.saturating_sub(since.elapsed()).max(LAST_ATTEMPT),
            (Self::Forever | Self::Limited, _) => GIVE_UP_AFTER,
        }
    }
}

/// Endless jittered pauses between attempts, growing from 50 ms to 10 s.
pub fn short_pauses() -> impl Iterator<Item = Duration> + Send + Sync {
    pauses(Duration::from_millis(50), Duration::from_secs(5))
}

/// Endless jittered pauses from 1 s to 30 s, for a broker, which takes some time to start.
pub fn long_pauses() -> impl Iterator<Item = Duration> + Send + Sync {
    pauses(Duration::from_secs(1), Duration::from_secs(15))
}

/// The jitter at most doubles a pause.
fn pauses(shortest: Duration, longest: Duration) -> impl Iterator<Item = Duration> + Send + Sync {
    backon::ExponentialBuilder::new().with_min_delay(shortest).with_max_delay(longest).with_jitter().without_max_times().build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_as_long_as_they_say() {
        for pause in short_pauses().take(100) {
            assert!((0.05..=10.0).contains(&pause.as_secs_f64()), "{pause:?}");
        }
        for pause in long_pauses().take(100) {
            assert!((1.0..=30.0).contains(&pause.as_secs_f64()), "{pause:?}");
        }
    }

    #[test]
    fn the_time_limit_shortens_the_last_pause() {
        let long = Duration::from_secs(60);
        let now = Instant::now();
        assert_eq!(RetryPolicy::Forever.pause(now, long), Some(long));
        assert!(RetryPolicy::Limited.pause(now, long).is_some_and(|pause| pause <= GIVE_UP_AFTER));
        let Some(then) = now.checked_sub(GIVE_UP_AFTER) else { return };
        assert_eq!(RetryPolicy::Limited.pause(then, long), None);
        assert_eq!(RetryPolicy::Forever.pause(then, long), Some(long));
    }
}
