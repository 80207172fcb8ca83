//! How long to wait for a database or a broker that is away.

use std::time::{Duration, Instant};

use backon::BackoffBuilder;

/// How long those who do not wait for ever try.
pub const GIVE_UP_AFTER: Duration = Duration::from_secs(10);

/// The last attempt, when the time is over, waits no longer than this.
const LAST_ATTEMPT: Duration = Duration::from_secs(1);

/// How long to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// For ever, saying so now and then: `run`.
    Wait,
    /// [`GIVE_UP_AFTER`] without any progress: `run --once` and all other commands.
    GiveUp,
}

impl Patience {
    /// The pause before the next attempt, `None` if there is none. Those who give up make the last one when their time is
    /// over, so the pause before it is cut short.
    pub fn pause(self, since: Instant, pause: Duration) -> Option<Duration> {
        match self {
            Self::Wait => Some(pause),
            Self::GiveUp => {
                let left = GIVE_UP_AFTER.saturating_sub(since.elapsed());
                (!left.is_zero()).then(|| pause.min(left))
            }
        }
    }

    /// How long one attempt may wait for an answer. `since`: when the first one began to fail.
    pub fn attempt(self, since: Option<Instant>) -> Duration {
        match (self, since) {
            (Self::GiveUp, Some(since)) => GIVE_UP_AFTER.saturating_sub(since.elapsed()).max(LAST_ATTEMPT),
            (Self::Wait | Self::GiveUp, _) => GIVE_UP_AFTER,
        }
    }
}

/// Pauses between attempts, without end: jittered, from 50 ms to 10 s.
pub fn short_pauses() -> impl Iterator<Item = Duration> + Send + Sync {
    pauses(Duration::from_millis(50), Duration::from_secs(5))
}

/// The same from one second to thirty: for a broker, which needs a while to start.
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
    fn only_those_who_give_up_cut_their_last_pause_short() {
        let long = Duration::from_secs(60);
        let now = Instant::now();
        assert_eq!(Patience::Wait.pause(now, long), Some(long));
        assert!(Patience::GiveUp.pause(now, long).is_some_and(|pause| pause <= GIVE_UP_AFTER));
        let Some(then) = now.checked_sub(GIVE_UP_AFTER) else { return };
        assert_eq!(Patience::GiveUp.pause(then, long), None);
        assert_eq!(Patience::Wait.pause(then, long), Some(long));
    }
}
