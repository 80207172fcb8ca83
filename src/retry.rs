//! Retry: when to try again to reach a database or broker that is unavailable, when to give up, and when to say so. Everything
//! that waits for a server uses it.

use std::time::{Duration, Instant};

use backon::BackoffBuilder;

use crate::vitals::{Stage, Wait};

/// One-shot commands retry for this long.
pub const GIVE_UP_AFTER: Duration = Duration::from_secs(10);

/// The log reports at most this often that something is still unavailable.
pub const MENTION_EVERY: Duration = Duration::from_secs(15);

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
    fn pause(self, since: Instant, pause: Duration) -> Option<Duration> {
        match self {
            Self::Forever => Some(pause),
            Self::Limited => {
                let left = GIVE_UP_AFTER.saturating_sub(since.elapsed());
                (!left.is_zero()).then(|| pause.min(left))
            }
        }
    }
}

/// The shortest pause between attempts and the longest one, before jitter, which at most doubles a pause. The longest one is
/// short: an attempt costs the server next to nothing, and after an outage every stage goes on within a second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

type Pauses = Box<dyn Iterator<Item = Duration> + Send + Sync>;

fn pauses() -> Pauses {
    let (shortest, longest) = PAUSES;
    let backoff = backon::ExponentialBuilder::new().with_min_delay(shortest).with_max_delay(longest);
    Box::new(backoff.with_jitter().without_max_times().build())
}

/// The attempts to reach a server. After a failure, call [`Retry::failed`], [`Retry::goes_on`] and [`Retry::pause`], then try
/// again. After a success, call [`Retry::succeeded`].
pub struct Retry {
    policy: RetryPolicy,
    /// Set since the last success.
    outage: Option<Outage>,
}

struct Outage {
    since: Instant,
    pauses: Pauses,
    /// The pause before the next attempt.
    pause: Duration,
    /// When the log last reported it.
    mentioned: Option<Instant>,
}

impl Retry {
    /// No attempt has failed yet.
    pub fn new(policy: RetryPolicy) -> Self {
        Self { policy, outage: None }
    }

    /// Whether an attempt has failed since the last success.
    pub fn has_failed(&self) -> bool {
        self.outage.is_some()
    }

    /// Notes that an attempt has failed. `waited` is how long it waited for an answer: the outage is at least that old.
    pub fn failed(&mut self, waited: Duration) {
        let since = || Instant::now().checked_sub(waited).unwrap_or_else(Instant::now);
        self.outage.get_or_insert_with(|| Outage { since: since(), pauses: pauses(), pause: Duration::ZERO, mentioned: None });
    }

    /// Whether there is another attempt after the failed one. If so, this sets the pause before it.
    pub fn goes_on(&mut self) -> bool {
        self.goes_on_as(self.policy)
    }

    /// The same with another policy for this failure.
    pub fn goes_on_as(&mut self, policy: RetryPolicy) -> bool {
        let Some(outage) = &mut self.outage else { return true };
        let pause = policy.pause(outage.since, outage.pauses.next().expect("the pauses never end"));
        outage.pause = pause.unwrap_or_default();
        pause.is_some()
    }

    /// Reports the outage: to `dataloader health`, as what the stage waits for, and from time to time to the log.
    pub fn report(&mut self, stage: &Stage, waits_for: Wait, log: impl FnOnce(&str)) {
        stage.retries(waits_for.target);
        if let Some(outage) = &mut self.outage
            && outage.mentioned.is_none_or(|mentioned| mentioned.elapsed() > MENTION_EVERY)
        {
            outage.mentioned = Some(Instant::now());
            log(&waits_for.text);
        }
        stage.waits_for(waits_for);
    }

    /// Waits until the next attempt is due. Returns at once if none has failed.
    pub async fn pause(&self) {
        if let Some(outage) = &self.outage {
            tokio::time::sleep(outage.pause).await;
        }
    }

    /// The timeout of the next attempt.
    pub fn attempt_timeout(&self) -> Duration {
        match (self.policy, &self.outage) {
            (RetryPolicy::Limited, Some(outage)) => GIVE_UP_AFTER.saturating_sub(outage.since.elapsed()).max(LAST_ATTEMPT),
            (RetryPolicy::Forever | RetryPolicy::Limited, _) => GIVE_UP_AFTER,
        }
    }

    /// Notes that an attempt has succeeded. If the log has reported the outage, returns how long it lasted.
    pub fn succeeded(&mut self) -> Option<Duration> {
        let outage = self.outage.take()?;
        outage.mentioned.map(|_| outage.since.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vitals::{Target, Vitals};

    #[test]
    fn pauses_are_as_long_as_they_say() {
        for pause in pauses().take(100) {
            assert!((0.05..=1.0).contains(&pause.as_secs_f64()), "{pause:?}");
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

    #[test]
    fn what_was_waited_counts_for_the_time_limit() {
        let mut limited = Retry::new(RetryPolicy::Limited);
        assert_eq!(limited.attempt_timeout(), GIVE_UP_AFTER);
        limited.failed(Duration::ZERO);
        assert!(limited.goes_on());
        let mut limited = Retry::new(RetryPolicy::Limited);
        limited.failed(GIVE_UP_AFTER);
        assert_eq!(limited.attempt_timeout(), LAST_ATTEMPT);
        assert!(!limited.goes_on());
        assert!(limited.goes_on_as(RetryPolicy::Forever), "this failure needs more time, not less patience");
        let mut forever = Retry::new(RetryPolicy::Forever);
        forever.failed(GIVE_UP_AFTER);
        assert!(forever.goes_on());
    }

    #[test]
    fn an_outage_is_logged_once_in_a_while_and_its_end_only_if_it_was() {
        let vitals = Vitals::default();
        let stage = vitals.stage("writer");
        let mut retry = Retry::new(RetryPolicy::Forever);
        let mut lines = Vec::new();
        retry.failed(Duration::ZERO);
        assert_eq!(retry.succeeded(), None, "nobody heard of it");
        retry.failed(Duration::ZERO);
        for reason in ["refused", "refused again"] {
            retry.report(&stage, Wait::new(Target::Broker, reason), |what| lines.push(what.to_owned()));
        }
        assert_eq!(lines, ["refused"]);
        assert_eq!(vitals.retries(Target::Broker), 2);
        assert!(retry.has_failed() && retry.succeeded().is_some() && !retry.has_failed());
    }
}
